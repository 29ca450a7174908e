"""How commands talk: text and JSON on stdout, progress and errors on stderr, whatever these streams are."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..runtime.files import dump_json

__all__ = [
    "binary_stdin", "binary_stdout", "counted", "lost_output", "prepare_streams", "print_json", "print_table", "printable",
    "printed_json", "stderr", "stdout", "steps_shown",
]  # fmt: skip

# Without a terminal, rich would squeeze tables into 80 columns. A stream that was closed before we started is None.
_WIDTH = None if sys.stdout is not None and sys.stdout.isatty() else 160
# No markup: file names and bundles may hold square brackets.
stdout = Console(soft_wrap=True, width=_WIDTH, markup=False, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
_NOBODY_READS = {errno.EPIPE, errno.EBADF}


class _ToleratedOutput(io.RawIOBase):
    """A file descriptor whose errors are kept, not raised: a report that cannot be printed must not end the command."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        while self.error is None:
            try:
                return os.write(self._descriptor, content)
            except BlockingIOError:  # the other end of the pipe has made it non-blocking
                select.select((), (self._descriptor,), ())
            except OSError as error:
                self.error = error
        return len(memoryview(content).cast("B"))


_ESCAPED = ("Cc", "Cf", "Cs")
_raw_stdout: _ToleratedOutput | None = None
_stdout_was_closed = False


def prepare_streams() -> None:
    """Make printing safe, for the whole process: no encoding, and no closed or full stream, makes it fail.

    What an encoding does not have is printed as an escape. The first three file descriptors are opened if they are closed,
    because the next file that is opened would become the standard output, and libraries would print into it.
    """
    global _raw_stdout, _stdout_was_closed
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            _stdout_was_closed |= descriptor == 1
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        with contextlib.suppress(OSError, AttributeError):
            old.flush()
        raw = _ToleratedOutput(descriptor)
        encoding = getattr(old, "encoding", None) or "utf-8"
        at_once = raw.isatty() or name == "stderr"
        new = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=at_once)
        setattr(sys, name, new)
        if name == "stdout":
            _raw_stdout = raw


def lost_output() -> str | None:
    """What kept the report from being written. None if nothing did, or if there is nobody to read it."""
    if _raw_stdout is None:
        return None
    sys.stdout.flush()
    error = _raw_stdout.error
    return None if error is None or error.errno in _NOBODY_READS else error.strerror


def binary_stdout() -> BinaryIO | None:
    """The standard output for bytes, whose errors are raised; None if it was closed when the process began."""
    if _raw_stdout is None:
        return sys.stdout.buffer
    sys.stdout.flush()
    return None if _stdout_was_closed else os.fdopen(1, "wb", closefd=False)


def binary_stdin() -> BinaryIO | None:
    """The standard input for bytes; None if it was closed when the process began."""
    return None if sys.stdin is None else sys.stdin.buffer


def printable(text: object) -> str:
    """The text with escapes for control and format characters, and for what is no Unicode.

    Control characters could do anything to a terminal; format characters turn the direction of writing, or are not seen.
    """
    escaped = (c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED else c for c in str(text))
    return "".join(escaped)


def print_table(table: Table) -> None:
    """Print a table. Where no terminal shows it, nothing in it is cut or folded: a script may search for it."""
    if stdout.is_terminal:
        stdout.print(table)
        return
    before = stdout.width
    stdout.width = max(before, stdout.measure(table, options=stdout.options.update(max_width=10_000)).maximum)
    stdout.print(table)
    stdout.width = before


_printed_json = False


def printed_json() -> bool:
    """Whether this process has printed its JSON object."""
    return _printed_json


def print_json(content: Any) -> None:
    global _printed_json
    _printed_json = True
    sys.stdout.write(dump_json(content))
    sys.stdout.flush()


def _hidden() -> bool:
    """Whether progress is not shown: under `--json`, and where it could only leave empty lines."""
    return stderr.quiet or not stderr.is_terminal


@contextlib.contextmanager
def steps_shown(title: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that shows the present step of a long job."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=_hidden()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda step: progress.update(task, description=f"{title}: {step}")


@contextlib.contextmanager
def counted(title: str, total: int) -> Iterator[tuple[Progress, Any]]:
    """A progress bar on stderr for `total` things, and its task."""
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    # Speed over an hour: slow things, or things that come a hundred at a time, have no second sample within half a minute.
    with Progress(*columns, console=stderr, transient=True, disable=_hidden(), speed_estimate_period=3600) as progress:
        yield progress, progress.add_task(title, total=total)
