"""Dead channels come back to life, and the decoder computes the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rdsr.models.rdsr.config import RDSRConfig
from rdsr.models.rdsr.decoder import RepDecoder
from rdsr.models.rdsr.revive import revive
from rdsr.tests.conftest import CONFIG


def with_dead_channels(config: RDSRConfig) -> RepDecoder:
    """Channels 1 and 4 of the head and of every block never get above 0."""
    torch.manual_seed(3)
    decoder = RepDecoder(config)
    with torch.no_grad():
        torch.nn.init.normal_(decoder.tail.weight, std=0.1)
        for producer in (decoder.head, *decoder.body):
            producer.bias[[1, 4]] = -1e3
    return decoder


@torch.no_grad()
def dead_channels(decoder: RepDecoder, lr: torch.Tensor, z: torch.Tensor) -> list[int]:
    """Number of channels after the head and each block of the body that are 0 in all of `lr`."""
    x = torch.relu(decoder.head(lr))
    counts = [int((x.amax(dim=(0, 2, 3)) <= 0).sum())]
    for index, block in enumerate(decoder.body):
        x = block(x)
        x = torch.relu(decoder.modulation[str(index)](x, z) if str(index) in decoder.modulation else x)
        counts.append(int((x.amax(dim=(0, 2, 3)) <= 0).sum()))
    return counts


@pytest.mark.parametrize("branches", [("conv1x1", "expand", "identity"), ()])
def test_dead_channels_live_again_and_nothing_changes(branches: tuple[str, ...]) -> None:
    config = dataclasses.replace(CONFIG, branches=branches)
    decoder = with_dead_channels(config)
    lr, z = torch.rand(4, 3, 16, 12), torch.randn(4, config.latent_size)
    before, counts = decoder(lr, z), dead_channels(decoder, lr, z)
    assert len(counts) == config.depth + 1
    assert min(counts) >= 2
    assert revive(decoder, lr, z, torch.Generator().manual_seed(0)) >= sum(counts)
    assert dead_channels(decoder, lr, z) == [0] * len(counts)
    assert torch.allclose(decoder(lr, z), before, atol=1e-6)
    assert revive(decoder, lr, z, torch.Generator().manual_seed(0)) == 0
    decoder(lr, z).square().mean().backward()
    reading = [block.weight.grad[:, [1, 4]] for block in decoder.body] + [decoder.tail.weight.grad[:, [1, 4]]]
    assert all(gradient.abs().amax() > 0 for gradient in reading), "the next convolution learns to read them"


def test_a_layer_that_is_dead_as_a_whole_lives_again() -> None:
    decoder = with_dead_channels(CONFIG)
    with torch.no_grad():
        decoder.body[0].bias.fill_(-1e3)
    lr, z = torch.rand(2, 3, 9, 9), torch.zeros(2, CONFIG.latent_size)
    before = decoder(lr, z)
    revive(decoder, lr, z, torch.Generator().manual_seed(0))
    assert dead_channels(decoder, lr, z) == [0] * (CONFIG.depth + 1)
    assert torch.allclose(decoder(lr, z), before, atol=1e-6)
