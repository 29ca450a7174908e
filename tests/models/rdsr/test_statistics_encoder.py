"""The condition encoder that sees a degradation, and the latent prior encoder that gets its parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.models.degradation import TEST_DEGRADATIONS, VECTOR_SIZE
from rdsr.models.errors import CheckpointError
from rdsr.models.rdsr import PRESETS, RDSR, RDSRConfig
from rdsr.models.rdsr.grow import grow
from rdsr.models.registry import load_model
from rdsr.runtime import Upscaler
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.pipelines.latent_prior import CELL, LatentPriorPipeline
from rdsr.tests.conftest import CONFIG, picture, random_network, write_checkpoint

PHOTO = dataclasses.replace(
    CONFIG, condition_encoder="statistics", unshuffle=2, condition_depth=3, degradation_size=VECTOR_SIZE
)


@pytest.fixture(scope="module")
def photo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photo")
    path = write_checkpoint(folder / "net.safetensors", random_network(PHOTO))
    result = export_checkpoint(ExportOptions(checkpoint=path, output=folder / "bundle"))
    assert (result.passed, result.unsimplified) == (True, ())
    return folder / "bundle"


def test_the_photo_preset_is_of_smalls_size() -> None:
    small, photo = RDSR(PRESETS["small"]), RDSR(PRESETS["photo"])
    assert [p.shape for p in small.decoder.parameters()] == [p.shape for p in photo.decoder.parameters()]
    assert PRESETS["photo"].degradation_size == VECTOR_SIZE


def test_sizes_are_read_off_the_shapes(tmp_path: Path) -> None:
    network = random_network(PHOTO)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert RDSRConfig.from_shapes(shapes) == dataclasses.replace(PHOTO, lpe_width=PHOTO.lpe_width)
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    assert load_model(tmp_path / "bare.safetensors").config == PHOTO


def test_a_flat_picture_of_any_brightness_has_one_condition() -> None:
    """The input is high-pass: flat areas do not show the degradation."""
    network = random_network(PHOTO)
    flats = torch.stack([torch.full((3, 16, 20), value) for value in (0.1, 0.5, 0.9)])
    with torch.no_grad():
        vectors = network.condition_encoder(flats)
        assert torch.isfinite(vectors).all()
        assert torch.allclose(vectors, vectors[:1].expand_as(vectors), atol=1e-4)
        textured = network.condition_encoder(torch.rand(1, 3, 16, 20))
    assert not torch.allclose(textured, vectors[:1], atol=1e-2)


def test_means_of_the_feature_map_give_mean_and_deviation() -> None:
    network = random_network(PHOTO)
    features = network.feature_map(torch.rand(1, 3, 24, 28))
    plain, squares = features.chunk(2, dim=1)
    assert torch.equal(squares, plain * plain)
    assert features.shape[1] == network.condition_channels
    mean, deviation = plain.mean(dim=(2, 3)), plain.std(dim=(2, 3), unbiased=False)
    encoder = network.condition_encoder
    by_hand = torch.cat([(mean + 0.01).log(), (deviation.square() + 0.01**2).sqrt().log()], dim=1)
    assert torch.allclose(encoder.vector(features.mean(dim=(2, 3))), encoder.mlp(encoder.norm(by_hand)), atol=1e-3)


def test_a_cell_depends_on_no_more_than_its_radius_says() -> None:
    network = random_network(PHOTO)
    unit, radius = network.size_multiple, network.condition_radius
    lr = torch.rand(1, 3, 40, 40, requires_grad=True)
    network.feature_map(lr)[0, :, 10, 10].sum().backward()
    touched = lr.grad[0].abs().sum(dim=0).nonzero()
    low, high = touched.min(dim=0).values // unit, touched.max(dim=0).values // unit
    assert int(low.min()) >= 10 - radius
    assert int(high.max()) <= 10 + radius


def test_the_latent_prior_encoder_uses_the_parameters() -> None:
    network = random_network(PHOTO)
    lr, hr = torch.rand(1, 3, 12, 12), torch.rand(1, 3, 48, 48)
    priors = [network.lpe(lr, hr, torch.from_numpy(d.vector())[None]) for d in TEST_DEGRADATIONS.values()]
    for index, one in enumerate(priors):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in priors[:index])
    plain = random_network()
    parameters = torch.rand(1, VECTOR_SIZE)
    assert torch.equal(plain.lpe(lr, hr), plain.lpe(lr, hr, parameters)), "an encoder without degradation_size ignores them"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tiles_equal_the_whole_picture(
    photo_bundle: Path, backend: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Bundle(photo_bundle).manifest.process["condition_radius"] == 5
    image = picture(67, 53)
    upscaler = Upscaler.load(photo_bundle, backend=backend, precision=precision, threads=2)
    whole = upscaler(image)
    monkeypatch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: 900)
    assert upscaler.plan(67, 53).tiles > 1
    assert np.array_equal(upscaler(image), whole)


def test_the_prior_of_a_large_picture_is_that_of_its_cells_together(photo_bundle: Path) -> None:
    network = load_model(photo_bundle.parent / "net.safetensors").network
    image = picture(CELL + 30, CELL + 9)
    pipeline = LatentPriorPipeline(Bundle(photo_bundle), backend="onnxruntime", precision="fp32", threads=2, seed=0)
    tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    noise = torch.from_numpy(np.random.RandomState(0).standard_normal((1, PHOTO.latent_size))).float()
    with torch.no_grad():
        wanted = network.latent_prior(tensor, noise).numpy()
    assert np.allclose(pipeline.prior(image), wanted, atol=1e-3)


def test_it_deepens_but_its_condition_encoder_does_not_widen() -> None:
    network = random_network(PHOTO)
    deeper = dataclasses.replace(PHOTO, depth=7, modulation_depths=(0, 3), lpe_width=10)
    grown = RDSR(deeper).eval()
    grown.load_state_dict(grow(network.state_dict(), PHOTO, grown))
    lr, hr, noise = torch.rand(1, 3, 9, 11), torch.rand(1, 3, 36, 44), torch.randn(1, PHOTO.latent_size)
    parameters = torch.rand(1, VECTOR_SIZE)
    with torch.no_grad():
        assert torch.allclose(network(lr, noise), grown(lr, noise), atol=1e-5)
        assert torch.allclose(network.lpe(lr, hr, parameters), grown.lpe(lr, hr, parameters), atol=1e-4)
    wider = dataclasses.replace(PHOTO, condition_width=12)
    with pytest.raises(CheckpointError, match="layer norm"):
        grow(network.state_dict(), PHOTO, RDSR(wider))


def test_a_ramp_has_no_detail_but_at_its_edges() -> None:
    """The input is high-pass with its edge repeated: inside, the map is that of a flat picture."""
    network = random_network(PHOTO)
    ramp, flat = torch.linspace(0, 1, 40).expand(1, 3, 40, 40), torch.zeros(1, 3, 40, 40)
    with torch.no_grad():
        features, wanted = network.feature_map(ramp), network.feature_map(flat)
    assert features.shape == (1, network.condition_channels, 20, 20)
    assert torch.allclose(features[..., 6:-6], wanted[..., 6:-6], atol=1e-4)
    assert not torch.allclose(features[..., :1], wanted[..., :1], atol=1e-3)
