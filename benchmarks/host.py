"""The machine that a benchmark ran on, so that its numbers can be read elsewhere."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from ..runtime import cpu

__all__ = ["commit", "describe_host", "now"]

_PACKAGES = ("rdsr", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_host() -> dict[str, Any]:
    """CPU, its instruction sets and their limit, cores, clock governor where it can be read, memory, system, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        governor = _GOVERNOR.read_text().strip()
    except OSError:
        governor = None
    return {
        "cpu": cpu.cpu_name(),
        "isa": cpu.instruction_set(),
        "isa_cap": cpu.isa_cap(),
        "cores": cpu.process_threads(),
        "governor": governor,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def now() -> str:
    """UTC date and time, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit() -> str | None:
    """Short hash of the checkout that this package is, with "+" where files differ from it; None outside a checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", "*.py") else "")
    except (OSError, subprocess.SubprocessError):
        return None
