"""Memory, planned before it is spent: what an engine needs for itself and for a tile's pixels, and the tiles that fit."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from ..bundle import Manifest
from ..engines import Backend, Precision
from ..errors import MemoryLimitError, OptionError
from .tiles import LEAST_STEP, OVERLAP, Plan, TileCost, plan_tiles

__all__ = ["ALPHA", "Needs", "all_fit", "least_for_one_piece", "needs_of", "parse_limit", "plan_picture"]

_UNITS = {"": 1, "b": 1, **{f"{p}{b}": k**i for i, p in enumerate("kmgt", 1) for b, k in (("ib", 1024), ("b", 1000))}}
_MIB = 2**20


def usual_pixels(halo: int) -> int:
    """LR pixels that a tile reads at most where no limit asks for less.

    `small`, 512×768 LR, tiles of 96² / 192² / 384² against the whole: ONNX Runtime fp32 2.2 / 1.35 / 1.06 of its time,
    OpenVINO int8 2.0 / 1.3 / 1.18; the rest is the halo, which shall not be most of a deep network's work either.
    """
    return int(max(384, 4 * halo) ** 2)


def parse_limit(limit: int | str | None) -> int | None:
    """Bytes of a number, or of a text like "256MiB", "1.5 GiB", "800MB". Raises `OptionError`."""
    if limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit > 0):
        return limit
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", limit) if isinstance(limit, str) else None
    if match is None or match[2].lower() not in _UNITS or not 0 < float(match[1]) < 1e18:
        raise OptionError(f'memory_limit must be bytes or a text like "256MiB", not {limit!r}')
    return int(float(match[1]) * _UNITS[match[2].lower()])


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a pipeline needs, in bytes, beside input and output."""

    fixed: int
    """The engine, its graphs, and what it keeps from call to call."""
    per_pixel: float
    """For each LR pixel that a tile reads."""

    def pixels(self, limit: int) -> int:
        """LR pixels of a tile that fit."""
        return max(0, int((limit - self.fixed) / self.per_pixel + 1e-6))

    def peak(self, pixels: int) -> int:
        """Of a tile of so many LR pixels."""
        return math.ceil(self.fixed + self.per_pixel * pixels)  # as a limit it allows as many


def needs_of(manifest: Manifest, backend: Backend, precision: Precision) -> Needs:
    """Upper estimates, from measurements of peak RSS (see `_ENGINES`)."""
    weights = sum(manifest.files[str(manifest.graph(role, precision))][1] for role in manifest.pipeline_roles)
    # Tail and skip are float in int8 too; the picture is then one byte a value instead of the copies of a float one.
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
"""Measured: `small` and `base` with a picture of 64×64 OpenVINO 89 and 102 MiB (and up to 20 for kernels of other sizes),
ONNX Runtime 44 and 58; for a pixel 0.6 to 1.2 and 0.6 to 0.85 times the values that are counted."""


ALPHA = 32 * _MIB
"""What a picture with alpha needs more: OpenCV, which is loaded for it, and a cell of it in float; measured 27 MiB."""


def all_fit(manifest: Manifest, needs: Sequence[Needs], limit: int) -> bool:
    """Whether several pipelines can stay loaded under a limit at no cost: with a tile as large as is fast beside them."""
    halo = _halo(manifest)
    largest = max(each.per_pixel for each in needs)
    return halo is not None and sum(each.fixed for each in needs) + largest * usual_pixels(halo) <= limit


def plan_picture(
    manifest: Manifest, needs: Needs, height: int, width: int, limit: int | None, tile_cost: int = TileCost.usual
) -> Plan:
    """Tiles for a picture of height × width LR pixels. Raises `MemoryLimitError` where nothing fits the limit.

    `tile_cost` is for tiles that change no byte of the result; others stay as they are, whatever it has become.
    """
    halo = _halo(manifest)
    exact = manifest.tile_rule != "overlap"
    if halo is None:
        tile, grid = (height, width), (1, 1)
        if limit is not None and needs.peak(height * width) > limit:
            raise _too_small(needs.peak(height * width), limit, height, width)
    else:
        usual = usual_pixels(halo)
        most = usual if limit is None else min(usual, needs.pixels(limit))
        cost = tile_cost if exact else TileCost.usual
        cut = plan_tiles(height, width, halo=halo, most_pixels=most, tile_cost=cost)
        if cut is None:  # only under a limit: `usual_pixels` always allows one
            least = min(height, 2 * (halo + LEAST_STEP)) * min(width, 2 * (halo + LEAST_STEP))
            raise _too_small(needs.peak(least), limit or 0, height, width)
        tile, grid = cut
    single = grid == (1, 1)
    return Plan(tile, grid, 0 if single or halo is None else halo, needs.peak(tile[0] * tile[1]), exact or single)


def least_for_one_piece(needs: Needs, height: int, width: int) -> int | None:
    """The least limit, in bytes of whole MiB, under which the rule "overlap" leaves a picture of height × width LR pixels in
    one piece; None where that is cut whatever the limit."""
    return _whole_mib(needs.peak(height * width)) if height * width <= usual_pixels(OVERLAP) else None


def _halo(manifest: Manifest) -> int | None:
    """LR pixels that tiles read beyond their own; None for networks that only run on the whole picture."""
    return {"exact": manifest.receptive_radius, "overlap": OVERLAP}.get(manifest.tile_rule)


def _whole_mib(size: int) -> int:
    return -(-size // _MIB) * _MIB


def _too_small(least: int, limit: int, height: int, width: int) -> MemoryLimitError:
    least = _whole_mib(least)
    return MemoryLimitError(
        f"a picture of {height}×{width} needs at least {least // _MIB} MiB beside input and output, "
        f"but memory_limit is {limit / _MIB:.1f} MiB",
        least,
    )
