"""Growing a network: the same function in a wider and deeper one, and every new weight able to learn."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from rdsr.models.errors import CheckpointError
from rdsr.models.rdsr import PRESETS, RDSR
from rdsr.models.rdsr.grow import depth_map, grow
from rdsr.models.registry import ARCHITECTURES, config_from_metadata
from rdsr.tests.conftest import CONFIG, random_network

LARGER = {"width": 20, "depth": 7, "modulation_depths": (0, 2, 3, 5), "condition_width": 12, "lpe_width": 10}


@pytest.mark.parametrize("branches", [CONFIG.branches, ("identity",), ()])
def test_the_grown_network_computes_the_same(branches: tuple[str, ...]) -> None:
    old = dataclasses.replace(CONFIG, branches=branches)
    new = dataclasses.replace(old, **LARGER)
    network = random_network(old)
    grown = RDSR(new).eval()
    grown.load_state_dict(grow(network.state_dict(), old, grown))
    lr, hr, noise = torch.rand(2, 3, 13, 17), torch.rand(2, 3, 52, 68), torch.randn(2, old.latent_size)
    with torch.no_grad():
        assert torch.allclose(network(lr, noise), grown(lr, noise), atol=1e-6)
        assert torch.allclose(network.lpe(lr, hr), grown.lpe(lr, hr), atol=1e-5)


def test_what_was_added_learns() -> None:
    """Every added entry moves within a few steps: first the weights that read new channels, then those that write them."""
    new = dataclasses.replace(CONFIG, **LARGER)
    torch.manual_seed(0)
    grown = RDSR(new)
    grown.load_state_dict(grow(random_network().state_dict(), CONFIG, grown))
    before = {key: value.clone() for key, value in grown.decoder.state_dict().items()}
    optimizer = torch.optim.Adam(grown.decoder.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        grown.decoder(torch.rand(2, 3, 9, 9), torch.randn(2, new.latent_size)).square().mean().backward()
        optimizer.step()
    for key, value in grown.decoder.state_dict().items():
        still = value == before[key]
        added = still[CONFIG.width :] if key.endswith(("weight", "conv1x1", "project")) and "body" in key else still
        assert added.float().mean() < 0.25, key  # a channel that ReLU has shut does not learn


def test_a_stage1_checkpoint_grows_too() -> None:
    new = dataclasses.replace(CONFIG, **LARGER)
    tensors = {k: v for k, v in random_network().state_dict().items() if k.startswith(("lpe.", "decoder."))}
    network = RDSR(new)
    grown = grow(tensors, CONFIG, network)
    assert {key.split(".")[0] for key in grown} == {"lpe", "decoder"}
    missing, unexpected = network.load_state_dict(grown, strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == {"condition_encoder", "denoiser"}


def test_the_shipped_family_grows_into_each_other() -> None:
    for smaller, larger in itertools.pairwise(("tiny", "small", "base")):
        network = RDSR(PRESETS[larger])
        grown = grow(RDSR(PRESETS[smaller]).state_dict(), PRESETS[smaller], network)
        network.load_state_dict(grown)


def test_another_scale_keeps_the_body_and_begins_anew_with_the_rest() -> None:
    network, new = random_network(), dataclasses.replace(CONFIG, scale=2)
    other = RDSR(new)
    untrained = {key: value.clone() for key, value in other.state_dict().items()}
    tensors = grow(network.state_dict(), CONFIG, other)
    other.load_state_dict(tensors, strict=False)
    assert not any(key.startswith("lpe.") for key in tensors), "stage 1 trains it"
    for key, value in other.decoder.state_dict().items():
        fresh = key.startswith(("tail.", "skip."))
        assert torch.equal(value, untrained[f"decoder.{key}"] if fresh else network.decoder.state_dict()[key]), key
    assert other(torch.rand(1, 3, 9, 8), torch.zeros(1, CONFIG.latent_size)).shape == (1, 3, 18, 16)


def test_tensors_that_do_not_fit_are_refused() -> None:
    tensors = random_network().state_dict()
    larger = RDSR(dataclasses.replace(CONFIG, **LARGER))
    with pytest.raises(CheckpointError, match=r"missing tensor decoder\.tail\.weight"):
        grow({k: v for k, v in tensors.items() if k != "decoder.tail.weight"}, CONFIG, larger)
    with pytest.raises(CheckpointError, match="belongs to no part"):
        grow(tensors | {"decoder.body.9.weight": torch.zeros(1)}, CONFIG, larger)
    with pytest.raises(CheckpointError, match="has shape"):
        grow(tensors | {"decoder.tail.bias": torch.zeros(1)}, CONFIG, larger)
    with pytest.raises(CheckpointError, match="metadata does not fit"):
        config_from_metadata(ARCHITECTURES["rdsr"], {"config": "[]"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 8}, "smaller width"),
        ({"depth": 3, "modulation_depths": (0, 2)}, "smaller depth"),
        ({"latent_size": 32}, "latent_size 24 to 32"),
        ({"scale": 2, "unshuffle": 2}, "unshuffle 4 to 2"),
        ({"depth": 8}, "the modulation that comes to depth 4"),
    ],
)
def test_what_cannot_grow_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        grow(random_network().state_dict(), CONFIG, RDSR(dataclasses.replace(CONFIG, **changes)))


def test_blocks_are_spread_and_the_first_stays_first() -> None:
    assert depth_map(4, 4) == [0, 1, 2, 3]
    assert depth_map(4, 8) == [0, 2, 4, 6]
    assert depth_map(1, 9) == [0]
