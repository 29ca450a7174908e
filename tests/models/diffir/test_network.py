"""DiffIR against the results of the released implementation (`../shared/reference/diffir`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rdsr.models.diffir import OFFICIAL_X4, DiffIR, DiffIRConfig
from rdsr.models.errors import CheckpointError
from rdsr.tests.conftest import DIFFIR_CONFIG, ROOT

REFERENCE = Path(ROOT).parent / "shared" / "reference" / "diffir"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference tensors are not beside the checkout")


def released(scale: int) -> tuple[DiffIR, dict[str, torch.Tensor]]:
    weights = {key: value.float() for key, value in load_file(REFERENCE / f"diffir_s2_tiny_x{scale}.safetensors").items()}
    network = DiffIR(DiffIRConfig.from_shapes({key: tuple(value.shape) for key, value in weights.items()})).eval()
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not missing
    assert all(key.startswith("diffusion.") for key in unexpected), "unexpected tensors only repeat others"
    return network, load_file(REFERENCE / f"diffir_s2_tiny_x{scale}.golden.safetensors")


@needs_reference
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_it_computes_what_the_released_implementation_does(scale: int) -> None:
    network, golden = released(scale)
    lr, noise = golden["lr"].float(), golden["noise"].float()
    with torch.no_grad():
        c = network.condition.mlp(network.feature_map(lr).mean(dim=(2, 3)))
        z = network.latent_prior(lr, noise)
        sr = network(lr, noise)
    assert (c - golden["condition"]).abs().max() < 1e-5
    assert (z - golden["ipr"]).abs().max() < 1e-5
    assert (sr - golden["sr"]).abs().max() < 1e-5


@needs_reference
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_sizes_are_read_off_the_shapes(scale: int) -> None:
    config = released(scale)[0].config
    arguments = json.loads((REFERENCE / f"diffir_s2_tiny_x{scale}.json").read_text())
    assert (config.dim, config.scale, list(config.num_blocks)) == (16, scale, arguments["num_blocks"])
    assert (config.num_refinement_blocks, list(config.heads)) == (arguments["num_refinement_blocks"], arguments["heads"])
    assert (config.n_encoder_res, config.n_denoise_res) == (arguments["n_encoder_res"], arguments["n_denoise_res"])
    assert (config.steps, config.bias, config.biased_norm) == (
        arguments["timesteps"],
        arguments["bias"],
        arguments["LayerNorm_type"] == "WithBias",
    )
    assert DiffIRConfig(**config.to_dict()) == config


@needs_reference
def test_the_official_network_has_exactly_the_released_tensors() -> None:
    listed = json.loads((REFERENCE / "diffir_s2_official_x4.keys.json").read_text())
    shapes = {key: tuple(shape) for key, shape in listed.items()}
    assert DiffIRConfig.from_shapes(shapes) == OFFICIAL_X4
    with torch.device("meta"):
        own = {key: tuple(value.shape) for key, value in DiffIR(OFFICIAL_X4).state_dict().items()}
    assert own == {key: shape for key, shape in shapes.items() if not key.startswith("diffusion.")}


@pytest.mark.parametrize("size", [(1, 1), (9, 17)])
def test_any_size_goes_through(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = DiffIR(DIFFIR_CONFIG).eval()
    with torch.no_grad():
        sr = network(torch.rand(2, 3, *size), torch.randn(2, 256))
    assert sr.shape == (2, 3, 4 * size[0], 4 * size[1])


@pytest.mark.parametrize("changes", [{"scale": 3}, {"dim": 4}, {"heads": (1, 2, 4)}, {"heads": (3, 2, 4, 8)}, {"steps": 0}])
def test_sizes_that_cannot_be_are_named(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        DiffIRConfig(**changes)


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"G\.patch_embed\.proj\.weight"):
        DiffIRConfig.from_shapes({"G.latent.0.attn.temperature": (1, 1, 1)})


@pytest.mark.parametrize(
    "key", ["G.patch_embed.proj.weight", "G.latent.0.ffn.project_out.weight", "G.latent.0.attn.temperature"]
)
def test_a_misshapen_tensor_is_named(key: str) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in DiffIR(DIFFIR_CONFIG).state_dict().items()}
    assert DiffIRConfig.from_shapes(shapes) == DIFFIR_CONFIG
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        DiffIRConfig.from_shapes(shapes | {key: (0,)})
