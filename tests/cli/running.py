"""Run commands, in this process or in one of their own, and look at what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from typer.testing import CliRunner, Result

from rdsr.cli.main import app
from rdsr.runtime.done_files import RECORD_NAME

_RNG = np.random.default_rng(0)


def run(*args: object, **options: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], **options)


def refused(result: Result, *words: str, code: int = 2) -> None:
    """Exit code, one sentence on stderr that holds the words, no traceback."""
    assert result.exit_code == code, result.output
    sentences = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(sentences) == 1, result.stderr
    assert sentences[0].startswith("rdsr: ")
    for word in words:
        assert word in sentences[0]
    assert "Traceback" not in result.output


def write(path: Path, size: tuple[int, int] = (6, 5)) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(path.suffix, _RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    assert done
    path.write_bytes(content.tobytes())
    return path


def listing(folder: Path) -> list[str]:
    """Names in a folder, without the record of finished files."""
    return sorted(name for name in os.listdir(folder) if name != RECORD_NAME)


def command(*args: object) -> list[str]:
    """A command line that runs `rdsr` in a process of its own."""
    return [sys.executable, "-m", "rdsr.cli", *map(str, args)]


def _as_from_a_terminal() -> None:
    """Undo that background jobs of a shell, like these tests, ignore SIGINT: children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(line: list[str], moment: Callable[[], bool], stop: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Run a command, send it a signal when the moment has come, and return how it ended."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, **pipes, text=True, preexec_fn=_as_from_a_terminal) as process:
        try:
            deadline = time.monotonic() + 300
            while not moment():
                assert process.poll() is None, "it has ended by itself"
                assert time.monotonic() < deadline, "the moment never came"
                time.sleep(0.002)
            process.send_signal(stop)
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    return subprocess.CompletedProcess(line, process.returncode, output, errors)
