"""Run commands in processes of their own, and see what they take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

__all__ = ["run"]


def run(*arguments: str) -> tuple[dict[str, Any], float, float]:
    """(the command's JSON, seconds, peak GiB of its process)."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "rdsr.cli", *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    printed = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(printed), time.perf_counter() - started, usage.ru_maxrss / 2**20
