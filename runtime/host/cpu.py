"""What this process may use of the machine: threads from affinity and cgroup quota, and the CPU's number formats."""

from __future__ import annotations

import functools
import math
import os
import platform
from pathlib import Path

__all__ = [
    "available_threads",
    "cpu_flags",
    "cpu_name",
    "has_bf16",
    "has_vnni",
    "instruction_set",
    "isa_cap",
    "isa_caps",
    "numa_nodes",
    "process_threads",
]


def _read_quota(folder: Path) -> float | None:
    """CPUs' worth of quota of one cgroup (v2, then v1), `None` where it has no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 and period_us > 0 else None
    except (OSError, ValueError):
        return None


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs' worth of quota of this process: the least over its cgroup and all above it, `None` without a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    folders = {root, root / "cpu"}
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        here = top / path.lstrip("/")
        folders |= {here, *(p for p in here.parents if p.is_relative_to(top))}
    quotas = [quota for folder in folders if (quota := _read_quota(folder)) is not None]
    return min(quotas, default=None)


def _listed(text: str) -> set[int]:
    """CPU numbers of a list as Linux writes it: "0-3,8"."""
    spans = (part.split("-") for part in text.strip().split(",") if part)
    return {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}


def _allowed() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> list[list[int]]:
    """CPUs of each NUMA node that the affinity mask allows; one node if nothing is known of them.

    The largest comes first; among equals it is another one in the next process, so that several processes use them all.
    """
    allowed, nodes = _allowed(), []
    for file in sorted(root.glob("node[0-9]*/cpulist")):
        try:
            node = _listed(file.read_text()) & allowed
        except (OSError, ValueError):
            continue
        if node:
            nodes.append(sorted(node))
    if not nodes:
        return [sorted(allowed)]
    nodes.sort(key=len, reverse=True)
    equals = sum(len(node) == len(nodes[0]) for node in nodes)
    turn = os.getpid() % equals
    return [*nodes[turn:equals], *nodes[:turn], *nodes[equals:]]


def available_threads() -> int:
    """Threads for one engine: what fits one NUMA node's part of the affinity mask and the cgroup quota, at least 1."""
    return min(process_threads(), len(numa_nodes()[0]))


def process_threads() -> int:
    """Threads that fit the affinity mask and the cgroup quota, at least 1."""
    cores = len(_allowed())
    quota = _quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


@functools.cache
def _cpuinfo() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_flags() -> frozenset[str]:
    """Feature flags as the Linux kernel names them; empty where they cannot be read."""
    return frozenset(_cpuinfo().get("flags", "").split())


def cpu_name() -> str:
    """Model name of the first CPU."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def isa_cap() -> str | None:
    """The limit that ONEDNN_MAX_CPU_ISA sets to OpenVINO's kernels, e.g. "AVX2"; None without one."""
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return None if cap in ("", "ALL", "DEFAULT") else cap


_CAPS: dict[str, set[str]] = {
    **{cap: set() for cap in ("SSE41", "AVX", "AVX2", "AVX512_CORE")},
    "AVX2_VNNI": {"avx_vnni"},
    "AVX2_VNNI_2": {"avx_vnni"},
    "AVX512_CORE_VNNI": {"avx_vnni", "avx512_vnni"},
    "AVX512_CORE_BF16": {"avx_vnni", "avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_FP16": {"avx_vnni", "avx512_vnni", "avx512_bf16"},
    "AVX10_1_512": {"avx_vnni", "avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_AMX": {"avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"},
}
"""What a limit leaves of the number formats; higher ones leave everything."""


def isa_caps() -> tuple[str, ...]:
    """Limits that ONEDNN_MAX_CPU_ISA knows."""
    return tuple(_CAPS)


def _native(wanted: set[str], cap: str | None) -> bool:
    """Whether the CPU has one of the flags, and the limit leaves it."""
    return bool(cpu_flags() & wanted & (wanted if cap is None else _CAPS.get(cap.upper(), wanted)))


def has_bf16(cap: str | None = None) -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16, AMX) and `cap` or ONEDNN_MAX_CPU_ISA leaves it."""
    return _native({"avx512_bf16", "amx_bf16"}, cap or isa_cap())


def has_vnni(*, capped: bool = True) -> bool:
    """Whether the CPU multiplies 8-bit numbers natively (VNNI, AMX); `capped`: and ONEDNN_MAX_CPU_ISA does not forbid it."""
    return _native({"avx512_vnni", "avx_vnni", "amx_int8"}, isa_cap() if capped else None)


def instruction_set() -> str:
    """The widest vector instruction sets that matter here, e.g. "avx512+vnni+bf16+amx"."""
    flags = cpu_flags()
    width = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else platform.machine()
    extra = [
        name
        for name, names in (
            ("vnni", {"avx512_vnni", "avx_vnni"}),
            ("bf16", {"avx512_bf16"}),
            ("amx", {"amx_int8", "amx_bf16"}),
        )
        if flags & names
    ]
    return "+".join([width, *extra])
