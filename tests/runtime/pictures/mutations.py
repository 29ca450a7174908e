"""Mutated picture files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from rdsr.tests.runtime.pictures.files import SIGNATURE, bmp, chunk, chunks, encoded, png, scene
from rdsr.tests.runtime.pictures.tiff_writer import Layout, pages, tiff

__all__ = ["mutation", "seeds"]

_INTERESTING = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    32,
    64,
    127,
    128,
    255,
    256,
    1000,
    2000,
    32767,
    32768,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def seeds() -> dict[str, bytes]:
    """Name → a valid file: small, and of every kind that the reader knows."""
    rgb, rgba, grey = scene(24, 31), scene(24, 31, 4), scene(24, 31, 1)
    deep = scene(24, 31, 4, "uint16")
    palette = Image.fromarray(rgb).quantize(16)
    indices = np.asarray(palette)
    colours = np.asarray(palette.getpalette()[:48], np.uint8).reshape(16, 3)
    frames = [Image.fromarray(scene(24, 31, seed=n)) for n in range(3)]
    animated = {"save_all": True, "append_images": frames[1:]}
    exif = Image.Exif()
    exif[0x0112] = 6
    table = chunk(b"PLTE", colours.tobytes())
    files = {
        "png grey 1": png((grey > 127).astype(np.uint8), 1, 0, before=chunk(b"tRNS", b"\0\1")),
        "png grey 16": png(deep[:, :, 0], 16, 0),
        "png rgb": png(rgb, 8, 2, after=chunk(b"tEXt", b"a\0b")),
        "png rgba 16": png(deep, 16, 6),
        "png palette": png(indices, 4, 3, before=table + chunk(b"tRNS", bytes(range(16)))),
        "png interlaced": png(rgba, 8, 6, interlaced=True),
        "png text": png(rgb, 8, 2, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"word " * 9999))),
        "png pillow": encoded(rgb, "PNG", exif=exif, dpi=(72, 72)),
        "apng": encoded(frames[0], "PNG", **animated),
        "jpeg": encoded(rgb, "JPEG", quality=80),
        "jpeg grey": encoded(grey, "JPEG", quality=80),
        "jpeg progressive": encoded(rgb, "JPEG", quality=80, progressive=True),
        "jpeg cmyk": encoded(Image.fromarray(rgba, "CMYK"), "JPEG", quality=80),
        "jpeg exif": encoded(rgb, "JPEG", quality=80, exif=exif, subsampling=0),
        "jpeg restarts": encoded(rgb, "JPEG", quality=80, restart_marker_rows=1),
        "webp": encoded(rgb, "WEBP"),
        "webp lossless": encoded(rgb, "WEBP", lossless=True),
        "webp alpha": encoded(rgba, "WEBP"),
        "webp animated": encoded(frames[0], "WEBP", **animated),
        "gif": encoded(palette, "GIF", transparency=3),
        "gif animated": encoded(frames[0], "GIF", **animated),
        "avif": encoded(rgb, "AVIF", speed=9),
        "avif alpha": encoded(rgba, "AVIF", speed=9),
        "bmp 1": bmp((grey > 127).astype(np.uint8), 1, colours[:2]),
        "bmp 4": bmp(indices, 4, colours),
        "bmp rle": _rle_bmp(indices, colours),
        "bmp 24": encoded(rgb, "BMP"),
        "bmp 32": encoded(rgba, "BMP"),
    }
    return files | _tiff_seeds(rgb, rgba, grey, deep, indices, colours)


def _tiff_seeds(
    rgb: np.ndarray, rgba: np.ndarray, grey: np.ndarray, deep: np.ndarray, indices: np.ndarray, colours: np.ndarray
) -> dict[str, bytes]:
    wide = tuple(np.pad(colours.T.astype(int) * 257, ((0, 0), (0, 0))).ravel().tolist())
    light = scene(24, 31, 3, "float32")
    made = {
        "rgb": (rgb, Layout(photometric=2)),
        "lzw": (rgb, Layout(photometric=2, compression="lzw", predictor=2)),
        "deflate tiles": (rgb, Layout(photometric=2, compression="deflate", layout="tiles")),
        "packbits": (grey, Layout(compression="packbits", photometric=0)),
        "zstd": (rgb, Layout(photometric=2, compression="zstd")),
        "lzma tiles": (rgba, Layout(photometric=2, extra=(2,), compression="lzma", layout="tiles")),
        "planes": (rgb, Layout(photometric=2, layout="planes", order="big")),
        "planes 16": (deep[:, :, :3].copy(), Layout(bits=16, photometric=2, layout="planes", compression="lzw")),
        "tiled planes": (rgb, Layout(photometric=2, layout="tiled planes", compression="deflate")),
        "associated": (rgba, Layout(photometric=2, extra=(1,), compression="lzw")),
        "rgba 16": (deep, Layout(bits=16, photometric=2, extra=(2,), order="big")),
        "grey alpha 16": (deep[:, :, :2].copy(), Layout(bits=16, extra=(2,), order="BigTIFF little")),
        "float": (light, Layout(bits=32, sample_format=3, photometric=2, compression="deflate", predictor=3)),
        "float planes": (light, Layout(bits=32, sample_format=3, photometric=2, layout="planes", order="BigTIFF big")),
        "half": (light.astype(np.float16), Layout(bits=16, sample_format=3, photometric=2)),
        "1 bit": ((grey > 127).astype(np.uint8), Layout(bits=1, photometric=0, layout="tiles")),
        "12 bit": (deep[:, :, 0] >> 4, Layout(bits=12)),
        "palette": (indices, Layout(bits=4, photometric=3, colours=wide)),
        "cmyk": (rgba, Layout(photometric=5, compression="lzw")),
        "lab": (rgb, Layout(photometric=8)),
        "oriented": (rgb, Layout(photometric=2, tags=((274, 3, (6,)),))),
    }
    files = {f"tiff {name}": tiff(samples, layout) for name, (samples, layout) in made.items()}
    files["tiff pages"] = pages([(rgb, Layout(photometric=2)), (grey, Layout(compression="lzw"))])
    files["tiff jpeg"] = encoded(rgb, "TIFF", compression="jpeg")
    files["tiff group4"] = encoded(Image.fromarray(grey).convert("1"), "TIFF", compression="group4")
    files["tiff pillow"] = encoded(rgb, "TIFF", compression="tiff_adobe_deflate")
    return files


def _rle_bmp(indices: np.ndarray, colours: np.ndarray) -> bytes:
    """An 8-bit BMP with run lengths."""
    rows = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in indices[::-1].tolist()) + b"\0\1"
    whole = bytearray(bmp(indices, 8, np.pad(colours, ((0, 240), (0, 0)))))
    start = struct.unpack_from("<I", whole, 10)[0]
    struct.pack_into("<I", whole, 30, 1)  # compression: RLE8
    struct.pack_into("<I", whole, 34, len(rows))
    whole[start:] = rows
    struct.pack_into("<I", whole, 2, len(whole))
    return bytes(whole)


def mutation(rng: np.random.Generator, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """(description, content): one of the files, changed."""
    name, content = files[int(rng.integers(len(files)))]
    change = _CHANGES[int(rng.integers(len(_CHANGES)))]
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        data = change(data, rng, files)
    if name.startswith(("png", "apng")) and rng.random() < 0.7:
        data = _with_right_checksums(data)
    return f"{name}, {change.__name__.strip('_')}", bytes(data)


Change = Callable[[bytearray, np.random.Generator, list[tuple[str, bytes]]], bytearray]


def _flips(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """Random bytes at random places."""
    for at in rng.integers(0, max(1, len(data)), int(rng.integers(1, 9))).tolist():
        if at < len(data):
            data[at] = int(rng.integers(256))
    return data


def _bit(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """One bit."""
    if data:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def _head(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """Random bytes near the start, where headers are."""
    for at in rng.integers(2, 80, int(rng.integers(1, 4))).tolist():
        if at < len(data):
            data[at] = int(rng.integers(256))
    return data


def _tail(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """Random bytes near the end, where TIFF directories often are."""
    for at in rng.integers(1, 260, int(rng.integers(1, 4))).tolist():
        if at <= len(data):
            data[-at] = int(rng.integers(256))
    return data


def _field(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """A field of 1, 2 or 4 bytes takes a value that programs are often wrong about."""
    value, size = _INTERESTING[int(rng.integers(len(_INTERESTING)))], (1, 2, 4)[int(rng.integers(3))]
    near = int(rng.integers(3))
    limit = max(1, len(data) - size)
    at = int(rng.integers(limit)) if near == 0 else min(limit, int(rng.integers(80)))
    at = max(0, len(data) - size - int(rng.integers(260))) if near == 2 else at
    order = ("little", "big")[int(rng.integers(2))]
    data[at : at + size] = (value % 256**size).to_bytes(size, order)
    return data


def _arithmetic(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """A field near the start or the end is doubled, halved, or changed by one."""
    size = (2, 4)[int(rng.integers(2))]
    if len(data) < size + 80:
        return data
    at = int(rng.integers(8, 80)) if rng.random() < 0.5 else len(data) - size - int(rng.integers(min(260, len(data) - size)))
    order = ("little", "big")[int(rng.integers(2))]
    old = int.from_bytes(data[at : at + size], order)
    new = (2 * old, old // 2, old + 1, old - 1, -old)[int(rng.integers(5))]
    data[at : at + size] = (new % 256**size).to_bytes(size, order)
    return data


def _truncation(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """The end is missing."""
    return data[: int(rng.integers(len(data) + 1))]


def _gap(data: bytearray, rng: np.random.Generator, _: list[tuple[str, bytes]]) -> bytearray:
    """A part in the middle is missing, doubled, or zero."""
    first, last = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    last = min(last, first + int(rng.integers(1, 400)))
    part = data[first:last]
    filling = (b"", part + part, bytes(len(part)))[int(rng.integers(3))]
    return data[:first] + filling + data[last:]


def _splice(data: bytearray, rng: np.random.Generator, files: list[tuple[str, bytes]]) -> bytearray:
    """Its start, and the end of another file."""
    other = files[int(rng.integers(len(files)))][1]
    return data[: int(rng.integers(len(data) + 1))] + other[int(rng.integers(len(other))) :]


_CHANGES: tuple[Change, ...] = (_flips, _bit, _head, _tail, _field, _arithmetic, _truncation, _gap, _splice)


def _with_right_checksums(data: bytearray) -> bytearray:
    """A PNG whose chunks have the checksums of what they hold, so that decoders go on."""
    if data[: len(SIGNATURE)] != SIGNATURE:
        return data
    for at, kind, body in chunks(bytes(data)):
        end = at + 8 + len(body)
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack(">I", zlib.crc32(kind + body))
    return data
