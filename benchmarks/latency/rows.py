"""Turn the samples of `rdsr bench latency` into rows: medians, shares of the peak, ratios and exponents."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle import Bundle
from ..subjects.find import DIFFIR, Subject
from ..subjects.onnx_model import read_input
from .flops import bundle_gflops, graph_facts

__all__ = ["BASELINE", "LEAST_ROUNDS", "SWEEPS", "Job", "compare", "fit_exponents", "input_of", "row_of"]

BASELINE = {"model": DIFFIR, "backend": "torch-eager", "precision": "fp32"}
"""Every other row's time is compared with this row at the same size, batch and threads."""
SWEEPS = ("size", "threads", "batch")
"""Axes that can be swept."""
LEAST_ROUNDS = 3
"""A row of fewer rounds is never called stable."""
LARGEST_SPREAD = 0.1
"""Largest spread of the rounds' medians (see `_spread`) in a stable row."""
_MEASURED = {
    "rounds": None, "runs": None, "p50_ms": 3, "p90_ms": 3, "p99_ms": 3, "min_ms": 3, "spread": 4, "stable": None,
    "conversion_ms": 2, "cold_start_ms": 1, "peak_rss_mb": 1, "gflops": 3, "params_m": 4, "throughput_gflops": 1,
    "share_of_peak": 4, "speedup_vs_baseline": 3,
}  # fmt: skip
"""Measured values of a row → decimal places; None: stored as they are."""

input_of = functools.cache(read_input)


@dataclasses.dataclass(frozen=True)
class Job:
    """One row: the model and how to run it."""

    subject: Subject
    backend: str
    precision: str
    size: tuple[int, int]
    """LR height and width."""
    batch: int
    threads: int

    @property
    def key(self) -> str:
        """A name that no other row of the run has."""
        height, width = self.size
        return f"{self.subject.model} {self.backend} {self.precision} {height}x{width} b{self.batch} t{self.threads}"

    @property
    def pixels(self) -> int:
        """LR pixels of the whole batch."""
        return math.prod(self.size) * self.batch

    @property
    def peak(self) -> tuple[str, str, int]:
        """Backend, precision and threads of the machine's peak that this row is compared with."""
        return self.backend.replace("torch-compile", "torch-eager"), self.precision, self.threads


def row_of(
    job: Job, samples: Sequence[Mapping[str, Any]], error: str | None, peaks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Make one row of the JSON report from the samples of its processes, or from the error that stopped it."""
    row: dict[str, Any] = {"model": job.subject.model, "weights": job.subject.weights, "backend": job.backend}
    row |= {"precision": job.precision, "size": list(job.size), "batch": job.batch, "threads": job.threads}
    row |= dict.fromkeys((*_MEASURED, "graphs_ms"))
    if not samples:
        return row | {"error": error or "not run", "failed_later": None}
    times = np.concatenate([sample["times_ms"] for sample in samples])
    p50, p90, p99 = np.percentile(times, (50, 90, 99)).tolist()
    spread = _spread([statistics.median(sample["times_ms"]) for sample in samples])
    gflops, params_m = _arithmetic(job.subject, *job.size)
    measured = {
        "rounds": len(samples),
        "runs": len(times),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "min_ms": float(times.min()),
        "spread": spread,
        "stable": len(samples) >= LEAST_ROUNDS and spread is not None and spread <= LARGEST_SPREAD and error is None,
        "conversion_ms": _median_of(samples, "conversion_ms"),
        "cold_start_ms": statistics.median(sample["cold_start_ms"] for sample in samples),
        "peak_rss_mb": statistics.median(sample["peak_rss_mb"] for sample in samples),
        "params_m": params_m,
    }
    if gflops is not None:
        throughput = 1e3 * gflops * job.batch / p50
        measured |= {"gflops": gflops * job.batch, "throughput_gflops": throughput}
        for peak in peaks:
            if (peak["backend"], peak["precision"], peak["threads"]) == job.peak:
                measured["share_of_peak"] = throughput / max(peak["convolution_gflops"], peak["matmul_gflops"])
    for key, value in measured.items():
        digits = _MEASURED[key]
        row[key] = value if value is None or digits is None else round(value, digits)
    if graphs := samples[0].get("graphs_ms"):
        row["graphs_ms"] = {
            role: round(statistics.median(sample["graphs_ms"][role] for sample in samples), 1) for role in graphs
        }
    return row | {"error": None, "failed_later": error}


def _median_of(samples: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Median of a value that not every sample has."""
    found = [sample[key] for sample in samples if sample.get(key) is not None]
    return statistics.median(found) if found else None


def _spread(medians: Sequence[float]) -> float | None:
    """Return the largest minus the smallest median, divided by the middle one; None for a single round.

    Of four or more the furthest one is left out: one outlier does not move the middle.
    """
    if len(medians) < 2:
        return None
    ordered = sorted(medians)
    span = ordered[-1] - ordered[0]
    if len(ordered) > 3:
        span = min(ordered[-1] - ordered[1], ordered[-2] - ordered[0])
    return span / statistics.median(ordered)


@functools.cache
def _arithmetic(subject: Subject, height: int, width: int) -> tuple[float | None, float | None]:
    """Return (operations for one picture in 10⁹, parameters in millions); None for what cannot be counted."""
    with suppress(RuntimeError):  # OpenVINO cannot follow the shapes: the row has a time but no share of the peak
        if subject.kind == "onnx":
            path = Path(str(subject.path))
            taken = input_of(path)
            gflops, weights = graph_facts(path, {taken.name: taken.shape(1, height, width)})
            return gflops, weights if subject.params_m is None else subject.params_m
        if subject.kind in ("network", "bundle"):
            return bundle_gflops(Bundle(subject.path), height, width), subject.params_m
    return None, subject.params_m


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in every row's speedup over the baseline of its size, batch and threads."""
    place = operator.itemgetter("size", "batch", "threads")
    baselines = [row for row in rows if row["p50_ms"] and BASELINE.items() <= row.items()]
    for row in rows:
        for baseline in baselines:
            if row["p50_ms"] and place(row) == place(baseline):
                row["speedup_vs_baseline"] = round(baseline["p50_ms"] / row["p50_ms"], 3)


def fit_exponents(rows: Sequence[Mapping[str, Any]], sweep: str) -> list[dict[str, Any]]:
    """For every model, backend and precision, fit p in: time ∝ (pixels, threads or pictures)^p, by least squares of logs.

    "steepest" is the largest exponent between two neighbours. It shows a step that the mean would hide.
    """
    series: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        points = series.setdefault((row["model"], row["backend"], row["precision"]), [])
        if row["p50_ms"]:
            swept = math.prod(row["size"]) if sweep == "size" else row[sweep]
            points.append((math.log(swept), math.log(row["p50_ms"])))
    fits = []
    for (model, backend, precision), points in series.items():
        local = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in itertools.pairwise(sorted(points)) if x2 > x1]
        fit: dict[str, Any] = {"model": model, "backend": backend, "precision": precision}
        fit |= {"exponent": None, "steepest": None, "points": len(points)}
        if local:
            x, y = np.transpose(points)
            fit |= {"exponent": round(float(np.polyfit(x, y, 1)[0]), 4), "steepest": round(max(local), 4)}
        fits.append(fit)
    return fits
