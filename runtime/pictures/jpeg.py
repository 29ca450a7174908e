"""The markers of JPEG files: where the scans end, whether all of them are there; segments with resolution and EXIF.

Source: ITU-T T.81, annexes B and G.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

__all__ = ["END", "HEADER_BYTES", "Scans", "exif_segment", "jfif_segment", "scans_of"]

END = b"\xff\xd9"
"""The marker at the end of a picture."""
HEADER_BYTES = 2
"""Bytes before the first segment."""
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
"""A marker within a scan: neither an escaped 0xFF nor a restart."""
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_SCAN, _END, _INTERVAL = 0xDA, 0xD9, 0xDD
_COEFFICIENTS = 64


class Scans(NamedTuple):
    """The compressed data of a picture."""

    whole: bool
    """Whether every coefficient is sent to its last bit by some scan, and no restart marker is missing.

    What follows the last marker may be cut.
    """
    end: int
    """Where the data ends: offset of the end marker, or the length of a file that has none."""
    ended: bool
    """Whether there is an end marker."""


def scans_of(content: bytes) -> Scans:
    """Follow the markers of a file up to its end marker."""
    frame, at = _Frame(), HEADER_BYTES
    while (found := _MARKER.search(content, at)) is not None:
        marker, start = found[1][0], found.end()
        if marker == _END:
            frame.end_scan(content, at, found.start())
            return Scans(frame.whole, found.start(), True)
        if marker in (0x01, 0xD8) or start + 2 > len(content):
            at = start
            continue
        frame.end_scan(content, at, found.start())
        (size,) = struct.unpack_from(">H", content, start)
        frame.segment(marker, content[start + 2 : start + size])
        at = start + size
    frame.end_scan(content, at, len(content))
    return Scans(frame.whole, len(content), False)


class _Frame:
    """What the scans have sent so far."""

    def __init__(self) -> None:
        self._height = self._width = self._interval = 0
        self._factors: dict[int, tuple[int, int]] = {}
        """Component → its samples across and down in a unit of all components."""
        self._bits: dict[int, list[int]] = {}
        """Component → the lowest bit that is sent of each coefficient."""
        self._restarts: int | None = None
        """Restart markers of the present scan; None outside scans."""
        self._right = True

    @property
    def whole(self) -> bool:
        return self._right and bool(self._bits) and not any(low for lows in self._bits.values() for low in lows)

    def segment(self, marker: int, body: bytes) -> None:
        if marker in _FRAMES and len(body) >= 6:
            self._height, self._width = struct.unpack_from(">HH", body, 1)
            parts = [body[at : at + 3] for at in range(6, 6 + 3 * body[5], 3)]
            self._factors = {part[0]: (part[1] >> 4, part[1] & 15) for part in parts if len(part) == 3}
            self._bits = {number: [99] * _COEFFICIENTS for number in self._factors}
        elif marker == _INTERVAL and len(body) >= 2:
            (self._interval,) = struct.unpack_from(">H", body)
        elif marker == _SCAN and body and len(body) >= 4 + 2 * body[0]:
            self._begin_scan(body[1 : 1 + 2 * body[0] : 2], *body[1 + 2 * body[0] : 4 + 2 * body[0]])

    def _begin_scan(self, components: bytes, first: int, last: int, bits: int) -> None:
        for number in components:
            if number in self._bits:
                for coefficient in range(first, min(last, _COEFFICIENTS - 1) + 1):
                    self._bits[number][coefficient] = bits & 15
        self._restarts = max(0, -(-self._units(components) // self._interval) - 1) if self._interval else 0

    def _units(self, components: bytes) -> int:
        """Units that a scan is made of: blocks of one component, or a block of each sample of several."""
        across, down = (max((pair[axis] for pair in self._factors.values()), default=1) or 1 for axis in (0, 1))
        wide, high = 8 * across, 8 * down
        if len(components) == 1 and components[0] in self._factors:
            own = self._factors[components[0]]
            width, height = -(-self._width * own[0] // across), -(-self._height * own[1] // down)
            return -(-width // 8) * -(-height // 8)
        return -(-self._width // wide) * -(-self._height // high)

    def end_scan(self, content: bytes, start: int, end: int) -> None:
        """Count the restart markers of a scan that has ended."""
        if self._restarts is not None:
            self._right &= len(_RESTART.findall(content, start, end)) == self._restarts
            self._restarts = None


def jfif_segment(across: float, down: float) -> bytes:
    """The segment that says the resolution, in pixels per millimetre. Source: JFIF 1.02."""
    inches = (min(max(round(each * 25.4), 1), 65535) for each in (across, down))
    return b"\xff\xe0\0\x10JFIF\0\1\2\1" + struct.pack(">HH", *inches) + bytes(2)


def exif_segment(block: bytes) -> bytes:
    """The segment that holds an EXIF block, its prefix included; empty for one that no segment can hold."""
    return b"" if len(block) > 65533 else b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
