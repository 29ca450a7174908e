"""Side-by-side crops (bicubic, models, the original) of a data set's pictures, as one PNG."""

from __future__ import annotations

import dataclasses
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
from .datasets import BICUBIC, Dataset, find_dataset
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


def _rows(root: Path, scale: int, names: Sequence[str]) -> list[Dataset]:
    """A data set of one pair for each row; `BenchmarkError` for unknown names. A named degradation needs no LR."""
    stems = [high.stem for _, high in find_dataset(root, scale, BICUBIC).pairs]
    asked = [(name, "") if name in stems else name.partition(":")[::2] for name in names or stems]
    if unknown := sorted({name for name, _ in asked} - set(stems)):
        raise BenchmarkError(f"the data set {root.resolve().name} has no picture {', '.join(unknown)}")
    whole = {degradation: find_dataset(root, scale, degradation or None) for _, degradation in asked}
    rows = []
    for name, degradation in asked:
        (pair,) = (pair for pair in whole[degradation].pairs if pair[1].stem == name)
        rows.append(dataclasses.replace(whole[degradation], pairs=(pair,)))
    return rows


def crop_strip(
    candidates: Sequence[Candidate], root: Path, target: Path, *, side: int = 96, zoom: int = 2, names: Sequence[str] = ()
) -> None:
    """Write a PNG with one row per picture: bicubic, the candidates, the original. Captions: PSNR-Y of the whole picture.

    The candidates share one scale. `names` picks pictures of the data set at `root` (default: all); "NAME:jpeg" degrades one
    first, see `find_dataset`. Crops are `side` pixels wide and high, enlarged `zoom` times without interpolation.
    Raises `BenchmarkError` for an unknown name or degradation or two scales, `OutputError` if the file cannot be written.
    """
    scale, *others = sorted({candidate.scale for candidate in candidates})
    if others:
        raise BenchmarkError(f"crops of ×{scale} and ×{others[0]} cannot stand side by side")
    rows = _rows(root, scale, names)
    cell = side * zoom
    width = (len(candidates) + 2) * (cell + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(rows) * (cell + _CAPTION + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = _GAP
    for dataset in rows:
        ((_, lr, hr),) = dataset
        rough = bicubic(scale).run(lr)
        window = min(side, *hr.shape[:2])
        y, x = _busiest(hr, rough, window)
        results = [(f"{dataset.degradation}: bicubic" if dataset.degradation else "bicubic", rough)]
        results += [(Path(candidate.model).stem, candidate.run(lr)) for candidate in candidates]
        columns = [(f"{name}  {psnr_y(sr, hr, scale):.2f} dB", sr) for name, sr in results] + [("original", hr)]
        for left, (caption, picture) in zip(range(_GAP, width, cell + _GAP), columns, strict=True):
            crop = Image.fromarray(picture[y : y + window, x : x + window])
            sheet.paste(crop.resize((cell, cell), Image.Resampling.NEAREST), (left, top))
            draw.text((left + 2, top + cell + 3), caption, fill="black", font=font)
        top += cell + _CAPTION + _GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    atomic_write(target, buffer.getvalue())
