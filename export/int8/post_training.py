"""Post-training quantization: find what costs PSNR, and apply remedies, the cheap ones first, until the drop is small."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.int8.chain import TENSORS, ChainQuantizer, QuantizedChain, Ranges
from ...models.int8.levels import ACTIVATION_LEVELS, WEIGHT_LEVELS
from ...models.int8.samples import Sample
from ..graphs.graph_set import Int8Form
from .forms import ChainForm

__all__ = [
    "MAX_FLOATS", "PERCENTILES", "Judge", "Layer", "Original", "Progress", "Quantized", "Remedy", "decibels", "own_error",
    "quantize", "rounded", "trained",
]  # fmt: skip

Judge = Callable[[Int8Form], float]
"""PSNR-Y drop in dB, against the float network, on the judging pictures."""
Progress = Callable[[str], None]
PERCENTILES = (0.99999, 0.9999, 0.9995)
EQUALIZATIONS = (0.5, 0.7, 0.85, 1.0)
MAX_IDENTITIES = 3
MAX_FLOATS = 0.25
"""Largest share of the convolutions that may stay in float. With more, the graph would be int8 in name only."""
_SENSITIVITY_PIXELS = 30_000
"""LR pixels in the sensitivity pass. It runs half a decoder two or three times for each convolution."""
_TWIN_WEIGHT = 0.05
"""Weight of a picture's black-and-white twin beside the picture, when remedies are compared. Text is rare, but ranges make a
large difference to it (squared errors of `small`: 1.3 to 3 grey levels² on photographs, 5 to 35 on their twins)."""
_LEAST_ERROR = 1e-6
"""Least mean squared error (full range 1; 60 dB) that a picture counts with, so that blank pictures outweigh no other."""


@dataclasses.dataclass(frozen=True)
class Original:
    """One calibration picture."""

    sample: Sample
    twin: Sample
    """The same picture in black and white (`hard_edges`)."""
    hr: Tensor
    """1×3×sH×sW in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class Remedy:
    """One step of the search and the drop that was left after it."""

    remedy: str
    chosen: str
    psnr_drop_db: float
    """PSNR-Y drop on the judging pictures with this and all earlier remedies."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution: `layer` is "body.3" or "tail", or its name in a network without an `int8_form`."""

    layer: str
    precision: str
    """"int8" or "fp32". ONNX Runtime also runs an unmodulated int8 convolution in float if the next one is in fp32."""
    weight_range: float
    """Largest absolute weight that its levels reach."""
    input_range: float | None
    """Largest input that the levels reach; None in float."""
    output_range: tuple[float, float] | None
    """Lowest and highest output over all channels; None if the output is not quantized."""
    identity: bool
    """Whether the identity part is added outside the convolution."""
    cost_db: dict[str, float]
    """PSNR in dB that quantizing only this tensor ("weight", "input", "output"; "all" in a network without an `int8_form`,
    where it is measured only if the drop is too large) costs on calibration pictures. Its error counts as independent of the
    network's own: 10·log₁₀(1 + error/error of the network), so the cost is never negative."""


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized decoder and the report on it."""

    form: Int8Form
    source: str
    """"training" (quantization-aware) or "post-training"."""
    remedies: tuple[Remedy, ...]
    layers: tuple[Layer, ...]
    psnr_drop_db: float
    """PSNR-Y drop of the fake-quantized torch model on the judging pictures."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for manifest and report."""
        return {
            "source": self.source,
            "psnr_drop_db": self.psnr_drop_db,
            "weight_levels": WEIGHT_LEVELS,
            "activation_levels": ACTIVATION_LEVELS,
            "remedies": [dataclasses.asdict(remedy) for remedy in self.remedies],
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
        }


def own_error(reference: Tensor, hr: Tensor) -> float:
    """Mean squared error of the float network's output."""
    return max(float(F.mse_loss(reference.clamp(0, 1), hr)), _LEAST_ERROR)


def decibels(output: Tensor, reference: Tensor, own: float) -> float:
    """PSNR in dB that the difference between two outputs costs, if it is independent of the reference's `own` error."""
    return 10 * math.log10(1 + float(F.mse_loss(output.clamp(0, 1), reference.clamp(0, 1))) / own)


@torch.no_grad()
def _sensitivities(decoder: QuantizedChain, originals: Sequence[Original]) -> list[dict[str, float]]:
    """For every convolution: tensor → PSNR in dB that quantizing only this tensor costs, mean over some of the pictures."""
    costs: list[dict[str, list[float]]] = [{} for _ in decoder.convs]
    pixels = 0
    for original in originals:
        size = original.sample[0].shape[2] * original.sample[0].shape[3]
        if pixels and pixels + size > _SENSITIVITY_PIXELS:
            continue  # a smaller one may still fit
        pixels += size
        inputs: dict[int, Tensor] = {}
        exact = decoder(*original.sample, only=(), watch=partial(_keep_input, inputs))
        own = own_error(exact, original.hr)
        for index, conv in enumerate(decoder.layers()):
            tensors = () if not conv.quantized else TENSORS if conv.output_low is not None else TENSORS[:2]
            for tensor in tensors:
                output = decoder.from_layer(index, inputs[index], *original.sample, only=((index, tensor),))
                costs[index].setdefault(tensor, []).append(decibels(output, exact, own))
    return [{tensor: round(float(np.mean(values)), 4) for tensor, values in layer.items()} for layer in costs]


def _keep_input(inputs: dict[int, Tensor], index: int, where: str, x: Tensor) -> None:
    if where == "input":
        inputs[index] = x


class _Search:
    """The remedies that were taken so far, and the decoder that they give."""

    def __init__(self, quantizer: ChainQuantizer, originals: Sequence[Original], judge: Judge, progress: Progress) -> None:
        self.quantizer, self.originals, self.judge, self.progress = quantizer, originals, judge, progress
        self.samples = [original.sample for original in originals] + [original.twin for original in originals]
        self.ranges = Ranges()
        self.decoder = quantizer.calibrate(self.samples, self.ranges)
        with torch.no_grad():
            self.exact = [self.decoder(*sample, only=()) for sample in self.samples]
        # A twin has no original: it gets the error of its picture.
        self.own = 2 * [own_error(exact, original.hr) for exact, original in zip(self.exact, originals, strict=False)]
        self.cost = self.cost_of(self.decoder)
        self.drop = math.inf
        self.remedies: list[Remedy] = []

    @torch.no_grad()
    def cost_of(self, decoder: QuantizedChain) -> float:
        """PSNR in dB that quantization costs, mean over the pictures, plus `_TWIN_WEIGHT` times the cost on their twins."""
        seen = zip(self.samples, self.exact, self.own, strict=True)
        costs = [decibels(decoder(*sample), exact, own) for sample, exact, own in seen]
        count = len(self.originals)
        return float(np.mean(costs[:count]) + _TWIN_WEIGHT * np.mean(costs[count:]))

    def best_of(self, candidates: Sequence[Ranges]) -> None:
        """Take the cheapest of the candidates if it costs less than the present ranges."""
        for ranges in candidates:
            decoder = self.quantizer.calibrate(self.samples, ranges)
            cost = self.cost_of(decoder)
            if cost < self.cost:
                self.ranges, self.decoder, self.cost = ranges, decoder, cost

    def record(self, remedy: str, chosen: str) -> None:
        self.drop = round(self.judge(ChainForm(self.quantizer, self.decoder)), 4)
        self.remedies.append(Remedy(remedy, chosen, self.drop))

    def by_cost(self) -> list[int]:
        """Indices of the convolutions, the most costly first."""
        self.progress("quantize: which layers cost PSNR")
        costs = [sum(layer.values()) for layer in _sensitivities(self.decoder, self.originals)]
        return sorted(range(len(costs)), key=lambda index: -costs[index])

    def run(self, max_drop: float) -> None:
        self.progress("quantize: ranges")
        self.record("whole ranges", "every value seen")
        change = dataclasses.replace
        self.best_of([change(self.ranges, percentile=p) for p in PERCENTILES])
        self.record("clipped ranges", f"{self.ranges.percentile:.5%} of the values")
        self.progress("quantize: equalization")
        percentiles = sorted({self.ranges.percentile, *PERCENTILES[:2]})
        self.best_of([change(self.ranges, equalization=e, percentile=p) for e in EQUALIZATIONS for p in percentiles])
        self.record("equalized channels", f"strength {self.ranges.equalization}, {self.ranges.percentile:.5%} of the values")
        last = len(self.decoder.convs) - 1
        if self.drop > max_drop:
            for index in [i for i in self.by_cost() if i != last][:MAX_IDENTITIES]:
                self.best_of([change(self.ranges, identities=(*self.ranges.identities, index))])
            self.record("identity outside", ", ".join(map(str, self.ranges.identities)) or "no gain")
        if self.drop > max_drop:
            for index in self.by_cost()[: int(MAX_FLOATS * (last + 1))]:
                self.best_of([change(self.ranges, floats=(*self.ranges.floats, index))])
                self.record("layers in float", ", ".join(map(str, self.ranges.floats)) or "no gain")
                if self.drop <= max_drop:
                    break


def rounded(value: float | Tensor) -> float:
    """The value with five significant digits."""
    return float(f"{float(value):.5g}")


@torch.no_grad()
def _layers(decoder: QuantizedChain, originals: Sequence[Original]) -> tuple[Layer, ...]:
    costs = _sensitivities(decoder, originals)
    layers = []
    for index, conv in enumerate(decoder.layers()):
        inputs, low, scale = conv.log_input_scale, conv.output_low, conv.log_output_scale
        layers.append(
            Layer(
                layer="tail" if index + 1 == len(decoder.convs) else f"body.{index}",
                precision="int8" if conv.quantized else "fp32",
                weight_range=rounded(conv.quantized_weight().abs().max()),
                input_range=None if inputs is None else rounded(ACTIVATION_LEVELS * inputs.exp()),
                output_range=None
                if low is None or scale is None
                else (rounded(low.min()), rounded((low + ACTIVATION_LEVELS * scale.exp()).max())),
                identity=conv.identity is not None,
                cost_db=costs[index],
            )
        )
    return tuple(layers)


def quantize(
    quantizer: ChainQuantizer,
    originals: Sequence[Original],
    judge: Judge,
    *,
    max_drop: float,
    progress: Progress = lambda step: None,
) -> Quantized:
    """Quantize the float network's decoder. Free remedies always, dearer ones while the drop exceeds `max_drop` dB.

    `originals`: the pictures that ranges cover and remedies are compared on. The drop of the result may still exceed
    `max_drop`; the caller decides about that.
    """
    search = _Search(quantizer, originals, judge, progress)
    search.run(max_drop)
    progress("quantize: which layers cost PSNR")
    form, remedies = ChainForm(quantizer, search.decoder), tuple(search.remedies)
    return Quantized(form, "post-training", remedies, _layers(search.decoder, originals), search.drop)


def trained(quantizer: ChainQuantizer, decoder: QuantizedChain, originals: Sequence[Original], judge: Judge) -> Quantized:
    """The decoder that quantization-aware training made, with the report on it."""
    form = ChainForm(quantizer, decoder)
    drop = round(judge(form), 4)
    return Quantized(form, "training", (Remedy("quantization-aware training", "", drop),), _layers(decoder, originals), drop)
