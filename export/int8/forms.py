"""The two int8 forms of a decoder, for chains of convolutions and for any other network. Both are an `Int8Form`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...models.int8.chain import ChainQuantizer, QuantizedChain
from ...models.int8.convolutions import QuantizedConv2d, with_plain_convolutions
from ...models.interface import Network
from ...runtime.pictures.arrays import from_graph, to_graph
from ..graphs import GraphKind
from .execution import Plan, check_all_int8, check_execution
from .qdq import insert_qdq, insert_qdq_around

__all__ = ["ChainForm", "ConvolutionsForm", "Decoder", "fake_quantized"]

Decoder = Callable[..., Tensor]
"""A decoder, called like `Network.decode`."""


class ChainForm:
    """A chain of convolutions: one quantization between two convolutions, ReLU fused."""

    def __init__(self, quantizer: ChainQuantizer, decoder: QuantizedChain) -> None:
        self.decoder = decoder
        self.traced, self._chain = quantizer.deployed(decoder)

    def __call__(self, *sample: Tensor) -> Tensor:
        return cast(Tensor, self.decoder(*sample))

    def insert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return insert_qdq(model, self._chain)

    def check_execution(self, graph: bytes) -> None:
        check_execution(graph, Plan.of(self.decoder))


class ConvolutionsForm:
    """Any network: input and output of the convolutions of its decoder that may be (`Network.int8_convolutions`)."""

    def __init__(self, network: Network) -> None:
        """`network`: from `quantize_convolutions`."""
        self.network = network
        self.convolutions = [module for module in network.modules() if isinstance(module, QuantizedConv2d)]
        self.traced: nn.Module = with_plain_convolutions(network).eval()

    def __call__(self, *sample: Tensor) -> Tensor:
        return self.network.decode(*sample)

    def insert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return insert_qdq_around(model, self.convolutions)

    def check_execution(self, graph: bytes) -> None:
        check_all_int8(graph, len(self.convolutions))


def fake_quantized(kind: GraphKind[Any], decode: Decoder, lr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H×W×3 uint8 → sH×sW×3 uint8: the float network up to its decoder, then `decode`."""
    with torch.no_grad():
        tensor = torch.from_numpy(to_graph(lr))
        return np.asarray(from_graph(decode(tensor, *kind.condition(tensor)).numpy(), lr))
