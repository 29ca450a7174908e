"""RDSR. The keys of decoder, condition encoder and denoiser show that a state dict is one of its."""

from __future__ import annotations

from ..errors import CheckpointError
from ..shapes import Shapes, parts_found
from .config import PRESETS, RDSRConfig
from .network import RDSR

__all__ = ["PRESETS", "RDSR", "RDSRConfig", "config_from_shapes", "matches"]

_PARTS = ("decoder.head.", "decoder.tail.", "decoder.skip.", "condition_encoder.features.", "denoiser.input.")


def matches(shapes: Shapes) -> bool:
    """Whether the keys are those of RDSR, after any training stage. A missing tensor is named later."""
    return bool(parts_found(shapes, "decoder.body.")) and parts_found(shapes, *_PARTS) >= 2


def config_from_shapes(shapes: Shapes) -> RDSRConfig:
    """Sizes of a network that can be exported; `CheckpointError` for a stage-1 checkpoint or a missing tensor."""
    owners = {key.split(".")[0] for key in shapes}
    if {"lpe", "decoder"} <= owners and not owners & {"condition_encoder", "denoiser"}:
        raise CheckpointError(
            "a stage-1 checkpoint, without condition encoder and denoiser, cannot be deployed; run stage2 from it first"
        )
    return RDSRConfig.from_shapes(shapes)
