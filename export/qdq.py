"""A traced float graph becomes the int8 graph: quantize and dequantize nodes around the convolutions that run in int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..models.rdsr.quantized import PAIR_LEVELS, WEIGHT_LEVELS, TracedDecoder
from .errors import ExportError

__all__ = ["Quantization", "insert_qdq", "quantizations"]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How one convolution of a graph is quantized."""

    weight_scale: NDArray[np.float32]
    """O, of one level of the kernel."""
    input_scale: np.float32
    """Of one level of the input."""
    output: bool
    """Whether its output, after the ReLU, comes in levels of 1."""


def quantizations(decoder: TracedDecoder) -> dict[int, Quantization]:
    """Index of a convolution of body and tail → how it is quantized; float ones are left out."""
    return {
        index: Quantization(weights.numpy(), np.float32(inputs.item()), output)
        for index, (weights, inputs, output) in enumerate(
            zip(decoder.weight_scales, decoder.input_scales, decoder.outputs, strict=True)
        )
        if weights is not None and inputs is not None
    }


class _Surgery:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def quantize(self, tensor: str, prefix: str, scale: np.float32) -> None:
        """Put Q and DQ behind `tensor`; everything that used it uses what comes out of them."""
        at = next((i + 1 for i, node in enumerate(self.nodes) if tensor in node.output), 0)
        for node in self.nodes:
            for k, name in enumerate(node.input):
                if name == tensor:
                    node.input[k] = f"{prefix}_dequantized"
        constants = [self.constant(f"{prefix}_scale", scale), self.constant("zero_u8", np.uint8(0))]
        self.nodes[at:at] = [
            helper.make_node("QuantizeLinear", [tensor, *constants], [f"{prefix}_levels"], name=f"{prefix}/quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{prefix}_levels", *constants], [f"{prefix}_dequantized"], name=f"{prefix}/dequantize"
            ),
        ]

    def quantize_weight(self, node: onnx.NodeProto, prefix: str, scale: NDArray[np.float32]) -> None:
        weight = numpy_helper.to_array(self.constants[node.input[1]])
        exact = weight / scale[:, None, None, None]
        levels = np.rint(exact)
        if not (np.abs(levels) <= WEIGHT_LEVELS).all() or not (np.abs(exact - levels) < 1e-3).all():
            raise ExportError(f"{prefix} has weights that are no multiples of their scale")
        if levels.shape[1] % 2 == 0 and (np.abs(levels[:, 0::2] + levels[:, 1::2]) > PAIR_LEVELS).any():
            raise ExportError(f"{prefix} has weights whose products overflow 16 bits")
        constants = [
            self.constant(f"{prefix}_weight", levels.astype(np.int8)),
            self.constant(f"{prefix}_weight_scale", scale),
            self.constant(f"{prefix}_weight_zero", np.zeros(len(scale), np.int8)),
        ]
        self.nodes.insert(
            self.nodes.index(node),
            helper.make_node("DequantizeLinear", constants, [f"{prefix}_kernel"], name=f"{prefix}/weight", axis=0),
        )
        node.input[1] = f"{prefix}_kernel"


def insert_qdq(model: onnx.ModelProto, wanted: Mapping[int, Quantization]) -> onnx.ModelProto:
    """A new graph in which the convolutions named "…/convs.N/Conv" are quantized as `wanted[N]` says.

    Raises `ExportError` where a convolution is missing or its weights do not fit their scale.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    surgery = _Surgery(quantized)
    by_index = {
        int(node.name.rsplit("/convs.", 1)[1].split("/")[0]): node
        for node in surgery.nodes
        if node.op_type == "Conv" and "/convs." in node.name
    }
    for index, how in sorted(wanted.items()):
        if index not in by_index:
            raise ExportError(f"the traced decoder has no convolution {index}")
        node, prefix = by_index[index], f"conv{index}"
        surgery.quantize(node.input[0], f"{prefix}_input", how.input_scale)
        surgery.quantize_weight(node, prefix, how.weight_scale)
        if how.output:
            users = [user for user in surgery.nodes if node.output[0] in user.input]
            if [user.op_type for user in users] != ["Relu"]:
                raise ExportError(f"convolution {index} of the traced decoder is not followed by its ReLU alone")
            surgery.quantize(users[0].output[0], f"{prefix}_output", np.float32(1))
    used = {name for node in surgery.nodes for name in node.input}
    del quantized.graph.node[:]
    quantized.graph.node.extend(surgery.nodes)
    del quantized.graph.initializer[:]
    quantized.graph.initializer.extend(tensor for name, tensor in surgery.constants.items() if name in used)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized
