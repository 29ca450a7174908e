"""Exit codes, and the decorator that turns errors and Ctrl-C into one sentence and an exit code."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import typer

from .console import print_json, stderr

__all__ = ["BAD_INPUT", "FAILED", "GATE_NOT_MET", "INTERRUPTED", "command", "exit_code_of", "fail"]

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
