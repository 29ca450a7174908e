"""Any ONNX upscaler as a function of pictures: the layout, value range and sizes that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.engines import Backend, Precision, load_session
from ...runtime.pictures.arrays import from_graph, to_graph
from ..errors import BenchmarkError

__all__ = ["OnnxModel", "PictureInput", "read_input"]

Rgb = NDArray[np.uint8]
Inputs = list[tuple[str, str, list[int | None]]]
"""Name, "u8" or "f32" or another type, and shape with None for a free axis."""
_LEAST_DB = 12.0
"""PSNR against the bicubic enlargement; upscalers reach 25 and more."""


@dataclasses.dataclass(frozen=True)
class PictureInput:
    """The one input of a graph."""

    name: str
    layout: str
    """"nhwc" (uint8) or "nchw" (float32)."""
    fixed: tuple[int | None, int | None]
    """Height and width; None if free."""
    batch: int | None
    """Number of pictures in one run; None if free."""
    quantized: bool
    """Whether the graph has quantize nodes of its own."""
    whole: bool
    """Whether the file holds all weights; otherwise a file beside it does."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> PictureInput:
        """Build it from its fields as JSON gives them."""
        return cls(**{**facts, "fixed": tuple(facts["fixed"])})

    def refuse(self, height: int, width: int, path: Path | str) -> None:
        """Raise `BenchmarkError` if the graph does not take pictures of this size."""
        taken = self.fixed[0] or height, self.fixed[1] or width
        if taken != (height, width):
            raise BenchmarkError(
                f"{path} takes pictures of {taken[0]}×{taken[1]} alone, not {height}×{width}: "
                f"ask for --size {taken[0]}x{taken[1]}, or export it with dynamic axes"
            )

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the input for a batch of pictures."""
        return (batch, height, width, 3) if self.layout == "nhwc" else (batch, 3, height, width)


def read_input(path: Path) -> PictureInput:
    """Read the one input of an ONNX graph or an OpenVINO IR. Raises `BenchmarkError` if it takes no pictures."""
    try:
        found, quantized, whole = (_read_onnx if path.suffix.lower() == ".onnx" else _read_ir)(path)
    except Exception as error:  # engines raise many kinds for a file that is no graph
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise BenchmarkError(f"{path} cannot be benchmarked: {reason}") from error
    match found:
        case [(name, "u8", [batch, height, width, 3])]:
            return PictureInput(name, "nhwc", (height, width), batch, quantized, whole)
        case [(name, "f32", [batch, 3, height, width])]:
            return PictureInput(name, "nchw", (height, width), batch, quantized, whole)
    shown = "; ".join(f"{name}: {kind} {['?' if n is None else n for n in shape]}" for name, kind, shape in found)
    raise BenchmarkError(f"{path} needs one input of N×H×W×3 uint8 or N×3×H×W float32, has {shown or 'none'}")


def _read_ir(path: Path) -> tuple[Inputs, bool, bool]:
    """Inputs of an OpenVINO IR, whether it quantizes, and False, because its weights are in another file."""
    from ...runtime.engines.openvino_engine import shared_core

    model = shared_core().read_model(path)
    found: Inputs = []
    for port in model.inputs:
        axes = port.partial_shape if port.partial_shape.rank.is_static else []
        shape = [None if axis.is_dynamic else axis.get_length() for axis in axes]
        found.append((port.get_any_name(), port.get_element_type().get_type_name(), shape))
    return found, any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()), False


def _read_onnx(path: Path) -> tuple[Inputs, bool, bool]:
    """Inputs of an ONNX graph, whether it quantizes, and whether the file holds all weights.

    ONNX Runtime has to load it. A graph that OpenVINO cannot read fails later, in OpenVINO's rows only.
    """
    import onnx
    import onnxruntime as ort

    graph = onnx.load(path, load_external_data=False).graph
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(uint8)": "u8", "tensor(float)": "f32"}
    found: Inputs = [
        (port.name, kinds.get(port.type, port.type), [n if isinstance(n, int) else None for n in port.shape])
        for port in session.get_inputs()
    ]
    outside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    return found, any(node.op_type == "QuantizeLinear" for node in graph.node), not outside


class OnnxModel:
    """A graph loaded into an engine; a call maps N×H×W×3 uint8 to N×sH×sW×3 uint8."""

    def __init__(
        self, path: Path, *, backend: Backend, precision: Precision, threads: int, taken: PictureInput | None = None
    ) -> None:
        """`taken`: the result of `read_input`, if known; reading takes time and memory.

        Raises `BenchmarkError` for a graph that takes no pictures, `EngineError` if the engine refuses it.
        """
        self.path = path
        self.input = taken or read_input(path)
        self.full_scale = 1.0
        """White in the graph's floats: 1, or 255 if `find_range` found so."""
        # OpenVINO's sessions have a batch of one, because it fuses the most then (`runtime/engines`).
        self._at_once = self.input.batch or (1 if backend == "openvino" else None)
        # A graph with weights in another file is loaded by path, so that the engine finds them; no compiled form is kept.
        graph = path.read_bytes() if self.input.whole else path
        self._session = load_session(graph, backend=backend, precision=precision, threads=threads, cached=True)

    def __call__(self, pictures: Rgb) -> Rgb:
        """Upscale pictures. Raises `BenchmarkError` if the graph does not take their size or its output is no picture."""
        count, height, width = pictures.shape[:3]
        self.input.refuse(height, width, self.path)
        step = self._at_once or count
        if count % step:
            raise BenchmarkError(f"{self.path} takes {step} pictures at once, not {count}: export it with a dynamic batch")
        parts = [self._run(pictures[start : start + step]) for start in range(0, count, step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def apart(self, pictures: Rgb) -> tuple[Callable[[], object], Callable[[], object]]:
        """The engine's own calls on these pictures, and the conversion before and behind them, as two functions.

        Graphs of uint8 pictures convert by themselves: for them the second one only copies.
        """
        step = self._at_once or len(pictures)
        parts = [pictures[start : start + step] for start in range(0, len(pictures), step)]
        feeds = [self._feed(part) for part in parts]
        outputs = [self._session.run(feed)[0] for feed in feeds]

        def convert() -> None:
            for part, larger in zip(parts, outputs, strict=True):
                self._feed(part)
                self._pictures(larger, part)

        return lambda: [self._session.read(feed, lambda outputs: None) for feed in feeds], convert

    def _run(self, pictures: Rgb) -> Rgb:
        return self._session.read(self._feed(pictures), lambda outputs: self._pictures(outputs[0], pictures))

    def _feed(self, pictures: Rgb) -> dict[str, NDArray[Any]]:
        if self.input.layout == "nhwc":
            return {self.input.name: pictures}
        floats = np.concatenate([to_graph(picture) for picture in pictures])
        return {self.input.name: floats if self.full_scale == 1 else floats * np.float32(self.full_scale)}

    def _pictures(self, larger: NDArray[Any], pictures: Rgb) -> Rgb:
        """The output for these pictures as pictures, not lent any more."""
        floats = self.input.layout == "nchw"
        if larger.ndim != 4 or larger.dtype != (np.float32 if floats else np.uint8):
            wanted = "N×3×sH×sW float32" if floats else "N×sH×sW×3 uint8"
            raise BenchmarkError(f"{self.path} gives {larger.dtype} {larger.shape}, not {wanted}")
        shape = (*larger.shape[2:], larger.shape[1]) if floats else larger.shape[1:]
        scale = shape[0] // pictures.shape[1]
        if scale < 1 or shape != (scale * pictures.shape[1], scale * pictures.shape[2], 3):
            raise BenchmarkError(f"{self.path} turns {pictures.shape[1:]} into {shape}, which is no upscaling")
        if not floats:
            return np.array(larger)
        with np.errstate(invalid="ignore", over="ignore"):  # floats of the wrong range end anywhere
            values = larger if self.full_scale == 1 else larger / np.float32(self.full_scale)
            return np.stack([from_graph(value[None], pictures[0]) for value in values])

    def find_range(self, lr: Rgb) -> None:
        """Choose floats of 0 … 1 or of 0 … 255: those whose result for H×W×3 `lr` is more like its bicubic enlargement.

        Raises `BenchmarkError` if neither result is like it.
        """
        if self.input.layout == "nhwc":
            return
        import cv2  # not at the top: a timed process needs neither

        from ...runtime.metrics import psnr_rgb

        likeness = {}
        for scale in (1.0, 255.0):
            self.full_scale = scale
            larger = self(lr[None])[0]
            plain = cv2.resize(lr, larger.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
            likeness[scale] = psnr_rgb(larger, plain, 0)
        self.full_scale = max(likeness, key=likeness.__getitem__)
        if likeness[self.full_scale] < _LEAST_DB:
            raise BenchmarkError(
                f"{self.path} gives nothing like the picture it was given, neither with floats of 0 … 1 nor of 0 … 255: "
                "it needs RGB, and weights that were trained for one of these ranges"
            )
