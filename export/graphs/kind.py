"""The base class of a process kind's graphs, and the graphs that several kinds share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...models.interface import Network
from ...runtime.bundle.proof import Tolerances

__all__ = ["AXES", "DecoderGraph", "GraphKind", "GraphSpec", "NetworkGraph", "PictureDecoderGraph"]

AnyNetwork = TypeVar("AnyNetwork", bound=Network)
_EXAMPLE = (24, 20)
"""Height and width that graphs are traced with; these axes stay free."""
AXES: Mapping[str, Mapping[int, str]] = {
    "lr": {0: "batch", 2: "height", 3: "width"},
    "sr": {0: "batch", 2: "height_out", 3: "width_out"},
    "image": {0: "batch", 1: "height", 2: "width"},
    "upscaled": {0: "batch", 1: "height_out", 2: "width_out"},
    "features": {0: "batch", 2: "cells_high", 3: "cells_wide"},
    **{name: {0: "batch"} for name in ("pooled", "noise", "z", "time", "input_scale")},
    **{name: {0: "batch", 2: "height", 3: "width"} for name in ("latent", "estimate", "noise_map")},
}
"""Name of an input or output of a graph → its free axes, with their names."""


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """A module to trace to the file `name` of a bundle. Inputs and output have names of `AXES`."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Example inputs by name, in the order of the module's arguments. What is nowhere below 0 here never is."""
    output: str
    unit: int = 1
    """Sides of pictures are multiples of it."""

    @property
    def axes(self) -> dict[str, Mapping[int, str]]:
        """Free axes of inputs and output."""
        return {name: AXES[name] for name in (*self.inputs, self.output)}


class NetworkGraph(nn.Module):
    """Base class of the modules that are traced: one way through a network."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class DecoderGraph(NetworkGraph):
    """`lr` N×3×H×W float32 in [0, 1] and the kind's condition → `sr` N×3×sH×sW float32, not clipped."""

    def forward(self, lr: Tensor, *condition: Tensor) -> Tensor:
        return self.network.decode(lr, *condition)


class PictureDecoderGraph(NetworkGraph):
    """`image` N×H×W×3 uint8 and the kind's condition → `upscaled` N×sH×sW×3 uint8."""

    def forward(self, image: Tensor, *condition: Tensor) -> Tensor:
        return to_picture(self.network.decode(from_picture(image), *condition))


class GraphKind(abc.ABC, Generic[AnyNetwork]):
    """The graphs of one network, which belongs to this process kind."""

    name: ClassVar[str]
    """Name of the kind in the manifest."""
    has_single_graph: ClassVar[bool] = True
    """Whether the whole network can be one graph."""
    tolerances: ClassVar[Tolerances] = Tolerances()
    """How far a bundle may be from the torch model."""
    int8_unasked: ClassVar[bool] = True
    """Whether an export makes int8 even if it is not asked for by name."""
    condition_names: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that `condition` gives, as inputs of the decoder's graph."""

    def __init__(self, network: AnyNetwork, seed: int) -> None:
        """`network`: as it came from the checkpoint. `seed`: of all noise. Raises `ExportError` if it cannot be exported."""
        self.network, self.seed = network, seed

    @property
    def section(self) -> dict[str, Any]:
        """The facts about the network that the kind's pipeline in the runtime needs, for the manifest."""
        return {}

    @property
    def constants(self) -> list[NDArray[np.float32]]:
        """Arrays that graphs of this kind may hold beside the network's own (`Network.derived`), e.g. noise."""
        return []

    @abc.abstractmethod
    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        """1×3×H×W LR in [0, 1], a whole picture → the other arguments of `Network.decode`."""

    def upscale(self, lr: Tensor) -> Tensor:
        """1×3×H×W LR in [0, 1] → 1×3×sH×sW SR of the network as it came from the checkpoint, not clipped."""
        return self.network.decode(lr, *self.condition(lr))

    def prove(self, lr: Tensor) -> tuple[Tensor, Mapping[str, NDArray[np.float32]]]:
        """The output of `upscale`, and what the kind's proof needs from the way there (`Case.stages`)."""
        return self.upscale(lr), {}

    def crop(self, lr: NDArray[np.uint8]) -> tuple[int, int]:
        """Height and width of the part of a proof's picture that is used: the whole, where torch takes no minutes for it."""
        return lr.shape[0], lr.shape[1]

    def parts(self, network: AnyNetwork) -> list[GraphSpec]:
        """The float graphs that the runtime runs one after another, the decoder last; `network` is the fused one."""
        return [GraphSpec("decoder.onnx", DecoderGraph(network), {"lr": example_plane(), **self._example_condition()}, "sr")]

    def int8_decoder(self, network: nn.Module) -> GraphSpec:
        """The decoder between uint8 pictures, of a network that the int8 form has prepared (`Int8Form.traced`)."""
        inputs = {"image": example_picture(), **self._example_condition()}
        return GraphSpec("decoder.int8.onnx", PictureDecoderGraph(network), inputs, "upscaled")

    @abc.abstractmethod
    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        """The whole network as one graph between uint8 pictures, `name` its file."""

    @torch.no_grad()
    def _example_condition(self) -> dict[str, Tensor]:
        return dict(zip(self.condition_names, self.condition(example_plane()), strict=True))


def example_plane() -> Tensor:
    """1×3×H×W in [0, 1]."""
    return torch.rand(1, 3, *_EXAMPLE)


def example_picture() -> Tensor:
    """1×H×W×3 uint8."""
    return torch.randint(0, 256, (1, *_EXAMPLE, 3), dtype=torch.uint8)


def from_picture(image: Tensor) -> Tensor:
    """N×H×W×3 uint8 → N×3×H×W float32 in [0, 1]."""
    return image.permute(0, 3, 1, 2).float() / 255


def to_picture(sr: Tensor) -> Tensor:
    """N×3×H×W → N×H×W×3 uint8, clipped, rounded half to even."""
    return torch.round(sr.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
