"""The decoder as int8 engines run it: fake-quantized, to train it and as the reference, and in the form that is traced.

Weights have 8 bits and one scale a channel, activations 8 bits and one scale a tensor, unsigned, zero point 0 (every one
follows a ReLU). That neighbouring levels never overflow 16 bits (`models/quantization.py`) costs next to nothing (mean
squared error that rounding makes of `small` on Kodak24: 1.51 grey levels², 1.52 without the rule, 2.51 with 7 bits for all).

Where something stands between a convolution and its ReLU (modulation, an identity skip) or nothing follows (the tail), the
convolution's own output is quantized as well, with a lowest value and a scale for every channel that are folded into its
weights: ONNX Runtime has no int8 convolution with a float output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..quantization import ACTIVATION_LEVELS, weight_limit, without_overflow
from .blocks import Modulation
from .config import RDSRConfig
from .decoder import RepDecoder

__all__ = [
    "TENSORS",
    "Only",
    "QuantizedConv",
    "QuantizedDecoder",
    "TracedDecoder",
    "merged_skip",
]

_BIAS_LEVELS = 2**31 - 1

TENSORS = ("weight", "input", "output")
"""What may be quantized of a convolution."""
Only = Collection[tuple[int, str]] | None
"""(index of a convolution, one of `TENSORS`), or None for all."""
Watch = Callable[[int, str, Tensor], None]
"""Told (index of the convolution, "input" or "output", the tensor before it is quantized)."""


class _FakeQuantize(torch.autograd.Function):
    """x → the nearest of low … high times the scale exp(log_scale); gradients straight through, of the scale as in LSQ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, low: int, high: int, pairs: bool) -> Tensor:
        scale = log_scale.exp()
        levels = x / scale
        rounded = levels.clamp(low, high).round_()
        ctx.bounds = low, high
        ctx.save_for_backward(levels, log_scale)
        return (without_overflow(rounded) if pairs else rounded) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        levels, log_scale = ctx.saved_tensors
        clamped = levels.clamp(*ctx.bounds)
        inside = clamped == levels
        of_x = gradient * inside
        # Of the scale: rounding error inside the range, the bound beyond it; times the scale, as its logarithm is trained.
        of_scale = (gradient * (clamped.round_() - levels * inside)).sum_to_size(log_scale.shape) * log_scale.exp()
        return of_x, of_scale, None, None, None


def _fake_quantize(x: Tensor, log_scale: Tensor, low: int, high: int, *, pairs: bool = False) -> Tensor:
    return _FakeQuantize.apply(x, log_scale, low, high, pairs)  # type: ignore[no-untyped-call]


class QuantizedConv(nn.Module):
    """A 3×3 convolution with quantized weights and input, and where asked for a quantized output; or a plain float one."""

    weight: nn.Parameter
    """O×I×3×3."""
    bias: nn.Parameter
    """O."""
    log_weight_scale: nn.Parameter | None
    """O×1×1×1, of one level of the weights; None for a float convolution."""
    log_input_scale: nn.Parameter | None
    """Scalar, of one level of the input."""
    output_low: nn.Parameter | None
    """O, the value that level 0 of the output stands for; None where the output is not quantized."""
    log_output_scale: nn.Parameter | None
    """O, of one level of the output."""
    identity: nn.Parameter | None
    """O, the part of the input that is added to the output outside the convolution (and has left `weight`); or None."""

    def __init__(self, inputs: int, outputs: int, *, quantized: bool, output: bool, identity: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        parts = {
            "log_weight_scale": (quantized, (outputs, 1, 1, 1)),
            "log_input_scale": (quantized, ()),
            "output_low": (quantized and output, (outputs,)),
            "log_output_scale": (quantized and output, (outputs,)),
            "identity": (identity, (outputs,)),
        }
        for name, (wanted, shape) in parts.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)) if wanted else None)

    @property
    def quantized(self) -> bool:
        """Whether weights and input are quantized."""
        return self.log_weight_scale is not None

    def quantized_weight(self) -> Tensor:
        """`weight` as its levels have it."""
        if self.log_weight_scale is None:
            return self.weight
        inputs = self.weight.shape[1]
        limit = weight_limit(inputs)
        return _fake_quantize(self.weight, self.log_weight_scale, -limit, limit, pairs=inputs % 2 == 0)

    def quantized_bias(self) -> Tensor:
        """`bias`, less the output's low, as a whole number of units of the products, which is how ONNX Runtime holds it."""
        if self.log_weight_scale is None or self.log_input_scale is None:
            return self.bias
        low = torch.zeros(()) if self.output_low is None else self.output_low
        unit = (self.log_weight_scale.flatten() + self.log_input_scale).detach()
        return _fake_quantize(self.bias - low, unit, -_BIAS_LEVELS, _BIAS_LEVELS) + low

    def quantize_input(self, x: Tensor) -> Tensor:
        """N×I×H×W, not negative."""
        return x if self.log_input_scale is None else _fake_quantize(x, self.log_input_scale, 0, ACTIVATION_LEVELS)

    def quantize_output(self, y: Tensor) -> Tensor:
        """N×O×H×W."""
        if self.output_low is None or self.log_output_scale is None:
            return y
        low, scale = self.output_low[:, None, None], self.log_output_scale[:, None, None]
        return _fake_quantize(y - low, scale, 0, ACTIVATION_LEVELS) + low


def merged_skip(decoder: RepDecoder) -> nn.Conv2d:
    """The long skip as one convolution: repeating the picture into the phases is a kernel with a 1 in its centre."""
    skip = copy.deepcopy(decoder.skip)
    phases = torch.arange(3 * decoder.scale**2)
    with torch.no_grad():
        skip.weight[phases, phases // decoder.scale**2, 1, 1] += 1
    return skip


class QuantizedDecoder(nn.Module):
    """RepD, fused and fake-quantized: what `RepDecoder` computes, with the error that int8 makes.

    Head, modulation and long skip are float. A float convolution at an index in `floats` takes its input unquantized.
    """

    def __init__(self, config: RDSRConfig, *, floats: Collection[int] = (), identities: Collection[int] = ()) -> None:
        """`floats`: indices of convolutions (the tail is the last) that stay float; `identities`: with an identity skip."""
        super().__init__()
        self.scale = config.scale
        last = config.depth
        self.head = nn.Conv2d(3, config.width, 3, padding=1)
        self.convs = nn.ModuleList(
            QuantizedConv(
                config.width,
                3 * config.scale**2 if index == last else config.width,
                quantized=index not in floats,
                output=index == last or index in config.modulation_depths or index in identities,
                identity=index in identities,
            )
            for index in range(last + 1)
        )
        self.modulation = nn.ModuleDict(
            {str(depth): Modulation(config.latent_size, config.width) for depth in config.modulation_depths}
        )
        self.skip = nn.Conv2d(3, 3 * config.scale**2, 3)

    @classmethod
    def from_shapes(cls, config: RDSRConfig, shapes: Mapping[str, tuple[int, ...]]) -> QuantizedDecoder:
        """The empty decoder whose float convolutions and identity skips are those that a state dict's keys show.

        Raises `CheckpointError` where they show none that can be.
        """
        indices = range(config.depth + 1)
        if f"convs.{config.depth}.identity" in shapes:
            raise CheckpointError("the quantized tail has an identity skip, which only convolutions of the body can have")
        if not any(f"convs.{i}.log_weight_scale" in shapes for i in indices):
            raise CheckpointError("the quantized decoder has no quantized convolution")
        return cls(
            config,
            floats=[i for i in indices if f"convs.{i}.log_weight_scale" not in shapes],
            identities=[i for i in indices if f"convs.{i}.identity" in shapes],
        )

    def layers(self) -> list[QuantizedConv]:
        """The convolutions of body and tail."""
        return [conv for conv in self.convs if isinstance(conv, QuantizedConv)]

    def modulation_of(self, index: int) -> Modulation | None:
        """The modulation between a convolution and its ReLU."""
        modulation = self.modulation[str(index)] if str(index) in self.modulation else None  # noqa: SIM401 (no dict)
        assert modulation is None or isinstance(modulation, Modulation)
        return modulation

    def forward(self, lr: Tensor, z: Tensor, *, only: Only = None, watch: Watch | None = None) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent → N×3×sH×sW SR, not clipped.

        `only`: quantize these tensors alone (None: all that are to be); `watch`: sees what is about to be quantized.
        """
        return self.from_layer(0, F.relu(self.head(lr)), lr, z, only=only, watch=watch)

    def from_layer(
        self, start: int, x: Tensor, lr: Tensor, z: Tensor, *, only: Only = None, watch: Watch | None = None
    ) -> Tensor:
        """The rest of `forward`, from convolution `start` on, whose input is `x`."""
        for index in range(start, len(self.convs) - 1):
            x = F.relu(self.layer(index, x, z, only=only, watch=watch))
        y = self.layer(len(self.convs) - 1, x, z, only=only, watch=watch)
        return F.pixel_shuffle(y + self.skip(F.pad(lr, (1, 1, 1, 1), mode="replicate")), self.scale)

    def layer(self, index: int, x: Tensor, z: Tensor, *, only: Only = None, watch: Watch | None = None) -> Tensor:
        """Convolution `index` with what stands between it and its ReLU; arguments as `forward` has them."""
        conv = self.convs[index]
        assert isinstance(conv, QuantizedConv)

        def active(tensor: str) -> bool:
            return conv.quantized and (only is None or (index, tensor) in only)

        if watch:
            watch(index, "input", x)
        x = conv.quantize_input(x) if active("input") else x
        weight, bias = (conv.quantized_weight(), conv.quantized_bias()) if active("weight") else (conv.weight, conv.bias)
        y = F.conv2d(x, weight, bias, padding=1)
        if watch:
            watch(index, "output", y)
        y = conv.quantize_output(y) if active("output") else y
        if conv.identity is not None:
            y = y + x * conv.identity[:, None, None]
        modulation = self.modulation_of(index)
        return y if modulation is None else modulation(y, z)

    @torch.no_grad()
    def snap(self) -> None:
        """Replace every quantized weight by the value that its level stands for; the function stays the same."""
        for conv in self.layers():
            conv.weight.copy_(conv.quantized_weight())
            conv.bias.copy_(conv.quantized_bias())


class TracedDecoder(nn.Module):
    """The operations of the int8 graph in float: quantizing the tensors that `export/qdq.py` knows makes it the int8 graph.

    Every quantized output comes as levels, `relu(conv(x))` with low and scale of the output folded into the kernel, so that
    one scale of 1 fits all channels; what turns levels back into values is folded into the modulation, or into the skip.
    """

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.scale = decoder.scale
        self.head, self.skip = copy.deepcopy(decoder.head), copy.deepcopy(decoder.skip)
        self.convs, self.modulation = nn.ModuleList(), nn.ModuleDict()
        self.outputs: list[bool] = []
        """Whether a convolution's output is quantized."""
        self.weight_scales: list[Tensor | None] = []
        """O, of one level of the folded kernel; None for a float convolution."""
        self.input_scales: list[Tensor | None] = []
        self.values, self.lows, self.identity = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        """O×1×1 by index: what one level of an output is worth and what level 0 stands for, where no modulation takes them
        in; the identity skip."""
        with torch.no_grad():
            for index, conv in enumerate(decoder.layers()):
                self._fold(index, conv, decoder)

    def _fold(self, index: int, conv: QuantizedConv, decoder: QuantizedDecoder) -> None:
        outputs, inputs = conv.weight.shape[:2]
        weight, bias = conv.quantized_weight().double(), conv.quantized_bias().double()
        weight_scale = None if conv.log_weight_scale is None else conv.log_weight_scale.flatten().exp().double()
        low, step = torch.zeros(outputs, dtype=torch.float64), torch.ones(outputs, dtype=torch.float64)
        levels = conv.output_low is not None
        if conv.output_low is not None and conv.log_output_scale is not None and weight_scale is not None:
            low, step = conv.output_low.double(), conv.log_output_scale.exp().double()
            weight, bias, weight_scale = weight / step[:, None, None, None], (bias - low) / step, weight_scale / step
        plain = nn.Conv2d(inputs, outputs, 3, padding=1)
        plain.load_state_dict({"weight": weight, "bias": bias})
        self.convs.append(plain)
        self.outputs.append(levels)
        self.weight_scales.append(None if weight_scale is None else weight_scale.float())
        self.input_scales.append(None if conv.log_input_scale is None else conv.log_input_scale.exp().float())
        last = index + 1 == len(decoder.convs)
        modulation = decoder.modulation_of(index)
        # What turns levels into values needs no operation of its own where the modulation can take it in.
        if levels and (modulation is None or conv.identity is not None):
            self.values[str(index)] = step.float()[:, None, None]
            if last:
                assert self.skip.bias is not None
                self.skip.bias.add_(low)
            else:
                self.lows[str(index)] = low.float()[:, None, None]
            low, step = torch.zeros_like(low), torch.ones_like(step)
        if conv.identity is not None:
            self.identity[str(index)] = conv.identity[:, None, None].clone()
        if modulation is not None:
            self.modulation[str(index)] = _folded_modulation(modulation, low, step)

    def forward(self, lr: Tensor, z: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent → N×3×sH×sW SR, not clipped."""
        x = F.relu(self.head(lr))
        last = len(self.convs) - 1
        for index, conv in enumerate(self.convs):
            name = str(index)
            y = F.relu(conv(x)) if self.outputs[index] else conv(x)
            if name in self.values:
                y = y * self.values[name]
            if name in self.lows:
                y = y + self.lows[name]
            if name in self.identity:
                y = y + x * self.identity[name]
            if name in self.modulation:
                scale, shift = self.modulation[name](z)[:, :, None, None].chunk(2, dim=1)
                y = y * scale + shift
            if index < last:
                x = F.relu(y)
        return F.pixel_shuffle(y + self.skip(F.pad(lr, (1, 1, 1, 1), mode="replicate")), self.scale)


def _folded_modulation(modulation: Modulation, low: Tensor, step: Tensor) -> nn.Linear:
    """z → factor and shift, 2·O, for outputs in levels: (1 + s(z))·(level·step + low) + b(z) = level·factor + shift."""
    outputs = len(step)
    matrix, offset = modulation.weight.double(), modulation.bias.double()
    scale, one = matrix[:outputs], 1 + offset[:outputs]
    folded = nn.Linear(modulation.in_features, 2 * outputs)
    weight = torch.cat([scale * step[:, None], matrix[outputs:] + low[:, None] * scale])
    folded.load_state_dict({"weight": weight, "bias": torch.cat([one * step, offset[outputs:] + one * low])})
    return folded
