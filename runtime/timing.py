"""Time several calls against each other on a machine whose speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["interleaved_medians"]

Key = TypeVar("Key")


def interleaved_medians(
    calls: Mapping[Key, Callable[[], object]], *, rounds: int, warmup: int = 1, budget: float | None = None
) -> dict[Key, float]:
    """Median milliseconds of every call. Each round makes every call once, so that drift hits all alike.

    `budget`: seconds after which no further round begins. If warming up took as long, its own times are used.
    """
    times: dict[Key, list[float]] = {key: [] for key in calls}
    begun = time.perf_counter()
    for index in range(rounds + warmup):
        if index >= max(1, warmup) and budget is not None and time.perf_counter() - begun > budget:
            break
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            times[key].append(1e3 * (time.perf_counter() - started))
    return {key: statistics.median(taken[warmup:] or taken) for key, taken in times.items()}
