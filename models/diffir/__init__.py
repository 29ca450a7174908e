"""DiffIR-S2 (ICCV 2023) for super-resolution ×1, ×2, ×4, under the key names of its released checkpoints."""

from __future__ import annotations

from .config import OFFICIAL_X4, DiffIRConfig
from .network import DiffIR

__all__ = ["OFFICIAL_X4", "DiffIR", "DiffIRConfig"]
