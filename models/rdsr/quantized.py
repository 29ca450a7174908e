"""The decoder as int8 engines run it: fake-quantized, and in its traced form. `models/int8/chain.py` explains both."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..int8.chain import Only, QuantizedChain, QuantizedConv, TracedChain, Watch
from ..shapes import Shapes, parts_found
from .blocks import Modulation, modulations
from .config import DecoderConfig
from .decoder import RepDecoder

__all__ = ["QuantizedDecoder", "TracedDecoder", "merged_skip"]


def merged_skip(decoder: RepDecoder) -> nn.Conv2d:
    """The long skip as one convolution. Repeating the picture into the phases is a kernel with a 1 in its centre."""
    skip = copy.deepcopy(decoder.skip)
    phases = torch.arange(3 * decoder.scale**2)
    with torch.no_grad():
        skip.weight[phases, phases // decoder.scale**2, 1, 1] += 1
    return skip


def _with_skip(y: Tensor, lr: Tensor, skip: nn.Module, scale: int) -> Tensor:
    """Output of the tail (N×3s²×H×W) and LR → N×3×sH×sW SR."""
    return F.pixel_shuffle(y + skip(F.pad(lr, (1, 1, 1, 1), mode="replicate")), scale)


class QuantizedDecoder(QuantizedChain):
    """`RepDecoder`, fused, with the rounding errors of int8. Head, modulation and long skip are float."""

    def __init__(self, config: DecoderConfig, *, floats: Collection[int] = (), identities: Collection[int] = ()) -> None:
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
        self.modulation = modulations(config)
        self.skip = nn.Conv2d(3, 3 * config.scale**2, 3)

    @classmethod
    def if_present(cls, config: DecoderConfig, shapes: Shapes) -> QuantizedDecoder | None:
        """The decoder, without weights, that the keys below "quantized." of a network's state dict show; None without any.

        Raises `CheckpointError` if no decoder can have these keys.
        """
        if not parts_found(shapes, "quantized."):
            return None
        convolutions = range(config.depth + 1)
        floats = [i for i in convolutions if f"quantized.convs.{i}.log_weight_scale" not in shapes]
        identities = [i for i in convolutions if f"quantized.convs.{i}.identity" in shapes]
        if config.depth in identities:
            raise CheckpointError("the quantized tail has an identity skip, which only convolutions of the body can have")
        if len(floats) == len(convolutions):
            raise CheckpointError("the quantized decoder has no quantized convolution")
        return cls(config, floats=floats, identities=identities)

    @torch.no_grad()
    def scale_channels(self, index: int, factor: Tensor) -> None:
        """Multiply the input of convolution `index` by positive factors (I) where it is made; its weights undo that."""
        convs = self.layers()
        convs[index].weight.div_(factor[None, :, None, None])
        if (identity := convs[index].identity) is not None:
            identity.div_(factor)
        before = self.head if index == 0 else convs[index - 1]
        assert isinstance(before.bias, Tensor)
        before.weight.mul_(factor[:, None, None, None])
        before.bias.mul_(factor)
        if index == 0:
            return
        made = convs[index - 1]
        if made.log_weight_scale is not None:
            made.log_weight_scale.add_(factor.log()[:, None, None, None])
        if made.output_low is not None and made.log_output_scale is not None:
            made.output_low.mul_(factor)
            made.log_output_scale.add_(factor.log())
        if made.identity is not None:
            made.identity.mul_(factor)
        if (modulation := self.modulation_of(index - 1)) is not None:
            modulation.weight[len(factor) :].mul_(factor[:, None])
            modulation.bias[len(factor) :].mul_(factor)

    def learn_factors(self) -> None:
        """Let each channel of every quantized input learn a scale of its own, for training."""
        for conv in self.layers():
            conv.learn_factors()

    @torch.no_grad()
    def fold_factors(self) -> None:
        """Move the factors of inputs into the convolutions before and after. The decoder computes the same as before."""
        for index, conv in enumerate(self.layers()):
            if conv.log_factors is not None:
                factors, conv.log_factors = conv.log_factors.flatten(), None
                self.scale_channels(index, (-factors).exp())

    def snap(self) -> None:
        self.fold_factors()
        super().snap()

    def modulation_of(self, index: int) -> Modulation | None:
        """The modulation between a convolution and its ReLU, if there is one."""
        return cast(dict[str, Modulation], dict(self.modulation.items())).get(str(index))

    def forward(self, lr: Tensor, z: Tensor | None = None, *, only: Only = None, watch: Watch | None = None) -> Tensor:
        return self.from_layer(0, F.relu(self.head(lr)), lr, z, only=only, watch=watch)

    def from_layer(
        self, start: int, x: Tensor, lr: Tensor, z: Tensor | None = None, *, only: Only = None, watch: Watch | None = None
    ) -> Tensor:
        for index in range(start, len(self.convs) - 1):
            x = F.relu(self.layer(index, x, z, only=only, watch=watch))
        y = self.layer(len(self.convs) - 1, x, z, only=only, watch=watch)
        return _with_skip(y, lr, self.skip, self.scale)

    def layer(self, index: int, x: Tensor, z: Tensor | None, *, only: Only = None, watch: Watch | None = None) -> Tensor:
        """Convolution `index`, identity skip and modulation, without the ReLU. Arguments as for `forward`."""
        conv = self.convs[index]
        assert isinstance(conv, QuantizedConv)

        def active(tensor: str) -> bool:
            return conv.quantized and (only is None or (index, tensor) in only)

        if watch:
            watch(index, "input", x)
        if self.training and self.trains_in_bf16 and conv.quantized and conv.identity is None and only is None:
            y = conv.convolve_in_bf16(x)
        else:
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


class TracedDecoder(TracedChain):
    """The traced form. Scale and shift that turn levels back into values are folded into modulation or skip if possible."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.scale = decoder.scale
        self.head, self.skip = copy.deepcopy(decoder.head), copy.deepcopy(decoder.skip)
        self.convs, self.modulation = nn.ModuleList(), nn.ModuleDict()
        self.outputs, self.weight_scales, self.input_scales = [], [], []
        self.values, self.lows, self.identity = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        """O×1×1 by index: scale of a level and value of level 0, unless the modulation includes them; identity skip."""
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
        # The modulation can turn levels into values without an extra operation.
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

    def forward(self, lr: Tensor, z: Tensor | None = None) -> Tensor:
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
        return _with_skip(y, lr, self.skip, self.scale)


def _folded_modulation(modulation: Modulation, low: Tensor, step: Tensor) -> nn.Linear:
    """z → factor and shift (2·O) of an output in levels: (1 + s(z))·(level·step + low) + b(z) = level·factor + shift."""
    outputs = len(step)
    matrix, offset = modulation.weight.double(), modulation.bias.double()
    scale, one = matrix[:outputs], 1 + offset[:outputs]
    folded = nn.Linear(modulation.in_features, 2 * outputs)
    weight = torch.cat([scale * step[:, None], matrix[outputs:] + low[:, None] * scale])
    folded.load_state_dict({"weight": weight, "bias": torch.cat([one * step, offset[outputs:] + one * low])})
    return folded
