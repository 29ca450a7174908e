"""The decoder as int8 engines run it: fake-quantized, and in the form that is traced; see `models/int8/chain.py`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..int8.chain import Only, QuantizedChain, QuantizedConv, TracedChain, Watch
from .blocks import Modulation
from .config import DecoderConfig
from .decoder import RepDecoder

__all__ = ["QuantizedDecoder", "TracedDecoder", "merged_skip"]


def merged_skip(decoder: RepDecoder) -> nn.Conv2d:
    """The long skip as one convolution: repeating the picture into the phases is a kernel with a 1 in its centre."""
    skip = copy.deepcopy(decoder.skip)
    phases = torch.arange(3 * decoder.scale**2)
    with torch.no_grad():
        skip.weight[phases, phases // decoder.scale**2, 1, 1] += 1
    return skip


class QuantizedDecoder(QuantizedChain):
    """RepD, fused and fake-quantized: what `RepDecoder` computes, with the error that int8 makes.

    Head, modulation and long skip are float. A float convolution at an index in `floats` takes its input unquantized.
    """

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
        self.modulation = nn.ModuleDict(
            {str(depth): Modulation(config.latent_size, config.width) for depth in config.modulation_depths}
        )
        self.skip = nn.Conv2d(3, 3 * config.scale**2, 3)

    @classmethod
    def if_present(cls, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> QuantizedDecoder | None:
        """The empty decoder that the keys below "quantized." of a network's state dict show; None if there are none."""
        prefix = "quantized."
        own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        return cls.from_shapes(config, own) if own else None

    @classmethod
    def from_shapes(cls, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]) -> QuantizedDecoder:
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

    def modulation_of(self, index: int) -> Modulation | None:
        """The modulation between a convolution and its ReLU."""
        modulation = self.modulation[str(index)] if str(index) in self.modulation else None  # noqa: SIM401 (no dict)
        assert modulation is None or isinstance(modulation, Modulation)
        return modulation

    def forward(self, lr: Tensor, z: Tensor | None = None, *, only: Only = None, watch: Watch | None = None) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent → N×3×sH×sW SR, not clipped.

        `only`: quantize these tensors alone (None: all that are to be); `watch`: sees what is about to be quantized.
        """
        return self.from_layer(0, F.relu(self.head(lr)), lr, z, only=only, watch=watch)

    def from_layer(
        self, start: int, x: Tensor, lr: Tensor, z: Tensor | None = None, *, only: Only = None, watch: Watch | None = None
    ) -> Tensor:
        """The rest of `forward`, from convolution `start` on, whose input is `x`."""
        for index in range(start, len(self.convs) - 1):
            x = F.relu(self.layer(index, x, z, only=only, watch=watch))
        y = self.layer(len(self.convs) - 1, x, z, only=only, watch=watch)
        return F.pixel_shuffle(y + self.skip(F.pad(lr, (1, 1, 1, 1), mode="replicate")), self.scale)

    def layer(self, index: int, x: Tensor, z: Tensor | None, *, only: Only = None, watch: Watch | None = None) -> Tensor:
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


class TracedDecoder(TracedChain):
    """The operations of the int8 graph in float: quantizing the tensors that `export/int8` knows makes it the int8 graph.

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

    def forward(self, lr: Tensor, z: Tensor | None = None) -> Tensor:
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
