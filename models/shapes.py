"""Read keys and shapes of a state dict: parts and sizes of the network, and tensors that are missing or misshapen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import CheckpointError

__all__ = ["Shapes", "check_shapes", "config_of", "indices", "parts_found", "shape_of"]

Config = TypeVar("Config")
Shapes = Mapping[str, tuple[int, ...]]
"""Key of a state dict → shape of its tensor."""


def parts_found(shapes: Shapes, *prefixes: str) -> int:
    """How many of the prefixes some key begins with."""
    return sum(any(key.startswith(prefix) for key in shapes) for prefix in prefixes)


def indices(shapes: Shapes, pattern: str) -> list[int]:
    """Sorted numbers that the pattern's group finds in the keys."""
    # No network has more than a few thousand parts: longer numbers are cut, so that they stay numbers of a sane size.
    return sorted({int(m[1][:9]) for key in shapes if (m := re.match(pattern, key))})


def shape_of(shapes: Shapes, key: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor that must be there with `rank` dimensions; `CheckpointError` otherwise."""
    if key not in shapes:
        raise CheckpointError(f"the checkpoint lacks the tensor {key}")
    if len(shapes[key]) != rank:
        raise CheckpointError(f"tensor {key} has shape {list(shapes[key])}, expected {rank} dimensions")
    return shapes[key]


def config_of(config: Callable[..., Config], arch: str, sizes: Mapping[str, Any]) -> Config:
    """The config of these sizes; `CheckpointError` if it refuses one of them."""
    try:
        return config(**sizes)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint looks like {arch} but its sizes do not fit: {error}") from error


def check_shapes(shapes: Shapes, wanted: Shapes) -> None:
    """Compare names and shapes with those that a network wants; `CheckpointError` names the tensors at fault."""
    if missing := [key for key in wanted if key not in shapes]:
        raise CheckpointError(f"missing tensor {_some(missing)}")
    if extra := [key for key in shapes if key not in wanted]:
        raise CheckpointError(f"tensor {_some(extra)} belongs to no part of this network")
    for key, shape in shapes.items():
        if shape != wanted[key]:
            raise CheckpointError(f"tensor {key} has shape {list(shape)}, expected {list(wanted[key])}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
