"""What is known about a value of a graph before a picture is seen, and what the rules of the operators share.

A rule takes a node and its inputs and gives its outputs, or raises `GraphError`. The rules are those of ONNX
(https://onnx.ai/onnx/operators/); the layers of OpenVINO IR are translated to them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import BOOL, INT64, KNOWN, MAX_RANK, GraphError, Node

__all__ = ["LARGEST", "RULES", "Inputs", "Rule", "Value", "at", "axes_of", "axis_of", "broadcast", "ints", "made", "rule"]

LARGEST = 2**31
"""Integers that set sizes stay below it, so that no product of two overflows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """What is known about a value."""

    dtype: str
    shape: tuple[int, ...]
    known: NDArray[Any] | None = None
    """The values themselves, if they depend on sizes alone."""
    below: int | None = None
    """Integers from 0 to below this, if they depend on the picture."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


Inputs = Sequence[Value | None]
Rule = Callable[[Node, Inputs], list[Value]]
RULES: dict[str, Rule] = {}
"""Operator → its rule."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return add


def at(inputs: Inputs, index: int, *dtypes: str, rank: int | None = None) -> Value:
    """An input that must be there, of these types and this rank."""
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise GraphError(f"which lacks input {index}")
    if dtypes and value.dtype not in dtypes:
        raise GraphError(f"whose input {index} is {value.dtype}")
    if rank is not None and len(value.shape) != rank:
        raise GraphError(f"whose input {index} has {len(value.shape)} dimensions, not {rank}")
    return value


def ints(inputs: Inputs, index: int, rank: int | None = 1) -> list[int]:
    """An input of integers that is known before the picture is seen."""
    value = at(inputs, index, INT64, rank=rank)
    if value.known is None:
        raise GraphError("whose sizes depend on what is in the picture")
    return [int(number) for number in value.known.ravel()]


def axis_of(axis: Any, rank: int) -> int:
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise GraphError(f"whose axis {axis} is none of {rank}")
    return axis % rank


def axes_of(numbers: Sequence[int], rank: int) -> list[int]:
    axes = [axis_of(number, rank) for number in numbers]
    if len(set(axes)) != len(axes):
        raise GraphError("which names an axis twice")
    return axes


def made(dtype: str, shape: Sequence[int], compute: Callable[[], Any], *inputs: Value) -> Value:
    """A value, with its numbers if those of all inputs are known and they are integers or booleans."""
    sides = tuple(int(side) for side in shape)
    if len(sides) > MAX_RANK or any(side < 0 or side > LARGEST for side in sides):
        raise GraphError(f"whose result would have the shape {list(sides)}")
    known = None
    if dtype in (INT64, BOOL) and all(value.known is not None for value in inputs) and math.prod(sides) <= KNOWN:
        known = np.asarray(compute()).astype(dtype).reshape(sides)
    return Value(dtype, sides, known)


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    rank = max(len(shape) for shape in shapes)
    sides = []
    for column in zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True):
        large = {side for side in column if side != 1}
        if len(large) > 1:
            raise GraphError(f"whose inputs of {' and '.join(str(list(shape)) for shape in shapes)} do not fit together")
        sides.append(large.pop() if large else 1)
    return tuple(sides)
