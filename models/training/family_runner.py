"""Train the family for ever, in slices. Each slice is a separate process, which may be killed at any moment."""

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

from ...errors import RdsrError
from .errors import TrainingError
from .family import FamilyPlan, Member, Run, checkpoint_notes, current_run, minutes_of, runs_of
from .signals import Stop, stop_on

__all__ = [
    "StandAside", "adopted", "continue_family", "is_paused", "is_running", "next_member", "pause_family", "run_config",
    "run_family", "status_of", "working_on",
]  # fmt: skip

_LOCK, _PAUSED, _WORKING = "family.lock", "paused", "working.json"
_MOST_FAILURES = 3  # failed slices in a row, after which a member is left out
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 120.0  # for the step in hand and its checkpoint


def run_family(
    plan: FamilyPlan,
    folder: Path,
    *,
    threads: int | None = None,
    device: str = "auto",
    slices: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the member that is furthest behind its share, slice after slice, for ever (or for `slices`).

    SIGINT and SIGTERM finish the step in hand and write a checkpoint. Raises `TrainingError` if another process trains the
    same folder, a data folder is missing, a config does not fit, or every member has failed several times in a row.
    """
    for path in (*plan.data, *plan.teacher, plan.validation):
        if not Path(path).is_dir():
            raise TrainingError(f"the plan's folder {path} does not exist")
    plan.check_configs()
    folder.mkdir(parents=True, exist_ok=True)
    failures = {member.name: 0 for member in plan.members}
    done = 0
    with _only_one(folder) as lock, stop_on(signal.SIGINT, signal.SIGTERM) as stop:
        if is_paused(folder):
            report("paused; `rdsr train family continue` resumes it")
        while not stop.asked and (slices is None or done < slices):
            _say_working(folder, {"member": "", "run": ""})  # before the check: pausing waits until it is gone
            if is_paused(folder):
                (folder / _WORKING).unlink(missing_ok=True)
                time.sleep(_POLL_SECONDS)
                continue
            able = [member for member in plan.members if failures[member.name] < _MOST_FAILURES]
            if not able:
                raise TrainingError(f"every member has failed {_MOST_FAILURES} times in a row; see {folder}/*/failed.txt")
            run = current_run(next_member(able, folder), folder)
            code = _slice(plan, run, folder, lock, stop, threads=threads, device=device)
            failures[run.member.name] = 0 if code == 0 else failures[run.member.name] + 1
            state = run.state()
            quality = "" if state.psnr_y is None else f", {state.psnr_y:.3f} dB (best {state.best:.3f})"
            how = "" if code == 0 else f", ended with {code}"
            report(f"{run.member.name}, {run.label}: step {state.step} of {state.iterations or '?'}{quality}{how}")
            done += 1


def next_member(members: list[Member], folder: Path) -> Member:
    """The member that is furthest behind its share of the time."""
    return min(members, key=lambda member: minutes_of(member, folder) / member.share)


def _slice(plan: FamilyPlan, run: Run, folder: Path, lock: IO[str], stop: Stop, *, threads: int | None, device: str) -> int:
    """Train one run for a slice in a separate process; returns its exit code, which is 0 after a wish to stop."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    failed, messages = run.folder.parent / "failed.txt", run.folder.parent / "messages.txt"
    try:
        config = run_config(plan, run, folder)
    except TrainingError as error:  # concerns this member; the others continue
        failed.write_text(f"{error}\n")
        (folder / _WORKING).unlink(missing_ok=True)
        return 1
    options = {"device": device, "threads": threads, "seconds": plan.slice_minutes * 60}
    job = {"config": config, "folder": str(run.folder), "validation": plan.validation, "stand_aside": plan.stand_aside}
    # Idle OpenMP threads that spin would take the cores from other processes even at the lowest priority.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    with (
        messages.open("a") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(job | {"options": options})],
            stdin=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            pass_fds=[lock.fileno()],  # the child holds the lock, too: it may outlive a killed parent by a step
            start_new_session=True,
        ) as child,
    ):
        assert child.stdin is not None
        _say_working(folder, {"member": run.member.name, "run": run.label})
        while child.poll() is None:
            if stop.asked or is_paused(folder):
                child.stdin.close()  # asks the child to stop, as the parent's death does
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
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


def status_of(plan: FamilyPlan, folder: Path) -> dict[str, Any]:
    """Whether the family trains, and for each member its stage, step, minutes, validation PSNR, best values and failure."""
    state = "paused" if is_paused(folder) else "running" if is_running(folder) else "not running"
    work = working_on(folder) if state == "running" else None
    members = []
    for member in plan.members:
        run = current_run(member, folder)
        now, failed = run.state(), folder / member.name / "failed.txt"
        bests: dict[str, float] = {}
        for each in runs_of(member, folder, run.round):
            if (best := each.state().best) is not None:
                bests[each.kind] = max(best, bests.get(each.kind, 0.0))
        members.append(
            {
                "member": member.name, "now": bool(work and work.get("member") == member.name), "round": run.round,
                "stage": run.stage.name, "step": now.step, "iterations": now.iterations,
                "minutes": round(minutes_of(member, folder), 1), "psnr_y": now.psnr_y, "best": bests.get("stage2"),
                "best_int8": bests.get("qat"), "failed": failed.read_text().strip() if failed.is_file() else "",
            }
        )  # fmt: skip
    return {"runs": str(folder), "state": state, "validation": plan.validation, "members": members}


def run_config(plan: FamilyPlan, run: Run, folder: Path) -> dict[str, Any]:
    """Fields of the run's `TrainConfig`. A run that has begun keeps them, except for the folders of the data."""
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
    """The checkpoint that a run starts from: the round's last result; for a new round and for qat the best so far."""
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
    """(PSNR-Y in dB on the validation set, path) of adopted weights, trained elsewhere, e.g. on a GPU; None without any."""
    path = folder / member.name / "adopted.safetensors"
    notes = checkpoint_notes(path)
    return (float(notes["psnr_y"]), path) if "psnr_y" in notes else None


# -- one at a time, pausing ---------------------------------------------------------------------------------------------


def _locked(file: IO[str]) -> bool:
    """Take the lock of a file, unless another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[IO[str]]:
    """Hold the folder's lock. The child of a killed runner releases it after the step in hand, so wait for that."""
    with (folder / _LOCK).open("a") as file:
        patience = time.monotonic() + _PATIENCE_SECONDS
        while not _locked(file):
            if time.monotonic() > patience or not _orphaned(folder):
                raise TrainingError(f"another process trains the family in {folder}")
            time.sleep(_POLL_SECONDS)
        (folder / _WORKING).unlink(missing_ok=True)
        yield file


def _orphaned(folder: Path) -> bool:
    """Whether the current slice has lost its runner; it will then end with the step in hand."""
    work = working_on(folder)
    try:
        os.kill(work["runner"] if work else os.getpid(), 0)
    except (OSError, KeyError):
        return True
    return work is None  # between two slices; a living runner will show up in a moment


def is_running(folder: Path) -> bool:
    """Whether a process trains the family in this folder."""
    if not (folder / _LOCK).is_file():
        return False
    with (folder / _LOCK).open("a") as file:
        return not _locked(file)


def working_on(folder: Path) -> dict[str, Any] | None:
    """The current slice: "member", "run", "runner" (a process id); None if there is none."""
    try:
        return dict(json.loads((folder / _WORKING).read_text()))
    except (OSError, ValueError):
        return None


def is_paused(folder: Path) -> bool:
    """Whether somebody has paused the family."""
    return (folder / _PAUSED).exists()


def pause_family(folder: Path) -> None:
    """Pause the family; returns once the cores are free. `TrainingError` without a folder or after 120 seconds."""
    if not folder.is_dir():
        raise TrainingError(f"no family has been trained in {folder}")
    (folder / _PAUSED).touch()
    patience = time.monotonic() + _PATIENCE_SECONDS
    while is_running(folder) and working_on(folder) is not None:
        if time.monotonic() > patience:
            raise TrainingError(f"the current slice in {folder} has not ended within {_PATIENCE_SECONDS:.0f} seconds")
        time.sleep(0.1)


def continue_family(folder: Path) -> None:
    """Let a paused family continue."""
    (folder / _PAUSED).unlink(missing_ok=True)


# -- the slice's own process ----------------------------------------------------------------------------------------------


def _lowest_priority() -> None:
    """Let all other processes on the machine go first."""
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class StandAside:
    """Wait while others use so much of the machine that training would slow them down even at the lowest priority.

    Idle priority is not enough: the two threads of a core share its units, and all cores share the memory. Tests beside a
    family took 1.9 times as long. Without /proc/stat it never waits.
    """

    def __init__(self, threads: int) -> None:
        self._most = (os.cpu_count() or 1) - threads + 0.5
        self._seen = time.monotonic(), _others_seconds()
        self._busy = False

    def __call__(self) -> float:
        """Wait a little if others are busy; returns the seconds waited, 0 if they are not."""
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
    """Processor seconds used so far by processes of normal priority."""
    try:
        user, _, system = (int(value) for value in Path("/proc/stat").read_text().split(None, 4)[1:4])
    except (OSError, ValueError):
        return 0.0
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _stop_with_parent() -> None:
    """Interrupt this process when its standard input ends: the runner wants it to stop, or has died."""

    def watch() -> None:
        while os.read(0, 4096):  # not by sys.stdin: the interpreter needs its lock to exit
            pass
        while True:  # a signal may get lost while Python starts something or exits
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    threading.Thread(target=watch, name="rdsr-family-parent", daemon=True).start()


def _train(job: dict[str, Any]) -> int:
    from .config import TrainConfig
    from .run import train

    run = Path(job["folder"])
    hold = StandAside(job["options"]["threads"] or os.cpu_count() or 1) if job["stand_aside"] else None
    try:
        config = TrainConfig.from_values(job["config"], str(run))
        resume = (run / "state.pt").is_file()
        train(config, run, resume=resume, validation=Path(job["validation"]), hold=hold, **job["options"])
    except RdsrError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _lowest_priority()
    try:
        _stop_with_parent()
        sys.exit(_train(json.loads(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(0)
