"""The chunks of WebP files. Source: RFC 9649."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["is_lossless", "with_exif"]

_HEADER = 12
_EXIF, _ALPHA = 0x08, 0x10
_MOST_CHUNKS = 10_000


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(kind, size) of each chunk, with the file at its content. Those of a frame follow the frame's own header."""
    at = file.seek(_HEADER)
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = struct.unpack("<4sI", head)
        yield kind, size
        at = file.seek(at + 8 + (16 if kind == b"ANMF" else size + size % 2))


def is_lossless(file: BinaryIO) -> bool:
    """Whether the first frame is compressed without loss."""
    return next((kind == b"VP8L" for kind, _ in _chunks(file) if kind in (b"VP8L", b"VP8 ")), False)


def with_exif(file: BinaryIO, block: bytes, height: int, width: int) -> None:
    """Put an EXIF block, without prefix, at the end of a finished picture."""
    file.seek(_HEADER)
    head = file.read(18)
    if head[:4] == b"VP8X":
        file.seek(_HEADER + 8)
        file.write(bytes([head[8] | _EXIF]))
    else:
        flags = _EXIF
        if head[:4] == b"VP8L":  # bit 28 of its header says whether alpha is in use
            flags |= _ALPHA if struct.unpack_from("<I", head, 9)[0] >> 28 & 1 else 0
        file.seek(_HEADER)
        picture = file.read()
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        file.seek(_HEADER)
        file.write(b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size + picture)
    file.seek(0, os.SEEK_END)
    file.write(b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2))
    total = file.tell()
    file.seek(4)
    file.write(struct.pack("<I", total - 8))
    file.seek(total)
