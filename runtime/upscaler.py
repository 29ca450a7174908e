"""`Upscaler`: load a bundle once, then turn pictures into larger ones."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import arguments
from .bundle import Bundle
from .choice.choose import choose
from .engines import Backend
from .errors import BundleError, OptionError, PictureError
from .host import cpu
from .host.calls import BackgroundCalls, awaited, check_call, in_order
from .host.cancel import Cancel
from .host.memory import return_free_memory
from .host.processes import in_forked_children
from .pictures.arrays import Picture, check_picture
from .pictures.channels import Colour, Pixels, Target, channels_of, is_colourless
from .pictures.formats import WriteOptions
from .pipelines import OnStep, Progress, pipeline_kind
from .pipelines.loaded import Choice, Pipelines
from .results import Effective, FileResult, Result
from .tiling.memory import ALPHA, Needs, all_fit, parse_limit, plan_strips
from .tiling.tiles import Plan

__all__ = ["Upscaler"]

logger = logging.getLogger(__name__)
BeforeCommit = Callable[[Path, str], None]
_LARGEST_PIXEL = 16
"""Bytes of a float32 pixel with alpha."""
_ALIVE: weakref.WeakSet[Upscaler] = weakref.WeakSet()
"""Every instance of this process. A forked child makes them usable again."""


class Upscaler:
    """Upscales pictures with a bundle. One instance is safe to use from many threads.

    Determinism: the same seed, picture, bundle and machine give the same bytes for any memory limit, number of threads and
    other callers. There are two exceptions. `precision="auto"` may have to time int8 against float32; processes share the
    result through the cache folder, and without one they may choose differently. Networks that attend over the whole
    picture (tile rule "overlap") are only approximated by tiles, so the bytes depend on the `plan`, which follows from
    size, dtype and memory limit. `Plan.exact` is then false, and the first such picture logs a warning.

    Fork: the engine starts with the first call. An instance that is loaded before a fork and first called after it works in
    every child. Engines do not survive a fork: if any instance has used one before, calls in the child raise `EngineError`.
    Such a child must end by `os._exit` (as those of `multiprocessing` do) or exec, because the destructors of the engines
    would wait for threads that it does not have.

    Closing: `close`, or the end of a `with` statement, stops all background calls. Without it, a process that ends waits for
    everything that was submitted, as with `concurrent.futures`.
    """

    bundle: Bundle
    effective: Effective
    """Engine, precision, threads and instruction set of 8-bit pictures, and the reason."""
    memory_limit: int | None
    """Limit in bytes of everything beside input and output, except what file formats need; None for tiles of the usual size.

    If the limit does not hold two precisions, one at a time is loaded. Mixed 8-bit and deeper pictures then load again and
    again, and wait for each other's whole pictures.
    """

    def __init__(
        self, bundle: Bundle, *, backend: str, precision: str, threads: int | None, seed: int, memory_limit: int | str | None
    ) -> None:
        threads = arguments.threads_of(threads) or cpu.available_threads()
        seed = arguments.whole_number("seed", seed, 0, 2**32 - 1)
        self.memory_limit = parse_limit(arguments.limit_of(memory_limit))
        engine, chosen, reason = choose(bundle, arguments.text("backend", backend), arguments.text("precision", precision))
        self.bundle = bundle
        self._kind = pipeline_kind(bundle.manifest)
        self.in_strips = self._kind.in_strips
        self.effective = Effective(engine, chosen, threads, cpu.instruction_set(), reason)
        self.seed = seed
        self._float_backend: Backend | None = None
        self._asked_backend = backend
        self._first_cut = threading.Lock()  # never released: the call that gets it warns
        self._others = self._kept_beside()
        if self.memory_limit is not None:  # refuse a limit under which not even the smallest picture runs
            self._kind.plan(bundle.manifest, self._needs(self._choice(np.uint8)), 1, 1, self.memory_limit, 1)
        self._reset(closed=False)
        _ALIVE.add(self)
        for role in self._kind.roles:  # find a damaged graph now, not at the first call
            bundle.graph(bundle.manifest.role(role, chosen))

    def _kept_beside(self) -> dict[Choice, Choice] | None:
        """Each choice → the other choice, which stays loaded beside it; empty if there is none, None if both do not fit."""
        try:
            one, other = self._choice(np.uint8), self._choice(np.uint16)
        except BundleError:  # no proven float32 variant: only 8-bit pictures can run
            return {}
        if one == other:
            return {}
        needs = [self._kind.needs(self.bundle.manifest, *choice, self.memory_limit) for choice in (one, other)]
        if self.memory_limit is not None and not all_fit(self.bundle.manifest, needs, self.memory_limit):
            return None
        return {one: other, other: one}

    def _reset(self, *, closed: bool) -> None:
        self._calls: BackgroundCalls[Picture] = BackgroundCalls(closed=closed)
        modes = {"together": self._others is not None, "by_graph": self._asked_backend == "auto"}
        self._pipelines = Pipelines(self.bundle, self.effective.threads, self.seed, self.memory_limit, **modes)

    def _after_fork(self) -> None:
        """Make new locks and workers in a forked child. Used engines stay: releasing them would wait for missing threads."""
        loaded = self._pipelines.loaded
        self._reset(closed=self._calls.closed)
        self._pipelines.loaded = loaded

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        memory_limit: int | str | None = None,
        seed: int = 0,
    ) -> Upscaler:
        """Open a bundle folder (None: the one that the package carries), check it, and choose engine and precision.

        `backend`: auto, openvino or onnxruntime. `precision`: auto, fp32, bf16 or int8, for 8-bit pictures; deeper ones run
        in fp32. `threads`: at most four for each CPU of the machine; None for as many as affinity and cgroup quota allow on
        one NUMA node. `memory_limit`: bytes, or a text like "256MiB"; it covers everything beside input and output, also the
        engine. `seed` of the noise: 0 … 2³²−1.

        Raises `OptionError` (`MemoryLimitError` if not even the smallest picture fits) and `BundleError`.
        """
        path = arguments.path_of(bundle)
        if path is None and bundle is not None:
            raise BundleError(f"the folder of a bundle is needed, not {arguments.shown(bundle)}")
        opened = Bundle(path)
        return cls(opened, backend=backend, precision=precision, threads=threads, memory_limit=memory_limit, seed=seed)

    def _needs(self, choice: Choice, *, alpha: bool = False) -> Needs:
        needs = self._kind.needs(self.bundle.manifest, *choice, self.memory_limit)
        fixed = needs.fixed + ALPHA * alpha
        other = (self._others or {}).get(choice)
        if other is not None and (self.memory_limit is not None or choice != self._choice(np.uint8)):
            fixed += self._kind.needs(self.bundle.manifest, *other, self.memory_limit).fixed  # both stay
        return dataclasses.replace(needs, fixed=fixed)

    def _choice(self, dtype: Any) -> Choice:
        """Engine and precision for a dtype: as chosen for 8-bit pictures, fp32 for uint16 and float32."""
        if dtype == np.uint8 or self.effective.precision == "fp32":
            return self.effective.backend, self.effective.precision  # type: ignore[return-value]
        if self._float_backend is None:
            self._float_backend = choose(self.bundle, self._asked_backend, "fp32")[0]
        return self._float_backend, "fp32"

    def plan(self, height: int, width: int, dtype: Any = np.uint8, *, alpha: bool = False) -> Plan:
        """Tiles and peak memory of a call with a picture of height × width pixels of this dtype, with or without alpha.

        The cut may change as the instance learns the cost of tiles on this machine. The bytes of a result never change:
        tiles that only approximate it (`Plan.exact` is false) keep their cut.
        Raises `OptionError` for an impossible size or dtype, `MemoryLimitError`, which names the least limit that suffices,
        and `BundleError` if the bundle has no proven variant for this dtype.
        """
        height, width = arguments.whole_number("height", height, 1), arguments.whole_number("width", width, 1)
        known: np.dtype[Any] | None = None
        with contextlib.suppress(Exception):  # NumPy says in many ways that something is no dtype
            known = np.dtype(dtype)
        if known not in (np.uint8, np.uint16, np.float32):
            raise OptionError(f"dtype must be uint8, uint16 or float32, not {arguments.shown(dtype)}")
        if height * width * self.scale**2 * _LARGEST_PIXEL >= 2**63:
            raise OptionError(f"no array holds the result of {arguments.shown(height)}×{arguments.shown(width)} pixels")
        choice = self._choice(known)
        needs, cost = self._needs(choice, alpha=arguments.flag("alpha", alpha)), self._pipelines.tile_cost(choice).pixels
        return self._kind.plan(self.bundle.manifest, needs, height, width, self.memory_limit, cost)

    def run(
        self,
        picture: Picture,
        *,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Upscale one picture, as `__call__` does. The result names engine, precision and time, too. `on_step`: `OnStep`."""
        started = time.perf_counter()
        check_call(cancel, progress, on_step)
        picture = check_picture(picture)
        height, width = picture.shape[:2]
        plan = self.plan(height, width, picture.dtype, alpha=channels_of(picture) in (2, 4))
        out = np.empty((height * self.scale, width * self.scale, *picture.shape[2:]), picture.dtype)
        grey = is_colourless(picture)
        calls = {"progress": progress, "on_step": on_step}
        backend, precision = self.upscale_pixels(picture, out, grey=grey, plan=plan, cancel=cancel, **calls)
        return Result(out, backend, precision, (time.perf_counter() - started) * 1e3)

    @property
    def graph_seconds(self) -> Mapping[str, float]:
        """Median seconds of each graph in calls with 8-bit pictures so far; empty for kinds that do not measure it."""
        loaded = self._pipelines.loaded.get(self._choice(np.uint8))
        return {} if loaded is None else loaded.graph_seconds

    @property
    def scale(self) -> int:
        """How many times larger results are."""
        return self.bundle.manifest.scale

    def plan_file(
        self, height: int, width: int, dtype: Any, *, alpha: bool, limit: int | None, row_bytes: int | None
    ) -> Plan:
        """The plan of a picture file under a limit of its own. `row_bytes`: see `plan_strips`; None to hold it whole."""
        choice = self._choice(np.dtype(dtype))
        needs, cost = self._needs(choice, alpha=alpha), self._pipelines.tile_cost(choice).pixels
        if row_bytes is None:
            return self._kind.plan(self.bundle.manifest, needs, height, width, limit, cost)
        return plan_strips(self.bundle.manifest, needs, height, width, limit, row_bytes=row_bytes, tile_cost=cost)

    def upscale_pixels(
        self, pixels: Pixels, out: Any, *, grey: bool, plan: Plan, cancel: Cancel | None, **calls: Any
    ) -> tuple[str, str]:
        """Upscale checked pixels, an array or strips of a file, into `out`. Returns engine and precision.

        `grey`: whether they show no colour: then the result shows none.
        """
        height, width = pixels.shape[:2]
        if not plan.exact and self._first_cut.acquire(blocking=False):
            needs = self._needs(self._choice(pixels.dtype))
            logger.warning(self._kind.words_on_cut(self.bundle.manifest, needs, plan, height, width))
        backend, precision = self._choice(pixels.dtype)
        self._calls.check_open()
        try:
            with self._pipelines.hold((backend, precision), cancel) as pipeline:
                target = Target(out, pixels, self.bundle.manifest.scale)
                seeded = pipeline.seeded(self.seed)
                seeded.picture(Colour(pixels, grey=grey), plan=plan, out=target, cancel=cancel, **calls)
        finally:
            if self.memory_limit is not None:
                return_free_memory()
        return backend, precision

    def __call__(self, picture: Picture, *, cancel: Cancel | None = None, progress: Progress | None = None) -> Picture:
        """Upscale one picture. The result is `scale` times larger and of the same kind.

        The picture is H×W or H×W×C (grey, grey + alpha, RGB, RGBA) of any size from 1×1; uint8, uint16, or float32 in [0, 1]
        with overshoots of up to 0.5. RGB without colour (R = G = B) gets none. Colours under alpha 0 count for nothing:
        the network sees the visible colours nearby instead. `cancel`: a token that stops the call within one tile.
        `progress`: called with (tiles done, number of tiles) in the thread of the call; its errors end the call and reach
        the caller unchanged.

        Raises `PictureError` for anything else, `MemoryLimitError` if the picture does not fit the limit, `MemoryError` if
        the result itself does not fit this machine, `CancelledError`, `BundleError` for a uint16 or float32 picture if the
        bundle has no proven float32 variant, and `EngineError` if the engine fails. The instance stays usable.
        """
        return self.run(picture, cancel=cancel, progress=progress).picture

    def with_seed(self, seed: int) -> Upscaler:
        """The same instance with the noise of another seed: engines, background calls and `close` are shared."""
        other = copy.copy(self)
        other.seed = arguments.whole_number("seed", seed, 0, 2**32 - 1)
        _ALIVE.add(other)
        return other

    def submit(self, picture: Picture, *, cancel: Cancel | None = None, progress: Progress | None = None) -> Future[Picture]:
        """Upscale in the background. The future gives what `__call__` would return, or raises its error.

        The array must not change until then. Cancelling the future works only before the call starts; the token works at any
        time. Pictures of one tile do not wait for larger pictures that were submitted before: each kind has two workers.
        `progress` is called in a worker's thread and should not wait for another background call.

        Raises `EngineError` after `close`, and when the process ends.
        """
        check_call(cancel, progress)
        try:
            height, width = picture.shape[:2]
            small = self.plan(height, width, picture.dtype, alpha=channels_of(picture) in (2, 4)).tiles == 1
        except Exception:  # the call itself raises the error, e.g. for no picture or one that is too large
            small = True
        return self._calls.submit(lambda own: self(picture, cancel=own, progress=progress), cancel, small=small)

    def map(self, pictures: Iterable[Picture], *, look_ahead: int = 4, cancel: Cancel | None = None) -> Iterator[Picture]:
        """The results in the order of the pictures; at most `look_ahead` pictures are taken in advance.

        A picture that fails raises its error in its place, which ends the iteration. If the caller stops early, closes the
        iterator or fails, everything under way stops within one tile. Arrays must not change until their results are there.
        """
        check_call(cancel, None)
        look_ahead = arguments.whole_number("look_ahead", look_ahead, 1)
        each = arguments.pictures_of(pictures)
        return in_order(lambda picture, own: self.submit(picture, cancel=own), each, look_ahead, cancel)

    async def aio(self, picture: Picture, *, cancel: Cancel | None = None, progress: Progress | None = None) -> Picture:
        """`__call__` for asyncio. Cancelling the task or closing the loop stops it within one tile. See also `submit`."""
        check_call(cancel, progress)
        return await awaited(lambda own: self.submit(picture, cancel=own, progress=progress), cancel)

    def close(self) -> None:
        """Stop all background calls within one tile (their futures raise `CancelledError`), and release workers and engines.

        Later calls raise `EngineError`; calls that other threads are making end normally. Callbacks may call `close`. Do not
        call it from a signal handler: the interrupted code may hold the locks that it needs.
        """
        self._calls.close()
        self._pipelines.close()

    def __repr__(self) -> str:
        facts = f"backend={self.effective.backend!r}, precision={self.effective.precision!r}"
        return f"Upscaler({str(self.bundle.path)!r}, {facts}, threads={self.effective.threads})"

    def __enter__(self) -> Upscaler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def file(
        self,
        input: str | Path | bytes,
        output: str | Path | BinaryIO,
        *,
        options: WriteOptions | None = None,
        max_pixels: int | None = None,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
        before_commit: BeforeCommit | None = None,
    ) -> FileResult:
        """Upscale a picture file into another. The output appears whole or not at all.

        `input`: a path, or the content of a file. `output`: a path, or an open binary file. `options`: format (otherwise by
        the output's suffix), quality, compression and scale. Of several frames the first counts, which `warnings` says.
        `max_pixels`: most pixels of the input, which the header must not exceed; None for as many as the available memory
        holds with their result. Under a `memory_limit`, input and output count too: large pictures pass through in strips.
        `before_commit`: called with (path, SHA-256 of the content) when the output is complete, before it takes its name.

        Raises what `__call__` raises, `PictureError` for an unreadable input, and `OutputError` for an unwritable output.
        """
        from .encoded import FileJob  # libvips takes a moment to load

        job = FileJob(self, options, max_pixels, cancel, progress, before_commit)
        return job.first(arguments.source_of(input), arguments.output_of(output))

    def frames(
        self,
        input: str | Path | bytes,
        output: str | Path,
        *,
        options: WriteOptions | None = None,
        max_pixels: int | None = None,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
        before_commit: BeforeCommit | None = None,
    ) -> list[FileResult]:
        """Upscale every frame of an animation, or every page of a TIFF file: see `file`.

        The results are `name-1.png`, `name-2.png` …, or one TIFF file with as many pages. A picture of one frame is treated
        as `file` does. If a frame fails, those before it stay, and the error's `results` lists them.
        """
        from .encoded import FileJob

        job = FileJob(self, options, max_pixels, cancel, progress, before_commit)
        return job.every(arguments.source_of(input), arguments.output_path_of(output))

    def encoded(
        self,
        data: bytes,
        format: str = "png",
        *,
        quality: int | None = None,
        lossless: bool | None = None,
        compression: int | None = None,
        scale: float | None = None,
        max_pixels: int | None = None,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
    ) -> bytes:
        """Upscale an encoded picture, as `file` does for paths: PNG, JPEG, WebP, TIFF, BMP, AVIF or GIF in, bytes out.

        `format`: png, jpg, webp, tif, avif or bmp. The other options are those of `WriteOptions`.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise PictureError(f"the bytes of an encoded picture are needed, not {type(data).__name__}")
        options = WriteOptions(format, quality, lossless, compression, scale)
        content = io.BytesIO()
        self.file(data, content, options=options, max_pixels=max_pixels, cancel=cancel, progress=progress)
        return content.getvalue()


@in_forked_children
def _forget_the_parent() -> None:
    for upscaler in list(_ALIVE):
        upscaler._after_fork()
