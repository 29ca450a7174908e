"""Arithmetic of networks: counted from the weights of one, or from any graph at one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle

__all__ = ["bundle_gflops", "convolution_gflops", "graph_facts"]


def convolution_gflops(network: Any, height: int, width: int) -> float:
    """2·MACs of a deployed RDSR network's convolutions at an LR size, in 10⁹; the reverse process is thousandths of it."""
    total = 0.0
    for key, value in network.fuse().state_dict().items():
        if value.ndim == 4:
            cells = height * width
            if key.startswith("condition_encoder."):
                cells /= network.config.unshuffle**2
            total += 2 * value.numel() * cells
    return total / 1e9


def bundle_gflops(bundle: Bundle, height: int, width: int) -> float:
    """10⁹ operations of all graphs of a bundle's pipeline at an LR size."""
    shapes = {"lr": (1, 3, height, width)}
    return sum(graph_facts(bundle.graph(role), shapes)[0] for role in bundle.manifest.pipeline_roles)


def graph_facts(graph: bytes | Path, shapes: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """(10⁹ operations, 2 a multiplication with its addition; weights in millions) of an ONNX graph or OpenVINO IR.

    `shapes`: input name → shape; free axes of other inputs are 1. Convolutions and matrix products count, everything else is
    thousandths of them. Raises
    `RuntimeError` (OpenVINO's) where the graph does not take these shapes.
    """
    import openvino as ov

    from ...runtime.engines.openvino_engine import shared_core

    model = shared_core().read_model(graph)
    model.reshape(
        {
            port.get_any_name(): list(shapes[port.get_any_name()])
            if port.get_any_name() in shapes
            else [1 if axis.is_dynamic else axis.get_length() for axis in port.partial_shape]
            for port in model.inputs
        }
    )
    operations = weights = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        # GroupConvolution: G×O×I×k×k, where each output value meets one group's I×k×k.
        if kind in ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"):
            kernel = list(node.input(1).get_shape())
            grouped, transposed = kind.startswith("Group"), "Backprop" in kind
            per_value = _product(kernel[1:]) if not grouped else _product(kernel[2:])
            if transposed:  # kernels are I×O×k×k there, and every input value meets all of O×k×k
                operations += 2 * _product(node.input(0).get_shape()) * per_value
            else:
                operations += 2 * _product(node.output(0).get_shape()) * per_value
        elif kind == "MatMul":
            left = list(node.input(0).get_shape())
            inner = left[-2] if node.get_attributes()["transpose_a"] and len(left) > 1 else left[-1]
            operations += 2 * _product(node.output(0).get_shape()) * inner
        elif kind == "Constant" and node.get_element_type() not in (ov.Type.i64, ov.Type.i32, ov.Type.boolean):
            values = _product(node.output(0).get_shape())
            weights += values if values >= _LEAST_WEIGHTS else 0
    return operations / 1e9, weights / 1e6


_LEAST_WEIGHTS = 8
"""Smaller constants are scales and bounds."""


def _product(shape: Sequence[int]) -> int:
    result = 1
    for length in shape:
        result *= int(length)
    return result
