"""The rules of operators that networks of others add give the shapes that ONNX's own evaluator gives, or refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from rdsr.runtime.bundle import need  # noqa: F401  # it fills RULES
from rdsr.runtime.bundle.graph import BOOL, FLOAT, INT64, GraphError, Node
from rdsr.runtime.bundle.values import RULES, Value

PICTURE = np.random.default_rng(0).random((1, 4, 9, 7), dtype=np.float32)
Inputs = Sequence[np.ndarray | None]


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def value_of(array: np.ndarray | None) -> Value | None:
    if array is None:
        return None
    dtype = {"f": FLOAT, "i": INT64, "b": BOOL}[array.dtype.kind]
    return Value(dtype, array.shape, array if dtype != FLOAT else None)


def followed(operator: str, inputs: Inputs, attributes: Mapping[str, Any]) -> Value:
    names = tuple("" if array is None else f"x{index}" for index, array in enumerate(inputs))
    kept = {key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()}
    (value,) = RULES[operator](Node(operator, "n", names, ("y",), kept), [value_of(array) for array in inputs])
    return value


def evaluated(operator: str, inputs: Inputs, attributes: Mapping[str, Any]) -> np.ndarray:
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    node = helper.make_node(operator, names, ["y"], **attributes)
    constants = [
        numpy_helper.from_array(array, name) for name, array in zip(names, inputs, strict=True) if array is not None
    ]
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (result,) = ReferenceEvaluator(model).run(None, {})
    return np.asarray(result)


CASES: list[tuple[str, Inputs, dict[str, Any]]] = [
    ("Exp", [PICTURE], {}),
    ("Tanh", [PICTURE], {}),
    ("Softplus", [PICTURE], {}),
    ("PRelu", [PICTURE, floats(1, 4, 1, 1)], {}),
    ("PRelu", [PICTURE, floats(4, 1, 1)], {}),
    ("PRelu", [PICTURE, floats(1)], {}),
    ("Pow", [PICTURE, np.array(2, np.float32)], {}),
    ("InstanceNormalization", [PICTURE, floats(4), floats(4)], {"epsilon": 1e-5}),
    ("GlobalAveragePool", [PICTURE], {}),
    ("MaxPool", [PICTURE], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("ConvTranspose", [PICTURE, floats(4, 5, 4, 4)], {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [4, 4]}),
    ("ConvTranspose", [PICTURE, floats(4, 2, 3, 2), floats(2)], {"strides": [3, 2], "output_padding": [1, 0]}),
    ("Pad", [PICTURE, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "constant"}),
    ("Pad", [PICTURE, ints(0, 0, 1, 2, 0, 0, 3, 0), np.array(0.5, np.float32)], {}),
    ("Pad", [PICTURE, ints(0, 0, 1, 2, 0, 0, 3, 0), None], {"mode": "reflect"}),
    ("Gather", [PICTURE, ints(3, 0, 1)], {"axis": 2}),
    ("Gather", [PICTURE, ints(3, -1).reshape(2, 1)], {"axis": 3}),
    ("Gather", [ints(4, 5, 6), np.array(1)], {"axis": 0}),
    ("Max", [ints(4, 5), ints(7, 1)], {}),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CASES, ids=lambda part: part if isinstance(part, str) else "")
def test_a_rule_gives_what_onnx_gives(operator: str, inputs: Inputs, attributes: dict[str, Any]) -> None:
    value, expected = followed(operator, inputs, attributes), evaluated(operator, inputs, attributes)
    assert value.shape == expected.shape
    if value.known is not None:
        np.testing.assert_array_equal(value.known, expected)


def test_negative_padding_cuts_off() -> None:
    """ONNX's own evaluator cannot do it."""
    value = followed("Pad", [PICTURE, ints(0, 0, -1, 2, 0, 0, -3, -4)], {"mode": "constant"})
    assert value.shape == (1, 4, 5, 5)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "words"),
    [
        ("PRelu", [PICTURE, floats(3)], {}, "fit"),
        ("PRelu", [PICTURE, floats(4)], {}, "fit"),  # C slopes, which ONNX counts along the width
        ("PRelu", [floats(1, 16, 5, 1), floats(16)], {}, "slopes"),
        ("PRelu", [PICTURE, floats(1, 1, 1, 1, 1, 1)], {}, "slopes"),
        ("Pow", [PICTURE, floats(1, 1, 1, 1, 1, 1)], {}, "exponent"),
        ("Unsqueeze", [floats(1, 1, 1, 1, 1, 1, 1, 1), ints(0)], {}, "shape"),
        ("ConvTranspose", [PICTURE, floats(4, 5, 16, 16)], {"strides": [1, 1]}, "out of range"),
        ("Pow", [PICTURE, floats(5)], {}, "fit"),
        ("InstanceNormalization", [PICTURE, floats(4), floats(5)], {}, "scale or bias"),
        ("GlobalAveragePool", [floats(3, 3)], {}, "dimensions"),
        ("MaxPool", [PICTURE], {"kernel_shape": [64, 2]}, "out of range"),
        ("MaxPool", [PICTURE], {"kernel_shape": [2, 2], "pads": [9, 0, 0, 0]}, "out of range"),
        ("ConvTranspose", [PICTURE, floats(5, 5, 4, 4)], {}, "meets 4"),
        ("ConvTranspose", [PICTURE, floats(4, 5, 4, 4)], {"strides": [1000, 1000]}, "out of range"),
        ("ConvTranspose", [PICTURE, floats(4, 5, 4, 4)], {"pads": [9, 9, 9, 9]}, "out of range"),
        ("ConvTranspose", [PICTURE, floats(4, 5, 4, 4)], {"output_padding": [1, 0]}, "out of range"),
        ("ConvTranspose", [PICTURE, floats(4, 5, 4, 4), floats(4)], {}, "bias"),
        ("ConvTranspose", [PICTURE, floats(4, 5, 4, 4)], {"kernel_shape": [3, 4]}, "not what it says"),
        ("Pad", [PICTURE, ints(0, 0, 9, 0, 0, 0, 0, 0)], {"mode": "reflect"}, "reflects"),
        ("Pad", [PICTURE, ints(0, 0, -9, 0, 0, 0, 0, 0)], {"mode": "constant"}, "does not fit"),
        ("Pad", [PICTURE, ints(0, 0, -5, 0, 0, 0, -5, 0)], {"mode": "constant"}, "does not fit"),
        ("Pad", [PICTURE, ints(0, 0, -1, 0, 0, 0, 0, 0)], {"mode": "edge"}, "does not fit"),
        ("Gather", [PICTURE, ints(9)], {"axis": 2}, "picks number 9 of 9"),
        ("Gather", [PICTURE, ints(0)], {"axis": 4}, "axis"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_does_not_fit_is_refused(operator: str, inputs: Inputs, attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        followed(operator, inputs, attributes)
