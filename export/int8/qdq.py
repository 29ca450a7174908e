"""Turn a traced float graph into an int8 graph: put quantize and dequantize nodes around its int8 convolutions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...models.int8.chain import TracedChain
from ...models.int8.convolutions import QuantizedConv2d
from ...models.int8.levels import PAIR_LEVELS, WEIGHT_LEVELS
from ..errors import ExportError

__all__ = ["insert_qdq", "insert_qdq_around"]

_NAME = re.compile(r"/convs\.(\d+)/Conv")


class _Surgery:
    """A copy of a graph that gets new nodes. They are added at its end; `finish` sorts them into place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = ir.from_proto(model)
        self.graph = self.model.graph
        self.tape = ir.tape.Tape(self.graph)
        self.convolutions = [node for node in self.graph if node.op_type == "Conv"]

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> ir.Value:
        known = self.graph.initializers.get(name)
        return known if known is not None else self.tape.initializer(ir.tensor(np.asarray(value), name=name))

    def quantize(
        self, value: ir.Value, prefix: str, scale: np.float32, zero: int = 0, *, only: ir.Node | None = None
    ) -> None:
        """Put a quantize and a dequantize node behind `value`. All its users, or `only` one, then read the result."""
        uses = [use for use in value.uses() if only is None or use.node is only]
        constants = [self.constant(f"{prefix}_scale", scale), self.constant(f"zero{zero or ''}_u8", np.uint8(zero))]
        levels = self.tape.op("QuantizeLinear", [value, *constants], name=f"{prefix}/quantize")
        dequantized = self.tape.op("DequantizeLinear", [levels, *constants], name=f"{prefix}/dequantize")
        for use in uses:
            use.node.replace_input_with(use.idx, dequantized)

    def quantize_weight(self, node: ir.Node, prefix: str, scale: NDArray[np.float32]) -> None:
        """Store the kernel of a convolution as int8 levels. `scale`: O, one level of each output channel."""
        exact = _array(node.inputs[1]) / scale[:, None, None, None]
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
        node.replace_input_with(1, self.tape.op("DequantizeLinear", constants, {"axis": 0}, name=f"{prefix}/weight"))

    def finish(self) -> onnx.ModelProto:
        """The finished graph, checked, without the float kernels that nothing reads any more."""
        self.graph.sort()
        RemoveUnusedNodesPass()(self.model)
        quantized = ir.to_proto(self.model)
        onnx.checker.check_model(quantized, full_check=True)
        return quantized


def _array(constant: ir.Value | None) -> NDArray[Any]:
    assert constant is not None
    assert constant.const_value is not None
    return constant.const_value.numpy()


def _input(node: ir.Node) -> ir.Value:
    return cast(ir.Value, node.inputs[0])


def insert_qdq_around(model: onnx.ModelProto, convolutions: Sequence[QuantizedConv2d]) -> onnx.ModelProto:
    """A new graph in which these convolutions have quantized weights, inputs and outputs. They are found by their weights.

    If a convolution reads a tensor that is already quantized in the same way, the tensor is not quantized again. Raises
    `ExportError` if a convolution is missing.
    """
    surgery = _Surgery(model)
    nodes: dict[tuple[tuple[int, ...], bytes], list[ir.Node]] = {}
    for node in surgery.convolutions:
        if (kernel := node.inputs[1]) is not None and kernel.is_initializer():
            weight = _array(kernel)
            nodes.setdefault((weight.shape, weight.tobytes()), []).append(node)
    for index, conv in enumerate(convolutions):
        weight, prefix = conv.weight.numpy(), f"conv{index}"
        alikes = nodes.get((weight.shape, weight.tobytes()))
        if not alikes:
            raise ExportError(f"the traced decoder lacks the quantized convolution {index}")
        node = alikes.pop(0)  # convolutions with equal weights (all zero, for example) come in the order in which they run
        scale, zero = np.float32(conv.input.scale), conv.input.zero
        if _levels_of(_input(node)) != (scale, zero):
            surgery.quantize(_input(node), f"{prefix}_input", scale, zero, only=node)
        surgery.quantize_weight(node, prefix, conv.weight_scale.numpy())
        surgery.quantize(node.outputs[0], f"{prefix}_output", np.float32(conv.output.scale), conv.output.zero)
    return surgery.finish()


def _levels_of(value: ir.Value) -> tuple[np.float32, int] | None:
    """Scale and zero point of a value that a dequantize node gives; None for other values."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, zero = (_array(constant) for constant in node.inputs[1:3])
    return np.float32(scale), int(zero)


def insert_qdq(model: onnx.ModelProto, chain: TracedChain) -> onnx.ModelProto:
    """A new graph in which the convolutions of `chain`, named "…/convs.N/Conv", are quantized.

    Raises `ExportError` if a convolution is missing or its weights do not fit their scale.
    """
    surgery = _Surgery(model)
    names = ((node, _NAME.search(node.name or "")) for node in surgery.convolutions)
    by_index = {int(match[1]): node for node, match in names if match}
    layers = zip(chain.weight_scales, chain.input_scales, chain.outputs, strict=True)
    for index, (weight_scale, input_scale, quantize_output) in enumerate(layers):
        if weight_scale is None or input_scale is None:
            continue  # this convolution stays float
        if index not in by_index:
            raise ExportError(f"the traced decoder has no convolution {index}")
        node, prefix = by_index[index], f"conv{index}"
        surgery.quantize(_input(node), f"{prefix}_input", np.float32(input_scale.item()))
        surgery.quantize_weight(node, prefix, weight_scale.numpy())
        if quantize_output:
            users = node.outputs[0].consumers()
            if [user.op_type for user in users] != ["Relu"]:
                raise ExportError(f"convolution {index} of the traced decoder is followed by other nodes than its ReLU")
            surgery.quantize(users[0].outputs[0], f"{prefix}_output", np.float32(1))
    return surgery.finish()
