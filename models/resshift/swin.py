"""Swin transformer blocks of the family's UNet: attention in windows of N×C×H×W maps."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import GroupNorm

__all__ = ["Mlp", "SwinLayer", "WindowAttention", "last_row_mask", "relative_positions"]

_MASKED = -100.0


# Kept as functions, not as buffers: the file does not hold them, and networks are built without memory.
@functools.cache
def relative_positions(window: int) -> Tensor:
    """w²×w² numbers: the row of the bias table for each pair of tokens of a window."""
    grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offsets = grid[:, :, None] - grid[:, None, :] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


@functools.cache
def last_row_mask(window: int, shift: int) -> Tensor:
    """w²×w²: −100 between tokens on different sides of the column `window − shift`, else 0.

    This is what the released networks add to the scores in the last row of windows; other windows have no mask. (Swin itself
    also masks the last column, and separates rows. Trained weights go with the released mask.)
    """
    right = (torch.arange(window**2) % window) >= window - shift
    return (right[:, None] != right[None, :]).float() * _MASKED


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of each window, with a learned bias for each relative position."""

    def __init__(self, channels: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads, self.width = window, heads, channels // heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def fold(self) -> None:
        """Replace the table by the bias of each pair of tokens, which is looked up once instead of in each call."""
        self.bias = nn.Parameter(self._bias().contiguous(), requires_grad=False)
        del self.relative_position_bias_table

    def _bias(self) -> Tensor:
        """Heads×w²×w²."""
        tokens = self.window**2
        rows = self.relative_position_bias_table[relative_positions(self.window).view(-1)]
        return rows.view(tokens, tokens, self.heads).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x`: B×w²×C, B windows. `mask`: B×1×w²×w², added to the scores."""
        tokens = self.window**2
        q, k, v = self.qkv(x).reshape(-1, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.width**-0.5) @ k.transpose(-2, -1)
        scores = scores + (self.bias if hasattr(self, "bias") else self._bias())
        if mask is not None:
            scores = scores + mask
        attended: Tensor = self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return attended


class Mlp(nn.Module):
    """Two 1×1 convolutions with GELU between them."""

    folded = False
    """Whether the second convolution has taken over the factor ½ of GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def fold(self) -> None:
        """Give the factor ½ to the second convolution, exactly."""
        self.fc2.weight = nn.Parameter(self.fc2.weight.detach() / 2)
        self.folded = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        y: Tensor = self.fc2(x * (1 + torch.erf(x * 2**-0.5)) if self.folded else F.gelu(x))
        return y


class SwinBlock(nn.Module):
    """Window attention and MLP, each with group normalization before it and a skip around it."""

    def __init__(self, channels: int, hidden: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.channels, self.window, self.shift = channels, window, shift
        self.norm1 = GroupNorm(channels)
        self.attn = WindowAttention(channels, window, heads)
        self.norm2 = GroupNorm(channels)
        self.mlp = Mlp(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: N×C×H×W, sides multiples of the window."""
        x = x + self._attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def _attention(self, x: Tensor) -> Tensor:
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(2, 3))
        shape, window = x.shape, self.window
        down, across = shape[2] // window, shape[3] // window
        cut = x.reshape(-1, self.channels, down, window, across, window).permute(0, 2, 4, 3, 5, 1)
        mask = self._mask(shape[0], down, across) if self.shift else None
        attended = self.attn(cut.reshape(-1, window**2, self.channels), mask)
        x = attended.reshape(-1, down, across, window, window, self.channels).permute(0, 5, 1, 3, 2, 4).reshape(shape)
        return torch.roll(x, (self.shift, self.shift), dims=(2, 3)) if self.shift else x

    def _mask(self, batch: int, down: int, across: int) -> Tensor:
        """B×1×w²×w² for the windows of the whole batch, row after row."""
        last = (torch.arange(down) == down - 1).float().view(1, down, 1, 1)
        return last.expand(batch, down, across, 1).reshape(-1, 1, 1, 1) * last_row_mask(self.window, self.shift)


class _Projection(nn.Module):
    """A 1×1 convolution under the name `proj`."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


class SwinLayer(nn.Module):
    """Swin blocks between two projections; every second block works on shifted windows."""

    def __init__(
        self, channels: int, embedding: int, hidden: int, *, heads: int, window: int, depth: int, shifts: bool
    ) -> None:
        super().__init__()
        self.patch_embed = _Projection(channels, embedding)
        shift = window // 2 if shifts else 0
        self.blocks = nn.Sequential(
            *(SwinBlock(embedding, hidden, heads, window, shift * (index % 2)) for index in range(depth))
        )
        self.patch_unembed = _Projection(embedding, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.patch_unembed(self.blocks(self.patch_embed(x)))
        return y
