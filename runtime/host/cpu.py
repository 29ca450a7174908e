"""The part of the machine that this process may use: threads by affinity and cgroup quota, and the CPU's number formats."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
from pathlib import Path

__all__ = [
    "available_threads", "cpu_flags", "cpu_name", "has_bf16", "has_vnni", "identity", "instruction_set", "isa_cap",
    "isa_caps", "numa_nodes", "process_threads",
]  # fmt: skip


def _read_quota(folder: Path) -> float | None:
    """CPU quota of one cgroup (v2, then v1), in CPUs; None if it has no limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            return int(quota) / int(period) if quota != "max" and int(quota) > 0 and int(period) > 0 else None
    return None


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPU quota of this process, in CPUs: the least of its cgroup and all cgroups above; None without a limit."""
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
    """The CPU numbers in a list of Linux's form, "0-3,8"."""
    spans = (part.split("-") for part in text.strip().split(",") if part)
    return {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}


def _allowed() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def numa_nodes(root: Path = Path("/sys/devices/system/node")) -> list[list[int]]:
    """The CPUs of each NUMA node that the affinity mask allows; one node if the system does not list any.

    The largest node comes first. Among equals the order depends on the process number, so that several processes use all.
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
    """Threads for one engine: as many as the affinity mask allows on one NUMA node, within the cgroup quota; at least 1."""
    return min(process_threads(), len(numa_nodes()[0]))


def process_threads() -> int:
    """Threads that the affinity mask and the cgroup quota allow, at least 1."""
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
    """Feature flags under the Linux kernel's names; empty if they cannot be read."""
    return frozenset(_cpuinfo().get("flags", "").split())


def identity() -> list[str | None]:
    """What measured times and trials hold for: the processor, its instruction sets, and the limit that is set for them."""
    return [cpu_name(), instruction_set(), isa_cap()]


def cpu_name() -> str:
    """Model name of the first CPU."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def isa_cap() -> str | None:
    """The limit that ONEDNN_MAX_CPU_ISA sets for OpenVINO's kernels, e.g. "AVX2"; None without a limit."""
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
"""The number formats that remain under each limit. Limits that are not listed are higher and leave all."""


def isa_caps() -> tuple[str, ...]:
    """Limits that ONEDNN_MAX_CPU_ISA knows."""
    return tuple(_CAPS)


def _native(wanted: set[str], cap: str | None) -> bool:
    """Whether the CPU has one of the flags and the limit allows it."""
    return bool(cpu_flags() & wanted & (wanted if cap is None else _CAPS.get(cap.upper(), wanted)))


def has_bf16(cap: str | None = None) -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16, AMX) and `cap` or ONEDNN_MAX_CPU_ISA allows it."""
    return _native({"avx512_bf16", "amx_bf16"}, cap or isa_cap())


def has_vnni(*, capped: bool = True) -> bool:
    """Whether the CPU multiplies 8-bit numbers natively (VNNI, AMX) and, if `capped`, ONEDNN_MAX_CPU_ISA allows it."""
    return _native({"avx512_vnni", "avx_vnni", "amx_int8"}, isa_cap() if capped else None)


def instruction_set() -> str:
    """The widest vector instruction sets that matter here, e.g. "avx512+vnni+bf16+amx"."""
    flags = cpu_flags()
    width = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else platform.machine()
    extras = {"vnni": {"avx512_vnni", "avx_vnni"}, "bf16": {"avx512_bf16"}, "amx": {"amx_int8", "amx_bf16"}}
    return "+".join([width, *(name for name, names in extras.items() if flags & names)])
