"""Measure one row of `rdsr bench latency` in this process: cold start, calls, peak memory."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..process import peak_mb
from ..subjects.onnx_model import OnnxModel, PictureInput

__all__ = ["measure", "time_calls"]

Pictures = NDArray[np.uint8]
_MOST_CALLS = 500
_CONVERSIONS = 0.2
"""Seconds in which conversions are timed."""
_LONG_WARM_UP = 0.5
"""Seconds. If the first call takes longer, it is warm-up enough."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load the model, call it once, then call it again for `job["seconds"]`. Other keys are the fields of `rows.Job`.

    `job["input"]`: for an ONNX file, the fields of `read_input`'s result; users would not wait for reading them.
    `job["pictures"]`: file of a NumPy array, N×H×W×3 uint8.
    `job["begun"]`: `time.time()` before this process was started. The system's own start time of a process can be a second
    off, because it is relative to the start of Linux, which Linux rounds.

    On any failure the result has one key, "error". (The last line of a traceback often does not say what went wrong.)
    """
    try:
        return _measure(job)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": " ".join(lines[:2]) or type(error).__name__}


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    pictures: Pictures = np.load(job["pictures"])
    call, graph_seconds = _load(job)
    started = time.perf_counter()
    call(pictures)
    first = time.perf_counter() - started
    cold = time.time() - job["begun"]
    warm_up = 0 if first > _LONG_WARM_UP else 2
    for _ in range(warm_up):
        call(pictures)
    peak, conversion_ms = peak_mb(), None  # before arrays are kept apart
    timed: Callable[[], object] = partial(call, pictures)
    if isinstance(call, OnnxModel):
        timed, convert = call.apart(pictures)
        if call.input.layout == "nchw":
            conversion_ms = statistics.median(time_calls(convert, seconds=_CONVERSIONS, warm_up=1))
    times = time_calls(timed, seconds=job["seconds"], warm_up=0)
    if not isinstance(call, OnnxModel):
        peak = peak_mb()
    graphs = {role: 1e3 * seconds for role, seconds in graph_seconds().items()}
    measured = {"cold_start_ms": 1e3 * cold, "times_ms": times, "peak_rss_mb": peak, "graphs_ms": graphs}
    return measured | {"conversion_ms": conversion_ms}


def time_calls(call: Callable[[], object], *, seconds: float, warm_up: int, most: int = _MOST_CALLS) -> list[float]:
    """Return the milliseconds of single calls, after `warm_up` uncounted ones.

    There is at least one call. Others follow up to `most` in all, as long as they begin within `seconds`.
    """
    for _ in range(warm_up):
        call()
    begun = time.perf_counter()
    times: list[float] = []
    while not times or (time.perf_counter() - begun < seconds and len(times) < most):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def _load(job: Mapping[str, Any]) -> tuple[Callable[[Pictures], object], Callable[[], Mapping[str, float]]]:
    """Load the job's model; return a function of N×H×W×3 pictures, and one of the seconds of its graphs, if known."""
    subject = job["subject"]
    engine = {key: job[key] for key in ("backend", "precision", "threads")}
    if subject["kind"] == "function":  # "module:name" of a function that makes the callable: tests of the harness use it
        module, _, name = subject["path"].partition(":")
        return getattr(importlib.import_module(module), name)(job), dict
    if subject["kind"] == "bicubic":
        return _bicubic(subject["scale"], job["threads"]), dict
    if subject["kind"] == "onnx":
        return OnnxModel(Path(subject["path"]), taken=PictureInput.of(job["input"]), **engine), dict
    if job["backend"].startswith("torch"):
        return _torch(Path(subject["checkpoint"]), job["threads"], compiled=job["backend"] == "torch-compile"), dict
    from ...runtime.upscaler import Upscaler

    upscaler = Upscaler.load(subject["path"], **engine)
    return lambda pictures: [upscaler(picture) for picture in pictures], lambda: upscaler.graph_seconds  # one picture a call


def _bicubic(scale: int, threads: int) -> Callable[[Pictures], object]:
    import cv2

    cv2.setNumThreads(threads)
    return lambda pictures: [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for p in pictures]


def _torch(checkpoint: Path, threads: int, *, compiled: bool) -> Callable[[Pictures], object]:
    """Load the fused network with uint8 in and out, eager or compiled."""
    import torch

    from ...export.graphs import graph_kind
    from ...models.registry import load_model

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    network = load_model(checkpoint).network.fuse()
    module: Any = graph_kind(network, 0).whole("model.onnx", network).module.eval()
    if compiled:
        module = torch.compile(module, dynamic=False)

    def call(pictures: Pictures) -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(pictures)).numpy()

    return call
