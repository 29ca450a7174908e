"""The modules that are traced: the three graphs of a bundle, and the whole as one graph with uint8 ends."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..models.interface import LatentPriorNetwork

__all__ = ["DecoderGraph", "EncoderGraph", "PictureDecoderGraph", "ReverseGraph", "SingleGraph"]


class _Graph(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def parts(self) -> LatentPriorNetwork:
        return cast(LatentPriorNetwork, self.network)


class EncoderGraph(_Graph):
    """`lr` N×3×H×W float32 in [0, 1] → `features` N×C×⌈H/f⌉×⌈W/f⌉."""

    def forward(self, lr: Tensor) -> Tensor:
        return self.parts.feature_map(lr)


class ReverseGraph(_Graph):
    """`pooled` N×C and `noise` N×latent → `z` N×latent; T steps unrolled, schedule folded into constants."""

    def forward(self, pooled: Tensor, noise: Tensor) -> Tensor:
        return self.parts.prior(pooled, noise)


class DecoderGraph(_Graph):
    """`lr` N×3×H×W float32 in [0, 1] and `z` N×latent → `sr` N×3×sH×sW float32, not clipped."""

    def forward(self, lr: Tensor, z: Tensor) -> Tensor:
        return self.parts.decode(lr, z)


def _from_picture(image: Tensor) -> Tensor:
    """N×H×W×3 uint8 → N×3×H×W float32 in [0, 1]."""
    return image.permute(0, 3, 1, 2).float() / 255


def _to_picture(sr: Tensor) -> Tensor:
    """N×3×H×W → N×H×W×3 uint8, clipped, rounded half to even."""
    return torch.round(sr.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)


class PictureDecoderGraph(_Graph):
    """`image` N×H×W×3 uint8 and `z` N×latent → `upscaled` N×sH×sW×3 uint8: what int8 runs, which is for 8-bit pictures."""

    def forward(self, image: Tensor, z: Tensor) -> Tensor:
        return _to_picture(self.parts.decode(_from_picture(image), z))


class SingleGraph(_Graph):
    """`image` N×H×W×3 uint8 → `upscaled` N×sH×sW×3 uint8, noise baked in."""

    def __init__(self, network: nn.Module, noise: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("noise", noise)

    def forward(self, image: Tensor) -> Tensor:
        lr = _from_picture(image)
        pooled = self.parts.feature_map(lr).mean(dim=(2, 3))
        noise = self.noise.expand(lr.shape[0], -1)  # type: ignore[operator]
        return _to_picture(self.parts.decode(lr, self.parts.prior(pooled, noise)))
