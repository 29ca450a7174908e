"""Validation while training: mean PSNR-Y on a folder of HR/LR pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...runtime.metrics import psnr_y
from ..degradation import TEST_DEGRADATIONS, Degradation, degrade_for_test
from ..downscaling import bicubic_downscale, crop_to_multiple
from .data import Rgb, read_rgb
from .errors import TrainingError

__all__ = ["Pair", "Predict", "as_tensor", "load_pairs", "mean_psnr_y"]

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A validation picture."""

    hr: Rgb
    """H×W×3 uint8 RGB."""
    lr: Rgb
    """(H/scale)×(W/scale)×3 uint8 RGB."""
    degradation: Degradation
    """How LR was made from HR."""


Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""LR 1×3×H×W and HR 1×3×sH×sW in [0, 1], degradation 1×`VECTOR_SIZE` → SR 1×3×sH×sW."""


def load_pairs(folder: Path, scale: int, *, photo: bool = False) -> list[Pair]:
    """Read the pairs `HR/NAME.png`, `LRx{scale}/NAME.png` of a data set folder; a missing LR is made by bicubic downscaling.

    `photo`: instead, each picture comes once with each of `TEST_DEGRADATIONS`. A picture that cannot be read is named and
    left out, with its pair. `TrainingError` for a folder without HR/*.png that can be used, or an LR of the wrong size.
    """
    pairs = []
    paths = [path for path in sorted((folder / "HR").glob("*.png")) if path.is_file()]
    for path in paths:
        picture = read_rgb(path)
        if picture is None:
            continue
        hr = crop_to_multiple(picture, scale)
        if min(hr.shape[:2]) <= 2 * scale:
            logger.warning("left out %s: nothing is left of it without a border of %d pixels", path, scale)
            continue
        if photo:
            for name, degradation in TEST_DEGRADATIONS.items():
                pairs.append(Pair(hr, degrade_for_test(hr, scale, name, path.stem), degradation))
        else:
            lr = _low_resolution(folder / f"LRx{scale}" / path.name, path, hr, scale)
            pairs += [] if lr is None else [Pair(hr, lr, Degradation())]
    if not paths:
        raise TrainingError(f"the validation folder {folder} holds no HR/*.png")
    if not pairs:
        raise TrainingError(f"none of the {len(paths)} pictures in {folder}/HR can be used for validation")
    return pairs


def _low_resolution(low: Path, path: Path, hr: Rgb, scale: int) -> Rgb | None:
    lr = read_rgb(low) if low.is_file() else bicubic_downscale(hr, scale)
    if lr is not None and (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
        raise TrainingError(f"{low} has {lr.shape[0]}×{lr.shape[1]} pixels, which is not 1/{scale} of {path}")
    return lr


def as_tensor(pictures: Rgb, device: torch.device) -> Tensor:
    """N×H×W×3 uint8 → N×3×H×W float32 in [0, 1]."""
    return torch.from_numpy(np.require(pictures, requirements="W")).to(device).permute(0, 3, 1, 2).float().div_(255)


@torch.no_grad()
def mean_psnr_y(predict: Predict, pairs: Sequence[Pair], scale: int, device: torch.device) -> float:
    """Mean PSNR-Y in dB of `predict` over the pairs, without a border of `scale` pixels."""
    values = []
    for hr, lr, degradation in pairs:
        vector = torch.from_numpy(degradation.vector()).to(device)[None]
        sr = predict(as_tensor(lr[None], device), as_tensor(hr[None], device), vector)[0]
        rounded = sr.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        values.append(psnr_y(rounded.cpu().numpy(), hr, scale))
    return float(np.mean(values))
