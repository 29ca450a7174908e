"""OpenVINO on the CPU device."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as opset

from ..errors import EngineError
from ..host import cpu
from .cache import COMPILED, recall, remember

__all__ = ["ExecutedLayer", "OpenVinoSession", "shared_core"]

Result = TypeVar("Result")
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""Precision of all layers that are not quantized. It is always set, because OpenVINO picks bf16 by itself otherwise."""
_KEPT_KERNELS = 32
"""Compiled kernels that a graph keeps, the last used ones. `small` needs some 20 for every new size, 40 KiB each.

So they are compiled again where sizes alternate, which takes no more time than can be measured (30.3 ms with 32, 29.8 with
384, for pictures of 64×64 in three shapes, float32, one thread of a Zen 4).
"""
_ONE_PIXEL = (1, 1, 1, 3)
"""Shape of an int8 input for which each call compiles a graph of its own, a tenth of a second: with free axes, the int8
convolutions of OpenVINO 2026.4 give noise for a single pixel where AVX-512 is in use."""
_KERNELS_OF_PROCESS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""Variable of oneDNN, which computes the layers: how many kernels it keeps for the whole process, else 1,024."""
_core: ov.Core | None = None
_core_lock = threading.Lock()


def shared_core() -> ov.Core:
    """The one `ov.Core` of the process. It is never destroyed.

    When it compiles for an AMX CPU, the CPU plugin (2026.4) gives the calling thread an alternate signal stack. It frees the
    stack with the last core, but leaves it set in the thread: the next signal, such as Ctrl-C, then kills the process.
    """
    global _core
    with _core_lock:
        if _core is None:
            _core = ov.Core()
            _keep_no_kernels(_core)
        return _core


def _keep_no_kernels(core: ov.Core) -> None:
    """Keep oneDNN from holding kernels beyond those of the graphs: with sizes that vary, they take 100 MiB.

    It reads its variable at the first layer of the process, and torch has its own oneDNN, which reads the same variable and
    needs its kernels. So the variable is there for one small graph, unless the user has set it.
    """
    if _KERNELS_OF_PROCESS in os.environ:
        return
    picture = opset.parameter([1, 8, 8, 8], np.float32)
    layer = opset.softmax(picture, 1)
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    os.environ[_KERNELS_OF_PROCESS] = "0"
    try:
        core.compile_model(ov.Model([layer], [picture]), "CPU", config)
    finally:
        del os.environ[_KERNELS_OF_PROCESS]


@dataclasses.dataclass(frozen=True)
class ExecutedLayer:
    """One layer of a compiled graph, as OpenVINO's CPU plugin reports it."""

    name: str
    kind: str
    """E.g. "Convolution", "Eltwise", "Reorder"."""
    precision: str
    """Number format of its computation, e.g. "u8", "f32"."""
    inputs: tuple[str, ...]
    """Names of the layers that it reads."""
    origins: tuple[str, ...]
    """Names of the original graph's operations that were fused into it."""


class OpenVinoSession:
    """One compiled graph with the interface of `Session`. Calls take turns, because one request already uses all threads."""

    def __init__(
        self,
        graph: bytes | Path,
        *,
        precision: str,
        threads: int,
        weights: bytes | None = None,
        cached: bool = False,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """`shapes`: of the inputs, if they are always the same."""
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
        }
        self._for_one_pixel = partial(_compiled, graph, weights, config, one_pixel=True) if precision == "int8" else None
        try:
            if cached and isinstance(graph, bytes) and weights is None:
                self._compiled = _compiled_or_cached(graph, config)
            else:
                self._compiled = _compiled(graph, weights, config, shapes=shapes)
            self._request = self._compiled.create_infer_request()
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"OpenVINO cannot load the graph: {_last_line(error)}") from error
        if precision == "bf16" and self.effective_precision != "bf16":
            raise EngineError(f"OpenVINO runs {self.effective_precision} instead of bf16: this CPU has no bf16")
        self._lock = threading.Lock()

    @property
    def effective_precision(self) -> str:
        """The inference precision that OpenVINO reports, e.g. "f32" or "bf16"."""
        return str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    @property
    def inputs(self) -> dict[str, tuple[int | None, ...]]:
        return {
            port.get_any_name(): tuple(None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape)
            for port in self._compiled.inputs
        }

    def execution(self) -> tuple[ExecutedLayer, ...]:
        """The layers that really run, in order."""
        layers = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            layers.append(
                ExecutedLayer(
                    name=node.get_friendly_name(),
                    kind=facts.get("layerType", ""),
                    precision=facts.get("runtimePrecision", ""),
                    inputs=tuple(port.get_source_output().get_node().get_friendly_name() for port in node.inputs()),
                    origins=tuple(facts.get("originalLayersNames", "").split(",")),
                )
            )
        return tuple(layers)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self.read(inputs, lambda outputs: [np.array(output) for output in outputs])

    def read(self, inputs: Mapping[str, NDArray[Any]], convert: Callable[[list[NDArray[Any]]], Result]) -> Result:
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        with self._lock:
            if not hasattr(self, "_request"):
                raise EngineError("this session was closed")
            try:
                request = self._request
                if self._for_one_pixel is not None and any(value.shape == _ONE_PIXEL for value in arrays.values()):
                    request = self._for_one_pixel().create_infer_request()
                request.infer(arrays)
            except (RuntimeError, MemoryError) as error:
                raise EngineError(f"OpenVINO failed: {_last_line(error)}") from error
            return convert([output.data for output in request.output_tensors])

    def close(self) -> None:
        with self._lock:
            del self._request, self._compiled
            self._for_one_pixel = None


def _compiled(
    graph: bytes | Path,
    weights: bytes | None,
    config: dict[str, Any],
    *,
    one_pixel: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> ov.CompiledModel:
    """`one_pixel`: for pictures of `_ONE_PIXEL` only. `shapes`: see `OpenVinoSession`."""
    core = shared_core()
    if weights is None:
        model = core.read_model(graph)
    else:
        model = core.read_model(graph, ov.Tensor(np.frombuffer(weights, dtype=np.uint8)))
    _fix_batch(model)
    if shapes is not None:
        if unknown := [port.get_any_name() for port in model.inputs if port.get_any_name() not in shapes]:
            raise EngineError(f"OpenVINO cannot load the graph: it has an input {unknown[0]!r}")
        model.reshape({port: shapes[port.get_any_name()] for port in model.inputs})
    if one_pixel:
        model.reshape({port: _ONE_PIXEL for port in model.inputs if len(port.partial_shape) == len(_ONE_PIXEL)})
    return core.compile_model(model, "CPU", config)


def _compiled_or_cached(graph: bytes, config: dict[str, Any]) -> ov.CompiledModel:
    """Take the compiled form from our cache folder (a sixth of the time), or compile it and put it there."""
    # OpenVINO's own cache is not used: it never shrinks, fails on a full disk, and reads damaged files.
    facts = [hashlib.sha256(graph).hexdigest(), ov.get_version(), config, cpu.cpu_name(), sorted(cpu.cpu_flags())]
    key = hashlib.sha256(json.dumps([*facts, cpu.isa_cap()]).encode()).hexdigest()[:32]
    name = f"{COMPILED}/openvino-{key}.blob"
    if (blob := recall(name)) is not None:
        try:
            return shared_core().import_model(blob, "CPU", config)
        except RuntimeError:  # OpenVINO refuses it although it is whole: compile again
            pass
    compiled = _compiled(graph, None, config)
    try:
        blob = compiled.export_model().getvalue()
    except RuntimeError:
        return compiled
    remember(name, blob)
    return compiled


def _fix_batch(model: ov.Model) -> None:
    """Set a free batch axis to 1, the only batch size in use."""
    # With a free axis OpenVINO does not fuse the modulation into the convolutions, and bf16 loses 0.05 instead of 0.03 dB on
    # the worst sample picture.
    shapes = {}
    for port in model.inputs:
        shape = port.partial_shape
        if shape.rank.is_static and len(shape) > 1 and shape[0].is_dynamic:
            shape[0] = 1
            shapes[port] = shape
    if shapes:
        model.reshape(shapes)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
