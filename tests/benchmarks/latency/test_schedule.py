"""The latency harness runs the right rows at the right time and length. The test sets the clock; nothing takes real time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.latency import worker as latency_worker
from rdsr.benchmarks.latency.measure import Options, measure_latency
from rdsr.benchmarks.latency.rows import Job, row_of
from rdsr.cli.main import app
from rdsr.tests.benchmarks.latency.synthetic import sleepers, synthetic


class Machine:
    """Replaces `time` and `call_apart`. By its own clock a call of "sleep-20" takes 20 ms, and of "diffir" 50 ms."""

    def __init__(self, *, start_up: float = 1.0, drift: float = 0.0) -> None:
        self.now = 1000.0
        self.start_up = start_up
        """Seconds that a process takes to start."""
        self.drift = drift
        """Share of its first speed that the machine loses in a second."""
        self.begun = self.now
        self.order: list[str] = []
        """Models in the order in which they ran."""
        self.fails_from: dict[str, int] = {}
        """Model → the round from which it fails."""

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter

    def call_apart(self, module: str, function: str, arguments: Sequence[Any], **options: object) -> Mapping[str, Any]:
        if function == "measure_peak":
            raise ChildProcessError("killed\nfor memory")
        (job,) = arguments
        model = job["subject"]["model"]
        self.order.append(model)
        self.now += self.start_up
        if self.order.count(model) >= self.fails_from.get(model, 1000):
            return {"error": "this engine has had enough"}
        seconds = 0.05 if model == "diffir" else float(model.rsplit("-", 1)[1]) / 1e3

        def call() -> None:
            self.now += seconds * (1 + self.drift * (self.now - self.begun))

        times = latency_worker.time_calls(call, seconds=job["seconds"], warm_up=2)
        return {"times_ms": times, "peak_rss_mb": 1.0, "cold_start_ms": 1e3 * self.start_up}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr("rdsr.benchmarks.latency.measure.time", machine)
    monkeypatch.setattr("rdsr.benchmarks.latency.worker.time", machine)
    monkeypatch.setattr("rdsr.benchmarks.latency.measure.call_apart", machine.call_apart)
    return machine


def measure(jobs: list[Job], **options: Any) -> dict[str, dict[str, Any]]:
    report = measure_latency(jobs, Options(**({"peaks": False} | options)))
    return {row["model"]: row for row in report["rows"]}


def test_calls_are_timed_one_by_one_without_start_and_warm_up(machine: Machine) -> None:
    row = measure(sleepers(30), budget=100.0, rounds=1)["sleep-30"]
    assert row["min_ms"] == row["p50_ms"] == row["p99_ms"] == pytest.approx(30)
    assert row["cold_start_ms"] == 1000
    assert row["runs"] == 500, "no more, however long there is time"


def test_a_row_calls_for_half_of_its_part_of_what_is_left(machine: Machine) -> None:
    rows = measure(sleepers(100, 1000), budget=40.0, rounds=1)
    assert rows["sleep-100"]["runs"] == pytest.approx(0.5 * 40 / 2 / 0.1, abs=1)
    spent = 1.0 + 2 * 0.1 + rows["sleep-100"]["runs"] * 0.1
    assert rows["sleep-1000"]["runs"] == pytest.approx(0.5 * (40 - spent) / 2, abs=1)


def test_rounds_are_interleaved_so_that_the_order_of_rows_changes_no_conclusion(machine: Machine) -> None:
    machine.drift = 0.002  # a fifth slower at the end: without interleaving, 40 would come out as more than 43
    jobs = sleepers(20, 40, 43)
    forward = measure(jobs, budget=90, rounds=4)
    assert machine.order == ["sleep-20", "sleep-40", "sleep-43", "sleep-43", "sleep-40", "sleep-20"] * 2
    assert machine.now - machine.begun > 30
    machine.begun = machine.now
    backward = measure(jobs[::-1], budget=90, rounds=4)
    for rows in (forward, backward):
        assert sorted(rows, key=lambda model: rows[model]["p50_ms"]) == ["sleep-20", "sleep-40", "sleep-43"]


@pytest.mark.parametrize("budget", [10.0, 30.0])
def test_rounds_end_with_the_budget(machine: Machine, budget: float) -> None:
    row = measure(sleepers(5), budget=budget, rounds=50)["sleep-5"]
    assert 1 < row["rounds"] < 50
    assert machine.now - machine.begun <= budget


def test_every_row_is_run_once_whatever_the_budget(machine: Machine) -> None:
    rows = measure(sleepers(1, 5000), budget=1.0, rounds=5)
    assert [row["rounds"] for row in rows.values()] == [1, 1]


def test_a_budget_that_is_short_goes_to_the_cheaper_rows(machine: Machine) -> None:
    rows = measure(sleepers(1, 2500), budget=25.0, rounds=4)
    assert rows["sleep-1"]["rounds"] > rows["sleep-2500"]["rounds"] >= 1
    assert machine.now - machine.begun <= 25 + 2500 / 1e3, "a call that has begun is ended"


@pytest.mark.parametrize(("rounds", "stable"), [(1, False), (2, False), (3, True)])
def test_few_rounds_are_not_called_stable(machine: Machine, rounds: int, stable: bool) -> None:
    assert measure(sleepers(5), budget=100.0, rounds=rounds)["sleep-5"]["stable"] is stable


def test_a_row_that_fails_after_its_first_round_says_why(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdsr.benchmarks.latency.measure.jobs_of", lambda subjects, **options: sleepers(1, 2))
    machine.fails_from["sleep-1"] = 2
    arguments = ["--model", "bicubic", "--rounds", "3", "--budget", "60", "--no-peaks", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, ["bench", "latency", *arguments])
    assert done.exit_code == 1
    assert "sleep-1, torch-eager fp32, 8×8: failed after one round: this engine has had enough" in done.output
    tired, other = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert (tired["rounds"], tired["p50_ms"], tired["stable"]) == (1, 1.0, False)
    assert "had enough" in tired["failed_later"]
    assert (other["rounds"], other["failed_later"]) == (3, None)


def test_a_peak_that_cannot_be_measured_says_why(machine: Machine) -> None:
    report = measure_latency(sleepers(1), Options(budget=1.0, rounds=1))
    assert report["peaks"] == []
    assert report["peak_errors"] == ["peak of torch-eager fp32, 1 threads: killed for memory"]
    assert report["rows"][0]["p50_ms"] == 1.0


def test_the_better_of_two_peaks_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([(100.0, 80.0), (60.0, 90.0)])

    def called(module: str, function: str, arguments: Sequence[Any], **options: object) -> Mapping[str, Any]:
        if function != "measure_peak":
            return machine.call_apart(module, function, arguments)
        machine.order.append("peak")
        convolution, matmul = next(figures)
        of = dict(zip(("backend", "precision", "threads"), arguments, strict=True))
        return of | {"convolution_gflops": convolution, "matmul_gflops": matmul}

    monkeypatch.setattr("rdsr.benchmarks.latency.measure.call_apart", called)
    (peak,) = measure_latency(sleepers(1), Options(budget=10.0, rounds=1))["peaks"]
    assert (peak["convolution_gflops"], peak["matmul_gflops"], peak["backend"]) == (100.0, 90.0, "torch-eager")
    assert machine.order == ["peak", "sleep-1", "peak"], "before the rows and after them"


def test_points_of_a_sweep_that_would_take_too_long_are_not_run(machine: Machine) -> None:
    (small,) = sleepers(300)
    large = dataclasses.replace(small, size=(800, 800))
    report = measure_latency([small, large], Options(budget=60, rounds=1, sweep="size", peaks=False))
    assert report["rows"][0]["p50_ms"] == 300
    assert "it would take some 3000 s a call, more than a quarter of the budget" in report["rows"][1]["error"]
    (fit,) = report["fits"]
    assert (fit["model"], fit["exponent"], fit["steepest"], fit["points"]) == ("sleep-300", None, None, 1)


def test_ratios_are_to_diffir_in_torch_eager_at_the_same_size(machine: Machine) -> None:
    rows = measure([synthetic("diffir", "sleeper"), *sleepers(10)], budget=10.0, rounds=1)
    assert rows["sleep-10"]["speedup_vs_baseline"] == pytest.approx(5)
    assert rows["diffir"]["speedup_vs_baseline"] == 1


def test_a_run_that_goes_on_knows_what_rows_cost(machine: Machine, tmp_path: Path) -> None:
    """Otherwise the harness would not know the rows' costs after a restart, and would exceed the budget by a whole round."""
    partial = tmp_path / "partial.json"
    jobs, options = sleepers(1, 4000), Options(budget=25.0, rounds=3, peaks=False)
    with pytest.raises(KeyboardInterrupt):
        measure_latency(jobs, options, partial=partial, progress=cut_off_in_round_two)
    rounds = [row["rounds"] for row in measure_latency(jobs, options, partial=partial)["rows"]]
    assert rounds == [3, 1], "thirteen seconds are more than what is left"


def cut_off_in_round_two(step: str) -> None:
    if step.startswith("round 2"):
        raise KeyboardInterrupt


def test_other_code_is_another_run(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "partial.json"
    for digest, ran in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr("rdsr.benchmarks.latency.measure.code_digest", lambda *folders, digest=digest: digest)
        measure_latency(sleepers(1), Options(budget=1.0, rounds=1, peaks=False), partial=partial)
        assert len(machine.order) == ran


def test_one_round_of_four_may_be_far_from_the_others() -> None:
    def row(*medians: float) -> dict[str, Any]:
        samples = [{"times_ms": [each], "cold_start_ms": 1.0, "peak_rss_mb": 1.0} for each in medians]
        return row_of(sleepers(1)[0], samples, None, [])

    assert (row(60, 100, 100, 100, 200)["spread"], row(60, 100, 100, 100, 200)["stable"]) == (0.4, False)
    assert (row(100, 104, 104, 180)["spread"], row(100, 104, 104, 180)["stable"]) == (pytest.approx(4 / 104, abs=1e-4), True)
    assert row(100, 104, 180)["stable"] is False
    assert (row(100, 104, 108)["spread"], row(100, 104, 108)["stable"]) == (pytest.approx(8 / 104, abs=1e-4), True)
    assert (row(100)["spread"], row(100)["stable"]) == (None, False)
