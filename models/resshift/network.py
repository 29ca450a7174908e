"""ResShift, SinSR and RSD: a UNet that shifts a picture's latent from LR to HR, and the autoencoder around it."""

from __future__ import annotations

from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interface import Derived, ResidualShiftNetwork, ShiftStep
from .autoencoder import BLOCKS, Autoencoder, Codebook
from .config import ResShiftConfig
from .schedule import SAMPLERS
from .swin import Mlp, WindowAttention, last_row_mask
from .unet import UNet, time_frequencies

__all__ = ["ResShift"]

_TILE = 128
"""Side of the largest tiles in LR pixels."""


class ResShift(ResidualShiftNetwork):
    """A network of the family (NeurIPS 2023, and its journal version; SinSR: CVPR 2024; RSD: 2025)."""

    config: ResShiftConfig

    def __init__(self, config: ResShiftConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.autoencoder = Autoencoder(config)

    @cached_property
    def calls(self) -> tuple[ShiftStep, ...]:
        return tuple(SAMPLERS[self.config.sampler].calls())

    @property
    def first_noise(self) -> float:
        return SAMPLERS[self.config.sampler].first_noise

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def noise_channels(self) -> int:
        return self.config.noise_channels

    @property
    def size_multiple(self) -> int:
        return self.config.image_size

    @property
    def peak_channels(self) -> int:
        return max(self.values_held.values())

    @property
    def values_held(self) -> dict[str, int]:
        """In the autoencoder's largest level, of 16 pixels for each of the latent's, or in one part of its attention."""
        config = self.config
        largest = 4 * config.vq_channels * self.scale**2
        attention = 2 * _TILE**2 // BLOCKS + 6 * config.vq_channels * config.vq_mult[-1]
        return {
            "encoder": max(largest * config.vq_mult[0], attention),
            "step": 18 * config.model_channels * config.channel_mult[0],
            "decoder": max(largest * config.vq_mult[1], attention),
        }

    def derived(self) -> Derived:
        window = self.config.window_size
        return Derived((last_row_mask(window, window // 2), time_frequencies(self.config.model_channels)))

    def encode(self, lr: Tensor) -> Tensor:
        larger = F.interpolate(lr, scale_factor=float(self.scale), mode="bicubic")
        return self.autoencoder.encode(2 * larger - 1)

    def estimate(self, z: Tensor, lr: Tensor, time: Tensor, input_scale: Tensor, noise: Tensor | None = None) -> Tensor:
        inputs = [z * input_scale.view(-1, 1, 1, 1), 2 * lr - 1, *([] if noise is None else [noise])]
        estimate: Tensor = self.unet(torch.cat(inputs, dim=1), time)
        return estimate

    def draw(self, z: Tensor) -> Tensor:
        return (self.autoencoder.decode(z) + 1) / 2

    def int8_convolutions(self, names: list[str]) -> list[str]:
        """All but those that read codes, and the last."""
        return [name for name in names[:-1] if name.startswith("autoencoder.decoder.") and not name.endswith(".conv_in")]

    def codes(self, z: Tensor) -> Tensor:
        found: Tensor = self.autoencoder.quantize(z)
        return found

    def fuse(self) -> Self:
        """A copy in which what follows from weights is computed once: biases of attention, ½ of GELU, lengths of codes."""
        fused = super().fuse()
        for module in fused.modules():
            if isinstance(module, (WindowAttention, Mlp, Codebook)):
                module.fold()
        return fused

    def vary_initial_weights(self) -> None:
        """Norms begin with 1 and 0, and are drawn near them; so are the codes, which begin far too close to each other."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1 and bool((parameter == parameter[:1]).all()):
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            codes = self.autoencoder.quantize.embedding.weight
            codes.copy_(0.4 * torch.randn(codes.shape, generator=generator))
