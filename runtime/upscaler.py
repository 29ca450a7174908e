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
from .arrays import check_picture, split_alpha, upscale_alpha
from .bundle import Bundle
from .choice import choose
from .engines import Backend, Precision
from .errors import OptionError, OutputError, PictureError
from .picture_files import read_picture, write_picture
from .pipeline import Pipeline

__all__ = ["Effective", "FileResult", "Result", "Upscaler"]


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
        threads = threads or cpu.available_threads()
        engine, chosen, reason = choose(bundle, backend, precision, threads)
        self.bundle = bundle
        self.effective = Effective(engine, chosen, threads, cpu.instruction_set(), reason)
        self._seed = seed
        self._asked_backend = backend
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
                engine, _, _ = choose(self.bundle, self._asked_backend, "fp32")
                self._float_pipeline = self._load(engine, "fp32")
            return self._float_pipeline

    def run(self, picture: NDArray[Any]) -> Result:
        """Upscale one picture; the result says what it ran in. See `__call__`."""
        started = time.perf_counter()
        picture = check_picture(picture)
        pipeline = self._pipeline_for(picture)
        colour, alpha = split_alpha(picture)
        upscaled = pipeline.picture(colour)
        if alpha is not None:
            larger = upscale_alpha(alpha, self.bundle.manifest.scale)
            upscaled = np.concatenate([upscaled, larger[:, :, None]], axis=2)
        if picture.ndim == 2:
            upscaled = upscaled[:, :, 0]
        return Result(upscaled, pipeline.backend, pipeline.precision, (time.perf_counter() - started) * 1e3)

    def __call__(self, picture: NDArray[Any]) -> NDArray[Any]:
        """One picture in, one `scale` times larger of the same kind out.

        H×W or H×W×C (grey, grey + alpha, RGB, RGBA); uint8, uint16, or float32 in [0, 1]; any size from 1×1.
        Raises `PictureError` for anything else, `BundleError` for a uint16 or float32 picture where the bundle has no proven
        float32 variant, and `EngineError` where the engine fails; the instance stays usable.
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
