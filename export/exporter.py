"""The export itself: load, fuse, trace, simplify, account, prove, write."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.interface import LatentPriorNetwork
from ..models.registry import LoadedModel, load_model
from ..runtime import cpu
from ..runtime.bundle import SCHEMA, Bundle, canonical_json, manifest_digest
from ..runtime.engines import Precision
from ..runtime.pipeline import initial_noise
from ..runtime.proof import Proof
from ..runtime.verify import Verification, check_variants
from .accounting import SMALLEST, account, fingerprint
from .cases import build_proof
from .errors import ExportError, ProofError
from .graphs import DecoderGraph, EncoderGraph, ReverseGraph, SingleGraph
from .ir import to_ir
from .simplify import simplify
from .staging import check_target, publish, staging_folder
from .structure import check_plain_body
from .trace import trace

__all__ = ["SUPPORTED", "ExportOptions", "ExportResult", "export_checkpoint"]

SUPPORTED: tuple[Precision, ...] = ("fp32", "bf16")
"""Precisions that exports make."""
MAX_FUSION_ERROR = 1e-5
MAX_FUSION_ERROR_FLOAT64 = 1e-12
_TOOLS = ("torch", "onnx", "onnxsim", "openvino", "onnxruntime", "numpy")
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export and how. Checked by `export_checkpoint`."""

    checkpoint: Path
    """safetensors or PyTorch file."""
    output: Path
    """Bundle folder to write."""
    precisions: tuple[str, ...] | None = None
    """Subset of `SUPPORTED`; None for all that this CPU can prove."""
    arch: str | None = None
    """Architecture, where the keys shall not decide."""
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

    @property
    def passed(self) -> bool:
        """Whether every variant passed its proof."""
        return self.verification.passed

    def to_dict(self) -> dict[str, Any]:
        """The design's JSON form."""
        return self.verification.to_dict() | {
            "bundle": str(self.output) if self.kept else None,
            "seconds": round(self.seconds, 2),
            "unsimplified": list(self.unsimplified),
        }


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


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}


class _Graphs:
    """Traces, simplifies and accounts for the graphs of one network."""

    def __init__(self, network: nn.Module, seed: int, *, single_graph: bool, progress: Progress) -> None:
        self.original = cast(LatentPriorNetwork, network)
        self.fused = self.original.fuse()
        self.parts = cast(LatentPriorNetwork, self.fused)
        self.noise = initial_noise(seed, self.parts.latent_size)
        self.progress = progress
        self.unsimplified: list[str] = []
        self.deployed = [*_arrays(self.fused.state_dict()).values(), self.noise]
        self.found: dict[str, set[str]] = {}
        self.models = self._build(single_graph)
        self._check_totals()

    def _build(self, single_graph: bool) -> dict[str, onnx.ModelProto]:
        lr, z = torch.rand(1, 3, 24, 20), torch.randn(1, self.parts.latent_size)
        pooled = torch.rand(1, self.parts.condition_channels)
        space = {0: "batch", 2: "height", 3: "width"}
        models = {
            "encoder.onnx": self._graph(
                "encoder.onnx",
                EncoderGraph(self.fused),
                {"lr": lr},
                "features",
                {"lr": space, "features": {0: "batch", 2: "cells_high", 3: "cells_wide"}},
            ),
            "reverse.onnx": self._graph(
                "reverse.onnx",
                ReverseGraph(self.fused),
                {"pooled": pooled, "noise": z},
                "z",
                {"pooled": {0: "batch"}, "noise": {0: "batch"}, "z": {0: "batch"}},
            ),
            "decoder.onnx": self._graph(
                "decoder.onnx",
                DecoderGraph(self.fused),
                {"lr": lr, "z": z},
                "sr",
                {"lr": space, "z": {0: "batch"}, "sr": {0: "batch", 2: "height_out", 3: "width_out"}},
            ),
        }
        if single_graph:
            models["model.onnx"] = self._graph(
                "model.onnx",
                SingleGraph(self.fused, torch.from_numpy(self.noise)),
                {"image": torch.randint(0, 256, (1, 24, 20, 3), dtype=torch.uint8)},
                "upscaled",
                {
                    "image": {0: "batch", 1: "height", 2: "width"},
                    "upscaled": {0: "batch", 1: "height_out", 2: "width_out"},
                },
            )
        return models

    def _graph(
        self, name: str, module: nn.Module, inputs: dict[str, Tensor], output: str, dynamic: dict[str, dict[int, str]]
    ) -> onnx.ModelProto:
        self.progress(f"trace {name}")
        plain = trace(module, inputs, output, dynamic)
        rng = np.random.RandomState(0)
        feeds = []
        for batch, *sides in ((1, 24, 20), (2, 13, 7)):
            feed = {}
            for key, value in inputs.items():
                shape = list(value.shape)
                for axis, size in zip(dynamic[key], (batch, *sides), strict=False):
                    shape[axis] = size
                low, high = (0, 256) if value.dtype == torch.uint8 else (-1, 1)
                feed[key] = rng.uniform(low, high, shape).astype(value.numpy().dtype)
            feeds.append(feed)
        training_only = _arrays(self.original.training_only())
        self.found[name] = account(plain, name, self.deployed, training_only)
        model, simplified = simplify(plain, feeds, name)
        if simplified:
            try:
                simplified = account(model, name, self.deployed, training_only) == self.found[name]
            except ProofError:  # a simplifier may merge weights into constants that nobody can account for
                simplified = False
        if not simplified:
            self.unsimplified.append(name)
        return model if simplified else plain

    def _check_totals(self) -> None:
        """The three graphs together hold every deployed weight; the single graph holds them all, and the noise."""
        weights = {
            key: fingerprint(value) for key, value in _arrays(self.fused.state_dict()).items() if value.size >= SMALLEST
        }
        three = self.found["encoder.onnx"] | self.found["reverse.onnx"] | self.found["decoder.onnx"]
        for name, found in (("the three graphs", three), ("model.onnx", self.found.get("model.onnx"))):
            if found is not None and (lacking := [key for key, mark in weights.items() if mark not in found]):
                raise ProofError(f"{name} lack the weight {lacking[0]}")


def _fusion(network: LatentPriorNetwork) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(1, 3, 33, 29, generator=generator)
    z = torch.randn(1, network.latent_size, generator=generator)
    errors = network.fusion_errors(lr, z)
    if not (errors.max_abs_err <= MAX_FUSION_ERROR and errors.max_rel_err_float64 <= MAX_FUSION_ERROR_FLOAT64):  # or NaN
        raise ProofError(
            f"the fused decoder differs from the multi-branch one by {errors.max_abs_err:.2e} in float32 "
            f"and {errors.max_rel_err_float64:.2e} (relative) in float64"
        )
    return dataclasses.asdict(errors)


def _manifest(loaded: LoadedModel, files: Mapping[str, bytes], fusion: Mapping[str, Any], seed: int) -> dict[str, Any]:
    network = cast(LatentPriorNetwork, loaded.network)
    graphs = {"encoder": "encoder.onnx", "reverse": "reverse.onnx", "decoder": "decoder.onnx"}
    if "model.onnx" in files:
        graphs |= {"model": "model.onnx", "model_ir": "model.xml", "model_ir_weights": "model.bin"}
    return {
        "schema": SCHEMA,
        "arch": loaded.arch,
        "network": loaded.config.to_dict(),
        "scale": network.scale,
        "params": network.inference_parameters(),
        "steps": len(network.betas),
        "betas": list(network.betas),
        "latent_size": network.latent_size,
        "size_multiple": network.size_multiple,
        "receptive_radius": network.receptive_radius,
        "tile_rule": network.tile_rule,
        "colour": "RGB",
        "value_range": [0.0, 1.0],
        "seed": seed,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()
        },
        "graphs": graphs,
        "variants": [],
        "fusion": dict(fusion),
        "checkpoint": {"sha256": loaded.sha256, "notes": loaded.notes},
        "tools": {tool: importlib.metadata.version(tool) for tool in (*_TOOLS, "rdsr")},
        "cpu": {"name": cpu.cpu_name(), "isa": cpu.instruction_set()},
    }


def _write_manifest(folder: Path, content: dict[str, Any]) -> None:
    content = content | {"digest": manifest_digest(content)}
    (folder / "manifest.json").write_bytes(canonical_json(content))


def _prove(
    folder: Path, manifest: dict[str, Any], proof: Proof, precisions: Sequence[Precision], progress: Progress
) -> Verification:
    """Run the staged bundle against the torch model's whole outputs, then write the rows into its manifest."""
    _write_manifest(folder, manifest)
    rows = check_variants(Bundle(folder), proof, precisions, progress=lambda what: progress(f"prove {what}"))
    _write_manifest(folder, manifest | {"variants": [row.to_dict() for row in rows]})
    return Verification(Bundle(folder), rows)


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
    progress("read the checkpoint")
    loaded = load_model(options.checkpoint, arch=options.arch, key_map=options.key_map, steps=options.steps)
    network = cast(LatentPriorNetwork, loaded.network)
    if not isinstance(network, LatentPriorNetwork):
        raise ExportError(f"{loaded.arch} networks cannot be exported")
    progress("fuse")
    with torch.no_grad():
        fusion = _fusion(network)
        graphs = _Graphs(loaded.network, options.seed, single_graph=options.single_graph, progress=progress)
    if loaded.arch == "rdsr":
        check_plain_body(graphs.models["decoder.onnx"], loaded.config.depth, loaded.config.modulation_depths)
    progress("run the torch model")
    proof = build_proof(loaded.network, options.seed)
    files = {name: model.SerializeToString(deterministic=True) for name, model in graphs.models.items()}
    files |= proof.to_files()
    with staging_folder(options.output) as folder:
        if options.single_graph:
            progress("convert to OpenVINO IR")
            files |= to_ir(files["model.onnx"], folder)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        verification = _prove(folder, _manifest(loaded, files, fusion, options.seed), proof, precisions, progress)
        output = options.output if verification.passed else failed_output
        kept = verification.passed or options.keep_failed
        if kept:
            progress("write")
            publish(folder, output, force=options.force or not verification.passed)
    return ExportResult(verification, output, kept, time.perf_counter() - started, tuple(graphs.unsimplified))
