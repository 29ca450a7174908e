"""Read the user's folder of pictures that int8 is calibrated and judged on."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...models.downscaling import bicubic_downscale
from ...models.training.data import MAX_PIXELS, find_pictures
from ...models.training.errors import TrainingError
from ...runtime.bundle.proof import OWN
from ...runtime.errors import PictureError
from ...runtime.pictures.reading import open_picture, read_rgb
from ..errors import ExportError

__all__ = ["CalibrationPicture", "read_calibration"]

logger = logging.getLogger(__name__)
MAX_PICTURES = 48
"""Largest number of pictures that are read, taken evenly from the sorted list."""
MAX_SIDE = 128
"""Largest height and width in LR pixels. The middle is cut out of larger pictures."""
_MARGIN = 4
"""LR pixels around the middle. The bicubic kernel reaches two."""


@dataclasses.dataclass(frozen=True)
class CalibrationPicture:
    """One LR picture (H×W×3 RGB) with its original (sH×sW×3 RGB)."""

    name: str
    dataset: str
    """Name of the folder that was given."""
    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    held_back: bool
    """Whether it judges the quantization. The others choose the ranges."""


def read_calibration(folder: Path, scale: int) -> list[CalibrationPicture]:
    """Pictures of a data set (`HR/NAME.png`, `LRx4/NAME.png`) or of a plain folder, reduced by our own bicubic.

    Every third is held back, unless it cannot judge: it is blank, or hardly larger than the border that PSNR leaves out.
    Raises `ExportError` if there is no folder or no picture in it.
    """
    try:
        paths = find_pictures([folder])
    except TrainingError as error:
        raise ExportError(f"nothing to calibrate with: {error}") from error
    if len(paths) > MAX_PICTURES:
        paths = [paths[i * len(paths) // MAX_PICTURES] for i in range(MAX_PICTURES)]
    dataset = folder.resolve().name
    dataset += "/" if dataset == OWN else ""  # never the name of the package's own set
    pictures: list[CalibrationPicture] = []
    for path in paths:
        try:
            lr, hr = _pair(path, scale)
        except (PictureError, MemoryError) as error:
            reason = error if isinstance(error, PictureError) else f"there is not enough memory for {path}"
            logger.warning("calibration leaves out a picture: %s", reason)
            continue
        inside = hr[scale:-scale, scale:-scale]  # the part that PSNR compares
        judges = min(hr.shape[:2]) > 4 * scale and int(inside.max()) - int(inside.min()) > 8
        pictures.append(CalibrationPicture(path.stem, dataset, lr, hr, len(pictures) % 3 == 2 and judges))
    if not pictures:
        raise ExportError(f"nothing to calibrate with: none of the files in {folder} is a readable picture")
    return pictures


def _pair(path: Path, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(LR, HR), the middles of one picture. A data set's own LR is taken if its size is right. Raises `PictureError`."""
    picture = _read(path)
    short = [(0, max(0, scale - side)) for side in picture.shape[:2]]  # one LR pixel needs `scale` HR pixels
    if any(after for _, after in short):
        picture = np.pad(picture, [*short, (0, 0)], mode="edge")
    size = tuple(side // scale for side in picture.shape[:2])
    middle = [(max(0, side - MAX_SIDE) // 2, min(side, max(0, side - MAX_SIDE) // 2 + MAX_SIDE)) for side in size]
    hr = _cut(picture, middle, scale)
    if path.parent.name == "HR":
        lr = None
        with contextlib.suppress(PictureError):
            lr = _read(path.parent.parent / f"LRx{scale}" / path.name)
        if lr is not None and lr.shape[:2] == size:
            return _cut(lr, middle, 1), hr
    # With a margin wider than the kernel, the LR of the middle is that of the whole picture.
    wider = [(max(0, begin - _MARGIN), min(side, end + _MARGIN)) for (begin, end), side in zip(middle, size, strict=True)]
    lr = bicubic_downscale(_cut(picture, wider, scale), scale)
    inside = [(begin - outer, end - outer) for (begin, end), (outer, _) in zip(middle, wider, strict=True)]
    return _cut(lr, inside, 1), hr


def _read(path: Path) -> NDArray[np.uint8]:
    """The picture as H×W×3; `PictureError` also if its header claims more than `MAX_PIXELS`."""
    with open_picture(path) as picture:
        height, width = picture.header.height, picture.header.width
    if height * width > MAX_PIXELS:
        raise PictureError(f"{path} has {width}×{height} pixels, more than the limit of {MAX_PIXELS}")
    return read_rgb(path)


def _cut(picture: NDArray[np.uint8], window: Sequence[tuple[int, int]], unit: int) -> NDArray[np.uint8]:
    """A copy of a window (rows, columns) that is counted in LR pixels, each `unit` pixels wide in the picture."""
    (top, bottom), (left, right) = window
    return picture[top * unit : bottom * unit, left * unit : right * unit].copy()
