"""A small part of `make fuzz`, the same in each run, and the driver itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rdsr.tests.fuzz import driver, obedient
from rdsr.tests.fuzz.driver import fuzz, target_named

SEED = 1
SECONDS = 120.0
"""A machine may be busy; hangs last longer."""
COUNTS = {"pictures": 424, "api": 300, "graphs": 150, "ir": 150, "manifests": 300, "checkpoints": 200}


def present(name: str) -> ModuleType:
    target = target_named(name)
    if target is None:
        pytest.skip(f"there is no target {name}")
    return target


@pytest.mark.parametrize("name", driver.TARGETS)
def test_hostile_inputs_are_refused_or_taken(name: str, tmp_path: Path) -> None:
    """No crash, no hang, no untyped error, no two reads that differ, and no more memory than the target allows."""
    present(name)
    report = fuzz(name, seed=SEED, count=COUNTS[name], seconds=SECONDS, folder=tmp_path)
    listed = "\n".join(f"{found.number}: {found.kind}: {found.description}\n{found.said}" for found in report.findings)
    assert not report.findings, f"{report}\n{listed}"
    assert report.inputs == COUNTS[name]
    assert sum(count for kind, count in report.counts.items() if kind.startswith("refused")) > COUNTS[name] / 10


@pytest.mark.parametrize("name", driver.TARGETS)
def test_inputs_are_the_same_at_each_run(name: str) -> None:
    target = present(name)
    drawn = [[target.mutated(np.random.default_rng([SEED, n])) for n in range(20)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len({content for _, content in drawn[0]}) > 10


@pytest.mark.parametrize("name", driver.TARGETS)
def test_seeds_are_taken(name: str) -> None:
    """Mutations of what is refused anyway would prove nothing."""
    target = present(name)
    with driver.Worker(name, "0", target) as worker:
        for key, content in target.seeds().items():
            outcome = worker.attempt(0, content, SECONDS)
            assert outcome.kind == "accepted", f"{key}: {outcome.said}"


# -- the driver finds what it is made for


@pytest.fixture(scope="module")
def worker() -> Iterator[driver.Worker]:
    """A worker whose target does what the input says."""
    with driver.Worker("obedient", "85", obedient) as worker:
        yield worker


@pytest.mark.parametrize(
    ("order", "kind", "words"),
    [
        ("accept", "accepted", "accepted"),
        ("refuse", "refused", "refused: PictureError"),
        ("raise", "untyped error", "IndexError"),
        ("exit", "untyped error", "SystemExit"),
        ("crash", "crash", "exit code -6"),
        ("end", "crash", "exit code 0"),
        ("grow", "too much memory", ""),
        ("speak", "words on standard error", "hello"),
    ],
)
def test_every_fault_is_seen_and_the_next_input_is_tried(worker: driver.Worker, order: str, kind: str, words: str) -> None:
    outcome = worker.attempt(0, order.encode(), SECONDS)
    assert outcome.kind == kind
    assert words in outcome.said
    assert worker.attempt(1, b"accept", SECONDS).kind == "accepted"


def test_a_hang_is_ended_and_says_where_it_was(worker: driver.Worker) -> None:
    outcome = worker.attempt(0, b"hang", 2)
    assert outcome.kind == "hang"
    assert "obedient.py" in outcome.said
    assert worker.attempt(1, b"accept", SECONDS).kind == "accepted"


def test_findings_are_kept_and_can_be_repeated(tmp_path: Path) -> None:
    report = fuzz("obedient", seed=3, count=30, seconds=SECONDS, folder=tmp_path)
    assert report.inputs == sum(report.counts.values()) == 30
    assert {"disagreement", "untyped error", "accepted"} <= set(report.counts)
    assert len(report.findings) == len(list(tmp_path.glob("*.bin"))) == len(list(tmp_path.glob("*.txt")))
    for found in report.findings:
        again = fuzz("obedient", seed=3, first=found.number, count=1, seconds=SECONDS, folder=tmp_path / "again")
        assert [each.kind for each in again.findings] == [found.kind]
        assert again.findings[0].file.read_bytes() == found.file.read_bytes()


def test_the_command_ends_with_one_if_something_was_found(tmp_path: Path) -> None:
    for count, code in ((30, 1), (0, 0)):
        command = [
            sys.executable,
            "-m",
            "rdsr.tests.fuzz.driver",
            "--target",
            "obedient",
            "--seed",
            "3",
            "--count",
            str(count),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == code, done.stderr
        assert "obedient" in done.stdout
    assert list((tmp_path / "fuzz").glob("obedient-3-*.bin"))
