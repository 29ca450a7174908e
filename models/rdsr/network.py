"""The whole RDSR network, put together from its encoders, diffusion process and decoder."""

from __future__ import annotations

import dataclasses
from typing import Self

from torch import Tensor

from ..diffusion import Schedule, reverse_process
from ..interface import LatentPriorNetwork
from .around_decoder import RepDecoderNetwork
from .config import RDSRConfig
from .decoder import RepDecoder
from .denoiser import Denoiser
from .encoders import LatentPriorEncoder, build_condition_encoder

__all__ = ["RDSR"]


class RDSR(RepDecoderNetwork, LatentPriorNetwork):
    """RDSR (PRCV 2024): a diffusion process over a small latent prior, a plain convolutional decoder over pixels."""

    config: RDSRConfig
    """Sizes of this network."""
    lpe: LatentPriorEncoder | None
    """Latent prior encoder, training only; `None` once dropped."""

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.config = config
        self.lpe = LatentPriorEncoder(config) if config.lpe_depth else None
        self.condition_encoder = build_condition_encoder(config)
        self.denoiser = Denoiser(config)
        self.decoder = RepDecoder(config)
        self.quantized = None
        self.schedule = Schedule.linear(config.steps, config.beta_start, config.beta_end)

    @property
    def latent_size(self) -> int:
        """Length of the noise and of the latent prior."""
        return self.config.latent_size

    @property
    def condition_channels(self) -> int:
        """Channels of the condition feature map."""
        return self.config.condition_width * (2 if self.config.condition_encoder == "statistics" else 1)

    @property
    def size_multiple(self) -> int:
        """LR pixels per cell of the condition feature map."""
        return self.config.unshuffle

    @property
    def condition_radius(self) -> int:
        """Cells of the condition feature map on each side that one of them depends on."""
        # The statistics' first kernel reaches one cell further, and the high-pass one pixel.
        return self.config.condition_depth + (2 if self.config.condition_encoder == "statistics" else 0)

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×C×⌈H/f⌉×⌈W/f⌉ condition features."""
        return self.condition_encoder.feature_map(lr)

    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor:
        """Pooled condition features (N×C) and noise (N×latent) → latent prior z (N×latent)."""
        condition = self.condition_encoder.vector(pooled)
        return reverse_process(self.denoiser, self.schedule, condition, noise) if self.config.steps else condition

    def fuse(self) -> Self:
        """The float deployment form: branches folded, LPE dropped. The original is left as it is."""
        fused = super().fuse()
        fused.config = dataclasses.replace(fused.config, lpe_depth=0)
        fused.lpe = None
        return fused

    def training_only(self) -> dict[str, Tensor]:
        """Weights that only training needs (the LPE's)."""
        return {} if self.lpe is None else {f"lpe.{key}": value for key, value in self.lpe.state_dict().items()}
