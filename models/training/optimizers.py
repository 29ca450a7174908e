"""Optimizers of a run, and their learning rate from step to step."""

from __future__ import annotations

import math

import torch

from ..rdsr.network import RDSR
from .config import TrainConfig
from .muon import Muon

__all__ = ["learning_rate", "optimizers_for"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine from `learning_rate` to `final_learning_rate`.

    The `prior_steps` have such a schedule to themselves, with all rates times `prior_rate`.
    """
    alone = step < config.prior_steps
    begin, end = (0, config.prior_steps) if alone else (config.prior_steps, config.iterations)
    step, steps = step - begin, end - begin
    if step < config.warmup:
        rate = config.learning_rate * (step + 1) / config.warmup
    else:
        progress = (step - config.warmup) / max(1, steps - config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        rate = config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
    return rate * config.prior_rate if alone else rate


def optimizers_for(network: RDSR, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Adam, or Muon for the decoder's body and tail and Adam for the rest; modulation and ranges have their own rates."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    muon = ("decoder.body.", "decoder.tail.") if config.optimizer == "muon" else ()
    kernels = {name for name, p in trained.items() if name.startswith(muon) and p.ndim == 4}
    modulating = {name for name in trained if ".modulation." in name}
    ranges = {name for name in trained if ".log_" in name}
    groups = [
        {"params": [p for n, p in trained.items() if n not in kernels | modulating | ranges], "rate": 1.0},
        {"params": [p for n, p in trained.items() if n in modulating], "rate": config.modulation_rate},
        {"params": [p for n, p in trained.items() if n in ranges], "rate": config.range_rate},
    ]
    adam = torch.optim.Adam([g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    if not kernels:
        return [adam]
    return [Muon([p for n, p in trained.items() if n in kernels], lr=config.learning_rate), adam]
