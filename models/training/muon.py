"""Muon (Jordan et al., 2024): momentum, with each kernel's update made orthogonal before it is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton–Schulz step, from the publication."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """N×R×C → N×R×C with singular values of 0.7 to 1.2, by Newton–Schulz iteration; very small ones may stay below."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels, as matrices of output channels × all else. Kernels of one shape run as a batch.

    Updates have the same root mean square as Adam's (about 0.2 of the learning rate), so one learning rate serves both.
    PyTorch's own Muon takes only two-dimensional parameters, and works in bfloat16, which is slow on CPUs without it.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update from the gradients."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = torch.stack([self._direction(p, group).flatten(1) for p in parameters])
                updates = orthogonalise(directions)
                rate = group["lr"] * 0.2 * max(updates.shape[1:]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.add_(update.reshape(shape), alpha=-rate)

    def _direction(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Nesterov momentum of the gradient."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(state["momentum"], group["momentum"])
