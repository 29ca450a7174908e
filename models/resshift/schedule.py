"""The residual shift: how far latents have moved from LR to HR at each step, and the steps of the samplers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ..interface import ShiftStep

__all__ = ["SAMPLERS", "Sampler"]

KAPPA = 2.0
"""κ: strength of the noise, of which √η_t · κ is the standard deviation at step t."""
_LAST_ETA, _POWER = 0.99, 0.3


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a network of the family was trained to be called."""

    steps: int
    """T of the schedule."""
    least_noise: float
    """Noise of the first step, √η_1 · κ at most."""
    one_call: bool = False
    """Whether the network is called once, at the last step, and its estimate is the result (distilled networks)."""

    def etas(self) -> list[float]:
        """η of steps 0 … T-1: √η goes from the least noise to 0.99 geometrically, on a time axis bent by a power of 0.3."""
        first = min(self.least_noise / KAPPA, self.least_noise)
        bent = np.linspace(0, 1, self.steps, dtype=np.float64) ** _POWER
        roots = np.exp(np.log(first) + bent * (np.log(_LAST_ETA) - np.log(first)))
        return [float(root) ** 2 for root in roots]

    def calls(self) -> list[ShiftStep]:
        """The calls of the network, in their order."""
        etas = self.etas()
        steps = [
            ShiftStep(
                time=t,
                input_scale=1 / math.sqrt(etas[t] * KAPPA**2 + 1),
                of_estimate=(etas[t] - previous) / etas[t],
                of_latent=previous / etas[t],
                noise=KAPPA * math.sqrt(previous / etas[t] * (etas[t] - previous)),
            )
            for t, previous in reversed(list(enumerate([0.0, *etas[:-1]])))
        ]
        if not self.one_call:
            return steps
        return [dataclasses.replace(steps[0], of_estimate=1.0, of_latent=0.0, noise=0.0)]

    @property
    def first_noise(self) -> float:
        """Standard deviation of the noise that the process begins with."""
        return KAPPA * math.sqrt(self.etas()[-1])


SAMPLERS = {
    "resshift-15": Sampler(15, 0.04),
    "resshift-4": Sampler(4, 0.2),
    "sinsr": Sampler(15, 0.04, one_call=True),
    "rsd": Sampler(15, 0.04, one_call=True),
}
"""Name of the architecture → its sampler. The checkpoint does not show which it is (except for `rsd`)."""
