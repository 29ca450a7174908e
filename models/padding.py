"""Padding of pictures for networks that work on cells of several pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pad_to_multiple"]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Replicate the right and bottom edge of `x` (N×C×H×W) until both sides are multiples of `multiple`."""
    height, width = x.shape[-2:]
    pad_h, pad_w = (multiple - height % multiple) % multiple, (multiple - width % multiple) % multiple
    return F.pad(x, (0, pad_w, 0, pad_h), mode="replicate")
