"""Any ONNX upscaler as a function of pictures: which layout, range and sizes it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.engines import Backend, Precision, load_session
from ..errors import BenchmarkError

__all__ = ["OnnxModel", "PictureInput", "read_input"]

Rgb = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class PictureInput:
    """What a graph's one input takes."""

    name: str
    layout: str
    """"nhwc" (uint8) or "nchw" (float32)."""
    fixed: tuple[int | None, int | None]
    """Height and width, where the graph takes no other."""
    batch: int | None
    """Pictures at once, where the graph takes no other number."""
    quantized: bool
    """Whether the graph has quantize nodes of its own."""
    whole: bool
    """Whether the file holds all weights itself, and no file beside it does."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> PictureInput:
        """From its fields as JSON gives them."""
        return cls(**{**facts, "fixed": tuple(facts["fixed"])})

    def refuse(self, height: int, width: int, path: Path | str) -> None:
        """Raise `BenchmarkError` where the graph does not take pictures of this size."""
        wanted = tuple(have or asked for have, asked in zip(self.fixed, (height, width), strict=True))
        if wanted != (height, width):
            raise BenchmarkError(
                f"{path} takes pictures of {wanted[0]}×{wanted[1]} alone, not {height}×{width}: "
                f"ask for --size {wanted[0]}x{wanted[1]}, or export it with dynamic axes"
            )

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Of the input for so many pictures."""
        return (batch, height, width, 3) if self.layout == "nhwc" else (batch, 3, height, width)


def read_input(path: Path) -> PictureInput:
    """Read an ONNX graph's, or an OpenVINO IR's, one input. Raises `BenchmarkError` for one that takes no pictures."""
    try:
        reader = _inputs_by_onnxruntime if path.suffix.lower() == ".onnx" else _inputs_by_openvino
        found, quantized, whole = reader(path)
    except Exception as error:  # engines raise many kinds for a file that is no graph
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise BenchmarkError(f"{path} cannot be benchmarked: {reason}") from error
    if len(found) == 1 and len(found[0][2]) == 4:
        name, kind, shape = found[0]
        if kind == "u8" and shape[3] == 3:
            return PictureInput(name, "nhwc", (shape[1], shape[2]), shape[0], quantized, whole)
        if kind == "f32" and shape[1] == 3:
            return PictureInput(name, "nchw", (shape[2], shape[3]), shape[0], quantized, whole)
    shown = "; ".join(f"{name}: {kind} {['?' if n is None else n for n in shape]}" for name, kind, shape in found)
    raise BenchmarkError(f"{path} needs one input of N×H×W×3 uint8 or N×3×H×W float32, has {shown or 'none'}")


Inputs = list[tuple[str, str, list[int | None]]]
"""Name, "u8" or "f32" or another type, and shape, None for a free axis."""


def _inputs_by_openvino(path: Path) -> tuple[Inputs, bool, bool]:
    """Inputs of an IR, whether it quantizes, and that its weights are in another file."""
    from ...runtime.engines.openvino_engine import shared_core

    model = shared_core().read_model(path)
    found: Inputs = []
    for port in model.inputs:
        axes = port.partial_shape if port.partial_shape.rank.is_static else []
        shape = [None if axis.is_dynamic else axis.get_length() for axis in axes]
        found.append((port.get_any_name(), port.get_element_type().get_type_name(), shape))
    return found, any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()), False


def _inputs_by_onnxruntime(path: Path) -> tuple[Inputs, bool, bool]:
    """Inputs of an ONNX graph, whether it quantizes, and whether it holds its weights itself.

    What OpenVINO cannot read is refused in its own rows alone.
    """
    import onnx
    import onnxruntime as ort

    kinds = {"tensor(uint8)": "u8", "tensor(float)": "f32"}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: Inputs = [
        (port.name, kinds.get(port.type, port.type), [n if isinstance(n, int) else None for n in port.shape])
        for port in session.get_inputs()
    ]
    graph = onnx.load(path, load_external_data=False).graph
    outside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    return found, any(node.op_type == "QuantizeLinear" for node in graph.node), not outside


class OnnxModel:
    """A graph loaded into an engine; called with an N×H×W×3 uint8 array it gives N×sH×sW×3 uint8."""

    input: PictureInput

    def __init__(
        self, path: Path, *, backend: Backend, precision: Precision, threads: int, taken: PictureInput | None = None
    ) -> None:
        """`taken`: what `read_input` says, if that is known; reading takes time and memory.

        Raises `BenchmarkError` for a graph that takes no pictures, `EngineError` where the engine refuses it.
        """
        self.path = path
        self.input = taken or read_input(path)
        # OpenVINO's sessions have a batch of one, which is what lets it fuse the most (`runtime/engines`).
        self._at_once = self.input.batch or (1 if backend == "openvino" else None)
        # With weights beside it by path: an engine looks for them there, and nothing compiled from it is kept.
        graph = path.read_bytes() if self.input.whole else path
        self._session = load_session(graph, backend=backend, precision=precision, threads=threads, cached=True)
        self.full_scale = 1.0
        """What white is in the graph's floats: 1, or 255 where `find_range` found so."""

    def __call__(self, pictures: Rgb) -> Rgb:
        """Raises `BenchmarkError` for a size that the graph does not take, or an output that is no picture."""
        count, height, width = pictures.shape[:3]
        self.input.refuse(height, width, self.path)
        at_once = self._at_once or count
        if count % at_once:
            raise BenchmarkError(
                f"{self.path} takes {at_once} pictures at once, not {count}: export it with a dynamic batch"
            )
        parts = [self._run(pictures[start : start + at_once]) for start in range(0, count, at_once)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, pictures: Rgb) -> Rgb:
        scale = np.float32(self.full_scale)
        if self.input.layout == "nhwc":
            larger = self._session.run({self.input.name: pictures})[0]
            if larger.ndim != 4 or larger.dtype != np.uint8:
                raise BenchmarkError(f"{self.path} gives {larger.dtype} {larger.shape}, not N×sH×sW×3 uint8")
        else:
            x = pictures.transpose(0, 3, 1, 2).astype(np.float32) * (scale / np.float32(255))
            output = self._session.run({self.input.name: np.ascontiguousarray(x)})[0]
            if output.ndim != 4 or output.shape[1] != 3 or output.dtype != np.float32:
                raise BenchmarkError(f"{self.path} gives {output.dtype} {output.shape}, not N×3×sH×sW float32")
            values = np.clip(output.transpose(0, 2, 3, 1) * (np.float32(255) / scale), 0, 255)
            larger = np.rint(values).astype(np.uint8)
        rows, columns = larger.shape[1] / pictures.shape[1], larger.shape[2] / pictures.shape[2]
        if larger.shape[3] != 3 or rows != columns or rows != int(rows) or rows < 1:
            raise BenchmarkError(
                f"{self.path} turns {pictures.shape[1]}×{pictures.shape[2]} into {larger.shape[1:]}, which is no upscaling"
            )
        return np.ascontiguousarray(larger)

    def find_range(self, lr: Rgb) -> None:
        """Choose between floats of 0 … 1 and of 0 … 255: whichever gives H×W×3 `lr` more like its bicubic enlargement.

        Raises `BenchmarkError` where neither looks like it.
        """
        import cv2  # neither with the module: what is timed has no use for them

        from ...runtime.metrics import psnr_rgb

        if self.input.layout == "nhwc":
            return
        likeness = {}
        for full_scale in (1.0, 255.0):
            self.full_scale = full_scale
            larger = self(lr[None])[0]
            plain = cv2.resize(lr, larger.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
            likeness[full_scale] = psnr_rgb(larger, plain, 0)
        self.full_scale = max(likeness, key=lambda scale: likeness[scale])
        if likeness[self.full_scale] < _LEAST_DB:
            raise BenchmarkError(
                f"{self.path} gives nothing like the picture it was given, neither with floats of 0 … 1 nor of 0 … 255: "
                "it needs RGB, and weights that were trained for one of these ranges"
            )


_LEAST_DB = 12.0
"""PSNR against the bicubic enlargement; upscalers reach 25 and more."""
