"""The two encoders: LPE sees the HR picture (training only), the condition encoder sees the LR picture alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..padding import pad_to_multiple
from .config import RDSRConfig

__all__ = ["ConditionEncoder", "LatentPriorEncoder", "Standardise", "StatisticsEncoder", "build_condition_encoder"]

_TOLD = 64
"""Features that the latent prior encoder makes of the degradation's parameters."""


def _he(layer: nn.Conv2d | nn.Linear) -> None:
    """He initialisation: with torch's default, pooled features of different pictures are all but equal, and the prior
    collapses to a constant (measured: spread over pictures 3e-4 of an rms of 0.044)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _convolutions(
    channels_in: int, width: int, depth: int, *, stride_from: int | None = None, first_kernel: int = 3
) -> nn.ModuleList:
    def layer(index: int) -> nn.Conv2d:
        kernel = first_kernel if index == 0 else 3
        stride = 2 if stride_from is not None and index >= stride_from else 1
        return nn.Conv2d(channels_in if index == 0 else width, width, kernel, padding=kernel // 2, stride=stride)

    layers = nn.ModuleList(layer(index) for index in range(depth))
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

    Where the degradation varies, it is told its parameters as well: it is for training only, so it may know them. On
    degraded pictures they are worth 0.41 dB, what a decoder finds out end to end 0.03 (1,200 steps of `tiny`).
    Every element of z is standardised over pictures, to the scale of the noise that the reverse process starts on.
    """

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.scale = config.scale
        channels = 3 * config.scale**2 + 3
        self.features = _convolutions(channels, config.lpe_width, config.lpe_depth, stride_from=1)
        self.degradation = nn.Linear(config.degradation_size, _TOLD) if config.degradation_size else None
        if self.degradation is not None:
            _he(self.degradation)
        self.mlp = _mlp(config.lpe_width + (_TOLD if self.degradation is not None else 0), config.latent_size)
        self.standardise = Standardise(config.latent_size)

    def forward(self, lr: Tensor, hr: Tensor, degradation: Tensor | None = None) -> Tensor:
        """N×3×H×W and N×3×sH×sW, both in [0, 1], and N×`degradation_size` where that is not 0 → N×latent."""
        x = torch.cat([F.pixel_unshuffle(hr, self.scale), lr], dim=1)
        for convolution in self.features:
            x = F.relu(convolution(x))
        pooled = x.mean(dim=(2, 3))
        if self.degradation is not None:
            assert degradation is not None, "this encoder is told the degradation's parameters"
            told = F.leaky_relu(self.degradation(degradation), 0.1)
            pooled = torch.cat([told.type_as(pooled), pooled], dim=1)
        return self.standardise(self.mlp(pooled))


class _PooledEncoder(nn.Module):
    """A fully convolutional part, and a part after the mean over its cells; they are exported apart."""

    def feature_map(self, lr: Tensor) -> Tensor:
        raise NotImplementedError

    def vector(self, pooled: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×latent. Every cell of the feature map weighs the same in the mean, padded or not."""
        return self.vector(self.feature_map(lr).mean(dim=(2, 3)))


class ConditionEncoder(_PooledEncoder):
    """LR picture → condition vector c, of the mean of each feature."""

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

    def vector(self, pooled: Tensor) -> Tensor:
        """N×C, the feature map's means → N×latent."""
        return self.mlp(pooled)


class StatisticsEncoder(_PooledEncoder):
    """LR picture → condition vector c of what a degradation leaves behind: how strong and how structured the detail is.

    Features of the high-pass picture, their mean and standard deviation over the picture, logarithms of both, a layer norm,
    an MLP. The mean of ReLU features alone, of the picture itself, learned nothing of blur, noise and JPEG in 1,000 steps.

    The feature map holds the features and their squares, so that sums over the picture's cells are all that is needed.
    """

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        width = config.condition_width
        self.unshuffle = config.unshuffle
        self.features = _convolutions(3 * config.unshuffle**2, width, config.condition_depth, first_kernel=5)
        self.norm = nn.LayerNorm(2 * width)
        self.mlp = _mlp(2 * width, config.latent_size)

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×2C×⌈H/f⌉×⌈W/f⌉, features and their squares; sides are padded by edge replication."""
        around = F.avg_pool2d(F.pad(lr, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = F.pixel_unshuffle(pad_to_multiple((lr - around) * _HIGH_PASS_GAIN, self.unshuffle), self.unshuffle)
        for convolution in self.features:
            x = F.relu(convolution(x))
        x = x.float()  # squares in bf16 would lose the small deviations of smooth pictures
        return torch.cat([x, x * x], dim=1)

    def vector(self, pooled: Tensor) -> Tensor:
        """N×2C, the feature map's means → N×latent."""
        mean, square = pooled.chunk(2, dim=1)
        variance = (square - mean * mean).clamp(min=0)
        logarithms = torch.cat([(mean + _SMALLEST).log(), 0.5 * (variance + _SMALLEST**2).log()], dim=1)
        return self.mlp(self.norm(logarithms))


_HIGH_PASS_GAIN = 20.0
"""Brings the detail of a photo to the size of 1."""
_SMALLEST = 0.01
"""Added before a logarithm: an eighth of a grey level of detail, and far above what rounding leaves of a flat picture."""


def build_condition_encoder(config: RDSRConfig) -> ConditionEncoder | StatisticsEncoder:
    """The condition encoder that the config names."""
    return StatisticsEncoder(config) if config.condition_encoder == "statistics" else ConditionEncoder(config)
