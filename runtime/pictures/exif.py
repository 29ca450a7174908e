"""The EXIF block of a result: that of its picture, changed in place where it speaks of pixels.

Nothing is moved, so the notes of cameras, which hold offsets of their own, stay readable. Source: Exif 2.32, CIPA DC-008.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["PREFIX", "of_result", "resolution"]

PREFIX = b"Exif\0\0"
"""What JPEG, and libvips, put before the block."""
_ORIENTATION, _DIRECTORY = 0x0112, 0x8769
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_RESOLUTIONS, _UNIT = (0x011A, 0x011B), 0x0128
_MILLIMETRES = {2: 25.4, 3: 10.0}
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_MOST_ENTRIES = 1024


def of_result(block: bytes, height: int, width: int) -> bytes:
    """The block without its prefix: upright, of the result's size, without thumbnail. Empty if it is damaged."""
    out = bytearray(block.removeprefix(PREFIX))
    order = {b"II": "<", b"MM": ">"}.get(bytes(out[:2]))
    if order is None:
        return b""
    try:
        (first,) = struct.unpack_from(order + "I", out, 4)
        for tag, place in _entries(out, order, first):
            if tag == _ORIENTATION:
                _put(out, order, place, 1)
            if tag == _DIRECTORY:
                (start,) = struct.unpack_from(order + "I", out, place)
                _put_sizes(out, order, start, height, width)
        _put_sizes(out, order, first, height, width)
        _drop_thumbnail(out, order, first)
    except struct.error:
        return b""
    return bytes(out)


def resolution(block: bytes) -> tuple[float, float] | None:
    """Pixels per millimetre, across and down; None if the block does not say them."""
    block = block.removeprefix(PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    found: dict[int, float] = {}
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for at in range(start + 2, start + 2 + 12 * min(count, _MOST_ENTRIES), 12):
            tag, kind = struct.unpack_from(order + "HH", block, at)
            if tag in _RESOLUTIONS and kind == _RATIONAL:
                above, below = struct.unpack_from(order + "II", block, struct.unpack_from(order + "I", block, at + 8)[0])
                found[tag] = above / max(below, 1)
            if tag == _UNIT and kind == _SHORT:
                (found[tag],) = struct.unpack_from(order + "H", block, at + 8)
    except struct.error:
        return None
    unit = _MILLIMETRES.get(int(found.get(_UNIT, 2)))
    if unit is None or not all(found.get(tag, 0) > unit for tag in _RESOLUTIONS):
        return None
    return found[_RESOLUTIONS[0]] / unit, found[_RESOLUTIONS[1]] / unit


def _entries(block: bytearray, order: str, start: int) -> Iterator[tuple[int, int]]:
    """(tag, offset of its value) of each entry of a directory whose value stands in the entry itself."""
    (count,) = struct.unpack_from(order + "H", block, start)
    for at in range(start + 2, start + 2 + 12 * min(count, _MOST_ENTRIES), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", block, at)
        if kind in (_SHORT, _LONG) and number == 1:
            yield tag, at + 8


def _put(block: bytearray, order: str, place: int, value: int) -> None:
    """Write a value as a 32-bit number, which any tag of a size may be, or as the 16 bits that orientations have."""
    (kind,) = struct.unpack_from(order + "H", block, place - 6)
    if kind == _SHORT and value < 2**16:
        struct.pack_into(order + "HH", block, place, value, 0)
    else:
        struct.pack_into(order + "H", block, place - 6, _LONG)
        struct.pack_into(order + "I", block, place, value)


def _put_sizes(block: bytearray, order: str, start: int, height: int, width: int) -> None:
    for tag, place in _entries(block, order, start):
        if tag in _WIDTHS or tag in _HEIGHTS:
            _put(block, order, place, width if tag in _WIDTHS else height)


def _drop_thumbnail(block: bytearray, order: str, first: int) -> None:
    """End the list of directories after the first, and blank the thumbnail that the second one points at."""
    (count,) = struct.unpack_from(order + "H", block, first)
    pointer = first + 2 + 12 * count
    (second,) = struct.unpack_from(order + "I", block, pointer)
    if second == 0:
        return
    struct.pack_into(order + "I", block, pointer, 0)
    places = dict(_entries(block, order, second))
    if _THUMBNAIL in places and _THUMBNAIL_BYTES in places:
        start, size = (struct.unpack_from(order + "I", block, places[tag])[0] for tag in (_THUMBNAIL, _THUMBNAIL_BYTES))
        end = min(start + size, len(block))
        if end == len(block) and start > pointer:
            del block[start:]
        elif pointer < start < end:
            block[start:end] = bytes(end - start)
