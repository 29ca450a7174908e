"""The two encoders: LPE sees the HR picture (training only), the condition encoder sees the LR picture alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..padding import pad_to_multiple
from .config import RDSRConfig

__all__ = ["ConditionEncoder", "LatentPriorEncoder", "Standardise"]


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


class Standardise(nn.Module):
    """Each element to mean 0 and variance 1 over pictures, by running statistics (batch renormalization, Ioffe 2017).

    Left free, the prior collapses: its spread over pictures fell to 2e-3 of its size in training, with or without a
    layer norm, the decoder ignored it and the distillation loss meant nothing. Training only, so nothing is deployed.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("batches", torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        """N×size → N×size; N > 1 while training, when the statistics follow the batches."""
        z = z.float()
        if not self.training:
            return (z - self.mean) / (self.variance + 1e-6).sqrt()
        mean, variance = z.mean(dim=0), z.var(dim=0, unbiased=False)
        with torch.no_grad():
            rate = (1 / (self.batches + 1)).clamp(min=self.momentum)
            finite = torch.isfinite(mean).all() & torch.isfinite(variance).all()  # a step that is left out leaves no trace
            self.mean.copy_(torch.where(finite, self.mean.lerp(mean, rate), self.mean))
            self.variance.copy_(torch.where(finite, self.variance.lerp(variance, rate), self.variance))
            self.batches.add_(finite)
            scale = ((variance + 1e-6) / (self.variance + 1e-6)).sqrt()
            shift = (mean - self.mean) / (self.variance + 1e-6).sqrt()
        # In value this is the running statistics' result; its gradient is that of the batch's own.
        return (z - mean) / (variance + 1e-6).sqrt() * scale + shift


class LatentPriorEncoder(nn.Module):
    """LPE: HR picture (pixel-unshuffled to LR size) beside the LR picture → latent prior z.

    Every element of z is standardised over pictures, to the scale of the noise that the reverse process starts on.
    """

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.scale = config.scale
        channels = 3 * config.scale**2 + 3
        self.features = _convolutions(channels, config.lpe_width, config.lpe_depth, stride_from=1)
        self.mlp = _mlp(config.lpe_width, config.latent_size)
        self.standardise = Standardise(config.latent_size)

    def forward(self, lr: Tensor, hr: Tensor) -> Tensor:
        """N×3×H×W and N×3×sH×sW, both in [0, 1] → N×latent."""
        x = torch.cat([F.pixel_unshuffle(hr, self.scale), lr], dim=1)
        for convolution in self.features:
            x = F.relu(convolution(x))
        return self.standardise(self.mlp(x.mean(dim=(2, 3))))


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
