"""Residual shift: the picture's latent goes from LR to HR in T calls of one graph; a second one drew it, a third one draws.

Normalizations and attention in these networks are global, so tiles only approximate the whole picture. Tiles share their
latents: after the encoder and after every call, they are blended to one latent of the whole picture, so that neighbours
never drift apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest
from ..bundle.manifest import whole_number
from ..bundle.operators_shift import LARGEST_TILE
from ..engines import Backend, Precision, Session
from ..engines.fixed_shapes import FixedShapes
from ..errors import BundleError, EngineError
from ..host.cancel import Cancel
from ..host.turns import Shifts
from ..pictures.arrays import from_graph, to_graph
from ..pictures.channels import Pixels
from ..tiling.blend import blend, fade
from ..tiling.memory import Needs
from ..tiling.tiles import Plan, Span, Tile
from .pipeline import Condition, Float, OnStep, Pipeline, Progress, Then
from .shift_memory import all_together, least_for_one_tile, needs_of_shift, plan_shift
from .shift_process import INPUT, Shift, noise_field, padded, reflected

__all__ = ["ResidualShiftPipeline"]

_STAGES = {"encoder": 2e-5, "step": 1e-5}
"""Graph → largest difference from the torch model in float32, of the range of its output."""


class ResidualShiftPipeline(Pipeline):
    """Encoder, step, decoder.

    Section of the manifest: `calls` (of the network in their order, each as [time, input scale, factor of the estimate,
    factor of the latent, standard deviation of the noise]), `first_noise` (standard deviation of the noise at the
    beginning), `latent_channels`, `noise_channels` (of noise that the network takes itself, 0 or 1), `size_multiple` (LR
    sides are padded to multiples of it), `values` (graph → values for each LR pixel that it holds at once with the largest
    tile).
    """

    kind = "residual-shift"
    roles = ("encoder", "step", "decoder")
    all_at_once = False
    in_strips = False  # every call of the network reads the picture again
    int8_equals_model = False  # pictures differ by 4 levels between engines, and as much from the float model

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        section = self.manifest.process
        self._calls = [Shift(*call) for call in section["calls"]]
        self._channels, self._unit = int(section["latent_channels"]), int(section["size_multiple"])
        self._together = all_together(self.manifest, self.backend, self.precision, self.memory_limit)
        self._shifts = Shifts()

    @classmethod
    def check(cls, manifest: Manifest) -> None:
        super().check(manifest)
        section = manifest.process
        calls = section.get("calls")
        if not isinstance(calls, list) or not 1 <= len(calls) <= 1000 or not all(map(_is_call, calls)):
            raise BundleError("manifest.json: calls must be 1 to 1000 lists of 5 numbers")
        if not _is_number(section.get("first_noise")):
            raise BundleError("manifest.json: first_noise must be a number from 0 to 1000")
        for name, low, high in (("latent_channels", 1, 64), ("noise_channels", 0, 1), ("size_multiple", 8, 128)):
            whole_number(section.get(name), name, low, high)
        values = section.get("values")
        if not isinstance(values, dict) or set(values) != set(cls.roles):
            raise BundleError(f"manifest.json: values must be numbers for {', '.join(cls.roles)}")
        for role in cls.roles:
            whole_number(values[role], f"values of {role}", 1, 10**6)
        if manifest.tile_rule != "overlap":
            raise BundleError(f"manifest.json: tile_rule of {cls.kind} must be overlap, not {manifest.tile_rule}")

    @staticmethod
    def steps(manifest: Manifest) -> int:
        return len(manifest.process["calls"])

    @staticmethod
    def runs(manifest: Manifest) -> Mapping[str, int]:
        return {"step": len(manifest.process["calls"])}

    @classmethod
    def own_claims(cls, manifest: Manifest) -> Mapping[str, tuple[str, tuple[int, int], int]]:
        side = LARGEST_TILE // manifest.process["size_multiple"] * manifest.process["size_multiple"]
        return {f"values of {role}": (role, (side, side), held) for role, held in manifest.process["values"].items()}

    # -- Memory

    @classmethod
    def needs(cls, manifest: Manifest, backend: Backend, precision: Precision, limit: int | None) -> Needs:
        return needs_of_shift(manifest, backend, precision, limit)

    @classmethod
    def plan(cls, manifest: Manifest, needs: Needs, height: int, width: int, limit: int | None, tile_cost: int) -> Plan:
        del tile_cost  # another cut would change the result
        return plan_shift(manifest, needs, height, width, limit)

    @classmethod
    def least_for_one_piece(cls, manifest: Manifest, needs: Needs, height: int, width: int) -> int | None:
        return least_for_one_tile(manifest, needs, height, width)

    @contextlib.contextmanager
    def _using(self, role: str, sides: Sequence[int], cancel: Cancel | None) -> Iterator[None]:
        """Tiles of these sides may go through a graph. Callers that need another graph, or a graph compiled for other sides,
        wait until those inside have left."""
        kind = None if self._together else role, tuple(sides) if self.engines[role] == "openvino" else None
        if kind == (None, None):
            yield
        else:
            with self._shifts.hold(kind, self._release, cancel):
                yield

    def _release(self) -> None:
        if not self._together:
            self.in_turn(None, self.unload)

    def session(self, role: str) -> Session:
        if role not in self._sessions:
            precision = self.precision_of(role)
            find = partial(self._bundle.graph_file, self.manifest.role(role, precision))
            self._sessions[role] = FixedShapes(find, backend=self.engines[role], precision=precision, threads=self._threads)
        return self._sessions[role]

    @property
    def graph_seconds(self) -> Mapping[str, float]:
        medians = {}
        for role, session in self._sessions.items():
            if isinstance(session, FixedShapes) and (median := session.median_seconds) is not None:
                medians[role] = median
        return medians

    # -- The process

    def condition(self, colour: Pixels, cancel: Cancel | None = None, then: Then | None = None) -> Condition:
        """The latent that the process ends on, of the whole picture as one tile: `latent`, 1×C×H×W, padded."""
        condition = {"latent": self._latent(colour, self._whole(colour), cancel, lambda: None, None)}
        if then is not None:
            self.in_turn(cancel, lambda: then(condition))
        return condition

    def _whole(self, colour: Pixels) -> Plan:
        return Plan(padded(colour.shape[0], colour.shape[1], self._unit), (1, 1), 0, 0)

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
        plan = plan or self._whole(colour)
        out = self.empty_result(colour) if out is None else out
        count, done = plan.tiles * (2 + len(self._calls)), 0

        def advance() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, count)

        z = self._latent(colour, plan, cancel, advance, on_step)
        self._draw(z, colour, plan, out, cancel, advance)
        return out

    def _latent(
        self, colour: Pixels, plan: Plan, cancel: Cancel | None, advance: Callable[[], None], on_step: OnStep | None
    ) -> Float:
        """Encoder and reverse process: the latent of the whole picture, 1×C×H×W, padded."""
        sides = padded(colour.shape[0], colour.shape[1], self._unit)

        def field(name: str | int, channels: int = self._channels) -> Float:
            return noise_field(self.seed, name, channels, *sides)

        def on_tiles(role: str, inputs: Callable[[Tile, Float], Mapping[str, NDArray[Any]]]) -> Float:
            """Run a graph on every tile, and blend what it gives."""
            whole = np.zeros((1, self._channels, *sides), np.float32)
            with self._using(role, plan.tile, cancel):
                for tile in plan.of(*sides):
                    lr = _pixels(colour, tile)
                    latent = self.in_turn(cancel, lambda lr=lr, tile=tile: self._run(role, inputs(tile, lr), lr.shape[2:]))  # type: ignore[misc]
                    _add(whole, latent, tile, plan.halo)
                    advance()
            return whole

        z = on_tiles("encoder", lambda tile, lr: {"lr": lr})
        z += np.float32(self.manifest.process["first_noise"]) * field("start")
        extra = field(INPUT, 1) if self.manifest.process["noise_channels"] else None
        for number, call in enumerate(self._calls):
            now = z

            def inputs(tile: Tile, lr: Float, call: Shift = call, now: Float = now) -> Mapping[str, NDArray[Any]]:
                place = (slice(None), slice(None), *tile.read)
                given = {"latent": np.ascontiguousarray(now[place]), "lr": lr, **step_numbers(call)}
                return given if extra is None else given | {"noise_map": np.ascontiguousarray(extra[place])}

            estimate = on_tiles("step", inputs)
            z = call(z, estimate, partial(field, number))
            if on_step is not None:
                on_step(number + 1, len(self._calls), partial(self._drawn, estimate, colour, plan, cancel))
        return z

    def _drawn(self, z: Float, colour: Pixels, plan: Plan, cancel: Cancel | None) -> NDArray[Any]:
        """A latent as a picture of the kind of `colour`."""
        out = self.empty_result(colour)
        self._draw(z, colour, plan, out, cancel, lambda: None)
        return out

    def _draw(
        self, z: Float, colour: Pixels, plan: Plan, out: Any, cancel: Cancel | None, advance: Callable[[], None]
    ) -> None:
        """Decode a latent tile by tile into `out`."""
        height, width = colour.shape[:2]
        with self._using("decoder", plan.tile, cancel):
            for tile in plan.of(*z.shape[2:]):
                rows, columns = _within(tile.rows, height), _within(tile.columns, width)
                if rows is not None and columns is not None:
                    latent = np.ascontiguousarray(z[:, :, tile.read[0], tile.read[1]])
                    self.in_turn(cancel, partial(self._draw_tile, latent, Tile(rows, columns), colour, plan, out))
                advance()

    def _draw_tile(self, latent: Float, tile: Tile, colour: Pixels, plan: Plan, out: Any) -> None:
        sr = self._run("decoder", {"latent": latent}, latent.shape[2:], scale=self._scale)
        sr = sr[:, :, : tile.rows.read * self._scale, : tile.columns.read * self._scale]
        larger = from_graph(sr, colour[tile.read])
        if plan.tiles == 1:
            out[tile.target(self._scale)] = larger
        else:
            blend(out, larger, tile, halo=plan.halo, scale=self._scale)

    def run(self, colour: NDArray[Any]) -> Float:
        return self._decoded(self.condition(colour)["latent"], colour)

    def prove(self, colour: NDArray[Any], stages: Mapping[str, Float]) -> Float:
        """Run each graph on the torch model's own inputs, in float32, and compare.

        A whole process cannot be compared so: a thousandth of noise on a latent changes hundreds of its codes, and each is a
        visible step. So the decoder is run on codes themselves; only it runs in bf16 and int8. Raises `BundleError` for a
        graph that is too far off.
        """
        if not stages:
            return self.run(colour)
        sides = padded(colour.shape[0], colour.shape[1], self._unit)
        self._check_stages(stages, sides)
        if self.precision != "fp32":
            return self._decoded(stages["codes"], colour)
        lr = _pixels(colour, next(self._whole(colour).of(*sides)))
        self._compare("encoder", {"lr": lr}, stages["latent"])
        extra = {}
        if self.manifest.process["noise_channels"]:
            extra = {"noise_map": noise_field(self.seed, INPUT, 1, *sides)}
        for number, call in enumerate(self._calls):
            if f"from{number}" in stages and f"to{number}" in stages:
                inputs = {"latent": stages[f"from{number}"], "lr": lr, **step_numbers(call), **extra}
                self._compare("step", inputs, stages[f"to{number}"])
        return self._decoded(stages["codes"], colour)

    def prove_int8(self, colour: NDArray[Any], stages: Mapping[str, Float]) -> NDArray[Any]:
        return from_graph(self.prove(colour, stages), colour)

    def _check_stages(self, stages: Mapping[str, Float], sides: tuple[int, int]) -> None:
        whole = (1, self._channels, *sides)
        last = len(self._calls) - 1
        needed = {"latent", "codes", "from0", "to0", f"from{last}", f"to{last}"}
        if needed - set(stages) or any(value.shape != whole or value.dtype != np.float32 for value in stages.values()):
            raise BundleError(f"the proof of the bundle {self._bundle.path} lacks stages, or they do not fit its pictures")

    def _decoded(self, z: Float, colour: NDArray[Any]) -> Float:
        """The picture of a latent in one piece, 1×3×sH×sW."""
        with self._using("decoder", z.shape[2:], None):
            sr = self.in_turn(None, lambda: self._run("decoder", {"latent": z}, z.shape[2:], scale=self._scale))
        return sr[:, :, : colour.shape[0] * self._scale, : colour.shape[1] * self._scale]

    def _compare(self, role: str, inputs: Mapping[str, NDArray[Any]], expected: Float) -> None:
        with self._using(role, expected.shape[2:], None):
            found = self.in_turn(None, lambda: self._run(role, inputs, expected.shape[2:]))
        span = max(1.0, float(np.ptp(expected)))
        error = float(np.abs(found - expected).max()) / span
        if not error <= _STAGES[role]:
            raise BundleError(
                f"the {role} graph of the bundle {self._bundle.path} is {error:.1e} of full range off the torch model on "
                f"{self.engines[role]}, more than {_STAGES[role]:.0e}"
            )

    def _run(self, role: str, inputs: Mapping[str, NDArray[Any]], sides: Sequence[int], *, scale: int = 1) -> Float:
        output = self.run_graph(role, inputs, rank=4)
        wanted = (1, self._channels if role != "decoder" else 3, sides[0] * scale, sides[1] * scale)
        if output.shape != wanted:
            raise EngineError(f"the {role} on {self.engines[role]} gave an output of shape {output.shape}, not {wanted}")
        return output


def step_numbers(call: Shift) -> dict[str, Float]:
    """The inputs of the step graph that are numbers."""
    return {"time": np.full(1, call.time, np.float32), "input_scale": np.full(1, call.input_scale, np.float32)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1000


def _is_call(call: Any) -> bool:
    return isinstance(call, list) and len(call) == 5 and all(map(_is_number, call))


def _pixels(colour: Pixels, tile: Tile) -> Float:
    """What a tile of the padded picture reads, 1×3×H×W in [0, 1]."""
    rows, columns = (
        reflected(span.read_start, span.read_stop, length)
        for span, length in zip((tile.rows, tile.columns), colour.shape[:2], strict=True)
    )
    top, left = int(rows.min()), int(columns.min())
    inside = to_graph(colour[top : int(rows.max()) + 1, left : int(columns.max()) + 1])
    return np.ascontiguousarray(inside[:, :, rows - top][:, :, :, columns - left])


def _within(span: Span, length: int) -> Span | None:
    """The part of a span of the padded picture that lies in the picture; None if there is none."""
    if span.start >= length:
        return None
    return dataclasses.replace(span, stop=min(span.stop, length), read_stop=min(span.read_stop, length))


def _add(whole: Float, latent: Float, tile: Tile, halo: int) -> None:
    """Add a tile's latent to that of the whole picture, with its share of each place. Shares sum to one."""
    if halo == 0:
        whole[:, :, tile.read[0], tile.read[1]] = latent
        return
    rows, columns = (
        fade(span, length, halo=halo, scale=1)
        for span, length in zip((tile.rows, tile.columns), whole.shape[2:], strict=True)
    )
    share = rows.own[:, None] * columns.own[None]
    whole[:, :, rows.target, columns.target] += share * latent[:, :, rows.source, columns.source]
