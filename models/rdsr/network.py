"""The whole RDSR network, put together from its encoders, diffusion process and decoder."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn

from ..diffusion import Schedule, reverse_process
from ..interface import FusionErrors
from .blocks import RepConv
from .config import RDSRConfig
from .decoder import RepDecoder
from .denoiser import Denoiser
from .encoders import LatentPriorEncoder, build_condition_encoder
from .quantized import QuantizedDecoder

__all__ = ["RDSR"]


class RDSR(nn.Module):
    """RDSR (PRCV 2024): a diffusion process over a small latent prior, a plain convolutional decoder over pixels."""

    config: RDSRConfig
    """Sizes of this network."""
    lpe: LatentPriorEncoder | None
    """Latent prior encoder, training only; `None` once dropped."""
    quantized: QuantizedDecoder | None
    """The decoder as quantization-aware training left it, beside the float one that it came from; `None` before."""

    def __init__(self, config: RDSRConfig) -> None:
        super().__init__()
        self.config = config
        self.lpe = LatentPriorEncoder(config) if config.lpe_depth else None
        self.condition_encoder = build_condition_encoder(config)
        self.denoiser = Denoiser(config)
        self.decoder = RepDecoder(config)
        self.quantized = None
        self.schedule = Schedule.linear(config.steps, config.beta_start, config.beta_end)

    # What export needs of a network, see `models/interface.py`.

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.config.scale

    @property
    def latent_size(self) -> int:
        """Length of noise and latent prior."""
        return self.config.latent_size

    @property
    def condition_channels(self) -> int:
        """Channels of the condition feature map."""
        return self.config.condition_width * (2 if self.config.condition_encoder == "statistics" else 1)

    @property
    def size_multiple(self) -> int:
        """LR pixels per cell of the condition feature map."""
        return self.config.unshuffle

    @property
    def betas(self) -> tuple[float, ...]:
        """Noise schedule."""
        return self.schedule.betas

    @property
    def receptive_radius(self) -> int:
        """LR pixels on each side that one output pixel of the decoder depends on."""
        return self.decoder.receptive_radius

    @property
    def condition_radius(self) -> int:
        """Cells of the condition feature map on each side that one of them depends on."""
        # The statistics' first kernel reaches one cell further, and the high-pass one pixel.
        return self.config.condition_depth + (2 if self.config.condition_encoder == "statistics" else 0)

    @property
    def peak_channels(self) -> int:
        """Values per LR pixel that the decoder holds at once, at most: three feature maps, or one and what the tail sums."""
        return max(3 * self.config.width, self.config.width + 4 * 3 * self.config.scale**2)

    @property
    def tile_rule(self) -> str:
        """With the latent prior given, the decoder is local: tiles with a full halo equal the whole picture."""
        return "exact"

    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×C×⌈H/f⌉×⌈W/f⌉ condition features."""
        return self.condition_encoder.feature_map(lr)

    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor:
        """Pooled condition features (N×C) and noise (N×latent) → latent prior z (N×latent)."""
        condition = self.condition_encoder.vector(pooled)
        return reverse_process(self.denoiser, self.schedule, condition, noise) if self.config.steps else condition

    def latent_prior(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and noise (N×latent or 1×latent) → latent prior z of each whole picture."""
        return self.prior(self.feature_map(lr).mean(dim=(2, 3)), noise)

    def decode(self, lr: Tensor, z: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent z → N×3×sH×sW SR, not clipped."""
        return self.decoder(lr, z)

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """Inference: N×3×H×W LR in [0, 1], N×latent standard normal noise → N×3×sH×sW SR, not clipped."""
        return self.decode(lr, self.latent_prior(lr, noise))

    def fuse(self) -> RDSR:
        """The float deployment form: branches folded, LPE dropped. The original is left as it is."""
        fused = copy.deepcopy(self)
        fused.config = dataclasses.replace(self.config, branches=(), lpe_depth=0)
        fused.decoder = self.decoder.fuse()
        fused.lpe = fused.quantized = None
        return fused

    def training_only(self) -> dict[str, Tensor]:
        """Weights that only training needs (the LPE's)."""
        return {} if self.lpe is None else {f"lpe.{key}": value for key, value in self.lpe.state_dict().items()}

    @torch.no_grad()
    def fusion_errors(self, lr: Tensor, z: Tensor) -> FusionErrors:
        """Compare fused with multi-branch: every block on its own, then the whole decoder, in float32 and float64."""
        relative = 0.0
        generator = torch.Generator().manual_seed(0)
        for block in self.decoder.body:
            assert isinstance(block, RepConv)
            wide = copy.deepcopy(block).double()
            x = torch.randn(1, block.channels, 17, 15, generator=generator, dtype=torch.float64)
            relative = _worse(relative, _relative(wide.fuse()(x), wide.forward_branches(x)))
        wide_decoder = copy.deepcopy(self.decoder).double()
        fused, branches = wide_decoder.fuse()(lr.double(), z.double()), wide_decoder(lr.double(), z.double(), branches=True)
        relative = _worse(relative, _relative(fused, branches))
        narrow = (self.decoder.fuse()(lr, z) - self.decoder(lr, z, branches=True)).abs().max()
        return FusionErrors(len(self.decoder.body), float(narrow), relative)

    def inference_parameters(self) -> int:
        """Number of weights that the deployed, fused network holds."""
        return sum(p.numel() for p in self.fuse().parameters())


def _worse(a: float, b: float) -> float:
    """The larger; NaN if either is."""
    return a if math.isnan(a) else b if math.isnan(b) else max(a, b)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
