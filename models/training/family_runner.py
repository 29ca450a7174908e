"""Train the family for ever: slice after slice, each in a process of its own that can be killed at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import TrainingError
from .family import FamilyPlan, Member, Run, checkpoint_notes, current_run, minutes_of, runs_of

__all__ = [
    "StandAside",
    "adopted",
    "continue_family",
    "is_paused",
    "is_running",
    "next_member",
    "pause_family",
    "run_config",
    "run_family",
    "working_on",
]

_LOCK, _PAUSED, _WORKING = "family.lock", "paused", "working.json"
_MOST_FAILURES = 3
"""Slices in a row that end with an error; then the others go on without this member."""
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 120.0
"""How long pausing waits for the step in hand and its checkpoint."""
Report = Callable[[str], None]


def run_family(
    plan: FamilyPlan,
    folder: Path,
    *,
    threads: int | None = None,
    device: str = "auto",
    slices: int | None = None,
    report: Report = lambda line: None,
) -> None:
    """Train whoever is furthest behind its share, a slice at a time, for ever (or for a number of slices).

    SIGINT and SIGTERM end the step in hand and leave a checkpoint. Raises `TrainingError` where another process trains the
    same folder, a data folder is missing, or every member has failed several times in a row.
    """
    for path in (*plan.data, *plan.teacher, plan.validation):
        if not Path(path).is_dir():
            raise TrainingError(f"the plan's folder {path} does not exist")
    plan.check_configs()
    folder.mkdir(parents=True, exist_ok=True)
    stop = _Stop()
    failures = dict.fromkeys((member.name for member in plan.members), 0)
    with _only_one(folder) as lock, _signals_set(stop):
        if is_paused(folder):
            report("paused; `rdsr train family continue` lets it go on")
        done = 0
        while not stop.asked and (slices is None or done < slices):
            _say_working(folder, {"member": "", "run": ""})  # before looking: who pauses waits until this is gone
            if is_paused(folder):
                (folder / _WORKING).unlink(missing_ok=True)
                time.sleep(_POLL_SECONDS)
                continue
            able = [member for member in plan.members if failures[member.name] < _MOST_FAILURES]
            if not able:
                raise TrainingError(f"every member has failed {_MOST_FAILURES} times in a row; see failed.txt in {folder}/*")
            run = current_run(next_member(able, folder), folder)
            code = _slice(plan, run, folder, lock, stop, threads=threads, device=device)
            failures[run.member.name] = 0 if code == 0 else failures[run.member.name] + 1
            state = run.state()
            quality = "" if state.psnr_y is None else f", {state.psnr_y:.3f} dB (best {state.best:.3f})"
            how = "" if code == 0 else f", ended with {code}"
            report(f"{run.member.name}, {run.label}: step {state.step} of {state.iterations or '?'}{quality}{how}")
            done += 1


class _Stop:
    """Whether somebody wants the family to stop; set by signal handlers, which must not touch locks."""

    asked = False


def next_member(members: list[Member], folder: Path) -> Member:
    """Who has had the least of its share of the time."""
    return min(members, key=lambda member: minutes_of(member, folder) / member.share)


def _slice(plan: FamilyPlan, run: Run, folder: Path, lock: IO[str], stop: _Stop, *, threads: int | None, device: str) -> int:
    """Train one run for a slice, in a process of its own; returns its exit code, 0 where it was asked to stop."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    failed = run.folder.parent / "failed.txt"
    try:
        config = run_config(plan, run, folder)
    except TrainingError as error:  # of this member; the others go on
        failed.write_text(f"{error}\n")
        (folder / _WORKING).unlink(missing_ok=True)
        return 1
    job = {
        "config": config,
        "folder": str(run.folder),
        "validation": plan.validation,
        "seconds": plan.slice_minutes * 60,
        "threads": threads,
        "device": device,
        "stand_aside": plan.stand_aside,
    }
    # Spinning OpenMP threads would take the cores from whoever works beside, whatever their priority.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    messages = run.folder.parent / "messages.txt"
    with messages.open("a") as stderr:
        # The child holds the lock as well: it may outlive a parent that is killed, by a step.
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(job)],
            stdin=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
    assert child.stdin is not None
    _say_working(folder, {"member": run.member.name, "run": run.label})
    asked = False
    while child.poll() is None:
        if not asked and (stop.asked or is_paused(folder)):
            child.stdin.close()  # which the child takes as the wish to stop, as it takes its parent's death
            asked = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_SECONDS)
    with contextlib.suppress(OSError):
        child.stdin.close()
    (folder / _WORKING).unlink(missing_ok=True)
    if child.returncode == 0:
        failed.unlink(missing_ok=True)
    else:
        last = messages.read_text(errors="replace").strip().splitlines()[-1:]
        failed.write_text("".join(last) + f" (exit code {child.returncode})\n")
    return child.returncode


def _say_working(folder: Path, work: dict[str, Any]) -> None:
    temporary = folder / f"{_WORKING}.tmp"
    temporary.write_text(json.dumps(work | {"runner": os.getpid()}))
    temporary.replace(folder / _WORKING)


def run_config(plan: FamilyPlan, run: Run, folder: Path) -> dict[str, Any]:
    """Fields of the run's `TrainConfig`: a run that has begun keeps what it began with, but for where the data lies."""
    where = {"data": list(plan.data), "teacher": list(plan.teacher)}
    if (begun := run.config()) and (run.folder / "state.pt").is_file():
        return begun | where
    from .config import TrainConfig, find_config

    config = TrainConfig.load(find_config(Path(run.stage.config)), **where, **run.stage.overrides).to_dict()
    if run.stage.grows:
        config["iterations"] = round(config["iterations"] * plan.growth ** (run.round - 1))
    config["seed"] += run.round - 1  # other patches in every round
    init = _start_of(run, config["stage"], folder)
    return config | {"init": init, "grow": config["grow"] and init == run.member.init}


def _start_of(run: Run, stage: str, folder: Path) -> str:
    """The checkpoint that a run starts from: what the round has come to, the best so far for a new round or for qat."""
    before = [r for r in runs_of(run.member, folder, run.round) if r.state().finished and r.kind != "qat"]
    this_round = [r for r in before if r.round == run.round]
    if this_round and stage != "qat":
        return str(this_round[-1].result())
    deployable = [(r.state().best or 0.0, r.result()) for r in before if r.kind == "stage2"]
    if (brought := adopted(run.member, folder)) is not None:
        deployable.append(brought)
    if deployable:
        return str(max(deployable, key=lambda weights: weights[0])[1])
    return str(before[-1].result()) if before else run.member.init


def adopted(member: Member, folder: Path) -> tuple[float, Path] | None:
    """PSNR-Y of the validation set and path of weights that were brought from elsewhere, a GPU say."""
    path = folder / member.name / "adopted.safetensors"
    notes = checkpoint_notes(path)
    return (float(notes["psnr_y"]), path) if "psnr_y" in notes else None


# -- one at a time, pausing ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock; a child of a runner that was killed gives it up after the step in hand."""
    with (folder / _LOCK).open("a") as file:
        patience = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > patience or not _orphaned(folder):
                    raise TrainingError(f"another process trains the family in {folder}") from error
                time.sleep(_POLL_SECONDS)
        (folder / _WORKING).unlink(missing_ok=True)
        yield file


def _orphaned(folder: Path) -> bool:
    """Whether the slice under way has lost its runner, so that it will end with the step in hand."""
    work = working_on(folder)
    try:
        os.kill(work["runner"] if work else os.getpid(), 0)
    except (OSError, KeyError):
        return True
    return work is None  # between two slices; if a runner lives, it will show in a moment


def is_running(folder: Path) -> bool:
    """Whether a process trains the family in this folder."""
    if not (folder / _LOCK).is_file():
        return False
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def working_on(folder: Path) -> dict[str, Any] | None:
    """What is being trained now: "member", "run", "runner" (a process id); None while nothing is."""
    try:
        return dict(json.loads((folder / _WORKING).read_text()))
    except (OSError, ValueError):
        return None


def is_paused(folder: Path) -> bool:
    """Whether the family is to wait."""
    return (folder / _PAUSED).exists()


def pause_family(folder: Path) -> None:
    """Ask the family to wait, and return once it does: no core is taken any more, nothing is lost."""
    if not folder.is_dir():
        raise TrainingError(f"there is no family in training in {folder}")
    (folder / _PAUSED).touch()
    patience = time.monotonic() + _PATIENCE_SECONDS
    while is_running(folder) and working_on(folder) is not None:
        if time.monotonic() > patience:
            raise TrainingError(f"the slice under way in {folder} has not ended within {_PATIENCE_SECONDS:.0f} seconds")
        time.sleep(0.1)


def continue_family(folder: Path) -> None:
    """Let a paused family go on."""
    (folder / _PAUSED).unlink(missing_ok=True)


@contextlib.contextmanager
def _signals_set(stop: _Stop) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`, also where the shell had them ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        stop.asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# -- the slice's own process ----------------------------------------------------------------------------------------------


def _lowest_priority() -> None:
    """Let everybody else on the machine go first."""
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class StandAside:
    """Waits while others use so much of the machine that training would take from them, whatever its priority.

    Idle priority alone is not enough: two threads of one core share its units, all cores the memory. Tests beside a family
    took 1.9 times as long. Does nothing where there is no /proc/stat.
    """

    def __init__(self, threads: int) -> None:
        self._most = (os.cpu_count() or 1) - threads + 0.5
        self._seen = time.monotonic(), _others_seconds()
        self._busy = False

    def __call__(self) -> float:
        """Seconds that it has waited, 0 where nobody else is busy."""
        now = time.monotonic()
        if now - self._seen[0] >= _POLL_SECONDS:
            others = _others_seconds()
            self._busy = others - self._seen[1] > self._most * (now - self._seen[0])
            self._seen = now, others
        if not self._busy:
            return 0.0
        time.sleep(_POLL_SECONDS)
        return _POLL_SECONDS


def _others_seconds() -> float:
    """Processor seconds that all but processes of low priority have used."""
    try:
        user, _, system = (int(value) for value in Path("/proc/stat").read_text().split(None, 4)[1:4])
    except (OSError, ValueError):
        return 0.0
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _stop_with_parent() -> None:
    """Interrupt this process when its standard input ends: the runner wants it to stop, or is no more."""

    def watch() -> None:
        while os.read(0, 4096):  # not by sys.stdin, whose lock the interpreter needs to end
            pass
        while True:  # one may get lost where Python is about to end or to start something
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    threading.Thread(target=watch, name="rdsr-family-parent", daemon=True).start()


def _child(job: dict[str, Any]) -> int:
    from ..errors import CheckpointError
    from .config import TrainConfig
    from .run import train

    run = Path(job["folder"])
    config = TrainConfig.from_values(job["config"], str(run))
    try:
        train(
            config,
            run,
            resume=(run / "state.pt").is_file(),
            validation=Path(job["validation"]),
            device=job["device"],
            threads=job["threads"],
            seconds=job["seconds"],
            hold=StandAside(job["threads"] or os.cpu_count() or 1) if job["stand_aside"] else None,
        )
    except (TrainingError, CheckpointError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _lowest_priority()
    try:
        _stop_with_parent()
        sys.exit(_child(json.loads(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(0)
