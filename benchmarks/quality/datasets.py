"""Data sets of HR/LR pairs: `HR/NAME.png` with `LRx4/NAME.png`, or DIV2K's own naming."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...models.degradation import TEST_DEGRADATIONS, degrade_for_test
from ...models.downscaling import bicubic_downscale
from ...runtime.errors import PictureError
from ...runtime.pictures.arrays import split_alpha
from ...runtime.pictures.reading import read_picture
from ..errors import BenchmarkError

__all__ = ["BICUBIC", "Dataset", "find_dataset"]

BICUBIC = "bicubic"
"""Name of the clean LR, as training makes it."""
Rgb = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Paths of the pairs of one data set at one scale."""

    name: str
    scale: int
    pairs: tuple[tuple[Path, Path], ...]
    """(LR, HR) paths, sorted by HR name."""
    degradation: str | None = None
    """What makes LR from HR: "bicubic", or an entry of `TEST_DEGRADATIONS`; None for the data set's own LR."""

    def __iter__(self) -> Iterator[tuple[str, Rgb, Rgb]]:
        """(name, LR, HR) of each pair, H×W×3 uint8 RGB. HR is cropped to a multiple of the scale."""
        for low, high in self.pairs:
            hr = _rgb(high)
            height, width = (side - side % self.scale for side in hr.shape[:2])
            hr = hr[:height, :width]
            lr = _rgb(low) if self.degradation is None else self._degraded(hr, high.stem)
            if lr.shape[:2] != (height // self.scale, width // self.scale):
                raise BenchmarkError(
                    f"{low} has {lr.shape[0]}×{lr.shape[1]} pixels, which is not 1/{self.scale} of {high} ({height}×{width})"
                )
            yield high.stem, lr, hr

    def _degraded(self, hr: Rgb, name: str) -> Rgb:
        assert self.degradation is not None
        if self.degradation == BICUBIC:
            return bicubic_downscale(hr, self.scale)
        return degrade_for_test(hr, self.scale, self.degradation, name)


def _rgb(path: Path) -> Rgb:
    try:
        pixels = read_picture(path).pixels
    except PictureError as error:
        raise BenchmarkError(str(error)) from error
    if pixels.dtype != np.uint8:
        raise BenchmarkError(f"{path} has {pixels.dtype} pixels; PSNR as papers report it needs 8-bit pictures")
    colour, _ = split_alpha(pixels)
    return np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))


def _folders(root: Path, scale: int) -> tuple[Path, Path, str]:
    """HR folder, LR folder, and the suffix of an LR name after the stem of the HR name."""
    if (root / "HR").is_dir():
        return root / "HR", root / f"LRx{scale}", ""
    # DIV2K_valid_HR/0801.png with DIV2K_valid_LR_bicubic/X4/0801x4.png; `root` is the HR folder or its parent
    found = [root] if root.name.endswith("_HR") else [high for high in sorted(root.glob("*_HR")) if high.is_dir()]
    found = [high for high in found if "valid" in high.name] or found
    if not found:
        raise BenchmarkError(f"{root} is no data set: it has neither HR/ nor a folder like DIV2K_valid_HR/")
    if len(found) > 1:
        raise BenchmarkError(f"{root} holds several data sets ({', '.join(h.name for h in found)}); name one of them")
    high = found[0]
    return high, high.parent / re.sub(r"_HR$", "_LR_bicubic", high.name) / f"X{scale}", f"x{scale}"


def find_dataset(root: Path, scale: int, degradation: str | None = None) -> Dataset:
    """Find the pairs in a data set folder. With a `degradation`, LR is made from HR, and no LR folder is needed.

    Raises `BenchmarkError`, which names the missing folder or picture, or the unknown degradation.
    """
    if degradation not in (None, BICUBIC, *TEST_DEGRADATIONS):
        raise BenchmarkError(f"degradation must be {', '.join((BICUBIC, *TEST_DEGRADATIONS))}, not {degradation!r}")
    if not root.is_dir():
        raise BenchmarkError(f"the data set {root} does not exist")
    high, low, suffix = _folders(root, scale)
    if not low.is_dir() and degradation is None:
        raise BenchmarkError(f"the data set {root} has no {low} for ×{scale}")
    pairs = tuple((low / f"{path.stem}{suffix}.png", path) for path in sorted(high.glob("*.png")))
    if not pairs:
        raise BenchmarkError(f"the data set {root} has no pictures in {high.name}/")
    if degradation is None and (missing := next((lr for lr, _ in pairs if not lr.is_file()), None)):
        raise BenchmarkError(f"the data set {root} lacks {missing.parent.name}/{missing.name}")
    return Dataset(root.resolve().name, scale, pairs, degradation)
