"""`rdsr bench candidates`: network sizes trained briefly under one budget, PSNR against CPU latency."""

from __future__ import annotations

import csv
import dataclasses
import statistics
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.engines import BACKENDS, Precision, Session, load_session
from .errors import BenchmarkError

__all__ = ["CandidateRow", "Plan", "measure_candidates", "read_plan"]

Progress = Callable[[str], None]
_SIZE = 128
"""LR side of the latency measurement: what FINDINGS' and most papers' figures use."""


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
    """Of the validation set after the budget, dB; None where it is only timed."""
    minutes: float | None
    """Of training."""
    latency_ms: dict[str, float]
    """"engine precision" → median of a whole call at 128×128 LR, uint8 in and out."""


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
    if not tables["candidates"]:
        raise BenchmarkError(f"{path} names no candidates")
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
    """Train every candidate (stage 1; a run that is there goes on), export all, time them in interleaved rounds.

    Raises `TrainingError` for a field that does not fit, whatever export raises, `OutputError` for an unwritable folder.
    """
    from ..models.training.config import TrainConfig
    from ..models.training.run import train

    shared = plan.training | {"data": tuple(str(d) for d in data), "stage": "stage1"}
    configs = {name: TrainConfig(**shared, network=sizes) for name, sizes in (plan.candidates | plan.untrained).items()}
    for name in plan.candidates:
        progress(f"training {name}")
        run = folder / name
        if not _finished(run, configs[name].iterations):
            resume = (run / "state.pt").exists()
            train(configs[name], run, resume=resume, validation=validation, threads=threads)
    sessions: dict[tuple[str, str], Session] = {}
    facts = {}
    for name, config in configs.items():
        progress(f"exporting {name}")
        run = folder / name
        run.mkdir(parents=True, exist_ok=True)
        facts[name], sessions_of = _deploy(config, run, threads, trained=name in plan.candidates)
        sessions |= {(name, engine): session for engine, session in sessions_of.items()}
    progress("timing")
    latency = _interleaved(sessions, rounds)
    rows = []
    for name in configs:
        last = _log(folder / name)[-1] if name in plan.candidates else None
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


def _log(run: Path) -> list[dict[str, str]]:
    from .training_plot import read_log

    return read_log(run)


def _finished(run: Path, iterations: int) -> bool:
    try:
        with (run / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return False
    return bool(rows) and rows[-1]["step"] == str(iterations) and (run / "ema.safetensors").is_file()


def _deploy(config: Any, run: Path, threads: int, *, trained: bool) -> tuple[tuple[float, float], dict[str, Session]]:
    """((parameters in millions, GFLOP), engine and precision → session of the whole network as one graph)."""
    import torch

    from ..export.exporter import ExportOptions, export_checkpoint
    from ..models.checkpoint import read_checkpoint, save_checkpoint
    from ..models.rdsr.network import RDSR
    from ..runtime import cpu

    torch.manual_seed(config.seed)
    network = RDSR(config.network_config())
    if trained:
        network.load_state_dict(read_checkpoint(run / "ema.safetensors")[0], strict=False)
    checkpoint = run / "network.safetensors"
    save_checkpoint(checkpoint, network.state_dict(), "rdsr", network.config.to_dict())
    bundle = run / "bundle"
    export_checkpoint(ExportOptions(checkpoint=checkpoint, output=bundle, force=True))
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if cpu.has_bf16() else ("fp32",)
    sessions = {
        f"{backend} {precision}": load_session(bundle / "model.onnx", backend=backend, precision=precision, threads=threads)
        for backend in BACKENDS
        for precision in precisions
        if (backend, precision) != ("onnxruntime", "bf16")
    }
    return (network.inference_parameters() / 1e6, _gflops(network)), sessions


def _gflops(network: Any) -> float:
    """Of the convolutions (the reverse process is thousandths of it)."""
    total = 0.0
    for key, value in network.fuse().state_dict().items():
        if value.ndim == 4:
            cells = (_SIZE / network.config.unshuffle) ** 2 if key.startswith("condition_encoder.") else _SIZE**2
            total += 2 * value.numel() * cells
    return total / 1e9


def _interleaved(sessions: dict[tuple[str, str], Session], rounds: int) -> dict[tuple[str, str], float]:
    """Median milliseconds of every session; each round runs every session once, so that drift hits all alike."""
    picture = np.random.default_rng(0).integers(0, 256, (1, _SIZE, _SIZE, 3), dtype=np.uint8)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in sessions}
    for index in range(rounds + 2):
        for key, session in sessions.items():
            started = time.perf_counter()
            session.run({"image": picture})
            if index >= 2:  # the first rounds warm up
                times[key].append(1e3 * (time.perf_counter() - started))
    return {key: statistics.median(values) for key, values in times.items()}
