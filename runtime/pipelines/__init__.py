"""How a picture flows through the graphs of a bundle: one module for each process kind, and the one place that picks it."""

from __future__ import annotations

from typing import Any

from ..bundle import Bundle, Manifest
from ..errors import BundleError
from .direct import DirectPipeline
from .latent_prior import LatentPriorPipeline
from .pipeline import Pipeline, Progress

__all__ = ["Pipeline", "Progress", "load_pipeline", "pipeline_kind"]

_KINDS: dict[str, type[Pipeline]] = {pipeline.kind: pipeline for pipeline in (LatentPriorPipeline, DirectPipeline)}


def pipeline_kind(manifest: Manifest) -> type[Pipeline]:
    """The class of pipeline that runs a bundle of this manifest, its section checked.

    Raises `BundleError` for a kind that this release does not know, and for a section that does not fit it.
    """
    if manifest.kind not in _KINDS:
        raise BundleError(f"manifest.json: the process kind is {manifest.kind!r}; this release knows {', '.join(_KINDS)}")
    kind = _KINDS[manifest.kind]
    kind.check(manifest)
    return kind


def load_pipeline(bundle: Bundle, **options: Any) -> Pipeline:
    """Load a bundle's graphs into an engine; for the options see `Pipeline`."""
    return pipeline_kind(bundle.manifest)(bundle, **options)
