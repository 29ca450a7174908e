"""Validation PSNR on a folder of HR/LR pairs while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...runtime.metrics import psnr_y
from ..degradation import bicubic_downscale, crop_to_multiple
from ..photo_degradation import TEST_DEGRADATIONS, Degradation, degrade_for_test
from .data import read_rgb
from .errors import TrainingError

__all__ = ["Pair", "Predict", "load_pairs", "mean_psnr_y"]


class Pair(NamedTuple):
    """A validation picture."""

    hr: NDArray[np.uint8]
    """H×W×3 uint8 RGB."""
    lr: NDArray[np.uint8]
    """(H/scale)×(W/scale)×3 uint8 RGB."""
    degradation: Degradation
    """How LR came from HR."""


Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""LR 1×3×H×W and HR 1×3×sH×sW in [0, 1], degradation 1×`VECTOR_SIZE` → SR 1×3×sH×sW."""


def load_pairs(folder: Path, scale: int, *, photo: bool = False) -> list[Pair]:
    """Pairs of a data set folder `HR/NAME.png`, `LRx{scale}/NAME.png`; LR is made where it lacks.

    `photo`: each picture comes once under each of `TEST_DEGRADATIONS` instead. `TrainingError` says what is missing.
    """
    pairs = []
    for path in sorted((folder / "HR").glob("*.png")):
        picture = read_rgb(path)
        if picture is None:
            raise TrainingError(f"{path} is not a readable picture")
        hr = crop_to_multiple(picture, scale)
        if photo:
            for name, degradation in TEST_DEGRADATIONS.items():
                pairs.append(Pair(hr, degrade_for_test(hr, scale, name, path.stem), degradation))
        else:
            pairs.append(Pair(hr, _low_resolution(folder / f"LRx{scale}" / path.name, path, hr, scale), Degradation()))
    if not pairs:
        raise TrainingError(f"the validation folder {folder} holds no HR/*.png")
    return pairs


def _low_resolution(low: Path, path: Path, hr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    lr = read_rgb(low) if low.is_file() else bicubic_downscale(hr, scale)
    if lr is None:
        raise TrainingError(f"{low} is not a readable picture")
    if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
        raise TrainingError(f"{low} has {lr.shape[0]}×{lr.shape[1]} pixels, which is not 1/{scale} of {path}")
    return lr


@torch.no_grad()
def mean_psnr_y(predict: Predict, pairs: Sequence[Pair], scale: int, device: torch.device) -> float:
    """Mean PSNR-Y in dB of `predict` over the pairs; border `scale` cropped."""

    def tensor(picture: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div(255)

    values = []
    for hr, lr, degradation in pairs:
        told = torch.from_numpy(degradation.vector()).to(device)[None]
        sr = predict(tensor(lr), tensor(hr), told)[0].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        values.append(psnr_y(sr.cpu().numpy(), hr, scale))
    return float(np.mean(values))
