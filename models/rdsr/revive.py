"""Reviving dead channels of a decoder in training.

A channel that is negative everywhere stays so: ReLU gives it no gradient. High learning rates kill most channels of a deep
body's first half (`revive_every` in models/training/config.py has figures), and the network goes on with the few that are
left. The idea is that of ReDo (Sokar et al., ICML 2023): fresh weights into the channel, zeros out of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Modulation, RepConv
from .decoder import RepDecoder

__all__ = ["revive"]

_SPREAD = 0.1
"""Standard deviation of a revived channel where no other channel lives to compare with."""
Producer = nn.Conv2d | RepConv


@torch.no_grad()
def revive(decoder: RepDecoder, lr: Tensor, z: Tensor | None, generator: torch.Generator) -> int:
    """Give every channel that is 0 in all of `lr` (N×3×H×W in [0, 1]) new weights, and return their number. `z`: N×latent.

    The next convolution reads nothing from a revived channel at first, so the decoder computes the same for these pictures.
    The new weights make half of its values positive, and as far spread as those of the other channels.
    """
    revived, x = 0, lr
    for (producer, modulation), consumer in zip(_layers(decoder), [*decoder.body, decoder.tail], strict=True):
        assert isinstance(consumer, Producer)
        y = _output(producer, modulation, x, z)
        dead = _dead(y)
        if dead.any():
            living = y.transpose(0, 1).flatten(1)[~dead]
            spread = max(float(living.std(dim=1, correction=0).median()) if len(living) else 0.0, _SPREAD)
            _renew(producer, modulation, dead, x, spread, generator)
            _unread(consumer, dead)
            revived += int(dead.sum())
            y = _output(producer, modulation, x, z)
        x = y
    return revived


def _layers(decoder: RepDecoder) -> list[tuple[Producer, Modulation | None]]:
    """Head and body: (convolution, the modulation between it and its ReLU)."""
    modulations = cast(dict[str, Modulation], dict(decoder.modulation.items()))
    blocks = cast(Iterable[RepConv], decoder.body)
    return [(decoder.head, None), *((block, modulations.get(str(index))) for index, block in enumerate(blocks))]


def _output(producer: Producer, modulation: Modulation | None, x: Tensor, z: Tensor | None) -> Tensor:
    """What the next convolution reads."""
    y: Tensor = producer(x)
    return F.relu(y if modulation is None or z is None else modulation(y, z))


def _dead(y: Tensor) -> Tensor:
    return y.amax(dim=(0, 2, 3)) <= 0


def _renew(
    producer: Producer, modulation: Modulation | None, dead: Tensor, x: Tensor, spread: float, generator: torch.Generator
) -> None:
    fresh = torch.randn(int(dead.sum()), *producer.weight.shape[1:], generator=generator).to(producer.weight)
    response = F.conv2d(x, fresh, padding=1)
    factor = spread / response.std(dim=(0, 2, 3)).clamp(min=1e-6)
    assert producer.bias is not None
    producer.weight[dead] = fresh * factor[:, None, None, None]
    producer.bias[dead] = -response.mean(dim=(0, 2, 3)) * factor
    for name in ("conv1x1", "project", "identity"):
        if (branch := getattr(producer, name, None)) is not None:
            branch[dead] = 0
    if modulation is not None:  # scales, then shifts
        modulation.weight[dead.repeat(2)] = 0
        modulation.bias[dead.repeat(2)] = 0


def _unread(consumer: Producer, dead: Tensor) -> None:
    consumer.weight[:, dead] = 0
    for name in ("conv1x1", "expand"):
        if (branch := getattr(consumer, name, None)) is not None:
            branch[:, dead] = 0
    if (identity := getattr(consumer, "identity", None)) is not None:
        identity[dead] = 0
