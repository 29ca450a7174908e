"""Written files: what each format holds of pixels, depth, alpha and metadata, read by another library than the writer."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from rdsr.atomic import atomic_file, atomic_write
from rdsr.runtime import OptionError, OutputError
from rdsr.runtime.pictures.formats import WRITABLE, WriteOptions, check_fits, check_output, suffix_for
from rdsr.runtime.pictures.metadata import Metadata
from rdsr.runtime.pictures.reading import open_picture
from rdsr.runtime.pictures.writing import PictureWriter, encode
from rdsr.tests.conftest import picture

FULL = {"uint8": 255, "uint16": 65535, "float32": 1.0}
KINDS = {(): "grey", (2,): "grey + alpha", (3,): "RGB", (4,): "RGBA"}


def written(path: Path, pixels: np.ndarray, *, like: Path | None = None, lossless: bool = False, **options: Any) -> Path:
    """Encode pixels under this name, with the metadata of another file."""
    chosen = WriteOptions(**options)
    metadata = Metadata()
    if like is not None:
        with open_picture(like) as source:
            metadata = source.metadata()
    with atomic_file(path) as file:
        encode(pixels, pixels.shape[:2], check_output(path, chosen), chosen, metadata, file, str(path), lossless=lossless)
    return path


def read_elsewhere(path: Path) -> np.ndarray:
    """Decode with another library than libvips: tifffile, imagecodecs or Pillow."""
    if path.suffix == ".tif":
        return tifffile.imread(path)
    decode = {".png": imagecodecs.png_decode, ".avif": imagecodecs.avif_decode, ".webp": imagecodecs.webp_decode}
    if path.suffix in decode:
        return np.squeeze(decode[path.suffix](path.read_bytes()))
    return np.asarray(Image.open(path))


def smooth(channels: tuple[int, ...], dtype: str) -> np.ndarray:
    """24×32 without noise, so that lossy formats stay close."""
    y, x = np.mgrid[0:24, 0:32] / 32
    planes = np.stack([x, y, 1 - x, 0.25 + y / 2], -1)[..., : channels[0] if channels else 1]
    values = (planes if channels else planes[..., 0]) * FULL[dtype]
    return values.astype(dtype) if dtype == "float32" else np.rint(values).astype(dtype)


@pytest.mark.parametrize("channels", KINDS, ids=KINDS.values())
@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("name", WRITABLE)
def test_every_format_takes_every_kind(tmp_path: Path, name: str, dtype: str, channels: tuple[int, ...]) -> None:
    """The table of the README: depth and alpha as the format holds them, otherwise rounded and laid on white."""
    source, target = smooth(channels, dtype), WRITABLE[name]
    read = read_elsewhere(written(tmp_path / f"a{target.suffixes[0]}", source))
    values = source.astype(np.float64) / FULL[dtype]
    if channels in ((2,), (4,)) and not target.alpha:
        alpha = values[..., -1:]
        values = np.squeeze(values[..., :-1] * alpha + 1 - alpha)
    if name in ("webp", "avif") and values.ndim == 2:
        values = np.repeat(values[..., None], 3, 2)
    if name in ("webp", "avif") and values.shape[2] == 2:
        values = values[..., [0, 0, 0, 1]]
    kept = dtype if dtype in target.depths else "uint16" if dtype == "float32" and "uint16" in target.depths else "uint8"
    assert read.dtype == kept
    assert read.shape == values.shape
    full = 4095 if name == "avif" and kept == "uint16" else FULL[kept]
    assert np.abs(read / full - values).max() <= ({"jpg": 0.06, "webp": 0.15, "avif": 0.06}.get(name, 0.6 / 255))
    if name in ("png", "tif") and kept == dtype:
        assert np.array_equal(read, source)


@pytest.mark.parametrize("name", ["webp", "avif"])
def test_lossless_loses_nothing(tmp_path: Path, name: str) -> None:
    source = picture(24, 32, (4,))
    assert np.array_equal(read_elsewhere(written(tmp_path / f"a.{name}", source, lossless=True)), source)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(2,), (4,)])
def test_alpha_in_tiff_is_tagged_as_straight(tmp_path: Path, dtype: str, channels: tuple[int, ...]) -> None:
    with tifffile.TiffFile(written(tmp_path / "a.tif", picture(8, 9, channels, dtype))) as file:
        assert [int(kind) for kind in file.pages[0].extrasamples] == [2]


def test_quality_and_compression_change_the_size(tmp_path: Path) -> None:
    source = np.kron(picture(16, 16, (3,)), np.ones((16, 16, 1), np.uint8))
    for name, few, many in (
        ("a.jpg", {"quality": 40}, {"quality": 98}),
        ("a.webp", {"quality": 20}, {"quality": 98}),
        ("a.avif", {"quality": 20}, {"quality": 98}),
        ("a.png", {"compression": 9}, {"compression": 0}),
        ("a.tif", {"compression": 9}, {"compression": 0}),
    ):
        sizes = [written(tmp_path / name, source, **options).stat().st_size for options in (few, many)]
        assert sizes[0] < sizes[1], name


# -- metadata


def with_metadata(path: Path, size: tuple[int, int] = (8, 6), *, orientation: int = 6) -> Path:
    """A JPEG or PNG with profile, EXIF (camera, orientation, thumbnail), XMP and 300 dpi."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x0110], exif[0x013B] = "Camera 7", "Müller".encode()
    exif.get_ifd(0x8769)[0x9003] = "2026:11:26 08:00:00"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" note="hello"/></x:xmpmeta>'
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(smooth((3,), "uint8")[: size[1], : size[0]]).save(
        path, exif=exif.tobytes(), xmp=xmp, icc_profile=profile, dpi=(300, 300), quality=95
    )
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_metadata_is_kept_and_upright(tmp_path: Path, suffix: str) -> None:
    source = with_metadata(tmp_path / "in.jpg")
    target = written(tmp_path / f"out{suffix}", picture(16, 12, (3,)), like=source)
    with Image.open(source) as before, Image.open(target) as after:
        assert after.info["icc_profile"] == before.info["icc_profile"]
        xmp = after.info.get("xmp") or after.info.get("XML:com.adobe.xmp", "").encode() or after.tag_v2[700]
        assert b"hello" in xmp
        assert b'tiff:Orientation="1"' in xmp
        exif = after.getexif()
        assert exif.get(0x0112, 1) == 1
        if suffix != ".tif":  # libvips writes no EXIF directory into TIFF
            assert exif[0x0110] == "Camera 7"
            assert exif[0x013B].encode("latin-1") == "Müller".encode()
            assert exif.get_ifd(0x8769)[0x9003] == "2026:11:26 08:00:00"
        if suffix in (".png", ".jpg", ".tif"):
            assert round(after.info["dpi"][0]) == 300


def test_the_thumbnail_of_the_small_picture_is_dropped(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 12), (255, 0, 0)).save(thumbnail, "JPEG")
    data = thumbnail.getvalue()
    first = b"II*\0\x08\0\0\0" + (0).to_bytes(2, "little") + (14).to_bytes(4, "little")
    second = (3).to_bytes(2, "little")
    for tag, value in ((0x0103, 6), (0x0201, 56), (0x0202, len(data))):
        second += (
            tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        )
    exif = b"Exif\0\0" + first + second + bytes(4)
    exif += data if len(exif) == 62 else pytest.fail(f"the thumbnail would be at {len(exif) - 6}")
    Image.fromarray(smooth((3,), "uint8")).save(tmp_path / "in.jpg", exif=exif)
    assert data[:200] in (tmp_path / "in.jpg").read_bytes()
    target = written(tmp_path / "out.jpg", picture(16, 12, (3,)), like=tmp_path / "in.jpg")
    assert target.read_bytes().count(b"\xff\xd8\xff") == 1


def test_texts_of_a_png_are_kept(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Title", "A test")
    texts.add_text("Author", "Jürgen")
    texts.add_itxt("Comment", "grün, 绿")
    Image.fromarray(smooth((3,), "uint8")).save(tmp_path / "in.png", pnginfo=texts)
    with Image.open(written(tmp_path / "out.png", picture(8, 6, (3,)), like=tmp_path / "in.png")) as after:
        assert after.text["Title"] == "A test"
        assert after.text["Author"] == "Jürgen"
        assert after.text["Comment"] == "grün, 绿"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_profile_is_kept_at_16_bits(tmp_path: Path, suffix: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tifffile.imwrite(tmp_path / "in.tif", picture(8, 6, (3,), "uint16"), photometric="rgb", iccprofile=profile)
    target = written(tmp_path / f"out{suffix}", picture(16, 12, (3,), "uint16"), like=tmp_path / "in.tif")
    with open_picture(target) as after:
        assert after.header.dtype == "uint16"
        assert after.metadata().icc == profile


def test_a_profile_of_other_colours_is_left_out(tmp_path: Path) -> None:
    """A JPEG that goes from RGB to grey would otherwise carry a profile that viewers refuse."""
    source = with_metadata(tmp_path / "in.jpg", orientation=1)
    with Image.open(written(tmp_path / "out.jpg", picture(16, 12, ()), like=source)) as after:
        assert "icc_profile" not in after.info


# -- strips


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
@pytest.mark.parametrize("channels", KINDS, ids=KINDS.values())
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("size", [(150, 90), (61, 40)], ids=["whole", "reduced"])
def test_strips_give_the_bytes_of_the_whole(
    tmp_path: Path, name: str, channels: tuple[int, ...], dtype: str, size: tuple[int, int]
) -> None:
    pixels, options = picture(150, 90, channels, dtype), WriteOptions()
    target, nothing = check_output(tmp_path / name), Metadata()
    with atomic_file(tmp_path / name) as file:
        encode(pixels, size, target, options, nothing, file, name, lossless=False)
    with atomic_file(tmp_path / f"strips-{name}") as file:
        writer = PictureWriter(pixels.shape, pixels.dtype, size, target, options, nothing, file, name, lossless=False)
        for rows in np.split(pixels, [1, 40, 41, 149]):
            writer.put(rows)
        writer.finish()
    assert (tmp_path / name).read_bytes() == (tmp_path / f"strips-{name}").read_bytes()


def test_an_abandoned_writer_ends(tmp_path: Path) -> None:
    pixels = picture(500, 90, (3,))
    with atomic_file(tmp_path / "a.png") as file:
        writer = PictureWriter(
            pixels.shape, pixels.dtype, (500, 90), WRITABLE["png"], WriteOptions(), Metadata(), file, "a",
            lossless=False,
        )  # fmt: skip
        writer.put(pixels[:100])
        writer.abandon()


# -- names, options, and files that appear whole or not at all


def test_options_are_checked() -> None:
    for options in (
        {"quality": 0}, {"quality": 101}, {"quality": 1.5}, {"compression": 10}, {"scale": 0}, {"scale": float("nan")},
        {"scale": float("inf")}, {"format": "gif"}, {"lossless": True, "quality": 90},
    ):  # fmt: skip
        with pytest.raises(OptionError):
            WriteOptions(**options)


def test_outputs_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for path, words in (
        (tmp_path / "a.gif", "suffix"), (tmp_path / "a", "suffix"), (tmp_path / "folder.png", "folder"),
        (tmp_path / "pipe.png", "regular"), (tmp_path / f"{'x' * 300}.png", "too long"), (tmp_path / "a\0.png", "null"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=words):
            check_output(path)
    with pytest.raises(OutputError, match="loses"):
        check_output(tmp_path / "a.jpg", WriteOptions(lossless=True))
    for name, side in (("webp", 16384), ("jpg", 65501)):
        with pytest.raises(OutputError, match=str(side - 1)):
            check_fits(WRITABLE[name], 3, side, "a")
        check_fits(WRITABLE[name], 3, side - 1, "a")


def test_suffixes_follow_the_format() -> None:
    pairs = ((".JPG", None), (".gif", None), (".jpeg", "jpg"), (".png", "jpg"), ("", "tif"))
    assert [suffix_for(*pair) for pair in pairs] == [".JPG", ".png", ".jpeg", ".jpg", ".tif"]


def test_a_link_is_followed_and_a_mode_is_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to("elsewhere/real.png")
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("nameless", [True, False])
def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path, nameless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With file systems that have files without a name, and with others."""
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    (tmp_path / "a.png").write_bytes(b"old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def fail(how: Callable[[], None]) -> None:
        with atomic_file(tmp_path / "a.png") as file:
            file.write(b"half")
            how()

    with pytest.raises(OSError, match="No space left"):
        fail(full_disk)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full_disk)
            with pytest.raises(OutputError, match="No space left"):
                atomic_write(tmp_path / "a.png", b"new")
    with pytest.raises(ZeroDivisionError):
        fail(lambda: print(1 / 0))
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"
    atomic_write(tmp_path / "a.png", b"new")
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"new"


def test_before_commit_sees_the_whole_content(tmp_path: Path) -> None:
    seen = []
    with atomic_file(tmp_path / "a", lambda file: seen.append((file.seek(0), file.read(), os.listdir(tmp_path)))) as file:
        file.write(b"content")
    assert seen[0][1] == b"content"
    assert "a" not in seen[0][2]
