"""Candidates: one budget for all, finished runs are not repeated, untrained networks are timed, bad plans are refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.training import candidates
from rdsr.benchmarks.training.candidates import read_plan
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.models.registry import load_model
from rdsr.models.repd import RepD
from rdsr.models.training.config import TrainConfig
from rdsr.models.training.errors import TrainingError
from rdsr.runtime.timing import interleaved_medians
from rdsr.tests.conftest import ROOT

PLAN = """
preset = "tiny"
iterations = 2
batch = 2
patch_sizes = [8]
validate_every = 2
[candidates.a]
width = 8
depth = 2
modulation_depths = [0]
[candidates.alone]
width = 8
depth = 2
modulation_depths = []
[untrained.b]
width = 12
"""


def test_candidates_are_trained_once_and_all_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "interleaved_medians", lambda calls, **_: interleaved_medians(calls, rounds=1))
    (tmp_path / "plan.toml").write_text(PLAN)
    arguments = [
        "bench",
        "candidates",
        "--config",
        str(tmp_path / "plan.toml"),
        "--validation",
        str(SAMPLES),
        "--threads",
        "2",
    ]
    arguments += ["--data", str(SAMPLES), "-o", str(tmp_path / "out"), "--json"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    rows = {row["name"]: row for row in json.loads(first.stdout)["rows"]}
    assert rows["a"]["psnr_y"] > 15
    assert rows["b"]["psnr_y"] is None
    assert rows["b"]["gflops"] > rows["a"]["gflops"]
    assert isinstance(load_model(tmp_path / "out" / "alone" / "network.safetensors").network, RepD), "nothing reads z"
    assert rows["alone"]["params_m"] < rows["a"]["params_m"]
    for row in rows.values():
        assert {"openvino fp32", "onnxruntime fp32"} <= set(row["latency_ms"])
        assert all(ms > 0 for ms in row["latency_ms"].values())
    assert "| a |" in (tmp_path / "out" / "candidates.md").read_text()
    assert cv2.imread(str(tmp_path / "out" / "candidates.png")) is not None
    state = (tmp_path / "out" / "a" / "state.pt").stat().st_mtime_ns
    (tmp_path / "plan.toml").write_text(PLAN.partition("[candidates.alone]")[0])
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "out" / "a" / "state.pt").stat().st_mtime_ns == state, "a finished run is not repeated"


def test_shipped_plan_fits() -> None:
    plan = read_plan(ROOT / "benchmarks" / "candidates.toml")
    for sizes in (plan.candidates | plan.untrained).values():
        TrainConfig(**plan.training, stage="stage1", network=sizes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no candidates"),
        ("stage = 'stage2'", "must not set stage"),
        ("candidates = 3", "one table a network"),
        ("[candidates", "not valid TOML"),
        ("[candidates.a]\n[untrained.a]", "has a among"),
        ("[candidates.'../a']", "cannot name a run folder"),
    ],
)
def test_bad_plans_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises((BenchmarkError, TrainingError), match=words):
        read_plan(tmp_path / "plan.toml")


def test_fields_that_do_not_fit_are_named(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace("width = 8", "widht = 8"))
    arguments = ["bench", "candidates", "--config", str(tmp_path / "plan.toml"), "--data", str(SAMPLES)]
    arguments += ["--validation", str(SAMPLES), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "a: network: unknown field widht" in result.stderr
    (tmp_path / "plan.toml").write_text(PLAN.replace("batch", "bach"))
    assert "unknown field bach" in CliRunner().invoke(app, arguments).stderr
    assert not (tmp_path / "out").exists()
