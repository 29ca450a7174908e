"""Arithmetic of a network, counted from its weights."""

from __future__ import annotations

from typing import Any

__all__ = ["convolution_gflops"]


def convolution_gflops(network: Any, height: int, width: int) -> float:
    """2·MACs of the deployed network's convolutions at an LR size, in 10⁹ (the reverse process is thousandths of it)."""
    total = 0.0
    for key, value in network.fuse().state_dict().items():
        if value.ndim == 4:
            cells = height * width
            if key.startswith("condition_encoder."):
                cells /= network.config.unshuffle**2
            total += 2 * value.numel() * cells
    return total / 1e9
