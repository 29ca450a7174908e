"""The known architectures, and loading a checkpoint into the one that its keys and shapes show."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import shortened
from . import diffir, rdsr, repd, resshift
from .base_config import BaseConfig
from .checkpoint import Checkpoint, apply_key_map, open_checkpoint, read_key_map, save_checkpoint
from .errors import CheckpointError, UnsupportedModelError
from .foreign import UnknownToSpandrelError, read_foreign
from .interface import Network
from .shapes import Shapes, check_shapes

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "LoadedModel",
    "as_weights",
    "config_from_metadata",
    "load_model",
    "preset_names",
    "resolve_checkpoint",
    "shipped_weights",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_LOG_SCALE = 30
"""Largest logarithm of a quantization scale that is believed; e³⁰ is far beyond any activation."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to recognise a network family and how to build a member of it."""

    name: str
    """Name in manifests, metadata and `--arch`."""
    network: Callable[[Any], Network]
    """Class of the network. It takes a config."""
    config: type[BaseConfig]
    """Class of the config."""
    matches: Callable[[Shapes], bool]
    """Whether a state dict with these keys and shapes is of this family."""
    config_from_shapes: Callable[[Shapes], Any]
    """Read a config off the keys and shapes; raises `CheckpointError`."""
    is_derived: Callable[[str], bool] = lambda name: False
    """Whether a tensor of this name repeats others or follows from the sizes. It is no weight; `settle` checks it."""
    settle: Callable[[Any, Shapes, Callable[[str], Tensor]], Any] = lambda config, shapes, read: config
    """(config, shapes, function that reads a tensor) → config completed from values; raises `CheckpointError`."""
    name_of: Callable[[str], str] = lambda key: key
    """The network's name of a tensor, by its key in the file."""
    autoencoder: str | None = None
    """What precedes the names of tensors from a second file, that of an autoencoder; None if there is no such file."""
    licence: str = ""
    """What the licence of the released checkpoints forbids."""

    def build(self, config: Any, shapes: Shapes) -> Network:
        """A network of this config with initial weights, and with the optional parts that the keys show."""
        network = self.network(config)
        network.add_parts(shapes)
        return network


_REPD = Architecture("repd", repd.RepD, repd.RepDConfig, repd.matches, repd.config_from_shapes)
_RDSR = Architecture("rdsr", rdsr.RDSR, rdsr.RDSRConfig, rdsr.matches, rdsr.config_from_shapes)
_DIFFIR = Architecture(
    "diffir", diffir.DiffIR, diffir.DiffIRConfig, diffir.matches, diffir.config_from_shapes, diffir.is_derived, diffir.settle
)


def _resshift(name: str, matches: Callable[[Shapes], bool], config_from_shapes: Callable[[Shapes], Any]) -> Architecture:
    return Architecture(
        name,
        resshift.ResShift,
        resshift.ResShiftConfig,
        matches,
        config_from_shapes,
        is_derived=resshift.is_derived,
        settle=resshift.settle_as(name),
        name_of=resshift.name_of,
        autoencoder=resshift.AUTOENCODER,
        licence=resshift.LICENCE,
    )


_RESSHIFT = {
    name: _resshift(
        name, resshift.matches_noise_input if name == "rsd" else lambda shapes: False, resshift.config_of_sampler(name)
    )
    for name in resshift.SAMPLERS
}
"""Only the user knows which of them a checkpoint is of, unless it has an input of noise."""
_UNNAMED = _resshift("resshift", resshift.matches, resshift.refuse_unnamed)
ARCHITECTURES = {arch.name: arch for arch in (_REPD, _RDSR, _DIFFIR, *_RESSHIFT.values(), _UNNAMED)}
"""Every known architecture. A checkpoint is read as the first that matches. A new one is one folder and one entry here."""
_PRESETS: dict[str, tuple[Architecture, Any]] = {
    **{f"rdsr-{name}": (_RDSR, config) for name, config in rdsr.PRESETS.items()},
    "diffir": (_DIFFIR, diffir.OFFICIAL_X4),
    **{name: (_RESSHIFT[config.sampler], config) for name, config in resshift.PRESETS.items()},
}
"""Model name → architecture and config of a network that can be built with random weights."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with a checkpoint's weights in it, in eval mode, float32."""

    network: Network
    arch: str
    config: Any
    sha256: str
    """sha256 of the checkpoint file."""
    notes: dict[str, str]
    """Notes on the training, from our own checkpoints; empty for others."""

    @property
    def random(self) -> bool:
        """Whether the notes say that the weights are random: right for time and memory, meaningless for quality."""
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


def shipped_weights() -> dict[str, Path]:
    """Model name ("rdsr-small" for ×4, "rdsr-small-x2") → checkpoint that the package carries."""
    found = sorted((Path(__file__).parent / "weights").glob("*-x?.safetensors"))
    return {path.stem.removesuffix("-x4"): path for path in found}


def preset_names() -> tuple[str, ...]:
    """Names of the models that can be built with random weights, e.g. "diffir"; those of shipped weights stand for these."""
    return tuple(_PRESETS)


def resolve_checkpoint(name: str, scratch: Path | None = None) -> Path:
    """The file called `name` if there is one, else the shipped weights of the model `name`, else the name as a path.

    If `name` is a preset and `scratch` a folder, a checkpoint with random weights is written there and returned.
    """
    path = Path(name)
    if os.path.isfile(path):  # never an error, however strange the name
        return path
    if name in shipped_weights():
        return shipped_weights()[name]
    if name not in _PRESETS or scratch is None:
        return path
    arch, config = _PRESETS[name]
    torch.manual_seed(0)
    network = arch.build(config, {})
    network.vary_initial_weights()
    path = scratch / f"{name}.safetensors"
    save_checkpoint(path, network.state_dict(), arch.name, network.config.to_dict(), {"weights": "random"})
    return path


def _find_architecture(shapes: Shapes, name: str | None = None) -> Architecture:
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


def load_model(
    path: Path,
    *,
    arch: str | None = None,
    key_map: Path | None = None,
    steps: int | None = None,
    autoencoder: Path | None = None,
) -> LoadedModel:
    """Read a checkpoint into a network. `steps` overrides T of the checkpoint. `autoencoder`: a second file, for networks
    that need one.

    Names and shapes of all tensors are checked before the first one is read. Raises `CheckpointError` or
    `UnsupportedModelError` with one sentence that names the file and the tensor at fault.
    """
    renames = {} if key_map is None else read_key_map(key_map)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_checkpoint(each)) for each in (path, autoencoder) if each is not None]
        checkpoint = files[0]
        try:
            network, architecture = _load(files, arch, renames, steps)
            notes = _notes(checkpoint.metadata)
        except (CheckpointError, ValueError, RecursionError) as error:
            kind = type(error) if isinstance(error, CheckpointError) else CheckpointError
            raise kind(f"{path}: {shortened(error)}") from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):  # torch's word for a lack of memory
                raise
            raise CheckpointError(f"{path}: there is not enough memory for its tensors") from error
        notes |= {"licence": architecture.licence} if architecture.licence else {}
        if autoencoder is not None:
            notes |= {"autoencoder_sha256": files[1].digest()}
        return LoadedModel(network.eval(), architecture.name, network.config, checkpoint.digest(), notes)


def _load(
    files: Sequence[Checkpoint], arch: str | None, key_map: Mapping[str, str], steps: int | None
) -> tuple[Network, Architecture]:
    """`files`: the checkpoint, and that of its autoencoder if it has one."""
    checkpoint, *more = files
    keys = apply_key_map({key: key for key in checkpoint.stored}, key_map)
    found = {name: checkpoint.stored[key].shape for name, key in keys.items()}
    try:
        architecture = _find_architecture(found, arch or checkpoint.metadata.get("arch"))
    except UnsupportedModelError as unknown:
        if arch is not None or more or "arch" in checkpoint.metadata:
            raise
        network, found_architecture = _load_foreign(checkpoint, keys, unknown)
        if steps is not None:
            raise CheckpointError(f"the steps of {found_architecture.name} cannot be set") from None
        return network, found_architecture
    in_file = {architecture.name_of(name): (checkpoint, key) for name, key in keys.items()}
    if len(in_file) < len(keys):
        raise CheckpointError(f"two tensors of the checkpoint have the same name in a network of {architecture.name}")
    if more and architecture.autoencoder is None:
        raise CheckpointError(f"{architecture.name} has no autoencoder")
    in_file |= {f"{architecture.autoencoder}{key}": (each, key) for each in more for key in each.stored}
    shapes = {name: file.stored[key].shape for name, (file, key) in in_file.items()}

    def read(name: str) -> Tensor:
        file, key = in_file[name]
        if not architecture.is_derived(name) and (dtype := file.dtype(key)) not in _FLOATS:
            raise CheckpointError(f"tensor {name} has type {dtype}, expected dense floating point")
        return file.read(key)

    kept = {name: shape for name, shape in shapes.items() if not architecture.is_derived(name)}
    if strange := next((name for name in kept if in_file[name][0].stored[in_file[name][1]].strange), None):
        read(strange)  # which names it: the file does not show its shape
    config = architecture.config_from_shapes(shapes)  # names a missing tensor, also if the metadata holds the config
    if "config" in checkpoint.metadata:
        config = config_from_metadata(architecture, checkpoint.metadata)
    with torch.device("meta"):  # no memory is taken
        wanted = architecture.build(config, shapes).state_dict()
    check_shapes(kept, {name: tuple(value.shape) for name, value in wanted.items()})
    config = architecture.settle(config, shapes, read)
    if steps is not None:
        if not hasattr(config, "steps"):
            raise CheckpointError(f"the steps of {architecture.name} cannot be set")
        config = dataclasses.replace(config, steps=steps)
    with torch.device("meta"):
        network = architecture.build(config, shapes)
    network.load_state_dict({name: as_weights(name, read(name)) for name in kept}, assign=True)
    return network, architecture


def _load_foreign(
    checkpoint: Checkpoint, keys: Mapping[str, str], unknown: UnsupportedModelError
) -> tuple[Network, Architecture]:
    """A network of others. `keys`: name → key in the file; `unknown`: why it is none of ours."""

    def read() -> dict[str, Tensor]:
        values = {name: checkpoint.read(key) for name, key in keys.items()}
        return {name: as_weights(name, value) if value.is_floating_point() else value for name, value in values.items()}

    try:
        network = read_foreign(read)
    except ModuleNotFoundError as error:
        raise UnsupportedModelError(
            f"{unknown}; networks that spandrel knows can be read with it: pip install 'rdsr[foreign]'"
        ) from error
    except UnknownToSpandrelError as error:
        raise UnsupportedModelError(f"{unknown}; spandrel does not know them either") from error
    name = network.config.architecture
    return network, Architecture(
        name, type(network), type(network.config), lambda shapes: False, lambda shapes: network.config
    )


def config_from_metadata(architecture: Architecture, metadata: Mapping[str, str]) -> Any:
    """The config in the metadata of our own checkpoints; `CheckpointError` if it does not fit the architecture."""
    try:
        return architecture.config.from_dict(json.loads(metadata["config"]))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the config in the metadata does not fit {architecture.name}: {error}") from error


def _notes(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        notes = json.loads(metadata.get("notes", "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the notes in the metadata are not valid JSON: {error}") from error
    if not isinstance(notes, dict):
        raise CheckpointError("the notes in the metadata are not a JSON object")
    return {str(key): str(value) for key, value in notes.items()}


def as_weights(key: str, value: Tensor) -> Tensor:
    """A tensor of a checkpoint as float32 weights; `CheckpointError` if it cannot be."""
    if value.dtype not in _FLOATS:
        raise CheckpointError(f"tensor {key} has type {value.dtype}, expected dense floating point")
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"tensor {key} holds NaN or infinity")
    # Copied: tensors from a file lie at any address, and kernels round differently on unaligned ones (seen on AVX2).
    weights = value.float().clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(weights).all()):
        raise CheckpointError(f"tensor {key} holds values beyond the range of float32, which would become infinite")
    if ".log_" in key and bool((weights.abs() > _MAX_LOG_SCALE).any()):
        raise CheckpointError(f"tensor {key} holds logarithms of scales beyond ±{_MAX_LOG_SCALE}")
    return weights
