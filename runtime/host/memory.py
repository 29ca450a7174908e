"""The memory that this process can still get."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

__all__ = ["available_memory"]


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _of_cgroups(root: Path, own: Path) -> list[int]:
    """Bytes left in the process's cgroup and in all cgroups above it that have a limit (v2, then v1)."""
    left = []
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = root / "memory" if controllers else root
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
            here = top / path.lstrip("/")
            for folder in (here, *(p for p in here.parents if p.is_relative_to(top))):
                limit, used = (_number(folder / name) for name in names)
                if limit is not None and used is not None:
                    left.append(max(0, limit - used + _reclaimable(folder / "memory.stat")))
    return left


def _reclaimable(stat: Path) -> int:
    """Bytes of cached files that a cgroup counts as used, but gives up when memory is needed."""
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split() for line in stat.read_text().splitlines())
        return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
    return 0


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    statm: Path = Path("/proc/self/statm"),
    root: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that this process can still allocate: the least that the machine, cgroups and `ulimit -v` leave."""
    left = _of_cgroups(root, own)
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        left.append(int(line.split()[1]) * 1024)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError, IndexError):
            left.append(max(0, limit - int(statm.read_text().split()[0]) * resource.getpagesize()))
    return min(left, default=2**32)
