"""A TIFF writer for tests, after the TIFF 6.0 and BigTIFF specifications: each layout that a file can have, byte by byte."""

from __future__ import annotations

import dataclasses
import lzma
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np

__all__ = ["COMPRESSIONS", "DEPTHS", "LAYOUTS", "ORDERS", "Layout", "tiff"]

COMPRESSIONS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (1, bytes),
    "lzw": (5, lambda data: bytes(imagecodecs.lzw_encode(data))),
    "deflate": (8, zlib.compress),
    "packbits": (32773, lambda data: bytes(imagecodecs.packbits_encode(data))),
    "zstd": (50000, lambda data: bytes(imagecodecs.zstd_encode(data))),
    "lzma": (34925, lzma.compress),
}
"""Name → number in the file, and the encoder."""
DEPTHS = {
    "u8": ("u1", 8, 1), "u12": ("u2", 12, 1), "u16": ("u2", 16, 1), "u32": ("u4", 32, 1), "i16": ("i2", 16, 2),
    "f16": ("f2", 16, 3), "f32": ("f4", 32, 3), "f64": ("f8", 64, 3),
}  # fmt: skip
"""Name → NumPy's dtype, bits of a sample, its SampleFormat."""
LAYOUTS = ("strips", "tiles", "planes", "tiled planes")
ORDERS = {"little": ("<", False), "big": (">", False), "BigTIFF little": ("<", True), "BigTIFF big": (">", True)}
"""Name → letter of `struct`, whether it is a BigTIFF."""
_ROWS, _TILE = 5, (16, 32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file stores its samples."""

    bits: int = 8
    sample_format: int | None = 1
    """1 unsigned, 2 signed, 3 floating point, 5 complex; None writes no tag."""
    photometric: int = 1
    """0 min-is-white, 1 min-is-black, 2 RGB, 3 palette, 5 CMYK, 8 CIELab."""
    extra: tuple[int, ...] = ()
    """ExtraSamples: 0 unspecified, 1 associated alpha, 2 straight alpha."""
    layout: str = "strips"
    compression: str = "none"
    predictor: int = 1
    order: str = "little"
    colours: tuple[int, ...] = ()
    """ColorMap: all reds, all greens, all blues, of 16 bits."""
    tags: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """Further tags, or other values for those that are written: (tag, TIFF's number of the type, values)."""
    without: tuple[int, ...] = ()
    """Tags that are left out."""


def tiff(samples: np.ndarray, layout: Layout) -> bytes:
    """A file of one page. `samples`: H×W or H×W×N, of a dtype that holds `layout.bits`."""
    return pages([(samples, layout)])


def pages(content: list[tuple[np.ndarray, Layout]]) -> bytes:
    """A file of several pages, all of one byte order."""
    order, big = ORDERS[content[0][1].order]
    out = bytearray(b"II" if order == "<" else b"MM")
    out += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    link = 8 if big else 4  # where the offset of the next directory belongs
    for samples, layout in content:
        link = _page(out, samples if samples.ndim == 3 else samples[:, :, None], layout, order, big, link)
    return bytes(out)


def _page(out: bytearray, samples: np.ndarray, layout: Layout, order: str, big: bool, link: int) -> int:
    height, width, channels = samples.shape
    tiled, planar = "tile" in layout.layout, "planes" in layout.layout
    offsets, counts = [], []
    for plane in np.split(samples, channels, axis=2) if planar else [samples]:
        for segment in _tiles(plane) if tiled else _strips(plane):
            data = _encoded(segment, layout, order)
            offsets.append(len(out))
            counts.append(len(data))
            out += data
    tags = {
        256: (4, (width,)), 257: (4, (height,)), 258: (3, (layout.bits,) * channels),
        259: (3, (COMPRESSIONS[layout.compression][0],)), 262: (3, (layout.photometric,)), 277: (3, (channels,)),
        284: (3, (2 if planar else 1,)), (324 if tiled else 273): (4, tuple(offsets)),
        (325 if tiled else 279): (4, tuple(counts)),
    }  # fmt: skip
    if tiled:
        tags |= {322: (4, (_TILE[1],)), 323: (4, (_TILE[0],))}
    else:
        tags |= {278: (4, (_ROWS,))}
    if layout.predictor != 1:
        tags[317] = (3, (layout.predictor,))
    if layout.colours:
        tags[320] = (3, layout.colours)
    if layout.extra:
        tags[338] = (3, layout.extra)
    if layout.sample_format is not None:
        tags[339] = (3, (layout.sample_format,) * channels)
    tags |= {tag: (kind, values) for tag, kind, values in layout.tags}
    return _directory(out, {tag: tags[tag] for tag in sorted(tags) if tag not in layout.without}, order, big, link)


def _directory(out: bytearray, tags: dict[int, tuple[int, tuple[int, ...]]], order: str, big: bool, link: int) -> int:
    """Append the directory, and set the offset at `link` to it. Returns where the next link is."""
    word = order + ("Q" if big else "I")
    inline = struct.calcsize(word)
    entries = b""
    for tag, (kind, values) in tags.items():
        content = struct.pack(f"{order}{len(values)}{ {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind] }", *values)
        if len(content) > inline:
            out += bytes(len(out) % 2)
            where = struct.pack(word, len(out))
            out += content
            content = where
        entries += struct.pack(order + "HH", tag, kind) + struct.pack(word, len(values)) + content.ljust(inline, b"\0")
    out += bytes(len(out) % 2)
    struct.pack_into(word, out, link, len(out))
    out += struct.pack(order + ("Q" if big else "H"), len(tags)) + entries
    out += bytes(inline)
    return len(out) - inline


def _strips(plane: np.ndarray) -> list[np.ndarray]:
    return [plane[top : top + _ROWS] for top in range(0, plane.shape[0], _ROWS)]


def _tiles(plane: np.ndarray) -> list[np.ndarray]:
    rows, columns = (-(-side // tile) * tile for side, tile in zip(plane.shape, _TILE, strict=False))
    wide = np.pad(plane, ((0, rows - plane.shape[0]), (0, columns - plane.shape[1]), (0, 0)), mode="edge")
    return [
        wide[top : top + _TILE[0], left : left + _TILE[1]]
        for top in range(0, rows, _TILE[0])
        for left in range(0, columns, _TILE[1])
    ]


def _encoded(segment: np.ndarray, layout: Layout, order: str) -> bytes:
    rows = _rows(segment, layout, order)
    encode = COMPRESSIONS[layout.compression][1]
    if layout.compression == "packbits":  # the specification packs each row by itself
        return b"".join(encode(row) for row in rows)
    return encode(b"".join(rows))


def _rows(segment: np.ndarray, layout: Layout, order: str) -> list[bytes]:
    flat = segment.reshape(segment.shape[0], -1)
    if layout.bits % 8:  # packed, the highest bit first, each row from a new byte on
        shifts = np.arange(layout.bits - 1, -1, -1, dtype=np.uint32)
        bits = (flat[:, :, None].astype(np.uint32) >> shifts & 1).astype(np.uint8)
        return [row.tobytes() for row in np.packbits(bits.reshape(len(flat), -1), axis=1)]
    channels = segment.shape[2]
    if layout.predictor == 2:  # differences between neighbours, modulo 2**bits
        whole = segment.view(f"u{segment.itemsize}")
        flat = np.concatenate([whole[:, :1], whole[:, 1:] - whole[:, :-1]], axis=1).reshape(flat.shape)
    if layout.predictor == 3:  # Adobe's Technical Note 3: bytes by significance, the highest first, then their differences
        parts = flat.astype(flat.dtype.newbyteorder(">")).view(np.uint8).reshape(*flat.shape, flat.itemsize)
        shuffled = parts.transpose(0, 2, 1).reshape(len(flat), -1)
        shuffled[:, channels:] -= shuffled[:, :-channels].copy()
        return [row.tobytes() for row in shuffled]
    return [row.tobytes() for row in flat.astype(flat.dtype.newbyteorder(order))]
