"""Exit codes, and the decorator that turns errors and interruptions into one sentence and an exit code.

0 done; 1 something failed while running; 2 the user's input is at fault; 3 the int8 gate was not met; 130 Ctrl-C;
143 SIGTERM; a second one of these ends the process at once (`signals.py`). A closed stdout, or a pipe whose reader is gone,
changes none of them, as only the report is lost; a report that a full disk cuts short makes 0 a 1.
"""

from __future__ import annotations

import errno
import functools
import logging
import signal
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import typer

from ..errors import shortened
from .console import print_json, printable, stderr

__all__ = [
    "BAD_INPUT", "FAILED", "GATE_NOT_MET", "INTERRUPTED", "Terminated", "command", "exit_code_of", "fail", "sentence_of",
]  # fmt: skip

Command = TypeVar("Command", bound=Callable[..., None])
FAILED, BAD_INPUT, GATE_NOT_MET, INTERRUPTED = 1, 2, 3, 130
_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxsim"), "export"),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "multipart", "fastapi_swagger"), "serve"),
    **dict.fromkeys(("ray", "fsspec"), "ray"),
    **dict.fromkeys(("matplotlib", "psutil", "jinja2", "pydantic", "textalloc"), "bench"),
}
"""Package that may be missing → the extra that installs it."""
_FAILURES = {
    errno.ENOSPC,
    errno.EFBIG,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EPIPE,
}
"""What the operating system reports about the machine, rather than about a name that the user gave."""


class Terminated(SystemExit):
    """SIGTERM arrived."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def exit_code_of(error: Exception) -> int | None:
    """2 if the user's input is at fault, 1 if something failed while running, None for a bug."""
    from ..export.errors import ProofError
    from ..runtime.errors import EngineError, RdsrError

    cause = error.__cause__ if isinstance(error, RdsrError) else error
    if isinstance(cause, OSError) and cause.errno in _FAILURES:
        return FAILED
    if isinstance(error, RdsrError):
        return FAILED if isinstance(error, (EngineError, ProofError)) else BAD_INPUT
    if isinstance(error, OSError):
        return BAD_INPUT
    if _is_about_a_name(error):
        return BAD_INPUT
    if isinstance(error, MemoryError) or (isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS):
        return FAILED
    return None


def _is_about_a_name(error: Exception) -> bool:
    """Whether a name holds a null byte, or is no Unicode and was given to a library that takes nothing else."""
    if isinstance(error, UnicodeEncodeError):
        return any("\udc80" <= character <= "\udcff" for character in error.object)
    return isinstance(error, ValueError) and str(error).startswith("embedded null")


def sentence_of(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this command needs {error.name}, which is not installed: pip install 'rdsr[{_EXTRAS[str(error.name)]}]'"
    if isinstance(error, OSError) and error.filename is not None:
        return printable(f"cannot use {error.filename}: {error.strerror}")
    if isinstance(error, UnicodeEncodeError):
        return f"cannot use the name {printable(error.object)}: it is no Unicode"
    if isinstance(error, ValueError) and _is_about_a_name(error):
        return "a name holds a null byte"
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {error}" if str(error) else "there is not enough memory"
    return printable(shortened(" ".join(str(error).split()), 1500))


def fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    stderr.print(f"rdsr: {sentence}", style="red")
    if as_json:
        print_json({"error": sentence, "exit_code": code})
    raise typer.Exit(code)


def command(function: Command) -> Command:
    """A command whose errors become one sentence and an exit code, and whose `--json` output stays one object, always."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        stderr.quiet = as_json
        logging.basicConfig(format="rdsr: %(message)s", level=logging.ERROR if as_json else logging.WARNING)
        try:
            function(*args, **options)
        except (KeyboardInterrupt, Terminated) as stop:
            code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else int(str(stop.code))
            stderr.print("rdsr: interrupted")
            if as_json:
                print_json({"error": "interrupted", "interrupted": True, "exit_code": code})
            raise typer.Exit(code) from None
        except Exception as error:
            code_of_error = exit_code_of(error)
            if code_of_error is None:
                raise
            stderr.quiet = False
            fail(sentence_of(error), code_of_error, as_json)

    return wrapped  # type: ignore[return-value]
