"""Formats of picture files: how they are recognised, what each one holds, and the options of writing them."""

from __future__ import annotations

import dataclasses
import math
import numbers
from pathlib import Path, PurePath

from ..arguments import flag, shown, whole_number
from ..errors import OptionError, OutputError, PictureError

__all__ = [
    "READABLE_SUFFIXES",
    "WRITABLE",
    "Format",
    "WriteOptions",
    "check_fits",
    "check_lossless",
    "check_output",
    "format_of",
    "sniff",
    "suffix_for",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that can be written, and what it holds."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    """File suffixes in lower case, the usual one first."""
    depths: tuple[str, ...] = ("uint8",)
    """Names of the dtypes that it holds."""
    alpha: bool = True
    longest_side: int = 10_000_000
    """Most pixels on a side; libvips takes no more than this default."""
    in_strips: bool = True
    """Whether it can be written strip by strip."""
    lossless: bool = True
    """Whether it can be written without loss."""


WRITABLE = {
    entry.name: entry
    for entry in (
        Format("png", "PNG", (".png",), ("uint8", "uint16")),
        Format("jpg", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), alpha=False, longest_side=65500, lossless=False),
        Format("webp", "WebP", (".webp",), longest_side=16383, in_strips=False),
        Format("tif", "TIFF", (".tif", ".tiff"), ("uint8", "uint16", "float32")),
        Format("avif", "AVIF", (".avif",), ("uint8", "uint16"), longest_side=16384, in_strips=False),
        Format("bmp", "BMP", (".bmp",), alpha=False, longest_side=32767, in_strips=False),
    )
}
"""Formats that can be written, by name."""
READABLE_SUFFIXES = frozenset({".gif", *(suffix for entry in WRITABLE.values() for suffix in entry.suffixes)})
"""Suffixes, in lower case, of files that are taken from folders."""
_BY_SUFFIX = {suffix: entry for entry in WRITABLE.values() for suffix in entry.suffixes}
_READ = "PNG, JPEG, WebP, TIFF, BMP, AVIF and GIF can be read"
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"II*\0", "tif"), (b"MM\0*", "tif"), (b"II+\0", "tif"),
    (b"MM\0+", "tif"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
)  # fmt: skip
_OTHERS = (
    (b"%!PS", "PostScript"), (b"%PDF", "PDF"), (b"8BPS", "Photoshop"), (b"\x76\x2f\x31\x01", "OpenEXR"), (b"PK", "ZIP"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\0\0\0\x0cjP  ", "JPEG 2000"), (b"<svg", "SVG"),
    (b"<?xml", "SVG or XML"), *((b"P%d" % kind, "PPM") for kind in range(1, 8)),
    (b"#?RADIANCE", "Radiance HDR"), (b"\0\0\x01\0", "icon"),
)  # fmt: skip


def sniff(head: bytes, name: str) -> str:
    """The format that a file's first bytes (64 are enough) belong to: a name of `WRITABLE`, or "gif".

    No other decoder is ever tried. Raises `PictureError`.
    """
    if not head:
        raise PictureError(f"{name} is empty")
    for start, kind in _SIGNATURES:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        if b"avif" in head[8:64] or b"avis" in head[8:64]:
            return "avif"
        raise PictureError(f"{name} is a HEIC file or a video, which cannot be read; {_READ}")
    other = next((title for start, title in _OTHERS if head.startswith(start)), None)
    if other is not None:
        article = "an" if other[0] in "iO" or other.startswith("SVG") else "a"
        raise PictureError(f"{name} is {article} {other} file, which cannot be read; {_READ}")
    raise PictureError(f"{name} is no picture of a known format; {_READ}")


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """How a result is written. Raises `OptionError` for values that do not exist or exclude each other."""

    format: str | None = None
    """A name of `WRITABLE`; None for the format that the output's suffix names."""
    quality: int | None = None
    """1 … 100 of JPEG, WebP and AVIF; None for 95 (AVIF: 85)."""
    lossless: bool | None = None
    """Whether WebP and AVIF lose nothing; None for the way of the input, if it has the same format."""
    compression: int | None = None
    """0 … 9 of PNG and TIFF: more is smaller and slower; None for 1 (PNG) and 6."""
    scale: float | None = None
    """How many times larger the result is, above 0 and up to the network's own scale; None for the network's own."""

    def __post_init__(self) -> None:
        if self.format is not None and not (isinstance(self.format, str) and self.format in WRITABLE):
            raise OptionError(f"the format must be {', '.join(WRITABLE)}, not {shown(self.format)}")
        for name, value, low, high in (("quality", self.quality, 1, 100), ("compression", self.compression, 0, 9)):
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, low, high))
        if self.lossless is not None and flag("lossless", self.lossless) and self.quality is not None:
            raise OptionError("lossless and quality exclude each other")
        if self.scale is not None and not _is_scale(self.scale):
            raise OptionError(f"the scale must be a number above 0, not {shown(self.scale)}")


def _is_scale(value: object) -> bool:
    """Whether it is a number above 0 that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return 0 < float(value) < math.inf
    except OverflowError:
        return False


def format_of(path: PurePath, name: str | None = None) -> Format:
    """The format to write under this name: `name` if given, otherwise that of the suffix. Raises `OutputError`."""
    found = _BY_SUFFIX.get(path.suffix.lower())
    if name is not None:
        if found not in (None, WRITABLE[name]):
            raise OutputError(f"cannot write {path}: its suffix names another format than {WRITABLE[name].title}")
        return WRITABLE[name]
    if found is None:
        raise OutputError(f"cannot write {path}: the suffix must be one of {', '.join(sorted(_BY_SUFFIX))}")
    return found


def suffix_for(source: str, name: str | None) -> str:
    """Suffix of an output beside an input of this suffix: that of the format `name`, or else the input's, or .png."""
    if name is not None:
        kept = source.lower() in WRITABLE[name].suffixes
        return source if kept else WRITABLE[name].suffixes[0]
    return source if source.lower() in _BY_SUFFIX else ".png"


def check_output(path: Path, options: WriteOptions | None = None) -> Format:
    """The format of an output. Raises `OutputError` if no picture can be written there. Call it before any work."""
    options = options or WriteOptions()
    target = format_of(path, options.format)
    check_lossless(target, options, str(path))
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:  # the name is too long or has a null byte, or a folder may not be read
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if status is not None and not path.is_file():
        raise OutputError(f"cannot write {path}: it is no regular file")
    return target


def check_lossless(target: Format, options: WriteOptions, name: str) -> None:
    """Raise `OutputError` if the format cannot do what `lossless` asks for."""
    if options.lossless and not target.lossless:
        raise OutputError(f"cannot write {name}: {target.title} always loses something")


def check_fits(target: Format, height: int, width: int, name: str) -> None:
    """Raise `OutputError` if the format cannot hold a picture of this size. Call it before any work."""
    if max(height, width) > target.longest_side:
        raise OutputError(
            f"cannot write {name}: {target.title} holds at most {target.longest_side} pixels on a side, "
            f"and the result has {width}×{height}"
        )
