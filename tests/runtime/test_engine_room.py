"""Tiles, many callers, cancelling: what a service relies on."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdsr.runtime import (
    Cancel,
    CancelledError,
    EngineError,
    OptionError,
    Upscaler,
    arrays,
)
from rdsr.runtime import pipeline as pipeline_module
from rdsr.runtime import turns as turns_module
from rdsr.runtime import upscaler as upscaler_module
from rdsr.runtime.arrays import upscale_alpha
from rdsr.runtime.pipeline import Pipeline
from rdsr.runtime.tiles import TileCost, cells, plan_tiles, spans
from rdsr.runtime.turns import Shifts, Turns
from rdsr.tests.conftest import CONFIG, picture

RADIUS = CONFIG.depth + 2
KINDS: list[tuple[int, ...]] = [(), (1,), (2,), (3,), (4,)]
SLOW_FIXTURE = [HealthCheck.function_scoped_fixture]


@pytest.fixture(
    scope="module", params=[(b, p, t) for b in ("openvino", "onnxruntime") for p in ("fp32", "int8") for t in (1, 2)]
)
def engine(request: pytest.FixtureRequest, exported: Path) -> Upscaler:
    backend, precision, threads = request.param
    return Upscaler.load(exported, backend=backend, precision=precision, threads=threads)


@pytest.fixture(scope="module")
def upscaler(exported: Path) -> Upscaler:
    return Upscaler.load(exported, precision="fp32")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of at most 28×28 LR pixels, so that small pictures have several."""
    monkeypatch.setattr("rdsr.runtime.memory.usual_pixels", lambda halo: 28 * 28)


# -- tiles


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_FIXTURE)
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
        patch.setattr("rdsr.runtime.memory.usual_pixels", lambda halo: most)
        seen = engine._tile_cost(engine._choice(np.dtype(dtype))).pixels
        cut = plan_tiles(height, width, halo=RADIUS, most_pixels=most, tile_cost=seen)
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
        upscaler._tile_cost(("onnxruntime", "fp32")).record(pixels, 1 + 1e-5 * pixels)
    assert upscaler._tile_cost(("onnxruntime", "fp32")).pixels == 6400
    assert upscaler(source).tobytes() == first


def test_the_prior_is_that_of_the_whole_picture(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell or in one piece, the pooled features are the same but for rounding in float64."""
    pipeline = Upscaler.load(exported, precision="fp32")._pipeline_of("onnxruntime", "fp32")
    source = picture(101, 67)
    whole = pipeline.prior(source)
    monkeypatch.setattr(pipeline_module, "CELL", 16)
    assert np.allclose(pipeline.prior(source), whole, atol=1e-5)


def test_alpha_is_that_of_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setattr(arrays, "_ALPHA_CELL", (64, 16))
    alpha = picture(150, 40, ())
    out = np.empty((600, 160), np.uint8)
    upscale_alpha(alpha, 4, out)
    whole = cv2.resize(alpha.astype(np.float32), (160, 600), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(out, np.rint(np.clip(whole, 0, 255)).astype(np.uint8))


# -- many callers


def test_shifts_let_one_kind_in_at_a_time_and_starve_none() -> None:
    shifts, inside, changes, order = Shifts(), [], [], []
    lock = threading.Lock()

    def work(kind: str) -> None:
        with shifts.hold(kind, lambda: changes.append(kind)):
            with lock:
                inside.append(kind)
                order.append(kind)
                assert len(set(inside)) == 1
            time.sleep(0.002)
            with lock:
                inside.remove(kind)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, "aaabbbab" * 10))
    assert len(order) == 80
    assert changes[0] == "a"


def test_a_callback_may_call_again_but_not_wait_for_itself(exported: Path) -> None:
    upscaler = Upscaler.load(exported, backend="onnxruntime", precision="int8", threads=1, memory_limit="150MiB")
    small, deep, results = picture(9, 9), picture(9, 9, (3,), "uint16"), []
    upscaler(small, progress=lambda done, tiles: results.append(upscaler(small)))
    assert len(results) == 1
    with pytest.raises(OptionError, match="progress callback"):
        upscaler(small, progress=lambda done, tiles: upscaler(deep))
    assert upscaler(deep).dtype == np.uint16


def test_whoever_waits_for_a_shift_can_be_cancelled() -> None:
    shifts, token, ended = Shifts(), Cancel(), []

    def work() -> None:
        try:
            with shifts.hold("b", lambda: None, token):
                ended.append("ran")
        except CancelledError:
            ended.append("cancelled")

    with shifts.hold("a", lambda: None):
        threads = [threading.Thread(target=work) for _ in range(2)]  # one inside the door, one before it
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        token.set()
        for thread in threads:
            thread.join(timeout=5)
        assert ended == ["cancelled"] * 2
    with shifts.hold("c", lambda: ended.append("changed")):
        assert ended[-1] == "changed"


def test_a_call_that_waits_can_be_cancelled() -> None:
    turns, token, ended = Turns(1), Cancel(), []

    def work() -> None:
        try:
            with turns.hold(stop=token):
                ended.append("ran")
        except CancelledError:
            ended.append("cancelled")

    with turns.hold():
        waiting = threading.Thread(target=work)
        waiting.start()
        token.set()
        waiting.join(timeout=5)
        assert ended == ["cancelled"]
    with turns.hold():
        pass
    assert not turns._tickets


def test_turns_are_first_come_first_served() -> None:
    turns, order = Turns(2), []
    threads = []
    with turns.hold(2):
        for index in range(8):
            waiting = len(turns._tickets)

            def work(index: int = index) -> None:
                with turns.hold(1 + index % 3):  # 3 is cut to the 2 that there are
                    order.append(index)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            while len(turns._tickets) == waiting:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert sorted(order) == list(range(8))
    assert order.index(7) > order.index(4), "a small wish behind a large one waits for it"
    assert not turns._tickets


@pytest.mark.parametrize("make", [lambda: Turns(1), Shifts], ids=["turns", "shifts"])
def test_an_interrupt_costs_no_permit(make: Callable[[], Turns | Shifts]) -> None:
    """Python sees to signals where functions are entered: here Ctrl-C comes with each such step in turn."""

    def hold(turns: Turns | Shifts) -> AbstractContextManager[None]:
        return turns.hold() if isinstance(turns, Turns) else turns.hold("a", lambda: None)

    def enter(turns: Turns | Shifts) -> None:
        with hold(turns):
            pass

    for step in range(1, 30):
        turns, seen = make(), 0

        def interrupt(frame: FrameType, event: str, argument: object, step: int = step) -> None:
            nonlocal seen
            if event == "call" and frame.f_code.co_filename == turns_module.__file__:
                seen += 1
                if seen == step:
                    raise KeyboardInterrupt

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            enter(turns)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        gc.collect()
        other = threading.Thread(target=enter, args=(turns,), daemon=True)
        other.start()
        other.join(10)
        assert not other.is_alive(), f"nobody gets in after an interrupt at step {step}"
        if seen < step:
            return
    pytest.fail("there are more steps than were tried")


@pytest.mark.usefixtures("small_tiles")
def test_a_small_picture_does_not_wait_for_a_large_one(upscaler: Upscaler) -> None:
    ends: dict[str, float] = {}

    def call(name: str, source: np.ndarray) -> None:
        upscaler(source)
        ends[name] = time.perf_counter()

    large = threading.Thread(target=call, args=("large", picture(600, 600)))
    large.start()
    time.sleep(0.05)
    call("small", picture(12, 12))
    large.join()
    assert ends["small"] < ends["large"]


@pytest.mark.usefixtures("small_tiles")
def test_a_small_picture_waits_for_one_tile_of_a_large_one(upscaler: Upscaler) -> None:
    done: list[int] = []
    large = threading.Thread(target=upscaler, args=(picture(600, 600),), kwargs={"progress": lambda *n: done.append(n[0])})
    upscaler(picture(12, 12))
    large.start()
    while len(done) < 3:
        time.sleep(0.001)
    before = len(done)
    upscaler(picture(12, 12))
    after = len(done)
    large.join()
    assert after - before <= 4, "one that was under way, one to wait for, and what ran while this thread looked"


@pytest.mark.usefixtures("small_tiles")
def test_small_pictures_do_not_wait_behind_large_ones_that_were_submitted_before(upscaler: Upscaler) -> None:
    cancel = Cancel()
    large = [upscaler.submit(picture(900, 900), cancel=cancel) for _ in range(4)]
    assert upscaler.submit(picture(12, 12)).result(60).shape == (48, 48, 3)
    assert not any(future.done() for future in large)
    cancel.set()
    for future in large[2:]:
        assert future.done(), "what had not begun is cancelled at once"
        with pytest.raises(CancelledError):
            future.result()
    for future in large[:2]:
        with pytest.raises(CancelledError):
            future.result(60)
    with pytest.raises(CancelledError):
        upscaler.submit(picture(12, 12), cancel=cancel).result(0)


@pytest.mark.usefixtures("small_tiles")
def test_a_future_that_is_cancelled_before_it_starts_never_does(upscaler: Upscaler) -> None:
    token = Cancel()
    running = [upscaler.submit(picture(900, 900), cancel=token) for _ in range(2)]
    waiting = upscaler.submit(picture(900, 900), cancel=token)
    assert waiting.cancel()
    token.set()
    _, late = wait([*running, waiting], timeout=60)
    assert not late
    assert waiting.cancelled()
    assert not token._watchers


@pytest.mark.usefixtures("small_tiles")
def test_closing_stops_what_runs_in_the_background(exported: Path) -> None:
    with Upscaler.load(exported, precision="fp32") as own:
        futures = [own.submit(picture(900, 900)) for _ in range(5)]
        assert own(picture(9, 9)).shape == (36, 36, 3)
        workers = [worker for executor in own._executors.values() for worker in executor._threads]
    assert all(future.done() for future in futures)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()
    assert not any(worker.is_alive() for worker in workers)
    for call in (own, own.submit):
        with pytest.raises(EngineError, match="was closed"):
            call(picture(9, 9))


def test_who_has_an_engine_does_not_wait_for_another_to_load(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Upscaler.load(exported, backend="onnxruntime", precision="int8")
    own(picture(9, 9))
    loading, go_on = threading.Event(), threading.Event()
    make = upscaler_module.Pipeline

    def slow(*arguments: object, **options: object) -> Pipeline:
        loading.set()
        assert go_on.wait(60)
        return make(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(upscaler_module, "Pipeline", slow)
    deep = own.submit(picture(9, 9, (3,), "uint16"))
    assert loading.wait(60)
    assert own.submit(picture(9, 9)).result(60).dtype == np.uint8
    go_on.set()
    assert deep.result(60).dtype == np.uint16


@pytest.mark.usefixtures("small_tiles")
def test_many_callers_get_the_same_bytes(engine: Upscaler) -> None:
    pictures = [picture(20 + i, 60 - i) for i in range(6)]
    alone = [engine(p).tobytes() for p in pictures]
    with ThreadPoolExecutor(6) as pool:
        together = [larger.tobytes() for larger in pool.map(engine, pictures * 3)]
    assert together == alone * 3


def test_submit_map_and_aio_give_what_a_call_gives(upscaler: Upscaler) -> None:
    pictures = [picture(9 + i, 12) for i in range(7)]
    wanted = [upscaler(p).tobytes() for p in pictures]
    assert [f.result().tobytes() for f in [upscaler.submit(p) for p in pictures]] == wanted
    assert [larger.tobytes() for larger in upscaler.map(iter(pictures), look_ahead=3)] == wanted

    async def gathered() -> list[np.ndarray]:
        return await asyncio.gather(*(upscaler.aio(p) for p in pictures))

    assert [larger.tobytes() for larger in asyncio.run(gathered())] == wanted


def test_map_looks_ahead_no_further_than_asked(upscaler: Upscaler) -> None:
    taken: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(50):
            taken.append(index)
            yield picture(8, 8)

    results = upscaler.map(pictures(), look_ahead=3)
    assert taken == []
    next(results)
    assert len(taken) == 3
    results.close()
    with pytest.raises(OptionError, match="look_ahead"):
        upscaler.map([], look_ahead=0)


def test_a_caller_that_dies_in_map_leaves_no_worker_behind(exported: Path) -> None:
    own = Upscaler.load(exported, precision="fp32")

    def consume(upscaler: Upscaler) -> None:
        for _ in upscaler.map(picture(200, 200) for _ in range(100)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume(own)
    gc.collect()
    workers = [worker for executor in own._executors.values() for worker in executor._threads]
    assert workers
    own = None  # type: ignore[assignment]
    gc.collect()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.usefixtures("small_tiles")
def test_cancel_takes_effect_within_one_tile(upscaler: Upscaler) -> None:
    cancel, seen = Cancel(), []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            cancel.set()

    planned = upscaler.plan(100, 100).tiles
    with pytest.raises(CancelledError):
        upscaler(picture(100, 100), cancel=cancel, progress=progress)
    assert [done for done, _ in seen] == [1, 2, 3]
    assert {total for _, total in seen} == {planned}
    assert upscaler(picture(5, 5)).shape == (20, 20, 3)
    future = upscaler.submit(picture(100, 100), cancel=cancel)
    with pytest.raises(CancelledError):
        future.result()


@pytest.mark.usefixtures("small_tiles")
def test_cancelling_a_task_stops_the_call(upscaler: Upscaler) -> None:
    done: list[int] = []
    seen: list[int] = []

    async def main() -> None:
        task = asyncio.create_task(upscaler.aio(picture(900, 900), progress=lambda tile, _: done.append(tile)))
        while not done:
            await asyncio.sleep(0.001)
        task.cancel()
        seen.append(len(done))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    upscaler(picture(5, 5))  # whatever still ran has had its turn
    time.sleep(0.3)
    assert seen[0] <= len(done) < upscaler.plan(900, 900).tiles / 2, "stopped long before the end"


def test_an_engine_failure_in_one_call_leaves_the_others_unharmed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Upscaler.load(exported, precision="fp32")
    decoder = own._pipeline_of("onnxruntime", "fp32")._decoder
    run = decoder.run

    def sometimes(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if inputs["lr"].shape[3] == 13:
            raise EngineError("broken")
        return run(inputs)

    monkeypatch.setattr(decoder, "run", sometimes)
    futures = [own.submit(picture(10, 13 if i % 3 == 0 else 14)) for i in range(9)]
    for index, future in enumerate(futures):
        if index % 3 == 0:
            with pytest.raises(EngineError, match="broken"):
                future.result()
        else:
            assert future.result().shape == (40, 56, 3)
