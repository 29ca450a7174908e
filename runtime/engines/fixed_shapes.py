"""Graphs of large networks: read by the engine itself, and compiled by OpenVINO for one set of shapes at a time.

With free axes, OpenVINO 2026.4 hardly shares memory among intermediate results: the decoder of a network of 174 million
weights takes 2.5 GiB for a tile of 128×128, and 1.1 GiB with fixed shapes, which are 3 % faster, too. Compiling takes 0.5 to
2.5 s, so this is for networks that need many seconds a tile and know few sizes. An engine that reads the file itself holds
one copy less than one that gets its bytes: 1.1 instead of 1.6 GiB for the largest graph of that network.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from . import Backend, Precision, Result, Session, load_session

__all__ = ["FixedShapes"]

_LEAST_RUNS, _MOST_RUNS = 2, 30
"""Runs that a median needs, and the last ones that it is made of."""


class FixedShapes:
    """A graph file with the interface of `Session`, loaded at the first call, and by OpenVINO again when shapes change."""

    def __init__(self, find: Callable[[], Path], *, backend: Backend, precision: Precision, threads: int) -> None:
        """`find` checks the file and gives its path; it is called before each loading."""
        self._find: Callable[[], Path] | None = find
        self._backend: Backend = backend
        self._precision: Precision = precision
        self._threads = threads
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._session: Session | None = None
        self._seconds: dict[tuple[tuple[int, ...], ...], deque[float]] = {}

    @property
    def inputs(self) -> Mapping[str, tuple[int | None, ...]]:
        """Known once the graph is loaded."""
        return {} if self._session is None else self._session.inputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        shapes = {name: np.shape(value) for name, value in inputs.items()}
        if self._session is None or (self._backend == "openvino" and shapes != self._shapes):
            self._load(shapes)
        assert self._session is not None
        started = time.perf_counter()
        outputs = self._session.run(inputs)
        self._seconds.setdefault(tuple(shapes.values()), deque(maxlen=_MOST_RUNS)).append(time.perf_counter() - started)
        return outputs

    def read(self, inputs: Mapping[str, NDArray[Any]], convert: Callable[[list[NDArray[Any]]], Result]) -> Result:
        return convert(self.run(inputs))

    @property
    def median_seconds(self) -> float | None:
        """Of the runs at the shapes that were run most often; None before `_LEAST_RUNS` of them."""
        seconds = max(self._seconds.values(), key=len, default=())
        return statistics.median(seconds) if len(seconds) >= _LEAST_RUNS else None

    def _load(self, shapes: dict[str, tuple[int, ...]]) -> None:
        if self._find is None:
            raise EngineError("this session was closed")
        if self._session is not None:
            self._session.close()
            self._session = None
        options = {"backend": self._backend, "precision": self._precision, "threads": self._threads}
        self._session = load_session(self._find(), **options, shapes=shapes)  # type: ignore[arg-type]
        self._shapes = shapes

    def close(self) -> None:
        self._find = None
        if self._session is not None:
            self._session.close()
            self._session = None
