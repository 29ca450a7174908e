"""The diffusion process over the latent prior: β schedule, denoiser, and the fixed-step reverse process."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import RDSRConfig

__all__ = ["Denoiser", "Schedule", "reverse_process"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Posterior-mean coefficients of the reverse process, step T-1 first: z ← x0_coefficient·ẑ0 + z_coefficient·z."""

    betas: tuple[float, ...]
    """β of steps 0 … T-1, linear in √β (DiffIR's released sampler)."""

    @classmethod
    def linear(cls, steps: int, beta_start: float, beta_end: float) -> Schedule:
        """β_t = (linspace(√beta_start, √beta_end, steps))²."""
        betas = np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2
        return cls(tuple(float(b) for b in betas))

    def coefficients(self) -> list[tuple[int, float, float]]:
        """(t, coefficient of ẑ0, coefficient of z_t) for t = T-1 … 0 (DDPM eq. 7, posterior mean, no noise)."""
        betas = np.asarray(self.betas)
        alphas = 1 - betas
        cumulative = np.cumprod(alphas)
        previous = np.concatenate([[1.0], cumulative[:-1]])
        of_x0 = betas * np.sqrt(previous) / (1 - cumulative)
        of_z = (1 - previous) * np.sqrt(alphas) / (1 - cumulative)
        return [(t, float(of_x0[t]), float(of_z[t])) for t in reversed(range(len(betas)))]


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


def reverse_process(denoiser: Denoiser, schedule: Schedule, c: Tensor, noise: Tensor) -> Tensor:
    """Fixed steps from `noise` (N×latent, standard normal) to the latent prior z (N×latent); deterministic."""
    z = noise
    for t, of_x0, of_z in schedule.coefficients():
        z = of_x0 * denoiser(c, t, z) + of_z * z
    return z
