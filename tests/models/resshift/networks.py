"""Small networks of the ResShift family: of our own, and the reference's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdsr.models.checkpoint import save_checkpoint
from rdsr.models.resshift import AUTOENCODER, ResShift, ResShiftConfig, is_derived, name_of
from rdsr.models.resshift.config import UNET
from rdsr.models.resshift.swin import last_row_mask, relative_positions
from rdsr.tests.conftest import ROOT

REFERENCE = Path(ROOT).parent / "shared" / "reference" / "resshift"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference tensors are not beside the checkout")
SMALL: dict[str, Any] = {
    "image_size": 16, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": (1, 1), "swin_levels": (0, 1),
    "swin_embed_dim": 32, "swin_heads": 2, "swin_hidden": 64, "vq_channels": 32, "vq_res_blocks": 1, "codebook_size": 64,
}  # fmt: skip


def small_network(sampler: str = "sinsr") -> ResShift:
    """Random weights; every one matters."""
    torch.manual_seed(0)
    network = ResShift(ResShiftConfig(sampler=sampler, noise_channels=int(sampler == "rsd"), **SMALL)).eval()
    network.vary_initial_weights()
    return network


def own_checkpoint(path: Path, sampler: str = "sinsr") -> Path:
    """A checkpoint in our own form: both parts in one file."""
    network = small_network(sampler)
    notes = {"weights": "random"}
    save_checkpoint(path, network.state_dict(), sampler, network.config.to_dict(), notes)
    return path


def released_files(folder: Path, sampler: str = "sinsr") -> tuple[Path, Path]:
    """UNet and autoencoder as they are released: two files, with buffers."""
    network = small_network(sampler)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    unet = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    window = network.config.window_size
    for key in [key for key in unet if key.endswith("relative_position_bias_table")]:
        unet[key.removesuffix("bias_table") + "index"] = relative_positions(window).clone()
    for block in ("input_blocks.1.1", "output_blocks.2.1"):
        mask = torch.zeros(4, window**2, window**2)
        mask[-2:] = last_row_mask(window, window // 2)
        unet[f"{block}.blocks.1.attn_mask"] = mask
    folder.mkdir(parents=True, exist_ok=True)
    save_file(unet, folder / "unet.safetensors")
    autoencoder = {key.removeprefix(AUTOENCODER): value for key, value in state.items() if key.startswith(AUTOENCODER)}
    save_file(autoencoder, folder / "vq.safetensors")
    return folder / "unet.safetensors", folder / "vq.safetensors"


def reference(golden: str, unet: str, sampler: str) -> tuple[ResShift, dict[str, torch.Tensor]]:
    """A network of the reference, and its golden tensors."""
    tensors = load_file(REFERENCE / f"{golden}.golden.safetensors")
    weights = {name_of(key): value for key, value in load_file(REFERENCE / f"{unet}.safetensors").items()}
    weights |= {f"{AUTOENCODER}{key}": value for key, value in load_file(REFERENCE / "tiny_vq.safetensors").items()}
    if "codebook" in tensors:
        weights[f"{AUTOENCODER}quantize.embedding.weight"] = tensors["codebook"]
    config = ResShiftConfig.from_shapes({key: tuple(value.shape) for key, value in weights.items()}, sampler)
    network = ResShift(config).eval()
    network.load_state_dict({key: value.float() for key, value in weights.items() if not is_derived(key)})
    return network, tensors


def facts(golden: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REFERENCE / f"{golden}.json").read_text())
    return content
