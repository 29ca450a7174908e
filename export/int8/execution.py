"""Proof from the engines' own execution graphs that an int8 graph runs in int8, ReLU fused, nothing between convolutions."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Container
from pathlib import Path

import onnx
import onnxruntime as ort

from ...models.int8.chain import QuantizedChain
from ...runtime.engines.openvino_engine import OpenVinoSession
from ..errors import ProofError

__all__ = ["Plan", "check_all_int8", "check_execution"]

_RELU = re.compile(r"/Relu(_\d+)?$")
_CONVOLUTION = re.compile(r"/convs\.(\d+)/Conv")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an int8 graph of a decoder has to look like once an engine has compiled it."""

    int8: frozenset[int]
    """Convolutions of body and tail that run in int8."""
    levels_out: frozenset[int]
    """Those whose output is quantized: all but the unmodulated ones before a float convolution, which ONNX Runtime, with no
    int8 convolution that has a float output, runs in float."""
    followed: frozenset[int]
    """Those whose output goes, through ReLU alone, into nothing but the next one, which is int8 as well."""

    @classmethod
    def of(cls, decoder: QuantizedChain) -> Plan:
        """The plan of a quantized decoder."""
        layers = decoder.layers()
        int8 = {index for index, conv in enumerate(layers) if conv.quantized}
        plain = {index for index in int8 if layers[index].output_low is None}  # whatever stands behind one needs its levels
        followed = {index for index in plain if index + 1 in int8 and layers[index + 1].identity is None}
        levels_out = {index for index in int8 if index not in plain or index + 1 in int8}
        return cls(frozenset(int8), frozenset(levels_out), frozenset(followed))


def check_execution(graph: bytes, plan: Plan) -> None:
    """Compile the graph in both engines and compare what they run with the plan. Raises `ProofError`."""
    _check_openvino(graph, plan)
    _check_onnxruntime(graph, plan)


def _all_there(engine: str, plan: Plan, found: Container[int]) -> None:
    if lacking := sorted(index for index in plan.int8 if index not in found):
        raise ProofError(f"{engine} runs no convolution for convolution {lacking[0]} of the decoder")


def _check_openvino(graph: bytes, plan: Plan) -> None:
    layers = OpenVinoSession(graph, precision="int8", threads=1).execution()
    found = {}
    for layer in layers:
        for match in _CONVOLUTION.finditer(",".join(layer.origins)):
            if layer.kind == "Convolution":
                found[int(match[1])] = layer
    users = {layer.name: [user for user in layers if layer.name in user.inputs] for layer in layers}
    _all_there("OpenVINO", plan, found)
    for index in sorted(plan.int8):
        layer = found[index]
        if layer.precision not in ("u8", "i8"):
            raise ProofError(f"OpenVINO runs convolution {index} of the decoder in {layer.precision}, not in int8")
        after = users[layer.name]
        if any(_RELU.search(origin) for user in after if user.kind != "Convolution" for origin in user.origins[:1]):
            raise ProofError(f"OpenVINO runs the ReLU of convolution {index} of the decoder on its own")
        if index in plan.followed and [user.name for user in after] != [found[index + 1].name]:
            kinds = ", ".join(user.kind for user in after)
            raise ProofError(f"OpenVINO runs {kinds} between convolutions {index} and {index + 1} of the decoder")


def _check_onnxruntime(graph: bytes, plan: Plan) -> None:
    optimized = _optimized(graph)
    found = {}
    for node in optimized.graph.node:
        if (match := _CONVOLUTION.search(node.name)) and "Conv" in node.op_type:
            found[int(match[1])] = node
    _all_there("ONNX Runtime", plan, found)
    for index in sorted(plan.levels_out):
        if found[index].op_type != "QLinearConv":
            raise ProofError(f"ONNX Runtime runs convolution {index} of the decoder in float ({found[index].op_type})")
        after = [node for node in optimized.graph.node if found[index].output[0] in node.input]
        if any(node.op_type == "Relu" for node in after):
            raise ProofError(f"ONNX Runtime runs the ReLU of convolution {index} of the decoder on its own")
        if index in plan.followed and [node.name for node in after] != [found[index + 1].name]:
            kinds = ", ".join(node.op_type for node in after)
            raise ProofError(f"ONNX Runtime runs {kinds} between convolutions {index} and {index + 1} of the decoder")


def _optimized(graph: bytes) -> onnx.ModelProto:
    """The graph as ONNX Runtime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def check_all_int8(graph: bytes, convolutions: int) -> None:
    """Raise `ProofError` where an engine runs fewer than so many convolutions of the graph in int8."""
    layers = OpenVinoSession(graph, precision="int8", threads=1).execution()
    counts = {
        "OpenVINO": sum(layer.kind == "Convolution" and layer.precision in ("u8", "i8") for layer in layers),
        "ONNX Runtime": sum(node.op_type == "QLinearConv" for node in _optimized(graph).graph.node),
    }
    for engine, count in counts.items():
        if count < convolutions:
            raise ProofError(f"{engine} runs {count} of the decoder's {convolutions} quantized convolutions in int8")
