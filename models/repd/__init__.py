"""RepD, the reparameterized decoder without a latent prior: a direct network. A state dict of it has no other parts."""

from __future__ import annotations

from ..rdsr.config import decoder_sizes
from ..shapes import Shapes, config_of, parts_found
from .network import RepD, RepDConfig

__all__ = ["RepD", "RepDConfig", "config_from_shapes", "matches"]


def matches(shapes: Shapes) -> bool:
    """Whether the keys are those of a decoder without modulation, and there are no others."""
    nothing_else = all(key.startswith(("decoder.", "quantized.")) and ".modulation." not in key for key in shapes)
    return nothing_else and parts_found(shapes, "decoder.head.", "decoder.tail.", "decoder.skip.", "decoder.body.") >= 3


def config_from_shapes(shapes: Shapes) -> RepDConfig:
    """Read the sizes off keys and shapes; `CheckpointError` if a tensor is missing or misshapen."""
    return config_of(RepDConfig, "repd", decoder_sizes(shapes))
