"""The machine that a benchmark ran on, so that its numbers can be read elsewhere."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from ..runtime.host import cpu

__all__ = ["code_digest", "commit", "describe_host", "now", "stamp"]

_PACKAGES = ("rdsr", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")
_ROOT = Path(__file__).parent.parent
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
        import psutil

        memory_gb = round(psutil.virtual_memory().total / 2**30, 1)
    except ModuleNotFoundError:  # quality is measured without it as well
        memory_gb = None
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
        "memory_gb": memory_gb,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def stamp() -> dict[str, Any]:
    """What every report says of its measurement: "date", "commit", "host"."""
    return {"date": now(), "commit": commit(), "host": describe_host()}


def now() -> str:
    """UTC date and time, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit() -> str | None:
    """Short hash of the checkout that this package is; None outside a checkout.

    With "+" where files differ from it: code, weights, settings; documents and results decide nothing.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT.resolve():
            return None
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!*.md")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def code_digest(*folders: str) -> str:
    """Of the Python files in these folders of the package: what other code measured or made is something else."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (_ROOT / folder).rglob("*.py")):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
