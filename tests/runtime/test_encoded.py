"""Encoded pictures through an upscaler: files, bytes, frames, limits, strips."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from rdsr.runtime import (
    Cancel,
    CancelledError,
    OptionError,
    OutputError,
    PictureError,
    Upscaler,
    WriteOptions,
)  # fmt: skip
from rdsr.runtime.pictures import reading
from rdsr.runtime.pictures.reading import read_picture
from rdsr.tests.conftest import picture, run_alone
from rdsr.tests.runtime.pictures.files import chunk, encoded, png, scene


@pytest.fixture(scope="module")
def upscaler(exported: Path) -> Iterator[Upscaler]:
    with Upscaler.load(exported, threads=2) as loaded:
        yield loaded


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def decoded(content: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "decoded").write_bytes(content)
    return read_picture(tmp_path / "decoded").pixels


# -- the same as arrays


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
def test_a_file_becomes_what_its_array_becomes(
    upscaler: Upscaler, tmp_path: Path, dtype: str, channels: tuple[int, ...]
) -> None:
    source = picture(9, 13, channels, dtype)
    options: dict[str, Any] = {"photometric": "rgb" if channels in ((3,), (4,)) else "minisblack"}
    if channels in ((2,), (4,)):
        options["extrasamples"] = ["unassalpha"]
    (tmp_path / "a.tif").write_bytes(tiff(source, planarconfig="contig" if channels else None, **options))
    result = upscaler.file(tmp_path / "a.tif", tmp_path / "b.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), upscaler(source))
    assert (result.size_in, result.size_out, result.warnings, result.frames) == ((9, 13), (36, 52), (), 1)


def test_bytes_become_what_files_become(upscaler: Upscaler, tmp_path: Path) -> None:
    data = encoded(scene(20, 30), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    for name in ("png", "jpg", "webp", "tif", "avif", "bmp"):
        upscaler.file(tmp_path / "a.png", tmp_path / f"b.{name}")
        assert upscaler.encoded(data, name) == (tmp_path / f"b.{name}").read_bytes(), name
    options = WriteOptions(quality=40, scale=2)
    upscaler.file(tmp_path / "a.png", tmp_path / "c.jpg", options=options)
    assert upscaler.encoded(data, "jpg", quality=40, scale=2) == (tmp_path / "c.jpg").read_bytes()


def test_bytes_may_go_into_files_and_files_into_streams(upscaler: Upscaler, tmp_path: Path) -> None:
    data = encoded(scene(12, 10), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    stream = io.BytesIO()
    result = upscaler.file(tmp_path / "a.jpg", stream)
    assert (result.input, result.output) == (tmp_path / "a.jpg", Path("-"))
    result = upscaler.file(data, tmp_path / "b.jpg")
    assert (result.input, result.output) == (Path("-"), tmp_path / "b.jpg")
    assert stream.getvalue() == (tmp_path / "b.jpg").read_bytes(), "without a name, a stream gets the format of the input"


def test_progress_and_cancel_reach_encoded_pictures(upscaler: Upscaler) -> None:
    told: list[tuple[int, int]] = []
    data = encoded(scene(12, 10), "PNG")
    upscaler.encoded(data, progress=lambda done, tiles: told.append((done, tiles)))
    assert told[-1] == (1, 1)
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledError):
        upscaler.encoded(data, cancel=cancel)


# -- colour and kind


@pytest.mark.parametrize("alpha", [False, True])
def test_a_picture_without_colour_gets_none(upscaler: Upscaler, tmp_path: Path, alpha: bool) -> None:
    """Black and white drawings in RGB are the hardest case."""
    grey = np.where(scene(24, 32, 1) > 120, 255, 0).astype(np.uint8)
    source = np.dstack([grey, grey, grey, *([255 - grey // 2] if alpha else [])])
    out = decoded(upscaler.encoded(encoded(source, "PNG")), tmp_path)
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 1], out[..., 2])
    assert out.shape == (96, 128, 4 if alpha else 3)
    source[5, 5, 0] ^= 40
    out = decoded(upscaler.encoded(encoded(source, "PNG")), tmp_path)
    assert not np.array_equal(out[..., 0], out[..., 1]), "one coloured pixel makes a colour picture"


def test_lossless_stays_lossless(upscaler: Upscaler, tmp_path: Path) -> None:
    source = scene(20, 24)
    for data, options, exact in (
        (encoded(source, "WEBP", lossless=True), {}, True),
        (encoded(source, "WEBP", lossless=True), {"quality": 90}, False),
        (encoded(source, "WEBP", lossless=True), {"lossless": False}, False),
        (encoded(source, "PNG"), {}, False),
        (encoded(source, "PNG"), {"lossless": True}, True),
    ):
        out = decoded(upscaler.encoded(data, "webp", **options), tmp_path)
        assert np.array_equal(out, upscaler(source)) == exact, (data[:4], options)
    lossy = encoded(source, "WEBP", quality=90)
    out = decoded(upscaler.encoded(lossy, "webp"), tmp_path)
    assert not np.array_equal(out, upscaler(decoded(lossy, tmp_path)))


def test_metadata_comes_along(upscaler: Upscaler) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "Camera 7"
    data = encoded(scene(10, 16), "JPEG", exif=exif.tobytes(), dpi=(240, 240), quality=95)
    larger = Image.open(io.BytesIO(upscaler.encoded(data, "png")))
    assert larger.size == (40, 64), "turned upright"
    assert larger.getexif()[0x0110] == "Camera 7"
    assert larger.getexif().get(0x0112, 1) == 1
    assert round(larger.info["dpi"][0]) == 240


def test_any_scale_up_to_the_networks_own(upscaler: Upscaler, tmp_path: Path) -> None:
    source = scene(20, 30, 4)
    whole = upscaler(source).astype(float)
    for scale, size in ((4, (80, 120)), (2, (40, 60)), (1.37, (27, 41)), (0.01, (1, 1))):
        out = decoded(upscaler.encoded(encoded(source, "PNG"), scale=scale), tmp_path)
        assert out.shape == (*size, 4)
        if scale == 2:
            mean = whole.reshape(40, 2, 60, 2, 4).mean(axis=(1, 3))
            assert np.abs(out - mean).mean() < 8, "the network's result, reduced"
    for scale in (4.01, 0, -1, float("nan")):
        with pytest.raises(OptionError, match="scale"):
            upscaler.encoded(encoded(source, "PNG"), scale=scale)


# -- frames


def animation(format: str) -> bytes:
    frames = [Image.fromarray(scene(8, 9, seed=n)) for n in range(3)]
    return encoded(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_the_first_frame_is_taken_and_said(upscaler: Upscaler, tmp_path: Path, format: str) -> None:
    result = upscaler.file(animation(format), tmp_path / "b.png")
    assert len(result.warnings) == 1
    assert "3 frames" in result.warnings[0]
    assert "--frames all" in result.warnings[0]
    if format != "GIF":
        assert np.array_equal(read_picture(tmp_path / "b.png").pixels[..., :3], upscaler(scene(8, 9)))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_all_frames_become_numbered_files(upscaler: Upscaler, tmp_path: Path, format: str) -> None:
    results = upscaler.frames(animation(format), tmp_path / "b.png")
    assert [result.output.name for result in results] == ["b-1.png", "b-2.png", "b-3.png"]
    assert not any(result.warnings for result in results)
    if format != "GIF":
        for number, result in enumerate(results):
            assert np.array_equal(read_picture(result.output).pixels[..., :3], upscaler(scene(8, 9, seed=number)))
    assert len(list(tmp_path.iterdir())) == 3


def test_all_frames_become_pages_of_a_tiff(upscaler: Upscaler, tmp_path: Path) -> None:
    """Pages of different sizes and kinds, too."""
    kinds = [scene(8, 9), scene(5, 4, 1, "uint16"), scene(6, 6, 4)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for pixels in kinds:
            extra = ["unassalpha"] if pixels.ndim == 3 and pixels.shape[2] == 4 else None
            writer.write(pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", extrasamples=extra, metadata=None)
    (result,) = upscaler.frames(tmp_path / "a.tif", tmp_path / "b.tif")
    assert result.frames == 3
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert len(file.pages) == 3
        for page, pixels in zip(file.pages, kinds, strict=True):
            assert np.array_equal(page.asarray(), upscaler(pixels))


def test_a_warning_of_the_decoder_reaches_the_result(upscaler: Upscaler, tmp_path: Path) -> None:
    data = encoded(scene(40, 40), "JPEG")
    assert data.endswith(b"\xff\xd9")
    result = upscaler.file(data[:-2], tmp_path / "b.png")
    assert result.warnings == ("the JPEG lacks its end marker; all of its pixels are there",)
    assert (tmp_path / "b.png").read_bytes() == upscaler.encoded(data)


# -- limits


def test_the_limit_on_pixels_is_that_of_the_header(upscaler: Upscaler, tmp_path: Path) -> None:
    data = encoded(scene(30, 40), "PNG")
    for call in (
        lambda: upscaler.encoded(data, max_pixels=1199),
        lambda: upscaler.file(data, tmp_path / "b.png", max_pixels=1199),
        lambda: upscaler.frames(data, tmp_path / "b.png", max_pixels=1199),
    ):
        with pytest.raises(PictureError, match=r"40×30 = 1200 pixels, more than the limit of 1199.*--max-pixels"):
            call()
    assert upscaler.encoded(data, max_pixels=1200)
    assert not list(tmp_path.iterdir())
    for limit in (0, -1, True, 1.5):
        with pytest.raises(OptionError, match="max_pixels"):
            upscaler.encoded(data, max_pixels=limit)


def test_without_an_option_the_memory_is_the_limit(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Input and result together: 3 bytes a pixel, 17 times."""
    data = encoded(scene(30, 40), "PNG")
    monkeypatch.setattr(reading, "available_memory", lambda: 1200 * 3 * 17)
    assert upscaler.encoded(data)
    monkeypatch.setattr(reading, "available_memory", lambda: 1200 * 3 * 17 - 1)
    with pytest.raises(PictureError, match="limit of 1199, which the available memory holds at 51 bytes each"):
        upscaler.encoded(data)
    assert upscaler.encoded(data, max_pixels=1200), "the option raises the limit, too"


def test_training_and_calibration_have_a_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rdsr.models.training import data as training

    (tmp_path / "a.png").write_bytes(encoded(scene(30, 40), "PNG"))
    monkeypatch.setattr(reading, "available_memory", lambda: 1200 * 3 - 1)
    with pytest.raises(PictureError, match="limit of 1199"):
        reading.read_rgb(tmp_path / "a.png")
    monkeypatch.setattr(training, "MAX_PIXELS", 1199)
    assert training.read_rgb(tmp_path / "a.png") is None
    assert "40×30 pixels, more than the limit of 1199" in caplog.text


def bomb(side: int, size: int = 50_000) -> bytes:
    content = png(scene(8, 8), 8, 2)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = content[:12] + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]
    return content[:-12] + struct.pack(">I4s", size, b"teXt") + bytes(size + 4) + content[-12:]


def test_what_a_header_claims_costs_nothing(upscaler: Upscaler) -> None:
    """50 KB that claim 30,000×30,000 pixels, with every limit off: such a file cannot hold them."""
    started = time.perf_counter()
    with pytest.raises(PictureError, match=r"damaged or truncated: 30000×30000 pixels do not fit into its \d+ bytes"):
        upscaler.encoded(bomb(30_000), max_pixels=10**12)
    with pytest.raises(PictureError):
        upscaler.encoded(bomb(30_000))
    assert time.perf_counter() - started < 30, "not the minutes that decoding takes"


def test_what_a_format_cannot_hold_is_said_before_the_first_tile(upscaler: Upscaler, tmp_path: Path) -> None:
    def never(done: int, tiles: int) -> None:
        raise AssertionError("a tile was computed")

    data = encoded(np.zeros((1, 4097, 3), np.uint8), "PNG")
    with pytest.raises(OutputError, match="16383"):
        upscaler.file(data, tmp_path / "b.webp", progress=never)
    with pytest.raises(OutputError, match="65500"):
        upscaler.file(encoded(np.zeros((1, 16376, 3), np.uint8), "PNG"), tmp_path / "b.jpg", progress=never)
    assert not list(tmp_path.iterdir())


def test_a_limit_beyond_the_memory_refuses_nothing(exported: Path) -> None:
    with Upscaler.load(exported, threads=2, memory_limit="64TiB") as upscaler:
        assert upscaler.encoded(encoded(scene(30, 40), "WEBP"), "webp")


# -- whole or absent


def test_a_full_disk_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the system refuses to write on."""
    script = """
        import json, resource, signal, sys
        from pathlib import Path
        import numpy as np
        from PIL import Image
        from rdsr.runtime import OutputError, Upscaler
        bundle, folder = sys.argv[1], Path(sys.argv[2])
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(folder / "a.png")
        upscaler = Upscaler.load(bundle, threads=2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for name in ("png", "jpg", "webp", "tif", "bmp"):
            target = folder / f"b.{name}"
            target.write_bytes(b"before")
            try:
                upscaler.file(folder / "a.png", target)
            except OutputError as error:
                print(json.dumps([name, str(error), target.read_bytes().decode()]))
    """
    lines = [json.loads(line) for line in run_alone(script, exported, tmp_path).splitlines()]
    assert [line[0] for line in lines] == ["png", "jpg", "webp", "tif", "bmp"]
    assert all(str(tmp_path / f"b.{name}") in sentence and kept == "before" for name, sentence, kept in lines)
    assert len(list(tmp_path.iterdir())) == 6


def test_an_interruption_while_it_is_written_leaves_nothing(upscaler: Upscaler, tmp_path: Path) -> None:
    def stop(done: int, tiles: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscaler.file(encoded(scene(30, 30), "PNG"), tmp_path / "b.png", progress=stop)
    assert not list(tmp_path.iterdir())


def test_errors_of_the_caller_reach_him_unchanged(upscaler: Upscaler, tmp_path: Path) -> None:
    def stop(done: int, tiles: int) -> None:
        raise TimeoutError("mine")

    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, content: Any) -> int:
            raise OSError(28, "No space left on device")

    data = encoded(scene(30, 30), "PNG")
    with pytest.raises(TimeoutError, match="mine"):
        upscaler.file(data, tmp_path / "b.png", progress=stop)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(OSError, match="No space left") as caught:
        upscaler.file(tmp_path / "a.png", Full())
    assert caught.type is OSError
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_a_format_cannot_do_is_refused_for_bytes_too(upscaler: Upscaler) -> None:
    with pytest.raises(OutputError, match="JPEG always loses something"):
        upscaler.encoded(encoded(scene(9, 9), "PNG"), "jpg", lossless=True)


def test_texts_that_are_no_unicode_are_kept(upscaler: Upscaler, tmp_path: Path) -> None:
    text = chunk(b"tEXt", "Ümlaut\0Größe".encode("latin-1"))
    larger = upscaler.encoded(png(scene(9, 9), 8, 2, before=text))
    assert text in larger
    assert decoded(larger, tmp_path).shape == (36, 36, 3)


def test_reduced_floats_stay_in_range(upscaler: Upscaler, tmp_path: Path) -> None:
    """Lanczos filtering rings, also in alpha, which colour is divided by."""
    source = np.zeros((40, 40, 4), np.float32)
    source[10:30, 10:30] = 1
    source[::3, ::3, 3] = 1e-4
    data = tiff(source, photometric="rgb", extrasamples=["unassalpha"])
    out = decoded(upscaler.encoded(data, "tif", scale=1.3), tmp_path)
    assert out.dtype == np.float32
    assert (out[..., 3].min(), out[..., 3].max()) >= (0, 0)
    assert out[..., 3].max() <= 1
    assert out.min() >= -0.5
    assert out.max() <= 1.5
