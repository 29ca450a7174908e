"""Graphs of direct networks: the decoder, which is the whole network."""

from __future__ import annotations

from torch import Tensor, nn

from ...models.interface import DirectNetwork
from ...runtime.pipelines.direct import DirectPipeline
from .kind import GraphKind, GraphSpec, PictureDecoderGraph, example_picture

__all__ = ["DirectGraphs"]


class DirectGraphs(GraphKind[DirectNetwork]):
    """One decoder, without a condition."""

    name = DirectPipeline.kind

    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        return ()

    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        return GraphSpec(name, PictureDecoderGraph(network), {"image": example_picture()}, "upscaled")
