"""The training stages: which parts each one trains, and by which loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..int8.samples import hard_edges
from ..rdsr.network import RDSR
from .config import TrainConfig
from .errors import TrainingError
from .validation import Predict

__all__ = ["STAGE_PARTS", "Losses", "picture_loss", "predict_with", "prior_with", "stage_losses"]

STAGE_PARTS = {
    "stage1": ("lpe", "decoder"),
    "stage2": ("condition_encoder", "denoiser", "decoder"),
    "qat": ("quantized",),
}
"""Submodules of RDSR that each stage trains; the others are frozen."""
PredictPrior = Callable[[Tensor, Tensor, Tensor], Tensor]
"""LR N×3×H×W and HR N×3×sH×sW in [0, 1], degradation N×`VECTOR_SIZE` → z, N×latent."""


@dataclasses.dataclass(frozen=True)
class Losses:
    """Terms of one step, scalars."""

    total: Tensor
    pixel: Tensor
    """L1 on pixels in [0, 1] for the log, the same for every kind of loss."""
    prior: Tensor
    """L1 between the latent prior of the reverse process and the LPE's; 0 except in stage2."""


def _lpe(network: RDSR) -> nn.Module:
    if network.lpe is None:
        raise TrainingError("this network has no latent prior encoder, so it cannot be trained")
    return network.lpe


def _quantized(network: RDSR) -> nn.Module:
    if network.quantized is None:
        raise TrainingError("this network has no quantized decoder to train")
    return network.quantized


def picture_loss(sr: Tensor, hr: Tensor, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Compare two N×3×H×W pictures: (pixel loss with the frequency term, L1 on pixels for the log)."""
    l1 = F.l1_loss(sr, hr)
    loss = l1 if config.pixel_loss == "l1" else F.mse_loss(sr, hr)
    if config.frequency_weight:
        spectrum = torch.view_as_real(torch.fft.rfft2(sr - hr, norm="ortho"))
        loss = loss + config.frequency_weight * spectrum.abs().mean()
    return loss, l1.detach()


def stage_losses(
    network: RDSR,
    config: TrainConfig,
    lr: Tensor,
    hr: Tensor,
    noise: Tensor,
    target: Tensor | None = None,
    degradation: Tensor | None = None,
    *,
    prior_alone: bool = False,
) -> Losses:
    """Forward pass of one step.

    `lr` N×3×H×W and `hr` N×3×sH×sW in [0, 1], `noise` N×latent. `target`: the result to learn, in HR's shape (None: HR).
    `degradation`: N×`VECTOR_SIZE`, for a latent prior encoder that takes it. `prior_alone` (stage2): the decoder does not
    run, and the loss is the prior's.
    """
    target = hr if target is None else target
    if config.stage == "stage1":
        z = _lpe(network)(lr, hr, degradation)
        loss, pixel = picture_loss(network.decoder(lr, z).float(), target, config)
        return Losses(loss, pixel, torch.zeros(()))
    if config.stage == "qat":
        return _qat_losses(network, config, lr, target, noise)
    with torch.no_grad():
        wanted = _lpe(network)(lr, hr, degradation).float()
    pooled = network.feature_map(lr).mean(dim=(2, 3))
    with torch.autocast(lr.device.type, enabled=False):  # a few thousand multiplications: float32 costs nothing here
        z = network.prior(pooled.float(), noise)
    l1 = F.l1_loss(z, wanted)
    prior = l1 if config.prior_loss == "l1" else F.mse_loss(z, wanted)
    if prior_alone:
        return Losses(prior, torch.zeros(()), l1.detach())
    loss, pixel = picture_loss(network.decoder(lr, z).float(), target, config)
    return Losses(loss + config.prior_weight * prior, pixel, l1.detach())


def _share_of(share: float, noise: Tensor) -> int:
    """How many of N patches make up `share`, rounded up or down so that the mean over steps is exact; never all of them.

    The step's own noise (N×latent) decides, so that a resumed run draws the same.
    """
    wanted = share * len(noise)
    uniform = 0.5 * (1 + math.erf(float(noise[0, 0]) / math.sqrt(2)))
    return min(math.floor(wanted + uniform), len(noise) - 1)


def _qat_losses(network: RDSR, config: TrainConfig, lr: Tensor, hr: Tensor, noise: Tensor) -> Losses:
    """Distance to the float network's output, and to the original, except for patches in black and white."""
    quantized = _quantized(network)
    share = config.distillation
    count = _share_of(config.black_and_white, noise) if share else 0
    with torch.no_grad():
        seen = torch.cat([lr[count:], hard_edges(lr[:count])])
        noise = torch.cat([noise[count:], noise[:count]])
        z = network.latent_prior(seen, noise)
        teacher = network.decoder(seen, z) if share else None
    sr = quantized(seen, z)
    photographs = len(lr) - count
    loss, pixel = picture_loss(sr[:photographs], hr[count:], config)
    if teacher is not None:
        distance = photographs * picture_loss(sr[:photographs], teacher[:photographs], config)[0]
        if count:
            extremes = picture_loss(sr[photographs:], teacher[photographs:], config)[0]
            distance = distance + config.black_and_white_weight * count * extremes
        loss = (1 - share) * loss + share * distance / len(lr)
    return Losses(loss, pixel, torch.zeros(()))


def predict_with(network: RDSR, stage: str) -> Predict:
    """The function that validation measures. stage1 takes z from the LPE, which sees HR; the others take the prior's z.

    qat uses the quantized decoder. `TrainingError` if the network lacks it, or the LPE in stage1.
    """
    # Deployment draws the noise of seed 0 like this (`initial_noise` in the runtime): validation sees the shipped function.
    noise = torch.from_numpy(np.random.RandomState(0).standard_normal((1, network.config.latent_size))).float()
    prior = prior_with(network, stage, noise)
    decoder = _quantized(network) if stage == "qat" else network.decoder
    return lambda lr, hr, degradation: decoder(lr, prior(lr, hr, degradation))


def prior_with(network: RDSR, stage: str, noise: Tensor) -> PredictPrior:
    """The function that gives the decoder its z in a stage. `noise`: N×latent. `TrainingError` if stage1 lacks the LPE."""
    if stage == "stage1":
        lpe = _lpe(network)
        return lambda lr, hr, degradation: lpe(lr, hr, degradation)
    return lambda lr, hr, degradation: network.latent_prior(lr, noise.to(lr.device))
