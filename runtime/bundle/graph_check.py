"""Check a bundle's graph before any engine sees it: form, operators, order, constants, shapes and cost."""

from __future__ import annotations

from .graph import GraphError
from .manifest import Manifest
from .need import need
from .onnx_wire import read_onnx
from .openvino_ir import read_ir
from .operators import KINDS, OPERATORS, check_operators
from .operators_shift import SHIFT_OPERATORS, shift_sizes

__all__ = ["check_graph"]

_SIZES = (
    (1, 1), (1, 9), (5, 3), (16, 16), (17, 33), (61, 1), (64, 64), (131, 70), (256, 257), (400, 400), (600, 1000),
    (1024, 1024), (3000, 4000),
)  # fmt: skip
"""Heights and widths that shapes are followed for. A graph has to fit them all, because any size works."""
_OF_KIND = {"residual-shift": (SHIFT_OPERATORS, shift_sizes)}
"""Process kinds with operators and sizes of their own."""
_BORDER = 32
"""Pixels by which a network may pad a side."""
_VALUES = 2
"""Values held at once, as a multiple of the manifest's `peak_channels`. Known networks hold at most 1.05 times as many."""
_FREE_VALUES = 2**20
"""Values that a graph may hold whatever the size, beside its constants."""
_USES = 4
"""How often, for each output pixel, a weight is multiplied. All known networks do it at most once."""


def check_graph(manifest: Manifest, content: bytes, weights: bytes | None = None) -> None:
    """Raise `GraphError` unless a graph is what exports of the manifest's process kind write.

    `weights`: of OpenVINO IR; None for ONNX. Only its bytes are read: nothing is loaded or run.
    """
    if manifest.kind not in KINDS:
        raise GraphError(f"cannot be checked: the process kind is {manifest.kind[:40]!r}")
    operators, sizes = _OF_KIND.get(manifest.kind, (OPERATORS, lambda manifest: _SIZES))
    if weights is None:
        graph = read_onnx(content)
        check_operators(graph, manifest.kind, operators)
    else:
        graph = read_ir(content, memoryview(weights), manifest.kind)
    constants = graph.stored
    for height, width in sizes(manifest):
        pixels = (height + _BORDER) * (width + _BORDER)
        need(
            graph,
            height,
            width,
            values=_VALUES * manifest.peak_channels * pixels + 2 * constants + _FREE_VALUES,
            products=_USES * manifest.scale**2 * max(constants, 2**16) * pixels,
        )
