"""The service as a process: slow and vanishing clients, several models, the end."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from rdsr.runtime import Upscaler
from rdsr.runtime.bundle import default_bundle_path
from rdsr.tests.conftest import until
from rdsr.tests.runtime.service.running import Running, running

LARGE = (900, 900)
"""Height and width of a picture that takes seconds, in many tiles."""


def encoded(height: int, width: int) -> bytes:
    return bytes(cv2.imencode(".png", np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))[1])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), "--threads", "1", "--memory-limit", "512MiB") as service:
        yield service


def posted(service: Running, body: bytes, query: str = "", *, more: bytes = b"") -> socket.socket:
    """A request whose answer is not read."""
    host, port = service.address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/upscale{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body + more)
    return connection


def test_a_client_that_goes_away_cancels_its_work(service: Running) -> None:
    connection = posted(service, encoded(*LARGE))
    until(lambda: service.gauge("rdsr_admitted") == 1)
    connection.close()
    until(lambda: service.gauge("rdsr_admitted") == 0)
    assert service.waited("request", path="/v1/upscale", status=499)
    assert service.client.post("/v1/upscale", content=encoded(16, 16)).status_code == 200


def test_bytes_after_a_body_do_not_hide_that_the_client_is_gone(service: Running) -> None:
    connection = posted(service, encoded(*LARGE), "?format=webp", more=b"x")
    until(lambda: service.gauge("rdsr_admitted") == 1)
    connection.sendall(b"GET / HTTP/1.1\r\n")
    connection.close()
    until(lambda: service.gauge("rdsr_admitted") == 0)
    assert service.gauge("rdsr_held_bytes") == 0


def test_a_deadline_ends_the_work(service: Running) -> None:
    answer = service.client.post("/v1/upscale", params={"timeout": 0.3}, content=encoded(*LARGE))
    assert answer.status_code == 408
    assert answer.json() == {"error": "the answer was not ready in time"}
    until(lambda: service.gauge("rdsr_admitted") == 0)


def test_progress_is_told(service: Running) -> None:
    name, events = "abc", []

    def follow() -> None:
        with service.client.stream("GET", f"/v1/progress/{name}") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            events.extend(json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:"))

    thread = threading.Thread(target=follow)
    thread.start()
    answer = service.client.post("/v1/upscale", content=encoded(300, 300), headers={"X-Request-ID": name})
    assert answer.status_code == 200
    thread.join(120)
    assert not thread.is_alive()
    assert events == sorted(events, key=lambda event: event["done"])
    assert 1 <= events[-1]["done"] <= events[-1]["total"]


def test_slow_clients_hold_nothing(tmp_path: Path) -> None:
    """Headers that trickle, bodies that never come, answers that nobody reads, connections without a word."""
    with running(tmp_path, "--threads", "1", "--queue", "2", "--patience", "0.5") as slow:
        host, port = slow.address.removeprefix("http://").split(":")
        silent, trickling, half = (socket.create_connection((host, int(port))) for _ in range(3))
        trickling.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nX-A:")
        half.sendall(b"POST /v1/upscale HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this")
        deaf = [posted(slow, encoded(400, 400), "?format=bmp") for _ in range(3)]
        for connection in (silent, trickling, half, *deaf):
            connection.settimeout(120)
        for connection in (silent, trickling):
            assert connection.recv(1) == b""
        assert half.recv(100).startswith(b"HTTP/1.1 408")
        until(lambda: slow.gauge("rdsr_dropped_connections_total") == 3)
        assert slow.gauge("rdsr_held_bytes") == slow.gauge("rdsr_admitted") == 0
        assert slow.client.post("/v1/upscale", content=encoded(16, 16)).status_code == 200


def test_the_longest_idle_connection_makes_room(tmp_path: Path) -> None:
    code = (
        "from rdsr.runtime.service.server import serve; from rdsr.runtime.service.options import ServiceOptions; "
        "serve(ServiceOptions(threads=1, connections=5, patience=100.0), '127.0.0.1', 0)"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=file, text=True)
    try:
        service = Running(process, log)
        service.waited("ready")
        host, port = service.address.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(5)]
        assert service.client.get("/v2/health/ready").status_code == 200
        idle[0].settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""
        idle[-1].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[-1].recv(15) == b"HTTP/1.1 200 OK"
    finally:
        process.kill()
        process.wait()


def test_sigterm_waits_for_what_was_admitted(tmp_path: Path) -> None:
    with running(tmp_path, "--threads", "1") as service:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{service.address}/v1/upscale", content=encoded(400, 400), timeout=120))

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: service.gauge("rdsr_admitted") == 1)
        service.process.send_signal(signal.SIGTERM)
        service.waited("ending")
        thread.join(120)
        assert answers[0].status_code == 200
        assert answers[0].content == Upscaler.load(threads=1).encoded(encoded(400, 400))
        assert service.process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.address)


def test_several_models(tmp_path: Path) -> None:
    folder = tmp_path / "second.bundle"
    shutil.copytree(default_bundle_path(), folder)
    arguments = ("--bundle", f"first={default_bundle_path()}", "--bundle", str(folder), "--threads", "1")
    expected = Upscaler.load(threads=1).encoded(encoded(40, 40))
    for limit in ((), ("--memory-limit", "400MiB"), ("--memory-limit", "90MiB")):  # the last one holds one at a time
        place = tmp_path / f"run{len(limit) and limit[1]}"
        place.mkdir()
        with running(place, *arguments, *limit) as service:
            for model in ("second", "first", "second"):
                answer = service.client.post("/v1/upscale", params={"model": model}, content=encoded(40, 40))
                assert answer.content == expected
            names = [row["name"] for row in service.client.get("/v1/models").json()["models"]]
            assert names == ["first", "second"]


def command(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "rdsr.cli", "serve", *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bundle", "nowhere"), "nowhere"), (("--bundle", "a b=x"), "cannot be called"),
        (("--bundle", "x=a", "--bundle", "x=b"), "two models"), (("--workers", "2"), "no workers"),
        (("--memory-limit", "1MiB"), "memory"), (("--host", "256.1.1.1"), "cannot listen"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said(arguments: tuple[str, ...], words: str) -> None:
    code, said = command("--port", "0", *arguments)
    assert code == 2
    assert re.sub(r"\s+", " ", said).count("rdsr: ") == 1
    assert words in said
    assert "Traceback" not in said


def test_a_port_in_use(service: Running) -> None:
    code, said = command("--port", service.address.rsplit(":", 1)[1])
    assert code == 2
    assert "Address already in use" in said


def test_a_restart_after_kill_9(tmp_path: Path) -> None:
    with running(tmp_path, "--threads", "1") as first:
        port = first.address.rsplit(":", 1)[1]
        connection = posted(first, encoded(*LARGE))
        until(lambda: first.gauge("rdsr_admitted") == 1)
        first.process.kill()
        connection.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    again = tmp_path / "again"
    again.mkdir()
    with running(again, "--threads", "1", "--port", port) as second:
        assert second.client.post("/v1/upscale", content=encoded(16, 16)).status_code == 200
