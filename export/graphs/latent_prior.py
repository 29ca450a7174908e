"""Graphs of latent-prior networks: encoder, reverse process, decoder; and the whole network with its noise baked in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...models.interface import LatentPriorNetwork
from ...runtime.pipelines.latent_prior import LatentPriorPipeline, initial_noise
from ..errors import ExportError
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

__all__ = ["LatentPriorGraphs"]

_VECTOR = {0: "batch"}


class _Graph(nn.Module):
    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class EncoderGraph(_Graph):
    """`lr` N×3×H×W float32 in [0, 1] → `features` N×C×⌈H/f⌉×⌈W/f⌉."""

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.feature_map(lr)


class ReverseGraph(_Graph):
    """`pooled` N×C and `noise` N×latent → `z` N×latent; T steps unrolled, the schedule folded into constants."""

    def forward(self, pooled: Tensor, noise: Tensor) -> Tensor:
        return self.network.prior(pooled, noise)


class DecoderGraph(_Graph):
    """`lr` N×3×H×W float32 in [0, 1] and `z` N×latent → `sr` N×3×sH×sW float32, not clipped."""

    def forward(self, lr: Tensor, z: Tensor) -> Tensor:
        return self.network.decode(lr, z)


class PictureDecoderGraph(_Graph):
    """`image` N×H×W×3 uint8 and `z` N×latent → `upscaled` N×sH×sW×3 uint8: int8 is for 8-bit pictures."""

    def forward(self, image: Tensor, z: Tensor) -> Tensor:
        return to_picture(self.network.decode(from_picture(image), z))


class SingleGraph(_Graph):
    """`image` N×H×W×3 uint8 → `upscaled` N×sH×sW×3 uint8, noise baked in."""

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

    def __init__(self, network: LatentPriorNetwork, seed: int) -> None:
        super().__init__(network, seed)
        if not network.betas:
            raise ExportError(
                "a network without a reverse process (steps 0) is an ablation of training and cannot be exported"
            )
        self.noise = torch.from_numpy(initial_noise(seed, network.latent_size))

    @property
    def section(self) -> dict[str, Any]:
        """See `LatentPriorPipeline`."""
        return {
            "steps": self.network.steps,
            "betas": list(self.network.betas),
            "latent_size": self.network.latent_size,
            "size_multiple": self.network.size_multiple,
            "condition_radius": self.network.condition_radius,
        }

    @property
    def constants(self) -> list[NDArray[np.float32]]:
        """The noise of the single graph."""
        return [self.noise.numpy()]

    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        """The latent prior."""
        return (self.network.latent_prior(lr, self.noise),)

    def parts(self, network: LatentPriorNetwork) -> list[GraphSpec]:
        """See `GraphKind.parts`."""
        lr, z, pooled = example_plane(), self._example_prior(), torch.rand(1, network.condition_channels)
        return [
            GraphSpec(
                "encoder.onnx",
                EncoderGraph(network),
                {"lr": lr},
                "features",
                {"lr": PLANE, "features": {0: "batch", 2: "cells_high", 3: "cells_wide"}},
            ),
            GraphSpec(
                "reverse.onnx",
                ReverseGraph(network),
                {"pooled": pooled, "noise": z},
                "z",
                {"pooled": _VECTOR, "noise": _VECTOR, "z": _VECTOR},
            ),
            GraphSpec(
                "decoder.onnx",
                DecoderGraph(network),
                {"lr": lr, "z": z},
                "sr",
                {"lr": PLANE, "z": _VECTOR, "sr": LARGE_PLANE},
            ),
        ]

    def _example_prior(self) -> Tensor:
        return torch.randn(1, self.network.latent_size)

    def int8_decoder(self, network: nn.Module) -> GraphSpec:
        """See `GraphKind.int8_decoder`."""
        return GraphSpec(
            "decoder.int8.onnx",
            PictureDecoderGraph(network),
            {"image": example_picture(), "z": self._example_prior()},
            "upscaled",
            {"image": PICTURE, "z": _VECTOR, "upscaled": LARGE_PICTURE},
        )

    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        """See `GraphKind.whole`."""
        axes = {"image": PICTURE, "upscaled": LARGE_PICTURE}
        return GraphSpec(name, SingleGraph(network, self.noise), {"image": example_picture()}, "upscaled", axes)
