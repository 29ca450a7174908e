"""Torch checkpoint → verified deployment bundle: `export_checkpoint(ExportOptions(checkpoint=…, output=…))`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .exporter import ExportOptions, export_checkpoint

__all__ = ["ExportOptions", "export_checkpoint"]

__getattr__ = lazy_names(__name__, {"ExportOptions": ".exporter", "export_checkpoint": ".exporter"})
