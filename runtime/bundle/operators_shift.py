"""The operators that exports of residual-shift networks write: window attention, group normalization, a codebook."""

from __future__ import annotations

from collections.abc import Mapping

from .manifest import Manifest, whole_number
from .operators import OPERATORS, Operator

__all__ = ["LARGEST_TILE", "SHIFT_OPERATORS", "shift_sizes"]

LARGEST_TILE = 128
"""Side of the largest tiles in LR pixels."""

_KIND = ("residual-shift",)
_SHARED = (
    "Add", "AveragePool", "Constant", "ConstantOfShape", "Conv", "DequantizeLinear", "Div", "Equal", "Erf",
    "Expand", "Identity", "MatMul", "Mul", "QuantizeLinear", "ReduceMean", "Reshape", "Shape", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip

SHIFT_OPERATORS: Mapping[str, Operator] = {
    **{name: Operator(_KIND, OPERATORS[name].inputs, OPERATORS[name].attributes) for name in _SHARED},
    "ArgMin": Operator(_KIND, (1,), {"axis": (-1, 2), "keepdims": (0,), "select_last_index": (0,)}),
    "Cast": Operator(_KIND, (1,), {"to": (1, 7)}),
    "Concat": Operator(_KIND, range(1, 33), {"axis": int}),
    "Cos": Operator(_KIND, (1,)),
    "Gather": Operator(_KIND, (2,), {"axis": int}),
    "Gemm": Operator(_KIND, (3,), {"alpha": float, "beta": float, "transA": (0,), "transB": (0, 1)}),
    "Pad": Operator(_KIND, (2,), {"mode": ("constant",)}),
    "Range": Operator(_KIND, (3,)),
    "Reciprocal": Operator(_KIND, (1,)),
    "Resize": Operator(
        _KIND,
        (3,),
        {
            "coordinate_transformation_mode": ("asymmetric", "half_pixel"),
            "cubic_coeff_a": (-0.75,),
            "mode": ("nearest", "cubic"),
            "nearest_mode": ("floor",),
        },
    ),
    "Sigmoid": Operator(_KIND, (1,)),
    "Sin": Operator(_KIND, (1,)),
    "Slice": Operator(_KIND, (3, 4, 5)),
}


def shift_sizes(manifest: Manifest) -> list[tuple[int, int]]:
    """Heights and widths of tiles: multiples of the manifest's `size_multiple`."""
    unit = whole_number(manifest.process.get("size_multiple"), "size_multiple", 8, LARGEST_TILE)
    sides = {unit, 2 * unit, LARGEST_TILE // unit * unit}
    return [(height, width) for height in sides for width in sides if max(height, width) <= LARGEST_TILE]
