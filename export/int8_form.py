"""The two int8 forms of a decoder, RDSR's own and that of any other network, as the export sees them."""

from __future__ import annotations

import copy
from typing import Protocol, cast

import onnx
from torch import Tensor, nn

from ..models.interface import LatentPriorNetwork
from ..models.quantized_convs import QuantizedConv2d, with_plain_convolutions
from ..models.rdsr.quantized import QuantizedDecoder, TracedDecoder
from .execution import Plan, check_all_int8, check_execution
from .qdq import insert_qdq, insert_qdq_around, quantizations

__all__ = ["ConvolutionsForm", "Int8Form", "RepDecoderForm"]


class Int8Form(Protocol):
    """A quantized decoder on its way into graphs."""

    def __call__(self, lr: Tensor, z: Tensor) -> Tensor:
        """As engines run it, fake-quantized: N×3×H×W in [0, 1] and N×latent → N×3×sH×sW SR, not clipped."""
        ...

    def traced(self, fused: nn.Module) -> nn.Module:
        """A copy of the fused network, for tracing: its decoder holds the quantized weights, as floats."""
        ...

    def insert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A traced graph with its quantize and dequantize nodes."""
        ...

    def check_execution(self, graph: bytes) -> None:
        """Raise `ProofError` where an engine does not run in int8 what it should."""
        ...


class RepDecoderForm:
    """RDSR's decoder: one quantization between two convolutions, ReLU fused."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        self.decoder = decoder
        self._traced = TracedDecoder(decoder).eval()

    def __call__(self, lr: Tensor, z: Tensor) -> Tensor:
        """See `Int8Form`."""
        return cast(Tensor, self.decoder(lr, z))

    def traced(self, fused: nn.Module) -> nn.Module:
        """See `Int8Form`."""
        network = copy.deepcopy(fused)
        network.decoder = self._traced
        return network

    def insert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """See `Int8Form`."""
        return insert_qdq(model, quantizations(self._traced))

    def check_execution(self, graph: bytes) -> None:
        """See `Int8Form`."""
        check_execution(graph, Plan.of(self.decoder))


class ConvolutionsForm:
    """Any network: every convolution of its decoder but the first and the last, each with input and output quantized."""

    def __init__(self, network: nn.Module) -> None:
        """`network`: as `quantize_convolutions` gives it."""
        self.network = network
        self.convolutions = [module for module in network.modules() if isinstance(module, QuantizedConv2d)]

    def __call__(self, lr: Tensor, z: Tensor) -> Tensor:
        """See `Int8Form`."""
        return cast(LatentPriorNetwork, self.network).decode(lr, z)

    def traced(self, fused: nn.Module) -> nn.Module:
        """See `Int8Form`."""
        del fused  # the quantized network is a copy of it already
        return with_plain_convolutions(self.network).eval()

    def insert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """See `Int8Form`."""
        return insert_qdq_around(model, self.convolutions)

    def check_execution(self, graph: bytes) -> None:
        """See `Int8Form`."""
        check_all_int8(graph, len(self.convolutions))
