"""A service in a process of its own, as users start it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Running", "running"]

_PATIENCE = 120.0
"""Seconds for a machine that is busy with other things."""


class Running:
    """The process, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self._log = process, log
        self.address = self.waited("listening")["address"]
        self.client = httpx.Client(base_url=self.address, timeout=_PATIENCE)

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [
            json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{") and line.endswith("}")
        ]

    def waited(self, message: str, **facts: Any) -> dict[str, Any]:
        """The first line of the log with this message and these facts, as soon as it is there."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            for line in self.lines():
                if line["message"] == message and facts.items() <= line.items():
                    return line
            if self.process.poll() is not None:
                raise AssertionError(f"it ended: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        raise AssertionError(f"no line {message} {facts} in {self._log.read_text()[-2000:]}")

    def gauge(self, name: str) -> float:
        """A value at `/metrics`."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Running]:
    """`rdsr serve` with these arguments on a free port. Its log lies in `folder`."""
    log = folder / "serve.log"
    command = [sys.executable, "-m", "rdsr.cli", "serve", "--port", "0", *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        service = Running(process, log)
        service.waited("ready")
        yield service
    finally:
        process.kill()
        process.wait()
