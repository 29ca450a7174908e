"""Small networks of others with seeded weights, built by spandrel. `checkpoint` writes one as its users would."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdsr.models.foreign import reading

__all__ = ["CONVOLUTIONAL", "NETWORKS", "WHOLE", "build", "checkpoint"]

reading._spandrel()  # declares the operators that its torchvision may lack


def _of(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(importlib.import_module(f"spandrel.architectures.{module}"), name)(**options)


_SWIN: dict[str, Any] = {"img_size": 64, "window_size": 8, "upscale": 4}
CONVOLUTIONAL: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SPAN": (_of("SPAN", "SPAN", num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=4), 21),
    "Compact": (_of("Compact", "Compact", num_in_ch=3, num_out_ch=3, num_feat=16, num_conv=4, upscale=4), 6),
    "ESRGAN": (_of("ESRGAN", "ESRGAN", in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4), 19),
    "SwiftSRGAN": (_of("SwiftSRGAN", "SwiftSRGAN", num_channels=16, num_blocks=2, upscale_factor=4), 12),
    "MoSR": (_of("MoSR", "MoSR", upscale=4, dim=16, n_block=2), 14),
    "PLKSR": (_of("PLKSR", "PLKSR", dim=16, n_blocks=2, upscaling_factor=4), 22),
}
"""Architecture → builder, and the LR pixels that an output pixel sees on each side."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: builder for name, (builder, _) in CONVOLUTIONAL.items()},
    "RealPLKSR": _of("PLKSR", "RealPLKSR", dim=16, n_blocks=2, upscaling_factor=4),
    "RCAN": _of("RCAN", "RCAN", scale=4, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4),
    "RealCUGAN": _of("RealCUGAN", "UpCunet2x"),
    "SwinIR": _of(
        "SwinIR", "SwinIR", embed_dim=12, depths=[2, 2], num_heads=[2, 2], upsampler="pixelshuffledirect", **_SWIN
    ),
    "HAT": _of(
        "HAT", "HAT", embed_dim=96, depths=(2,), num_heads=(6,), compress_ratio=3, squeeze_factor=30,
        upsampler="pixelshuffle", **_SWIN,
    ),
    "DAT": _of(
        "DAT", "DAT", img_size=64, embed_dim=64, depth=[2], num_heads=[4], split_size=[8, 16], expansion_factor=2,
        upscale=4, resi_connection="1conv",
    ),
    "Swin2SR": _of(
        "Swin2SR", "Swin2SR", embed_dim=12, depths=[2], num_heads=[2], upsampler="pixelshuffledirect", **_SWIN
    ),
    "DRCT": _of(
        "DRCT", "DRCT", embed_dim=24, depths=(6,), num_heads=(2,), upsampler="pixelshuffle", gc=8, **_SWIN
    ),
    "MoESR": _of("MoESR", "MoESR", scale=4, dim=16, n_blocks=1, n_block=1, upsample_dim=16),
    "OmniSR": _of("OmniSR", "OmniSR", num_feat=16, up_scale=4, window_size=8, res_num=1, block_num=1),
    "SAFMN": _of("SAFMN", "SAFMN", dim=16, n_blocks=1, upscaling_factor=4),
}  # fmt: skip


WHOLE = [name for name in NETWORKS if name not in ("OmniSR", "SAFMN")]
"""Those that become bundles."""


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


def checkpoint(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pth"
    torch.save({"params": build(name).state_dict()}, path)
    return path
