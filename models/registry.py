"""The known architectures, and loading a checkpoint into the one that its keys and shapes tell of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import diffir, rdsr, repd
from .checkpoint import apply_key_map, read_checkpoint, read_key_map, save_checkpoint
from .errors import CheckpointError, UnsupportedModelError
from .interface import Network

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "LoadedModel",
    "config_from_metadata",
    "find_architecture",
    "load_model",
    "preset_names",
    "resolve_checkpoint",
    "shipped_weights",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to recognise a network family and how to build a member of it."""

    name: str
    """Name in manifests, metadata and `--arch`."""
    matches: Callable[[Shapes], bool]
    """Whether a state dict with these keys and shapes is of this family."""
    config_from_shapes: Callable[[Shapes], Any]
    """Sizes read off the keys and shapes; raises `CheckpointError`."""
    config_from_dict: Callable[[Mapping[str, Any]], Any]
    """Sizes from a checkpoint's metadata; raises `ValueError`."""
    build: Callable[[Any, Shapes], Network]
    """A network of these sizes, with the optional parts that the keys show; weights not yet loaded."""
    settle: Callable[[Any, dict[str, Tensor]], tuple[Any, dict[str, Tensor]]] = lambda config, tensors: (
        config,
        tensors,
    )
    """The config completed by what only values show, and the tensors without those that repeat others; raises
    `CheckpointError`."""
    presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Model name → sizes, of networks that can be built with random weights."""


ARCHITECTURES: dict[str, Architecture] = {
    arch.name: arch
    for arch in (
        Architecture("repd", repd.matches, repd.config_from_shapes, repd.RepDConfig.from_dict, repd.build),
        Architecture(
            "rdsr",
            rdsr.matches,
            rdsr.config_from_shapes,
            rdsr.config_from_dict,
            rdsr.build,
            presets={f"rdsr-{name}": config for name, config in rdsr.PRESETS.items()},
        ),
        Architecture(
            "diffir",
            diffir.matches,
            diffir.config_from_shapes,
            diffir.DiffIRConfig.from_dict,
            diffir.build,
            diffir.settle,
            presets={"diffir": diffir.OFFICIAL_X4},
        ),
    )
}
"""Every architecture that checkpoints are read as, the first that matches. A new one is one folder and one entry here."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with a checkpoint's weights in it, in eval mode, float32."""

    network: Network
    arch: str
    config: Any
    sha256: str
    """Of the checkpoint file."""
    notes: dict[str, str]
    """What our own checkpoints say of their training; empty for others."""

    @property
    def random(self) -> bool:
        """Whether the checkpoint says that its weights are random: right for time and memory, meaningless for quality."""
        return self.notes.get("weights") == "random"

    @property
    def weights(self) -> str:
        """ "random" or "trained"."""
        return "random" if self.random else "trained"

    def describe(self) -> dict[str, Any]:
        """The main facts, for `rdsr info`."""
        network, own = self.network, self.network.int8_form
        return {
            "kind": "checkpoint",
            "arch": self.arch,
            "scale": network.scale,
            "params": network.inference_parameters(),
            "params_training": sum(p.numel() for key, p in network.named_parameters() if not key.startswith("quantized.")),
            "quantized": own is not None and own.trained is not None,
            "steps": network.steps,
            "config": self.config.to_dict(),
            "notes": self.notes,
            "sha256": self.sha256,
        }


_MAX_LOG_SCALE = 30
"""Of quantization scales; e³⁰ is far beyond any activation."""


def shipped_weights() -> dict[str, Path]:
    """Checkpoints that the package carries, by model name ("rdsr-small", ×4)."""
    suffix = "-x4.safetensors"
    return {path.name.removesuffix(suffix): path for path in sorted((Path(__file__).parent / "weights").glob(f"*{suffix}"))}


def preset_names() -> tuple[str, ...]:
    """Model names of the networks that can be built with random weights, e.g. "rdsr-base"."""
    return tuple(name for arch in ARCHITECTURES.values() for name in arch.presets)


def resolve_checkpoint(name: str, scratch: Path | None = None) -> Path:
    """A file of that name if there is one, else the shipped weights of that model name, else the name as a path.

    `scratch`: a folder into which the checkpoint of a preset with random weights may be written, if `name` is one.
    """
    path = Path(name)
    if path.is_file() or name in shipped_weights():
        return path if path.is_file() else shipped_weights()[name]
    arch = next((arch for arch in ARCHITECTURES.values() if name in arch.presets), None)
    if arch is None or scratch is None:
        return path
    torch.manual_seed(0)
    network = arch.build(arch.presets[name], {})
    network.vary_initial_weights()
    path = scratch / f"{name}.safetensors"
    save_checkpoint(path, network.state_dict(), arch.name, network.config.to_dict(), {"weights": "random"})
    return path


def find_architecture(shapes: Shapes, name: str | None = None) -> Architecture:
    """The architecture called `name`, or the one that the keys match; `UnsupportedModelError` otherwise."""
    if name is not None:
        if name not in ARCHITECTURES:
            raise UnsupportedModelError(f"no architecture is called {name!r}; known are {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[name]
    for arch in ARCHITECTURES.values():
        if arch.matches(shapes):
            return arch
    keys = ", ".join(list(shapes)[:4]) + (", …" if len(shapes) > 4 else "")
    raise UnsupportedModelError(
        f"the checkpoint's keys ({keys}) match no known architecture ({', '.join(ARCHITECTURES)}); "
        "renamed keys can be mapped with --key-map"
    )


def load_model(path: Path, *, arch: str | None = None, key_map: Path | None = None, steps: int | None = None) -> LoadedModel:
    """Read a checkpoint into a network. `steps` overrides T, whatever the metadata says.

    Raises `CheckpointError` or `UnsupportedModelError` with one sentence that names the file and the tensor at fault.
    """
    tensors, metadata = read_checkpoint(path)
    if key_map is not None:
        tensors = apply_key_map(tensors, read_key_map(key_map))
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    try:
        architecture = find_architecture(shapes, arch or metadata.get("arch"))
        config, tensors = architecture.settle(_config(architecture, shapes, metadata), tensors)
        if steps is not None:
            config = dataclasses.replace(config, steps=steps)
        with torch.device("meta"):  # sizes are checked against the tensors before any memory is taken
            network = architecture.build(config, shapes)
        _load_strictly(network, tensors)
        notes = _notes(metadata)
    except (CheckpointError, ValueError) as error:
        kind = type(error) if isinstance(error, CheckpointError) else CheckpointError
        raise kind(f"{path}: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LoadedModel(network.eval(), architecture.name, config, digest, notes)


def _config(architecture: Architecture, shapes: Shapes, metadata: Mapping[str, str]) -> Any:
    read = architecture.config_from_shapes(shapes)  # says clearly what is missing, also where metadata exists
    return config_from_metadata(architecture, metadata) if "config" in metadata else read


def config_from_metadata(architecture: Architecture, metadata: Mapping[str, str]) -> Any:
    """Sizes as our own checkpoints' metadata have them under `config`; `CheckpointError` where they do not fit."""
    try:
        return architecture.config_from_dict(json.loads(metadata["config"]))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the config in the metadata does not fit {architecture.name}: {error}") from error


def _notes(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        notes = json.loads(metadata.get("notes", "{}"))
    except ValueError as error:
        raise CheckpointError(f"the notes in the metadata are not valid JSON: {error}") from error
    if not isinstance(notes, dict):
        raise CheckpointError("the notes in the metadata are no JSON object")
    return {str(key): str(value) for key, value in notes.items()}


def _load_strictly(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = network.state_dict()
    if missing := [key for key in wanted if key not in tensors]:
        raise CheckpointError(f"missing tensor {_some(missing)}")
    if extra := [key for key in tensors if key not in wanted]:
        raise CheckpointError(f"tensor {_some(extra)} belongs to no part of this network")
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            raise CheckpointError(f"tensor {key} has shape {list(value.shape)}, expected {list(wanted[key].shape)}")
        if value.dtype not in _FLOATS or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f"tensor {key} has type {value.dtype} ({value.layout}), expected dense floating point")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"tensor {key} holds NaN or infinity")
        if ".log_" in key and bool((value.abs() > _MAX_LOG_SCALE).any()):
            raise CheckpointError(f"tensor {key} holds logarithms of scales beyond ±{_MAX_LOG_SCALE}")
    # Copied: tensors lie in a file at any address, and kernels round differently on unaligned ones (seen on AVX2).
    plain = {key: value.float().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    network.load_state_dict(plain, assign=True)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
