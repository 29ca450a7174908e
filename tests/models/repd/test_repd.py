"""RepD, the direct network: read, exported, verified, tiled exactly, run in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.export import ExportOptions, export_checkpoint
from rdsr.models import load_model
from rdsr.models.checkpoint import save_checkpoint
from rdsr.models.errors import CheckpointError
from rdsr.models.interface import DirectNetwork
from rdsr.models.repd import RepD, RepDConfig
from rdsr.runtime import Bundle, Upscaler
from rdsr.runtime.engines import BACKENDS
from rdsr.runtime.pictures.arrays import from_graph, to_graph
from rdsr.runtime.verify import verify
from rdsr.tests.conftest import picture

CONFIG = RepDConfig(width=12, depth=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = RepD(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("repd") / "repd.safetensors"
    save_checkpoint(path, network.state_dict(), "repd", network.config.to_dict())
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    output = checkpoint.with_suffix(".bundle")
    assert export_checkpoint(ExportOptions(checkpoint=checkpoint, output=output, max_psnr_drop=1.0)).passed
    return output


def test_it_is_known_by_its_keys(checkpoint: Path, tmp_path: Path) -> None:
    network = load_model(checkpoint).network
    assert isinstance(network, DirectNetwork)
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    loaded = load_model(tmp_path / "bare.pth")
    assert (loaded.arch, loaded.config) == ("repd", CONFIG)
    assert loaded.describe()["steps"] == 0
    lacking = {key: value for key, value in network.state_dict().items() if key != "decoder.skip.bias"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(CheckpointError, match=r"missing tensor decoder\.skip\.bias"):
        load_model(tmp_path / "lacking.pth")


def test_there_are_no_steps_to_set(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="the steps of repd cannot be set"):
        load_model(checkpoint, steps=2)


def test_a_modulated_decoder_alone_is_no_such_network(tmp_path: Path) -> None:
    tensors = RepD(CONFIG).state_dict() | {"decoder.modulation.0.weight": torch.zeros(24, 8)}
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="missing tensor condition_encoder"):
        load_model(tmp_path / "net.pth")
    with pytest.raises(ValueError, match="modulation_depths"):
        RepDConfig(width=12, depth=4, modulation_depths=(0,))


def test_the_bundle_holds_one_decoder_a_precision(bundle: Path) -> None:
    manifest = Bundle(bundle).manifest
    assert (manifest.arch, manifest.kind, dict(manifest.process)) == ("repd", "direct", {"kind": "direct"})
    assert manifest.pipeline_roles == ("decoder",)
    assert manifest.fusion["blocks"] == CONFIG.depth
    assert [port.name for port in onnx.load(bundle / "decoder.onnx").graph.input] == ["lr"]
    assert not list(bundle.glob("encoder*"))
    assert verify(Bundle(bundle)).passed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_tiles_equal_the_whole_picture(bundle: Path, backend: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(61, 47)
    upscaler = Upscaler.load(bundle, backend=backend, precision=precision, threads=2)
    whole = upscaler(image)
    monkeypatch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: 900)
    plan = upscaler.plan(61, 47)
    assert plan.tiles > 1
    assert plan.exact
    assert np.array_equal(upscaler(image), whole)


def test_the_runtime_gives_what_torch_gives(checkpoint: Path, bundle: Path) -> None:
    image = picture(13, 9)
    network = load_model(checkpoint).network
    with torch.no_grad():
        wanted = from_graph(network(torch.from_numpy(to_graph(image))).numpy(), image)
    for backend in BACKENDS:
        given = Upscaler.load(bundle, backend=backend, precision="fp32")(image)
        assert np.abs(given.astype(int) - wanted).max() <= 1


def test_all_convolutions_between_head_and_shuffle_run_in_int8(bundle: Path) -> None:
    layers = Bundle(bundle).manifest.quantization["layers"]
    assert [layer["precision"] for layer in layers] == ["int8"] * (CONFIG.depth + 1)
    graph = onnx.load(bundle / "decoder.int8.onnx").graph
    assert sum(node.name.endswith("/weight") for node in graph.node) == CONFIG.depth + 1


def test_the_commands_take_it_like_any_other(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    for arguments in (
        ["info", str(bundle)],
        ["info", str(checkpoint)],
        ["verify", str(bundle)],
        ["bench", "latency", "--model", str(bundle), "--size", "16x16", "--threads", "1", "--budget", "2", "--no-peaks"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    refused = CliRunner().invoke(app, ["bench", "prior", "--checkpoint", str(checkpoint), "--dataset", str(tmp_path)])
    assert refused.exit_code == 2
    assert "no latent prior" in refused.output
