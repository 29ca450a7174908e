"""The whole RDSR network: encoders, diffusion process and decoder."""

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
from .encoders import ConditionEncoder, LatentPriorEncoder, StatisticsEncoder

__all__ = ["RDSR"]


class RDSR(RepDecoderNetwork, LatentPriorNetwork):
    """RDSR (PRCV 2024): a diffusion process over a small latent prior, a plain convolutional decoder over pixels."""

    config: RDSRConfig
    lpe: LatentPriorEncoder | None
    """Latent prior encoder, only for training; None in a network for inference."""

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.config = config
        self.lpe = LatentPriorEncoder(config) if config.lpe_depth else None
        encoder = StatisticsEncoder if config.condition_encoder == "statistics" else ConditionEncoder
        self.condition_encoder = encoder(config)
        self.denoiser = Denoiser(config)
        self.decoder = RepDecoder(config)
        self.quantized = None
        self.schedule = Schedule.linear(config.steps, config.beta_start, config.beta_end)

    @property
    def latent_size(self) -> int:
        return self.config.latent_size

    @property
    def condition_channels(self) -> int:
        return self.config.condition_width * (2 if self.config.condition_encoder == "statistics" else 1)

    @property
    def size_multiple(self) -> int:
        return self.config.unshuffle

    @property
    def condition_radius(self) -> int:
        # A statistics encoder reaches one cell further by its first kernel, and one more by its high-pass.
        return self.config.condition_depth + (2 if self.config.condition_encoder == "statistics" else 0)

    def feature_map(self, lr: Tensor) -> Tensor:
        return self.condition_encoder.feature_map(lr)

    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor:
        condition = self.condition_encoder.vector(pooled)
        return reverse_process(self.denoiser, self.schedule, condition, noise) if self.config.steps else condition

    def fuse(self) -> Self:
        fused = super().fuse()
        fused.config = dataclasses.replace(fused.config, lpe_depth=0)
        fused.lpe = None
        fused.condition_encoder = self.condition_encoder.fuse()
        return fused

    def training_only(self) -> dict[str, Tensor]:
        return {} if self.lpe is None else {f"lpe.{key}": value for key, value in self.lpe.state_dict().items()}
