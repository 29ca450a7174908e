"""What a network is: one abstract base class for all, and one for each process kind."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from .diffusion import Schedule

if TYPE_CHECKING:
    from .int8.chain import ChainQuantizer

__all__ = ["DirectNetwork", "FusionErrors", "LatentPriorNetwork", "Network", "PlainBody"]


@dataclasses.dataclass(frozen=True)
class FusionErrors:
    """Differences between the fused network and the multi-branch one."""

    blocks: int
    """Number of blocks that were fused."""
    max_abs_err: float
    """Largest difference of the whole decoder's output in float32, of full range 1."""
    max_rel_err_float64: float
    """Largest difference, relative to the largest value, of any block and of the whole decoder in float64."""


@dataclasses.dataclass(frozen=True)
class PlainBody:
    """The promise that the fused decoder is a stack of 3×3 convolutions and ReLU. Export checks it on the graph."""

    depth: int
    """Number of convolutions of the body."""
    modulated: tuple[int, ...] = ()
    """Indices of the convolutions that a scale and a shift follow, both computed from the latent prior."""


class Network(nn.Module, abc.ABC):
    """A super-resolution network that can be exported.

    A network inherits from the class of its process kind. What is special about it (its plain body, an int8 form of its own)
    it says by overriding a property; nothing outside `models/` asks for its name.
    """

    config: Any
    """Sizes of the network: a frozen dataclass with `scale`, `to_dict` and `from_dict`."""
    decode: Callable[..., Tensor]
    """N×3×H×W LR in [0, 1], and what the kind computes from the whole picture → N×3×sH×sW SR, not clipped."""

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return int(self.config.scale)

    @property
    def steps(self) -> int:
        """Steps of the diffusion process; 0 if there is none."""
        return 0

    @property
    @abc.abstractmethod
    def receptive_radius(self) -> int | None:
        """LR pixels on each side that one output pixel of the decoder depends on; None for the whole picture."""

    @property
    @abc.abstractmethod
    def peak_channels(self) -> int:
        """Largest number of values per LR pixel that the decoder holds at once."""

    @property
    def tile_rule(self) -> str:
        """ "exact": tiles with a halo of the receptive radius equal the whole picture; "overlap": they approximate it."""
        return "overlap" if self.receptive_radius is None else "exact"

    @property
    def plain_body(self) -> PlainBody | None:
        """What the fused decoder's graph must look like; None without such a promise."""
        return None

    @property
    def int8_form(self) -> ChainQuantizer | None:
        """The network's own way to int8; None if all its convolutions are quantized in the general way."""
        return None

    def fuse(self) -> Self:
        """The float deployment form, a copy. By default nothing is fused."""
        return copy.deepcopy(self)

    def training_only(self) -> dict[str, Tensor]:
        """Weights that only training needs, by key. By default none."""
        return {}

    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        """Compare `fuse` with this network, on the arguments of `decode`. By default nothing is fused."""
        del lr, condition
        return FusionErrors(blocks=0, max_abs_err=0.0, max_rel_err_float64=0.0)

    def inference_parameters(self) -> int:
        """Number of weights that the deployed network holds."""
        return sum(parameter.numel() for parameter in self.fuse().parameters())

    def vary_initial_weights(self) -> None:
        """Change initial weights of 0 and 1, which an exporter would optimize away. By default there are none."""


class LatentPriorNetwork(Network):
    """A network whose diffusion process runs over one latent vector for the whole picture.

    Export cuts it into encoder (`feature_map`), reverse process (`prior`) and decoder (`decode(lr, z)`).
    """

    schedule: Schedule
    """Noise schedule of the reverse process."""

    @property
    def betas(self) -> tuple[float, ...]:
        """β of steps 0 … T-1."""
        return self.schedule.betas

    @property
    def steps(self) -> int:
        """T of the reverse process."""
        return len(self.betas)

    @property
    @abc.abstractmethod
    def latent_size(self) -> int:
        """Length of the noise and of the latent prior."""

    @property
    @abc.abstractmethod
    def condition_channels(self) -> int:
        """Channels of the condition feature map."""

    @property
    @abc.abstractmethod
    def size_multiple(self) -> int:
        """LR pixels per cell of the condition feature map."""

    @property
    @abc.abstractmethod
    def condition_radius(self) -> int:
        """Cells of the condition feature map on each side that one cell depends on."""

    @abc.abstractmethod
    def feature_map(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×C×⌈H/f⌉×⌈W/f⌉ condition features, f being `size_multiple`."""

    @abc.abstractmethod
    def prior(self, pooled: Tensor, noise: Tensor) -> Tensor:
        """Pooled condition features (N×C) and standard normal noise (N×latent) → latent prior z (N×latent)."""

    def latent_prior(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and noise (N×latent or 1×latent) → latent prior z of each whole picture."""
        return self.prior(self.feature_map(lr).mean(dim=(2, 3)), noise)

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent standard normal noise → N×3×sH×sW SR, not clipped."""
        return self.decode(lr, self.latent_prior(lr, noise))


class DirectNetwork(Network):
    """A network that is one call: `decode(lr)`."""

    def forward(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×3×sH×sW SR, not clipped."""
        return self.decode(lr)
