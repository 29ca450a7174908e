"""`rdsr bench int8` and `rdsr bench quality --drop`: rows add up, the stack is all int8, wrong inputs are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.latency.flops import convolution_gflops
from rdsr.benchmarks.latency.peaks import convolution_stack
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.models.rdsr import PRESETS, RDSR
from rdsr.runtime.engines import BACKENDS, load_session
from rdsr.runtime.engines.openvino_engine import OpenVinoSession
from rdsr.tests.conftest import rewrite_manifest


def test_rows_add_up(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"fp32": 40.0, "int8": 20.0, "stack": 10.0, "call": 21.0}
    called = []

    def timed(calls: dict[tuple[str, str], Callable[[], object]], **options: int) -> dict[tuple[str, str], float]:
        called.append(options)
        assert all(call() is not None for call in calls.values()), "all that is timed can be called"
        return {(engine, what): times[what] for engine, what in calls}

    monkeypatch.setattr("rdsr.benchmarks.latency.int8.interleaved_medians", timed)
    command = ["bench", "int8", "--model", str(checkpoint), "--size", "24x40", "--size", "16X16", "--rounds", "2"]
    result = CliRunner().invoke(app, [*command, "--threads", "1", "-o", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {(row["engine"], tuple(row["size"])) for row in report["rows"]} == {
        (engine, size) for engine in BACKENDS for size in ((24, 40), (16, 16))
    }
    for row in report["rows"]:
        assert (row["weights"], row["threads"], row["rounds"]) == ("trained", 1, 2)
        assert [row[f"{what}_ms"] for what in times] == list(times.values())
        assert (row["speedup"], row["call_overhead"]) == (2.0, 0.05)
        assert row["share_of_stack"] == pytest.approx(row["int8_gflops"] / row["stack_gflops"], rel=0.02, abs=0.002)
    assert called == [{"rounds": 2, "warmup": 2}] * 2
    assert "| 24×40 |" in (tmp_path / "int8.md").read_text()
    assert "isa" in report


@pytest.mark.parametrize(("option", "value", "word"), [("--size", "3x", "HEIGHTxWIDTH"), ("--model", "huge", "preset")])
def test_what_cannot_be_timed_is_said(option: str, value: str, word: str) -> None:
    result = CliRunner().invoke(app, ["bench", "int8", option, value])
    assert result.exit_code == 2
    assert word in result.stderr


def test_the_stack_is_nothing_but_int8() -> None:
    graph = convolution_stack(channels=8, depth=3)
    layers = OpenVinoSession(graph, precision="int8", threads=1).execution()
    convolutions = [layer for layer in layers if layer.kind == "Convolution"]
    assert [layer.precision for layer in convolutions] == ["u8"] * 3
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 9, 7), dtype=np.uint8)
    a, b = (load_session(graph, backend=engine, precision="int8", threads=1).run({"x": x})[0] for engine in BACKENDS)
    assert a.shape == x.shape
    assert np.abs(a.astype(int) - b).max() <= 1
    assert a.std() > 1, "activations neither die out nor saturate"


def test_flops_are_counted_from_the_weights() -> None:
    network = RDSR(PRESETS["tiny"])
    body = 2 * 9 * (3 * 48 + 8 * 48 * 48 + 48 * 48 + 3 * 48) * 128 * 128 / 1e9
    assert body < convolution_gflops(network, 128, 128) < 1.05 * body
    assert convolution_gflops(network, 64, 128) == pytest.approx(convolution_gflops(network, 128, 128) / 2)


def test_drop_is_counted_from_the_bundles_own_float(exported: Path) -> None:
    command = ["bench", "quality", "--dataset", str(SAMPLES), "--bundle", str(exported), "--json", "--drop", "--precision"]
    rows = {p: json.loads(CliRunner().invoke(app, [*command, p]).stdout) for p in ("fp32", "int8")}
    assert rows["fp32"]["psnr_drop_db"] == rows["fp32"]["worst_drop_db"] == 0
    difference = rows["fp32"]["psnr_y"] - rows["int8"]["psnr_y"]
    assert rows["int8"]["psnr_drop_db"] == pytest.approx(difference, abs=2e-4)
    assert rows["int8"]["worst_drop_db"] >= rows["int8"]["psnr_drop_db"] != 0


def test_an_unproven_int8_has_no_quality(bundle: Path) -> None:
    rewrite_manifest(bundle, variants=[])
    result = CliRunner().invoke(app, ["bench", "quality", "--dataset", str(SAMPLES), "--bundle", str(bundle)])
    assert result.exit_code == 2
    assert "no proven" in result.stderr
