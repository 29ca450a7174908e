"""RepD as a whole network: RDSR's decoder without a latent prior. It is the smallest example of a direct network."""

from __future__ import annotations

import dataclasses

from ..interface import DirectNetwork
from ..rdsr.around_decoder import RepDecoderNetwork
from ..rdsr.config import DecoderConfig
from ..rdsr.decoder import RepDecoder

__all__ = ["RepD", "RepDConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepDConfig(DecoderConfig):
    """Sizes of a decoder without modulation. `ValueError` names the field that is out of range."""

    modulation_depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modulation_depths:
            raise ValueError(f"a decoder without a latent prior has no modulation_depths, not {self.modulation_depths}")


class RepD(RepDecoderNetwork, DirectNetwork):
    """The reparameterized decoder of RDSR (PRCV 2024, section 3) without modulation."""

    config: RepDConfig

    def __init__(self, config: RepDConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = RepDecoder(config)
        self.quantized = None
