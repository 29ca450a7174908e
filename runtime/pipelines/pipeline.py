"""The base of all process kinds: graphs loaded into one engine, and a picture decoded tile by tile."""

from __future__ import annotations

import abc
import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, Manifest
from ..engines import Backend, Precision, Session, load_session
from ..errors import BundleError, EngineError
from ..host.cancel import Cancel
from ..host.engine_thread import EngineThread
from ..pictures.arrays import from_graph, to_graph
from ..pictures.channels import Pixels
from ..tiling.blend import blend
from ..tiling.memory import Needs, least_for_one_piece, needs_of, plan_picture
from ..tiling.tiles import Plan, Tile, TileCost

__all__ = ["Condition", "Float", "OnStep", "Pipeline", "Progress", "Then"]

Float = NDArray[np.float32]
Condition = Mapping[str, Float]
"""Inputs of the decoder beside the picture, by name; computed once for the whole picture."""
Then = Callable[[Condition], None]
"""Work to do with the condition within the turn of its last step."""
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (tiles done, number of tiles), of all graphs where every graph runs on all tiles."""
OnStep = Callable[[int, int, Callable[[], Any]], None]
"""Called after each step of a diffusion process that runs step by step, with (steps done, number of steps, function that
draws the estimate so far as a picture without alpha). Other networks never call it."""


class Pipeline(abc.ABC):
    """A bundle loaded into one engine at one precision. Safe to call from many threads.

    Calls take turns tile by tile, first come, first served: a small picture waits for one tile of a large picture, not for
    all of it (where one graph at a time is loaded, for one graph of it). Only one tile at a time is in the engine. A picture
    of one tile takes one turn, its condition included.
    """

    kind: ClassVar[str]
    """Name of the process kind in the manifest."""
    roles: ClassVar[tuple[str, ...]]
    """Graphs that the pipeline runs, the decoder last."""
    in_strips: ClassVar[bool] = True
    """Whether tiles are read once, in order, so that large pictures may pass through in strips."""
    int8_equals_model: ClassVar[bool] = True
    """Whether int8 gives the same picture on every engine; otherwise a rounding changes all that follows."""
    all_at_once: ClassVar[bool] = True
    """Whether all graphs are loaded at the beginning; otherwise each when it is needed."""

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
        memory_limit: int | None = None,
        engines: Mapping[str, Backend] | None = None,
    ) -> None:
        """Load the graphs.

        `tile_cost` learns how long tiles take. `cached`: compiled forms may come from the user's cache folder. `thread`: an
        engine thread that several pipelines share, so that one tile at a time is in memory; None makes a new one.
        `memory_limit`: for kinds that load one graph at a time where a limit does not hold all of them. `engines`: of graphs
        that run in another engine than `backend`.

        Raises `BundleError` for a damaged bundle, `EngineError` if the engine cannot run it.
        """
        self.backend: Backend = backend
        self.precision: Precision = precision
        self.seed = seed
        self.manifest = bundle.manifest
        self.memory_limit = memory_limit
        self.engines: Mapping[str, Backend] = dict.fromkeys(self.roles, backend) | dict(engines or {})
        self._thread = thread or EngineThread(threads)
        self._scale = bundle.manifest.scale
        self._tile_cost = tile_cost or TileCost()
        self._bundle, self._threads, self._cached = bundle, threads, cached
        self._sessions: dict[str, Session] = {}
        for role in self.roles if self.all_at_once else ():
            self.session(role)

    def session(self, role: str) -> Session:
        """A graph, loaded now if it is not."""
        if role not in self._sessions:
            precision = self.precision_of(role)
            graph = self._bundle.graph(self.manifest.role(role, precision))
            options: dict[str, Any] = {"threads": self._threads, "cached": self._cached}
            self._sessions[role] = load_session(graph, backend=self.engines[role], precision=precision, **options)
        return self._sessions[role]

    def precision_of(self, role: str) -> Precision:
        """Only the decoder runs at the chosen precision: it takes nearly all of the time, and the rest is more sensitive."""
        return self.precision if role == "decoder" else "fp32"

    @property
    def graph_seconds(self) -> Mapping[str, float]:
        """Median seconds of each graph on pictures of one size, for kinds that choose an engine for each graph by them."""
        return {}

    @classmethod
    def check(cls, manifest: Manifest) -> None:
        """Raise `BundleError` if the manifest's section does not fit this kind, or lacks one of its graphs."""
        if missing := [role for role in cls.roles if role not in manifest.graphs]:
            raise BundleError(f"manifest.json: the {missing[0]} graph is missing")

    # How the kind plans its memory, see `tiling.memory`.

    @classmethod
    def needs(cls, manifest: Manifest, backend: Backend, precision: Precision, limit: int | None) -> Needs:
        del limit
        return needs_of(manifest, backend, precision)

    @classmethod
    def plan(cls, manifest: Manifest, needs: Needs, height: int, width: int, limit: int | None, tile_cost: int) -> Plan:
        return plan_picture(manifest, needs, height, width, limit, tile_cost=tile_cost)

    @classmethod
    def least_for_one_piece(cls, manifest: Manifest, needs: Needs, height: int, width: int) -> int | None:
        del manifest
        return least_for_one_piece(needs, height, width)

    @classmethod
    def words_on_cut(cls, manifest: Manifest, needs: Needs, plan: Plan, height: int, width: int) -> str:
        """The warning that a picture is cut into tiles that only approximate it."""
        least = cls.least_for_one_piece(manifest, needs, height, width)
        remedy = f"a memory_limit of {(least or 0) // 2**20} MiB, or none, avoids it"
        return (
            f"{manifest.arch} sees more of the picture than a tile shows, so {height}×{width} pixels in "
            f"{plan.grid[0]}×{plan.grid[1]} tiles give another result than in one piece; "
            + ("so large a picture is cut under any memory_limit" if least is None else remedy)
        )

    @classmethod
    def own_claims(cls, manifest: Manifest) -> Mapping[str, tuple[str, tuple[int, int], int]] | None:
        """Claims on memory of a kind whose tiles are its own affair: field → (graph, size of the picture, values a pixel).

        None: the decoder's memory and reach are measured as `claims` does for tiles that `plan_picture` cuts.
        """
        del manifest
        return None

    @staticmethod
    def steps(manifest: Manifest) -> int:
        """Steps of the diffusion process; 0 if there is none."""
        del manifest
        return 0

    @staticmethod
    def runs(manifest: Manifest) -> Mapping[str, int]:
        """Graph → how often it runs for each tile; once if it is not named."""
        del manifest
        return {}

    @abc.abstractmethod
    def condition(self, colour: Pixels, cancel: Cancel | None = None, then: Then | None = None) -> Condition:
        """Compute the decoder's inputs beside its tile, from a picture of H×W×1 or H×W×3 of a supported dtype."""

    def seeded(self, seed: int) -> Self:
        """The same graphs and engine with the noise of another seed."""
        if seed == self.seed:
            return self
        other = copy.copy(self)
        other.seed = seed
        other.__dict__.pop("_noise", None)  # which was drawn from the seed
        return other

    def unload(self) -> None:
        """Release the engine's memory now, even if somebody still holds the pipeline."""
        while self._sessions:
            self._sessions.popitem()[1].close()

    def in_turn(self, cancel: Cancel | None, work: Callable[[], Result]) -> Result:
        """Do `work` while no other call uses the engine, see `EngineThread.run`."""
        return self._thread.run(work, cancel)

    def picture(
        self,
        colour: Pixels,
        *,
        plan: Plan | None = None,
        out: Any = None,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
        on_step: OnStep | None = None,
    ) -> Any:
        """H×W×1 or H×W×3 of a supported dtype → the same kind, `scale` times larger; int8 takes uint8 only.

        `plan`: the tiles (None: the whole picture is one tile). `out`: what to write into, an array or a
        `Target`; it is returned. `on_step`: only for kinds whose process runs step by step.
        """
        height, width = colour.shape[:2]
        plan = plan or Plan((height, width), (1, 1), 0, 0)
        out = self.empty_result(colour) if out is None else out
        result = out

        def decode(tile: Tile, condition: Condition) -> None:
            if cancel is not None:
                cancel.check()
            self._tile(colour, tile, condition, plan, result)

        if plan.tiles == 1:
            (tile,) = plan.of(height, width)
            self.condition(colour, cancel, then=lambda condition: decode(tile, condition))
            if progress is not None:
                progress(1, 1)
            return out
        condition = self.condition(colour, cancel)
        for done, tile in enumerate(plan.of(height, width), 1):  # a list of all tiles would take memory beyond the plan
            self.in_turn(cancel, partial(decode, tile, condition))
            if progress is not None:
                progress(done, plan.tiles)
        return out

    def empty_result(self, colour: Pixels) -> NDArray[Any]:
        """An array for the result of a picture, not filled."""
        height, width, channels = colour.shape
        return np.empty((height * self._scale, width * self._scale, channels), colour.dtype)

    def _tile(self, colour: Pixels, tile: Tile, condition: Condition, plan: Plan, out: Any) -> None:
        """Decode one tile into the result."""
        started = time.perf_counter()
        larger = self._decode(colour[tile.read], condition)
        if plan.exact:
            out[tile.target(self._scale)] = larger[tile.inner(self._scale)]
        else:
            blend(out, larger, tile, halo=plan.halo, scale=self._scale)
        self._tile_cost.record(tile.rows.read * tile.columns.read, time.perf_counter() - started)

    def _decode(self, colour: NDArray[Any], condition: Condition) -> NDArray[Any]:
        """Upscale one tile."""
        if self.precision != "int8":
            return self._run_float(to_graph(colour), condition, lambda sr: from_graph(sr, colour))
        rgb = colour if colour.shape[2] == 3 else np.repeat(colour, 3, axis=2)
        outputs = self.session("decoder").run({"image": rgb[None], **condition})
        wanted = (1, rgb.shape[0] * self._scale, rgb.shape[1] * self._scale, 3)
        if len(outputs) != 1 or outputs[0].shape != wanted or outputs[0].dtype != np.uint8:
            raise EngineError(f"the int8 decoder on {self.backend} does not give one uint8 output of shape {wanted}")
        larger: NDArray[np.uint8] = outputs[0][0]
        if colour.shape[2] == 3:
            return larger
        return np.rint(larger.mean(axis=2, keepdims=True)).astype(np.uint8)

    def run(self, colour: NDArray[Any]) -> Float:
        """H×W×1 or H×W×3 of a supported dtype → 1×3×sH×sW SR, not clipped, in one tile. Not for int8."""
        condition = self.condition(colour)
        return self.in_turn(None, lambda: self._run_float(to_graph(colour), condition))

    def prove(self, colour: NDArray[Any], stages: Mapping[str, Float]) -> Float:
        """The same for a case of the proof. `stages`: what the torch model held on the way, if the kind needs it."""
        del stages
        return self.run(colour)

    def prove_int8(self, colour: NDArray[Any], stages: Mapping[str, Float]) -> NDArray[Any]:
        """The picture for a case of the proof in int8."""
        del stages
        return np.asarray(self.picture(colour))

    def _run_float(
        self, lr: Float, condition: Condition, convert: Callable[[Float], NDArray[Any]] = np.array
    ) -> NDArray[Any]:
        wanted = (1, 3, lr.shape[2] * self._scale, lr.shape[3] * self._scale)

        def checked(sr: Float) -> NDArray[Any]:
            if sr.shape != wanted:
                raise EngineError(f"the decoder on {self.backend} gave an output of shape {sr.shape}, not {wanted}")
            return convert(sr)

        return self.run_graph("decoder", {"lr": lr, **condition}, rank=4, convert=checked)

    def run_graph(
        self,
        role: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        rank: int,
        convert: Callable[[Float], NDArray[Any]] = np.array,
    ) -> NDArray[Any]:
        """Run a graph with one output, and `convert` it (`Session.read`).

        Raises `BundleError` if its number of outputs, type or rank is wrong.
        """

        def checked(outputs: list[NDArray[Any]]) -> NDArray[Any]:
            if len(outputs) != 1 or outputs[0].ndim != rank or outputs[0].dtype != np.float32:
                raise BundleError(f"the {role} graph of the bundle does not give one float32 output of {rank} dimensions")
            return convert(outputs[0])

        return self.session(role).read(inputs, checked)
