"""EXIF blocks, and the markers of JPEG and chunks of WebP files that hold them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rdsr.runtime.pictures import exif
from rdsr.runtime.pictures.jpeg import scans_of
from rdsr.runtime.pictures.reading import open_picture
from rdsr.runtime.pictures.webp import is_lossless, with_exif
from rdsr.tests.runtime.pictures.files import encoded, scene

ARTIST, ORIENTATION, EXIF_DIRECTORY, MAKER_NOTE = 0x013B, 0x0112, 0x8769, 0x927C


def block(order: str = "<", *, thumbnail: bytes = b"", middle: bool = False) -> bytes:
    """An EXIF block with a non-ASCII artist, a wrong orientation, sizes, a maker note and a thumbnail."""
    artist, note = "Müller".encode() + b"\0", b"offsets inside: \x01\x02\x03\x04"
    entries, sub = 3, 4
    sub_at = 8 + 2 + 12 * entries + 4
    data_at = sub_at + 2 + 12 * sub + 4
    second_at = data_at + len(artist) + len(note)
    thumb_at = second_at + 2 + 12 * 2 + 4

    def entry(tag: int, kind: int, count: int, value: int) -> bytes:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        return struct.pack(order + "HHI", tag, kind, count) + packed

    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    out += struct.pack(order + "H", entries) + entry(ARTIST, 2, len(artist), data_at) + entry(ORIENTATION, 3, 1, 6)
    out += entry(EXIF_DIRECTORY, 4, 1, sub_at) + struct.pack(order + "I", second_at if thumbnail else 0)
    out += struct.pack(order + "H", sub) + entry(MAKER_NOTE, 7, len(note), data_at + len(artist))
    out += entry(0xA002, 3, 1, 8) + entry(0xA003, 4, 1, 6) + entry(0xA217, 3, 1, 2) + struct.pack(order + "I", 0)
    out += artist + note
    out += struct.pack(order + "H", 2) + entry(0x0201, 4, 1, thumb_at) + entry(0x0202, 4, 1, len(thumbnail)) + bytes(4)
    return out + thumbnail + (b"behind" if middle else b"")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("middle", [False, True])
def test_only_what_speaks_of_pixels_changes(order: str, middle: bool) -> None:
    thumbnail = b"\xff\xd8\xff" + b"small picture" * 5
    source = block(order, thumbnail=thumbnail, middle=middle)
    changed = exif.of_result(exif.PREFIX + source, 70_000, 32)
    assert thumbnail not in changed
    assert "Müller".encode() in changed
    assert b"offsets inside: \x01\x02\x03\x04" in changed
    assert changed.index(b"offsets") == source.index(b"offsets"), "nothing moves"
    read = Image.Exif()
    read.load(exif.PREFIX + changed)
    assert read[ORIENTATION] == 1
    details = read.get_ifd(EXIF_DIRECTORY)
    assert (details[0xA002], details[0xA003], details[0xA217]) == (32, 70_000, 2)
    assert not read.get_ifd(1)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_damaged_blocks_do_no_harm(start: bytes, place: int, value: int) -> None:
    whole = bytearray(block(thumbnail=b"small picture"))
    if place < len(whole):
        whole[place] = value
    for content in (start, b"II*\0" + start, bytes(whole), bytes(whole[:place])):
        assert isinstance(exif.of_result(content, 10, 10), bytes)


def test_markers_say_whether_all_scans_are_there() -> None:
    picture = scene(64, 80)
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}):
        content = encoded(picture, "JPEG", quality=90, **options)
        assert scans_of(content) == (True, len(content) - 2, True)
        assert scans_of(content[:-2]) == (True, len(content) - 2, False)
        assert scans_of(content + b"trailer\xff\xda\xff\xd9").end == len(content) - 2
    progressive = encoded(picture, "JPEG", quality=90, progressive=True)
    starts = [at for at in range(len(progressive)) if progressive[at : at + 2] == b"\xff\xda"]
    assert len(starts) > 4
    assert [scans_of(progressive[:start]).whole for start in starts[1:]] == [False] * (len(starts) - 1)


@given(st.binary(max_size=400))
def test_markers_of_garbage_are_followed_to_an_end(content: bytes) -> None:
    assert scans_of(b"\xff\xd8" + content).end <= len(content) + 2


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("profile", [b"", b"any"])
def test_webp_takes_an_exif_block(channels: int, lossless: bool, profile: bytes) -> None:
    """With and without an extended header; odd lengths are padded."""
    content = encoded(scene(21, 33, channels), "WEBP", lossless=lossless, icc_profile=profile)
    file = io.BytesIO(content)
    assert is_lossless(file) == lossless
    with_exif(file, block() + b"x", 21, 33)
    changed = file.getvalue()
    assert struct.unpack_from("<I", changed, 4) == (len(changed) - 8,)
    after = Image.open(io.BytesIO(changed))
    assert after.getexif()[ORIENTATION] == 6
    assert after.mode == ("RGBA" if channels == 4 else "RGB")
    assert np.array_equal(np.asarray(after), np.asarray(Image.open(io.BytesIO(content))))
    with open_picture(changed) as picture:
        assert picture.metadata().exif
        assert picture.turned
