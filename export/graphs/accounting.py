"""Prove that graphs hold all deployed weights and nothing that only training needs, by accounting for every constant."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..errors import ProofError

__all__ = ["SMALLEST", "account", "fingerprint", "graph_constants"]

SMALLEST = 8
"""Constants of fewer values are not accounted for: shapes, scalars of the schedule, clip bounds."""


def graph_constants(model: onnx.ModelProto) -> list[tuple[str, NDArray[Any]]]:
    """Name and value of every floating-point constant of a graph: initializers and Constant nodes."""
    found = [(t.name, numpy_helper.to_array(t)) for t in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            found += [(node.output[0], numpy_helper.to_array(a.t)) for a in node.attribute if a.name == "value"]
    return [(name, value) for name, value in found if np.issubdtype(value.dtype, np.floating)]


def fingerprint(values: NDArray[Any]) -> str:
    """sha256 of the sorted values, so that a transposed matrix is recognised."""
    flat = np.sort(np.asarray(values, dtype=np.float32).ravel())
    return hashlib.sha256(flat.tobytes()).hexdigest()


def account(model: onnx.ModelProto, name: str, deployed: Collection[str], training_only: Mapping[str, str]) -> set[str]:
    """Match every constant of the graph to a deployed weight. Returns the fingerprints of the weights in the graph.

    `deployed`: fingerprints; `training_only`: fingerprint → key. Equal weights share a fingerprint, because exporters let
    them share a constant. Raises `ProofError` for a constant that is no deployed weight.
    """
    found = set()
    for constant, value in graph_constants(model):
        if value.size < SMALLEST:
            continue
        mark = fingerprint(value)
        if mark not in deployed:
            if mark in training_only:
                raise ProofError(f"{name} holds {training_only[mark]}, which only training needs (as {constant})")
            raise ProofError(f"{name} holds a constant {constant} of shape {list(value.shape)} that is no deployed weight")
        found.add(mark)
    return found
