"""Graphs of latent-prior networks: encoder, reverse process, decoder, and the whole network with its noise stored inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...models.interface import LatentPriorNetwork
from ...runtime.pipelines.latent_prior import LatentPriorPipeline, initial_noise
from ..errors import ExportError
from .kind import GraphKind, GraphSpec, NetworkGraph, example_picture, example_plane, from_picture, to_picture

__all__ = ["LatentPriorGraphs"]


class EncoderGraph(NetworkGraph):
    """`lr` N×3×H×W float32 in [0, 1] → `features` N×C×⌈H/f⌉×⌈W/f⌉, f being `size_multiple`."""

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.feature_map(lr)


class ReverseGraph(NetworkGraph):
    """`pooled` N×C and `noise` N×latent → `z` N×latent; T steps unrolled, the schedule folded into constants."""

    def forward(self, pooled: Tensor, noise: Tensor) -> Tensor:
        return self.network.prior(pooled, noise)


class SingleGraph(NetworkGraph):
    """`image` N×H×W×3 uint8 → `upscaled` N×sH×sW×3 uint8. The noise is a constant of the graph."""

    noise: Tensor

    def __init__(self, network: nn.Module, noise: Tensor) -> None:
        super().__init__(network)
        self.register_buffer("noise", noise)

    def forward(self, image: Tensor) -> Tensor:
        lr = from_picture(image)
        pooled = self.network.feature_map(lr).mean(dim=(2, 3))
        z = self.network.prior(pooled, self.noise.expand(lr.shape[0], -1))
        return to_picture(self.network.decode(lr, z))


class LatentPriorGraphs(GraphKind[LatentPriorNetwork]):
    """Encoder, reverse process and decoder."""

    name = LatentPriorPipeline.kind
    condition_names = ("z",)

    def __init__(self, network: LatentPriorNetwork, seed: int) -> None:
        super().__init__(network, seed)
        if not network.betas:
            raise ExportError("a network without a reverse process (steps 0) only serves experiments and cannot be exported")
        self.noise = torch.from_numpy(initial_noise(seed, network.latent_size))

    @property
    def section(self) -> dict[str, Any]:
        return {
            "steps": self.network.steps,
            "betas": list(self.network.betas),
            "latent_size": self.network.latent_size,
            "size_multiple": self.network.size_multiple,
            "condition_radius": self.network.condition_radius,
        }

    @property
    def constants(self) -> list[NDArray[np.float32]]:
        return [self.noise.numpy()]

    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        return (self.network.latent_prior(lr, self.noise),)

    def parts(self, network: LatentPriorNetwork) -> list[GraphSpec]:
        pooled = torch.rand(1, network.condition_channels)
        return [
            GraphSpec("encoder.onnx", EncoderGraph(network), {"lr": example_plane()}, "features"),
            GraphSpec("reverse.onnx", ReverseGraph(network), {"pooled": pooled, "noise": self.noise}, "z"),
            *super().parts(network),
        ]

    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        return GraphSpec(name, SingleGraph(network, self.noise), {"image": example_picture()}, "upscaled")
