"""ONNX Runtime's CPU execution provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import EngineError
from ..host import cpu

__all__ = ["OnnxRuntimeSession", "thread_places"]


Result = TypeVar("Result")
_LONGEST_OPTION = 1000
"""Characters; ONNX Runtime refuses options that are longer than a few thousand."""


def thread_places(threads: int) -> str:
    """The CPUs of one NUMA node for each of ONNX Runtime's threads except the caller's, in the form of its option.

    Empty if there is only one node, if `threads` exceeds the CPUs of a node, or if the text would be too long.
    """
    nodes = cpu.numa_nodes()
    if len(nodes) < 2 or threads < 2 or threads > len(nodes[0]):
        return ""
    first, last = nodes[0][0] + 1, nodes[0][-1] + 1  # it counts from 1
    together = last - first + 1 == len(nodes[0])
    place = f"{first}-{last}" if together else ",".join(str(processor + 1) for processor in nodes[0])
    places = ";".join([place] * (threads - 1))
    return places if len(places) <= _LONGEST_OPTION else ""


class OnnxRuntimeSession:
    """One loaded graph with the interface of `Session`. ONNX Runtime itself allows concurrent calls."""

    def __init__(
        self,
        graph: bytes | Path,
        *,
        precision: str,
        threads: int,
        weights: bytes | None = None,
        cached: bool = False,
        shapes: Any = None,
    ) -> None:
        del precision  # the graph decides: float32, or int8 by its QDQ nodes; ONNX Runtime never changes it
        del cached, shapes  # loading takes a tenth of a second, and any shapes are as good as others
        if weights is not None:
            raise EngineError("ONNX Runtime reads ONNX graphs, not OpenVINO IR")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Memory patterns would be kept for every size that was seen, for ever, and take a third more memory.
        options.enable_mem_pattern = False
        # Idle threads sleep instead of spinning, because a service shares its cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if places := thread_places(threads):
            options.add_session_config_entry("session.intra_op_thread_affinities", places)
        try:
            session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise EngineError(f"ONNX Runtime cannot load the graph: {error}") from error
        self._session: ort.InferenceSession | None = session

    @property
    def inputs(self) -> dict[str, tuple[int | None, ...]]:
        ports = [] if self._session is None else self._session.get_inputs()
        return {port.name: tuple(n if isinstance(n, int) else None for n in port.shape) for port in ports}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        if (session := self._session) is None:
            raise EngineError("this session was closed")
        try:
            return [np.asarray(output) for output in session.run(None, arrays)]
        except Exception as error:  # as above
            del session  # this frame is part of the error's traceback
            raise EngineError(f"ONNX Runtime failed: {error}") from error

    def read(self, inputs: Mapping[str, NDArray[Any]], convert: Callable[[list[NDArray[Any]]], Result]) -> Result:
        return convert(self.run(inputs))

    def close(self) -> None:
        self._session = None
