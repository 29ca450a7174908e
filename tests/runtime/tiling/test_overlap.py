"""The tile rule "overlap": networks that attend over the whole picture, in tiles that are blended where it does not fit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdsr.runtime import Bundle, MemoryLimitError, Plan, Upscaler
from rdsr.runtime.bundle import Manifest
from rdsr.runtime.pipelines import Pipeline
from rdsr.runtime.pipelines import pipeline as pipeline_module
from rdsr.runtime.pipelines.latent_prior import LatentPriorPipeline
from rdsr.runtime.tiling.blend import blend, fade
from rdsr.runtime.tiling.memory import ALPHA, Needs, needs_of, plan_picture
from rdsr.runtime.tiling.tiles import LEAST_STEP, OVERLAP, Tile, spans
from rdsr.tests.conftest import rewrite_manifest

RNG = np.random.default_rng(0)
DTYPES = ["uint8", "uint16", "float32"]
USUAL, PIECE = 384**2, 512**2
"""Most pixels of a tile, and of a picture that stays whole."""
LEAST = 2 * (OVERLAP + LEAST_STEP)


def random(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "float32":
        return RNG.random(shape, dtype=np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def anything(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """What fresh memory may hold at worst."""
    return np.full(shape, np.nan if dtype == "float32" else np.iinfo(dtype).max, dtype)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A picture of random size and the tiles it is cut into."""

    size: tuple[int, int]
    plan: Plan
    scale: int

    @property
    def size_out(self) -> tuple[int, int]:
        return self.size[0] * self.scale, self.size[1] * self.scale

    def part(self, picture: np.ndarray, tile: Tile) -> np.ndarray:
        """What the tile read, of a picture as large as the result."""
        rows, columns = (slice(s.start * self.scale, s.stop * self.scale) for s in tile.read)
        return picture[rows, columns]

    def blended(self, tiles: Callable[[int, Tile], np.ndarray], channels: int, dtype: str) -> np.ndarray:
        out = anything((*self.size_out, channels), dtype)
        for index, tile in enumerate(self.plan.of(*self.size)):
            blend(out, tiles(index, tile), tile, halo=self.plan.halo, scale=self.scale)
        return out


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    halo = draw(st.integers(1, 12))
    size = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    tile = tuple(min(side, 2 * halo + draw(st.integers(1, 30))) for side in size)
    grid = tuple(len(spans(side, read, halo)) for side, read in zip(size, tile, strict=True))
    return Cut(size, Plan(tile, grid, halo, 0, exact=False), draw(st.integers(1, 4)))


# -- blending


@settings(max_examples=200)
@given(length=st.integers(1, 300), more=st.integers(1, 60), halo=st.integers(1, 20), scale=st.integers(1, 4))
def test_shares_sum_to_one_and_lie_where_there_is_data(length: int, more: int, halo: int, scale: int) -> None:
    total = np.zeros(length * scale)
    outer = halo * scale - halo * scale // 2  # the outer half of a halo
    for span in spans(length, 2 * halo + more, halo):
        part = fade(span, length, halo=halo, scale=scale)
        assert part.target.start - part.source.start == span.read_start * scale
        assert part.source.start >= (outer if span.read_start else 0)
        assert part.source.stop <= span.read * scale - (outer if span.read_stop < length else 0)
        assert part.own.shape == part.before.shape == (part.target.stop - part.target.start,)
        assert part.own.min() > 0
        assert np.abs(np.diff(part.own)).max(initial=0) <= 1 / (halo * scale) + 1e-6, "no ramp is steeper"
        assert np.allclose(part.before, total[part.target], atol=1e-5)
        assert (np.diff(part.before) <= 0).all()
        assert (part.before[part.shared :] == 0).all()
        total[part.target] += part.own
    assert np.allclose(total, 1, atol=1e-5)


@settings(max_examples=50)
@given(cut=cuts(), channels=st.sampled_from([1, 3]), dtype=st.sampled_from(DTYPES))
def test_tiles_that_agree_give_the_picture_exactly(cut: Cut, channels: int, dtype: str) -> None:
    """So every pixel is written, too: what was there before is never a picture's."""
    picture = random((*cut.size_out, channels), dtype)
    values = (0.3, 1.0) if dtype == "float32" else (0, 77, np.iinfo(dtype).max)
    for source in (picture, *(np.full_like(picture, value) for value in values)):
        assert np.array_equal(cut.blended(lambda _, tile, source=source: cut.part(source, tile), channels, dtype), source)


@settings(max_examples=50)
@given(cut=cuts(), channels=st.sampled_from([1, 3]), dtype=st.sampled_from(DTYPES))
def test_every_tile_gets_its_share(cut: Cut, channels: int, dtype: str) -> None:
    """Tile after tile into `out` gives what a sum of all tiles with their shares would, rounding apart."""
    pictures = [random((*cut.size_out, channels), dtype) for _ in range(cut.plan.tiles)]
    got = cut.blended(lambda index, tile: cut.part(pictures[index], tile), channels, dtype)
    wanted, tiles = np.zeros((*cut.size_out, channels)), np.zeros((*cut.size_out, 1))
    for tile, picture in zip(cut.plan.of(*cut.size), pictures, strict=True):
        rows, columns = (
            fade(span, side, halo=cut.plan.halo, scale=cut.scale)
            for span, side in zip((tile.rows, tile.columns), cut.size, strict=True)
        )
        there = rows.target, columns.target
        wanted[there] += rows.own[:, None, None] * columns.own[None, :, None] * picture[there].astype(np.float64)
        tiles[there] += 1
    if dtype == "float32":
        assert np.abs(got - wanted).max() < 1e-5
        assert got.min() >= 0
        assert got.max() <= 1
    else:
        assert (np.abs(got - wanted) <= 0.5 * (tiles - 1) + 0.05).all(), "each further tile is rounded once"


# -- plans


@pytest.fixture(scope="module")
def manifest(exported: Path) -> Manifest:
    return dataclasses.replace(Bundle(exported).manifest, tile_rule="overlap", receptive_radius=None)


NEEDS = Needs(fixed=1000, per_pixel=20_000.0)


@settings(max_examples=100)
@given(height=st.integers(1, 2000), width=st.integers(1, 2000), most=st.none() | st.integers(LEAST**2, 200_000))
def test_a_picture_is_cut_only_where_it_does_not_fit(manifest: Manifest, height: int, width: int, most: int | None) -> None:
    limit = None if most is None else NEEDS.peak(most)
    plan = plan_picture(manifest, NEEDS, height, width, limit)
    whole = height * width <= min(PIECE, most or PIECE)
    assert plan.exact == whole == (plan.grid == (1, 1))
    assert plan.halo == (0 if whole else OVERLAP)
    assert plan.tile[0] * plan.tile[1] <= (PIECE if whole else min(USUAL, most or USUAL))
    assert limit is None or plan.peak_bytes <= limit
    assert plan == plan_picture(manifest, NEEDS, height, width, limit, tile_cost=6400), "no matter what was learned"


@pytest.mark.parametrize("size", [(1000, 1000), (50, 1000), (60, 60)])
def test_a_limit_that_no_tile_fits_in_names_the_least_that_would_do(manifest: Manifest, size: tuple[int, int]) -> None:
    with pytest.raises(MemoryLimitError, match=rf"{size[0]}×{size[1]} needs at least \d+ MiB") as caught:
        plan_picture(manifest, NEEDS, *size, NEEDS.peak(min(size[0], LEAST) * 59))
    plan = plan_picture(manifest, NEEDS, *size, caught.value.least_bytes)
    assert plan.peak_bytes <= caught.value.least_bytes
    assert plan.exact == (size == (60, 60))


def test_the_other_rules_are_as_they_were(manifest: Manifest) -> None:
    whole = dataclasses.replace(manifest, tile_rule="whole")
    assert plan_picture(whole, NEEDS, 3000, 3000, None) == Plan((3000, 3000), (1, 1), 0, NEEDS.peak(3000 * 3000))
    with pytest.raises(MemoryLimitError):
        plan_picture(whole, NEEDS, 3000, 3000, NEEDS.peak(USUAL))
    exact = plan_picture(dataclasses.replace(manifest, tile_rule="exact", receptive_radius=6), NEEDS, 3000, 3000, None)
    assert (exact.exact, exact.halo) == (True, 6)
    assert exact.tiles > 1


# -- the pipeline


class FakeSession:
    """What `run` gives."""

    def __init__(self, output: np.ndarray) -> None:
        self.output = output

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.output]

    def read(self, inputs: dict[str, np.ndarray], convert: Callable[[list[np.ndarray]], object]) -> object:
        return convert(self.run(inputs))


class FakeDecoder(FakeSession):
    """Whatever it sees, each tile is of another constant: 0, step, 2·step, …"""

    def __init__(self, scale: int, step: float) -> None:
        self.scale, self.step, self.tiles, self.priors = scale, step, 0, set()

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        _, _, height, width = inputs["lr"].shape
        self.priors.add(inputs["z"].tobytes())
        self.tiles += 1
        value = np.float32((self.tiles - 1) * self.step)
        return [np.full((1, 3, height * self.scale, width * self.scale), value, np.float32)]


@pytest.fixture
def pipeline(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """One whose encoder and reverse process are fakes, too; tests give it a decoder."""
    features, z = np.zeros((1, 5, 1, 1), np.float32), np.zeros((1, manifest.process["latent_size"]), np.float32)
    fakes = iter([FakeSession(features), FakeSession(z), None])
    monkeypatch.setattr(pipeline_module, "load_session", lambda *args, **kwargs: next(fakes))
    bundle = SimpleNamespace(manifest=manifest, graph=lambda role: b"")
    return LatentPriorPipeline(bundle, backend="onnxruntime", precision="fp32", threads=1, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [(100, 120), (74, 73)], ids=["wide", "narrower-than-their-ramps"])
def test_no_seam_shows(pipeline: Pipeline, manifest: Manifest, tile: tuple[int, int], dtype: str, channels: int) -> None:
    size, scale = (130, 200), manifest.scale
    grid = tuple(len(spans(side, read, OVERLAP)) for side, read in zip(size, tile, strict=True))
    plan = Plan(tile, grid, OVERLAP, 0, exact=False)
    assert min(grid) > 1
    step = 0.9 / (plan.tiles - 1)
    pipeline._sessions["decoder"] = decoder = FakeDecoder(scale, step)
    full = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    larger = pipeline.picture(random((*size, channels), dtype), plan=plan) / full
    assert decoder.tiles == plan.tiles
    assert len(decoder.priors) == 1, "one prior, of the whole picture"
    assert larger[0, 0].max() == 0
    assert np.allclose(larger[-1, -1], 0.9, atol=1 / full if full > 1 else 1e-6)
    ramps = [1 + (OVERLAP - 1) // (read - 2 * OVERLAP) for read in tile]  # that a pixel may lie on, along each axis
    mixed = (ramps[0] + 1) * (ramps[1] + 1) - 1
    rounding = 1e-6 if dtype == "float32" else mixed / full  # half a level each time, in either of two pixels
    for axis, apart in ((0, step * grid[1]), (1, step)):
        jumps = np.diff(larger, axis=axis)
        assert jumps.min() >= -rounding, "monotone"
        assert jumps.max() <= ramps[axis] * apart / (OVERLAP * scale) + rounding, "no steeper than the ramps"


def test_a_plan_that_is_exact_takes_the_tiles_as_they_are(pipeline: Pipeline, manifest: Manifest) -> None:
    pipeline._sessions["decoder"] = FakeDecoder(manifest.scale, 0.5)
    plan = Plan((70, 70), (1, 2), 6, 0)
    larger = pipeline.picture(random((70, 100, 3), "float32"), plan=plan)
    cut = spans(100, 70, 6)[0].stop * manifest.scale
    assert (larger[:, :cut] == 0).all()
    assert (larger[:, cut:] == 0.5).all()


# -- the upscaler


@pytest.fixture
def overlapping(bundle: Path) -> Path:
    """A bundle that says it attends over the whole picture; in truth it reaches less far than the overlap is wide."""
    rewrite_manifest(bundle, tile_rule="overlap", receptive_radius=None)
    return bundle


@pytest.fixture
def limit(overlapping: Path) -> int:
    """Bytes that tiles of the least size fit in."""
    return needs_of(Bundle(overlapping).manifest, "onnxruntime", "fp32").peak(LEAST**2)


@pytest.mark.parametrize("kind", [(), (2,), (3,), (4,)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_of_a_local_network_give_the_whole_picture(
    overlapping: Path, limit: int, dtype: str, kind: tuple[int, ...]
) -> None:
    alpha = kind in ((2,), (4,))
    limit += ALPHA * alpha
    free = Upscaler.load(overlapping, backend="onnxruntime", precision="fp32", threads=1)
    limited = Upscaler.load(overlapping, backend="onnxruntime", precision="fp32", threads=1, memory_limit=limit)
    assert free.plan(100, 110).exact
    assert limited.plan(100, 110, alpha=alpha).tiles > 4
    source = random((100, 110, *kind), dtype)
    assert np.array_equal(limited(source), free(source))


def test_the_same_plan_and_bytes_whatever_was_learned(overlapping: Path, limit: int) -> None:
    one, two = (
        Upscaler.load(overlapping, backend="onnxruntime", precision="fp32", threads=threads, memory_limit=limit)
        for threads in (1, 2)
    )
    learned = two._pipelines.tile_cost(("onnxruntime", "fp32"))
    for pixels in (100, 1000, 10_000) * 10:
        learned.record(pixels, 1 + 1e-5 * pixels)
    assert learned.pixels == 6400
    assert one.plan(150, 170) == two.plan(150, 170)
    source = random((150, 170, 3), "uint8")
    first = one(source).tobytes()
    assert one(source).tobytes() == first == two(source).tobytes()


def test_the_first_cut_is_warned_of(overlapping: Path, limit: int, caplog: pytest.LogCaptureFixture) -> None:
    upscaler = Upscaler.load(overlapping, backend="onnxruntime", precision="fp32", memory_limit=limit)
    upscaler.plan(100, 110)
    upscaler(random((60, 60, 3), "uint8"))
    assert not caplog.records
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upscaler, [random((100, 110, 3), "uint8")] * 4))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rdsr.runtime.upscaler", logging.WARNING)
    assert "sees more of the picture than a tile shows" in record.message
    enough = int(record.message.partition("memory_limit of ")[2].split()[0]) * 2**20
    assert Upscaler.load(overlapping, backend="onnxruntime", precision="fp32", memory_limit=enough).plan(100, 110).exact


def test_without_a_limit_the_warning_promises_nothing(
    overlapping: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: LEAST**2)
    Upscaler.load(overlapping, backend="onnxruntime", precision="fp32")(random((100, 130, 3), "uint8"))
    (record,) = caplog.records
    assert record.message.endswith("is cut under any memory_limit")
