"""How fast int8 and float32 are on this machine, measured once for a bundle and remembered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import threading
from functools import partial

import numpy as np

from ..bundle import Bundle
from ..engines import Backend, Precision, load_session
from ..engines.cache import recall, remember
from ..errors import EngineError
from ..host import cpu
from ..host.processes import call_apart, in_forked_children
from ..timing import interleaved_medians

__all__ = ["Timing", "int8_against_float"]

_SIDE = 96
_ROUNDS = 5
_SECONDS = 10.0
"""After which no further round is begun."""
_THREADS = 1
"""Whatever threads an instance has: the choice, and so the bytes, shall not depend on them."""
_CHILD_SECONDS = 60
_LOCK = threading.Lock()
_KNOWN: dict[str, Timing | str] = {}
"""Of this process: one answer, or the reason why there is none, for its whole life, whatever happens to the disk."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median milliseconds of the decoder at 96×96 LR."""

    int8_ms: float
    fp32_ms: float


def int8_against_float(bundle: Bundle, int8: Backend, fp32: Backend) -> Timing:
    """Time the decoder in both precisions, each on its engine, interleaved.

    The answer is kept in memory and in the user's cache folder: a service that starts again, and the workers beside this
    one, make the same choice, and the same bytes. Without a folder that can be written every process finds out for itself.
    Raises `BundleError` for a damaged bundle, `EngineError` where an engine cannot run it.
    """
    manifest = bundle.manifest
    digests = [manifest.files[str(manifest.graph("decoder", precision))][0] for precision in ("int8", "fp32")]
    versions = [_version(name) for name in ("openvino", "onnxruntime")]
    facts = [digests, versions, int8, fp32, cpu.cpu_name(), cpu.instruction_set(), cpu.isa_cap()]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    with _LOCK:
        if key not in _KNOWN:
            try:
                _KNOWN[key] = _remembered(key) or _measure(bundle, int8, fp32, key)
            except EngineError as error:
                _KNOWN[key] = str(error)
        known = _KNOWN[key]
    if isinstance(known, str):
        raise EngineError(known)
    return known


def _version(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # absent, or of a distribution of another name
        return None


def _name(key: str) -> str:
    return f"int8-speed-{key}.json"


def _remembered(key: str) -> Timing | None:
    try:
        content = json.loads(recall(_name(key)) or b"")
        timing = Timing(float(content["int8_ms"]), float(content["fp32_ms"]))
    except (ValueError, KeyError, TypeError):
        return None
    return timing if all(math.isfinite(ms) and ms > 0 for ms in dataclasses.astuple(timing)) else None


def _measure(bundle: Bundle, int8: Backend, fp32: Backend, key: str) -> Timing:
    """In a process of its own, so that no engine is loaded here yet: a process that has one cannot be forked any more."""
    for precision in ("int8", "fp32"):  # what is damaged is said here, not by the child
        bundle.graph(bundle.manifest.role("decoder", precision))
    facts = (str(bundle.path.resolve()), int8, fp32)
    try:
        content = call_apart("rdsr.runtime.choice.speed", "measure_here", facts, timeout=_CHILD_SECONDS)
        timing = Timing(content["int8"], content["fp32"])
    except (ChildProcessError, KeyError, TypeError) as error:
        raise EngineError(f"the process that should time it failed: {error}") from error
    if (known := _remembered(key)) is not None:  # another process was faster: what it found holds for all
        return known
    remember(_name(key), json.dumps(dataclasses.asdict(timing)).encode())
    return timing


def measure_here(path: str, int8: Backend, fp32: Backend) -> dict[Precision, float]:
    """Median milliseconds of both decoders of the bundle at `path`, with engines loaded into this process."""
    bundle = Bundle(path)
    picture = np.random.default_rng(0).integers(0, 256, (1, _SIDE, _SIDE, 3), dtype=np.uint8)
    lr = np.ascontiguousarray(picture.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    engines: dict[Precision, Backend] = {"int8": int8, "fp32": fp32}
    sessions = {
        precision: load_session(
            bundle.graph(bundle.manifest.role("decoder", precision)), backend=engine, precision=precision, threads=_THREADS
        )
        for precision, engine in engines.items()
    }
    pictures = {"image": picture, "lr": lr}
    calls = {}
    for precision, session in sessions.items():
        # What the decoder takes beside the picture does not change its time.
        zeros = {
            name: np.zeros([length or 1 for length in shape], np.float32)
            for name, shape in session.inputs.items()
            if name not in pictures
        }
        taken = {name: value for name, value in pictures.items() if name in session.inputs}
        calls[precision] = partial(session.run, taken | zeros)
    return interleaved_medians(calls, rounds=_ROUNDS, budget=_SECONDS)


@in_forked_children
def _forget_the_parent() -> None:
    global _LOCK
    _LOCK = threading.Lock()
