"""Memory and tiles of residual-shift networks: graphs that are loaded together or in turn, square tiles, whole latents."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..bundle import Manifest
from ..bundle.operators_shift import LARGEST_TILE
from ..engines import Backend, Precision
from ..errors import MemoryLimitError
from ..tiling.memory import Needs
from ..tiling.tiles import Plan, spans
from .shift_process import padded

__all__ = ["all_together", "least_for_one_tile", "needs_of_shift", "plan_shift"]

_SIDES = (LARGEST_TILE, LARGEST_TILE // 2)
"""Sides of tiles in LR pixels, the largest that fits the memory."""
_ARRAYS = 6
"""Latents of the whole picture that a call holds at once."""
_SPARE = 1.25
"""Times their need that a limit must have for all graphs to be loaded: a large picture's latents need room, too."""
_MIB = 2**20
_ENGINES: Mapping[Backend, tuple[int, float, float]] = {
    "openvino": (110 * _MIB, 2.4, 0.9),
    "onnxruntime": (60 * _MIB, 2.15, 1.2),
}
"""Bytes of the engine itself, and times that it takes a graph's bytes and its values.

Measured with networks of the released size, tiles of 128×128, encoder / step / decoder: OpenVINO 650 / 1250 / 1130 MiB, ONNX
Runtime 760 / 1100 / 1330."""


def needs_of_shift(manifest: Manifest, backend: Backend, precision: Precision, limit: int | None) -> Needs:
    """Upper estimates; with one graph at a time if `limit` does not hold all of them."""
    return _needs(manifest, backend, precision, together=all_together(manifest, backend, precision, limit))


def all_together(manifest: Manifest, backend: Backend, precision: Precision, limit: int | None) -> bool:
    """Whether all graphs may be loaded at once."""
    return limit is None or _needs(manifest, backend, precision, together=True).peak(LARGEST_TILE**2) * _SPARE <= limit


def _needs(manifest: Manifest, backend: Backend, precision: Precision, *, together: bool) -> Needs:
    """The line through the need without a tile and that with the largest one, which no graph exceeds between them.

    An engine keeps the memory of intermediate results as long as it holds the graph.
    """
    base, weights, values = _ENGINES[backend]
    section = manifest.process
    sizes = {role: weights * manifest.files[str(manifest.graph(role, precision))][1] for role in section["values"]}
    pixels = LARGEST_TILE**2
    with_tile = {role: sizes[role] + 4 * values * held * pixels for role, held in section["values"].items()}
    of_all = sum if together else max
    fixed, most = of_all(sizes.values()), of_all(with_tile.values())
    return Needs(math.ceil(base + fixed), max(1.0, (most - fixed) / pixels))


def _kept(manifest: Manifest, sides: tuple[int, int]) -> int:
    """Bytes of the latents of a whole picture, and of the noise that the network takes."""
    section = manifest.process
    channels = _ARRAYS * section["latent_channels"] + section["noise_channels"]
    return int(4 * channels * sides[0] * sides[1])


def plan_shift(manifest: Manifest, needs: Needs, height: int, width: int, limit: int | None) -> Plan:
    """Square tiles of one of `_SIDES`, or the padded picture where it is smaller. Raises `MemoryLimitError`."""
    unit = manifest.process["size_multiple"]
    sides = padded(height, width, unit)
    kept = _kept(manifest, sides)
    for side in _SIDES:
        side = max(unit, side // unit * unit)
        tile = min(side, sides[0]), min(side, sides[1])
        peak = needs.peak(tile[0] * tile[1]) + kept
        if limit is None or peak <= limit:
            halo = side // 8
            down, across = (len(spans(length, read, halo)) for length, read in zip(sides, tile, strict=True))
            single = (down, across) == (1, 1)
            return Plan(tile, (down, across), 0 if single else halo, peak, single)
    least = -(-peak // _MIB)
    raise MemoryLimitError(
        f"a picture of {height}×{width} needs at least {least} MiB beside input and output, "
        f"but memory_limit is {(limit or 0) / _MIB:.1f} MiB",
        least * _MIB,
    )


def least_for_one_tile(manifest: Manifest, needs: Needs, height: int, width: int) -> int | None:
    """Least limit (bytes, whole MiB) under which a picture is not cut; None if it is always cut."""
    sides = padded(height, width, manifest.process["size_multiple"])
    peak = needs.peak(sides[0] * sides[1]) + _kept(manifest, sides)
    return -(-peak // _MIB) * _MIB if max(sides) <= LARGEST_TILE else None
