"""The inference engines behind one interface: `load_session` turns a graph into a session, which maps arrays to arrays."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from numpy.typing import NDArray

from ..errors import EngineError, OptionError
from ..host.memory import has_room_for_threads
from ..host.processes import in_forked_children

__all__ = [
    "BACKENDS", "PRECISIONS", "Backend", "Precision", "Result", "Session", "engine_version", "load_session",
    "refuse_after_fork", "supported_precisions",
]  # fmt: skip

Backend = Literal["openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Result = TypeVar("Result")

_IMPORT_LOCK = threading.Lock()
_used_in: int | None = None
"""Number of the process, this one or an ancestor, that loaded an engine last."""


def refuse_after_fork() -> None:
    """Raise `EngineError` if this process was forked from one that had an engine loaded.

    The child lacks the engine's threads. OpenVINO would wait for them in its next call, ONNX Runtime when the process ends.
    """
    if _used_in not in (None, os.getpid()):
        raise EngineError(
            "an inference engine was used before this process was forked, and none survives that: "
            "make the first call after the fork, or start processes by spawn"
        )


class Session(Protocol):
    """A loaded graph. `run` may be called from many threads."""

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Name and shape of every input; None for a free axis."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs in the graph's order, as new arrays. Raises `EngineError`."""

    def read(self, inputs: Mapping[str, NDArray[Any]], convert: Callable[[list[NDArray[Any]]], Result]) -> Result:
        """What `convert` makes of the outputs. They are only lent to it: the next call overwrites them.

        Other callers wait until it is done, and it must not call the session.
        """

    def close(self) -> None:
        """Release the graph and its memory. Later calls of `run` raise `EngineError`."""


@functools.cache
def engine_version(backend: str) -> str | None:
    """The installed release of the engine; None if it is absent, or its distribution has another name."""
    try:
        return importlib.metadata.version(backend)
    except importlib.metadata.PackageNotFoundError:
        return None


def supported_precisions(backend: str) -> tuple[Precision, ...]:
    """Precisions that the engine can run (ONNX Runtime has no CPU bf16 convolution)."""
    return ("fp32", "bf16", "int8") if backend == "openvino" else ("fp32", "int8")


def load_session(
    graph: bytes | Path,
    *,
    backend: Backend,
    precision: Precision,
    threads: int,
    weights: bytes | None = None,
    cached: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Session:
    """Load a graph into an engine with an explicit precision and number of threads.

    `graph`: a serialized ONNX graph or OpenVINO IR (with its `weights`), or a file of the user, whose weights may lie beside
    it. `cached`: OpenVINO may take its compiled form from the user's cache folder, and put it there. `shapes`: of the
    inputs, if they are always the same.
    Raises `OptionError` for an engine or precision that does not exist, `EngineError` if the engine cannot load the graph.
    """
    if backend not in BACKENDS:
        raise OptionError(f"no engine is called {backend!r}; known are {', '.join(BACKENDS)}")
    if precision not in supported_precisions(backend):
        raise OptionError(f"{backend} has no {precision} convolution on CPUs; use openvino for {precision}")
    refuse_after_fork()
    if not has_room_for_threads(threads - 1):
        raise EngineError(
            f"the address space that `ulimit -v` leaves to this process is too small for {threads} threads: use fewer"
        )
    global _used_in
    before, _used_in = _used_in, os.getpid()  # set already here, because a child forked during the import cannot use it
    try:
        with _IMPORT_LOCK:
            if backend == "openvino":
                from .openvino_engine import OpenVinoSession as Engine
            else:
                from .onnxruntime_engine import OnnxRuntimeSession as Engine  # type: ignore[assignment]
    except ImportError as error:
        _used_in = before
        raise EngineError(f"the engine {backend} is not installed ({error})") from error
    return Engine(graph, precision=precision, threads=threads, weights=weights, cached=cached, shapes=shapes)


@in_forked_children
def _forget_the_parent() -> None:
    global _IMPORT_LOCK
    _IMPORT_LOCK = threading.Lock()
