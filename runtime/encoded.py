"""Upscale encoded pictures: check the header, decode, run the network, encode; whole in memory, or strip by strip."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

from ..atomic import atomic_file
from .arguments import callback, instance, whole_number
from .errors import MemoryLimitError, OptionError, OutputError, PictureError, RdsrError
from .host.cancel import Cancel
from .pictures.alpha import SPREAD_REACH
from .pictures.arrays import Picture, check_values
from .pictures.channels import Pixels, is_colourless
from .pictures.formats import WRITABLE, Format, WriteOptions, check_fits, check_lossless, check_output
from .pictures.reading import EncodedPicture, Header, check_pixels, open_picture
from .pictures.strips import BANDS, StripSource, StripTarget
from .pictures.writing import PictureWriter, TiffPages, encode, resized
from .pipelines import Progress
from .results import FileResult
from .tiling.tiles import Plan

__all__ = ["FileJob", "Network", "Upscaled", "upscale_encoded"]

_FILES = 80 * 2**20
"""Bytes that decoders, encoders and the interpreter itself need beside the pixels; measured with PNG and TIFF."""
_IN_STRIPS = 2**29
"""Most pixels, by default, of a picture that passes through in strips and so needs little memory, but days."""
_WHOLE = 2**28
"""Bytes of input and output together up to which a picture is held whole, if there is no memory limit."""


class Network(Protocol):
    """What this module needs of an `Upscaler`."""

    memory_limit: int | None
    in_strips: bool
    """Whether pictures may pass through in strips."""

    @property
    def scale(self) -> int: ...

    def plan_file(
        self, height: int, width: int, dtype: Any, *, alpha: bool, limit: int | None, row_bytes: int | None
    ) -> Plan: ...

    def upscale_pixels(
        self, pixels: Pixels, out: Any, *, grey: bool, plan: Plan, cancel: Cancel | None, progress: Progress | None
    ) -> tuple[str, str]: ...


@dataclasses.dataclass(frozen=True)
class Upscaled:
    """How one encoded picture was upscaled."""

    size_in: tuple[int, int]
    """Height and width."""
    size_out: tuple[int, int]
    backend: str
    precision: str
    ms: float
    """Wall-clock milliseconds of the network; in strips, decoding and encoding run at the same time."""
    decode_ms: float
    encode_ms: float
    warnings: tuple[str, ...]


def upscale_encoded(
    network: Network,
    picture: EncodedPicture,
    target: Format,
    file: BinaryIO,
    *,
    name: str,
    options: WriteOptions,
    max_pixels: int | None,
    cancel: Cancel | None,
    progress: Progress | None,
) -> Upscaled:
    """Upscale one picture into an open file. `name`: what errors call the output.

    Raises `PictureError`, `OutputError`, `OptionError`, and what `Upscaler.run` raises.
    """
    header = picture.header
    picture.cancel = cancel
    size = result_size(header, network.scale, options)
    _check_pixels(network, picture, max_pixels, streamed=network.memory_limit is not None and _in_strips(header, target))
    check_fits(target, *size, name)
    plan, whole = _plan(network, picture.name, header, target)
    lossless = options.lossless
    if lossless is None:
        lossless = options.quality is None and header.lossless and header.format == target.name
    metadata = picture.metadata()
    if whole:
        out, done = _whole(network, picture, size, plan, cancel, progress)
        started = time.perf_counter()
        encode(out, size, target, options, metadata, file, name, lossless=lossless, cancel=cancel)
        return dataclasses.replace(done, encode_ms=_ms_since(started))
    picture.complete()
    shape, dtype = _larger(header, network.scale), np.dtype(header.dtype)
    source = StripSource(picture, plan.halo + SPREAD_REACH + 8)
    grey = _surveyed(source.blocks(), picture.name, cancel)
    writer = PictureWriter(shape, dtype, size, target, options, metadata, file, name, lossless=lossless)
    started = time.perf_counter()
    try:
        strips = StripTarget(shape, dtype, writer)
        ran = network.upscale_pixels(source, strips, grey=grey, plan=plan, cancel=cancel, progress=progress)
        ms = _ms_since(started)
        strips.finish()
    finally:
        source.close()
        writer.abandon()
    return Upscaled((header.height, header.width), size, *ran, ms, 0.0, 0.0, tuple(picture.warnings))


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3


def _whole(
    network: Network,
    picture: EncodedPicture,
    size: tuple[int, int],
    plan: Plan,
    cancel: Cancel | None,
    progress: Progress | None,
) -> tuple[Picture, Upscaled]:
    """The result, at the network's own scale, of a picture that is held whole."""
    header = picture.header
    started = time.perf_counter()
    pixels = picture.pixels()
    grey = _surveyed([pixels], picture.name)
    decode_ms = _ms_since(started)
    out: Picture = np.empty(_larger(header, network.scale), header.dtype)
    started = time.perf_counter()
    ran = network.upscale_pixels(pixels, out, grey=grey, plan=plan, cancel=cancel, progress=progress)
    sizes = ((header.height, header.width), size)
    return out, Upscaled(*sizes, *ran, _ms_since(started), decode_ms, 0.0, tuple(picture.warnings))


def _larger(header: Header, scale: int) -> tuple[int, ...]:
    return (header.height * scale, header.width * scale, *header.shape[2:])


def result_size(header: Header, scale: int, options: WriteOptions) -> tuple[int, int]:
    """(height, width) of a result. Raises `OptionError` for a scale beyond the network's own."""
    wanted = options.scale or scale
    if wanted > scale:
        raise OptionError(f"the scale must be at most the network's own, {scale}, not {wanted:g}")
    return max(1, round(header.height * wanted)), max(1, round(header.width * wanted))


def _check_pixels(network: Network, picture: EncodedPicture, max_pixels: int | None, *, streamed: bool = False) -> None:
    """Raise `PictureError` if the header claims more pixels than `max_pixels`.

    If that is None, the available memory counts, which has to hold input and result; or, if the picture passes through in
    strips under a memory limit, `_IN_STRIPS`.
    """
    if max_pixels is None and streamed:
        max_pixels = _IN_STRIPS
    check_pixels(picture, max_pixels, bytes_each=picture.header.pixel_bytes * (1 + network.scale**2))


def _in_strips(header: Header, target: Format) -> bool:
    """Whether a picture can be read and written strip by strip."""
    return header.in_strips and target.in_strips and header.dtype != "float32"


def _plan(network: Network, name: str, header: Header, target: Format) -> tuple[Plan, bool]:
    """The tiles, and whether the picture is held whole. Raises `MemoryLimitError`."""
    limit = network.memory_limit
    alpha = header.channels in (2, 4)
    size = (header.height, header.width, header.dtype)
    amount = header.pixel_bytes * header.height * header.width * (1 + network.scale**2)

    def whole(room: int | None) -> Plan:
        return network.plan_file(*size, alpha=alpha, limit=room, row_bytes=None)

    written_in_strips = network.in_strips and target.in_strips and header.dtype != "float32"
    if limit is None and (amount <= _WHOLE or not written_in_strips):
        return whole(None), True
    least = 0
    if limit is not None and amount < limit:
        try:
            return whole(limit - amount), True
        except MemoryLimitError as error:
            least = error.least_bytes
    if not written_in_strips:
        kind = "float32 pictures" if target.in_strips else target.title
        why = f"because {kind} cannot be written in strips" if network.in_strips else "because the network needs it whole"
        raise _too_small(name, (least or whole(None).peak_bytes) + amount, why)
    row = header.width * header.pixel_bytes * (1 + BANDS * network.scale**2)
    held = 0 if header.in_strips else header.height * header.width * header.pixel_bytes
    room = None if limit is None else max(1, limit - held - _FILES)
    try:
        return network.plan_file(*size, alpha=alpha, limit=room, row_bytes=row), False
    except MemoryLimitError as error:
        why = "read and written in strips" if header.in_strips else "because it cannot be read in strips"
        raise _too_small(name, error.least_bytes + held + _FILES, why) from error


def _too_small(name: str, least: int, why: str) -> MemoryLimitError:
    least = math.ceil(least / 2**20) * 2**20
    return MemoryLimitError(f"{name} with its result needs {least // 2**20} MiB, more than memory_limit, {why}", least)


def _surveyed(blocks: Any, name: str, cancel: Cancel | None = None) -> bool:
    """Whether the pixels show no colour. Raises `PictureError` if one cannot be upscaled; all are decoded for that."""
    grey = True
    for block in blocks:
        if cancel is not None:
            cancel.check()
        try:
            check_values(block)
        except PictureError as error:
            raise PictureError(f"{name}: {error}") from error
        grey = grey and is_colourless(block)
    return grey


class FileJob:
    """One call of `Upscaler.file` or `Upscaler.frames`."""

    def __init__(
        self,
        network: Network,
        options: WriteOptions | None,
        max_pixels: int | None,
        cancel: Cancel | None,
        progress: Progress | None,
        before_commit: Callable[[Path, str], None] | None,
    ) -> None:
        """The arguments are those of `Upscaler.file`. Raises `OptionError`."""
        if max_pixels is not None:
            max_pixels = whole_number("max_pixels", max_pixels, 1)
        for name, value, kind in (("options", options, WriteOptions), ("cancel", cancel, Cancel)):
            instance(name, value, kind)
        for name, function in (("progress", progress), ("before_commit", before_commit)):
            callback(name, function)
        self._network, self._options, self._max_pixels = network, options or WriteOptions(), max_pixels
        self._cancel, self._progress, self._before_commit = cancel, progress, before_commit

    def first(self, source: Path | bytes, output: Path | BinaryIO) -> FileResult:
        """Upscale the first frame."""
        target = check_output(output, self._options) if isinstance(output, Path) else None
        with open_picture(source) as picture:
            frames = picture.header.frames
            if frames > 1:
                picture.warnings.append(
                    f"it has {frames} frames or pages, and only the first was taken (--frames all takes all)"
                )
            if target is None or not isinstance(output, Path):
                return self._into_stream(source, picture, cast(BinaryIO, output))
            return self._into_file(source, picture, output, target)

    def every(self, source: Path | bytes, output: Path) -> list[FileResult]:
        """Upscale every frame, into numbered files or one TIFF file."""
        target = check_output(output, self._options)
        with open_picture(source) as picture:
            frames = picture.header.frames
            if frames == 1:
                return [self._into_file(source, picture, output, target)]
        if target.name == "tif":
            return [self._into_pages(source, output, frames)]
        results = []
        for frame in range(frames):
            numbered = output.with_name(f"{output.stem}-{frame + 1:0{len(str(frames))}d}{output.suffix}")
            check_output(numbered, self._options)
            try:
                with open_picture(source, frame=frame) as picture:
                    results.append(self._into_file(source, picture, numbered, target))
            except RdsrError as error:
                error.results = tuple(results)
                raise
        return results

    def _upscale(self, picture: EncodedPicture, target: Format, file: BinaryIO, name: str) -> Upscaled:
        return upscale_encoded(
            self._network,
            picture,
            target,
            file,
            name=name,
            options=self._options,
            max_pixels=self._max_pixels,
            cancel=self._cancel,
            progress=self._progress,
        )

    def _into_file(self, source: Path | bytes, picture: EncodedPicture, output: Path, target: Format) -> FileResult:
        _not_the_same(source, output)
        with atomic_file(output, self._committing(output)) as file:
            done = self._upscale(picture, target, file, str(output))
        return _result(source, output, done)

    def _into_stream(self, source: Path | bytes, picture: EncodedPicture, output: BinaryIO) -> FileResult:
        """Write to an open file, all at once when the result is complete."""
        own = picture.header.format if picture.header.format in WRITABLE else "png"
        target = WRITABLE[self._options.format or own]
        check_lossless(target, self._options, "the result")
        with self._temporary(picture.header) as file:
            done = self._upscale(picture, target, file, "the result")
            file.seek(0)
            shutil.copyfileobj(file, output, 2**20)
        return _result(source, Path("-"), done)

    def _temporary(self, header: Header) -> BinaryIO:
        """A file for a result: in memory, or on the disk if the result is large."""
        result_bytes = header.pixel_bytes * header.height * header.width * self._network.scale**2
        if result_bytes > _FILES:
            return tempfile.TemporaryFile()
        return os.fdopen(os.memfd_create("rdsr"), "w+b")

    def _into_pages(self, source: Path | bytes, output: Path, frames: int) -> FileResult:
        """Write one TIFF file with a page for each frame."""
        _not_the_same(source, output)
        results = []
        pixel_bytes = 0
        for frame in range(frames):
            with open_picture(source, frame=frame) as picture:
                header = picture.header
                pixel_bytes += header.pixel_bytes * header.height * header.width
        big = pixel_bytes * self._network.scale**2 > 2**31
        with atomic_file(output, self._committing(output)) as file:
            pages = TiffPages(file, str(output), big=big)
            for frame in range(frames):
                with open_picture(source, frame=frame) as picture:
                    results.append(self._page(picture, pages))
            pages.close()
        warnings = dict.fromkeys(text for each in results for text in each.warnings)
        done = dataclasses.replace(results[0], ms=sum(each.ms for each in results), warnings=tuple(warnings))
        return dataclasses.replace(_result(source, output, done), frames=frames)

    def _page(self, picture: EncodedPicture, pages: TiffPages) -> Upscaled:
        """Upscale a frame, which is held whole, and append it."""
        size = result_size(picture.header, self._network.scale, self._options)
        _check_pixels(self._network, picture, self._max_pixels)
        plan, _ = _plan(self._network, picture.name, picture.header, dataclasses.replace(WRITABLE["tif"], in_strips=False))
        out, done = _whole(self._network, picture, size, plan, self._cancel, self._progress)
        pages.add(resized(out, size), picture.metadata().icc, self._options.compression)
        return done

    def _committing(self, output: Path) -> Callable[[BinaryIO], None] | None:
        tell = self._before_commit
        if tell is None:
            return None

        def committing(file: Any) -> None:
            file.seek(0)
            tell(output, hashlib.file_digest(file, "sha256").hexdigest())

        return committing


def _not_the_same(source: Path | bytes, output: Path) -> None:
    if isinstance(source, Path) and output.exists() and output.samefile(source):
        raise OutputError(f"the output {output} is the input itself")


def _result(source: Path | bytes, output: Path, done: Upscaled) -> FileResult:
    name = Path("-") if isinstance(source, bytes) else source
    facts = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    return FileResult(name, output, **facts)
