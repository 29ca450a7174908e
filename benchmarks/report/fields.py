"""JSON objects of foreign files, read key by key: what is wrong is said in one sentence that names file and key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ...runtime.files import read_regular
from ..errors import BenchmarkError

__all__ = ["Node", "clean", "load"]

_LARGEST_FILE = 64 << 20
_LONGEST_TEXT = 1000


@dataclasses.dataclass(frozen=True)
class Node:
    """A JSON object with where it stands. Every reader raises `BenchmarkError` for a value of another kind.

    `maybe_…` take a missing key and null for None.
    """

    file: Path
    where: str
    content: Mapping[str, Any]

    def refuse(self, key: str, wanted: str) -> NoReturn:
        name = f"{self.where}.{key}" if self.where else key
        raise BenchmarkError(f"{self.file}: {name} must be {wanted}, not {clean(repr(self.content.get(key)))[:60]}")

    def maybe_text(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, "text")
        return None if value is None else clean(value)

    def text(self, key: str) -> str:
        return text if (text := self.maybe_text(key)) is not None else self.refuse(key, "text")

    def texts(self, key: str) -> list[str]:
        value = self.content.get(key) or []
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            self.refuse(key, "a list of texts")
        return [clean(entry) for entry in value]

    def maybe_number(self, key: str) -> float | None:
        value = self.content.get(key)
        # Larger numbers mean nothing here, and break axes and columns.
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e12):
            self.refuse(key, "a number")
        return None if value is None else float(value)

    def number(self, key: str) -> float:
        return number if (number := self.maybe_number(key)) is not None else self.refuse(key, "a number")

    def maybe_positive(self, key: str) -> float | None:
        number = self.maybe_number(key)
        if number is not None and not number >= 1e-9:
            self.refuse(key, "a number above 0")
        return number

    def positive(self, key: str) -> float:
        return number if (number := self.maybe_positive(key)) is not None else self.refuse(key, "a number above 0")

    def maybe_whole(self, key: str) -> int | None:
        value = self.content.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9):
            self.refuse(key, "a whole number above 0")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.maybe_whole(key)
        if value is None and default is None:
            self.refuse(key, "a whole number above 0")
        return value if value is not None else default or 0

    def maybe_node(self, key: str) -> Node | None:
        value = self.content.get(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "an object")
        return None if value is None else Node(self.file, f"{self.where}.{key}" if self.where else key, value)

    def node(self, key: str) -> Node:
        return node if (node := self.maybe_node(key)) is not None else self.refuse(key, "an object")

    def nodes(self, key: str, *, optional: bool = False) -> list[Node]:
        value = self.content.get(key)
        if value is None and optional:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.refuse(key, "a list of objects")
        return [Node(self.file, f"{key}[{index}]", entry) for index, entry in enumerate(value)]


def clean(text: str) -> str:
    """One line without control characters, lone surrogates and marks that turn the direction of writing."""
    line = " ".join(text[:_LONGEST_TEXT].split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def load(path: Path) -> Node:
    """The object that a file holds. Raises `BenchmarkError` where it cannot be read or is none."""
    try:
        content = json.loads(read_regular(path, _LARGEST_FILE))
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise BenchmarkError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BenchmarkError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return Node(path, "", content)
