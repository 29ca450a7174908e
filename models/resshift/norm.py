"""Group normalization, as the networks of the family have it before each convolution and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GroupNorm"]

GROUPS = 32
"""Groups of all normalizations."""
_SQUARE = 8


class GroupNorm(nn.GroupNorm):
    """`GROUPS` groups. In a graph it sums squares of 8×8 first. Sides of maps are multiples of 8.

    Engines sum the values of a whole map from end to end in float32. In a flat picture they are nearly equal, so that each
    addition rounds in the same direction: the encoder's latent was 1.3e-3 off in ONNX Runtime and OpenVINO, and so is 1e-5.
    Sums by rows did not help in OpenVINO, which merges them. torch's own form is exact, and faster there.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(GROUPS, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return super().forward(x)
        x = x - self._of_groups(_means(x))
        scale = self._of_groups(torch.rsqrt(_means(x * x) + self.eps))
        return x * (scale * self.weight.view(1, -1, 1, 1)) + self.bias.view(1, -1, 1, 1)

    def _of_groups(self, values: Tensor) -> Tensor:
        """N×`GROUPS`×1 → N×C×1×1: each channel gets the value of its group."""
        channels = values.expand(-1, -1, self.num_channels // GROUPS)
        return channels.reshape(-1, self.num_channels, 1, 1)


def _means(x: Tensor) -> Tensor:
    """N×C×H×W → N×`GROUPS`×1, of squares of 8×8 first."""
    squares = F.avg_pool2d(x, _SQUARE)
    return squares.reshape(x.shape[0], GROUPS, -1).mean(dim=2, keepdim=True)
