"""Pictures that pass through in strips: the bytes of the whole, in little memory."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from rdsr.runtime import MemoryLimitError, PictureError, Upscaler
from rdsr.runtime import encoded as encoded_module
from rdsr.runtime.pictures import reading
from rdsr.tests.conftest import picture, run_alone
from rdsr.tests.runtime.pictures.files import encoded, png, scene
from rdsr.tests.runtime.pictures.tiff_writer import Layout
from rdsr.tests.runtime.pictures.tiff_writer import tiff as tiff_of


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "channels", "dtype"), [("png", 3, "uint8"), ("tif", 4, "uint16"), ("png", 2, "uint8"), ("tif", 1, "uint16")]
)
def test_strips_change_no_byte(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, channels: int, dtype: str
) -> None:
    source = scene(900, 300, channels, dtype)
    options: dict[str, Any] = {"photometric": "rgb" if channels > 2 else "minisblack", "compression": "zlib"}
    if channels in (2, 4):
        options |= {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
    (tmp_path / "a.tif").write_bytes(tiff(source, **options))
    whole, strips = tmp_path / f"whole.{name}", tmp_path / f"strips.{name}"
    with Upscaler.load(exported, threads=2) as free:
        free.file(tmp_path / "a.tif", whole)
    monkeypatch.setattr(encoded_module, "_WHOLE", 0)
    monkeypatch.setattr(encoded_module, "_whole", None)
    told: list[int] = []
    with Upscaler.load(exported, threads=2) as free:
        free.file(tmp_path / "a.tif", strips, progress=lambda done, tiles: told.append(done))
    assert len(told) > 1
    assert strips.read_bytes() == whole.read_bytes()


def test_what_cannot_pass_in_strips_is_refused_with_its_need(exported: Path, tmp_path: Path) -> None:
    data = encoded(np.zeros((1200, 1500, 3), np.uint8), "PNG")
    with Upscaler.load(exported, threads=2, memory_limit=2**26) as limited:
        with pytest.raises(MemoryLimitError, match=r"needs \d+ MiB, more than memory_limit, because WebP") as caught:
            limited.file(data, tmp_path / "b.webp")
        assert caught.value.least_bytes > 1200 * 1500 * 3 * 17
        assert not list(tmp_path.iterdir())
    with Upscaler.load(exported, threads=2, memory_limit=caught.value.least_bytes) as enough:
        assert enough.file(data, tmp_path / "b.webp").size_out == (4800, 6000)


def test_strips_of_a_truncated_picture_leave_nothing(exported: Path, tmp_path: Path) -> None:
    data = encoded(picture(900, 1100), "PNG")
    with (
        Upscaler.load(exported, threads=2, memory_limit=2**27) as limited,
        pytest.raises(PictureError, match="damaged or truncated"),
    ):
        limited.file(data[: len(data) * 9 // 10], tmp_path / "b.png")
    assert not list(tmp_path.iterdir())


def test_a_large_picture_in_strips_needs_little_memory(exported: Path) -> None:
    """4,200×3,000 pixels in and 50 times as many bytes out, 640 MB, under a limit of 160 MiB: anonymous memory counts."""
    script = """
        import sys, threading, time, io
        from pathlib import Path
        import numpy as np, pyvips
        from rdsr.runtime import Upscaler
        folder = Path(sys.argv[2])
        pyvips.Image.black(3000, 4200, bands=3).copy(interpretation="srgb").pngsave(str(folder / "a.png"))
        def anonymous():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) // 1024
        upscaler = Upscaler.load(sys.argv[1], threads=2, memory_limit="160MiB")
        before, peak, done = anonymous(), 0, False
        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous())
                time.sleep(0.01)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            upscaler.file(folder / "a.png", folder / "b.png")
        finally:
            done = True
            watcher.join()
        print(peak - before)
    """
    with tempfile.TemporaryDirectory() as folder:
        assert int(run_alone(script, exported, folder)) < 170
        assert reading.open_picture(Path(folder) / "b.png").__enter__().header.shape == (16800, 12000, 3)


@pytest.mark.parametrize("kind", ["zstd", "lzma", "bmp", "12 bit", "progressive", "interlaced", "orientation", "webp"])
def test_inputs_that_cannot_be_read_in_strips_are_written_in_strips(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pixels = scene(300, 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = {
        "zstd": lambda: encoded(pixels, "TIFF", compression="zstd"),
        "lzma": lambda: encoded(pixels, "TIFF", compression="lzma"),
        "bmp": lambda: encoded(pixels, "BMP"),
        "12 bit": lambda: twelve_bits(pixels),
        "progressive": lambda: encoded(pixels, "JPEG", progressive=True),
        "interlaced": lambda: interlaced(pixels),
        "orientation": lambda: encoded(pixels, "JPEG", exif=exif.tobytes()),
        "webp": lambda: encoded(pixels, "WEBP", lossless=True),
    }[kind]()
    with Upscaler.load(exported, threads=2) as upscaler:
        whole = upscaler.encoded(data)
        monkeypatch.setattr(encoded_module, "_WHOLE", 0)
        monkeypatch.setattr(encoded_module, "_whole", None)
        assert upscaler.encoded(data) == whole


def twelve_bits(pixels: np.ndarray) -> bytes:
    return tiff_of(pixels[:, :, 0].astype(np.uint16) * 16, Layout(bits=12))


def interlaced(pixels: np.ndarray) -> bytes:
    return png(pixels, 8, 2, interlaced=True)


def test_the_least_limit_that_is_named_suffices(exported: Path, tmp_path: Path) -> None:
    for data in (encoded(np.zeros((2500, 3000, 3), np.uint8), "PNG"), interlaced(np.zeros((900, 3000, 3), np.uint8))):
        with Upscaler.load(exported, threads=2, memory_limit="60MiB") as small, pytest.raises(MemoryLimitError) as caught:
            small.file(data, tmp_path / "b.png")
        assert f"needs {caught.value.least_bytes // 2**20} MiB" in str(caught.value)
        with Upscaler.load(exported, threads=2, memory_limit=caught.value.least_bytes) as enough:
            assert enough.file(data, tmp_path / "b.png").size_out[1] == 12000
