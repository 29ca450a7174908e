"""Limits on memory are kept, and what a call took is given back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rdsr.runtime import Bundle, MemoryLimitError, OptionError, Plan, Upscaler
from rdsr.runtime.bundle import default_bundle_path
from rdsr.runtime.tiling.memory import ALPHA, needs_of, parse_limit
from rdsr.runtime.tiling.tiles import Tile
from rdsr.tests.conftest import picture, run_alone
from rdsr.tests.runtime.tiling.varying_sizes import KINDS, peaks


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("256MiB", 2**28), (" 1.5 GiB ", 3 * 2**29), ("800MB", 800_000_000), (1000, 1000), (None, None), ("12", 12)],
)
def test_limits_are_read(text: str | int | None, wanted: int | None) -> None:
    assert parse_limit(text) == wanted


@pytest.mark.parametrize("bad", ["", "MiB", "12 apples", 0, -5, True, 1.5, "0MiB", "9" * 400])
def test_bad_limits_are_named(exported: Path, bad: object) -> None:
    with pytest.raises(OptionError, match="memory_limit"):
        Upscaler.load(exported, memory_limit=bad)


def test_a_limit_that_nothing_fits_in_names_the_least_that_would_do(exported: Path) -> None:
    with pytest.raises(MemoryLimitError, match=r"needs at least .* MiB") as caught:
        Upscaler.load(exported, memory_limit="1MiB")
    tight = Upscaler.load(exported, precision="fp32", memory_limit=caught.value.least_bytes)
    assert tight.plan(1, 1).tiles == 1
    limit = needs_of(tight.bundle.manifest, "onnxruntime", "fp32").peak(8)
    with pytest.raises(MemoryLimitError, match="3000×3000") as larger:
        Upscaler.load(exported, precision="fp32", memory_limit=limit).plan(3000, 3000)
    assert Upscaler.load(exported, precision="fp32", memory_limit=larger.value.least_bytes).plan(3000, 3000).tiles > 1


def test_plans_stay_under_the_limit_and_change_no_byte(exported: Path) -> None:
    free = Upscaler.load(exported, precision="fp32")
    needs = needs_of(free.bundle.manifest, "onnxruntime", "fp32")
    limit = needs.peak(30 * 30)
    limited = Upscaler.load(exported, precision="fp32", memory_limit=limit)
    plan = limited.plan(90, 110)
    assert plan.tiles > 1
    assert plan.peak_bytes <= limit
    assert free.plan(90, 110) == Plan((90, 110), (1, 1), 0, needs.peak(90 * 110))
    source = picture(90, 110)
    assert limited(source).tobytes() == free(source).tobytes()


def test_peak_memory_stays_under_the_limit(exported: Path) -> None:
    """What it needs at most, beyond what it had before loading, input and output."""
    script = """
        import sys, numpy as np, rdsr.runtime.upscaler, rdsr.runtime.pictures.arrays, rdsr.runtime.encoded
        from rdsr.benchmarks.process import peak_mb, resident_mb
        source = np.zeros((900, 1100, 3), np.uint8) + np.arange(3, dtype=np.uint8)
        before = resident_mb()
        upscaler = rdsr.runtime.Upscaler.load(
            sys.argv[1], backend=sys.argv[2], precision="fp32", threads=2, memory_limit=int(sys.argv[3])
        )
        larger = upscaler(source)
        print(peak_mb() - before - larger.nbytes / 2**20)
    """
    manifest = Bundle(exported).manifest
    for backend in ("openvino", "onnxruntime"):
        limit = needs_of(manifest, backend, "fp32").peak(64 * 64)
        assert float(run_alone(script, exported, backend, limit)) <= limit / 2**20


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_limit_holds_while_sizes_vary(backend: str, precision: str) -> None:
    """Engines keep what they compile for a size. `make check-large` has 400 larger pictures."""
    rows = peaks(default_bundle_path(), backend, precision, limit_mib=160, count=100, sides=(20, 90))
    assert max(rows) <= 160


def test_a_cancelled_call_frees_its_memory(exported: Path) -> None:
    script = """
        import gc, sys, numpy as np
        from rdsr.benchmarks.process import resident_mb
        from rdsr.runtime import Cancel, CancelledError, Upscaler
        from rdsr.runtime.tiling import memory
        memory.usual_pixels = lambda halo: 200**2
        upscaler = Upscaler.load(sys.argv[1], precision="fp32", threads=2)
        source = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
        for _ in range(2):  # the engine has its memory for every tile
            upscaler(source)
        gc.collect()
        before, cancel, during = resident_mb(), Cancel(), 0.0
        def progress(done, tiles):
            global during
            if done == tiles - 1:
                during = resident_mb()
                cancel.set()
        try:
            upscaler(source, cancel=cancel, progress=progress)
        except CancelledError:
            pass
        gc.collect()
        print(during - before, resident_mb() - before)
    """
    during, after = map(float, run_alone(script, exported).split())
    assert during > 20, "most of the 46 MiB of the result were there"
    assert after < 15


def test_where_the_limit_holds_both_precisions_both_stay_loaded(exported: Path) -> None:
    upscaler = Upscaler.load(exported, backend="onnxruntime", precision="int8", threads=1, memory_limit="500MiB")
    upscaler(picture(20, 20))
    upscaler(picture(20, 20, (3,), "uint16"))
    assert len(upscaler._pipelines.loaded) == 2
    fixed = [needs_of(upscaler.bundle.manifest, "onnxruntime", kind).fixed for kind in ("int8", "fp32")]
    for dtype in ("uint8", "uint16"):
        assert sum(fixed) < upscaler.plan(2000, 2000, np.dtype(dtype)).peak_bytes <= 500 * 2**20


def test_alpha_is_counted(exported: Path) -> None:
    upscaler = Upscaler.load(exported, precision="fp32", memory_limit="150MiB")
    plain, alpha = upscaler.plan(50, 50), upscaler.plan(50, 50, alpha=True)
    assert alpha.peak_bytes - plain.peak_bytes == ALPHA
    least = needs_of(upscaler.bundle.manifest, "onnxruntime", "fp32").peak(60 * 60)
    tight = Upscaler.load(exported, precision="fp32", memory_limit=least)
    assert tight(picture(50, 50)).shape == (200, 200, 3)
    with pytest.raises(MemoryLimitError):
        tight(picture(50, 50, (4,)))


@pytest.mark.slow
def test_many_callers_with_alpha_stay_under_the_limit(exported: Path) -> None:
    script = """
        import sys, threading, numpy as np, rdsr.runtime.upscaler
        from rdsr.benchmarks.process import peak_mb, resident_mb
        sources = [np.full((600, 700, 4), 9 * index, np.uint8) for index in range(16)]
        outputs = 16 * sources[0].nbytes * 16 / 2**20
        before = resident_mb()
        upscaler = rdsr.runtime.Upscaler.load(sys.argv[1], precision="fp32", threads=2, memory_limit=int(sys.argv[2]))
        threads = [threading.Thread(target=upscaler, args=(source,)) for source in sources]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(peak_mb() - before - outputs)
    """
    limit = needs_of(Bundle(exported).manifest, "onnxruntime", "fp32").peak(128 * 128) + ALPHA
    assert float(run_alone(script, exported, limit)) <= limit / 2**20


def test_under_a_tighter_limit_one_precision_at_a_time_is_loaded(exported: Path) -> None:
    upscaler = Upscaler.load(exported, backend="onnxruntime", precision="int8", threads=1, memory_limit="150MiB")
    sources = [picture(20, 20), picture(20, 20, (3,), "uint16")]
    sources.append(picture(20, 20, (4,)))
    alone, loaded = [], []
    for source in sources:
        alone.append(upscaler(source).tobytes())
        loaded.extend(map(weakref.ref, upscaler._pipelines.loaded.values()))
        gc.collect()
        assert sum(one() is not None for one in {id(one()): one for one in loaded}.values()) == 1
    with ThreadPoolExecutor(6) as pool:
        results = [larger.tobytes() for larger in pool.map(upscaler, sources * 6)]
    assert results == alone * 6
    assert len(upscaler._pipelines.loaded) == 1


@pytest.mark.slow
def test_callers_of_two_kinds_that_make_it_load_again_and_again_stay_under_the_limit() -> None:
    """Engines that callers' threads load leave a heap behind for each of them. 55 MiB here, not 150."""
    script = """
        import sys, threading, numpy as np, rdsr.runtime.upscaler
        from rdsr.benchmarks.process import peak_mb, resident_mb
        sources = [np.zeros((32, 32, 3), kind) for kind in (np.uint8, np.uint16)]
        before = resident_mb()
        upscaler = rdsr.runtime.Upscaler.load(backend="onnxruntime", precision="int8", threads=2, memory_limit="80MiB")
        def work(index):
            for turn in range(4):
                upscaler(sources[(index + turn) % 2])
        threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(upscaler._pipelines.loaded) == 1
        print(peak_mb() - before)
    """
    assert float(run_alone(script)) <= 80


def test_an_error_that_is_kept_keeps_no_engine_where_another_is_to_be_loaded(exported: Path) -> None:
    upscaler = Upscaler.load(exported, backend="onnxruntime", precision="int8", threads=1, memory_limit="150MiB")
    kept, sessions = [], []

    def progress(done: int, tiles: int) -> None:
        raise ZeroDivisionError

    for dtype in ("uint8", "uint16") * 2:
        future = upscaler.submit(picture(20, 20, (3,), dtype), progress=progress)
        with pytest.raises(ZeroDivisionError) as error:
            future.result(60)
        kept.append((future, error))
        (pipeline,) = upscaler._pipelines.loaded.values()
        sessions.append(weakref.ref(pipeline._sessions["decoder"]._session))  # type: ignore[attr-defined]
        del pipeline
        gc.collect()
        assert sum(session() is not None for session in sessions) == 1, "the one that is loaded"
    assert upscaler(picture(20, 20)).shape == (80, 80, 3)


def test_a_plan_of_many_tiles_takes_no_memory_for_each(exported: Path) -> None:
    """What a picture of 4096×4096 does in the smallest tiles: tens of thousands of them, told one by one."""
    upscaler = Upscaler.load(exported, precision="fp32", threads=1, memory_limit="1GiB")
    pipeline = upscaler._pipelines.of(("onnxruntime", "fp32"))
    made = 0

    class Many(Plan):
        def of(self, height: int, width: int) -> Iterator[Tile]:
            nonlocal made
            for tile in super().of(height, width):
                made += 1
                yield tile

    plan = Many(tile=(30, 30), grid=(3, 3), halo=8, peak_bytes=0)
    seen = []
    pipeline.picture(picture(58, 58), plan=plan, progress=lambda done, tiles: seen.append((done, made)))
    assert seen == [(tile, tile) for tile in range(1, 10)], "none is made before its turn"


def test_the_peak_of_a_plan_as_limit_allows_that_plan(exported: Path) -> None:
    free = Upscaler.load(exported, precision="fp32")
    for side in (97, 211, 300, 384):
        plan = free.plan(side, side)
        limited = Upscaler.load(exported, precision="fp32", memory_limit=plan.peak_bytes)
        assert limited.plan(side, side).grid == plan.grid == (1, 1)
