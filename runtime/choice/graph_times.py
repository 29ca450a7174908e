"""How long large graphs take on each engine of this machine, measured while `rdsr export` and `rdsr verify` prove them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

from ..bundle import Manifest
from ..engines import BACKENDS, Backend, Precision, engine_version, supported_precisions
from ..engines.cache import recall, remember
from ..host import cpu

__all__ = ["faster_engine", "faster_engines", "recall_time", "remember_times"]

_WORTH = 0.95
"""Share of the time in the decoder's engine that another one may take for a graph to go there: loading both costs, too."""


def remember_times(manifest: Manifest, backend: Backend, precision: Precision, seconds: Mapping[str, float]) -> None:
    """Keep the times of graphs (role → seconds) that passed their proof in this engine and precision a moment ago."""
    for role, taken in seconds.items():
        remember(_name(manifest, role, backend, precision), json.dumps(taken).encode())


def recall_time(manifest: Manifest, role: str, backend: Backend, precision: Precision) -> float | None:
    """The seconds of a graph that were kept; None if it has not been measured on this machine."""
    try:
        seconds = float(json.loads(recall(_name(manifest, role, backend, precision)) or b""))
    except (ValueError, TypeError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def faster_engine(manifest: Manifest, role: str, precision: Precision) -> tuple[Backend, Mapping[Backend, float]] | None:
    """The engine that took least time for a graph, and the seconds of each; None unless all have been measured here."""
    seconds: dict[Backend, float] = {}
    for backend in BACKENDS:
        if precision not in supported_precisions(backend) or not manifest.proven(precision, backend):
            continue
        if (taken := recall_time(manifest, role, backend, precision)) is None:
            return None
        seconds[backend] = taken
    return (min(seconds, key=seconds.__getitem__), seconds) if len(seconds) > 1 else None


def faster_engines(manifest: Manifest, backend: Backend, precision: Precision) -> dict[str, Backend]:
    """Role → engine, for the graphs of a pipeline that another engine than `backend` runs clearly faster here."""
    others = {}
    for role in manifest.pipeline_roles:
        at: Precision = precision if role == "decoder" else "fp32"
        if (known := faster_engine(manifest, role, at)) is not None:
            engine, seconds = known
            if backend in seconds and seconds[engine] <= _WORTH * seconds[backend]:
                others[role] = engine
    return others


def _name(manifest: Manifest, role: str, backend: Backend, precision: Precision) -> str:
    """A name in the cache for everything that a time depends on."""
    digest = manifest.files[str(manifest.graph(role, precision))][0]
    facts = [digest, backend, precision, engine_version(backend), cpu.identity()]
    return f"graph-time-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}"
