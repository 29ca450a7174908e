"""Every way to store a TIFF file: read as it was written, or refused in a sentence that names what is not supported."""

from __future__ import annotations

import itertools
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from rdsr.runtime import PictureError
from rdsr.runtime.pictures import reading
from rdsr.runtime.pictures.reading import open_picture, read_picture
from rdsr.tests.runtime.pictures.tiff_writer import COMPRESSIONS, DEPTHS, LAYOUTS, ORDERS, Layout, pages, tiff

HEIGHT, WIDTH = 23, 37
KINDS = {
    "grey": (1, None), "grey + straight": (1, 2), "grey + associated": (1, 1), "grey + unspecified": (1, 0),
    "RGB": (3, None), "RGB + straight": (3, 2), "RGB + associated": (3, 1), "RGB + unspecified": (3, 0),
}  # fmt: skip
"""Name → channels of colour, kind of the extra sample."""
FULL = {"u8": 255, "u12": 4095, "u16": 65535, "u32": 2**32 - 1, "i16": 32767}
NAMED = re.compile(r"not supported|cannot be read|can be read|is read for")
EVERYWHERE = ("none", "lzw", "deflate", "packbits")
"""Compressions that every kind of samples must be read from."""


def made(kind: str, depth: str) -> np.ndarray:
    """H×W or H×W×N samples over the whole range of their type, its ends included."""
    rng = np.random.default_rng([list(KINDS).index(kind), list(DEPTHS).index(depth)])
    colours, extra = KINDS[kind]
    shape = (HEIGHT, WIDTH, colours + (extra is not None))
    dtype = DEPTHS[depth][0]
    if depth.startswith("f"):
        samples = rng.random(shape).astype(dtype)
        samples[::5, ::3] = rng.integers(0, 2, samples[::5, ::3].shape)
        if extra != 1:
            samples[1::7, ::2, :colours] *= 3  # brighter than white
            samples[2::7, ::2, :colours] -= 1
    else:
        low = np.iinfo(dtype).min
        samples = rng.integers(low, FULL[depth], shape, dtype, endpoint=True)
        samples[::5, ::3] = np.where(rng.integers(0, 2, samples[::5, ::3].shape), FULL[depth], low)
    if extra == 1:
        full = FULL.get(depth, 1)
        alpha = np.abs(samples[:, :, -1:].astype(np.float64))
        product = np.abs(samples[:, :, :-1].astype(np.float64)) * alpha / full
        samples[:, :, :-1] = product.astype(dtype) if depth.startswith("f") else np.rint(product).astype(dtype)
    return samples if shape[2] > 1 else samples[:, :, 0]


def layout_of(kind: str, depth: str, **more: Any) -> Layout:
    """How a file of this kind stores its samples; `more` are further fields of `Layout`."""
    colours, extra = KINDS[kind]
    _, bits, sample_format = DEPTHS[depth]
    extras = () if extra is None else (extra,)
    return Layout(bits=bits, sample_format=sample_format, photometric=2 if colours == 3 else 1, extra=extras, **more)


def expected(samples: np.ndarray, depth: str) -> np.ndarray:
    """What the reader makes of these samples, premultiplication aside."""
    if depth == "u12":
        return np.rint(samples * (65535 / 4095)).astype(np.uint16)
    return samples.astype(np.float32) if depth.startswith("f") else samples


def differs(read: np.ndarray, wanted: np.ndarray, extra: int | None) -> str:
    """What is wrong with the pixels that were read, in words; empty if nothing is."""
    if (read.shape, read.dtype) != (wanted.shape, wanted.dtype):
        return f"{read.shape} {read.dtype} instead of {wanted.shape} {wanted.dtype}"
    if extra != 1:
        return "" if np.array_equal(read, wanted) else f"{np.mean(read != wanted):.0%} of the samples are wrong"
    alpha = wanted[:, :, -1:]
    if not np.array_equal(read[:, :, -1:], alpha):
        return "alpha is wrong"
    full = 1.0 if wanted.dtype == np.float32 else float(np.iinfo(wanted.dtype).max)
    visible = (alpha > 0)[:, :, 0]
    again = read[:, :, :-1][visible].astype(np.float64) * alpha[visible] / full
    tolerance = 1e-6 if wanted.dtype == np.float32 else 0.51
    error = np.abs(again - wanted[:, :, :-1][visible]).max()
    return "" if error <= tolerance else f"multiplied by alpha again, it is off by {error:.3g}"


def fault(path: Path, wanted: np.ndarray | None, extra: int | None, may_refuse: bool) -> str:
    """What the reader does wrong with this file, in words; empty if nothing. `wanted` is None for what must be refused."""
    try:
        read = read_picture(path)
    except PictureError as error:
        if not may_refuse:
            return f"refused: {error}"
        right = NAMED.search(str(error)) and "damaged" not in str(error) and "0x" not in str(error)
        return "" if right else f"refused without a name for what is not supported: {error}"
    if wanted is None:
        return "read, although it must be refused"
    if (read.header.shape, read.header.dtype) != (read.pixels.shape, read.pixels.dtype.name):
        return f"its header says {read.header.shape} {read.header.dtype}"
    return differs(read.pixels, wanted, extra)


def report(faults: list[str], count: int) -> None:
    assert count > 0
    listed = "\n".join(faults[:20])
    assert not faults, f"{len(faults)} of {count} files:\n{listed}"


def layouts(channels: int) -> Iterator[tuple[str, str, str]]:
    """(layout, compression, byte order); separate planes only for more than one channel."""
    for layout, compression, order in itertools.product(LAYOUTS, COMPRESSIONS, ORDERS):
        if channels > 1 or "planes" not in layout:
            yield layout, compression, order


def must_be_read(kind: str, depth: str, layout: str, compression: str, order: str) -> bool:
    """Whether a refusal is a fault. The rest is read right or refused by name."""
    if compression not in EVERYWHERE:
        return depth == "u8" and kind in ("grey", "RGB", "RGB + straight") and layout == "strips" and "Big" not in order
    if depth == "u12":
        return kind == "grey" and layout == "strips" and order == "little"
    if "planes" in layout:
        return depth in ("u8", "u16", "f32") and kind.startswith("RGB") and layout == "planes"
    return depth in ("u8", "u16", "f16", "f32")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_read_exactly_or_refused_by_name(tmp_path: Path, kind: str, depth: str) -> None:
    samples, (_, extra) = made(kind, depth), KINDS[kind]
    wanted = None if depth in ("u32", "i16") else expected(samples, depth)
    path = tmp_path / "a.tif"
    faults, count = [], 0
    for layout, compression, order in layouts(1 if samples.ndim == 2 else samples.shape[2]):
        made_of = layout_of(kind, depth, layout=layout, compression=compression, order=order)
        path.write_bytes(tiff(samples, made_of))
        count += 1
        found = fault(path, wanted, extra, not must_be_read(kind, depth, layout, compression, order))
        if found:
            faults.append(f"{layout}, {compression}, {order}: {found}")
    report(faults, count)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_tifffile_reads_what_the_tests_write(kind: str, depth: str, tmp_path: Path) -> None:
    """The proof that a fault is the reader's, not the test's."""
    samples = made(kind, depth)
    path = tmp_path / "a.tif"
    for number, (layout, compression) in enumerate(itertools.product(LAYOUTS, COMPRESSIONS)):
        if (samples.ndim == 2 and "planes" in layout) or (depth == "u12" and "tile" in layout):
            continue
        order = list(ORDERS)[number % 4]
        predictor = {"f": 3, "u": 2, "i": 2}[depth[0]] if compression in ("lzw", "deflate", "zstd") and depth != "u12" else 1
        made_of = layout_of(kind, depth, layout=layout, compression=compression, order=order, predictor=predictor)
        path.write_bytes(tiff(samples, made_of))
        read = tifffile.imread(path)
        read = np.moveaxis(read, 0, -1) if "planes" in layout else read
        assert np.array_equal(read, samples), (layout, compression, order)


@pytest.mark.parametrize("depth", ["u8", "u16", "f16", "f32"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictors(tmp_path: Path, kind: str, depth: str) -> None:
    samples, (_, extra) = made(kind, depth), KINDS[kind]
    path = tmp_path / "a.tif"
    faults, count = [], 0
    predictors = (2, 3) if depth.startswith("f") else (2,)
    for predictor, (layout, compression, order) in itertools.product(predictors, layouts(1 if samples.ndim == 2 else 2)):
        if compression in ("none", "packbits") or (predictor, depth) == (2, "f16"):
            continue
        made_of = layout_of(kind, depth, layout=layout, compression=compression, order=order, predictor=predictor)
        path.write_bytes(tiff(samples, made_of))
        count += 1
        found = fault(path, expected(samples, depth), extra, not must_be_read(kind, depth, layout, compression, order))
        if found:
            faults.append(f"predictor {predictor}, {layout}, {compression}, {order}: {found}")
    report(faults, count)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1], ids=["min-is-white", "min-is-black"])
def test_grey_of_few_bits_fills_the_range(tmp_path: Path, bits: int, photometric: int) -> None:
    dtype = np.uint8 if bits <= 8 else np.uint16
    full = 2**bits - 1
    samples = np.random.default_rng(bits).integers(0, full, (HEIGHT, WIDTH), dtype, endpoint=True)
    samples[0, :2] = 0, full
    range_ = np.iinfo(dtype).max
    light = samples if photometric else full - samples
    wanted = np.rint(light * (range_ / full)).astype(dtype)
    path = tmp_path / "a.tif"
    faults, count = [], 0
    for layout, compression, order in layouts(1):
        if bits % 8 and layout == "tiles" and bits != 12:
            continue
        path.write_bytes(
            tiff(samples, Layout(bits=bits, photometric=photometric, layout=layout, compression=compression, order=order))
        )
        count += 1
        common = (
            compression in EVERYWHERE and layout == "strips" and (bits != 12 or (photometric == 1 and order == "little"))
        )
        found = fault(path, wanted, None, may_refuse=not common)
        if found:
            faults.append(f"{layout}, {compression}, {order}: {found}")
    report(faults, count)


@pytest.mark.parametrize("depth", ["u8", "u16"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_min_is_white_leaves_alpha_alone(tmp_path: Path, depth: str, extra: int) -> None:
    full = FULL[depth]
    rng = np.random.default_rng(5)
    alpha = rng.integers(1, full, (HEIGHT, WIDTH), DEPTHS[depth][0], endpoint=True)
    light = rng.integers(0, full, (HEIGHT, WIDTH), DEPTHS[depth][0], endpoint=True)
    stored = np.stack([full - light, alpha], axis=2)
    (tmp_path / "a.tif").write_bytes(tiff(stored, Layout(bits=DEPTHS[depth][1], photometric=0, extra=(extra,))))
    wanted = np.stack([light, alpha], axis=2)
    # What min-is-white means for premultiplied samples is not specified: it may only be refused or straight.
    found = fault(tmp_path / "a.tif", wanted, 2, may_refuse=True)
    assert not found or extra == 1, found


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_become_colours(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(bits)
    colours = rng.integers(0, 256, (2**bits, 3), np.uint8)
    samples = rng.integers(0, 2**bits, (HEIGHT, WIDTH), np.uint8)
    wide = tuple((colours.T.astype(int) * 257).ravel().tolist())
    path = tmp_path / "a.tif"
    faults, count = [], 0
    for layout, compression, order in layouts(1):
        if layout == "tiles" and bits < 8:
            continue
        made_of = Layout(bits=bits, photometric=3, colours=wide, layout=layout, compression=compression, order=order)
        path.write_bytes(tiff(samples, made_of))
        count += 1
        found = fault(path, colours[samples], None, may_refuse=compression not in EVERYWHERE)
        if found:
            faults.append(f"{layout}, {compression}, {order}: {found}")
    report(faults, count)


@pytest.mark.parametrize("order", ORDERS)
def test_pages_differ_in_kind(tmp_path: Path, order: str) -> None:
    kinds = [("RGB", "u8"), ("grey", "u16"), ("RGB + straight", "u16"), ("grey", "f32")]
    content = [(made(kind, depth), layout_of(kind, depth, order=order)) for kind, depth in kinds]
    path = tmp_path / "a.tif"
    path.write_bytes(pages(content))
    for number, (samples, _) in enumerate(content):
        with open_picture(path, frame=number) as picture:
            assert picture.header.frames == len(content)
            read = picture.pixels()
        assert (read.shape, read.dtype) == (samples.shape, samples.dtype)
        assert np.array_equal(read, samples)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", ["u8", "u12", "u16", "f32"])
@pytest.mark.parametrize("compression", ["lzw", "zstd"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, depth: str, compression: str) -> None:
    kind = "grey" if depth == "u12" else "RGB"
    samples = made(kind, depth)
    turned = {
        1: samples, 2: samples[:, ::-1], 3: samples[::-1, ::-1], 4: samples[::-1], 5: samples.swapaxes(0, 1),
        6: np.rot90(samples, -1), 7: samples[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(samples),
    }[orientation]  # fmt: skip
    layout = layout_of(kind, depth, compression=compression, tags=((274, 3, (orientation,)),))
    (tmp_path / "a.tif").write_bytes(tiff(samples, layout))
    may_refuse = compression == "zstd" and depth != "u8"
    assert not fault(tmp_path / "a.tif", expected(turned, depth), None, may_refuse)


def test_strips_are_the_whole_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for layout, depth in itertools.product(("strips", "tiles"), ("u8", "u16", "f32")):
        samples = made("RGB", depth)
        path.write_bytes(tiff(samples, layout_of("RGB", depth, layout=layout)))
        with open_picture(path) as picture:
            assert np.array_equal(np.concatenate(list(picture.strips(7))), samples)


def test_tifffile_and_libtiff_write_the_same_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    colour, grey = made("RGB", "u8"), made("grey", "u16")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        Image.fromarray(colour).save(path, compression=compression)
        assert np.array_equal(read_picture(path).pixels, colour), compression
    for compression in ("lzw", "zlib", "packbits", None):
        tifffile.imwrite(
            path, grey, photometric="minisblack", compression=compression, predictor=compression in ("lzw", "zlib")
        )
        assert np.array_equal(read_picture(path).pixels, grey), compression
    bitonal = Image.fromarray(colour[:, :, 0]).convert("1")
    for compression in ("group3", "group4"):
        bitonal.save(path, compression=compression)
        assert np.array_equal(read_picture(path).pixels, np.asarray(bitonal.convert("L"))), compression


def test_jpeg_inside_tiff(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(smooth).save(path, compression="jpeg", quality=95)
    assert np.abs(read_picture(path).pixels.astype(int) - smooth).max() < 12
    luma = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    tifffile.imwrite(path, luma, photometric="ycbcr", compression="jpeg", subsampling=(2, 2))
    assert np.abs(read_picture(path).pixels.astype(int) - smooth).max() < 12


def test_cmyk_and_lab_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    ink = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    ink[:10, :, 3] = 255  # black above, paper below
    path.write_bytes(tiff(ink, Layout(photometric=5)))
    read = read_picture(path).pixels
    assert read.shape == (HEIGHT, WIDTH, 3)
    assert read.dtype == np.uint8
    assert read[:10].max() < 60
    assert read[10:].min() > 235


def test_lab_becomes_rgb_or_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    lab = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    lab[10:, :, 0] = 255
    path.write_bytes(tiff(lab, Layout(photometric=8)))
    try:
        read = read_picture(path).pixels
    except PictureError:
        assert not fault(path, None, None, may_refuse=True)
    else:
        assert (read.shape, read.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
        assert read[:10].max() < 8
        assert read[10:].min() > 247


REFUSED = {
    "signed 8 bit": (np.zeros((4, 5), np.int8), Layout(sample_format=2)),
    "signed 16 bit": (np.zeros((4, 5), np.int16), Layout(bits=16, sample_format=2)),
    "unsigned 32 bit": (np.zeros((4, 5), np.uint32), Layout(bits=32)),
    "unsigned 64 bit": (np.zeros((4, 5), np.uint64), Layout(bits=64)),
    "complex": (np.zeros((4, 5), np.complex64), Layout(bits=64, sample_format=6)),
    "24-bit float": (np.zeros((4, 15), np.uint8), Layout(sample_format=3, tags=((258, 3, (24,)), (256, 4, (5,))))),
    "10 bit": (np.zeros((4, 5), np.uint16), Layout(bits=10)),
    "five samples": (np.zeros((4, 5, 5), np.uint8), Layout(photometric=2, extra=(2, 0))),
    "different depths": (np.zeros((4, 5, 3), np.uint8), Layout(photometric=2, tags=((258, 3, (5, 6, 5)),))),
    "unknown compression": (np.zeros((4, 5), np.uint8), Layout(tags=((259, 3, (33333,)),))),
    "JPEG XL": (np.zeros((4, 5), np.uint8), Layout(tags=((259, 3, (50002,)),))),
    "LERC": (np.zeros((4, 5), np.uint8), Layout(tags=((259, 3, (34887,)),))),
    "colour filter array": (np.zeros((4, 5), np.uint8), Layout(photometric=32803)),
    "LogLuv": (np.zeros((4, 5), np.uint16), Layout(bits=16, photometric=32845, tags=((259, 3, (34676,)),))),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    samples, layout = REFUSED[kind]
    for order in ORDERS:
        (tmp_path / "a.tif").write_bytes(tiff(samples, Layout(**(vars(layout) | {"order": order}))))
        assert not fault(tmp_path / "a.tif", None, None, may_refuse=True)


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "png", "jpegxl"])
def test_compressions_of_other_formats_are_read_or_refused_by_name(tmp_path: Path, compression: str) -> None:
    smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth, photometric="rgb", compression=compression)
    try:
        read = read_picture(path).pixels
    except PictureError:
        assert not fault(path, None, None, may_refuse=True)
    else:
        assert read.shape == smooth.shape
        assert np.abs(read.astype(int) - smooth).max() <= 12


@pytest.mark.parametrize("missing", [258, 262, 277, 278, 279, 284, 339])
@pytest.mark.parametrize("depth", ["u8", "u16", "f32"])
def test_a_missing_tag_costs_no_foreign_memory(tmp_path: Path, depth: str, missing: int) -> None:
    """Read as it was written, or refused: where SamplesPerPixel is missing, other decoders hand out old memory."""
    samples = made("RGB", depth)
    for layout, order in itertools.product(("strips", "planes"), ORDERS):
        if (layout, missing) == ("planes", 284):
            continue  # nothing then says that the planes are separate
        (tmp_path / "a.tif").write_bytes(
            tiff(samples, layout_of("RGB", depth, layout=layout, order=order, without=(missing,)))
        )
        try:
            read = read_picture(tmp_path / "a.tif").pixels
        except PictureError:
            continue
        kept = samples.view(read.dtype) if read.dtype.itemsize == samples.dtype.itemsize else samples
        assert np.array_equal(read, kept), (layout, order)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_files_are_refused(tmp_path: Path, layout: str, compression: str) -> None:
    """The directory comes first or last."""
    samples = made("RGB", "u8")
    path = tmp_path / "a.tif"
    last = tiff(samples, Layout(photometric=2, layout=layout, compression=compression))
    separate = "planes" in layout
    tifffile.imwrite(
        path, np.moveaxis(samples, -1, 0) if separate else samples, photometric="rgb",
        planarconfig="separate" if separate else "contig", rowsperstrip=None if "tile" in layout else 5,
        tile=(16, 32) if "tile" in layout else None, compression=None if compression == "none" else compression,
    )  # fmt: skip
    first = path.read_bytes()
    for whole in (last, first):
        for keep in (0, 3, 8, 50, len(whole) // 2, len(whole) - 60, len(whole) - 20):
            path.write_bytes(whole[:keep])
            with pytest.raises(PictureError, match=r"a\.tif"):
                read_picture(path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_height_that_lies_is_refused(tmp_path: Path, layout: str, compression: str) -> None:
    """No row is made up: the directory claims twice as many rows as there are."""
    made_of = Layout(photometric=2, layout=layout, compression=compression, tags=((257, 4, (2 * HEIGHT,)),))
    (tmp_path / "a.tif").write_bytes(tiff(made("RGB", "u8"), made_of))
    with pytest.raises(PictureError, match=r"a\.tif"):
        read_picture(tmp_path / "a.tif")


def test_a_tag_counts_once(tmp_path: Path) -> None:
    """Two thousand lists of strips over the whole file would be read one after the other."""
    parts = 400_000
    entry = struct.pack("<HHII", 273, 4, parts, 8 + 2 + 12 * 2000 + 4)
    content = b"II*\0" + struct.pack("<IH", 8, 2000) + entry * 2000 + bytes(4 + 4 * parts)
    started = time.perf_counter()
    with pytest.raises(PictureError), open_picture(content):
        pass
    assert time.perf_counter() - started < 20, "not the minutes that reading all of them takes"


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_pages_are_counted_whoever_reads_them(tmp_path: Path, compression: str) -> None:
    samples = [made("RGB", "u8"), made("grey", "u8"), made("RGB", "u8")]
    layouts = [layout_of(kind, "u8", compression=compression) for kind in ("RGB", "grey", "RGB")]
    (tmp_path / "a.tif").write_bytes(pages(list(zip(samples, layouts, strict=True))))
    for number, pixels in enumerate(samples):
        with open_picture(tmp_path / "a.tif", frame=number) as picture:
            assert picture.header.frames == 3
            assert np.array_equal(picture.pixels(), pixels)


def test_associated_alpha_of_a_large_file_is_not_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = made("RGB + associated", "u16")
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(samples, layout_of("RGB + associated", "u16", compression="deflate")))
    whole = read_picture(path).pixels
    monkeypatch.setattr(reading, "_IN_MEMORY", 0)
    assert np.array_equal(read_picture(path).pixels, whole)
    assert not differs(whole, samples, 1)


def test_a_profile_of_a_file_that_pillow_reads_is_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "a.tif"
    Image.fromarray(made("RGB", "u8")).save(path, compression="zstd", icc_profile=profile, dpi=(240, 240))
    with open_picture(path) as picture:
        metadata = picture.metadata()
    assert metadata.icc == profile
    assert round(metadata.resolution[0] * 25.4) == 240
