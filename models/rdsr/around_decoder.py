"""What every network around a `RepDecoder` has in common, whatever its process kind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from ..int8.chain import ChainQuantizer, QuantizedChain, Ranges, TracedChain
from ..int8.samples import Sample
from ..interface import FusionErrors, Network, PlainBody
from .calibrate import calibrate
from .config import DecoderConfig
from .decoder import RepDecoder
from .quantized import QuantizedDecoder, TracedDecoder

__all__ = ["RepDecoderNetwork", "RepDecoderQuantizer"]


class RepDecoderNetwork(Network):
    """A network whose pixels a `RepDecoder` draws: plain after fusion, exact in tiles, with an int8 form of its own."""

    config: DecoderConfig
    """Sizes of the network."""
    decoder: RepDecoder
    quantized: QuantizedDecoder | None
    """The decoder that quantization-aware training left, beside the float decoder it came from; None before."""

    @property
    def receptive_radius(self) -> int:
        """LR pixels on each side that one output pixel of the decoder depends on."""
        return self.decoder.receptive_radius

    @property
    def peak_channels(self) -> int:
        """Largest number of values per LR pixel that the decoder holds at once."""
        return self.decoder.peak_channels

    @property
    def plain_body(self) -> PlainBody:
        """What the fused decoder's graph must look like."""
        return PlainBody(self.config.depth, self.config.modulation_depths)

    @property
    def int8_form(self) -> RepDecoderQuantizer:
        """The decoder's own way to int8."""
        return RepDecoderQuantizer(self)

    def decode(self, lr: Tensor, z: Tensor | None = None) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent z (None without modulation) → N×3×sH×sW SR, not clipped."""
        return self.decoder(lr, z)

    def fuse(self) -> Self:
        """The float deployment form: branches folded, the quantized decoder dropped. The original is left as it is."""
        fused = copy.deepcopy(self)
        fused.config = dataclasses.replace(self.config, branches=())
        fused.decoder = self.decoder.fuse()
        fused.quantized = None
        return fused

    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        """Compare the fused decoder with the multi-branch one."""
        return self.decoder.fusion_errors(lr, *condition)

    @torch.no_grad()
    def vary_initial_weights(self) -> None:
        """Modulation starts at zero."""
        for parameter in self.decoder.modulation.parameters():
            parameter.normal_(std=0.01)


class RepDecoderQuantizer(ChainQuantizer):
    """How a network around a `RepDecoder` comes to int8."""

    def __init__(self, network: RepDecoderNetwork) -> None:
        self.network = network

    @property
    def trained(self) -> QuantizedDecoder | None:
        """See `ChainQuantizer.trained`."""
        return self.network.quantized

    def calibrate(self, samples: Sequence[Sample], ranges: Ranges) -> QuantizedDecoder:
        """See `ChainQuantizer.calibrate`."""
        return calibrate(self.network.decoder, self.network.config, samples, ranges)

    def deployed(self, decoder: QuantizedChain) -> tuple[nn.Module, TracedChain]:
        """See `ChainQuantizer.deployed`."""
        fused, traced = self.network.fuse(), TracedDecoder(cast(QuantizedDecoder, decoder)).eval()
        fused.decoder = traced  # type: ignore[assignment]  # it is called like the decoder
        return fused, traced
