"""What the export asks of a process kind: its graphs, and what its decoder takes beside the picture."""

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

__all__ = ["LARGE_PICTURE", "LARGE_PLANE", "PICTURE", "PLANE", "GraphKind", "GraphSpec", "from_picture", "to_picture"]

AnyNetwork = TypeVar("AnyNetwork", bound=Network)
Axes = Mapping[int, str]
PLANE: Axes = {0: "batch", 2: "height", 3: "width"}
LARGE_PLANE: Axes = {0: "batch", 2: "height_out", 3: "width_out"}
PICTURE: Axes = {0: "batch", 1: "height", 2: "width"}
LARGE_PICTURE: Axes = {0: "batch", 1: "height_out", 2: "width_out"}
_EXAMPLE = (24, 20)
"""Height and width that graphs are traced with; these axes stay free."""


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """A module to trace."""

    name: str
    """File name in the bundle."""
    module: nn.Module
    inputs: dict[str, Tensor]
    """Example inputs by name, in the order of the module's arguments."""
    output: str
    axes: Mapping[str, Axes]
    """Free axes of inputs and output: name → {axis: name of the axis}."""


class GraphKind(abc.ABC, Generic[AnyNetwork]):
    """The graphs of one network, which belongs to this process kind."""

    name: ClassVar[str]
    """Name of the kind in the manifest."""

    def __init__(self, network: AnyNetwork, seed: int) -> None:
        """`network`: as it came from the checkpoint. `seed`: of all noise. Raises `ExportError` if it cannot be exported."""
        self.network, self.seed = network, seed

    @property
    def section(self) -> dict[str, Any]:
        """What the kind's pipeline in the runtime needs to know of the network, for the manifest."""
        return {}

    @property
    def constants(self) -> list[NDArray[np.float32]]:
        """Arrays beside the network's weights that its graphs may hold, e.g. noise."""
        return []

    @abc.abstractmethod
    def condition(self, lr: Tensor) -> tuple[Tensor, ...]:
        """1×3×H×W LR in [0, 1], a whole picture → the other arguments of `Network.decode`."""

    def upscale(self, lr: Tensor) -> Tensor:
        """1×3×H×W LR in [0, 1] → 1×3×sH×sW SR of the network as it came from the checkpoint, not clipped."""
        return self.network.decode(lr, *self.condition(lr))

    @abc.abstractmethod
    def parts(self, network: AnyNetwork) -> list[GraphSpec]:
        """The float graphs that the runtime runs one after another, the decoder last; `network` is the fused one."""

    @abc.abstractmethod
    def int8_decoder(self, network: nn.Module) -> GraphSpec:
        """The decoder between uint8 pictures, of a network that int8's form has prepared (`Int8Form.traced`)."""

    @abc.abstractmethod
    def whole(self, name: str, network: nn.Module) -> GraphSpec:
        """The whole network as one graph between uint8 pictures."""


def example_plane() -> Tensor:
    """1×3×H×W."""
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
