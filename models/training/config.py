"""One TOML file describes one training run; this module reads and validates it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base_config import BaseConfig
from ..degradation import VECTOR_SIZE, PhotoDegradations
from ..rdsr.config import PRESETS, RDSRConfig
from .errors import TrainingError
from .toml_file import read_toml

__all__ = ["TrainConfig", "find_config"]

_FOLDERS, _PATCH_SIDES = "a list of folders", "a list of whole numbers from 8 to 512"
_TYPES: tuple[tuple[type | tuple[type, ...], str, tuple[str, ...]], ...] = (
    (str, "a string", ("stage", "preset", "init")),
    (bool, "true or false", ("grow", "compile")),
    (dict, "a table", ("network", "photo")),
    ((list, tuple), _FOLDERS, ("data", "teacher")),
    ((list, tuple), _PATCH_SIDES, ("patch_sizes",)),
)
_CHOICES = {
    "stage": ("stage1", "stage2", "qat"),
    "optimizer": ("muon", "adam"),
    "pixel_loss": ("l1", "l2"),
    "prior_loss": ("l1", "l2"),
    "degradation": ("bicubic", "photo"),
}
_RANGES: dict[str, tuple[float, float]] = {
    "iterations": (1, 100_000_000), "batch": (1, 4096), "warmup": (0, 1_000_000), "seed": (0, 2**31),
    "validate_every": (1, 100_000_000), "prior_steps": (0, 100_000_000), "revive_every": (0, 100_000_000),
    "prior_patch": (0, 512),
    "learning_rate": (1e-9, 1.0), "final_learning_rate": (0.0, 1.0), "modulation_rate": (0.0, 10.0),
    "prior_rate": (0.0, 100.0), "range_rate": (0.0, 1e3), "ema_decay": (0.0, 0.999999), "gradient_clip": (1e-6, 1e6),
    "spike_factor": (1.1, 1e6), "frequency_weight": (0.0, 1e3), "prior_weight": (0.0, 1e3),
    "teacher_weight": (0.0, 1.0), "reduced": (0.0, 1.0), "permuted": (0.0, 1.0),
    "distillation": (0.0, 1.0), "black_and_white": (0.0, 1.0),
    "black_and_white_weight": (0.0, 1e3),
    "checkpoint_minutes": (0.0, 1e4),
}  # fmt: skip
"""Smallest and largest value of each number; a field with whole limits takes only whole numbers."""


def find_config(name: Path) -> Path:
    """The file of that name if it exists, else the shipped preset ("small-stage1"), else the name as a path."""
    preset = Path(__file__).parent / "presets" / f"{name}.toml"
    return name if os.path.isfile(name) or not os.path.isfile(preset) else preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(BaseConfig):
    """Everything that decides what a run computes. `load` reads it from TOML and refuses unknown fields by name."""

    stage: str
    """"stage1" trains latent prior encoder (LPE) and decoder. "stage2" trains condition encoder, denoiser and decoder; the
    LPE is frozen. "qat" is quantization-aware: it trains the fused decoder with int8's rounding; all else is frozen."""
    preset: str = ""
    """Size of the network: "base", "small", "tiny" or "photo". Not for qat, which takes the network of `init`."""
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `RDSRConfig` that differ from the preset, e.g. {scale = 2}."""
    data: tuple[str, ...] = ()
    """Folders of training pictures, relative to the working directory."""
    teacher: tuple[str, ...] = ()
    """Folders of a teacher's pictures: another upscaler's results from the LR twins of some originals. They mirror those of
    `data` (subfolders and stems). Each picture has the size of its original, cropped to a multiple of the scale."""
    teacher_weight: float = 1.0
    """Share of the teacher's picture in the target; the original has the rest. An original without one is its own target."""
    degradation: str = "bicubic"
    """How LR is made: "bicubic", or "photo" for random blur, resampling, noise and JPEG."""
    photo: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `PhotoDegradations` that differ from its defaults, e.g. {jpeg = 0.8}."""
    reduced: float = 0.0
    """Share of the patches that are cut from an original reduced by a random factor of 1 to 2. It is their target, also
    with a teacher."""
    permuted: float = 0.0
    """Share of the patches whose colour channels are permuted."""
    init: str = ""
    """Checkpoint to start from, relative to the working directory, or a shipped model's name. stage2 needs the result of a
    stage1 run. qat needs a finished network; it continues one that went through qat already."""
    grow: bool = False
    """Widen and deepen the smaller network in `init` into one that computes the same; of another scale, take its body."""
    iterations: int
    """Optimizer steps of the whole run."""
    batch: int = 16
    """Patches per step at the first patch size; of larger patches proportionally fewer, at least 2."""
    patch_sizes: tuple[int, ...] = (48,)
    """LR patch sides in pixels; each step draws one of them."""
    optimizer: str = "muon"
    """"muon" (Muon for the decoder's body and tail, Adam for the rest) or "adam" (Adam for all). After 900 steps `small` has
    28.38 dB on Kodak24 with Muon, 28.26 with Adam."""
    learning_rate: float = 1e-3
    """Peak learning rate of both optimizers."""
    modulation_rate: float = 0.02
    """Learning rate of the modulation layers, as a multiple of the others'. Each of their outputs sums over all elements of
    z, so Adam's equal steps add up: after 900 steps by Adam, `small` has 27.24 dB on Kodak24 with 1, 28.26 with 0.02."""
    distillation: float = 1.0
    """qat: weight of the float network's output as target; the original has the rest. The distance to the original is some
    sixty times what rounding adds and drowns its gradient, but pulls the output towards the original
    (benchmarks/results/int8/qat.md)."""
    black_and_white: float = 0.0
    """qat: share of the patches that become black and white (white: above the median), with the float network's output as
    target, so that the ranges cover text, too (benchmarks/results/int8/qat.md)."""
    black_and_white_weight: float = 1.0
    """qat: weight of these patches in the loss. Their squared errors are large, and 1 lets them rule the ranges of
    photographs, too (benchmarks/results/int8/qat.md)."""
    range_rate: float = 3.0
    """qat: learning rate of the quantization ranges (of their logarithms), as a multiple of the others'."""
    final_learning_rate: float = 1e-6
    """Learning rate at the end of the cosine schedule."""
    warmup: int = 200
    """Steps of linear warm-up."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights; checkpoints hold this average."""
    gradient_clip: float = 1.0
    """Largest L2 norm of the gradient; longer gradients are scaled down."""
    prior_rate: float = 3.0
    """stage2: learning rate of the `prior_steps`, as a multiple of the others'. They have their own schedule."""
    prior_patch: int = 0
    """stage2: LR patch side in the `prior_steps`, whose batches hold exactly `batch` patches; 0 for `patch_sizes`. The prior
    describes whole pictures; statistics of small patches scatter around theirs."""
    spike_factor: float = 4.0
    """A step is left out if its loss exceeds the running mean by this factor (its square with "l2") or is not finite."""
    pixel_loss: str = "l1"
    """"l1" (absolute difference of pixels), or "l2" (squared difference, which is what PSNR measures) for a finish."""
    frequency_weight: float = 0.0
    """Weight of the L1 distance between the pictures' two-dimensional Fourier coefficients, beside the pixel loss."""
    prior_weight: float = 0.1
    """stage2: weight of the distance between the z of the reverse process and the LPE's."""
    prior_loss: str = "l1"
    """stage2: "l1" or "l2" for that distance. A degradation that is absent more often than not has its median at "absent":
    an L1 estimate says "absent" until it is sure, a squared one gives the mean of the possible values."""
    prior_steps: int = 0
    """stage2: first steps, which train only condition encoder and denoiser, on that distance. The decoder does not run in
    them, so they take a fraction of a full step's time."""
    revive_every: int = 200
    """Steps between revivals of the decoder's dead channels (stage1 and stage2), except in the last third; 0 for none. After
    600 steps at 1e-3 without them, 5 to 20 of 48 channels of `small`'s first blocks are dead; after a day, 42 to 45."""
    seed: int = 0
    """Seed of initialisation, patches and noise."""
    compile: bool = False
    """Run the step through `torch.compile` (needs a C++ compiler; 15 per cent faster on two CPU cores)."""
    checkpoint_minutes: float = 3.0
    """Time between checkpoints."""
    validate_every: int = 1000
    """Steps between validations."""

    def __post_init__(self) -> None:
        self._check_fields()
        for name in ("data", "teacher", "patch_sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.stage == "qat":
            if self.preset or self.network or self.grow:
                raise TrainingError("preset, network and grow are not for qat, which takes the network of init")
            if self.optimizer != "adam":
                self._refuse("optimizer", '"adam" for qat')
        elif self.preset not in PRESETS:
            self._refuse("preset", f"one of {', '.join(PRESETS)}")
        if self.prior_steps and self.stage != "stage2":
            raise TrainingError(f"prior_steps is for stage2, not {self.stage}")
        table = "photo"
        try:
            self.photo_degradations()
            if self.stage == "qat":
                return
            table = "network"
            network = self.network_config()
        except ValueError as error:
            raise TrainingError(f"{table}: {error}") from error
        if not network.lpe_depth:
            raise TrainingError("network: lpe_depth must be at least 1, because training needs a latent prior encoder")
        if network.degradation_size not in (0, VECTOR_SIZE):
            raise TrainingError(f"network: degradation_size must be 0 or {VECTOR_SIZE}, the numbers of a degradation")

    def _check_fields(self) -> None:
        """Check each field by itself."""
        for kind, allowed, names in _TYPES:
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    self._refuse(name, allowed)
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                self._refuse(name, f"one of {', '.join(values)}")
        for name in ("data", "teacher"):
            if not all(isinstance(folder, str) for folder in getattr(self, name)):
                self._refuse(name, _FOLDERS)
        if not self.patch_sizes or any(not isinstance(p, int) or not 8 <= p <= 512 for p in self.patch_sizes):
            self._refuse("patch_sizes", _PATCH_SIDES)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
                self._refuse(name, f"a {'whole ' if whole else ''}number from {low} to {high}")

    def _refuse(self, name: str, allowed: str) -> None:
        raise TrainingError(f"{name} must be {allowed}, not {getattr(self, name)!r}")

    def photo_degradations(self) -> PhotoDegradations | None:
        """The distribution of random degradations; None for bicubic LR. `ValueError` for fields that do not fit."""
        settings = PhotoDegradations.from_dict(self.photo)
        return settings if self.degradation == "photo" else None

    def network_config(self) -> RDSRConfig:
        """The preset with the changes of `network`; `ValueError` for fields that do not fit."""
        return RDSRConfig.from_dict(PRESETS[self.preset].to_dict() | self.network)

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> TrainConfig:
        """Read a TOML file; `overrides` replace fields. `TrainingError` names what is wrong."""
        return cls.from_values(read_toml(path, "config") | overrides, str(path))

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str) -> TrainConfig:
        """A config from plain values; `TrainingError` starts with `where` and names what is unknown, missing or refused."""
        try:
            return cls.from_dict(values)
        except (TrainingError, ValueError) as error:
            raise TrainingError(f"{where}: {error}") from error
