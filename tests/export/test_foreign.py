"""Plain networks of others become bundles: proven on both engines, tiled as they may be, in int8 under the gate."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.export.exporter import ExportOptions, ExportResult, export_checkpoint
from rdsr.export.int8 import any_network
from rdsr.models import load_model
from rdsr.runtime import Bundle, Upscaler
from rdsr.runtime.engines import BACKENDS
from rdsr.runtime.pictures.arrays import from_graph, to_graph
from rdsr.runtime.verify import verify
from rdsr.tests.models.foreign.networks import CONVOLUTIONAL, WHOLE, checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def exports(folder: Path) -> Callable[[str], ExportResult]:
    """Architecture → its export, made once."""

    @functools.cache
    def export(name: str) -> ExportResult:
        single = name in ("Compact", "SwinIR")  # a graph of all of it takes as long again
        path, output = checkpoint(folder, name), folder / f"{name}.bundle"
        return export_checkpoint(ExportOptions(checkpoint=path, output=output, precisions=("fp32",), single_graph=single))

    return export


@pytest.mark.parametrize("name", WHOLE)
def test_it_is_exported_proven_and_run(name: str, folder: Path, exports: Callable[[str], ExportResult]) -> None:
    result = exports(name)
    path, output = folder / f"{name}.pth", result.output
    assert result.passed
    assert all(row.max_abs_err is not None and row.max_abs_err <= 1e-4 for row in result.verification.variants)
    assert {row.engine for row in result.verification.variants} == set(BACKENDS)
    sizes = {tuple(size) for row in result.verification.variants for size in row.to_dict()["sizes"]}
    assert len(sizes) >= 9  # ten inputs, two of one size
    assert verify(Bundle(output)).passed
    manifest, network = Bundle(output).manifest, load_model(path).network
    assert (manifest.kind, manifest.scale, manifest.tile_rule) == ("direct", network.scale, network.tile_rule)
    assert manifest.receptive_radius == (CONVOLUTIONAL[name][1] if name in CONVOLUTIONAL else None)
    picture = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = from_graph(network.decode(torch.from_numpy(to_graph(picture))).numpy(), picture)
    for backend in BACKENDS:
        larger = Upscaler.load(output, backend=backend, precision="fp32", threads=1)(picture)
        assert np.abs(larger.astype(int) - expected).max() <= 1, backend


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_of_convolutional_networks_equal_the_whole(
    name: str, backend: str, exports: Callable[[str], ExportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    upscaler = Upscaler.load(exports(name).output, backend=backend, precision="fp32", threads=1)
    whole = upscaler(picture)
    assert upscaler.plan(100, 120).tiles == 1
    monkeypatch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: (2 * halo + 16) ** 2)
    plan = upscaler.plan(100, 120)
    assert plan.tiles > 1
    assert plan.exact
    np.testing.assert_array_equal(upscaler(picture), whole)


def test_tiles_of_others_overlap_and_warn(
    exports: Callable[[str], ExportResult], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: 88**2)
    picture = np.random.default_rng(1).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    upscaler = Upscaler.load(exports("SwinIR").output, backend="onnxruntime", precision="fp32", threads=1)
    assert upscaler.plan(100, 140).tiles > 1
    assert upscaler(picture).shape == (400, 560, 3)
    assert "SwinIR sees more of the picture than a tile shows" in caplog.text


def test_info_says_what_it_is(exports: Callable[[str], ExportResult], folder: Path) -> None:
    shown = CliRunner().invoke(app, ["info", str(exports("SPAN").output), "--json"])
    facts = json.loads(shown.stdout)
    assert (facts["arch"], facts["process"], facts["scale"], facts["receptive_radius"]) == ("SPAN", "direct", 4, 21)
    shown = CliRunner().invoke(app, ["info", str(folder / "SPAN.pth"), "--json"])
    facts = json.loads(shown.stdout)
    assert (facts["arch"], facts["steps"]) == ("SPAN", 0)
    assert facts["params"] < facts["params_training"], "the branches are merged"


def test_slopes_keep_openvinos_layout(exports: Callable[[str], ExportResult]) -> None:
    graph = onnx.load(exports("Compact").output / "decoder.onnx").graph
    slopes = {node.input[1] for node in graph.node if node.op_type == "PRelu"}
    shapes = [list(tensor.dims) for tensor in graph.initializer if tensor.name in slopes]
    assert shapes == [[1, 16, 1, 1]] * len(slopes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OmniSR", "this OmniSR cannot be exported: its graph holds the operator 'Einsum'"),
        ("SAFMN", "cannot be traced to ONNX: Unsupported: ONNX export of operator adaptive pooling"),
    ],
)
def test_what_no_bundle_can_hold_is_named(name: str, words: str, folder: Path) -> None:
    command = ["export", str(checkpoint(folder, name)), "-o", str(folder / "o"), "--no-single-graph", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert words in json.loads(result.stdout)["error"]
    assert not (folder / "o").exists()


def test_benchmarks_take_the_same_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that cannot be exported is a row that says so."""
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    good, bad = checkpoint(folder, "Compact"), checkpoint(folder, "OmniSR")
    options = ["--model", str(good), "--model", str(bad), "--precision", "fp32", "--threads", "1", "--json"]
    more = ["--backend", "onnxruntime", "--size", "16x24", "--budget", "1", "--rounds", "1", "--no-peaks"]
    done = CliRunner().invoke(app, ["bench", "latency", *options, *more])
    rows = {row["model"]: row for row in json.loads(done.stdout)["rows"]}
    assert done.exit_code == 1
    assert rows[str(good)]["p50_ms"] > 0
    assert (rows[str(good)]["weights"], rows[str(good)]["conversion_ms"]) == ("trained", None)
    assert "holds the operator 'Einsum'" in rows[str(bad)]["error"]
    done = CliRunner().invoke(app, ["bench", "quality", *options, "--dataset", str(SAMPLES)])
    report = json.loads(done.stdout)
    assert [row["model"] for row in report["rows"]] == [str(good)]
    assert "holds the operator 'Einsum'" in report["failures"][0]


def test_int8_leaves_in_float_what_costs_most(folder: Path) -> None:
    """With these weights SPAN loses decibels in int8, nearly all of them in some of its convolutions."""
    output = folder / "int8"
    options = ExportOptions(
        checkpoint=checkpoint(folder, "SPAN"), output=output, precisions=("fp32", "int8"), single_graph=False
    )
    result = export_checkpoint(options)
    assert result.passed
    assert result.quantization is not None
    remedies, layers = result.quantization["remedies"], result.quantization["layers"]
    assert remedies[0]["psnr_drop_db"] > 0.05 >= remedies[-1]["psnr_drop_db"]
    left = remedies[-1]["chosen"].split(", ")
    chosen = {layer["layer"]: layer for layer in layers}
    assert all(chosen[name]["precision"] == "fp32" for name in left)
    assert {layer["precision"] for layer in layers} == {"fp32", "int8"}
    cheapest = min(chosen[name]["cost_db"]["all"] for name in left)
    assert all(layer["cost_db"]["all"] <= cheapest for layer in layers if layer["precision"] == "int8")
    graph = onnx.load(output / "decoder.int8.onnx").graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 0


def test_a_gate_that_is_not_met_names_the_layer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_network, "MAX_FLOATS", 0.0)
    path = checkpoint(folder, "SPAN")
    command = ["export", str(path), "-o", str(folder / "gate"), "--precision", "fp32,int8", "--no-single-graph"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 3, result.output
    assert "of its layers, network.block_1" in result.stderr
    assert not (folder / "gate").exists()


@pytest.mark.parametrize("name", ["Compact", "SwinIR", "RCAN"])
def test_int8_runs_alike_on_both_engines(name: str, folder: Path) -> None:
    """PReLU, attention and gates stay in float between the quantized convolutions."""
    output = folder / f"{name}.int8"
    options = ExportOptions(
        checkpoint=checkpoint(folder, name), output=output, precisions=("fp32", "int8"), single_graph=False
    )
    assert export_checkpoint(options).passed
    assert Bundle(output).manifest.precisions == ("fp32", "int8")
    assert verify(Bundle(output)).passed
