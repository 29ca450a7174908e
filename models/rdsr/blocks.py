"""Building blocks of RDSR: the reparameterizable convolution, modulation by the latent prior, and padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Modulation", "RepConv"]


class RepConv(nn.Module):
    """A 3×3 convolution that is trained as a sum of linear branches and deployed as one kernel.

    Branches beside the 3×3 kernel `weight` (all optional, none has a bias of its own):
    `conv1x1` (C×C×1×1), `expand` (M×C×1×1) followed by `project` (C×M×3×3), and `identity` (a scale a channel).
    Without any of them the block *is* a plain convolution, which is what `fuse` returns.
    """

    def __init__(self, channels: int, *, branches: Sequence[str] = (), expansion: int = 2) -> None:
        super().__init__()
        hidden = channels * expansion
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        for name in ("conv1x1", "expand", "project", "identity"):
            self.register_parameter(name, None)
        self.conv1x1: Tensor | None
        self.expand: Tensor | None
        self.project: Tensor | None
        self.identity: Tensor | None
        if "conv1x1" in branches:
            self.conv1x1 = nn.Parameter(torch.empty(channels, channels, 1, 1))
        if "expand" in branches:
            self.expand = nn.Parameter(torch.empty(hidden, channels, 1, 1))
            self.project = nn.Parameter(torch.empty(channels, hidden, 3, 3))
        if "identity" in branches:
            self.identity = nn.Parameter(torch.ones(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming initialisation; beside an identity branch the others start small, so that deep stacks start tame."""
        gain = 0.1 if self.identity is not None else 1.0
        for weight in (self.weight, self.conv1x1, self.expand, self.project):
            if weight is not None:
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
                with torch.no_grad():
                    weight.mul_(1.0 if weight is self.expand else gain)

    def folded_weight(self) -> Tensor:
        """The one C×C×3×3 kernel that equals the sum of all branches (exact: every branch is linear)."""
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
        """N×C×H×W → N×C×H×W through the folded kernel: one convolution a block, in training too."""
        return F.conv2d(x, self.folded_weight(), self.bias, padding=1)

    def forward_branches(self, x: Tensor) -> Tensor:
        """The same map computed branch by branch; what `fuse` is proven against."""
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
        """A new block with the 3×3 kernel alone, folded in float64 and rounded once to the block's dtype."""
        fused = RepConv(self.channels).to(self.weight)
        dtype = self.weight.dtype
        wide = RepConv.__new__(RepConv)
        nn.Module.__init__(wide)
        for name in ("weight", "conv1x1", "expand", "project", "identity"):
            value = getattr(self, name)
            wide.register_parameter(name, None if value is None else nn.Parameter(value.double()))
        fused.weight.copy_(wide.folded_weight().to(dtype))
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
