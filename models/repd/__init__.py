"""RepD alone: the reparameterized decoder without a latent prior, a direct network. Recognised by having no other part."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import CheckpointError
from ..rdsr.config import decoder_sizes
from ..rdsr.quantized import QuantizedDecoder
from .network import RepD, RepDConfig

__all__ = ["RepD", "RepDConfig", "build", "config_from_shapes", "matches"]

Shapes = Mapping[str, tuple[int, ...]]


def matches(shapes: Shapes) -> bool:
    """Whether the keys are those of a decoder that nothing modulates, and of nothing else."""
    parts = ("decoder.head.", "decoder.tail.", "decoder.skip.", "decoder.body.")
    alone = all(key.startswith(("decoder.", "quantized.")) and ".modulation." not in key for key in shapes)
    return alone and sum(any(key.startswith(part) for key in shapes) for part in parts) >= 3


def config_from_shapes(shapes: Shapes) -> RepDConfig:
    """Sizes read off the shapes; `CheckpointError` if a key tensor is missing or misshapen."""
    sizes = decoder_sizes(shapes)
    try:
        return RepDConfig(**sizes)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint looks like repd but its sizes do not fit: {error}") from error


def build(config: RepDConfig, shapes: Shapes) -> RepD:
    """A network of these sizes with initial weights, and a quantized decoder if the keys show one."""
    network = RepD(config)
    network.quantized = QuantizedDecoder.if_present(config, shapes)
    return network
