"""The fake-quantized decoder: rounding and its gradients, calibration that changes nothing but rounding, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rdsr.models.errors import CheckpointError
from rdsr.models.int8.chain import TENSORS, QuantizedConv, Ranges, _fake_quantize
from rdsr.models.int8.levels import PAIR_LEVELS, WEIGHT_LEVELS
from rdsr.models.int8.samples import Sample, sample_of
from rdsr.models.rdsr import RDSR
from rdsr.models.rdsr.quantized import QuantizedDecoder
from rdsr.models.registry import load_model
from rdsr.tests.conftest import CONFIG, prior_from, random_network, write_checkpoint


def samples_for(network: RDSR) -> list[Sample]:
    rng = np.random.default_rng(0)
    condition = prior_from(network)
    return [sample_of(rng.integers(0, 256, (24, 18 + n, 3)).astype(np.uint8), condition) for n in range(2)]


def test_rounding_is_to_the_nearest_level_within_the_range() -> None:
    x = torch.tensor([-1.0, 0.0, 0.24, 0.26, 1.24, 9.0])
    assert _fake_quantize(x, torch.tensor(0.5).log(), 0, 4).tolist() == pytest.approx([0, 0, 0, 0.5, 1.0, 2.0])


def test_gradients_go_straight_through_and_ranges_learn() -> None:
    """Gradient of the input: 1 inside the range, 0 beyond. Of the scale: rounding error inside, the bound beyond (LSQ)."""
    x = torch.tensor([-1.0, 0.3, 9.0], requires_grad=True)
    log_scale = torch.tensor(0.5).log().requires_grad_()
    _fake_quantize(x, log_scale, 0, 4).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0]
    of_scale = 0 + (round(0.3 / 0.5) - 0.3 / 0.5) + 4
    assert float(log_scale.grad) == pytest.approx(of_scale * 0.5)  # times the scale, because its logarithm is trained


def test_no_two_neighbours_overflow_whatever_training_does() -> None:
    """Weights far beyond the range of the scale: the larger of two neighbours is reduced."""
    torch.manual_seed(0)
    for inputs in (6, 5):
        conv = QuantizedConv(inputs, 4, quantized=True, output=False, identity=False)
        with torch.no_grad():
            conv.weight.normal_(std=100.0)
            levels = conv.quantized_weight()  # the scale is 1
        limit = WEIGHT_LEVELS if inputs == 6 else PAIR_LEVELS // 2
        assert float(levels.abs().max()) == limit
        neighbours = [levels[:, a] + levels[:, b] for a in range(inputs) for b in range(a) if inputs == 5 or (b, a) in PAIRS]
        assert float(torch.stack(neighbours).abs().max()) == PAIR_LEVELS
        kept = (conv.weight.round() == levels).float().mean()
        assert kept > 0.3, "only levels that overflow are reduced"


PAIRS = ((0, 1), (2, 3), (4, 5))


@pytest.mark.parametrize(
    "ranges",
    [
        Ranges(),
        Ranges(percentile=0.999, equalization=1.0),
        Ranges(equalization=0.7, identities=(0, 1)),
        Ranges(equalization=0.7, floats=(1, 4), identities=(2, 3)),
    ],
)
def test_without_rounding_it_is_the_float_decoder(ranges: Ranges) -> None:
    network = random_network()
    samples = samples_for(network)
    decoder = network.int8_form.calibrate(samples, ranges)
    with torch.no_grad():
        for lr, z in samples:
            wanted = network.decode(lr, z)
            assert torch.allclose(decoder(lr, z, only=()), wanted, atol=2e-5)
            error = (decoder(lr, z) - wanted).abs()
            assert 0 < float(error.mean()) < 0.02, "rounding costs something, but little"


def test_a_modulated_output_has_no_levels_for_what_the_relu_cuts_off() -> None:
    """The lowest level lies at most a little below −shift/scale; unmodulated outputs keep their whole range."""
    network = random_network()
    modulation = network.decoder.modulation["0"]
    with torch.no_grad():
        modulation.weight.zero_()
        modulation.bias.copy_(torch.cat([torch.full((CONFIG.width,), 0.5), torch.full((CONFIG.width,), 0.03)]))
        decoder = network.int8_form.calibrate(samples_for(network), Ranges())
        count = len(decoder.layers())
        seen: list[torch.Tensor] = []
        for lr, z in samples_for(network):
            decoder(lr, z, only=(), watch=lambda _, where, x: seen.append(x) if where == "output" else None)
    first, last = decoder.layers()[0], decoder.layers()[-1]
    assert first.output_low is not None
    assert last.output_low is not None
    lowest, lowest_of_tail = (torch.stack([x.amin(dim=(0, 2, 3)) for x in seen[i::count]]).amin(0) for i in (0, count - 1))
    below = lowest < -0.1
    assert below.any(), "some channels reach far below −0.03 / 1.5"
    assert (first.output_low[below] <= -0.03 / 1.5 + 1e-4).all(), "but for nothing else"
    assert (first.output_low[below] > lowest[below] + 0.03).all()
    assert torch.allclose(last.output_low, lowest_of_tail, rtol=0.02, atol=1e-3)


def test_clipping_and_floats_do_what_they_say() -> None:
    network = random_network()
    whole, clipped = (network.int8_form.calibrate(samples_for(network), Ranges(percentile=p)) for p in (1.0, 0.99))
    for a, b in zip(whole.layers(), clipped.layers(), strict=True):
        assert b.log_input_scale.item() < a.log_input_scale.item()
        assert a.quantized_weight().abs().max().item() == pytest.approx(a.weight.abs().max().item(), rel=1e-2)
    mixed = network.int8_form.calibrate(samples_for(network), Ranges(floats=(2,)))
    assert [conv.quantized for conv in mixed.layers()] == [True, True, False, True, True]
    assert torch.equal(mixed.layers()[2].quantized_weight(), mixed.layers()[2].weight)


def test_only_quantizes_what_it_names() -> None:
    network = random_network()
    (lr, z), _ = samples_for(network)
    decoder = network.int8_form.calibrate(samples_for(network), Ranges())
    with torch.no_grad():
        exact, whole = decoder(lr, z, only=()), decoder(lr, z)
        parts = [decoder(lr, z, only=[(index, t) for t in TENSORS]) for index in range(CONFIG.depth + 1)]
    assert all(0 < float((part - exact).pow(2).mean()) < float((whole - exact).pow(2).mean()) * 1.5 for part in parts)


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)])
def test_pictures_that_say_nothing_give_finite_scales(picture: np.ndarray) -> None:
    network = random_network()
    decoder = network.int8_form.calibrate(
        [sample_of(picture, prior_from(network))], Ranges(percentile=0.9999, equalization=1.0)
    )
    assert all(bool(torch.isfinite(value).all()) for value in decoder.state_dict().values())
    with torch.no_grad():
        assert bool(torch.isfinite(decoder(*samples_for(network)[0])).all())


def test_snapped_weights_are_levels_and_change_nothing() -> None:
    network = random_network()
    (lr, z), _ = samples_for(network)
    decoder = network.int8_form.calibrate(samples_for(network), Ranges(equalization=0.5))
    with torch.no_grad():
        before = decoder(lr, z)
        decoder.snap()
        assert torch.equal(decoder(lr, z), before)
        for conv in decoder.layers():
            levels = conv.weight / conv.log_weight_scale.exp()
            assert torch.allclose(levels, levels.round(), atol=1e-3)
            pairs = (levels[:, 0::2] + levels[:, 1::2]).abs()
            assert float(levels.abs().max()) <= WEIGHT_LEVELS + 1e-3
            assert float(pairs.max()) <= PAIR_LEVELS + 1e-3
            assert max(float(levels.abs().max()) / WEIGHT_LEVELS, float(pairs.max()) / PAIR_LEVELS) > 0.98


def test_factors_of_channels_fold_away_and_learn() -> None:
    """Each input channel has a scale of its own while training; the folded decoder has one, and computes the same."""
    network = random_network()
    decoder = network.int8_form.calibrate(samples_for(network), Ranges(equalization=0.5))
    lr, z = torch.rand(2, 3, 12, 11), torch.randn(2, CONFIG.latent_size)
    decoder.learn_factors()
    plain = decoder(lr, z)
    with torch.no_grad():
        for conv in decoder.layers():
            conv.log_factors.normal_(std=0.3)
    assert not torch.allclose(decoder(lr, z), plain, atol=1e-4), "other levels"
    folded = copy.deepcopy(decoder)
    folded.fold_factors()
    assert not any(".log_factors" in key for key in folded.state_dict())
    assert torch.allclose(folded(lr, z), decoder(lr, z), atol=2e-3)
    assert float((folded(lr, z) - decoder(lr, z)).detach().abs().mean()) < 1e-5, "but for values that lie between two levels"
    gradients = {}
    for bf16 in (False, True):
        decoder.train()
        decoder.trains_in_bf16 = bf16
        decoder.zero_grad()
        decoder(lr, z).square().sum().backward()
        gradients[bf16] = [conv.log_factors.grad.flatten() for conv in decoder.layers()]
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[False])
    pairs = zip(*gradients.values(), strict=True)
    assert min(float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs) > 0.9


def test_checkpoints_carry_both_networks(tmp_path: Path) -> None:
    network = random_network()
    network.quantized = network.int8_form.calibrate(samples_for(network), Ranges(identities=(1,), floats=(3,)))
    loaded = load_model(write_checkpoint(tmp_path / "both.safetensors", network))
    restored = loaded.network.quantized
    assert isinstance(restored, QuantizedDecoder)
    (lr, z), _ = samples_for(network)
    with torch.no_grad():
        assert torch.equal(restored(lr, z), network.quantized(lr, z))
        assert torch.equal(loaded.network.decode(lr, z), network.decode(lr, z))
    assert loaded.describe()["quantized"] is True
    plain = load_model(write_checkpoint(tmp_path / "plain.safetensors", random_network()))
    assert plain.describe() | {"quantized": True, "sha256": ""} == loaded.describe() | {"sha256": ""}
    assert loaded.network.fuse().quantized is None


def with_tail_identity(decoder: QuantizedDecoder) -> None:
    decoder.layers()[-1].identity = torch.nn.Parameter(torch.ones(48))


def without_scales(decoder: QuantizedDecoder) -> None:
    for conv in decoder.layers():
        conv.log_weight_scale = None


def with_a_huge_scale(decoder: QuantizedDecoder) -> None:
    decoder.layers()[1].log_input_scale.data.fill_(90.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_tail_identity, "quantized tail has an identity skip"),
        (without_scales, "no quantized convolution"),
        (with_a_huge_scale, "logarithms of scales"),
    ],
)
def test_crafted_quantized_parts_are_refused(tmp_path: Path, change: Callable[[QuantizedDecoder], None], words: str) -> None:
    network = random_network()
    network.quantized = network.int8_form.calibrate(samples_for(network), Ranges())
    change(network.quantized)
    with pytest.raises(CheckpointError, match=words):
        load_model(write_checkpoint(tmp_path / "crafted.safetensors", network))


def test_a_quantized_part_with_a_hole_is_named(tmp_path: Path) -> None:
    network = random_network()
    network.quantized = network.int8_form.calibrate(samples_for(network), Ranges())
    del network.quantized.skip
    with pytest.raises(CheckpointError, match=r"quantized\.skip"):
        load_model(write_checkpoint(tmp_path / "hole.safetensors", network))
