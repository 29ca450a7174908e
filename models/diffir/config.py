"""The shape of a DiffIR-S2 network, and how to read it off a state dict."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from ..plain import from_plain, to_plain

__all__ = ["LATENT_SIZE", "OFFICIAL_X4", "DiffIRConfig"]

LATENT_SIZE = 256
"""Length of condition vector and latent prior; the same in all of DiffIR's networks."""
_UNSHUFFLE = {4: 1, 2: 2, 1: 4}
"""Scale → the factor that LR is pixel-unshuffled by first, so that every network enlarges by four inside."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffIRConfig:
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
        ranges = {"dim": (8, 1024), "num_refinement_blocks": (0, 256), "n_encoder_res": (0, 256), "n_denoise_res": (0, 64),
                  "steps": (1, 1000)}  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"beta_start … beta_end must rise within 0 … 1, not {self.beta_start!r} … {self.beta_end!r}")
        for name, length in (("num_blocks", 4), ("heads", 4), ("ffn_hidden", 5)):
            values = tuple(getattr(self, name))
            if len(values) != length or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f"{name} must be {length} whole numbers from 1, not {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if any(self.dim * 2**level % heads for level, heads in enumerate(self.heads)):
            raise ValueError(f"heads must divide the channels of their levels, not {self.heads} for dim {self.dim}")

    @property
    def unshuffle(self) -> int:
        """Factor that LR is pixel-unshuffled by first."""
        return _UNSHUFFLE[self.scale]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiffIRConfig:
        """The config written by `to_dict`; `ValueError` names unknown and out-of-range fields."""
        return from_plain(cls, values)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> DiffIRConfig:
        """Read the sizes off a state dict's keys and shapes (the β keep their defaults: no shape shows them).

        Raises `CheckpointError` naming the tensor that is missing, or the size that does not fit.
        """

        def shape(key: str) -> tuple[int, ...]:
            if key not in shapes:
                raise CheckpointError(f"the checkpoint looks like DiffIR but lacks the tensor {key}")
            return shapes[key]

        def count(pattern: str) -> int:
            return len({m[1] for key in shapes if (m := re.match(pattern, key))})

        levels = ("G.encoder_level1", "G.encoder_level2", "G.encoder_level3", "G.latent")
        dim, channels = shape("G.patch_embed.proj.weight")[:2]
        scale = {3: 4, 12: 2, 48: 1}.get(channels)
        if scale is None:
            raise CheckpointError(f"G.patch_embed.proj.weight takes {channels} channels: DiffIR has 3, 12 or 48")
        try:
            return cls(
                dim=dim,
                scale=scale,
                num_blocks=tuple(count(rf"{re.escape(level)}\.(\d+)\.") for level in levels),  # type: ignore[arg-type]
                num_refinement_blocks=count(r"G\.refinement\.(\d+)\."),
                heads=tuple(shape(f"{level}.0.attn.temperature")[0] for level in levels),  # type: ignore[arg-type]
                ffn_hidden=tuple(  # type: ignore[arg-type]
                    shape(f"{level}.0.ffn.project_out.weight")[1] for level in (*levels, "G.decoder_level1")
                ),
                bias="G.latent.0.attn.qkv.bias" in shapes,
                biased_norm="G.latent.0.norm1.body.bias" in shapes,
                n_encoder_res=count(r"condition\.E\.(\d+)\.body\."),
                n_denoise_res=count(r"denoise\.resmlp\.(\d+)\.resmlp\."),
                steps=shapes["diffusion.betas"][0] if "diffusion.betas" in shapes else 4,
            )
        except ValueError as error:
            raise CheckpointError(f"the checkpoint looks like DiffIR but its sizes do not fit: {error}") from error


OFFICIAL_X4 = DiffIRConfig()
"""The released ×4 network, 25.0 M parameters."""
