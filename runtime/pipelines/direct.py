"""Direct: one call of the decoder for each tile, nothing computed from the whole picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from ..host.cancel import Cancel
from .pipeline import Condition, Pipeline

__all__ = ["DirectPipeline"]


class DirectPipeline(Pipeline):
    """The decoder alone. Its section of the manifest holds nothing but the kind."""

    kind = "direct"
    roles = ("decoder",)

    def condition(
        self, colour: NDArray[Any], cancel: Cancel | None = None, then: Callable[[Condition], None] | None = None
    ) -> Condition:
        """See `Pipeline.condition`: nothing."""
        if then is not None:
            self.in_turn(cancel, lambda: then({}))
        return {}
