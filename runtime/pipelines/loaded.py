"""The loaded pipelines of an `Upscaler`: one for each engine and precision, or one at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from ..bundle import Bundle
from ..choice.graph_times import faster_engines
from ..engines import Backend, Precision, refuse_after_fork
from ..host.cancel import Cancel
from ..host.engine_thread import EngineThread
from ..host.turns import Shifts
from ..tiling.tiles import TileCost
from ..trial import try_first
from . import Pipeline, load_pipeline

__all__ = ["Choice", "Pipelines"]

Choice = tuple[Backend, Precision]


class Pipelines:
    """Loads each pipeline when it is first needed. Safe to use from many threads."""

    thread: EngineThread
    """The thread in which all of them run."""
    loaded: dict[Choice, Pipeline]

    def __init__(
        self, bundle: Bundle, threads: int, seed: int, memory_limit: int | None, *, together: bool, by_graph: bool
    ) -> None:
        """`together`: whether several pipelines may be loaded at once. `by_graph`: whether graphs may have other engines.

        Otherwise one is released before another is loaded. Both happen in the engine's thread, because glibc would keep the
        memory once for each thread that loads: sixteen callers of two kinds took 207 MiB under a limit of 80, and so 55.
        """
        self._bundle, self._threads, self._together, self._by_graph = bundle, threads, together, by_graph
        self._options: dict[str, Any] = {"threads": threads, "seed": seed, "cached": True, "memory_limit": memory_limit}
        self.thread = EngineThread(threads)
        self.loaded = {}
        self._lock = threading.Lock()
        self._loading: dict[Choice, threading.Lock] = {}
        self._shifts = Shifts()
        self._tile_costs: dict[Choice, TileCost] = {}
        self._closed = False

    def tile_cost(self, choice: Choice) -> TileCost:
        """The cost of its tiles, as learned so far."""
        return self._tile_costs.setdefault(choice, TileCost())

    @contextlib.contextmanager
    def hold(self, choice: Choice, cancel: Cancel | None) -> Iterator[Pipeline]:
        """The pipeline, loaded. If only one may be loaded, callers of others wait. Raises what `Pipeline` raises."""
        refuse_after_fork()  # before another is released, which would wait for threads that do not exist here
        if self._together:
            yield self.of(choice)
        else:
            with self._shifts.hold(choice, self._unload_all, cancel):
                yield self.of(choice)

    def of(self, choice: Choice) -> Pipeline:
        """The pipeline, loaded now if necessary. Callers of a loaded one do not wait while another loads."""
        if (found := self.loaded.get(choice)) is not None:
            return found
        with self._lock:
            loading = self._loading.setdefault(choice, threading.Lock())
        with loading:
            if (found := self.loaded.get(choice)) is None:
                try_first(self._bundle, *choice)  # in this thread: a job of the engine's thread cannot be interrupted
                load = partial(self._load, *choice)
                found = self.loaded[choice] = load() if self._together else self.thread.run(load, None)
            if self._closed:  # meanwhile
                self.loaded.pop(choice, None)
            return found

    def _load(self, backend: Backend, precision: Precision) -> Pipeline:
        options = self._options | {"tile_cost": self.tile_cost((backend, precision)), "thread": self.thread}
        if self._by_graph and self._options["memory_limit"] is None:  # two engines need more memory than one
            options["engines"] = faster_engines(self._bundle.manifest, backend, precision)
        return load_pipeline(self._bundle, backend=backend, precision=precision, **options)

    def _unload_all(self) -> None:
        """Release all engines. No caller is inside, but something may hold a pipeline, such as a kept error's traceback."""
        while self.loaded:
            _, pipeline = self.loaded.popitem()
            self.thread.run(pipeline.unload, None)

    def close(self) -> None:
        """Release all pipelines. Calls that are inside end normally."""
        self._closed = True
        self.loaded.clear()
        self.thread = EngineThread(self._threads)  # not started; the other one ends with its last pipeline
