"""Pictures that libvips does not read: BMP, TIFF with ZSTD, LZMA or 12 bits, and later frames of an animated PNG."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, Image, ImageOps, PngImagePlugin, TiffImagePlugin

from ..errors import PictureError
from .metadata import Metadata
from .tiff import TiffPage

__all__ = ["header_of", "pixels_of", "write_bmp"]

_ORIENTATION, _XMP = 0x0112, 700
_MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
# Called directly, they leave the limit on pixels to us; `Image.open` has one of its own.
_PLUGINS: dict[str, Callable[[BinaryIO], Any]] = {
    "png": PngImagePlugin.PngImageFile, "tif": TiffImagePlugin.TiffImageFile, "bmp": BmpImagePlugin.BmpImageFile,
}  # fmt: skip
Opener = Callable[[], AbstractContextManager[BinaryIO]]


def _keep_quiet() -> None:
    """What is wrong with a file becomes an error of ours. Pillow warns of it too, and its libtiff prints it on stderr."""
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    with open("/proc/self/maps") as maps:
        libraries = {line.split(maxsplit=5)[5].strip() for line in maps if "/libtiff" in line}
    for path in libraries:
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


_keep_quiet()


@contextlib.contextmanager
def _opened(opener: Opener, format: str, page: TiffPage | None, frame: int, name: str) -> Any:
    """The Pillow image, not decoded, and the mode to convert it to; "I;16" stays."""
    try:
        with opener() as file, _PLUGINS[format](file) as image:
            if frame:
                if format == "png":
                    _check_depth(opener, name)
                image.seek(frame)
            yield image, _mode_of(image, page, name)
    except (PictureError, MemoryError):
        raise
    except SyntaxError as error:  # Pillow's word for what a plugin does not read
        if page is not None:
            raise PictureError(f"{name} is a TIFF file of a layout that is not supported with its compression") from error
        raise PictureError(f"{name} is damaged or truncated") from error
    except Exception as error:  # decoders raise almost any kind for a crafted file
        raise PictureError(f"{name} is damaged or truncated ({error})") from error


def _check_depth(opener: Opener, name: str) -> None:
    """Raise `PictureError` for frames of 16 bits, of which Pillow would keep 8."""
    with opener() as file:
        if file.read(25)[24:] == b"\x10":
            raise PictureError(f"{name} is an animation of 16 bits, of which only the first frame can be read")


def _mode_of(image: Any, page: TiffPage | None, name: str) -> str:
    if page is not None and (image.mode == "I;16" or max(page.bits) > 8):
        if image.mode == "I;16" and page.bits == (12,):
            return "I;16"
        raise PictureError(f"{name} is a TIFF file of {len(page.bits)} × {max(page.bits)} bits with a compression or depth "
                           "that is read for 8-bit pictures and grey ones only")  # fmt: skip
    if page is not None and image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise PictureError(f"{name} is a TIFF file in {image.mode} with a compression that is read for grey and RGB only")
    if "transparency" in image.info and image.mode in ("L", "P", "RGB"):
        return "LA" if image.mode == "L" else "RGBA"
    return {"1": "L", "PA": "RGBA", "P": "RGB"}.get(image.mode, image.mode if image.mode in _MODES else "RGB")


def header_of(
    opener: Opener, format: str, page: TiffPage | None, frame: int, name: str
) -> tuple[int, str, tuple[int, int], Metadata]:
    """(channels, dtype, (height, width), metadata). Nothing is decoded. Raises `PictureError`."""
    with _opened(opener, format, page, frame, name) as (image, mode):
        width, height = image.size  # of a TIFF file, turned upright already
        if page is None and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        dtype = "uint16" if mode == "I;16" else "uint8"
        return _MODES.get(mode, 1), dtype, (height, width), _metadata(image, page)


def _metadata(image: Any, page: TiffPage | None) -> Metadata:
    """A profile, XMP and the resolution. Pillow's EXIF is not that of the file, byte by byte."""
    across, down = image.info.get("dpi") or (72, 72)
    xmp = image.tag_v2.get(_XMP) if page is not None else image.info.get("xmp")
    return Metadata(
        icc=image.info.get("icc_profile"),
        xmp=xmp if isinstance(xmp, bytes) else None,
        resolution=(float(across) / 25.4 or 1.0, float(down) / 25.4 or 1.0),
    )


def pixels_of(opener: Opener, format: str, page: TiffPage | None, frame: int, name: str) -> NDArray[Any]:
    """Decode: H×W or H×W×C, uint8 or uint16, turned upright. Raises `PictureError`."""
    with _opened(opener, format, page, frame, name) as (image, mode):
        if page is not None:
            image.load()  # which turns a TIFF file by itself
        image = ImageOps.exif_transpose(image) if page is None else image
        if mode == "I;16":
            values = np.asarray(image).astype(np.uint16)
            bits = page.bits[0] if page is not None else 16
            if bits < 16:
                values = np.rint(values * (65535.0 / (2**bits - 1))).astype(np.uint16)
            return 65535 - values if page is not None and page.photometric == 0 else values
        if "transparency" in image.info and mode == "LA":
            image = image.convert("RGBA")  # Pillow cannot convert a transparent grey directly
        return np.asarray(image.convert(mode))


def write_bmp(pixels: NDArray[np.uint8], file: BinaryIO) -> None:
    """Write H×W or H×W×3 uint8 as BMP."""
    Image.fromarray(pixels).save(file, "BMP")
