"""`rdsr bench candidates`: network sizes trained briefly under one budget, PSNR against CPU latency."""

from __future__ import annotations

import dataclasses
import logging
import re
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.engines import BACKENDS, Precision, Session, load_session, supported_precisions
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
    """Of the validation set after the budget, dB, in stage 1: z comes from the latent prior encoder, which sees the
    original. None where the network is only timed."""
    minutes: float | None
    """Of training."""
    latency_ms: dict[str, float]
    """"engine precision" → median of a whole call at 128×128 LR, uint8 in and out; empty where the export did not
    pass, and without modulation, where nothing reads the latent prior and there is no bundle."""


def read_plan(path: Path) -> Plan:
    """A TOML file: training fields, [candidates.NAME] and [untrained.NAME] tables. `BenchmarkError` where it is none."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"cannot read the candidates {path}: {getattr(error, 'strerror', None) or error}") from error
    tables = {name: content.pop(name, {}) for name in ("candidates", "untrained")}
    for name, table in tables.items():
        if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
            raise BenchmarkError(f"{path}: {name} must hold one table a network")
    if fixed := sorted({"stage", "data", "network"} & set(content)):
        raise BenchmarkError(f"{path}: {fixed[0]} is not for the plan to say")
    if not tables["candidates"]:
        raise BenchmarkError(f"{path} names no candidates")
    if both := sorted(set(tables["candidates"]) & set(tables["untrained"])):
        raise BenchmarkError(f"{path} has {both[0]} among the candidates and the untrained networks")
    if unfit := [name for table in tables.values() for name in table if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name)]:
        raise BenchmarkError(f"{path}: {unfit[0]!r} is no name for a run folder; use letters, digits, - and _")
    return Plan(content, **tables)


def measure_candidates(
    plan: Plan,
    folder: Path,
    *,
    data: Sequence[Path],
    validation: Path,
    threads: int,
    rounds: int = 15,
    progress: Progress = lambda what: None,
) -> list[CandidateRow]:
    """Train every candidate (stage 1; runs that are there go on or are taken as they are), export all, and time them.

    Raises `TrainingError` for a field, data or folder that does not fit and for a run there with another config, and what
    export raises.
    """
    from ...models.training.config import TrainConfig
    from ...models.training.run import train

    shared = plan.training | {"data": tuple(str(d) for d in data), "stage": "stage1"}
    configs = {
        name: TrainConfig.from_values(shared | {"network": sizes}, name)
        for name, sizes in (plan.candidates | plan.untrained).items()
    }
    for name in plan.candidates:
        progress(f"training {name}")
        run = folder / name
        train(configs[name], run, resume=(run / "state.pt").exists(), validation=validation, threads=threads)
    sessions: dict[tuple[str, str], Session] = {}
    facts = {}
    for name, config in configs.items():
        progress(f"exporting {name}")
        run = folder / name
        run.mkdir(parents=True, exist_ok=True)
        facts[name], sessions_of = _deploy(config, run, threads, trained=name in plan.candidates)
        sessions |= {(name, engine): session for engine, session in sessions_of.items()}
    progress("timing")
    picture = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    calls = {key: partial(session.run, {"image": picture}) for key, session in sessions.items()}
    latency = interleaved_medians(calls, rounds=rounds, warmup=2)
    rows = []
    for name in configs:
        last = read_log(folder / name)[-1] if name in plan.candidates else None
        rows.append(
            CandidateRow(
                name=name,
                params_m=facts[name][0],
                gflops=facts[name][1],
                psnr_y=float(last["psnr_y"]) if last else None,
                minutes=float(last["minutes"]) if last else None,
                latency_ms={engine: ms for (owner, engine), ms in latency.items() if owner == name},
            )
        )
    return rows


def _deploy(config: Any, run: Path, threads: int, *, trained: bool) -> tuple[tuple[float, float], dict[str, Session]]:
    """((parameters in millions, GFLOP), engine and precision → session of the whole network as one graph)."""
    import torch

    from ...export.exporter import ExportOptions, export_checkpoint
    from ...models.checkpoint import read_checkpoint, save_checkpoint
    from ...models.rdsr.network import RDSR
    from ...runtime.host import cpu

    torch.manual_seed(config.seed)
    network = RDSR(config.network_config())
    if trained:
        network.load_state_dict(read_checkpoint(run / "ema.safetensors")[0], strict=False)
    checkpoint = run / "network.safetensors"
    save_checkpoint(checkpoint, network.state_dict(), "rdsr", network.config.to_dict())
    facts = network.inference_parameters() / 1e6, convolution_gflops(network, SIZE, SIZE)
    if not network.config.modulation_depths:
        return facts, {}  # nothing reads the latent prior, so there is no such bundle: export refuses it
    bundle = run / "bundle"
    # How much int8 costs is not asked here: the gate stands open.
    result = export_checkpoint(ExportOptions(checkpoint=checkpoint, output=bundle, force=True, max_psnr_drop=1e3))
    if not result.passed:
        logger.warning("%s is not timed: its export failed the proof", run.name)
        return facts, {}
    runnable: tuple[Precision, ...] = ("fp32", "bf16", "int8") if cpu.has_bf16() else ("fp32", "int8")
    sessions = {
        f"{backend} {precision}": load_session(
            bundle / ("model.int8.onnx" if precision == "int8" else "model.onnx"),
            backend=backend,
            precision=precision,
            threads=threads,
        )
        for backend in BACKENDS
        for precision in runnable
        if precision in supported_precisions(backend)
    }
    return facts, sessions


def candidate_table(measured: Sequence[CandidateRow]) -> tuple[Columns, list[dict[str, Any]]]:
    """Columns and flat rows of a candidates' table, one latency column an engine and precision."""
    engines = list(dict.fromkeys(engine for row in measured for engine in row.latency_ms))
    columns = {
        "name": ("candidate", ""),
        "params_m": ("parameters (M)", ".2f"),
        "gflops": ("GFLOP", ".1f"),
        "psnr_y": ("PSNR-Y (stage 1)", ".3f"),
        "minutes": ("minutes", ".1f"),
        **{engine: (f"{engine} (ms)", ".1f") for engine in engines},
    }
    rows = [
        {key: getattr(row, key, None) for key in columns} | {e: row.latency_ms.get(e) for e in engines} for row in measured
    ]
    return columns, rows


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
