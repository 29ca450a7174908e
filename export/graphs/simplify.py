"""Simplify a graph, but never trust the result: run both, compare, fall back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...runtime.engines import load_session

__all__ = ["simplify"]

logger = logging.getLogger(__name__)
Feed = Mapping[str, NDArray[Any]]
TOLERANCE = 2e-6
"""Largest difference that reordered arithmetic explains, relative to the larger of 1 and the output's largest value."""


def _run(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
    session = load_session(model.SerializeToString(), backend="onnxruntime", precision="fp32", threads=1)
    return [session.run(feed)[0] for feed in feeds]


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    limit = 1.0 if a.dtype == np.uint8 else TOLERANCE * max(1.0, float(np.abs(a).max()))
    return bool((np.abs(a.astype(np.float64) - b.astype(np.float64)) <= limit).all())


def simplify(model: onnx.ModelProto, feeds: Sequence[Feed], name: str) -> tuple[onnx.ModelProto, bool]:
    """The simplified graph and True, or, if that is not safe, the given graph and False, with a warning.

    `feeds`: inputs of several sizes. Both graphs must agree on them.
    """
    import onnxsim

    try:
        simplified, _ = onnxsim.simplify(model)
        onnx.checker.check_model(simplified, full_check=True)
        agreed = all(_equal(a, b) for a, b in zip(_run(model, feeds), _run(simplified, feeds), strict=True))
        reason = "its output differs"
    except Exception as error:  # if anything goes wrong in the simplifier, the given graph still works
        agreed, reason = False, str(error) or type(error).__name__
    if not agreed:
        logger.warning("%s is kept unsimplified: simplification failed (%s)", name, reason)
        return model, False
    simplified.graph.name = model.graph.name
    del simplified.metadata_props[:]
    return simplified, True
