"""The three graphs of a bundle run one after the other: condition encoder, reverse process, decoder, tile by tile."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arrays import from_graph, to_graph
from .background import EngineThread
from .blend import blend
from .bundle import Bundle
from .cancel import Cancel
from .engines import Backend, Precision, load_session
from .errors import BundleError, EngineError
from .tiles import Plan, Tile, TileCost, cells

__all__ = ["CELL", "Pipeline", "initial_noise"]

Float = NDArray[np.float32]
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Told (tiles done, tiles in all)."""
CELL = 256
"""LR pixels high and wide of the cells over which the condition features are summed, whatever the tiling (rounded up to
whole cells of the feature map)."""


def initial_noise(seed: int, latent_size: int) -> Float:
    """1×latent standard normal noise for a seed of 0 … 2³²−1; the same on every machine and NumPy version.

    `RandomState` is NumPy's frozen generator, whose stream never changes (NEP 19).
    """
    return np.random.RandomState(seed).standard_normal((1, latent_size)).astype(np.float32)


class Pipeline:
    """A bundle loaded into one engine at one precision. Safe to call from many threads.

    Calls take turns tile by tile, first come, first served: a small picture waits for one tile of a large one, not for all
    of it, and only one tile at a time is in the engine. A picture of one cell and one tile takes one turn.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: Backend,
        precision: Precision,
        threads: int,
        seed: int,
        tile_cost: TileCost | None = None,
        cached: bool = False,
        thread: EngineThread | None = None,
    ) -> None:
        """`tile_cost`: told how long tiles take. `cached`: compiled forms may come from the user's cache folder. `thread`:
        shared with other pipelines, so that one tile at a time is in memory; None: its own.

        Raises `BundleError` for a damaged bundle, `EngineError` where the engine cannot run it."""
        self.backend: Backend = backend
        self.precision: Precision = precision
        self._thread = thread or EngineThread(threads)
        manifest = bundle.manifest
        self._scale = manifest.scale
        self._multiple = manifest.size_multiple
        self._radius = manifest.condition_radius
        self._noise = initial_noise(seed, manifest.latent_size)
        self._tile_cost = tile_cost or TileCost()
        # Only the decoder pays for speed; the latent prior is computed in float32 whatever the precision.
        precisions: dict[str, Precision] = {"encoder": "fp32", "reverse": "fp32", "decoder": precision}
        self._encoder, self._reverse, self._decoder = (
            load_session(
                bundle.graph(manifest.role(role, kind)), backend=backend, precision=kind, threads=threads, cached=cached
            )
            for role, kind in precisions.items()
        )

    def unload(self) -> None:
        """Let go of the engine's memory now, whoever still holds the pipeline. It must not be called again."""
        for session in (self._encoder, self._reverse, self._decoder):
            session.close()

    def in_turn(self, cancel: Cancel | None, work: Callable[[], Result]) -> Result:
        """Do it alone with the engine, its memory and its threads, see `EngineThread.run`."""
        return self._thread.run(work, cancel)

    def prior(
        self, colour: NDArray[Any], cancel: Cancel | None = None, then: Callable[[Float], None] | None = None
    ) -> Float:
        """H×W×1 or H×W×3 of a supported dtype → 1×latent prior z of the whole picture.

        Features are summed in float64 over cells that depend on the picture's size alone, in a fixed order; every cell of
        the feature map weighs the same, padded or not. `then` is called with the prior in the turn of the last cell.
        """
        unit = self._multiple
        size, halo = -(-CELL // unit) * unit, self._radius * unit
        height, width = colour.shape[:2]
        count = -(-height // unit) * -(-width // unit)
        down, across = cells(height, size, halo), cells(width, size, halo)
        *others, last = (Tile(rows, columns) for rows in down for columns in across)
        total: NDArray[np.float64] | float = 0.0
        for cell in others:
            total = total + self.in_turn(cancel, partial(self._features, colour, cell))

        def finish() -> Float:
            pooled = ((self._features(colour, last) + total) / count).astype(np.float32)
            z = self._only(self._reverse.run({"pooled": pooled, "noise": self._noise}), "reverse", rank=2)
            if then is not None:
                then(z)
            return z

        return self.in_turn(cancel, finish)

    def _features(self, colour: NDArray[Any], cell: Tile) -> NDArray[np.float64]:
        """1×channels: the condition features summed over a cell."""
        features = self._only(self._encoder.run({"lr": to_graph(colour[cell.read])}), "encoder", rank=4)
        down, across = (
            slice(span.inner.start // self._multiple, -(-span.inner.stop // self._multiple))
            for span in (cell.rows, cell.columns)
        )
        return np.asarray(features[:, :, down, across].sum(axis=(2, 3), dtype=np.float64))

    def picture(
        self,
        colour: NDArray[Any],
        *,
        plan: Plan | None = None,
        out: NDArray[Any] | None = None,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
    ) -> NDArray[Any]:
        """H×W×1 or H×W×3 of a supported dtype → the same kind, `scale` times larger; int8 takes uint8 alone.

        `plan`: the tiles (None: the whole picture is one); `out`: the array to write into, which is returned.
        """
        height, width = colour.shape[:2]
        plan = plan or Plan((height, width), (1, 1), 0, 0)
        if out is None:
            out = np.empty((height * self._scale, width * self._scale, colour.shape[2]), colour.dtype)
        result = out

        def decode(tile: Tile, z: Float) -> None:
            if cancel is not None:
                cancel.check()
            self._tile(colour, tile, z, plan, result)

        if plan.tiles == 1:
            (tile,) = plan.of(height, width)
            self.prior(colour, cancel, then=lambda z: decode(tile, z))
            if progress is not None:
                progress(1, 1)
            return out
        z = self.prior(colour, cancel)
        for done, tile in enumerate(plan.of(height, width)):  # a list of all of them would be memory that nobody planned
            self.in_turn(cancel, partial(decode, tile, z))
            if progress is not None:
                progress(done + 1, plan.tiles)
        return out

    def _tile(self, colour: NDArray[Any], tile: Tile, z: Float, plan: Plan, out: NDArray[Any]) -> None:
        """Decode one tile into the result."""
        started = time.perf_counter()
        larger = self._decode(colour[tile.read], z)
        if plan.exact:
            out[tile.target(self._scale)] = larger[tile.inner(self._scale)]
        else:
            blend(out, larger, tile, halo=plan.halo, scale=self._scale)
        self._tile_cost.record(tile.rows.read * tile.columns.read, time.perf_counter() - started)

    def _decode(self, colour: NDArray[Any], z: Float) -> NDArray[Any]:
        """One tile, larger."""
        if self.precision != "int8":
            return from_graph(self._run_float(to_graph(colour), z), colour)
        rgb = colour if colour.shape[2] == 3 else np.repeat(colour, 3, axis=2)
        outputs = self._decoder.run({"image": rgb[None], "z": z})
        wanted = (1, rgb.shape[0] * self._scale, rgb.shape[1] * self._scale, 3)
        if len(outputs) != 1 or outputs[0].shape != wanted or outputs[0].dtype != np.uint8:
            raise EngineError(f"the int8 decoder on {self.backend} does not give one uint8 output of shape {wanted}")
        larger: NDArray[np.uint8] = outputs[0][0]
        if colour.shape[2] == 3:
            return larger
        return np.rint(larger.mean(axis=2, keepdims=True)).astype(np.uint8)

    def run(self, colour: NDArray[Any]) -> Float:
        """H×W×1 or H×W×3 of a supported dtype, whole → 1×3×sH×sW SR, not clipped; not for int8."""
        z = self.prior(colour)
        return self.in_turn(None, lambda: self._run_float(to_graph(colour), z))

    def _run_float(self, lr: Float, z: Float) -> Float:
        outputs = self._decoder.run({"lr": lr, "z": z})
        sr = self._only(outputs, "decoder", rank=4)
        wanted = (1, 3, lr.shape[2] * self._scale, lr.shape[3] * self._scale)
        if sr.shape != wanted:
            raise EngineError(f"the decoder on {self.backend} gave an output of shape {sr.shape}, not {wanted}")
        return sr

    @staticmethod
    def _only(outputs: list[NDArray[Any]], role: str, *, rank: int) -> Float:
        """A graph's one float32 output; bundles are untrusted, so its number, type and rank are checked."""
        if len(outputs) != 1 or outputs[0].ndim != rank or outputs[0].dtype != np.float32:
            raise BundleError(f"the {role} graph of the bundle does not give one float32 output of {rank} dimensions")
        return outputs[0]
