"""The network: sizes, folding, modulation, interpolation at the start, odd sizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rdsr.models.diffusion import Schedule
from rdsr.models.padding import pad_to_multiple
from rdsr.models.rdsr import PRESETS, RDSR, RDSRConfig
from rdsr.models.rdsr.blocks import RepConv
from rdsr.models.rdsr.decoder import bilinear_phase_kernels
from rdsr.models.rdsr.encoders import Standardise
from rdsr.tests.conftest import CONFIG, random_network


def test_base_has_the_papers_size() -> None:
    assert RDSR(PRESETS["base"]).inference_parameters() == pytest.approx(2.2e6, rel=0.05)


def _multiplications(config: RDSRConfig) -> tuple[float, float]:
    """Multiplications per LR pixel of the decoder and of the condition encoder's convolutions."""
    network = RDSR(config)
    decoder = sum(p.numel() for n, p in network.decoder.fuse().named_parameters() if p.ndim == 4)
    condition = sum(p.numel() for p in network.condition_encoder.features.parameters() if p.ndim == 4)
    return decoder, condition / config.unshuffle**2


@pytest.mark.parametrize("name", PRESETS)
def test_condition_encoder_costs_a_few_per_cent_of_the_decoder(name: str) -> None:
    decoder, condition = _multiplications(PRESETS[name])
    assert condition / decoder < 0.05


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_untrained_network_is_close_to_bilinear_interpolation(scale: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["small"], scale=scale)
    lr = torch.rand(1, 3, 19, 23)
    with torch.no_grad():
        sr = RDSR(config)(lr, torch.randn(1, config.latent_size))
    wanted = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    assert sr.shape == (1, 3, 19 * scale, 23 * scale)
    assert (sr - wanted).abs().max() < 0.1  # "near": a random 3×3 tail adds a little


@pytest.mark.parametrize("name", PRESETS)
def test_untrained_presets_keep_features_tame(name: str) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        sr = RDSR(PRESETS[name])(torch.rand(1, 3, 16, 16), torch.randn(1, PRESETS[name].latent_size))
    assert sr.abs().max() < 2


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_phase_kernels_are_bilinear_interpolation_up_to_the_border(scale: int) -> None:
    lr = torch.rand(1, 3, 7, 9)
    phases = F.conv2d(F.pad(lr, (1, 1, 1, 1), mode="replicate"), bilinear_phase_kernels(scale))
    wanted = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    assert torch.allclose(F.pixel_shuffle(phases, scale), wanted, atol=1e-6)


@pytest.mark.parametrize("branches", [(), ("conv1x1",), ("expand",), ("identity",), ("conv1x1", "expand", "identity")])
def test_folded_block_equals_its_branches_in_value_and_gradient(branches: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    block = RepConv(6, branches=branches).double()
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64)
    grads = []
    for forward in (block.forward, block.forward_branches):
        block.zero_grad()
        y = forward(x)
        (y**2).sum().backward()
        grads.append((y.detach(), [p.grad.clone() for p in block.parameters()]))
    assert torch.allclose(grads[0][0], grads[1][0], rtol=1e-12, atol=1e-12)
    for folded, unfolded in zip(grads[0][1], grads[1][1], strict=True):
        assert torch.allclose(folded, unfolded, rtol=1e-10, atol=1e-10)
    assert torch.allclose(block.fuse()(x), grads[0][0], rtol=1e-12, atol=1e-12)
    assert [name for name, _ in block.fuse().named_parameters()] == ["weight", "bias"]


def test_fused_network_equals_the_trained_one_and_has_no_lpe() -> None:
    network = random_network()
    lr, noise = torch.rand(1, 3, 17, 22), torch.randn(1, CONFIG.latent_size)
    fused = network.fuse()
    with torch.no_grad():
        assert torch.allclose(fused(lr, noise), network(lr, noise), atol=1e-5)
    assert fused.lpe is None
    assert network.lpe is not None, "fusing must leave the original as it was"
    assert all(block.expand is not None for block in network.decoder.body)


def test_fusion_errors_notice_a_wrong_fold() -> None:
    network = random_network()
    good = network.fusion_errors(torch.rand(1, 3, 9, 9), torch.randn(1, CONFIG.latent_size))
    assert good.max_abs_err <= 1e-5
    assert good.max_rel_err_float64 <= 1e-12
    assert good.blocks == CONFIG.depth

    class Wrong(RepConv):
        def forward_branches(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward_branches(x) * 1.001

    network.decoder.body[2].__class__ = Wrong
    bad = network.fusion_errors(torch.rand(1, 3, 9, 9), torch.randn(1, CONFIG.latent_size))
    assert bad.max_rel_err_float64 > 1e-6
    assert bad.max_abs_err > 1e-5


def test_the_latent_prior_reaches_the_picture() -> None:
    network = random_network()
    lr = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        a, b = (network.decode(lr, z * torch.ones(1, CONFIG.latent_size)) for z in (0.0, 1.0))
    assert (a - b).abs().max() > 1e-3


def test_the_prior_has_the_noises_scale_over_pictures() -> None:
    """Without this, training lets the prior collapse to a constant."""
    torch.manual_seed(0)
    lpe = RDSR(PRESETS["small"]).lpe
    hr = F.interpolate(torch.rand(32, 3, 12, 12), scale_factor=8, mode="bicubic").clamp(0, 1)
    hr = hr * torch.linspace(0.2, 1, 32)[:, None, None, None]
    lr = F.avg_pool2d(hr, 4)
    with torch.no_grad():
        for batch in [chunk for _ in range(30) for chunk in torch.randperm(32).chunk(4)]:
            lpe(lr[batch], hr[batch])
        z = lpe.eval()(lr, hr)
    assert z.mean(dim=0).abs().mean() < 0.2
    assert 0.5 < z.std(dim=0).mean() < 1.5


def test_standardise_keeps_its_value_between_training_and_use() -> None:
    layer = Standardise(6)
    z = torch.randn(8, 6) * 3 + 1
    for _ in range(50):
        trained = layer(z)
    assert torch.allclose(trained, layer.eval()(z), atol=1e-4)
    before = layer.mean.clone()
    layer(z + 5)
    assert torch.equal(layer.mean, before), "frozen in eval mode"


def test_untrained_modulation_is_the_identity() -> None:
    network = RDSR(CONFIG)
    lr = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        a, b = (network.decode(lr, z * torch.ones(1, CONFIG.latent_size)) for z in (0.0, 1.0))
    assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (8, 7)])
def test_padding_replicates_the_edge_and_padded_cells_weigh_the_same(size: tuple[int, int]) -> None:
    network = random_network()
    lr = torch.rand(1, 3, *size)
    padded = pad_to_multiple(lr, CONFIG.unshuffle)
    rows = np.minimum(np.arange(padded.shape[2]), size[0] - 1)
    columns = np.minimum(np.arange(padded.shape[3]), size[1] - 1)
    assert torch.equal(padded, lr[:, :, rows][:, :, :, columns])
    features = network.feature_map(lr)
    assert features.shape[2:] == tuple(-(-side // CONFIG.unshuffle) for side in size)
    by_hand = features.sum(dim=(2, 3)) / (features.shape[2] * features.shape[3])
    assert torch.allclose(network.condition_encoder(lr), network.condition_encoder.mlp(by_hand), atol=1e-6)


def test_receptive_radius_is_exact() -> None:
    network = random_network(dataclasses.replace(CONFIG, depth=3, modulation_depths=(0,)))
    radius = network.receptive_radius
    lr = torch.rand(1, 3, 4 * radius, 4 * radius, requires_grad=True)
    centre = 2 * radius
    network.decode(lr, torch.zeros(1, CONFIG.latent_size))[0, :, 4 * centre, 4 * centre].sum().backward()
    touched = lr.grad[0].abs().sum(dim=0).nonzero()
    assert (touched - centre).abs().max() == radius


def test_schedule_is_linear_in_the_root_and_ends_on_the_prediction() -> None:
    schedule = Schedule.linear(4, 0.1, 0.99)
    assert np.allclose(np.diff(np.sqrt(schedule.betas)), np.diff(np.sqrt(schedule.betas))[0])
    assert schedule.betas[0] == pytest.approx(0.1)
    assert schedule.betas[-1] == pytest.approx(0.99)
    coefficients = schedule.coefficients()
    assert [t for t, _, _ in coefficients] == [3, 2, 1, 0]
    assert coefficients[-1][1:] == (pytest.approx(1.0), pytest.approx(0.0))


def test_posterior_mean_by_bayes_rule() -> None:
    """The coefficients equal what Bayes' rule on the two Gaussians gives (DDPM, eqs. 6 and 7)."""
    schedule = Schedule.linear(4, 0.1, 0.99)
    alphas = 1 - np.array(schedule.betas)
    cumulative = np.cumprod(alphas)
    for t, of_x0, of_z in schedule.coefficients()[:-1]:
        # z_t | z_{t-1} ~ N(√α_t z_{t-1}, β_t);  z_{t-1} | x0 ~ N(√ᾱ_{t-1} x0, 1 − ᾱ_{t-1})
        precision = alphas[t] / (1 - alphas[t]) + 1 / (1 - cumulative[t - 1])
        assert of_z == pytest.approx(np.sqrt(alphas[t]) / (1 - alphas[t]) / precision)
        assert of_x0 == pytest.approx(np.sqrt(cumulative[t - 1]) / (1 - cumulative[t - 1]) / precision)


def test_reverse_process_is_deterministic_and_a_function_of_noise() -> None:
    network = random_network()
    pooled = torch.rand(1, CONFIG.condition_width)
    noise = torch.randn(2, CONFIG.latent_size)
    a, again, b = network.prior(pooled, noise[:1]), network.prior(pooled, noise[:1]), network.prior(pooled, noise[1:])
    assert torch.equal(a, again)
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"width": 0}, "width"),
        ({"depth": 2.5}, "depth"),
        ({"modulation_depths": (9,)}, "modulation_depths"),
        ({"beta_end": 1.5}, "beta_end"),
        ({"steps": -1}, "steps"),
        ({"condition_encoder": "median"}, "condition_encoder"),
    ],
)
def test_config_refuses_what_is_out_of_range_by_name(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("branches", [(), ("identity",), ("conv1x1", "expand", "identity")])
def test_config_is_read_off_the_shapes(scale: int, branches: tuple[str, ...]) -> None:
    config = dataclasses.replace(CONFIG, scale=scale, branches=branches)
    shapes = {key: tuple(value.shape) for key, value in RDSR(config).state_dict().items()}
    read = RDSRConfig.from_shapes(shapes)
    assert RDSR(read).state_dict().keys() == shapes.keys()
    expected = config if "expand" in branches else dataclasses.replace(config, expansion=1)
    assert read == expected
