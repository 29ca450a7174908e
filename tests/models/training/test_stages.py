"""Losses of the stages; training folded branches equals training the branches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from rdsr.models.training.config import TrainConfig
from rdsr.models.training.stages import picture_loss, stage_losses
from rdsr.tests.conftest import random_network

CONFIG = TrainConfig(stage="stage2", preset="tiny", iterations=1)


def test_folded_and_unfolded_training_steps_agree() -> None:
    """Five Adam steps in float64, once through the folded kernels and once branch by branch: the same weights."""
    torch.manual_seed(0)
    lr, z = torch.rand(2, 3, 10, 12).double(), torch.randn(2, 24).double()
    hr = torch.rand(2, 3, 40, 48).double()
    decoders = []
    for branches in (False, True):
        decoder = random_network().double().decoder
        optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            F.l1_loss(decoder(lr, z, branches=branches), hr).backward()
            optimizer.step()
        decoders.append(decoder.state_dict())
    start = random_network().double().decoder.state_dict()
    for key, folded in decoders[0].items():
        assert torch.allclose(folded, decoders[1][key], rtol=1e-7, atol=1e-9), key
        assert not torch.equal(folded, start[key]), f"{key} has not moved"


def test_losses_are_what_they_are_called() -> None:
    torch.manual_seed(0)
    sr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    assert picture_loss(sr, hr, CONFIG)[0] == F.l1_loss(sr, hr)
    squared = dataclasses.replace(CONFIG, pixel_loss="l2")
    assert picture_loss(sr, hr, squared)[0] == F.mse_loss(sr, hr)
    both, pixel = picture_loss(sr, hr, dataclasses.replace(CONFIG, frequency_weight=0.5))
    spectrum = torch.fft.rfft2(sr - hr, norm="ortho")
    wanted = (spectrum.real.abs().mean() + spectrum.imag.abs().mean()) / 2
    assert float(pixel) == float(F.l1_loss(sr, hr))
    assert float(both - pixel) == pytest.approx(0.5 * float(wanted), rel=1e-5)


def test_stage2_sends_no_gradient_into_the_lpe() -> None:
    network = random_network()
    lr, hr, noise = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32), torch.randn(2, 24)
    losses = stage_losses(network, dataclasses.replace(CONFIG, prior_weight=1.0), lr, hr, noise)
    losses.total.backward()
    assert float(losses.total.detach()) == pytest.approx(float(losses.pixel + losses.prior))
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert moved == {"condition_encoder", "denoiser", "decoder"}
