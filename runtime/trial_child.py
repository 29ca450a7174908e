"""What the child process of a trial does: load a bundle's pipeline and upscale two small pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .bundle import Bundle
from .engines import Backend, Precision
from .errors import BundleError, EngineError, RdsrError
from .pipelines import load_pipeline

__all__ = ["as_outcome", "open_same", "run_once"]

_SIZES = ((19, 27), (1, 1))
"""Heights and widths: an odd one and the least one."""


def open_same(path: str, digest: str) -> Bundle:
    """Open the bundle that the parent process has opened. Raises `BundleError` if there is another one in its place."""
    bundle = Bundle(path)
    if bundle.manifest.digest != digest:
        raise BundleError(f"the bundle {path} was changed while it was in use")
    return bundle


def as_outcome(error: RdsrError) -> dict[str, str]:
    """An error as `trial.raise_from_child` takes it."""
    return {"error": (EngineError if isinstance(error, EngineError) else BundleError).__name__, "sentence": str(error)}


def run_once(path: str, digest: str, backend: Backend, precision: Precision, step: Callable[[str], None]) -> dict[str, str]:
    """Load the pipeline and run it. Returns nothing, or its typed error."""
    try:
        bundle = open_same(path, digest)
        step(f"while {backend} loaded the graphs")
        pipeline = load_pipeline(bundle, backend=backend, precision=precision, threads=1, seed=0, memory_limit=1)
        for height, width in _SIZES:
            step(f"while {backend} ran a picture of {height}×{width}")
            pipeline.picture(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))
    except RdsrError as error:
        return as_outcome(error)
    return {}
