"""Torch modules of efficient super-resolution networks: right in structure and so in time, with random weights.

Written from the papers' descriptions, as deployed (what is reparameterized is one plain convolution here). Every network
maps N×3×H×W in [0, 1] to N×3×4H×4W, which is not clipped. Where a detail could not be confirmed, its docstring says so;
none of these changes what is computed by more than an elementwise operation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IMDN", "RFDN", "RLFN", "SPAN", "ContrastAttention", "SpatialAttention", "spread_weights"]

SCALE = 4
NEGATIVE_SLOPE = 0.05
"""Of every leaky ReLU: IMDN's; that RFDN and RLFN use it too is assumed. It has no part in the time."""


def _conv3(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding)


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE)


def _upsampler(channels: int) -> nn.Module:
    return nn.Sequential(_conv3(channels, 3 * SCALE**2), nn.PixelShuffle(SCALE))


def spread_weights(network: nn.Module) -> None:
    """Scale every convolution so that its output on a random picture has a spread of one.

    Weights as torch draws them let activations die out (SPAN multiplies two shrinking maps in every block), and
    arithmetic on subnormal numbers takes many times as long as on what a trained network computes with.
    """

    def scale(convolution: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        spread = output.std()
        for parameter in convolution.parameters():
            parameter.div_(spread)
        return output / spread

    hooks = [module.register_forward_hook(scale) for module in network.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()


class ContrastAttention(nn.Module):
    """IMDN's channel attention: each channel's mean plus its standard deviation, two 1×1 convolutions, a sigmoid."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        centred = x - mean
        contrast = (centred * centred).mean((2, 3), keepdim=True).sqrt() + mean
        gate: Tensor = torch.sigmoid(self.excite(F.relu(self.squeeze(contrast))))
        return x * gate


class SpatialAttention(nn.Module):
    """RFANet's enhanced spatial attention: a gate seen at about 1/6 of the size, brought back bilinearly.

    `depth` counts the 3×3 convolutions behind the pooling: three in RFANet and E-RFDN, one in RLFN. Needs H, W ≥ 15: a
    convolution of stride 2 without padding, then a maximum over 7×7 with stride 3.
    """

    def __init__(self, channels: int, inner: int, depth: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.shortcut = nn.Conv2d(inner, inner, 1)
        self.stride = _conv3(inner, inner, stride=2, padding=0)
        self.pooled = nn.ModuleList(_conv3(inner, inner) for _ in range(depth))
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        seen = F.max_pool2d(self.stride(reduced), 7, 3)
        for index, convolution in enumerate(self.pooled):
            seen = convolution(F.relu(seen) if index else seen)
        seen = F.interpolate(seen, size=x.shape[-2:], mode="bilinear", align_corners=False)
        gate: Tensor = torch.sigmoid(self.expand(seen + self.shortcut(reduced)))
        return x * gate


class _ParameterFreeAttentionBlock(nn.Module):
    """SPAB: three convolutions give H; the result is (x + H)·(sigmoid(H) − ½)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (_conv3(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.third(F.silu(self.second(F.silu(self.first(x)))))
        return (features + x) * (torch.sigmoid(features) - 0.5)


class SPAN(nn.Module):
    """Wan et al., NTIRE 2024, deployed. The paper calls 52 channels SPAN and 48 channels SPAN-S.

    Concatenated are the shallow features, the first block, the one before the last, and the last one convolved. (A map
    from inside the last block may stand for the one before it in the release: as wide, so of the same time.) The
    release's subtraction of a mean and factor of 255 are left out: two elementwise operations on three channels.
    """

    def __init__(self, channels: int, blocks: int = 6) -> None:
        super().__init__()
        self.shallow = _conv3(3, channels)
        self.blocks = nn.ModuleList(_ParameterFreeAttentionBlock(channels) for _ in range(blocks))
        self.smooth = _conv3(channels, channels)
        self.fuse = nn.Conv2d(4 * channels, channels, 1)
        self.upsample = _upsampler(channels)

    def forward(self, lr: Tensor) -> Tensor:
        maps = [self.shallow(lr)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.upsample(self.fuse(torch.cat([maps[0], self.smooth(maps[-1]), maps[1], maps[-2]], 1)))


class _LocalFeatureBlock(nn.Module):
    """RLFB: three activated convolutions, a shortcut, a 1×1 convolution, spatial attention of 16 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_conv3(channels, channels) for _ in range(3))
        self.fuse = nn.Conv2d(channels, channels, 1)
        self.attention = SpatialAttention(channels, 16, depth=1)

    def forward(self, x: Tensor) -> Tensor:
        refined = x
        for convolution in self.refine:
            refined = _act(convolution(refined))
        return self.attention(self.fuse(refined + x))


class RLFN(nn.Module):
    """Kong et al., NTIRE 2022: 52 channels in RLFN, 48 in RLFN-S. The paper writes ReLU; a leaky one takes the same time."""

    def __init__(self, channels: int, blocks: int = 6) -> None:
        super().__init__()
        self.shallow = _conv3(3, channels)
        self.blocks = nn.Sequential(*(_LocalFeatureBlock(channels) for _ in range(blocks)))
        self.smooth = _conv3(channels, channels)
        self.upsample = _upsampler(channels)

    def forward(self, lr: Tensor) -> Tensor:
        shallow = self.shallow(lr)
        return self.upsample(self.smooth(self.blocks(shallow)) + shallow)


class _SplitDistillationBlock(nn.Module):
    """IMDB: each of three convolutions hands a quarter of its channels to the end and the rest to the next."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kept = channels // 4
        rest = channels - self.kept
        self.steps = nn.ModuleList(_conv3(inputs, channels) for inputs in (channels, rest, rest))
        self.last = _conv3(rest, self.kept)
        self.attention = ContrastAttention(channels)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        distilled, coarse = [], x
        for step in self.steps:
            features = _act(step(coarse))
            distilled.append(features[:, : self.kept])
            coarse = features[:, self.kept :]
        distilled.append(self.last(coarse))
        return self.fuse(self.attention(torch.cat(distilled, 1))) + x


class _ConnectedDistillationBlock(nn.Module):
    """RFDB: 1×1 convolutions distil half of the channels; 3×3 convolutions with a shortcut (SRB) refine the rest.

    Whether the block as a whole has a shortcut too is not clear from the description; it has none here.
    """

    def __init__(self, channels: int, attention: Callable[[int], nn.Module]) -> None:
        super().__init__()
        kept = channels // 2
        self.distil = nn.ModuleList(nn.Conv2d(channels, kept, 1) for _ in range(3))
        self.refine = nn.ModuleList(_conv3(channels, channels) for _ in range(3))
        self.last = _conv3(channels, kept)
        self.fuse = nn.Conv2d(4 * kept, channels, 1)
        self.attention = attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        distilled, coarse = [], x
        for distil, refine in zip(self.distil, self.refine, strict=True):
            distilled.append(_act(distil(coarse)))
            coarse = _act(refine(coarse) + coarse)
        distilled.append(_act(self.last(coarse)))
        return self.attention(self.fuse(torch.cat(distilled, 1)))


class _DistillationNetwork(nn.Module):
    """What IMDN and RFDN share: all blocks' outputs are concatenated and fused before the global shortcut."""

    def __init__(self, channels: int, blocks: int, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.shallow = _conv3(3, channels)
        self.blocks = nn.ModuleList(block(channels) for _ in range(blocks))
        self.fuse = nn.Conv2d(blocks * channels, channels, 1)
        self.smooth = _conv3(channels, channels)
        self.upsample = _upsampler(channels)

    def forward(self, lr: Tensor) -> Tensor:
        maps = [self.shallow(lr)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return self.upsample(self.smooth(_act(self.fuse(torch.cat(maps[1:], 1)))) + maps[0])


class IMDN(_DistillationNetwork):
    """Hui et al., ACM Multimedia 2019."""

    def __init__(self, channels: int = 64, blocks: int = 6) -> None:
        super().__init__(channels, blocks, _SplitDistillationBlock)


class RFDN(_DistillationNetwork):
    """Liu et al., AIM 2020: RFDN (48 channels, 6 blocks), or with spatial attention E-RFDN (50 channels, 4 blocks).

    RFDN keeps IMDN's channel attention. That it squeezes to a quarter and comes after the fusion is inferred: the
    published parameter counts at ×2, ×3 and ×4 (534, 541 and 550 thousand) come out so.
    """

    def __init__(self, channels: int = 48, blocks: int = 6, *, spatial: bool = False) -> None:
        def attention(width: int) -> nn.Module:
            return SpatialAttention(width, width // 4, depth=3) if spatial else ContrastAttention(width, reduction=4)

        super().__init__(channels, blocks, lambda width: _ConnectedDistillationBlock(width, attention))
