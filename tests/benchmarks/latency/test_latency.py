"""The latency harness in real processes: it measures the truth, also after it was cut off."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.latency.flops import convolution_gflops, graph_facts
from rdsr.benchmarks.latency.measure import Options, jobs_of, measure_latency
from rdsr.benchmarks.latency.peaks import convolution_stack, matmul, measure_peak
from rdsr.benchmarks.latency.rows import Job, fit_exponents
from rdsr.benchmarks.quality import measure as quality_measure
from rdsr.benchmarks.quality.measure import onnx_file
from rdsr.benchmarks.subjects import onnx_model
from rdsr.benchmarks.subjects.find import find_subject
from rdsr.benchmarks.subjects.onnx_model import OnnxModel, read_input
from rdsr.benchmarks.subjects.photograph import photograph
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.export.errors import ProofError
from rdsr.models.registry import load_model
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.host import cpu
from rdsr.runtime.pictures.arrays import to_graph
from rdsr.tests.benchmarks.latency.synthetic import NOTE, sleepers, synthetic
from rdsr.tests.conftest import random_network, write_checkpoint


def measure(jobs: list[Job], **options: Any) -> dict[str, dict[str, Any]]:
    report = measure_latency(jobs, Options(**({"budget": 1.0, "rounds": 1, "peaks": False} | options)))
    return {row["model"]: row for row in report["rows"]}


def test_a_model_that_sleeps_a_known_time_takes_that_time() -> None:
    begun = time.perf_counter()
    row = measure(sleepers(30), budget=10.0)["sleep-30"]
    took = time.perf_counter() - begun - row["runs"] * row["min_ms"] / 1e3
    assert row["error"] is None
    assert 30 <= row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    assert row["min_ms"] < 150, "it does not include the start of the process: the best of a hundred sleeps is not that late"
    assert row["min_ms"] < row["cold_start_ms"], "this one includes it"
    assert row["cold_start_ms"] < 1e3 * took, (
        "it is no longer than the process existed, whatever start time the system gives"
    )
    assert row["runs"] >= 2


def test_a_model_that_allocates_a_known_amount_shows_it() -> None:
    rows = measure([synthetic("grow-1", "grower"), synthetic("grow-300", "grower")])
    assert rows["grow-300"]["peak_rss_mb"] - rows["grow-1"]["peak_rss_mb"] == pytest.approx(299, rel=0.25)


def test_a_row_that_fails_says_why_and_the_rest_go_on() -> None:
    rows = measure([synthetic("broken", "failing"), *sleepers(5)])
    assert "lost its way" in rows["broken"]["error"]
    assert rows["broken"]["p50_ms"] is None
    assert rows["sleep-5"]["p50_ms"] >= 5


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, partial = tmp_path / "note", tmp_path / "latency.partial.json"
    monkeypatch.setenv(NOTE, str(note))
    jobs = sleepers(1, 2)
    steps: list[str] = []

    def cut_off(step: str) -> None:
        steps.append(step)
        if "sleep-2" in step:
            raise KeyboardInterrupt

    options = Options(budget=30, rounds=1, peaks=False)
    with pytest.raises(KeyboardInterrupt):
        measure_latency(jobs, options, partial=partial, progress=cut_off)
    assert len(note.read_text().splitlines()) == 1
    report = measure_latency(jobs, options, partial=partial)
    assert len(note.read_text().splitlines()) == 2, "the first row was not run again"
    assert all(row["p50_ms"] for row in report["rows"])
    assert partial.is_file(), "it stays until the caller has stored the report"
    measure_latency(jobs, options, partial=partial)
    assert len(note.read_text().splitlines()) == 2
    measure_latency(jobs, dataclasses.replace(options, isa_cap="AVX2"), partial=partial)
    assert len(note.read_text().splitlines()) == 4, "samples of another run are not taken for samples of this one"
    partial.write_text("damaged")
    measure_latency(jobs, options, partial=partial)
    assert len(note.read_text().splitlines()) == 6


def test_exponents_are_those_of_the_points() -> None:
    rows = [
        {"model": "m", "backend": "b", "precision": "fp32", "size": [s, s], "threads": 1, "batch": 1, "p50_ms": 3.0 * s**2}
        for s in (64, 128, 512)
    ]
    assert fit_exponents(rows, "size")[0]["exponent"] == fit_exponents(rows, "size")[0]["steepest"] == pytest.approx(1.0)
    step = [*rows[:2], rows[2] | {"p50_ms": 2 * rows[2]["p50_ms"]}]
    assert fit_exponents(step, "size")[0]["steepest"] == pytest.approx(1.25), "32 times as long for 16 times the pixels"
    assert fit_exponents(rows[:1], "size")[0]["exponent"] is None
    threads = [row | {"threads": count, "p50_ms": 8.0 / count} for row, count in zip(rows, (1, 2, 4), strict=True)]
    assert fit_exponents(threads, "threads")[0]["exponent"] == pytest.approx(-1.0)


def test_unknown_names_and_empty_rows_are_refused() -> None:
    bicubic = find_subject("bicubic")
    everything: dict[str, Any] = {"sizes": [(8, 8)], "batches": [1], "threads": [1]}
    with pytest.raises(BenchmarkError, match="tensorrt"):
        jobs_of([bicubic], backends=["tensorrt"], precisions=[], **everything)
    with pytest.raises(BenchmarkError, match="none of what was asked"):
        jobs_of([sleepers(1)[0].subject], backends=["openvino"], precisions=[], **everything)
    with pytest.raises(BenchmarkError, match="neither a checkpoint"):
        find_subject("rdsr-huge")


# -- other people's graphs ----------------------------------------------------------------------------------------------


def peer(
    path: Path,
    *,
    full_scale: float = 1.0,
    size: tuple[Any, Any] = ("h", "w"),
    channels: int = 3,
    batch: Any = "n",
    scale: int = 2,
) -> Path:
    """Write a graph that enlarges NCHW floats by repetition. At 0 … 255 it subtracts and adds a mean, as networks do."""
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    constants = {"scales": np.array([1, 1, scale, scale], np.float32)}
    if full_scale != 1.0:
        constants["mean"] = np.full((1, 3, 1, 1), 110, np.float32)
        constants["half"] = np.float32(0.5)
        nodes = [
            helper.make_node("Sub", ["x", "mean"], ["a"]),
            helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
            helper.make_node("Add", ["b", "mean"], ["c"]),
            helper.make_node("Clip", ["c", "half"], ["y"]),
        ]
    height, width = size
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, height, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("full_scale", [1.0, 255.0])
def test_the_range_of_a_peers_floats_is_found_out(full_scale: float, tmp_path: Path) -> None:
    candidate = onnx_file(peer(tmp_path / "peer.onnx", full_scale=full_scale), backend="auto", threads=1)
    assert candidate.scale == 2
    picture = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    assert np.abs(candidate.run(picture).astype(int) - picture.repeat(2, axis=0).repeat(2, axis=1)).max() <= 1


def test_a_peer_of_one_size_is_run_at_that_size_and_refused_at_others(tmp_path: Path) -> None:
    path = peer(tmp_path / "peer.onnx", size=(24, 32))
    model = OnnxModel(path, backend="onnxruntime", precision="fp32", threads=1)
    assert model(np.zeros((1, 24, 32, 3), np.uint8)).shape == (1, 48, 64, 3)
    with pytest.raises(BenchmarkError, match=r"24×32 alone, not 8×8: ask for --size 24x32"):
        model(np.zeros((1, 8, 8, 3), np.uint8))
    assert onnx_file(path, backend="openvino", threads=1).scale == 2
    rows = measure([Job(find_subject(str(path)), "openvino", "fp32", size, 1, 1) for size in ((24, 32),)])
    assert rows[str(path)]["p50_ms"] > 0
    failed = measure([Job(find_subject(str(path)), "onnxruntime", "fp32", (8, 8), 1, 1)])
    assert "24×32 alone" in failed[str(path)]["error"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_batch_is_what_its_pictures_are(backend: Any, tmp_path: Path) -> None:
    model = OnnxModel(peer(tmp_path / "peer.onnx"), backend=backend, precision="fp32", threads=1)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), dtype=np.uint8)
    assert np.array_equal(model(pictures), np.concatenate([model(picture[None]) for picture in pictures]))
    fixed = OnnxModel(peer(tmp_path / "fixed.onnx", batch=3), backend=backend, precision="fp32", threads=1)
    assert np.array_equal(fixed(pictures), model(pictures))
    with pytest.raises(BenchmarkError, match="takes 3 pictures at once, not 1"):
        fixed(pictures[:1])


def test_an_export_that_failed_is_a_row_that_says_so() -> None:
    failure = "its export failed the proof (int8 on openvino)"
    subject = dataclasses.replace(sleepers(1)[0].subject, kind="network", failure=failure)
    options: dict[str, Any] = {"sizes": [(8, 8)], "batches": [1], "threads": [1], "precisions": ["fp32", "int8"]}
    jobs = jobs_of([subject, find_subject("bicubic")], backends=["openvino"], **options)
    report = measure_latency(jobs, Options(budget=1.0, rounds=1, peaks=False))
    shown = [(row["backend"], row["precision"], row["error"]) for row in report["rows"]]
    assert shown == [("openvino", "fp32", failure), ("openvino", "int8", failure), ("opencv", "uint8", None)]


def test_an_export_that_raises_is_a_row_that_says_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(options: object, progress: object) -> None:
        raise ProofError("an engine runs a convolution in float")

    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("rdsr.export.exporter.export_checkpoint", failing)
    assert find_subject(str(checkpoint)).failure == "its export failed: an engine runs a convolution in float"


def test_two_checkpoints_of_one_file_name_keep_their_exports(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training run writes ema.safetensors."""
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    runs = [tmp_path / "runs" / name / "ema.safetensors" for name in "12"]
    for path in runs:
        path.parent.mkdir(parents=True)
    write_checkpoint(runs[0], random_network(seed=1))
    write_checkpoint(runs[1], random_network(seed=2))
    first, second = (find_subject(str(path), precisions=["fp32"]) for path in runs)
    assert Bundle(first.path).manifest.checkpoint != Bundle(second.path).manifest.checkpoint
    write_checkpoint(runs[0], random_network(seed=3))
    assert find_subject(str(runs[0]), precisions=["fp32"]).path != first.path
    assert not Path(str(first.path)).exists(), "what is out of date is removed"
    assert Path(str(second.path)).is_dir()


@pytest.mark.parametrize(
    ("cap", "precisions"), [(None, ["fp32", "bf16"]), ("avx512_core_vnni", ["fp32"]), ("AVX512_CORE_BF16", ["fp32", "bf16"])]
)
def test_a_cap_leaves_out_what_it_forbids(
    cap: str | None, precisions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}))
    subject = find_subject(str(peer(tmp_path / "peer.onnx")))
    options: dict[str, Any] = {"sizes": [(8, 8)], "batches": [1], "threads": [1], "precisions": []}
    jobs = jobs_of([subject], backends=["openvino"], isa_cap=cap, **options)
    assert [job.precision for job in jobs] == precisions


def test_what_takes_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"needs one input of N×H×W×3 uint8 or N×3×H×W float32, has x: f32"):
        read_input(peer(tmp_path / "grey.onnx", channels=1))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(BenchmarkError, match=r"junk\.onnx cannot be benchmarked"):
        read_input(tmp_path / "junk.onnx")
    with pytest.raises(BenchmarkError, match="no such file"):
        find_subject(str(tmp_path / "missing.onnx"))


def test_a_peer_of_random_weights_has_no_quality(tmp_path: Path) -> None:
    path = peer(tmp_path / "noise.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("RandomNormalLike", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    onnx.save(model, path)
    with pytest.raises(BenchmarkError, match="nothing like the picture"):
        onnx_file(path, backend="onnxruntime", threads=1)


# -- what a row is compared with --------------------------------------------------------------------------------------


def convolution(kernel: tuple[int, ...], group: int) -> bytes:
    """Build a graph of one convolution of `x`, padded to the same size."""
    shape = [1, kernel[1] * group, "h", "w"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["y"], kernel_shape=kernel[2:], pads=[1] * 4, group=group)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, kernel[0], "h", "w"])],
        [numpy_helper.from_array(np.ones(kernel, np.float32), "k")],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def test_operations_counted_from_a_graph_are_those_of_its_convolutions(exported: Path, checkpoint: Path) -> None:
    gflops, _ = graph_facts(convolution_stack(8, 3, int8=False), {"x": (1, 8, 10, 20)})
    assert gflops == pytest.approx(2 * 3 * 9 * 8 * 8 * 200 / 1e9)
    assert graph_facts(convolution((6, 2, 3, 3), group=3), {"x": (1, 6, 10, 20)})[0] == pytest.approx(
        2 * 6 * 2 * 9 * 200 / 1e9
    )
    gflops, weights = graph_facts(matmul(64), {"x": (64, 64)})
    assert (gflops, weights) == pytest.approx((2 * 64**3 / 1e9, 64 * 64 / 1e6))
    bundle = Bundle(exported)
    network = load_model(checkpoint).network
    counted = [
        graph_facts(bundle.graph("encoder"), {"lr": (1, 3, 64, 64)})[0],
        graph_facts(bundle.graph("decoder"), {"lr": (1, 3, 64, 64)})[0],
    ]
    assert sum(counted) == pytest.approx(convolution_gflops(network, 64, 64), rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_peaks_are_numbers_of_this_machine(precision: str) -> None:
    peak = measure_peak("onnxruntime", precision, 1)
    assert peak["convolution_gflops"] > 0
    assert peak["matmul_gflops"] > 0
    assert math.isfinite(peak["convolution_gflops"] + peak["matmul_gflops"])


def test_a_peers_conversion_stands_beside_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own call is timed, so that int8, whose graphs convert by themselves, is not flattered."""
    path = peer(tmp_path / "peer.onnx", scale=4)
    model = OnnxModel(path, backend="onnxruntime", precision="fp32", threads=1)
    pictures = photograph(40, 52)[None]
    call, convert = model.apart(pictures)
    converted = []
    monkeypatch.setattr(onnx_model, "to_graph", lambda picture: converted.append(1) or to_graph(picture))
    call()
    assert not converted
    convert()
    assert converted == [1]
    assert np.array_equal(model(pictures)[0], pictures[0].repeat(4, axis=0).repeat(4, axis=1))
    (row,) = measure([Job(find_subject(str(path)), "onnxruntime", "fp32", (40, 52), 1, 1)]).values()
    assert row["p50_ms"] > 0
    assert row["conversion_ms"] > 0
    (row,) = measure([Job(find_subject("bicubic"), "opencv", "uint8", (40, 52), 1, 1)]).values()
    assert row["conversion_ms"] is None


def test_a_photograph_has_any_size() -> None:
    small, large = photograph(20, 30), photograph(400, 1000)
    assert (small.shape, large.shape, large.dtype) == ((20, 30, 3), (400, 1000, 3), np.uint8)
    assert np.array_equal(large[:20, :30], small)
    assert np.array_equal(large[:, 234:300], large[:, 233:167:-1]), "mirrored at its edge"


def test_a_graph_that_overflows_warns_nobody(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Which range a graph takes is tried out, and floats of the wrong one end in infinity or what is not a number."""
    # Above 100, what is added is infinity minus infinity; below, nothing.
    nodes = [helper.make_node("Sub", ["x", "hundred"], ["a"]), helper.make_node("Exp", ["a"], ["b"])]
    nodes += [helper.make_node("Sub", ["b", "b"], ["c"]), helper.make_node("Add", ["x", "c"], ["d"])]
    nodes += [helper.make_node("Resize", ["d", "", "scales"], ["y"], mode="nearest")]
    constants = {"hundred": np.float32(100), "scales": np.array([1, 1, 2, 2], np.float32)}
    value = helper.make_tensor_value_info
    ports = [value(name, TensorProto.FLOAT, ["n", 3, f"{name}h", f"{name}w"]) for name in "xy"]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    path = tmp_path / "overflows.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert onnx_file(path, backend="onnxruntime", threads=1).scale == 2
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_tables_cut_no_names_when_captured(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("a-very-long-name-" * 8)
    shutil.copytree(exported, folder / "b")
    arguments = ["bench", "quality", "--model", str(folder / "b"), "--precision", "fp32", "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--dataset", str(SAMPLES)])
    assert done.exit_code == 0, done.output
    assert str(folder / "b") in done.stdout


def test_quality_writes_each_row_as_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def failing(candidate: Any, dataset: Any, against: Any = None) -> Any:
        if (tmp_path / "quality.json").exists():
            seen.append(json.loads((tmp_path / "quality.json").read_text())["rows"])
            raise KeyboardInterrupt
        return right(candidate, dataset, against)

    right = quality_measure.measure
    monkeypatch.setattr(quality_measure, "measure", failing)
    arguments = ["bench", "quality", "--dataset", str(SAMPLES), "--dataset", str(SAMPLES), "--model", "bicubic"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path)])
    assert done.exit_code == 130
    assert [[row["model"] for row in rows] for rows in seen] == [["bicubic"]]
    assert len(json.loads((tmp_path / "quality.json").read_text())["rows"]) == 1
    assert (tmp_path / "quality.md").is_file()


def test_the_command_gives_the_contracts_keys(exported: Path, tmp_path: Path) -> None:
    arguments = ["bench", "latency", "--model", str(exported), "--model", "bicubic", "--precision", "fp32"]
    arguments += ["--size", "16x24"]
    arguments += ["--threads", "1", "--budget", "1", "--rounds", "1", "--no-peaks", "-o", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {"host", "threads", "rows", "baseline"} <= set(report)
    assert report["threads"] == 1
    ways = {(row["model"], row["backend"], row["precision"]) for row in report["rows"]}
    assert ways == {
        (str(exported), "onnxruntime", "fp32"),
        (str(exported), "openvino", "fp32"),
        ("bicubic", "opencv", "uint8"),
    }
    keys = {"model", "backend", "precision", "size", "runs", "p50_ms", "p90_ms", "p99_ms", "min_ms", "cold_start_ms"}
    keys |= {"peak_rss_mb", "gflops", "params_m", "speedup_vs_baseline"}
    for row in report["rows"]:
        assert keys <= set(row)
        assert row["error"] is None
        assert row["size"] == [16, 24]
    assert json.loads((tmp_path / "latency.json").read_text()) == report
    assert (tmp_path / "latency.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sweep", "colour"], "'colour' is not one of 'size', 'threads', 'batch'"),
        (["--isa-cap", "SSE9"], "no instruction set is called 'SSE9'"),
        (["--sweep", "size", "--threads", "1", "--threads", "2"], "wants one value of everything else"),
        (["--model", "bicubic", "--backend", "cuda"], "'cuda' is not one of 'torch-eager'"),
        (["--model", "nothing.onnx"], "there is no such file"),
        (["--model", "bicubic", "--size", "12"], "a size is HEIGHTxWIDTH"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["bench", "latency", *arguments])
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.replace("│", " ").split())


def test_quality_takes_named_models_and_several_precisions(exported: Path, tmp_path: Path) -> None:
    arguments = ["bench", "quality", "--model", str(exported), "--model", "bicubic", "--precision", "fp32,int8"]
    done = CliRunner().invoke(app, [*arguments, "--threads", "1", "--dataset", str(SAMPLES), "-o", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(row["model"], row["precision"], row["weights"]) for row in rows] == [
        (str(exported), "fp32", "trained"),
        (str(exported), "int8", "trained"),
        ("bicubic", "uint8", "none"),
    ]


def test_quality_goes_on_beside_what_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    fixed = peer(tmp_path / "fixed.onnx", size=(24, 24), scale=4)
    options = ["--model", "imdn", "--model", "bicubic", "--onnx", str(fixed), "--dataset", str(SAMPLES)]
    done = CliRunner().invoke(app, ["bench", "quality", *options, "--json"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert [row["model"] for row in report["rows"]] == ["bicubic"]
    assert "imdn cannot be measured: it stands for a published network with random weights" in report["failures"][0]
    assert "24×24 alone" in report["failures"][1]


def test_a_report_is_made_of_what_the_commands_left(exported: Path, tmp_path: Path) -> None:
    common = ["--threads", "1", "-o", str(tmp_path)]
    latency = ["latency", "--model", str(exported), "--size", "16x16", "--budget", "1", "--rounds", "1", "--no-peaks"]
    quality = ["quality", "--bundle", str(exported), "--dataset", str(SAMPLES)]
    for arguments in (latency, quality):
        assert CliRunner().invoke(app, ["bench", *arguments, *common]).exit_code == 0
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    done = CliRunner().invoke(app, ["bench", "report", "-o", str(tmp_path), "--readme", str(readme), "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert "small.bundle" in Path(made["html"]).read_text()
    assert Path(made["markdown"]).is_file()
    assert all(Path(plot).is_file() for plot in made["plots"])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "small.bundle" in text
    assert "old" not in text
    assert CliRunner().invoke(app, ["bench", "report", "-o", str(tmp_path / "empty")]).exit_code == 2
