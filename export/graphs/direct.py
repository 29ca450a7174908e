"""Graphs of direct networks: the decoder, which is the whole network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...models.interface import DirectNetwork
from ...runtime.pipelines.direct import DirectPipeline
from .kind import (
    LARGE_PICTURE,
    LARGE_PLANE,
    PICTURE,
    PLANE,
    GraphKind,
    GraphSpec,
    example_picture,
    example_plane,
    from_picture,
    to_picture,
)

__all__ = ["DirectGraphs"]


class DecoderGraph(nn.Module):
    """`lr` N×3×H×W float32 in [0, 1] → `sr` N×3×sH×sW float32, not clipped."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.decode(lr)


class PictureGraph(DecoderGraph):
    """`image` N×H×W×3 uint8 → `upscaled` N×sH×sW×3 uint8."""

    def forward(self, image: Tensor) -> Tensor:
        return to_picture(super().forward(from_picture(image)))


class DirectGraphs(GraphKind[DirectNetwork]):
    """One decoder."""

    name = DirectPipeline.kind

    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        """Nothing."""
        del lr
        return ()

    def parts(self, network: DirectNetwork) -> list[GraphSpec]:
        """See `GraphKind.parts`."""
        axes = {"lr": PLANE, "sr": LARGE_PLANE}
        return [GraphSpec("decoder.onnx", DecoderGraph(network), {"lr": example_plane()}, "sr", axes)]

    def int8_decoder(self, network: nn.Module) -> GraphSpec:
        """See `GraphKind.int8_decoder`."""
        return self.whole("decoder.int8.onnx", network)

    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        """See `GraphKind.whole`."""
        axes = {"image": PICTURE, "upscaled": LARGE_PICTURE}
        return GraphSpec(name, PictureGraph(network), {"image": example_picture()}, "upscaled", axes)
