"""Many addressed files, on this machine or on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal

from ..batch import made_by
from ..bundle import default_bundle_path
from ..errors import CancelledError, EngineError, OptionError
from ..host.cancel import Cancel
from ..pictures.formats import WriteOptions
from ..upscaler import Upscaler
from .addresses import AddressedFile, AddressPlan, only_in_one_process
from .outcomes import Outcome, outcome_of
from .ray_job import ClusterJob, ray_cluster, run_on_ray
from .record import AddressRecord

__all__ = ["AddressBatch"]

_AT_ONCE = 3
"""Pictures in hand here: one is read and one written while the engine has the third."""
_LOOKED_AT = 16
"""Files that are compared with the record at a time."""


class AddressBatch:
    """The files of a plan on their way. After `run`, also one that was interrupted, it knows what became of each."""

    def __init__(
        self,
        upscaler: Upscaler,
        plan: AddressPlan,
        write: WriteOptions,
        *,
        max_pixels: int | None = None,
        resume: bool = False,
        engine: Literal["local", "ray"] = "local",
        address: str | None = None,
        threads: int | None = None,
    ) -> None:
        """`upscaler` runs here, and says what the actors of Ray load. `address`, `threads`: of the cluster, of each actor.

        Raises `OptionError` for options that exclude each other, and what `made_by` raises.
        """
        if engine == "ray":
            for name in {each for file in plan.files for each in (file.input, file.output)}:
                if only_in_one_process(name):
                    raise OptionError(f"{name} is in the memory of this process, where a cluster does not see it")
        self.upscaler = upscaler
        self._plan, self._write, self._max_pixels = plan, write, max_pixels
        self._engine, self._address, self._threads, self._resume = engine, address, threads, resume
        self._record = AddressRecord(plan.folder, made_by(upscaler, write))
        self.outcomes: list[Outcome] = []
        """What became of files, in the order in which they ended."""
        self.done_before: list[AddressedFile] = []
        """Files that an earlier job has made."""
        self._cancel = Cancel()

    @property
    def left(self) -> list[AddressedFile]:
        """Files that an interruption has left undone."""
        ended = {outcome.output for outcome in self.outcomes} | {file.output for file in self.done_before}
        return [file for file in self._plan.files if file.output not in ended]

    def run(self, progress: Callable[[int, str], None] = lambda done, name: None) -> None:
        """Upscale all files. What is wrong with one is kept as its outcome, and the others still run.

        `progress` is called with the number of files that have ended, and the last one's name. Raises `OutputError` if the
        record cannot be written, and what `ray_cluster` raises. An interruption goes on to the caller.
        """
        if self._resume:
            self._record.read()
            with ThreadPoolExecutor(_LOOKED_AT) as pool:
                known = pool.map(self._record.has, self._plan.files)
                self.done_before = [file for file, done in zip(self._plan.files, known, strict=True) if done]
        outcomes = self._on_ray() if self._engine == "ray" else self._here()
        with self._record.kept(), contextlib.closing(outcomes):
            for outcome in outcomes:
                self.outcomes.append(outcome)
                if outcome.error is None:
                    self._record.add(outcome)
                progress(len(self.done_before) + len(self.outcomes), outcome.input)

    def _here(self) -> Generator[Outcome]:
        """Outcomes of this process, a few files at a time."""
        waiting, in_hand = iter(self.left), set[Future[Outcome | None]]()
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rdsr-file") as pool:
            try:
                while True:
                    while len(in_hand) < _AT_ONCE and (file := next(waiting, None)) is not None:
                        in_hand.add(pool.submit(self._one, file))
                    if not in_hand:
                        return
                    ended, in_hand = wait(in_hand, return_when=FIRST_COMPLETED)
                    yield from (outcome for each in ended if (outcome := each.result()) is not None)
            finally:
                self._cancel.set()

    def _one(self, file: AddressedFile) -> Outcome | None:
        try:
            return outcome_of(self.upscaler, file, self._write, self._max_pixels, self._cancel)
        except CancelledError:
            return None
        except EngineError as error:
            return Outcome(file.input, file.output, error=f"{file.input}: {error}")

    def _on_ray(self) -> Generator[Outcome]:
        """Outcomes of a cluster, whose actors use the engine and the precision that were chosen here, so that all agree."""
        left = self.left
        if not left:
            return
        upscaler, effective = self.upscaler, self.upscaler.effective
        own = upscaler.bundle.path == default_bundle_path()  # which lies elsewhere on other machines
        load: dict[str, Any] = {
            "bundle": None if own else str(upscaler.bundle.path.absolute()),
            "backend": effective.backend,
            "precision": effective.precision,
            "seed": upscaler.seed,
            "memory_limit": upscaler.memory_limit,
        }
        job = ClusterJob(load, upscaler.bundle.manifest.digest, self._write, self._max_pixels)
        with ray_cluster(self._address) as processors:
            yield from run_on_ray(left, job, processors=self._threads or processors)
