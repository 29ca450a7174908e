"""Ablations: every variant gets the same time, finished runs are kept, the first variant is the reference."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.training import ablations
from rdsr.benchmarks.training.ablations import (
    AblationRow,
    ablation_config,
    ablation_table,
    measure_ablations,
    read_ablations,
)
from rdsr.cli.bench import ABLATIONS
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.tests.cli.running import command, interrupted

PLAN = """
minutes = 0.002
seeds = [3, 4]
[shares]
bicubic = { stage1 = 0.5 }
photo = { stage1 = 0.4, prior = 0.3 }
[training]
preset = "tiny"
batch = 2
patch_sizes = [8]
warmup = 1
network = { width = 8, depth = 3, modulation_depths = [0], condition_width = 8, latent_size = 16, lpe_width = 8 }
[degradations.bicubic]
[degradations.photo.network]
degradation_size = 12
[variants.reference]
[variants.deeper]
network = { depth = 4 }
[variants.lpe]
stage1 = true
"""
ONE_VARIANT = PLAN.partition("[degradations.photo")[0] + "[variants.reference]\n"
"""Under bicubic alone."""


@pytest.fixture(autouse=True)
def _timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well steps are timed does not matter here."""
    for name, value in {"_SPEED_ROUNDS": 1, "_SPEED_STEPS": 2, "_SPEED_WARMUP": 1}.items():
        monkeypatch.setattr(ablations, name, value)


def read(text: str, folder: Path) -> object:
    (folder / "plan.toml").write_text(text)
    return read_ablations(folder / "plan.toml")


def test_all_variants_are_trained_once_with_one_budget(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    arguments = ["bench", "ablations", "--config", str(tmp_path / "plan.toml"), "--validation", str(SAMPLES)]
    arguments += ["--data", str(SAMPLES), "-o", str(tmp_path / "out"), "--json"]
    first = CliRunner().invoke(app, [*arguments, "--jobs", "2"])
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)["rows"]
    order = [(degradation, variant) for degradation in ("bicubic", "photo") for variant in ("reference", "deeper", "lpe")]
    assert [(row["degradation"], row["variant"]) for row in rows] == order
    phases = [list(row["steps"]) for row in rows]
    assert phases == [["stage1", "stage2"]] * 2 + [["stage1"]] + [["stage1", "prior", "stage2"]] * 2 + [["stage1"]]
    assert all(set(row["psnr_y"]) == {"3", "4"} and min(row["psnr_y"].values()) > 15 for row in rows)
    assert all(len(set(row["psnr_y"].values())) == 2 for row in rows), "two seeds differ"
    assert [row["change_db"] for row in rows if row["variant"] == "reference"] == [0.0, 0.0]
    assert all(row["spread_db"] == round(abs(row["psnr_y"]["3"] - row["psnr_y"]["4"]), 4) for row in rows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("ema.safetensors")}
    again = CliRunner().invoke(app, arguments)
    assert json.loads(again.stdout)["rows"] == rows
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("ema.safetensors")} == before
    assert "| bicubic | deeper |" in (tmp_path / "out" / "ablations.md").read_text()


def test_after_its_time_no_run_begins_and_the_next_call_goes_on(tmp_path: Path) -> None:
    plan = read(ONE_VARIANT, tmp_path)
    where = {"data": [SAMPLES], "validation": SAMPLES, "jobs": 1}
    assert measure_ablations(plan, tmp_path / "out", **where, seconds=0) == []
    assert measure_ablations(plan, tmp_path / "out", **where) == measure_ablations(
        plan, tmp_path / "out", **where, seconds=0
    )


def test_sigterm_stops_the_runs_which_keep_their_state(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(ONE_VARIANT.replace("0.002", "60"))
    line = ["bench", "ablations", "--config", tmp_path / "plan.toml", "--data", SAMPLES, "--validation", SAMPLES]
    runs = [tmp_path / "out" / "bicubic" / f"reference-{seed}" / "stage1" for seed in (3, 4)]

    def under_way() -> bool:
        logs = [run / "log.csv" for run in runs]
        return all(log.is_file() and len(log.read_text().splitlines()) > 1 for log in logs)

    done = interrupted(command(*line, "-o", tmp_path / "out", "--jobs", 2), under_way, signal.SIGTERM)
    assert done.returncode == 143, done.stderr
    assert all((run / "state.pt").is_file() for run in runs)


def test_the_table_has_a_column_for_each_seed() -> None:
    rows = [AblationRow("photo", "t-1", {"stage1": 1200, "stage2": 30}, {7: 27.4}, 27.4, None, -0.01)]
    columns, flat = ablation_table(rows, [0, 7])
    assert [columns[key][0] for key in ("seed 0", "seed 7")] == ["seed 0 (dB)", "seed 7 (dB)"]
    assert (flat[0]["steps"], flat[0]["seed 0"], flat[0]["seed 7"]) == ("1,200 + 30", None, 27.4)


def test_the_shipped_plan_fits() -> None:
    plan = read_ablations(ABLATIONS)
    assert next(iter(plan.variants)) == "reference"
    assert plan.minutes == 10
    for degradation in plan.degradations:
        for variant in plan.variants:
            assert ablation_config(plan, variant, degradation).network_config()


def test_runs_of_another_plan_are_refused(tmp_path: Path) -> None:
    where = {"data": [SAMPLES], "validation": SAMPLES, "jobs": 1}
    single = ONE_VARIANT.replace("seeds = [3, 4]", "seeds = [3]").replace("photo = { stage1 = 0.4, prior = 0.3 }\n", "")
    (row,) = measure_ablations(read(single, tmp_path), tmp_path / "out", **where)
    assert row.change_db == 0.0
    with pytest.raises(BenchmarkError, match="holds reference under bicubic of another plan"):
        measure_ablations(read(single.replace("0.002", "0.003"), tmp_path), tmp_path / "out", **where)
    with pytest.raises(BenchmarkError, match="holds reference under bicubic of another plan"):
        measure_ablations(read(single.replace("warmup = 1", "warmup = 2"), tmp_path), tmp_path / "out", **where)
    with pytest.raises(BenchmarkError, match="name their folder"):
        measure_ablations(read(single + "teacher_weight = 0.5\n", tmp_path), tmp_path / "out", **where)


def test_finished_runs_are_remembered_without_their_folders(tmp_path: Path) -> None:
    where = {"data": [SAMPLES], "validation": SAMPLES, "jobs": 1}
    plan = read(ONE_VARIANT, tmp_path)
    rows = measure_ablations(plan, tmp_path / "out", **where)
    shutil.rmtree(tmp_path / "out" / "bicubic")
    assert measure_ablations(plan, tmp_path / "out", **where) == rows
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["runs.json"]
    (tmp_path / "out" / "runs.json").write_text('{"bicubic reference": {"plan": 1}}')
    with pytest.raises(BenchmarkError, match=r"cannot read .*runs\.json \(KeyError\): choose another folder"):
        measure_ablations(plan, tmp_path / "out", **where)


def test_a_variant_takes_the_steps_of_another(tmp_path: Path) -> None:
    plan = read(ONE_VARIANT.replace("[3, 4]", "[3]") + '[variants.same]\nsteps_of = "reference"\n', tmp_path)
    first, second = measure_ablations(plan, tmp_path / "out", data=[SAMPLES], validation=SAMPLES, jobs=1)
    assert first.steps == second.steps
    assert first.psnr_y == second.psnr_y, "one config, seed and number of steps give one network"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds = [3, 4]", "", "seeds is missing"),
        ("seeds =", "sods = 1\nseeds =", "sods is unknown"),
        ("warmup = 1", "iterations = 1", "must not set iterations"),
        ("variants.deeper", "variants.'../x'", "cannot name a run folder"),
        ("bicubic = { stage1 = 0.5 }", "", "shares lacks bicubic"),
        ("[variants.lpe]", "[variants]\nx = 1\n[variants.lpe]", "must be tables"),
        ("seeds = [3, 4]", "seeds = 3", "seeds must be a list of whole numbers, not 3"),
        ("minutes = 0.002", 'minutes = "ten"', "minutes must be a number above 0, not 'ten'"),
        ("minutes = 0.002", "minutes = inf", "minutes must be a number above 0, not inf"),
        pytest.param("minutes = 0.002", f"minutes = 1{400 * '0'}", "minutes must be a number above 0", id="huge"),
        ("[variants.lpe]", '[variants.lpe]\nsteps_of = "none"', "steps_of of lpe must name a variant"),
        ("[variants.lpe]", '[variants.lpe]\nsteps_of = "lpe"', "steps_of of lpe must name a variant"),
        ("[variants.lpe]", '[variants.lpe]\nsteps_of = "reference"', "the same stages and its own steps"),
        ("stage1 = 0.5", "prior = 0.5", "must be numbers for stage1 and"),
        ("stage1 = 0.5", "stage1 = 0.5, stage2 = 0.5", "must be numbers for stage1 and"),
        ("prior = 0.3", "prior = 0.6", "leave some time for the rest"),
    ],
)
def test_plans_that_do_not_fit_are_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=words):
        read(PLAN.replace(old, new), tmp_path)
