"""New processes: for what must not be loaded into this one, and what forked ones have to forget."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["call_apart", "in_forked_children", "last_line"]

_CHILD = (
    "import importlib, json, sys; job = json.loads(sys.argv[1]); sys.path[:0] = job['path']; "
    "function = getattr(importlib.import_module(job['module']), job['function']); "
    "print(json.dumps(function(*job['arguments'])))"
)


def last_line(command: Sequence[str], *, timeout: float | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints last; `environment`: variables beside this process's own.

    Raises `ChildProcessError`, which says what went wrong, where it fails, prints nothing or takes too long.
    """
    import subprocess  # not with the module: few processes start others

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
    """Call a function of a module in a new Python; arguments and result travel as JSON. Raises as `last_line` does.

    `ChildProcessError`, too, where this program is not a Python that could be started once more: frozen, or embedded.
    """
    if getattr(sys, "frozen", False) or not os.path.basename(sys.executable or "").lower().startswith(("python", "pypy")):
        raise ChildProcessError("this program is no Python interpreter that could be started for it")
    path = [entry for entry in sys.path if entry]
    job = {"path": path, "module": module, "function": function, "arguments": list(arguments)}
    printed = last_line([sys.executable, "-c", _CHILD, json.dumps(job)], timeout=timeout, environment=environment)
    try:
        return json.loads(printed)
    except ValueError as error:
        raise ChildProcessError(str(error)) from error


def in_forked_children(function: Callable[[], None]) -> Callable[[], None]:
    """Decorator: `function` is called in every child forked from now on, before anything else runs there.

    It replaces locks that another thread of the parent may have held.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function
