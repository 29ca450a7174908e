"""Building blocks of RDSR's decoder: the reparameterizable convolution, and modulation by the latent prior."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderConfig

__all__ = ["Modulation", "RepConv", "modulations"]


class RepConv(nn.Module):
    """A 3×3 convolution that is trained as a sum of linear branches and deployed as one kernel.

    Beside the 3×3 kernel `weight` there may be these branches, without biases: `conv1x1` (C×C×1×1); `expand` (M×C×1×1)
    followed by `project` (C×M×3×3); `identity` (one scale per channel). Without any it is a plain convolution.
    """

    conv1x1: nn.Parameter | None
    expand: nn.Parameter | None
    project: nn.Parameter | None
    identity: nn.Parameter | None

    def __init__(self, channels: int, *, branches: Sequence[str] = (), expansion: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        for name, branch, shape in (
            ("conv1x1", "conv1x1", (channels, channels, 1, 1)),
            ("expand", "expand", (channels * expansion, channels, 1, 1)),
            ("project", "expand", (channels, channels * expansion, 3, 3)),
            ("identity", "identity", (channels,)),
        ):
            self.register_parameter(name, nn.Parameter(torch.ones(shape)) if branch in branches else None)
        for weight in (self.weight, self.conv1x1, self.expand, self.project):
            if weight is not None:
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
                # Beside an identity branch the others start small, so that deep stacks start tame.
                if self.identity is not None and weight is not self.expand:
                    weight.data.mul_(0.1)

    def folded_weight(self) -> Tensor:
        """The C×C×3×3 kernel that equals the sum of all branches. It is exact, since every branch is linear."""
        weight: Tensor = self.weight
        with torch.autocast(weight.device.type, enabled=False):  # a fold in bf16 would not be exact
            if self.conv1x1 is not None:
                weight = weight + F.pad(self.conv1x1, (1, 1, 1, 1))
            if self.expand is not None and self.project is not None:
                weight = weight + torch.einsum("omhw,mi->oihw", self.project, self.expand[:, :, 0, 0])
            if self.identity is not None:
                weight = weight + F.pad(torch.diag(self.identity)[:, :, None, None], (1, 1, 1, 1))
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W → N×C×H×W through the folded kernel: one convolution, also while training."""
        return F.conv2d(x, self.folded_weight(), self.bias, padding=1)

    def forward_branches(self, x: Tensor) -> Tensor:
        """The same map, computed branch by branch. `fuse` is proven against it."""
        y = F.conv2d(x, self.weight, self.bias, padding=1)
        if self.conv1x1 is not None:
            y = y + F.conv2d(x, self.conv1x1)
        if self.expand is not None and self.project is not None:
            y = y + F.conv2d(F.conv2d(x, self.expand), self.project, padding=1)
        if self.identity is not None:
            y = y + x * self.identity[None, :, None, None]
        return y

    @torch.no_grad()
    def fuse(self) -> RepConv:
        """A new block with only the 3×3 kernel, folded in float64 and rounded once to the block's dtype."""
        fused = RepConv(self.channels).to(self.weight)
        fused.weight.copy_(copy.deepcopy(self).double().folded_weight())
        fused.bias.copy_(self.bias)
        return fused


class Modulation(nn.Linear):
    """Per-channel scale and shift of a feature map by the latent prior: x·(1 + s(z)) + b(z). Starts as identity."""

    def __init__(self, latent_size: int, channels: int) -> None:
        super().__init__(latent_size, 2 * channels)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        """N×C×H×W features and N×latent prior → N×C×H×W."""
        scale, shift = super().forward(z)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


def modulations(config: DecoderConfig) -> nn.ModuleDict:
    """Depth in the body, as a string → its `Modulation`."""
    return nn.ModuleDict({str(depth): Modulation(config.latent_size, config.width) for depth in config.modulation_depths})
