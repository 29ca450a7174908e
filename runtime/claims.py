"""What a manifest claims about its graphs, measured: weights, memory, radii, sizes, and that tiles equal the whole picture.

A digest only shows that files belong together. Anybody can compute it again for a manifest that lies, and then tiles would
not be exact, or a limit of memory would not hold.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .bundle.graph import FLOAT, Graph
from .bundle.need import need
from .bundle.onnx_wire import read_onnx
from .errors import BundleError
from .pipelines import Pipeline, load_pipeline, pipeline_kind
from .pipelines.latent_prior import LatentPriorPipeline
from .tiling.tiles import LEAST_STEP, Plan, plan_tiles

__all__ = ["check_claims", "check_tiles", "lie", "values_held", "weights_held"]

_PARAMS = 0.01
"""Share of the weights by which the count may differ: equal vectors share a constant, and products with ones are dropped."""
_PEAK = 1.2
"""Times the claim that the values of a graph may need: DiffIR needs 1.01 times, RDSR 0.94 to 0.8."""
_PEAK_MOST = 8
"""Times the values of a graph that a claim may be."""
_SIZE = (40, 56)
"""Height and width of the picture whose values in the decoder are counted."""
_MARGIN = 8
"""Pixels, or cells, beyond the claimed radius in which changes are looked for."""
_LOCAL = 48
"""Pixels: a decoder that sees no farther could be cut into exact tiles."""
_AMPLITUDES = (1.0, -1e3, 1e9, -1e9)
"""Changes of one pixel. What a small change does at the edge of the field is lost in rounding."""


def lie(bundle: Bundle, field: str, claimed: object, found: object, how: str) -> BundleError:
    """The error for a claim that does not hold."""
    return BundleError(f"the bundle {bundle.path} is refused: it claims {field} {claimed}, but {found} was found ({how})")


def check_claims(bundle: Bundle, *, threads: int, step: Callable[[str], None]) -> None:
    """Compare the manifest with its float32 graphs. Raises `BundleError`, which names field, claim and finding."""
    manifest = bundle.manifest
    graphs = {role: read_onnx(bundle.graph(role)) for role in manifest.pipeline_roles}
    step("count the weights")
    found = sum(weights_held(graph) for graph in graphs.values())
    if abs(manifest.params - found) > _PARAMS * found:
        raise lie(bundle, "params", manifest.params, found, "counted in its graphs")
    if manifest.kind == LatentPriorPipeline.kind:
        _check_reverse(bundle, graphs["reverse"])
    if (claims := pipeline_kind(manifest).own_claims(manifest)) is not None:
        step("measure the memory of the graphs")
        for field, (role, size, claimed) in claims.items():
            peak = need(graphs[role], *size, values=2**62, products=2**62).peak / math.prod(size)
            if not peak / _PEAK <= claimed <= _PEAK_MOST * peak:
                raise lie(bundle, field, claimed, math.ceil(peak), "values per pixel that the graph holds at once")
        return
    pipeline = load_pipeline(bundle, backend="onnxruntime", precision="fp32", threads=threads, seed=0)
    condition = pipeline.condition(_noise(24, 20)[0].transpose(1, 2, 0).copy())
    step("measure the decoder's memory")
    peak = values_held(graphs["decoder"])
    if not peak / _PEAK <= manifest.peak_channels <= _PEAK_MOST * peak:
        how = "values per pixel that the decoder holds at once"
        raise lie(bundle, "peak_channels", manifest.peak_channels, math.ceil(peak), how)

    def decode(lr: NDArray[np.float32]) -> NDArray[np.float32]:
        return pipeline.run_graph("decoder", {"lr": lr, **condition}, rank=4)

    if manifest.tile_rule != "exact":
        step("measure how far the decoder sees")
        found = _reach(decode, _LOCAL + _MARGIN, 1, manifest.scale)
        if found <= _LOCAL and _same_from_anywhere(decode, found, manifest.scale):
            how = "pixels away, at which a changed pixel still changes the output, so that tiles could be exact"
            raise lie(bundle, "the tile_rule", manifest.tile_rule, found, how)
    elif manifest.receptive_radius is not None:
        step("measure the receptive radius")
        how = "pixels away, at which a changed pixel still changes the output"
        reach = _Reach("receptive_radius", manifest.receptive_radius, 1, manifest.scale, _kernels(graphs["decoder"]), how)
        reach.check(bundle, decode)
    if isinstance(pipeline, LatentPriorPipeline):
        step("measure the condition radius")
        _check_latent_prior(bundle, pipeline, _kernels(graphs["encoder"]))


def values_held(graph: Graph) -> float:
    """Values for each LR pixel that a graph holds at once."""
    return need(graph, *_SIZE, values=2**62, products=2**62).peak / math.prod(_SIZE)


def _check_reverse(bundle: Bundle, graph: Graph) -> None:
    section = bundle.manifest.process
    _, shape = graph.inputs.get("noise", ("", None))
    length = shape[-1] if shape else None
    if length != section["latent_size"]:
        raise lie(bundle, "latent_size", section["latent_size"], length, "the length of the noise that its graph takes")
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    unrolled = max((reads[name] for name, tensor in graph.constants.items() if len(tensor.shape) > 1), default=0)
    if unrolled != section["steps"]:
        raise lie(bundle, "steps", section["steps"], unrolled, "the times that its graph reads a matrix")


def _check_latent_prior(bundle: Bundle, pipeline: Pipeline, kernels: int) -> None:
    section = bundle.manifest.process
    unit = section["size_multiple"]
    height, width = unit + 1, unit // 2 + 1

    def encode(lr: NDArray[np.float32]) -> NDArray[np.float32]:
        return pipeline.run_graph("encoder", {"lr": lr}, rank=4)

    cells, wanted = encode(_noise(height, width)).shape[2:], (-(-height // unit), -(-width // unit))
    if cells != wanted:
        found = f"a feature map of {cells[0]}×{cells[1]}"
        raise lie(bundle, "size_multiple", unit, found, f"of a picture of {height}×{width}")
    how = "cells away, at which a changed pixel still changes the features"
    _Reach("condition_radius", section["condition_radius"], unit, 1 / unit, kernels, how).check(bundle, encode)


def _noise(height: int, width: int) -> NDArray[np.float32]:
    """1×3×H×W in [0, 1]."""
    return np.random.RandomState(0).random_sample((1, 3, height, width)).astype(np.float32)


def weights_held(graph: Graph) -> int:
    """Number of weights in a graph.

    A matrix that is read several times belongs to an unrolled process, whose steps share their weights. Elsewhere a vector
    that is read several times stands for as many equal ones.
    """
    reads = Counter(name for node in graph.nodes for name in node.inputs)
    weights = {name: tensor.shape for name, tensor in graph.constants.items() if tensor.dtype == FLOAT}
    unrolled = any(len(shape) > 1 and reads[name] > 1 and min(shape) > 1 for name, shape in weights.items())
    return sum(math.prod(shape) * (1 if unrolled else max(1, reads[name])) for name, shape in weights.items())


def _kernels(graph: Graph) -> int:
    """How far all kernels of a graph reach together, in cells of its feature maps."""
    reach = 0
    for node in graph.nodes:
        kernel = node.attributes.get("kernel_shape")
        if isinstance(kernel, tuple):
            dilations = node.attributes.get("dilations")
            dilations = dilations if isinstance(dilations, tuple) else (1,) * len(kernel)
            reach += max((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)) // 2
    return reach


@dataclasses.dataclass(frozen=True)
class _Reach:
    """A claimed radius, in cells of `unit`×`unit` LR pixels, of a graph whose output is `scale` times larger than the LR."""

    field: str
    claimed: int
    unit: int
    scale: float
    kernels: int
    """Cells that all kernels of the graph reach together."""
    how: str

    def check(self, bundle: Bundle, run: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        """Change single pixels and see how far the output changes. Raises `BundleError` if it is farther than claimed.

        A claim that is too large only costs time and memory, so it is refused only if it is far too large.
        """
        found = _reach(run, min(self.claimed, self.kernels) + _MARGIN, self.unit, self.scale)
        if not found <= self.claimed <= 4 * found + _MARGIN:
            raise lie(bundle, self.field, self.claimed, found, self.how)


def _reach(run: Callable[[NDArray[np.float32]], NDArray[np.float32]], middle: int, unit: int, scale: float) -> int:
    """Cells of `unit` pixels, at most `middle`, between a changed pixel and what it changes. The output has `scale`."""
    side = (2 * middle + 1) * unit
    plain = _noise(side, side)
    before = run(plain)
    found = 0
    for turn, amplitude in enumerate(_AMPLITUDES):
        # Not always the same place: networks that gather pixels in cells treat them differently.
        row, column = (middle * unit + part % unit for part in (turn, 2 * turn + 1))
        changed = plain.copy()
        changed[0, :, row, column] += np.float32(amplitude)
        after = run(changed)
        different = ~((before == after) | (np.isnan(before) & np.isnan(after))).all(axis=(0, 1))
        for axis, place in enumerate((row, column)):
            hit = np.flatnonzero(different.any(axis=1 - axis))
            cells = (hit / (scale * unit)).astype(int)
            found = max(found, *np.abs(cells - place // unit).tolist(), 0)
    return found


def _same_from_anywhere(run: Callable[[NDArray[np.float32]], NDArray[np.float32]], reach: int, scale: int) -> bool:
    """Whether what a decoder makes of a place does not depend on where the picture begins and ends."""
    side = 2 * reach + _MARGIN
    whole = _noise(side + _MARGIN, side + _MARGIN)
    before = run(whole)
    inner = slice(reach * scale, (side - reach) * scale)
    for start in range(1, _MARGIN):
        after = run(np.ascontiguousarray(whole[:, :, start : start + side, start : start + side]))
        there = before[:, :, start * scale :, start * scale :][:, :, inner, inner]
        if not np.allclose(after[:, :, inner, inner], there, rtol=0, atol=1e-6 * float(np.abs(before).max())):
            return False
    return True


def check_tiles(bundle: Bundle, pipeline: Pipeline) -> None:
    """Compare the least tiles with the whole picture, of an odd size, byte for byte, if the manifest says they are equal."""
    manifest = bundle.manifest
    halo = manifest.receptive_radius
    if manifest.tile_rule != "exact" or halo is None:
        return
    least = 2 * (halo + LEAST_STEP)
    height, width = least + 5, least + 13
    picture = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    cut = plan_tiles(height, width, halo=halo, most_pixels=least * least)
    assert cut is not None, "the least tile is always possible"
    tiled = pipeline.picture(picture, plan=Plan(*cut, halo, 0))
    off = float(np.mean(tiled != pipeline.picture(picture)))
    if off:
        how = f"of bytes differ between {cut[1][0]}×{cut[1][1]} tiles and the whole picture in {pipeline.backend}"
        raise lie(bundle, "exact tiles with receptive_radius", halo, f"{off:.1%}", f"{how} {pipeline.precision}")
