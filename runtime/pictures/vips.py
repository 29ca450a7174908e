"""libvips, set up for untrusted pictures: the one door to `pyvips`."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..host import cpu
from ..host.cancel import Cancel

os.environ.setdefault("VIPS_WARNING", "1")  # no warnings on stderr; what matters becomes an error, or a result's warning
os.environ.setdefault("VIPS_CONCURRENCY", str(cpu.available_threads()))
logging.getLogger("pyvips").setLevel(logging.CRITICAL)

import pyvips  # noqa: E402

__all__ = [
    "DTYPES", "LOADERS", "Error", "Image", "dtype_of", "from_array", "patched_source", "pyvips", "rounded", "stoppable",
]  # fmt: skip


def _keep_glib_quiet() -> None:
    """GLib prints on stderr that a value of a crafted file is out of range; libvips refuses such a file anyway."""
    with open("/proc/self/maps") as maps:
        libraries = {line.split(maxsplit=5)[5].strip() for line in maps if "libvips" in line or "libglib" in line}
    for path in libraries:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(path).g_log_set_default_handler(_SILENT, None)


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
_keep_glib_quiet()
pyvips.cache_set_max(0)  # a picture is never asked for twice, and a cache would keep it
Error = pyvips.Error
Image = pyvips.Image
LOADERS = {
    "png": "pngload_source", "jpg": "jpegload_source", "webp": "webpload_source", "tif": "tiffload_source",
    "avif": "heifload_source", "gif": "gifload_source",
}  # fmt: skip
"""Format → the only loader that is tried."""
DTYPES = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}
"""NumPy's name of a dtype → libvips' name."""
_INTERPRETATIONS = {
    ("uint8", False): "b-w", ("uint8", True): "srgb", ("uint16", False): "grey16", ("uint16", True): "rgb16",
    ("float32", False): "b-w", ("float32", True): "scrgb",
}  # fmt: skip


def patched_source(content: bytes | int, at: int, patch: bytes) -> Any:
    """A source of encoded bytes, or of an open file, in which a few bytes are others."""
    size = len(content) if isinstance(content, bytes) else os.fstat(content).st_size
    place = 0

    def read(wanted: int) -> bytes:
        nonlocal place
        part = content[place : place + wanted] if isinstance(content, bytes) else os.pread(content, wanted, place)
        start, stop = max(at, place), min(at + len(patch), place + len(part))
        if start < stop:
            part = part[: start - place] + patch[start - at : stop - at] + part[stop - place :]
        place += len(part)
        return part

    def seek(offset: int, whence: int) -> int:
        nonlocal place
        place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: place, os.SEEK_END: size}[whence])
        return place

    source = pyvips.SourceCustom()
    source.on_read(read)
    source.on_seek(seek)
    return source


@contextlib.contextmanager
def stoppable(image: Any, cancel: Cancel | None) -> Iterator[None]:
    """While libvips works on an image: stop it when the token is set. Raises `CancelledError` for what fails then.

    It stops between lines; AVIF is encoded in one go.
    """
    if cancel is None:
        yield
        return

    def stop() -> None:
        image.set_kill(True)

    cancel.check()
    cancel.watch(stop)
    try:
        yield
    except Exception:
        cancel.check()  # what is stopped looks like something damaged
        raise
    finally:
        cancel.unwatch(stop)


def interpretation(dtype: str, channels: int) -> str:
    """libvips' name of the colour space of pixels of this dtype with 1 to 4 channels."""
    return _INTERPRETATIONS[dtype, channels > 2]


def from_array(pixels: Any) -> Any:
    """H×W or H×W×C of uint8, uint16 or float32 → a libvips image over the same memory, which must stay as it is."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    image = Image.new_from_memory(pixels.data, width, height, channels, DTYPES[pixels.dtype.name])
    return image.copy(interpretation=interpretation(pixels.dtype.name, channels))


def dtype_of(image: Any) -> np.dtype[Any]:
    """NumPy's dtype of a libvips image of uint8, uint16 or float32."""
    return np.dtype(next(ours for ours, theirs in DTYPES.items() if theirs == image.format))


def rounded(image: Any, dtype: np.dtype[Any]) -> Any:
    """Samples as the nearest values of a dtype."""
    image = image if dtype == np.float32 else image.rint()
    return image.cast(DTYPES[dtype.name]).copy(interpretation=interpretation(dtype.name, image.bands))
