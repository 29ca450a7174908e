"""Sizes of a DiffIR-S2 network, and reading them off a state dict."""

from __future__ import annotations

import dataclasses
import re

from ..base_config import BaseConfig
from ..diffusion import check_betas
from ..errors import CheckpointError
from ..shapes import Shapes, config_of, indices, shape_of

__all__ = ["LATENT_SIZE", "OFFICIAL_X4", "DiffIRConfig"]

LATENT_SIZE = 256
"""Length of condition vector and latent prior in all of DiffIR's networks."""
_UNSHUFFLE = {4: 1, 2: 2, 1: 4}
"""Scale → factor by which LR is pixel-unshuffled first, so that every network enlarges by four inside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffIRConfig(BaseConfig):
    """Sizes of a DiffIR-S2 network. Validated on construction; `ValueError` names the field and its range."""

    dim: int = 64
    """Channels of the first level; each of the three deeper ones has twice as many as the one above."""
    scale: int = 4
    """Upscaling factor: 1, 2 or 4."""
    num_blocks: tuple[int, int, int, int] = (13, 1, 1, 1)
    """Transformer blocks of the four levels (encoder and decoder alike)."""
    num_refinement_blocks: int = 13
    """Transformer blocks after the decoder."""
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    """Attention heads of the four levels."""
    ffn_hidden: tuple[int, int, int, int, int] = (140, 281, 563, 1126, 281)
    """Gated channels of the feed-forward parts: four levels, then decoder level 1 and refinement, which have twice `dim`."""
    bias: bool = False
    """Whether the transformer's convolutions have biases."""
    biased_norm: bool = False
    """Layer normalization with mean and bias ("WithBias"), or without ("BiasFree")."""
    n_encoder_res: int = 9
    """Residual blocks of the condition encoder."""
    n_denoise_res: int = 1
    """Layers of the denoiser after its first."""
    steps: int = 4
    """T, fixed steps of the reverse process."""
    beta_start: float = 0.1
    """First β of the noise schedule, linear in √β."""
    beta_end: float = 0.99
    """Last β of the noise schedule."""

    def __post_init__(self) -> None:
        if self.scale not in _UNSHUFFLE:
            raise ValueError(f"scale must be 1, 2 or 4, not {self.scale!r}")
        self._check_ranges(
            dim=(8, 1024), num_refinement_blocks=(0, 256), n_encoder_res=(0, 256), n_denoise_res=(0, 64), steps=(1, 1000)
        )
        check_betas(self.beta_start, self.beta_end)
        for name, length, most in (("num_blocks", 4, 256), ("heads", 4, 1024), ("ffn_hidden", 5, 65536)):
            values = tuple(getattr(self, name))
            if len(values) != length or any(type(v) is not int or not 1 <= v <= most for v in values):
                raise ValueError(f"{name} must be {length} whole numbers from 1 to {most}, not {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if any(self.dim * 2**level % heads for level, heads in enumerate(self.heads)):
            raise ValueError(f"heads must divide the channels of their levels, not {self.heads} for dim {self.dim}")

    @property
    def unshuffle(self) -> int:
        """Factor by which LR is pixel-unshuffled first."""
        return _UNSHUFFLE[self.scale]

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> DiffIRConfig:
        """Read the sizes off a state dict's keys and shapes. β keep their defaults: no shape shows them.

        Raises `CheckpointError` naming the tensor that is missing, or the size that does not fit.
        """

        def count(pattern: str) -> int:
            return len(indices(shapes, pattern))

        levels = ("G.encoder_level1", "G.encoder_level2", "G.encoder_level3", "G.latent")
        gated = [f"{level}.0.ffn.project_out.weight" for level in (*levels, "G.decoder_level1")]
        dim, channels = shape_of(shapes, "G.patch_embed.proj.weight", 4)[:2]
        scale = {3: 4, 12: 2, 48: 1}.get(channels)
        if scale is None:
            raise CheckpointError(f"G.patch_embed.proj.weight takes {channels} channels: DiffIR has 3, 12 or 48")
        sizes = {
            "dim": dim,
            "scale": scale,
            "num_blocks": tuple(count(rf"{re.escape(level)}\.(\d+)\.") for level in levels),
            "num_refinement_blocks": count(r"G\.refinement\.(\d+)\."),
            "heads": tuple(shape_of(shapes, f"{level}.0.attn.temperature", 3)[0] for level in levels),
            "ffn_hidden": tuple(shape_of(shapes, key, 4)[1] for key in gated),
            "bias": "G.latent.0.attn.qkv.bias" in shapes,
            "biased_norm": "G.latent.0.norm1.body.bias" in shapes,
            "n_encoder_res": count(r"condition\.E\.(\d+)\.body\."),
            "n_denoise_res": count(r"denoise\.resmlp\.(\d+)\.resmlp\."),
            "steps": shape_of(shapes, "diffusion.betas", 1)[0] if "diffusion.betas" in shapes else 4,
        }
        return config_of(cls, "diffir", sizes)


OFFICIAL_X4 = DiffIRConfig()
"""The released ×4 network, 25.0 M parameters."""
