"""The UNet of the family: residual blocks that the step modulates, and a Swin layer at the head of each level."""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResShiftConfig
from .norm import GroupNorm
from .swin import SwinLayer

__all__ = ["UNet", "time_frequencies"]


@functools.cache
def time_frequencies(channels: int) -> Tensor:
    """1×channels/2: 1 … 1/10,000, geometrically."""
    half = channels // 2
    return torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10_000) / half))[None]


def time_embedding(time: Tensor, channels: int) -> Tensor:
    """Times (N) → N×channels: cosines, then sines, of periods from 2π to 10,000 · 2π."""
    angles = time[:, None] * time_frequencies(channels)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """Two convolutions; between them the step's embedding gives a scale and a shift of the normalized map."""

    def __init__(self, channels: int, embedding: int, out: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        # The place of the dropout of training counts in the names of the weights.
        self.out_layers = nn.Sequential(GroupNorm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        y: Tensor = self.skip_connection(x) + self.out_layers[3](F.silu(h))
        return y


class Downsample(nn.Module):
    """A convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x)
        return y


class Upsample(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class _Stage(nn.ModuleList):
    """Layers one after another; residual blocks also get the step's embedding."""

    def run(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNet(nn.Module):
    """Estimates the latent of the HR picture from a shifted latent, the LR picture, and the step."""

    def __init__(self, config: ResShiftConfig) -> None:
        super().__init__()
        base = config.model_channels
        embedding = 4 * base
        self.base = base
        self.time_embed = nn.Sequential(nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        levels = len(config.channel_mult)

        def swin(channels: int, level: int) -> list[SwinLayer]:
            """The Swin layer of a level, if it has one. It shifts windows if the trained size had several."""
            if level not in config.swin_levels:
                return []
            layer = SwinLayer(
                channels,
                config.swin_embed_dim,
                config.swin_hidden,
                heads=config.swin_heads,
                window=config.window_size,
                depth=config.swin_depth,
                shifts=config.image_size >> level > config.window_size,
            )
            return [layer]

        channels = base * config.channel_mult[0]
        blocks = [_Stage([nn.Conv2d(config.in_channels, channels, 3, padding=1)])]
        skips = [channels]
        for level, multiple in enumerate(config.channel_mult):
            for index in range(config.num_res_blocks[level]):
                out = base * multiple
                blocks.append(_Stage([ResBlock(channels, embedding, out), *(swin(out, level) if index == 0 else [])]))
                channels = out
                skips.append(channels)
            if level < levels - 1:
                blocks.append(_Stage([Downsample(channels)]))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = _Stage(
            [
                ResBlock(channels, embedding, channels),
                *swin(channels, levels - 1),
                ResBlock(channels, embedding, channels),
            ]
        )
        blocks = []
        for level in reversed(range(levels)):
            out = base * config.channel_mult[level]
            for index in range(config.num_res_blocks[level] + 1):
                parts: list[nn.Module] = [ResBlock(channels + skips.pop(), embedding, out)]
                channels = out
                if index == 0:
                    parts += swin(out, level)
                if level and index == config.num_res_blocks[level]:
                    parts.append(Upsample(out))
                blocks.append(_Stage(parts))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, config.latent_channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """`x`: N×C×H×W, the scaled latent with the other inputs after it, sides multiples of 8·2^(levels−1). `time`: N."""
        embedding = self.time_embed(time_embedding(time, self.base))
        skips = []
        for stage in self.input_blocks:
            x = cast(_Stage, stage).run(x, embedding)
            skips.append(x)
        x = self.middle_block.run(x, embedding)
        for stage in self.output_blocks:
            x = cast(_Stage, stage).run(torch.cat([x, skips.pop()], dim=1), embedding)
        y: Tensor = self.out(x)
        return y
