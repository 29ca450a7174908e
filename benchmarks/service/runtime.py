"""`rdsr bench runtime`: what a service asks of the runtime – start, unseen sizes, memory, many callers."""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.engines.cache import CACHE_VARIABLE
from ...runtime.host.processes import call_apart, last_line
from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError
from ..process import peak_mb, resident_mb

__all__ = [
    "Figure",
    "NewSizes",
    "Subject",
    "measure_callers",
    "measure_memory",
    "measure_new_sizes",
    "measure_start",
    "plot_new_sizes",
]

Progress = Callable[[str], None]
_STARTS = 5
_SMALLEST, _LARGEST = 32, 512
_CALLED = (128, 128)
_FAIR_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured value beside what was asked for."""

    figure: str
    value: float
    unit: str
    asked: str
    """What it should be, e.g. "≤ 0.25"; empty where it is shown for comparison."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: the arguments of `Upscaler.load`."""

    bundle: str | None
    backend: str
    precision: str
    threads: int

    def load(self, memory_limit: int | str | None = None) -> Upscaler:
        """A new instance."""
        return Upscaler.load(
            self.bundle, backend=self.backend, precision=self.precision, threads=self.threads, memory_limit=memory_limit
        )


@dataclasses.dataclass(frozen=True)
class NewSizes:
    """First and later calls of pictures of random sizes, milliseconds; one entry a size."""

    sizes: tuple[tuple[int, int], ...]
    first_ms: tuple[float, ...]
    steady_ms: tuple[tuple[float, ...], ...]
    """Later calls of the same size, at least two."""

    def line(self) -> tuple[float, float]:
        """(a, b) of the steady time a + b·pixels, fitted to every size's median with relative errors."""
        pixels = np.array([height * width for height, width in self.sizes], float)
        steady = np.array([statistics.median(times) for times in self.steady_ms])
        slope, offset = np.polyfit(pixels, steady, 1, w=1 / steady)
        return float(offset), float(slope)

    def fitted(self) -> np.ndarray:
        """Milliseconds that the line gives for every size."""
        offset, slope = self.line()
        return np.array([offset + slope * height * width for height, width in self.sizes])

    def figures(self) -> list[Figure]:
        """The first calls against the fit, and the later ones, which show how much of it is the machine's own noise."""
        fit = self.fitted()
        first, later = np.array(self.first_ms), np.array(self.steady_ms)
        again = later[:, -1]  # one call of each size, like the first ones
        own = later[:, :-1].min(axis=1)
        return [
            Figure("first call at a new size, median, of the fit", float(np.median(first / fit)), "×", ""),
            Figure("first call at a new size, p99, of the fit", float(np.percentile(first / fit, 99)), "×", "≤ 1.5"),
            Figure("later call, p99, of the fit", float(np.percentile(again / fit, 99)), "×", ""),
            Figure("first call at a new size, most above the fit", float((first - fit).max()), "ms", "≤ 50"),
            Figure("later call, most above the fit", float((again - fit).max()), "ms", ""),
            Figure("first call above the size's own best, p99", float(np.percentile(first / own, 99)), "×", ""),
            Figure("later call above the size's own best, p99", float(np.percentile(again / own, 99)), "×", ""),
        ]


def _child(function: str, *arguments: Any, **environment: str) -> Any:
    """Call a function of this module in a new process, with a model cache of its own unless it is given one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return call_apart(__name__, function, arguments, environment={CACHE_VARIABLE: folder, **environment})
        except ChildProcessError as error:
            raise BenchmarkError(f"a measuring process failed: {error}") from error


def measure_start(subjects: Mapping[str, Subject], progress: Progress = lambda step: None) -> list[Figure]:
    """Seconds to import the library, and from there to the first 128×128 picture, without and with what the cache keeps.

    `subjects`: what to start, by the name to give it. "auto" finds out which precision is the faster one where it has to;
    OpenVINO keeps compiled forms.
    """
    progress("start")
    imports: list[float] = []
    numpys: list[float] = []
    starts: dict[tuple[str, str], list[float]] = {}
    for _ in range(_STARTS):  # interleaved
        numpys.append(_import_seconds("numpy"))
        imports.append(_import_seconds("rdsr.runtime"))
        for name, subject in subjects.items():
            with tempfile.TemporaryDirectory() as folder:
                for state in ("empty", "warm"):
                    seconds = _child("first_picture", dataclasses.asdict(subject), **{CACHE_VARIABLE: folder})
                    starts.setdefault((name, state), []).append(seconds)
    asked = {"empty": "≤ 2", "warm": "≤ 0.8"}
    return [
        Figure("import rdsr.runtime", statistics.median(imports), "s", "≤ 0.25"),
        Figure("import numpy alone", statistics.median(numpys), "s", ""),
        *(
            Figure(f"load and first 128×128 picture, {name}, {state} cache", statistics.median(times), "s", asked[state])
            for (name, state), times in starts.items()
        ),
    ]


def _import_seconds(module: str) -> float:
    script = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    path = os.pathsep.join(path for path in sys.path if path)
    try:
        return float(last_line([sys.executable, "-c", script], environment={"PYTHONPATH": path}))
    except ChildProcessError as error:
        raise BenchmarkError(f"{module} cannot be imported in a new process: {error}") from error


def first_picture(facts: Mapping[str, Any]) -> float:
    """Seconds from loading to the first picture; in a process of its own."""
    picture = np.zeros((128, 128, 3), np.uint8)
    started = time.perf_counter()
    Subject(**facts).load()(picture)
    return time.perf_counter() - started


def measure_new_sizes(subject: Subject, count: int, progress: Progress = lambda step: None) -> NewSizes:
    """`count` random sizes between 32² and 512², each called once for the first time, and three times more."""
    progress(f"{count} new sizes")
    return NewSizes(*(_tuples(part) for part in _child("new_sizes", dataclasses.asdict(subject), count)))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def new_sizes(facts: Mapping[str, Any], count: int) -> tuple[Any, ...]:
    """As `measure_new_sizes`, in a process of its own."""
    noise = np.random.default_rng(0)
    upscaler = Subject(**facts).load()
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
    """Peak MiB beyond what the process had before loading, and beyond input and output, of square pictures under a limit."""
    figures = []
    for side in sides:
        progress(f"memory, {side}×{side}")
        used, bound = _child("peak_memory", dataclasses.asdict(subject), side, limit)
        figures.append(Figure(f"peak memory at {side}×{side} under {limit}", used, "MiB", f"≤ {bound:.0f}"))
    return figures


def peak_memory(facts: Mapping[str, Any], side: int, limit: str) -> tuple[float, float]:
    """(used, limit) in MiB; in a process of its own."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    before = resident_mb()
    upscaler = Subject(**facts).load(memory_limit=limit)
    larger = upscaler(picture)
    assert upscaler.memory_limit is not None
    return peak_mb() - before - larger.nbytes / 2**20, upscaler.memory_limit / 2**20


def measure_callers(
    subject: Subject, callers: Sequence[int], seconds: float, rounds: int, progress: Progress = lambda step: None
) -> list[Figure]:
    """Throughput of so many callers of one instance against one caller, in short turns; then how fairly they are served."""
    from .load import measure_load

    upscaler = subject.load()
    throughput: dict[int, list[float]] = {count: [] for count in (1, *callers)}
    for index in range(rounds):
        progress(f"callers, round {index + 1} of {rounds}")
        order = tuple(throughput) if index % 2 else tuple(reversed(throughput))
        for row in measure_load(upscaler, sizes=[_CALLED], concurrency=order, rate=None, seconds=seconds):
            throughput[row.callers].append(row.throughput)
    progress("callers, fairness")
    rows = measure_load(upscaler, sizes=[_CALLED], concurrency=callers, rate=None, seconds=_FAIR_ROUNDS * seconds)
    fairness = {row.callers: row.slowest_caller or 0.0 for row in rows}
    figures = [Figure("throughput of one caller, 128×128", statistics.median(throughput[1]), "pictures/s", "")]
    for count in callers:
        ratio = statistics.median(many / one for many, one in zip(throughput[count], throughput[1], strict=True))
        figures.append(Figure(f"throughput of {count} callers, of one's", ratio, "×", "≥ 0.95"))
        figures.append(Figure(f"fewest pictures of {count} callers, of a fair share", fairness[count], "×", ""))
    return figures


def plot_new_sizes(measured: NewSizes, target: Path) -> None:
    """First and later calls over pixels, with the line and what is allowed above it, as a PNG. Needs matplotlib."""
    from matplotlib.figure import Figure as Canvas

    from ..report.tables import write_figure

    canvas = Canvas(figsize=(8, 5), layout="constrained")
    axes = canvas.subplots()
    pixels = np.array([height * width for height, width in measured.sizes]) / 1e3
    order = np.argsort(pixels)
    fit = measured.fitted()
    axes.plot(pixels, [times[-1] for times in measured.steady_ms], ".", color="0.7", label="later calls")
    axes.plot(pixels, measured.first_ms, "x", color="0.1", markersize=5, label="first calls")
    axes.plot(pixels[order], fit[order], "-", color="C0", label="steady fit")
    axes.plot(pixels[order], 1.5 * fit[order], "--", color="C0", label="1.5 × the fit")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("LR pixels (thousands)")
    axes.set_ylabel("milliseconds")
    axes.legend()
    write_figure(canvas, target)
