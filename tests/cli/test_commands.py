"""The command line: exit codes, one sentence, one JSON object, nothing left behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rdsr.benchmarks.quality.datasets import BICUBIC
from rdsr.benchmarks.subjects.find import Subject
from rdsr.cli.options import Degradation
from rdsr.export.build_proof import SAMPLES
from rdsr.models.degradation import TEST_DEGRADATIONS
from rdsr.runtime.host import cpu
from rdsr.tests.cli.running import command, interrupted, listing, refused, run, write
from rdsr.tests.conftest import rewrite_manifest


@pytest.mark.parametrize(
    "names",
    [
        [],
        *([name] for name in ("export", "verify", "info", "upscale")),
        *(["train", name] for name in ("stage1", "stage2", "qat", "plot")),
        *(["bench", name] for name in ("quality", "crops", "prior", "candidates", "int8")),
    ],
)
def test_every_command_has_help_with_an_example(names: list[str]) -> None:
    result = run(*names, "--help")
    assert result.exit_code == 0
    if names:
        assert f"Example: rdsr {' '.join(names)}" in " ".join(result.stdout.split())


# -- export, verify, info


def test_the_degradations_that_can_be_named_are_those_that_there_are() -> None:
    assert {degradation.value for degradation in Degradation} == {BICUBIC, *TEST_DEGRADATIONS}


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


def test_info_shows_no_control_characters_of_a_bundle(bundle: Path) -> None:
    """They could do anything to a terminal, or turn the direction of writing."""
    rewrite_manifest(bundle, arch="net\x1b[31m", checkpoint={"sha256": "0" * 64, "notes": {"by": "a\u202eb\x07"}})
    shown = run("info", bundle).stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert r"net\x1b[31m" in shown


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


def test_perfect_scores_are_still_json(exported: Path, tmp_path: Path) -> None:
    for folder, side in (("HR", 32), ("LRx4", 8)):
        (tmp_path / "black" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "black" / folder / "a.png"), np.zeros((side, side, 3), np.uint8))
    result = run("bench", "quality", "--dataset", tmp_path / "black", "--bundle", exported, "--bicubic", "--json")
    rows = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["rows"]
    assert rows[1]["psnr_y"] is None


def test_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    line = command("export", checkpoint, "-o", tmp_path / "b")
    assert interrupted(line, lambda: any(tmp_path.glob(".*")), signal.SIGINT).returncode == 130
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
    line = [sys.executable, "-c", script, "export", "x.pth", "-o", str(tmp_path / "b")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert "rdsr[export]" in done.stderr
    assert "Traceback" not in done.stderr
