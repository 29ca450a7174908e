"""Rules of the operators that direct networks add: normalization, powers, pooling, transposed convolutions."""

from __future__ import annotations

from .graph import FLOAT, INT64, GraphError, Node
from .rules_layers import check_kernel, numbers_of, windows
from .values import Inputs, Value, at, broadcast, rule

__all__: list[str] = []

_MAX_SIDE, _MAX_OVERLAP = 16, 4
"""Of kernels and strides of transposed convolutions; how often a kernel may pass over a pixel along one axis."""


@rule("InstanceNormalization")
def _instance_normalization(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0, FLOAT)
    for index in (1, 2):
        if at(inputs, index, FLOAT).shape != x.shape[1:2]:
            raise GraphError("whose scale or bias does not fit its input")
    return [Value(FLOAT, x.shape)]


@rule("Pow")
def _power(node: Node, inputs: Inputs) -> list[Value]:
    x, exponent = at(inputs, 0, FLOAT), at(inputs, 1, FLOAT)
    if broadcast(x.shape, exponent.shape) != x.shape:
        raise GraphError("whose exponent does not fit its input")
    return [Value(FLOAT, x.shape)]


@rule("GlobalAveragePool")
def _global_average_pool(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, _, _ = at(inputs, 0, FLOAT, rank=4).shape
    return [Value(FLOAT, (batch, channels, 1, 1))]


@rule("MaxPool")
def _max_pool(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, *sides = at(inputs, 0, FLOAT, rank=4).shape
    pooled = Value(FLOAT, (batch, channels, *windows(node, sides, numbers_of(node, "kernel_shape", (0, 0)))))
    return [pooled, Value(INT64, pooled.shape)][: len(node.outputs)]  # OpenVINO's layer says where the largest values were


@rule("ConvTranspose")
def _transposed_convolution(node: Node, inputs: Inputs) -> list[Value]:
    batch, channels, *sides = at(inputs, 0, FLOAT, rank=4).shape
    entering, out, *kernel = at(inputs, 1, FLOAT, rank=4).shape
    if entering != channels:
        raise GraphError(f"whose kernel for {entering} channels meets {channels}")
    check_kernel(node, inputs, kernel, out)
    strides, pads, more = (
        numbers_of(node, "strides", (1, 1)),
        numbers_of(node, "pads", (0,) * 4),
        numbers_of(node, "output_padding", (0, 0)),
    )
    result = []
    for axis, (side, size) in enumerate(zip(sides, kernel, strict=True)):
        stride, before, after = strides[axis], pads[axis], pads[axis + 2]
        fits = (
            1 <= size <= min(_MAX_SIDE, _MAX_OVERLAP * stride)
            and 1 <= stride <= _MAX_SIDE
            and min(before, after) >= 0
            and max(before, after) < size
        )
        length = (side - 1) * stride + size - before - after + more[axis]
        if not fits or not 0 <= more[axis] < stride or length < 1:
            raise GraphError("whose kernel, strides or padding are out of range")
        result.append(length)
    return [Value(FLOAT, (batch, out, *result))]
