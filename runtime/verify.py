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
from .choice.graph_times import remember_times
from .claims import check_claims, check_tiles, lie
from .engines import BACKENDS, PRECISIONS, Backend, Precision, Session, load_session, supported_precisions
from .errors import BundleError, EngineError, RdsrError
from .host import cpu
from .metrics import psnr_drop, psnr_y
from .pictures.arrays import from_graph
from .pipelines import Pipeline, load_pipeline, pipeline_kind
from .trial import child_memory, child_seconds, raise_from_child, remember_passed
from .trial_child import as_outcome, open_same

__all__ = ["Variant", "Verification", "check_variants", "verify"]

Report = Callable[[str], None] | None
"""Called with the name of each step when it begins, if given."""
_DROP = 0.02
"""dB by which a drop may differ on another machine: engines may differ from the torch model by half of that."""
_MOST_OFF = 0.1
"""Share of the bytes of one picture that may be off by more than a level."""
_MOST_FROM_FLOAT = 0.1
"""Mean difference of a picture from the float model, of full range, up to which its quality counts; beyond it is wrong."""
_DROP_ELSEWHERE = 0.25
"""dB by which a drop on pictures that the bundle does not carry may be lower than on those that it does, and by which drops
differ where engines give other pictures (`int8_equals_model`)."""
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

    def spare_trials(self) -> None:
        """Remember what passed, so that the pipelines need no trial on this machine."""
        for row in self.variants:
            if row.passed and row.graph == self.bundle.manifest.graph("decoder", row.precision):
                remember_passed(self.bundle.manifest, row.engine, row.precision)  # type: ignore[arg-type]

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
        self.wrong = False
        """Whether a picture is wrong as a whole: a small one would disappear among the others."""
        self.drops: list[float] = []

    def add(self, case: Case, output: NDArray[np.float32] | None, picture: NDArray[np.uint8]) -> None:
        """Add the results of a `Run`."""
        if output is None:
            off = np.abs(case.pick(picture).astype(np.float32) / np.float32(255) - np.clip(case.expected, 0, 1))
            error = np.maximum(off - np.float32(0.5 / 255), 0)  # rounding to the nearest level explains the rest
        else:
            error = np.abs(case.pick(output) - case.expected)
        self.worst = max(self.worst, math.inf if np.isnan(error).any() else float(error.max()))
        self.wrong = self.wrong or not float(error.mean()) <= _MOST_FROM_FLOAT
        if case.hr is not None and case.psnr_y is not None:
            self.drops.append(psnr_drop(case.psnr_y, _quality(picture, case)))

    @property
    def drop(self) -> float | None:
        return float(np.mean(self.drops)) if self.drops else None

    def passed(self, precision: str) -> bool:
        limits = self.proof.tolerances
        if precision == "fp32":
            return self.worst <= limits.fp32_max_abs_err
        allowed = self.proof.bf16_max_drop_db
        plainly_wrong = self.worst > limits.bf16_max_abs_err if allowed is None else self.wrong
        most = limits.bf16_psnr_drop_db if allowed is None else allowed
        return not plainly_wrong and self.drop is not None and self.drop <= most


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
        off = int((levels > 1).sum())
        self.bytes += levels.size
        self.off += off
        self.wrong = self.wrong or off > _MOST_OFF * levels.size
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
        return alike and not self.wrong and self.off <= limits.int8_bytes_off * self.bytes

    def equals(self, other: _Int8Tally) -> bool:
        """Whether bytes and PSNR equal those of another variant, within the tolerances."""
        limits = self.proof.tolerances
        pairs = list(zip(self.pictures, other.pictures, strict=True))
        off = sum(int((np.abs(a.astype(np.int16) - b) > 1).sum()) for a, b in pairs)
        apart = abs(float(np.mean(self.differences)) - float(np.mean(other.differences)))
        return off <= limits.int8_bytes_off * sum(a.size for a, _ in pairs) and apart <= limits.int8_psnr_diff_db


class _Int8QualityTally(_Tally):
    """Compares int8 with the float model, where engines that round differently give another picture, an equally good one."""

    def passed(self, precision: str) -> bool:
        """Whether no picture is wrong, and this engine's drop is within the limit, too."""
        del precision
        most = self.proof.int8_max_drop_db
        return not self.wrong and most is not None and self.drop is not None and self.drop <= most


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
                progress(f"{backend} {precision}")  # loading it is a step of its own
            if precision == "bf16" and not cpu.has_bf16():
                rows.append(Variant(precision, backend, decoder, None, None, (), None, "this CPU has no bf16"))
                continue
            for name, run, pipeline in _runs(bundle, backend, precision, threads, proof.seed):
                if progress:
                    progress(f"{backend} {precision}, {name}")
                by_quality = not pipeline_kind(bundle.manifest).int8_equals_model
                of_int8 = _Int8QualityTally if by_quality else _Int8Tally
                tally = (of_int8 if precision == "int8" else _Tally)(proof)
                for case in tally.cases:
                    tally.add(case, *run(case))
                if pipeline is not None and precision != "bf16":  # whose kernels may round by the size of a tile
                    check_tiles(bundle, pipeline)
                equal = None
                if isinstance(tally, _Int8Tally):
                    first = first or tally  # the other int8 variants have to equal the first, too
                    equal = tally.equals_model() and tally.equals(first)
                passed = tally.passed(precision) if equal is None else equal and proof.int8_gate_met
                if isinstance(tally, _Int8QualityTally):
                    equal, passed = not tally.wrong, passed and proof.int8_gate_met
                if pipeline is not None and passed:
                    remember_times(bundle.manifest, backend, precision, pipeline.graph_seconds)
                sizes = tuple(case.size for case in tally.cases if case.dataset == OWN)
                rows.append(Variant(precision, backend, name, tally.worst, tally.drop, sizes, passed, equals_model=equal))
    return tuple(rows)


def _runs(
    bundle: Bundle, backend: Backend, precision: Precision, threads: int, seed: int
) -> Iterator[tuple[str, Run, Pipeline | None]]:
    """Each graph's file name with its `Run`: the decoder's stands for the whole pipeline, then come the single graphs."""
    manifest = bundle.manifest
    pipeline = load_pipeline(bundle, backend=backend, precision=precision, threads=threads, seed=seed)
    yield str(manifest.graph("decoder", precision)), _chain(pipeline), pipeline
    del pipeline  # its memory, before the next one is loaded
    for role in ("model", "model_ir") if backend == "openvino" else ("model",):
        if (name := manifest.graph(role, precision)) is not None:
            graph = bundle.graph(manifest.role(role, precision))
            weights = bundle.read(str(manifest.graph("model_ir_weights", precision))) if role == "model_ir" else None
            session = load_session(graph, backend=backend, precision=precision, threads=threads, weights=weights)
            yield name, _single(bundle, session), None


def _chain(pipeline: Pipeline) -> Run:
    """The pipeline of the bundle's process kind."""

    def run(case: Case) -> tuple[NDArray[np.float32] | None, NDArray[np.uint8]]:
        if pipeline.precision == "int8":
            return None, pipeline.prove_int8(case.lr, case.stages)
        output = pipeline.prove(case.lr, case.stages)
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
    """Check every file of the bundle, what its manifest claims about them, and run its proof again, in a child process.

    Raises `BundleError` for a bundle that is damaged, lies, or makes an engine crash, hang or break a limit, and
    `EngineError` if an engine, or the child process, cannot run at all.
    """
    from .host.watched import ChildLostError, Limits, call_watched  # few processes start others

    if progress:
        progress("checksums")
    bundle.check()
    pipeline_kind(bundle.manifest)
    proof = Proof.of_bundle(bundle)
    pixels = sum(case.lr.shape[0] * case.lr.shape[1] for case in proof.cases)
    limits = Limits(child_seconds(bundle.manifest, pixels), child_memory(bundle.manifest, pixels))
    facts = (str(bundle.path.absolute()), bundle.manifest.digest, threads)
    try:
        outcome = call_watched("rdsr.runtime.verify", "verify_here", facts, limits, progress=progress)
    except ChildLostError as error:
        raise BundleError(f"the bundle {bundle.path} is refused: the process that should verify it {error}") from error
    except ChildProcessError as error:
        raise EngineError(f"no process can be started to verify the bundle {bundle.path}: {error}") from error
    raise_from_child(outcome)
    sizes = [tuple((height, width) for height, width in row.pop("sizes")) for row in outcome["variants"]]
    rows = tuple(Variant(**row, sizes=size) for row, size in zip(outcome["variants"], sizes, strict=True))
    _check_drops(bundle, proof, rows)
    verification = Verification(bundle, rows)
    verification.spare_trials()
    return verification


def verify_here(path: str, digest: str, threads: int | None, step: Callable[[str], None]) -> dict[str, Any]:
    """Load engines into this process, a child of `verify`. Returns the variants' fields, or a typed error."""
    try:
        bundle = open_same(path, digest)
        check_claims(bundle, threads=threads or cpu.available_threads(), step=step)
        recorded = {str(row["precision"]) for row in bundle.manifest.variants}
        precisions = [p for p in PRECISIONS if p in recorded]  # also those that failed at export
        rows = check_variants(bundle, Proof.of_bundle(bundle), precisions, threads=threads, progress=step)
    except RdsrError as error:
        return as_outcome(error)
    return {"variants": [dataclasses.asdict(row) for row in rows]}


def _check_drops(bundle: Bundle, proof: Proof, rows: Sequence[Variant]) -> None:
    """Compare the drops that manifest and proof claim with those on the carried pictures. Raises `BundleError`."""
    manifest = bundle.manifest
    if manifest.seed != proof.seed:
        raise lie(bundle, "seed", manifest.seed, proof.seed, "the proof's")
    sets = manifest.quantization.get("datasets", [])
    judges = [entry for entry in sets if isinstance(entry, dict) and entry.get("judges") and entry.get("dataset") != OWN]
    for row in rows:
        if row.psnr_drop_db is None or not row.passed:
            continue
        if row.precision == "fp32" and not abs(row.psnr_drop_db) <= _DROP:
            how = "the PSNR-Y of its pictures in float32 is another one"
            raise lie(bundle, "psnr_y with a drop of", 0, f"{row.psnr_drop_db:+.3f} dB", how)
        below = above = _DROP
        if row.precision == "int8" and not pipeline_kind(manifest).int8_equals_model:
            below = above = _DROP_ELSEWHERE
        if row.precision == "int8" and judges:
            below, above = _DROP_ELSEWHERE, math.inf
        claims = [
            claim["psnr_drop_db"]
            for claim in manifest.variants
            if (claim["precision"], claim["engine"], claim["graph"]) == (row.precision, row.engine, row.graph)
        ]
        if row.precision == "int8":
            claims += [proof.int8_drop_db, manifest.quantization.get("psnr_drop_db")]
        for claimed in (float(claim) for claim in claims if isinstance(claim, (int, float))):
            if not row.psnr_drop_db - below <= claimed <= row.psnr_drop_db + above:
                how = f"dB, {row.precision} on {row.engine}, {row.graph}, on the pictures that it carries"
                raise lie(bundle, "psnr_drop_db", f"{claimed:.4f}", f"{row.psnr_drop_db:.4f}", how)
