"""How a TIFF file stores its samples. Decoders assume some of it; here the tags are read and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import PictureError

__all__ = ["TiffPage", "check_tiff", "only_pillow", "page_count", "tiff_page"]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _EXTRA, _KIND = (
    256,
    257,
    258,
    259,
    262,
    277,
    284,
    338,
    339,
)
_STRIP_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 273, 279, 324, 325
_TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
"""TIFF's number of an unsigned type → NumPy's name."""
_MOST_PARTS = 2**22
"""Most strips or tiles of a page."""
_FEW = 64
"""Most values that are read of a tag that does not list strips or tiles."""
_LISTS = {_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES}
_UNCOMPRESSED, _YCBCR = 1, 6
_PILLOW_ONLY = {34925: "LZMA", 50000: "ZSTD"}
"""Compressions of TIFF that libvips' libtiff lacks."""
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50001}
"""Those that it has: none, CCITT, LZW, JPEG, Deflate, PackBits, WebP. It gives black pixels for others."""
_PHOTOMETRICS = {0, 1, 2, 3, 5, 6}
"""Grey from white or black, RGB, palette, CMYK, YCbCr."""


@dataclasses.dataclass(frozen=True)
class TiffPage:
    """How one page stores its samples."""

    width: int
    height: int
    bits: tuple[int, ...]
    """Bits of each sample."""
    compression: int
    photometric: int
    extra: tuple[int, ...]
    """Kinds of the samples beyond colour: 0 unknown, 1 associated (premultiplied) alpha, 2 straight alpha."""
    kinds: tuple[int, ...]
    """Number format of each sample: 1 unsigned, 2 signed, 3 floating point, 4 undefined."""
    planes: bool
    """Whether each channel is stored by itself."""
    tiled: bool
    big: bool
    """Whether the file is a BigTIFF."""
    little: bool
    """Whether its numbers have the low byte first."""
    whole: bool
    """Whether all parts that its size needs lie inside the file."""
    extra_at: int | None
    """Where the kind of the first extra sample, of 16 bits, is written in the file."""


def tiff_page(file: BinaryIO, page: int) -> TiffPage | None:
    """The tags of a page, counted from 0. None for a page that is not there, and for a damaged directory."""
    try:
        return _Directory(file).page(page)
    except (struct.error, ValueError, OverflowError, OSError, KeyError, IndexError):
        return None


def page_count(file: BinaryIO, most: int) -> int:
    """Number of pages, at least 1 and at most `most`. A damaged directory ends the list."""
    count = 0
    with contextlib.suppress(struct.error, ValueError, OverflowError, OSError):
        for _ in _Directory(file).pages():
            count += 1
            if count == most:
                break
    return max(1, count)


class _Directory:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(16)
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = head[2:4] in (b"+\0", b"\0+")
        self._offset = self._order + ("Q" if self._big else "I")
        (self._first,) = struct.unpack_from(self._offset, head, 8 if self._big else 4)

    def pages(self) -> Iterator[tuple[int, int]]:
        """(offset, number) of the entries of each page."""
        start, seen = self._first, set[int]()
        size, entry = (8, 20) if self._big else (2, 12)
        while start != 0 and start not in seen and start < self._size:
            seen.add(start)
            self._file.seek(start)
            (count,) = struct.unpack(self._order + ("Q" if self._big else "H"), self._file.read(size))
            if not 0 < count <= 65535:
                return
            yield start + size, count
            self._file.seek(start + size + count * entry)
            (start,) = struct.unpack(self._offset, self._file.read(8 if self._big else 4))

    def page(self, wanted: int) -> TiffPage | None:
        found = next(itertools.islice(self.pages(), wanted, None), None)
        if found is None:
            return None
        self._file.seek(found[0])
        return self._page(self._file.read(found[1] * (20 if self._big else 12)), found[0])

    def _page(self, entries: bytes, at: int) -> TiffPage:
        size, inline = (20, 8) if self._big else (12, 4)
        tags: dict[int, NDArray[np.uint64]] = {}
        extra_at = None
        for start in range(0, len(entries) - size + 1, size):
            tag, kind = struct.unpack_from(self._order + "HH", entries, start)
            (count,) = struct.unpack_from(self._offset, entries, start + 4)
            if tag in tags or kind not in _TYPES or not 0 < count <= (_MOST_PARTS if tag in _LISTS else _FEW):
                continue
            dtype = np.dtype(self._order + _TYPES[kind])
            place = at + start + size - inline
            content = entries[start + size - inline : start + size]
            if count * dtype.itemsize > inline:
                (place,) = struct.unpack(self._offset, content)
                self._file.seek(place)
                content = self._file.read(count * dtype.itemsize)
            tags[tag] = np.frombuffer(content, dtype, count).astype(np.uint64)
            if tag == _EXTRA and kind == 3:
                extra_at = place

        def one(tag: int, default: int) -> int:
            return int(tags[tag][0]) if tag in tags else default

        def each(tag: int) -> tuple[int, ...]:
            values = [int(value) for value in tags.get(tag, [1])]
            return tuple(values if len(values) == samples else values[:1] * samples)

        samples = max(1, min(one(_SAMPLES, 1), _FEW))
        page = TiffPage(
            one(_WIDTH, 0),
            one(_HEIGHT, 0),
            each(_BITS),
            one(_COMPRESSION, _UNCOMPRESSED),
            one(_PHOTOMETRIC, 1),
            tuple(int(value) for value in tags.get(_EXTRA, [])),
            each(_KIND),
            samples > 1 and one(_PLANES, 1) == 2,
            _TILE_WIDTH in tags,
            self._big,
            self._order == "<",
            True,
            extra_at,
        )
        return dataclasses.replace(page, whole=self._is_whole(page, tags))

    def _is_whole(self, page: TiffPage, tags: dict[int, NDArray[np.uint64]]) -> bool:
        """Whether as many strips or tiles as the size needs lie inside the file, and uncompressed ones are long enough."""
        if page.tiled:
            wide, high = int(tags[_TILE_WIDTH][0]), int(tags[_TILE_HEIGHT][0])
            starts, sizes = tags[_TILES], tags.get(_TILE_SIZES, tags.get(_STRIP_SIZES))
        else:
            wide, high = page.width, min(int(tags.get(_STRIP_ROWS, [page.height])[0]), page.height)
            starts, sizes = tags[_STRIPS], tags.get(_STRIP_SIZES)
        if min(page.width, page.height, wide, high) < 1 or sizes is None:
            return False
        down, across = -(-page.height // high), -(-page.width // wide)
        planes = len(page.bits) if page.planes else 1
        needed = down * across * planes
        starts, sizes = starts[:needed], sizes[:needed]
        if len(starts) < needed or len(sizes) < needed or int(sizes.min()) == 0:
            return False
        if int((starts + sizes).max()) > self._size or int(starts.max()) > self._size:
            return False
        if page.compression != _UNCOMPRESSED or page.photometric == _YCBCR:
            return True
        row = -(-wide * sum(page.bits) // (8 * planes))
        if page.tiled:
            return int(sizes.min()) >= row * high
        last = page.height - (down - 1) * high
        rows = np.tile(np.array([*[high] * (down - 1), last], np.uint64), planes)
        return bool((sizes >= rows * np.uint64(row)).all())


def only_pillow(page: TiffPage) -> bool:
    """Whether libvips lacks a compression or depth that Pillow may have."""
    return page.compression in _PILLOW_ONLY or set(page.bits) == {12}


def check_tiff(page: TiffPage, name: str, *, pillow: bool) -> None:
    """Raise `PictureError`, which says what it is, for samples that the decoder would not get right."""
    samples, (depth, *others), kinds = len(page.bits), page.bits, set(page.kinds)
    what = None
    if page.compression not in _COMPRESSIONS and not pillow:
        what = f"compression number {page.compression}"
    elif page.photometric not in _PHOTOMETRICS:
        what = f"colours of kind {page.photometric} (PhotometricInterpretation)"
    elif set(others) - {depth}:
        what = f"samples of different depths ({', '.join(map(str, page.bits))} bits)"
    elif kinds - {1, 3, 4} or len(kinds) > 1:
        what = "signed, complex or mixed samples"
    elif 3 in kinds and depth not in (16, 32):
        what = f"floating-point samples of {depth} bits"
    elif 3 not in kinds and depth not in (1, 2, 4, 8, 12, 16):
        what = f"whole-number samples of {depth} bits"
    elif page.photometric == 0 and 3 in kinds:
        what = "floating-point samples of which 0 is white"
    elif depth < 8 and samples > 1:
        what = f"{samples} samples of {depth} bits a pixel"
    elif page.photometric in (2, 6) and samples < 3:
        what = f"{samples} samples a pixel in colour"
    elif pillow:
        packing = _PILLOW_ONLY.get(page.compression)
        deep = depth > 8 and (samples > 1 or packing is not None or not page.little or page.photometric == 0)
        if page.big or page.planes or {0, 1} & set(page.extra) or 3 in kinds or deep or page.photometric not in (0, 1, 2, 3):
            what = f"{samples} × {depth} bits{f' with {packing} compression' if packing else ''} in this layout"
    elif page.planes and (page.tiled or samples == 2 or (depth == 16 and 3 in kinds)):
        # libvips 8.18 refuses tiles, and of the others it decodes the first row of each strip alone.
        what = f"separate planes of {samples} × {depth} bits in {'tiles' if page.tiled else 'strips'}"
    if what is not None:
        raise PictureError(f"{name} is a TIFF file with {what}, which is not supported")
    if not page.whole:
        raise PictureError(f"{name} is damaged or truncated: parts of its pixels are not in the file")
