"""DiffIR-S2 (ICCV 2023) for super-resolution ×1, ×2, ×4, under the key names of its released checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ..diffusion import Schedule
from ..errors import CheckpointError
from .config import OFFICIAL_X4, DiffIRConfig
from .network import DiffIR

__all__ = ["OFFICIAL_X4", "DiffIR", "DiffIRConfig", "build", "config_from_shapes", "matches", "settle"]

_REPEATED = {"diffusion.model.": "denoise.", "diffusion.condition.": "condition."}
"""Released checkpoints hold denoiser and condition encoder twice."""
_SCHEDULE_TOLERANCE = 5e-4
"""Half-precision checkpoints round β by up to 2.5e-4."""


def matches(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the keys are those of a DiffIR state dict (a missing tensor is named later)."""
    parts = ("G.patch_embed.proj.", "G.encoder_level1.", "G.latent.", "G.refinement.", "condition.E.", "denoise.resmlp.")
    return sum(any(key.startswith(part) for key in shapes) for part in parts) >= 3


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> DiffIRConfig:
    """Sizes of a stage-2 network; `CheckpointError` for a stage-1 checkpoint or one with a key tensor missing."""
    if not any(key.startswith(("condition.", "denoise.")) for key in shapes):
        raise CheckpointError(
            "a stage-1 checkpoint of DiffIR, without condition encoder and denoiser, cannot be deployed; stage 2 is needed"
        )
    return DiffIRConfig.from_shapes(shapes)


def build(config: DiffIRConfig, shapes: Mapping[str, tuple[int, ...]]) -> DiffIR:
    """A network of these sizes with initial weights."""
    del shapes  # nothing is optional
    return DiffIR(config)


def settle(config: DiffIRConfig, tensors: dict[str, Tensor]) -> tuple[DiffIRConfig, dict[str, Tensor]]:
    """β as the checkpoint has them, and its tensors without those that repeat others or follow from β.

    Raises `CheckpointError` where a repeated tensor differs from the first, or β are not linear in √β.
    """
    kept = {key: value for key, value in tensors.items() if not key.startswith("diffusion.")}
    for key, value in tensors.items():
        for prefix, first in _REPEATED.items():
            if key.startswith(prefix):
                twin = kept.get(first + key.removeprefix(prefix))
                if twin is None or twin.shape != value.shape or not torch.equal(twin, value):
                    raise CheckpointError(f"tensor {key} should repeat {first}{key.removeprefix(prefix)} and does not")
    betas = tensors.get("diffusion.betas")
    if betas is not None:
        values = [float(b) for b in betas.double().flatten()]
        if not values or not all(0 < b < 1 for b in values):
            raise CheckpointError("tensor diffusion.betas holds values outside 0 … 1")
        linear = Schedule.linear(len(values), values[0], values[-1]).betas
        if max(abs(a - b) for a, b in zip(values, linear, strict=True)) > _SCHEDULE_TOLERANCE:
            raise CheckpointError("tensor diffusion.betas is not linear in √β, the only schedule that is known of DiffIR")
        if not _is_default(config, values):
            config = dataclasses.replace(config, beta_start=values[0], beta_end=values[-1])
    return config, kept


def _is_default(config: DiffIRConfig, betas: list[float]) -> bool:
    """Whether β are the config's, but for their rounding in the file."""
    own = Schedule.linear(len(betas), config.beta_start, config.beta_end).betas
    return max(abs(a - b) for a, b in zip(betas, own, strict=True)) < _SCHEDULE_TOLERANCE
