"""DiffIR-S2: condition encoder, diffusion process over a latent prior, and a U-shaped transformer that the prior modulates.

Xia et al., "DiffIR: Efficient Diffusion Model for Image Restoration", ICCV 2023; the transformer is Restormer's (CVPR 2022).
Submodules have the names of the released checkpoints' keys.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Schedule, reverse_process
from ..interface import LatentPriorNetwork
from ..padding import pad_to_multiple
from .config import LATENT_SIZE, DiffIRConfig

__all__ = ["DiffIR"]

_SLOPE = 0.1
"""Negative slope of every leaky ReLU."""
_MULTIPLE = 8
"""Multiple of the input's sides: the transformer halves them three times."""


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, under the names of the released keys."""
    return nn.Sequential(OrderedDict(modules))


class _LayerNorm(nn.Module):
    """Normalization over channels, at every pixel. The form without bias neither subtracts the mean nor adds anything."""

    def __init__(self, channels: int, biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        deviation = torch.sqrt(centred.square().mean(dim=1, keepdim=True) + 1e-5)
        weight = self.weight.view(1, -1, 1, 1)
        if self.bias is None:
            return x / deviation * weight
        return centred / deviation * weight + self.bias.view(1, -1, 1, 1)


class _Modulated(nn.Module):
    """Base of attention and feed-forward part: the latent prior scales and shifts their input, channel by channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Sequential(nn.Linear(LATENT_SIZE, 2 * channels, bias=False))

    def modulate(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.kernel(z)[:, :, None, None].chunk(2, dim=1)
        return x * scale + shift


class _Attention(_Modulated):
    """Attention between channels, with queries and keys normalized over the pixels."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__(channels)
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        mixed = self.qkv_dwconv(self.qkv(self.modulate(x, z)))
        q, k, v = mixed.reshape(n, 3, self.heads, channels // self.heads, height * width).unbind(1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)) * self.temperature
        return self.project_out((weights.softmax(dim=-1) @ v).reshape(n, channels, height, width))


class _FeedForward(_Modulated):
    """Gated feed-forward part: one half of the channels, through GELU, is multiplied with the other."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__(channels)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(self.modulate(x, z))).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class _Block(nn.Module):
    def __init__(self, config: DiffIRConfig, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = _named(body=_LayerNorm(channels, config.biased_norm))
        self.attn = _Attention(channels, heads, config.bias)
        self.norm2 = _named(body=_LayerNorm(channels, config.biased_norm))
        self.ffn = _FeedForward(channels, hidden, config.bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), z)
        return x + self.ffn(self.norm2(x), z)


class _Blocks(nn.ModuleList):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        for block in self:
            x = block(x, z)
        return x


def _resample(channels: int, *, up: bool) -> nn.Sequential:
    """A convolution, then channels to pixels (up) or back (down): twice or half the height and width."""
    out = 2 * channels if up else channels // 2
    shuffle = nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2)
    return _named(body=nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), shuffle))


class _DIRformer(nn.Module):
    """LR and latent prior → SR."""

    def __init__(self, config: DiffIRConfig) -> None:
        super().__init__()
        self.scale, self.unshuffle = config.scale, config.unshuffle
        dim = config.dim

        def level(index: int, count: int, channels: int, hidden: int) -> _Blocks:
            return _Blocks(_Block(config, channels, config.heads[index], hidden) for _ in range(count))

        counts, hidden = config.num_blocks, config.ffn_hidden
        self.patch_embed = _named(proj=nn.Conv2d(3 * config.unshuffle**2, dim, 3, padding=1, bias=config.bias))
        self.encoder_level1 = level(0, counts[0], dim, hidden[0])
        self.encoder_level2 = level(1, counts[1], 2 * dim, hidden[1])
        self.encoder_level3 = level(2, counts[2], 4 * dim, hidden[2])
        self.latent = level(3, counts[3], 8 * dim, hidden[3])
        self.down1_2, self.down2_3, self.down3_4 = (_resample(dim * factor, up=False) for factor in (1, 2, 4))
        self.up4_3, self.up3_2, self.up2_1 = (_resample(dim * factor, up=True) for factor in (8, 4, 2))
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=config.bias)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=config.bias)
        self.decoder_level3 = level(2, counts[2], 4 * dim, hidden[2])
        self.decoder_level2 = level(1, counts[1], 2 * dim, hidden[1])
        self.decoder_level1 = level(0, counts[0], 2 * dim, hidden[4])
        self.refinement = level(0, config.num_refinement_blocks, 2 * dim, hidden[4])
        enlarge = [layer for _ in range(2) for layer in (nn.Conv2d(2 * dim, 8 * dim, 3, padding=1), nn.PixelShuffle(2))]
        self.tail = nn.Sequential(nn.Sequential(*enlarge), nn.Conv2d(2 * dim, 3, 3, padding=1))

    def forward(self, lr: Tensor, z: Tensor) -> Tensor:
        x = F.pixel_unshuffle(lr, self.unshuffle) if self.unshuffle > 1 else lr
        first = self.encoder_level1(self.patch_embed(x), z)
        second = self.encoder_level2(self.down1_2(first), z)
        third = self.encoder_level3(self.down2_3(second), z)
        x = self.up4_3(self.latent(self.down3_4(third), z))
        x = self.up3_2(self.decoder_level3(self.reduce_chan_level3(torch.cat([x, third], 1)), z))
        x = self.up2_1(self.decoder_level2(self.reduce_chan_level2(torch.cat([x, second], 1)), z))
        x = self.refinement(self.decoder_level1(torch.cat([x, first], 1), z), z)
        return self.tail(x) + F.interpolate(lr, scale_factor=self.scale, mode="nearest")


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.body = nn.Sequential(first, nn.LeakyReLU(_SLOPE), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _ConditionEncoder(nn.Module):
    """LR → feature map of 256 channels, whose mean over the pixels becomes the condition vector."""

    def __init__(self, config: DiffIRConfig) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        layers: list[nn.Module] = [nn.Conv2d(3 * config.unshuffle**2, 64, 3, padding=1), nn.LeakyReLU(_SLOPE)]
        layers += [_Residual(64) for _ in range(config.n_encoder_res)]
        for channels, out in ((64, 128), (128, 128), (128, LATENT_SIZE)):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.LeakyReLU(_SLOPE)]
        self.E = nn.Sequential(*layers)
        first, second = (nn.Linear(LATENT_SIZE, LATENT_SIZE) for _ in range(2))
        self.mlp = nn.Sequential(first, nn.LeakyReLU(_SLOPE), second, nn.LeakyReLU(_SLOPE))

    def feature_map(self, lr: Tensor) -> Tensor:
        return self.E(F.pixel_unshuffle(lr, self.unshuffle) if self.unshuffle > 1 else lr)


class _Denoiser(nn.Module):
    """MLP on [c, t/(10·T), z_t] that predicts z_0."""

    def __init__(self, config: DiffIRConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(2 * LATENT_SIZE + 1, LATENT_SIZE), nn.LeakyReLU(_SLOPE)]
        for _ in range(config.n_denoise_res):
            layers.append(_named(resmlp=nn.Sequential(nn.Linear(LATENT_SIZE, LATENT_SIZE), nn.LeakyReLU(_SLOPE))))
        self.resmlp = nn.Sequential(*layers)
        self.steps = config.steps

    def forward(self, c: Tensor, t: int, z: Tensor) -> Tensor:
        time = torch.full_like(z[:, :1], t / (10 * self.steps))
        return self.resmlp(torch.cat([c, time, z], dim=1))


class DiffIR(LatentPriorNetwork):
    """DiffIR-S2 at inference."""

    config: DiffIRConfig

    def __init__(self, config: DiffIRConfig) -> None:
        super().__init__()
        self.config = config
        self.condition = _ConditionEncoder(config)
        self.denoise = _Denoiser(config)
        self.G = _DIRformer(config)
        self.schedule = Schedule.linear(config.steps, config.beta_start, config.beta_end)

    @property
    def latent_size(self) -> int:
        return LATENT_SIZE

    @property
    def condition_channels(self) -> int:
        return LATENT_SIZE

    @property
    def size_multiple(self) -> int:
        return self.config.unshuffle

    @property
    def receptive_radius(self) -> None:
        """None: attention normalizes queries and keys over all pixels, so an output pixel depends on the whole picture."""
        return None

    @property
    def condition_radius(self) -> int:
        # One cell per 3×3 convolution.
        return 2 * self.config.n_encoder_res + 4

    @property
    def peak_channels(self) -> int:
        # The last enlargement before and after its shuffle, or inputs and outputs of a feed-forward part of the refinement.
        per_cell = max(2 * 16 * 2 * self.config.dim, 2 * self.config.dim + 3 * 2 * self.config.ffn_hidden[4])
        return -(-per_cell // self.config.unshuffle**2)

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×256×⌈H/f⌉×⌈W/f⌉, f the unshuffling; sides are padded by edge replication."""
        return self.condition.feature_map(pad_to_multiple(lr, self.config.unshuffle))

    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor:
        return reverse_process(self.denoise, self.schedule, self.condition.mlp(pooled), noise)

    def decode(self, lr: Tensor, z: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×256 z → N×3×sH×sW SR, not clipped.

        LR is padded by edge replication to multiples of 8 (times the unshuffling), which the transformer needs.
        """
        height, width = lr.shape[2:]
        padded = pad_to_multiple(lr, _MULTIPLE * self.config.unshuffle)
        return self.G(padded, z)[:, :, : height * self.scale, : width * self.scale]

    @torch.no_grad()
    def vary_initial_weights(self) -> None:
        for key, parameter in self.named_parameters():
            if ".norm" in key:
                parameter.add_(0.02 * torch.randn_like(parameter))
