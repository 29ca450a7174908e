"""The export from checkpoint to bundle: load, fuse, trace, simplify, account, prove, write."""

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
from ..runtime.arguments import path_of, shown
from ..runtime.bundle import SCHEMA, Bundle, canonical_json, manifest_digest
from ..runtime.bundle.graph import GraphError
from ..runtime.bundle.onnx_wire import read_onnx
from ..runtime.bundle.operators import check_operators
from ..runtime.bundle.proof import Proof
from ..runtime.claims import values_held, weights_held
from ..runtime.engines import Precision
from ..runtime.errors import BundleError
from ..runtime.host import cpu
from ..runtime.verify import Verification, check_variants
from .build_proof import build_proof, with_int8
from .errors import ExportError, ProofError
from .graphs import GraphKind, graph_kind
from .graphs.graph_set import GraphSet
from .graphs.ir import to_ir
from .graphs.metadata import add_metadata
from .graphs.plain_body import check_plain_body
from .int8.calibration import read_calibration
from .int8.make import drop_by_dataset, make_int8, measure_time
from .staging import check_target, publish, remove_leftovers, staging_folder

__all__ = ["MAX_INT8_DROP", "SUPPORTED", "ExportOptions", "ExportResult", "export_checkpoint"]

SUPPORTED: tuple[Precision, ...] = ("fp32", "bf16", "int8")
"""Precisions that exports make."""
MAX_INT8_DROP = 0.05
"""Largest drop of int8 that an export allows, in dB PSNR-Y, unless it is told another one."""
MANY_STEPS = 100
"""Steps of a reverse process from which the export says what they cost."""
MAX_FUSION_ERROR = 1e-5
MAX_FUSION_ERROR_FLOAT64 = 1e-12
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxsim", "openvino", "onnxruntime", "numpy")
Progress = Callable[[str], None]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export. `export_checkpoint` checks them."""

    checkpoint: Path
    """safetensors or PyTorch file."""
    output: Path
    """Bundle folder to write."""
    precisions: tuple[str, ...] | None = None
    """Subset of `SUPPORTED`. None: those of the network's kind that this CPU can prove, without bf16 if its proof fails."""
    arch: str | None = None
    """Name of the architecture. None: detected from the keys."""
    calibration: Path | None = None
    """Folder of pictures for int8: a data set or plain pictures. None: the package's own small pictures."""
    max_psnr_drop: float | None = None
    """Largest drop against float32 in dB PSNR-Y. None: 0.05 (`MAX_INT8_DROP`) of int8, 0.01 of bf16 (`Tolerances`)."""
    post_training: bool = False
    """Quantize the float network anew, even if the checkpoint holds a quantized one from training."""
    key_map: Path | None = None
    """JSON file {pattern: replacement} that renames foreign keys."""
    autoencoder: Path | None = None
    """Checkpoint of the autoencoder, for networks that come in two files."""
    steps: int | None = None
    """T of the reverse process. None: from the checkpoint's metadata."""
    seed: int = 0
    """Seed of the noise that the single graph stores, 0 … 2³²−1."""
    single_graph: bool = True
    """Whether to write the whole network as model.onnx and its OpenVINO IR."""
    force: bool = False
    """Replace an existing bundle."""
    keep_failed: bool = False
    """Write a result that failed its proof to OUTPUT.failed."""

    def __post_init__(self) -> None:
        for name in ("checkpoint", "output", "calibration", "key_map", "autoencoder"):
            value = getattr(self, name)
            path = path_of(value)
            if path is None and (value is not None or name in ("checkpoint", "output")):
                raise ExportError(f"{name} must be a path, not {shown(value)}")
            object.__setattr__(self, name, path)


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """Result of an export: the rows of its proof, and the place of the bundle."""

    verification: Verification
    output: Path
    """Folder of the bundle; OUTPUT.failed if the proof failed. See `kept`."""
    kept: bool
    """Whether `output` was written."""
    seconds: float
    unsimplified: tuple[str, ...]
    """Graphs that were kept unsimplified because simplification was not safe."""
    quantization: dict[str, Any] | None = None
    """Report on int8: source of its ranges, remedies, layers, drop on every set of pictures, time against float32."""
    only_gate_failed: bool = False
    """Whether the only failure is that int8 costs more than `max_psnr_drop`."""

    @property
    def passed(self) -> bool:
        """Whether every variant passed its proof."""
        return self.verification.passed

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as `--json` prints it."""
        bundle = {"bundle": str(self.output) if self.kept else None}
        facts = {"seconds": round(self.seconds, 2), "unsimplified": list(self.unsimplified)}
        quantization = {} if self.quantization is None else {"quantization": self.quantization}
        return self.verification.to_dict() | bundle | facts | quantization


def _precisions(asked: Sequence[str] | None) -> tuple[Precision, ...]:
    if asked is not None and (isinstance(asked, str) or not isinstance(asked, Sequence)):
        raise ExportError(f"precisions must be a list of {', '.join(SUPPORTED)}, not {shown(asked)}")
    if asked is None:
        return tuple(p for p in SUPPORTED if p != "bf16" or cpu.has_bf16())
    if unknown := [p for p in asked if p not in SUPPORTED]:
        raise ExportError(f"precision {shown(unknown[0])} is not supported; choose from {', '.join(SUPPORTED)}")
    if not asked:
        raise ExportError(f"no precision is given; choose from {', '.join(SUPPORTED)}")
    if "bf16" in asked and not cpu.has_bf16():
        raise ExportError("bf16 cannot be proven here: this CPU has no bf16 arithmetic")
    return tuple(p for p in SUPPORTED if p in asked)


def cost_of_steps(steps: int) -> str | None:
    """A sentence on what many steps of the reverse process cost; None for a usual number.

    Graphs hold each step, because bundles have no loops, and the tools that make graphs take time and memory that grow with
    the square of their number. Measured with `tiny` in float32, on one core of a Xeon: 17 seconds and 0.6 GiB for 4 steps,
    273 seconds and 3.2 GiB for 1,000.
    """
    if steps <= MANY_STEPS:
        return None
    seconds, memory = 2.5e-4 * steps**2, 2.6e-6 * steps**2
    time = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return (
        f"the graphs will hold each of the {steps} steps of the reverse process, which makes this export take some {time} "
        f"and {memory:.1f} GiB more than one of 4 steps (int8 about twice that), and engines load the bundle more slowly"
    )


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
    """Role of a file of a bundle, None if it is no graph: "decoder.int8.onnx" → "decoder_int8", "model.xml" → "model_ir"."""
    path = Path(name)
    return None if path.suffix not in _IR_ROLES else path.stem.replace(".", "_") + _IR_ROLES[path.suffix]


def _manifest(
    loaded: LoadedModel, kind: GraphKind[Any], files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest before its proof. `facts`: fusion and quantization."""
    network = loaded.network
    counted = _counted(loaded.arch, kind, files["decoder.onnx"]) if network.peak_channels is None else {}
    return {
        "schema": SCHEMA,
        "arch": loaded.arch,
        "network": loaded.config.to_dict(),
        "scale": network.scale,
        "params": network.inference_parameters() if not network.derived().absorbed else counted["params"],
        "process": {"kind": kind.name, **kind.section},
        "receptive_radius": network.receptive_radius,
        "peak_channels": network.peak_channels or counted["peak_channels"],
        "tile_rule": network.tile_rule,
        "colour": "RGB",
        "value_range": [0.0, 1.0],
        "seed": kind.seed,
        "files": {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()},
        "graphs": {role: name for name in files if (role := _role(name)) is not None},
        "variants": [],
        **facts,
        "checkpoint": {"sha256": loaded.sha256, "notes": loaded.notes},
        "tools": {tool: importlib.metadata.version(tool) for tool in (*_TOOLS, "rdsr")},
        "cpu": {"name": cpu.cpu_name(), "isa": cpu.instruction_set()},
    }


def _counted(arch: str, kind: GraphKind[Any], decoder: bytes) -> dict[str, int]:
    """What a direct network does not say of itself, counted on its graph."""
    try:
        graph = read_onnx(decoder)
        check_operators(graph, kind.name)
        return {"params": weights_held(graph), "peak_channels": math.ceil(values_held(graph))}
    except GraphError as error:
        raise _cannot_be_exported(arch, error) from error


def _cannot_be_exported(arch: str, error: GraphError) -> ExportError:
    return ExportError(f"this {arch} cannot be exported: its graph {error}")


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    (folder / "manifest.json").write_bytes(canonical_json(content | {"digest": manifest_digest(content)}))


def _prove(
    folder: Path, manifest: dict[str, Any], proof: Proof, precisions: Sequence[Precision], progress: Progress, *, asked: bool
) -> Verification:
    """Compare the staged bundle with the torch model's whole outputs, and write the rows into its manifest.

    If bf16 fails and the user has not `asked` for it, it is left out. No graphs have to go: bf16 runs the float ones.
    """
    _write_manifest(folder, manifest)
    try:
        rows = check_variants(Bundle(folder), proof, precisions, progress=lambda what: progress(f"prove {what}"))
    except BundleError as refusal:
        if not isinstance(refusal.__cause__, GraphError):
            raise
        raise _cannot_be_exported(manifest["arch"], refusal.__cause__) from refusal
    failed = next((row for row in rows if row.precision == "bf16" and row.passed is False), None)
    if failed is not None and not asked:
        error, drop = (math.inf if x is None else x for x in (failed.max_abs_err, failed.psnr_drop_db))
        words = "bf16 is left out: %s on %s is up to %.3f of full range off and loses %.4f dB"
        logger.warning(words, failed.graph, failed.engine, error, drop)
        rows = tuple(row for row in rows if row.precision != "bf16")
    _write_manifest(folder, manifest | {"variants": [row.to_dict() for row in rows]})
    return Verification(Bundle(folder), rows)


def export_checkpoint(options: ExportOptions, progress: Progress = lambda step: None) -> ExportResult:
    """Turn a checkpoint into a proven bundle. `progress` gets the name of each step.

    Raises `CheckpointError` and `ExportError` (`OutputExistsError`, `ProofError`), and leaves nothing behind then. If a
    variant fails its proof, nothing is raised: `passed` is False, and the bundle is not written, or, under `keep_failed`,
    written to OUTPUT.failed.
    """
    started = time.perf_counter()
    remove_leftovers(options.output)
    check_target(options.output, force=options.force)
    failed_output = options.output.with_name(options.output.name + ".failed")
    if options.keep_failed:
        check_target(failed_output, force=True)
    precisions = _precisions(options.precisions)
    if not 0 <= options.seed < 2**32:
        raise ExportError(f"seed must be from 0 to 4294967295, not {options.seed}")
    if "int8" not in precisions and (options.calibration or options.post_training):
        raise ExportError("calibration and post-training are for int8, which is not among the precisions")
    limit = MAX_INT8_DROP if options.max_psnr_drop is None else options.max_psnr_drop
    if not 0 <= limit < math.inf:
        raise ExportError(f"the largest PSNR drop must be a finite number of dB, at least 0, not {limit}")
    progress("read the checkpoint")
    loaded = load_model(
        options.checkpoint,
        arch=options.arch,
        key_map=options.key_map,
        steps=options.steps,
        autoencoder=options.autoencoder,
    )
    if (cost := cost_of_steps(loaded.network.steps)) is not None:
        logger.warning(cost)
    kind = graph_kind(loaded.network, options.seed)
    if options.precisions is None and not (kind.int8_unasked or options.calibration or options.post_training):
        precisions = tuple(precision for precision in precisions if precision != "int8")
    calibration = read_calibration(options.calibration, loaded.network.scale) if options.calibration else []
    progress("fuse")
    fusion = _fusion(kind)
    graphs = GraphSet(kind, single_graph=options.single_graph, progress=progress)
    if (body := loaded.network.plain_body) is not None:
        check_plain_body(graphs.models["decoder.onnx"], body.depth, body.modulated)
    progress("run the torch model")
    judging = [picture for picture in calibration if picture.held_back]
    proof = build_proof(kind, judging, random_weights=loaded.random)
    if options.max_psnr_drop is not None:
        proof = dataclasses.replace(proof, bf16_max_drop_db=float(limit))
    quantized = None
    if "int8" in precisions:
        post_training = options.post_training
        quantized = make_int8(kind, proof, calibration, post_training=post_training, max_drop=limit, progress=progress)
        proof = with_int8(proof, kind, quantized.form, drop=quantized.psnr_drop_db, max_drop=limit)
        graphs.add_int8(quantized.form)
    for model in graphs.models.values():
        add_metadata(model, loaded)
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
            progress("check what the engines run")
            for name in sorted(name for name in files if name.endswith(".int8.onnx")):
                quantized.form.check_execution(files[name])
        manifest = _manifest(loaded, kind, files, {"fusion": fusion, "quantization": report.copy()})
        verification = _prove(folder, manifest, proof, precisions, progress, asked=options.precisions is not None)
        if quantized is not None:
            progress("time int8 against float32")
            report |= {"times": measure_time(folder)}
        output = options.output if verification.passed else failed_output
        kept = verification.passed or options.keep_failed
        if kept:
            progress("write")
            publish(folder, output, force=options.force or not verification.passed)
            if verification.passed:
                verification.spare_trials()
    seconds, unsimplified = time.perf_counter() - started, tuple(graphs.unsimplified)
    only_gate = not proof.int8_gate_met and all(row.equals_model or row.passed is not False for row in verification.variants)
    return ExportResult(verification, output, kept, seconds, unsimplified, report or None, only_gate)
