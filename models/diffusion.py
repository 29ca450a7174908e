"""The diffusion process over a latent prior, as in RDSR and DiffIR: β schedule and reverse process of fixed steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Schedule", "check_betas", "reverse_process"]


def check_betas(first: Any, last: Any) -> None:
    """`ValueError` unless 0 < `first` ≤ `last` < 1."""
    if not all(isinstance(beta, (int, float)) for beta in (first, last)) or not 0 < first <= last < 1:
        raise ValueError(f"0 < beta_start <= beta_end < 1 must hold, not beta_start={first!r}, beta_end={last!r}")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Noise schedule of the reverse process."""

    betas: tuple[float, ...]
    """β of steps 0 … T-1, linear in √β (DiffIR's released sampler)."""

    @classmethod
    def linear(cls, steps: int, beta_start: float, beta_end: float) -> Schedule:
        """β_t = (linspace(√beta_start, √beta_end, steps))²."""
        betas = np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2
        return cls(tuple(float(b) for b in betas))

    def coefficients(self) -> list[tuple[int, float, float]]:
        """(t, a, b) for t = T-1 … 0, with z ← a·ẑ0 + b·z: the posterior mean of DDPM's eq. 7, without noise."""
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
    """Go from noise (N×latent, standard normal) to the latent prior z (N×latent), given the condition c. Deterministic."""
    z = noise
    for t, of_x0, of_z in schedule.coefficients():
        z = of_x0 * denoiser(c, t, z) + of_z * z
    return z
