"""Models of known time and memory, for tests of the latency harness; made in its worker processes."""

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
"""Environment variable."""


def synthetic(name: str, function: str) -> Job:
    """The row of a model that `function`, one of those below, makes."""
    subject = Subject(name, "function", "none", None, None, path=f"{__name__}:{function}")
    return Job(subject, "torch-eager", "fp32", (8, 8), 1, 1)


def sleepers(*milliseconds: int) -> list[Job]:
    """Rows called "sleep-20" for 20 ms."""
    return [synthetic(f"sleep-{each}", "sleeper") for each in milliseconds]


def sleeper(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Sleeps as many milliseconds as its name says: "sleep-20"; leaves a line in the file that `NOTE` names, if it does."""
    milliseconds = float(job["subject"]["model"].rsplit("-", 1)[1])
    if NOTE in os.environ:
        with Path(os.environ[NOTE]).open("a") as file:
            file.write("started\n")
    return lambda pictures: time.sleep(milliseconds / 1e3)


def grower(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Holds as many MiB as its name says while it runs."""
    size = int(job["subject"]["model"].rsplit("-", 1)[1])
    return lambda pictures: int(np.ones(size * 2**20, np.uint8).sum())


def failing(job: Mapping[str, Any]) -> Callable[[Any], object]:
    """Fails when it is made."""
    raise RuntimeError("this engine has lost its way")
