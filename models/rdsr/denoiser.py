"""The denoiser of the diffusion process over the latent prior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import RDSRConfig

__all__ = ["Denoiser"]


class _ResidualBlock(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.linear(x), 0.1)


class Denoiser(nn.Module):
    """MLP on [c, t/(10·T), z_t] that predicts z_0 (paper section 3; time feature as in DiffIR's released sampler)."""

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        size = config.latent_size
        self.steps = config.steps
        self.input = nn.Linear(2 * size + 1, size)
        self.blocks = nn.ModuleList(_ResidualBlock(size) for _ in range(config.denoiser_depth))
        self.output = nn.Linear(size, size)

    def forward(self, c: Tensor, t: int, z: Tensor) -> Tensor:
        """N×latent condition, step index 0 … T-1, N×latent z_t → N×latent ẑ_0."""
        time = torch.full_like(z[:, :1], t / (10 * self.steps))
        x = F.leaky_relu(self.input(torch.cat([c, time, z], dim=1)), 0.1)
        for block in self.blocks:
            x = block(x)
        return self.output(x)
