"""`rdsr bench ablations`: variants of one network, each trained for the same time, compared on the validation set."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...atomic import atomic_write
from ...models.training.config import TrainConfig
from ...models.training.errors import TrainingError
from ...models.training.run import train
from ...models.training.toml_file import is_number, read_toml
from ...models.training.trainer import read_state
from ...runtime.files import dump_json
from ..errors import BenchmarkError
from ..report.tables import Columns
from .curves import read_log

__all__ = ["AblationPlan", "AblationRow", "ablation_config", "ablation_table", "measure_ablations", "read_ablations"]

Progress = Callable[[str], None]
Key = tuple[str, str]
"""(variant, degradation)."""
_SPEED_STEPS, _SPEED_WARMUP = 24, 8
_FIXED = ("stage", "data", "teacher", "init", "iterations", "prior_steps", "seed", "validate_every", "degradation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """What is varied, and the budget that every run gets."""

    minutes: float
    """Processor time of a run's steps, on one thread."""
    shares: Mapping[str, Mapping[str, float]]
    """Degradation → parts of the time for "stage1" and "prior" (stage 2 without the decoder); stage 2 as a whole has the
    rest."""
    seeds: tuple[int, ...]
    training: Mapping[str, Any]
    """Fields of `TrainConfig` that all share."""
    degradations: Mapping[str, Mapping[str, Any]]
    """"bicubic" or "photo" → further fields under that degradation."""
    variants: Mapping[str, Mapping[str, Any]]
    """Name → fields that differ. The first variant is the reference. `stage1 = true` gives stage 1 all of the time, and the
    validation takes the prior of the latent prior encoder, which sees the original."""


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """One variant under one degradation."""

    degradation: str
    variant: str
    steps: dict[str, int]
    """Phase ("stage1", "prior", "stage2") → steps that the budget allows."""
    psnr_y: dict[int, float]
    """Seed → PSNR-Y on the validation set, dB, of the runs that are finished."""
    mean_db: float
    spread_db: float | None
    """Largest less smallest of the seeds; None for one seed."""
    change_db: float | None
    """Mean difference from the reference variant over the seeds that both have; None without any."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """Stages of one run, in order."""

    variant: str
    degradation: str
    seed: int
    stages: tuple[TrainConfig, ...]
    folder: Path
    validation: Path

    @property
    def last(self) -> Path:
        return self.folder / self.stages[-1].stage

    def psnr(self) -> float | None:
        """The validation at the end, dB; None if the run has not finished. `TrainingError` for a run of another config."""
        for stage in self.stages:
            folder = self.folder / stage.stage
            if not (folder / "state.pt").is_file() or read_state(folder, stage)["step"] < stage.iterations:
                return None
        return float(read_log(self.last)[-1]["psnr_y"])


def read_ablations(path: Path) -> AblationPlan:
    """Read a TOML file with the fields of `AblationPlan`.

    Raises `TrainingError` if it is no TOML, `BenchmarkError` for a key, table or name that does not fit.
    """
    content = read_toml(path, "ablations")
    names = {field.name for field in dataclasses.fields(AblationPlan)}
    if wrong := sorted(names ^ set(content)):
        raise BenchmarkError(f"{path}: {wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
    groups = [content["shares"], content["degradations"], content["variants"]]
    if not all(isinstance(group, dict) and group for group in groups):
        raise BenchmarkError(f"{path}: shares, degradations and variants must hold at least one table each")
    tables = [content["training"], *(table for group in groups for table in group.values())]
    if not all(isinstance(table, dict) for table in tables):
        raise BenchmarkError(f"{path}: training and the entries of shares, degradations and variants must be tables")
    if fixed := sorted({field for table in tables for field in table if field in _FIXED}):
        raise BenchmarkError(f"{path} must not set {fixed[0]}")
    if unfit := [name for name in content["variants"] if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)]:
        raise BenchmarkError(f"{path}: {unfit[0]!r} cannot name a run folder; use a-z, 0-9 and -")
    if lacking := sorted(set(content["degradations"]) - set(content["shares"])):
        raise BenchmarkError(f"{path}: shares lacks {lacking[0]}")
    for name, share in content["shares"].items():
        if not (set(share) - {"prior"} == {"stage1"} and all(is_number(part) for part in share.values())):
            raise BenchmarkError(f"{path}: shares of {name} must be numbers for stage1 and, if wanted, prior")
        if not (min(share.values()) > 0 and sum(share.values()) < 1):
            raise BenchmarkError(f"{path}: shares of {name} must be above 0, and leave some time for the rest of stage 2")
    if not (is_number(content["minutes"]) and content["minutes"] > 0):
        raise BenchmarkError(f"{path}: minutes must be a number above 0, not {content['minutes']!r}")
    seeds = content["seeds"]
    if not (isinstance(seeds, list) and seeds and all(isinstance(s, int) and s >= 0 for s in seeds)):
        raise BenchmarkError(f"{path}: seeds must be a list of whole numbers, not {seeds!r}")
    return AblationPlan(**(content | {"seeds": tuple(seeds)}))


def measure_ablations(
    plan: AblationPlan,
    folder: Path,
    *,
    data: Sequence[Path],
    teacher: Sequence[Path] = (),
    validation: Path,
    jobs: int,
    seconds: float | None = None,
    progress: Progress = lambda what: None,
) -> list[AblationRow]:
    """Train what `folder` lacks, `jobs` runs at a time with one thread each, and compare what is finished.

    After `seconds` no further run begins; a later call goes on. Raises `TrainingError` for a config or folder that does not
    fit, also if `folder` holds runs of another plan, and `BenchmarkError` for a plan that needs a teacher and has none.
    """
    if not teacher and any("teacher_weight" in variant for variant in plan.variants.values()):
        raise BenchmarkError("the plan varies the weight of a teacher's pictures: name their folder")
    configs = {
        (variant, degradation): ablation_config(plan, variant, degradation)
        for degradation in plan.degradations
        for variant in plan.variants
    }
    steps = _allowed_steps(plan, configs, folder / "steps.json", progress)
    pictures, results = tuple(map(str, data)), tuple(map(str, teacher))
    work = []
    for seed in plan.seeds:
        for key, config in configs.items():
            run = folder / key[1] / f"{key[0]}-{seed}"
            stages = _stages(dataclasses.replace(config, seed=seed, data=pictures, teacher=results), steps[key], run)
            work.append(_Job(*key, seed, stages, run, validation))
    before = [job.psnr() for job in work]  # each reads the run's whole state
    missing = [job for job, psnr in zip(work, before, strict=True) if psnr is None]
    finished = {
        (job.variant, job.degradation, job.seed): psnr for job, psnr in zip(work, before, strict=True) if psnr is not None
    }
    return _rows(plan, steps, finished | _run_all(missing, jobs, seconds, progress))


def ablation_config(plan: AblationPlan, variant: str, degradation: str) -> TrainConfig:
    """The config that the stages of a variant share, as one of stage 1. `TrainingError` for fields that do not fit."""
    fields: dict[str, Any] = {**plan.training}
    for more in (plan.degradations[degradation], plan.variants[variant]):
        network = {**fields.get("network", {}), **more.get("network", {})}
        fields |= {**more, "network": network}
    fields.pop("stage1", None)
    return TrainConfig.from_values(fields | {"stage": "stage1", "degradation": degradation, "iterations": 1}, variant)


def _phases(plan: AblationPlan, variant: str, degradation: str) -> dict[str, float]:
    """Phase → its part of the time."""
    if plan.variants[variant].get("stage1"):
        return {"stage1": 1.0}
    shares = plan.shares[degradation]
    return {**shares, "stage2": 1.0 - sum(shares.values())}


def _stages(config: TrainConfig, steps: Mapping[str, int], run: Path) -> tuple[TrainConfig, ...]:
    """The stages of a run with so many steps in each phase."""
    first = dataclasses.replace(config, iterations=steps["stage1"], validate_every=steps["stage1"])
    if set(steps) == {"stage1"}:
        return (first,)
    alone = steps.get("prior", 0)
    total = alone + steps.get("stage2", 0)
    init = str(run / "stage1" / "ema.safetensors")
    # Stage 1 ends at half the rate; stage 2 goes on from there.
    first = dataclasses.replace(first, final_learning_rate=config.learning_rate / 2)
    second = dataclasses.replace(
        config, stage="stage2", init=init, prior_steps=alone, iterations=total, validate_every=total
    )
    return first, second


def _allowed_steps(
    plan: AblationPlan, configs: Mapping[Key, TrainConfig], cache: Path, progress: Progress
) -> dict[Key, dict[str, int]]:
    """Steps in each phase that take the time of the plan on this machine; measured once for a folder."""
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    steps = {}
    for (variant, degradation), config in configs.items():
        name = f"{degradation} {variant}"
        budgets = {phase: share * plan.minutes * 60 for phase, share in _phases(plan, variant, degradation).items()}
        if name not in known:
            progress(f"speed of {variant}, {degradation}")
            allowed = {phase: max(1, round(budget / _step_seconds(config, phase))) for phase, budget in budgets.items()}
            known[name] = {"seconds": budgets, "steps": allowed}
            cache.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(cache, dump_json(known).encode())
        if known[name]["seconds"] != budgets:
            raise TrainingError(f"{cache.parent} holds runs of a plan with other times; choose another folder")
        steps[variant, degradation] = known[name]["steps"]
    return steps


def _step_seconds(config: TrainConfig, phase: str) -> float:
    """Median processor time of a step on one thread."""
    marks: list[float] = []

    def mark() -> float:
        marks.append(time.process_time())
        return 0.0

    with tempfile.TemporaryDirectory() as scratch:
        side = 2 * max(config.patch_sizes) * config.network_config().scale
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(Path(scratch) / "noise.png")
        config = dataclasses.replace(config, data=(scratch,), revive_every=0)
        first, *second = _stages(config, {"stage1": 1, phase: _SPEED_STEPS}, Path(scratch))
        train(first, Path(scratch) / "stage1", threads=1, hold=mark if phase == "stage1" else None)
        if phase != "stage1":
            train(second[0], Path(scratch) / "stage2", threads=1, hold=mark)
    return statistics.median(b - a for a, b in zip(marks[_SPEED_WARMUP:], marks[_SPEED_WARMUP + 1 :], strict=False))


def _run_all(
    missing: Sequence[_Job], jobs: int, seconds: float | None, progress: Progress
) -> dict[tuple[str, str, int], float]:
    """Train; returns (variant, degradation, seed) → PSNR-Y in dB of what has finished."""
    finished = {}
    begin, waiting = time.monotonic(), list(missing)
    running: dict[Future[None], _Job] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool, _stopping_runs():
        while waiting or running:
            while waiting and len(running) < jobs:
                if seconds is not None and time.monotonic() - begin > seconds:
                    waiting.clear()
                    break
                job = waiting.pop(0)
                running[pool.submit(_run, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                psnr = job.psnr()
                assert psnr is not None, "a run that ends without an error is finished"
                finished[job.variant, job.degradation, job.seed] = psnr
                progress(f"{job.degradation}, {job.variant}, seed {job.seed}: {psnr:.3f} dB")
    return finished


@contextlib.contextmanager
def _stopping_runs() -> Iterator[None]:
    """Stop the runs, which keep their state, when this process is stopped. A terminal's Ctrl-C reaches them without us."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        for run in multiprocessing.active_children():
            run.terminate()
        raise


def _run(job: _Job) -> None:
    for config in job.stages:
        folder = job.folder / config.stage
        train(config, folder, resume=(folder / "state.pt").exists(), validation=job.validation, threads=1)


def _rows(
    plan: AblationPlan, steps: Mapping[Key, dict[str, int]], finished: Mapping[tuple[str, str, int], float]
) -> list[AblationRow]:
    rows: list[AblationRow] = []
    for degradation in plan.degradations:
        reference: dict[int, float] = {}
        for index, variant in enumerate(plan.variants):
            found = {seed: finished[key] for seed in plan.seeds if (key := (variant, degradation, seed)) in finished}
            if not found:
                continue
            reference = found if index == 0 else reference
            changes = [psnr - reference[seed] for seed, psnr in found.items() if seed in reference]
            rows.append(
                AblationRow(
                    degradation=degradation,
                    variant=variant,
                    steps=steps[variant, degradation],
                    psnr_y=found,
                    mean_db=round(statistics.fmean(found.values()), 4),
                    spread_db=round(max(found.values()) - min(found.values()), 4) if len(found) > 1 else None,
                    change_db=round(statistics.fmean(changes), 4) if changes else None,
                )
            )
    return rows


def ablation_table(rows: Sequence[AblationRow], seeds: Sequence[int]) -> tuple[Columns, list[dict[str, Any]]]:
    """Columns and flat rows of the table, with one column for each seed."""
    columns = {"degradation": ("LR", ""), "variant": ("variant", ""), "steps": ("steps", "")}
    columns |= {f"seed {seed}": (f"seed {seed} (dB)", ".3f") for seed in seeds}
    columns |= {"mean_db": ("mean (dB)", ".3f"), "spread_db": ("spread (dB)", ".3f")}
    columns |= {"change_db": ("against the first (dB)", "+.3f")}
    flat = []
    for row in rows:
        values = {f"seed {seed}": psnr for seed, psnr in row.psnr_y.items()}
        counts = " + ".join(f"{count:,}" for count in row.steps.values())
        flat.append(dataclasses.asdict(row) | values | {"steps": counts})
    return columns, [{key: row.get(key) for key in columns} for row in flat]
