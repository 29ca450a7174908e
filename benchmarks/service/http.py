"""`rdsr bench service`: the HTTP service on loopback beside the library in one process, at and beyond its capacity."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ...runtime.upscaler import Upscaler
from ..errors import BenchmarkError
from ..process import resident_mb
from .load import measure_load

__all__ = ["ServiceRow", "measure_service"]

_CALLERS = 4
"""Callers whose closed loop is the capacity."""
_CROWD = 64
"""Callers that send what arrives at a rate."""
_TURNS = 5
"""Turns of the library and the service in the measurement of the capacity."""
_START_SECONDS = 60.0
_TIMEOUT = 120.0
_BELOW, _BEYOND = 0.8, 3.0
"""Rates, of the capacity."""


@dataclasses.dataclass(frozen=True)
class ServiceRow:
    """One load. Times in milliseconds, with a rate from the planned arrival."""

    load: str
    rate: float | None
    """Arrivals a second, or None for a closed loop."""
    requests: int
    served: int
    rejected: int
    """Answers 429."""
    failed: int
    throughput: float
    """Pictures a second."""
    p50_ms: float | None
    p99_ms: float | None
    answer_p50_ms: float | None
    """From the sending of a request: without the wait for a free caller."""
    answer_p99_ms: float | None
    rejection_p99_ms: float | None
    """From the sending of a request to its 429."""
    rss_mb: float | None
    """Resident memory of the service at the end, MiB."""


class _Client:
    """Sends pictures as binary tensors, over one connection for each thread."""

    def __init__(self, host: str, port: int) -> None:
        self._place, self._here = (host, port), threading.local()

    def post(self, picture: NDArray[Any]) -> tuple[int, NDArray[Any] | None]:
        """Status, and the larger picture if there is one."""
        tensor = {
            "name": "image", "datatype": "UINT8", "shape": [1, *picture.shape],
            "parameters": {"binary_data_size": picture.nbytes},
        }  # fmt: skip
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        for fresh in (False, True):
            connection = getattr(self._here, "connection", None)
            if connection is None:
                connection = self._here.connection = http.client.HTTPConnection(*self._place, timeout=_TIMEOUT)
            try:
                connection.request("POST", "/v2/models/default/infer", head + picture.tobytes(), headers)
                answer = connection.getresponse()
                body = answer.read()
                break
            except (http.client.HTTPException, OSError):  # a connection that was closed for its idleness
                connection.close()
                self._here.connection = None
                if fresh:
                    raise
        if answer.status != 200:
            return answer.status, None
        start = int(answer.headers["Inference-Header-Content-Length"])
        shape = json.loads(body[:start])["outputs"][0]["shape"]
        return 200, np.frombuffer(body, np.uint8, offset=start).reshape(shape)[0]


@contextlib.contextmanager
def _served(bundle: str | None, threads: int, queue: int | None, log: Path) -> Iterator[tuple[_Client, int]]:
    """A client of `rdsr serve` in a process of its own, and the number of that process. Raises `BenchmarkError`."""
    chosen = [] if bundle is None else ["--bundle", f"default={bundle}"]
    chosen += [] if queue is None else ["--queue", str(queue)]
    package = __name__.split(".")[0]
    command = [sys.executable, "-m", f"{package}.cli", "serve", "--port", "0", "--threads", str(threads), *chosen]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        lines = _until_ready(process, log)
        host, _, port = next(line["address"] for line in lines if line["message"] == "listening")[7:].rpartition(":")
        yield _Client(host, int(port)), process.pid
    finally:
        process.terminate()
        try:
            process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(process: subprocess.Popen[bytes], log: Path) -> list[dict[str, Any]]:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        if any(line["message"] == "ready" for line in lines):
            return lines
        time.sleep(0.02)
    raise BenchmarkError(f"the service did not get ready: {log.read_text()[-500:].strip()}")


class _Crowd:
    """Callers that share arrivals, and what became of each."""

    def __init__(self, client: _Client, pictures: Sequence[NDArray[Any]]) -> None:
        self._client, self._pictures = client, pictures
        self._lock = threading.Lock()
        self.served: list[tuple[float, float]] = []
        """Milliseconds (from the planned moment, from the sending)."""
        self.rejected: list[float] = []
        self.failed = 0

    def load(self, callers: int, rate: float | None, seconds: float, *, even: bool = False) -> float:
        """Run one load; returns the seconds until the last answer. Arrivals are random, or `even`."""
        started = time.perf_counter()
        moments = self._moments(started, rate, seconds, even)
        threads = [threading.Thread(target=self._call, args=(moments,), daemon=True) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def _moments(
        self, started: float, rate: float | None, seconds: float, even: bool
    ) -> Iterator[tuple[float, NDArray[Any]]]:
        gaps, planned = np.random.default_rng(0), started
        for picture in itertools.cycle(self._pictures):
            if rate is None:
                planned = time.perf_counter()
            else:
                planned += 1 / rate if even else gaps.exponential(1 / rate)
            if planned >= started + seconds:
                return
            yield planned, picture

    def _call(self, moments: Iterator[tuple[float, NDArray[Any]]]) -> None:
        while True:
            with self._lock:
                planned, picture = next(moments, (None, None))
            if planned is None or picture is None:
                return
            time.sleep(max(0.0, planned - time.perf_counter()))
            sent = time.perf_counter()
            try:
                status, _ = self._client.post(picture)
            except (http.client.HTTPException, OSError):
                status = 0
            now = time.perf_counter()
            with self._lock:
                if status == 200:
                    self.served.append((1e3 * (now - planned), 1e3 * (now - sent)))
                elif status == 429:
                    self.rejected.append(1e3 * (now - sent))
                else:
                    self.failed += 1


def _row(name: str, crowd: _Crowd, rate: float | None, seconds: float, pid: int) -> ServiceRow:
    served = np.array(crowd.served).reshape(-1, 2)

    def at(column: int, percent: float) -> float | None:
        return round(float(np.percentile(served[:, column], percent)), 2) if len(served) else None

    rejection = round(float(np.percentile(crowd.rejected, 99)), 2) if crowd.rejected else None
    return ServiceRow(
        load=name,
        rate=None if rate is None else round(rate, 2),
        requests=len(served) + len(crowd.rejected) + crowd.failed,
        served=len(served),
        rejected=len(crowd.rejected),
        failed=crowd.failed,
        throughput=round(len(served) / seconds, 3),
        p50_ms=at(0, 50),
        p99_ms=at(0, 99),
        answer_p50_ms=at(1, 50),
        answer_p99_ms=at(1, 99),
        rejection_p99_ms=rejection,
        rss_mb=_resident(pid),
    )


def _resident(pid: int) -> float | None:
    with contextlib.suppress(psutil.Error):
        return round(resident_mb(pid), 1)
    return None


def measure_service(
    bundle: str | None,
    *,
    sizes: Sequence[tuple[int, int]],
    threads: int,
    seconds: float,
    queue: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[float, float, list[ServiceRow]]:
    """(pictures a second of the library in this process, the service's share of that, rows of the service).

    The share is the median of turns, in each of which both have four callers. Rows: one caller; four, which is the capacity;
    arrivals at 80 % of it, evenly spaced and at random; at three times of it. Random arrivals wait for each other in any
    service: at 80 % of the capacity of one server with constant times, the 99th percentile is about eleven times the median
    of one caller. The pictures are noise of these LR sizes, sent as binary tensors of the Open Inference Protocol, so that
    both do the same work. `queue`: that of `rdsr serve`. Raises `BenchmarkError`.
    """
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    rows: list[ServiceRow] = []
    with tempfile.TemporaryDirectory() as scratch, _served(bundle, threads, queue, Path(scratch) / "log") as (client, pid):
        for picture in pictures:
            client.post(picture)

        def measure(name: str, callers: int, rate: float | None, *, even: bool = False) -> ServiceRow:
            progress(name)
            crowd = _Crowd(client, pictures)
            taken = crowd.load(callers, rate, seconds, even=even)
            rows.append(_row(name, crowd, rate, taken, pid))
            return rows[-1]

        measure("one caller", 1, None)
        progress("four callers, and the library in this process")
        with Upscaler.load(bundle, threads=threads) as upscaler:
            crowd, taken, turns = _Crowd(client, pictures), 0.0, list[tuple[float, float]]()
            for _ in range(_TURNS):
                (inside,) = measure_load(upscaler, sizes=sizes, concurrency=[_CALLERS], rate=None, seconds=seconds / _TURNS)
                before = len(crowd.served)
                lasted = crowd.load(_CALLERS, None, seconds / _TURNS)
                turns.append((inside.throughput, (len(crowd.served) - before) / lasted))
                taken += lasted
        rows.append(_row(f"{_CALLERS} callers", crowd, None, taken, pid))
        library, shares = (np.median(values) for values in (np.array(turns)[:, 0], np.divide(*np.array(turns).T[::-1])))
        capacity = rows[-1].throughput
        measure("80 % of that, evenly spaced", _CROWD, _BELOW * capacity, even=True)
        measure("80 % of that, at random", _CROWD, _BELOW * capacity)
        measure("three times that, at random", _CROWD, _BEYOND * capacity)
        measure("one caller again", 1, None)
    return round(float(library), 3), round(float(shares), 4), rows
