"""Other processes: new ones for what must not be loaded into this one, and forked ones, which must forget their parent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["call_apart", "in_forked_children", "interpreter", "last_line"]

_CHILD = (
    "import importlib, json, sys; job = json.loads(sys.argv[1]); sys.path[:0] = job['path']; "
    "function = getattr(importlib.import_module(job['module']), job['function']); "
    "print(json.dumps(function(*job['arguments'])))"
)


def interpreter() -> str:
    """The Python interpreter to start child processes with, also in a program that embeds Python, such as a web server.

    Raises `ChildProcessError` if there is none.
    """
    beside = os.path.join(sys.prefix, "bin", "python3")
    for path in (sys.executable, beside) if not getattr(sys, "frozen", False) else ():
        if path and os.path.basename(path).lower().startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return path
    raise ChildProcessError("this program is no Python interpreter that could be started again")


def last_line(command: Sequence[str], *, timeout: float | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return the last line that it prints. `environment`: variables beside this process's own.

    Raises `ChildProcessError` with the reason if the command fails, prints nothing or takes longer than `timeout` seconds.
    """
    import subprocess  # here, because few processes start others

    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, env=variables
        )
    except subprocess.TimeoutExpired as error:
        raise ChildProcessError(f"it took longer than {error.timeout:.0f} s") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise ChildProcessError(str(error)) from error
    if done.returncode:
        raise ChildProcessError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    if not (lines := done.stdout.splitlines()):
        raise ChildProcessError("it printed nothing")
    return lines[-1]


def call_apart(
    module: str,
    function: str,
    arguments: Sequence[Any],
    *,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call a function of a module in a new Python process. Arguments and result travel as JSON.

    Raises what `last_line` raises, and `ChildProcessError` in a frozen or embedding program, which cannot be started again.
    """
    path = [entry for entry in sys.path if entry]
    job = {"path": path, "module": module, "function": function, "arguments": list(arguments)}
    printed = last_line([interpreter(), "-c", _CHILD, json.dumps(job)], timeout=timeout, environment=environment)
    try:
        return json.loads(printed)
    except ValueError as error:
        raise ChildProcessError(str(error)) from error


def in_forked_children(function: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call `function` first in every later forked child, to replace locks that the parent's threads may hold."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function
