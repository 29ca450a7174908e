"""Growing a trained network into a wider and deeper one that computes the same function and goes on learning.

The idea is Net2Net's (Chen, Goodfellow, Shlens, ICLR 2016). `base` starts where `small` ended. This saves time: a step of
`base` costs almost as much as four of `small`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..shapes import check_shapes
from .config import RDSRConfig
from .network import RDSR

__all__ = ["depth_map", "grow"]

_GROWING = ("width", "condition_width", "lpe_width", "depth")


def depth_map(old: int, new: int) -> list[int]:
    """Index in the deeper body of each of the `old` blocks, spread evenly over `new`; the first stays the first."""
    return [index * new // old for index in range(old)]


def grow(tensors: Mapping[str, Tensor], old: RDSRConfig, network: RDSR) -> dict[str, Tensor]:
    """State dict for the untrained `network` that computes the same as `tensors` do in a network of sizes `old`.

    Nothing reads the added channels yet, and the added blocks pass their (never negative) input on. Both then learn, since
    their gradients are not zero. A part that `tensors` lack as a whole (stage 1 has no denoiser) is left out.

    With another scale, what depends on it begins anew: tail and skip, which give a smooth enlargement at first, and the
    latent prior encoder, which is left out.
    Raises `CheckpointError` if a size shrinks, another size differs, a modulation would be lost, or a tensor does not fit.
    """
    new = network.config
    _check_sizes(old, new)
    with torch.device("meta"):
        wanted = _within_parts(RDSR(old).state_dict(), tensors)
    if old.scale != new.scale:
        tensors, wanted = _without_scale(tensors), _without_scale(wanted)
    check_shapes(*({key: tuple(value.shape) for key, value in state.items()} for state in (tensors, wanted)))
    fresh = network.state_dict()
    where = depth_map(old.depth, new.depth)
    grown = {name: _widened(name, value, fresh[name]) for key, value in tensors.items() for name in [_renamed(key, where)]}
    added = set(range(new.depth)) - set(where)
    for key, value in _within_parts(fresh, tensors).items():
        if key not in grown:
            grown[key] = _passing_on(key, value, new) if _body_index(key) in added else value
    return grown


def _check_sizes(old: RDSRConfig, new: RDSRConfig) -> None:
    before, after = old.to_dict(), new.to_dict()
    if shrunk := [name for name in _GROWING if after[name] < before[name]]:
        raise CheckpointError(f"a network cannot grow to a smaller {shrunk[0]} ({before[shrunk[0]]} to {after[shrunk[0]]})")
    free = {*_GROWING, "modulation_depths", "scale"}
    if differ := [name for name in before if name not in free and before[name] != after[name]]:
        name, allowed = differ[0], ", ".join(sorted(free))
        raise CheckpointError(f"a network can only grow in {allowed}, not from {name} {before[name]} to {after[name]}")
    if new.condition_encoder == "statistics" and old.condition_width != new.condition_width:
        raise CheckpointError("a statistics condition encoder cannot grow: its layer norm would see the new features")
    moved = [depth_map(old.depth, new.depth)[depth] for depth in old.modulation_depths]
    if lost := [depth for depth in moved if depth not in new.modulation_depths]:
        raise CheckpointError(
            f"the modulation that comes to depth {lost[0]} is lost: modulation_depths are {new.modulation_depths}"
        )


def _without_scale(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bound = ("lpe.", "decoder.tail.", "decoder.skip.")
    return {key: value for key, value in tensors.items() if not key.startswith(bound)}


def _within_parts(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of `state` that belong to a part ("decoder", "lpe", …) of which `tensors` hold something."""
    parts = {key.split(".")[0] for key in tensors}
    return {key: value for key, value in state.items() if key.split(".")[0] in parts}


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
    """A new block is the identity, by its `identity` branch or its 3×3 kernel; all else that reaches its output is zero."""
    kind = key.split(".")[-1]
    if kind in ("identity", "expand"):
        return value
    passing = torch.zeros_like(value)
    return nn.init.dirac_(passing) if kind == "weight" and "identity" not in new.branches else passing


def _widened(key: str, value: Tensor, fresh: Tensor) -> Tensor:
    """Trained values in the first channels, zero from new channels to old ones, the rest as initialised."""
    if value.shape == fresh.shape:
        return value.clone()
    if ".modulation." in key:  # scales, then shifts; new channels start unmodulated
        halves = [torch.zeros_like(half) for half in fresh.chunk(2)]
        for half, trained in zip(halves, value.chunk(2), strict=True):
            half[: trained.shape[0]] = trained
        return torch.cat(halves)
    result = fresh.clone()
    result[: value.shape[0]] = 0
    result[tuple(slice(side) for side in value.shape[:2])] = value
    return result
