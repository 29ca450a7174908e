"""Side-by-side crops (bicubic, a model, the original) of a data set's pictures, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...atomic import atomic_write
from ...runtime.metrics import psnr_y
from ..errors import BenchmarkError
from .datasets import Dataset
from .measure import Candidate, bicubic

__all__ = ["crop_strip"]

Rgb = NDArray[np.uint8]
_GAP, _CAPTION = 6, 22


def _busiest(hr: Rgb, rough: Rgb, side: int) -> tuple[int, int]:
    """Top left of the window in which bicubic is furthest from the original: where a network has something to do."""
    error = np.abs(hr.astype(np.float32) - rough).mean(axis=2)
    means = cv2.boxFilter(error, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    valid = means[: hr.shape[0] - side + 1, : hr.shape[1] - side + 1]
    y, x = np.unravel_index(int(valid.argmax()), valid.shape)
    return int(y), int(x)


def crop_strip(
    candidate: Candidate, dataset: Dataset, target: Path, *, side: int = 96, zoom: int = 2, names: Sequence[str] = ()
) -> None:
    """Write a PNG with one row a picture: bicubic, the candidate, the original, PSNR-Y of the whole picture beneath.

    `names` picks pictures of the data set (all by default); crops are `side` pixels, enlarged `zoom` times without
    interpolation. Raises `BenchmarkError` for a name that is not there, `OutputError` where nothing can be written.
    """
    if unknown := sorted(set(names) - {hr.stem for _, hr in dataset.pairs}):
        raise BenchmarkError(f"the data set {dataset.name} has no picture {', '.join(unknown)}")
    chosen = [entry for entry in dataset if not names or entry[0] in names]
    floor = bicubic(dataset.scale)
    font = ImageFont.load_default(13)
    cell = side * zoom
    width, height = 3 * cell + 4 * _GAP, len(chosen) * (cell + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (_, lr, hr) in enumerate(chosen):
        rough, sharp = floor.run(lr), candidate.run(lr)
        window = min(side, *hr.shape[:2])
        y, x = _busiest(hr, rough, window)
        captions = (
            f"bicubic  {psnr_y(rough, hr, dataset.scale):.2f} dB",
            f"{Path(candidate.model).stem}  {psnr_y(sharp, hr, dataset.scale):.2f} dB",
            "original",
        )
        top = _GAP + row * (cell + _CAPTION + _GAP)
        for column, (picture, caption) in enumerate(zip((rough, sharp, hr), captions, strict=True)):
            left = _GAP + column * (cell + _GAP)
            crop = Image.fromarray(picture[y : y + window, x : x + window])
            sheet.paste(crop.resize((cell, cell), Image.Resampling.NEAREST), (left, top))
            draw.text((left + 2, top + cell + 3), caption, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    atomic_write(target, buffer.getvalue())
