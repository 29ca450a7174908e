"""Tiles: how pictures are cut, and that no byte of a result depends on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdsr.runtime import Upscaler
from rdsr.runtime.pipelines import latent_prior as pipeline_module
from rdsr.runtime.tiling.tiles import TileCost, cells, plan_tiles, spans
from rdsr.tests.conftest import CONFIG, picture

RADIUS = CONFIG.depth + 2
KINDS: list[tuple[int, ...]] = [(), (1,), (2,), (3,), (4,)]
SLOW_FIXTURE = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def pairs(exported: Path) -> dict[tuple[str, str], list[Upscaler]]:
    """Backend and precision → an instance of one thread and one of two."""
    return {
        (backend, precision): [Upscaler.load(exported, backend=backend, precision=precision, threads=n) for n in (1, 2)]
        for backend in ("openvino", "onnxruntime")
        for precision in ("fp32", "int8")
    }


@settings(max_examples=200)
@given(length=st.integers(1, 500), more=st.integers(1, 100), halo=st.integers(0, 20))
def test_spans_cover_everything_once_and_read_a_full_halo(length: int, more: int, halo: int) -> None:
    cut = spans(length, 2 * halo + more, halo)
    assert [s.start for s in cut] == [0, *(s.stop for s in cut[:-1])]
    assert cut[-1].stop == length
    assert len({s.read_stop - s.read_start for s in cut}) == 1, "one shape for the engine"
    for s in cut:
        assert 0 <= s.read_start <= s.start < s.stop <= s.read_stop <= length
        assert s.read_start == 0 or s.start - s.read_start >= halo
        assert s.read_stop == length or s.read_stop - s.stop >= halo


@settings(max_examples=200)
@given(height=st.integers(1, 5000), width=st.integers(1, 5000), halo=st.integers(0, 40), most=st.integers(1, 70_000))
def test_a_plan_keeps_to_its_pixels(height: int, width: int, halo: int, most: int) -> None:
    cut = plan_tiles(height, width, halo=halo, most_pixels=most)
    if cut is None:
        assert most < min(height, 2 * halo + 16) * min(width, 2 * halo + 16)
        return
    (tall, wide), (down, across) = cut
    assert tall * wide <= most
    assert (down, across) == (1, 1) or height * width > most
    assert len(spans(height, tall, halo)) == down
    assert len(spans(width, wide, halo)) == across


def test_cells_depend_on_the_length_alone() -> None:
    assert [(s.start, s.stop, s.read_start, s.read_stop) for s in cells(600, 256, 12)] == [
        (0, 256, 0, 268),
        (256, 512, 244, 524),
        (512, 600, 500, 600),
    ]


@settings(max_examples=25, suppress_health_check=SLOW_FIXTURE)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    most=st.integers((2 * RADIUS + 8) ** 2, 2500),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
)
def test_tiled_equals_untiled_byte_for_byte(
    engine: Upscaler, height: int, width: int, most: int, kind: tuple[int, ...], dtype: str
) -> None:
    source = picture(height, width, kind, dtype)
    whole = engine(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: most)
        seen = engine._pipelines.tile_cost(engine._choice(np.dtype(dtype))).pixels
        largest = height * width if 9 * height * width <= 16 * most else most  # a little more is not cut
        cut = plan_tiles(height, width, halo=RADIUS, most_pixels=largest, tile_cost=seen)
        if cut is None:
            return
        assert engine.plan(height, width, dtype).grid == cut[1]
        tiled = engine(source)
    assert (tiled.dtype, tiled.shape) == (whole.dtype, whole.shape)
    assert tiled.tobytes() == whole.tobytes()


def test_the_cost_of_a_tile_is_learned_from_the_tiles_that_ran() -> None:
    cost = TileCost()
    assert cost.pixels == TileCost.usual
    for _ in range(20):
        cost.record(10_000, 0.03)
    assert cost.pixels == TileCost.usual, "one size says nothing"
    noise = np.random.default_rng(0)
    for pixels in noise.integers(1_000, 100_000, 200).tolist():
        cost.record(pixels, (0.006 + 2e-6 * pixels) * noise.uniform(0.9, 1.1))
    assert cost.pixels == 3200, "6 ms at 2 µs a pixel, to the next power of two"
    for _ in range(400):
        cost.record(10_000, 0.026)
    assert cost.pixels == 3200, "one size says nothing new"
    for pixels in noise.integers(1_000, 100_000, 400).tolist():
        cost.record(pixels, 2e-6 * pixels)
    assert cost.pixels == 100, "what was long ago is forgotten"
    few = plan_tiles(500, 500, halo=16, most_pixels=200**2, tile_cost=6400)
    many = plan_tiles(500, 500, halo=16, most_pixels=200**2, tile_cost=0)
    assert few is not None
    assert many is not None
    assert few[1][0] * few[1][1] <= many[1][0] * many[1][1]


def test_what_was_learned_changes_no_byte(exported: Path) -> None:
    upscaler = Upscaler.load(exported, precision="fp32", threads=1)
    source = picture(90, 110)
    first = upscaler(source).tobytes()
    for pixels in (100, 1000, 10_000) * 10:
        upscaler._pipelines.tile_cost(("onnxruntime", "fp32")).record(pixels, 1 + 1e-5 * pixels)
    assert upscaler._pipelines.tile_cost(("onnxruntime", "fp32")).pixels == 6400
    assert upscaler(source).tobytes() == first


def test_the_prior_is_that_of_the_whole_picture(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell or in one piece, the pooled features are the same but for rounding in float64."""
    pipeline = Upscaler.load(exported, precision="fp32")._pipelines.of(("onnxruntime", "fp32"))
    source = picture(101, 67)
    whole = pipeline.prior(source)
    monkeypatch.setattr(pipeline_module, "CELL", 16)
    assert np.allclose(pipeline.prior(source), whole, atol=1e-5)


@settings(max_examples=6, suppress_health_check=SLOW_FIXTURE)
@given(height=st.integers(1, 90), width=st.integers(1, 90), dtype=st.sampled_from(["uint8", "uint16", "float32"]))
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_threads_change_no_byte(
    pairs: dict[tuple[str, str], list[Upscaler]], backend: str, precision: str, height: int, width: int, dtype: str
) -> None:
    source = picture(height, width, (3,), dtype)
    one, two = (upscaler(source).tobytes() for upscaler in pairs[backend, precision])
    assert one == two
