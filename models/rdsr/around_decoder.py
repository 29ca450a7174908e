"""The common part of networks around a `RepDecoder`, of any process kind."""

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
from ..shapes import Shapes
from .calibrate import calibrate
from .config import DecoderConfig
from .decoder import RepDecoder
from .quantized import QuantizedDecoder, TracedDecoder

__all__ = ["RepDecoderNetwork", "RepDecoderQuantizer"]


class RepDecoderNetwork(Network):
    """A network whose decoder is a `RepDecoder`: plain after fusion, exact in tiles, with its own int8 form."""

    config: DecoderConfig
    decoder: RepDecoder
    quantized: QuantizedDecoder | None
    """Result of quantization-aware training, beside the float decoder it started from; None before."""

    @property
    def receptive_radius(self) -> int:
        return self.decoder.receptive_radius

    @property
    def peak_channels(self) -> int:
        return self.decoder.peak_channels

    @property
    def plain_body(self) -> PlainBody:
        return PlainBody(self.config.depth, self.config.modulation_depths)

    @property
    def int8_form(self) -> RepDecoderQuantizer:
        return RepDecoderQuantizer(self)

    def decode(self, lr: Tensor, z: Tensor | None = None) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent z (None without modulation) → N×3×sH×sW SR, not clipped."""
        return self.decoder(lr, z)

    def add_parts(self, shapes: Shapes) -> None:
        self.quantized = QuantizedDecoder.if_present(self.config, shapes)

    def fuse(self) -> Self:
        fused = copy.deepcopy(self)
        fused.config = dataclasses.replace(self.config, branches=())
        fused.decoder = self.decoder.fuse()
        fused.quantized = None
        return fused

    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        return self.decoder.fusion_errors(lr, *condition)

    @torch.no_grad()
    def vary_initial_weights(self) -> None:
        for parameter in self.decoder.modulation.parameters():
            parameter.normal_(std=0.01)


class RepDecoderQuantizer(ChainQuantizer):
    """The way to int8 of a network around a `RepDecoder`."""

    def __init__(self, network: RepDecoderNetwork) -> None:
        self.network = network

    @property
    def trained(self) -> QuantizedDecoder | None:
        return self.network.quantized

    def calibrate(self, samples: Sequence[Sample], ranges: Ranges) -> QuantizedDecoder:
        return calibrate(self.network.decoder, self.network.config, samples, ranges)

    def deployed(self, decoder: QuantizedChain) -> tuple[nn.Module, TracedChain]:
        fused, traced = self.network.fuse(), TracedDecoder(cast(QuantizedDecoder, decoder)).eval()
        fused.decoder = traced  # type: ignore[assignment]  # it takes the same arguments
        return fused, traced
