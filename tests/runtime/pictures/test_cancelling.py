"""Codecs stop when a token is set: at once where they work line by line."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rdsr.runtime.errors import CancelledError
from rdsr.runtime.host.cancel import Cancel
from rdsr.runtime.pictures.formats import WRITABLE, WriteOptions
from rdsr.runtime.pictures.metadata import Metadata
from rdsr.runtime.pictures.reading import EncodedPicture
from rdsr.runtime.pictures.writing import encode

SIDE = 3000


def noise() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def encoded(kind: str, cancel: Cancel | None = None) -> bytes:
    pixels = noise()
    with tempfile.TemporaryFile() as file:
        options = WriteOptions(compression=9 if kind in ("png", "tif") else None)
        encode(pixels, (SIDE, SIDE), WRITABLE[kind], options, Metadata(), file, "it", lossless=kind == "webp", cancel=cancel)
        file.seek(0)
        return file.read()


class SetAtWork(Cancel):
    """A token that is set a moment after work has begun, which takes a hundred times as long."""

    def watch(self, watcher: Callable[[], None]) -> None:
        super().watch(watcher)
        threading.Timer(0.005, self.set).start()


def stops(work: Callable[[Cancel], object]) -> bool:
    """Whether work stops that has begun. A busy machine may set the token only when all is done, so that is tried again."""
    for _ in range(20):
        try:
            work(SetAtWork())
        except CancelledError:
            return True
    return False


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_encoding_stops(kind: str) -> None:
    assert stops(lambda cancel: encoded(kind, cancel))


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_decoding_stops(kind: str) -> None:
    content = encoded(kind)

    def decode(cancel: Cancel) -> None:
        picture = EncodedPicture(content, "it")
        picture.cancel = cancel
        picture.pixels()

    assert stops(decode)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "avif"])
def test_what_is_cancelled_already_is_not_begun(kind: str) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledError):
        encoded(kind, cancel)
