"""The proof in a bundle: inputs, the torch model's outputs, and the tolerances that `verify` checks again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from ...errors import shortened
from ..errors import BundleError
from .bundle import Bundle
from .manifest import canonical_json

__all__ = ["OWN", "Case", "Proof", "Tolerances"]

SAMPLED_ABOVE = 40_000
"""Outputs of more pixels are kept as a random sample of positions, because a bundle must stay small."""
SAMPLES = 12_000
MIN_CASES = 8
MAX_CASES = 64
MAX_PIXELS = 2**19
"""Most LR pixels of all cases together. Exports have a third of it."""
OWN = "package"
"""Name of the package's own set of pictures and noise."""
_REQUIRED = ("lr", "expected")
_TENSORS = (*_REQUIRED, "positions", "hr", "expected_int8")
"""Fields of a `Case` that `proof.safetensors` holds, each as NAME.FIELD."""


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """How far a variant may be from the torch model."""

    fp32_max_abs_err: float = 1e-4
    """Largest difference of a float32 graph's output, at full range 1; for uint8 outputs, beyond rounding."""
    bf16_max_abs_err: float = 0.1
    """Guard against plainly wrong bf16 results at single sizes; the gate is the PSNR drop."""
    bf16_psnr_drop_db: float = 0.01
    """Largest PSNR-Y drop of a bf16 variant on the proof's pictures, in dB, unless the export allowed another one."""
    int8_bytes_off: float = 0.02
    """Largest share of an int8 variant's output bytes that are more than one grey level off the fake-quantized model.
    Engines round a value between two levels to either, and living channels carry that on: 0.1 to 0.8 % for `small`."""
    int8_psnr_diff_db: float = 0.005
    """Largest difference in mean PSNR-Y between an int8 variant and the fake-quantized model, in dB."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One input and the torch model's output for it."""

    name: str
    lr: NDArray[np.uint8]
    """H×W×3."""
    expected: NDArray[np.float32]
    """The whole output, sH×sW×3, or its pixels at `positions`, N×3."""
    positions: NDArray[np.int64] | None = None
    """Flat pixel indices of a sampled output; None if `expected` is whole."""
    hr: NDArray[np.uint8] | None = None
    """sH×sW×3 original, for PSNR."""
    psnr_y: float | None = None
    """PSNR-Y of the torch model's 8-bit output against `hr`, in dB."""
    expected_int8: NDArray[np.uint8] | None = None
    """The fake-quantized torch model's 8-bit output, shaped like `expected`; None without an int8 variant."""
    psnr_y_int8: float | None = None
    """PSNR-Y of the fake-quantized torch model's output against `hr`, in dB."""
    dataset: str = OWN
    """Name of the picture set. A bundle stores only the package's own; held-back pictures of others judge int8 at export."""

    stages: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    """What the torch model held on the way, for process kinds that are proven stage by stage."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the LR picture."""
        return self.lr.shape[0], self.lr.shape[1]

    def size_out(self, scale: int) -> tuple[int, int]:
        """Height and width of the SR picture."""
        return self.size[0] * scale, self.size[1] * scale

    def pick(self, output: NDArray[Any]) -> NDArray[Any]:
        """The part of an sH×sW×3 output that `expected` holds."""
        return output if self.positions is None else output.reshape(-1, 3)[self.positions]

    def check(self, scale: int) -> None:
        """Raise `ValueError` unless shapes, types and positions fit together."""
        if self.lr.ndim != 3 or self.lr.shape[2] != 3 or self.lr.dtype != np.uint8 or not self.lr.size:
            raise ValueError(f"{self.name} has no H×W×3 uint8 input")
        expected: tuple[int, ...] = (*self.size_out(scale), 3)
        if self.hr is not None and (self.hr.shape != expected or self.hr.dtype != np.uint8):
            raise ValueError(f"the original of {self.name} does not fit its input")
        if self.positions is not None:
            pixels = expected[0] * expected[1]
            expected = (len(self.positions), 3)
            if self.positions.ndim != 1 or self.positions.dtype != np.int64 or not len(self.positions):
                raise ValueError(f"the positions of {self.name} are no list")
            if self.positions.min() < 0 or self.positions.max() >= pixels:
                raise ValueError(f"the positions of {self.name} lie outside its picture")
        if self.expected.shape != expected or self.expected.dtype != np.float32 or not np.isfinite(self.expected).all():
            raise ValueError(f"the expected output of {self.name} is not {expected} finite float32 values")
        if self.expected_int8 is not None and (self.expected_int8.shape != expected or self.expected_int8.dtype != np.uint8):
            raise ValueError(f"the expected int8 output of {self.name} is not {expected} uint8 values")
        if any(psnr is not None and not isinstance(psnr, float) for psnr in (self.psnr_y, self.psnr_y_int8)):
            raise ValueError(f"a PSNR of {self.name} is no number")

    def sampled(self) -> Case:
        """The same case, small enough for a bundle."""
        pixels = self.expected.reshape(-1, 3)
        if self.positions is not None or len(pixels) <= SAMPLED_ABOVE:
            return self
        positions = np.sort(np.random.RandomState(0).choice(len(pixels), SAMPLES, replace=False)).astype(np.int64)
        int8 = None if self.expected_int8 is None else self.expected_int8.reshape(-1, 3)[positions]
        return dataclasses.replace(self, expected=pixels[positions], positions=positions, expected_int8=int8)


@dataclasses.dataclass(frozen=True)
class Proof:
    """All cases, the seed of their noise, and the tolerances."""

    cases: tuple[Case, ...]
    seed: int
    tolerances: Tolerances = Tolerances()
    int8_drop_db: float | None = None
    """PSNR-Y drop in dB of the fake-quantized torch model on the pictures that judged it; None without int8."""
    int8_max_drop_db: float | None = None
    """Largest drop that was allowed, in dB."""
    bf16_max_drop_db: float | None = None
    """Largest drop of bf16 that the export was told to allow, in dB; None for the usual one."""

    @property
    def judging(self) -> tuple[Case, ...]:
        """The cases that int8's drop is measured on: held-back pictures if there are any, otherwise the package's own."""
        pictures = [case for case in self.cases if case.hr is not None and case.psnr_y is not None]
        held_back = [case for case in pictures if case.dataset != OWN]
        return tuple(held_back or pictures)

    @property
    def int8_gate_met(self) -> bool:
        """Whether the drop is within its limit."""
        return self.int8_drop_db is None or (
            self.int8_max_drop_db is not None and self.int8_drop_db <= self.int8_max_drop_db
        )

    def to_files(self) -> dict[str, bytes]:
        """Contents of `proof.json` and `proof.safetensors`."""
        tensors: dict[str, NDArray[Any]] = {}
        entries = []
        for case in (c.sampled() for c in self.cases if c.dataset == OWN):
            tensors |= {f"{case.name}.{f}": value for f in _TENSORS if (value := getattr(case, f)) is not None}
            tensors |= {f"{case.name}.stage.{stage}": value for stage, value in case.stages.items()}
            entry = {"name": case.name, "size": list(case.size), "psnr_y": case.psnr_y}
            entries.append(entry if case.expected_int8 is None else entry | {"psnr_y_int8": case.psnr_y_int8})
        content = {"seed": self.seed, "tolerances": dataclasses.asdict(self.tolerances), "cases": entries}
        if self.int8_drop_db is not None:
            content["int8"] = {"psnr_drop_db": self.int8_drop_db, "max_psnr_drop_db": self.int8_max_drop_db}
        if self.bf16_max_drop_db is not None:
            content["bf16"] = {"max_psnr_drop_db": self.bf16_max_drop_db}
        plain = {name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())}
        return {"proof.json": canonical_json(content), "proof.safetensors": save(plain)}

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Proof:
        """The proof in a bundle. Raises `BundleError` if it is missing or does not fit together."""
        try:
            content = json.loads(bundle.read("proof.json"))
            tensors = load(bundle.read("proof.safetensors"))

            def case_of(entry: dict[str, Any]) -> Case:
                keys = {field: f"{entry['name']}.{field}" for field in _TENSORS}
                arrays: dict[str, Any] = {
                    field: tensors[key] for field, key in keys.items() if key in tensors or field in _REQUIRED
                }
                prefix = f"{entry['name']}.stage."
                arrays["stages"] = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
                return Case(name=entry["name"], psnr_y=entry["psnr_y"], psnr_y_int8=entry.get("psnr_y_int8"), **arrays)

            cases = tuple(case_of(entry) for entry in content["cases"])
            int8 = content.get("int8", {})
            bf16 = content.get("bf16", {}).get("max_psnr_drop_db")
            drops = (int8.get("psnr_drop_db"), int8.get("max_psnr_drop_db"), bf16)
            proof = cls(cases, content["seed"], Tolerances(**content["tolerances"]), *drops)
            proof._check(bundle.manifest.scale)
            return proof
        except BundleError:
            raise
        except Exception as error:  # a crafted proof makes the parsers raise almost anything
            raise BundleError(
                f"the bundle {bundle.path} is refused: its proof cannot be used ({shortened(error)})"
            ) from error

    def _check(self, scale: int) -> None:
        """Raise `ValueError` for a proof that would prove too little or does not fit together."""
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise ValueError(f"its seed is {self.seed!r}")
        for field in dataclasses.fields(Tolerances):
            value, limit = getattr(self.tolerances, field.name), field.default
            if not isinstance(value, float) or not 0 <= value <= limit:  # type: ignore[operator]
                raise ValueError(f"its tolerance {field.name} is {value!r}, looser than {limit}")
        if len(self.cases) < MIN_CASES or not any(case.hr is not None and case.psnr_y is not None for case in self.cases):
            raise ValueError(f"it needs at least {MIN_CASES} cases, one of them with an original")
        if len(self.cases) > MAX_CASES or len({case.name for case in self.cases}) < len(self.cases):
            raise ValueError(f"it has more than {MAX_CASES} cases, or two of one name")
        if (pixels := sum(case.lr.shape[0] * case.lr.shape[1] for case in self.cases)) > MAX_PIXELS:
            raise ValueError(f"its pictures have {pixels} pixels, more than {MAX_PIXELS}")
        drops = (self.int8_drop_db, self.int8_max_drop_db, self.bf16_max_drop_db)
        if any(drop is not None and not isinstance(drop, float) for drop in drops):
            raise ValueError("a drop is no number")
        if len({case.expected_int8 is None for case in self.cases}) != 1:
            raise ValueError("only some of its cases have an int8 output")
        for case in self.cases:
            case.check(scale)
