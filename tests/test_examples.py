"""The examples run as they are shown, and embed the library in under 40 lines."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rdsr.tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_they_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


def test_the_threaded_worker_enlarges_what_comes(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for index in range(4):
        cv2.imwrite(str(source / f"{index}.png"), np.full((9 + index, 12, 3), 40 * index, np.uint8))
    (source / "broken.png").write_bytes(b"no picture")
    command = [sys.executable, str(EXAMPLES / "threaded_worker.py"), str(source), str(target), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "failed: " in done.stderr
    sizes = {path.name: cv2.imread(str(path)).shape for path in target.iterdir()}
    assert sizes == {f"{index}.png.png": (4 * (9 + index), 48, 3) for index in range(4)}


def test_the_asyncio_service_answers(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "asyncio_service.py"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            port = int(service.stdout.readline())

            def ask(content: bytes) -> bytes:
                with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
                    connection.sendall(content)
                    connection.shutdown(socket.SHUT_WR)
                    return b"".join(iter(lambda: connection.recv(65536), b""))

            assert ask(b"nonsense") == b""
            bomb = cv2.imencode(".png", np.zeros((1100, 1100, 3), np.uint8))[1].tobytes()
            assert ask(bomb) == b"", "a small file of more pixels than are allowed"
            content = cv2.imencode(".png", np.full((10, 14, 3), 90, np.uint8))[1].tobytes()
            answers = (ask(content) for _ in range(5))  # a busy machine may take longer than the service waits
            answer = cv2.imdecode(np.frombuffer(next(filter(None, answers)), np.uint8), cv2.IMREAD_COLOR)
            assert answer.shape == (40, 56, 3)
        finally:
            service.terminate()
