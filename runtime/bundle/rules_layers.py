"""Rules of the operators that compute: arithmetic, activations, reductions, quantization, convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import BOOL, FLOAT, INT8, INT64, UINT8, GraphError, Node
from .values import LARGEST, Inputs, Value, at, axes_of, axis_of, broadcast, ints, made, rule

__all__ = ["check_kernel", "numbers_of", "windows"]

_MAX_KERNEL = 32
"""Of any side; PLKSR has kernels of 17."""


@rule("Relu", "LeakyRelu", "Erf", "Log", "Sqrt", "Round", "Sigmoid", "Exp", "Softplus", "Tanh")
def _unary(node: Node, inputs: Inputs) -> list[Value]:
    return [Value(FLOAT, at(inputs, 0, FLOAT).shape)]


@rule("PRelu", "PReluByChannel")  # OpenVINO's layer also takes one slope a channel
def _prelu(node: Node, inputs: Inputs) -> list[Value]:
    x, slope = at(inputs, 0, FLOAT), at(inputs, 1, FLOAT)
    by_channel = node.operator == "PReluByChannel" and slope.shape == x.shape[1:2]
    if not by_channel and broadcast(x.shape, slope.shape) != x.shape:
        raise GraphError("whose slopes do not fit its input")
    return [Value(FLOAT, x.shape)]


@rule("Softmax")
def _softmax(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    axis_of(node.attributes.get("axis", -1), len(x.shape))
    return [Value(FLOAT, x.shape)]


@rule("Clip")
def _clip(node: Node, inputs: Inputs) -> list[Value]:
    for index in range(1, len(inputs)):
        if inputs[index] is not None:
            at(inputs, index, FLOAT, rank=0)
    return [Value(FLOAT, at(inputs, 0, FLOAT).shape)]


@rule("LayerNormalization")
def _layer_normalization(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    if not x.shape or node.attributes.get("axis", -1) != -1:
        raise GraphError("which does not normalize the last axis")
    for index in range(1, len(inputs)):
        if at(inputs, index, FLOAT).shape != x.shape[-1:]:
            raise GraphError("whose scale or bias does not fit its input")
    return [Value(FLOAT, x.shape)]


@rule("MeanVariance")
def _mean_variance(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    axes_of(ints(inputs, 1), len(x.shape))
    return [Value(FLOAT, x.shape)]


def _divide(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.sign(a) * (np.abs(a) // b)


_ARITHMETIC: Mapping[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Mod": np.mod, "Max": np.maximum,
    "Min": np.minimum, "Equal": np.equal,
}  # fmt: skip


@rule(*_ARITHMETIC)
def _binary(node: Node, inputs: Inputs) -> list[Value]:
    kinds = (INT64,) if node.operator in ("Mod", "Equal") else (FLOAT, INT64)
    a, b = at(inputs, 0, *kinds), at(inputs, 1, *kinds)
    if a.dtype != b.dtype:
        raise GraphError(f"whose inputs are {a.dtype} and {b.dtype}")
    shape = broadcast(a.shape, b.shape)
    if a.dtype == INT64:
        divides = node.operator in ("Div", "Mod")
        if divides and (b.known is None or b.size == 0 or b.known.min() <= 0):
            raise GraphError("which divides integers by what may be zero or negative")
        for value in (a, b):
            if value.known is not None and value.size and max(-int(value.known.min()), int(value.known.max())) > LARGEST:
                raise GraphError("which computes sizes beyond 2³¹")
    dtype = BOOL if node.operator == "Equal" else a.dtype
    return [made(dtype, shape, lambda: _ARITHMETIC[node.operator](a.known, b.known), a, b)]  # type: ignore[arg-type]


@rule("Where")
def _where(node: Node, inputs: Inputs) -> list[Value]:
    condition, a, b = at(inputs, 0, BOOL), at(inputs, 1, INT64), at(inputs, 2, INT64)
    shape = broadcast(condition.shape, a.shape, b.shape)
    return [made(INT64, shape, lambda: np.where(condition.known, a.known, b.known), condition, a, b)]  # type: ignore[arg-type]


@rule("Pad")
def _pad(node: Node, inputs: Inputs) -> list[Value]:
    x, pads = at(inputs, 0, FLOAT), ints(inputs, 1)
    if len(inputs) > 3:  # OpenVINO: before and after apart, then the value
        pads += ints(inputs, 2)
    if inputs[-1] is not None and len(inputs) > 2:
        at(inputs, len(inputs) - 1, FLOAT)
    mode = node.attributes.get("mode", node.attributes.get("pad_mode", "constant"))
    if len(pads) != 2 * len(x.shape) or (mode != "constant" and min(pads, default=0) < 0):  # a negative one cuts off
        raise GraphError(f"whose padding {pads[:8]} does not fit its input")
    if mode == "reflect" and any(pad >= max(1, x.shape[axis % len(x.shape)]) for axis, pad in enumerate(pads) if pad):
        raise GraphError(f"which reflects {max(pads)} pixels of {list(x.shape)}")
    sides = [side + sum(pads[axis :: len(x.shape)]) for axis, side in enumerate(x.shape)]
    if min(sides, default=1) < 1 or any(-pad >= x.shape[axis % len(x.shape)] for axis, pad in enumerate(pads) if pad < 0):
        raise GraphError(f"whose padding {pads[:8]} does not fit its input")
    return [made(FLOAT, sides, lambda: None, x)]


@rule("Resize")
def _resize(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    if len(inputs) == 3 and inputs[1] is not None:
        raise GraphError("which has a region of interest")
    scales = at(inputs, len(inputs) - 1, FLOAT, rank=1)
    if scales.known is None or scales.size != len(x.shape) or not all(1 <= s <= 16 and s == int(s) for s in scales.known):
        raise GraphError("whose scales are no whole numbers from 1 to 16")
    return [Value(FLOAT, tuple(side * int(scale) for side, scale in zip(x.shape, scales.known, strict=True)))]


@rule("ReduceMean", "ReduceL2")
def _reduce(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    numbers: Any = ints(inputs, 1, rank=None) if len(inputs) > 1 else node.attributes["axes"]
    axes = axes_of(numbers, len(x.shape))
    keep = node.attributes.get("keepdims", 1)
    sides = [1 if axis in axes else side for axis, side in enumerate(x.shape) if keep or axis not in axes]
    return [Value(FLOAT, tuple(sides))]


@rule("DepthToSpace")
def _depth_to_space(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, height, width = at(inputs, 0, FLOAT, rank=4).shape
    block = node.attributes["blocksize"]
    if not isinstance(block, int) or not 1 <= block <= 16 or channels % block**2:
        raise GraphError(f"whose blocks of {block} do not fit {channels} channels")
    return [Value(FLOAT, (batch, channels // block**2, height * block, width * block))]


@rule("QuantizeLinear")
def _quantize(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    at(inputs, 1, FLOAT, rank=0)
    return [Value(at(inputs, 2, UINT8, rank=0).dtype, x.shape)]


@rule("DequantizeLinear")
def _dequantize(node: Node, inputs: Inputs) -> list[Value]:
    x, scale, zero = at(inputs, 0, UINT8, INT8), at(inputs, 1, FLOAT), at(inputs, 2)
    axis = axis_of(node.attributes.get("axis", 0), len(x.shape)) if scale.shape else 0
    if scale.shape not in ((), x.shape[axis : axis + 1]) or zero.shape != scale.shape or zero.dtype != x.dtype:
        raise GraphError("whose scale or zero point does not fit its input")
    return [Value(FLOAT, x.shape)]


@rule("FakeQuantize")
def _fake_quantize(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    for index in range(1, 5):
        if broadcast(x.shape, at(inputs, index, FLOAT).shape) != x.shape:
            raise GraphError("whose levels do not fit its input")
    return [Value(FLOAT, x.shape)]


@rule("Gemm")
def _gemm(node: Node, inputs: Inputs) -> list[Value]:
    a, b = at(inputs, 0, FLOAT, rank=2).shape, at(inputs, 1, FLOAT, rank=2).shape
    inner, outer = (b[1], b[0]) if node.attributes.get("transB") else b
    if a[1] != inner or at(inputs, 2, FLOAT, rank=1).shape != (outer,):
        raise GraphError(f"of {list(a)} and {list(b)}")
    return [Value(FLOAT, (a[0], outer))]


@rule("MatMul")
def _matmul(node: Node, inputs: Inputs) -> list[Value]:
    a, b = list(at(inputs, 0, FLOAT).shape), list(at(inputs, 1, FLOAT).shape)
    if min(len(a), len(b)) < 2:
        raise GraphError("of what is no matrix")
    if node.attributes.get("transA"):
        a[-2:] = a[:-3:-1]
    if node.attributes.get("transB"):
        b[-2:] = b[:-3:-1]
    if a[-1] != b[-2]:
        raise GraphError(f"of {a} and {b}")
    return [Value(FLOAT, (*broadcast(a[:-2], b[:-2]), a[-2], b[-1]))]


def numbers_of(node: Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An attribute of as many numbers as its default has."""
    value = node.attributes.get(name, default)
    if not isinstance(value, tuple) or len(value) != len(default):
        raise GraphError(f"whose {name} are not {len(default)} numbers")
    return value


def windows(node: Node, sides: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Height and width after a kernel has passed over `sides`."""
    strides, dilations = numbers_of(node, "strides", (1, 1)), numbers_of(node, "dilations", (1, 1))
    pads = numbers_of(node, "pads", (0, 0, 0, 0))
    result = []
    for axis, (side, size) in enumerate(zip(sides, kernel, strict=True)):
        stride, dilation, before, after = strides[axis], dilations[axis], pads[axis], pads[axis + 2]
        reach = dilation * (size - 1)
        if not (1 <= size <= _MAX_KERNEL and 1 <= stride <= 8 and 1 <= dilation <= 8 and max(before, after) <= reach):
            raise GraphError("whose kernel, strides, dilations or padding are out of range")
        if min(before, after) < 0 or side + before + after <= reach:
            raise GraphError(f"whose kernel does not fit a picture of {side}")
        result.append((side + before + after - reach - 1) // stride + 1)
    return result


def check_kernel(node: Node, inputs: Inputs, kernel: Sequence[int], out: int) -> None:
    """Raise `GraphError` unless a convolution's kernel is as large as it says, and its bias has one value a channel."""
    if node.attributes.get("kernel_shape", tuple(kernel)) != tuple(kernel):
        raise GraphError(f"whose kernel is {list(kernel)} and not what it says")
    if len(inputs) > 2 and at(inputs, 2, FLOAT, rank=1).shape != (out,):
        raise GraphError("whose bias does not fit its kernel")


@rule("Conv")
def _convolution(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, *sides = at(inputs, 0, FLOAT, rank=4).shape
    out, per_group, *kernel = at(inputs, 1, FLOAT, rank=4).shape
    group = node.attributes.get("group", 1)
    if not isinstance(group, int) or group < 1 or per_group * group != channels or out % group:
        raise GraphError(f"whose kernel for {per_group} × {group} channels meets {channels}")
    check_kernel(node, inputs, kernel, out)
    return [Value(FLOAT, (batch, out, *windows(node, sides, kernel)))]


@rule("GroupConv")
def _group_convolution(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, *sides = at(inputs, 0, FLOAT, rank=4).shape
    groups, out, per_group, *kernel = at(inputs, 1, FLOAT, rank=5).shape
    if groups * per_group != channels:
        raise GraphError(f"whose kernel for {per_group} × {groups} channels meets {channels}")
    return [Value(FLOAT, (batch, groups * out, *windows(node, sides, kernel)))]


@rule("AveragePool")
def _average_pool(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, *sides = at(inputs, 0, FLOAT, rank=4).shape
    return [Value(FLOAT, (batch, channels, *windows(node, sides, numbers_of(node, "kernel_shape", (0, 0)))))]
