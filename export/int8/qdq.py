"""A traced float graph becomes the int8 graph: quantize and dequantize nodes around the convolutions that run in int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ...models.int8.chain import TracedChain
from ...models.int8.convolutions import QuantizedConv2d
from ...models.int8.levels import PAIR_LEVELS, WEIGHT_LEVELS
from ..errors import ExportError

__all__ = ["Quantization", "insert_qdq", "insert_qdq_around", "quantizations"]


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How one convolution of a graph is quantized."""

    weight_scale: NDArray[np.float32]
    """O, of one level of the kernel."""
    input_scale: np.float32
    """Of one level of the input."""
    output: bool
    """Whether its output, after the ReLU, comes in levels of 1."""


def quantizations(decoder: TracedChain) -> dict[int, Quantization]:
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

    def quantize(self, tensor: str, prefix: str, scale: np.float32, zero: int = 0) -> None:
        """Put Q and DQ behind `tensor`; everything that used it uses what comes out of them."""
        at = next((i + 1 for i, node in enumerate(self.nodes) if tensor in node.output), 0)
        for node in self.nodes:
            for k, name in enumerate(node.input):
                if name == tensor:
                    node.input[k] = f"{prefix}_dequantized"
        self._put_pair(at, tensor, prefix, scale, zero)

    def quantize_use(self, node: onnx.NodeProto, prefix: str, scale: np.float32, zero: int) -> None:
        """Put Q and DQ before this one user of its first input; others go on reading what they did."""
        self._put_pair(self.nodes.index(node), node.input[0], prefix, scale, zero)
        node.input[0] = f"{prefix}_dequantized"

    def _put_pair(self, at: int, tensor: str, prefix: str, scale: np.float32, zero: int) -> None:
        """Quantize and dequantize nodes that turn `tensor` into PREFIX_dequantized."""
        constants = [self.constant(f"{prefix}_scale", scale), self.constant(f"zero{zero or ''}_u8", np.uint8(zero))]
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

    def write_back(self) -> None:
        """Put nodes and constants into the graph, those constants alone that are still used."""
        used = {name for node in self.nodes for name in node.input}
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.initializer[:]
        self.graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)


def insert_qdq_around(model: onnx.ModelProto, convolutions: Sequence[QuantizedConv2d]) -> onnx.ModelProto:
    """A new graph in which these convolutions, known by their weights, have quantized weights, inputs and outputs.

    Where one's output is another's input and both are quantized alike, it is quantized once. Raises `ExportError` where a
    convolution is missing.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    surgery = _Surgery(quantized)
    nodes: dict[tuple[tuple[int, ...], bytes], list[onnx.NodeProto]] = {}
    for node in surgery.nodes:
        if node.op_type == "Conv" and node.input[1] in surgery.constants:
            weight = numpy_helper.to_array(surgery.constants[node.input[1]])
            nodes.setdefault((weight.shape, weight.tobytes()), []).append(node)
    for index, conv in enumerate(convolutions):
        weight = conv.weight.numpy()
        alikes = nodes.get((weight.shape, weight.tobytes()))
        if not alikes:
            raise ExportError(f"the traced decoder lacks the quantized convolution {index}")
        found = alikes.pop(0)  # equal weights, all zero say: in the order in which they run
        prefix = f"conv{index}"
        alike = _levels_of(surgery, found.input[0])
        if alike != (np.float32(conv.input.scale), conv.input.zero):
            surgery.quantize_use(found, f"{prefix}_input", np.float32(conv.input.scale), conv.input.zero)
        surgery.quantize_weight(found, prefix, conv.weight_scale.numpy())
        surgery.quantize(found.output[0], f"{prefix}_output", np.float32(conv.output.scale), conv.output.zero)
    surgery.write_back()
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _levels_of(surgery: _Surgery, tensor: str) -> tuple[np.float32, int] | None:
    """Scale and zero point of a tensor that comes from a dequantize node of activations; None for others."""
    node = next((node for node in surgery.nodes if tensor in node.output), None)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, zero = (numpy_helper.to_array(surgery.constants[name]) for name in node.input[1:3])
    return np.float32(scale), int(zero)


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
    surgery.write_back()
    onnx.checker.check_model(quantized, full_check=True)
    return quantized
