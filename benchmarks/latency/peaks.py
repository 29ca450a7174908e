"""What the machine can do at best: bare stacks of convolutions and large matrix products, through the same engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...runtime.engines import Precision, load_session
from .worker import time_calls

__all__ = ["STACK_CHANNELS", "STACK_DEPTH", "Peak", "convolution_stack", "float_stack", "matmul", "measure_peak"]

STACK_CHANNELS = 64
STACK_DEPTH = 30
_SIDE = 128
_MATMUL = 1536
_CALLS = 8
_SECONDS = 3.0


@dataclasses.dataclass(frozen=True)
class Peak:
    """10⁹ operations a second, the best call of several."""

    backend: str
    precision: str
    threads: int
    convolution_gflops: float
    """30 convolutions 3×3 of 64 channels and ReLU at 128×128."""
    matmul_gflops: float
    """1536×1536 times 1536×1536."""


def convolution_stack(channels: int = STACK_CHANNELS, depth: int = STACK_DEPTH) -> bytes:
    """A QDQ graph of nothing but 3×3 convolutions and ReLU in int8: `x` 1×C×H×W uint8 → uint8, random weights."""
    rng = np.random.default_rng(0)
    gain = np.float32(1 / np.sqrt(9 * channels * 63 * 64 / 3 / 2))  # keeps the spread of activations from layer to layer
    constants = {"scale": np.float32(1 / 64), "zero": np.uint8(0), "weight_zero": np.zeros(channels, np.int8)}
    nodes = [helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["x0"])]
    for index in range(depth):
        kernel = rng.integers(-63, 64, (channels, channels, 3, 3)).astype(np.int8)
        constants |= {f"w{index}": kernel, f"s{index}": np.full(channels, gain)}
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{index}", f"s{index}", "weight_zero"], [f"k{index}"], axis=0),
            helper.make_node("Conv", [f"x{index}", f"k{index}"], [f"y{index}"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Relu", [f"y{index}"], [f"r{index}"]),
            helper.make_node("QuantizeLinear", [f"r{index}", "scale", "zero"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"x{index + 1}"]),
        ]
    nodes.pop()
    return _graph(nodes, TensorProto.UINT8, [1, channels, "height", "width"], f"q{depth - 1}", constants)


def float_stack(channels: int = STACK_CHANNELS, depth: int = STACK_DEPTH) -> bytes:
    """The same in float32: `x` 1×C×H×W float32 → float32."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {}
    nodes = []
    for index in range(depth):
        kernel = rng.standard_normal((channels, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        constants[f"w{index}"] = kernel.astype(np.float32)
        source = "x" if index == 0 else f"r{index - 1}"
        nodes += [
            helper.make_node("Conv", [source, f"w{index}"], [f"y{index}"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Relu", [f"y{index}"], [f"r{index}"]),
        ]
    return _graph(nodes, TensorProto.FLOAT, [1, channels, "height", "width"], f"r{depth - 1}", constants)


def matmul(side: int = _MATMUL, *, int8: bool = False) -> bytes:
    """`x` side×side times a constant of that size; int8: both quantized, uint8 by int8, `x` given as levels."""
    rng = np.random.default_rng(0)
    shape: list[str | int | None] = [side, side]
    if not int8:
        constants: dict[str, Any] = {"w": rng.standard_normal((side, side)).astype(np.float32) / np.float32(np.sqrt(side))}
        return _graph([helper.make_node("MatMul", ["x", "w"], ["y"])], TensorProto.FLOAT, shape, "y", constants)
    constants = {
        "scale": np.float32(1 / 64),
        "zero": np.uint8(128),
        "w": rng.integers(-63, 64, (side, side)).astype(np.int8),
        "weight_scale": np.float32(1 / (64 * np.sqrt(side))),
        "weight_zero": np.int8(0),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "weight_scale", "weight_zero"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["y"]),
    ]
    return _graph(nodes, TensorProto.UINT8, shape, "y", constants)


def _graph(
    nodes: list[onnx.NodeProto], kind: int, shape: list[str | int | None], output: str, constants: Mapping[str, Any]
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(output, kind, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def measure_peak(backend: str, precision: str, threads: int) -> dict[str, Any]:
    """`Peak` as a mapping; for a process of its own. Raises what the engine raises."""
    calls = _torch_calls(threads) if backend.startswith("torch") else _engine_calls(backend, precision, threads)
    best = {name: min(time_calls(call, seconds=_SECONDS, warm_up=1, most=_CALLS)) for name, call in calls.items()}
    operations = {"convolution": 2 * STACK_DEPTH * 9 * STACK_CHANNELS**2 * _SIDE**2, "matmul": 2 * _MATMUL**3}
    rates = {f"{name}_gflops": round(operations[name] / best[name] / 1e6, 1) for name in operations}
    return dataclasses.asdict(Peak(backend, precision, threads, **rates))


def _engine_calls(backend: str, precision: str, threads: int) -> dict[str, Callable[[], object]]:
    int8 = precision == "int8"
    rng = np.random.default_rng(0)

    def values(*shape: int) -> NDArray[Any]:
        levels = rng.integers(0, 256, shape, dtype=np.uint8)
        return levels if int8 else levels.astype(np.float32) / np.float32(255)

    graphs = {
        "convolution": (convolution_stack() if int8 else float_stack(), values(1, STACK_CHANNELS, _SIDE, _SIDE)),
        "matmul": (matmul(int8=int8), values(_MATMUL, _MATMUL)),
    }
    calls: dict[str, Callable[[], object]] = {}
    kind: Precision = precision  # type: ignore[assignment]
    for name, (graph, x) in graphs.items():
        session = load_session(graph, backend=backend, precision=kind, threads=threads)  # type: ignore[arg-type]
        calls[name] = partial(session.run, {"x": x})
    return calls


def _torch_calls(threads: int) -> dict[str, Callable[[], object]]:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    layers = [
        layer
        for _ in range(STACK_DEPTH)
        for layer in (nn.Conv2d(STACK_CHANNELS, STACK_CHANNELS, 3, padding=1, bias=False), nn.ReLU())
    ]
    stack = nn.Sequential(*layers).eval()
    x, a, b = torch.rand(1, STACK_CHANNELS, _SIDE, _SIDE), torch.rand(_MATMUL, _MATMUL), torch.rand(_MATMUL, _MATMUL)
    x = x.contiguous(memory_format=torch.channels_last)  # as pictures come: planes would be reordered by every convolution

    def run(function: Callable[..., object], *arguments: object) -> object:
        with torch.inference_mode():
            return function(*arguments)

    return {"convolution": partial(run, stack, x), "matmul": partial(run, torch.mm, a, b)}
