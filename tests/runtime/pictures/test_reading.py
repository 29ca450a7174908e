"""Picture files of every format but TIFF: their pixels, their headers, and what is refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from rdsr.runtime import PictureError
from rdsr.runtime.pictures.reading import Header, PictureFile, open_picture, read_picture
from rdsr.tests.runtime.pictures.files import SIGNATURE, bmp, chunk, chunks, encoded, jpeg_parts, mended, png, scene

HEIGHT, WIDTH = 23, 37
RNG = np.random.default_rng(0)


def read(tmp_path: Path, content: bytes, suffix: str) -> PictureFile:
    """Read these bytes as a file, and see that header, whole picture and strips agree."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    picture = read_picture(path)
    assert picture.header.shape == picture.pixels.shape
    assert picture.header.dtype == picture.pixels.dtype.name
    assert picture.pixels.dtype.name in ("uint8", "uint16", "float32")
    with open_picture(content) as again:
        assert again.header == picture.header
        assert np.array_equal(again.pixels(), picture.pixels)
    if picture.header.format != "bmp":
        with open_picture(path) as again:
            again.complete()
            assert np.array_equal(np.concatenate(list(again.strips(5))), picture.pixels)
    return picture


def refuse(tmp_path: Path, content: bytes, suffix: str, words: str = "") -> str:
    """See that these bytes are refused, as a file and in memory, in a sentence that names the file."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=words) as caught:
        read_picture(path)
    assert path.name in str(caught.value)
    assert " at 0x" not in str(caught.value)
    with pytest.raises(PictureError, match=words), open_picture(content) as picture:
        picture.pixels()
    return str(caught.value)


def whole_range(channels: int, bits: int) -> np.ndarray:
    """H×W×C samples of 0 … 2**bits − 1, as uint16."""
    samples = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    samples[0, :2] = [[0], [2**bits - 1]]
    return samples


def full(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples of 0 … 2**bits − 1, scaled to the whole range of uint8 or uint16."""
    return samples.astype(np.uint16) if bits == 16 else np.rint(samples * (255 / (2**bits - 1))).astype(np.uint8)


# -- PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_grey(tmp_path: Path, bits: int, interlaced: bool) -> None:
    samples = whole_range(1, bits)[:, :, 0]
    picture = read(tmp_path, png(samples, bits, 0, interlaced=interlaced), ".png")
    assert np.array_equal(picture.pixels, full(samples, bits))
    assert picture.header.in_strips is not interlaced


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_grey_with_a_transparent_level(tmp_path: Path, bits: int) -> None:
    samples = whole_range(1, bits)[:, :, 0]
    level = int(samples[3, 4])
    picture = read(tmp_path, png(samples, bits, 0, before=chunk(b"tRNS", struct.pack(">H", level))), ".png")
    top = 65535 if bits == 16 else 255
    assert picture.pixels.shape == (HEIGHT, WIDTH, 2)
    assert np.array_equal(picture.pixels[:, :, 0], full(samples, bits))
    assert np.array_equal(picture.pixels[:, :, 1], np.where(samples == level, 0, top))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [2, 4, 6])
def test_png_colour_and_alpha(tmp_path: Path, bits: int, colour: int, interlaced: bool) -> None:
    samples = whole_range({2: 3, 4: 2, 6: 4}[colour], bits)
    picture = read(tmp_path, png(samples, bits, colour, interlaced=interlaced), ".png")
    assert np.array_equal(picture.pixels, full(samples, bits))


@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_a_transparent_colour(tmp_path: Path, bits: int) -> None:
    samples = whole_range(3, bits)
    samples[5:9, 5:9] = samples[5, 5]
    key = struct.pack(">HHH", *samples[5, 5].tolist())
    picture = read(tmp_path, png(samples, bits, 2, before=chunk(b"tRNS", key)), ".png")
    top = 65535 if bits == 16 else 255
    assert np.array_equal(picture.pixels[:, :, :3], full(samples, bits))
    assert np.array_equal(picture.pixels[:, :, 3], np.where((samples == samples[5, 5]).all(axis=2), 0, top))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_palette(tmp_path: Path, bits: int, transparent: bool) -> None:
    palette = RNG.integers(0, 256, (2**bits, 3), np.uint8)
    alphas = RNG.integers(0, 256, 2**bits - 1, np.uint8)  # entries beyond the table are opaque
    indices = whole_range(1, bits)[:, :, 0]
    before = chunk(b"PLTE", palette.tobytes()) + (chunk(b"tRNS", alphas.tobytes()) if transparent else b"")
    picture = read(tmp_path, png(indices, bits, 3, before=before), ".png")
    wanted = palette[indices]
    if transparent:
        wanted = np.dstack([wanted, np.append(alphas, 255).astype(np.uint8)[indices]])
    assert np.array_equal(picture.pixels, wanted)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
def test_png_with_much_text(tmp_path: Path, kind: bytes) -> None:
    """1.2 MB of text, compressed where the kind allows it."""
    words = b"a long story " * 92_000
    body = {
        b"zTXt": b"parameters\0\0" + zlib.compress(words),
        b"iTXt": b"parameters\0\1\0\0\0" + zlib.compress(words),
        b"tEXt": b"parameters\0" + words,
    }[kind]
    samples = whole_range(3, 8)
    for content in (png(samples, 8, 2, before=chunk(kind, body)), png(samples, 8, 2, after=chunk(kind, body))):
        assert np.array_equal(read(tmp_path, content, ".png").pixels, samples)


def test_png_with_a_damaged_text_chunk(tmp_path: Path) -> None:
    """A wrong checksum of what is no pixel costs nothing."""
    samples = whole_range(3, 8)
    for body in (b"parameters\0fine words", b"parameters\0\0no zlib at all"):
        bad = bytearray(chunk(b"zTXt" if b"zlib" in body else b"tEXt", body))
        bad[-1] ^= 0x55
        assert np.array_equal(read(tmp_path, png(samples, 8, 2, before=bytes(bad)), ".png").pixels, samples)


def test_png_with_a_damaged_pixel_chunk_is_refused(tmp_path: Path) -> None:
    content = bytearray(png(scene(HEIGHT, WIDTH), 8, 2))
    at, _, body = next(entry for entry in chunks(bytes(content)) if entry[1] == b"IDAT")
    content[at + 8 + len(body) // 2] ^= 0x10
    refuse(tmp_path, bytes(content), ".png")


def test_animated_png(tmp_path: Path) -> None:
    frames = [scene(HEIGHT, WIDTH, seed=seed) for seed in range(3)]
    first, *others = (Image.fromarray(frame) for frame in frames)
    content = encoded(first, "PNG", save_all=True, append_images=others, duration=100)
    picture = read(tmp_path, content, ".png")
    assert picture.header.frames == 3
    assert np.array_equal(picture.pixels, frames[0])
    for number, frame in enumerate(frames):
        with open_picture(content, frame=number) as opened:
            assert np.array_equal(opened.pixels(), frame)
    with pytest.raises(PictureError, match="3"), open_picture(content, frame=3):
        pass


def test_a_picture_beside_an_animation_counts(tmp_path: Path) -> None:
    """The picture for viewers that know no animations is the first frame here."""
    frames = [Image.fromarray(scene(HEIGHT, WIDTH, seed=seed)) for seed in range(4)]
    content = encoded(frames[0], "PNG", save_all=True, default_image=True, append_images=frames[1:])
    assert read(tmp_path, content, ".png").header.frames == 4
    for number, frame in enumerate(frames):
        with open_picture(content, frame=number) as opened:
            assert np.array_equal(opened.pixels(), np.asarray(frame))


def test_later_frames_of_16_bits_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(scene(HEIGHT, WIDTH, 1, "uint16", seed=seed)) for seed in range(2)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert read(tmp_path, content, ".png").pixels.dtype == np.uint16
    with pytest.raises(PictureError, match="16 bits"), open_picture(content, frame=1):
        pass


def test_later_frames_are_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(scene(HEIGHT, WIDTH, seed=seed)) for seed in range(2)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], exif=exif.tobytes())
    for number, frame in enumerate(frames):
        with open_picture(content, frame=number) as opened:
            assert opened.header.shape == (WIDTH, HEIGHT, 3)
            assert np.array_equal(opened.pixels(), np.rot90(np.asarray(frame), -1))


def test_what_follows_a_png_is_not_searched(tmp_path: Path) -> None:
    content = encoded(scene(HEIGHT, WIDTH), "PNG")
    with open(tmp_path / "a.png", "wb") as file:
        file.write(content)
        file.truncate(2**35)
    started = time.perf_counter()
    with open_picture(tmp_path / "a.png") as opened:
        opened.metadata()
        assert opened.pixels().shape == (HEIGHT, WIDTH, 3)
    assert time.perf_counter() - started < 20, "not the minutes that 32 GiB take"


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_truncated_png_is_refused(tmp_path: Path, bits: int, interlaced: bool) -> None:
    content = png(whole_range(1, bits)[:, :, 0], bits, 0, interlaced=interlaced)
    at, _, body = next(entry for entry in chunks(content) if entry[1] == b"IDAT")
    for keep in (0, 1, 8, 20, 33, at, at + 8, *(at + 8 + int(share * len(body)) for share in (0.1, 0.5, 0.8, 0.95))):
        refuse(tmp_path, content[:keep], ".png")
    for keep in (0, len(body) // 2, len(body) - 20):  # the last chunk is there
        refuse(tmp_path, mended(content, b"IDAT", body[:keep]), ".png")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (8, 0), (16, 0), (8, 2), (16, 6), (4, 3)])
def test_a_png_whose_height_lies_is_refused(tmp_path: Path, bits: int, colour: int, interlaced: bool) -> None:
    """No row is made up."""
    samples = whole_range({0: 1, 2: 3, 3: 1, 6: 4}[colour], bits)
    before = chunk(b"PLTE", bytes(48)) if colour == 3 else b""
    content = png(samples, bits, colour, interlaced=interlaced, before=before)
    header = struct.pack(">IIBBBBB", WIDTH, 2 * HEIGHT, bits, colour, 0, 0, int(interlaced))
    refuse(tmp_path, mended(content, b"IHDR", header), ".png")


def test_nine_kilobytes_that_claim_half_a_gigabyte_are_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 3_276_800, 53, 8, 2, 0, 0, 0)
    content = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9_000_000))) + chunk(b"IEND", b"")
    assert len(content) < 10_000
    started = time.process_time()
    with open_picture(content) as picture:
        assert picture.header.shape == (53, 3_276_800, 3)
    assert time.process_time() - started < 0.1  # the header alone
    refuse(tmp_path, content, ".png")


# -- JPEG


def close(pixels: np.ndarray, wanted: np.ndarray, limit: int) -> None:
    assert pixels.shape == wanted.shape
    assert pixels.dtype == wanted.dtype
    assert np.abs(pixels.astype(int) - wanted).max() <= limit


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(tmp_path: Path, channels: int, progressive: bool) -> None:
    smooth = scene(HEIGHT, WIDTH, channels)
    picture = read(tmp_path, encoded(smooth, "JPEG", quality=100, subsampling=0, progressive=progressive), ".jpg")
    close(picture.pixels, smooth, 4)
    assert picture.header.lossless is False
    assert picture.header.in_strips is not progressive
    assert picture.warnings == ()


def test_jpeg_of_another_writer(tmp_path: Path) -> None:
    """Without JFIF and Adobe markers, and with other subsamplings."""
    smooth = scene(48, 64)
    for subsampling in ("444", "422", "420"):
        content = bytes(imagecodecs.jpeg8_encode(smooth, level=98, subsampling=subsampling))
        close(read(tmp_path, content, ".jpg").pixels, smooth, 60 if subsampling != "444" else 10)


INKS = {
    "cyan": (255, 0, 0, 0),
    "magenta": (0, 255, 0, 0),
    "yellow": (0, 0, 255, 0),
    "black": (0, 0, 0, 255),
    "paper": (0, 0, 0, 0),
}


def inks() -> np.ndarray:
    """16×80×4: a field of each ink."""
    return np.repeat(np.array([list(INKS.values())], np.uint8), 16, axis=1).repeat(16, axis=0)


def test_jpeg_cmyk_without_profile(tmp_path: Path) -> None:
    """Adobe stores inks inverted, and says so in a marker; each ink looks like its name."""
    fields = Image.fromarray(inks(), "CMYK")
    content = encoded(fields, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in content
    picture = read(tmp_path, content, ".jpg")
    assert picture.pixels.shape == (16, 80, 3)
    seen = dict(zip(INKS, picture.pixels[8, 8::16].astype(int).tolist(), strict=True))
    assert min(seen["paper"]) > 245
    assert max(seen["black"]) < 70
    for ink, dark in (("cyan", 0), ("magenta", 1), ("yellow", 2)):
        assert seen[ink][dark] < min(value for channel, value in enumerate(seen[ink]) if channel != dark), ink


def test_jpeg_cmyk_with_a_profile_goes_through_it(tmp_path: Path) -> None:
    """A profile that swaps what inks look like is obeyed: colours are those of LittleCMS in Pillow."""
    case = Path(__file__).parents[4] / "shared" / "cases" / "cmyk_icc.jpg"
    if not case.exists():
        pytest.skip("needs a CMYK profile; none may be shipped")
    with Image.open(case) as image:
        profile = image.info["icc_profile"]
    gradient = np.stack([scene(16, 80, 4)[:, :, n] for n in range(4)], axis=2) // 2
    content = encoded(Image.fromarray(gradient, "CMYK"), "JPEG", quality=100, subsampling=0, icc_profile=profile)
    picture = read(tmp_path, content, ".jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        wanted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.PERCEPTUAL, outputMode="RGB",
        )  # fmt: skip
    assert np.abs(picture.pixels.astype(int) - np.asarray(wanted)).max() <= 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int, format: str) -> None:
    smooth = scene(HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[format]
    content = encoded(smooth, format, exif=exif, **options)
    turned = {
        1: smooth, 2: smooth[:, ::-1], 3: smooth[::-1, ::-1], 4: smooth[::-1], 5: smooth.swapaxes(0, 1),
        6: np.rot90(smooth, -1), 7: smooth[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(smooth),
    }[orientation]  # fmt: skip
    picture = read(tmp_path, content, f".{format.lower()}")
    close(picture.pixels, turned, 4 if format == "JPEG" else 0)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read_with_a_warning(tmp_path: Path, progressive: bool) -> None:
    content = encoded(scene(64, 80), "JPEG", quality=90, progressive=progressive)
    whole = read(tmp_path, content, ".jpg")
    picture = read(tmp_path, content[:-2], ".jpg")
    assert np.array_equal(picture.pixels, whole.pixels)
    assert len(picture.warnings) == 1
    assert "end marker" in picture.warnings[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, progressive: bool, channels: int) -> None:
    content = encoded(scene(64, 80, channels), "JPEG", quality=90, progressive=progressive)
    _, data = jpeg_parts(content)
    cuts = [0, 1, 2, 3, 20, data // 2, data, data + 10, *(data + int(f * (len(content) - data)) for f in (0.3, 0.6, 0.9))]
    for keep in cuts:
        refuse(tmp_path, content[:keep], ".jpg")
    for keep in cuts[:-1]:  # an end marker that somebody put into the last row of blocks cannot be told from the true one
        refuse(tmp_path, content[:keep] + b"\xff\xd9", ".jpg")


def test_a_progressive_jpeg_that_lacks_scans_is_refused(tmp_path: Path) -> None:
    """Cut exactly between two scans, it is complete as far as any decoder can see."""
    content = encoded(scene(64, 80), "JPEG", quality=90, progressive=True)
    starts = [at for at in range(len(content)) if content[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    for start in starts[2:]:
        refuse(tmp_path, content[:start], ".jpg")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path, channels: int, options: dict[str, Any]) -> None:
    """Behind a restart marker, behind half a marker, and in between."""
    content = encoded(scene(64, 80, channels), "JPEG", quality=90, subsampling=1 if channels == 3 else -1, **options)
    whole, (_, data) = read(tmp_path, content, ".jpg").pixels.astype(int), jpeg_parts(content)
    cuts = {at + shift for at in range(data, len(content) - 2) if content[at] == 255 for shift in (0, 1, 2)}
    for cut in sorted(cuts | set(range(data + 5, len(content) - 2, 97))):
        with contextlib.suppress(PictureError), open_picture(content[:cut]) as picture:
            pixels = picture.pixels()
            assert np.abs(pixels - whole).max() <= 1, f"cut at {cut} of {len(content)}"


def test_a_height_that_lies_is_found_by_restart_markers(tmp_path: Path) -> None:
    content = bytearray(encoded(scene(64, 80), "JPEG", quality=90, restart_marker_rows=1))
    at, _ = jpeg_parts(bytes(content))
    struct.pack_into(">H", content, at, 128)
    refuse(tmp_path, bytes(content), ".jpg")


def test_neighbours_that_fail_change_nothing(tmp_path: Path) -> None:
    """libvips has one text of errors for all threads."""
    jpeg, png_content = encoded(scene(64, 80), "JPEG", quality=90), encoded(scene(90, 90), "PNG")
    stop = threading.Event()

    def fail(content: bytes) -> None:
        while not stop.is_set():
            with contextlib.suppress(PictureError), open_picture(content) as picture:
                picture.pixels()

    threads = [threading.Thread(target=fail, args=(c,)) for c in (jpeg[:900], png_content[:-400], jpeg[:1200] + b"\xff\xd9")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            with open_picture(jpeg[:-2]) as picture:
                picture.pixels()
            assert picture.warnings == ["the JPEG lacks its end marker; all of its pixels are there"]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_height_lies_is_refused(tmp_path: Path, progressive: bool, channels: int) -> None:
    content = bytearray(encoded(scene(64, 80, channels), "JPEG", quality=90, progressive=progressive))
    at, _ = jpeg_parts(bytes(content))
    struct.pack_into(">H", content, at, 128)
    refuse(tmp_path, bytes(content), ".jpg")


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_the_end_of_a_jpeg_costs_nothing(tmp_path: Path, progressive: bool) -> None:
    """Motion photos have a film there, phones their own records, some software zeros."""
    content = encoded(scene(64, 80), "JPEG", quality=90, progressive=progressive)
    whole = read(tmp_path, content, ".jpg")
    film = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + RNG.bytes(5000)
    for tail in (film, bytes(1000), b"\n", content):
        picture = read(tmp_path, content + tail, ".jpg")
        assert np.array_equal(picture.pixels, whole.pixels)
        assert picture.warnings == ()


def test_a_corrupt_byte_in_a_jpeg_is_never_silent(tmp_path: Path) -> None:
    """Read with a warning or refused, if the decoder can tell at all; always the same at two reads."""
    content = encoded(scene(64, 80), "JPEG", quality=90)
    _, data = jpeg_parts(content)
    told = 0
    for at in range(data + 20, len(content) - 20, 97):
        damaged = bytearray(content)
        damaged[at : at + 3] = b"\xff\xc0\x00"  # a marker where none may be
        (tmp_path / "a.jpg").write_bytes(damaged)
        try:
            picture = read(tmp_path, bytes(damaged), ".jpg")
        except PictureError:
            told += 1
        else:
            told += bool(picture.warnings)
    assert told == len(range(data + 20, len(content) - 20, 97))


# -- WebP, GIF, AVIF, BMP


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_webp(tmp_path: Path, channels: int, lossless: bool) -> None:
    smooth = scene(64, 80, channels)
    if channels == 4:
        smooth[:16, :16, 3] = 0
    content = encoded(smooth, "WEBP", lossless=lossless, quality=95, exact=True)
    picture = read(tmp_path, content, ".webp")
    assert picture.header.lossless is lossless
    assert picture.pixels.shape == smooth.shape
    if lossless:
        assert np.array_equal(picture.pixels, smooth)
    else:
        assert np.array_equal(picture.pixels[:, :, 3:], smooth[:, :, 3:])
        visible = smooth[:, :, -1] > 64 if channels == 4 else np.full((64, 80), True)
        assert np.abs(picture.pixels.astype(int) - smooth)[visible].mean() < 8


def test_animated_webp(tmp_path: Path) -> None:
    frames = [scene(HEIGHT, WIDTH, seed=seed) for seed in range(3)]
    first, *others = (Image.fromarray(frame) for frame in frames)
    content = encoded(first, "WEBP", save_all=True, append_images=others, lossless=True)
    picture = read(tmp_path, content, ".webp")
    assert (picture.header.frames, picture.header.lossless) == (3, True)
    for number, frame in enumerate(frames):
        with open_picture(content, frame=number) as opened:
            assert np.array_equal(opened.pixels()[:, :, :3], frame)


@pytest.mark.parametrize("transparent", [False, True])
def test_gif(tmp_path: Path, transparent: bool) -> None:
    palette = RNG.integers(0, 256, (16, 3), np.uint8)
    indices = RNG.integers(0, 16, (HEIGHT, WIDTH), np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    content = encoded(image, "GIF", **({"transparency": 3} if transparent else {}))
    picture = read(tmp_path, content, ".gif")
    assert picture.header.lossless
    colours, visible = palette[indices], indices != 3
    if transparent:
        assert np.array_equal(picture.pixels[:, :, 3], np.where(visible, 255, 0))
        assert np.array_equal(picture.pixels[:, :, :3][visible], colours[visible])
    else:
        assert np.array_equal(picture.pixels[:, :, :3], colours)


def test_animated_gif(tmp_path: Path) -> None:
    palette = RNG.integers(0, 256, (16, 3), np.uint8)
    indices = [RNG.integers(0, 16, (HEIGHT, WIDTH), np.uint8) for _ in range(3)]
    images = [Image.fromarray(frame, "P") for frame in indices]
    for image in images:
        image.putpalette(palette.tobytes())
    content = encoded(images[0], "GIF", save_all=True, append_images=images[1:], disposal=1)
    assert read(tmp_path, content, ".gif").header.frames == 3
    for number, frame in enumerate(indices):
        with open_picture(content, frame=number) as opened:
            assert np.array_equal(opened.pixels()[:, :, :3], palette[frame])


def test_an_animated_avif_says_that_it_is_one(tmp_path: Path) -> None:
    frames = [Image.fromarray(scene(HEIGHT, WIDTH, seed=seed)) for seed in range(3)]
    content = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert read(tmp_path, content, ".avif").warnings == ("it is an animation, of which only the first frame can be read",)


@pytest.mark.parametrize("channels", [3, 4])
def test_avif(tmp_path: Path, channels: int) -> None:
    smooth = scene(64, 80, channels)
    content = encoded(smooth, "AVIF", quality=95, subsampling="4:4:4", speed=9)
    picture = read(tmp_path, content, ".avif")
    assert picture.header.frames == 1
    assert picture.pixels.shape == smooth.shape
    assert np.abs(picture.pixels.astype(int) - smooth).mean() < 6


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [10, 12])
def test_deep_avif_fills_the_range(tmp_path: Path, bits: int, channels: int) -> None:
    samples = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, channels), np.uint16)
    samples[0, 0], samples[0, 1] = 0, 2**bits - 1
    wanted = np.rint(samples * (65535 / (2**bits - 1)))
    pixels = read(tmp_path, imagecodecs.avif_encode(samples, level=100, bitspersample=bits), ".avif").pixels
    assert pixels.dtype == np.uint16
    assert np.abs(pixels - wanted).max() <= 1
    assert (pixels[0, 0].max(), pixels[0, 1].min()) == (0, 65535)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_with_palette(tmp_path: Path, bits: int) -> None:
    palette = RNG.integers(0, 256, (2**bits, 3), np.uint8)
    indices = whole_range(1, bits)[:, :, 0].astype(np.uint8)
    assert np.array_equal(read(tmp_path, bmp(indices, bits, palette), ".bmp").pixels, palette[indices])


@pytest.mark.parametrize("bits", [1, 8])
def test_bmp_with_a_grey_palette_is_grey_or_as_grey(tmp_path: Path, bits: int) -> None:
    levels = full(np.arange(2**bits), bits)
    indices = whole_range(1, bits)[:, :, 0].astype(np.uint8)
    pixels = read(tmp_path, bmp(indices, bits, np.repeat(levels[:, None], 3, axis=1)), ".bmp").pixels
    for channel in np.split(pixels.reshape(HEIGHT, WIDTH, -1), pixels.size // indices.size, axis=2):
        assert np.array_equal(channel[:, :, 0], levels[indices])


def test_bmp_true_colour(tmp_path: Path) -> None:
    colour = scene(HEIGHT, WIDTH)
    assert np.array_equal(read(tmp_path, encoded(colour, "BMP"), ".bmp").pixels, colour)
    rgba = scene(HEIGHT, WIDTH, 4)
    pixels = read(tmp_path, encoded(rgba, "BMP"), ".bmp").pixels
    assert np.array_equal(pixels[:, :, :3], rgba[:, :, :3])
    assert pixels.shape[2] == 3 or np.array_equal(pixels, rgba)


WHOLE = {
    ".webp": lambda: encoded(scene(64, 80), "WEBP"),
    ".webp lossless": lambda: encoded(scene(64, 80), "WEBP", lossless=True),
    ".gif": lambda: encoded(Image.fromarray(scene(64, 80)).quantize(64), "GIF"),
    ".avif": lambda: encoded(scene(64, 80), "AVIF", speed=9),
    ".bmp": lambda: encoded(scene(64, 80), "BMP"),
    ".bmp palette": lambda: encoded(Image.fromarray(scene(64, 80)).quantize(64), "BMP"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_other_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    content = WHOLE[kind]()
    read(tmp_path, content, kind.split()[0])
    for keep in (0, 1, 3, 11, 16, 30, 60, *(int(f * len(content)) for f in (0.2, 0.4, 0.6, 0.8, 0.95))):
        refuse(tmp_path, content[:keep], kind.split()[0])


# -- headers, and what is no picture


def test_headers_cost_no_decoding(tmp_path: Path) -> None:
    """Each format says size, channels, dtype and frames, before anything is decoded."""
    rgb = scene(HEIGHT, WIDTH)
    for format, content in (
        ("png", encoded(rgb, "PNG")), ("jpg", encoded(rgb, "JPEG")), ("webp", encoded(rgb, "WEBP")),
        ("avif", encoded(rgb, "AVIF", speed=9)), ("bmp", encoded(rgb, "BMP")), ("tif", encoded(rgb, "TIFF")),
    ):  # fmt: skip
        with open_picture(content) as picture:
            header = picture.header
        assert isinstance(header, Header)
        assert (header.format, header.shape, header.dtype, header.frames) == (format, rgb.shape, "uint8", 1)
        assert header.lossless is (format in ("png", "bmp", "tif"))


def test_thirty_four_bytes_that_claim_a_gigabyte_say_so_in_their_header() -> None:
    """Callers compare the header with their limit: it must be there before pixels are."""
    bits = (13_299) | (13_299 << 14)
    body = b"VP8L" + struct.pack("<I", 14) + b"\x2f" + struct.pack("<I", bits) + bytes(9)
    content = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    started = time.process_time()
    try:
        with open_picture(content) as picture:
            assert (picture.header.height, picture.header.width) == (13_300, 13_300)
    except PictureError:
        pass  # as good
    assert time.process_time() - started < 0.1


FOREIGN = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n" + b"% a comment\n" * 2_000_000,
    "PDF": b"%PDF-1.7\n" + bytes(400),
    "Photoshop": b"8BPS\0\1" + bytes(400),
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
    "SVG ": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>',
    "PPM": b"P6\n# " + b"a comment " * 2_000_000 + b"\n9 9\n255\n" + bytes(243),
    "JPEG XL": b"\xff\x0a" + bytes(400),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(400),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(400),
    "Radiance": b"#?RADIANCE\n" + bytes(400),
    "FITS": b"SIMPLE  =                    T" + bytes(400),
    "nothing": bytes(5000),
    "text": b"hello, this is no picture at all",
    "empty": b"",
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_at_once_and_by_name(tmp_path: Path, kind: str, suffix: str) -> None:
    content = FOREIGN[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    started = time.process_time()
    message = refuse(tmp_path, content, suffix)
    assert time.process_time() - started < 0.5
    assert "damaged" not in message
    if kind.strip() in (
        "HEIC",
        "PostScript",
        "PDF",
        "Photoshop",
        "SVG",
        "PPM",
        "JPEG XL",
        "JPEG 2000",
        "OpenEXR",
        "Radiance",
    ):
        assert kind.strip() in message


def test_no_decoder_is_tried_for_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdsr.runtime.pictures import reading

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was tried")

    monkeypatch.setattr(reading.EncodedPicture, "_opened", never)
    monkeypatch.setattr(Image, "open", never)
    for content in FOREIGN.values():
        refuse(tmp_path, content, ".png")


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    rgb = scene(HEIGHT, WIDTH)
    for format, suffix in itertools.product(("PNG", "BMP", "TIFF"), (".jpg", ".gif", ".webp")):
        assert np.array_equal(read(tmp_path, encoded(rgb, format), suffix).pixels, rgb)


def test_devices_are_refused() -> None:
    with pytest.raises(PictureError, match="no regular file"), open_picture(Path("/dev/zero")):
        pass


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name in ("none.png", "folder.png", "a" * 300 + ".png", "null\0byte.png"):
        with pytest.raises(PictureError, match=name[:4]):
            read_picture(tmp_path / name)


def test_nothing_appears_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Decoders in C print what they dislike, unless they are told not to."""
    png_file, jpeg_file = encoded(scene(64, 80), "PNG"), encoded(scene(64, 80), "JPEG")
    damaged = bytearray(jpeg_file)
    damaged[len(damaged) // 2 : len(damaged) // 2 + 9] = b"\xff\xc4\0\0\xff\xda\0\0\0"
    bad_text = bytearray(chunk(b"tEXt", b"a\0b"))
    bad_text[-1] ^= 1
    cut = {suffix.split()[0]: whole()[:-90] for suffix, whole in WHOLE.items()}
    for suffix, content in (
        (".png", png_file[:-200]), (".png", png(scene(9, 9), 8, 2, before=bytes(bad_text))), (".jpg", jpeg_file[:-200]),
        (".jpg", jpeg_file[:-2]), (".jpg", bytes(damaged)), (".tif", encoded(scene(64, 80), "TIFF")[:-900]),
        (".tif", encoded(scene(64, 80), "TIFF", compression="tiff_lzw")[:-90]),
        (".tif", encoded(scene(64, 80), "TIFF", compression="zstd")[:300]), *cut.items(),
    ):  # fmt: skip
        (tmp_path / f"a{suffix}").write_bytes(content)
        with contextlib.suppress(PictureError):
            read_picture(tmp_path / f"a{suffix}")
    assert capfd.readouterr().err == ""


def test_heads_of_files_are_refused_by_type() -> None:
    """Cut anywhere in the first bytes, where headers are taken apart."""
    frames = [Image.fromarray(scene(HEIGHT, WIDTH, seed=seed)) for seed in range(2)]
    for format in ("PNG", "WEBP", "TIFF", "GIF", "JPEG", "BMP", "AVIF"):
        options = {"save_all": True, "append_images": frames[1:]} if format not in ("JPEG", "BMP") else {}
        content = encoded(frames[0], format, **options)
        for size in range(1, 160):
            with contextlib.suppress(PictureError), open_picture(content[:size]) as picture:
                picture.pixels()
