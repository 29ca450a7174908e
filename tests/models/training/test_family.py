"""The family's plan, the order of its members, and runs that survive a kill at any moment."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rdsr.benchmarks.training.ship import adopt_weights, take_member
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES
from rdsr.models.checkpoint import read_checkpoint, save_checkpoint
from rdsr.models.training import family_runner
from rdsr.models.training.config import TrainConfig, find_config
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.family import DEFAULT_PLAN, FamilyPlan, current_run, finished_runs, minutes_of
from rdsr.models.training.family_runner import (
    StandAside,
    adopted,
    is_running,
    next_member,
    run_config,
    run_family,
    working_on,
)
from rdsr.models.training.run import train
from rdsr.tests.conftest import random_network, until, write_checkpoint

STAGE1 = """
stage = "stage1"
preset = "tiny"
iterations = 6
batch = 2
patch_sizes = [12]
validate_every = 3
warmup = 1
[network]
width = 8
depth = 2
modulation_depths = [0]
condition_width = 8
latent_size = 16
lpe_width = 8
"""
STAGE2 = STAGE1.replace("stage1", "stage2")
QAT = """
stage = "qat"
optimizer = "adam"
iterations = 4
batch = 2
patch_sizes = [12]
validate_every = 2
warmup = 1
"""
PLAN = """
data = ["{data}"]
validation = "{validation}"
slice_minutes = 5
growth = 2.0
stand_aside = false
[[members]]
name = "one"
share = 1.0
[[members.stages]]
name = "stage1"
config = "{configs}/stage1.toml"
first_round_only = true
[[members.stages]]
name = "stage2"
config = "{configs}/stage2.toml"
grows = true
[[members.stages]]
name = "qat"
config = "{configs}/qat.toml"
overrides = {{ ema_decay = 0.9 }}
[card]
data = "Our own pictures."
licence = "Ours."
"""


def write_plan(folder: Path, text: str = PLAN) -> Path:
    for name, content in (("stage1", STAGE1), ("stage2", STAGE2), ("qat", QAT)):
        (folder / f"{name}.toml").write_text(content)
    (folder / "plan.toml").write_text(text.format(data=SAMPLES, validation=SAMPLES, configs=folder))
    return folder / "plan.toml"


@pytest.fixture(autouse=True)
def _any_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What int8 costs a network of a few steps differs between CPUs, and says nothing."""
    monkeypatch.setattr("rdsr.export.exporter.MAX_INT8_DROP", 10.0)


@pytest.fixture
def plan(tmp_path: Path) -> FamilyPlan:
    return FamilyPlan.load(write_plan(tmp_path))


def test_the_shipped_plan_fits_the_presets(tmp_path: Path) -> None:
    """Every stage of every member names a config that loads."""
    plan = FamilyPlan.load(DEFAULT_PLAN)
    assert {member.name for member in plan.members} == {"tiny", "small", "small-x2", "photo", "base"}
    for member in plan.members:
        stages = [TrainConfig.load(find_config(Path(s.config)), **s.overrides).stage for s in member.stages]
        assert stages[-1] == "qat"
        assert "stage2" in stages
        assert member.init or stages[0] == "stage1"
    assert {"data", "licence"} <= set(plan.card)


def test_stages_follow_each_other_and_rounds_grow(plan: FamilyPlan, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run_family(plan, runs, threads=1, slices=4)
    (member,) = plan.members
    assert [run.label for run in finished_runs(member, runs)] == [
        "round 1, stage1", "round 1, stage2", "round 1, qat", "round 2, stage2",
    ]  # fmt: skip
    first, second, qat, again = finished_runs(member, runs)
    assert (second.state().iterations, again.state().iterations) == (6, 12)
    configs = [json.loads((run.folder / "config.json").read_text()) for run in (first, second, qat, again)]
    assert [config["init"] for config in configs] == ["", str(first.result()), str(second.result()), str(second.result())]
    assert minutes_of(member, runs) == pytest.approx(sum(run.state().minutes for run in (first, second, qat, again)))
    assert current_run(member, runs).label == "round 2, qat"
    assert not is_running(runs)
    result = CliRunner().invoke(
        app, ["train", "family", "status", "--runs", str(runs), "--plan", str(tmp_path / "plan.toml"), "--json"]
    )
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert status["state"] == "not running"
    assert (status["members"][0]["stage"], status["members"][0]["round"]) == ("qat", 2)
    shipped = tmp_path / "weights"
    sentence = take_member(plan, "one", runs, weights=shipped, threads=1)
    assert sentence.startswith("taken"), sentence
    assert load_file(shipped / "rdsr-one-x4.safetensors").keys() == load_file(qat.result()).keys()
    card = (shipped / "rdsr-one-x4.md").read_text()
    assert "Our own pictures." in card
    assert "Not measured: Set5, Set14, B100." in card
    assert re.search(r"\| round 1, qat \| [^|]*qat.toml \| ema_decay 0.9 \| round 1, stage2 \| 4 \|", card)
    before = [path.read_bytes() for path in sorted(shipped.iterdir())]
    assert take_member(plan, "one", runs, weights=shipped, threads=1).startswith("not taken"), "it has not risen"
    assert before == [path.read_bytes() for path in sorted(shipped.iterdir())]
    (shipped / "rdsr-one-x4.md").write_text(card.replace("| round 1, stage1 | ", "| rdsr-old: round 1, stage1 | ", 1))
    (later,) = (dataclasses.replace(m, init=str(shipped / "rdsr-one-x4.safetensors")) for m in plan.members)
    (runs / "one" / "earlier.json").unlink()  # as if these were the runs of another member
    take_member(dataclasses.replace(plan, members=(later,)), "one", runs, weights=tmp_path / "later", threads=1)
    rows = re.findall(r"^\| ([^|]*round 1, \w+) \|", (tmp_path / "later" / "rdsr-one-x4.md").read_text(), re.MULTILINE)
    of_old = ["rdsr-old: round 1, stage1", "rdsr-one-x4 #1: round 1, stage2", "rdsr-one-x4 #1: round 1, qat"]
    assert rows == [*of_old, "round 1, stage1", "round 1, stage2", "round 1, qat"], "the card knows how its start was made"
    seeds = [json.loads((run.folder / "config.json").read_text())["seed"] for run in (second, again)]
    assert seeds == [0, 1], "other patches in every round"
    assert status["members"][0]["best"] == max(second.state().best, again.state().best)
    assert status["members"][0]["best_int8"] == qat.state().best


def test_weights_of_another_scale_are_taken_under_its_name(tmp_path: Path) -> None:
    """The samples have no LR for ×2: it is made from the originals."""
    path = write_plan(tmp_path, PLAN.replace('name = "one"', 'name = "one-x2"'))
    for stage in ("stage1", "stage2"):
        config = tmp_path / f"{stage}.toml"
        config.write_text(config.read_text() + "scale = 2\n")
    plan, weights = FamilyPlan.load(path), tmp_path / "weights"
    run_family(plan, tmp_path / "runs", threads=1, slices=3)
    assert take_member(plan, "one-x2", tmp_path / "runs", weights=weights, threads=1).startswith("taken: rdsr-one-x2.saf")
    card = (weights / "rdsr-one-x2.md").read_text()
    assert "RDSR `one-x2`, ×2" in card
    assert f"| {SAMPLES.name} | bicubic |" in card


def test_nothing_is_taken_before_a_quantized_run_has_finished(plan: FamilyPlan, tmp_path: Path) -> None:
    assert take_member(plan, "one", tmp_path / "runs", weights=tmp_path, threads=1).startswith("nothing to take")
    with pytest.raises(TrainingError, match="no member 'two'"):
        take_member(plan, "two", tmp_path / "runs", weights=tmp_path, threads=1)


def test_whoever_is_furthest_behind_its_share_comes_next(tmp_path: Path) -> None:
    text = PLAN.split("[card]")[0]
    other = text[text.index("[[members]]") :].replace('"one"', '"two"').replace("share = 1.0", "share = 3.0")
    plan = FamilyPlan.load(write_plan(tmp_path, text + other))

    def minutes(name: str, value: float) -> None:
        folder = tmp_path / name / "01-1-stage1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"iterations": 10}))
        (folder / "log.csv").write_text(f"step,minutes,psnr_y\n1,{value},\n")

    assert next_member(list(plan.members), tmp_path).name == "one"
    minutes("one", 10)
    assert next_member(list(plan.members), tmp_path).name == "two"
    minutes("two", 29)
    assert next_member(list(plan.members), tmp_path).name == "two"
    minutes("two", 31)
    assert next_member(list(plan.members), tmp_path).name == "one"


def test_a_run_keeps_the_config_that_it_began_with(plan: FamilyPlan, tmp_path: Path) -> None:
    run_family(plan, tmp_path / "runs", threads=1, slices=1)
    write_plan(tmp_path, PLAN.replace("growth = 2.0", "growth = 4.0"))
    (tmp_path / "stage1.toml").write_text(STAGE1.replace("batch = 2", "batch = 3"))
    (run,) = finished_runs(plan.members[0], tmp_path / "runs")
    assert run_config(plan, run, tmp_path / "runs")["batch"] == 2


# Read by every Python of a process tree at its start: the next checkpoint stops before it gets its name.
STOPS_IN_A_CHECKPOINT = """
import os, time
replace = os.replace
def stop(source, target, **keywords):
    if os.path.basename(target) == "state.pt":
        time.sleep(3600)
    replace(source, target, **keywords)
os.replace = stop
"""


def start(plan_file: Path, runs: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Train a family in a separate process and process group."""
    command = [sys.executable, "-c", "from rdsr.cli.main import main; main()", "train", "family", "run"]
    return subprocess.Popen(
        [*command, "--runs", str(runs), "--plan", str(plan_file), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell starts what runs in the background
    )


@pytest.fixture
def long_plan(tmp_path: Path) -> Path:
    """Stage 1 of many steps, a checkpoint after each."""
    path = write_plan(tmp_path)
    changed = STAGE1.replace("iterations = 6", "iterations = 4000\ncheckpoint_minutes = 0.0")
    (tmp_path / "stage1.toml").write_text(changed.replace("validate_every = 3", "validate_every = 100000"))
    return path


def step_of(runs: Path) -> int:
    state = runs / "one" / "01-1-stage1" / "state.pt"
    return torch.load(state, weights_only=True)["step"] if state.is_file() else 0


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(long_plan: Path, tmp_path: Path) -> None:
    """Kill runner and slice, only the runner, and both during a checkpoint: the result equals an undisturbed run's."""
    iterations = 250
    text = (tmp_path / "stage1.toml").read_text().replace("4000", str(iterations))
    (tmp_path / "stage1.toml").write_text(text)
    runs = tmp_path / "runs"
    run = runs / "one" / "01-1-stage1"
    (tmp_path / "stops").mkdir()
    (tmp_path / "stops" / "sitecustomize.py").write_text(STOPS_IN_A_CHECKPOINT)
    for turn in range(4):
        before = step_of(runs)
        if turn == 2:
            process = start(long_plan, runs, PYTHONPATH=str(tmp_path / "stops"))
            until(lambda: any(run.glob(".*.tmp")), "a checkpoint is being written", seconds=300)
        else:
            process = start(long_plan, runs)
            until(lambda before=before: step_of(runs) > before + 3, "it goes on", seconds=300)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(process.pid, signal.SIGKILL)
        if turn != 1:  # otherwise the slice ends by itself
            for child in children:
                os.kill(int(child), signal.SIGKILL)
        process.wait()
        until(lambda: not is_running(runs), "the slice ends after its runner", seconds=300)
        assert (step_of(runs) == before) if turn == 2 else (before < step_of(runs) < iterations)
    process = start(long_plan, runs)
    until(lambda: step_of(runs) == iterations, "it comes to its end", seconds=300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    config = TrainConfig.load(tmp_path / "stage1.toml", data=[str(SAMPLES)])
    whole = load_file(train(config, tmp_path / "whole", validation=SAMPLES, threads=1))
    assert all(torch.equal(value, whole[key]) for key, value in load_file(run / "ema.safetensors").items())

    def losses(folder: Path) -> list[str]:
        with (folder / "log.csv").open() as file:
            return [row["loss"] for row in csv.DictReader(file)]

    assert losses(run) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_pausing_frees_the_cores_and_continuing_goes_on(long_plan: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    def family(command: str) -> None:
        result = CliRunner().invoke(app, ["train", "family", command, "--runs", str(runs)])
        assert result.exit_code == 0, result.output

    process = start(long_plan, runs)
    try:
        until(lambda: step_of(runs) > 3, "it begins", seconds=300)
        second = CliRunner().invoke(app, ["train", "family", "run", "--runs", str(runs), "--plan", str(long_plan)])
        assert second.exit_code == 2
        assert "another process" in second.stderr
        family("pause")
        assert is_running(runs)
        assert working_on(runs) is None, "no slice is under way"
        paused = step_of(runs)
        time.sleep(1)
        assert step_of(runs) == paused
        family("continue")
        until(lambda: step_of(runs) > paused, "it goes on", seconds=300)
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, "SIGTERM ends it in order"
    assert not is_running(runs)


def test_a_member_that_fails_again_and_again_does_not_stop_the_others(tmp_path: Path) -> None:
    text = PLAN.split("[card]")[0]
    head, members = text.split("[[members]]", 1)
    broken = members.replace('"one"', '"two"').replace("stage1.toml", "broken.toml")
    path = write_plan(tmp_path, f"{head}[[members]]{broken}[[members]]{members}")
    (tmp_path / "broken.toml").write_text(STAGE1.replace("patch_sizes = [12]", "patch_sizes = [500]"))
    lines: list[str] = []
    run_family(FamilyPlan.load(path), tmp_path / "runs", threads=1, slices=6, report=lines.append)
    assert sum(line.startswith("two") for line in lines) == 3
    failed = (tmp_path / "runs" / "two" / "failed.txt").read_text()
    assert "patches of 500" in failed
    shown = CliRunner().invoke(app, ["train", "family", "status", "--runs", str(tmp_path / "runs"), "--plan", str(path)])
    assert "two failed: none of the" in shown.stdout
    assert sum(line.startswith("one") for line in lines) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("share = 1.0", "share = 0"), "share of one"),
        (('name = "one"', 'name = "O ne"'), "lower-case"),
        (("grows = true", "grow = true"), "not a plan of a family"),
        (("share = 1.0", 'share = "big"'), "share of one"),
        (('validation = "{validation}"', 'validation = "{validation}"\nteacher = "x"'), "must be lists"),
        (("stage1.toml", "nowhere.toml"), "cannot read the config"),
        (("growth = 2.0", "growth = 0.5"), "growth"),
        (('data = ["{data}"]', 'data = ["nowhere"]'), "nowhere does not exist"),
        (("slice_minutes = 5", "slice_minutes = ["), "valid TOML"),
    ],
)
def test_plans_that_cannot_be_are_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = write_plan(tmp_path, PLAN.replace(*change))
    with pytest.raises(TrainingError, match=words):
        run_family(FamilyPlan.load(path), tmp_path / "runs", slices=1)


def test_the_result_says_whether_a_run_is_finished(plan: FamilyPlan, tmp_path: Path) -> None:
    """The log may be ahead of the result or, after a power cut, behind it."""
    runs = tmp_path / "runs"
    run_family(plan, runs, threads=1, slices=1)
    (run,) = finished_runs(plan.members[0], runs)
    log = run.folder / "log.csv"
    whole = log.read_text()
    log.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    assert run.state().finished
    config = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps(config | {"iterations": 9}))
    log.write_text(whole + "9,0.1,0.1,0.1,0,0.001,0,0,0,20.0\n12,0.")
    assert not run.state().finished
    assert run.state().step == 8


def test_weights_from_elsewhere_are_where_the_next_round_begins_if_they_are_the_best(
    plan: FamilyPlan, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    run_family(plan, runs, threads=1, slices=2)
    (member,) = plan.members
    _, second = finished_runs(member, runs)
    with pytest.raises(TrainingError, match="no network of one's sizes"):
        adopt_weights(plan, "one", runs, write_checkpoint(tmp_path / "other.safetensors", random_network()), threads=1)
    sentence = adopt_weights(plan, "one", runs, second.result(), threads=1)
    assert sentence.startswith("adopted for one"), sentence
    assert adopt_weights(plan, "one", runs, second.result(), threads=1).startswith("not adopted")
    qat = current_run(member, runs)
    assert run_config(plan, qat, runs)["init"] == str(second.result())
    psnr, path = adopted(member, runs)
    assert psnr == pytest.approx(second.state().best, abs=2e-4)
    read, metadata = read_checkpoint(path)
    notes = json.loads(metadata["notes"]) | {"psnr_y": "99"}
    save_checkpoint(path, read, "rdsr", json.loads(metadata["config"]), notes)
    assert run_config(plan, qat, runs)["init"] == str(path)


def test_training_stands_aside_while_others_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0, "others": 0.0}

    def sleep(seconds: float) -> None:
        clock["now"] += seconds
        clock["others"] += seconds * busy

    monkeypatch.setattr(family_runner.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(family_runner.time, "sleep", sleep)
    monkeypatch.setattr(family_runner, "_others_seconds", lambda: clock["others"])
    monkeypatch.setattr(family_runner.os, "cpu_count", lambda: 2)
    busy = 0.3
    hold = StandAside(threads=2)
    sleep(1)
    assert hold() == 0, "less than half a core"
    busy = 1.0
    sleep(1)
    waited = [hold() for _ in range(3)]
    assert all(waited), "a whole core"
    busy = 0.0
    assert hold() > 0, "until it has looked again"
    assert hold() == 0
    one = StandAside(threads=1)
    busy = 1.0
    sleep(1)
    assert one() == 0, "the other core is free"
