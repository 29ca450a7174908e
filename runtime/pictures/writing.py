"""Encode pictures, from memory or strip by strip, with the metadata of the picture that they come from."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, OutputError
from ..host.cancel import Cancel
from . import exif, jpeg, png, vips, webp
from .arrays import FULL_SCALE, OVERSHOOT
from .formats import Format, WriteOptions
from .metadata import Metadata

__all__ = ["PictureWriter", "TiffPages", "encode", "resized"]

_PNG_LEVEL = 1
"""With the filter "average" a 2048×1536 result of 9.4 MB takes 55 ms and 6.1 MB; at level 2 102 ms and 4.2 MB."""
_QUALITY = {"jpg": 95, "webp": 95, "avif": 85}
_BIG_TIFF = 2**32 - 2**26
"""Bytes of pixels beyond which a TIFF file may not fit 32-bit offsets, whatever its compression does."""
_KEEP = "icc|xmp|iptc|other"
"""What libvips writes of the metadata. It would change non-ASCII characters of EXIF, and move the notes of cameras."""


def _fitted(image: Any, target: Format) -> Any:
    """In a depth that the format holds, on white if it holds no alpha."""
    depth = vips.dtype_of(image)
    full = FULL_SCALE[depth]
    if not target.alpha and image.bands in (2, 4):
        image = vips.rounded(image.cast("double").flatten(background=[full] * (image.bands - 1), max_alpha=full), depth)
    if depth.name not in target.depths:
        wanted = np.dtype("uint16" if depth == np.float32 and "uint16" in target.depths else "uint8")
        image = vips.rounded(image * (FULL_SCALE[wanted] / full), wanted)
    return image


def _resized(image: Any, width: int, height: int) -> Any:
    """Reduced to a size by Lanczos filtering; colour is weighted by alpha if there is alpha."""
    if (image.width, image.height) == (width, height):
        return image
    options = {"vscale": height / image.height, "kernel": "lanczos3"}
    if image.bands not in (2, 4):
        return image.resize(width / image.width, **options)
    depth = vips.dtype_of(image)
    full = FULL_SCALE[depth]
    weighted = image.premultiply(max_alpha=full).resize(width / image.width, **options)
    alpha = weighted[image.bands - 1].clamp(min=0, max=full)
    colour = weighted[: image.bands - 1].bandjoin(alpha).unpremultiply(max_alpha=full)[: image.bands - 1]
    over = OVERSHOOT * full if depth == np.float32 else 0
    return vips.rounded(colour.clamp(min=-over, max=full + over).bandjoin(alpha), depth)


def _save(image: Any, target: Format, options: WriteOptions, out: Any, *, lossless: bool) -> None:
    """Encode into a libvips target. `lossless` decides for WebP and AVIF."""
    quality = options.quality or _QUALITY.get(target.name)
    if target.name == "png":
        level = _PNG_LEVEL if options.compression is None else options.compression
        image.pngsave_target(out, compression=level, filter="avg", keep=_KEEP)
    elif target.name == "jpg":
        image.jpegsave_target(out, Q=quality, subsample_mode="off", keep=_KEEP)
    elif target.name == "tif":
        pixel = {"uchar": 1, "ushort": 2, "float": 4}[image.format] * image.bands
        kind: dict[str, Any] = {"compression": "deflate", "level": 6 if options.compression is None else options.compression}
        if options.compression == 0:
            kind = {"compression": "none"}
        elif image.format != "float":
            kind["predictor"] = "horizontal"
        big = image.width * image.height * pixel > _BIG_TIFF
        image.tiffsave_target(out, bigtiff=big, keep=_KEEP, **kind)
    elif target.name == "webp":
        image.webpsave_target(out, keep=_KEEP, **({"lossless": True, "exact": True} if lossless else {"Q": quality}))
    else:
        depth = {"bitdepth": 12} if image.format == "ushort" else {"bitdepth": 8}
        kind = {"lossless": True} if lossless else {"Q": quality, "subsample_mode": "off"}
        image.heifsave_target(out, compression="av1", effort=3, keep="all", **depth, **kind)


def _write(
    image: Any, target: Format, options: WriteOptions, metadata: Metadata, file: BinaryIO, name: str, lossless: bool,
    cancel: Cancel | None = None,
) -> None:  # fmt: skip
    """Encode a libvips image into a file. Raises `OutputError`, and `CancelledError` when the token is set."""
    try:
        image = metadata.on(_fitted(image, target))
        if target.name == "bmp":
            from .pillow import write_bmp

            write_bmp(np.squeeze(image.numpy()) if image.bands == 1 else image.numpy(), file)
            return
        block = metadata.exif_of_result(image.height, image.width)
        if target.name == "avif" and block:
            image.set_type(vips.pyvips.GValue.blob_type, "exif-data", exif.PREFIX + block)
        file.flush()
        with _target(file, *_insertion(target, metadata, block)) as out, vips.stoppable(image, cancel):
            _save(image, target, options, out, lossless=lossless)
        if target.name == "webp" and block:
            webp.with_exif(file, block, image.height, image.width)
        file.flush()
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error
    except vips.Error as error:
        _raise_if_full(file, name)
        raise OutputError(f"cannot write {name} as {target.title}") from error


def _insertion(target: Format, metadata: Metadata, block: bytes) -> tuple[int, bytes]:
    """What libvips does not write itself, and where it belongs: (bytes before it, content)."""
    if target.name == "png":
        return png.HEADER_BYTES, metadata.texts + (png.chunk(b"eXIf", block) if block else b"")
    if target.name == "jpg":
        resolution = jpeg.jfif_segment(*metadata.resolution)
        return jpeg.HEADER_BYTES, resolution + (jpeg.exif_segment(exif.PREFIX + block) if block else b"")
    return 0, b""


@contextlib.contextmanager
def _target(file: BinaryIO, before: int, content: bytes) -> Iterator[Any]:
    """A libvips target that writes to a file, with some content put in behind its first bytes."""
    if not content:
        yield vips.pyvips.Target.new_to_descriptor(file.fileno())
        return
    head, failed = bytearray(), list[OSError]()

    def write(part: Any) -> int:
        rest = bytes(part)
        try:
            if len(head) < before:
                missing = before - len(head)
                head.extend(rest[:missing])
                file.write(rest[:missing])
                if len(head) == before:
                    file.write(content)
                rest = rest[missing:]
            file.write(rest)
        except OSError as error:  # nothing may be raised through libvips
            failed.append(error)
            return -1
        return len(part)

    out = vips.pyvips.TargetCustom()
    out.on_write(write)
    try:
        yield out
    except vips.Error:
        if failed:
            raise failed[0] from None
        raise


def _raise_if_full(file: BinaryIO, name: str) -> None:
    """Raise `OutputError` with the system's reason if nothing more can be written to a file that is to be thrown away."""
    # libvips has one text of errors for all threads, so it cannot be asked.
    try:
        os.pwrite(file.fileno(), bytes(4096), os.fstat(file.fileno()).st_size)
        os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror or error}") from error


def encode(
    pixels: NDArray[Any], size: tuple[int, int], target: Format, options: WriteOptions, metadata: Metadata,
    file: BinaryIO, name: str, *, lossless: bool, cancel: Cancel | None = None,
) -> None:  # fmt: skip
    """Encode H×W or H×W×C (uint8, uint16, float32), reduced to `size` (height, width) if it has another.

    What the format cannot hold is converted: other depths are rounded, alpha is laid on white. Raises `OutputError`, and
    `CancelledError` when the token is set.
    """
    pixels = np.ascontiguousarray(pixels)
    image = _resized(vips.from_array(pixels), size[1], size[0])
    _write(image, target, options, metadata, file, name, lossless, cancel)


def resized(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """H×W or H×W×C pixels reduced to `size` (height, width); the same array if they have it already."""
    if pixels.shape[:2] == size:
        return pixels
    array: NDArray[Any] = _resized(vips.from_array(np.ascontiguousarray(pixels)), size[1], size[0]).numpy()
    return array


def started_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """A daemon thread at work. Raises `EngineError` if the system has no more of them."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise EngineError(f"no thread can be started: {error}") from error
    return thread


class PictureWriter:
    """Encodes a picture that arrives in strips, from top to bottom, in a thread of its own.

    libvips pulls its input. The strips reach it as a PNG file without compression, which it can read as it comes.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], size: tuple[int, int], target: Format, options: WriteOptions,
        metadata: Metadata, file: BinaryIO, name: str, *, lossless: bool,
    ) -> None:  # fmt: skip
        """`shape`: H×W or H×W×C of what arrives, uint8 or uint16; `size`: (height, width) of the result."""
        self._shape, self._dtype = shape, dtype
        self._strips: Queue[NDArray[Any] | None] = Queue(maxsize=1)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        """Whether nothing more is taken: the encoder has ended, or is to end."""
        self._done = threading.Event()
        """Whether the encoder has ended. `Thread.join`, once interrupted, no longer tells that in CPython 3.11."""
        self._stream = png.stored_png(shape, dtype, self._arriving())
        self._rest = memoryview(b"")

        def work() -> None:
            try:
                source = vips.pyvips.SourceCustom()
                source.on_read(self._read)
                image = vips.Image.new_from_source(source, "", access="sequential", fail_on="truncated")
                image = image.copy(interpretation=vips.interpretation(dtype.name, image.bands))
                _write(_resized(image, size[1], size[0]), target, options, metadata, file, name, lossless)
            except BaseException as error:
                self._error = error
            finally:
                self._ended.set()
                self._done.set()

        started_thread(work, "rdsr-encode")

    def put(self, strip: NDArray[Any] | None) -> None:
        """Hand over the next rows, which must not change afterwards; None at the end. Raises what encoding raised."""
        while True:
            if self._ended.is_set():
                self._raise()
            with contextlib.suppress(Full):
                self._strips.put(strip, timeout=0.1)
                return

    def finish(self) -> None:
        """Wait until everything is encoded. Raises `OutputError`."""
        self.put(None)
        self._done.wait()
        self._raise()

    def abandon(self) -> None:
        """Stop the encoder; what it has written is to be thrown away."""
        self._ended.set()
        self._done.wait()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._stream, b""))
        part, self._rest = self._rest[:size], self._rest[size:]
        return bytes(part)

    def _arriving(self) -> Iterator[NDArray[Any]]:
        """The strips, until the end or until the work is abandoned."""
        while not self._ended.is_set():
            with contextlib.suppress(Empty):
                strip = self._strips.get(timeout=0.1)
                if strip is None:
                    return
                yield strip


class TiffPages:
    """A TIFF file of several pages, of any sizes and kinds."""

    def __init__(self, file: BinaryIO, name: str, *, big: bool) -> None:
        """`name`: what errors call the file. `big`: whether it may exceed 4 GiB."""
        import tifffile

        self._name = name
        self._writer = tifffile.TiffWriter(tifffile.FileHandle(file, name="pages.tif"), bigtiff=big)

    def add(self, pixels: NDArray[Any], icc: bytes | None, level: int | None) -> None:
        """Append H×W or H×W×C pixels of uint8, uint16 or float32. `level`: 0 … 9 of the compression; None for 6.

        Raises `OutputError`.
        """
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        packing: dict[str, Any] = {}
        if level != 0:
            packing = {"compression": "zlib", "compressionargs": {"level": 6 if level is None else level}}
            packing["predictor"] = pixels.dtype != np.float32
        try:
            self._writer.write(
                pixels,
                photometric="rgb" if channels > 2 else "minisblack",
                planarconfig="contig" if channels > 1 else None,
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                iccprofile=icc,
                metadata=None,
                contiguous=False,
                **packing,
            )
        except OSError as error:
            raise OutputError(f"cannot write {self._name}: {error.strerror or error}") from error

    def close(self) -> None:
        """Complete the file, which stays open."""
        self._writer.close()
