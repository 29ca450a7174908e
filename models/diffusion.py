"""The diffusion process over a latent prior, as RDSR and DiffIR run it: β schedule and fixed-step reverse process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from torch import Tensor

__all__ = ["Schedule", "reverse_process"]


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


def reverse_process(
    denoiser: Callable[[Tensor, int, Tensor], Tensor], schedule: Schedule, c: Tensor, noise: Tensor
) -> Tensor:
    """Fixed steps from `noise` (N×latent, standard normal) to the latent prior z (N×latent); deterministic."""
    z = noise
    for t, of_x0, of_z in schedule.coefficients():
        z = of_x0 * denoiser(c, t, z) + of_z * z
    return z
