"""Calls are timed in turns: a machine that slows down hits all alike."""

from __future__ import annotations

import pytest

from rdsr.runtime.timing import interleaved_medians


class Machine:
    """Stands in for `time`: every call takes its milliseconds times what the clock's drift makes of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def call(self, name: str, milliseconds: float) -> None:
        self.order.append(name)
        self.now += milliseconds / 1e3 * (1 + self.now)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr("rdsr.runtime.timing.time", machine)
    return machine


def test_every_round_calls_each_once_and_the_ratio_is_right_on_a_machine_that_slows_down(machine: Machine) -> None:
    calls = {"a": lambda: machine.call("a", 20), "b": lambda: machine.call("b", 10)}
    medians = interleaved_medians(calls, rounds=20, warmup=2)
    assert machine.order == ["a", "b"] * 22
    assert machine.now > 0.8, "at the end it is at four fifths more than the time of the beginning"
    assert medians["a"] / medians["b"] == pytest.approx(2, rel=0.05)
    assert medians["a"] > 25, "of all rounds, not of the first"


def test_warming_up_is_not_counted_unless_nothing_else_fits_the_budget(machine: Machine) -> None:
    times = iter([500.0, 10.0, 10.0, 10.0])
    assert interleaved_medians({"a": lambda: machine.call("a", next(times))}, rounds=3)["a"] < 20
    machine.order.clear()
    assert interleaved_medians({"a": lambda: machine.call("a", 900)}, rounds=3, budget=0.5)["a"] > 900
    assert machine.order == ["a"]
