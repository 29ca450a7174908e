"""Call functions in child processes with limits on time and memory: what they load may crash, hang or take all memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .processes import interpreter

__all__ = ["ChildLostError", "Limits", "call_watched"]

_POLL_SECONDS = 0.02
_IDLE_SECONDS = 20.0
"""Time without any work of the processor after which a child is taken for stuck."""
_PATIENCE_SECONDS = 5.0
_MOST_OUTPUT = 16 * 2**20
_KEPT_ERRORS = 4096
"""Bytes of the standard error that are kept, the last ones."""
_MOST_STEPS = 100
"""So many times the limit of one step is the limit of an orphan, whose parent no longer looks at it."""
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a child may use. Processor time counts, because the machine may be busy with other things."""

    seconds: float
    """Seconds of processor time for each step, of all threads together."""
    memory: int
    """Resident bytes. Engines reserve much more address space than they use."""


class ChildLostError(ChildProcessError):
    """The child crashed, hung or broke a limit: its work is at fault, not this machine."""


def call_watched(
    module: str,
    function: str,
    arguments: Sequence[Any],
    limits: Limits,
    *,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Call a function of this package in a new Python process, and end that process if it breaks a limit.

    Arguments and result travel as JSON. The function gets one more argument: a callback that it calls with the name of each
    step when it begins, which `progress` then gets, too. The child ends with this process, and if an error is raised here.

    Raises `ChildLostError`, whose text continues "it …", and `ChildProcessError` if no child can be started.
    """
    package = __name__.split(".")[0]
    job = {
        "parent": os.getpid(),
        "seconds": math.ceil(_MOST_STEPS * limits.seconds),
        "path": [os.path.abspath(entry) for entry in sys.path if entry],
        "package": [package, os.path.abspath(sys.modules[package].__path__[0])],
        "module": module,
        "function": function,
        "arguments": list(arguments),
    }
    script = Path(__file__).with_name("watched_child.py")
    command = [interpreter(), "-I", str(script), json.dumps(job)]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for this process, which then ends the child
        )
    except OSError as error:
        raise ChildProcessError(f"it cannot be started ({error.strerror})") from error
    try:
        return _result(child, limits, progress)
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _result(child: subprocess.Popen[bytes], limits: Limits, progress: Callable[[str], None] | None) -> Any:
    """Follow the child until its result is there."""
    assert child.stdout is not None
    assert child.stderr is not None
    watch = _Watch(child.pid, limits)
    printed, errors, step, total = b"", b"", "", 0
    with selectors.DefaultSelector() as streams:
        streams.register(child.stdout, selectors.EVENT_READ)
        streams.register(child.stderr, selectors.EVENT_READ)
        while streams.get_map():
            for key, _ in streams.select(_POLL_SECONDS):
                content = os.read(key.fd, 2**16)
                if not content:
                    streams.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    errors = (errors + content)[-_KEPT_ERRORS:]
                else:
                    printed += content
                    total += len(content)
            *lines, printed = printed.split(b"\n")
            for line in lines:
                kind, value = _message(line)
                if kind == "result":
                    return value
                step = str(value)
                watch.begin_step()
                if progress is not None:
                    progress(step)
            reason = watch.broken() if total <= _MOST_OUTPUT else "printed too much"
            if reason is not None:
                raise ChildLostError(f"{reason}{_during(step)}")
    with contextlib.suppress(subprocess.TimeoutExpired):  # both streams are closed, so it ends now
        child.wait(_PATIENCE_SECONDS)
    child.kill()
    reason = _end_of(child.wait(), errors)
    raise ChildLostError(f"{reason}{_during(step)}")


def _message(line: bytes) -> tuple[str, Any]:
    try:
        ((key, value),) = json.loads(line).items()
    except (ValueError, AttributeError) as error:
        raise ChildLostError("printed what is no message") from error
    return key, value


def _during(step: str) -> str:
    return f" ({step})" if step else ""


def _end_of(code: int, errors: bytes) -> str:
    """How a child ended that gave no result."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"crashed with {signal.Signals(-code).name}"
        return f"crashed with signal {-code}"
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    last = " ".join("".join(c if c.isprintable() else " " for c in lines[-1]).split())[:500] if lines else ""
    return f"failed: {last}" if last else f"ended with exit code {code} and no result"


class _Watch:
    """Looks at a child's time and memory. Where the system does not show them, only the time of the clock counts."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self._folder, self._limits = Path("/proc") / str(pid), limits
        self._begun = self._seen = time.monotonic()
        self._used, self._before, self._idle = -1.0, 0.0, 0.0

    def begin_step(self) -> None:
        """Count the time of the next step from here."""
        self._begun, self._before = time.monotonic(), max(self._used, 0.0)

    def broken(self) -> str | None:
        """Which limit the child has broken; None if it keeps to them."""
        now = time.monotonic()
        try:
            fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
            resident = int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):  # it has ended, or the system has no such files
            if self._used < 0 and now - self._begun > 10 * self._limits.seconds:
                return f"took more than {10 * self._limits.seconds:.0f} s"
            return None
        # A pause of the whole machine, or of its container, is no idleness of the child.
        self._idle = self._idle + min(now - self._seen, 5 * _POLL_SECONDS) if used == self._used else 0.0
        self._used, self._seen = used, now
        if resident > self._limits.memory:
            return f"took more than {self._limits.memory // _MIB} MiB of memory"
        if used - self._before > self._limits.seconds:
            return f"took more than {self._limits.seconds:.0f} s of processor time"
        if self._idle > _IDLE_SECONDS:
            if self._all_asleep():
                return f"stood still for {_IDLE_SECONDS:.0f} s"
            self._idle = 0.0
        return None

    def _all_asleep(self) -> bool:
        """Whether no thread waits for the processor or the disk, or was stopped: those will go on by themselves."""
        with contextlib.suppress(OSError):
            stats = [(task / "stat").read_text() for task in (self._folder / "task").iterdir()]
            return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)
        return False
