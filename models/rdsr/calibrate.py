"""Post-training quantization of a decoder: scales from the ranges of its activations on real pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..int8.chain import Ranges
from ..int8.levels import ACTIVATION_LEVELS, weight_scales
from ..int8.samples import Sample
from .config import DecoderConfig
from .decoder import RepDecoder
from .quantized import QuantizedDecoder, merged_skip

__all__ = ["calibrate"]

_POSITIONS = 40_000
"""Pixels, over all samples, that percentiles are taken from. Largest and smallest values are taken from all pixels."""
_MARGIN = 0.05
"""Share of its range by which an output reaches below what the samples need: other pictures have other priors."""
_LEAST = 1e-6
"""Smallest scale: an activation that is always zero needs one, too."""


@torch.no_grad()
def calibrate(decoder: RepDecoder, config: DecoderConfig, samples: Sequence[Sample], ranges: Ranges) -> QuantizedDecoder:
    """Quantize the fused form of `decoder`, with the ranges of its activations on the samples."""
    quantized = _as_fused(decoder.fuse(), config, ranges)
    if ranges.equalization:
        _equalize(quantized, samples, ranges.equalization)
    _set_scales(quantized, samples, ranges.percentile)
    return quantized.eval()


def _as_fused(fused: RepDecoder, config: DecoderConfig, ranges: Ranges) -> QuantizedDecoder:
    """The decoder with fused float weights. No scale is set yet."""
    decoder = QuantizedDecoder(config, floats=ranges.floats, identities=ranges.identities)
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
    """Round to four digits, so that the last bits, which depend on the thread count, hardly ever reach a graph."""
    return torch.tensor([float(f"{value:.4g}") for value in values.flatten().tolist()]).reshape(values.shape)


class _Observer:
    """Values of every quantized tensor over the samples: some, evenly spread, and the extremes of all."""

    def __init__(self, decoder: QuantizedDecoder, samples: Sequence[Sample]) -> None:
        self.values: dict[tuple[int, str], list[Tensor]] = {}
        self.highest: dict[tuple[int, str], Tensor] = {}
        self.lowest: dict[tuple[int, str], Tensor] = {}
        pixels = sum(lr.shape[2] * lr.shape[3] for lr, *_ in samples)
        self.stride = max(1, pixels // _POSITIONS)
        wanted = {(i, "output") for i, conv in enumerate(decoder.layers()) if conv.output_low is not None}
        self.wanted = wanted | {(i, "input") for i in range(len(decoder.convs))}
        for sample in samples:
            decoder(*sample, only=(), watch=self._see)

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
        """The value that `share` of all values do not exceed, for the whole tensor or for each channel."""
        highest = self.highest[index, where] if share == 1 else self._at(index, where, share, channels)
        return highest if channels else highest.amax()

    def low(self, index: int, where: str, share: float) -> Tensor:
        """The value that `share` of a channel's values reach, for each channel."""
        return self.lowest[index, where] if share == 1 else self._at(index, where, 1 - share, True)

    def _at(self, index: int, where: str, share: float, channels: bool) -> Tensor:
        values = torch.cat(self.values[index, where], dim=1).numpy()
        return torch.from_numpy(np.asarray(np.quantile(values, share, axis=1 if channels else None), dtype=np.float32))


def _equalize(decoder: QuantizedDecoder, samples: Sequence[Sample], strength: float) -> None:
    """Scale the channels of every activation towards the same largest value. The decoder computes the same as before."""
    seen = _Observer(decoder, samples)
    for index in range(len(decoder.layers())):
        largest = seen.high(index, "input", 0.999, channels=True)
        largest = largest.clamp(min=max(_LEAST, 0.01 * float(largest.max())))
        decoder.scale_channels(index, _rounded((largest.max() / largest) ** strength))


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
            low = _rounded(torch.maximum(low, _lowest_that_counts(decoder, index, samples) - _MARGIN * (high - low)))
            conv.output_low.copy_(low)
            conv.log_output_scale.copy_(_rounded(((high - low) / ACTIVATION_LEVELS).clamp(min=_LEAST)).log())


def _lowest_that_counts(decoder: QuantizedDecoder, index: int, samples: Sequence[Sample]) -> Tensor:
    """For each channel that convolution `index` makes, the value below which the ReLU after the modulation gives 0, with the
    latent prior of every sample; −inf if there is none. Half of a modulated output's range lies below, for nothing."""
    conv, modulation = decoder.layers()[index], decoder.modulation_of(index)
    if modulation is None or conv.identity is not None:
        return torch.full_like(conv.bias, -torch.inf)
    z, zero = torch.cat([z for _, z in samples]), torch.zeros(1, len(conv.bias), 1, 1)
    shift = modulation(zero, z).flatten(1)
    scale = modulation(zero + 1, z).flatten(1) - shift
    return torch.where(scale > 0, -shift / scale, -torch.inf).amin(dim=0)
