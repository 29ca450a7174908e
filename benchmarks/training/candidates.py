"""`rdsr bench candidates`: network sizes trained briefly under one budget, PSNR against CPU latency."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...export.exporter import ExportOptions, export_checkpoint
from ...models.checkpoint import read_checkpoint, save_checkpoint
from ...models.rdsr.network import RDSR
from ...models.registry import load_model
from ...models.repd import RepDConfig
from ...models.training.config import TrainConfig
from ...models.training.run import train
from ...models.training.toml_file import read_toml
from ...runtime.engines import BACKENDS, Session, load_session, supported_precisions
from ...runtime.host import cpu
from ...runtime.timing import interleaved_medians
from ..errors import BenchmarkError
from ..latency.flops import convolution_gflops
from ..report.tables import Columns, write_figure
from .curves import read_log

__all__ = ["SIZE", "CandidateRow", "Plan", "candidate_table", "measure_candidates", "plot_candidates", "read_plan"]

Progress = Callable[[str], None]
logger = logging.getLogger(__name__)
SIZE = 128
"""LR side of the latency measurement: 512×512 pixels out at ×4."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Candidates and the budget that all of them get."""

    training: dict[str, Any]
    """Fields of `TrainConfig` that all share."""
    candidates: dict[str, dict[str, Any]]
    """Name → fields of `RDSRConfig` that differ from the shared preset."""
    untrained: dict[str, dict[str, Any]]
    """The same for networks that are timed only."""


@dataclasses.dataclass(frozen=True)
class CandidateRow:
    """One candidate, trained and timed."""

    name: str
    params_m: float
    """Parameters at inference, millions."""
    gflops: float
    """2·MACs at 128×128 LR, 10⁹."""
    psnr_y: float | None
    """PSNR-Y of the validation set after the budget, dB, in stage 1: z comes from the latent prior encoder, which sees the
    original. None if the network is only timed."""
    minutes: float | None
    """Minutes of training. None if the network is only timed."""
    latency_ms: dict[str, float]
    """"engine precision" → median of a whole call at 128×128 LR, uint8 in and out. Empty if the export failed its proof."""


def read_plan(path: Path) -> Plan:
    """Read a TOML file: training fields, [candidates.NAME] and [untrained.NAME] tables.

    Raises `TrainingError` if it cannot be read as TOML, `BenchmarkError` for a table, field or name that does not fit.
    """
    content = read_toml(path, "candidates")
    tables = {name: content.pop(name, {}) for name in ("candidates", "untrained")}
    for name, table in tables.items():
        if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
            raise BenchmarkError(f"{path}: {name} must hold one table a network")
    if fixed := sorted({"stage", "data", "network"} & set(content)):
        raise BenchmarkError(f"{path} must not set {fixed[0]}")
    if not tables["candidates"]:
        raise BenchmarkError(f"{path} names no candidates")
    if both := sorted(set(tables["candidates"]) & set(tables["untrained"])):
        raise BenchmarkError(f"{path} has {both[0]} among the candidates and the untrained networks")
    if unfit := [name for table in tables.values() for name in table if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name)]:
        raise BenchmarkError(f"{path}: {unfit[0]!r} cannot name a run folder; use letters, digits, - and _")
    return Plan(content, **tables)


def measure_candidates(
    plan: Plan, folder: Path, *, data: Sequence[Path], validation: Path, threads: int, progress: Progress = lambda what: None
) -> list[CandidateRow]:
    """Train every candidate (stage 1), export all networks and time them. Runs that are in `folder` continue.

    Raises `TrainingError` for a field, data or folder that does not fit and for a run in `folder` with another config, and
    the errors of export.
    """
    shared = plan.training | {"data": tuple(str(d) for d in data), "stage": "stage1"}
    configs = {
        name: TrainConfig.from_values(shared | {"network": sizes}, name)
        for name, sizes in (plan.candidates | plan.untrained).items()
    }
    for name in plan.candidates:
        progress(f"training {name}")
        run = folder / name
        train(configs[name], run, resume=(run / "state.pt").exists(), validation=validation, threads=threads)
    rows: list[CandidateRow] = []
    sessions: dict[tuple[str, str], Session] = {}
    for name, config in configs.items():
        progress(f"exporting {name}")
        row, engines = _deploy(config, folder / name, threads, trained=name in plan.candidates)
        rows.append(row)
        sessions |= {(name, engine): session for engine, session in engines.items()}
    progress("timing")
    picture = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    calls = {key: partial(session.run, {"image": picture}) for key, session in sessions.items()}
    latency = interleaved_medians(calls, rounds=15, warmup=2)
    return [
        dataclasses.replace(row, latency_ms={engine: ms for (owner, engine), ms in latency.items() if owner == row.name})
        for row in rows
    ]


def _deploy(config: TrainConfig, run: Path, threads: int, *, trained: bool) -> tuple[CandidateRow, dict[str, Session]]:
    """(row without latencies, "engine precision" → session of the whole network as one graph)."""
    torch.manual_seed(config.seed)
    candidate = RDSR(config.network_config())
    if trained:
        candidate.load_state_dict(read_checkpoint(run / "ema.safetensors")[0], strict=False)
    tensors, arch, sizes = candidate.state_dict(), "rdsr", candidate.config.to_dict()
    if not candidate.config.modulation_depths:  # nothing reads the latent prior: the decoder is the whole network
        tensors = {key: value for key, value in tensors.items() if key.startswith("decoder.")}
        arch, sizes = "repd", {field.name: sizes[field.name] for field in dataclasses.fields(RepDConfig)}
    checkpoint, bundle = run / "network.safetensors", run / "bundle"
    save_checkpoint(checkpoint, tensors, arch, sizes)
    network: Any = load_model(checkpoint).network
    last = read_log(run)[-1] if trained else None
    row = CandidateRow(
        name=run.name,
        params_m=network.inference_parameters() / 1e6,
        gflops=convolution_gflops(network, SIZE, SIZE),
        psnr_y=float(last["psnr_y"]) if last else None,
        minutes=float(last["minutes"]) if last else None,
        latency_ms={},
    )
    # The gate of int8 stands open: this benchmark does not ask how much int8 costs.
    result = export_checkpoint(ExportOptions(checkpoint=checkpoint, output=bundle, force=True, max_psnr_drop=1e3))
    if not result.passed:
        logger.warning("%s is not timed: its export failed the proof", run.name)
        return row, {}
    graphs = {"fp32": "model.onnx", "bf16": "model.onnx", "int8": "model.int8.onnx"}
    return row, {
        f"{backend} {precision}": load_session(
            bundle / graphs[precision], backend=backend, precision=precision, threads=threads
        )
        for backend in BACKENDS
        for precision in supported_precisions(backend)
        if precision != "bf16" or cpu.has_bf16()
    }


def candidate_table(measured: Sequence[CandidateRow]) -> tuple[Columns, list[dict[str, Any]]]:
    """Columns and flat rows of the candidates' table, with one latency column for each engine and precision."""
    columns = {
        "name": ("candidate", ""),
        "params_m": ("parameters (M)", ".2f"),
        "gflops": ("GFLOP", ".1f"),
        "psnr_y": ("PSNR-Y (stage 1)", ".3f"),
        "minutes": ("minutes", ".1f"),
    }
    columns |= {engine: (f"{engine} (ms)", ".1f") for row in measured for engine in row.latency_ms}
    return columns, [{key: getattr(row, key, row.latency_ms.get(key)) for key in columns} for row in measured]


def plot_candidates(measured: Sequence[CandidateRow], target: Path) -> None:
    """PSNR against the fastest engine's latency, as a PNG. Needs matplotlib; raises `OutputError`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in measured:
        if row.psnr_y is not None and row.latency_ms:
            fastest = min(row.latency_ms.values())
            axes.plot(fastest, row.psnr_y, "o", color="C0")
            axes.annotate(row.name, (fastest, row.psnr_y), textcoords="offset points", xytext=(6, -4), fontsize=9)
    axes.set_xlabel("milliseconds at 128×128 LR, fastest engine and precision here")
    axes.set_ylabel("PSNR-Y of the validation set in stage 1 (dB)")
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    write_figure(figure, target)
