"""A decoder that is a chain of convolutions, fake-quantized: for training, as reference of int8 engines, and for tracing.

Weights have 8 bits and one scale per channel. Activations have 8 bits, one scale per tensor and zero point 0: each follows a
ReLU. Neighbouring weight levels never overflow 16 bits (`levels.py`). That costs next to nothing: the mean squared error of
rounding is 1.51 grey levels² with the rule, 1.52 without it, and 2.51 with 7-bit weights (`small` on Kodak24).

If something stands between a convolution and its ReLU (modulation, an identity skip), or nothing follows it (the tail), the
output of the convolution is quantized too. Each channel then has its own lowest value and scale, folded into its
weights: ONNX Runtime has no int8 convolution with a float output.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .levels import ACTIVATION_LEVELS, weight_limit, without_overflow
from .samples import Sample

__all__ = ["TENSORS", "ChainQuantizer", "Only", "QuantizedChain", "QuantizedConv", "Ranges", "TracedChain", "Watch"]

_BIAS_LEVELS = 2**31 - 1
TENSORS = ("weight", "input", "output")
"""Tensors of a convolution that may be quantized."""
Only = Collection[tuple[int, str]] | None
"""(index of a convolution, one of `TENSORS`), or None for all."""
Watch = Callable[[int, str, Tensor], None]
"""Called with (index of the convolution, "input" or "output", the tensor before it is quantized)."""


class _Levels(torch.autograd.Function):
    """x → the nearest whole number of low … high to x / exp(log_scale). The gradient passes straight through; that of the
    scale is as in LSQ, if a scale that is no variable turns levels back into values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, low: int, high: int, pairs: bool) -> Tensor:
        scale = log_scale.exp()
        levels = x / scale
        rounded = levels.clamp(low, high).round_()
        ctx.bounds = low, high
        ctx.save_for_backward(levels, log_scale)
        return without_overflow(rounded) if pairs else rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (gradient,) = gradients
        levels, log_scale = ctx.saved_tensors
        clamped = levels.clamp(*ctx.bounds)
        inside = clamped == levels
        of_x = gradient * inside / log_scale.exp()
        # LSQ: rounding error inside the range, the bound beyond it.
        of_scale = (gradient * (clamped.round_() - levels * inside)).sum_to_size(log_scale.shape)
        return of_x, of_scale, None, None, None


def _levels(x: Tensor, log_scale: Tensor, low: int, high: int, *, pairs: bool = False) -> Tensor:
    return _Levels.apply(x, log_scale, low, high, pairs)  # type: ignore[no-untyped-call]


def _fake_quantize(x: Tensor, log_scale: Tensor, low: int, high: int, *, pairs: bool = False) -> Tensor:
    return _levels(x, log_scale, low, high, pairs=pairs) * log_scale.detach().exp()


class QuantizedConv(nn.Module):
    """A 3×3 convolution with quantized weights and input, and optionally a quantized output; or a plain float one."""

    weight: nn.Parameter
    """O×I×3×3."""
    bias: nn.Parameter
    """O."""
    log_weight_scale: nn.Parameter | None
    """O×1×1×1, logarithm of the scale of the weights; None for a float convolution."""
    log_input_scale: nn.Parameter | None
    """Scalar, logarithm of the scale of the input; None for a float convolution."""
    output_low: nn.Parameter | None
    """O, value of the output's level 0; None if the output is not quantized."""
    log_output_scale: nn.Parameter | None
    """O, logarithm of the scale of the output; None if the output is not quantized."""
    log_factors: nn.Parameter | None
    """I×1×1, only while training: the input's channel c has the scale exp(log_input_scale + log_factors[c])."""
    identity: nn.Parameter | None
    """O, factors of the input that is added to the output outside the convolution (`weight` lacks them); or None."""

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
        self.register_parameter("log_factors", None)

    @property
    def quantized(self) -> bool:
        """Whether weights and input are quantized."""
        return self.log_weight_scale is not None

    def quantized_weight(self) -> Tensor:
        """`weight`, rounded to its levels."""
        if self.log_weight_scale is None:
            return self.weight
        weight = self._weight_levels(self.log_weight_scale) * self.log_weight_scale.detach().exp()
        return weight if self.log_factors is None else weight / self.log_factors.exp()

    def _weight_levels(self, log_scale: Tensor) -> Tensor:
        """Levels of the weights for inputs without their factors."""
        weight = self.weight if self.log_factors is None else self.weight * self.log_factors.exp()
        inputs = weight.shape[1]
        limit = weight_limit(inputs)
        return _levels(weight, log_scale, -limit, limit, pairs=inputs % 2 == 0)

    def _log_scales(self, log_scale: Tensor) -> Tensor:
        return log_scale if self.log_factors is None else log_scale + self.log_factors

    def learn_factors(self) -> None:
        """Let each channel of the input learn a scale of its own, for training."""
        if self.log_factors is None and self.quantized:
            self.log_factors = nn.Parameter(torch.zeros(self.weight.shape[1], 1, 1))

    def quantized_bias(self) -> Tensor:
        """`bias`, rounded so that bias − low is a whole number of products' units, as ONNX Runtime stores it."""
        if self.log_weight_scale is None or self.log_input_scale is None:
            return self.bias
        low = torch.zeros(()) if self.output_low is None else self.output_low
        unit = (self.log_weight_scale.flatten() + self.log_input_scale).detach()
        return _fake_quantize(self.bias - low, unit, -_BIAS_LEVELS, _BIAS_LEVELS) + low

    def convolve_in_bf16(self, x: Tensor) -> Tensor:
        """Quantize the input (N×I×H×W float32), convolve and add the bias, the products in bf16, for training.

        bf16 holds whole numbers up to 256 exactly, so input and weights are exact; their sums have 8 binary digits.
        """
        assert self.log_weight_scale is not None
        assert self.log_input_scale is not None
        levels = _levels(x, self._log_scales(self.log_input_scale), 0, ACTIVATION_LEVELS)
        kernel = self._weight_levels(self.log_weight_scale)
        if self.log_factors is not None:  # a 1 with a gradient: the weights' part in that of the factors
            kernel = kernel * (self.log_factors.detach().exp() / self.log_factors.exp())
        sums = F.conv2d(levels.bfloat16(), kernel.bfloat16(), padding=1).float()
        unit = (self.log_input_scale + self.log_weight_scale.flatten()).detach().exp()
        return sums * unit[:, None, None] + self.quantized_bias()[:, None, None]

    def quantize_input(self, x: Tensor) -> Tensor:
        """Fake-quantize the input (N×I×H×W, not negative)."""
        if self.log_input_scale is None:
            return x
        return _fake_quantize(x, self._log_scales(self.log_input_scale), 0, ACTIVATION_LEVELS)

    def quantize_output(self, y: Tensor) -> Tensor:
        """Fake-quantize the output (N×O×H×W)."""
        if self.output_low is None or self.log_output_scale is None:
            return y
        low, scale = self.output_low[:, None, None], self.log_output_scale[:, None, None]
        return _fake_quantize(y - low, scale, 0, ACTIVATION_LEVELS) + low


class QuantizedChain(nn.Module):
    """A fused decoder with fake-quantized convolutions, one after another: body, then tail."""

    convs: nn.ModuleList
    """`QuantizedConv` of body and tail."""
    trains_in_bf16: bool = False
    """In training mode, whether convolutions compute their products in bf16."""
    forward: Callable[..., Tensor]
    """(*sample, only=None, watch=None): a `Sample` → N×3×sH×sW SR, not clipped.

    `only`: quantize only these tensors (None: all). `watch` sees each tensor before it is quantized.
    """
    from_layer: Callable[..., Tensor]
    """(start, x, *sample, only=None, watch=None): the rest of `forward`, from convolution `start` with input `x` on."""

    def layers(self) -> list[QuantizedConv]:
        """The convolutions of body and tail."""
        return [conv for conv in self.convs if isinstance(conv, QuantizedConv)]

    @torch.no_grad()
    def snap(self) -> None:
        """Replace every quantized weight by the value of its level. The chain computes the same as before."""
        for conv in self.layers():
            conv.weight.copy_(conv.quantized_weight())
            conv.bias.copy_(conv.quantized_bias())


class TracedChain(nn.Module):
    """The operations of the int8 graph in float. Quantize nodes around its convolutions turn it into the int8 graph.

    Quantized outputs are levels: `relu(conv(x))`, with lowest value and scale of the output folded into the kernel, so that
    one scale of 1 fits all channels.
    """

    convs: nn.ModuleList
    """Plain convolutions of body and tail. Exporters name their nodes by it: "…/convs.N/Conv"."""
    outputs: list[bool]
    """For each convolution, whether its output is quantized."""
    weight_scales: list[Tensor | None]
    """For each convolution, the scales of its folded kernel (O); None if it is float."""
    input_scales: list[Tensor | None]
    """For each convolution, the scale of its input; None if it is float."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges:
    """Options of calibration: how ranges are chosen, and which convolutions are treated differently."""

    percentile: float = 1.0
    """Share of an activation's values that its range covers; 1 for all of them."""
    equalization: float = 0.0
    """From 0 (channels as trained) to 1 (all channels of an activation have the same largest value). The factors move
    through the ReLU into the next convolution."""
    identities: tuple[int, ...] = ()
    """Indices of convolutions whose identity part is added outside the convolution."""
    floats: tuple[int, ...] = ()
    """Indices of convolutions that stay float."""


class ChainQuantizer(abc.ABC):
    """The way to int8 of a network whose decoder is a chain of convolutions."""

    @property
    @abc.abstractmethod
    def trained(self) -> QuantizedChain | None:
        """Result of quantization-aware training; None before."""

    @abc.abstractmethod
    def calibrate(self, samples: Sequence[Sample], ranges: Ranges) -> QuantizedChain:
        """Quantize the fused float decoder, with the ranges of its activations on the samples."""

    @abc.abstractmethod
    def deployed(self, decoder: QuantizedChain) -> tuple[nn.Module, TracedChain]:
        """(a copy of the fused network whose decoder is in its traced form, that traced form)."""
