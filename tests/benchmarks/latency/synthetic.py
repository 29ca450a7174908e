"""Models of known time and memory for tests of the latency harness. Its worker processes call these functions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rdsr.benchmarks.latency.rows import Job
from rdsr.benchmarks.subjects.find import Subject

NOTE = "RDSR_TEST_NOTE"
"""Environment variable that names a file in which every started model leaves a line."""


def synthetic(name: str, function: str) -> Job:
    """Return a row whose model is made by `function`, one of those below."""
    subject = Subject(name, "function", "none", None, None, path=f"{__name__}:{function}")
    return Job(subject, "torch-eager", "fp32", (8, 8), 1, 1)


def sleepers(*milliseconds: int) -> list[Job]:
    """Return rows of sleepers: "sleep-20" sleeps 20 ms a call."""
    return [synthetic(f"sleep-{each}", "sleeper") for each in milliseconds]


def sleeper(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Sleep as many milliseconds as the name says, e.g. "sleep-20". Write a line to the file of `NOTE`, if that is set."""
    milliseconds = float(job["subject"]["model"].rsplit("-", 1)[1])
    if NOTE in os.environ:
        with Path(os.environ[NOTE]).open("a") as file:
            file.write("started\n")
    return lambda pictures: time.sleep(milliseconds / 1e3)


def grower(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Hold as many MiB as the name says during a call."""
    size = int(job["subject"]["model"].rsplit("-", 1)[1])
    return lambda pictures: int(np.ones(size * 2**20, np.uint8).sum())


def failing(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Fail when the model is made."""
    raise RuntimeError("this engine has lost its way")
