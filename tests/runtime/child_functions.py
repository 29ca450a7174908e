"""What children of the tests of `watched.py` do. This module is light, so that they start fast."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

Step = Callable[[str], None]


def crash(step: Step) -> None:
    step("in the crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_of_a_trial(*facts: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def spin(step: Step) -> None:
    step("in the loop")
    while True:
        pass


def sleep(step: Step) -> None:
    step("asleep")
    time.sleep(1000)


def fill(step: Step) -> None:
    kept = []
    while True:
        kept.append(np.ones(2**22, np.uint8))


def fail(step: Step) -> None:
    raise ValueError("a reason\x1b[31m in colour")


def shout(step: Step) -> str:
    os.write(1, b"no JSON\n" * 10_000)
    os.write(2, b"noise\n" * 10_000)
    return "heard"


def place(step: Step) -> list[str]:
    return [os.getcwd(), *sys.path]


def modules_of_a_trial(step: Step) -> list[str]:
    import rdsr.runtime.trial_child
    import rdsr.runtime.verify  # noqa: F401

    return sorted(sys.modules)


def verified_without_torch(path: str, digest: str, step: Step) -> bool:
    """Whether a bundle passes where nothing of the export is installed."""
    sys.modules |= dict.fromkeys(("torch", "onnx", "nncf", "onnxsim"))  # type: ignore[arg-type]
    from rdsr.runtime.verify import verify_here

    return all(row["passed"] is not False for row in verify_here(path, digest, None, step)["variants"])
