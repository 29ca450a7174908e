"""Check what callers pass. Each check gives the value in the type that the code expects, or raises a typed error."""

from __future__ import annotations

import io
import operator
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import OptionError, OutputError, PictureError

__all__ = [
    "callback", "flag", "instance", "limit_of", "output_of", "output_path_of", "path_of", "pictures_of",
    "shown", "source_of", "text", "threads_of", "whole_number",
]  # fmt: skip

_THREADS_PER_CPU = 4
"""More threads only wait for each other, and engines hang where the system refuses to start them."""
_SHOWN = 100
"""Most characters of a value in an error."""


def shown(value: object) -> str:
    """A value as errors show it: at most `_SHOWN` characters, also if it is huge or cannot be shown."""
    try:
        said = repr(value)
    except Exception:  # e.g. Python refuses to write a number of 5,000 digits
        return f"a value of type {type(value).__name__}"
    return said if len(said) <= _SHOWN else f"{said[: _SHOWN - 1]}…"


def whole_number(name: str, value: Any, low: int, high: int | None = None, *, why: str = "") -> int:
    """A whole number, also of NumPy, from `low` to `high`. `why`: where the upper bound comes from. Raises `OptionError`."""
    number = None
    try:
        if not isinstance(value, bool):
            number = operator.index(value)
    except Exception:  # it is no whole number, whatever it says instead
        number = None
    if number is None or number < low or (high is not None and number > high):
        bound = "" if high is None else f" to {high}"
        raise OptionError(f"{name} must be a whole number from {low}{bound}{why and f' ({why})'}, not {shown(value)}")
    return number


def threads_of(value: Any) -> int | None:
    """A number of threads, or None. Raises `OptionError` for more than `_THREADS_PER_CPU` for each CPU."""
    most = _THREADS_PER_CPU * (os.cpu_count() or 1)
    why = f"{_THREADS_PER_CPU} for each CPU of this machine"
    return None if value is None else whole_number("threads", value, 1, most, why=why)


def limit_of(value: Any) -> int | str | None:
    """A limit of memory: a text to be read, a number of bytes, or None. Raises `OptionError`."""
    if value is None or isinstance(value, str):
        return value
    return whole_number("memory_limit", value, 1, 2**60, why='bytes, or a text like "256MiB"')


def text(name: str, value: Any) -> str:
    """A text. Raises `OptionError`."""
    if not isinstance(value, str):
        raise OptionError(f"{name} must be a text, not {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False, also of NumPy. Raises `OptionError`."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise OptionError(f"{name} must be true or false, not {shown(value)}")
    return bool(value)


def callback(name: str, value: Any) -> None:
    """Raise `OptionError` unless the value can be called, or is None."""
    if value is not None and not callable(value):
        raise OptionError(f"{name} must be a function, not {shown(value)}")


def instance(name: str, value: Any, kind: type) -> None:
    """Raise `OptionError` unless the value is of this kind, or None."""
    if value is not None and not isinstance(value, kind):
        raise OptionError(f"{name} must be of the kind {kind.__name__}, not {shown(value)}")


def path_of(value: Any) -> Path | None:
    """The path that a text or a path object names; None for anything else."""
    try:
        return Path(value) if isinstance(value, (str, os.PathLike)) else None
    except Exception:  # a path object of somebody's own, which gives no text
        return None


def source_of(value: Any) -> Path | bytes:
    """The path of an input, or its content. Raises `PictureError`."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    path = path_of(value)
    if path is None:
        raise PictureError(f"the path or the bytes of a picture are needed, not {shown(value)}")
    return path


def output_of(value: Any) -> Path | BinaryIO:
    """The path of an output, or an open file that takes bytes. Raises `OutputError`."""
    path = path_of(value)
    if path is not None:
        return path
    if not callable(getattr(value, "write", None)) or isinstance(value, type):
        raise OutputError(f"a path or an open binary file is needed as the output, not {shown(value)}")
    if isinstance(value, io.TextIOBase):
        raise OutputError("the output is a file that was opened for text, and a binary one is needed")
    if isinstance(value, io.IOBase) and (value.closed or not value.writable()):
        raise OutputError("the output is a file that is closed, or was opened for reading only")
    output: BinaryIO = value
    return output


def output_path_of(value: Any) -> Path:
    """The path of an output that cannot be an open file. Raises `OutputError`."""
    path = path_of(value)
    if path is None:
        raise OutputError(f"a path is needed as the output, not {shown(value)}")
    return path


def pictures_of(value: Any) -> Iterator[Any]:
    """What an iterable of pictures gives. Raises `PictureError`."""
    try:
        pictures: Iterable[Any] = value
        return iter(pictures)
    except TypeError as error:
        raise PictureError(f"pictures must come from an iterable, not {shown(value)}") from error
