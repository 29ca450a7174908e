"""What a network must offer so that export, runtime and benchmarks can treat it like any other."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["FusionErrors", "LatentPriorNetwork"]


@dataclasses.dataclass(frozen=True)
class FusionErrors:
    """How far the fused network is from the multi-branch one."""

    blocks: int
    """Blocks that were fused."""
    max_abs_err: float
    """Largest difference of the whole decoder's output in float32, of full range 1."""
    max_rel_err_float64: float
    """Largest difference, relative to the largest value, of any block and of the whole decoder in float64."""


@runtime_checkable
class LatentPriorNetwork(Protocol):
    """A super-resolution network whose diffusion process runs over one latent vector for the whole picture.

    Export cuts it into encoder (`feature_map`), reverse process (`prior`) and decoder (`decode`).
    """

    scale: int
    latent_size: int
    condition_channels: int
    size_multiple: int
    betas: tuple[float, ...]
    receptive_radius: int
    condition_radius: int
    peak_channels: int
    tile_rule: str

    def feature_map(self, lr: Tensor) -> Tensor: ...
    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor: ...
    def decode(self, lr: Tensor, z: Tensor) -> Tensor: ...
    def fuse(self) -> nn.Module: ...
    def training_only(self) -> dict[str, Tensor]: ...
    def fusion_errors(self, lr: Tensor, z: Tensor) -> FusionErrors: ...
    def inference_parameters(self) -> int: ...
    def __call__(self, lr: Tensor, noise: Tensor) -> Tensor: ...
