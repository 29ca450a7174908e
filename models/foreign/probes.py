"""What is found out about a network by running it: its reach, and the constants that it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..interface import Derived

__all__ = ["LARGEST_RADIUS", "derived_of", "radius_of", "storage_of", "tensors_in"]

LARGEST_RADIUS = 128
"""Networks that see further are tiled with an overlap: exact tiles would consist mostly of what is thrown away."""
_LENGTH, _HEIGHT = 2 * LARGEST_RADIUS + 64, 8
"""Of the strips on which a network's reach is looked for."""
_OFFSETS = (1, 2, 5)
"""By how much a tile begins beside the strip, to see whether its inner part is that of the whole strip."""
_SAME = 1e-4
"""Largest difference, of the largest value, between a tile and the whole: different sizes are added up differently."""

Network = Callable[[Tensor], Tensor]
"""N×3×H×W LR in [0, 1] → N×3×sH×sW SR."""


class _Constants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is computed from weights alone and then meets what depends on the picture."""

    def __init__(self, weights: Mapping[str, Tensor], picture: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = {storage_of(value): key for key, value in weights.items()}
        self.varies = {storage_of(picture)}
        self.alive: list[Tensor] = [picture]  # places are theirs as long as they live
        self.used: set[str] = set()
        self.values: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self._see(function, tensors_in((args, kwargs)), tensors_in(out))
        return out

    def _see(self, function: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.alive += [*inputs, *outputs]
        if not any(storage_of(each) in self.varies for each in inputs):
            return
        for each in inputs:
            if storage_of(each) in self.varies:
                continue
            if (key := self.keys.get(storage_of(each))) is not None:
                self.used.add(key)
            elif each.is_floating_point():
                self.values.setdefault(storage_of(each), each.detach().clone())
        self.varies |= {storage_of(each) for each in outputs if storage_of(each) not in self.keys}
        if any(argument.alias_info is not None and argument.alias_info.is_write for argument in function._schema.arguments):
            self.varies.add(storage_of(inputs[0]))  # the first one is written to


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among arguments or results of an operation."""
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Where its values lie: views share the place."""
    return tensor.untyped_storage().data_ptr()


@torch.no_grad()
def derived_of(network: Network, weights: Mapping[str, Tensor], picture: Tensor) -> Derived:
    """What the network computes from its weights alone, and the weights that meet no picture themselves.

    `weights`: those by key; `picture`: 1×3×H×W.
    """
    with _Constants(weights, picture) as constants:
        network(picture)
    return Derived(tuple(constants.values.values()), frozenset(weights) - constants.used)


@torch.no_grad()
def radius_of(network: Network, scale: int, least: int, convolutions: Iterable[nn.Conv2d] = ()) -> int | None:
    """How far an output pixel sees, if tiles with such a halo equal the whole picture everywhere; otherwise None.

    Not-a-number in one LR pixel spreads to all that depends on it, whatever the weights are. A tile that begins anywhere, at
    the edge too, has to give, in its inner part, what the whole has there. Both are tried on strips along either axis.
    `least`: LR pixels that sides must have. `convolutions`: all that it has; a single one may see past the ends of a strip.
    """
    if any(max(conv.dilation) * (max(conv.kernel_size) - 1) > 2 * LARGEST_RADIUS for conv in convolutions):
        return None
    height = max(_HEIGHT, least)
    reaches = []
    for turned in (False, True):

        def along(strip: Tensor, turned: bool = turned) -> Tensor:
            return network(strip.mT.contiguous()).mT if turned else network(strip)

        reach = _reach(along, scale, height)
        if reach is None or reach > LARGEST_RADIUS:
            return None
        reaches.append((along, reach))
    radius = max(reach for _, reach in reaches)
    return radius if all(_tiles(along, scale, height, radius) for along, _ in reaches) else None


def _noise(height: int, width: int, seed: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _reach(network: Network, scale: int, height: int) -> int | None:
    """LR pixels to which one LR pixel spreads along a strip, to either side; None if it reaches its ends."""
    reach = 0
    for at in (_LENGTH // 2, _LENGTH // 2 + 1):
        strip = _noise(height, _LENGTH, seed=at)
        strip[..., height // 2, at] = torch.nan
        columns = torch.nonzero(torch.isnan(network(strip)[0]).any(0).any(0)).flatten() // scale
        if not len(columns):
            return None  # something swallows what is not a number
        reach = max(reach, int(columns[-1]) - at, at - int(columns[0]))
    return reach if reach < _LENGTH // 2 - 2 else None


def _tiles(network: Network, scale: int, height: int, radius: int) -> bool:
    """Whether tiles of a strip, with a halo of `radius`, equal the whole."""
    tile = 2 * radius + 24
    length = tile + max(_OFFSETS) + 1
    strip = _noise(height, length, seed=1)
    whole = network(strip)
    largest = float(whole.abs().max())
    for start in (0, *_OFFSETS, length - tile):
        part = network(strip[..., start : start + tile])
        left, right = 0 if start == 0 else radius, tile if start + tile == length else tile - radius
        there = whole[..., (start + left) * scale : (start + right) * scale]
        if not bool(((part[..., left * scale : right * scale] - there).abs() <= _SAME * largest).all()):
            return False
    return True
