"""RepD, the reparameterized decoder: LR picture and latent prior → SR picture."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interface import FusionErrors
from .blocks import RepConv, modulations
from .config import DecoderConfig

__all__ = ["RepDecoder", "bilinear_phase_kernels"]


def bilinear_phase_kernels(scale: int) -> Tensor:
    """3·scale²×3×3×3 kernels that, followed by a pixel shuffle, interpolate bilinearly (half-pixel centres)."""
    positions = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = torch.stack([(-positions).clamp(min=0), 1 - positions.abs(), positions.clamp(min=0)], dim=1)
    phases = torch.einsum("ai,bj->abij", taps, taps).reshape(scale * scale, 3, 3)
    kernels = torch.einsum("oc,pij->opcij", torch.eye(3, dtype=torch.float64), phases)
    return kernels.reshape(3 * scale * scale, 3, 3, 3).float()


class RepDecoder(nn.Module):
    """Plain stack of 3×3 convolutions and ReLU, modulated by the latent prior at a few depths (paper section 3).

    The long skip is the LR picture itself, repeated into the sub-pixel phases, plus a trained 3×3 convolution of the
    edge-padded picture. The convolution starts as bilinear minus nearest interpolation, so an untrained network is close to
    bilinear. At 128×128 LR it costs less than 1 ms; a resize at output size would cost 1 to 4. The picture stays outside the
    convolution because engines round the output of a convolution in bf16: half a grey level for the whole skip, next to
    nothing for the difference (Set5 loses 0.010 instead of 0.016 dB).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.head = nn.Conv2d(3, config.width, 3, padding=1)
        self.body = nn.ModuleList(
            RepConv(config.width, branches=config.branches, expansion=config.expansion) for _ in range(config.depth)
        )
        self.modulation = modulations(config)
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

        With `branches`, every block is computed branch by branch: this proves the fusion.
        """
        x = F.relu(self.head(lr))
        for index, block in enumerate(self.body):
            x = block.forward_branches(x) if branches else block(x)  # type: ignore[operator]
            if str(index) in self.modulation:
                x = self.modulation[str(index)](x, z)
            x = F.relu(x)
        detail = self.tail(x)
        # In bf16 the skip would be a grey level off, so training computes skip and sum in the picture's dtype.
        with torch.autocast(lr.device.type, enabled=False):
            skip = self.skip(F.pad(lr, (1, 1, 1, 1), mode="replicate")) + lr.repeat_interleave(self.scale**2, dim=1)
            return F.pixel_shuffle(detail.type_as(skip) + skip, self.scale)

    @property
    def peak_channels(self) -> int:
        """Largest number of values per LR pixel at once: three feature maps, or one and the terms of the tail's sum."""
        return max(3 * self.head.out_channels, self.head.out_channels + 4 * 3 * self.scale**2)

    @torch.no_grad()
    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        """Compare fused and multi-branch form: every block in float64, then the whole decoder in float32 and float64."""
        relative: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        for block in self.body:
            assert isinstance(block, RepConv)
            wide = copy.deepcopy(block).double()
            x = torch.randn(1, block.channels, 17, 15, generator=generator, dtype=torch.float64)
            relative.append(_relative(wide.fuse()(x), wide.forward_branches(x)))
        wide_decoder = copy.deepcopy(self).double()
        sample = [tensor.double() for tensor in (lr, *condition)]
        relative.append(_relative(wide_decoder.fuse()(*sample), wide_decoder(*sample, branches=True)))
        narrow = (self.fuse()(lr, *condition) - self(lr, *condition, branches=True)).abs().max()
        return FusionErrors(len(self.body), float(narrow), float(torch.stack(relative).max()))  # NaN stays NaN

    def fuse(self) -> RepDecoder:
        """A copy in which every block is one plain convolution."""
        fused = copy.deepcopy(self)
        fused.body = nn.ModuleList(block.fuse() for block in self.body)  # type: ignore[operator]
        return fused


def _relative(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().max() / b.abs().max().clamp(min=1e-30)
