"""Re-prove a bundle on this machine: every engine × precision × graph against the torch model's recorded outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import cpu
from .arrays import from_graph, to_graph
from .bundle import Bundle
from .engines import BACKENDS, PRECISIONS, Backend, Precision, Session, load_session, supported_precisions
from .errors import BundleError
from .metrics import psnr_y
from .pipeline import Pipeline
from .proof import Case, Proof

__all__ = ["Variant", "Verification", "check_variants", "verify"]

Progress = Callable[[str], None]
Run = Callable[[Case], tuple[NDArray[np.float32] | None, NDArray[np.uint8]]]
"""One case → the output sH×sW×3 on a scale of 1 where there is more than 8 bits of it, and the 8-bit picture."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One engine × precision × graph and how far it is from the torch model."""

    precision: str
    engine: str
    graph: str
    """"decoder.onnx" stands for the chain encoder → reverse → decoder; "model.onnx"/"model.xml" for the single graph."""
    max_abs_err: float | None
    """Largest difference over all cases, of full range 1 (infinite for NaN; `to_dict` gives None).

    For a single graph, which answers in uint8, what rounding to the nearest level does not explain. In int8 the difference
    from the fake-quantized torch model's 8-bit picture.
    """
    psnr_drop_db: float | None
    """Mean PSNR-Y of the torch model minus that of this variant, over the proof's pictures; negative is a gain."""
    sizes: tuple[tuple[int, int], ...]
    """LR sizes checked, height and width."""
    passed: bool | None
    """None where this machine cannot run the variant; `skipped` says why."""
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in manifests and `--json`."""
        values = dataclasses.asdict(self) | {"sizes": [list(size) for size in self.sizes]}
        for name in ("max_abs_err", "psnr_drop_db"):  # JSON has no infinity
            if values[name] is not None and not math.isfinite(values[name]):
                values[name] = None
        return values if self.skipped else {k: v for k, v in values.items() if k != "skipped"}


@dataclasses.dataclass(frozen=True)
class Verification:
    """The whole result of `verify`."""

    bundle: Bundle
    variants: tuple[Variant, ...]

    @property
    def passed(self) -> bool:
        """Whether everything that this machine can run passed, and something did."""
        verdicts = [v.passed for v in self.variants if v.passed is not None]
        return bool(verdicts) and all(verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The design's JSON form."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.path),
            "arch": manifest.arch,
            "scale": manifest.scale,
            "params": manifest.params,
            "steps": manifest.steps,
            "variants": [v.to_dict() for v in self.variants],
            "fusion": dict(manifest.fusion),
            "passed": self.passed,
        }


def _single_graphs(bundle: Bundle, backend: Backend, precision: Precision, threads: int) -> Iterator[tuple[str, Session]]:
    manifest = bundle.manifest
    if (name := manifest.graph("model", precision)) is not None:
        graph = bundle.graph(manifest.role("model", precision))
        yield name, load_session(graph, backend=backend, precision=precision, threads=threads)
    if backend == "openvino" and (name := manifest.graph("model_ir", precision)) is not None:
        xml = bundle.graph(manifest.role("model_ir", precision))
        weights = bundle.read(str(manifest.graph("model_ir_weights", precision)))
        yield name, load_session(xml, backend=backend, precision=precision, threads=threads, weights=weights)


class _Tally:
    """What one variant does over all cases, and whether that is good enough."""

    def __init__(self, proof: Proof) -> None:
        self.proof = proof
        self.worst = 0.0
        self.drops: list[float] = []

    def add(self, case: Case, output: NDArray[np.float32] | None, picture: NDArray[np.uint8]) -> None:
        """`output` sH×sW×3 on a scale of 1, where the variant gives more than the 8-bit `picture`."""
        if output is None:
            off = np.abs(case.pick(picture).astype(np.float32) / np.float32(255) - np.clip(case.expected, 0, 1))
            error = np.maximum(off - np.float32(0.5 / 255), 0)  # what rounding to the nearest level explains
        else:
            error = np.abs(case.pick(output) - case.expected)
        self._add(case, error, picture, case.psnr_y)

    def _add(self, case: Case, error: NDArray[np.float32], picture: NDArray[np.uint8], psnr: float | None) -> None:
        self.worst = max(self.worst, math.inf if np.isnan(error).any() else float(error.max()))
        if case.hr is not None and psnr is not None:
            self.drops.append(psnr - psnr_y(picture, case.hr, case.hr.shape[0] // case.size[0]))

    @property
    def drop(self) -> float | None:
        return float(np.mean(self.drops)) if self.drops else None

    def passed(self, precision: str) -> bool:
        limits = self.proof.tolerances
        if precision == "fp32":
            return self.worst <= limits.fp32_max_abs_err
        return self.worst <= limits.bf16_max_abs_err and self.drop is not None and self.drop <= limits.bf16_psnr_drop_db


class _Int8Tally(_Tally):
    """int8 is compared with the fake-quantized torch model, byte by byte; the drop is against the float one."""

    def __init__(self, proof: Proof) -> None:
        super().__init__(proof)
        self.bytes = self.off = 0
        self.differences: list[float] = []

    def add(self, case: Case, output: NDArray[np.float32] | None, picture: NDArray[np.uint8]) -> None:
        if case.expected_int8 is None:
            raise BundleError(f"the proof says nothing of int8 for {case.name}")
        levels = np.abs(case.pick(picture).astype(np.int16) - case.expected_int8)
        self.bytes += levels.size
        self.off += int((levels > 1).sum())
        self._add(case, levels.astype(np.float32) / np.float32(255), picture, case.psnr_y)
        if case.hr is not None and case.psnr_y is not None and case.psnr_y_int8 is not None:
            self.differences.append(self.drops[-1] - (case.psnr_y - case.psnr_y_int8))

    def passed(self, precision: str) -> bool:
        limits = self.proof.tolerances
        equal = self.off <= limits.int8_bytes_off * self.bytes
        alike = bool(self.differences) and abs(float(np.mean(self.differences))) <= limits.int8_psnr_diff_db
        return equal and alike and self.proof.int8_gate_met


def check_variants(
    bundle: Bundle,
    proof: Proof,
    precisions: Sequence[Precision],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Variant, ...]:
    """Run every engine × precision × graph of the bundle over the proof's cases."""
    threads = threads or cpu.available_threads()
    rows = []
    for precision in precisions:
        decoder = bundle.manifest.graph("decoder", precision)
        if decoder is None:
            raise BundleError(f"the bundle {bundle.path} has no {precision} decoder, but its variants name one")
        for backend in BACKENDS:
            if precision not in supported_precisions(backend):
                continue
            if progress:
                progress(f"{backend} {precision}")
            if precision == "bf16" and not cpu.has_bf16():
                rows.append(Variant(precision, backend, decoder, None, None, (), None, "this CPU has no bf16"))
                continue
            runs = {decoder: _chain(bundle, backend, precision, threads, proof.seed)}
            runs |= {name: _single(bundle, s) for name, s in _single_graphs(bundle, backend, precision, threads)}
            rows += [_row(run, name, backend, precision, proof) for name, run in runs.items()]
    return tuple(rows)


def _chain(bundle: Bundle, backend: Backend, precision: Precision, threads: int, seed: int) -> Run:
    """Encoder, reverse process and decoder, one after the other."""
    pipeline = Pipeline(bundle, backend=backend, precision=precision, threads=threads, seed=seed)

    def run(case: Case) -> tuple[NDArray[np.float32] | None, NDArray[np.uint8]]:
        if precision == "int8":
            return None, pipeline.picture(case.lr)
        output = pipeline.run(to_graph(case.lr))
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


def _row(run: Run, graph: str, backend: Backend, precision: Precision, proof: Proof) -> Variant:
    tally = (_Int8Tally if precision == "int8" else _Tally)(proof)
    for case in proof.cases:
        tally.add(case, *run(case))
    sizes = tuple(case.size for case in proof.cases)
    return Variant(precision, backend, graph, tally.worst, tally.drop, sizes, tally.passed(precision))


def verify(bundle: Bundle, *, threads: int | None = None, progress: Progress | None = None) -> Verification:
    """Check every file of the bundle and re-run its proof. Raises `BundleError` for a damaged bundle."""
    if progress:
        progress("checksums")
    bundle.check()
    recorded = {str(row["precision"]) for row in bundle.manifest.variants}
    precisions = [p for p in PRECISIONS if p in recorded]  # also those that failed when they were exported
    return Verification(
        bundle, check_variants(bundle, Proof.of_bundle(bundle), precisions, threads=threads, progress=progress)
    )
