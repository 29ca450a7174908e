"""What a benchmark is asked to measure: a name or a path becomes files that can be run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.bundle import Bundle
from ...runtime.engines.cache import cache_folder
from ...runtime.errors import BundleError, EngineError
from ..errors import BenchmarkError
from ..host import code_digest
from .peers import PEERS, export_peer

if TYPE_CHECKING:
    from ...models.registry import LoadedModel

__all__ = ["BICUBIC", "DIFFIR", "Subject", "checkpoint_of", "find_subject", "kept_folder"]

Progress = Callable[[str], None]
BICUBIC = "bicubic"
DIFFIR = "diffir"
"""The preset that others are compared with: DiffIR-S2 in its official ×4 configuration."""
_DIGITS = 16
_KEPT = "bench"
"""Folder in the user's cache for what was exported to be measured."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, ready to be run."""

    model: str
    """As it was named by the user."""
    kind: str
    """"network" (a checkpoint, and the bundle that was made of it), "bundle", "onnx" or "bicubic"."""
    weights: str
    """"trained", "random" (right for time and memory, meaningless for quality), "given" (nothing is known) or "none"."""
    scale: int | None
    """Upscaling factor; None where it only shows when it runs."""
    params_m: float | None
    """Deployed parameters in millions."""
    checkpoint: str | None = None
    """File for torch."""
    path: str | None = None
    """Bundle folder or ONNX file."""
    failure: str | None = None
    """Why it cannot be run; its rows say so."""


def checkpoint_of(model: str, scratch: Path) -> tuple[Path, LoadedModel]:
    """Checkpoint file and network of a checkpoint, a shipped model, or a preset ("rdsr-base", or "base" for short).

    A preset's checkpoint with random weights is written into `scratch`. Raises `BenchmarkError` for any other name, and
    what `load_model` raises.
    """
    from ...models.registry import load_model, preset_names, resolve_checkpoint

    name = next((preset for preset in preset_names() if model == preset.partition("-")[2]), model)
    path = resolve_checkpoint(model if Path(model).is_file() else name, scratch)
    if not path.is_file():
        presets = ", ".join(preset_names())
        raise BenchmarkError(f"{model} is neither a checkpoint nor a shipped model nor a preset ({presets})")
    return path, load_model(path)


def find_subject(model: str, progress: Progress = lambda step: None) -> Subject:
    """What a name stands for; what has to be exported first is, once, and kept in the user's cache folder.

    A bundle folder, an ONNX or OpenVINO IR file, a checkpoint, a shipped model, a preset, "diffir", "bicubic", or a peer's
    name (`benchmarks/subjects/peers.py`). Raises `BenchmarkError`, and what reading and exporting raise.
    """
    path = Path(model)
    if model == BICUBIC:
        return Subject(model, BICUBIC, "none", 4, None)
    if path.is_dir():
        manifest = Bundle(path).manifest
        return Subject(model, "bundle", manifest.weights, manifest.scale, manifest.params / 1e6, path=str(path.resolve()))
    if path.suffix.lower() in (".onnx", ".xml"):
        if not path.is_file():
            raise BenchmarkError(f"cannot read {path}: there is no such file")
        return Subject(model, "onnx", "given", None, None, path=str(path.resolve()))
    if model in PEERS and not path.exists():
        return _peer(model, progress)
    return _exported(model, progress)


def kept_folder() -> Path:
    """Where exports for benchmarks are kept. Raises `BenchmarkError` where there can be no such folder."""
    try:
        folder = cache_folder() / _KEPT
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise BenchmarkError(f"there is no cache folder to export to ({error}); RDSR_CACHE_DIR names one") from error
    return folder


@functools.cache
def _sources() -> str:
    """Digest of what makes graphs: an export of other code is another export."""
    digest = hashlib.sha256(code_digest("models", "export").encode())
    digest.update((Path(__file__).parent / "peer_networks.py").read_bytes())
    for tool in ("torch", "onnx", "onnxsim", "openvino", "onnxruntime"):
        digest.update(importlib.metadata.version(tool).encode())
    return digest.hexdigest()


def _stem(model: str, checkpoint: Path) -> str:
    """What the files of one model's exports begin with; of a user's own file, its place tells it from others of its name."""
    stem = checkpoint.stem[:40]
    return f"{stem}-{hashlib.sha256(str(checkpoint.resolve()).encode()).hexdigest()[:8]}" if Path(model).is_file() else stem


def _prune(folder: Path, stem: str, kept: str) -> None:
    """Remove what older code made of the same model."""
    for entry in folder.glob(f"{stem}-{'?' * _DIGITS}.*"):
        if kept not in entry.name:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _peer(model: str, progress: Progress) -> Subject:
    folder, digest = kept_folder(), _sources()[:_DIGITS]
    target = folder / f"{model}-{digest}.onnx"
    if not target.is_file():
        progress(f"export {model}")
        _prune(folder, model, digest)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            export_peer(model, Path(scratch) / target.name)
            (Path(scratch) / target.name).replace(target)
    return Subject(model, "onnx", "random", 4, PEERS[model].params_m, path=str(target))


def _exported(model: str, progress: Progress) -> Subject:
    from ...export.errors import ProofError
    from ...export.exporter import ExportOptions, export_checkpoint

    folder = kept_folder()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint, loaded = checkpoint_of(model, Path(scratch))
        content = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        stem, digest = _stem(model, checkpoint), hashlib.sha256((content + _sources()).encode()).hexdigest()[:_DIGITS]
        bundle, kept = folder / f"{stem}-{digest}.bundle", folder / f"{stem}-{digest}.safetensors"
        if checkpoint.parent == Path(scratch):
            checkpoint = checkpoint.replace(kept)
    subject = Subject(
        model,
        "network",
        loaded.weights,
        loaded.network.scale,
        loaded.network.inference_parameters() / 1e6,
        checkpoint=str(checkpoint.resolve()),
        path=str(bundle),
    )
    if not _is_whole(bundle):
        _prune(folder, stem, digest)
        options = ExportOptions(
            checkpoint=checkpoint,
            output=bundle,
            max_psnr_drop=1e3,  # what int8 loses is `rdsr export`'s business; here every precision shall be timed
            single_graph=False,
            force=bundle.exists(),
        )
        try:
            result = export_checkpoint(options, lambda step: progress(f"export {model}: {step}"))
        except (ProofError, EngineError) as error:
            return dataclasses.replace(subject, failure=f"its export failed: {error}")
        if not result.passed:
            failed = sorted({f"{v.precision} on {v.engine}" for v in result.verification.variants if v.passed is False})
            return dataclasses.replace(subject, failure=f"its export failed the proof ({', '.join(failed)})")
    return subject


def _is_whole(folder: Path) -> bool:
    try:
        Bundle(folder).check()
    except BundleError:
        return False
    return True
