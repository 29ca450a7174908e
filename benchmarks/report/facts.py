"""Conclusions from results: which rows belong together, ratios, PSNR beside time, the Pareto front."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .data import Quality, Results, Row

__all__ = ["Facts", "Point", "pareto", "quantity", "ratio", "short_names"]

_LONGEST_NAME = 40
_SUFFIXES = (".bundle", ".onnx", ".safetensors", ".pth", ".pt")


@dataclasses.dataclass(frozen=True)
class Point:
    """A model at a precision on its fastest engine, with its quality."""

    row: Row
    psnr_y: float
    """dB, on `Facts.dataset`."""
    published: bool
    """True if others measured the PSNR, because the weights here are random."""


def quantity(value: float) -> str:
    """Three figures without an exponent: 0.123, 1.23, 12.3, 1,234."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """How many times as fast, in two figures or as a whole number: 482, 48, 4.8, 0.48."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Map each given name to the name to show: a path's file name, with its folder if two would look alike."""
    parts = {model: re.split(r"[/\\]+", model.rstrip("/\\")) or [""] for model in models}
    count = collections.Counter(pieces[-1] for pieces in parts.values())
    shown = {model: "/".join(pieces[-2:]) if count[pieces[-1]] > 1 else pieces[-1] for model, pieces in parts.items()}
    half = _LONGEST_NAME // 2
    cut = {model: name if len(name) <= 2 * half else f"{name[: half - 1]}…{name[-half:]}" for model, name in shown.items()}
    return {model: name or "(no name)" for model, name in cut.items()}


def _key(model: str) -> str:
    """The name under which a bundle or file is known to be the model of that name."""
    name = re.split(r"[/\\]+", model.rstrip("/\\"))[-1]
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other point beats in time without losing PSNR, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.row.p50_ms, -point.psnr_y)):
        if not front or point.psnr_y > front[-1].psnr_y:
            front.append(point)
    return front


class Facts:
    """Results and what follows from them. `rows` holds the rows measured at the main size, fastest first."""

    def __init__(self, results: Results) -> None:
        self.results = results
        rated, peers, base = results.rated.rows, results.published.peers, results.baseline
        self.swept = {name: [row for row in sweep.rows if row.error is None] for name, sweep in results.sweeps.items()}
        """size, threads, batch → the rows with times."""
        timed = [*results.rows, *(row for sweep in results.sweeps.values() for row in sweep.rows)]
        named: list[Any] = [*timed, *rated, *peers, *([base] if base else [])]
        self.names = short_names(entry.model for entry in named)
        """Name as given → name to show."""
        models = [{row.model for row in rows} for rows in (timed, rated)]
        keys = [collections.Counter(map(_key, names)) for names in models]
        self._one_of_its_name = {key for key in keys[0] if keys[0][key] == keys[1][key] == 1}
        """Keys under which one model was timed and one rated: these are the same model."""
        self.measured = [row for row in timed if row.error is None]
        """All rows with times, those of sweeps included."""
        measured = [row for row in results.rows if row.error is None]
        kinds = collections.Counter(map(self._kind, measured))
        self.kind = max(kinds, key=lambda kind: (kinds[kind], kind[0][0] * kind[0][1], -kind[1]), default=None)
        """LR size, batch and threads of most rows: those of the main tables and plots. None if nothing was measured."""
        self.rows = sorted((row for row in measured if self._kind(row) == self.kind), key=lambda row: row.p50_ms)
        self.others = [row for row in measured if self._kind(row) != self.kind]
        self.failed = [row for row in timed if row.error or row.failed_later]
        datasets = [row.dataset for row in rated] or [name for peer in peers for name in peer.psnr_y]
        self.dataset = "Set5" if "Set5" in datasets else next(iter(datasets), None)
        """The data set of the front."""
        best: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            best.setdefault((row.model, row.precision), row)
        self.best = list(best.values())
        """The row of the fastest engine for every model and precision, fastest first."""
        self.ours = [row for row in self.best if self.is_ours(row)]
        self.points = [Point(row, *found) for row in self.best if (found := self.psnr_y(row)) is not None]
        self.baseline_row = next((row for row in self.rows if self.is_baseline(row)), None)
        fp32 = [row for row in self.rows if row.precision == "fp32" and base and row.model == base.model]
        self.baseline_fp32 = next(iter(fp32), None)
        """The fastest fp32 row of the baseline's model."""
        self.weighed = [row for row in self.rows if row.peak_rss_mb or row.cold_start_ms]
        """The rows with a memory or cold start."""
        shares = [row for row in self.rows if row.share_of_peak is not None]
        self.by_share = sorted(shares, key=lambda row: -(row.share_of_peak or 0.0))
        """The rows with a share of the peak, the largest first."""

    @staticmethod
    def _kind(row: Row) -> tuple[tuple[int, int], int, int]:
        return row.size, row.batch, row.threads

    @property
    def size_text(self) -> str:
        """128×128 LR pixels, 2 threads."""
        if self.kind is None:
            return "nothing measured"
        (height, width), batch, threads = self.kind
        pictures = f", {batch} pictures a call" if batch > 1 else ""
        return f"{height}×{width} LR pixels{pictures}, {threads} thread{'s' * (threads > 1)}"

    @property
    def baseline_text(self) -> str | None:
        """diffir on torch-eager, fp32."""
        way = self.results.baseline
        return f"{self.names[way.model]} on {way.backend}, {way.precision}" if way else None

    def is_baseline(self, row: Row) -> bool:
        """True for the row that all others are compared with."""
        return row.way == self.results.baseline

    def is_ours(self, row: Row) -> bool:
        """True for a model of the family rdsr."""
        return self.family(row.model) == "rdsr"

    def family(self, model: str) -> str:
        """The part of the name that members of a family share: rdsr of rdsr-base."""
        return _key(model).split("-")[0]

    def speedup(self, row: Row) -> float | None:
        """How many times as fast as the baseline."""
        if row.speedup_vs_baseline is None and self.baseline_row is not None and self._kind(row) == self.kind:
            return self.baseline_row.p50_ms / row.p50_ms
        return row.speedup_vs_baseline

    def speedup_fp32(self, row: Row) -> float | None:
        """How many times as fast as the baseline's model on its fastest fp32 engine."""
        fp32 = self.baseline_fp32
        return fp32.p50_ms / row.p50_ms if fp32 and self._kind(row) == self.kind else None

    def psnr_y(self, row: Row) -> tuple[float, bool] | None:
        """PSNR-Y on the front's data set in dB, and True if it is published. None if it is not known.

        A figure belongs to a model and precision, on any engine. Random weights have no measured figure; a published one
        holds for float32 only.
        """
        if row.weights != "random":
            found = self._measured(row)
            return None if found is None else (found.psnr_y, False)
        if row.precision == "fp32" and self.dataset is not None:
            for peer in self.results.published.peers:
                if _key(peer.model) == _key(row.model) and self.dataset in peer.psnr_y:
                    return peer.psnr_y[self.dataset], True
        return None

    def _measured(self, row: Row) -> Quality | None:
        rows = [q for q in self.results.rated.rows if q.dataset == self.dataset and q.precision == row.precision]
        named = [q for q in rows if q.model == row.model]
        if not named and _key(row.model) in self._one_of_its_name:
            named = [q for q in rows if _key(q.model) == _key(row.model)]
        # A model's ×2 and ×4 may both be there; latency is that of ×4, which is the project's scale.
        return min(named, key=lambda q: (q.scale != 4, q.backend != row.backend), default=None)
