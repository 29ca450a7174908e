"""Memory of processes."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["peak_mb", "resident_mb"]


def resident_mb(pid: int | None = None) -> float:
    """Return the resident memory of a process now, MiB; None is this one. Raises `psutil.Error` if there is none."""
    return psutil.Process(pid).memory_info().rss / 2**20


def peak_mb() -> float:
    """Return the largest resident memory so far, MiB. Linux only. (`getrusage` would count the parent process too.)"""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**10
