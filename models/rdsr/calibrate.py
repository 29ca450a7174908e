"""Post-training quantization of a decoder: scales from what activations do on real pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import LatentPriorNetwork
from ..quantization import ACTIVATION_LEVELS, weight_scales
from .decoder import RepDecoder
from .network import RDSR
from .quantized import QuantizedDecoder, merged_skip

__all__ = ["Ranges", "Sample", "calibrate", "hard_edges", "sample_of", "with_hard_edges"]

Sample = tuple[Tensor, Tensor]
"""1×3×H×W LR in [0, 1] and its 1×latent prior."""
_POSITIONS = 40_000
"""Pixels, over all samples, that ranges are taken from; the largest value is taken over all."""
_LEAST = 1e-6
"""Scales are never smaller: an activation that is always zero has a range, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges:
    """How ranges are chosen, and which convolutions are treated otherwise."""

    percentile: float = 1.0
    """Share of an activation's values that its range covers; 1 for all of them."""
    equalization: float = 0.0
    """From 0 (channels as trained) to 1 (every channel of an activation brought to the same largest value, by factors that
    move through the ReLU into the next convolution)."""
    identities: tuple[int, ...] = ()
    """Convolutions whose identity part stands outside."""
    floats: tuple[int, ...] = ()
    """Convolutions that stay float."""


@torch.no_grad()
def sample_of(network: LatentPriorNetwork, picture: NDArray[np.uint8], noise: Tensor) -> Sample:
    """H×W×3 uint8 LR and the 1×latent noise → LR as a tensor and the latent prior that the reverse process gives."""
    lr = torch.tensor(picture).permute(2, 0, 1)[None].float().div(255)
    return lr, network.latent_prior(lr, noise)


def hard_edges(lr: Tensor) -> Tensor:
    """N×3×H×W in [0, 1] → the same pictures in black and white: each pixel above its picture's median or not.

    Text and drawings have edges that photographs lack, and activations to match: ranges taken from photographs alone clip
    them (squared error of `small` on such pictures 86 grey levels², with them 5.5).
    """
    return (lr > lr.flatten(1).median(dim=1).values[:, None, None, None]).to(lr.dtype)


@torch.no_grad()
def with_hard_edges(network: LatentPriorNetwork, samples: Sequence[Sample], noise: Tensor) -> list[Sample]:
    """The samples, and each of them in black and white."""
    hard = [hard_edges(lr) for lr, _ in samples]
    return [*samples, *((lr, network.latent_prior(lr, noise)) for lr in hard)]


@torch.no_grad()
def calibrate(network: RDSR, samples: Sequence[Sample], ranges: Ranges) -> QuantizedDecoder:
    """Quantize the fused decoder of `network`, with ranges from what it does on the samples."""
    decoder = _as_fused(network, ranges.floats, ranges.identities)
    if ranges.equalization:
        _equalize(decoder, samples, ranges.equalization)
    _set_scales(decoder, samples, ranges.percentile)
    return decoder.eval()


def _as_fused(network: RDSR, floats: Collection[int], identities: Collection[int]) -> QuantizedDecoder:
    """The decoder with fused float weights, no scale set yet."""
    fused: RepDecoder = network.decoder.fuse()
    decoder = QuantizedDecoder(network.config, floats=floats, identities=identities)
    decoder.head.load_state_dict(fused.head.state_dict())
    decoder.modulation.load_state_dict(fused.modulation.state_dict())
    decoder.skip.load_state_dict(merged_skip(fused).state_dict())
    for conv, source in zip(decoder.layers(), [*fused.body, fused.tail], strict=True):
        conv.weight.copy_(source.weight)
        conv.bias.copy_(source.bias)
        if conv.identity is not None:
            conv.identity.copy_(torch.diagonal(conv.weight[:, :, 1, 1]))
            torch.diagonal(conv.weight[:, :, 1, 1]).zero_()
    return decoder


def _rounded(values: Tensor) -> Tensor:
    """To four digits: the last bits of an activation, which another thread count may change, hardly ever reach a graph."""
    return torch.tensor([float(f"{value:.4g}") for value in values.flatten().tolist()]).reshape(values.shape)


class _Observer:
    """Values of every tensor that is quantized, over the samples: at spread positions, and the extremes of all."""

    def __init__(self, decoder: QuantizedDecoder, samples: Sequence[Sample]) -> None:
        self.values: dict[tuple[int, str], list[Tensor]] = {}
        self.highest: dict[tuple[int, str], Tensor] = {}
        self.lowest: dict[tuple[int, str], Tensor] = {}
        pixels = sum(lr.shape[2] * lr.shape[3] for lr, _ in samples)
        self.stride = max(1, pixels // _POSITIONS)
        wanted = {(i, "output") for i, conv in enumerate(decoder.layers()) if conv.output_low is not None}
        self.wanted = wanted | {(i, "input") for i in range(len(decoder.convs))}
        for lr, z in samples:
            decoder(lr, z, only=(), watch=self._see)

    def _see(self, index: int, where: str, x: Tensor) -> None:
        key = index, where
        if key not in self.wanted:
            return
        flat = x.flatten(2)[0]  # C×pixels
        high, low = flat.amax(dim=1), flat.amin(dim=1)
        self.highest[key] = torch.maximum(self.highest[key], high) if key in self.highest else high
        self.lowest[key] = torch.minimum(self.lowest[key], low) if key in self.lowest else low
        self.values.setdefault(key, []).append(flat[:, :: self.stride].clone())

    def high(self, index: int, where: str, share: float, *, channels: bool) -> Tensor:
        """The value that `share` of all values do not exceed, of the whole tensor or of every channel."""
        if share < 1:
            return self._at(index, where, share, channels)
        highest = self.highest[index, where]
        return highest if channels else highest.amax()

    def low(self, index: int, where: str, share: float) -> Tensor:
        """The value that `share` of a channel's values reach."""
        return self.lowest[index, where] if share == 1 else self._at(index, where, 1 - share, True)

    def _at(self, index: int, where: str, share: float, channels: bool) -> Tensor:
        values = torch.cat(self.values[index, where], dim=1).numpy()
        return torch.from_numpy(np.asarray(np.quantile(values, share, axis=1 if channels else None), dtype=np.float32))


def _equalize(decoder: QuantizedDecoder, samples: Sequence[Sample], strength: float) -> None:
    """Scale the channels of every activation towards the same largest value; what the decoder computes stays as it is."""
    seen = _Observer(decoder, samples)
    layers = decoder.layers()
    for index, conv in enumerate(layers):
        largest = seen.high(index, "input", 0.999, channels=True)
        largest = largest.clamp(min=max(_LEAST, 0.01 * float(largest.max())))
        factor = _rounded((largest.max() / largest) ** strength)
        conv.weight.div_(factor[None, :, None, None])
        if conv.identity is not None:
            conv.identity.div_(factor)
        before = decoder.head if index == 0 else layers[index - 1]
        assert isinstance(before.bias, Tensor)
        before.weight.mul_(factor[:, None, None, None])
        before.bias.mul_(factor)
        if index and (identity := layers[index - 1].identity) is not None:
            identity.mul_(factor)
        if index and (modulation := decoder.modulation_of(index - 1)) is not None:
            modulation.weight[len(factor) :].mul_(factor[:, None])
            modulation.bias[len(factor) :].mul_(factor)


def _set_scales(decoder: QuantizedDecoder, samples: Sequence[Sample], share: float) -> None:
    seen = _Observer(decoder, samples)
    for index, conv in enumerate(decoder.layers()):
        if conv.log_weight_scale is None or conv.log_input_scale is None:
            continue
        conv.log_weight_scale.copy_(weight_scales(conv.weight).clamp(min=_LEAST).log())
        high = _rounded(seen.high(index, "input", share, channels=False))
        conv.log_input_scale.copy_((high / ACTIVATION_LEVELS).clamp(min=_LEAST).log())
        if conv.output_low is not None and conv.log_output_scale is not None:
            low, high = seen.low(index, "output", share), seen.high(index, "output", share, channels=True)
            low = _rounded(low)
            conv.output_low.copy_(low)
            conv.log_output_scale.copy_(_rounded(((high - low) / ACTIVATION_LEVELS).clamp(min=_LEAST)).log())
