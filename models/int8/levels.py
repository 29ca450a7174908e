"""Levels of int8 weights and activations, chosen so that one graph is right on every CPU.

CPUs without VNNI (AVX2, the first AVX-512 Xeons) add two neighbouring products in 16 bits, and saturate. So the levels of
two neighbouring input channels of a kernel never sum to more than 128: 255·128 fits.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ACTIVATION_LEVELS", "PAIR_LEVELS", "WEIGHT_LEVELS", "weight_limit", "weight_scales", "without_overflow"]

WEIGHT_LEVELS = 127
"""Quantized weights are whole numbers of −127 … 127."""
PAIR_LEVELS = 128
"""Largest absolute sum of the levels of two neighbouring input channels (2k and 2k + 1)."""
ACTIVATION_LEVELS = 255
"""Quantized activations are whole numbers of 0 … 255."""


def without_overflow(levels: Tensor) -> Tensor:
    """O×I×3×3 levels → the same, with the larger of two neighbours reduced if their sum exceeds `PAIR_LEVELS`."""
    first, second = levels[:, 0::2], levels[:, 1::2]
    excess = first + second
    excess = excess - excess.clamp(-PAIR_LEVELS, PAIR_LEVELS)
    larger = first.abs() >= second.abs()
    return torch.stack([first - excess * larger, second - excess * ~larger], dim=2).flatten(1, 2)


def weight_scales(weight: Tensor) -> Tensor:
    """O×I×3×3 weights → O×1×1×1, the smallest scales at which levels neither clip nor overflow."""
    limits = [weight.abs().amax(dim=(1, 2, 3), keepdim=True) / weight_limit(weight.shape[1])]
    if weight.shape[1] % 2 == 0:
        pairs = (weight[:, 0::2] + weight[:, 1::2]).abs()
        limits.append(pairs.amax(dim=(1, 2, 3), keepdim=True) / PAIR_LEVELS)
    return torch.stack(limits).amax(dim=0)


def weight_limit(inputs: int) -> int:
    """Largest level of a weight. With an odd number of channels neighbours differ from engine to engine: half for all."""
    return WEIGHT_LEVELS if inputs % 2 == 0 else PAIR_LEVELS // 2
