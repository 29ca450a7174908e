"""The pipelines of an `Upscaler` that are loaded: one for each engine and precision, or one at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial

from ..bundle import Bundle
from ..engines import Backend, Precision, refuse_after_fork
from ..host.background import EngineThread
from ..host.cancel import Cancel
from ..host.turns import Shifts
from ..tiling.tiles import TileCost
from . import Pipeline, load_pipeline

__all__ = ["Choice", "Pipelines"]

Choice = tuple[Backend, Precision]


class Pipelines:
    """Loads what is asked for when it is first needed. Safe to use from many threads."""

    thread: EngineThread
    """In which all of them run."""
    loaded: dict[Choice, Pipeline]

    def __init__(self, bundle: Bundle, *, threads: int, seed: int, together: bool) -> None:
        """`together`: whether several may be loaded at once. Otherwise one is let go of before another is loaded, and both
        happens in the engine's thread: glibc would keep what they took once for each caller that loads, sixteen callers
        of two kinds 207 MiB under a limit of 80, 55 so."""
        self._bundle, self._threads, self._seed, self._together = bundle, threads, seed, together
        self.thread = EngineThread(threads)
        self.loaded = {}
        self._lock = threading.Lock()
        self._loading: dict[Choice, threading.Lock] = {}
        self._shifts = Shifts()
        self._tile_costs: dict[Choice, TileCost] = {}
        self._closed = False

    def tile_cost(self, choice: Choice) -> TileCost:
        """What is known of its tiles."""
        return self._tile_costs.setdefault(choice, TileCost())

    @contextlib.contextmanager
    def hold(self, choice: Choice, cancel: Cancel | None) -> Iterator[Pipeline]:
        """The pipeline, loaded; where only one can be, no other is meanwhile. Raises what `Pipeline` raises."""
        refuse_after_fork()  # before any is let go of, which would wait for threads that are not there
        if self._together:
            yield self.of(choice)
        else:
            with self._shifts.hold(choice, self._let_go, cancel):
                yield self.of(choice)

    def of(self, choice: Choice) -> Pipeline:
        """Callers of one that is loaded do not wait for another to be."""
        if (found := self.loaded.get(choice)) is not None:
            return found
        with self._lock:
            loading = self._loading.setdefault(choice, threading.Lock())
        with loading:
            if (found := self.loaded.get(choice)) is None:
                load = partial(self._load, choice)
                found = self.loaded[choice] = load() if self._together else self.thread.run(load, None)
            if self._closed:  # meanwhile
                self.loaded.pop(choice, None)
            return found

    def _load(self, choice: Choice) -> Pipeline:
        backend, precision = choice
        return load_pipeline(
            self._bundle,
            backend=backend,
            precision=precision,
            threads=self._threads,
            seed=self._seed,
            tile_cost=self.tile_cost(choice),
            cached=True,
            thread=self.thread,
        )

    def _let_go(self) -> None:
        """With nobody inside: of engines, whoever still holds a pipeline, the traceback of an error that is kept, say."""
        while self.loaded:
            _, pipeline = self.loaded.popitem()
            self.thread.run(pipeline.unload, None)

    def close(self) -> None:
        """Let go of all; calls that are inside end as they would have."""
        self._closed = True
        self.loaded.clear()
        self.thread = EngineThread(self._threads)  # not begun; the other one ends with its last pipeline
