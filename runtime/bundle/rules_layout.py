"""Rules of the operators that make, read and move sizes and values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .graph import BOOL, FLOAT, INT8, INT64, UINT8, GraphError, Node, Tensor
from .values import LARGEST, Inputs, Value, at, axes_of, axis_of, broadcast, ints, made, rule

__all__: list[str] = []


@rule("Identity")
def _identity(node: Node, inputs: Inputs) -> list[Value]:
    return [at(inputs, 0)]


_CASTS = {1: FLOAT, 2: UINT8, 7: INT64}


@rule("Cast")
def _cast(node: Node, inputs: Inputs) -> list[Value]:
    dtype = _CASTS.get(node.attributes.get("to"))  # type: ignore[arg-type]
    if dtype is None:
        raise GraphError("which makes a type that no export writes")
    x = at(inputs, 0, FLOAT, UINT8, INT8, INT64, BOOL)
    return [made(dtype, x.shape, lambda: x.known, x) if x.dtype == INT64 else Value(dtype, x.shape)]


@rule("Shape")
def _shape(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0)
    return [Value(INT64, (len(x.shape),), np.array(x.shape, np.int64))]


@rule("Constant")
def _constant(node: Node, inputs: Inputs) -> list[Value]:
    tensor = node.attributes["value"]
    assert isinstance(tensor, Tensor)
    return [Value(tensor.dtype, tensor.shape, tensor.known)]


@rule("ConstantOfShape")
def _constant_of_shape(node: Node, inputs: Inputs) -> list[Value]:
    tensor = node.attributes["value"]
    if not isinstance(tensor, Tensor) or tensor.shape != (1,) or tensor.dtype not in (FLOAT, INT64):
        raise GraphError("whose value is not one number")
    one = tensor.known
    sides = ints(inputs, 0)
    return [made(tensor.dtype, sides, lambda: np.full(sides, one))]


@rule("Range")
def _range(node: Node, inputs: Inputs) -> list[Value]:
    start, stop, step = (ints(inputs, index, rank=0)[0] for index in range(3))
    if step == 0 or max(abs(start), abs(stop), abs(step)) > LARGEST:
        raise GraphError("which makes no list of sizes")
    count = max(0, -((start - stop) // step) if step > 0 else -((stop - start) // -step))
    return [made(INT64, (count,), lambda: np.arange(start, stop, step))]


@rule("Expand")
def _expand(node: Node, inputs: Inputs) -> list[Value]:
    x, sides = at(inputs, 0), ints(inputs, 1)
    shape = broadcast(x.shape, sides)
    return [made(x.dtype, shape, lambda: np.broadcast_to(x.known, shape), x)]  # type: ignore[arg-type]


@rule("Tile")
def _tile(node: Node, inputs: Inputs) -> list[Value]:
    x, repeats = at(inputs, 0), ints(inputs, 1)
    if len(repeats) != len(x.shape) or min(repeats, default=1) < 1:
        raise GraphError("whose repeats do not fit its input")
    shape = [side * count for side, count in zip(x.shape, repeats, strict=True)]
    return [made(x.dtype, shape, lambda: np.tile(x.known, repeats), x)]  # type: ignore[arg-type]


@rule("Concat")
def _concat(node: Node, inputs: Inputs) -> list[Value]:
    values = [at(inputs, index) for index in range(len(inputs))]
    first = values[0]
    axis = axis_of(node.attributes.get("axis"), len(first.shape))
    rest = (first.dtype, first.shape[:axis], first.shape[axis + 1 :], len(first.shape))
    if any((v.dtype, v.shape[:axis], v.shape[axis + 1 :], len(v.shape)) != rest for v in values):
        raise GraphError("whose inputs do not fit together")
    shape = (*first.shape[:axis], sum(value.shape[axis] for value in values), *first.shape[axis + 1 :])
    return [made(first.dtype, shape, lambda: np.concatenate([v.known for v in values], axis), *values)]


@rule("Gather")
def _gather(node: Node, inputs: Inputs) -> list[Value]:
    x, index = at(inputs, 0), at(inputs, 1, INT64)
    axis = ints(inputs, 2, rank=None)[0] if len(inputs) > 2 else node.attributes.get("axis", 0)
    if index.below is not None and axis == 0 and x.shape and index.below <= x.shape[0]:
        return [Value(x.dtype, (*index.shape, *x.shape[1:]))]
    axis = axis_of(axis, len(x.shape))
    side = x.shape[axis]
    if index.known is None:
        raise GraphError("whose sizes depend on what is in the picture")
    if index.size and not -side <= index.known.min() <= index.known.max() < side:
        raise GraphError(f"which picks number {index.known.max()} of {side}")
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return [made(x.dtype, shape, lambda: np.take(x.known, index.known, axis), x, index)]  # type: ignore[arg-type]


@rule("Slice")
def _slice(node: Node, inputs: Inputs) -> list[Value]:
    x, rank = at(inputs, 0), len(at(inputs, 0).shape)
    starts, stops = ints(inputs, 1), ints(inputs, 2)
    axes = axes_of(ints(inputs, 3) if len(inputs) > 3 else range(len(starts)), rank)
    steps = ints(inputs, 4) if len(inputs) > 4 else [1] * len(starts)
    if not len(starts) == len(stops) == len(axes) == len(steps) or 0 in steps:
        raise GraphError("whose starts, ends, axes and steps do not fit together")
    parts = [slice(None)] * rank
    shape = list(x.shape)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        side = x.shape[axis]
        end = None if step < 0 and stop < -side else stop  # ONNX: the end before the first element
        parts[axis] = slice(start, end, step)
        shape[axis] = len(range(*parts[axis].indices(side)))
    return [made(x.dtype, shape, lambda: x.known[tuple(parts)], x)]  # type: ignore[index]


@rule("Split", "SplitEqually")
def _split(node: Node, inputs: Inputs) -> list[Value]:
    x, count = at(inputs, 0), len(node.outputs)
    equally = node.operator == "SplitEqually"  # OpenVINO: without a list of lengths; the axis is an input
    place = 1 if equally else 2
    axis = axis_of(
        ints(inputs, place, rank=None)[0] if len(inputs) > place else node.attributes.get("axis", 0), len(x.shape)
    )
    if equally:
        if node.attributes["num_splits"] != count or not count or x.shape[axis] % count:
            raise GraphError("whose parts do not add up to its input")
        lengths = [x.shape[axis] // count] * count
    else:
        lengths = ints(inputs, 1)
        if lengths.count(-1) == 1:  # OpenVINO: what is left
            lengths[lengths.index(-1)] = x.shape[axis] - sum(lengths) - 1
    if len(lengths) != count or sum(lengths) != x.shape[axis] or min(lengths) < 0:
        raise GraphError("whose parts do not add up to its input")
    values, start = [], 0
    for length in lengths:
        part = (slice(None),) * axis + (slice(start, start + length),)
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        values.append(made(x.dtype, shape, lambda part=part: x.known[part], x))  # type: ignore[misc,index]
        start += length
    return values


@rule("Reshape")
def _reshape(node: Node, inputs: Inputs) -> list[Value]:
    x, target = at(inputs, 0), ints(inputs, 1)
    if not node.attributes.get("allowzero"):
        if any(side == 0 and axis >= len(x.shape) for axis, side in enumerate(target)):
            raise GraphError("which keeps an axis that its input does not have")
        target = [x.shape[axis] if side == 0 else side for axis, side in enumerate(target)]
    if target.count(-1) > 1 or any(side < -1 for side in target):
        raise GraphError(f"to the impossible shape {target}")
    if -1 in target:
        rest = -math.prod(target)
        if rest == 0 or x.size % rest:
            raise GraphError(f"of {list(x.shape)} to {target}")
        target[target.index(-1)] = x.size // rest
    if math.prod(target) != x.size or len(target) > 8:
        raise GraphError(f"of {list(x.shape)} to {target[:8]}")
    return [made(x.dtype, target, lambda: x.known, x)]


@rule("Squeeze", "Unsqueeze")
def _squeeze(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0)
    if node.operator == "Squeeze" and len(inputs) == 1:
        numbers = [axis for axis, side in enumerate(x.shape) if side == 1]
    else:
        numbers = ints(inputs, 1, rank=None)
    if node.operator == "Squeeze":
        axes = axes_of(numbers, len(x.shape))
        if any(x.shape[axis] != 1 for axis in axes):
            raise GraphError(f"which drops an axis of {list(x.shape)} that is not 1")
        shape = [side for axis, side in enumerate(x.shape) if axis not in axes]
    else:
        shape = list(x.shape)
        for axis in sorted(axes_of(numbers, len(x.shape) + len(numbers))):
            shape.insert(axis, 1)
    return [made(x.dtype, shape, lambda: x.known, x)]


@rule("Transpose")
def _transpose(node: Node, inputs: Inputs) -> list[Value]:
    x = at(inputs, 0)
    order: Any = ints(inputs, 1) if len(inputs) > 1 else node.attributes["perm"]
    if sorted(order) != list(range(len(x.shape))):
        raise GraphError(f"whose order {list(order)[:8]} does not fit {len(x.shape)} axes")
    return [made(x.dtype, [x.shape[axis] for axis in order], lambda: x.known.transpose(order), x)]  # type: ignore[union-attr]
