"""Memory of this process."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["peak_mb", "resident_mb"]


def resident_mb() -> float:
    """Resident memory now, MiB."""
    return psutil.Process().memory_info().rss / 2**20


def peak_mb() -> float:
    """The most it has ever been, MiB; Linux alone (`getrusage` would count the process that started this one)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**10
