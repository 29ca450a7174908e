"""Ctrl-C and SIGTERM: a second one always ends the process, whatever an engine does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdsr.tests.cli.running import listing, write
from rdsr.tests.conftest import run_alone

SIGNALS = [signal.SIGINT, signal.SIGTERM]
HANGING = """
import _thread, ctypes, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from rdsr.runtime import engines
from rdsr.runtime.engines import onnxruntime_engine

def hang(*_, **__):
    os.write(2, b"hanging\\n")
    while True:
        ctypes.CDLL(None).sleep(1000)  # a native call; a signal cuts it short

def hang_unheard(*_, **__):
    os.write(2, b"hanging\\n")
    while True:
        _thread.interrupt_main()
        time.sleep(0.1)

if sys.argv[1] == "load":
    onnxruntime_engine.OnnxRuntimeSession.__init__ = hang
else:
    onnxruntime_engine.OnnxRuntimeSession.run = hang if sys.argv[1] == "run" else hang_unheard
del sys.argv[1]
"""
COMMAND = HANGING + "from rdsr.cli.main import main\nmain()\n"
PROGRAM = (
    HANGING
    + """
import numpy as np
from rdsr.runtime import Upscaler
from rdsr.runtime.host import engine_thread

def drop(call, drop=engine_thread._Call.drop):
    os.write(2, b"interrupted\\n")
    drop(call)

engine_thread._Call.drop = drop
Upscaler.load(backend="onnxruntime", precision="fp32")(np.zeros((5, 4, 3), np.uint8))
"""
)


def hanging(script: str, *args: object) -> subprocess.Popen[bytes]:
    """A process in whose engine a call never returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(b"hanging\n", process)
    return process


def wait_for(line: bytes, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process writes this line."""
    assert process.stderr is not None
    while (written := process.stderr.readline()) != line:
        assert written, f"it ended without {line!r}"


def interrupt(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    """Send a signal and wait until the process has it: two of a kind that are still pending become one."""
    process.send_signal(stop)
    status = Path(f"/proc/{process.pid}/status")
    while any(int(line.split()[1], 16) >> (stop - 1) & 1 for line in status.read_text().splitlines() if "Pnd:" in line):
        time.sleep(0.01)


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that has to end now; a bound in seconds on any machine, where it would hang for ever."""
    try:
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    return process.returncode


@pytest.mark.parametrize("moment", ["load", "run"])
@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_a_command_whose_engine_hangs(
    tmp_path: Path, first: signal.Signals, second: signal.Signals, moment: str
) -> None:
    source = write(tmp_path / "in.png")
    line = ["upscale", source, "-o", tmp_path / "out.png", "--backend", "onnxruntime", "--precision", "fp32"]
    process = hanging(COMMAND, moment, *line)
    interrupt(process, first)
    process.send_signal(second)
    assert ended(process) in (128 + second, -second)
    assert listing(tmp_path) == ["in.png"]


def test_one_signal_alone_waits_for_the_tile(tmp_path: Path) -> None:
    line = ["upscale", write(tmp_path / "in.png"), "-o", tmp_path / "out.png", "--backend", "onnxruntime"]
    process = hanging(COMMAND, "run", *line, "--precision", "fp32")
    interrupt(process, signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) in (130, -signal.SIGINT)


def test_a_second_ctrl_c_ends_a_program_that_calls_an_engine_which_hangs() -> None:
    process = hanging(PROGRAM, "run")
    process.send_signal(signal.SIGINT)
    wait_for(b"interrupted\n", process)
    process.send_signal(signal.SIGINT)
    assert ended(process) != 0


def test_ctrl_c_just_before_a_wait_is_noticed() -> None:
    """All that is left of a signal that came too early to cut the wait short is Python's note of it, which wakes nobody."""
    process = hanging(PROGRAM, "unheard")
    wait_for(b"interrupted\n", process)
    assert ended(process) != 0


def test_signals_of_forked_children_do_not_count() -> None:
    script = """
        import os, signal, sys, time
        from rdsr.cli.signals import watch_signals
        watch_signals()
        signal.signal(signal.SIGTERM, lambda *_: None)
        for _ in range(3):
            if not (child := os.fork()):
                signal.raise_signal(signal.SIGTERM)
                os._exit(0)
            os.waitpid(child, 0)
        time.sleep(1.0)
        print("alive")
    """
    assert run_alone(script) == "alive\n"
