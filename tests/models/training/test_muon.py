"""Muon: orthogonal updates, one learning rate for all shapes, and state that resumes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rdsr.models.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 8, 72), (2, 96, 48), (1, 48, 432)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_update_has_adams_size_whatever_the_gradients_scale() -> None:
    torch.manual_seed(0)
    for shape in [(8, 8, 3, 3), (16, 8, 1, 1), (8, 16, 3, 3)]:
        parameter = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([parameter], lr=0.1)
        parameter.grad = 1e-4 * torch.randn(shape)
        optimizer.step()
        rms = float(parameter.detach().square().mean().sqrt())
        assert 0.1 * 0.1 < rms < 0.1 * 0.4


def test_a_batch_of_kernels_is_updated_as_each_alone() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(3, 4, 4, 3, 3), torch.randn(2, 3, 4, 4, 3, 3)
    together = [nn.Parameter(value.clone()) for value in start]
    alone = [nn.Parameter(value.clone()) for value in start]
    optimizers = [Muon(together, lr=0.1), *(Muon([p], lr=0.1) for p in alone)]
    for step in gradients:
        for parameters in (together, alone):
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_it_fits_a_linear_map() -> None:
    torch.manual_seed(0)
    wanted, parameter = torch.randn(6, 6, 1, 1), nn.Parameter(torch.zeros(6, 6, 1, 1))
    optimizer = Muon([parameter], lr=0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        parameter.grad = parameter.detach() - wanted
        optimizer.step()
    assert float((parameter - wanted).detach().abs().max()) < 0.05
