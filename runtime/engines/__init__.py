"""The inference engines, behind one small interface: a graph in memory becomes a session that maps arrays to arrays."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from numpy.typing import NDArray

from ..errors import EngineError, OptionError
from ..host.processes import in_forked_children

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "Precision",
    "Session",
    "load_session",
    "refuse_after_fork",
    "supported_precisions",
]

Backend = Literal["openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8"]
Array = NDArray[Any]

BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_IMPORT_LOCK = threading.Lock()


_used_in: int | None = None
"""The process, this one or an ancestor, in which an engine was loaded last."""


def refuse_after_fork() -> None:
    """Raise `EngineError` in a process that was forked from one that had an engine loaded.

    The child has none of the engine's threads: OpenVINO waits for them in its next call, ONNX Runtime when the process ends.
    """
    if _used_in not in (None, os.getpid()):
        raise EngineError(
            "an inference engine was used before this process was forked, and none survives that: "
            "make the first call after the fork, or start processes by spawn"
        )


class Session(Protocol):
    """A loaded graph; `run` may be called from many threads."""

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name and shape of every input; None for a free axis."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs in the graph's order, as arrays of their own. Raises `EngineError`."""
        ...

    def close(self) -> None:
        """Let go of the graph and its memory; afterwards `run` fails."""
        ...


def supported_precisions(backend: str) -> tuple[Precision, ...]:
    """Precisions that the engine itself can run (ONNX Runtime has no CPU bf16 convolution)."""
    return ("fp32", "bf16", "int8") if backend == "openvino" else ("fp32", "int8")


def load_session(
    graph: bytes | Path,
    *,
    backend: Backend,
    precision: Precision,
    threads: int,
    weights: bytes | None = None,
    cached: bool = False,
) -> Session:
    """Load an ONNX graph (or an IR, with its `weights`) into an engine with explicit precision and threads.

    `graph`: serialized; or a file of the user's own, which may have its weights beside it. `cached`: OpenVINO's
    compiled form may come from the user's cache folder, or go there.
    """
    if backend not in BACKENDS:
        raise OptionError(f"no engine is called {backend!r}; known are {', '.join(BACKENDS)}")
    if precision not in supported_precisions(backend):
        raise OptionError(f"{backend} has no {precision} convolution on CPUs; use openvino for {precision}")
    refuse_after_fork()
    global _used_in
    before, _used_in = _used_in, os.getpid()  # now: a child forked in the middle of the import would wait for its lock
    try:
        with _IMPORT_LOCK:
            if backend == "openvino":
                from .openvino_engine import OpenVinoSession as Engine
            else:
                from .onnxruntime_engine import OnnxRuntimeSession as Engine  # type: ignore[assignment]
    except ImportError as error:
        _used_in = before
        raise EngineError(f"the engine {backend} is not installed ({error})") from error
    return Engine(graph, precision=precision, threads=threads, weights=weights, cached=cached)


@in_forked_children
def _forget_the_parent() -> None:
    global _IMPORT_LOCK
    _IMPORT_LOCK = threading.Lock()
