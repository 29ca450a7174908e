"""RepD, the reparameterized decoder: LR picture and latent prior → SR picture."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interface import FusionErrors
from .blocks import Modulation, RepConv
from .config import DecoderConfig

__all__ = ["RepDecoder", "bilinear_phase_kernels"]


def bilinear_phase_kernels(scale: int) -> Tensor:
    """3·scale²×3×3×3 kernels that, before a pixel shuffle, are bilinear interpolation (half-pixel centres)."""
    positions = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = torch.stack([(-positions).clamp(min=0), 1 - positions.abs(), positions.clamp(min=0)], dim=1)
    phases = torch.einsum("ai,bj->abij", taps, taps).reshape(scale * scale, 3, 3)
    kernels = torch.zeros(3, scale * scale, 3, 3, 3, dtype=torch.float64)
    for channel in range(3):
        kernels[channel, :, channel] = phases
    return kernels.reshape(3 * scale * scale, 3, 3, 3).float()


class RepDecoder(nn.Module):
    """Plain stack of 3×3 convolutions and ReLU, modulated by the latent prior at a few depths (paper section 3).

    The long skip is the LR picture itself, repeated into the sub-pixel phases, plus a trained 3×3 convolution of the
    edge-padded picture that starts as the difference of bilinear and nearest interpolation: an untrained network is close
    to bilinear. A resize at output size would cost 1 to 4 ms in 128×128 LR, this below 1. In bf16 an engine rounds what a
    convolution puts out; of the whole skip that is half a grey level, of the difference next to nothing (Set5 loses
    0.010 instead of 0.016 dB).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.head = nn.Conv2d(3, config.width, 3, padding=1)
        self.body = nn.ModuleList(
            RepConv(config.width, branches=config.branches, expansion=config.expansion) for _ in range(config.depth)
        )
        self.modulation = nn.ModuleDict(
            {str(depth): Modulation(config.latent_size, config.width) for depth in config.modulation_depths}
        )
        self.tail = nn.Conv2d(config.width, 3 * config.scale**2, 3, padding=1)
        self.skip = nn.Conv2d(3, 3 * config.scale**2, 3)
        nn.init.normal_(self.tail.weight, std=1e-3)
        for bias in (self.head.bias, self.tail.bias, self.skip.bias):
            assert bias is not None
            nn.init.zeros_(bias)
        with torch.no_grad():
            self.skip.weight.copy_(bilinear_phase_kernels(config.scale))
            nearest = torch.arange(3 * config.scale**2)
            self.skip.weight[nearest, nearest // config.scale**2, 1, 1] -= 1

    @property
    def receptive_radius(self) -> int:
        """LR pixels on each side that one output pixel depends on."""
        return len(self.body) + 2

    def forward(self, lr: Tensor, z: Tensor | None = None, *, branches: bool = False) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent z (None without modulation) → N×3×sH×sW SR, not clipped.

        `branches`: compute every block branch by branch, for the proof of the fusion.
        """
        x = F.relu(self.head(lr))
        for index, block in enumerate(self.body):
            x = block.forward_branches(x) if branches else block(x)  # type: ignore[operator]
            if str(index) in self.modulation:
                x = self.modulation[str(index)](x, z)
            x = F.relu(x)
        detail = self.tail(x)
        # In bf16 the skip alone would be a grey level off, so training computes it and the sum in the picture's own type.
        with torch.autocast(lr.device.type, enabled=False):
            skip = self.skip(F.pad(lr, (1, 1, 1, 1), mode="replicate")) + lr.repeat_interleave(self.scale**2, dim=1)
            return F.pixel_shuffle(detail.type_as(skip) + skip, self.scale)

    @property
    def peak_channels(self) -> int:
        """Largest number of values per LR pixel at once: three feature maps, or one and what the tail sums."""
        return max(3 * self.head.out_channels, self.head.out_channels + 4 * 3 * self.scale**2)

    @torch.no_grad()
    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        """Compare fused with multi-branch: every block on its own, then the whole decoder, in float32 and float64."""
        relative = 0.0
        generator = torch.Generator().manual_seed(0)
        for block in self.body:
            assert isinstance(block, RepConv)
            wide = copy.deepcopy(block).double()
            x = torch.randn(1, block.channels, 17, 15, generator=generator, dtype=torch.float64)
            relative = _worse(relative, _relative(wide.fuse()(x), wide.forward_branches(x)))
        wide_decoder = copy.deepcopy(self).double()
        sample = [tensor.double() for tensor in (lr, *condition)]
        relative = _worse(relative, _relative(wide_decoder.fuse()(*sample), wide_decoder(*sample, branches=True)))
        narrow = (self.fuse()(lr, *condition) - self(lr, *condition, branches=True)).abs().max()
        return FusionErrors(len(self.body), float(narrow), relative)

    def fuse(self) -> RepDecoder:
        """A copy in which every block is one plain convolution."""
        fused = copy.deepcopy(self)
        fused.body = nn.ModuleList(block.fuse() for block in self.body)  # type: ignore[operator]
        return fused


def _worse(a: float, b: float) -> float:
    """The larger of the two; NaN if either is."""
    return a if math.isnan(a) else b if math.isnan(b) else max(a, b)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
