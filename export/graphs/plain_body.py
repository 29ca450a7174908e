"""Prove on the graph that a fused decoder keeps its promise: a plain stack of 3×3 convolutions and ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from ..errors import ProofError

__all__ = ["check_plain_body"]


def _computed_from(graph: ir.Graph, name: str) -> set[ir.Value | None]:
    """All values that are computed from the input `name`, itself included."""
    reached: set[ir.Value | None] = {value for value in graph.inputs if value.name == name}
    for node in graph:  # ONNX keeps nodes in topological order
        if not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
    return reached


def _only_user(node: ir.Node, what: str) -> ir.Node:
    """The only node that reads the output of `node`."""
    users = node.outputs[0].consumers()
    if len(users) != 1:
        raise ProofError(f"{what} is used by {len(users)} nodes ({', '.join(n.op_type for n in users)}), not by one")
    return users[0]


def _check_convolution(node: ir.Node, what: str) -> None:
    if node.op_type != "Conv":
        raise ProofError(f"{what} is a {node.op_type}, not a convolution")
    wanted = {"kernel_shape": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}
    defaults = {"strides": (1, 1), "dilations": (1, 1), "group": 1}
    found = defaults | {name: attribute.value for name, attribute in node.attributes.items()}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ProofError(f"{what} is a convolution with {name} {found.get(name)}, not {value}")


def check_plain_body(model: onnx.ModelProto, depth: int, modulated: Sequence[int]) -> None:
    """Walk the decoder graph from the head to the tail. Raise `ProofError` at the first thing that is not plain.

    Plain is: the head, ReLU, `depth` times a 3×3 convolution (stride, dilation and padding 1) and ReLU, then the tail.
    At the depths `modulated`, a Mul and an Add stand before the ReLU; their other operand depends on the latent prior `z`
    and not on the picture `lr`.
    """
    graph = ir.from_proto(model).graph
    from_z, from_lr = _computed_from(graph, "z"), _computed_from(graph, "lr")
    heads = [node for value in graph.inputs if value.name == "lr" for node in value.consumers() if node.op_type == "Conv"]
    if len(heads) != 1:
        raise ProofError(f"the decoder graph has {len(heads)} head convolutions, not one")
    _check_convolution(heads[0], "the head")
    node = _only_user(heads[0], "the head's output")
    if node.op_type != "Relu":
        raise ProofError(f"the head is followed by a {node.op_type}, not by ReLU")
    for index in range(depth):
        convolution = _only_user(node, f"the input of body convolution {index}")
        _check_convolution(convolution, f"body convolution {index}")
        node = _only_user(convolution, f"the output of body convolution {index}")
        if index in modulated:
            for kind in ("Mul", "Add"):
                others = [value for value in node.inputs if value not in from_lr]
                if node.op_type != kind or len(others) != 1 or others[0] not in from_z:
                    raise ProofError(
                        f"body convolution {index} is followed by a {node.op_type}, not by the modulation's {kind}"
                    )
                node = _only_user(node, f"the modulation of body convolution {index}")
        if node.op_type != "Relu":
            raise ProofError(f"body convolution {index} is followed by a {node.op_type}, not by ReLU")
    tail = _only_user(node, "the body's output")
    _check_convolution(tail, "the tail")
    after = _only_user(tail, "the tail's output")
    if after.op_type != "Add":
        raise ProofError(f"the tail is followed by a {after.op_type}, not by the long skip's Add")
