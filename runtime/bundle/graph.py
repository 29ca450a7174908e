"""The one form in which ONNX and OpenVINO IR graphs are checked: values by name, constants, and nodes in their order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BOOL", "FLOAT", "INT8", "INT64", "KNOWN", "MAX_NODES", "UINT8", "Attribute", "Graph", "GraphError", "Node", "Port",
    "Tensor",
]  # fmt: skip

FLOAT, UINT8, INT8, INT64, BOOL = "float32", "uint8", "int8", "int64", "bool"
_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT64: 8, BOOL: 1}
"""Element types that exports write, with their bytes."""
MAX_NODES = 50_000
"""A process of 1,000 steps has some 30,000; the largest known network without one 5,000."""
MAX_RANK = 8
KNOWN = 2**14
"""Constants of so many values at most are read; they may set sizes."""
AnyArray = NDArray[np.generic]


class GraphError(ValueError):
    """What a graph may not be. The message continues "FILE …", e.g. "holds a subgraph in node 3"."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A constant. Type, shape and number of bytes agree."""

    dtype: str
    shape: tuple[int, ...]
    content: memoryview

    @classmethod
    def of(cls, name: str, dtype: str | None, shape: Sequence[int], content: memoryview) -> Tensor:
        """Raise `GraphError` unless the shape times the type is the number of bytes. `dtype`: None if unknown."""
        if dtype is None:
            raise GraphError(f"holds the constant {name!r} of a type that no export writes")
        if len(shape) > MAX_RANK or any(side < 0 for side in shape):
            raise GraphError(f"holds the constant {name!r} of the impossible shape {list(shape)[:MAX_RANK]}")
        if math.prod(shape) * _BYTES[dtype] != len(content):
            raise GraphError(f"holds the constant {name!r} of {dtype} {list(shape)} with {len(content)} bytes")
        return cls(dtype, tuple(shape), content)

    @property
    def known(self) -> AnyArray | None:
        """The values, if they are few enough to set sizes."""
        if math.prod(self.shape) > KNOWN:
            return None
        return np.frombuffer(self.content, dtype=np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


Port = tuple[str, tuple[int | None, ...] | None]
"""Element type and shape of a value; None for a free axis, or for a shape that is not told."""
Attribute = int | float | str | tuple[int, ...] | Tensor


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    """Names of the values that it reads; empty for an optional one that is left out."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A whole graph. `check_order` has seen to it that every value is made once, before it is read."""

    inputs: Mapping[str, Port]
    constants: Mapping[str, Tensor]
    nodes: Sequence[Node]
    outputs: Sequence[str]
    claims: Mapping[str, Port] = dataclasses.field(default_factory=dict)
    """What the file says about types and shapes of other values. Engines believe it, so it has to be true."""

    @property
    def stored(self) -> int:
        """Number of values in its constants."""
        attributes = (value for node in self.nodes for value in node.attributes.values() if isinstance(value, Tensor))
        return sum(math.prod(tensor.shape) for tensor in (*self.constants.values(), *attributes))

    def check_order(self) -> None:
        """Raise `GraphError` unless every value has one maker, which comes before its readers."""
        if not 1 <= len(self.inputs) <= 5 or len(self.outputs) != 1:
            raise GraphError(f"has {len(self.inputs)} inputs and {len(self.outputs)} outputs")
        if len(self.nodes) > MAX_NODES or len(self.constants) > MAX_NODES:
            raise GraphError(f"has more than {MAX_NODES} nodes or constants")
        made = set(self.inputs)
        for name in self.constants:
            _make(made, name)
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in made:
                    raise GraphError(f"has the node {node.name!r}, which reads {name!r} before it is made")
            for name in node.outputs:
                _make(made, name)
        if self.outputs[0] not in made:
            raise GraphError(f"never makes its output {self.outputs[0]!r}")


def _make(made: set[str], name: str) -> None:
    if not name or name in made:
        raise GraphError(f"makes the value {name!r} twice" if name else "makes a value without a name")
    made.add(name)
