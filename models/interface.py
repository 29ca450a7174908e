"""The abstract base classes of networks: one for all, and one for each process kind."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from .diffusion import Schedule
from .shapes import Shapes

if TYPE_CHECKING:
    from .int8.chain import ChainQuantizer

__all__ = [
    "Derived", "DirectNetwork", "FusionErrors", "LatentPriorNetwork", "Network", "PlainBody", "ResidualShiftNetwork",
    "ShiftStep",
]  # fmt: skip


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
class Derived:
    """Constants that follow from a network's weights or sizes."""

    constants: tuple[Tensor, ...] = ()
    """Constants that graphs may hold."""
    absorbed: frozenset[str] = frozenset()
    """Keys of weights that graphs need not hold, because only what follows from them is used."""


@dataclasses.dataclass(frozen=True)
class PlainBody:
    """Promise that the fused decoder is a stack of 3×3 convolutions and ReLU. Export checks it on the graph."""

    depth: int
    """Number of convolutions of the body."""
    modulated: tuple[int, ...] = ()
    """Indices of the convolutions that a scale and a shift follow, both computed from the latent prior."""


class Network(nn.Module, abc.ABC):
    """A super-resolution network that can be exported.

    A network inherits from the class of its process kind, and overrides the properties in which it is special (plain body,
    int8 form). Export and runtime ask these properties; they never ask for a network's name.
    """

    config: Any
    """Sizes of the network: a frozen dataclass with `scale`, `to_dict` and `from_dict`."""
    decode: Callable[..., Tensor]
    """N×3×H×W LR in [0, 1], and the tensors that the kind computes from the whole picture → N×3×sH×sW SR, not clipped."""

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
        """LR pixels on each side that one output pixel of the decoder depends on; None: on the whole picture."""

    @property
    def peak_channels(self) -> int | None:
        """Largest number of values per LR pixel that the decoder holds at once, by which the runtime plans memory.

        None, by default: the export counts them on the decoder's graph.
        """
        return None

    @property
    def tile_rule(self) -> str:
        """ "exact": tiles with a halo of the receptive radius equal the whole picture; "overlap": they approximate it."""
        return "overlap" if self.receptive_radius is None else "exact"

    @property
    def plain_body(self) -> PlainBody | None:
        """The promise about the fused decoder's graph. By default there is none."""
        return None

    @property
    def int8_form(self) -> ChainQuantizer | None:
        """The network's own way to int8. None: each convolution is quantized on its own (`int8/convolutions.py`)."""
        return None

    def int8_convolutions(self, names: list[str]) -> list[str]:
        """Those of the decoder's convolutions, in the order in which they run, that are quantized without an `int8_form`.

        By default all except the first, which reads the picture, and the last.
        """
        return names[1:-1]

    def fuse(self) -> Self:
        """The float deployment form, a copy: branches folded, parts that only training needs dropped. By default neither."""
        return copy.deepcopy(self)

    def add_parts(self, shapes: Shapes) -> None:
        """Add the optional parts that the keys of a state dict show. By default there are none."""

    def training_only(self) -> dict[str, Tensor]:
        """Key → weights that only training needs. By default there are none."""
        return {}

    def derived(self) -> Derived:
        """What graphs hold beside the weights of `fuse`, or in their place. By default nothing."""
        return Derived()

    def fusion_errors(self, lr: Tensor, *condition: Tensor) -> FusionErrors:
        """Compare the decoder with that of `fuse`, on the arguments of `decode`. By default nothing is fused."""
        del lr, condition
        return FusionErrors(blocks=0, max_abs_err=0.0, max_rel_err_float64=0.0)

    def inference_parameters(self) -> int:
        """Number of weights that the deployed network holds."""
        return sum(parameter.numel() for parameter in self.fuse().parameters())

    def vary_initial_weights(self) -> None:
        """Change initial weights of exactly 0 or 1: an exporter would optimize them away. By default there are none."""


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
        """T, steps of the reverse process."""
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
        """Pooled condition features (N×C, means over the cells) and standard normal noise (N×latent) → z (N×latent)."""

    def latent_prior(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and noise (N×latent or 1×latent) → latent prior z (N×latent) of each whole picture."""
        return self.prior(self.feature_map(lr).mean(dim=(2, 3)), noise)

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] and N×latent standard normal noise → N×3×sH×sW SR, not clipped."""
        return self.decode(lr, self.latent_prior(lr, noise))


@dataclasses.dataclass(frozen=True)
class ShiftStep:
    """One call of the network in the reverse process of `ResidualShiftNetwork`.

    z ← `of_estimate`·ẑ0 + `of_latent`·z + `noise`·ε, ẑ0 being the estimate and ε standard normal noise.
    """

    time: int
    """Number of the step, as the network knows it."""
    input_scale: float
    """Factor of z in the network's input."""
    of_estimate: float
    of_latent: float
    noise: float


class ResidualShiftNetwork(Network):
    """A network whose diffusion process runs over the picture's latent, from the LR picture's to the HR picture's.

    Export cuts it into encoder (`encode`), step (`estimate`) and decoder (`draw`). The process between them belongs to the
    runtime and, for the torch model, to the export.
    """

    @property
    def receptive_radius(self) -> None:
        """The whole picture: normalizations and attention are global."""
        return

    @property
    def steps(self) -> int:
        """Calls of the network."""
        return len(self.calls)

    @property
    @abc.abstractmethod
    def calls(self) -> tuple[ShiftStep, ...]:
        """The calls of the network, in their order."""

    @property
    @abc.abstractmethod
    def first_noise(self) -> float:
        """Standard deviation of the noise that is added to the LR picture's latent at the beginning."""

    @property
    @abc.abstractmethod
    def latent_channels(self) -> int:
        """Channels of latents, which are as high and wide as the LR picture."""

    @property
    @abc.abstractmethod
    def noise_channels(self) -> int:
        """Channels of standard normal noise that the network itself takes; 0 for none."""

    @property
    @abc.abstractmethod
    def size_multiple(self) -> int:
        """LR sides are padded to multiples of this."""

    @property
    @abc.abstractmethod
    def values_held(self) -> dict[str, int]:
        """Graph ("encoder", "step", "decoder") → values for each LR pixel that it holds at once in a tile of 128×128."""

    @abc.abstractmethod
    def encode(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×C×H×W latent."""

    @abc.abstractmethod
    def estimate(self, z: Tensor, lr: Tensor, time: Tensor, input_scale: Tensor, noise: Tensor | None = None) -> Tensor:
        """z (N×C×H×W), LR (N×3×H×W in [0, 1]), time and input scale (N each), noise (N×`noise_channels`×H×W) → ẑ0."""

    @abc.abstractmethod
    def draw(self, z: Tensor) -> Tensor:
        """N×C×H×W latent → N×3×sH×sW SR, not clipped."""

    @abc.abstractmethod
    def codes(self, z: Tensor) -> Tensor:
        """The latent that `draw` really draws: N×C×H×W → the nearest codes, if there are some."""

    def decode(self, lr: Tensor, z: Tensor) -> Tensor:
        """The picture of a latent that may be padded: N×3×sH×sW SR for N×3×H×W LR, not clipped."""
        height, width = lr.shape[2:]
        return self.draw(z)[:, :, : height * self.scale, : width * self.scale]


class DirectNetwork(Network):
    """A network that upscales in one call, `decode(lr)`."""

    def forward(self, lr: Tensor) -> Tensor:
        """N×3×H×W LR in [0, 1] → N×3×sH×sW SR, not clipped."""
        return self.decode(lr)
