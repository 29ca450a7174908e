"""The chunks of PNG files that libvips does not handle: frames of an animation, texts, and a picture as a stream."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["HEADER_BYTES", "chunk", "frame_count", "kept_chunks", "least_bytes", "stored_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = 33
"""Bytes of signature and IHDR, after which other chunks may come."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_COLOURS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
"""What samples mean where there is no profile."""
_MOST_TEXT = 2**24
_PART_BYTES = 2**21
"""Pixels that are packed at a time, in a picture as a stream; several copies of them exist for a moment."""
_DEFLATE_RATIO = 1032
"""What Deflate packs at most into one byte: two bits for 258 bytes that repeat."""
_XMP = b"XML:com.adobe.xmp\0"
_MOST_CHUNKS = 2**20


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(kind, size) of each chunk up to the end of the picture, with the file at its content; the content may be read."""
    at = file.seek(len(_SIGNATURE))
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        if kind == b"IEND" or not kind.isalpha():
            return
        yield kind, size
        at = file.seek(at + 12 + size)


def least_bytes(file: BinaryIO) -> int:
    """Bytes that a file needs at least for the pixels that its header claims."""
    file.seek(len(_SIGNATURE) + 8)
    width, height, bits, kind = struct.unpack(">IIBB", file.read(10))
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 1)
    return width * height * bits * samples // 8 // _DEFLATE_RATIO


def frame_count(file: BinaryIO, most: int) -> int:
    """Pictures in a PNG file, at most `most`: more than 1 for an animation. A picture that is no part of it counts, too."""
    frames, apart = 0, True
    for kind, size in _chunks(file):
        if kind == b"acTL" and size == 8:
            frames = min(int.from_bytes(file.read(4), "big"), most)  # the file may end here
        apart &= kind != b"fcTL"
        if kind == b"IDAT":
            break
    return max(1, frames + apart) if frames else 1


def kept_chunks(file: BinaryIO) -> list[bytes]:
    """Chunks of text and of the meaning of samples, as they are, up to 16 MiB in all.

    Damaged ones are left out, and XMP, which is no text.
    """
    found, room = [], _MOST_TEXT
    end = file.seek(0, os.SEEK_END)
    for kind, size in _chunks(file):
        if kind in _TEXTS + _COLOURS and size <= min(room, end):
            content = file.read(size)
            whole = chunk(kind, content)
            if file.read(4) == whole[-4:] and not content.startswith(_XMP):
                found.append(whole)
                room -= size
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def stored_png(shape: tuple[int, ...], dtype: np.dtype[Any], strips: Iterable[NDArray[Any]]) -> Iterator[bytes]:
    """A PNG without compression of H×W or H×W×C pixels (uint8 or uint16) that come in strips, part by part."""
    height, width = shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if len(shape) == 2 else shape[2]]
    yield _SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * dtype.itemsize, kind, 0, 0, 0))
    packer = zlib.compressobj(0)
    step = max(1, _PART_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    for strip in strips:
        for top in range(0, len(strip), step):
            part = strip[top : top + step].astype(dtype.newbyteorder(">"), copy=False)
            part = part.reshape(len(part), -1).view(np.uint8)
            rows = np.zeros((len(part), 1 + part.shape[1]), np.uint8)  # each row begins with its filter: none
            rows[:, 1:] = part
            yield chunk(b"IDAT", packer.compress(rows.data))
    yield chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b"")
