"""DiffIR-S2 (ICCV 2023) for super-resolution ×1, ×2, ×4, with the key names of its released checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion import Schedule
from ..errors import CheckpointError
from ..shapes import Shapes, parts_found
from .config import OFFICIAL_X4, DiffIRConfig
from .network import DiffIR

__all__ = ["OFFICIAL_X4", "DiffIR", "DiffIRConfig", "config_from_shapes", "is_derived", "matches", "settle"]

_REPEATED = {"diffusion.model.": "denoise.", "diffusion.condition.": "condition."}
"""Prefix of repeated keys → prefix of kept keys: released checkpoints hold denoiser and condition encoder twice."""
_PARTS = ("G.patch_embed.proj.", "G.encoder_level1.", "G.latent.", "G.refinement.", "condition.E.", "denoise.resmlp.")
_SCHEDULE_TOLERANCE = 5e-4
"""Half-precision checkpoints round β by up to 2.5e-4."""


def matches(shapes: Shapes) -> bool:
    """Whether the keys are those of DiffIR. A missing tensor is named later."""
    return parts_found(shapes, *_PARTS) >= 3


def is_derived(name: str) -> bool:
    """Whether a tensor repeats others, or follows from β."""
    return name.startswith("diffusion.")


def config_from_shapes(shapes: Shapes) -> DiffIRConfig:
    """Sizes of a stage-2 network; `CheckpointError` for a stage-1 checkpoint or a missing tensor."""
    if not parts_found(shapes, "condition.", "denoise."):
        raise CheckpointError(
            "a stage-1 checkpoint of DiffIR, without condition encoder and denoiser, cannot be deployed; stage 2 is needed"
        )
    return DiffIRConfig.from_shapes(shapes)


def settle(config: DiffIRConfig, shapes: Shapes, read: Callable[[str], Tensor]) -> DiffIRConfig:
    """Take β from the checkpoint, and check the tensors that repeat others. `read` gives the tensor of a name.

    Raises `CheckpointError` if a repeated tensor differs from the one kept, or if β are not linear in √β.
    """
    for key, shape in shapes.items():
        for repeated, prefix in _REPEATED.items():
            if key.startswith(repeated):
                name = prefix + key.removeprefix(repeated)
                if shapes.get(name) != shape or not torch.equal(read(name), read(key)):
                    raise CheckpointError(f"tensor {key} should repeat {name} and does not")
    if "diffusion.betas" in shapes:
        values = [float(b) for b in read("diffusion.betas").double()]
        if not all(0 < b < 1 for b in values):
            raise CheckpointError("tensor diffusion.betas holds values outside 0 … 1")
        if not _are_linear(values, values[0], values[-1]):
            raise CheckpointError("tensor diffusion.betas is not linear in √β, the only known schedule of DiffIR")
        if not _are_linear(values, config.beta_start, config.beta_end):
            config = dataclasses.replace(config, beta_start=values[0], beta_end=values[-1])
    return config


def _are_linear(betas: list[float], first: float, last: float) -> bool:
    """Whether √β run linearly from √first to √last, apart from the rounding of β in the file."""
    linear = Schedule.linear(len(betas), first, last).betas
    return max(abs(a - b) for a, b in zip(betas, linear, strict=True)) <= _SCHEDULE_TOLERANCE
