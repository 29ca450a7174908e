"""The networks of the ResShift family against what the released implementations compute (`../shared/reference/resshift`)."""

from __future__ import annotations

import json

import pytest
import torch

from rdsr.models.resshift import AUTOENCODER, PRESETS, SAMPLERS, ResShift, ResShiftConfig, is_derived
from rdsr.models.resshift.config import UNET
from rdsr.models.resshift.swin import last_row_mask
from rdsr.tests.models.resshift.networks import REFERENCE, facts, needs_reference, reference, small_network

GOLDENS = [
    ("resshift_tiny", "resshift_tiny_unet", "resshift-4"),
    ("sinsr_tiny", "sinsr_tiny_unet", "sinsr"),
    ("rsd_tiny", "rsd_tiny_unet", "rsd"),
    ("more/resshift15_32x48", "resshift_tiny_unet", "resshift-15"),
    ("more/resshift4_37x23_padded", "resshift_tiny_unet", "resshift-4"),
    ("more/rsd_37x23_padded", "rsd_tiny_unet", "rsd"),
]


def call(network: ResShift, number: int, z: torch.Tensor, lr: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
    step = network.calls[number]
    return network.estimate(z, lr, torch.tensor([float(step.time)]), torch.tensor([step.input_scale]), *noise)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@needs_reference
@pytest.mark.parametrize(("golden", "unet", "sampler"), GOLDENS)
@torch.no_grad()
def test_it_computes_what_the_released_implementation_does(golden: str, unet: str, sampler: str) -> None:
    network, tensors = reference(golden, unet, sampler)
    lr = (tensors.get("lr_padded", tensors["lr"]) + 1) / 2
    assert far(network.encode(lr), tensors["z_y"]) < 1e-5
    z = tensors["z_y"] + network.first_noise * tensors["noise_init"]
    assert far(z, tensors["z_T"]) < 1e-5
    extra = [tensors["noise_input"]] if network.noise_channels else []
    for number, step in enumerate(network.calls):
        estimate = call(network, number, z, lr, *extra)
        assert far(estimate, tensors[f"pred_xstart_{step.time}"]) < 1e-4
        z = step.of_estimate * estimate + step.of_latent * z
        if step.noise:
            z = z + step.noise * tensors[f"noise_{step.time}"]
        if network.steps > 1:
            assert far(z, tensors[f"z_{step.time}"]) < 1e-4
    assert far(z, tensors["z_0"]) < 1e-4
    expected = tensors.get("sr_unclamped", tensors["sr"])
    sr = 2 * network.draw(tensors["z_0"])[:, :, : expected.shape[2], : expected.shape[3]] - 1
    assert far(sr, expected) < 1e-4
    if "indices" in tensors:
        different = network.autoencoder.indices(tensors["z_0"]) != tensors["indices"]
        assert not (different & (tensors["gap"] > 1e-5)).any()


@needs_reference
@torch.no_grad()
def test_the_deployed_form_computes_the_same() -> None:
    network, tensors = reference("rsd_tiny", "rsd_tiny_unet", "rsd")
    fused = network.fuse()
    lr = (tensors["lr"] + 1) / 2
    estimates = [call(each, 0, tensors["z_T"], lr, tensors["noise_input"]) for each in (network, fused)]
    assert far(*estimates) < 1e-5
    assert far(network.draw(tensors["z_0"]), fused.draw(tensors["z_0"])) < 1e-5


@needs_reference
@torch.no_grad()
def test_the_released_chopping() -> None:
    """Patches by themselves, each with fresh noise, and the plain mean where they overlap."""
    network, tensors = reference("more/resshift4_50x70_chopped", "resshift_tiny_unet", "resshift-4")
    total, count = torch.zeros(1, 3, 200, 280), torch.zeros(1, 1, 200, 280)
    for patch, (top, bottom, left, right) in enumerate(facts("more/resshift4_50x70_chopped")["boxes_lr_h0_h1_w0_w1"]):
        lr = (tensors["lr"][:, :, top:bottom, left:right] + 1) / 2
        z = network.encode(lr) + network.first_noise * tensors[f"{patch}/noise_init"]
        for number, step in enumerate(network.calls):
            z = step.of_estimate * call(network, number, z, lr) + step.of_latent * z
            z = z + step.noise * tensors[f"{patch}/noise_{step.time}"]
        assert far(z, tensors[f"{patch}/z_0"]) < 1e-4
        assert far((2 * network.draw(tensors[f"{patch}/z_0"]) - 1).clamp(-1, 1), tensors[f"{patch}/sr"].clamp(-1, 1)) < 1e-4
        place = (slice(None), slice(None), slice(4 * top, 4 * bottom), slice(4 * left, 4 * right))
        total[place] += tensors[f"{patch}/sr"]
        count[place] += 1
    assert torch.equal(count.to(torch.uint8), tensors["count"])
    assert far((total / count).clamp(-1, 1), tensors["sr"].clamp(-1, 1)) < 1e-5


@needs_reference
def test_only_the_last_row_of_windows_is_masked() -> None:
    _, tensors = reference("more/resshift15_32x48", "resshift_tiny_unet", "resshift-15")
    masks = tensors["attn_mask_32x48_shift4"]
    assert not masks[:18].any()
    assert all(torch.equal(mask, last_row_mask(8, 4)) for mask in masks[18:])
    block = small_network().unet.input_blocks[1][1].blocks[1]
    assert torch.equal(block._mask(1, 4, 6)[:, 0], masks)
    assert not small_network().unet.input_blocks[3][1].blocks[1].shift, "one window at the trained size never shifts"


@needs_reference
@pytest.mark.parametrize(("steps", "sampler"), [("15", "resshift-15"), ("4", "resshift-4")])
def test_the_schedule(steps: str, sampler: str) -> None:
    table = json.loads((REFERENCE / "more" / "schedules.json").read_text())[steps]
    assert SAMPLERS[sampler].etas() == pytest.approx(table["etas"], rel=1e-12)
    calls = SAMPLERS[sampler].calls()
    assert [c.time for c in calls] == list(range(int(steps)))[::-1]
    assert [c.of_latent for c in calls][::-1] == pytest.approx(table["posterior_mean_coef1"], rel=1e-9)
    assert [c.of_estimate for c in calls][::-1] == pytest.approx(table["posterior_mean_coef2"], rel=1e-9)
    variances = [c.noise**2 for c in calls][::-1]
    assert variances == pytest.approx(table["posterior_variance"], rel=1e-9)
    assert [1 / c.input_scale for c in calls][::-1] == pytest.approx(table["input_std"], rel=1e-9)
    (only,) = SAMPLERS["sinsr"].calls()
    assert (only.time, only.of_estimate, only.of_latent, only.noise) == (14, 1.0, 0.0, 0.0)


@needs_reference
@pytest.mark.parametrize("name", ["resshift", "sinsr"])
def test_the_official_networks_have_exactly_the_released_tensors(name: str) -> None:
    listed = json.loads((REFERENCE / f"{name}_official_unet.keys.json").read_text())
    shapes = {UNET + key: tuple(shape) for key, shape in listed.items()}
    autoencoder = json.loads((REFERENCE / "official_vq_f4.keys.json").read_text())
    shapes |= {AUTOENCODER + key: tuple(shape) for key, shape in autoencoder.items()}
    sampler = PRESETS[name].sampler
    assert ResShiftConfig.from_shapes(shapes, sampler) == PRESETS[name]
    with torch.device("meta"):
        own = {key: tuple(value.shape) for key, value in ResShift(PRESETS[name]).state_dict().items()}
    assert own == {key: shape for key, shape in shapes.items() if not is_derived(key)}


@torch.no_grad()
def test_pictures_larger_than_the_trained_size_and_batches() -> None:
    network = small_network()
    lr = torch.rand(2, 3, 32, 48)
    z = network.encode(lr)
    assert z.shape == (2, 3, 32, 48)
    pair = network.estimate(z, lr, torch.full((2,), 14.0), torch.full((2,), 0.45))
    alone = network.estimate(z[1:], lr[1:], torch.full((1,), 14.0), torch.full((1,), 0.45))
    assert far(pair[1:], alone) < 1e-5
    assert network.decode(lr[:, :, :31, :45], z).shape == (2, 3, 124, 180)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "ddim"}, {"image_size": 20}, {"channel_mult": (1, 2, 3)}, {"swin_heads": 5}, {"model_channels": 33},
        {"vq_mult": (1, 2)}, {"noise_channels": 2}, {"codebook_size": 0}, {"channel_mult": "12"},
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        ResShiftConfig(**(small_network().config.to_dict() | changes))
