"""Rows of `rdsr bench latency`: from what their processes measured to medians, shares, ratios and exponents."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.bundle import Bundle
from ..subjects.find import DIFFIR, Subject
from .flops import bundle_gflops, graph_facts

if TYPE_CHECKING:
    from ..subjects.onnx_model import PictureInput

__all__ = ["BASELINE", "SWEEPS", "Job", "compare", "fit_exponents", "input_of", "row_of"]

BASELINE = {"model": DIFFIR, "backend": "torch-eager", "precision": "fp32"}
"""What every other row's time is set against, at the same size, batch and threads."""
SWEEPS = ("size", "threads", "batch")
"""What may be swept."""
LEAST_ROUNDS = 3
LARGEST_SPREAD = 0.1
"""Of the rounds' medians (see `_spread`) up to which a row counts as stable."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One row: what runs, and how."""

    subject: Subject
    backend: str
    precision: str
    size: tuple[int, int]
    """LR height and width."""
    batch: int
    threads: int

    @property
    def key(self) -> str:
        """Names the row among others."""
        height, width = self.size
        return f"{self.subject.model} {self.backend} {self.precision} {height}x{width} b{self.batch} t{self.threads}"

    @property
    def pixels(self) -> int:
        """LR pixels of all its pictures."""
        return self.size[0] * self.size[1] * self.batch

    @property
    def series(self) -> tuple[str, str, str]:
        """What a sweep's points have in common."""
        return self.subject.model, self.backend, self.precision


def row_of(
    job: Job, samples: Sequence[Mapping[str, Any]], error: str | None, peaks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One row in the design's JSON form, of what its processes measured, or of the error that stopped it."""
    row: dict[str, Any] = {
        "model": job.subject.model,
        "weights": job.subject.weights,
        "backend": job.backend,
        "precision": job.precision,
        "size": list(job.size),
        "batch": job.batch,
        "threads": job.threads,
    }
    row |= dict.fromkeys(_MEASURED)
    if not samples:
        row |= {"error": error or "not run", "failed_later": None}
        return row
    row |= {"error": None, "failed_later": error}
    times = np.concatenate([sample["times_ms"] for sample in samples])
    medians = [statistics.median(sample["times_ms"]) for sample in samples]
    p50 = float(np.median(times))
    spread = _spread(medians)
    gflops, params_m = _facts(job)
    throughput = None if gflops is None else gflops / p50 * 1e3
    peak = _peak_of(job, peaks)
    row |= {
        "rounds": len(samples),
        "runs": len(times),
        "p50_ms": round(p50, 3),
        "p90_ms": round(float(np.percentile(times, 90)), 3),
        "p99_ms": round(float(np.percentile(times, 99)), 3),
        "min_ms": round(float(times.min()), 3),
        "spread": None if spread is None else round(spread, 4),
        "stable": len(samples) >= LEAST_ROUNDS and spread is not None and spread <= LARGEST_SPREAD and error is None,
        "cold_start_ms": round(statistics.median(sample["cold_start_ms"] for sample in samples), 1),
        "peak_rss_mb": round(statistics.median(sample["peak_rss_mb"] for sample in samples), 1),
        "gflops": None if gflops is None else round(gflops, 3),
        "params_m": None if params_m is None else round(params_m, 4),
        "throughput_gflops": None if throughput is None else round(throughput, 1),
        "share_of_peak": None if throughput is None or peak is None else round(throughput / peak, 4),
    }
    return row


def _spread(medians: Sequence[float]) -> float | None:
    """Largest less smallest, over the middle one. Of four or more the furthest one is left out: alone it moves no median."""
    if len(medians) < 2:
        return None
    ordered = sorted(medians)
    span = ordered[-1] - ordered[0]
    if len(ordered) > 3:
        span = min(ordered[-1] - ordered[1], ordered[-2] - ordered[0])
    return span / statistics.median(ordered)


_MEASURED = (
    "rounds", "runs", "p50_ms", "p90_ms", "p99_ms", "min_ms", "spread", "stable", "cold_start_ms", "peak_rss_mb", "gflops",
    "params_m", "throughput_gflops", "share_of_peak", "speedup_vs_baseline",
)  # fmt: skip


def _peak_of(job: Job, peaks: Sequence[Mapping[str, Any]]) -> float | None:
    backend = "torch-eager" if job.backend == "torch-compile" else job.backend
    for peak in peaks:
        if (peak["backend"], peak["precision"], peak["threads"]) == (backend, job.precision, job.threads):
            return float(max(peak["convolution_gflops"], peak["matmul_gflops"]))
    return None


_known_facts: dict[tuple[str | None, tuple[int, int]], tuple[float, float]] = {}


def _facts(job: Job) -> tuple[float | None, float | None]:
    """(10⁹ operations of the whole batch, parameters in millions), counted from the graphs; None for what has none."""
    subject, (height, width) = job.subject, job.size
    if subject.kind not in ("network", "bundle", "onnx"):
        return None, None
    key = subject.path, job.size
    if key not in _known_facts:
        try:
            _known_facts[key] = _count(subject, height, width)
        except RuntimeError:  # OpenVINO cannot follow the shapes: the time stands without its share
            return None, subject.params_m
    gflops, counted = _known_facts[key]
    return gflops * job.batch, subject.params_m if subject.params_m is not None else counted


@functools.cache
def input_of(path: Path) -> PictureInput:
    """As `onnx_model.read_input`, once a file."""
    from ..subjects.onnx_model import read_input

    return read_input(path)


def _count(subject: Subject, height: int, width: int) -> tuple[float, float]:
    if subject.kind == "onnx":
        path = Path(str(subject.path))
        taken = input_of(path)
        return graph_facts(path, {taken.name: taken.shape(1, height, width)})
    bundle = Bundle(subject.path)
    return bundle_gflops(bundle, height, width), bundle.manifest.params / 1e6


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Set every row against the baseline of its size, batch and threads."""

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*row["size"], row["batch"], row["threads"])

    baselines = {
        place(row): row["p50_ms"] for row in rows if row["p50_ms"] and {key: row[key] for key in BASELINE} == BASELINE
    }
    for row in rows:
        if row["p50_ms"] and place(row) in baselines:
            row["speedup_vs_baseline"] = round(baselines[place(row)] / row["p50_ms"], 3)


def fit_exponents(rows: Sequence[Mapping[str, Any]], sweep: str) -> list[dict[str, Any]]:
    """For every model, backend and precision: p such that time ∝ (pixels, threads or pictures)^p; least squares of logs.

    "steepest": the largest between two neighbours: a step does not hide in the mean.
    """
    series: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        points = series.setdefault((row["model"], row["backend"], row["precision"]), [])
        if row["p50_ms"]:
            height, width = row["size"]
            x = {"size": height * width, "threads": row["threads"], "batch": row["batch"]}[sweep]
            points.append((math.log(x), math.log(row["p50_ms"])))
    fits = []
    for (model, backend, precision), points in series.items():
        distinct = len({x for x, _ in points}) >= 2
        exponent = float(np.polyfit([x for x, _ in points], [y for _, y in points], 1)[0]) if distinct else None
        local = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.pairwise(sorted(points)) if x2 > x1]
        steepest = max(local, default=None)
        fits.append(
            {
                "model": model,
                "backend": backend,
                "precision": precision,
                "exponent": None if exponent is None else round(exponent, 4),
                "steepest": None if steepest is None else round(steepest, 4),
                "points": len(points),
            }
        )
    return fits
