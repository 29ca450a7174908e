"""ResShift, SinSR and RSD for super-resolution ×4, with the key names of their released checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..shapes import Shapes, parts_found
from .config import AUTOENCODER, UNET, ResShiftConfig
from .network import ResShift
from .schedule import SAMPLERS
from .swin import last_row_mask, relative_positions

__all__ = [
    "AUTOENCODER", "LICENCE", "PRESETS", "SAMPLERS", "ResShift", "ResShiftConfig", "config_of_sampler", "is_derived",
    "matches", "matches_noise_input", "name_of", "refuse_unnamed", "settle_as",
]  # fmt: skip

LICENCE = "NTU S-Lab License 1.0 or research only, as of the released checkpoints: no commercial use without permission"
PRESETS = {
    "resshift": ResShiftConfig(sampler="resshift-4"),
    "sinsr": ResShiftConfig(sampler="sinsr"),
    "rsd": ResShiftConfig(sampler="rsd", noise_channels=1),
}
"""Networks of the released size."""
_ASK = "resshift-15 (v1, v2), resshift-4 (v3, bicubic) or sinsr"


def matches(shapes: Shapes) -> bool:
    """Whether the keys are those of the family: of a UNet, of an autoencoder, or of both."""
    names = {name_of(key): shape for key, shape in shapes.items()}
    unet = ("time_embed.", "input_blocks.", "middle_block.1.patch_embed.", "output_blocks.", "out.")
    return parts_found(names, *(UNET + part for part in unet)) >= 4 or _is_autoencoder(shapes)


def matches_noise_input(shapes: Shapes) -> bool:
    """Whether it is a network of the family whose UNet has an input of noise: RSD's."""
    first = {name_of(key): shape for key, shape in shapes.items()}.get(f"{UNET}input_blocks.0.0.weight", ())
    return matches(shapes) and first[1:2] == (7,) and not any("feature_extractor." in key for key in shapes)


def _is_autoencoder(shapes: Shapes) -> bool:
    parts = ("encoder.conv_in.", "decoder.conv_in.", "quant_conv.", "quantize.embedding.", "post_quant_conv.")
    return parts_found(shapes, *parts) >= 4


def name_of(key: str) -> str:
    """The name in the network that holds both parts, of a key of a released UNet or of our own checkpoints."""
    return key if key.startswith((UNET, AUTOENCODER)) else UNET + key


def is_derived(name: str) -> bool:
    """Whether a tensor follows from the sizes. `settle` checks it."""
    return name.endswith((".attn_mask", ".relative_position_index"))


def refuse_unnamed(shapes: Shapes) -> ResShiftConfig:
    """Raise `CheckpointError`: the file shows the family, and not which network of it this is."""
    _check_task(shapes)
    raise CheckpointError(
        f"the checkpoint is of the ResShift family, and its tensors do not show of which network: name it with --arch {_ASK}"
    )


def config_of_sampler(sampler: str) -> Callable[[Shapes], ResShiftConfig]:
    """The function that reads the sizes of a network that is called in this way."""
    return partial(_config, sampler)


def _config(sampler: str, shapes: Shapes) -> ResShiftConfig:
    _check_task(shapes)
    _check_autoencoder(shapes)
    config = ResShiftConfig.from_shapes(shapes, sampler)
    if (config.noise_channels == 1) != (sampler == "rsd"):
        has = "an" if config.noise_channels else "no"
        raise CheckpointError(f"the UNet has {has} input channel of noise, so it is not of {sampler}")
    return config


def _check_task(shapes: Shapes) -> None:
    """Raise `CheckpointError` for an autoencoder in the UNet's place, or a network of another task."""
    if _is_autoencoder({name.removeprefix(UNET): shape for name, shape in shapes.items()}):
        raise CheckpointError("it is an autoencoder: the UNet comes first, and the autoencoder with --autoencoder")
    if extractor := shapes.get(f"{UNET}feature_extractor.0.weight"):
        task = {1: "for ×2"}.get(
            sum(name.startswith(f"{UNET}feature_extractor.") for name in shapes) // 4, "of face restoration"
        )
        task = "of inpainting" if extractor[1:2] == (4,) else task
        raise CheckpointError(f"it is a network {task} of the ResShift family, which is not supported; ×4 is")


def _check_autoencoder(shapes: Shapes) -> None:
    """Raise `CheckpointError` if it is missing, or a UNet is in its place."""
    if not parts_found(shapes, AUTOENCODER):
        raise CheckpointError("a network of the ResShift family needs its autoencoder: name the file with --autoencoder")
    if parts_found(shapes, f"{AUTOENCODER}input_blocks.", f"{AUTOENCODER}time_embed."):
        raise CheckpointError("the file named with --autoencoder is a UNet, not an autoencoder")


def settle_as(sampler: str) -> Callable[[ResShiftConfig, Shapes, Callable[[str], Tensor]], ResShiftConfig]:
    """The function that checks a network that is called in this way."""
    return partial(_settle, sampler)


def _settle(sampler: str, config: ResShiftConfig, shapes: Shapes, read: Callable[[str], Tensor]) -> ResShiftConfig:
    """Check the tensors that follow from the sizes. `read` gives the tensor of a name. Raises `CheckpointError`."""
    if config.sampler != sampler:
        raise CheckpointError(f"the checkpoint says that it is of {config.sampler}, not of {sampler}")
    window = config.window_size
    windows = {(config.image_size >> level) // window for level in config.swin_levels} - {1}
    for name, shape in shapes.items():
        if not is_derived(name):
            continue
        if len(shape) not in (2, 3) or shape[-2:] != (window**2, window**2):
            raise CheckpointError(f"tensor {name} has shape {list(shape)}, which does not fit windows of {window}")
        value = read(name)
        if name.endswith("index"):
            fits = bool((value == relative_positions(window)).all())
        else:
            fits = _is_mask(value.float(), window, windows)
        if not fits:
            raise CheckpointError(f"tensor {name} is not what the released networks have")
    return config


def _is_mask(value: Tensor, window: int, windows: set[int]) -> bool:
    """Whether the last row of windows has the mask, and no other one. `windows`: across, at the levels that shift."""
    across = round(len(value) ** 0.5) if value.ndim == 3 else 0
    if across not in windows or across**2 != len(value):
        return False
    expected = torch.zeros_like(value)
    expected[-across:] = last_row_mask(window, window // 2)
    return bool(torch.equal(value, expected))
