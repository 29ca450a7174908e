"""The two encoders: LPE sees the HR picture (training only), the condition encoder sees the LR picture alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import pad_to_multiple
from .config import RDSRConfig

__all__ = ["ConditionEncoder", "LatentPriorEncoder"]


def _he(layer: nn.Conv2d | nn.Linear) -> None:
    """He initialisation: with torch's default, pooled features of different pictures are all but equal, and the prior
    collapses to a constant (measured: spread over pictures 3e-4 of an rms of 0.044)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _convolutions(channels_in: int, width: int, depth: int, *, stride_from: int | None = None) -> nn.ModuleList:
    layers = nn.ModuleList(
        nn.Conv2d(
            channels_in if index == 0 else width,
            width,
            3,
            padding=1,
            stride=2 if stride_from is not None and index >= stride_from else 1,
        )
        for index in range(depth)
    )
    for layer in layers:
        _he(layer)  # type: ignore[arg-type]
    return layers


def _mlp(channels: int, latent_size: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(channels, latent_size), nn.LeakyReLU(0.1), nn.Linear(latent_size, latent_size))
    _he(layers[0])  # type: ignore[arg-type]
    _he(layers[2])  # type: ignore[arg-type]
    return layers


class LatentPriorEncoder(nn.Module):
    """LPE: HR picture (pixel-unshuffled to LR size) beside the LR picture → latent prior z.

    z is normalised to mean 0 and variance 1 over its elements, the scale of the noise that the reverse process starts on;
    left free, its scale shrinks until the decoder ignores it and the distillation loss means nothing.
    """

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.scale = config.scale
        channels = 3 * config.scale**2 + 3
        self.features = _convolutions(channels, config.lpe_width, config.lpe_depth, stride_from=1)
        self.mlp = _mlp(config.lpe_width, config.latent_size)

    def forward(self, lr: Tensor, hr: Tensor) -> Tensor:
        """N×3×H×W and N×3×sH×sW, both in [0, 1] → N×latent."""
        x = torch.cat([F.pixel_unshuffle(hr, self.scale), lr], dim=1)
        for convolution in self.features:
            x = F.relu(convolution(x))
        z = self.mlp(x.mean(dim=(2, 3)))
        return F.layer_norm(z, z.shape[-1:])


class ConditionEncoder(nn.Module):
    """LR picture → condition vector c; its fully convolutional part and the part after pooling are exported apart."""

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        self.features = _convolutions(3 * config.unshuffle**2, config.condition_width, config.condition_depth)
        self.mlp = _mlp(config.condition_width, config.latent_size)

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×C×⌈H/f⌉×⌈W/f⌉, f the unshuffle factor; sides are padded by edge replication."""
        x = F.pixel_unshuffle(pad_to_multiple(lr, self.unshuffle), self.unshuffle)
        for convolution in self.features:
            x = F.relu(convolution(x))
        return x

    def forward(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×latent. Every cell of the feature map weighs the same in the mean, padded or not."""
        return self.mlp(self.feature_map(lr).mean(dim=(2, 3)))
