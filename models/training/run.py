"""Set up a run and train: network, initial weights, pictures and folder come from the config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...errors import OutputError
from ..checkpoint import read_checkpoint
from ..errors import CheckpointError
from ..int8.chain import Ranges
from ..int8.samples import sample_of, with_hard_edges
from ..rdsr.config import RDSRConfig
from ..rdsr.grow import grow
from ..rdsr.network import RDSR
from ..registry import ARCHITECTURES, as_weights, config_from_metadata, load_model, resolve_checkpoint
from .config import TrainConfig
from .data import PatchSource, Rgb
from .errors import TrainingError
from .run_lock import run_lock
from .trainer import Trainer, read_state
from .validation import Pair, load_pairs

__all__ = ["train"]


def _start_from(network: RDSR, path: Path, stage: str, *, grown: bool) -> None:
    """Load a checkpoint of the same network, or with `grown` of a smaller one; stage2 needs its LPE, too."""
    tensors, metadata = read_checkpoint(path)
    # A quantized decoder belongs to the weights that it was trained from, which change now.
    tensors = {key: value for key, value in tensors.items() if not key.startswith("quantized.")}
    try:
        tensors = {key: as_weights(key, value) for key, value in tensors.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    wanted = network.state_dict()
    if grown:
        try:
            # The shapes of a stage-1 checkpoint do not show every size, so the metadata comes first.
            if "config" in metadata:
                smaller: RDSRConfig = config_from_metadata(ARCHITECTURES["rdsr"], metadata)
            else:
                smaller = RDSRConfig.from_shapes({key: tuple(value.shape) for key, value in tensors.items()})
            tensors = grow(tensors, smaller, network)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    if unknown := [key for key in tensors if key not in wanted]:
        raise CheckpointError(f"{path}: tensor {unknown[0]} belongs to no part of the network of this config")
    for key, value in tensors.items():
        if key in wanted and wanted[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: tensor {key} has shape {list(value.shape)}, the config asks for {list(wanted[key].shape)}"
            )
    parts = ("lpe.", "decoder.") if stage == "stage2" else ("decoder.",)
    if lacking := [key for key in wanted if key.startswith(parts) and key not in tensors]:
        raise CheckpointError(f"{path}: missing tensor {lacking[0]}, which {stage} needs")
    network.load_state_dict(tensors, strict=False)


QAT_START = Ranges(percentile=0.9999, equalization=0.6)
"""Start of quantization-aware training, which learns the range of each channel: stronger equalization clips rarely active
channels (benchmarks/results/int8/qat.md)."""
_CALIBRATION_PICTURES = 12
_CALIBRATION_SIDE = 96
_CALIBRATION_PATCHES = 48


def _finished_network(path: Path) -> RDSR:
    network = load_model(path).network
    if not isinstance(network, RDSR):
        raise TrainingError(f"{path} holds no network of the rdsr family")
    return network


def _quantize(network: RDSR, source: PatchSource, *, black_and_white: bool) -> None:
    """Give the network a quantized decoder; its ranges come from the middles of some training pictures.

    For photos they come from patches that are degraded as in training.
    """
    noise = torch.randn(1, network.config.latent_size, generator=torch.Generator().manual_seed(0))
    if source.photo is not None:
        pictures = list(source.batch(0, _CALIBRATION_PATCHES).lr)
    else:
        spread = source.pictures[:: max(1, len(source.pictures) // _CALIBRATION_PICTURES)][:_CALIBRATION_PICTURES]
        pictures = [_middle(picture.lr) for picture in spread]

    def condition(lr: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (network.latent_prior(lr, noise),)

    samples = [sample_of(picture, condition) for picture in pictures]
    if black_and_white:
        samples = with_hard_edges(samples, condition)
    network.quantized = network.int8_form.calibrate(samples, QAT_START)


def _middle(lr: Rgb) -> Rgb:
    top, left = (max(0, (side - _CALIBRATION_SIDE) // 2) for side in lr.shape[:2])
    return lr[top : top + _CALIBRATION_SIDE, left : left + _CALIBRATION_SIDE]


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    validation: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    seconds: float | None = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
    hold: Callable[[], float] | None = None,
) -> Path:
    """Run one stage, or about `seconds` of it; returns the path of the checkpoint with the EMA weights.

    Resuming a finished run changes nothing. `hold`: see `Trainer`. Raises `TrainingError` or `CheckpointError`, also if
    another process trains in the folder; if config, data or folder do not fit, nothing has been written then.
    """
    if not config.data:
        raise TrainingError("there is nothing to train on: name folders of pictures with data in the config or --data")
    if device not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"device must be auto, cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda: this machine has no CUDA GPU that PyTorch can use")
    starts = {"stage2": "the checkpoint of a stage1 run", "qat": "a finished checkpoint"}
    start = ("grow", "a smaller network") if config.grow else (config.stage, starts.get(config.stage))
    if start[1] and not (config.init or resume):
        raise TrainingError(f"{start[0]} starts from {start[1]}: name its file with init in the config or --init")
    if resume and read_state(folder, config)["step"] >= config.iterations:
        return folder / "ema.safetensors"
    with run_lock(folder):
        if not resume and (folder / "state.pt").exists():
            raise TrainingError(f"{folder} already holds a run; continue it with --resume or choose another folder")
        state = read_state(folder, config) if resume else None
        torch.manual_seed(config.seed)
        network, source, pairs = _prepared(config, folder, state is not None, validation)
        try:
            trainer = Trainer(
                config, network, source, folder, pairs=pairs, device=device, threads=threads, progress=progress, hold=hold
            )
            if state is not None:
                trainer.resume(state)
            trainer.run(seconds)
        except (OSError, OutputError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(
                f"cannot write the run folder {folder}: {reason}; a previous checkpoint is unchanged"
            ) from error
    return folder / "ema.safetensors"


def _prepared(
    config: TrainConfig, folder: Path, resume: bool, validation: Path | None
) -> tuple[RDSR, PatchSource, list[Pair]]:
    """Network, training pictures and validation pairs of a run."""
    if config.stage == "qat":
        network = _finished_network(folder / "ema.safetensors" if resume else resolve_checkpoint(config.init))
    else:
        network = RDSR(config.network_config())
        if not resume and config.init:
            _start_from(network, resolve_checkpoint(config.init), config.stage, grown=config.grow)
    photo = config.photo_degradations()
    pairs = load_pairs(validation, network.config.scale, photo=photo is not None) if validation else []
    source = PatchSource(
        [Path(folder) for folder in config.data],
        scale=network.config.scale,
        patch_sizes=config.patch_sizes,
        seed=config.seed,
        # Without weight they are not read: those of another scale need not even fit.
        teachers=[Path(folder) for folder in config.teacher] if config.teacher_weight else [],
        teacher_weight=config.teacher_weight,
        photo=photo,
        first=(config.prior_steps, config.prior_patch) if config.prior_patch else (0, 0),
        reduced=config.reduced,
        permuted=config.permuted,
    )
    if config.stage == "qat" and network.quantized is None:
        _quantize(network, source, black_and_white=config.black_and_white > 0)
    return network, source, pairs
