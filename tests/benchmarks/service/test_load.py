"""The load benchmark finds the time, throughput and memory of stand-ins for which they are known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.service.load import _slope, measure_load, plot_load
from rdsr.runtime.host.turns import Turns
from rdsr.tests.conftest import run_alone

SERVER = Turns(1)


def serial(picture: np.ndarray) -> np.ndarray:
    """20 ms a picture, one at a time, first come, first served."""
    with SERVER.hold():
        time.sleep(0.02)
    return picture.repeat(4, axis=0).repeat(4, axis=1)


def measured(**options: object) -> list:
    defaults = {"sizes": [(4, 5)], "concurrency": [1], "rate": None, "seconds": 4.0}
    return measure_load(serial, **(defaults | options))


def test_a_known_time_and_throughput_are_found() -> None:
    alone, three = measured(concurrency=[1, 3])
    assert alone.p50_ms >= 20
    assert alone.p50_ms <= alone.p90_ms <= alone.p99_ms <= alone.max_ms
    assert alone.throughput == pytest.approx((alone.requests - alone.failed) / alone.seconds, rel=0.05)
    assert alone.throughput <= 50
    assert alone.megapixels == pytest.approx(alone.throughput * 16 * 20 / 1e6, abs=1e-3)
    assert three.p50_ms > 1.5 * alone.p50_ms, "three callers of one server wait for each other"
    assert three.throughput <= 50, "one at a time, however many ask"
    assert three.callers == 3
    assert 0 <= three.slowest_caller <= 1


def test_waiting_counts_when_pictures_arrive_faster_than_they_are_served() -> None:
    (fast,) = measured(rate=150.0, concurrency=[4], seconds=1.0)
    assert fast.p99_ms > 500, "the queue grows by 100 pictures of 20 ms in a second"
    assert fast.requests == pytest.approx(150, rel=0.3)


def test_failures_are_counted_and_nothing_served_is_an_error() -> None:
    calls = []

    def flaky(picture: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 1 and len(calls) % 2:
            raise RuntimeError("no")
        time.sleep(0.005)
        return picture

    (row,) = measure_load(flaky, sizes=[(4, 4)], concurrency=[1], rate=None, seconds=2.0)
    assert row.failed == pytest.approx(row.requests / 2, abs=1)
    assert row.failure == "no"

    def broken(picture: np.ndarray) -> np.ndarray:
        if len(calls) > limit:
            raise RuntimeError("no")
        calls.append(1)
        return picture

    limit = len(calls)
    with pytest.raises(BenchmarkError, match=r"no call was served \(\d+ failed: no\)"):
        measure_load(broken, sizes=[(4, 4)], concurrency=[1], rate=None, seconds=0.05)


def test_growing_memory_shows() -> None:
    assert _slope([(t, 100 + 0.5 * t) for t in range(20)]) == pytest.approx(30)
    script = """
        import time, numpy as np
        from rdsr.benchmarks.service.load import measure_load
        kept = []
        def leaky(picture):
            kept.append(np.ones(2**20, np.uint8))
            time.sleep(0.01)
            return picture
        (row,) = measure_load(leaky, sizes=[(4, 4)], concurrency=[1], rate=None, seconds=8.0)
        print(len(kept) / row.seconds * 60, len(kept), row.rss[-1][1] - row.rss[0][1], row.rss_slope_mb_per_minute)
    """
    rate, kept, grown, slope = map(float, run_alone(script).split())
    assert grown > 0.4 * kept
    assert slope > 0.3 * rate


def test_it_is_drawn(tmp_path: Path) -> None:
    plot_load(measured(concurrency=[1, 2], seconds=0.6), tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
