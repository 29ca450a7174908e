"""`rdsr bench runtime`: what a service needs of the runtime, in figures: start, unseen sizes, memory, many callers."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...runtime.engines.cache import CACHE_VARIABLE
from ...runtime.host.processes import call_apart, last_line
from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError
from ..process import peak_mb, resident_mb
from ..report.tables import write_figure
from .load import measure_load

__all__ = [
    "Figure", "NewSizes", "Subject", "measure_callers", "measure_memory", "measure_new_sizes", "measure_start",
    "plot_new_sizes",
]  # fmt: skip

Progress = Callable[[str], None]
_STARTS = 5
_SMALLEST, _LARGEST = 32, 512
_CALLED = (128, 128)
_FAIR_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured value and its target."""

    figure: str
    value: float
    unit: str
    asked: str
    """Target, e.g. "≤ 0.25"; empty if the value is only for comparison."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The arguments of `Upscaler.load` for what is measured."""

    bundle: str | None
    backend: str
    precision: str
    threads: int


@dataclasses.dataclass(frozen=True)
class NewSizes:
    """Milliseconds of first and later calls of pictures of random sizes; one entry a size."""

    sizes: Sequence[tuple[int, int]]
    first_ms: Sequence[float]
    steady_ms: Sequence[Sequence[float]]
    """Later calls of the same size, at least two."""

    def line(self) -> tuple[float, float]:
        """(a, b) of the steady time a + b·pixels, fitted to every size's median with relative errors."""
        steady = np.median(self.steady_ms, axis=1)
        slope, offset = np.polyfit(np.prod(self.sizes, axis=1), steady, 1, w=1 / steady)
        return float(offset), float(slope)

    def fitted(self) -> np.ndarray:
        """Milliseconds that the line gives for every size."""
        offset, slope = self.line()
        return offset + slope * np.prod(self.sizes, axis=1)

    def figures(self) -> list[Figure]:
        """The first calls against the fit. The later calls beside them show the noise of the machine itself."""
        fit, first, later = self.fitted(), np.array(self.first_ms), np.array(self.steady_ms)
        again = later[:, -1]  # one call of each size, like the first ones
        best = later[:, :-1].min(axis=1)
        return [
            Figure("first call at a new size, median, of the fit", float(np.median(first / fit)), "×", ""),
            Figure("first call at a new size, p99, of the fit", float(np.percentile(first / fit, 99)), "×", "≤ 1.5"),
            Figure("later call, p99, of the fit", float(np.percentile(again / fit, 99)), "×", ""),
            Figure("first call at a new size, most above the fit", float((first - fit).max()), "ms", "≤ 50"),
            Figure("later call, most above the fit", float((again - fit).max()), "ms", ""),
            Figure("first call above the size's own best, p99", float(np.percentile(first / best, 99)), "×", ""),
            Figure("later call above the size's own best, p99", float(np.percentile(again / best, 99)), "×", ""),
        ]


def _child(function: str, subject: Subject, *arguments: Any, cache: str | None = None) -> Any:
    """Call a function of this module in a new process. `cache`: folder of the model cache, by default an empty one."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {CACHE_VARIABLE: cache or empty}
        try:
            return call_apart(__name__, function, (dataclasses.asdict(subject), *arguments), environment=environment)
        except ChildProcessError as error:
            raise BenchmarkError(f"a measuring process failed: {error}") from error


def measure_start(subjects: Mapping[str, Subject], progress: Progress = lambda step: None) -> list[Figure]:
    """Seconds to import the library, and to load each of the named subjects and upscale a first 128×128 picture.

    Each is loaded with an empty and with a warm cache. The cache keeps the precision that "auto" found to be the fastest,
    and OpenVINO's compiled models.
    """
    progress("start")
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(_STARTS):  # interleaved, so that drift hits all alike
        # The package loads its names lazily; the module of `Upscaler` is what a service waits for.
        times["import rdsr.runtime", "≤ 0.25"].append(_import_seconds("rdsr.runtime.upscaler"))
        times["import numpy alone", ""].append(_import_seconds("numpy"))
        for name, subject in subjects.items():
            with tempfile.TemporaryDirectory() as folder:
                for state, asked in (("empty", "≤ 2"), ("warm", "≤ 0.8")):
                    figure = f"load and first 128×128 picture, {name}, {state} cache"
                    times[figure, asked].append(_child("first_picture", subject, cache=folder))
    return [Figure(figure, median(seconds), "s", asked) for (figure, asked), seconds in times.items()]


def _import_seconds(module: str) -> float:
    script = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    path = os.pathsep.join(path for path in sys.path if path)
    try:
        return float(last_line([sys.executable, "-c", script], environment={"PYTHONPATH": path}))
    except ChildProcessError as error:
        raise BenchmarkError(f"{module} cannot be imported in a new process: {error}") from error


def first_picture(facts: Mapping[str, Any]) -> float:
    """Seconds from loading to the first picture. `measure_start` calls it in a new process."""
    picture = np.zeros((*_CALLED, 3), np.uint8)
    started = time.perf_counter()
    Upscaler.load(**facts)(picture)
    return time.perf_counter() - started


def measure_new_sizes(subject: Subject, count: int, progress: Progress = lambda step: None) -> NewSizes:
    """`count` random sizes between 32² and 512²; each is called for the first time, and three times more."""
    progress(f"{count} new sizes")
    return NewSizes(*_child("new_sizes", subject, count))


def new_sizes(facts: Mapping[str, Any], count: int) -> tuple[Any, ...]:
    """The fields of `NewSizes`. `measure_new_sizes` calls it in a new process."""
    noise = np.random.default_rng(0)
    upscaler = Upscaler.load(**facts)
    drawn = map(tuple, noise.integers(_SMALLEST, _LARGEST, (2 * count, 2), endpoint=True).tolist())
    sizes = list(dict.fromkeys(drawn))[:count]
    source = noise.integers(0, 256, (_LARGEST + 1, _LARGEST, 3), dtype=np.uint8)

    def call(height: int, width: int) -> float:
        picture = np.ascontiguousarray(source[:height, :width])
        started = time.perf_counter()
        upscaler(picture)
        return 1e3 * (time.perf_counter() - started)

    call(_LARGEST + 1, _SMALLEST - 1)  # the engine starts
    times = [[call(*size) for _ in range(4)] for size in sizes]  # later calls at once, so that drift hits all alike
    return sizes, [first for first, *_ in times], [later for _, *later in times]


def measure_memory(
    subject: Subject, sides: Sequence[int], limit: str, progress: Progress = lambda step: None
) -> list[Figure]:
    """Peak MiB for square LR pictures under a limit, without input, output and what the process had before loading."""
    figures = []
    for side in sides:
        progress(f"memory, {side}×{side}")
        used, bound = _child("peak_memory", subject, side, limit)
        figures.append(Figure(f"peak memory at {side}×{side} under {limit}", used, "MiB", f"≤ {bound:.0f}"))
    return figures


def peak_memory(facts: Mapping[str, Any], side: int, limit: str) -> tuple[float, float]:
    """(used, limit) in MiB. `measure_memory` calls it in a new process."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    before = resident_mb()
    upscaler = Upscaler.load(**facts, memory_limit=limit)
    larger = upscaler(picture)
    assert upscaler.memory_limit is not None
    return peak_mb() - before - larger.nbytes / 2**20, upscaler.memory_limit / 2**20


def measure_callers(
    subject: Subject, callers: Sequence[int], seconds: float, rounds: int, progress: Progress = lambda step: None
) -> list[Figure]:
    """Throughput of several callers of one instance against one caller, in short turns, and how fairly they are served."""
    upscaler = Upscaler.load(**dataclasses.asdict(subject))
    throughput: dict[int, list[float]] = {count: [] for count in (1, *callers)}
    for index in range(rounds):
        progress(f"callers, round {index + 1} of {rounds}")
        order = tuple(throughput) if index % 2 else tuple(reversed(throughput))
        for row in measure_load(upscaler, sizes=[_CALLED], concurrency=order, rate=None, seconds=seconds):
            throughput[row.callers].append(row.throughput)
    progress("callers, fairness")
    rows = measure_load(upscaler, sizes=[_CALLED], concurrency=callers, rate=None, seconds=_FAIR_ROUNDS * seconds)
    figures = [Figure("throughput of one caller, 128×128", median(throughput[1]), "pictures/s", "")]
    for count, row in zip(callers, rows, strict=True):
        ratio = median(many / one for many, one in zip(throughput[count], throughput[1], strict=True))
        figures.append(Figure(f"throughput of {count} callers, of one's", ratio, "×", "≥ 0.95"))
        figures.append(Figure(f"fewest pictures of {count} callers, of a fair share", row.slowest_caller or 0.0, "×", ""))
    return figures


def plot_new_sizes(measured: NewSizes, target: Path) -> None:
    """First and later calls over pixels, with the line and what is allowed above it, as a PNG. Needs matplotlib."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.subplots()
    pixels, fit = np.prod(measured.sizes, axis=1) / 1e3, measured.fitted()
    order = np.argsort(pixels)
    axes.plot(pixels, [times[-1] for times in measured.steady_ms], ".", color="0.7", label="later calls")
    axes.plot(pixels, measured.first_ms, "x", color="0.1", markersize=5, label="first calls")
    axes.plot(pixels[order], fit[order], "-", color="C0", label="steady fit")
    axes.plot(pixels[order], 1.5 * fit[order], "--", color="C0", label="1.5 × the fit")
    axes.set(xscale="log", yscale="log", xlabel="LR pixels (thousands)", ylabel="milliseconds")
    axes.legend()
    write_figure(canvas, target)
