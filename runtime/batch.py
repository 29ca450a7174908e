"""Upscale the files of a plan. Several are in hand at once, so that the engine does not wait for the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from .done_files import DoneFiles, file_digest, remove_leftovers
from .errors import CancelledError, EngineError, MemoryLimitError, OptionError, OutputError, PictureError, RdsrError
from .file_plan import FilePlan, PlannedFile
from .host.cancel import RECHECK_SECONDS, Cancel
from .host.memory import available_memory
from .inputs import STANDARD_STREAM, Skipped, identity_of, read_pipe, reason_of
from .pictures.formats import WriteOptions
from .results import FileResult
from .upscaler import Upscaler

__all__ = ["ALREADY_DONE", "INTERRUPTED", "Batch", "BatchOptions", "BatchProgress", "made_by"]

_AT_ONCE = 3
"""Pictures in hand: one is decoded and one encoded while the engine has the third."""
_BYTES_IN_HAND = 2**29
"""Bytes of decoded inputs and outputs that pictures in hand may have together. A larger picture is in hand alone."""
_STREAM_LIMIT = 2**30
"""Largest picture, in bytes, from the standard input or a pipe."""
ALREADY_DONE = "already done"
INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """How the files of a plan are upscaled. Raises `OptionError` for values that do not exist or exclude each other."""

    write: WriteOptions = dataclasses.field(default_factory=WriteOptions)
    frames: Literal["first", "all"] = "first"
    """Whether of animations and files of several pages the first picture is taken, or each becomes a picture."""
    max_pixels: int | None = None
    """Most pixels of an input; None for as many as the memory allows."""
    resume: bool = False
    """Whether to skip what an earlier run of the same job has done."""

    def __post_init__(self) -> None:
        if self.frames not in ("first", "all"):
            raise OptionError(f"frames must be first or all, not {self.frames!r}")


@dataclasses.dataclass(frozen=True)
class BatchProgress:
    """How far a batch is."""

    done: float
    """Pictures done, with the fractions of those in hand."""
    pictures: int
    """Pictures of the plan."""
    input: Path
    """The picture that moved on."""
    tiles_done: int
    tiles: int
    """Its tiles."""


Report = Callable[[BatchProgress], None] | None
Outcome = list[FileResult] | Skipped | Exception
"""What became of a picture: its results, or why it was skipped, or the error."""


def made_by(upscaler: Upscaler, write: WriteOptions) -> dict[str, Any]:
    """Everything beside the input that a result's bytes depend on. Raises `OptionError` for a scale that is too large."""
    manifest, scale = upscaler.bundle.manifest, write.scale
    if scale is not None and scale > manifest.scale:
        raise OptionError(f"the scale must be at most {manifest.scale}, the network's own, not {scale}")
    # Networks that attend over the whole picture are approximated by tiles, which follow from the memory limit.
    tiles = {} if manifest.tile_rule == "exact" else {"memory_limit": upscaler.memory_limit}
    effective = upscaler.effective
    engine = {"backend": effective.backend, "precision": effective.precision, "seed": upscaler.seed}
    return {"bundle": manifest.digest, **engine, **tiles, **dataclasses.asdict(write)}


class Batch:
    """The files of a plan on their way. After `run`, also one that was interrupted, it knows what became of each.

    Up to three pictures are in hand at once, as long as their pixels, decoded inputs and outputs together, take at most
    512 MiB and a quarter of the free memory. A larger picture waits until it is alone, and the next ones wait for it, so
    several large pictures never add up. One that finds no memory beside others is tried once more alone. Results do not
    depend on any of this.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        plan: FilePlan,
        options: BatchOptions | None = None,
        *,
        stdin: BinaryIO | None = None,
        stdout: BinaryIO | None = None,
    ) -> None:
        """`stdin`, `stdout`: the binary streams that "-" means in the plan. Raises `OptionError` and `OutputError`."""
        self._upscaler, self._plan = upscaler, plan
        self._options = options = options or BatchOptions()
        self._stdin, self._stdout = stdin, stdout
        self._record = self._record_of(plan, options)
        self._made_by = made_by(upscaler, options.write) | {"frames": options.frames}
        self._inputs: set[tuple[int, int] | None] = set()
        self._outputs = {file.output for file in plan.files}
        self._outcomes: list[Outcome | None] = [None] * len(plan.files)
        self._cancel = Cancel()
        self._changed = threading.Condition()
        self._waiting = deque(range(len(plan.files)))
        self._in_hand: dict[int, int] = {}
        """Number of a file → bytes of its pixels."""
        self._alone: set[int] = set()
        """Files that found no memory beside others."""
        self._ended: set[threading.Thread] = set()
        """Threads that work no more."""
        self._done = 0
        self._fractions: dict[int, float] = {}
        """Number of a file in hand → the part of it that is done."""
        self._budget = 0
        self._bug: BaseException | None = None
        self._sizes: dict[int, int] = {}
        self._streamed: dict[int, bytes] = {}
        self._telling = threading.Lock()

    @staticmethod
    def _record_of(plan: FilePlan, options: BatchOptions) -> DoneFiles | None:
        """The record of a job into a folder. Beside a single output there is one only if the job is to be resumed."""
        streams = any(STANDARD_STREAM in (file.input, file.output) for file in plan.files)
        if streams and options.resume:
            raise OptionError("a job from or to - (standard input and output) cannot be resumed")
        if any(file.output == STANDARD_STREAM for file in plan.files) and options.frames == "all":
            raise OptionError("all frames need files as output, not - (the standard output)")
        folder = plan.folder or (plan.files[0].output.parent if options.resume else None)
        return None if streams or folder is None else DoneFiles(folder)

    @property
    def results(self) -> list[FileResult]:
        """Results in the order of the plan, without those that an earlier run has made."""
        return [result for outcome in self._outcomes for result in _written(outcome)]

    @property
    def failed(self) -> list[tuple[Path, Exception]]:
        """(input, error) of each picture that failed."""
        pairs = zip(self._plan.files, self._outcomes, strict=True)
        return [(file.input, outcome) for file, outcome in pairs if isinstance(outcome, Exception)]

    @property
    def skipped(self) -> list[Skipped]:
        """The plan's skipped files, those that are `ALREADY_DONE`, and after an interruption those that are not done."""
        pairs = zip(self._plan.files, self._outcomes, strict=True)
        left = [Skipped(file.input, INTERRUPTED) if outcome is None else outcome for file, outcome in pairs]
        return [*self._plan.skipped, *(outcome for outcome in left if isinstance(outcome, Skipped))]

    def run(self, progress: Report = None) -> None:
        """Upscale all files. What one picture brings, also `MemoryError`, is kept as its outcome, and the others still run.

        `progress` is called in other threads, but never twice at once. If the caller is interrupted (`KeyboardInterrupt`,
        `SystemExit`), the pictures in hand stop within one tile and leave nothing behind, and the interruption goes on to
        the caller. A bug, as any error that is no `RdsrError`, `OSError` or `MemoryError`, stops the batch the same way.
        """
        started = time.time()
        if self._record is not None and not self._record.can_be_written():
            if self._options.resume:
                raise OutputError(f"cannot write {self._record.path}, which --resume needs")
            self._record = None
        if self._record is not None and self._options.resume:
            self._record.read()
            outputs = (Path(os.path.realpath(file.output)) for file in self._plan.files)  # writing follows links
            remove_leftovers({output.parent for output in outputs}, started)
        self._read_streams()
        self._budget = min(_BYTES_IN_HAND, available_memory() // 4)
        threads: list[threading.Thread] = []
        try:
            for number in range(min(_AT_ONCE, len(self._plan.files))):
                threads.append(threading.Thread(target=self._work, args=(progress,), name=f"rdsr-file-{number}"))
                try:
                    threads[-1].start()
                except RuntimeError:  # no memory for another thread
                    break
            else:
                self._wait_for(threads)
            self._work(progress)  # here, if no thread could be started
            self._wait_for(threads)
        except BaseException:
            self._cancel.set()
            self._wait_for(threads)
            raise
        if self._bug is not None:
            raise self._bug

    def _wait_for(self, threads: list[threading.Thread]) -> None:
        """Wait until none of the threads works any more."""
        # `Thread.join` would not do: once it was interrupted, CPython 3.11 takes the thread for ended.
        with self._changed:
            while any(thread.is_alive() and thread not in self._ended for thread in threads):
                self._changed.wait(RECHECK_SECONDS)

    def _work(self, progress: Report) -> None:
        """Upscale files, one after the other, until none waits."""
        try:
            while (number := self._next()) is not None:
                outcome = self._outcome(number, progress)
                with self._changed:
                    size = self._in_hand.pop(number)
                    beside_others = len(self._outcomes) > 1 and size <= self._budget
                    if isinstance(outcome, (MemoryError, MemoryLimitError)) and beside_others:
                        self._alone.add(number)
                        self._waiting.append(number)
                        outcome = None
                    self._outcomes[number] = outcome
                    self._done += outcome is not None
                    self._fractions.pop(number, None)
                    self._changed.notify_all()
                if outcome is not None:
                    self._tell(progress, number, 1, 1)
        except BaseException as bug:  # run raises it
            self._bug = self._bug or bug
            self._cancel.set()
        finally:
            with self._changed:
                self._ended.add(threading.current_thread())
                self._changed.notify_all()

    def _next(self) -> int | None:
        """Take the next file in hand, once there is room for its pixels. None if none waits or the batch is to stop."""
        with contextlib.suppress(IndexError):
            self._pixel_bytes(self._waiting[0])  # reads a header, so before the others are kept waiting
        with self._changed:
            while self._waiting and not self._cancel.is_set:
                number = self._waiting[0]
                size = self._budget + 1 if number in self._alone else self._pixel_bytes(number)
                if not self._in_hand or sum(self._in_hand.values()) + size <= self._budget:
                    self._in_hand[number] = size
                    return self._waiting.popleft()
                self._changed.wait()
            return None

    def _pixel_bytes(self, number: int) -> int:
        """Bytes of the decoded input and of the result, by the header of the input; 0 if it cannot be read."""
        if number not in self._sizes:
            from .pictures.reading import open_picture  # libvips is slow to load

            size = 0
            scale = self._upscaler.bundle.manifest.scale
            # Whatever is wrong with the picture will be found again, and told, when it is upscaled.
            with contextlib.suppress(RdsrError, OSError, MemoryError), open_picture(self._source(number)) as picture:
                header = picture.header
                size = header.height * header.width * header.pixel_bytes * (1 + scale**2)
            self._sizes[number] = size  # only now: other threads take what stands there
        return self._sizes[number]

    def _outcome(self, number: int, progress: Report) -> Outcome | None:
        """Upscale one file. Returns what became of it, None if the batch is to stop."""
        file = self._plan.files[number]
        try:
            if (
                self._options.resume
                and self._record is not None
                and self._record.has(file.output, file.input, self._made_by)
            ):
                return Skipped(file.input, ALREADY_DONE)
            return self._upscale(number, file, progress)
        except CancelledError as error:
            return None if self._cancel.is_set else _kept(error)
        except EngineError as error:  # it does not name the picture by itself
            return EngineError(f"{file.input}: {error}")
        except RdsrError as error:
            return _kept(error)
        except MemoryError as error:
            return MemoryError(f"{file.input}: there is not enough memory" + (f" ({error})" if str(error) else ""))
        except OSError as error:
            return PictureError(f"{file.input}: {reason_of(error)}")

    def _upscale(self, number: int, file: PlannedFile, progress: Report) -> list[FileResult]:
        source = self._source(number)
        before = None if isinstance(source, bytes) else _stamp(source)
        frames: dict[Path, str] = {}

        def before_commit(output: Path, digest: str) -> None:
            if output != file.output:
                self._check_frame(file, output)
                frames[output] = digest
            elif before is not None:
                self._note(file, before, {output: digest})

        options: dict[str, Any] = {
            "options": self._options.write,
            "max_pixels": self._options.max_pixels,
            "cancel": self._cancel,
            "progress": lambda done, tiles: self._tell(progress, number, done, tiles),
            "before_commit": before_commit,
        }
        if self._options.frames == "all":
            results = self._upscaler.frames(source, file.output, **options)
            if frames and before is not None:
                self._note(file, before, frames)
        else:
            target: Any = self._stdout if file.output == STANDARD_STREAM else file.output
            results = [self._upscaler.file(source, target, **options)]
        return [dataclasses.replace(result, input=file.input) for result in results]

    def _check_frame(self, file: PlannedFile, output: Path) -> None:
        """Raise `OutputError` if a frame, whose name was not known before, would replace an input or another output."""
        if output in self._outputs:
            raise OutputError(f"a frame of {file.input} and another picture would both become {output}")
        if not self._inputs:
            self._inputs = {identity_of(other.input) for other in self._plan.files} - {None}
        if identity_of(output) in self._inputs:
            raise OutputError(f"the output {output} of {file.input} is one of the inputs")

    def _note(self, file: PlannedFile, before: tuple[int, ...], files: dict[Path, str]) -> None:
        """Record that a file is done, unless its input has changed in the meantime.

        Without its record a picture is as good, and only done again by --resume. So nothing is raised.
        """
        if self._record is not None:
            with contextlib.suppress(OSError, ValueError, RdsrError):
                digest = file_digest(file.input)
                if _stamp(file.input) == before:
                    self._record.add(file.output, digest, self._made_by, files)

    def _source(self, number: int) -> Path | bytes:
        """The input, or its content if it can be read only once."""
        return self._streamed.get(number, self._plan.files[number].input)

    def _read_streams(self) -> None:
        """Read inputs that are streams. This happens in the caller's thread, which an interruption reaches."""
        for number, file in enumerate(self._plan.files):
            if file.input == STANDARD_STREAM:
                if self._stdin is None:
                    raise PictureError("there is no standard input to read a picture from")
                self._streamed[number] = _all_of(self._stdin, file.input)
            elif not self._plan.many and _is_pipe(file.input):
                self._streamed[number] = _small_enough(read_pipe(file.input, _STREAM_LIMIT + 1), file.input)

    def _tell(self, progress: Report, number: int, tiles_done: int, tiles: int) -> None:
        if progress is not None:
            with self._telling:
                if self._outcomes[number] is None:
                    self._fractions[number] = tiles_done / tiles
                done = self._done + sum(self._fractions.copy().values())
                file = self._plan.files[number]
                progress(BatchProgress(done, len(self._outcomes), file.input, tiles_done, tiles))


def _written(outcome: Outcome | None) -> Sequence[FileResult]:
    """The results of a picture; if one of its frames failed, those of the frames before."""
    if isinstance(outcome, RdsrError):
        return [result for result in outcome.results if isinstance(result, FileResult)]
    return outcome if isinstance(outcome, list) else []


def _kept(error: RdsrError) -> RdsrError:
    """The error without tracebacks, whose frames hold pixels. What the system said stays its cause."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else None
    error.__traceback__ = error.__context__ = None
    error.__cause__ = None if cause is None else OSError(*cause.args)
    return error


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does. Raises `PictureError`."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot read {path}: {reason_of(error)}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_pipe(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _all_of(stream: BinaryIO, path: Path) -> bytes:
    """What a stream holds. Raises `PictureError`."""
    try:
        content = stream.read(_STREAM_LIMIT + 1)
    except (OSError, ValueError) as error:  # a closed stream is a ValueError
        raise PictureError(f"cannot read {path}: {reason_of(error)}") from error
    return _small_enough(content, path)


def _small_enough(content: bytes, path: Path) -> bytes:
    if len(content) > _STREAM_LIMIT:
        raise PictureError(f"{path} holds more than {_STREAM_LIMIT // 2**20} MiB: so large a picture has to be a file")
    return content
