"""The VQ autoencoder of the family: pictures to latents, and latents through a codebook to pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResShiftConfig
from .norm import GroupNorm

__all__ = ["BLOCKS", "Autoencoder", "Codebook"]

BLOCKS = 32
"""Parts in which the queries of global attention and of the codebook pass, so that their matrices grow with 1/32 of the
square of the picture's area. Sides of latents are multiples of 8, so the parts are equal."""


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions, each after group normalization and SiLU, with a skip around them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        y: Tensor = self.nin_shortcut(x) + h
        return y


class AttnBlock(nn.Module):
    """Attention of one head among all pixels, with a skip around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q = _parts(self.q(h).flatten(2).transpose(1, 2) * self.channels**-0.5)
        k, v = self.k(h).flatten(2), self.v(h).flatten(2)
        # The values come first: a product with fewer columns than rows has the same bytes for any number of threads in ONNX
        # Runtime, which otherwise shares out the columns and sums in parts that depend on their number.
        attended = torch.cat([v @ (part @ k).softmax(dim=-1).transpose(1, 2) for part in q], dim=2)
        y: Tensor = x + self.proj_out(attended.reshape(x.shape))
        return y


def _parts(tokens: Tensor) -> tuple[Tensor, ...]:
    """N×L×C → `BLOCKS` parts, each N×L/`BLOCKS`×C."""
    return tokens.reshape(tokens.shape[0], BLOCKS, -1, tokens.shape[2]).unbind(1)


class _Sampling(nn.Module):
    """A convolution under the name `conv`."""

    def __init__(self, channels: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if down else nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Half the size, one row and column of zeros at the far end; or twice the size, each pixel four times."""
        x = F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest")
        y: Tensor = self.conv(x)
        return y


class _Level(nn.Module):
    """Blocks of one size, then half or twice the size."""

    def __init__(self, channels: int, out: int, blocks: int, *, down: bool, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if index == 0 else out, out) for index in range(blocks))
        if not last:
            self.add_module("downsample" if down else "upsample", _Sampling(out, down=down))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.block, *(child for name, child in self.named_children() if name != "block")):
            x = layer(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return y


class _Half(nn.Module):
    """What encoder and decoder share."""

    def __init__(self, inner: int, first: tuple[int, int], last: tuple[int, int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(*first, 3, padding=1)
        self.mid = _Middle(inner)
        self.norm_out = _norm(last[0])
        self.conv_out = nn.Conv2d(*last, 3, padding=1)

    def _end(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return y


class Encoder(_Half):
    """Picture → map of `latent_channels`."""

    def __init__(self, config: ResShiftConfig) -> None:
        widths = [config.vq_channels * multiple for multiple in config.vq_mult]
        super().__init__(widths[-1], (3, config.vq_channels), (widths[-1], config.latent_channels))
        before = [config.vq_channels, *widths]
        self.down = nn.ModuleList(
            _Level(before[level], width, config.vq_res_blocks, down=True, last=level == len(widths) - 1)
            for level, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self._end(self.mid(x))


class Decoder(_Half):
    """Map of `latent_channels` → picture."""

    def __init__(self, config: ResShiftConfig) -> None:
        widths = [config.vq_channels * multiple for multiple in config.vq_mult]
        super().__init__(widths[-1], (config.latent_channels, widths[-1]), (widths[0], 3))
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            _Level(before[level], width, config.vq_res_blocks + 1, down=False, last=level == 0)
            for level, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self._end(x)


class Codebook(nn.Module):
    """The codes that a latent may be."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)

    def fold(self) -> None:
        """Compute what depends on the codes alone once instead of in each call."""
        self.lengths = nn.Parameter(self._lengths(), requires_grad=False)

    def _lengths(self) -> Tensor:
        """Squared length of each code."""
        return (self.embedding.weight.detach() ** 2).sum(dim=1)

    def numbers(self, z: Tensor) -> list[Tensor]:
        """N×C×H×W → numbers of the nearest codes, N×L each, in `BLOCKS` parts."""
        codes = self.embedding.weight
        lengths = self.lengths if hasattr(self, "lengths") else self._lengths()
        return [(lengths - 2 * (part @ codes.T)).argmin(dim=-1) for part in _parts(z.flatten(2).transpose(1, 2))]

    def forward(self, z: Tensor) -> Tensor:
        """N×C×H×W → the nearest codes, N×C×H×W."""
        found = torch.cat([self.embedding(part) for part in self.numbers(z)], dim=1)
        return found.transpose(1, 2).reshape(z.shape)


class Autoencoder(nn.Module):
    """Encoder, codebook, decoder. Pictures have values of −1 … 1."""

    def __init__(self, config: ResShiftConfig) -> None:
        super().__init__()
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config.codebook_size, latent)
        self.quant_conv = nn.Conv2d(latent, latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, picture: Tensor) -> Tensor:
        """N×3×sH×sW → N×C×H×W, not quantized."""
        z: Tensor = self.quant_conv(self.encoder(picture))
        return z

    def indices(self, z: Tensor) -> Tensor:
        """N×C×H×W → N×H×W numbers of the nearest codes."""
        return torch.cat(self.quantize.numbers(z), dim=1).reshape(len(z), *z.shape[2:])

    def decode(self, z: Tensor) -> Tensor:
        """N×C×H×W → N×3×sH×sW of the nearest codes."""
        picture: Tensor = self.decoder(self.post_quant_conv(self.quantize(z)))
        return picture
