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


@dataclasses.dataclass(frozen=True)
class Variant:
    """One engine × precision × graph and how far it is from the torch model."""

    precision: str
    engine: str
    graph: str
    """"decoder.onnx" stands for the chain encoder → reverse → decoder; "model.onnx"/"model.xml" for the single graph."""
    max_abs_err: float | None
    """Largest difference over all cases, of full range 1 (infinite for NaN; `to_dict` gives None).

    For a single graph, which answers in uint8, what rounding to the nearest level does not explain.
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
    graphs = bundle.manifest.graphs
    if "model" in graphs:
        yield graphs["model"], load_session(bundle.graph("model"), backend=backend, precision=precision, threads=threads)
    if backend == "openvino" and "model_ir" in graphs:
        xml, weights = bundle.graph("model_ir"), bundle.read(graphs["model_ir_weights"])
        yield (
            graphs["model_ir"],
            load_session(xml, backend=backend, precision=precision, threads=threads, weights=weights),
        )


def _measure(
    run: Callable[[Case], tuple[NDArray[np.float32], NDArray[np.uint8]]], proof: Proof, eight_bit: bool
) -> tuple[float, float | None]:
    """Largest error and PSNR drop of `run`, which gives the output on a scale of 1 and as an 8-bit picture."""
    worst = 0.0
    drops = []
    for case in proof.cases:
        output, picture = run(case)
        expected = case.expected
        if eight_bit:
            error = np.maximum(np.abs(case.pick(output) - np.clip(expected, 0, 1)) - np.float32(0.5 / 255), 0)
        else:
            error = np.abs(case.pick(output) - expected)
        worst = max(worst, math.inf if np.isnan(error).any() else float(error.max()))
        if case.hr is not None and case.psnr_y is not None:
            drops.append(case.psnr_y - psnr_y(picture, case.hr, case.hr.shape[0] // case.size[0]))
    return worst, float(np.mean(drops)) if drops else None


def _verdict(precision: str, worst: float, drop: float | None, proof: Proof) -> bool:
    limits = proof.tolerances
    if precision == "fp32":
        return worst <= limits.fp32_max_abs_err
    return worst <= limits.bf16_max_abs_err and drop is not None and drop <= limits.bf16_psnr_drop_db


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
    sizes = tuple(case.size for case in proof.cases)
    rows = []
    for precision in precisions:
        for backend in BACKENDS:
            if precision not in supported_precisions(backend):
                continue
            if progress:
                progress(f"{backend} {precision}")
            decoder = bundle.manifest.graphs["decoder"]
            if precision == "bf16" and not cpu.has_bf16():
                rows.append(Variant(precision, backend, decoder, None, None, (), None, "this CPU has no bf16"))
                continue
            pipeline = Pipeline(bundle, backend=backend, precision=precision, threads=threads, seed=proof.seed)

            def chain(case: Case, pipeline: Pipeline = pipeline) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
                output = pipeline.run(to_graph(case.lr))
                return output[0].transpose(1, 2, 0), from_graph(output, case.lr)

            worst, drop = _measure(chain, proof, eight_bit=False)
            passed = _verdict(precision, worst, drop, proof)
            rows.append(Variant(precision, backend, decoder, worst, drop, sizes, passed))
            for name, session in _single_graphs(bundle, backend, precision, threads):

                def single(case: Case, session: Session = session) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
                    (picture,) = session.run({"image": case.lr[None]})
                    if picture.dtype != np.uint8 or picture.shape != (1, *case.size_out(bundle.manifest.scale), 3):
                        raise BundleError(f"a single graph of {bundle.path} gives {picture.dtype} {picture.shape}")
                    return picture[0].astype(np.float32) / np.float32(255), picture[0]

                worst, drop = _measure(single, proof, eight_bit=True)
                passed = _verdict(precision, worst, drop, proof)
                rows.append(Variant(precision, backend, name, worst, drop, sizes, passed))
    return tuple(rows)


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
