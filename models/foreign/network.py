"""A network of others as a direct network, with padding to the sizes that it takes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base_config import BaseConfig
from ..errors import UnsupportedModelError
from ..interface import Derived, DirectNetwork, FusionErrors
from .fold import branched, fold_normalization, merge, use_merged, use_traceable
from .probes import derived_of, radius_of

__all__ = ["Foreign", "ForeignConfig"]

_EXAMPLE = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignConfig(BaseConfig):
    """What spandrel says of a network of others. `ValueError` names the field that is out of range."""

    architecture: str
    """spandrel's name of it."""
    scale: int
    minimum: int
    """Least LR pixels of each side; smaller pictures are padded in the graph."""
    multiple: int
    """Both LR sides are padded to multiples of this in the graph."""
    whole: bool = False
    """Whether the picture must not be cut into tiles at all. (No architecture of spandrel 0.4 says so yet.)"""

    def __post_init__(self) -> None:
        self._check_ranges(scale=(1, 8), minimum=(0, 4096), multiple=(1, 1024))


class Foreign(DirectNetwork):
    """A network of others, with padding to the sizes that it takes."""

    config: ForeignConfig

    def __init__(
        self, config: ForeignConfig, network: nn.Module, call: Callable[[Any, Tensor], Tensor] | None = None
    ) -> None:
        """`call(network, lr)`: N×3×H×W in [0, 1], of sizes that it takes → N×3×sH×sW. None: just the network.

        Some networks give several results, or want their picture in another range.
        """
        super().__init__()
        self.config = config
        self.network = network
        self._call = call or _plain_call

    def decode(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×3×sH×sW SR, not clipped."""
        height, width = lr.shape[-2:]
        padded = _padded(lr, self.config.minimum, self.config.multiple)
        out: Tensor = self._call(self.network, padded.clone())  # some write into their input
        if padded is lr:
            return out
        return out[..., : height * self.config.scale, : width * self.config.scale]

    def fuse(self) -> Foreign:
        """A copy in the form that it computes with: normalization folded into convolutions, branches merged."""
        fused = copy.deepcopy(self)
        use_traceable(fused.network)
        use_merged(fused.network)
        fold_normalization(fused.network, fused.decode, self.example())
        return fused

    @torch.no_grad()
    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        """Compare each merged block with its branches in float64, and the whole with that of `fuse` in float32."""
        before, after = self.decode(lr), self.fuse().decode(lr)
        relative = [torch.zeros((), dtype=torch.float64)]
        for block in branched(copy.deepcopy(self.network).double()):
            merged = merge(block)
            x = torch.randn(1, merged.in_channels, 17, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            expected = block.train()(x)
            relative.append((merged(x) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        return FusionErrors(len(relative) - 1, float((after - before).abs().max()), float(torch.stack(relative).max()))

    def training_only(self) -> dict[str, Tensor]:
        kept = self.fuse().state_dict()
        return {key: value for key, value in self.state_dict().items() if key not in kept}

    def derived(self) -> Derived:
        return self._derived

    @cached_property
    def _derived(self) -> Derived:
        fused = self.fuse()
        return derived_of(fused.decode, fused.state_dict(keep_vars=True), self.example())

    def example(self) -> Tensor:
        """A picture that the network takes without padding, N×3×H×W."""
        side = max(_EXAMPLE, self.config.minimum)
        side += -side % self.config.multiple
        return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    @property
    def receptive_radius(self) -> int | None:
        return self._radius

    @cached_property
    def _radius(self) -> int | None:
        if self.config.whole or self.config.multiple > 1:
            return None
        convolutions = [module for module in self.network.modules() if isinstance(module, nn.Conv2d)]
        try:
            return radius_of(self.decode, self.scale, self.config.minimum, convolutions)
        except Exception as error:  # their code may end anywhere, at a size that it does not take
            words = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"this {self.config.architecture} does not take pictures of any size: {words}"
            ) from error

    @property
    def tile_rule(self) -> str:
        return "whole" if self.config.whole else super().tile_rule


def _plain_call(network: nn.Module, lr: Tensor) -> Tensor:
    out: Tensor = network(lr)
    return out


def _padded(lr: Tensor, minimum: int, multiple: int) -> Tensor:
    """The picture, continued to the right and below until the network takes it: mirrored as spandrel does.

    A mirror goes no further than the picture; beyond, its last pixels are replicated.
    """
    if minimum <= 1 and multiple == 1:
        return lr
    mirrored, replicated = [], []
    for side in (lr.shape[-1], lr.shape[-2]):
        length = torch.as_tensor(side)  # tensors, so that tracing sees it
        least = torch.maximum(length, torch.tensor(minimum))
        more = least + (multiple - least % multiple) % multiple - length
        mirror = torch.minimum(more, length - 1)
        mirrored += [0, mirror]
        replicated += [0, more - mirror]
    reflected = F.pad(lr, tuple(mirrored), mode="reflect")  # type: ignore[arg-type]
    return F.pad(reflected, tuple(replicated), mode="replicate")  # type: ignore[arg-type]
