"""Plan memory before it is spent: the needs of an engine and of a tile's pixels, and the tiles that fit a limit."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from ..bundle import Manifest
from ..engines import Backend, Precision
from ..errors import MemoryLimitError, OptionError
from .tiles import LEAST_STEP, OVERLAP, Plan, TileCost, halo_of, plan_tiles

__all__ = [
    "ALPHA", "Needs", "all_fit", "least_for_one_piece", "needs_of", "parse_limit", "plan_picture", "plan_strips",
]  # fmt: skip

_UNITS = {"": 1, "b": 1, **{f"{p}{b}": k**i for i, p in enumerate("kmgt", 1) for b, k in (("ib", 1024), ("b", 1000))}}
_MIB = 2**20


def usual_pixels(halo: int) -> int:
    """Most LR pixels that a tile reads if no limit asks for less.

    In tiles of 96² / 192² / 384², `small` at 512×768 LR takes 2.2 / 1.35 / 1.06 of the time of a single tile in ONNX Runtime
    fp32 and 2.0 / 1.3 / 1.18 in OpenVINO int8. The excess is the halo, so deep networks, with a wide halo, get larger tiles.
    """
    return int(max(384, 4 * halo) ** 2)


def most_pixels(halo: int, height: int, width: int) -> int:
    """Most LR pixels that a tile of this picture reads if no limit asks for less.

    Pictures little above the usual size, up to 512×512, stay whole: four tiles of `small` would read 1.13 times the pixels.
    """
    usual = usual_pixels(halo)
    return max(usual, height * width) if 9 * height * width <= 16 * usual else usual


def parse_limit(limit: int | str | None) -> int | None:
    """A limit in bytes, from a number of bytes or a text like "256MiB", "1.5 GiB", "800MB". Raises `OptionError`."""
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit > 0):
        return limit
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", limit) if isinstance(limit, str) else None
    if match is None or match[2].lower() not in _UNITS or not 0 < float(match[1]) < 1e18:
        raise OptionError(f'memory_limit must be bytes or a text like "256MiB", not {limit!r}')
    return int(float(match[1]) * _UNITS[match[2].lower()])


@dataclasses.dataclass(frozen=True)
class Needs:
    """Memory of a pipeline beside input and output, in bytes."""

    fixed: int
    """The engine, its graphs, and what it keeps between calls."""
    per_pixel: float
    """Bytes for each LR pixel that a tile reads."""

    def pixels(self, limit: int) -> int:
        """Number of LR pixels that a tile may read under a limit."""
        return max(0, int((limit - self.fixed) / self.per_pixel + 1e-6))

    def peak(self, pixels: int) -> int:
        """Peak with a tile that reads `pixels` LR pixels."""
        return math.ceil(self.fixed + self.per_pixel * pixels)  # rounded so that this much, as a limit, allows the tile


def needs_of(manifest: Manifest, backend: Backend, precision: Precision) -> Needs:
    """Upper estimates, from measurements of peak RSS (see `_ENGINES`)."""
    weights = sum(manifest.files[str(manifest.graph(role, precision))][1] for role in manifest.pipeline_roles)
    # Tail and skip are float in int8, too; only the picture then takes one byte a value instead of several float copies.
    values = 4 * manifest.peak_channels + 3 * manifest.scale**2 * (4 if precision == "int8" else 16)
    engine = _ENGINES[backend]
    return Needs(int(engine.base + engine.weights * weights), engine.values * values)


@dataclasses.dataclass(frozen=True)
class _Engine:
    base: int
    weights: float
    values: float


_ENGINES: dict[Backend, _Engine] = {
    "openvino": _Engine(base=110 * _MIB, weights=2.5, values=1.4),
    "onnxruntime": _Engine(base=45 * _MIB, weights=3.5, values=1.2),
}
"""From measurements. `small` and `base` take, for a picture of 64×64, 89 and 102 MiB in OpenVINO, 44 and 58 in ONNX
Runtime; a pixel takes 0.6 to 1.2 and 0.6 to 0.85 times the counted values. benchmarks/results/runtime/sizes.md shows what
pictures of 400 sizes take under a limit."""
ALPHA = 32 * _MIB
"""Extra memory of a picture with alpha: OpenCV, which is loaded for it, and a tile's sums in float; measured 27 MiB."""
_USUAL_BANDS = 256 * _MIB
"""Memory for the bands of a picture in strips, if there is no limit."""


def all_fit(manifest: Manifest, needs: Sequence[Needs], limit: int) -> bool:
    """Whether several pipelines can stay loaded under a limit beside a tile of the usual size, so that it costs no time."""
    halo = halo_of(manifest.tile_rule, manifest.receptive_radius)
    largest = max(each.per_pixel for each in needs)
    return halo is not None and sum(each.fixed for each in needs) + largest * usual_pixels(halo) <= limit


def plan_picture(
    manifest: Manifest, needs: Needs, height: int, width: int, limit: int | None, tile_cost: int = TileCost.usual
) -> Plan:
    """Tiles for a picture of height × width LR pixels. Raises `MemoryLimitError` if no tile fits the limit."""
    halo = halo_of(manifest.tile_rule, manifest.receptive_radius)
    exact = manifest.tile_rule != "overlap"
    cut: tuple[tuple[int, int], tuple[int, int]] | None = (height, width), (1, 1)
    least = needs.peak(height * width)
    if halo is not None:
        usual, side = most_pixels(halo, height, width), 2 * (halo + LEAST_STEP)
        most = usual if limit is None else min(usual, needs.pixels(limit))
        cost = tile_cost if exact else TileCost.usual  # another cut would change the result
        cut = plan_tiles(height, width, halo=halo, most_pixels=most, tile_cost=cost)
        least = needs.peak(min(height, side) * min(width, side))
    elif limit is not None and least > limit:
        cut = None
    if cut is None:  # only under a limit: `usual_pixels` always allows a cut
        raise MemoryLimitError(
            f"a picture of {height}×{width} needs at least {_whole_mib(least) // _MIB} MiB beside input and output, "
            f"but memory_limit is {(limit or 0) / _MIB:.1f} MiB",
            _whole_mib(least),
        )
    tile, grid = cut
    single = grid == (1, 1)
    return Plan(tile, grid, 0 if single or halo is None else halo, needs.peak(tile[0] * tile[1]), exact or single)


def plan_strips(
    manifest: Manifest, needs: Needs, height: int, width: int, limit: int | None, *, row_bytes: int, tile_cost: int
) -> Plan:
    """Tiles for a picture whose pixels pass through memory in bands as high as a tile; `peak_bytes` includes the bands.

    `row_bytes`: memory of one LR row and of its part of the result. Half of what the limit leaves goes to the bands, so
    tiles are flat and wide. Raises `MemoryLimitError` if no tile fits the limit.
    """
    halo = halo_of(manifest.tile_rule, manifest.receptive_radius)
    if halo is None:
        raise MemoryLimitError(f"{manifest.arch} needs the whole picture of {height}×{width} in memory at once", 0)
    least_rows = min(height, 2 * (halo + LEAST_STEP))
    least = needs.fixed + 2 * max(row_bytes * least_rows, math.ceil(needs.per_pixel * least_rows * min(width, least_rows)))
    usual = most_pixels(halo, height, width)
    room = _USUAL_BANDS if limit is None else (limit - needs.fixed) // 2
    most_rows = room // row_bytes
    most = usual if limit is None else min(usual, int(room / needs.per_pixel))
    exact = manifest.tile_rule != "overlap"
    cost = tile_cost if exact else TileCost.usual
    cut = None
    if most_rows >= least_rows or limit is None:
        rows = max(most_rows, least_rows)
        cut = plan_tiles(height, width, halo=halo, most_pixels=most, most_rows=rows, tile_cost=cost)
    if cut is None:
        raise MemoryLimitError(
            f"a picture of {height}×{width} needs at least {_whole_mib(least) // _MIB} MiB, read and written in strips, "
            f"but memory_limit is {(limit or 0) / _MIB:.1f} MiB",
            _whole_mib(least),
        )
    tile, grid = cut
    single = grid == (1, 1)
    peak = needs.peak(tile[0] * tile[1]) + row_bytes * tile[0]
    return Plan(tile, grid, 0 if single else halo, peak, exact or single)


def least_for_one_piece(needs: Needs, height: int, width: int) -> int | None:
    """Least limit (bytes, whole MiB) under which the rule "overlap" does not cut a picture; None if it is always cut."""
    return _whole_mib(needs.peak(height * width)) if height * width <= most_pixels(OVERLAP, height, width) else None


def _whole_mib(size: int) -> int:
    return -(-size // _MIB) * _MIB
