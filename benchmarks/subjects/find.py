"""Find the model that a name or a path stands for, and export it if it has to be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.bundle import Bundle
from ...runtime.engines import PRECISIONS, Precision
from ...runtime.engines.cache import cache_folder
from ...runtime.errors import BundleError, EngineError
from ...runtime.host import cpu
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


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is ready to run."""

    model: str
    """Name or path as the user gave it."""
    kind: str
    """"network" (a checkpoint and the bundle made from it), "bundle", "onnx", "bicubic" or "function" (for tests)."""
    weights: str
    """"trained", "random" (right for time and memory, meaningless for quality), "given" (unknown) or "none"."""
    scale: int | None
    """Upscaling factor; None if it is only known once the model runs."""
    params_m: float | None
    """Deployed parameters in millions."""
    checkpoint: str | None = None
    """Checkpoint file for torch."""
    path: str | None = None
    """Bundle folder or ONNX file."""
    failure: str | None = None
    """The reason why it cannot run; its rows show it."""


def checkpoint_of(model: str, scratch: Path) -> tuple[Path, LoadedModel]:
    """Checkpoint file and network of a checkpoint, a shipped model ("rdsr-base", "base" for short), or a preset ("diffir").

    Writes a preset's checkpoint, with random weights, into `scratch`. Raises `BenchmarkError` for any other name, and
    what `load_model` raises.
    """
    from ...models.registry import load_model, preset_names, resolve_checkpoint

    name = next((preset for preset in preset_names() if model == preset.partition("-")[2]), model)
    path = resolve_checkpoint(model if Path(model).is_file() else name, scratch)
    if not path.is_file():
        presets = ", ".join(preset_names())
        raise BenchmarkError(f"{model} is neither a checkpoint nor a shipped model nor a preset ({presets})")
    return path, load_model(path)


def find_subject(model: str, progress: Progress = lambda step: None, precisions: Sequence[str] = ()) -> Subject:
    """Find a model by name or path. If it has to be exported, do it once and keep the result in the user's cache folder.

    `precisions`: those that will run; empty for all that there are.

    Takes a bundle folder, an ONNX or OpenVINO IR file, a checkpoint, a shipped model, a preset, "diffir", "bicubic", or a
    peer (`peers.py`). Raises `BenchmarkError`, and what reading and exporting raise.
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
    wanted = tuple(p for p in PRECISIONS if p in precisions and (p != "bf16" or cpu.has_bf16()))
    return _network(model, progress, wanted)


def kept_folder() -> Path:
    """The cache folder for the benchmarks' exports. Raises `BenchmarkError` if it cannot be made."""
    try:
        folder = cache_folder() / "bench"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise BenchmarkError(f"there is no cache folder to export to ({error}); set RDSR_CACHE_DIR to one") from error
    return folder


def _digest(*parts: str) -> str:
    """16 hexadecimal digits that tell these texts from others."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def _sources() -> str:
    """Digest of the code and tools that make graphs: another digest means another export."""
    peers = (Path(__file__).parent / "peer_networks.py").read_text()
    tools = [importlib.metadata.version(tool) for tool in ("torch", "onnx", "onnxsim", "openvino", "onnxruntime")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        tools.append(importlib.metadata.version("spandrel"))
    return _digest(code_digest("models", "export"), peers, *tools)


def _prune(folder: Path, stem: str, kept: str) -> None:
    """Remove exports of the same model by older code."""
    for entry in folder.glob(f"{stem}-{'?' * 16}.*"):
        if kept not in entry.name:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _peer(model: str, progress: Progress) -> Subject:
    folder = kept_folder()
    target = folder / f"{model}-{_sources()}.onnx"
    if not target.is_file():
        progress(f"export {model}")
        _prune(folder, model, _sources())
        export_peer(model, target)
    return Subject(model, "onnx", "random", 4, PEERS[model].params_m, path=str(target))


def _network(model: str, progress: Progress, precisions: tuple[Precision, ...]) -> Subject:
    folder = kept_folder()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint, loaded = checkpoint_of(model, Path(scratch))
        stem = checkpoint.stem[:40]
        if Path(model).is_file():  # a user's files may share one name: every training run writes ema.safetensors
            stem += f"-{_digest(str(checkpoint.resolve()))[:8]}"
        digest = _digest(loaded.sha256, _sources(), *precisions)
        bundle = folder / f"{stem}-{digest}.bundle"
        if checkpoint.parent == Path(scratch):
            checkpoint = checkpoint.replace(bundle.with_suffix(".safetensors"))
    network = loaded.network
    params_m = network.inference_parameters() / 1e6
    subject = Subject(model, "network", loaded.weights, network.scale, params_m, str(checkpoint.resolve()), str(bundle))
    try:
        Bundle(bundle).check()
    except BundleError:  # missing or damaged
        _prune(folder, stem, digest)
        failure = _export(checkpoint, bundle, precisions, lambda step: progress(f"export {model}: {step}"))
        return dataclasses.replace(subject, failure=failure)
    return subject


def _export(checkpoint: Path, bundle: Path, precisions: tuple[Precision, ...], progress: Progress) -> str | None:
    """Export a checkpoint. Returns why that failed, or None."""
    from ...export.errors import ExportError
    from ...export.exporter import ExportOptions, export_checkpoint

    # The limit of the drop is out of reach: all precisions are timed, however much int8 loses.
    options = ExportOptions(
        checkpoint=checkpoint,
        output=bundle,
        precisions=precisions or None,
        max_psnr_drop=1e3,
        single_graph=False,
        force=bundle.exists(),
    )
    try:
        result = export_checkpoint(options, progress)
    except (ExportError, EngineError) as error:
        return f"its export failed: {error}"
    failed = sorted({f"{v.precision} on {v.engine}" for v in result.verification.variants if v.passed is False})
    return None if result.passed else f"its export failed the proof ({', '.join(failed)})"
