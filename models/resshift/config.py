"""Sizes of a network of the ResShift family, and reading them off the state dicts of its UNet and its autoencoder."""

from __future__ import annotations

import dataclasses
import math
import re

from ..base_config import BaseConfig
from ..errors import CheckpointError
from ..shapes import Shapes, config_of, indices, shape_of
from .schedule import SAMPLERS

__all__ = ["AUTOENCODER", "UNET", "ResShiftConfig"]

UNET, AUTOENCODER = "unet.", "autoencoder."
"""What the names of the released files are preceded by, in the network that holds both."""
_SCALE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResShiftConfig(BaseConfig):
    """Sizes of UNet and autoencoder. Validated on construction; `ValueError` names the field and its range."""

    sampler: str = "resshift-15"
    """How the UNet was trained to be called: a key of `SAMPLERS`."""
    image_size: int = 64
    """Side of the latents that the UNet was trained on. Levels that were one window there do not shift their windows."""
    noise_channels: int = 0
    """Channels of noise among the UNet's inputs."""
    latent_channels: int = 3
    """Channels of latents and codes."""
    model_channels: int = 160
    """Channels of the UNet before `channel_mult`."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    """Channels of the UNet's levels, as multiples."""
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of each level on the way down; there is one more on the way up."""
    swin_levels: tuple[int, ...] = (0, 1, 2, 3)
    """Levels with a Swin layer."""
    swin_depth: int = 2
    """Blocks of each Swin layer."""
    swin_embed_dim: int = 192
    """Channels inside the Swin layers."""
    swin_heads: int = 6
    """Attention heads of the Swin layers."""
    swin_hidden: int = 768
    """Channels inside the Swin layers' MLPs."""
    window_size: int = 8
    """Side of an attention window in cells."""
    vq_channels: int = 128
    """Channels of the autoencoder before `vq_mult`."""
    vq_mult: tuple[int, ...] = (1, 2, 4)
    """Channels of the autoencoder's levels, as multiples; each level but the last halves the picture."""
    vq_res_blocks: int = 2
    """Residual blocks of each level of the encoder; the decoder has one more."""
    codebook_size: int = 8192
    """Number of codes."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        self._check_ranges(
            image_size=(8, 128), noise_channels=(0, 1), latent_channels=(1, 64), model_channels=(32, 2048),
            swin_depth=(1, 16), swin_embed_dim=(32, 2048), swin_heads=(1, 64), swin_hidden=(1, 8192), window_size=(2, 16),
            vq_channels=(32, 1024), vq_res_blocks=(1, 16), codebook_size=(1, 65536),
        )  # fmt: skip
        for name, length, low, high in (
            ("channel_mult", (1, 6), 1, 16), ("num_res_blocks", (1, 6), 1, 16), ("swin_levels", (0, 6), 0, 5),
            ("vq_mult", (1, 6), 1, 16),
        ):  # fmt: skip
            values = tuple(getattr(self, name))
            if not length[0] <= len(values) <= length[1] or any(type(v) is not int or not low <= v <= high for v in values):
                raise ValueError(f"{name} must be {length[1]} whole numbers at most, not {getattr(self, name)!r}")
            object.__setattr__(self, name, values)
        if len(self.channel_mult) != len(self.num_res_blocks):
            raise ValueError(f"channel_mult and num_res_blocks must be of one length, not {self.channel_mult!r}")
        deepest = self.image_size / 2 ** (len(self.channel_mult) - 1)
        if deepest % self.window_size or deepest % 8:
            raise ValueError(f"image_size must be whole windows, and a multiple of 8, at each level, not {self.image_size}")
        grouped = (self.model_channels, self.swin_embed_dim, self.vq_channels)
        if any(channels % 32 for channels in grouped) or self.swin_embed_dim % self.swin_heads:
            raise ValueError(f"channels must be multiples of 32 and of the heads, not {grouped}")
        if 2 ** (len(self.vq_mult) - 1) != _SCALE:
            raise ValueError(f"the autoencoder must halve the picture twice, not {len(self.vq_mult) - 1} times")

    @property
    def scale(self) -> int:
        """Upscaling factor: the latent is as large as the LR picture."""
        return _SCALE

    @property
    def in_channels(self) -> int:
        """Channels of the UNet's input: latent, LR picture, noise."""
        return self.latent_channels + 3 + self.noise_channels

    @classmethod
    def from_shapes(cls, shapes: Shapes, sampler: str) -> ResShiftConfig:
        """Read the sizes off keys and shapes of both parts; raises `CheckpointError`, which names what does not fit."""
        first = shape_of(shapes, f"{UNET}input_blocks.0.0.weight", 4)
        latent = shape_of(shapes, f"{UNET}out.2.weight", 4)[0]
        multiples, blocks, swins = _levels(shapes, first[0])
        swin = f"{UNET}middle_block.1."
        table = shape_of(shapes, f"{swin}blocks.0.attn.relative_position_bias_table", 2)
        window = (math.isqrt(max(0, table[0])) + 1) // 2
        codes = shape_of(shapes, f"{AUTOENCODER}quantize.embedding.weight", 2)
        if codes[1] != latent:
            raise CheckpointError(
                f"the autoencoder does not belong to this UNet: its latents have {codes[1]} channels, the UNet's {latent}"
            )
        encoder = f"{AUTOENCODER}encoder."
        base = shape_of(shapes, f"{encoder}conv_in.weight", 4)[0]
        widths = [
            shape_of(shapes, f"{encoder}down.{level}.block.0.conv1.weight", 4)[0]
            for level in indices(shapes, re.escape(encoder) + r"down\.(\d+)\.")
        ]
        sizes = {
            "sampler": sampler,
            "image_size": _image_size(shapes, window) or window * 2 ** (len(multiples) - 1),
            "noise_channels": first[1] - latent - 3,
            "latent_channels": latent,
            "model_channels": first[0],
            "channel_mult": multiples,
            "num_res_blocks": blocks,
            "swin_levels": swins,
            "swin_depth": len(indices(shapes, re.escape(swin) + r"blocks\.(\d+)\.")),
            "swin_embed_dim": shape_of(shapes, f"{swin}patch_embed.proj.weight", 4)[0],
            "swin_heads": table[1],
            "swin_hidden": shape_of(shapes, f"{swin}blocks.0.mlp.fc1.weight", 4)[0],
            "window_size": window,
            "vq_channels": base,
            "vq_mult": tuple(width // max(1, base) for width in widths),
            "vq_res_blocks": len(indices(shapes, re.escape(encoder) + r"down\.0\.block\.(\d+)\.")),
            "codebook_size": codes[0],
        }
        return config_of(cls, sampler, sizes)


def _levels(shapes: Shapes, base: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """`channel_mult`, `num_res_blocks`, `swin_levels`, from the UNet's way down. Each level ends with a convolution `op`."""
    multiples, blocks, swins = [], [0], []
    for index in indices(shapes, re.escape(UNET) + r"input_blocks\.(\d+)\.")[1:]:
        stage = f"{UNET}input_blocks.{index}."
        if f"{stage}0.op.weight" in shapes:
            blocks.append(0)
            continue
        level = len(blocks) - 1
        blocks[-1] += 1
        if blocks[-1] == 1:
            multiples.append(shape_of(shapes, f"{stage}0.out_layers.3.weight", 4)[0] // max(1, base))
        if f"{stage}1.patch_embed.proj.weight" in shapes and level not in swins:
            swins.append(level)
    return tuple(multiples), tuple(blocks), tuple(swins)


def _image_size(shapes: Shapes, window: int) -> int | None:
    """The size that the UNet was trained on, from the number of windows of the masks of its first level that has some."""
    for key, shape in shapes.items():
        if (found := re.fullmatch(re.escape(UNET) + r"input_blocks\.(\d{1,3})\.1\.blocks\.1\.attn_mask", key)) and shape:
            level = sum(f"{UNET}input_blocks.{index}.0.op.weight" in shapes for index in range(int(found[1])))
            return (math.isqrt(shape[0]) * window) << level
    return None
