"""The HTTP service for long: ten thousand mutated bodies, ten minutes of load. `make check-large`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import zlib
from pathlib import Path

import cv2
import httpx
import numpy as np
import psutil

from rdsr.benchmarks.report.tables import FIGURE_COLUMNS, SERVICE_COLUMNS, write_table
from rdsr.benchmarks.service.http import measure_service
from rdsr.tests.runtime.service.mutated_bodies import send_mutated
from rdsr.tests.runtime.service.running import running

REPORTS = Path("check-large")
COUNT = int(os.environ.get("RDSR_MUTATED_BODIES", "10000"))
SECONDS = float(os.environ.get("RDSR_SOAK_SECONDS", "600"))
LEAK_MIB = 48
ROUNDS = 4
SIZES = [(64, 64), (128, 128), (96, 160), (31, 200), (1, 1)]


def test_ten_thousand_mutated_bodies(tmp_path: Path) -> None:
    with running(tmp_path, "--threads", "2", "--max-pixels", "100000", "--memory-limit", "512MiB") as service:
        send_mutated(service.client, COUNT // 10, seed=1)  # caches fill
        before = psutil.Process(service.process.pid).memory_info().rss / 2**20
        started = time.perf_counter()
        answers = send_mutated(service.client, COUNT, seed=0)
        seconds = time.perf_counter() - started
        growth = psutil.Process(service.process.pid).memory_info().rss / 2**20 - before
        assert service.client.get("/v2/health/ready").status_code == 200
    figures = [
        ("bodies", COUNT, "", ""),
        *((f"answers {status}", count, "", "") for status, count in sorted(answers.items())),
        ("growth of resident memory", growth, "MiB", f"< {LEAK_MIB}"),
        ("whole batch", seconds, "s", ""),
    ]
    rows = [dict(zip(("figure", "value", "unit", "asked"), figure, strict=True)) for figure in figures]
    write_table(REPORTS, "mutated-bodies", {"rows": rows}, FIGURE_COLUMNS, rows)
    assert growth < LEAK_MIB


def bomb() -> bytes:
    """A PNG file of 50 KB whose header claims 30,000×30,000 pixels."""
    content = bytearray(cv2.imencode(".png", np.random.RandomState(0).randint(0, 256, (128, 128, 3)).astype(np.uint8))[1])
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


class Attackers:
    """Clients that send headers byte by byte, bodies that never end, and small files that claim to be huge."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._place, self._address = (host, int(port)), address
        self._stop = threading.Event()
        self.answers: set[int] = set()

    def __enter__(self) -> Attackers:
        self._threads = [threading.Thread(target=work) for work in (self._trickle, self._throw)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _trickle(self) -> None:
        starts = (b"GET / HTTP/1.1\r\nX-A: ", b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        connections: list[socket.socket] = []
        while not self._stop.wait(0.5):
            while len(connections) < 200:
                connections.append(socket.create_connection(self._place))
                connections[-1].sendall(starts[len(connections) % 2])
            for connection in list(connections):
                try:
                    connection.sendall(b"a")
                except OSError:  # it was cut
                    connections.remove(connection)
        for connection in connections:
            connection.close()

    def _throw(self) -> None:
        with httpx.Client(base_url=self._address, timeout=120) as client:
            while not self._stop.wait(0.05):
                self.answers.add(client.post("/v1/upscale", content=bomb()).status_code)


def test_attackers_cost_others_nothing(tmp_path: Path) -> None:
    """One caller's times in turns, without and with 200 connections that trickle and 20 bombs a second."""
    picture = cv2.imencode(".png", np.full((128, 128, 3), 90, np.uint8))[1].tobytes()
    times: dict[bool, list[float]] = {False: [], True: []}
    with running(tmp_path, "--threads", "2") as service:
        for attacked in (False, True) * ROUNDS:
            attackers = Attackers(service.address)
            with attackers if attacked else contextlib.nullcontext():
                time.sleep(1)
                end = time.monotonic() + SECONDS / 100
                while time.monotonic() < end:
                    started = time.perf_counter()
                    assert service.client.post("/v1/upscale", content=picture).status_code == 200
                    times[attacked].append(1e3 * (time.perf_counter() - started))
            assert not attacked or attackers.answers == {413}
    figures = [
        (f"{name}, {percent:g} % of times below", float(np.percentile(times[attacked], percent)), "ms", "")
        for percent in (50, 99)
        for attacked, name in ((False, "alone"), (True, "beside attackers"))
    ]
    rows = [dict(zip(("figure", "value", "unit", "asked"), figure, strict=True)) for figure in figures]
    write_table(REPORTS, "attackers", {"rows": rows}, FIGURE_COLUMNS, rows)


def test_memory_stays_flat_under_load() -> None:
    """A sixth of the time each: one caller, capacity, below it in two ways, beyond it, one caller."""
    inside, _, rows = measure_service(None, sizes=SIZES, threads=2, seconds=SECONDS / 6)
    shown = [dataclasses.asdict(row) for row in rows]
    write_table(REPORTS, "service", {"library_throughput": inside, "rows": shown}, SERVICE_COLUMNS, shown)
    assert all(row.failed == 0 for row in rows)
    resident = [row.rss_mb for row in rows if row.rss_mb is not None]
    assert resident[-1] - resident[1] < LEAK_MIB
