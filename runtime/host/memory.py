"""The memory that this process can still get."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path

__all__ = ["available_memory", "has_room_for_threads", "return_free_memory"]


_HEAP = 64 * 2**20
"""Address space that glibc reserves for the heap of a thread."""
_USUAL_STACK = 8 * 2**20


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
    if (space := _address_space(statm)) is not None:
        left.append(space)
    return min(left, default=2**32)


def _address_space(statm: Path) -> int | None:
    """Bytes of address space that `ulimit -v` leaves; None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return max(0, limit - int(statm.read_text().split()[0]) * resource.getpagesize())
    return None


def has_room_for_threads(threads: int, statm: Path = Path("/proc/self/statm")) -> bool:
    """Whether so many more threads fit the address space that `ulimit -v` leaves: each takes a stack and a heap of its own.

    ONNX Runtime hangs if the system refuses one of its threads.
    """
    space = _address_space(statm)
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    each = _HEAP + (_USUAL_STACK if stack == resource.RLIM_INFINITY else stack)
    return threads < 1 or space is None or space >= threads * each


def return_free_memory() -> None:
    """Give memory that is free, but that the C library keeps for later, back to the system; half a millisecond.

    Engines take and free buffers of another size for each size of picture, and the gaps between them would add up: with 400
    sizes to 20 MiB in OpenVINO. Only glibc has this.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
