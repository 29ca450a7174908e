"""Picture files for tests, made by other libraries than the one that reads, or byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["SIGNATURE", "bmp", "chunk", "chunks", "encoded", "jpeg_parts", "mended", "png", "scene"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""Adam7: first row, first column, step of rows, step of columns."""


def scene(height: int, width: int, channels: int = 3, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """H×W or H×W×C: smooth colours over the whole range with some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    planes = [0.5 + 0.5 * np.sin(6 * rows * (n + 1) + 5 * columns + 2 * n) for n in range(channels)]
    smooth = np.stack(planes, axis=2) + rng.normal(0, 0.02, (height, width, channels))
    samples = np.clip(smooth, 0, 1)
    made = samples.astype(dtype) if dtype.startswith("float") else np.rint(samples * np.iinfo(dtype).max).astype(dtype)
    return made if channels > 1 else made[:, :, 0]


def encoded(pixels: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def chunks(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(offset, kind, body) of each chunk of a PNG."""
    at = len(SIGNATURE)
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        yield at, kind, content[at + 8 : at + 8 + size]
        at += size + 12


def mended(content: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG, in which the first chunk of this kind has another body, with the right checksum."""
    at, _, old = next(entry for entry in chunks(content) if entry[1] == kind)
    return content[:at] + chunk(kind, body) + content[at + 12 + len(old) :]


def png(
    samples: np.ndarray, bits: int, colour: int, *, interlaced: bool = False, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG. `samples`: H×W×C of 0 … 2**bits − 1; `colour`: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.

    `before`, `after`: chunks to put before and after the pixels.
    """
    samples = samples.reshape(*samples.shape[:2], _CHANNELS[colour])
    height, width, _ = samples.shape
    passes = [samples[row::rows, column::columns] for row, column, rows, columns in _PASSES] if interlaced else [samples]
    lines = b"".join(b"\0" + line for part in passes if part.size for line in _lines(part, bits))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    content = SIGNATURE + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(lines))
    return content + after + chunk(b"IEND", b"")


def _lines(part: np.ndarray, bits: int) -> list[bytes]:
    flat = part.reshape(part.shape[0], -1)
    if bits >= 8:
        return [line.tobytes() for line in flat.astype(">u2" if bits == 16 else "u1")]
    spread = (flat[:, :, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    return [line.tobytes() for line in np.packbits(spread.reshape(len(flat), -1), axis=1)]


def bmp(indices: np.ndarray, bits: int, palette: np.ndarray) -> bytes:
    """A BMP of 1, 4 or 8 bits. `indices`: H×W; `palette`: N×3."""
    lines = b"".join(line + bytes(-len(line) % 4) for line in reversed(_lines(indices, bits)))
    colours = b"".join(bytes([*colour[::-1], 0]) for colour in palette.tolist())
    start = 14 + 40 + len(colours)
    height, width = indices.shape
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(lines), 2835, 2835, len(palette), 0)
    return struct.pack("<2sIHHI", b"BM", start + len(lines), 0, 0, start) + header + colours + lines


def jpeg_parts(content: bytes) -> tuple[int, int]:
    """(offset of the frame header's height, offset of the first byte of compressed data)."""
    at, height_at = 2, 0
    while True:
        marker = content[at + 1]
        (size,) = struct.unpack_from(">H", content, at + 2)
        if marker in (0xC0, 0xC1, 0xC2):
            height_at = at + 5
        if marker == 0xDA:
            return height_at, at + 2 + size
        at += 2 + size
