"""The operators and layers that exports write, by process kind. Nothing else reaches an engine.

A new network may need a row here; the export then says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from .graph import Attribute, Graph, GraphError, Tensor

__all__ = ["KINDS", "LAYERS", "OPERATORS", "Layer", "Operator", "check_operators"]

Allowed = type | Sequence[Attribute]
"""Values of an attribute: any of a type (its numbers are checked by the operator's rule), or one of these."""
_DIRECT = "direct"
_PRIOR = "latent-prior"
_BOTH = (_PRIOR, _DIRECT)
KINDS = (*_BOTH, "residual-shift")
"""The process kinds that have graphs."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of ONNX's own domain."""

    kinds: Sequence[str]
    """Process kinds whose graphs hold it."""
    inputs: Sequence[int]
    """Numbers of inputs."""
    attributes: Mapping[str, Allowed] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of OpenVINO IR."""

    kinds: Sequence[str]
    version: str
    inputs: Sequence[int]
    operator: str
    """The operator of ONNX (or of `rules_layers`) whose rule it follows."""
    attributes: Mapping[str, Sequence[str] | str] = dataclasses.field(default_factory=dict)
    """Attribute → its values as text. Or the form and the name that the rule knows it by: "int:NAME", "ints:NAME",
    "bool:NAME" or "type:NAME"; or "any" for a number without influence on sizes."""
    order: Sequence[int] | None = None
    """Its inputs in the rule's order; None: as they are."""


_WINDOW: Mapping[str, Allowed] = {"kernel_shape": tuple, "pads": tuple, "strides": tuple}

OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(_BOTH, (2,)),
    "AveragePool": Operator([_PRIOR], (1,), {**_WINDOW, "ceil_mode": (0,), "count_include_pad": (0, 1)}),
    "Cast": Operator(_BOTH, (1,), {"to": (1, 2, 7)}),
    "Clip": Operator(_BOTH, (2, 3)),
    "Concat": Operator(_BOTH, range(1, 17), {"axis": int}),
    "Constant": Operator(_BOTH, (0,), {"value": Tensor}),
    "ConstantOfShape": Operator(_BOTH, (1,), {"value": Tensor}),
    "Conv": Operator(_BOTH, (2, 3), {**_WINDOW, "dilations": tuple, "group": int}),
    "ConvTranspose": Operator(
        [_DIRECT],
        (2, 3),
        {**_WINDOW, "dilations": ((1, 1),), "group": (1,), "output_padding": tuple, "auto_pad": ("NOTSET",)},
    ),
    "DepthToSpace": Operator(_BOTH, (1,), {"blocksize": int, "mode": ("CRD",)}),
    "DequantizeLinear": Operator(_BOTH, (3,), {"axis": int}),
    "Div": Operator(_BOTH, (2,)),
    "Equal": Operator(_BOTH, (2,)),
    "Erf": Operator(_BOTH, (1,)),
    "Exp": Operator([_DIRECT], (1,)),
    "Expand": Operator(_BOTH, (2,)),
    "Gather": Operator(_BOTH, (2,), {"axis": int}),
    "Gemm": Operator(_BOTH, (3,), {"alpha": float, "beta": float, "transA": (0,), "transB": (0, 1)}),
    "GlobalAveragePool": Operator([_DIRECT], (1,)),
    "Identity": Operator(_BOTH, (1,)),
    "InstanceNormalization": Operator([_DIRECT], (3,), {"epsilon": float}),
    "LayerNormalization": Operator(_BOTH, (3,), {"axis": (-1,), "epsilon": float}),
    "LeakyRelu": Operator(_BOTH, (1,), {"alpha": float}),
    "Log": Operator([_PRIOR], (1,)),
    "MatMul": Operator(_BOTH, (2,)),
    "MaxPool": Operator([_DIRECT], (1,), {**_WINDOW, "dilations": ((1, 1),), "ceil_mode": (0,)}),
    "Max": Operator([_DIRECT], (2,)),
    "Min": Operator([_DIRECT], (2,)),
    "Mod": Operator(_BOTH, (2,), {"fmod": (0,)}),
    "Mul": Operator(_BOTH, (2,)),
    "Pow": Operator([_DIRECT], (2,)),
    "PRelu": Operator([_DIRECT], (2,)),
    "Pad": Operator(_BOTH, (2, 3), {"mode": ("constant", "edge", "reflect")}),
    "Range": Operator([_DIRECT], (3,)),
    "QuantizeLinear": Operator(_BOTH, (3,)),
    "ReduceL2": Operator(_BOTH, (1,), {"axes": tuple, "keepdims": (0, 1)}),
    "ReduceMean": Operator(_BOTH, (1,), {"axes": tuple, "keepdims": (0, 1)}),
    "Relu": Operator(_BOTH, (1,)),
    "Reshape": Operator(_BOTH, (2,), {"allowzero": (0,)}),
    "Resize": Operator(
        _BOTH,
        (3,),
        {
            "coordinate_transformation_mode": ("asymmetric",),
            "cubic_coeff_a": float,
            "mode": ("nearest",),
            "nearest_mode": ("floor",),
        },
    ),
    "Round": Operator(_BOTH, (1,)),
    "Shape": Operator(_BOTH, (1,)),
    "Sigmoid": Operator([_DIRECT], (1,)),
    "Slice": Operator(_BOTH, (4, 5)),
    "Softplus": Operator([_DIRECT], (1,)),
    "Softmax": Operator(_BOTH, (1,), {"axis": int}),
    "Split": Operator(_BOTH, (2,), {"axis": int}),
    "Sqrt": Operator(_BOTH, (1,)),
    "Squeeze": Operator(_BOTH, (2,)),
    "Sub": Operator(_BOTH, (2,)),
    "Tanh": Operator([_DIRECT], (1,)),
    "Tile": Operator(_BOTH, (2,)),
    "Transpose": Operator(_BOTH, (1,), {"perm": tuple}),
    "Unsqueeze": Operator(_BOTH, (2,)),
    "Where": Operator(_BOTH, (3,)),
}
"""Of opset 17, in which exports are traced."""

_NUMPY = {"auto_broadcast": ("numpy",)}
_PASS = {"strides": "ints:strides", "pads_begin": "ints:begin", "pads_end": "ints:end", "auto_pad": ("explicit",)}

LAYERS: Mapping[str, Layer] = {
    "Add": Layer(_BOTH, "opset1", (2,), "Add", _NUMPY),
    "AvgPool": Layer(
        [_PRIOR],
        "opset1",
        (1,),
        "AveragePool",
        {**_PASS, "kernel": "ints:kernel_shape", "exclude-pad": ("false", "true"), "rounding_type": ("floor",)},
    ),
    "Broadcast": Layer(_BOTH, "opset3", (2,), "Expand", {"mode": ("bidirectional", "numpy")}),
    "Concat": Layer(_BOTH, "opset1", range(1, 17), "Concat", {"axis": "int:axis"}),
    "Convert": Layer(_BOTH, "opset1", (1,), "Cast", {"destination_type": "type:to"}),
    "Convolution": Layer(_BOTH, "opset1", (2,), "Conv", {**_PASS, "dilations": "ints:dilations"}),
    "ConvolutionBackpropData": Layer(
        [_DIRECT],
        "opset1",
        (2,),
        "ConvTranspose",
        {**_PASS, "dilations": ("1, 1",), "output_padding": "ints:output_padding"},
    ),
    "DepthToSpace": Layer(_BOTH, "opset1", (1,), "DepthToSpace", {"block_size": "int:blocksize", "mode": ("depth_first",)}),
    "Divide": Layer(_BOTH, "opset1", (2,), "Div", {**_NUMPY, "m_pythondiv": ("false", "true")}),
    "Equal": Layer(_BOTH, "opset1", (2,), "Equal", _NUMPY),
    "Erf": Layer(_BOTH, "opset1", (1,), "Erf"),
    "Exp": Layer([_DIRECT], "opset1", (1,), "Exp"),
    "FakeQuantize": Layer(_BOTH, "opset1", (5,), "FakeQuantize", {**_NUMPY, "levels": ("256",)}),
    "FloorMod": Layer(_BOTH, "opset1", (2,), "Mod", _NUMPY),
    "Gather": Layer(_BOTH, "opset8", (3,), "Gather", {"batch_dims": ("0",)}),
    "GroupConvolution": Layer(_BOTH, "opset1", (2,), "GroupConv", {**_PASS, "dilations": "ints:dilations"}),
    "Interpolate": Layer(
        _BOTH,
        "opset11",
        (2,),
        "Resize",
        {
            "mode": ("nearest",),
            "shape_calculation_mode": ("scales",),
            "coordinate_transformation_mode": ("asymmetric",),
            "nearest_mode": ("floor",),
            "antialias": ("false",),
            "pads_begin": ("0, 0, 0, 0",),
            "pads_end": ("0, 0, 0, 0",),
            "cube_coeff": "any",
        },
    ),
    "Log": Layer([_PRIOR], "opset1", (1,), "Log"),
    "MVN": Layer(
        _BOTH,
        "opset6",
        (2,),
        "MeanVariance",
        {"eps": "any", "normalize_variance": ("true",), "eps_mode": ("INSIDE_SQRT",)},
    ),
    "MatMul": Layer(_BOTH, "opset1", (2,), "MatMul", {"transpose_a": "bool:transA", "transpose_b": "bool:transB"}),
    "MaxPool": Layer(
        [_DIRECT],
        "opset8",
        (1,),
        "MaxPool",
        {
            **_PASS,
            "kernel": "ints:kernel_shape",
            "dilations": ("1, 1",),
            "rounding_type": ("floor",),
            "index_element_type": ("i64",),
            "axis": ("0",),
        },
    ),
    "Maximum": Layer(_BOTH, "opset1", (2,), "Max", _NUMPY),
    "Minimum": Layer(_BOTH, "opset1", (2,), "Min", _NUMPY),
    "Power": Layer([_DIRECT], "opset1", (2,), "Pow", _NUMPY),
    "Multiply": Layer(_BOTH, "opset1", (2,), "Mul", _NUMPY),
    "PReLU": Layer(_BOTH, "opset1", (2,), "PReluByChannel"),
    "Pad": Layer(_BOTH, "opset12", (4,), "Pad", {"pad_mode": ("constant", "edge", "reflect")}),
    "Range": Layer(_BOTH, "opset4", (3,), "Range", {"output_type": ("i64",)}),
    "ReLU": Layer(_BOTH, "opset1", (1,), "Relu"),
    "ReduceL2": Layer(_BOTH, "opset4", (2,), "ReduceL2", {"keep_dims": "bool:keepdims"}),
    "ReduceMean": Layer(_BOTH, "opset1", (2,), "ReduceMean", {"keep_dims": "bool:keepdims"}),
    "Reshape": Layer(_BOTH, "opset1", (2,), "Reshape", {"special_zero": "bool:special_zero"}),
    "Round": Layer(_BOTH, "opset5", (1,), "Round", {"mode": ("half_to_even",)}),
    "Select": Layer(_BOTH, "opset1", (3,), "Where", _NUMPY),
    "ShapeOf": Layer(_BOTH, "opset3", (1,), "Shape", {"output_type": ("i64",)}),
    "Sigmoid": Layer([_DIRECT], "opset1", (1,), "Sigmoid"),
    "SoftPlus": Layer([_DIRECT], "opset4", (1,), "Softplus"),
    "Slice": Layer(_BOTH, "opset8", (5,), "Slice", order=(0, 1, 2, 4, 3)),
    "SoftMax": Layer(_BOTH, "opset8", (1,), "Softmax", {"axis": "int:axis"}),
    "Split": Layer(_BOTH, "opset1", (2,), "SplitEqually", {"num_splits": "int:num_splits"}),
    "Sqrt": Layer(_BOTH, "opset1", (1,), "Sqrt"),
    "Squeeze": Layer(_BOTH, "opset1", (1, 2), "Squeeze"),
    "Subtract": Layer(_BOTH, "opset1", (2,), "Sub", _NUMPY),
    "Tanh": Layer([_DIRECT], "opset1", (1,), "Tanh"),
    "Tile": Layer(_BOTH, "opset1", (2,), "Tile"),
    "Transpose": Layer(_BOTH, "opset1", (2,), "Transpose"),
    "Unsqueeze": Layer(_BOTH, "opset1", (2,), "Unsqueeze"),
    "VariadicSplit": Layer(_BOTH, "opset1", (3,), "Split", order=(0, 2, 1)),
}
"""What OpenVINO makes of the operators above. Parameter, Const and Result, the ends and constants, are not among them."""


def check_operators(graph: Graph, kind: str, operators: Mapping[str, Operator] = OPERATORS) -> None:
    """Raise `GraphError` unless the nodes of an ONNX graph are those that exports of a process kind write."""
    for node in graph.nodes:
        row = operators.get(node.operator)
        if row is None or kind not in row.kinds:
            raise GraphError(f"holds the operator {node.operator!r}, which no {kind} export writes")
        what = f"the {node.operator} {node.name!r}"
        if len(node.inputs) not in row.inputs:
            raise GraphError(f"holds {what} with {len(node.inputs)} inputs")
        for name, value in node.attributes.items():
            if not _fits(value, row.attributes.get(name, ())):
                raise GraphError(f"holds {what} with the attribute {name!r} of a value that no export writes")


def _fits(value: Attribute, allowed: Allowed) -> bool:
    if isinstance(allowed, type):
        return isinstance(value, allowed)
    return any(type(value) is type(other) and value == other for other in allowed)
