"""Growing a trained network: a wider and deeper one that computes the same function, to go on training from.

The idea is Net2Net's (Chen, Goodfellow, Shlens, ICLR 2016). A base network starts where a small one ended: a step of `base`
costs almost four of `small`, and most of the way up is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .config import RDSRConfig
from .network import RDSR

__all__ = ["depth_map", "grow"]

_GROWING = ("width", "condition_width", "lpe_width", "depth")


def depth_map(old: int, new: int) -> list[int]:
    """Index in the deeper body of each of the `old` blocks, spread evenly over `new`; the first stays the first."""
    return [index * new // old for index in range(old)]


def grow(tensors: Mapping[str, Tensor], old: RDSRConfig, network: RDSR) -> dict[str, Tensor]:
    """State dict for the untrained `network` that computes what `tensors` of sizes `old` compute.

    Channels are added whose outputs nothing reads yet; blocks are added that pass their (never negative) input on. Both
    then learn, since their gradients are not zero. Whole parts that `tensors` lack (stage 1 has no denoiser) are left out.
    Raises `CheckpointError` where a size shrinks, another differs, a modulation would be lost, or a tensor does not fit.
    """
    new = network.config
    _check_sizes(old, new)
    _check_tensors(tensors, old)
    fresh = network.state_dict()
    where = depth_map(old.depth, new.depth)
    grown = {name: _widened(name, value, fresh[name]) for key, value in tensors.items() for name in [_renamed(key, where)]}
    parts = {key.split(".")[0] for key in tensors}
    added = set(range(new.depth)) - set(where)
    for key, value in fresh.items():
        if key not in grown and key.split(".")[0] in parts:
            grown[key] = _passing_on(key, value, new) if _body_index(key) in added else value
    return grown


def _check_sizes(old: RDSRConfig, new: RDSRConfig) -> None:
    before, after = old.to_dict(), new.to_dict()
    if shrunk := [name for name in _GROWING if after[name] < before[name]]:
        raise CheckpointError(f"a network cannot grow to a smaller {shrunk[0]} ({before[shrunk[0]]} to {after[shrunk[0]]})")
    free = {*_GROWING, "modulation_depths"}
    if differ := [name for name in before if name not in free and before[name] != after[name]]:
        name, allowed = differ[0], ", ".join(sorted(free))
        raise CheckpointError(f"a network can grow in {allowed} alone, not from {name} {before[name]} to {after[name]}")
    if new.condition_encoder == "statistics" and old.condition_width != new.condition_width:
        raise CheckpointError("a condition encoder of statistics cannot grow: its layer norm would see the new features")
    moved = [depth_map(old.depth, new.depth)[depth] for depth in old.modulation_depths]
    if lost := [depth for depth in moved if depth not in new.modulation_depths]:
        raise CheckpointError(
            f"the modulation that comes to depth {lost[0]} is not among modulation_depths {new.modulation_depths}"
        )


def _check_tensors(tensors: Mapping[str, Tensor], old: RDSRConfig) -> None:
    """Every part that is there must be whole, as the sizes say."""
    with torch.device("meta"):
        wanted = RDSR(old).state_dict()
    if unknown := [key for key in tensors if key not in wanted]:
        raise CheckpointError(f"tensor {unknown[0]} belongs to no part of a network of its sizes")
    parts = {key.split(".")[0] for key in tensors}
    if lacking := [key for key in wanted if key.split(".")[0] in parts and key not in tensors]:
        raise CheckpointError(f"missing tensor {lacking[0]}")
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            raise CheckpointError(f"tensor {key} has shape {list(value.shape)}, its sizes ask for {list(wanted[key].shape)}")


def _renamed(key: str, where: list[int]) -> str:
    """The key of a body block or modulation in the deeper network."""
    parts = key.split(".")
    if parts[0] == "decoder" and parts[1] in ("body", "modulation"):
        parts[2] = str(where[int(parts[2])])
    return ".".join(parts)


def _body_index(key: str) -> int | None:
    parts = key.split(".")
    return int(parts[2]) if parts[:2] == ["decoder", "body"] else None


def _passing_on(key: str, value: Tensor, new: RDSRConfig) -> Tensor:
    """A new block is the identity: by its `identity` branch or its 3×3 kernel; all else that reaches its output is zero."""
    kind = key.split(".")[-1]
    if kind in ("identity", "expand"):
        return value
    passing = torch.zeros_like(value)
    return nn.init.dirac_(passing) if kind == "weight" and "identity" not in new.branches else passing


def _widened(key: str, value: Tensor, fresh: Tensor) -> Tensor:
    """Trained values in the first channels; what leads from new channels to old ones is zero, the rest as initialised."""
    if value.shape == fresh.shape:
        return value.clone()
    if ".modulation." in key:  # scales, then shifts; new channels start unmodulated
        halves = [torch.zeros_like(half) for half in fresh.chunk(2)]
        for half, trained in zip(halves, value.chunk(2), strict=True):
            half[: trained.shape[0]] = trained
        return torch.cat(halves)
    result = fresh.clone()
    if value.ndim >= 2:
        result[: value.shape[0], value.shape[1] :] = 0
        result[: value.shape[0], : value.shape[1]] = value
    else:
        result[: value.shape[0]] = value
    return result
