"""Validation PSNR on a folder of HR/LR pairs while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...runtime.metrics import psnr_y
from ..degradation import bicubic_downscale, crop_to_multiple
from .data import read_rgb
from .errors import TrainingError

__all__ = ["Pair", "load_pairs", "mean_psnr_y"]

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""HR and LR, H×W×3 uint8 RGB."""


def load_pairs(folder: Path, scale: int) -> list[Pair]:
    """(HR, LR) uint8 RGB pairs of a data set folder `HR/NAME.png`, `LRx{scale}/NAME.png`; LR is made where it lacks."""
    pairs = []
    for path in sorted((folder / "HR").glob("*.png")):
        picture = read_rgb(path)
        if picture is None:
            raise TrainingError(f"{path} is not a readable picture")
        hr = crop_to_multiple(picture, scale)
        low = folder / f"LRx{scale}" / path.name
        lr = read_rgb(low) if low.is_file() else bicubic_downscale(hr, scale)
        if lr is None:
            raise TrainingError(f"{low} is not a readable picture")
        if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
            raise TrainingError(f"{low} has {lr.shape[0]}×{lr.shape[1]} pixels, which is not 1/{scale} of {path}")
        pairs.append((hr, lr))
    if not pairs:
        raise TrainingError(f"the validation folder {folder} holds no HR/*.png")
    return pairs


@torch.no_grad()
def mean_psnr_y(
    predict: Callable[[Tensor, Tensor], Tensor], pairs: Sequence[Pair], scale: int, device: torch.device
) -> float:
    """Mean PSNR-Y in dB of `predict(lr, hr)`, both 1×3×H×W in [0, 1], over the pairs; border `scale` cropped."""

    def tensor(picture: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float().div(255)

    values = []
    for hr, lr in pairs:
        sr = predict(tensor(lr), tensor(hr))[0].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        values.append(psnr_y(sr.cpu().numpy(), hr, scale))
    return float(np.mean(values))
