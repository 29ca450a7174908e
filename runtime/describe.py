"""Describe a bundle and how it would run on this machine, for `rdsr info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bundle import Bundle
from .choice.choose import choose
from .errors import BundleError
from .host import cpu
from .pipelines import pipeline_kind

__all__ = ["describe_bundle"]


def describe_bundle(path: Path) -> dict[str, Any]:
    """The manifest's main facts, and the engine, precision and threads that `auto` chooses on this machine."""
    bundle = Bundle(path)
    manifest = bundle.manifest
    try:
        backend, precision, reason = choose(bundle, "auto", "auto")
        here: dict[str, Any] = {"backend": backend, "precision": precision, "reason": reason}
    except BundleError as error:  # a bundle that failed its proof but was kept can still be described
        here = {"error": str(error)}
    return {
        "kind": "bundle",
        "arch": manifest.arch,
        "scale": manifest.scale,
        "params": manifest.params,
        "weights": manifest.weights,
        "process": manifest.kind,
        "steps": pipeline_kind(manifest).steps(manifest),
        "precisions": list(manifest.precisions),
        "psnr_drop_db": {p: manifest.psnr_drop(p) for p in manifest.precisions if p != "fp32"},
        "tile_rule": manifest.tile_rule,
        "receptive_radius": manifest.receptive_radius,
        "seed": manifest.seed,
        "checkpoint": dict(manifest.checkpoint),
        "tools": dict(manifest.tools),
        "proven_on": dict(manifest.cpu),
        "files": {name: size for name, (_, size) in manifest.files.items()},
        "here": here | {"threads": cpu.available_threads(), "isa": cpu.instruction_set()},
    }
