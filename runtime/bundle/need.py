"""Follow element types and shapes through a graph for a picture of a given size, before an engine does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from . import rules_direct, rules_layers, rules_layout, rules_shift  # noqa: F401  # they fill RULES
from .graph import FLOAT, UINT8, Graph, GraphError, Node
from .values import RULES, Inputs, Value, at

__all__ = ["Need", "need"]


@dataclasses.dataclass(frozen=True)
class Need:
    """What a graph takes for one picture size."""

    largest: int
    """Values of its largest tensor."""
    peak: int
    """Values that are held at once, constants not counted."""
    products: int
    """Multiplications in convolutions and matrix products."""


def need(graph: Graph, height: int, width: int, *, values: int, products: int) -> Need:
    """Follow a picture of `height` × `width` through the graph.

    Nothing is allocated. Raises `GraphError` if a node does not fit its inputs, or if the graph would hold more than
    `values` at once or compute more than `products`.
    """
    found: dict[str, Value] = {name: Value(t.dtype, t.shape, t.known) for name, t in graph.constants.items()}
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    last[graph.outputs[0]] = len(graph.nodes)
    held: dict[str, int] = {}
    for name, value in found.items():
        _check_claim(graph, name, value)
    for name, (dtype, shape) in graph.inputs.items():
        if dtype not in (FLOAT, UINT8) or shape is None:
            raise GraphError(f"has the input {name!r} of {dtype}, or without a shape")
        found[name] = Value(dtype, _concrete(name, shape, height, width))
        held[name] = found[name].size
    largest = peak = total = sum(held.values())
    spent = 0
    for index, node in enumerate(graph.nodes):
        try:
            inputs = [found[name] if name else None for name in node.inputs]
            outputs = RULES[node.operator](node, inputs)
        except GraphError as error:
            raise GraphError(f"holds the {node.operator} {node.name!r}, {error}") from None
        except (ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
            raise GraphError(f"holds the {node.operator} {node.name!r}, which does not fit its inputs ({error})") from None
        if len(outputs) != len(node.outputs):
            raise GraphError(f"holds the {node.operator} {node.name!r} with {len(node.outputs)} outputs")
        for name, value in zip(node.outputs, outputs, strict=True):
            if value.dtype == FLOAT and 0 in value.shape:
                raise GraphError(f"holds the {node.operator} {node.name!r}, whose result is empty")
            _check_claim(graph, name, value)
            found[name] = value
            held[name] = value.size
            total += value.size
            largest = max(largest, value.size)
        peak = max(peak, total + _scratch(node, inputs))
        spent += _products(node, inputs, outputs)
        if peak > values or spent > products:
            much = f"hold {peak} values at once, more than its peak_channels explain,"
            what = much if peak > values else f"compute {spent} products, more than its weights explain,"
            raise GraphError(f"would, at the {node.operator} {node.name!r}, {what} for a picture of {height}×{width}")
        for name in {*node.inputs, *node.outputs}:
            if last.get(name, index) <= index:
                total -= held.pop(name, 0)
                if name not in graph.constants:
                    found.pop(name, None)
    return Need(largest, peak, spent)


def _check_claim(graph: Graph, name: str, value: Value) -> None:
    """Raise `GraphError` if the file says something else of the value."""
    dtype, shape = graph.claims.get(name, (value.dtype, None))
    fits = shape is None or (
        len(shape) == len(value.shape) and all(a in (None, b) for a, b in zip(shape, value.shape, strict=True))
    )
    if dtype != value.dtype or not fits:
        said = f"{dtype} {list(shape or ())}"
        raise GraphError(f"says that {name!r} is {said}, but it is {value.dtype} {list(value.shape)}")


def _concrete(name: str, shape: tuple[int | None, ...], height: int, width: int) -> tuple[int, ...]:
    """The shape of an input for one picture: a free first axis is the batch of one, the next two are height and width."""
    sizes = iter((height, width))
    try:
        sides = tuple((1 if axis == 0 else next(sizes)) if side is None else side for axis, side in enumerate(shape))
    except StopIteration:
        raise GraphError(f"has the input {name!r} with more free axes than a picture") from None
    if not sides or len(sides) > 4 or sides[0] != 1 or min(sides) < 1:
        raise GraphError(f"has the input {name!r} of the shape {list(sides)[:8]}")
    return sides


def _scratch(node: Node, inputs: Inputs) -> int:
    """Values that engines hold while they compute a node, beside its inputs and outputs."""
    if node.operator != "ConvTranspose":
        return 0
    batch, _, height, width = at(inputs, 0).shape
    return batch * height * width * math.prod(at(inputs, 1).shape[1:])  # one column for each input pixel


def _products(node: Node, inputs: Inputs, outputs: Sequence[Value]) -> int:
    if node.operator in ("Conv", "GroupConv", "AveragePool", "MaxPool"):
        kernel = node.attributes["kernel_shape"] if "Pool" in node.operator else at(inputs, 1).shape[-3:]
        return outputs[0].size * math.prod(kernel)  # type: ignore[arg-type]
    if node.operator == "ConvTranspose":
        return at(inputs, 0).size * math.prod(at(inputs, 1).shape[1:])
    if node.operator in ("MatMul", "Gemm"):
        return outputs[0].size * at(inputs, 0).shape[-2 if node.attributes.get("transA") else -1]
    return 0
