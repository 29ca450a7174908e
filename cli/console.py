"""Helpers that all commands share: exit codes, one sentence for an error, progress on stderr, JSON on stdout."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import typer
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

__all__ = [
    "BAD_INPUT", "FAILED", "GATE_NOT_MET", "INTERRUPTED", "command", "counted", "exit_code_of", "fail", "print_json",
    "stderr", "stdout", "steps_shown",
]  # fmt: skip

_WIDTH = None if sys.stdout.isatty() else 160  # without a terminal, rich would squeeze tables into 80 columns
# No markup: file names and bundles may hold square brackets.
stdout = Console(soft_wrap=True, width=_WIDTH, markup=False, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
Command = TypeVar("Command", bound=Callable[..., None])

FAILED, BAD_INPUT, GATE_NOT_MET, INTERRUPTED = 1, 2, 3, 130
_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxsim"), "export"),
    **dict.fromkeys(("matplotlib", "psutil", "jinja2", "pydantic", "textalloc"), "bench"),
}
"""Package that may be missing → the extra that installs it."""


def exit_code_of(error: Exception) -> int | None:
    """2 if the user's input is at fault, 1 if something failed while running, None for a bug."""
    from ..export.errors import ProofError
    from ..runtime.errors import EngineError, RdsrError

    if isinstance(error, RdsrError):
        return FAILED if isinstance(error, (EngineError, ProofError)) else BAD_INPUT
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return FAILED
    return None


def sentence_of(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs {error.name}, which is not installed: pip install 'rdsr[{_EXTRAS[str(error.name)]}]'"
    return " ".join(str(error).split())


def fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    stderr.print(f"rdsr: {sentence}", style="red")
    if as_json:
        print_json({"error": sentence, "exit_code": code})
    raise typer.Exit(code)


def command(function: Command) -> Command:
    """A command whose errors become one sentence and an exit code (Ctrl-C: 130), and whose `--json` output stays clean."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        stderr.quiet = as_json
        logging.basicConfig(format="rdsr: %(message)s", level=logging.ERROR if as_json else logging.WARNING)
        try:
            function(*args, **options)
        except KeyboardInterrupt:
            stderr.print("rdsr: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            code = exit_code_of(error)
            if code is None:
                raise
            stderr.quiet = False
            fail(sentence_of(error), code, as_json)

    return wrapped  # type: ignore[return-value]


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
