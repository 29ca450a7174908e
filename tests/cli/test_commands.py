"""The command line: exit codes, one sentence, one JSON object, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from rdsr.benchmarks.subjects.find import Subject
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.runtime.host import cpu

RNG = np.random.default_rng(0)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(result: Result, *words: str, code: int = 2) -> None:
    """Exit code, one sentence on stderr that holds the words, no traceback."""
    assert result.exit_code == code, result.output
    sentences = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(sentences) == 1, result.stderr
    assert sentences[0].startswith("rdsr: ")
    for word in words:
        assert word in sentences[0]
    assert "Traceback" not in result.output


def write(path: Path, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    return path


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([name] for name in ("export", "verify", "info", "upscale")),
        *(["train", name] for name in ("stage1", "stage2", "qat", "plot")),
        *(["bench", name] for name in ("quality", "crops", "prior", "candidates", "int8")),
    ],
)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    if command:
        assert f"Example: rdsr {' '.join(command)}" in " ".join(result.stdout.split())


# -- export, verify, info


def test_export_verify_info_json(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.bundle"
    precisions = "fp32,bf16" if cpu.has_bf16() else "fp32"
    exported = json.loads(run("export", checkpoint, "-o", output, "--precision", precisions, "--json").stdout)
    verified = json.loads(run("verify", output, "--json").stdout)
    for report in (exported, verified):
        assert {"bundle", "arch", "scale", "params", "steps", "variants", "fusion", "passed"} <= set(report)
        assert report["passed"] is True
        assert report["bundle"] == str(output)
        for row in report["variants"]:
            assert {"precision", "engine", "graph", "max_abs_err", "psnr_drop_db", "sizes", "passed"} <= set(row)
    info = json.loads(run("info", output, "--json").stdout)
    assert (info["kind"], info["scale"], info["here"]["threads"]) == ("bundle", 4, cpu.available_threads())
    of_checkpoint = json.loads(run("info", checkpoint, "--json").stdout)
    assert (of_checkpoint["kind"], of_checkpoint["params"]) == ("checkpoint", exported["params"])


def test_export_tables_for_people(checkpoint: Path, tmp_path: Path) -> None:
    result = run("export", checkpoint, "-o", tmp_path / "b", "--precision", "fp32")
    assert result.exit_code == 0
    assert re.search(r"fp32\s*│\s*onnxruntime\s*│\s*decoder\.onnx.*passed", result.stdout)
    assert "fusion: 4 blocks" in result.stdout


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, ["No such file"]),
        (lambda p: p.touch(), ["empty"]),
        (
            lambda p: p.write_text("not a checkpoint at all, only words"),
            ["neither a safetensors file nor a PyTorch checkpoint"],
        ),
        (lambda p: torch.save({"x": torch.zeros(2, 2)}, p), ["match no known architecture"]),
        (lambda p: torch.save({"params": 3}, p), ["holds no state dict"]),
        (lambda p: (torch.save(torch.zeros(3000), p), p.write_bytes(p.read_bytes()[:-900])), ["damaged or truncated"]),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_checkpoints(tmp_path: Path, make: object, words: list[str], as_json: bool) -> None:
    path = tmp_path / "net.pth"
    make(path)
    before = listing(tmp_path)
    result = run("export", path, "-o", tmp_path / "bundle", *(["--json"] if as_json else []))
    refused(result, *words, str(path))
    if as_json:
        assert json.loads(result.stdout)["exit_code"] == 2
    else:
        assert result.stdout == ""
    assert listing(tmp_path) == before


def test_export_refuses_outputs(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    refused(run("export", checkpoint, "-o", bundle), "exists already", "--force")
    refused(run("export", checkpoint, "-o", "/proc/bundle"), "/proc")
    refused(run("export", checkpoint, "-o", tmp_path / "b", "--precision", "fp32,int3"), "'int3'")
    assert run("export", checkpoint, "-o", tmp_path / "b", "--steps", "0").exit_code == 2
    assert listing(tmp_path) == [bundle.name]


def test_export_says_which_variant_failed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdsr.runtime import verify

    monkeypatch.setattr(verify._Tally, "passed", lambda self, precision: False)
    refused(run("export", checkpoint, "-o", tmp_path / "b", "--precision", "fp32", "--json"), "fp32 on openvino", code=1)
    assert listing(tmp_path) == []


def test_verify_of_damage(bundle: Path, tmp_path: Path) -> None:
    refused(run("verify", tmp_path / "none"), "not found")
    (bundle / "proof.json").write_bytes((bundle / "proof.json").read_bytes()[:-1])
    refused(run("verify", bundle), "proof.json")
    assert json.loads(run("verify", bundle, "--json").stdout)["exit_code"] == 2
    refused(run("info", bundle.parent / "nothing"), "No such file")


# -- upscale


def test_upscale_one_file(exported: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.png", (7, 9))
    result = run("upscale", source, "-o", tmp_path / "out.webp", "--bundle", exported, "--json", "--threads", 1)
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert set(report) == {"outputs", "failed", "backend", "precision", "threads"}
    (entry,) = report["outputs"]
    assert entry["input"] == str(source)
    assert entry["output"] == str(tmp_path / "out.webp")
    assert (entry["size_in"], entry["size_out"]) == ([7, 9], [28, 36])
    assert entry["ms"] > 0
    assert report["threads"] == 1
    assert cv2.imread(str(tmp_path / "out.webp")).shape == (28, 36, 3)


def test_upscale_folder_with_one_bad_picture(exported: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "d.tif"):
        write(tmp_path / "in" / name)
    (tmp_path / "in" / "c.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:50])
    (tmp_path / "in" / "notes.txt").write_text("not a picture, and not meant as one")
    result = run("upscale", tmp_path / "in", "-o", tmp_path / "out", "--bundle", exported, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [Path(f["input"]).name for f in report["failed"]] == ["c.png"]
    assert "c.png" in report["failed"][0]["error"]
    assert listing(tmp_path / "out") == ["a.png", "b.jpg", "d.tif"]


def test_upscale_glob_and_several_files(exported: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.jpg"):
        write(tmp_path / "in" / name)
    assert run("upscale", tmp_path / "in" / "*.png", "-o", tmp_path / "g", "--bundle", exported).exit_code == 0
    assert listing(tmp_path / "g") == ["a.png", "b.png"]
    two = [tmp_path / "in" / name for name in ("a.png", "c.jpg")]
    assert run("upscale", *two, "-o", tmp_path / "two", "--bundle", exported).exit_code == 0
    assert listing(tmp_path / "two") == ["a.png", "c.jpg"]


@pytest.mark.parametrize("size", [(1, 1), (3, 5000)])
def test_upscale_extreme_sizes(exported: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "in.png", size)
    assert run("upscale", tmp_path / "in.png", "-o", tmp_path / "out.png", "--bundle", exported).exit_code == 0
    assert cv2.imread(str(tmp_path / "out.png")).shape == (size[0] * 4, size[1] * 4, 3)


def test_upscale_refusals_leave_nothing(exported: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "in" / "a.png")
    write(tmp_path / "other" / "a.png")
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "bare").mkdir()
    before = sorted(tmp_path.rglob("*"))
    b = ("--bundle", exported)
    out = tmp_path / "out.png"
    refused(run("upscale", tmp_path / "none.png", "-o", out, *b), "none.png", "No such file")
    for bad in ("empty.png", "cut.png"):
        refused(run("upscale", tmp_path / "in" / bad, "-o", out, *b), bad)
    refused(run("upscale", tmp_path / "bare", "-o", out, *b), "holds no pictures")
    refused(run("upscale", tmp_path / "*.xyz", "-o", out, *b), "no picture matches")
    refused(run("upscale", good, "-o", tmp_path / "out.gif", *b), "suffix")
    refused(run("upscale", good, "-o", good, *b), "one of the inputs")
    refused(run("upscale", tmp_path / "in", "-o", tmp_path / "in", *b), "one of the inputs")
    refused(run("upscale", good, tmp_path / "other" / "a.png", "-o", tmp_path / "x", *b), "would both become")
    refused(run("upscale", tmp_path / "in", "-o", out, *b), "folder as output")
    refused(run("upscale", good, "-o", good / "x", *b), "not a folder")
    unknown = run("upscale", good, "-o", out, *b, "--precision", "fp16")
    assert unknown.exit_code == 2
    assert "'fp16' is not one of 'auto', 'fp32', 'bf16', 'int8'" in " ".join(unknown.stderr.replace("│", " ").split())
    refused(
        run("upscale", good, "-o", out, *b, "--backend", "onnxruntime", "--precision", "bf16"), "onnxruntime has no bf16"
    )
    refused(run("upscale", good, "-o", out, "--bundle", tmp_path), "manifest.json")
    assert run("upscale", good, "-o", out, *b, "--threads", "0").exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_names_with_brackets_are_printed_as_they_are(exported: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "IMG [final][red].png")
    result = run("upscale", source, "-o", tmp_path / "out [x]", "--bundle", exported)
    assert result.exit_code == 0, result.output
    assert "out [x]/IMG [final][red].png" in result.stdout


def test_engine_failure_on_one_picture_is_not_the_users_fault(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rdsr.runtime import EngineError
    from rdsr.runtime.pipelines import Pipeline

    def fail(*_: object, **options: object) -> None:
        raise EngineError("out of order")

    monkeypatch.setattr(Pipeline, "picture", fail)
    source = write(tmp_path / "a.png")
    refused(run("upscale", source, "-o", tmp_path / "o.png", "--bundle", exported), "a.png", "out of order", code=1)


def test_perfect_scores_are_still_json(exported: Path, tmp_path: Path) -> None:
    for folder, side in (("HR", 32), ("LRx4", 8)):
        (tmp_path / "black" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "black" / folder / "a.png"), np.zeros((side, side, 3), np.uint8))
    result = run("bench", "quality", "--dataset", tmp_path / "black", "--bundle", exported, "--bicubic", "--json")
    rows = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["rows"]
    assert rows[1]["psnr_y"] is None


def interrupted(command: list[str], folder: Path, pattern: str, stop: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run a command, send it a signal once a file of that name exists, and return how it ended."""

    def as_from_a_terminal() -> None:
        """Undo that background jobs of a shell, like these tests, ignore SIGINT: children inherit it."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal) as process:
        try:
            deadline = time.monotonic() + 300
            while not any(folder.glob(pattern)):
                assert process.poll() is None, "it has ended by itself"
                assert time.monotonic() < deadline, f"{pattern} never came"
                time.sleep(0.005)
            process.send_signal(stop)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, stderr=errors)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_no_partial_file(exported: Path, tmp_path: Path, stop: signal.Signals) -> None:
    write(tmp_path / "in" / "0.png", (4, 4))
    for index in range(1, 40):
        write(tmp_path / "in" / f"{index}.png", (300, 300))
    command = [sys.executable, "-m", "rdsr.cli", "upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    done = interrupted([*command, "--bundle", str(exported), "--threads", "1"], tmp_path / "out", "*.png", stop)
    assert done.returncode == (130 if stop == signal.SIGINT else 143)
    assert "Traceback" not in done.stderr
    outputs = listing(tmp_path / "out")
    assert 0 < len(outputs) < 40, "the signal has to come in the middle"
    for name in outputs:
        assert cv2.imread(str(tmp_path / "out" / name)) is not None, f"{name} is not whole"


def test_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rdsr.cli", "export", str(checkpoint), "-o", str(tmp_path / "b")]
    assert interrupted(command, tmp_path, ".*", signal.SIGINT).returncode == 130
    assert listing(tmp_path) == []


# -- bench quality


def test_bench_quality_goes_on_where_one_export_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, progress: object) -> Subject:
        failure = None if name == "bicubic" else "its export failed the proof (int8 on openvino)"
        return Subject(name, name, "none", 4, None, failure=failure)

    monkeypatch.setattr("rdsr.benchmarks.subjects.find.find_subject", found)
    result = run("bench", "quality", "--dataset", SAMPLES, "--model", "mine", "--model", "bicubic", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [row["model"] for row in report["rows"]] == ["bicubic"]
    assert report["failures"] == ["mine cannot be measured: its export failed the proof (int8 on openvino)"]
    refused(run("bench", "quality", "--dataset", SAMPLES, "--model", "mine"), "mine cannot be measured", code=1)


def test_bench_quality_json_for_one_and_many(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    one = json.loads(
        run("bench", "quality", "--dataset", SAMPLES, "--bundle", exported, "--precision", "fp32", "--json").stdout
    )
    keys = {"dataset", "images", "scale", "model", "backend", "precision", "psnr_y", "ssim_y", "psnr_rgb"}
    assert keys <= set(one)
    assert (one["dataset"], one["images"], one["scale"], one["precision"]) == ("samples", 3, 4, "fp32")
    arguments = ["--dataset", SAMPLES, "--bundle", exported, "--precision", "fp32", "--checkpoint", checkpoint, "--bicubic"]
    result = run("bench", "quality", *arguments, "--onnx", exported / "model.onnx", "-o", tmp_path / "report", "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [r["backend"] for r in rows] == ["onnxruntime", "onnxruntime", "torch-eager", "opencv"]
    assert len({round(r["psnr_y"], 3) for r in rows[:3]}) == 1, "bundle, single graph and torch agree"
    assert json.loads((tmp_path / "report" / "quality.json").read_text())["rows"] == rows
    assert "| samples | 3 |" in (tmp_path / "report" / "quality.md").read_text()


def test_bench_quality_refusals(exported: Path, tmp_path: Path) -> None:
    write(tmp_path / "set" / "HR" / "a.png", (32, 32))
    b = ("--bundle", exported)
    refused(run("bench", "quality", "--dataset", tmp_path / "none", *b), "does not exist")
    refused(run("bench", "quality", "--dataset", tmp_path, *b), "no data set")
    refused(run("bench", "quality", "--dataset", tmp_path / "set", *b), "LRx4")
    (tmp_path / "set" / "LRx4").mkdir()
    refused(run("bench", "quality", "--dataset", tmp_path / "set", *b), "lacks LRx4/a.png")
    write(tmp_path / "set" / "LRx4" / "a.png", (7, 8))
    refused(run("bench", "quality", "--dataset", tmp_path / "set", *b), "not 1/4")
    (tmp_path / "bad.onnx").write_text("no graph")
    refused(run("bench", "quality", "--dataset", SAMPLES, "--onnx", tmp_path / "bad.onnx"), "bad.onnx")


def test_commands_that_need_torch_say_so_without_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['rdsr', *sys.argv[1:]]; from rdsr.cli.main import main; main()"
    )
    command = [sys.executable, "-c", script, "export", "x.pth", "-o", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "rdsr[export]" in done.stderr
    assert "Traceback" not in done.stderr
