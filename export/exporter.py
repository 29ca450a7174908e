"""The export itself: load, fuse, trace, simplify, account, prove, write."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.interface import FusionErrors
from ..models.registry import LoadedModel, load_model
from ..runtime.bundle import SCHEMA, Bundle, canonical_json, manifest_digest
from ..runtime.bundle.proof import Proof
from ..runtime.engines import Precision
from ..runtime.host import cpu
from ..runtime.verify import Verification, check_variants
from .errors import ExportError, ProofError
from .graphs import GraphKind, graph_kind
from .graphs.graph_set import GraphSet
from .graphs.ir import to_ir
from .graphs.plain_body import check_plain_body
from .int8.calibration import CalibrationPicture, read_calibration
from .int8.make import drop_by_dataset, make_int8, measure_time
from .int8.post_training import Quantized
from .proof import build_proof, with_int8
from .staging import check_target, publish, staging_folder

__all__ = ["SUPPORTED", "ExportOptions", "ExportResult", "export_checkpoint"]

SUPPORTED: tuple[Precision, ...] = ("fp32", "bf16", "int8")
"""Precisions that exports make."""
MAX_FUSION_ERROR = 1e-5
MAX_FUSION_ERROR_FLOAT64 = 1e-12
_TOOLS = ("torch", "onnx", "onnxsim", "openvino", "onnxruntime", "numpy")
Progress = Callable[[str], None]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export and how. Checked by `export_checkpoint`."""

    checkpoint: Path
    """safetensors or PyTorch file."""
    output: Path
    """Bundle folder to write."""
    precisions: tuple[str, ...] | None = None
    """Subset of `SUPPORTED`; None for all that this CPU can prove (bf16 is left out where it fails)."""
    arch: str | None = None
    """Architecture, where the keys shall not decide."""
    calibration: Path | None = None
    """Folder of pictures for int8: a data set, or plain pictures; None for what the checkpoint or the package has."""
    max_psnr_drop: float = 0.05
    """What int8 may cost against float32, in dB PSNR-Y."""
    post_training: bool = False
    """Quantize the float network anew even where training has left a quantized one in the checkpoint."""
    key_map: Path | None = None
    """JSON file that renames foreign keys."""
    steps: int | None = None
    """T, where the checkpoint's metadata does not say or shall be overridden."""
    seed: int = 0
    """Of the noise that is baked into the single graph, 0 … 2³²−1."""
    single_graph: bool = True
    """Whether to write model.onnx and its OpenVINO IR."""
    force: bool = False
    """Replace an existing bundle."""
    keep_failed: bool = False
    """Write a result that failed its proof to OUTPUT.failed."""


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What was written and how it was proven."""

    verification: Verification
    output: Path
    """Where the bundle is (OUTPUT.failed for a kept failure), even where nothing was kept."""
    kept: bool
    """Whether `output` was written."""
    seconds: float
    unsimplified: tuple[str, ...]
    """Graphs whose simplification was not safe."""
    quantization: dict[str, Any] | None = None
    """Report on int8: where its ranges come from, remedies, layers, drop on every set of pictures, time against float32."""
    only_gate_failed: bool = False
    """Whether all that is wrong is that int8 costs more than `max_psnr_drop`."""

    @property
    def passed(self) -> bool:
        """Whether every variant passed its proof."""
        return self.verification.passed

    def to_dict(self) -> dict[str, Any]:
        """The design's JSON form."""
        return (
            self.verification.to_dict()
            | {
                "bundle": str(self.output) if self.kept else None,
                "seconds": round(self.seconds, 2),
                "unsimplified": list(self.unsimplified),
            }
            | ({} if self.quantization is None else {"quantization": self.quantization})
        )


def _precisions(asked: Sequence[str] | None) -> tuple[Precision, ...]:
    if asked is None:
        return tuple(p for p in SUPPORTED if p != "bf16" or cpu.has_bf16())
    if unknown := [p for p in asked if p not in SUPPORTED]:
        raise ExportError(f"precision {unknown[0]!r} is not supported; choose from {', '.join(SUPPORTED)}")
    if not asked:
        raise ExportError(f"no precision was asked for; choose from {', '.join(SUPPORTED)}")
    if "bf16" in asked and not cpu.has_bf16():
        raise ExportError("bf16 cannot be proven here: this CPU has no bf16 arithmetic")
    return tuple(p for p in SUPPORTED if p in asked)


@torch.no_grad()
def _fusion(kind: GraphKind[Any]) -> dict[str, Any]:
    lr = torch.rand(1, 3, 33, 29, generator=torch.Generator().manual_seed(0))
    errors: FusionErrors = kind.network.fusion_errors(lr, *kind.condition(lr))
    if not (errors.max_abs_err <= MAX_FUSION_ERROR and errors.max_rel_err_float64 <= MAX_FUSION_ERROR_FLOAT64):  # or NaN
        raise ProofError(
            f"the fused decoder differs from the multi-branch one by {errors.max_abs_err:.2e} in float32 "
            f"and {errors.max_rel_err_float64:.2e} (relative) in float64"
        )
    return dataclasses.asdict(errors)


_IR_ROLES = {".onnx": "", ".xml": "_ir", ".bin": "_ir_weights"}


def _role(name: str) -> str | None:
    """Role of a bundle's file: "decoder.int8.onnx" → "decoder_int8", "model.bin" → "model_ir_weights"; None for no graph."""
    path = Path(name)
    return None if path.suffix not in _IR_ROLES else path.stem.replace(".", "_") + _IR_ROLES[path.suffix]


def _manifest(
    loaded: LoadedModel,
    kind: GraphKind[Any],
    files: Mapping[str, bytes],
    fusion: Mapping[str, Any],
    quantization: Mapping[str, Any],
) -> dict[str, Any]:
    network = loaded.network
    return {
        "schema": SCHEMA,
        "arch": loaded.arch,
        "network": loaded.config.to_dict(),
        "scale": network.scale,
        "params": network.inference_parameters(),
        "process": {"kind": kind.name, **kind.section},
        "receptive_radius": network.receptive_radius,
        "peak_channels": network.peak_channels,
        "tile_rule": network.tile_rule,
        "colour": "RGB",
        "value_range": [0.0, 1.0],
        "seed": kind.seed,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
        },
        "graphs": {role: name for name in files if (role := _role(name)) is not None},
        "variants": [],
        "fusion": dict(fusion),
        "quantization": dict(quantization),
        "checkpoint": {"sha256": loaded.sha256, "notes": loaded.notes},
        "tools": {tool: importlib.metadata.version(tool) for tool in (*_TOOLS, "rdsr")},
        "cpu": {"name": cpu.cpu_name(), "isa": cpu.instruction_set()},
    }


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    content = content | {"digest": manifest_digest(content)}
    (folder / "manifest.json").write_bytes(canonical_json(content))


def _prove(
    folder: Path,
    manifest: dict[str, Any],
    proof: Proof,
    precisions: Sequence[Precision],
    progress: Progress,
    *,
    asked: bool,
) -> Verification:
    """Run the staged bundle against the torch model's whole outputs, then write the rows into its manifest.

    Where nobody `asked` for bf16, which has no graphs of its own, and it fails, the bundle does without it.
    """
    _write_manifest(folder, manifest)
    rows = check_variants(Bundle(folder), proof, precisions, progress=lambda what: progress(f"prove {what}"))
    failed = next((row for row in rows if row.precision == "bf16" and row.passed is False), None)
    if failed is not None and not asked:
        logger.warning(
            "bf16 is left out: %s on %s is up to %.3f of full range off and loses %.4f dB",
            failed.graph,
            failed.engine,
            math.inf if failed.max_abs_err is None else failed.max_abs_err,
            math.inf if failed.psnr_drop_db is None else failed.psnr_drop_db,
        )
        rows = tuple(row for row in rows if row.precision != "bf16")
    _write_manifest(folder, manifest | {"variants": [row.to_dict() for row in rows]})
    return Verification(Bundle(folder), rows)


def _quantize(
    kind: GraphKind[Any],
    proof: Proof,
    calibration: Sequence[CalibrationPicture],
    options: ExportOptions,
    progress: Progress,
) -> tuple[Quantized, Proof]:
    """The quantized decoder, and the proof with its output for every case."""
    quantized = make_int8(
        kind,
        proof,
        calibration,
        post_training=options.post_training,
        max_drop=options.max_psnr_drop,
        progress=progress,
    )
    drop = quantized.psnr_drop_db
    return quantized, with_int8(proof, kind, quantized.form, drop=drop, max_drop=options.max_psnr_drop)


def export_checkpoint(options: ExportOptions, progress: Progress = lambda step: None) -> ExportResult:
    """Turn a checkpoint into a proven bundle; `progress` is told each step's name.

    Raises `CheckpointError`, `ExportError` (`OutputExistsError`, `ProofError`); nothing is left behind then.
    A variant that fails its proof raises nothing: the result says `passed` false and the output is not written
    (or written to OUTPUT.failed under `keep_failed`).
    """
    started = time.perf_counter()
    check_target(options.output, force=options.force)
    failed_output = options.output.with_name(options.output.name + ".failed")
    if options.keep_failed:
        check_target(failed_output, force=True)
    precisions = _precisions(options.precisions)
    if not 0 <= options.seed < 2**32:
        raise ExportError(f"seed must be from 0 to 4294967295, not {options.seed}")
    if "int8" not in precisions and (options.calibration or options.post_training):
        raise ExportError("calibration and post-training are for int8, which was not asked for")
    if not 0 <= options.max_psnr_drop < math.inf:
        raise ExportError(f"the largest PSNR drop must be a number of dB from 0, not {options.max_psnr_drop}")
    progress("read the checkpoint")
    loaded = load_model(options.checkpoint, arch=options.arch, key_map=options.key_map, steps=options.steps)
    kind = graph_kind(loaded.network, options.seed)
    calibration = read_calibration(options.calibration, loaded.network.scale) if options.calibration else []
    progress("fuse")
    fusion = _fusion(kind)
    graphs = GraphSet(kind, single_graph=options.single_graph, progress=progress)
    if (body := loaded.network.plain_body) is not None:
        check_plain_body(graphs.models["decoder.onnx"], body.depth, body.modulated)
    progress("run the torch model")
    judging = [picture for picture in calibration if picture.held_back]
    proof = build_proof(kind, judging, random_weights=loaded.random)
    quantized = None
    if "int8" in precisions:
        quantized, proof = _quantize(kind, proof, calibration, options, progress)
        graphs.add_int8(quantized.form)
    files = {name: model.SerializeToString(deterministic=True) for name, model in graphs.models.items()}
    files |= proof.to_files()
    report = {} if quantized is None else quantized.to_dict() | {"datasets": drop_by_dataset(proof)}
    with staging_folder(options.output) as folder:
        for stem in ("model", "model.int8"):
            if f"{stem}.onnx" in files:
                progress("convert to OpenVINO IR")
                files |= to_ir(files[f"{stem}.onnx"], folder, stem)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if quantized is not None:
            progress("look at what the engines run")
            for name in sorted(name for name in files if name.endswith(".int8.onnx")):
                quantized.form.check_execution(files[name])
        manifest = _manifest(loaded, kind, files, fusion, report)
        verification = _prove(folder, manifest, proof, precisions, progress, asked=options.precisions is not None)
        if quantized is not None:
            progress("time int8 against float32")
            report |= {"times": [dataclasses.asdict(row) for row in measure_time(folder)]}
        output = options.output if verification.passed else failed_output
        kept = verification.passed or options.keep_failed
        if kept:
            progress("write")
            publish(folder, output, force=options.force or not verification.passed)
    return ExportResult(
        verification,
        output,
        kept,
        time.perf_counter() - started,
        tuple(graphs.unsimplified),
        report or None,
        not proof.int8_gate_met and all(row.equals_model or row.passed is not False for row in verification.variants),
    )
