"""Calibration pictures, as the arguments that decoders take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Condition", "Sample", "hard_edges", "sample_of", "with_hard_edges"]

Sample = tuple[Tensor, ...]
"""Arguments of `Network.decode`: 1×3×H×W LR in [0, 1], then the tensors that the process kind computes from it."""
Condition = Callable[[Tensor], tuple[Tensor, ...]]
"""N×3×H×W LR → the rest of a `Sample`, e.g. the latent prior."""


@torch.no_grad()
def sample_of(picture: NDArray[np.uint8], condition: Condition) -> Sample:
    """H×W×3 uint8 LR → arguments of the decoder."""
    lr = torch.tensor(picture).permute(2, 0, 1)[None].float().div(255)
    return lr, *condition(lr)


def hard_edges(lr: Tensor) -> Tensor:
    """N×3×H×W in [0, 1] → the same pictures in black and white: white where a pixel is above its picture's median.

    Text and drawings have harder edges than photographs, and larger activations. Ranges taken only from photographs clip
    them: the squared error of `small` on such pictures is 86 grey levels², and 5.5 if the ranges include them.
    """
    return (lr > lr.flatten(1).median(dim=1).values[:, None, None, None]).to(lr.dtype)


@torch.no_grad()
def with_hard_edges(samples: Sequence[Sample], condition: Condition) -> list[Sample]:
    """The samples, followed by each of them in black and white."""
    hard = [hard_edges(lr) for lr, *_ in samples]
    return [*samples, *((lr, *condition(lr)) for lr in hard)]
