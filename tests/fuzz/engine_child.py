"""What the child process of the fuzz target `graphs` does: load a checked graph and run it on one small picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rdsr.errors import RdsrError
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.engines import BACKENDS, load_session

__all__ = ["run_graph"]

_SIDE = 16
"""Height and width of the picture."""


def run_graph(path: str, role: str, step: Callable[[str], None]) -> str:
    """Run it on each engine that reads it. Returns "accepted", or the typed error as the driver wants it."""
    bundle = Bundle(path)
    weights = bundle.read("model.bin") if role == "model_ir" else None
    try:
        for backend in BACKENDS if weights is None else BACKENDS[:1]:
            step(backend)
            session = load_session(bundle.graph(role), backend=backend, precision="fp32", threads=1, weights=weights)
            rng = np.random.default_rng(0)
            feeds = {}
            for name, shape in session.inputs.items():
                free = iter((_SIDE, _SIDE))
                sides = [(1 if axis == 0 else next(free)) if side is None else side for axis, side in enumerate(shape)]
                noise = rng.integers(0, 256, sides) if name == "image" else rng.random(sides)
                feeds[name] = noise.astype(np.uint8 if name == "image" else np.float32)
            session.run(feeds)
    except RdsrError as error:
        return f"refused: {type(error).__name__}"
    return "accepted"
