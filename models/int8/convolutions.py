"""Post-training int8 of any network whose decoder is built of `nn.Conv2d`.

Weights, input and output of each convolution are quantized separately. A decoder that is a chain of convolutions needs fewer
quantizations and can be trained with them (`chain.py`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .levels import ACTIVATION_LEVELS, weight_limit, weight_scales, without_overflow
from .samples import Sample

__all__ = ["Levels", "QuantizedConv2d", "Span", "observe", "quantize_convolutions", "with_plain_convolutions"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
"""A `Network` whose `decode` is built of `nn.Conv2d`."""
_SEEN = 40_000
"""Number of values of one tensor, evenly spread, that percentiles are taken from."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """Quantization of a tensor: value = (level − zero)·scale, with levels 0 … 255."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Levels:
        """Levels from `low` (at most 0) to `high` (at least 0), with 0 exactly on one of them."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(torch.tensor(max(high - low, 1e-6) / ACTIVATION_LEVELS, dtype=torch.float32))
        return cls(scale, min(ACTIVATION_LEVELS, max(0, round(-low / scale))))

    @property
    def reach(self) -> tuple[float, float]:
        """Values of level 0 and level 255."""
        return -self.zero * self.scale, (ACTIVATION_LEVELS - self.zero) * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        """Value of the nearest level."""
        # Four passes, three of them in place: torch's own fake quantization takes three times as long.
        return (x / self.scale).round_().clamp_(-self.zero, ACTIVATION_LEVELS - self.zero).mul_(self.scale)


class QuantizedConv2d(nn.Module):
    """A fake-quantized convolution: 8-bit weights with one scale per channel, 8-bit input and output."""

    weight: Tensor
    """O×I×k×k, whole multiples of `weight_scale`."""
    weight_scale: Tensor
    """O, scales of the weights."""
    bias: Tensor | None
    """O, whole multiples of `weight_scale` times the scale of the input."""

    def __init__(self, conv: nn.Conv2d, input: Levels, output: Levels) -> None:
        super().__init__()
        self.conv: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")}
        self.input, self.output = input, output
        weight = conv.weight.detach()
        scale = weight_scales(weight).clamp(min=1e-12)
        limit = weight_limit(weight.shape[1])
        levels = (weight / scale).round().clamp(-limit, limit)
        if weight.shape[1] % 2 == 0:
            levels = without_overflow(levels)
        self.register_buffer("weight", levels * scale)
        self.register_buffer("weight_scale", scale.flatten())
        unit = scale.flatten() * input.scale
        self.register_buffer("bias", None if conv.bias is None else (conv.bias.detach() / unit).round() * unit)

    def forward(self, x: Tensor) -> Tensor:
        """N×I×H×W → N×O×H×W."""
        return self.output(F.conv2d(self.input(x), self.weight, self.bias, **self.conv))

    def plain(self) -> nn.Conv2d:
        """The same convolution with only its weights quantized."""
        outputs, inputs, *kernel = self.weight.shape
        bias = self.bias is not None
        conv = nn.Conv2d(inputs * self.conv["groups"], outputs, (kernel[0], kernel[1]), bias=bias, **self.conv)
        conv.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias)
        return conv


Span = dict[float, tuple[float, float]]
"""Range of one tensor over all samples: percentile → (lowest, highest)."""


def _widen(span: Span, x: Tensor, percentiles: Sequence[float]) -> None:
    flat = x.detach().flatten()
    seen = flat[:: max(1, flat.numel() // _SEEN)]
    skipped = [int((1 - percentile) * seen.numel()) for percentile in percentiles]
    lows = seen.topk(max(skipped) + 1, largest=False).values
    highs = seen.topk(max(skipped) + 1).values
    for percentile, skip in zip(percentiles, skipped, strict=True):
        ends = (flat.min(), flat.max()) if percentile == 1.0 else (lows[skip], highs[skip])
        low, high = float(ends[0]), float(ends[1])
        before = span.get(percentile, (low, high))
        span[percentile] = min(low, before[0]), max(high, before[1])


@torch.no_grad()
def observe(network: AnyModule, samples: Sequence[Sample], percentiles: Sequence[float]) -> dict[str, tuple[Span, Span]]:
    """Name of every convolution, in the order in which `decode` runs them → ranges of its input and output."""
    spans: dict[str, tuple[Span, Span]] = {}

    def watch(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        before, after = spans.setdefault(name, ({}, {}))
        _widen(before, inputs[0], percentiles)
        _widen(after, output, percentiles)

    handles = [
        module.register_forward_hook(cast(Callable[..., None], partial(watch, name)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        for sample in samples:
            cast(Any, network).decode(*sample)
    finally:
        for handle in handles:
            handle.remove()
    return spans


def _replaced(network: AnyModule, replace: Callable[[str, nn.Module], nn.Module | None]) -> AnyModule:
    """A copy in which `replace(name, module)` takes the place of every module for which it is not None."""
    result = copy.deepcopy(network)
    for name, module in list(result.named_modules()):
        if (other := replace(name, module)) is not None:
            parent, _, child = name.rpartition(".")
            setattr(result.get_submodule(parent), child, other)
    return result


def quantize_convolutions(
    network: AnyModule, spans: dict[str, tuple[Span, Span]], percentile: float, names: Collection[str]
) -> AnyModule:
    """A copy in which the convolutions of these names are quantized. `spans`: from `observe`."""

    def replace(name: str, module: nn.Module) -> nn.Module | None:
        if name not in names or not isinstance(module, nn.Conv2d):
            return None
        before, after = spans[name]
        return QuantizedConv2d(module, Levels.of(*before[percentile]), Levels.of(*after[percentile]))

    return _replaced(network, replace)


def with_plain_convolutions(network: AnyModule) -> AnyModule:
    """A copy with plain convolutions of quantized weights, to be traced before Q and DQ nodes are inserted."""
    return _replaced(network, lambda name, module: module.plain() if isinstance(module, QuantizedConv2d) else None)
