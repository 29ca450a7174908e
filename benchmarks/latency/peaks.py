"""Measure what the machine can do at best: stacks of convolutions and large matrix products on the same engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx.checker
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from ...runtime.engines import Backend, Precision, load_session
from .worker import time_calls

__all__ = ["STACK_CHANNELS", "convolution_stack", "engine_call", "matmul", "measure_peak", "stack_gflop"]

STACK_CHANNELS = 64
_STACK_DEPTH = 30
_SIDE = 128
_MATMUL = 1536
_CALLS = 8
_SECONDS = 3.0
_CONV = "Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>"


def convolution_stack(channels: int = STACK_CHANNELS, depth: int = _STACK_DEPTH, *, int8: bool = True) -> bytes:
    """Build a graph of 3×3 convolutions and ReLU with random weights: `x` 1×C×H×W uint8 → uint8, all in int8 by QDQ.

    Without `int8`: the same in float32, from float32 to float32.
    """
    rng = np.random.default_rng(0)
    gain = np.float32(1 / np.sqrt(9 * channels * 63 * 64 / 3 / 2))  # keeps the spread of activations from layer to layer
    scales = {"scale": np.float32(1 / 64), "zero": np.uint8(0), "weight_zero": np.zeros(channels, np.int8)}
    constants: dict[str, Any] = scales if int8 else {}
    nodes, source = [], "x"
    for index in range(depth):
        kernel = rng.integers(-63, 64, (channels, channels, 3, 3)).astype(np.int8)
        if int8:
            constants |= {f"w{index}": kernel, f"s{index}": np.full(channels, gain)}
            nodes += [
                f"x{index} = DequantizeLinear({source}, scale, zero)",
                f"k{index} = DequantizeLinear<axis=0>(w{index}, s{index}, weight_zero)",
                f"y{index} = {_CONV}(x{index}, k{index})",
                f"r{index} = Relu(y{index})",
                f"q{index} = QuantizeLinear(r{index}, scale, zero)",
            ]
        else:
            constants[f"w{index}"] = kernel.astype(np.float32) * gain
            nodes += [f"y{index} = {_CONV}({source}, w{index})", f"q{index} = Relu(y{index})"]
        source = f"q{index}"
    return _graph(nodes, f"{'uint8' if int8 else 'float'}[1, {channels}, height, width]", source, constants)


def stack_gflop(height: int, width: int) -> float:
    """Return the operations of a stack of the default channels and depth at one size, in 10⁹."""
    return 2 * _STACK_DEPTH * 9 * STACK_CHANNELS**2 * height * width / 1e9


def matmul(side: int = _MATMUL, *, int8: bool = False) -> bytes:
    """Build a graph of `x` (side×side) times a constant of that size. int8: `x` is uint8 levels, the constant is int8."""
    rng = np.random.default_rng(0)
    if not int8:
        weights = rng.standard_normal((side, side)).astype(np.float32) / np.float32(np.sqrt(side))
        return _graph(["y = MatMul(x, w)"], f"float[{side}, {side}]", "y", {"w": weights})
    constants = {
        "scale": np.float32(1 / 64),
        "zero": np.uint8(128),
        "w": rng.integers(-63, 64, (side, side)).astype(np.int8),
        "weight_scale": np.float32(1 / (64 * np.sqrt(side))),
        "weight_zero": np.int8(0),
    }
    nodes = [
        "a = DequantizeLinear(x, scale, zero)",
        "b = DequantizeLinear(w, weight_scale, weight_zero)",
        "c = MatMul(a, b)",
        "y = QuantizeLinear(c, scale, zero)",
    ]
    return _graph(nodes, f"uint8[{side}, {side}]", "y", constants)


def _graph(nodes: Sequence[str], kind: str, output: str, constants: Mapping[str, Any]) -> bytes:
    """Build a graph from nodes in ONNX's text form. `kind`: type and shape of the input `x` and of the output."""
    head = '<ir_version: 8, opset_import: ["": 17]>'
    model = parser.parse_model(f"{head} peak ({kind} x) => ({kind} {output}) {{ {' '.join(nodes)} }}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def measure_peak(backend: Backend | Literal["torch-eager"], precision: Precision, threads: int) -> dict[str, Any]:
    """Return the best rate of several calls, in 10⁹ operations a second. Call it in its own process.

    "convolution_gflops": 30 convolutions 3×3 of 64 channels with ReLU at 128×128.
    "matmul_gflops": 1536×1536 times 1536×1536. Raises what the engine raises.
    """
    calls = _torch_calls(threads) if backend == "torch-eager" else _engine_calls(backend, precision, threads)
    gflop = {"convolution": stack_gflop(_SIDE, _SIDE), "matmul": 2 * _MATMUL**3 / 1e9}
    rates = {}
    for name, call in calls.items():
        best_ms = min(time_calls(call, seconds=_SECONDS, warm_up=1, most=_CALLS))
        rates[f"{name}_gflops"] = round(1e3 * gflop[name] / best_ms, 1)
    return {"backend": backend, "precision": precision, "threads": threads, **rates}


def engine_call(
    graph: bytes, inputs: Mapping[str, NDArray[Any]], backend: Backend, precision: Precision, threads: int
) -> Callable[[], object]:
    """Load a graph into an engine; return a function that runs it once on these inputs."""
    return partial(load_session(graph, backend=backend, precision=precision, threads=threads).run, inputs)


def _engine_calls(backend: Backend, precision: Precision, threads: int) -> dict[str, Callable[[], object]]:
    int8 = precision == "int8"
    rng = np.random.default_rng(0)

    def call(graph: bytes, *shape: int) -> Callable[[], object]:
        levels = rng.integers(0, 256, shape, dtype=np.uint8)
        x = levels if int8 else levels.astype(np.float32) / np.float32(255)
        return engine_call(graph, {"x": x}, backend, precision, threads)

    return {
        "convolution": call(convolution_stack(int8=int8), 1, STACK_CHANNELS, _SIDE, _SIDE),
        "matmul": call(matmul(int8=int8), _MATMUL, _MATMUL),
    }


def _torch_calls(threads: int) -> dict[str, Callable[[], object]]:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    convolutions = [nn.Conv2d(STACK_CHANNELS, STACK_CHANNELS, 3, padding=1, bias=False) for _ in range(_STACK_DEPTH)]
    stack = nn.Sequential(*(layer for convolution in convolutions for layer in (convolution, nn.ReLU()))).eval()
    x, a, b = torch.rand(1, STACK_CHANNELS, _SIDE, _SIDE), torch.rand(_MATMUL, _MATMUL), torch.rand(_MATMUL, _MATMUL)
    x = x.contiguous(memory_format=torch.channels_last)  # as pictures come; every convolution would reorder planes
    return {"convolution": partial(stack, x), "matmul": partial(torch.mm, a, b)}
