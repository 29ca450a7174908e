"""What a report says about its results: which rows belong together, ratios, PSNR beside time, the Pareto front."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .data import Quality, Results, Row, Way

__all__ = ["NOTES", "Facts", "Point", "eager_lines", "headlines", "pareto", "quantity", "ratio", "short_names"]

NOTES = {
    "*": "random weights: right for time, meaningless for quality",
    "†": "not known to be stable: fewer than three rounds, a failed one, "
    "or medians (but for the furthest of four) more than a tenth apart",
}
_LONGEST_NAME = 40
_SUFFIXES = (".bundle", ".onnx", ".safetensors", ".pth", ".pt")


@dataclasses.dataclass(frozen=True)
class Point:
    """A model at a precision on its fastest engine, where its quality is known."""

    row: Row
    psnr_y: float
    """dB, on `Facts.dataset`."""
    published: bool
    """Somebody else's figure, as the weights here are random."""


def quantity(value: float) -> str:
    """Three figures without an exponent: 0.123, 1.23, 12.3, 1,234."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def ratio(value: float) -> str:
    """482, 48, 4.8, 0.48: as many times as fast."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Name as given → name to show: of a path the file name, with its folder where two would look alike."""
    parts = {model: re.split(r"[/\\]+", model.rstrip("/\\")) or [""] for model in models}
    count = collections.Counter(pieces[-1] for pieces in parts.values())
    shown = {model: "/".join(pieces[-2:]) if count[pieces[-1]] > 1 else pieces[-1] for model, pieces in parts.items()}
    return {model: _cut(name) or "(no name)" for model, name in shown.items()}


def _cut(name: str) -> str:
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def _key(model: str) -> str:
    """By which a bundle or file is known to be the model of that name."""
    name = re.split(r"[/\\]+", model.rstrip("/\\"))[-1]
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats in time without losing PSNR, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.row.p50_ms, -point.psnr_y)):
        if not front or point.psnr_y > front[-1].psnr_y:
            front.append(point)
    return front


class Facts:
    """Results with what follows from them. `rows` are those measured at the main size, fastest first."""

    def __init__(self, results: Results) -> None:
        self.results = results
        measured = [row for row in results.rows if row.error is None]
        sweeps = [row for sweep in results.sweeps.values() for row in sweep.rows]
        everything: tuple[Any, ...] = (
            *results.rows,
            *sweeps,
            *results.quality,
            *results.peers,
            *filter(None, [results.baseline]),
        )
        self.names = short_names(entry.model for entry in everything)
        """Name as given → name to show."""
        timed, rated = {row.model for row in (*results.rows, *sweeps)}, {row.model for row in results.quality}
        said: tuple[Any, ...] = (*results.rows, *sweeps, *results.quality)
        self._random = {row.model for row in said if row.weights == "random"}
        keys = [collections.Counter(_key(model) for model in models) for models in (timed, rated)]
        self._one_of_its_name = {key for key in keys[0] if keys[0][key] == keys[1][key] == 1}
        """Keys under which one model was timed and one rated: the same."""
        kinds = collections.Counter((row.size, row.batch, row.threads) for row in measured)
        self.kind = max(kinds, key=lambda kind: (kinds[kind], kind[0][0] * kind[0][1], -kind[1]), default=None)
        """LR size, batch and threads of most rows: those of the main tables and plots. None where nothing was measured."""
        self.rows = sorted((row for row in measured if self._kind(row) == self.kind), key=lambda row: row.p50_ms)
        self.others = [row for row in measured if self._kind(row) != self.kind]
        self.failed = [row for row in (*results.rows, *sweeps) if row.error or row.failed_later]
        datasets = [row.dataset for row in results.quality] or [name for peer in results.peers for name in peer.psnr_y]
        self.dataset = "Set5" if "Set5" in datasets else next(iter(datasets), None)
        """The data set of the front."""
        self.points = [p for p in map(self._point, self.best()) if p is not None]
        self.baseline_row = next((row for row in self.rows if self.is_baseline(row)), None)
        self.baseline_fp32 = self._baseline_fp32()
        """The fastest fp32 row of the baseline's model."""

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

    def is_baseline(self, row: Row) -> bool:
        """Whether the row is the one that others are compared with."""
        return Way.of(row) == self.results.baseline

    def name(self, row: Row) -> str:
        """The name to show with its marks, which `NOTES` explains."""
        return self.names[row.model] + self.marks(row)

    def is_random(self, model: str) -> bool:
        """Whether a model's weights are random."""
        return model in self._random

    def marked(self, model: str) -> str:
        """The name to show for all rows of a model, marked where its weights are random."""
        return f"{self.names[model]} *" if self.is_random(model) else self.names[model]

    def line_name(self, line: Way, rows: Iterable[Row]) -> str:
        """The name to show for a line of a sweep, with the marks of all its rows."""
        marks = "".join(self.marks(row) for row in rows if row.error is None and Way.of(row) == line)
        found = "".join(mark for mark in NOTES if mark in marks)
        return f"{self.names[line.model]} {found}" if found else self.names[line.model]

    @staticmethod
    def marks(row: Row) -> str:
        marks = "*" * (row.weights == "random") + "†" * (not row.stable)
        return f" {marks}" if marks else ""

    @classmethod
    def notes(cls, rows: Iterable[Row]) -> list[str]:
        """The explanations of the marks that occur."""
        found = "".join(cls.marks(row) for row in rows)
        return [f"{mark} {note}" for mark, note in NOTES.items() if mark in found]

    def best(self) -> list[Row]:
        """The fastest engine's row of every model and precision, fastest first."""
        best: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            best.setdefault((row.model, row.precision), row)
        return list(best.values())

    def family(self, model: str) -> str:
        """The part of the name that members of a family share: rdsr of rdsr-base."""
        return _key(model).split("-")[0]

    def _baseline_fp32(self) -> Row | None:
        baseline = self.results.baseline
        rows = (row for row in self.rows if baseline and row.model == baseline.model and row.precision == "fp32")
        return next(rows, None)

    def speedup(self, row: Row) -> float | None:
        """How many times as fast as the baseline."""
        if row.speedup_vs_baseline is None and self.baseline_row is not None and self._kind(row) == self.kind:
            return self.baseline_row.p50_ms / row.p50_ms
        return row.speedup_vs_baseline

    def speedup_fp32(self, row: Row) -> float | None:
        """How many times as fast as the baseline's model on its fastest fp32 engine."""
        known = self.baseline_fp32 is not None and self._kind(row) == self.kind
        return self.baseline_fp32.p50_ms / row.p50_ms if known and self.baseline_fp32 else None

    def psnr_y(self, row: Row) -> tuple[float, bool] | None:
        """PSNR-Y on the front's data set in dB, and whether it is a published one; None where it is not known.

        A figure belongs to a model and precision, whatever engine it was measured on. Random weights have no figure of
        their own; a published one is for float32 alone.
        """
        if row.weights != "random":
            found = self._measured(row)
            return None if found is None else (found.psnr_y, False)
        if row.precision != "fp32" or self.dataset is None:
            return None
        figures = (
            p.psnr_y[self.dataset]
            for p in self.results.peers
            if _key(p.model) == _key(row.model) and self.dataset in p.psnr_y
        )
        published = next(figures, None)
        return None if published is None else (published, True)

    def _measured(self, row: Row) -> Quality | None:
        rows = [q for q in self.results.quality if q.dataset == self.dataset and q.precision == row.precision]
        named = [q for q in rows if q.model == row.model]
        if not named and _key(row.model) in self._one_of_its_name:
            named = [q for q in rows if _key(q.model) == _key(row.model)]
        # A model's ×2 and ×4 may both be there; latency is that of ×4, which is the project's scale.
        named.sort(key=lambda q: (q.scale != 4, q.backend != row.backend))
        return named[0] if named else None

    def _point(self, row: Row) -> Point | None:
        found = self.psnr_y(row)
        return None if found is None else Point(row, *found)


def headlines(facts: Facts) -> list[str]:
    """Sentences that the rows support: RDSR's fastest rows against the baseline, the front, and what to be wary of."""
    ours = [row for row in facts.best() if facts.family(row.model) == "rdsr"]
    fastest: dict[str, Row] = {}
    for row in ours:
        fastest.setdefault(row.model, row)
    lines = [_against(facts, row) for row in fastest.values()]
    fp32 = next((row for row in ours if row.precision == "fp32"), None)
    if fp32 and facts.baseline_fp32 and (times := facts.speedup_fp32(fp32)) is not None:
        other = facts.name(facts.baseline_fp32)
        lines.append(
            f"Float32 against float32, each on its fastest engine: {facts.name(fp32)} takes {quantity(fp32.p50_ms)} ms "
            f"({fp32.backend}), {ratio(times)} times as fast as {other}."
        )
    lines += eager_lines(facts)
    if len(facts.points) > 1:
        members = ", ".join(f"{facts.name(point.row)} {point.row.precision}" for point in pareto(facts.points))
        lines.append(f"No model here is both faster and better on {facts.dataset} than any of these: {members}.")
    return lines + _warnings(facts)


def eager_lines(facts: Facts) -> list[str]:
    """The RDSR paper's own setting: torch eager float32 against the baseline in torch eager float32."""
    baseline = facts.baseline_row
    if baseline is None or (baseline.backend, baseline.precision) != ("torch-eager", "fp32"):
        return []
    rows = [row for row in facts.rows if facts.family(row.model) == "rdsr" and not facts.is_baseline(row)]
    rows = [row for row in rows if (row.backend, row.precision) == ("torch-eager", "fp32")]
    each = [f"{facts.name(row)} {ratio(baseline.p50_ms / row.p50_ms)}×" for row in rows]
    return [f"Torch eager float32 against {facts.name(baseline)} in torch eager float32: {', '.join(each)}."] if each else []


def _against(facts: Facts, row: Row) -> str:
    """One row against the baseline and against its model's fastest fp32 engine, as far as they were measured."""
    text = f"{facts.name(row)} takes {quantity(row.p50_ms)} ms ({row.backend}, {row.precision}; {facts.size_text})"
    parts = []
    baseline, fp32 = facts.baseline_row, facts.baseline_fp32
    if baseline and not facts.is_baseline(row) and (times := facts.speedup(row)) is not None:
        engine = f"{facts.name(baseline)}, {baseline.backend}, {baseline.precision}"
        parts.append(f"{ratio(times)} times as fast as the baseline ({engine}: {quantity(baseline.p50_ms)} ms)")
    if fp32 and fp32 is not baseline and (times := facts.speedup_fp32(row)) is not None:
        engine = f"{facts.name(fp32)} on its fastest fp32 engine ({fp32.backend}: {quantity(fp32.p50_ms)} ms)"
        parts.append(f"{ratio(times)} times as fast as {engine}")
    if (psnr := facts.psnr_y(row)) is not None:
        parts.append(f"PSNR-Y {psnr[0]:.2f} dB on {facts.dataset}{' (published)' * psnr[1]}")
    return f"{text}: {'; '.join(parts)}." if parts else f"{text}."


def _warnings(facts: Facts) -> list[str]:
    swept = [row for sweep in facts.results.sweeps.values() for row in sweep.rows if row.error is None]
    measured = (*facts.rows, *facts.others, *swept)
    counts = (
        (sum(not row.stable for row in measured), "unstable, marked †"),
        (sum(row.weights == "random" for row in measured), "with random weights, marked *"),
        (len(facts.failed), "not measured, or not to the end, listed under Failures"),
    )
    lines = [f"{count} row{'s' * (count > 1)} {what}." for count, what in counts if count]
    return lines if measured else [*lines, "No row was measured."]
