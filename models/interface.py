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

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        ...

    @property
    def latent_size(self) -> int:
        """Length of noise and latent prior."""
        ...

    @property
    def condition_channels(self) -> int:
        """Channels of the condition feature map."""
        ...

    @property
    def size_multiple(self) -> int:
        """LR pixels per cell of the condition feature map."""
        ...

    @property
    def betas(self) -> tuple[float, ...]:
        """Noise schedule."""
        ...

    @property
    def receptive_radius(self) -> int | None:
        """LR pixels on each side that one output pixel of the decoder depends on; None for the whole picture."""
        ...

    @property
    def condition_radius(self) -> int:
        """Cells of the condition feature map on each side that one of them depends on."""
        ...

    @property
    def peak_channels(self) -> int:
        """Values per LR pixel that the decoder holds at once, at most."""
        ...

    @property
    def tile_rule(self) -> str:
        """ "exact", "overlap" or "whole"."""
        ...

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×C×⌈H/f⌉×⌈W/f⌉ condition features, f being `size_multiple`."""
        ...

    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor:
        """Pooled condition features (N×C) and noise (N×latent) → latent prior z (N×latent)."""
        ...

    def latent_prior(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and noise (N×latent or 1×latent) → latent prior z of each whole picture."""
        ...

    def decode(self, lr: Tensor, z: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent z → N×3×sH×sW SR, not clipped."""
        ...

    def fuse(self) -> nn.Module:
        """The float deployment form, a copy."""
        ...

    def training_only(self) -> dict[str, Tensor]:
        """Weights that only training needs."""
        ...

    def fusion_errors(self, lr: Tensor, z: Tensor) -> FusionErrors:
        """How far `fuse` is from this network."""
        ...

    def inference_parameters(self) -> int:
        """Number of weights that the deployed network holds."""
        ...

    def __call__(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent noise → N×3×sH×sW SR, not clipped."""
        ...
