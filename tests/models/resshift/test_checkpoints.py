"""Checkpoints of the ResShift family: two files, the name that only the user knows, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdsr.models.errors import CheckpointError
from rdsr.models.registry import load_model
from rdsr.tests.models.resshift.networks import REFERENCE, needs_reference, own_checkpoint, released_files, small_network


def test_two_released_files(tmp_path: Path) -> None:
    unet, autoencoder = released_files(tmp_path)
    loaded = load_model(unet, arch="sinsr", autoencoder=autoencoder)
    expected = small_network().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.network.state_dict().items())
    assert (loaded.arch, loaded.network.steps) == ("sinsr", 1)
    assert "no commercial use" in loaded.notes["licence"]
    assert len(loaded.notes["autoencoder_sha256"]) == 64
    assert load_model(unet, arch="resshift-15", autoencoder=autoencoder).network.steps == 15


def test_one_file_of_our_own(tmp_path: Path) -> None:
    loaded = load_model(own_checkpoint(tmp_path / "own.safetensors", "resshift-4"))
    assert (loaded.arch, loaded.network.steps, loaded.random) == ("resshift-4", 4, True)
    refused("says that it is of resshift-4, not of sinsr", tmp_path / "own.safetensors", arch="sinsr")


def test_the_noise_input_shows_rsd(tmp_path: Path) -> None:
    unet, autoencoder = released_files(tmp_path, "rsd")
    assert load_model(unet, autoencoder=autoencoder).arch == "rsd"


def test_trainers_wrap_their_state(tmp_path: Path) -> None:
    unet, autoencoder = released_files(tmp_path)
    state = {f"module._orig_mod.{key}": value for key, value in load_file(unet).items()}
    torch.save(
        {"iters_start": 5, "log_step": {"train": 3}, "amp_scaler": {"scale": 1.0}, "state_dict": state}, tmp_path / "w"
    )
    assert load_model(tmp_path / "w", arch="sinsr", autoencoder=autoencoder).arch == "sinsr"


def refused(words: str, path: Path, **options: object) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    unet, autoencoder = released_files(tmp_path)
    refused("--arch resshift-15 .* or sinsr", unet)
    refused("--arch", unet, autoencoder=autoencoder)
    refused("needs its autoencoder: .* --autoencoder", unet, arch="sinsr")
    refused("it is an autoencoder: the UNet comes first", autoencoder)
    refused("it is an autoencoder: the UNet comes first", autoencoder, arch="sinsr", autoencoder=unet)
    refused("is a UNet, not an autoencoder", unet, arch="sinsr", autoencoder=unet)
    refused("no input channel of noise", unet, arch="rsd", autoencoder=autoencoder)
    refused("steps of sinsr cannot be set", unet, arch="sinsr", autoencoder=autoencoder, steps=4)
    other, _ = released_files(tmp_path / "rsd", "rsd")
    refused("an input channel of noise, so it is not of sinsr", other, arch="sinsr", autoencoder=autoencoder)


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    unet, autoencoder = released_files(tmp_path)
    state = load_file(unet)
    save_file(state | {"unet.out.2.bias": state["out.2.bias"].clone()}, tmp_path / "twice.safetensors")
    refused("two tensors", tmp_path / "twice.safetensors", arch="sinsr", autoencoder=autoencoder)


def test_an_autoencoder_of_another_size(tmp_path: Path) -> None:
    unet, autoencoder = released_files(tmp_path)
    state = load_file(autoencoder)
    state["quantize.embedding.weight"] = torch.randn(64, 8)
    save_file(state, tmp_path / "faces.safetensors")
    refused(
        "does not belong to this UNet: its latents have 8", unet, arch="sinsr", autoencoder=tmp_path / "faces.safetensors"
    )


@pytest.mark.parametrize(
    ("stages", "channels", "task"), [(1, 3, "for ×2"), (3, 3, "of face restoration"), (2, 4, "of inpainting")]
)
def test_networks_of_other_tasks(tmp_path: Path, stages: int, channels: int, task: str) -> None:
    """They pass the picture through layers of their own first."""
    unet, autoencoder = released_files(tmp_path)
    state = load_file(unet)
    for stage in range(stages):
        state[f"feature_extractor.{3 * stage}.weight"] = torch.zeros(16, channels, 3, 3)
        state[f"feature_extractor.{3 * stage}.bias"] = torch.zeros(16)
        state[f"feature_extractor.{3 * stage + 2}.op.weight"] = torch.zeros(32, 16, 3, 3)
        state[f"feature_extractor.{3 * stage + 2}.op.bias"] = torch.zeros(32)
    save_file(state, tmp_path / "other.safetensors")
    refused(f"a network {task} of the ResShift family", tmp_path / "other.safetensors", autoencoder=autoencoder)


@needs_reference
def test_the_reference_for_times_two_is_refused() -> None:
    path = REFERENCE / "more" / "resshift_x2_37x23_padded_unet.safetensors"
    refused("for ×2", path, arch="resshift-4", autoencoder=REFERENCE / "tiny_vq.safetensors")


@pytest.mark.parametrize("name", ["attn_mask", "relative_position_index"])
@pytest.mark.parametrize("change", ["values", "shape"])
def test_buffers_are_checked(tmp_path: Path, name: str, change: str) -> None:
    unet, autoencoder = released_files(tmp_path)
    state = load_file(unet)
    key = next(key for key in state if key.endswith(name))
    state[key] = state[key].roll(1, 0).contiguous() if change == "values" else state[key][..., :-1].contiguous()
    save_file(state, tmp_path / "changed.safetensors")
    words = "not what the released networks have" if change == "values" else "does not fit windows of 8"
    refused(words, tmp_path / "changed.safetensors", arch="sinsr", autoencoder=autoencoder)


@pytest.mark.parametrize("key", ["time_embed.0.weight", "middle_block.1.blocks.0.attn.qkv.weight", "out.2.weight"])
def test_missing_misshapen_and_unknown_tensors_are_named(tmp_path: Path, key: str) -> None:
    unet, autoencoder = released_files(tmp_path)
    state = load_file(unet)
    value = state.pop(key)
    save_file(state, tmp_path / "missing.safetensors")
    refused(key.replace(".", r"\."), tmp_path / "missing.safetensors", arch="sinsr", autoencoder=autoencoder)
    save_file(state | {key: torch.cat([value, value])}, tmp_path / "misshapen.safetensors")
    refused("shape|channels|missing", tmp_path / "misshapen.safetensors", arch="sinsr", autoencoder=autoencoder)
    save_file(state | {key: value, "unknown.weight": value.clone()}, tmp_path / "unknown.safetensors")
    refused(r"unknown\.weight", tmp_path / "unknown.safetensors", arch="sinsr", autoencoder=autoencoder)


def test_other_networks_take_no_autoencoder(tmp_path: Path, checkpoint: Path) -> None:
    refused("rdsr has no autoencoder", checkpoint, autoencoder=released_files(tmp_path)[1])
