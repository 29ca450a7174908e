"""Count the arithmetic of networks, from a network's weights or from a graph at one size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.bundle import Bundle
from ...runtime.pipelines import pipeline_kind

__all__ = ["bundle_gflops", "convolution_gflops", "graph_facts"]

_LEAST_WEIGHTS = 8
"""Constants of fewer values are scales and bounds, not weights."""


def convolution_gflops(network: Any, height: int, width: int) -> float:
    """Return 2·MACs of a deployed RDSR network's convolutions at an LR size, in 10⁹.

    The reverse process is left out: it is thousandths of that.
    """
    total = 0.0
    for key, value in network.fuse().state_dict().items():
        if value.ndim == 4:
            shrink = network.config.unshuffle**2 if key.startswith("condition_encoder.") else 1
            total += 2 * value.numel() * height * width / shrink
    return total / 1e9


def bundle_gflops(bundle: Bundle, height: int, width: int) -> float:
    """Return the operations of a bundle's pipeline at an LR size, each graph as often as it runs, in 10⁹."""
    manifest = bundle.manifest
    runs = pipeline_kind(manifest).runs(manifest)
    return sum(
        runs.get(role, 1) * graph_facts(bundle.graph(role), {}, (height, width))[0] for role in manifest.pipeline_roles
    )


def graph_facts(
    graph: bytes | Path, shapes: Mapping[str, Sequence[int]], sides: tuple[int, int] = (1, 1)
) -> tuple[float, float]:
    """Return (operations in 10⁹, weights in millions) of an ONNX graph or an OpenVINO IR.

    A multiplication with its addition counts as two operations. Only convolutions and matrix products count: everything else
    is thousandths of them. `shapes`: input name → shape; of other inputs, the last two of four axes get `sides` if they are
    free, and other free axes are 1.
    Raises OpenVINO's `RuntimeError` if the graph does not take these shapes.
    """
    import openvino as ov

    from ...runtime.engines.openvino_engine import shared_core

    model = shared_core().read_model(graph)
    sizes: dict[str, list[int]] = {}
    for port in model.inputs:
        name = port.get_any_name()
        if name in shapes:
            sizes[name] = list(shapes[name])
        else:
            axes = list(port.partial_shape)
            free = [1, 1, *sides] if len(axes) == 4 else [1] * len(axes)
            sizes[name] = [side if axis.is_dynamic else axis.get_length() for axis, side in zip(axes, free, strict=True)]
    model.reshape(sizes)
    operations = weights = 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind in ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"):
            # Kernels are O×I×k×k, with G in front if grouped: every output value meets I×k×k of one group.
            # Transposed ("Backprop") kernels are I×O×k×k: every input value meets O×k×k.
            values = node.input(0) if "Backprop" in kind else node.output(0)
            kernel = node.input(1).get_shape()
            operations += 2 * math.prod(values.get_shape()) * math.prod(kernel[2 if kind.startswith("Group") else 1 :])
        elif kind == "MatMul":
            left = list(node.input(0).get_shape())
            inner = left[-2] if node.get_attributes()["transpose_a"] and len(left) > 1 else left[-1]
            operations += 2 * math.prod(node.output(0).get_shape()) * inner
        elif kind == "Constant" and node.get_element_type() not in (ov.Type.i64, ov.Type.i32, ov.Type.boolean):
            count = math.prod(node.output(0).get_shape())
            weights += count if count >= _LEAST_WEIGHTS else 0
    return operations / 1e9, weights / 1e6
