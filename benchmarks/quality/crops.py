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
"""Pixels between crops, and pixels below a crop for its caption."""


def _busiest(hr: Rgb, rough: Rgb, side: int) -> tuple[int, int]:
    """Top and left of the window in which bicubic is furthest from the original, so that a network can show its worth."""
    error = np.abs(hr.astype(np.float32) - rough).mean(axis=2)
    means = cv2.boxFilter(error, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    valid = means[: hr.shape[0] - side + 1, : hr.shape[1] - side + 1]
    return divmod(int(valid.argmax()), valid.shape[1])


def crop_strip(
    candidate: Candidate, dataset: Dataset, target: Path, *, side: int = 96, zoom: int = 2, names: Sequence[str] = ()
) -> None:
    """Write a PNG with one row per picture: bicubic, the candidate, the original. Captions give PSNR-Y of the whole picture.

    `names` picks pictures of the data set (default: all). Crops are `side` pixels wide and high, enlarged `zoom` times
    without interpolation. Raises `BenchmarkError` for an unknown name, `OutputError` if the file cannot be written.
    """
    if unknown := sorted(set(names) - {hr.stem for _, hr in dataset.pairs}):
        raise BenchmarkError(f"the data set {dataset.name} has no picture {', '.join(unknown)}")
    chosen = [(lr, hr) for name, lr, hr in dataset if not names or name in names]
    floor, scale = bicubic(dataset.scale), dataset.scale
    cell = side * zoom
    sheet = Image.new("RGB", (3 * cell + 4 * _GAP, len(chosen) * (cell + _CAPTION + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = _GAP
    for lr, hr in chosen:
        rough, sharp = floor.run(lr), candidate.run(lr)
        window = min(side, *hr.shape[:2])
        y, x = _busiest(hr, rough, window)
        columns = (
            (rough, f"bicubic  {psnr_y(rough, hr, scale):.2f} dB"),
            (sharp, f"{Path(candidate.model).stem}  {psnr_y(sharp, hr, scale):.2f} dB"),
            (hr, "original"),
        )
        for left, (picture, caption) in zip(range(_GAP, 3 * (cell + _GAP), cell + _GAP), columns, strict=True):
            crop = Image.fromarray(picture[y : y + window, x : x + window])
            sheet.paste(crop.resize((cell, cell), Image.Resampling.NEAREST), (left, top))
            draw.text((left + 2, top + cell + 3), caption, fill="black", font=font)
        top += cell + _CAPTION + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    atomic_write(target, buffer.getvalue())
