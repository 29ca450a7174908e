"""Rules of the operators that residual-shift networks add: angles, reciprocals, a codebook's look-up."""

from __future__ import annotations

import dataclasses

from .graph import FLOAT, INT64, GraphError, Node
from .values import Inputs, Value, at, axis_of, rule

__all__: list[str] = []


@rule("Cos", "Reciprocal", "Sin")
def _unary(node: Node, inputs: Inputs) -> list[Value]:
    return [Value(FLOAT, at(inputs, 0, FLOAT).shape)]


@rule("ArgMin")
def _arg_min(node: Node, inputs: Inputs) -> list[Value]:
    """The numbers depend on the picture, and lie below the length of the axis."""
    x = at(inputs, 0, FLOAT)
    axis = axis_of(node.attributes.get("axis", 0), len(x.shape))
    if node.attributes.get("keepdims", 1) != 0 or not x.shape[axis]:
        raise GraphError("which keeps the axis that it searches, or finds nothing in it")
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [dataclasses.replace(Value(INT64, shape), below=x.shape[axis])]
