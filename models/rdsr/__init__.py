"""RDSR: recognised by its decoder, condition encoder and denoiser keys; built from sizes read off the shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .config import PRESETS, RDSRConfig
from .network import RDSR
from .quantized import QuantizedDecoder

__all__ = ["PRESETS", "RDSR", "RDSRConfig", "build", "config_from_dict", "config_from_shapes", "matches"]


def matches(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the keys are those of an RDSR state dict (any training stage; a missing tensor is named later)."""
    parts = ("decoder.head.", "decoder.tail.", "decoder.skip.", "condition_encoder.features.", "denoiser.input.")
    body = any(key.startswith("decoder.body.") for key in shapes)
    return body and sum(any(key.startswith(part) for key in shapes) for part in parts) >= 2


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> RDSRConfig:
    """Sizes of a deployable network; `CheckpointError` for a stage-1 checkpoint or one with a key tensor missing."""
    owners = {key.split(".")[0] for key in shapes}
    if {"lpe", "decoder"} <= owners and not owners & {"condition_encoder", "denoiser"}:
        raise CheckpointError(
            "a stage-1 checkpoint, without condition encoder and denoiser, cannot be deployed; run stage2 from it first"
        )
    return RDSRConfig.from_shapes(shapes)


def config_from_dict(values: Mapping[str, Any]) -> RDSRConfig:
    """Sizes from a checkpoint's metadata; `ValueError` names the field that does not fit."""
    return RDSRConfig.from_dict(values)


def build(config: RDSRConfig, shapes: Mapping[str, tuple[int, ...]]) -> RDSR:
    """A network of these sizes with initial weights, and a quantized decoder where the keys show one."""
    network = RDSR(config)
    network.quantized = QuantizedDecoder.if_present(config, shapes)
    return network
