"""From the two files of a ResShift network to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.export.graphs.accounting import graph_constants
from rdsr.models.registry import load_model
from rdsr.runtime.bundle import Bundle
from rdsr.tests.cli.running import listing, refused, run
from rdsr.tests.models.resshift.networks import own_checkpoint, released_files


@pytest.fixture(scope="module")
def rsd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of two released files and the bundle made from them, and what the export reported."""
    folder = tmp_path_factory.mktemp("rsd")
    unet, autoencoder = released_files(folder, "rsd")
    result = run("export", unet, "--autoencoder", autoencoder, "-o", folder / "rsd.bundle", "--precision", "fp32", "--json")
    return folder, json.loads(result.stdout)


def test_two_files_become_a_proven_bundle(rsd: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, report = rsd
    unet, autoencoder, output = (folder / name for name in ("unet.safetensors", "vq.safetensors", "rsd.bundle"))
    assert (report["arch"], report["steps"], report["passed"], report["unsimplified"]) == ("rsd", 1, True, [])
    assert [row["engine"] for row in report["variants"]] == ["openvino", "onnxruntime"]
    names = {"decoder.onnx", "encoder.onnx", "manifest.json", "proof.json", "proof.safetensors", "step.onnx"}
    assert set(listing(output)) == names, "no single graph, whose noise would have the size of one picture"
    notes = Bundle(output).manifest.checkpoint["notes"]
    assert "no commercial use" in notes["licence"]
    step = onnx.load(output / "step.onnx")
    facts = {entry.key: entry.value for entry in step.metadata_props}
    assert (facts["arch"], facts["scale"], facts["colour"]) == ("rsd", "4", "RGB")
    assert "no commercial use" in facts["licence"]
    assert [port.name for port in step.graph.input] == ["latent", "lr", "time", "input_scale", "noise_map"]
    weights = {key for key, _ in load_model(unet, autoencoder=autoencoder).network.named_parameters()}
    assert len(graph_constants(step)) < len(weights)
    assert json.loads(run("info", output, "--json").stdout)["process"] == "residual-shift"
    described = json.loads(run("info", unet, "--autoencoder", autoencoder, "--json").stdout)
    assert (described["arch"], described["params"]) == ("rsd", report["params"])
    upscaled = run(
        "upscale", Path(__file__).parents[2] / "export/samples/LRx4/chart.png", "-o", tmp_path / "x.png", "--bundle", output
    )
    assert upscaled.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name it with --arch"),
        (["--arch", "sinsr"], "needs its autoencoder: name the file with --autoencoder"),
        (["--arch", "sinsr", "--autoencoder", "{unet}"], "is a UNet, not an autoencoder"),
        (["--arch", "sinsr", "--autoencoder", "nothing.pth"], "cannot read the checkpoint nothing.pth"),
        (["--arch", "rsd", "--autoencoder", "{vq}"], "no input channel of noise"),
        (["--arch", "sinsr", "--autoencoder", "{vq}", "--steps", "2"], "steps of sinsr cannot be set"),
    ],
)
def test_what_is_missing_or_misplaced_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    unet, autoencoder = released_files(tmp_path / "in")
    given = [argument.format(unet=unet, vq=autoencoder) for argument in arguments]
    refused(run("export", unet, *given, "-o", tmp_path / "out"), words)
    assert listing(tmp_path) == ["in"]


def test_int8_has_a_gate(tmp_path: Path) -> None:
    """Random weights lose too much."""
    checkpoint = own_checkpoint(tmp_path / "sinsr.safetensors")
    result = run("export", checkpoint, "-o", tmp_path / "out", "--precision", "fp32,int8")
    assert result.exit_code == 3
    assert "int8 loses" in result.stderr
    assert listing(tmp_path) == ["sinsr.safetensors"]


def test_the_same_graphs_again_and_no_int8_unasked(rsd: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = rsd
    unet, autoencoder = folder / "unet.safetensors", folder / "vq.safetensors"
    result = export_checkpoint(ExportOptions(checkpoint=unet, autoencoder=autoencoder, output=tmp_path / "again"))
    assert result.passed
    assert {row.precision for row in result.verification.variants} <= {"fp32", "bf16"}
    one, two = (Bundle(bundle).manifest for bundle in (folder / "rsd.bundle", tmp_path / "again"))
    assert one.files == two.files
