"""One TOML file describes one training stage; this module reads and validates it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..photo_degradation import VECTOR_SIZE, PhotoDegradations
from ..plain import to_plain
from ..rdsr.config import PRESETS, RDSRConfig
from .errors import TrainingError
from .toml_file import read_toml

__all__ = ["STAGES", "TrainConfig", "find_config"]

STAGES = ("stage1", "stage2", "qat")
OPTIMIZERS = ("muon", "adam")
PIXEL_LOSSES = ("l1", "l2")
DEGRADATIONS = ("bicubic", "photo")


def find_config(name: Path) -> Path:
    """A file of that name if there is one, else the shipped preset ("small-stage1"), else the name as a path."""
    preset = Path(__file__).parent / "presets" / f"{name}.toml"
    return name if name.is_file() or not preset.is_file() else preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. Read from TOML by `load`; unknown fields are refused by name."""

    stage: str
    """"stage1" (LPE and RepD together), "stage2" (LPE frozen; condition encoder, denoiser and RepD) or "qat"
    (quantization-aware: the fused decoder with int8's rounding in it, the rest frozen)."""
    preset: str = ""
    """Size of the network: "base", "small", "tiny" or "photo"; not for qat, whose network is that of `init`."""
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `RDSRConfig` that differ from the preset, e.g. {scale = 2}."""
    data: tuple[str, ...] = ()
    """Folders of training pictures, relative to the working directory."""
    teacher: tuple[str, ...] = ()
    """Folders that mirror those of `data` (subfolders and stems) and hold, for some originals, what another upscaler made of
    their LR twin, in the original's size cropped to a multiple of the scale."""
    teacher_weight: float = 1.0
    """Share of the teacher's picture in the target; the original has the rest. Those without one are their own target."""
    degradation: str = "bicubic"
    """How LR is made: "bicubic", or "photo" for random blur, resampling, noise and JPEG."""
    photo: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `PhotoDegradations` that differ from its defaults, e.g. {jpeg = 0.8}."""
    init: str = ""
    """Checkpoint to start from, relative to the working directory, or a shipped model's name; stage2 needs the result of a
    stage1 run, qat a finished network (one that went through qat already goes on from there)."""
    grow: bool = False
    """Whether `init` is a smaller network of the family, to be widened and deepened into one that computes the same."""
    iterations: int
    """Optimizer steps of the whole run."""
    batch: int = 16
    """Patches a step at the first patch size; larger patches get proportionally fewer (never below 2)."""
    patch_sizes: tuple[int, ...] = (48,)
    """LR patch sides in pixels; each step draws one of them."""
    optimizer: str = "muon"
    """"muon" (decoder's body and tail by Muon, the rest by Adam) or "adam" (all by Adam). After 900 steps of `small`, Muon
    ends 0.12 dB higher on Kodak24 (28.38 against 28.26)."""
    learning_rate: float = 1e-3
    """Peak learning rate, of both optimizers."""
    modulation_rate: float = 0.02
    """Learning rate of the modulation layers, as a multiple of the others'. Each of their outputs sums over all elements
    of z, so Adam's equal steps add up: 900 steps of `small`, all by Adam, end at 27.24 dB on Kodak24 with 1, at 28.26 so."""
    distillation: float = 1.0
    """qat: weight of the float network's output as target, beside 1 − it for the original picture, whose distance is some
    sixty times what rounding adds and drowns its gradient: after 100 steps `small` has 28.596 dB on Kodak24, not 28.587.
    Once that has settled (28.598 after 3,450), 2,000 steps with 0.5 bring 28.603, and the most where pictures are smooth."""
    black_and_white: float = 0.0
    """qat: share of the patches that are turned into black and white (each pixel above the median or not), with the float
    network's output as target, so that ranges hold text as well. Squared errors of `small` in grey levels², on photographs
    and on these: 0.8 and 136 with 0, 1.1 and 6.7 with 0.03, 1.7 and 4.3 with 0.125."""
    range_rate: float = 3.0
    """qat: learning rate of the quantization ranges (of their logarithms), as a multiple of the others'."""
    final_learning_rate: float = 1e-6
    """Learning rate that the cosine schedule ends on."""
    warmup: int = 200
    """Steps of linear warm-up."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is what a checkpoint carries."""
    gradient_clip: float = 1.0
    """Largest L2 norm of the gradient; longer gradients are scaled down."""
    prior_rate: float = 3.0
    """stage2: learning rate of the steps of the prior alone, as a multiple of the others'. They have their own schedule."""
    prior_patch: int = 0
    """stage2: LR patch side in the steps of the prior alone, of which a batch then has exactly `batch`; 0 for `patch_sizes`.
    What is estimated are statistics of whole pictures, which small patches scatter around."""
    spike_factor: float = 4.0
    """A step whose loss exceeds this multiple of the running mean (its square with "l2"), or is not finite, is left out."""
    pixel_loss: str = "l1"
    """"l1" (absolute difference of pixels), or "l2" (squared difference, which is what PSNR measures) for a finish."""
    frequency_weight: float = 0.0
    """Weight of the L1 distance between the pictures' two-dimensional Fourier coefficients, beside the pixel loss."""
    prior_weight: float = 0.1
    """stage2: weight of the distance between the reverse process's z and the LPE's."""
    prior_loss: str = "l1"
    """stage2: "l1" or "l2" for that distance. A step of a degradation that is absent more often than not has its median at
    "absent": an L1 estimate says so until it is sure, a squared one gives the mean of what may be."""
    prior_steps: int = 0
    """stage2: steps at the beginning that train condition encoder and denoiser alone, on that distance; the decoder does not
    run, so that such a step takes a fraction of a full one."""
    seed: int = 0
    """Seed of initialisation, patches and noise."""
    compile: bool = False
    """Whether to run the step through `torch.compile` (needs a C++ compiler; 15 per cent faster on two CPU cores)."""
    checkpoint_minutes: float = 3.0
    """Time between checkpoints."""
    validate_every: int = 1000
    """Steps between validations."""

    def __post_init__(self) -> None:
        def refuse(name: str, allowed: str) -> None:
            raise TrainingError(f"{name} must be {allowed}, not {getattr(self, name)!r}")

        kinds: tuple[tuple[str, Any, str], ...] = (
            ("stage", str, "a string"),
            ("preset", str, "a string"),
            ("init", str, "a string"),
            ("grow", bool, "true or false"),
            ("compile", bool, "true or false"),
            ("network", dict, "a table"),
            ("patch_sizes", (list, tuple), "a list of whole numbers from 8 to 512"),
            ("data", (list, tuple), "a list of folders"),
            ("teacher", (list, tuple), "a list of folders"),
            ("photo", dict, "a table"),
        )
        for name, kind, what in kinds:
            if not isinstance(getattr(self, name), kind):
                refuse(name, what)
        if self.stage not in STAGES:
            refuse("stage", f"one of {', '.join(STAGES)}")
        if self.stage == "qat":
            if self.preset or self.network or self.grow:
                raise TrainingError("preset, network and grow are not for qat, whose network is that of init")
            if self.optimizer != "adam":
                refuse("optimizer", '"adam" for qat')
        elif self.preset not in PRESETS:
            refuse("preset", f"one of {', '.join(PRESETS)}")
        if self.optimizer not in OPTIMIZERS:
            refuse("optimizer", f"one of {', '.join(OPTIMIZERS)}")
        for name in ("pixel_loss", "prior_loss"):
            if getattr(self, name) not in PIXEL_LOSSES:
                refuse(name, f"one of {', '.join(PIXEL_LOSSES)}")
        object.__setattr__(self, "patch_sizes", tuple(self.patch_sizes))
        if self.degradation not in DEGRADATIONS:
            refuse("degradation", f"one of {', '.join(DEGRADATIONS)}")
        for name in ("data", "teacher"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not all(isinstance(folder, str) for folder in getattr(self, name)):
                refuse(name, "a list of folders")
        if not self.patch_sizes or any(not isinstance(p, int) or not 8 <= p <= 512 for p in self.patch_sizes):
            refuse("patch_sizes", "a list of whole numbers from 8 to 512")
        for name, low, high in (
            ("iterations", 1, 100_000_000), ("batch", 1, 4096), ("warmup", 0, 1_000_000), ("seed", 0, 2**31),
            ("validate_every", 1, 100_000_000), ("learning_rate", 1e-9, 1.0), ("final_learning_rate", 0.0, 1.0),
            ("ema_decay", 0.0, 0.999999), ("gradient_clip", 1e-6, 1e6), ("spike_factor", 1.1, 1e6),
            ("prior_weight", 0.0, 1e3), ("modulation_rate", 0.0, 10.0),
            ("range_rate", 0.0, 1e3), ("distillation", 0.0, 1.0), ("black_and_white", 0.0, 1.0),
            ("frequency_weight", 0.0, 1e3), ("checkpoint_minutes", 0.0, 1e4),
            ("teacher_weight", 0.0, 1.0), ("prior_steps", 0, 100_000_000), ("prior_patch", 0, 512),
            ("prior_rate", 0.0, 100.0),
        ):  # fmt: skip
            value = getattr(self, name)
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
                refuse(name, f"a {'whole ' if whole else ''}number from {low} to {high}")
        try:
            self.photo_degradations()
        except ValueError as error:
            raise TrainingError(f"photo: {error}") from error
        if self.prior_steps and self.stage != "stage2":
            raise TrainingError(f"prior_steps is for stage2, not {self.stage}")
        if self.stage == "qat":
            return
        try:
            network = self.network_config()
        except ValueError as error:
            raise TrainingError(f"network: {error}") from error
        if not network.lpe_depth:
            raise TrainingError("network: lpe_depth must be at least 1, training needs a latent prior encoder")
        if network.degradation_size not in (0, VECTOR_SIZE):
            raise TrainingError(
                f"network: degradation_size must be 0 or {VECTOR_SIZE}, the numbers that describe a degradation"
            )

    def photo_degradations(self) -> PhotoDegradations | None:
        """What LR patches are drawn from; None where they are bicubic. `ValueError` for fields that do not fit."""
        settings = PhotoDegradations.from_dict(self.photo)
        return settings if self.degradation == "photo" else None

    def network_config(self) -> RDSRConfig:
        """The preset with `network`'s changes; `ValueError` for fields that do not fit."""
        return RDSRConfig.from_dict(PRESETS[self.preset].to_dict() | self.network)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return to_plain(self)

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> TrainConfig:
        """Read a TOML file; `overrides` replace fields. `TrainingError` names what is wrong."""
        return cls.from_values(read_toml(path, "config") | overrides, str(path))

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str) -> TrainConfig:
        """A config of plain values; `TrainingError` says `where` and what is unknown, missing or out of range."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - set(fields)):
            raise TrainingError(f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(fields)}")
        missing = [
            name
            for name, field in fields.items()
            if name not in values and field.default is field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise TrainingError(f"{where}: missing field {', '.join(missing)}")
        try:
            return cls(**values)
        except TrainingError as error:
            raise TrainingError(f"{where}: {error}") from error
