"""Many callers, calls in the background, cancelling, closing: what a service relies on."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from rdsr.runtime import Cancel, CancelledError, EngineError, OptionError, Upscaler
from rdsr.runtime.engines import BACKENDS
from rdsr.runtime.pipelines import Pipeline
from rdsr.runtime.pipelines import loaded as loaded_module
from rdsr.tests.conftest import picture, run_alone, until


@pytest.fixture(scope="module")
def upscaler(exported: Path) -> Upscaler:
    return Upscaler.load(exported, precision="fp32")


class Held:
    """A progress callback that keeps its call after each tile until `go_on` is set."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.go_on = threading.Event()

    def __call__(self, done: int, tiles: int) -> None:
        self.done.append(done)
        assert self.go_on.wait(60)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of at most 28×28 LR pixels, so that small pictures have several."""
    monkeypatch.setattr("rdsr.runtime.tiling.memory.usual_pixels", lambda halo: 28 * 28)


def test_a_callback_may_call_again_but_not_wait_for_itself(exported: Path) -> None:
    upscaler = Upscaler.load(exported, backend="onnxruntime", precision="int8", threads=1, memory_limit="150MiB")
    small, deep, results = picture(9, 9), picture(9, 9, (3,), "uint16"), []
    upscaler(small, progress=lambda done, tiles: results.append(upscaler(small)))
    assert len(results) == 1
    with pytest.raises(OptionError, match="progress callback"):
        upscaler(small, progress=lambda done, tiles: upscaler(deep))
    assert upscaler(deep).dtype == np.uint16


@pytest.mark.usefixtures("small_tiles")
def test_a_small_picture_does_not_wait_for_a_large_one(upscaler: Upscaler) -> None:
    begun, small_done = threading.Event(), threading.Event()

    def progress(done: int, tiles: int) -> None:
        begun.set()
        assert small_done.wait(60), "the small picture waits for the large one, which waits for it here"

    large = upscaler.submit(picture(600, 600), progress=progress)
    assert begun.wait(60)
    upscaler(picture(12, 12))
    small_done.set()
    assert large.result(60).shape == (2400, 2400, 3)


@pytest.mark.usefixtures("small_tiles")
def test_a_small_picture_waits_for_one_tile_of_a_large_one(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Upscaler.load(exported, precision="fp32")
    decoder = own._pipelines.of(("onnxruntime", "fp32"))._sessions["decoder"]
    run, ran, third, go_on = decoder.run, [], threading.Event(), threading.Event()

    def recorded(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        ran.append("small" if inputs["lr"].shape[3] == 13 else "large")
        if len(ran) == 3:
            third.set()
            assert go_on.wait(60)
        return run(inputs)

    monkeypatch.setattr(decoder, "run", recorded)
    cancel = Cancel()
    large = own.submit(picture(600, 600), cancel=cancel)
    assert third.wait(60)
    small = own.submit(picture(10, 13))
    until(lambda: own._pipelines.thread._queue.qsize() == 1, seconds=60)  # the small picture stands in line
    go_on.set()
    small.result(60)
    cancel.set()
    wait([large], 60)
    assert ran[:4] == ["large", "large", "large", "small"], "it comes after the tile that was under way"


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
    until(lambda: not token._watchers, seconds=60)


@pytest.mark.usefixtures("small_tiles")
def test_closing_stops_what_runs_in_the_background(exported: Path) -> None:
    with Upscaler.load(exported, precision="fp32") as own:
        futures = [own.submit(picture(900, 900)) for _ in range(5)]
        assert own(picture(9, 9)).shape == (36, 36, 3)
        workers = [worker for executor in own._calls._executors.values() for worker in executor._threads]
    assert all(future.done() for future in futures)
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()
    assert not any(worker.is_alive() for worker in workers)
    for call in (own, own.submit):
        with pytest.raises(EngineError, match="was closed"):
            call(picture(9, 9))


def test_what_was_submitted_is_done_when_the_script_ends(exported: Path) -> None:
    script = """
        import sys, threading, time, numpy as np
        from rdsr.runtime import Upscaler
        upscaler = Upscaler.load(sys.argv[1], precision="fp32")
        picture = np.zeros((200, 200, 3), np.uint8)
        def late():
            time.sleep(0.3)
            print("thread", upscaler(picture).shape[0], flush=True)
        threading.Thread(target=late).start()
        for _ in range(5):
            future = upscaler.submit(picture)
            future.add_done_callback(lambda future: print("future", future.result().shape[0], flush=True))
    """
    assert sorted(run_alone(script, exported).split("\n")) == ["", *["future 800"] * 5, "thread 800"]


def test_ctrl_c_waits_for_the_tile_and_costs_no_turn(exported: Path) -> None:
    script = """
        import signal, sys, numpy as np
        from rdsr.runtime import Upscaler
        upscaler = Upscaler.load(sys.argv[1], precision="fp32")
        small, large = np.zeros((9, 9, 3), np.uint8), np.zeros((700, 700, 3), np.uint8)
        upscaler(small)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        interrupted = 0
        for index in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 * (index + 1))
                upscaler(large if index % 2 else small)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt as error:
                interrupted += 1
                kept = error
        print(interrupted, upscaler.submit(small).result(120).shape[0])
    """
    interrupted, side = run_alone(script, exported).split()
    assert int(interrupted) > 10
    assert int(side) == 36


def test_who_has_an_engine_does_not_wait_for_another_to_load(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Upscaler.load(exported, backend="onnxruntime", precision="int8")
    own(picture(9, 9))
    loading, go_on = threading.Event(), threading.Event()
    make = loaded_module.load_pipeline

    def slow(*arguments: object, **options: object) -> Pipeline:
        loading.set()
        assert go_on.wait(60)
        return make(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loaded_module, "load_pipeline", slow)
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
    workers = [worker for executor in own._calls._executors.values() for worker in executor._threads]
    assert workers
    own = None  # type: ignore[assignment]
    gc.collect()
    for worker in workers:
        worker.join(60)
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
    held = Held()

    async def main() -> None:
        task = asyncio.create_task(upscaler.aio(picture(900, 900), progress=held))
        while not held.done:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.go_on.set()

    asyncio.run(main())
    upscaler.submit(picture(100, 100)).result(60)  # whatever still ran had its turns meanwhile
    assert len(held.done) == 1


def test_an_engine_failure_in_one_call_leaves_the_others_unharmed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Upscaler.load(exported, precision="fp32")
    decoder = own._pipelines.of(("onnxruntime", "fp32"))._sessions["decoder"]
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


@pytest.mark.parametrize("background", [False, True])
def test_an_error_that_is_over_keeps_no_engine_in_memory(
    exported: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    own = Upscaler.load(exported, precision="fp32")

    def broken(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise EngineError("broken")

    monkeypatch.setattr(own._pipelines.of(("onnxruntime", "fp32"))._sessions["decoder"], "run", broken)
    alive = weakref.ref(own._pipelines.of(("onnxruntime", "fp32")))
    gc.collect()
    gc.disable()  # a cycle would wait for it, and with it some hundred MiB
    try:
        with pytest.raises(EngineError, match="broken") as caught:
            own.submit(picture(9, 9)).result(60) if background else own(picture(9, 9))
        del own, caught
        monkeypatch.undo()
        until(lambda: alive() is None, seconds=60)
    finally:
        gc.enable()


def test_a_process_that_ends_waits_for_the_tile_of_a_daemon(exported: Path) -> None:
    """An engine's thread that finds the interpreter gone would abort the process."""
    script = """
        import sys, threading, time, numpy as np
        from rdsr.runtime import Upscaler
        upscaler = Upscaler.load(sys.argv[1], backend=sys.argv[2], precision="fp32")
        source = np.zeros((64, 64, 3), np.uint8)
        def serve():
            while True:
                upscaler(source)
        upscaler(source)
        threading.Thread(target=serve, daemon=True).start()
        time.sleep(0.05)
        print("end")
    """
    for backend in BACKENDS:
        for _ in range(3):
            assert run_alone(script, exported, backend) == "end\n"


@pytest.mark.usefixtures("small_tiles")
def test_callbacks_may_close_it(exported: Path) -> None:
    own = Upscaler.load(exported, precision="fp32")
    own.submit(picture(9, 9)).add_done_callback(lambda future: own.close())
    until(lambda: own._calls.closed and not own._pipelines.loaded, seconds=60)
    own = Upscaler.load(exported, precision="fp32")
    future = own.submit(picture(100, 100), progress=lambda done, tiles: own.close())
    with pytest.raises(CancelledError):
        future.result(60)
    assert not own._pipelines.loaded


@pytest.mark.usefixtures("small_tiles")
def test_a_loop_that_is_closed_stops_its_call(upscaler: Upscaler) -> None:
    held = Held()
    call = upscaler.aio(picture(900, 900), progress=held)

    async def begin() -> None:
        call.send(None)  # as a task does that is never asked again

    asyncio.run(begin())
    until(lambda: bool(held.done), seconds=60)
    call.close()
    held.go_on.set()
    upscaler.submit(picture(100, 100)).result(60)
    assert len(held.done) == 1


def test_what_the_end_of_a_process_forbids_is_an_engine_error(exported: Path) -> None:
    script = """
        import sys, threading, numpy as np
        from rdsr.runtime import EngineError, Upscaler
        upscaler = Upscaler.load(sys.argv[1], precision="fp32")
        source = np.zeros((9, 9, 3), np.uint8)
        def late():
            threading.main_thread().join()
            try:
                upscaler.submit(source)
            except EngineError as error:
                print(error)
            print(upscaler(source).shape[0])
        threading.Thread(target=late).start()
    """
    assert run_alone(script, exported).splitlines() == [
        "no call can be started in the background: cannot schedule new futures after interpreter shutdown",
        "36",
    ]
