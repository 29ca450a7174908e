"""The first code of a watched child process: `python -I watched_child.py JOB`, see `watched.py`.

It runs as a script, because nothing of the package can be imported before its place is known. Nobody imports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def _end_with(parent: int, seconds: int) -> None:
    """Let the kernel end this process with its parent, and after so many seconds of processor time in any case."""
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError, ValueError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _open_package(name: str, folder: str) -> None:
    """Import the package from its folder, which may have another name."""
    place = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])
    assert place is not None
    assert place.loader is not None
    package = importlib.util.module_from_spec(place)
    sys.modules[name] = package
    place.loader.exec_module(package)


def main() -> None:
    """Call the job's function with a callback for its steps, and print steps and result as lines of JSON."""
    job = json.loads(sys.argv[1])
    _end_with(job["parent"], job["seconds"])
    lines = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print goes to the errors

    def tell(key: str, value: Any) -> None:
        print(json.dumps({key: value}), file=lines, flush=True)

    sys.path[:] = job["path"]
    _open_package(*job["package"])
    function = getattr(importlib.import_module(job["module"]), job["function"])
    tell("result", function(*job["arguments"], lambda step: tell("step", step)))
    os._exit(0)  # an engine may not survive its end


if __name__ == "__main__":
    main()
