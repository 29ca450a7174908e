"""`Upscaler`: load a bundle once, then turn pictures into larger ones."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cpu
from .arrays import check_picture, from_graph, split_alpha, to_graph, upscale_alpha
from .bundle import Bundle
from .engines import BACKENDS, PRECISIONS, Backend, Precision, supported_precisions
from .errors import BundleError, OptionError, OutputError, PictureError
from .picture_files import read_picture, write_picture
from .pipeline import Pipeline

__all__ = ["Effective", "FileResult", "Result", "Upscaler", "choose"]


@dataclasses.dataclass(frozen=True)
class Effective:
    """What an `Upscaler` really runs 8-bit pictures with."""

    backend: str
    """"openvino" or "onnxruntime"."""
    precision: str
    """"fp32", "bf16" or "int8"."""
    threads: int
    """Threads of the engine."""
    isa: str
    """Vector instruction sets of this CPU, e.g. "avx512+vnni+bf16+amx"."""
    reason: str
    """Why this engine and this precision."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One upscaled picture and what it ran in."""

    picture: NDArray[Any]
    """sH×sW×C of the input's kind."""
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds."""


@dataclasses.dataclass(frozen=True)
class FileResult:
    """One upscaled file."""

    input: Path
    output: Path
    size_in: tuple[int, int]
    """Height and width."""
    size_out: tuple[int, int]
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds of the upscaling, without reading and writing the files."""


def choose(bundle: Bundle, backend: str, precision: str) -> tuple[Backend, Precision, str]:
    """Engine and precision for what was asked (or "auto"), with the reason."""
    if backend not in ("auto", *BACKENDS):
        raise OptionError(f"backend must be auto, {' or '.join(BACKENDS)}, not {backend!r}")
    if precision not in ("auto", *PRECISIONS):
        raise OptionError(f"precision must be auto, {', '.join(PRECISIONS)}, not {precision!r}")
    manifest = bundle.manifest
    if backend != "auto" and precision != "auto" and precision not in supported_precisions(backend):
        raise OptionError(f"{backend} has no {precision} convolution on CPUs; use openvino for {precision}")
    reasons = []
    if precision == "auto":
        chosen: Precision = "fp32"
        if backend == "onnxruntime":
            reasons.append("fp32: onnxruntime has no bf16 convolution")
        elif not cpu.has_bf16():
            reasons.append("fp32: the CPU has no bf16")
        elif not manifest.proven("bf16", "openvino"):
            reasons.append("fp32: the bundle has no proven bf16 variant")
        else:
            chosen = "bf16"
            reasons.append("bf16: the CPU multiplies it natively and the bundle's proof passed")
    else:
        chosen = precision  # type: ignore[assignment]
        reasons.append(f"{chosen}: asked for")
        if chosen == "bf16" and not cpu.has_bf16():
            raise OptionError("this CPU has no bf16 arithmetic; use fp32")
    if backend == "auto":
        # Decoders of 8 to 30 convolutions at 128×128 LR, two threads, float32: ONNX Runtime takes 0.55 to 0.87 of OpenVINO's
        # time on a Xeon with AMX, and the two are equal on an EPYC; new sizes stall it less as well.
        order: tuple[Backend, ...] = ("openvino", "onnxruntime") if chosen == "bf16" else ("onnxruntime", "openvino")
        candidates = [b for b in order if chosen in supported_precisions(b)]
        engine = next((b for b in candidates if manifest.proven(chosen, b)), candidates[0])
        reasons.append(f"{engine}: the faster of the two at {chosen}" if engine == order[0] else f"{engine}: proven")
    else:
        engine = backend  # type: ignore[assignment]
        reasons.append(f"{engine}: asked for")
    if not manifest.proven(chosen, engine):
        have = ", ".join(manifest.precisions) or "none"
        raise BundleError(f"the bundle {bundle.path} has no proven {chosen} variant for {engine}; proven are: {have}")
    return engine, chosen, "; ".join(reasons)


class Upscaler:
    """Upscales pictures with a bundle. One instance is safe to use from many threads.

    Same seed, picture, bundle and machine → the same bytes.
    """

    bundle: Bundle
    """The bundle it runs."""
    effective: Effective
    """Engine, precision, threads and instruction set that 8-bit pictures really run with, and why."""

    def __init__(self, bundle: Bundle, *, backend: str, precision: str, threads: int | None, seed: int) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise OptionError(f"threads must be a whole number from 1, not {threads!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise OptionError(f"seed must be a whole number from 0 to 4294967295, not {seed!r}")
        engine, chosen, reason = choose(bundle, backend, precision)
        self.bundle = bundle
        self.effective = Effective(engine, chosen, threads or cpu.available_threads(), cpu.instruction_set(), reason)
        self._seed = seed
        self._float_backend: Backend = engine if backend != "auto" else "onnxruntime"
        self._pipeline = self._load(engine, chosen)
        self._float_pipeline = self._pipeline if chosen == "fp32" else None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        seed: int = 0,
    ) -> Upscaler:
        """Open a bundle folder (None: the one the package carries) and load it into an engine.

        `backend`: auto, openvino, onnxruntime; `precision`: auto, fp32, bf16, int8 (of 8-bit pictures; others run in
        fp32); `threads`: None for what affinity and cgroup quota allow; `seed`: of the initial latent, 0 … 2³²−1.
        Raises `OptionError`, `BundleError` and `EngineError`.
        """
        return cls(Bundle(bundle), backend=backend, precision=precision, threads=threads, seed=seed)

    def _load(self, backend: Backend, precision: Precision) -> Pipeline:
        return Pipeline(self.bundle, backend=backend, precision=precision, threads=self.effective.threads, seed=self._seed)

    def _pipeline_for(self, picture: NDArray[Any]) -> Pipeline:
        """The chosen precision for 8-bit pictures; float32 for uint16 and float32 ones, loaded when first needed."""
        if picture.dtype == np.uint8:
            return self._pipeline
        with self._lock:
            if self._float_pipeline is None:
                self._float_pipeline = self._load(self._float_backend, "fp32")
            return self._float_pipeline

    def run(self, picture: NDArray[Any]) -> Result:
        """Upscale one picture; the result says what it ran in. See `__call__`."""
        started = time.perf_counter()
        picture = check_picture(picture)
        pipeline = self._pipeline_for(picture)
        colour, alpha = split_alpha(picture)
        upscaled = from_graph(pipeline.run(to_graph(colour)), colour)
        if alpha is not None:
            larger = upscale_alpha(alpha, self.bundle.manifest.scale)
            upscaled = np.concatenate([upscaled, larger[:, :, None]], axis=2)
        if picture.ndim == 2:
            upscaled = upscaled[:, :, 0]
        return Result(upscaled, pipeline.backend, pipeline.precision, (time.perf_counter() - started) * 1e3)

    def __call__(self, picture: NDArray[Any]) -> NDArray[Any]:
        """One picture in, one `scale` times larger of the same kind out.

        H×W or H×W×C (grey, grey + alpha, RGB, RGBA); uint8, uint16, or float32 in [0, 1]; any size from 1×1.
        Raises `PictureError` for anything else and `EngineError` where the engine fails; the instance stays usable.
        """
        return self.run(picture).picture

    def file(self, input: str | Path, output: str | Path) -> FileResult:
        """Upscale a picture file into another (format by suffix); the output appears whole or not at all.

        Raises `PictureError` for an unreadable input, `OutputError` for an output that cannot be written.
        """
        source, target = Path(input), Path(output)
        if target.exists() and source.exists() and target.samefile(source):
            raise OutputError(f"the output {target} is the input itself")
        picture = read_picture(source)
        try:
            result = self.run(picture.pixels)
        except PictureError as error:
            raise PictureError(f"{source}: {error}") from error
        write_picture(target, dataclasses.replace(picture, pixels=result.picture))
        return FileResult(
            source, target, picture.pixels.shape[:2], result.picture.shape[:2], result.backend, result.precision, result.ms
        )
