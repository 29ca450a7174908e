"""Torch modules of published super-resolution networks: the right structure, and so the right time, with random weights.

We wrote them from the papers' descriptions, in the deployed form (a reparameterized block is one plain convolution here).
Every network maps N×3×H×W in [0, 1] to N×3×4H×4W, which is not clipped. A docstring says which details we could not
confirm. None of these changes the computation by more than an elementwise operation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NETWORKS", "spread_weights"]


def _conv3(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding)


def _activation() -> nn.Module:
    """Leaky ReLU with IMDN's slope. We assume the same slope for RFDN and RLFN; it does not affect the time."""
    return nn.LeakyReLU(0.05)


def _upsampler(channels: int) -> nn.Module:
    return nn.Sequential(_conv3(channels, 3 * 4**2), nn.PixelShuffle(4))


def _maps(blocks: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Run blocks one after another. Return their input `x` and the output of each."""
    return list(itertools.accumulate(blocks, lambda y, block: block(y), initial=x))


class _Shortcut(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x: Tensor) -> Tensor:
        return x + _maps(self, x)[-1]


class _AllOutputs(nn.Sequential):
    """Blocks that run one after another and whose outputs are concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(_maps(self, x)[1:], 1)


class _ContrastAttention(nn.Module):
    """IMDN's channel attention: mean plus standard deviation of each channel, two 1×1 convolutions, a sigmoid."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        centred = x - mean
        return x * self.gate((centred * centred).mean((2, 3), keepdim=True).sqrt() + mean)


class _SpatialAttention(nn.Module):
    """RFANet's enhanced spatial attention: a gate computed at about 1/6 of the size and enlarged bilinearly.

    `depth` counts the 3×3 convolutions after the pooling: three in RFANet and E-RFDN, one in RLFN. H and W must be at
    least 15: a convolution of stride 2 without padding comes before a 7×7 maximum of stride 3.
    """

    def __init__(self, channels: int, inner: int, depth: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.shortcut = nn.Conv2d(inner, inner, 1)
        self.pool = nn.Sequential(_conv3(inner, inner, stride=2, padding=0), nn.MaxPool2d(7, 3), _conv3(inner, inner))
        for _ in range(depth - 1):
            self.pool.extend([nn.ReLU(), _conv3(inner, inner)])
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        pooled = F.interpolate(self.pool(reduced), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.expand(pooled + self.shortcut(reduced)))


class _ParameterFreeAttentionBlock(nn.Module):
    """SPAB: three convolutions give H; the result is (x + H)·(sigmoid(H) − ½)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second, third = (_conv3(channels, channels) for _ in range(3))
        self.refine = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        features = self.refine(x)
        return (features + x) * (torch.sigmoid(features) - 0.5)


class _Span(nn.Module):
    """SPAN: Wan et al., NTIRE 2024, deployed. The paper calls 52 channels SPAN and 48 channels SPAN-S.

    It concatenates the shallow features and the outputs of the first block, of the last but one, and of the last one,
    convolved. (The release may take a map from inside the last block instead of the last but one: as wide, so as fast.)
    We leave out the release's mean subtraction and its factor of 255: two elementwise operations on three channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shallow = _conv3(3, channels)
        self.blocks = nn.Sequential(*(_ParameterFreeAttentionBlock(channels) for _ in range(6)))
        self.smooth = _conv3(channels, channels)
        self.fuse = nn.Conv2d(4 * channels, channels, 1)
        self.upsample = _upsampler(channels)

    def forward(self, lr: Tensor) -> Tensor:
        shallow, first, *_, last_but_one, last = _maps(self.blocks, self.shallow(lr))
        return self.upsample(self.fuse(torch.cat([shallow, self.smooth(last), first, last_but_one], 1)))


class _PlainStack(nn.Module):
    """DISP: 3×3 convolutions with SiLU, an identity around every four and one around all."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.head = _conv3(3, channels)
        self.body = _Shortcut(*(_four_activated(channels) for _ in range(groups)))
        self.upsample = _upsampler(channels)

    def forward(self, lr: Tensor) -> Tensor:
        return self.upsample(self.body(self.head(lr)))


def _four_activated(channels: int) -> nn.Module:
    return _Shortcut(*(layer for _ in range(4) for layer in (_conv3(channels, channels), nn.SiLU())))


def _local_feature_block(channels: int, inner: int) -> nn.Module:
    """RLFB: three activated convolutions with a shortcut, a 1×1 convolution, spatial attention of 16 channels."""
    widths = itertools.pairwise((channels, inner, inner, channels))
    refine = [layer for entering, leaving in widths for layer in (_conv3(entering, leaving), _activation())]
    return nn.Sequential(_Shortcut(*refine), nn.Conv2d(channels, channels, 1), _SpatialAttention(channels, 16, depth=1))


def _rlfn(channels: int, blocks: int = 6, inner: int | None = None) -> nn.Module:
    """RLFN: Kong et al., NTIRE 2022. The paper writes ReLU; a leaky one takes the same time. The challenge's entry has four
    blocks of 46 channels, 48 inside: so its published number of parameters comes out.
    """
    return nn.Sequential(
        _conv3(3, channels),
        _Shortcut(*(_local_feature_block(channels, inner or channels) for _ in range(blocks)), _conv3(channels, channels)),
        _upsampler(channels),
    )


class _SplitDistillationBlock(nn.Module):
    """IMDB: each of three convolutions sends a quarter of its channels to the end and the rest to the next one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kept = channels // 4
        rest = channels - self.kept
        self.steps = nn.ModuleList(nn.Sequential(_conv3(c, channels), _activation()) for c in (channels, rest, rest))
        self.last = _conv3(rest, self.kept)
        self.attention = _ContrastAttention(channels, channels // 16)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        distilled, coarse = [], x
        for step in self.steps:
            features = step(coarse)
            distilled.append(features[:, : self.kept])
            coarse = features[:, self.kept :]
        distilled.append(self.last(coarse))
        return self.fuse(self.attention(torch.cat(distilled, 1))) + x


class _ConnectedDistillationBlock(nn.Module):
    """RFDB: 1×1 convolutions distil half of the channels; 3×3 convolutions with a shortcut (SRB) refine the rest.

    The description does not say if the whole block has a shortcut too; ours has none. We infer that RFDN's channel
    attention squeezes to a quarter and comes last, because the published parameter counts (534, 541 and 550 thousand at
    ×2, ×3 and ×4) come out so.
    """

    def __init__(self, channels: int, *, spatial: bool = False) -> None:
        super().__init__()
        kept, inner = channels // 2, channels // 4
        self.distil = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, kept, 1), _activation()) for _ in range(3))
        self.refine = nn.ModuleList(nn.Sequential(_Shortcut(_conv3(channels, channels)), _activation()) for _ in range(3))
        self.last = nn.Sequential(_conv3(channels, kept), _activation())
        self.fuse = nn.Conv2d(4 * kept, channels, 1)
        self.attention = _SpatialAttention(channels, inner, 3) if spatial else _ContrastAttention(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        *coarse, coarsest = _maps(self.refine, x)
        distilled = [distil(y) for distil, y in zip(self.distil, coarse, strict=True)]
        return self.attention(self.fuse(torch.cat([*distilled, self.last(coarsest)], 1)))


def _distillation_network(channels: int, blocks: int, block: Callable[[int], nn.Module]) -> nn.Module:
    """The structure that IMDN and RFDN share: the outputs of all blocks are concatenated and fused."""
    return nn.Sequential(
        _conv3(3, channels),
        _Shortcut(
            _AllOutputs(*(block(channels) for _ in range(blocks))),
            nn.Conv2d(blocks * channels, channels, 1),
            _activation(),
            _conv3(channels, channels),
        ),
        _upsampler(channels),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "span": lambda: _Span(52),
    "span-s": lambda: _Span(48),
    "span-28": lambda: _Span(28),
    "disp": lambda: _PlainStack(32, 4),
    "rlfn": lambda: _rlfn(52),
    "rlfn-ntire": lambda: _rlfn(46, blocks=4, inner=48),
    "rlfn-s": lambda: _rlfn(48),
    "imdn": lambda: _distillation_network(64, 6, _SplitDistillationBlock),  # Hui et al., ACM Multimedia 2019
    "rfdn": lambda: _distillation_network(48, 6, _ConnectedDistillationBlock),  # Liu et al., AIM 2020
    "e-rfdn": lambda: _distillation_network(50, 4, partial(_ConnectedDistillationBlock, spatial=True)),  # the same
}
"""Name of a peer → its network, with weights as torch draws them."""


def spread_weights(network: nn.Module) -> None:
    """Scale every convolution so that its output on a random picture has a standard deviation of one.

    With the weights that torch draws, activations vanish (SPAN multiplies two shrinking maps in every block).
    Arithmetic on subnormal numbers is many times slower than on the numbers of a trained network.
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
