"""Sizes of RDSR and of its decoder, as frozen dataclasses; the presets; and reading the sizes off a state dict."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..base_config import BaseConfig
from ..diffusion import check_betas
from ..errors import CheckpointError
from ..shapes import Shapes, config_of, indices, shape_of

__all__ = ["BRANCHES", "CONDITION_ENCODERS", "PRESETS", "DecoderConfig", "RDSRConfig", "decoder_sizes"]

BRANCHES = ("conv1x1", "expand", "identity")
"""Training-time branches that a body convolution may have beside its 3×3 kernel (paper section 3, RepD)."""
CONDITION_ENCODERS = ("mean", "statistics")
"""Condition vector from means of features, or from means and standard deviations of features of the high-pass picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(BaseConfig):
    """Sizes of the decoder. Validated on construction; `ValueError` names the field and its range."""

    width: int
    """Channels of every body convolution."""
    depth: int
    """Number of body convolutions."""
    modulation_depths: tuple[int, ...] = (0,)
    """Indices of the body convolutions whose output the latent prior scales and shifts."""
    scale: int = 4
    """Upscaling factor."""
    branches: tuple[str, ...] = BRANCHES
    """Training-time branches beside the 3×3 kernel; empty for a fused network."""
    expansion: int = 2
    """Hidden channels of the 1×1-expand → 3×3 branch, as a multiple of `width`."""
    latent_size: int = 256
    """Length of the latent prior z and of the condition vector c."""

    def __post_init__(self) -> None:
        self._check_ranges(width=(1, 1024), depth=(1, 256), scale=(1, 8), expansion=(1, 16), latent_size=(1, 4096))
        for name in ("modulation_depths", "branches"):
            if not isinstance(getattr(self, name), (list, tuple)):
                raise ValueError(f"{name} must be a list, not {getattr(self, name)!r}")
        if unknown := [name for name in self.branches if name not in BRANCHES]:
            raise ValueError(f"branches must be of {', '.join(BRANCHES)}, not {unknown[0]!r}")
        object.__setattr__(self, "modulation_depths", tuple(self.modulation_depths))
        object.__setattr__(self, "branches", tuple(name for name in BRANCHES if name in self.branches))
        depths = self.modulation_depths
        if any(not isinstance(d, int) or not 0 <= d < self.depth for d in depths) or list(depths) != sorted(set(depths)):
            raise ValueError(f"modulation_depths must be rising indices below depth={self.depth}, not {depths}")


def decoder_sizes(shapes: Shapes) -> dict[str, Any]:
    """Fields of `DecoderConfig` that a state dict's keys and shapes show.

    Raises `CheckpointError` naming the tensor that is missing or misshapen.
    """
    width = shape_of(shapes, "decoder.head.weight", 4)[0]
    tail_channels = shape_of(shapes, "decoder.tail.weight", 4)[0]
    scale = round((tail_channels / 3) ** 0.5)
    if 3 * scale * scale != tail_channels:
        raise CheckpointError(f"decoder.tail.weight has {tail_channels} output channels, which is 3·scale² for no scale")
    found = [name for name in BRANCHES if indices(shapes, rf"decoder\.body\.(\d+)\.{name}$")]
    expand = shape_of(shapes, "decoder.body.0.expand", 4)[0] if "expand" in found else width
    return {
        "width": width,
        "depth": max(indices(shapes, r"decoder\.body\.(\d+)\."), default=-1) + 1,
        "modulation_depths": tuple(indices(shapes, r"decoder\.modulation\.(\d+)\.")),
        "scale": scale,
        "branches": tuple(found),
        "expansion": max(1, expand // max(1, width)),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class RDSRConfig(DecoderConfig):
    """Sizes of an RDSR network. Validated on construction; `ValueError` names the field and its range."""

    condition_width: int
    """Channels of the condition encoder's feature map."""
    condition_depth: int = 3
    """3×3 convolutions of the condition encoder."""
    condition_encoder: str = "mean"
    """One of `CONDITION_ENCODERS`."""
    unshuffle: int = 4
    """Factor by which the LR picture is pixel-unshuffled for the condition encoder."""
    denoiser_depth: int = 2
    """Residual blocks of the denoiser's MLP."""
    lpe_width: int = 64
    """Channels of the latent prior encoder (training only)."""
    lpe_depth: int = 4
    """3×3 convolutions of the latent prior encoder; 0 if there is none (checkpoints for inference only)."""
    degradation_size: int = 0
    """Length of the vector of degradation parameters that the latent prior encoder takes; 0 if it takes none."""
    steps: int = 4
    """T, steps of the reverse process. 0 is not for export: then the condition vector itself is the latent prior."""
    beta_start: float = 0.1
    """First β of the noise schedule, linear in √β."""
    beta_end: float = 0.99
    """Last β of the noise schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ranges(
            condition_width=(1, 1024), condition_depth=(1, 64), unshuffle=(1, 16), denoiser_depth=(0, 64),
            lpe_width=(1, 1024), lpe_depth=(0, 64), steps=(0, 1000), degradation_size=(0, 1024),
        )  # fmt: skip
        check_betas(self.beta_start, self.beta_end)
        if self.condition_encoder not in CONDITION_ENCODERS:
            raise ValueError(f"condition_encoder must be {' or '.join(CONDITION_ENCODERS)}, not {self.condition_encoder!r}")

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> RDSRConfig:
        """Read the sizes off a state dict's keys and shapes. Steps and β keep their defaults: no tensor shows them.

        Raises `CheckpointError` naming the tensor that is missing, or the size that does not fit.
        """
        condition = indices(shapes, r"condition_encoder\.features\.(\d+)\.")
        lpe = indices(shapes, r"lpe\.features\.(\d+)\.")
        sizes = {"condition_width": 1, "lpe_depth": len(lpe)} | decoder_sizes(shapes)
        if condition:
            condition_width, unshuffled = shape_of(shapes, f"condition_encoder.features.{condition[0]}.weight", 4)[:2]
            sizes |= {
                "condition_width": condition_width,
                "condition_depth": len(condition),
                "unshuffle": round((unshuffled / 3) ** 0.5),
                "latent_size": shape_of(shapes, "condition_encoder.mlp.0.weight", 2)[0],
                "denoiser_depth": len(indices(shapes, r"denoiser\.blocks\.(\d+)\.")),
                "condition_encoder": "statistics" if "condition_encoder.norm.weight" in shapes else "mean",
            }
        if lpe:
            sizes["lpe_width"] = shape_of(shapes, f"lpe.features.{lpe[0]}.weight", 4)[0]
            if "lpe.degradation.weight" in shapes:
                sizes["degradation_size"] = shape_of(shapes, "lpe.degradation.weight", 2)[1]
        return config_of(cls, "rdsr", sizes)


_SMALL = RDSRConfig(width=48, depth=14, modulation_depths=(0, 5, 10), condition_width=64)
PRESETS: dict[str, RDSRConfig] = {
    # Chosen by `rdsr bench candidates` (benchmarks/results/candidates.md). Each grows into the next (`grow`): every
    # modulation of the smaller one moves to a modulated depth of the larger one. The condition encoder shrinks with the
    # decoder: it costs 1 to 2 per cent of the decoder's multiplications in each.
    "base": RDSRConfig(width=64, depth=30, modulation_depths=(0, 5, 10, 15, 21, 26), condition_width=128, lpe_width=96),
    "small": _SMALL,
    "tiny": RDSRConfig(width=48, depth=8, modulation_depths=(0, 3, 6), condition_width=32),
    # As large as small, for photos as they are: its condition encoder can see a degradation, its LPE gets the parameters.
    # The LPE has few features of HR: no LR picture shows them, and with 64 stage 2 ended 0.11 dB lower (`tiny`, one seed).
    "photo": dataclasses.replace(
        _SMALL, condition_encoder="statistics", condition_width=16, unshuffle=2, degradation_size=12, lpe_width=8
    ),
}
"""Named sizes of the family, ×4; `dataclasses.replace(PRESETS["small"], scale=2)` gives the others."""
