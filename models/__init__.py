"""The networks, in torch. `load_model` reads a checkpoint into one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .registry import load_model

__all__ = ["load_model"]

__getattr__ = lazy_names(__name__, {"load_model": ".registry"})
