"""Proof on the graph that a reparameterized decoder is what it promises: a plain stack of 3×3 convolutions and ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from ..errors import ProofError

__all__ = ["check_plain_body"]


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)  # ONNX keeps them in topological order
        self.producer = {output: node for node in self.nodes for output in node.output}

    def users(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def descendants(self, name: str) -> set[str]:
        """Names of all values that are computed from `name`, itself included."""
        reached = {name}
        for node in self.nodes:
            if reached & set(node.input):
                reached |= set(node.output)
        return reached

    def only_user(self, name: str, what: str) -> onnx.NodeProto:
        users = self.users(name)
        if len(users) != 1:
            raise ProofError(f"{what} is used by {len(users)} nodes ({', '.join(n.op_type for n in users)}), not by one")
        return users[0]


def _check_convolution(node: onnx.NodeProto, what: str) -> None:
    wanted = {"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}
    defaults: dict[str, object] = {"strides": [1, 1], "dilations": [1, 1], "group": 1}
    if node.op_type != "Conv":
        raise ProofError(f"{what} is a {node.op_type}, not a convolution")
    for name, value in wanted.items():
        found = _attribute(node, name, defaults.get(name))
        if found != value:
            raise ProofError(f"{what} is a convolution with {name} {found}, not {value}")


def check_plain_body(model: onnx.ModelProto, depth: int, modulated: Sequence[int]) -> None:
    """Walk the decoder graph from the head to the tail and raise `ProofError` at the first thing that is not plain.

    Plain is: head, ReLU, then `depth` times one 3×3 convolution (stride, dilation and padding 1), at the depths
    `modulated` a Mul and an Add whose other operand comes from the latent prior `z` alone, and a ReLU; then the tail.
    """
    graph = _Graph(model)
    from_z, from_lr = graph.descendants("z"), graph.descendants("lr")
    heads = [n for n in graph.users("lr") if n.op_type == "Conv"]
    if len(heads) != 1:
        raise ProofError(f"the decoder graph has {len(heads)} head convolutions, not one")
    _check_convolution(heads[0], "the head")
    node = graph.only_user(heads[0].output[0], "the head's output")
    if node.op_type != "Relu":
        raise ProofError(f"the head is followed by a {node.op_type}, not by ReLU")
    for index in range(depth):
        convolution = graph.only_user(node.output[0], f"the input of body convolution {index}")
        _check_convolution(convolution, f"body convolution {index}")
        node = graph.only_user(convolution.output[0], f"the output of body convolution {index}")
        if index in modulated:
            for kind in ("Mul", "Add"):
                others = [name for name in node.input if name not in from_lr]
                if node.op_type != kind or len(others) != 1 or others[0] not in from_z:
                    raise ProofError(
                        f"body convolution {index} is followed by a {node.op_type}, not by the modulation's {kind}"
                    )
                node = graph.only_user(node.output[0], f"the modulation of body convolution {index}")
        if node.op_type != "Relu":
            raise ProofError(f"body convolution {index} is followed by a {node.op_type}, not by ReLU")
    tail = graph.only_user(node.output[0], "the body's output")
    _check_convolution(tail, "the tail")
    after = graph.only_user(tail.output[0], "the tail's output")
    if after.op_type != "Add":
        raise ProofError(f"the tail is followed by a {after.op_type}, not by the long skip's Add")
