"""Prove on the engines' own execution graphs that an int8 graph runs in int8: ReLU fused, nothing between convolutions."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

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
    """How a decoder's int8 graph must look once an engine has compiled it. Convolutions go by their index."""

    int8: frozenset[int]
    """Convolutions of body and tail that run in int8."""
    levels_out: frozenset[int]
    """Those whose output is quantized: all except unmodulated ones before a float convolution. ONNX Runtime has no int8
    convolution with a float output, so it runs those in float."""
    followed: frozenset[int]
    """Those whose output goes, through ReLU only, into nothing but the next convolution, which is int8 as well."""

    @classmethod
    def of(cls, decoder: QuantizedChain) -> Plan:
        """The plan of a quantized decoder."""
        layers = decoder.layers()
        int8 = {index for index, conv in enumerate(layers) if conv.quantized}
        plain = {index for index in int8 if layers[index].output_low is None}  # their output is not quantized by itself
        followed = {index for index in plain if index + 1 in int8 and layers[index + 1].identity is None}
        levels_out = {index for index in int8 if index not in plain or index + 1 in int8}
        return cls(frozenset(int8), frozenset(levels_out), frozenset(followed))


class _Step(NamedTuple):
    """One operation of a compiled graph, as an engine runs it, and the decoder's convolutions that it computes."""

    name: str
    inputs: Sequence[str]
    kind: str
    convolutions: list[int]
    int8_convolution: bool
    relu: bool


def _openvino(graph: bytes) -> list[_Step]:
    steps = []
    for layer in OpenVinoSession(graph, precision="int8", threads=1).execution():
        convolution = layer.kind == "Convolution"
        indices = [int(index) for index in _CONVOLUTION.findall(",".join(layer.origins)) if convolution]
        relu = not convolution and any(_RELU.search(origin) for origin in layer.origins[:1])
        int8 = convolution and layer.precision in ("u8", "i8")
        steps.append(_Step(layer.name, layer.inputs, f"{layer.kind} in {layer.precision}", indices, int8, relu))
    return steps


def _onnxruntime(graph: bytes) -> list[_Step]:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(path).graph.node
    steps = []
    for node in nodes:
        kind = node.op_type
        indices = [int(index) for index in _CONVOLUTION.findall(node.name)[:1] if "Conv" in kind]
        steps.append(_Step(node.output[0], node.input, kind, indices, kind == "QLinearConv", kind == "Relu"))
    return steps


_ENGINES = {"OpenVINO": _openvino, "ONNX Runtime": _onnxruntime}


def check_execution(graph: bytes, plan: Plan) -> None:
    """Compile the graph in both engines and compare what they run with the plan. Raises `ProofError` if it differs."""
    for engine, steps_of in _ENGINES.items():
        steps = steps_of(graph)
        found = {index: step for step in steps for index in step.convolutions}
        if lacking := sorted(plan.int8 - found.keys()):
            raise ProofError(f"{engine} runs nothing for convolution {lacking[0]} of the decoder")
        for index in sorted(plan.int8 if engine == "OpenVINO" else plan.levels_out):
            step = found[index]
            if not step.int8_convolution:
                raise ProofError(f"{engine} runs convolution {index} of the decoder as {step.kind}, not in int8")
            users = [user for user in steps if step.name in user.inputs]
            if any(user.relu for user in users):
                raise ProofError(f"{engine} runs the ReLU of convolution {index} of the decoder as a step by itself")
            if index in plan.followed and [user.name for user in users] != [found[index + 1].name]:
                kinds = ", ".join(user.kind for user in users)
                raise ProofError(f"{engine} runs {kinds} between convolutions {index} and {index + 1} of the decoder")


def check_all_int8(graph: bytes, convolutions: int) -> None:
    """Raise `ProofError` if an engine runs fewer than this number of the graph's convolutions in int8."""
    for engine, steps_of in _ENGINES.items():
        count = sum(step.int8_convolution for step in steps_of(graph))
        if count < convolutions:
            raise ProofError(f"{engine} runs {count} of the decoder's {convolutions} quantized convolutions in int8")
