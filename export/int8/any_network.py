"""Post-training int8 of networks without an `int8_form`: each convolution on its own, the costly ones left in float."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.int8.convolutions import QuantizedConv2d, observe, quantize_convolutions
from ...models.interface import Network
from .forms import ConvolutionsForm
from .post_training import (
    MAX_FLOATS,
    PERCENTILES,
    Judge,
    Layer,
    Original,
    Progress,
    Quantized,
    Remedy,
    decibels,
    own_error,
    rounded,
)  # fmt: skip

__all__ = ["quantize_any"]

_COMPARED_SIDE = 48
"""Side in LR pixels of the corner of each picture on which ranges are compared: networks may take seconds a picture."""
_LAYER_PICTURES = 1
"""Number of pictures whose corners layers are compared on: the network runs once for each of its layers."""


class _Search:
    """The float network, and what quantizing it costs on the corners of pictures."""

    def __init__(self, network: Network, originals: Sequence[Original]) -> None:
        self.network, self.scale = network, network.scale
        self.percentiles = (1.0, *PERCENTILES[1:])
        samples = [original.sample for original in originals] + [original.twin for original in originals]
        self.spans = observe(network, samples, self.percentiles)  # the twins only widen the ranges
        self.names = network.int8_convolutions(list(self.spans))
        self.corners = [self._corner(original) for original in originals]
        self.exact = [network.decode(*sample) for sample, _ in self.corners]
        self.percentile = min(self.percentiles, key=lambda percentile: self._error(self.form(percentile)))

    def _corner(self, original: Original) -> tuple[tuple[Tensor, ...], Tensor]:
        side = _COMPARED_SIDE
        lr, *condition = original.sample
        return (lr[:, :, :side, :side], *condition), original.hr[:, :, : side * self.scale, : side * self.scale]

    def form(self, percentile: float, names: Collection[str] | None = None) -> ConvolutionsForm:
        """The network with these convolutions quantized, by default with all that may be."""
        chosen = self.names if names is None else names
        return ConvolutionsForm(quantize_convolutions(self.network, self.spans, percentile, chosen))

    def _error(self, form: ConvolutionsForm) -> float:
        seen = zip(self.corners, self.exact, strict=True)
        return sum(float(F.mse_loss(form(*sample), exact)) for (sample, _), exact in seen)

    def cost(self, name: str) -> float:
        """PSNR in dB that quantizing this convolution alone costs."""
        form = self.form(self.percentile, [name])
        seen = zip(self.corners[:_LAYER_PICTURES], self.exact, strict=False)
        costs = [decibels(form(*sample), exact, own_error(exact, hr)) for (sample, hr), exact in seen]
        return sum(costs) / len(costs)


def _layer(name: str, conv: nn.Module, costs: dict[str, float]) -> Layer:
    make = partial(Layer, layer=name, identity=False, cost_db={"all": costs[name]} if name in costs else {})
    if isinstance(conv, QuantizedConv2d):
        low, high = conv.output.reach
        return make(
            precision="int8",
            weight_range=rounded(conv.weight.abs().max()),
            input_range=rounded(conv.input.reach[1]),
            output_range=(rounded(low), rounded(high)),
        )
    assert isinstance(conv, nn.Conv2d)
    return make(precision="fp32", weight_range=rounded(conv.weight.abs().max()), input_range=None, output_range=None)


@torch.no_grad()
def quantize_any(
    network: Network, originals: Sequence[Original], judge: Judge, *, max_drop: float, progress: Progress
) -> Quantized:
    """Quantize the convolutions of a network without an `int8_form`, over the ranges that cost least.

    While the drop exceeds `max_drop` dB, the convolution that costs most is left in float, up to `MAX_FLOATS` of them. What
    is no convolution (activations, attention, normalization) stays in float. `network`: the fused one.
    """
    progress("quantize: ranges")
    search = _Search(network, originals)
    form = search.form(search.percentile)
    drop = round(judge(form), 4)
    remedies = [Remedy("ranges", f"{search.percentile:.5%} of the values", drop)]
    costs: dict[str, float] = {}
    if drop > max_drop:
        progress("quantize: which layers cost PSNR")
        costs = {name: search.cost(name) for name in search.names}
        by_cost = sorted(search.names, key=lambda name: -costs[name])
        for count in range(1, int(MAX_FLOATS * len(by_cost)) + 1):
            candidate = search.form(search.percentile, by_cost[count:])
            candidate_drop = round(judge(candidate), 4)
            if candidate_drop < drop:
                form, drop = candidate, candidate_drop
                remedies.append(Remedy("layers in float", ", ".join(by_cost[:count]), drop))
            if drop <= max_drop:
                break
    modules = dict(form.network.named_modules())
    layers = tuple(_layer(name, modules[name], costs) for name in search.spans)
    return Quantized(form, "post-training", tuple(remedies), layers, drop)
