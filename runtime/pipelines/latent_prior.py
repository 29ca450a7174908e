"""Latent prior: a diffusion process of T unrolled steps finds one vector for the whole picture; the decoder takes it."""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..bundle.manifest import whole_number
from ..errors import BundleError
from ..host.cancel import Cancel
from ..pictures.arrays import to_graph
from ..pictures.channels import Pixels
from ..tiling.tiles import Tile, cells
from .pipeline import Condition, Float, Pipeline, Then

__all__ = ["CELL", "LatentPriorPipeline", "initial_noise"]

CELL = 512
"""Height and width, in LR pixels, of the cells over which the condition features are summed, for any tiling. They are
rounded up to whole cells of the feature map."""


def initial_noise(seed: int, latent_size: int) -> Float:
    """1×latent normal noise for a seed of 0 … 2³²−1, the same everywhere: the stream of `RandomState` is frozen (NEP 19)."""
    return np.random.RandomState(seed).standard_normal((1, latent_size)).astype(np.float32)


class LatentPriorPipeline(Pipeline):
    """Condition encoder, reverse process, decoder.

    Section of the manifest: `steps` (T, unrolled in `reverse.onnx`), `betas` (its noise schedule), `latent_size` (length of
    noise and latent prior), `size_multiple` (LR pixels per cell of the condition feature map; the encoder graph pads to it),
    `condition_radius` (cells of the feature map on each side that one cell depends on).
    """

    kind = "latent-prior"
    roles = ("encoder", "reverse", "decoder")

    @classmethod
    def check(cls, manifest: Manifest) -> None:
        super().check(manifest)
        section = manifest.process
        steps, betas = whole_number(section.get("steps"), "steps", 1, 10_000), section.get("betas")
        if not isinstance(betas, list) or len(betas) != steps or not all(isinstance(b, float) and 0 < b < 1 for b in betas):
            raise BundleError(f"manifest.json: betas must be {steps} numbers between 0 and 1")
        for name, low, high in (("latent_size", 1, 65536), ("size_multiple", 1, 1024), ("condition_radius", 0, 100_000)):
            whole_number(section.get(name), name, low, high)

    @staticmethod
    def steps(manifest: Manifest) -> int:
        return int(manifest.process["steps"])

    def prior(self, colour: Pixels) -> Float:
        """H×W×1 or H×W×3 of a supported dtype → 1×latent prior z of the whole picture."""
        return self.condition(colour)["z"]

    def condition(self, colour: Pixels, cancel: Cancel | None = None, then: Then | None = None) -> Condition:
        """Compute `z`, 1×latent, see `Pipeline.condition`.

        Features are summed in float64, in a fixed order, over cells that depend only on the picture's size. Every cell of
        the feature map has the same weight, padded or not.
        """
        section = self.manifest.process
        unit = section["size_multiple"]
        size, halo = -(-CELL // unit) * unit, section["condition_radius"] * unit
        height, width = colour.shape[:2]
        count = -(-height // unit) * -(-width // unit)
        down, across = cells(height, size, halo), cells(width, size, halo)
        *others, last = (Tile(rows, columns) for rows in down for columns in across)
        total: NDArray[np.float64] | float = 0.0
        for cell in others:
            total = total + self.in_turn(cancel, partial(self._features, colour, cell))

        def finish() -> Condition:
            pooled = ((self._features(colour, last) + total) / count).astype(np.float32)
            condition = {"z": self.run_graph("reverse", {"pooled": pooled, "noise": self._noise}, rank=2)}
            if then is not None:
                then(condition)
            return condition

        return self.in_turn(cancel, finish)

    @cached_property
    def _noise(self) -> Float:
        return initial_noise(self.seed, self.manifest.process["latent_size"])

    def _features(self, colour: Pixels, cell: Tile) -> NDArray[np.float64]:
        """The condition features summed over a cell, 1×channels."""
        features = self.run_graph("encoder", {"lr": to_graph(colour[cell.read])}, rank=4)
        unit = self.manifest.process["size_multiple"]
        down, across = (slice(span.inner.start // unit, -(-span.inner.stop // unit)) for span in (cell.rows, cell.columns))
        return np.asarray(features[:, :, down, across].sum(axis=(2, 3), dtype=np.float64))
