"""The two encoders: the LPE sees the HR picture (only in training), the condition encoder sees only the LR picture."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..padding import pad_to_multiple
from .config import RDSRConfig

__all__ = ["ConditionEncoder", "LatentPriorEncoder", "Standardise", "StatisticsEncoder"]

_DEGRADATION_FEATURES = 64
"""Features that the latent prior encoder computes from the degradation's parameters."""
_HIGH_PASS_GAIN = 20.0
"""Factor that brings the detail of a photo to about 1."""
_SMALLEST = 0.01
"""Added before a logarithm: an eighth of a grey level of detail, far above the rounding errors of a flat picture."""


def _he(layer: nn.Conv2d | nn.Linear) -> None:
    """He initialisation. With torch's default, pooled features of all pictures are nearly equal and the prior collapses to a
    constant (measured: spread over pictures 3e-4 at an rms of 0.044)."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def _convolutions(inputs: int, width: int, depth: int, *, first_kernel: int = 3, stride: int = 1) -> nn.ModuleList:
    """`depth` convolutions, 3×3 and with this stride after the first."""
    layers = [nn.Conv2d(inputs, width, first_kernel, padding=first_kernel // 2)]
    layers += [nn.Conv2d(width, width, 3, padding=1, stride=stride) for _ in range(depth - 1)]
    for layer in layers:
        _he(layer)
    return nn.ModuleList(layers)


def _features(convolutions: Iterable[nn.Module], x: Tensor) -> Tensor:
    for convolution in convolutions:
        x = F.relu(convolution(x))
    return x


def _mlp(channels: int, latent_size: int) -> nn.Sequential:
    first, second = nn.Linear(channels, latent_size), nn.Linear(latent_size, latent_size)
    _he(first)
    _he(second)
    return nn.Sequential(first, nn.LeakyReLU(0.1), second)


class Standardise(nn.Module):
    """Bring each element to mean 0 and variance 1 over pictures, by running statistics (batch renormalization, Ioffe 2017).

    Otherwise the prior collapses: in training its spread over pictures fell to 2e-3 of its size, with and without a layer
    norm. The decoder then ignored it, and the distillation loss meant nothing. This layer exists only in training.
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
        """N×size → N×size. While training N must exceed 1, and the statistics follow the batches."""
        z = z.float()
        if not self.training:
            return (z - self.mean) / (self.variance + 1e-6).sqrt()
        mean, variance = z.mean(dim=0), z.var(dim=0, unbiased=False)
        with torch.no_grad():
            rate = (1 / (self.batches + 1)).clamp(min=self.momentum)
            finite = torch.isfinite(mean).all() & torch.isfinite(variance).all()  # the trainer skips such a step
            self.mean.copy_(torch.where(finite, self.mean.lerp(mean, rate), self.mean))
            self.variance.copy_(torch.where(finite, self.variance.lerp(variance, rate), self.variance))
            self.batches.add_(finite)
            scale = ((variance + 1e-6) / (self.variance + 1e-6)).sqrt()
            shift = (mean - self.mean) / (self.variance + 1e-6).sqrt()
        # The value is that of the running statistics, the gradient that of the batch's statistics.
        return (z - mean) / (variance + 1e-6).sqrt() * scale + shift


class LatentPriorEncoder(nn.Module):
    """LPE: HR picture (pixel-unshuffled to LR size) beside the LR picture → latent prior z.

    If the degradation varies, the LPE gets its parameters too; it may know them because only training uses it. On degraded
    pictures they are worth 0.41 dB; a prior found end to end is worth 0.03 (1,200 steps of `tiny`). Every element of z is
    standardised over pictures, to the scale of the noise that the reverse process starts from.
    """

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.features = _convolutions(3 * config.scale**2 + 3, config.lpe_width, config.lpe_depth, stride=2)
        width, self.degradation = config.lpe_width, None
        if config.degradation_size:
            self.degradation = nn.Linear(config.degradation_size, _DEGRADATION_FEATURES)
            _he(self.degradation)
            width += _DEGRADATION_FEATURES
        self.mlp = _mlp(width, config.latent_size)
        self.standardise = Standardise(config.latent_size)

    def forward(self, lr: Tensor, hr: Tensor, degradation: Tensor | None = None) -> Tensor:
        """N×3×H×W and N×3×sH×sW, both in [0, 1], and N×`degradation_size` unless that is 0 → N×latent."""
        x = torch.cat([F.pixel_unshuffle(hr, self.scale), lr], dim=1)
        pooled = _features(self.features, x).mean(dim=(2, 3))
        if self.degradation is not None:
            assert degradation is not None, "this encoder takes the degradation's parameters"
            parameters = F.leaky_relu(self.degradation(degradation), 0.1)
            pooled = torch.cat([parameters.type_as(pooled), pooled], dim=1)
        return self.standardise(self.mlp(pooled))


class _PooledEncoder(nn.Module):
    """A convolutional part, and a part after the mean over its cells. They are exported as two graphs."""

    def __init__(self, config: RDSRConfig, *, first_kernel: int = 3) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        self.fused = False
        inputs = 3 * config.unshuffle**2
        self.features = _convolutions(inputs, config.condition_width, config.condition_depth, first_kernel=first_kernel)

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×C×⌈H/f⌉×⌈W/f⌉, f the unshuffle factor; sides are padded by edge replication."""
        padded, (first, *others) = pad_to_multiple(lr, self.unshuffle), self.features
        if not self.fused:
            return _features(self.features, F.pixel_unshuffle(padded, self.unshuffle))
        return _features(others, F.relu(self._first_on_pixels(padded, cast(nn.Conv2d, first))))

    def _first_on_pixels(self, lr: Tensor, conv: nn.Conv2d) -> Tensor:
        """The first convolution without an unshuffle before it: a larger kernel, in steps of f pixels, of the same weights.

        Graphs hold the larger kernel, whose values are the same; ONNX Runtime takes 1.20 instead of 1.44 ms for the encoder
        of `small` at 128×128 (two threads of a Zen 4).
        """
        factor, (outputs, _, kernel, _) = self.unshuffle, conv.weight.shape
        cells = conv.weight.view(outputs, 3, factor, factor, kernel, kernel)
        wide = cells.permute(0, 1, 4, 2, 5, 3).reshape(outputs, 3, kernel * factor, kernel * factor)
        return F.conv2d(lr, wide, conv.bias, stride=factor, padding=kernel // 2 * factor)

    def fuse(self) -> Self:
        """A copy that computes without an unshuffle. Its tensors are the same."""
        fused = copy.deepcopy(self)
        fused.fused = True
        return fused

    def vector(self, pooled: Tensor) -> Tensor:
        """Means of the feature map (N×C) → condition vector (N×latent)."""
        raise NotImplementedError

    def forward(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×latent. Every cell of the feature map weighs the same in the mean, padded or not."""
        return self.vector(self.feature_map(lr).mean(dim=(2, 3)))


class ConditionEncoder(_PooledEncoder):
    """LR picture → condition vector c, computed from the mean of each feature."""

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__(config)
        self.mlp = _mlp(config.condition_width, config.latent_size)

    def vector(self, pooled: Tensor) -> Tensor:
        return self.mlp(pooled)


class StatisticsEncoder(_PooledEncoder):
    """LR picture → condition vector c, computed from the traces of a degradation: strength and structure of the detail.

    Steps: features of the high-pass picture, their mean and standard deviation over the picture, logarithms of both, a layer
    norm, an MLP. With only the mean of ReLU features of the picture itself, 1,000 steps learned nothing of blur, noise and
    JPEG. The feature map holds the features and their squares, since their sums over the cells are enough for both.
    """

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__(config, first_kernel=5)
        self.norm = nn.LayerNorm(2 * config.condition_width)
        self.mlp = _mlp(2 * config.condition_width, config.latent_size)

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W in [0, 1] → N×2C×⌈H/f⌉×⌈W/f⌉, features and their squares; sides are padded by edge replication."""
        # The mean of 3×3 pixels, but not by average pooling: OpenVINO's int8 graphs pool the picture's bytes, and round.
        padded = F.pad(lr, (1, 1, 1, 1), mode="replicate")
        across = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
        around = (across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]) / 9
        # Float32: squares in bf16 would lose the small deviations of smooth pictures.
        x = super().feature_map((lr - around) * _HIGH_PASS_GAIN).float()
        return torch.cat([x, x * x], dim=1)

    def vector(self, pooled: Tensor) -> Tensor:
        mean, square = pooled.chunk(2, dim=1)
        variance = (square - mean * mean).clamp(min=0)
        logarithms = torch.cat([(mean + _SMALLEST).log(), 0.5 * (variance + _SMALLEST**2).log()], dim=1)
        return self.mlp(self.norm(logarithms))
