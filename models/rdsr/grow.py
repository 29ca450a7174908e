"""Growing a trained network: a wider and deeper one that computes the same function, to go on training from.

The idea is Net2Net's (Chen, Goodfellow, Shlens, ICLR 2016). A base network starts where a small one ended: a step of `base`
costs four of `small`, and most of the way up is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .config import RDSRConfig
from .network import RDSR

__all__ = ["depth_map", "grow"]

_WIDENED = ("width", "condition_width", "lpe_width")
_DEEPENED = ("depth",)


def depth_map(old: int, new: int) -> list[int]:
    """Index in the deeper body of each of the `old` blocks, spread evenly over `new`; the first stays the first."""
    return [index * new // old for index in range(old)]


def grow(tensors: Mapping[str, Tensor], old: RDSRConfig, new: RDSRConfig) -> dict[str, Tensor]:
    """State dict of a network of sizes `new` that computes what `tensors` of sizes `old` compute.

    Channels are added whose outputs nothing reads yet; blocks are added that pass their (never negative) input on. Both
    then learn, since their gradients are not zero. Parts that `tensors` lack (stage 1 has no denoiser) are left out.
    Raises `CheckpointError` where a size shrinks, where another size differs, or a modulation would be lost.
    """
    _check(old, new)
    torch.manual_seed(0)
    fresh = RDSR(new).state_dict()
    where = depth_map(old.depth, new.depth)
    grown: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = _renamed(key, where)
        if name in fresh:
            grown[name] = _widened(name, value, fresh[name], old)
    parts = {key.split(".")[0] for key in tensors}
    added = set(range(new.depth)) - set(where)
    for key, value in fresh.items():
        if key not in grown and key.split(".")[0] in parts:
            grown[key] = _passing_on(key, value, new) if _index(key) in added else value
    return grown


def _check(old: RDSRConfig, new: RDSRConfig) -> None:
    before, after = old.to_dict(), new.to_dict()
    if shrunk := [name for name in (*_WIDENED, *_DEEPENED) if after[name] < before[name]]:
        raise CheckpointError(f"a network cannot grow to a smaller {shrunk[0]} ({before[shrunk[0]]} to {after[shrunk[0]]})")
    free = {*_WIDENED, *_DEEPENED, "modulation_depths"}
    if differ := [name for name in before if name not in free and before[name] != after[name]]:
        name = differ[0]
        raise CheckpointError(
            f"a network can grow in {', '.join(sorted(free))} alone, not from {name} {before[name]} to {after[name]}"
        )
    moved = [depth_map(old.depth, new.depth)[depth] for depth in old.modulation_depths]
    if lost := [depth for depth in moved if depth not in new.modulation_depths]:
        raise CheckpointError(
            f"the modulation that comes to depth {lost[0]} is not among modulation_depths {new.modulation_depths}"
        )


def _renamed(key: str, where: list[int]) -> str:
    """The key of a body block or modulation in the deeper network."""
    parts = key.split(".")
    if parts[0] == "decoder" and parts[1] in ("body", "modulation"):
        parts[2] = str(where[int(parts[2])])
    return ".".join(parts)


def _index(key: str) -> int | None:
    parts = key.split(".")
    return int(parts[2]) if parts[:2] == ["decoder", "body"] else None


def _passing_on(key: str, value: Tensor, new: RDSRConfig) -> Tensor:
    """A new block is the identity: by its `identity` branch or its 3×3 kernel; all else that reaches its output is zero."""
    kind = key.split(".")[-1]
    if kind in ("identity", "expand"):
        return value
    passing = torch.zeros_like(value)
    return nn.init.dirac_(passing) if kind == "weight" and "identity" not in new.branches else passing


def _widened(key: str, value: Tensor, fresh: Tensor, old: RDSRConfig) -> Tensor:
    """Trained values in the first channels; what leads from new channels to old ones is zero, the rest as initialised."""
    if value.shape == fresh.shape:
        return value.clone()
    result = fresh.clone()
    if key.split(".")[-2].isdigit() and ".modulation." in key:  # scales, then shifts
        halves = [torch.zeros_like(half) for half in fresh.chunk(2)]
        for half, trained in zip(halves, value.chunk(2), strict=True):
            half[: trained.shape[0]] = trained
        return torch.cat(halves)
    if value.ndim >= 2:
        result[: value.shape[0], value.shape[1] :] = 0
        result[: value.shape[0], : value.shape[1]] = value
    else:
        result[: value.shape[0]] = value
    return result
