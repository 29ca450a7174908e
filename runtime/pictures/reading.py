"""Read encoded pictures: the header first, so that limits hold before decoding; then the pixels, whole or in strips."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import PictureError, PixelLimitError
from ..host.cancel import Cancel
from ..host.memory import available_memory
from . import vips
from .arrays import FULL_SCALE, split_alpha
from .formats import sniff
from .jpeg import END, scans_of
from .metadata import Metadata, of_image
from .png import frame_count, kept_chunks, least_bytes
from .tiff import check_tiff, only_pillow, page_count, tiff_page
from .webp import is_lossless

__all__ = ["EncodedPicture", "Header", "PictureFile", "check_pixels", "open_picture", "read_picture", "read_rgb"]

_IN_MEMORY = 2**26
"""Largest file, in bytes, that is read into memory before it is decoded. Larger ones are read while they are decoded."""
_FILLERS = (b"", b"\x12\x34\x56\x78" * 256, b"\xed\xcb\xa9\x87" * 256)
_LARGEST_FRAMES = 100_000


@dataclasses.dataclass(frozen=True)
class Header:
    """What a picture is, once it is decoded: turned upright, palettes expanded, other colour spaces converted to sRGB."""

    format: str
    """Name of the format: png, jpg, webp, tif, avif, bmp or gif."""
    height: int
    width: int
    channels: int
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    dtype: str
    """uint8, uint16 or float32."""
    frames: int = 1
    """Frames of an animation, or pages of a TIFF file."""
    lossless: bool = True
    in_strips: bool = True
    """Whether it can be decoded strip by strip, from top to bottom."""

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one decoded pixel."""
        return self.channels * np.dtype(self.dtype).itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """H×W for grey, otherwise H×W×C."""
        size = (self.height, self.width)
        return size if self.channels == 1 else (*size, self.channels)


class EncodedPicture:
    """A picture that is not decoded yet. Its header is read, and checked as far as a header can be."""

    def __init__(self, content: bytes | int, name: str, frame: int = 0) -> None:
        """`content`: the encoded bytes, or the descriptor of a file, which stays open as long as the picture is used.

        `name`: what errors call it. `frame`: number of the frame or page, from 0. Raises `PictureError`.
        """
        self._content, self.name, self._frame = content, name, frame
        self.cancel: Cancel | None = None
        """Stops `pixels` and `complete` when it is set: they raise `CancelledError`."""
        self.turned = False
        """Whether its orientation was not upright."""
        self.warnings: list[str] = []
        """What users should know about how it was read, a sentence each."""
        with self._file() as file:
            head = file.read(4096)
            self._format = sniff(head, name)
            if self._format == "avif" and head[8:12] == b"avis":
                self.warnings.append("it is an animation, of which only the first frame can be read")
            self._page = tiff_page(file, frame) if self._format == "tif" else None
            self._pillow = self._format == "bmp" or (self._page is not None and only_pillow(self._page))
            counts = {"png": frame_count, "tif": page_count}
            frames = counts[self._format](file, _LARGEST_FRAMES) if self._format in counts else 1
        if self._format == "png" and frame > 0:
            self._pillow = True  # libvips reads the first frame of an animated PNG alone
        self._fail_on = "warning" if self._format == "jpg" else "truncated"
        if self._format in counts and not 0 <= frame < frames:
            raise PictureError(f"{name} has no frame {frame + 1}; it has {frames}")
        if self._format == "tif":
            self._check_tiff()
        if self._pillow:
            self.header = self._header_of_pillow(frames)
        else:
            self.header = self._header_of_vips(frames)
        if not 0 <= frame < self.header.frames:
            raise PictureError(f"{name} has no frame {frame + 1}; it has {self.header.frames}")

    # -- the header

    def check_plausible(self) -> None:
        """Raise `PictureError` for a PNG file that is too short for its pixels, however well they are compressed."""
        if self._format == "png":
            with self._file() as file:
                least, size = least_bytes(file), file.seek(0, os.SEEK_END)
            if size < least:
                raise PictureError(
                    f"{self.name} is damaged or truncated: {self.header.width}×{self.header.height} pixels do not fit "
                    f"into its {size} bytes"
                )

    def _check_tiff(self) -> None:
        page = self._page
        if page is None:
            raise PictureError(f"{self.name} is damaged or truncated: its page {self._frame + 1} cannot be found")
        # Less than an error lets missing strips be black, and in tiles it takes a warning.
        self._fail_on = "warning" if page.tiled else "error"
        check_tiff(page, self.name, pillow=self._pillow)

    def _header_of_vips(self, frames: int) -> Header:
        image = self._opened()
        if self._format in ("webp", "gif", "avif"):
            frames = max(1, min(int(_field(image, "n-pages", 1)), _LARGEST_FRAMES))
        self.turned = turned = _field(image, "orientation", 1) not in (0, 1)
        upright = self._upright(image)
        channels, dtype = _kind_of(upright, self.name)
        strips = self._format in ("png", "jpg", "tif") and not turned
        if self._format == "png":
            strips &= not _field(image, "interlaced", 0)
        if self._format == "jpg":
            strips &= not _field(image, "jpeg-multiscan", 0)
        lossless = self._format in ("png", "tif", "gif")
        if self._format == "webp":
            with self._file() as file:
                lossless = is_lossless(file)
        return Header(self._format, upright.height, upright.width, channels, dtype, frames, lossless, strips)

    def _header_of_pillow(self, frames: int) -> Header:
        from .pillow import header_of

        channels, dtype, (height, width), self._metadata = header_of(
            self._file, self._format, self._page, self._frame, self.name
        )
        return Header(self._format, height, width, channels, dtype, frames, True, in_strips=False)

    # -- libvips

    @contextlib.contextmanager
    def _file(self) -> Iterator[BinaryIO]:
        if isinstance(self._content, bytes):
            yield io.BytesIO(self._content)
        else:
            with open(f"/proc/self/fd/{self._content}", "rb") as file:  # with a position of its own
                yield file

    def _source(self) -> Any:
        page = self._page
        if page is not None and page.extra[:1] == (1,) and page.extra_at is not None:
            # Associated alpha has to be called straight: libvips would divide by it, and truncate.
            straight = (2).to_bytes(2, "little" if page.little else "big")
            return vips.patched_source(self._content, page.extra_at, straight)
        if isinstance(self._content, bytes):
            return vips.pyvips.Source.new_from_memory(self._content)
        return vips.pyvips.Source.new_from_file(f"/proc/self/fd/{self._content}")

    def _opened(self, access: str = "sequential") -> Any:
        """The libvips image as its loader gives it; its pixels are decoded when they are asked for."""
        source = self._source()
        options: dict[str, Any] = {"access": access, "fail_on": self._fail_on}
        if self._format in ("tif", "webp", "gif", "avif"):
            options["page"] = self._frame
        try:
            image = vips.pyvips.Operation.call(vips.LOADERS[self._format], source, **options)
            image._references.append(source)  # which holds the content; `Image.new_from_source` does the same
            return image
        except vips.Error as error:
            raise self._damaged() from error

    def _upright(self, image: Any) -> Any:
        """Turned by its orientation; in grey or RGB, with straight alpha if any; of a dtype that pictures may have."""
        try:
            image = image.autorot()
            alpha = image.bands in (2, 4) and image.interpretation != "cmyk"
            if self._format == "avif" and image.format == "ushort":
                image = image | (image >> _field(image, "bits-per-sample", 16))  # white is 65535
            if image.interpretation == "cmyk":
                depth = 16 if image.format == "ushort" else 8
                fallback = {} if image.get_typeof("icc-profile-data") else {"input_profile": "cmyk"}
                image = image.icc_transform("srgb", embedded=not fallback, depth=depth, intent="perceptual", **fallback)
                image = image.copy()
                image.remove("icc-profile-data")
            if alpha and self._page is not None and self._page.extra[:1] == (1,):
                image = _straight(image)
            return image
        except vips.Error as error:
            raise PictureError(
                f"the colours of {self.name} cannot be converted to sRGB: its profile may be damaged"
            ) from error

    def _damaged(self) -> PictureError:
        # libvips has one text of errors for all threads, which may speak of other pictures.
        return PictureError(f"{self.name} is damaged or truncated")

    def metadata(self) -> Metadata:
        """What the picture says beside its pixels."""
        if self._pillow:
            return self._metadata
        texts: list[bytes] = []
        if self._format == "png":
            with self._file() as file:
                texts = kept_chunks(file)
        return of_image(self._upright(self._opened()), texts=texts)

    # -- the pixels

    def pixels(self) -> NDArray[Any]:
        """Decode the whole picture: H×W (grey) or H×W×2/3/4 of the header's dtype. Raises `PictureError`."""
        if self._pillow:
            from .pillow import pixels_of

            return pixels_of(self._file, self._format, self._page, self._frame, self.name)
        return self._decoded(lambda image: self._array(image.write_to_memory(), image))

    def strips(self, rows: int) -> Iterator[NDArray[Any]]:
        """Decode from top to bottom, `rows` rows at a time. Raises `PictureError`.

        A picture that the header does not give in strips is held whole, by libvips in a temporary file if it is large.
        """
        if self._pillow:
            pixels = self.pixels()
            yield from (pixels[top : top + rows] for top in range(0, len(pixels), rows))
            return
        image = self._upright(self._opened("sequential" if self.header.in_strips else "random"))
        try:
            region = vips.pyvips.Region.new(image)
            for top in range(0, image.height, rows):
                count = min(rows, image.height - top)
                yield self._array(region.fetch(0, top, image.width, count), image, count)
        except vips.Error as error:
            raise self._damaged() from error

    def complete(self) -> None:
        """Settle how strict to be with a JPEG that is not quite right. It is decoded once to find out, strip by strip."""
        if self._format == "jpg":
            self._decoded(lambda image: image.avg())

    def _decoded(self, work: Any) -> Any:
        """Do `work` with the image. What is wrong with a JPEG but leaves its pixels whole becomes a warning."""
        try:
            image = self._upright(self._opened())
            with vips.stoppable(image, self.cancel):
                return work(image)
        except vips.Error as error:
            if self._format != "jpg" or self._fail_on != "warning" or not isinstance(self._content, bytes):
                raise self._damaged() from error
            first = error
        self._settle(self._content, first)
        return self._decoded(work)

    def _settle(self, content: bytes, error: Exception) -> None:
        """Take a JPEG that libjpeg warns of as it is, with a warning of ours. Raises `PictureError` if data is missing.

        Nothing is missing if no bytes that stand before the end marker change the pixels: libjpeg makes up what it lacks.
        """
        scans, means = scans_of(content), set[float]()
        try:
            for filler in _FILLERS if scans.whole else ():
                self._content, self._fail_on = content[: scans.end].rstrip(b"\xff") + filler + END, "truncated"
                means.add(self._opened().avg())
            if len(means) != 1:
                raise self._damaged() from error
            self._content = content if scans.ended else content + END
            self._fail_on = "warning"
            with contextlib.suppress(vips.Error):
                self._opened().avg()
                self.warnings.append("the JPEG lacks its end marker; all of its pixels are there")
                return
            self._fail_on = "truncated"
            self.warnings.append("the JPEG is not quite right, and some of its pixels may be wrong")
        except vips.Error:
            raise self._damaged() from error

    def _array(self, data: Any, image: Any, rows: int | None = None) -> NDArray[Any]:
        """The bytes that libvips gives, as an array of the promised kind. It refuses anything else."""
        height = image.height if rows is None else rows
        expected = Header(self._format, height, image.width, *_kind_of(image, self.name)).shape
        pixels = np.frombuffer(data, self.header.dtype)
        if (image.width, image.bands) != (self.header.width, self.header.channels) or pixels.size != np.prod(expected):
            raise PictureError(f"{self.name} does not decode to what its header says")
        return pixels.reshape(expected)


def _straight(image: Any) -> Any:
    """Colour divided by alpha, rounded; black where alpha is 0."""
    full = {"uchar": 255.0, "ushort": 65535.0, "float": 1.0}[image.format]
    colour, alpha = image[: image.bands - 1], image[image.bands - 1]
    divided = (alpha == 0).ifthenelse(0, colour * full / alpha)
    joined = (divided if image.format == "float" else divided.rint()).cast(image.format).bandjoin(alpha)
    return joined.copy(interpretation=image.interpretation)


def _field(image: Any, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _kind_of(image: Any, name: str) -> tuple[int, str]:
    """(channels, dtype) of a libvips image. Raises `PictureError` for kinds that pictures cannot have here."""
    dtype = next((ours for ours, theirs in vips.DTYPES.items() if theirs == image.format), None)
    if dtype is None:
        raise PictureError(f"{name} has samples of an unsupported kind ({image.format})")
    if not 1 <= image.bands <= 4:
        raise PictureError(f"{name} has {image.bands} channels; grey and RGB, with alpha or without, can be read")
    return image.bands, dtype


@contextlib.contextmanager
def open_picture(source: Path | bytes, name: str | None = None, frame: int = 0) -> Iterator[EncodedPicture]:
    """Open a file, or the content of one. Raises `PictureError`, which names it."""
    if isinstance(source, bytes):
        yield EncodedPicture(source, name or "the picture", frame)
        return
    name = name or str(source)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            file = stack.enter_context(os.fdopen(descriptor, "rb"))
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise PictureError(f"cannot read {name}: it is no regular file")
            content: bytes | int = file.read() if status.st_size <= _IN_MEMORY else descriptor
            picture = EncodedPicture(content, name, frame)
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            raise PictureError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
        yield picture


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A decoded picture."""

    pixels: NDArray[Any]
    """H×W (grey) or H×W×2/3/4 (grey + alpha, RGB, RGBA); uint8, uint16 or float32."""
    header: Header
    warnings: tuple[str, ...] = ()


def check_pixels(picture: EncodedPicture, max_pixels: int | None, *, bytes_each: int) -> None:
    """Raise `PixelLimitError` if the header claims more pixels than allowed, by `max_pixels` or the available memory.

    `bytes_each`: memory that each pixel takes.
    """
    header = picture.header
    pixels, bound, why = header.height * header.width, max_pixels, ""
    if bound is None:
        bound = available_memory() // bytes_each
        why = f", which the available memory holds at {bytes_each} bytes each"
    if pixels > bound:
        raise PixelLimitError(
            f"{picture.name} is refused: it has {header.width}×{header.height} = {pixels} pixels, more than the limit of "
            f"{bound}{why}; the option max_pixels (--max-pixels) sets another limit"
        )
    picture.check_plausible()


def read_picture(path: Path) -> PictureFile:
    """Decode a picture file whole, turned upright. Raises `PictureError`, which names the file, also if memory is short."""
    with open_picture(path) as picture:
        check_pixels(picture, None, bytes_each=picture.header.pixel_bytes)
        pixels = picture.pixels()
        return PictureFile(pixels, picture.header, tuple(picture.warnings))


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode a picture file as H×W×3 uint8: deeper samples are rounded, alpha is dropped. Raises `PictureError`."""
    pixels = read_picture(path).pixels
    colour, _ = split_alpha(pixels)
    if colour.dtype != np.uint8:
        full = FULL_SCALE[colour.dtype]
        colour = np.rint(np.clip(colour / full, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
