"""Proof on the graph that a reparameterized decoder is what it promises: a plain stack of 3×3 convolutions and ReLU."""

from __future__ import annotations

import onnx

from .errors import ProofError

__all__ = ["body_nodes", "check_plain_body"]

_PIXEL_OPS = {"Conv", "Relu", "Mul", "Add"}


def body_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes of the decoder graph that lie between the head's convolution and the tail's, both left out.

    A node lies between when it works on what the head put out and the tail's input depends on it.
    """
    nodes = list(model.graph.node)
    producers = {output: node for node in nodes for output in node.output}

    def descendants(name: str) -> list[onnx.NodeProto]:
        reached = {name}
        found = []
        for node in nodes:  # ONNX keeps nodes in topological order
            if reached & set(node.input):
                reached |= set(node.output)
                found.append(node)
        return found

    convolutions = [node for node in nodes if node.op_type == "Conv"]
    heads = [n for n in convolutions if "lr" in n.input and any(m.op_type == "Relu" for m in _users(nodes, n))]
    if len(heads) != 1:
        raise ProofError(f"the decoder graph has {len(heads)} head convolutions, not one")
    after_head = descendants(heads[0].output[0])
    tail = [node for node in after_head if node.op_type == "Conv"][-1]
    needed: set[str] = set()
    queue = [tail.input[0]]
    while queue:
        name = queue.pop()
        if name not in needed and name in producers:
            needed.add(name)
            queue += list(producers[name].input)
    return [node for node in after_head if set(node.output) & needed]


def _users(nodes: list[onnx.NodeProto], node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [other for other in nodes if set(node.output) & set(other.input)]


def check_plain_body(model: onnx.ModelProto, depth: int) -> None:
    """Raise `ProofError` unless the body is `depth` 3×3 convolutions, ReLU and the modulation's Mul and Add alone."""
    body = body_nodes(model)
    for node in body:
        if node.op_type not in _PIXEL_OPS:
            raise ProofError(f"the decoder's body holds a {node.op_type} ({node.name})")
        if node.op_type == "Conv":
            kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [])
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            if kernel != [3, 3] or group != 1:
                raise ProofError(f"the decoder's body holds a {kernel} convolution of {group} groups ({node.name})")
    convolutions = sum(node.op_type == "Conv" for node in body)
    if convolutions != depth:
        raise ProofError(f"the decoder's body holds {convolutions} convolutions, not {depth}")
