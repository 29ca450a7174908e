"""`rdsr bench load`: a bundle under callers, in a closed loop or arriving at a rate."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError
from ..process import resident_mb

__all__ = ["LoadRow", "measure_load", "plot_load"]

Progress = Callable[[str], None]
_SAMPLE_SECONDS = 0.25
_LATE = 1.0
"""Of the length of a load: how long after it pictures that have arrived may still begin; the others count as failed."""
_VARIETY = 16
"""Pictures that callers take from in turn, one of each size at least."""


@dataclasses.dataclass(frozen=True)
class LoadRow:
    """One load. Times in milliseconds, from the call (closed loop) or from the planned arrival (rate) to the result."""

    load: str
    """"closed, N callers" or "R/s arriving"."""
    callers: int
    """Threads that call; with a rate, the most that are under way at once."""
    rate: float | None
    """Arrivals a second (Poisson), or None for a closed loop."""
    seconds: float
    requests: int
    failed: int
    failure: str | None
    """What one of those that failed said."""
    throughput: float
    """Pictures a second."""
    megapixels: float
    """10⁶ output pixels a second."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    slowest_caller: float | None
    """Share of the pictures that the caller with the fewest got, of a fair share; 1 is fair. Closed loop alone."""
    rss_mb: float
    """Resident memory at the end, MiB."""
    rss_slope_mb_per_minute: float
    """Of a straight line through the resident memory over time, from the second half on."""
    rss: tuple[tuple[float, float], ...]
    """(seconds, MiB) over time."""


class _Watch(threading.Thread):
    """Samples resident memory until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self._stop_asked = threading.Event()
        self._since = time.perf_counter()

    def run(self) -> None:
        while not self._stop_asked.wait(_SAMPLE_SECONDS):
            self.samples.append((round(time.perf_counter() - self._since, 2), round(resident_mb(), 2)))

    def stop(self) -> tuple[tuple[float, float], ...]:
        self._stop_asked.set()
        self.join()
        return tuple(self.samples)


def _slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB a minute over the second half, when caches have been filled."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return float("nan")
    seconds, resident = np.array(half).T
    return float(np.polyfit(seconds, resident, 1)[0] * 60)


@dataclasses.dataclass
class _Tally:
    latencies: list[float] = dataclasses.field(default_factory=list)
    pixels: int = 0
    failed: int = 0
    failure: str | None = None


def _call(upscaler: Callable[[NDArray[Any]], NDArray[Any]], picture: NDArray[Any], since: float, tally: _Tally) -> None:
    try:
        larger = upscaler(picture)
    except Exception as error:  # whatever an engine raises under load is what is to be counted
        tally.failed += 1
        tally.failure = tally.failure or " ".join(str(error).split()) or type(error).__name__
        return
    tally.latencies.append(1e3 * (time.perf_counter() - since))
    tally.pixels += larger.shape[0] * larger.shape[1]


def _closed(
    upscaler: Callable[[NDArray[Any]], NDArray[Any]], pictures: Sequence[NDArray[Any]], callers: int, seconds: float
) -> list[_Tally]:
    """Every caller asks again as soon as it has been served."""
    tallies = [_Tally() for _ in range(callers)]
    end = time.perf_counter() + seconds

    def caller(index: int) -> None:
        turn = index
        while turn == index or time.perf_counter() < end:  # once in any case, however late its thread begins
            _call(upscaler, pictures[turn % len(pictures)], time.perf_counter(), tallies[index])
            turn += callers

    with _running(caller, range(callers)):
        pass
    return tallies


def _arriving(
    upscaler: Callable[[NDArray[Any]], NDArray[Any]],
    pictures: Sequence[NDArray[Any]],
    callers: int,
    rate: float,
    seconds: float,
) -> list[_Tally]:
    """Pictures arrive by a Poisson process, whether the earlier ones are done or not; waiting counts."""
    tallies = [_Tally() for _ in range(callers)]
    arrivals: queue.SimpleQueue[tuple[float, NDArray[Any]] | None] = queue.SimpleQueue()

    def caller(tally: _Tally) -> None:
        while (item := arrivals.get()) is not None:
            if time.perf_counter() > started + (1 + _LATE) * seconds:  # faster than they can be served: they are given up
                tally.failed += 1
                tally.failure = tally.failure or "it had to wait for too long"
            else:
                _call(upscaler, item[1], item[0], tally)

    planned = started = time.perf_counter()
    with _running(caller, tallies):
        gaps = np.random.default_rng(0)
        index = 0
        while (planned := planned + gaps.exponential(1 / rate)) < started + seconds:
            time.sleep(max(0.0, planned - time.perf_counter()))
            arrivals.put((planned, pictures[index % len(pictures)]))
            index += 1
        for _ in tallies:
            arrivals.put(None)
    return tallies


@contextlib.contextmanager
def _running(caller: Callable[[Any], None], arguments: Iterable[Any]) -> Iterator[None]:
    """A thread for each argument, started on entering and awaited on leaving."""
    threads = [threading.Thread(target=caller, args=(argument,), daemon=True) for argument in arguments]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def _pictures(sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    noise = np.random.default_rng(0)
    rounds = -(-_VARIETY // len(sizes))
    return [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(rounds) for size in sizes]


def measure_load(
    upscaler: Upscaler | Callable[[NDArray[Any]], NDArray[Any]],
    *,
    sizes: Sequence[tuple[int, int]],
    concurrency: Sequence[int],
    rate: float | None,
    seconds: float,
    progress: Progress = lambda step: None,
) -> list[LoadRow]:
    """One row for each number of callers, after a warm-up with every size. `seconds`: of each row.

    Raises `BenchmarkError` where not a single call was served.
    """
    pictures = _pictures(sizes)
    for picture in pictures[: len(sizes)]:
        upscaler(picture)
    rows = []
    for callers in concurrency:
        name = f"closed, {callers} callers" if rate is None else f"{rate:g}/s arriving, {callers} callers"
        progress(name)
        watch = _Watch()
        watch.start()
        started = time.perf_counter()
        if rate is None:
            tallies = _closed(upscaler, pictures, callers, seconds)
        else:
            tallies = _arriving(upscaler, pictures, callers, rate, seconds)
        taken = time.perf_counter() - started
        rows.append(_row(name, callers, rate, taken, tallies, watch.stop()))
    return rows


def _row(
    name: str,
    callers: int,
    rate: float | None,
    taken: float,
    tallies: Sequence[_Tally],
    rss: tuple[tuple[float, float], ...],
) -> LoadRow:
    latencies = np.array([ms for tally in tallies for ms in tally.latencies])
    failed = sum(tally.failed for tally in tallies)
    failure = next((tally.failure for tally in tallies if tally.failure), None)
    if not len(latencies):
        raise BenchmarkError(f"{name}: no call was served ({failed} failed{f': {failure}' if failure else ''})")
    p50, p90, p99 = (round(float(value), 2) for value in np.percentile(latencies, (50, 90, 99)))
    fewest = min(len(tally.latencies) for tally in tallies)
    return LoadRow(
        load=name,
        callers=callers,
        rate=rate,
        seconds=round(taken, 2),
        requests=len(latencies) + failed,
        failed=failed,
        failure=failure,
        throughput=round(len(latencies) / taken, 3),
        megapixels=round(sum(tally.pixels for tally in tallies) / taken / 1e6, 3),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=round(float(latencies.max()), 2),
        slowest_caller=None if rate is not None else round(fewest * callers / len(latencies), 3),
        rss_mb=round(resident_mb(), 1),
        rss_slope_mb_per_minute=round(_slope(rss), 3),
        rss=rss,
    )


def plot_load(rows: Sequence[LoadRow], target: Path) -> None:
    """Latency percentiles of every load, and resident memory over time, as a PNG. Needs matplotlib."""
    from matplotlib.figure import Figure

    from ..report.tables import write_figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = np.arange(len(rows))
    for offset, (key, shade) in enumerate((("p50_ms", "0.75"), ("p90_ms", "0.5"), ("p99_ms", "0.2"))):
        values = [getattr(row, key) for row in rows]
        left.bar(positions + 0.27 * (offset - 1), values, 0.25, color=shade, label=key.removesuffix("_ms"))
    left.set_xticks(positions, [row.load.replace(", ", "\n") for row in rows])
    left.set_ylabel("milliseconds")
    left.set_title("time of a call")
    left.legend()
    for row, style in zip(rows, ("-", "--", ":", "-.") * len(rows), strict=False):
        if row.rss:
            right.plot(*np.array(row.rss).T, style, color="0.2", label=row.load)
    right.set_xlabel("seconds")
    right.set_ylabel("MiB")
    right.set_title("resident memory")
    right.set_ylim(bottom=0)
    right.legend()
    write_figure(figure, target)
