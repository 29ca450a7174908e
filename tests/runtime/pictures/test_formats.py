"""Picture files: formats, bit depths, orientation, profiles, transparency, and damage."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from rdsr.runtime import OutputError, PictureError
from rdsr.runtime.pictures.formats import PictureFile, read_picture, write_picture

RNG = np.random.default_rng(0)


def pixels(dtype: str, channels: tuple[int, ...]) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (13, 9, *channels), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp"])
@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_lossless_round_trip(tmp_path: Path, suffix: str, channels: tuple[int, ...]) -> None:
    if suffix == ".bmp" and channels == (4,):
        channels = (3,)  # BMP holds no alpha here
    source = pixels("uint8", channels)
    write_picture(tmp_path / f"a{suffix}", PictureFile(source))
    assert np.array_equal(read_picture(tmp_path / f"a{suffix}").pixels, source)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, suffix: str, channels: tuple[int, ...]) -> None:
    source = pixels("uint16", channels)
    write_picture(tmp_path / f"a{suffix}", PictureFile(source))
    read = read_picture(tmp_path / f"a{suffix}").pixels
    assert read.dtype == np.uint16
    assert np.array_equal(read, source)


def test_float_tiff(tmp_path: Path) -> None:
    source = RNG.random((6, 5, 3), dtype=np.float32)
    write_picture(tmp_path / "a.tiff", PictureFile(source))
    assert np.array_equal(read_picture(tmp_path / "a.tiff").pixels, source)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_are_close_and_rgb_not_bgr(tmp_path: Path, suffix: str) -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    source[:, :, 0] = 220
    write_picture(tmp_path / f"a{suffix}", PictureFile(source))
    read = read_picture(tmp_path / f"a{suffix}").pixels
    assert np.abs(read.astype(int) - source).max() <= 6


def test_sixteen_bits_into_jpeg_become_eight(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", PictureFile(np.full((16, 16, 3), 0x8080, np.uint16)))
    read = read_picture(tmp_path / "a.jpg").pixels
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - 0x80).max() <= 2


def test_alpha_into_jpeg_goes_onto_white(tmp_path: Path) -> None:
    source = np.zeros((16, 16, 4), np.uint8)
    write_picture(tmp_path / "a.jpg", PictureFile(source))
    assert read_picture(tmp_path / "a.jpg").pixels.min() >= 250


def plain_tiff(source: np.ndarray, orientation: int) -> bytes:
    """A one-strip 16-bit RGB TIFF, by hand: neither library here writes one with an orientation."""
    height, width, _ = source.shape
    data = source.astype("<u2").tobytes()
    bits_at = 8 + len(data)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
            (274, 3, 1, orientation), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    bits = struct.pack("<HHH", 16, 16, 16)
    return b"II*\0" + struct.pack("<I", bits_at + len(bits)) + data + bits + directory


@pytest.mark.parametrize("kind", ["png", "webp", "tif", "tif16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    source = pixels("uint16" if kind == "tif16" else "uint8", (3,))
    path = tmp_path / ("a.tif" if kind == "tif16" else f"a.{kind}")
    if kind == "tif16":
        path.write_bytes(plain_tiff(source, orientation))
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if kind == "webp" else {}
        Image.fromarray(source).save(path, exif=exif, **options)
    read = read_picture(path).pixels
    wanted = {
        1: source,
        2: source[:, ::-1],
        3: source[::-1, ::-1],
        4: source[::-1],
        5: source.transpose(1, 0, 2),
        6: np.rot90(source, -1),
        7: source[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(source),
    }[orientation]
    assert np.array_equal(read, wanted)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_icc_profile_is_kept(tmp_path: Path, suffix: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_picture(tmp_path / f"a{suffix}", PictureFile(pixels("uint8", (3,)), profile))
    assert read_picture(tmp_path / f"a{suffix}").icc == profile


def test_broken_exif_costs_the_orientation_only(tmp_path: Path) -> None:
    source = pixels("uint8", (3,))
    Image.fromarray(source).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0")
    assert np.array_equal(read_picture(tmp_path / "a.png").pixels, source)


def test_integers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[70000, 5], [6, 7]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match="16 bits"):
        read_picture(tmp_path / "a.tif")


def test_other_formats_do_not_slip_in_under_a_known_suffix(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.hdr"), RNG.random((4, 4, 3), dtype=np.float32))
    (tmp_path / "a.hdr").rename(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a\.png"):
        read_picture(tmp_path / "a.png")


def test_palette_transparency_becomes_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    read = read_picture(tmp_path / "a.png").pixels
    assert read.shape == (3, 4, 4)
    assert read[0, 0, 3] == 0
    assert read[2, 3].tolist() == [10, 20, 30, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_other_modes_are_read(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    Image.new(mode, (5, 4)).save(tmp_path / f"a{suffix}")
    read = read_picture(tmp_path / f"a{suffix}").pixels
    assert read.shape[:2] == (4, 5)
    assert read.dtype == np.uint8


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@pytest.mark.parametrize("keep", [8, 60, 0.5, 0.9])
def test_truncated_png_is_refused(tmp_path: Path, depth: str, keep: float) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels(depth, (3,)))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(PictureError, match=r"a\.png"):
        read_picture(path)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif", ".bmp"])
def test_other_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, PictureFile(RNG.integers(0, 255, (80, 80, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(PictureError, match=path.name):
        read_picture(path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.png", b""), ("text.png", b"hello, this is no picture at all"), ("zero.png", bytes(5000))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PictureError, match=name):
            read_picture(tmp_path / name)
    with pytest.raises(PictureError, match="No such file"):
        read_picture(tmp_path / "none.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "a.gif")
    with pytest.raises(PictureError, match="GIF"):
        read_picture(tmp_path / "a.gif")


def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(PictureError, match="pixels"):
        read_picture(tmp_path / "bomb.png")


def test_outputs_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    write_picture(target, PictureFile(pixels("uint8", (3,))))
    before = target.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"):
        write_picture(target, PictureFile(pixels("uint8", (3,))))
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_unwritable_outputs_are_named(tmp_path: Path) -> None:
    source = PictureFile(pixels("uint8", (3,)))
    (tmp_path / "file").touch()
    for path, word in (
        (tmp_path / "a.gif", "suffix"),
        (tmp_path / "file" / "a.png", "cannot write"),
        (Path("/proc/a.png"), "cannot write"),
    ):
        with pytest.raises(OutputError, match=word):
            write_picture(path, source)
    with pytest.raises(OutputError, match="16383"):
        write_picture(tmp_path / "a.webp", PictureFile(np.zeros((1, 20000, 3), np.uint8)))
