"""The three graphs of a bundle run one after the other: condition encoder, reverse process, decoder, tile by tile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import from_graph, to_graph
from .blend import blend
from .bundle import Bundle
from .engines import Backend, Precision, load_session
from .errors import BundleError, CancelledError, EngineError
from .tiles import Plan, Tile, TileCost, cells
from .turns import Turns, process_turns

__all__ = ["CELL", "Cancel", "Pipeline", "initial_noise"]

Float = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Told (tiles done, tiles in all)."""
CELL = 256
"""LR pixels high and wide of the cells over which the condition features are summed, whatever the tiling (rounded up to
whole cells of the feature map)."""


class Cancel:
    """A token that stops the calls it was given to: set by any thread, seen before the next tile."""

    def __init__(self, parent: Cancel | None = None) -> None:
        """`parent`: a token that sets this one as well."""
        self._event = threading.Event()
        self._parent = parent

    def set(self) -> None:
        """Stop; the calls raise `CancelledError`."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether `set` was called, here or on the parent."""
        return self._event.is_set() or (self._parent is not None and self._parent.is_set)

    def check(self) -> None:
        """Raise `CancelledError` if `set` was called."""
        if self.is_set:
            raise CancelledError("the call was cancelled")


def initial_noise(seed: int, latent_size: int) -> Float:
    """1×latent standard normal noise for a seed of 0 … 2³²−1; the same on every machine and NumPy version.

    `RandomState` is NumPy's frozen generator, whose stream never changes (NEP 19).
    """
    return np.random.RandomState(seed).standard_normal((1, latent_size)).astype(np.float32)


class Pipeline:
    """A bundle loaded into one engine at one precision. Safe to call from many threads.

    Calls take turns tile by tile, first come, first served: a small picture waits for one tile of a large one, not for all
    of it, and only one tile at a time is in the engine.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: Backend,
        precision: Precision,
        threads: int,
        seed: int,
        turns: Turns | None = None,
        tile_cost: TileCost | None = None,
        cached: bool = False,
    ) -> None:
        """`turns`: shared with other pipelines, so that one tile at a time is in memory; None: its own. `tile_cost`: told
        how long tiles take. `cached`: compiled forms may come from the user's cache folder.

        Raises `BundleError` for a damaged bundle, `EngineError` where the engine cannot run it."""
        self.backend: Backend = backend
        self.precision: Precision = precision
        self._threads = threads
        manifest = bundle.manifest
        self._scale = manifest.scale
        self._multiple = manifest.size_multiple
        self._radius = manifest.condition_radius
        self._noise = initial_noise(seed, manifest.latent_size)
        self._turns = turns or Turns(1)
        self._tile_cost = tile_cost or TileCost()
        # Only the decoder pays for speed; the latent prior is computed in float32 whatever the precision.
        precisions: dict[str, Precision] = {"encoder": "fp32", "reverse": "fp32", "decoder": precision}
        self._encoder, self._reverse, self._decoder = (
            load_session(
                bundle.graph(manifest.role(role, kind)), backend=backend, precision=kind, threads=threads, cached=cached
            )
            for role, kind in precisions.items()
        )

    @contextlib.contextmanager
    def _turn(self, cancel: Cancel | None) -> Iterator[None]:
        """Alone with the engine, its memory and its threads; raises `CancelledError` where that is no longer wanted."""
        if cancel is not None:
            cancel.check()
        with self._turns.hold(stop=cancel), process_turns().hold(self._threads, stop=cancel):
            if cancel is not None:
                cancel.check()
            yield

    def prior(self, colour: NDArray[Any], cancel: Cancel | None = None) -> Float:
        """H×W×1 or H×W×3 of a supported dtype → 1×latent prior z of the whole picture.

        Features are summed in float64 over cells that depend on the picture's size alone, in a fixed order; every cell of
        the feature map weighs the same, padded or not.
        """
        unit = self._multiple
        size, halo = -(-CELL // unit) * unit, self._radius * unit
        height, width = colour.shape[:2]
        total: NDArray[np.float64] | None = None
        for rows in cells(height, size, halo):
            for columns in cells(width, size, halo):
                with self._turn(cancel):
                    lr = to_graph(colour[Tile(rows, columns).read])
                    features = self._only(self._encoder.run({"lr": lr}), "encoder", rank=4)
                down, across = (slice(span.inner.start // unit, -(-span.inner.stop // unit)) for span in (rows, columns))
                part = features[:, :, down, across].sum(axis=(2, 3), dtype=np.float64)
                total = part if total is None else total + part
        count = -(-height // unit) * -(-width // unit)
        assert total is not None
        pooled = (total / count).astype(np.float32)
        with self._turn(cancel):
            return self._only(self._reverse.run({"pooled": pooled, "noise": self._noise}), "reverse", rank=2)

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
        scale = self._scale
        z = self.prior(colour, cancel)
        if out is None:
            out = np.empty((height * scale, width * scale, colour.shape[2]), colour.dtype)
        for done, tile in enumerate(plan.of(height, width)):
            with self._turn(cancel):
                started = time.perf_counter()
                if plan.exact:
                    out[tile.target(scale)] = self._decode(colour[tile.read], z)[tile.inner(scale)]
                else:
                    blend(out, self._decode(colour[tile.read], z), tile, halo=plan.halo, scale=scale)
                self._tile_cost.record(tile.rows.read * tile.columns.read, time.perf_counter() - started)
            if progress is not None:
                progress(done + 1, plan.tiles)
        return out

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
        with self._turn(None):
            return self._run_float(to_graph(colour), z)

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
