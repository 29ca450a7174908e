"""Calls that nobody should make: each is refused with a typed error in one short sentence, and the instance stays usable."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdsr.runtime import Bundle, Cancel, Upscaler, WriteOptions
from rdsr.runtime.batch import Batch
from rdsr.runtime.bundle import default_bundle_path
from rdsr.runtime.errors import BundleError, EngineError, OptionError, OutputError, PictureError, RdsrError
from rdsr.runtime.file_plan import plan_files
from rdsr.runtime.inputs import find_inputs, read_pipe
from rdsr.tests.conftest import run_alone
from rdsr.tests.runtime.pictures.files import encoded, scene

SANE = scene(13, 10)
DATA = encoded(SANE, "PNG")
LONG = "a" * 5000
HUGE = 10**5000
"""A number that Python refuses to write."""


class Odd:
    """A value that can neither be shown nor compared."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("not shown")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not compared")

    def __bool__(self) -> bool:
        raise RuntimeError("neither")


def known_by(value: object) -> str:
    """How a test of this value is called."""
    return f"{type(value).__name__} {ascii(value)[:20]}" if isinstance(value, (str, bytes)) else type(value).__name__


NO_NUMBERS = [True, np.bool_(True), 1.0, "2", [], object(), Odd(), np.array([1, 2]), float("nan"), 1j, -HUGE]
NO_LIMITS = [True, 1.0, [], Odd(), np.array([1, 2]), 1j, 0, -1, 2**63, 10**400, HUGE, LONG, "9" * 5000, "nan", "-1", b"1"]
NO_FUNCTIONS = [5, "print", [], Odd(), np.zeros(3)]
NO_TOKENS = [5, "cancel", Cancel, threading.Event(), Odd(), object()]


@pytest.fixture(scope="module")
def shared(exported: Path) -> Upscaler:
    return Upscaler.load(exported, threads=1)


@pytest.fixture
def upscaler(shared: Upscaler) -> Iterator[Upscaler]:
    """An instance that gives the same bytes after the test as before."""
    before = shared(SANE).tobytes()
    yield shared
    assert shared(SANE).tobytes() == before


def short(error: pytest.ExceptionInfo[RdsrError]) -> str:
    said = str(error.value)
    assert len(said) < 400
    return said


# -- load


@pytest.mark.parametrize(
    "name", [LONG, "a/" * 5000, "nul\0", "\ud800", "none", Path(LONG), "/dev/null", "", "."], ids=known_by
)
def test_names_that_no_bundle_has(name: Any) -> None:
    with pytest.raises(BundleError):
        Upscaler.load(name)


@pytest.mark.parametrize("name", [5, b"bytes", [], Odd(), object(), HUGE, True, 1.5, io.BytesIO()], ids=known_by)
def test_what_is_no_name_of_a_bundle(name: Any) -> None:
    with pytest.raises(BundleError, match="the folder of a bundle is needed") as error:
        Upscaler.load(name)
    short(error)


@pytest.mark.parametrize("option", ["threads", "seed"])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=known_by)
def test_what_is_no_number(exported: Path, option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{option} must be a whole number") as error:
        Upscaler.load(exported, **{option: value})
    short(error)


@pytest.mark.parametrize("value", [0, -1, 2**31 - 1, 2**31, 2**32, 2**63, HUGE, 1000 * (os.cpu_count() or 1)], ids=known_by)
def test_threads_have_a_limit_which_is_said(exported: Path, value: int) -> None:
    most = 4 * (os.cpu_count() or 1)
    with pytest.raises(OptionError, match=f"threads must be a whole number from 1 to {most} ") as error:
        Upscaler.load(exported, threads=value)
    short(error)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_as_many_threads_as_allowed_run(exported: Path, backend: str) -> None:
    with Upscaler.load(exported, backend=backend, threads=4 * (os.cpu_count() or 1), precision="fp32") as many:
        assert many(SANE).shape == (52, 40, 3)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_thousand_threads_in_little_address_space_do_not_hang(exported: Path, backend: str) -> None:
    said = run_alone(
        """
        import resource, sys
        from rdsr.runtime import OptionError, Upscaler
        resource.setrlimit(resource.RLIMIT_AS, (12_000_000 * 1024,) * 2)
        try:
            Upscaler.load(sys.argv[1], backend=sys.argv[2], threads=100_000)
        except OptionError as error:
            print(error)
        """,
        exported,
        backend,
    )
    assert "threads" in said


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_that_the_address_space_does_not_hold_are_an_error_and_no_hang(backend: str) -> None:
    script = """
        import os, resource, sys, numpy as np
        from rdsr.runtime import EngineError, Upscaler
        upscaler = Upscaler.load(sys.argv[1], backend=sys.argv[2], precision="fp32", threads=4 * os.cpu_count())
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
        try:
            upscaler(np.zeros((4, 4, 3), np.uint8))
        except EngineError as error:
            print(error)
    """
    assert "use fewer" in run_alone(script, default_bundle_path(), backend)


def test_numbers_of_numpy_are_numbers(exported: Path) -> None:
    with Upscaler.load(exported, threads=np.int64(2), seed=np.uint8(7), memory_limit=np.int64(2**29)) as one:
        assert (one.effective.threads, one.seed, one.memory_limit) == (2, 7, 2**29)
        assert type(one.effective.threads) is int
        assert one.plan(np.int32(9), np.uint16(5)) == one.plan(9, 5)
        assert next(one.map([SANE], look_ahead=np.int64(1))).tobytes() == one(SANE).tobytes()
        assert one.encoded(DATA, "jpg", quality=np.int64(50)) == one.encoded(DATA, "jpg", quality=50)
        assert one.encoded(DATA, scale=np.float32(2)) == one.encoded(DATA, scale=2.0)


@pytest.mark.parametrize("value", NO_LIMITS, ids=known_by)
def test_what_is_no_limit(exported: Path, value: Any) -> None:
    with pytest.raises(OptionError, match="memory_limit"):
        Upscaler.load(exported, memory_limit=value)


@pytest.mark.parametrize("value", [10**18, "999999999 GiB", f"{10**17}TB"], ids=known_by)
def test_a_limit_of_more_memory_than_there_is_changes_nothing(exported: Path, upscaler: Upscaler, value: Any) -> None:
    with Upscaler.load(exported, threads=1, memory_limit=value) as unlimited:
        assert unlimited(SANE).tobytes() == upscaler(SANE).tobytes()


@pytest.mark.parametrize("option", ["backend", "precision"])
@pytest.mark.parametrize(
    "value",
    [None, 5, b"auto", [], {}, Odd(), np.array(["auto", "x"]), LONG, "AUTO", "", "\ud800"],
    ids=known_by,
)
def test_what_is_no_engine_or_precision(exported: Path, option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=option):
        Upscaler.load(exported, **{option: value})


# -- pictures


@pytest.mark.parametrize("value", NO_TOKENS, ids=known_by)
def test_what_is_no_token(upscaler: Upscaler, tmp_path: Path, value: Any) -> None:
    for call in (
        lambda: upscaler(SANE, cancel=value),
        lambda: upscaler.run(SANE, cancel=value),
        lambda: upscaler.submit(SANE, cancel=value),
        lambda: upscaler.map([SANE], cancel=value),
        lambda: asyncio.run(upscaler.aio(SANE, cancel=value)),
        lambda: upscaler.file(DATA, tmp_path / "a.png", cancel=value),
        lambda: upscaler.frames(DATA, tmp_path / "a.png", cancel=value),
        lambda: upscaler.encoded(DATA, cancel=value),
        lambda: Cancel(value),
    ):
        with pytest.raises(OptionError, match="Cancel") as error:
            call()
        short(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", NO_FUNCTIONS, ids=known_by)
def test_what_is_no_function(upscaler: Upscaler, tmp_path: Path, value: Any) -> None:
    for call in (
        lambda: upscaler(SANE, progress=value),
        lambda: upscaler.submit(SANE, progress=value),
        lambda: asyncio.run(upscaler.aio(SANE, progress=value)),
        lambda: upscaler.file(DATA, tmp_path / "a.png", progress=value),
        lambda: upscaler.file(DATA, tmp_path / "a.png", before_commit=value),
        lambda: upscaler.encoded(DATA, progress=value),
    ):
        with pytest.raises(OptionError, match="must be a function") as error:
            call()
        short(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [5, None, Odd(), print], ids=known_by)
def test_what_is_no_iterable(upscaler: Upscaler, value: Any) -> None:
    with pytest.raises(PictureError, match="iterable"):
        upscaler.map(value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1], ids=known_by)
def test_what_is_no_look_ahead_or_number_of_pixels(upscaler: Upscaler, value: Any) -> None:
    with pytest.raises(OptionError, match="look_ahead"):
        upscaler.map([SANE], look_ahead=value)
    with pytest.raises(OptionError, match="max_pixels"):
        upscaler.encoded(DATA, max_pixels=value)


@pytest.mark.parametrize(
    ("height", "width"),
    [(0, 1), (1, -1), (True, 1), (1.0, 1), ("9", 9), (HUGE, 1), (1, 10**400), (10**9, 10**9), (2**62, 1), (Odd(), 1)],
    ids=known_by,
)
def test_sizes_that_no_picture_has(upscaler: Upscaler, height: Any, width: Any) -> None:
    with pytest.raises(OptionError) as error:
        upscaler.plan(height, width)
    short(error)


@pytest.mark.parametrize(("height", "width"), [(10**9, 10**6), (1, 2**40), (2**40, 1), (2**27, 2**27), (10**6, 10**6)])
def test_plans_of_giants_take_no_time(upscaler: Upscaler, height: int, width: int) -> None:
    started = time.process_time()
    assert upscaler.plan(height, width).tiles > 10**6
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "dtype",
    [Odd(), "i4,,", "x" * 9999, {"names": 5}, [("a", "u1")], HUGE, None, 5, b"\xff", "\ud800"],
    ids=known_by,
)
def test_what_is_no_dtype(upscaler: Upscaler, dtype: Any) -> None:
    with pytest.raises(OptionError, match="dtype must be") as error:
        upscaler.plan(9, 9, dtype)
    short(error)


@pytest.mark.parametrize("alpha", [None, 1, "yes", Odd(), np.array([True, False])], ids=known_by)
def test_alpha_is_true_or_false(upscaler: Upscaler, alpha: Any) -> None:
    with pytest.raises(OptionError, match="alpha must be true or false"):
        upscaler.plan(9, 9, alpha=alpha)


def test_a_result_that_no_array_can_hold_is_refused(upscaler: Upscaler) -> None:
    """The picture takes one byte, whatever its shape says."""
    picture = np.broadcast_to(np.uint8(0), (2**30, 2**30, 4))
    with pytest.raises(OptionError, match="no array holds the result"):
        upscaler(picture)
    with pytest.raises(OptionError):
        upscaler.submit(picture).result()


# -- files


@pytest.mark.parametrize("value", [5, None, [], Odd(), SANE, HUGE, io.BytesIO(b"x")], ids=known_by)
def test_what_is_no_input(upscaler: Upscaler, tmp_path: Path, value: Any) -> None:
    for call in (upscaler.file, upscaler.frames):
        with pytest.raises(PictureError, match="the path or the bytes of a picture are needed") as error:
            call(value, tmp_path / "a.png")
        short(error)


@pytest.mark.parametrize(
    "name",
    [LONG, "a/" * 5000, "nul\0.png", "\ud800.png", "", ".", "none", "/dev/zero", "/dev/null"],
    ids=known_by,
)
def test_names_that_no_picture_has(upscaler: Upscaler, tmp_path: Path, name: str) -> None:
    for call in (upscaler.file, upscaler.frames):
        with pytest.raises(PictureError, match="cannot read"):
            call(name, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_contents_of_any_kind_of_bytes_are_taken(upscaler: Upscaler, tmp_path: Path) -> None:
    results = []
    for content in (DATA, bytearray(DATA), memoryview(DATA), memoryview(bytes(b for c in DATA for b in (c, 0)))[::2]):
        upscaler.file(content, tmp_path / "a.png")
        results.append((tmp_path / "a.png").read_bytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("value", [5, None, [], Odd(), b"a.png", HUGE, io.BytesIO], ids=known_by)
def test_what_is_no_output(upscaler: Upscaler, value: Any) -> None:
    for call in (upscaler.file, upscaler.frames):
        with pytest.raises(OutputError, match="is needed") as error:
            call(DATA, value)
        short(error)


@pytest.mark.parametrize("kind", ["text", "closed", "read only"])
def test_open_files_that_take_no_bytes(upscaler: Upscaler, tmp_path: Path, kind: str) -> None:
    """They are refused before any work."""
    (tmp_path / "a").write_bytes(b"")
    with (tmp_path / "a").open({"text": "w", "closed": "wb", "read only": "rb"}[kind]) as file:
        if kind == "closed":
            file.close()
        with pytest.raises(OutputError, match=r"text|closed"):
            upscaler.file(DATA, file, progress=lambda done, tiles: pytest.fail("it worked"))


@pytest.mark.parametrize(
    "name",
    [f"{LONG}.png", "a/" * 5000 + "b.png", "nul\0.png", "\ud800.png", "", ".", "a", "a.xyz"],
    ids=known_by,
)
def test_names_that_no_output_can_have(
    upscaler: Upscaler, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (upscaler.file, upscaler.frames):
        with pytest.raises(OutputError, match="cannot write"):
            call(DATA, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values",
    [
        {"format": []}, {"format": 5}, {"format": Odd()}, {"format": "PNG"}, {"format": b"png"}, {"format": "x" * 10**6},
        *({"quality": value} for value in (True, 50.0, "50", 0, 101, HUGE, -HUGE, Odd(), np.array([1, 2]))),
        *({"compression": value} for value in (False, 1.5, "6", -1, 10, HUGE, Odd())),
        *({"lossless": value} for value in (1, "yes", 1e300, Odd(), np.array([True, False]))),
        *({"scale": value} for value in (True, "2", 0, -1, 10**400, HUGE, float("nan"), float("inf"), 1j, Odd(), SANE)),
    ],
    ids=lambda values: next(f"{name} {type(value).__name__}" for name, value in values.items()),
)  # fmt: skip
def test_options_of_writing_that_do_not_exist(upscaler: Upscaler, values: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as error:
        WriteOptions(**values)
    short(error)
    with pytest.raises(OptionError):
        upscaler.encoded(DATA, **({"format": "png"} | values))


@pytest.mark.parametrize("value", [5, "png", {"format": "png"}, WriteOptions, Odd()], ids=known_by)
def test_what_are_no_options(upscaler: Upscaler, tmp_path: Path, value: Any) -> None:
    for call in (upscaler.file, upscaler.frames):
        with pytest.raises(OptionError, match="options must be of the kind WriteOptions"):
            call(DATA, tmp_path / "a.png", options=value)


def test_a_closed_instance_refuses_every_call(exported: Path, tmp_path: Path) -> None:
    closed = Upscaler.load(exported, threads=1)
    closed.close()
    closed.close()
    for call in (
        lambda: closed(SANE),
        lambda: closed.submit(SANE),
        lambda: list(closed.map([SANE])),
        lambda: asyncio.run(closed.aio(SANE)),
        lambda: closed.file(DATA, tmp_path / "a.png"),
        lambda: closed.encoded(DATA),
    ):
        with pytest.raises(EngineError, match="closed"):
            call()
    assert not list(tmp_path.iterdir())


# -- pipes


def test_a_pipe_that_nobody_writes_into_is_refused(
    upscaler: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening it would wait for ever."""
    monkeypatch.setattr("rdsr.runtime.inputs._WRITER_SECONDS", 0.1)
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for call in (upscaler.file, upscaler.frames):
        with pytest.raises(PictureError, match="no regular file"):
            call(pipe, tmp_path / "a.png")
    with pytest.raises(PictureError, match="no program writes into"):
        Batch(upscaler, plan_files([str(pipe)], str(tmp_path / "a.png"))).run()
    with pytest.raises(PictureError):
        find_inputs([str(pipe), str(tmp_path / "none.png")])
    with pytest.raises(BundleError, match="not a folder"):
        Upscaler.load(pipe)


def test_a_slow_program_may_write_into_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its start is waited for."""
    monkeypatch.setattr("rdsr.runtime.inputs._WRITER_SECONDS", 5.0)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as stream:
            monkeypatch.setattr("rdsr.runtime.inputs._WRITER_SECONDS", 0.0)
            for part in (b"one", b"two", bytes(200_000)):
                time.sleep(0.2)
                stream.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_pipe(pipe, 10**6) == b"onetwo" + bytes(200_000)
    writer.join()


def test_files_of_a_bundle_that_are_pipes_are_refused(bundle: Path) -> None:
    names = [path.name for path in bundle.iterdir()]
    for name in names:
        content = (bundle / name).read_bytes()
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        with pytest.raises(BundleError, match=r"not a regular file|no bundle"):
            Bundle(bundle).check()
        (bundle / name).unlink()
        (bundle / name).write_bytes(content)
