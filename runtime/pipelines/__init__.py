"""The flow of a picture through the graphs of a bundle: a module for each process kind, and the one place that picks it."""

from __future__ import annotations

from typing import Any

from ..bundle import Bundle, Manifest
from ..errors import BundleError
from .direct import DirectPipeline
from .latent_prior import LatentPriorPipeline
from .pipeline import OnStep, Pipeline, Progress
from .residual_shift import ResidualShiftPipeline

__all__ = ["OnStep", "Pipeline", "Progress", "load_pipeline", "pipeline_kind"]

_KINDS: dict[str, type[Pipeline]] = {
    pipeline.kind: pipeline for pipeline in (LatentPriorPipeline, DirectPipeline, ResidualShiftPipeline)
}


def pipeline_kind(manifest: Manifest) -> type[Pipeline]:
    """The pipeline class for a manifest. Raises `BundleError` if the kind is unknown or its section does not fit it."""
    if manifest.kind not in _KINDS:
        raise BundleError(f"manifest.json: the process kind is {manifest.kind!r}; this release knows {', '.join(_KINDS)}")
    kind = _KINDS[manifest.kind]
    kind.check(manifest)
    return kind


def load_pipeline(bundle: Bundle, **options: Any) -> Pipeline:
    """Load a bundle's graphs into an engine. See `Pipeline` for the options and errors."""
    return pipeline_kind(bundle.manifest)(bundle, **options)
