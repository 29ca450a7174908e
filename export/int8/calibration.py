"""Read the user's folder of pictures that int8 is calibrated and judged on."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...models.downscaling import bicubic_downscale, crop_to_multiple
from ...models.training.data import find_pictures
from ...models.training.errors import TrainingError
from ...runtime.bundle.proof import OWN
from ...runtime.errors import PictureError
from ...runtime.pictures.reading import read_rgb
from ..errors import ExportError

__all__ = ["CalibrationPicture", "read_calibration"]

logger = logging.getLogger(__name__)
MAX_PICTURES = 48
"""Largest number of pictures that are read, taken evenly from the sorted list."""
MAX_SIDE = 128
"""Largest height and width in LR pixels. The middle is cut out of larger pictures."""


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
            pair = _pair(path, scale)
        except PictureError as error:
            logger.warning("calibration leaves out a picture: %s", error)
            continue
        lr, hr = (_middle(picture, unit) for picture, unit in zip(pair, (1, scale), strict=True))
        inside = hr[scale:-scale, scale:-scale]  # the part that PSNR compares
        judges = min(hr.shape[:2]) > 4 * scale and int(inside.max()) - int(inside.min()) > 8
        pictures.append(CalibrationPicture(path.stem, dataset, lr, hr, len(pictures) % 3 == 2 and judges))
    if not pictures:
        raise ExportError(f"nothing to calibrate with: none of the files in {folder} is a readable picture")
    return pictures


def _pair(path: Path, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(LR, HR) of one original. A data set's own LR is taken if its size is right. Raises `PictureError`."""
    picture = read_rgb(path)
    short = [(0, max(0, scale - side)) for side in picture.shape[:2]]  # one LR pixel needs `scale` HR pixels
    hr = crop_to_multiple(np.pad(picture, [*short, (0, 0)], mode="edge"), scale)
    if path.parent.name == "HR":
        lr = None
        with contextlib.suppress(PictureError):
            lr = read_rgb(path.parent.parent / f"LRx{scale}" / path.name)
        if lr is not None and (lr.shape[0] * scale, lr.shape[1] * scale) == hr.shape[:2]:
            return lr, hr
    return bicubic_downscale(hr, scale), hr


def _middle(picture: NDArray[np.uint8], unit: int) -> NDArray[np.uint8]:
    """The middle of a picture, at most `MAX_SIDE` LR pixels high and wide. One LR pixel is `unit` pixels wide in it."""
    top, left = (max(0, length // unit - MAX_SIDE) // 2 * unit for length in picture.shape[:2])
    side = MAX_SIDE * unit
    return np.ascontiguousarray(picture[top : top + side, left : left + side])
