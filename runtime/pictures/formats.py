"""Picture files: read and write PNG, JPEG, WebP, TIFF and BMP. Orientation is applied, ICC profile and alpha are kept."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from ...atomic import atomic_write
from ..errors import OutputError, PictureError

__all__ = ["PICTURE_SUFFIXES", "PictureFile", "check_output", "read_picture", "write_picture"]

_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
PICTURE_SUFFIXES = frozenset(_FORMATS)
"""Suffixes (lower case) that can be read and written."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "TIFF": {"compression": "tiff_adobe_deflate"},
}  # fmt: skip
_WEBP_LIMIT = 16383


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A decoded picture and its colour profile."""

    pixels: NDArray[Any]
    """H×W (grey) or H×W×2/3/4 (grey + alpha, RGB, RGBA); uint8, uint16 or float32."""
    icc: bytes | None = None
    """ICC colour profile."""


def read_picture(path: Path) -> PictureFile:
    """Decode a picture file, apply its EXIF orientation and expand palettes. Raises `PictureError`, which names the file."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise PictureError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not content:
        raise PictureError(f"{path} is empty")
    try:
        return _decode(content, path)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is refused: it claims implausibly many pixels ({error})") from error
    except Exception as error:  # decoders raise almost any kind for a crafted file
        raise PictureError(f"{path} is damaged, truncated or no picture ({error})") from error


def _decode(content: bytes, path: Path) -> PictureFile:
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        _check_tiff_size(content)
        return PictureFile(_decode_deep(content, path))  # e.g. a TIFF of floats in colour, for which Pillow has no mode
    with image:
        if image.format not in set(_FORMATS.values()) | {"MPO"}:
            raise PictureError(f"{path} is a {image.format} file; PNG, JPEG, WebP, TIFF and BMP can be read")
        # A profile belongs to the channels it was made for: one for CMYK or Lab is useless after conversion to RGB.
        icc = image.info.get("icc_profile") if image.mode not in ("CMYK", "LAB", "YCbCr") else None
        orientation = _orientation(image)
        image.load()  # finds truncation, even if OpenCV then decodes the pixels
        deep = _bits(image, content) > 8 and image.mode in ("RGB", "RGBA", "RGBX", "LA")  # Pillow has reduced them to 8
        pixels = _decode_deep(content, path) if deep else _pixels(image)
        return PictureFile(_orient(pixels, orientation), icc)


def _check_tiff_size(content: bytes) -> None:
    """Raise unless the header is that of a TIFF file of a plausible size."""
    if content[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("its first bytes belong to no known format")
    stream = io.BytesIO(content)
    directory = ImageFileDirectory_v2(stream.read(8))
    stream.seek(directory.next)
    directory.load(stream)
    width, height = int(directory.get(256, 0)), int(directory.get(257, 0))
    if width * height > 2 * (Image.MAX_IMAGE_PIXELS or 2**28):
        raise Image.DecompressionBombError(f"{width}×{height} pixels")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation that is still to be applied. Both decoders apply that of TIFF files. Broken EXIF counts as none."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # crafted EXIF blocks raise almost anything; the pixels are still good
        return 1


def _bits(image: Image.Image, content: bytes) -> int:
    """Bits for each channel of a PNG or TIFF file; 8 for other formats."""
    if image.format == "PNG":
        return content[24]
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (8,)))
    return 8


def _orient(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror pixels according to an EXIF orientation of 1 … 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    return np.ascontiguousarray(np.flip(pixels, flips[orientation]) if orientation in flips else pixels)


def _pixels(image: Image.Image) -> NDArray[Any]:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its values, {values.min()} to {values.max()}, do not fit into 16 bits")
        return values.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image, dtype=np.float32)
    transparent = "transparency" in image.info
    modes = {"1": "L", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"} | {mode: mode for mode in ("L", "LA", "RGB", "RGBA")}
    mode = modes.get(image.mode, "RGB")
    if transparent and mode in ("L", "RGB"):
        mode = "LA" if mode == "L" else "RGBA"
    # Pillow cannot convert a transparent grey directly, so it goes by way of RGBA.
    converted = image.convert("RGBA").convert(mode) if transparent and mode == "LA" else image.convert(mode)
    return np.asarray(converted)


def _decode_deep(content: bytes, path: Path) -> NDArray[Any]:
    """Decode 16-bit and float pictures, which Pillow cannot hold in colour."""
    pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise PictureError(f"{path} is damaged or no picture")
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    return pixels


def check_output(path: Path) -> None:
    """Raise `OutputError` if no picture can be written under this name. Call it before any work."""
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise OutputError(f"cannot write {path}: the suffix must be one of {', '.join(sorted(PICTURE_SUFFIXES))}")
    try:
        folder = path.is_dir()
    except OSError as error:  # the name is too long, or a folder may not be read
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    if folder:
        raise OutputError(f"cannot write {path}: it is a folder")


def write_picture(path: Path, picture: PictureFile) -> None:
    """Encode by suffix (in 8 bits and on white if the format has no more) and write atomically. Raises `OutputError`."""
    check_output(path)
    try:
        content = _encode(path, picture)
    except (OSError, ValueError, cv2.error) as error:
        raise OutputError(f"cannot encode {path}: {error}") from error
    atomic_write(path, content)


def _encode(path: Path, picture: PictureFile) -> bytes:
    pixels, kind = picture.pixels, _FORMATS[path.suffix.lower()]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if (pixels.dtype == np.uint16 and kind in ("PNG", "TIFF")) or (pixels.dtype == np.float32 and kind == "TIFF"):
        if pixels.ndim == 3 and pixels.shape[2] == 2:
            pixels = np.concatenate([np.repeat(pixels[:, :, :1], 3, axis=2), pixels[:, :, 1:]], axis=2)
        if pixels.ndim == 3:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
        done, content = cv2.imencode(path.suffix.lower(), pixels)
        if not done:
            raise ValueError(f"{kind} does not take pixels of {pixels.dtype}")
        return content.tobytes()
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)
    elif pixels.dtype == np.float32:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    if kind == "WEBP" and max(pixels.shape[:2]) > _WEBP_LIMIT:
        raise ValueError(f"WebP holds at most {_WEBP_LIMIT} pixels on a side, not {pixels.shape[0]}×{pixels.shape[1]}")
    image = Image.fromarray(pixels)
    if kind in ("JPEG", "BMP") and image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB" if image.mode == "RGBA" else "L")
    profile = {"icc_profile": picture.icc} if picture.icc and kind != "BMP" else {}
    buffer = io.BytesIO()
    image.save(buffer, kind, **_OPTIONS.get(kind, {}), **profile)
    return buffer.getvalue()
