"""How commands talk: text and JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

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

from ..runtime.files import dump_json

__all__ = ["counted", "print_json", "stderr", "stdout", "steps_shown"]

_WIDTH = None if sys.stdout.isatty() else 160  # without a terminal, rich would squeeze tables into 80 columns
# No markup: file names and bundles may hold square brackets.
stdout = Console(soft_wrap=True, width=_WIDTH, markup=False, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def print_json(content: Any) -> None:
    sys.stdout.write(dump_json(content))
    sys.stdout.flush()


@contextlib.contextmanager
def steps_shown(title: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that shows the present step of a long job."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=stderr.quiet) as progress:
        task = progress.add_task(title, total=None)
        yield lambda step: progress.update(task, description=f"{title}: {step}")


@contextlib.contextmanager
def counted(title: str, total: int) -> Iterator[tuple[Progress, Any]]:
    """A progress bar on stderr for `total` things, and its task."""
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    # Speed over an hour: slow things, or things that come a hundred at a time, have no second sample within half a minute.
    with Progress(*columns, console=stderr, transient=True, disable=stderr.quiet, speed_estimate_period=3600) as progress:
        yield progress, progress.add_task(title, total=total)
