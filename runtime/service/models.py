"""The models of a service: each an `Upscaler`, all under one memory limit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..bundle import Manifest
from ..errors import MemoryLimitError
from ..host.cancel import Cancel
from ..host.turns import Shifts
from ..tiling.memory import parse_limit
from ..upscaler import Upscaler
from .options import ServiceOptions

__all__ = ["Models"]

_WARM_UP = (32, 32)
"""Height and width of the picture that makes a service ready."""


class Models:
    """Opens every bundle at once, and loads engines when a model is first used. Safe to use from many threads.

    If the memory limit holds all models, each gets an equal share of it. Otherwise each gets all of it, and one at a time is
    loaded: requests for another model wait until those inside have ended.
    """

    def __init__(self, options: ServiceOptions) -> None:
        """Raises `BundleError`, and `OptionError` (`MemoryLimitError` if a model does not fit the limit even by itself)."""
        self._options = options
        self._limit = parse_limit(options.memory_limit)
        self._shifts: Shifts | None = None
        share = None if self._limit is None else self._limit // len(options.bundles)
        try:
            self._upscalers = {name: self._open(name, share) for name in options.bundles}
        except MemoryLimitError:
            if len(options.bundles) == 1:
                raise
            self._shifts = Shifts()
            self._inside: str | None = None
            """The model whose engine may be loaded, if one at a time is."""
            self._upscalers = {name: self._open(name, self._limit) for name in options.bundles}

    def _open(self, name: str, limit: int | None) -> Upscaler:
        options = self._options
        facts: dict[str, Any] = {"backend": options.backend, "precision": options.precision, "threads": options.threads}
        return Upscaler.load(options.bundles[name], memory_limit=limit, **facts)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they were given; the first is the default."""
        return tuple(self._upscalers)

    def describe(self, name: str) -> tuple[Manifest, Upscaler]:
        """Facts about a model, without loading its engine. Raises `KeyError` for an unknown name."""
        upscaler = self._upscalers[name]
        return upscaler.bundle.manifest, upscaler

    @contextlib.contextmanager
    def use(self, name: str, cancel: Cancel | None = None) -> Iterator[Upscaler]:
        """A model, whose engine may be loaded. Raises `KeyError`, and `CancelledError` if `cancel` is set in the wait."""
        if name not in self._upscalers:
            raise KeyError(name)
        if self._shifts is None:
            yield self._upscalers[name]
            return
        with self._shifts.hold(name, lambda: self._make_room(name), cancel):
            yield self._upscalers[name]

    def _make_room(self, name: str) -> None:
        """Release the engine of the model that was used last; no request is inside."""
        last = self._inside
        if last is not None and last != name:
            former, self._upscalers[last] = self._upscalers[last], self._open(last, self._limit)  # which loads nothing yet
            former.close()
        self._inside = name

    def warm_up(self) -> None:
        """Upscale a small picture with the default model. Raises what `Upscaler` raises."""
        with self.use(self.names[0]) as upscaler:
            upscaler(np.zeros((*_WARM_UP, 3), np.uint8))

    def close(self) -> None:
        for upscaler in self._upscalers.values():
            upscaler.close()
