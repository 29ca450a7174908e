"""Fuzz target: hostile calls of the public API, in random sequences on one instance.

An input is a list of steps in JSON. Each step is the name of a call and the expressions of its arguments, for example
`["run", {"picture": "zeros(3, 4)", "progress": "5"}]`. The expressions are those of `VALUES`, nothing else is evaluated.
Only typed errors may come out, and a sane call must give the same bytes before and after.
"""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rdsr.errors import RdsrError
from rdsr.runtime import Cancel, Upscaler, WriteOptions
from rdsr.tests.runtime.pictures.files import encoded, scene

__all__ = ["attempt", "mutated", "seeds"]


class Odd:
    """A value that answers every question with an error."""

    def __repr__(self) -> str:
        raise RuntimeError("this value cannot be shown")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("this value cannot be compared")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise RuntimeError("this value is neither true nor false")


def zeros(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """A picture whose memory is one element, however large it is."""
    return np.broadcast_to(np.zeros((), dtype), shape)


NUMBERS = (
    "0", "1", "2", "-1", "3.0", "1.5", "True", "False", "2**31 - 1", "2**31", "2**32", "2**63", "2**64", "10**9",
    "10**18", "10**400", "10**5000", "-10**5000", "float('nan')", "float('inf')", "1e300", "1000", "np.int64(2)",
    "np.uint8(1)", "np.float32(2)", "np.float64(2)", "np.bool_(True)", "np.array(2)", "np.array([1, 2])", "1j",
)  # fmt: skip
NAMES = (
    "''", "'.'", "'-'", "'/'", "'a' * 5000", "'a/' * 5000", "'a' * 300 + '.png'", "'nul\\0'", "'nul\\0.png'", "'\\ud800'",
    "'\\ud800.png'", "'\\udcff.png'", "b'bytes'", "Path('')", "Path('none')", "'none/none.png'", "fifo", "folder",
    "'/dev/null'", "'/dev/zero'", "'/dev/full'", "'/proc/self/mem'", "loop", "picture_file",
    "picture_file + '/below.png'", "broken_file",
)  # fmt: skip
OTHERS = (
    "None", "[]", "{}", "()", "set()", "object()", "Odd()", "Path", "len", "'auto'", "'AUTO'", "'x' * 10**6", "'\\n'",
    "NotImplemented", "...", "[[]]", "lambda: 0", "memoryview(b'')", "np.zeros(3)", "type('T', (str,), {})('fp32')",
)  # fmt: skip
PICTURES = (
    "sane", "zeros(5, 4)", "zeros(5, 4, 1)", "zeros(5, 4, 2)", "zeros(5, 4, 4)", "zeros(5, 4, 5)", "zeros(5, 4, 0)",
    "zeros(0, 0)", "zeros(1, 1)", "zeros(1, 90, 3)", "zeros(5)", "zeros()", "zeros(2, 5, 4, 3)",
    "zeros(5, 4, 3, dtype='float32')", "zeros(5, 4, 4, dtype='uint16')", "zeros(5, 4, 3, dtype='>u2')",
    "zeros(5, 4, dtype='float64')", "zeros(5, 4, dtype='int8')", "zeros(5, 4, dtype='bool')",
    "zeros(5, 4, dtype='complex64')", "zeros(5, 4, dtype='O')", "zeros(5, 4, dtype='M8[s]')", "zeros(5, 4, dtype='V7')",
    "zeros(5, 4, dtype='U3')", "zeros(5, 4, 3, dtype='float32') + np.float32('nan')",
    "zeros(5, 4, 3, dtype='float32') - np.float32('inf')", "zeros(5, 4, 3, dtype='float32') + np.float32(9)",
    "np.ma.masked_array(np.zeros((4, 4), 'uint8'))", "np.asmatrix(np.zeros((4, 4), 'uint8'))", "sane[::-1, ::2]",
    "sane.tolist()", "zeros(2**30, 2**30, 3)", "zeros(2**40, 1)", "zeros(1, 2**62)", "Shapeless()",
    "np.zeros((4, 4), [('r', 'u1'), ('g', 'u1')])",
)  # fmt: skip
CONTENTS = (
    "picture_bytes", "picture_bytes[:50]", "b''", "b'x'", "bytearray(picture_bytes)", "memoryview(picture_bytes)",
    "animation", "sane", "memoryview(sane)", "memoryview(b'abc')[::2]", "io.BytesIO(picture_bytes)",
)  # fmt: skip
OUTPUTS = (
    "out + '/a.png'", "out + '/a.jpg'", "out + '/a.tif'", "out + '/a.webp'", "out + '/a'", "out + '/a.xyz'",
    "out + '/new/a.png'", "io.BytesIO()", "io.StringIO()", "closed()", "open(picture_file, 'rb')",
    "io.BufferedRandom(io.BytesIO())", "Path(out)", "out + '/' + 'a' * 251 + '.png'", "out + '/' + 'a' * 300 + '.png'",
)  # fmt: skip
TOKENS = ("None", "Cancel()", "cancelled()", "Cancel(Cancel(), None)", "Cancel", "Cancel(5)", "Cancel('a')", "Cancel(Odd())")
CALLBACKS = ("None", "lambda done, tiles: None", "print", "lambda: None", "closing", "again", "cancelling")
OPTIONS = (
    "None", "WriteOptions()", "WriteOptions('jpg', 50)", "WriteOptions(scale=0.01)", "WriteOptions(scale=3.3)",
    "WriteOptions('webp', lossless=True)", "WriteOptions", "'png'", "{'format': 'png'}",
)  # fmt: skip
FORMATS = ("'png'", "'jpg'", "'tif'", "'webp'", "'PNG'", "'gif'", "None")
DTYPES = ("'uint8'", "np.uint16", "np.float32", "float", "'>u2'", "'i4,,'", "[('a', 'u1')]", "'x' * 9999", "{'names': 5}")
BUNDLES = (
    "None",
    "default_bundle",
    "Path(default_bundle)",
    "default_bundle + '/manifest.json'",
    "copy_with_fifo",
    "empty_folder",
)
BACKENDS = ("'auto'", "'openvino'", "'onnxruntime'")
PRECISIONS = ("'auto'", "'fp32'", "'int8'", "'bf16'", "'fp16'")
LIMITS = (
    "None",
    "'256MiB'",
    "'1'",
    "'0'",
    "'-5MB'",
    "'1e9'",
    "'9' * 400",
    "'9' * 5000",
    "'1.5 GiB'",
    "'٣MiB'",
    "2**28",
    "200 * 10**6",
)
ITERABLES = (
    "[sane, sane]",
    "[sane, 5]",
    "iter([])",
    "'ab'",
    "(sane for _ in range(3))",
    "failing()",
    "itertools.repeat(sane, 5)",
)

CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    "load": {
        "bundle": BUNDLES, "backend": BACKENDS, "precision": PRECISIONS, "threads": NUMBERS, "memory_limit": LIMITS,
        "seed": NUMBERS,
    },
    "run": {"picture": PICTURES, "cancel": TOKENS, "progress": CALLBACKS},
    "call": {"picture": PICTURES, "cancel": TOKENS, "progress": CALLBACKS},
    "submit": {"picture": PICTURES, "cancel": TOKENS, "progress": CALLBACKS},
    "aio": {"picture": PICTURES, "cancel": TOKENS, "progress": CALLBACKS},
    "map": {"pictures": ITERABLES, "look_ahead": NUMBERS, "cancel": TOKENS},
    "plan": {"height": NUMBERS, "width": NUMBERS, "dtype": DTYPES, "alpha": ("True", "False")},
    "file": {
        "input": CONTENTS + NAMES, "output": OUTPUTS, "options": OPTIONS, "max_pixels": NUMBERS, "cancel": TOKENS,
        "progress": CALLBACKS, "before_commit": ("None", "print", "failing_commit"),
    },
    "frames": {
        "input": CONTENTS + NAMES, "output": OUTPUTS, "options": OPTIONS, "max_pixels": NUMBERS, "cancel": TOKENS,
        "progress": CALLBACKS, "before_commit": ("None", "print", "failing_commit"),
    },
    "encoded": {
        "data": CONTENTS, "format": FORMATS, "quality": NUMBERS, "lossless": ("True", "False"), "compression": NUMBERS,
        "scale": NUMBERS, "max_pixels": NUMBERS, "cancel": TOKENS, "progress": CALLBACKS,
    },
    "WriteOptions": {
        "format": FORMATS, "quality": NUMBERS, "lossless": ("True", "False"), "compression": NUMBERS, "scale": NUMBERS,
    },
    "Cancel": {"parent": TOKENS},
    "close": {},
    "repr": {},
}  # fmt: skip
"""Name of a call → each argument → expressions that are meant for it, some of them right."""
NEEDED = {
    "run": ("picture",), "call": ("picture",), "submit": ("picture",), "aio": ("picture",), "map": ("pictures",),
    "plan": ("height", "width"), "file": ("input", "output"), "frames": ("input", "output"), "encoded": ("data",),
}  # fmt: skip
RIGHT = {
    "picture": "sane", "pictures": "[sane, sane]", "height": "40", "width": "30", "input": "picture_bytes",
    "output": "out + '/a.png'", "data": "picture_bytes",
}  # fmt: skip
HOSTILE = NUMBERS + NAMES + OTHERS
VALUES = frozenset(
    itertools.chain(HOSTILE, RIGHT.values(), *(values for arguments in CALLS.values() for values in arguments.values()))
)
"""All expressions that a step may hold."""


def seeds() -> dict[str, bytes]:
    """A right call of every kind."""
    return {
        name: json.dumps([[name, {argument: RIGHT[argument] for argument in NEEDED.get(name, ())}]]).encode()
        for name in CALLS
    }


def mutated(rng: np.random.Generator) -> tuple[str, bytes]:
    """One to six calls. Most arguments are right, or nearly; one or two are of any kind at all."""

    def one_of(values: tuple[str, ...]) -> str:
        return values[int(rng.integers(len(values)))]

    steps = []
    for _ in range(int(rng.integers(1, 7))):
        name = one_of(tuple(CALLS))
        arguments = {argument: RIGHT[argument] for argument in NEEDED.get(name, ())}
        for argument, values in CALLS[name].items():
            if rng.random() < 0.3:
                arguments[argument] = one_of(values if rng.random() < 0.6 else HOSTILE)
        if arguments and rng.random() < 0.03:
            del arguments[one_of(tuple(arguments))]
        if rng.random() < 0.02:
            arguments["nonsense"] = "5"
        steps.append([name, arguments])
    return ", ".join(name for name, _ in steps), json.dumps(steps).encode()


def attempt(content: bytes) -> str:
    """Make the calls, and a sane one."""
    refused = [kind for name, arguments in json.loads(content) if (kind := _world().step(name, arguments))]
    _world().sane_call()
    return f"refused: {refused[0]}" if refused else "accepted"


@functools.cache
def _world() -> _World:
    return _World()


class MineError(Exception):
    """An error of a caller's own callback or iterable, which must reach him unchanged."""


class Shapeless(np.ndarray):
    """An array whose shape cannot be asked."""

    def __new__(cls) -> Shapeless:
        return np.zeros((4, 4), np.uint8).view(cls)

    @property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:
        raise AttributeError("it has no shape")


class _World:
    """The instance under attack, what a sane call of it gives, and what the expressions mean."""

    def __init__(self) -> None:
        self.upscaler = Upscaler.load(threads=2)
        self.sane = scene(13, 10)
        self.wanted = self.upscaler(self.sane).tobytes()
        self.folder = Path(tempfile.mkdtemp())
        self.counted = itertools.count()
        self.names = {
            "np": np,
            "io": io,
            "Path": Path,
            "itertools": itertools,
            "Odd": Odd,
            "zeros": zeros,
            "Shapeless": Shapeless,
        }
        self.names |= {"Cancel": Cancel, "WriteOptions": WriteOptions, "sane": self.sane, "cancelled": self._cancelled}
        self.names |= {"closing": self._closing, "again": self._again, "failing": self._failing, "closed": self._closed_file}
        self.names |= {"failing_commit": self._failing_commit, "cancelling": self._cancelling}
        self.names |= {key: str(path) for key, path in self._files().items()}
        self.names["picture_bytes"] = encoded(self.sane, "PNG")
        self.names["animation"] = encoded(self.sane, "GIF", save_all=True, append_images=[])

    def _files(self) -> dict[str, Path]:
        top = self.folder
        bundle = self.upscaler.bundle.path
        names = {"fifo": "fifo.png", "folder": "folder.png", "loop": "loop.png", "picture_file": "picture.png"}
        names |= {"broken_file": "broken.png", "copy_with_fifo": "fifo.bundle", "empty_folder": "empty"}
        files = {"default_bundle": bundle} | {key: top / name for key, name in names.items()}
        os.mkfifo(files["fifo"])
        files["folder"].mkdir()
        files["empty_folder"].mkdir()
        files["loop"].symlink_to("loop.png")
        files["picture_file"].write_bytes(encoded(self.sane, "PNG"))
        files["broken_file"].write_bytes(encoded(self.sane, "PNG")[:60])
        shutil.copytree(bundle, files["copy_with_fifo"])
        (files["copy_with_fifo"] / "decoder.onnx").unlink()
        os.mkfifo(files["copy_with_fifo"] / "decoder.onnx")
        return files

    # -- what callers bring

    def _cancelled(self) -> Cancel:
        token = Cancel()
        token.set()
        return token

    def _closed_file(self) -> io.BytesIO:
        file = io.BytesIO()
        file.close()
        return file

    def _closing(self, done: int, tiles: int) -> None:
        self.upscaler.close()

    def _again(self, done: int, tiles: int) -> None:
        self.upscaler(self.sane)

    def _cancelling(self, done: int, tiles: int) -> None:
        raise MineError

    def _failing_commit(self, path: Path, digest: str) -> None:
        raise MineError

    def _failing(self) -> Iterator[np.ndarray]:
        yield self.sane
        raise MineError

    # -- the calls

    def step(self, name: str, arguments: dict[str, str]) -> str | None:
        """Make one call. Returns the name of the typed error that refused it."""
        assert set(arguments.values()) <= VALUES | {"5"}
        out = self.folder / f"out-{next(self.counted)}"
        out.mkdir()
        names, values = self.names | {"out": str(out)}, dict[str, Any]()
        os.chdir(out)  # relative names lead into it
        try:
            values.update((argument, eval(text, names)) for argument, text in arguments.items())
            self._call(name, values)
        except (RdsrError, MineError, MemoryError) as error:
            return type(error).__name__
        except TypeError as error:
            if self._is_pythons_own(name, arguments, values):
                return "TypeError"
            raise AssertionError(f"{name} {arguments}") from error
        except BaseException as error:
            raise AssertionError(f"{name} {arguments}") from error
        finally:
            os.chdir(self.folder)
            left = [path for path in out.rglob("*") if path.name.startswith(".rdsr")]
            shutil.rmtree(out)
            assert not left, f"{name} {arguments} leaves {left}"
        return None

    def _is_pythons_own(self, name: str, arguments: dict[str, str], values: dict[str, Any]) -> bool:
        """Whether the caller hears it from Python: an argument is missing, there is none of this name, or his own callback
        takes other arguments."""
        foreign = any(callable(values.get(each)) for each in ("progress", "before_commit"))
        return foreign or not set(NEEDED.get(name, ())) <= set(arguments) <= set(CALLS[name])

    def _call(self, name: str, values: dict[str, Any]) -> None:
        if self.upscaler._calls.closed:
            self.upscaler = Upscaler.load(threads=2)
        if name in _OTHER_CALLS:
            _OTHER_CALLS[name](self.upscaler, values)
        else:
            getattr(self.upscaler, name)(**values)

    def sane_call(self) -> None:
        """The same bytes as before, or an `AssertionError`."""
        if self.upscaler._calls.closed:
            self.upscaler = Upscaler.load(threads=2)
        assert self.upscaler(self.sane).tobytes() == self.wanted, "a sane call gives other bytes than before"


def _load(_: Upscaler, values: dict[str, Any]) -> None:
    """Load another instance, use it, and close it."""
    with Upscaler.load(**values) as upscaler:
        upscaler(scene(5, 4))
        upscaler.plan(300, 200, np.uint8)


_OTHER_CALLS: dict[str, Callable[[Upscaler, dict[str, Any]], object]] = {
    "load": _load,
    "call": lambda upscaler, values: upscaler(**values),
    "submit": lambda upscaler, values: upscaler.submit(**values).result(),
    "aio": lambda upscaler, values: asyncio.run(upscaler.aio(**values)),
    "map": lambda upscaler, values: list(itertools.islice(upscaler.map(**values), 9)),
    "WriteOptions": lambda _, values: WriteOptions(**values),
    "Cancel": lambda upscaler, values: upscaler(scene(5, 4), cancel=Cancel(*values.values())),
    "repr": lambda upscaler, _: repr(upscaler),
}
