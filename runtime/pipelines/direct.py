"""Direct: one call of the decoder for each tile. Nothing is computed from the whole picture."""

from __future__ import annotations

from ..host.cancel import Cancel
from ..pictures.channels import Pixels
from .pipeline import Condition, Pipeline, Then

__all__ = ["DirectPipeline"]


class DirectPipeline(Pipeline):
    """Only a decoder. Its section of the manifest holds nothing but the kind."""

    kind = "direct"
    roles = ("decoder",)

    def condition(self, colour: Pixels, cancel: Cancel | None = None, then: Then | None = None) -> Condition:
        if then is not None:
            self.in_turn(cancel, lambda: then({}))
        return {}
