"""Time int8 against float32 on this machine, once for each bundle, and remember the answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..engines import BACKENDS, Backend, Precision, engine_version, load_session
from ..engines.cache import recall, remember
from ..errors import EngineError
from ..host import cpu
from ..host.processes import in_forked_children
from ..timing import interleaved_medians
from .graph_times import recall_time

__all__ = ["Timing", "int8_against_float"]

_SIDE = 96
_ROUNDS = 5
_SECONDS = 10.0
"""Time after which no further round begins."""
_THREADS = 1
"""Always one, so that the choice, and with it the bytes, do not depend on an instance's threads."""
_CHILD_SECONDS = 60.0
_CHILD_MEMORY = 2 * 2**30
_CALLS = 3
"""Calls of a decoder for which its time limit suffices, on a processor that multiplies 10⁹ numbers a second."""
_LOCK = threading.Lock()
_KNOWN: dict[str, Timing | str] = {}
"""The answers of this process, or the reasons why there is none. They hold for its whole life, even if the cache changes."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median milliseconds of the decoder, of both precisions at the same size and with the same threads."""

    int8_ms: float
    fp32_ms: float


def int8_against_float(bundle: Bundle, int8: Backend, fp32: Backend) -> Timing:
    """Time the decoder in both precisions, each on its engine, interleaved.

    The answer is kept in memory and in the user's cache folder, so that a service that starts again, and other workers, make
    the same choice and the same bytes. If the folder cannot be written, every process measures for itself.
    Raises `BundleError` for a damaged bundle, `EngineError` if an engine cannot run it.
    """
    manifest = bundle.manifest
    proven = recall_time(manifest, "decoder", int8, "int8"), recall_time(manifest, "decoder", fp32, "fp32")
    if proven[0] and proven[1]:
        return Timing(1e3 * proven[0], 1e3 * proven[1])
    digests = [manifest.files[str(manifest.graph("decoder", precision))][0] for precision in ("int8", "fp32")]
    versions = [engine_version(engine) for engine in BACKENDS]
    facts = [digests, versions, int8, fp32, *cpu.identity()]
    name = f"int8-speed-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
    with _LOCK:
        if name not in _KNOWN:
            try:
                _KNOWN[name] = _remembered(name) or _measure(bundle, int8, fp32, name)
            except EngineError as error:
                _KNOWN[name] = str(error)
        known = _KNOWN[name]
    if isinstance(known, str):
        raise EngineError(known)
    return known


def _remembered(name: str) -> Timing | None:
    try:
        content = json.loads(recall(name) or b"")
        timing = Timing(float(content["int8_ms"]), float(content["fp32_ms"]))
    except (ValueError, KeyError, TypeError):
        return None
    return timing if all(math.isfinite(ms) and ms > 0 for ms in dataclasses.astuple(timing)) else None


def _measure(bundle: Bundle, int8: Backend, fp32: Backend, name: str) -> Timing:
    """Measure in a new process, so that this one loads no engine yet: engines do not survive a fork."""
    for precision in ("int8", "fp32"):  # raises `BundleError` for a damaged graph here rather than in the child
        bundle.graph(bundle.manifest.role("decoder", precision))
    from ..host.watched import Limits, call_watched  # few processes start others

    facts = (str(bundle.path.resolve()), int8, fp32)
    sizes = [bundle.manifest.files[str(bundle.manifest.graph("decoder", precision))][1] for precision in ("int8", "fp32")]
    products = len(sizes) * max(sizes) / 4 * _SIDE**2
    limits = Limits(_CHILD_SECONDS + _CALLS * products * 1e-9, _CHILD_MEMORY + 8 * sum(sizes))
    try:
        content = call_watched("rdsr.runtime.choice.speed", "measure_here", facts, limits)
        timing = Timing(content["int8"], content["fp32"])
    except (ChildProcessError, KeyError, TypeError) as error:
        raise EngineError(f"the process that should time it failed: {error}") from error
    if (known := _remembered(name)) is not None:  # another process was faster: its answer holds for all
        return known
    remember(name, json.dumps(dataclasses.asdict(timing)).encode())
    return timing


def measure_here(path: str, int8: Backend, fp32: Backend, step: Callable[[str], None]) -> dict[Precision, float]:
    """Median milliseconds of both decoders of the bundle at `path`, with engines loaded into this process."""
    step("while it timed int8 against fp32")
    bundle = Bundle(path)
    picture = np.random.default_rng(0).integers(0, 256, (1, _SIDE, _SIDE, 3), dtype=np.uint8)
    lr = np.ascontiguousarray(picture.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    engines: dict[Precision, Backend] = {"int8": int8, "fp32": fp32}
    calls = {}
    for precision, engine in engines.items():
        graph = bundle.graph(bundle.manifest.role("decoder", precision))
        session = load_session(graph, backend=engine, precision=precision, threads=_THREADS)
        inputs: dict[str, NDArray[Any]] = {"image": picture, "lr": lr}
        for name, shape in session.inputs.items():  # zeros beside the picture: their values do not change the time
            inputs.setdefault(name, np.zeros([1, *(length or _SIDE for length in shape[1:])], np.float32))
        calls[precision] = partial(session.run, {name: inputs[name] for name in session.inputs})
    return interleaved_medians(calls, rounds=_ROUNDS, budget=_SECONDS)


@in_forked_children
def _forget_the_parent() -> None:
    global _LOCK
    _LOCK = threading.Lock()
