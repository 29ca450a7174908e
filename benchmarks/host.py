"""Describe the machine and the code of a measurement, so that its numbers can be read elsewhere."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..runtime.host import cpu

__all__ = ["ISA_FOLDERS", "code_digest", "isa_folder", "stamp"]

_PACKAGES = ("rdsr", "numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch")
_ROOT = Path(__file__).parent.parent
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def stamp() -> dict[str, Any]:
    """Return the head of every report: "date" (UTC, ISO 8601, to the second), "commit" and "host"."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"date": now, "commit": _commit(), "host": _host()}


ISA_FOLDERS: dict[str, set[str]] = {
    "amx": {"amx_int8"},
    "avx512-vnni": {"avx512_vnni"},
    "avx512": {"avx512f"},
    "avx2-vnni": {"avx_vnni"},
    "avx2": {"avx2"},
    "other": set(),
}
"""Folder of `benchmarks/results` → flags of the CPUs whose results it holds, the fastest in int8 first."""


def isa_folder() -> str:
    """The first folder of `ISA_FOLDERS` whose flags this CPU has."""
    return next(name for name, flags in ISA_FOLDERS.items() if flags <= cpu.cpu_flags())


def _host() -> dict[str, Any]:
    """Return CPU, instruction sets, memory (GiB), system and versions; None for what this machine does not reveal."""
    versions, memory_gb, governor = {}, None, None
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    with suppress(ModuleNotFoundError):  # quality can be measured without psutil
        import psutil

        memory_gb = round(psutil.virtual_memory().total / 2**30, 1)
    with suppress(OSError):
        governor = _GOVERNOR.read_text().strip()
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


def _commit() -> str | None:
    """Return the short hash of the checkout that holds this package; None outside a checkout.

    A "+" follows if tracked files differ from the commit. Documents and results do not count: they change no number.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT.resolve():
            return None
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!*.md")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def code_digest(*folders: str) -> str:
    """Return the sha256 of the Python files in these folders of the package. It changes when the code changes."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (_ROOT / folder).rglob("*.py")):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
