"""One row of `rdsr bench latency`, in a process of its own: cold start, calls, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..process import peak_mb

__all__ = ["measure", "time_calls"]

Pictures = NDArray[np.uint8]
_MOST_CALLS = 500
_LONG_WARM_UP = 0.5
"""Seconds; after a first call that took longer, no other call is needed to be warm."""


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Start, call once, and call again for `job["seconds"]`; see `latency_rows.Job` for the rest.

    `job["input"]`: of an ONNX file, what `onnx_model.read_input` says, which is nothing that its users would wait for.
    `job["begun"]`: `time.time()` before this process was started. What the system says of a process's start is a second off:
    Linux rounds the time of its own start, to which that is relative.

    Whatever goes wrong is the one key "error": the last line of a traceback is often not what went wrong.
    """
    try:
        return _measure(job)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": " ".join(lines[:2]) or type(error).__name__}


def _measure(job: Mapping[str, Any]) -> dict[str, Any]:
    height, width = job["size"]
    pictures = np.random.default_rng(0).integers(0, 256, (job["batch"], height, width, 3), dtype=np.uint8)
    call = _KINDS[job["subject"]["kind"]](job)
    started = time.perf_counter()
    call(pictures)
    first = time.perf_counter() - started
    cold = time.time() - job["begun"]
    times = time_calls(lambda: call(pictures), seconds=job["seconds"], warm_up=0 if first > _LONG_WARM_UP else 2)
    return {"cold_start_ms": 1e3 * cold, "times_ms": times, "peak_rss_mb": peak_mb()}


def time_calls(call: Callable[[], object], *, seconds: float, warm_up: int, most: int = _MOST_CALLS) -> list[float]:
    """Milliseconds of single calls: one, and up to `most` that begin within `seconds`, after `warm_up` uncounted ones."""
    for _ in range(warm_up):
        call()
    begun = time.perf_counter()
    times: list[float] = []
    while not times or (time.perf_counter() - begun < seconds and len(times) < most):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def _bicubic(job: Mapping[str, Any]) -> Callable[[Pictures], object]:
    import cv2

    cv2.setNumThreads(job["threads"])
    scale = job["subject"]["scale"]
    return lambda pictures: [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for p in pictures]


def _bundle(job: Mapping[str, Any]) -> Callable[[Pictures], object]:
    from ...runtime.upscaler import Upscaler

    upscaler = Upscaler.load(
        job["subject"]["path"], backend=job["backend"], precision=job["precision"], threads=job["threads"]
    )
    return lambda pictures: [upscaler(picture) for picture in pictures]  # it takes them one after another


def _network(job: Mapping[str, Any]) -> Callable[[Pictures], object]:
    return _torch(job) if job["backend"].startswith("torch") else _bundle(job)


def _torch(job: Mapping[str, Any]) -> Callable[[Pictures], object]:
    """The fused network with uint8 ends, eager or compiled."""
    import torch

    from ...export.graphs import graph_kind
    from ...models.registry import load_model

    torch.set_num_threads(job["threads"])
    torch.set_num_interop_threads(1)
    network = load_model(Path(job["subject"]["checkpoint"])).network.fuse()
    module: Any = graph_kind(network, 0).whole("model.onnx", network).module.eval()
    if job["backend"] == "torch-compile":
        module = torch.compile(module, dynamic=False)

    def call(pictures: Pictures) -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(pictures)).numpy()

    return call


def _onnx(job: Mapping[str, Any]) -> Callable[[Pictures], object]:
    from ..subjects.onnx_model import OnnxModel, PictureInput

    return OnnxModel(
        Path(job["subject"]["path"]),
        backend=job["backend"],
        precision=job["precision"],
        threads=job["threads"],
        taken=PictureInput.of(job["input"]),
    )


def _function(job: Mapping[str, Any]) -> Callable[[Pictures], object]:
    """A Python function "module:name" that makes the callable from the job: for tests of the harness itself."""
    import importlib

    module, _, name = job["subject"]["path"].partition(":")
    made: Callable[[Pictures], object] = getattr(importlib.import_module(module), name)(job)
    return made


_KINDS: dict[str, Callable[[Mapping[str, Any]], Callable[[Pictures], object]]] = {
    "bicubic": _bicubic,
    "bundle": _bundle,
    "network": _network,
    "onnx": _onnx,
    "function": _function,
}
