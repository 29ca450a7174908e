"""Run fuzz targets in worker processes: `python -m rdsr.tests.fuzz.driver --minutes 10 [--target NAME] [--seed N]`.

A target is a module of this folder with three functions:

    seeds() -> dict[str, bytes]                        whole, valid inputs
    mutated(rng) -> tuple[str, bytes]                  (description, content), drawn with a `numpy.random.Generator`
    attempt(content) -> str                            "accepted", or "refused: TypeName" for a typed error

`attempt` runs in a worker. Whatever it raises is a finding, and so are a crash, a hang and too much memory, after which a
new worker goes on. A target may set `PAIRED` (both workers get every input and must say the same of it; what `attempt` says
behind a second colon is compared, but not counted), `SILENT` (nothing may appear on standard error) and `MEMORY` (bytes by
which a worker may grow).

Input number n of a seed is always the same, so a finding can be repeated: `--seed S --first N --count 1`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import faulthandler
import hashlib
import importlib
import itertools
import json
import os
import secrets
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["SECONDS", "TARGETS", "Finding", "Report", "fuzz", "target_named"]

TARGETS = ("pictures", "api", "graphs", "ir", "manifests", "checkpoints")
SECONDS = 10.0
"""Longest time for one input."""
START_SECONDS = 120.0
"""Longest time until a worker has imported its target and is ready."""
MEMORY = 2**30
"""Bytes by which a worker, with its own children, may grow, if its target does not say."""
PERTURB = ("85", "170")
"""Values of MALLOC_PERTURB_: memory that is not initialised looks different in the two workers."""
FOLDER = Path("fuzz")
"""Where findings are kept."""
_MEASURED = 25
"""Every so many inputs a worker measures its memory."""
_LOOK_SECONDS = 0.05
"""How often a worker's memory is looked at."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one input in one worker."""

    kind: str
    """accepted, refused, untyped error, crash, hang, too much memory, or words on standard error."""
    said: str
    """What `attempt` returned, or the end of the standard error of a worker that could not return."""
    seconds: float = 0.0
    since: int = 0
    """Number of the first input of this worker. Earlier inputs may have caused what a later one suffers from."""
    memory: float | None = None
    """Anonymous memory of the worker afterwards, MiB; None if it was not measured."""

    @property
    def counted(self) -> str:
        """The name under which it is counted: "refused: TypeName" without what follows."""
        return ":".join(self.said.split(":")[:2]) if self.kind == "refused" else self.kind


@dataclasses.dataclass(frozen=True)
class Finding:
    """An input that showed a fault."""

    number: int
    description: str
    kind: str
    said: str
    file: Path


@dataclasses.dataclass
class Report:
    """What became of all inputs of one target."""

    target: str
    seed: int
    inputs: int = 0
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    slowest: float = 0.0
    memory: list[float] = dataclasses.field(default_factory=list)
    """Anonymous memory of a worker, MiB, now and then."""

    @property
    def growth(self) -> float:
        """MiB by which the workers grew from the first fifth to the end: medians, since a single input may be large."""
        fifth = len(self.memory) // 5
        return float(np.median(self.memory[-fifth:]) - np.median(self.memory[fifth : 2 * fifth])) if fifth else 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(self.counts.items()))
        ends = f"slowest {self.slowest:.1f} s, growth {self.growth:.0f} MiB"
        return f"{self.target}: {self.inputs} inputs of seed {self.seed}; {counts}; {ends}"


def target_named(name: str) -> ModuleType | None:
    """The module of a target; None if it is not there."""
    if not Path(__file__).with_name(f"{name}.py").exists():
        return None
    return importlib.import_module(f"rdsr.tests.fuzz.{name}")


def fuzz(
    name: str,
    *,
    seed: int,
    first: int = 0,
    count: int | None = None,
    minutes: float | None = None,
    seconds: float = SECONDS,
    folder: Path = FOLDER,
) -> Report:
    """Try `count` inputs from number `first` on, or as many as the minutes allow. Findings are written to `folder`."""
    target = target_named(name)
    assert target is not None, name
    paired = getattr(target, "PAIRED", False)
    report = Report(name, seed)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    numbers = iter(range(first, sys.maxsize if count is None else first + count))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, perturb, target)) for perturb in PERTURB]
        pool = stack.enter_context(ThreadPoolExecutor(len(workers)))
        while end is None or time.monotonic() < end:
            taken = itertools.islice(numbers, len(workers))
            batch = [(number, *target.mutated(np.random.default_rng([seed, number]))) for number in taken]
            if not batch:
                break
            if paired:
                for each in batch:
                    both = list(pool.map(lambda worker, each=each: worker.attempt(each[0], each[2], seconds), workers))
                    _note(report, each, both, folder)
            else:
                said = pool.map(lambda worker, each: worker.attempt(each[0], each[2], seconds), workers, batch)
                for each, outcome in zip(batch, said, strict=False):
                    _note(report, each, [outcome], folder)
    return report


def _note(report: Report, each: tuple[int, str, bytes], outcomes: Sequence[Outcome], folder: Path) -> None:
    """Count an input, and keep it if it is a finding."""
    number, description, content = each
    report.inputs += 1
    report.slowest = max(report.slowest, *(outcome.seconds for outcome in outcomes))
    report.memory += [outcome.memory for outcome in outcomes if outcome.memory is not None]
    bad = next((outcome for outcome in outcomes if outcome.kind not in ("accepted", "refused")), None)
    if bad is None and len({outcome.said for outcome in outcomes}) > 1:
        bad = Outcome("disagreement", "\n".join(outcome.said for outcome in outcomes), since=outcomes[0].since)
    if bad is None:
        report.counts[outcomes[0].counted] += 1
        return
    report.counts[bad.kind] += 1
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{report.target}-{report.seed}-{number}-{hashlib.sha256(content).hexdigest()[:8]}.bin"
    file.write_bytes(content)
    repeat = f"--target {report.target} --seed {report.seed} --first {number} --count 1"
    text = f"{description}\n{bad.kind}\n{bad.said}\nrepeat: {repeat}\nthe worker's first input was {bad.since}\n"
    file.with_suffix(".txt").write_text(text)
    report.findings.append(Finding(number, description, bad.kind, bad.said, file))


class Worker:
    """A process that attempts inputs. One that crashes, hangs or takes too much memory is replaced at the next input."""

    def __init__(self, name: str, perturb: str, target: ModuleType) -> None:
        self._name, self._perturb = name, perturb
        self._memory: int = getattr(target, "MEMORY", MEMORY)
        self._silent: bool = getattr(target, "SILENT", False)
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: Any = None
        self._since = 0
        self._usual = 0
        """Memory of the worker when it was ready."""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def attempt(self, number: int, content: bytes, seconds: float) -> Outcome:
        """Try one input, in a new worker if there is none."""
        if self._process is None:
            self._start(number)
        assert self._process is not None
        assert self._process.stdin is not None
        before, clock = os.fstat(self._stderr.fileno()).st_size, _Clock(self._process.pid)
        try:
            self._process.stdin.write(struct.pack("<Q", len(content)) + content)
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._ended("crash", before, clock)
        answer = self._answer(seconds, clock)
        if isinstance(answer, str):
            return self._ended(answer, before, clock)
        took, said = clock.look(), str(answer["said"])
        if answer["error"]:
            return Outcome("untyped error", said, took, self._since)
        if self._silent and (spoken := self._spoken(before)):
            return Outcome("words on standard error", f"{said}\n{spoken}", took, self._since)
        kind = "accepted" if said.startswith("accepted") else "refused"
        return Outcome(kind, said, took, self._since, answer["memory"])

    def _start(self, number: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 – it lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rdsr.tests.fuzz.driver", "--serve", self._name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | {"MALLOC_PERTURB_": self._perturb},
            start_new_session=True,
        )
        self._since, self._usual = number, 0
        answer = self._answer(START_SECONDS, _Clock(self._process.pid))
        if isinstance(answer, str):
            raise RuntimeError(f"the worker of {self._name} does not start: {answer}\n{self._spoken(0)}")
        self._usual = _memory_of(self._process.pid)

    def _answer(self, seconds: float, clock: _Clock) -> dict[str, Any] | str:
        """The next line of the worker, or how it failed: crash, hang, or too much memory."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if selector.select(_LOOK_SECONDS):
                    part = os.read(self._process.stdout.fileno(), 2**16)
                    if not part:
                        return "crash"
                    line += part
                elif clock.look() > seconds:
                    return "hang"
                elif self._usual and _memory_of(self._process.pid) > self._usual + self._memory:
                    return "too much memory"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self, kind: str, before: int, clock: _Clock) -> Outcome:
        """End the worker, which did not answer."""
        assert self._process is not None
        took = clock.look()
        if kind == "hang":  # the worker writes where it is
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                self._process.send_signal(signal.SIGABRT)
                self._process.wait(2)
        elif kind == "crash":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
        code = self._process.poll()
        said = f"exit code {code} after {took:.1f} s\n{self._spoken(before)}"
        self._end()
        return Outcome(kind, said, took, self._since)

    def _end(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        self._stderr.close()
        self._process = None

    def _spoken(self, before: int) -> str:
        return os.pread(self._stderr.fileno(), 8000, before).decode(errors="replace").strip()


class _Clock:
    """Seconds that a process computed or waited. Time in which it, or this one, was stopped or had no CPU does not count."""

    _LONGEST = 5 * _LOOK_SECONDS
    """Most seconds of waiting between two looks. More means that this process could not look."""

    def __init__(self, process: int) -> None:
        self._process, self._seconds = process, 0.0
        self._last, self._used = time.monotonic(), self._state()[1]

    def look(self) -> float:
        """The seconds until now."""
        now, (state, used) = time.monotonic(), self._state()
        passed = now - self._last
        if state == "R":
            self._seconds += min(passed, used - self._used)
        elif state not in "Tt":
            self._seconds += min(passed, max(self._LONGEST, used - self._used))
        self._last, self._used = now, used
        return self._seconds

    def _state(self) -> tuple[str, float]:
        """(letter of the state, seconds of all CPUs so far)."""
        try:
            fields = Path(f"/proc/{self._process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return "Z", 0.0
        return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_of(process: int) -> int:
    """Resident bytes of a process and its children; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        return own + sum(_memory_of(child) for child in _children_of(process))
    return 0


def _children_of(process: int) -> Iterator[int]:
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            yield from map(int, file.read_text().split())


def _serve(name: str) -> None:
    """Attempt the inputs that come on the standard input, each behind its length, and answer each with a line of JSON."""
    faulthandler.enable()
    # The code under attack gets neither stream: it must not read inputs or write answers.
    inputs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    target = target_named(name)
    assert target is not None

    def answer(said: str, *, error: bool = False, memory: float | None = None) -> None:
        answers.write(json.dumps({"said": said, "error": error, "memory": memory}) + "\n")
        answers.flush()

    answer("ready")
    for turn in itertools.count():
        if len(length := inputs.read(8)) < 8:
            break
        content = inputs.read(struct.unpack("<Q", length)[0])
        try:
            said, error = target.attempt(content), False
        except BaseException:  # whatever comes out is a finding
            said, error = traceback.format_exc()[-4000:], True
        sys.stderr.flush()
        answer(said, error=error, memory=None if turn % _MEASURED else _anonymous_mib())
    os._exit(0)  # an engine's threads may hang


def _anonymous_mib() -> float | None:
    """Of this process, without what the allocator could give back; None where the system does not say."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return None


def _table(reports: Sequence[Report], missing: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    kinds = sorted({kind for report in reports for kind in report.counts})
    table = Table("target", "seed", "inputs", *kinds, "slowest (s)")
    for report in reports:
        counts = (str(report.counts[kind]) for kind in kinds)
        table.add_row(report.target, str(report.seed), str(report.inputs), *counts, f"{report.slowest:.1f}")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for name in missing:
        print(f"{name}: there is no such target")


def main() -> None:
    """Fuzz, print a table, and end with 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Fuzz the project's targets.")
    parser.add_argument("--serve", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("--target", action="append", help=f"one of {', '.join(TARGETS)}; all if not given")
    parser.add_argument("--minutes", type=float, help="of each target")
    parser.add_argument("--count", type=int, help="inputs of each target")
    parser.add_argument("--seed", type=int, help="otherwise a new one")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="longest time for one input")
    options = parser.parse_args()
    if options.serve:
        _serve(options.serve)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    minutes = 1.0 if options.minutes is None and options.count is None else options.minutes
    limits = {"first": options.first, "count": options.count, "minutes": minutes, "seconds": options.seconds}
    reports, missing = [], []
    for name in options.target or TARGETS:
        if target_named(name) is None:
            missing.append(name)
            continue
        reports.append(report := fuzz(name, seed=seed, **limits))
        print(report, flush=True)
        for finding in report.findings:
            print(f"  {finding.kind}: {finding.description}, {finding.said.strip().splitlines()[-1:]} → {finding.file}")
    _table(reports, missing)
    sys.exit(1 if any(report.findings for report in reports) or (options.target and missing) else 0)


if __name__ == "__main__":
    main()
