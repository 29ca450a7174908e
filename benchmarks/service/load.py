"""`rdsr bench load`: many callers of one bundle, in a closed loop or with pictures that arrive at a rate."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BenchmarkError
from ..process import resident_mb
from ..report.tables import write_figure

__all__ = ["LoadRow", "measure_load", "plot_load"]

Upscale = Callable[[NDArray[Any]], NDArray[Any]]
Jobs = Iterator[tuple[float, NDArray[Any]]]
"""Pictures, each with the moment from which its time counts."""
_SAMPLE_SECONDS = 0.25
_LATE = 2.0
"""Pictures that have not begun after this multiple of the load's length count as failed."""
_VARIETY = 16
"""Callers take at least this number of pictures in turn, at least one of each size."""


@dataclasses.dataclass(frozen=True)
class LoadRow:
    """One load. Times in milliseconds, from the call (closed loop) or from the planned arrival (rate) to the result."""

    load: str
    """"closed, N callers" or "R/s arriving, N callers"."""
    callers: int
    """Threads that call. With a rate, the largest number of pictures in work at once."""
    rate: float | None
    """Arrivals a second (Poisson), or None for a closed loop."""
    seconds: float
    requests: int
    failed: int
    failure: str | None
    """Message of one failed request."""
    throughput: float
    """Pictures a second."""
    megapixels: float
    """10⁶ output pixels a second."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    slowest_caller: float | None
    """Pictures of the caller that got the fewest, divided by a fair share: 1 is fair. None with a rate."""
    rss_mb: float
    """Resident memory at the end, MiB."""
    rss_slope_mb_per_minute: float
    """Slope of a straight line through the resident memory over time, second half only."""
    rss: tuple[tuple[float, float], ...]
    """(seconds, MiB) over time."""


def _slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB a minute over the second half, when caches are full."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return math.nan
    seconds, resident = np.array(half).T
    return float(np.polyfit(seconds, resident, 1)[0] * 60)


class _Caller(threading.Thread):
    """Upscales its jobs, one after the other, and counts."""

    def __init__(self, upscale: Upscale, jobs: Jobs, deadline: float) -> None:
        super().__init__(daemon=True)
        self.upscale, self.jobs, self.deadline = upscale, jobs, deadline
        self.latencies: list[float] = []
        self.pixels = self.failed = 0
        self.failure: str | None = None

    def run(self) -> None:
        for since, picture in self.jobs:
            try:
                if time.perf_counter() > self.deadline:
                    raise TimeoutError("it had to wait for too long")
                larger = self.upscale(picture)
            except Exception as error:  # every error of an engine under load is counted
                self.failed += 1
                self.failure = self.failure or " ".join(str(error).split()) or type(error).__name__
            else:
                self.latencies.append(1e3 * (time.perf_counter() - since))
                self.pixels += larger.shape[0] * larger.shape[1]


def _closed(pictures: Iterable[NDArray[Any]], end: float) -> Jobs:
    """Jobs of a caller that asks again as soon as it is served; at least one, even if its thread begins late."""
    for picture in pictures:
        yield time.perf_counter(), picture
        if time.perf_counter() >= end:
            return


def _arriving(pictures: Iterable[NDArray[Any]], rate: float, seconds: float) -> Jobs:
    """Jobs of a Poisson process. It does not wait for the callers, and the time that a picture waits for one counts."""
    planned = started = time.perf_counter()
    gaps = np.random.default_rng(0)
    for picture in pictures:
        planned += gaps.exponential(1 / rate)
        if planned >= started + seconds:
            return
        time.sleep(max(0.0, planned - time.perf_counter()))
        yield planned, picture


def _shared(jobs: Jobs, lock: threading.Lock) -> Jobs:
    """One caller's part of jobs that several callers take from: one waits for the next job, the others for their turn."""
    while True:
        with lock:
            job = next(jobs, None)
        if job is None:
            return
        yield job


def _wait(callers: Sequence[_Caller]) -> list[tuple[float, float]]:
    """Wait until all callers have ended. Returns samples of resident memory meanwhile: (seconds, MiB)."""
    samples = []
    started = time.perf_counter()
    for caller in callers:
        caller.join(_SAMPLE_SECONDS)
        while caller.is_alive():
            samples.append((round(time.perf_counter() - started, 2), round(resident_mb(), 2)))
            caller.join(_SAMPLE_SECONDS)
    return samples


def measure_load(
    upscaler: Upscale,
    *,
    sizes: Sequence[tuple[int, int]],
    concurrency: Sequence[int],
    rate: float | None,
    seconds: float,
    progress: Callable[[str], None] = lambda step: None,
) -> list[LoadRow]:
    """One row of `seconds` for each number of callers, after a warm-up with every LR size (height, width).

    Raises `BenchmarkError` if no call of a row was served.
    """
    noise = np.random.default_rng(0)
    rounds = math.ceil(_VARIETY / len(sizes))
    pictures = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [*sizes] * rounds]
    for picture in pictures[: len(sizes)]:
        upscaler(picture)
    rows = []
    for count in concurrency:
        name = f"closed, {count} callers" if rate is None else f"{rate:g}/s arriving, {count} callers"
        progress(name)
        started = time.perf_counter()
        if rate is None:
            turns = [itertools.islice(itertools.cycle(pictures), index, None, count) for index in range(count)]
            callers = [_Caller(upscaler, _closed(turn, started + seconds), math.inf) for turn in turns]
        else:
            arrivals, lock = _arriving(itertools.cycle(pictures), rate, seconds), threading.Lock()
            callers = [_Caller(upscaler, _shared(arrivals, lock), started + _LATE * seconds) for _ in range(count)]
        for caller in callers:
            caller.start()
        rss = _wait(callers)
        rows.append(_row(name, callers, rate, time.perf_counter() - started, rss))
    return rows


def _row(
    name: str, callers: Sequence[_Caller], rate: float | None, seconds: float, rss: Sequence[tuple[float, float]]
) -> LoadRow:
    latencies = [ms for caller in callers for ms in caller.latencies]
    failed = sum(caller.failed for caller in callers)
    failure = next((caller.failure for caller in callers if caller.failure), None)
    if not latencies:
        raise BenchmarkError(f"{name}: no call was served ({failed} failed{f': {failure}' if failure else ''})")
    p50, p90, p99, longest = np.percentile(latencies, (50, 90, 99, 100)).round(2).tolist()
    fewest = min(len(caller.latencies) for caller in callers)
    return LoadRow(
        load=name,
        callers=len(callers),
        rate=rate,
        seconds=round(seconds, 2),
        requests=len(latencies) + failed,
        failed=failed,
        failure=failure,
        throughput=round(len(latencies) / seconds, 3),
        megapixels=round(sum(caller.pixels for caller in callers) / seconds / 1e6, 3),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=longest,
        slowest_caller=None if rate is not None else round(fewest * len(callers) / len(latencies), 3),
        rss_mb=round(resident_mb(), 1),
        rss_slope_mb_per_minute=round(_slope(rss), 3),
        rss=tuple(rss),
    )


def plot_load(rows: Sequence[LoadRow], target: Path) -> None:
    """Latency percentiles of every load, and resident memory over time, as a PNG. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = np.arange(len(rows))
    for offset, (key, shade) in enumerate((("p50_ms", "0.75"), ("p90_ms", "0.5"), ("p99_ms", "0.2"))):
        values = [getattr(row, key) for row in rows]
        left.bar(positions + 0.27 * (offset - 1), values, 0.25, color=shade, label=key.removesuffix("_ms"))
    left.set_xticks(positions, [row.load.replace(", ", "\n") for row in rows])
    left.set(ylabel="milliseconds", title="time of a call")
    left.legend()
    for row, style in zip(rows, itertools.cycle(("-", "--", ":", "-.")), strict=False):
        if row.rss:
            right.plot(*np.array(row.rss).T, style, color="0.2", label=row.load)
    right.set(xlabel="seconds", ylabel="MiB", title="resident memory", ylim=(0, None))
    right.legend()
    write_figure(figure, target)
