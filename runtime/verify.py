"""Prove a bundle again on this machine: every engine × precision × graph against the torch model's recorded outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle
from .bundle.proof import OWN, Case, Proof
from .engines import BACKENDS, PRECISIONS, Backend, Precision, Session, load_session, supported_precisions
from .errors import BundleError
from .host import cpu
from .metrics import psnr_drop, psnr_y
from .pictures.arrays import from_graph
from .pipelines import load_pipeline, pipeline_kind

__all__ = ["Variant", "Verification", "check_variants", "verify"]

Report = Callable[[str], None] | None
"""Called with the name of each step when it begins, if given."""
Run = Callable[[Case], tuple[NDArray[np.float32] | None, NDArray[np.uint8]]]
"""Runs one case. Returns the output, sH×sW×3 at full range 1 (None if it has only 8 bits), and the 8-bit picture."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One engine × precision × graph, and its distance from the torch model."""

    precision: str
    engine: str
    graph: str
    """"decoder.onnx" stands for the whole pipeline (encoder → reverse → decoder); "model.onnx" for the single graph."""
    max_abs_err: float | None
    """Largest difference over all cases, at full range 1 (infinite for NaN; `to_dict` gives None).

    A single graph answers in uint8; for it, only the part beyond rounding to the nearest level counts. int8 is compared with
    the fake-quantized torch model's 8-bit picture.
    """
    psnr_drop_db: float | None
    """Mean PSNR-Y of the torch model minus that of this variant, over the proof's pictures; negative is a gain."""
    sizes: tuple[tuple[int, int], ...]
    """LR sizes of the cases, height and width."""
    passed: bool | None
    """None if this machine cannot run the variant; `skipped` then gives the reason."""
    skipped: str | None = None
    equals_model: bool | None = None
    """int8: whether it equals the fake-quantized torch model and the other variants. The drop does not count here."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form in manifests and under `--json`."""
        values = dataclasses.asdict(self) | {"sizes": [list(size) for size in self.sizes]}
        for name in ("max_abs_err", "psnr_drop_db"):  # JSON has no infinity
            if values[name] is not None and not math.isfinite(values[name]):
                values[name] = None
        return {k: v for k, v in values.items() if v is not None or k not in ("skipped", "equals_model")}


@dataclasses.dataclass(frozen=True)
class Verification:
    """The whole result of `verify`."""

    bundle: Bundle
    variants: tuple[Variant, ...]

    @property
    def passed(self) -> bool:
        """Whether at least one variant ran on this machine, and all that ran passed."""
        verdicts = [v.passed for v in self.variants if v.passed is not None]
        return bool(verdicts) and all(verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form under `--json`."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "arch": manifest.arch,
            "scale": manifest.scale,
            "params": manifest.params,
            "weights": manifest.weights,
            "steps": pipeline_kind(manifest).steps(manifest),
            "variants": [v.to_dict() for v in self.variants],
            "fusion": dict(manifest.fusion),
            "passed": self.passed,
        }


class _Tally:
    """Collects the results of one variant over the cases, and judges them."""

    def __init__(self, proof: Proof) -> None:
        self.proof = proof
        self.cases: Sequence[Case] = [case for case in proof.cases if case.dataset == OWN]
        self.worst = 0.0
        self.drops: list[float] = []

    def add(self, case: Case, output: NDArray[np.float32] | None, picture: NDArray[np.uint8]) -> None:
        """Add the results of a `Run`."""
        if output is None:
            off = np.abs(case.pick(picture).astype(np.float32) / np.float32(255) - np.clip(case.expected, 0, 1))
            error = np.maximum(off - np.float32(0.5 / 255), 0)  # rounding to the nearest level explains the rest
        else:
            error = np.abs(case.pick(output) - case.expected)
        self.worst = max(self.worst, math.inf if np.isnan(error).any() else float(error.max()))
        if case.hr is not None and case.psnr_y is not None:
            self.drops.append(psnr_drop(case.psnr_y, _quality(picture, case)))

    @property
    def drop(self) -> float | None:
        return float(np.mean(self.drops)) if self.drops else None

    def passed(self, precision: str) -> bool:
        limits = self.proof.tolerances
        if precision == "fp32":
            return self.worst <= limits.fp32_max_abs_err
        return self.worst <= limits.bf16_max_abs_err and self.drop is not None and self.drop <= limits.bf16_psnr_drop_db


class _Int8Tally(_Tally):
    """Compares int8 with the fake-quantized torch model byte by byte. The drop is measured against the float model."""

    def __init__(self, proof: Proof) -> None:
        super().__init__(proof)
        self.cases = proof.cases
        self.judging = {case.name for case in proof.judging}
        self.bytes = self.off = 0
        self.differences: list[float] = []
        self.pictures: list[NDArray[np.uint8]] = []

    def add(self, case: Case, output: NDArray[np.float32] | None, picture: NDArray[np.uint8]) -> None:
        if case.expected_int8 is None:
            raise BundleError(f"the proof has no int8 output for {case.name}")
        levels = np.abs(case.pick(picture).astype(np.int16) - case.expected_int8)
        self.bytes += levels.size
        self.off += int((levels > 1).sum())
        self.worst = max(self.worst, float(levels.max()) / 255)
        self.pictures.append(picture)
        if case.hr is None:
            return
        quality = _quality(picture, case)
        if case.psnr_y_int8 is not None:
            self.differences.append(psnr_drop(case.psnr_y_int8, quality))
        if case.psnr_y is not None and case.name in self.judging:
            self.drops.append(psnr_drop(case.psnr_y, quality))

    def equals_model(self) -> bool:
        """Whether bytes and PSNR equal those of the fake-quantized model, within the tolerances."""
        limits = self.proof.tolerances
        alike = bool(self.differences) and abs(float(np.mean(self.differences))) <= limits.int8_psnr_diff_db
        return alike and self.off <= limits.int8_bytes_off * self.bytes

    def equals(self, other: _Int8Tally) -> bool:
        """Whether bytes and PSNR equal those of another variant, within the tolerances."""
        limits = self.proof.tolerances
        pairs = list(zip(self.pictures, other.pictures, strict=True))
        off = sum(int((np.abs(a.astype(np.int16) - b) > 1).sum()) for a, b in pairs)
        apart = abs(float(np.mean(self.differences)) - float(np.mean(other.differences)))
        return off <= limits.int8_bytes_off * sum(a.size for a, _ in pairs) and apart <= limits.int8_psnr_diff_db


def _quality(picture: NDArray[np.uint8], case: Case) -> float:
    assert case.hr is not None
    return psnr_y(picture, case.hr, case.hr.shape[0] // case.size[0])


def check_variants(
    bundle: Bundle, proof: Proof, precisions: Sequence[Precision], *, threads: int | None = None, progress: Report = None
) -> tuple[Variant, ...]:
    """Run every engine × precision × graph of the bundle over the proof's cases. Raises `BundleError` and `EngineError`."""
    threads = threads or cpu.available_threads()
    rows = []
    for precision in precisions:
        decoder = bundle.manifest.graph("decoder", precision)
        if decoder is None:
            raise BundleError(f"the bundle {bundle.path} has no {precision} decoder, but its variants name one")
        first: _Int8Tally | None = None
        for backend in BACKENDS:
            if precision not in supported_precisions(backend):
                continue
            if progress:
                progress(f"{backend} {precision}")
            if precision == "bf16" and not cpu.has_bf16():
                rows.append(Variant(precision, backend, decoder, None, None, (), None, "this CPU has no bf16"))
                continue
            for name, run in _runs(bundle, backend, precision, threads, proof.seed):
                tally = (_Int8Tally if precision == "int8" else _Tally)(proof)
                for case in tally.cases:
                    tally.add(case, *run(case))
                equal = None
                if isinstance(tally, _Int8Tally):
                    first = first or tally  # the other int8 variants have to equal the first, too
                    equal = tally.equals_model() and tally.equals(first)
                passed = tally.passed(precision) if equal is None else equal and proof.int8_gate_met
                sizes = tuple(case.size for case in tally.cases if case.dataset == OWN)
                rows.append(Variant(precision, backend, name, tally.worst, tally.drop, sizes, passed, equals_model=equal))
    return tuple(rows)


def _runs(bundle: Bundle, backend: Backend, precision: Precision, threads: int, seed: int) -> Iterator[tuple[str, Run]]:
    """Each graph's file name with its `Run`: the decoder's stands for the whole pipeline, then come the single graphs."""
    manifest = bundle.manifest
    yield str(manifest.graph("decoder", precision)), _chain(bundle, backend, precision, threads, seed)
    for role in ("model", "model_ir") if backend == "openvino" else ("model",):
        if (name := manifest.graph(role, precision)) is not None:
            graph = bundle.graph(manifest.role(role, precision))
            weights = bundle.read(str(manifest.graph("model_ir_weights", precision))) if role == "model_ir" else None
            session = load_session(graph, backend=backend, precision=precision, threads=threads, weights=weights)
            yield name, _single(bundle, session)


def _chain(bundle: Bundle, backend: Backend, precision: Precision, threads: int, seed: int) -> Run:
    """The pipeline of the bundle's process kind."""
    pipeline = load_pipeline(bundle, backend=backend, precision=precision, threads=threads, seed=seed)

    def run(case: Case) -> tuple[NDArray[np.float32] | None, NDArray[np.uint8]]:
        if precision == "int8":
            return None, pipeline.picture(case.lr)
        output = pipeline.run(case.lr)
        return output[0].transpose(1, 2, 0), from_graph(output, case.lr)

    return run


def _single(bundle: Bundle, session: Session) -> Run:
    """The whole network as one graph, uint8 in and out."""

    def run(case: Case) -> tuple[None, NDArray[np.uint8]]:
        (picture,) = session.run({"image": case.lr[None]})
        if picture.dtype != np.uint8 or picture.shape != (1, *case.size_out(bundle.manifest.scale), 3):
            raise BundleError(f"a single graph of {bundle.path} gives {picture.dtype} {picture.shape}")
        return None, picture[0]

    return run


def verify(bundle: Bundle, *, threads: int | None = None, progress: Report = None) -> Verification:
    """Check every file of the bundle and run its proof again. Raises `BundleError` for a damaged bundle."""
    if progress:
        progress("checksums")
    bundle.check()
    recorded = {str(row["precision"]) for row in bundle.manifest.variants}
    precisions = [p for p in PRECISIONS if p in recorded]  # also those that failed at export
    proof = Proof.of_bundle(bundle)
    return Verification(bundle, check_variants(bundle, proof, precisions, threads=threads, progress=progress))
