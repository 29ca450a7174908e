"""`rdsr bench ablations`: variants of one network, each trained for the same time, compared on the validation set."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
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
from ...models.base_config import is_number
from ...models.files import read_small
from ...models.training.config import TrainConfig
from ...models.training.run import train
from ...models.training.toml_file import read_toml
from ...runtime.files import dump_json
from ..errors import BenchmarkError
from ..report.tables import Columns
from .curves import read_log

__all__ = ["AblationPlan", "AblationRow", "ablation_config", "ablation_table", "measure_ablations", "read_ablations"]

Progress = Callable[[str], None]
Key = tuple[str, str]
"""(variant, degradation)."""
_SPEED_ROUNDS, _SPEED_STEPS, _SPEED_WARMUP = 6, 16, 4
_OWN = ("stage1", "steps_of")
"""Fields of a variant that are none of `TrainConfig`."""
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
    validation takes the prior of the latent prior encoder, which sees the original. `steps_of = "NAME"` gives a variant
    whose steps cost as much as another's that one's number of steps, free of the noise of a measurement."""


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

    key: Key
    seed: int
    stages: tuple[TrainConfig, ...]
    folder: Path
    validation: Path

    def train(self) -> float:
        """Train what is missing; returns the PSNR-Y of the validation at the end, dB."""
        for stage in self.stages:
            folder = self.folder / stage.stage
            train(stage, folder, resume=(folder / "state.pt").exists(), validation=self.validation, threads=1)
        return float(read_log(folder)[-1]["psnr_y"])


class _Record:
    """`runs.json`: for each variant, the steps that its time allows and what its finished runs reached.

    It is enough to go on where the folders of finished runs are gone, or on another machine with the same steps.
    """

    def __init__(self, path: Path, plans: Mapping[Key, str]) -> None:
        """Read what is there. `BenchmarkError` for a file that cannot be read, or for runs of other plans (digests)."""
        self.path = path
        self._plans = plans
        self._entries: dict[Key, dict[str, Any]] = {}
        if path.is_file():
            try:
                for name, entry in json.loads(read_small(path)).items():
                    _ = entry["plan"], entry["steps"].items(), entry["psnr_y"].items()
                    variant, _, degradation = name.partition(" ")
                    self._entries[variant, degradation] = entry
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise BenchmarkError(f"cannot read {path} ({type(error).__name__}): choose another folder") from error
        for key, plan in plans.items():
            if key in self and self._entries[key]["plan"] != plan:
                raise BenchmarkError(f"{path} holds {key[0]} under {key[1]} of another plan: choose another folder")

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def steps(self, key: Key) -> dict[str, int]:
        """Phase → steps of a variant."""
        return dict(self._entries[key]["steps"])

    def set_steps(self, key: Key, steps: Mapping[str, int]) -> None:
        self._entries[key] = {"plan": self._plans[key], "steps": dict(steps), "psnr_y": {}}
        self._write()

    def psnr(self, key: Key) -> dict[int, float]:
        """Seed → PSNR-Y in dB of the finished runs of a variant."""
        return {int(seed): psnr for seed, psnr in self._entries[key]["psnr_y"].items()}

    def add_psnr(self, key: Key, seed: int, psnr: float) -> None:
        self._entries[key]["psnr_y"][str(seed)] = psnr
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, dump_json({" ".join(key): entry for key, entry in self._entries.items()}).encode())


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
    for name, variant in content["variants"].items():
        if (like := variant.get("steps_of")) is not None:
            other = content["variants"].get(like) if isinstance(like, str) else None
            if other is None or "steps_of" in other or other.get("stage1") != variant.get("stage1"):
                raise BenchmarkError(
                    f"{path}: steps_of of {name} must name a variant with the same stages and its own steps"
                )
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
    fit, and `BenchmarkError` if `folder` holds runs of another plan, or if the plan needs a teacher and has none.
    """
    if not teacher and any("teacher_weight" in variant for variant in plan.variants.values()):
        raise BenchmarkError("the plan varies the weight of a teacher's pictures: name their folder")
    keys = [(variant, degradation) for degradation in plan.degradations for variant in plan.variants]
    configs = {key: ablation_config(plan, *key) for key in keys}
    record = _Record(folder / "runs.json", {key: _digest(plan, key, config) for key, config in configs.items()})
    progress("time of a step")
    unknown = {key: config for key, config in configs.items() if key not in record}
    own = {key: config for key, config in unknown.items() if "steps_of" not in plan.variants[key[0]]}
    for key, steps in _allowed_steps(plan, own, jobs).items():
        record.set_steps(key, steps)
    for variant, degradation in unknown:
        if like := plan.variants[variant].get("steps_of"):
            record.set_steps((variant, degradation), record.steps((like, degradation)))
    pictures, results = tuple(map(str, data)), tuple(map(str, teacher))
    work = []
    for seed in plan.seeds:
        for key, config in configs.items():
            if seed not in record.psnr(key):
                run = folder / key[1] / f"{key[0]}-{seed}"
                config = dataclasses.replace(config, seed=seed, data=pictures, teacher=results)
                work.append(_Job(key, seed, _stages(config, record.steps(key), run), run, validation))
    _run_all(work, jobs, seconds, record, progress)
    return _rows(plan, record)


def ablation_config(plan: AblationPlan, variant: str, degradation: str) -> TrainConfig:
    """The config that the stages of a variant share, as one of stage 1. `TrainingError` for fields that do not fit."""
    fields: dict[str, Any] = {**plan.training}
    for more in (plan.degradations[degradation], plan.variants[variant]):
        network = {**fields.get("network", {}), **more.get("network", {})}
        fields |= {**more, "network": network}
    fields = {name: value for name, value in fields.items() if name not in _OWN}
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


def _digest(plan: AblationPlan, key: Key, config: TrainConfig) -> str:
    """The same for two runs of one variant that differ in their seed alone."""
    content = json.dumps([config.to_dict(), plan.minutes, _phases(plan, *key)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _allowed_steps(plan: AblationPlan, configs: Mapping[Key, TrainConfig], jobs: int) -> dict[Key, dict[str, int]]:
    """Steps in each phase that take the time of the plan on this machine, with `jobs` runs side by side.

    All are timed in turn, several times over. Each step counts with its shortest time: what slows the machine for a while
    is left out, what a step has to do is not.
    """
    phases = [(key, phase) for key in configs for phase in _phases(plan, *key)]
    timed = phases * _SPEED_ROUNDS
    with _pool(jobs) as pool:
        times = np.array(list(pool.map(_step_seconds, [configs[key] for key, _ in timed], [phase for _, phase in timed])))
    steps: dict[Key, dict[str, int]] = {key: {} for key in configs}
    for index, (key, phase) in enumerate(phases):
        budget = plan.minutes * 60 * _phases(plan, *key)[phase]
        steps[key][phase] = max(1, round(budget / times[index :: len(phases)].min(axis=0).mean()))
    return steps


def _step_seconds(config: TrainConfig, phase: str) -> list[float]:
    """Processor time of each of some steps on one thread; the same steps for the same config."""
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
    return [after - before for before, after in itertools.pairwise(marks[_SPEED_WARMUP:])]


def _run_all(missing: Sequence[_Job], jobs: int, seconds: float | None, record: _Record, progress: Progress) -> None:
    """Train, and add what has finished to the record."""
    begin, waiting = time.monotonic(), list(missing)
    running: dict[Future[float], _Job] = {}
    with _pool(jobs) as pool:
        while waiting or running:
            while waiting and len(running) < jobs:
                if seconds is not None and time.monotonic() - begin > seconds:
                    waiting.clear()
                    break
                job = waiting.pop(0)
                running[pool.submit(job.train)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                record.add_psnr(job.key, job.seed, future.result())
                progress(f"{job.key[1]}, {job.key[0]}, seed {job.seed}: {future.result():.3f} dB")


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for runs. They stop, and keep their state, when this process is stopped; Ctrl-C reaches them without us."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except (Exception, SystemExit):
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _rows(plan: AblationPlan, record: _Record) -> list[AblationRow]:
    rows: list[AblationRow] = []
    first = next(iter(plan.variants))
    for degradation in plan.degradations:
        reference = record.psnr((first, degradation))
        for variant in plan.variants:
            known = record.psnr((variant, degradation))
            found = {seed: known[seed] for seed in plan.seeds if seed in known}
            if not found:
                continue
            changes = [psnr - reference[seed] for seed, psnr in found.items() if seed in reference]
            rows.append(
                AblationRow(
                    degradation=degradation,
                    variant=variant,
                    steps=record.steps((variant, degradation)),
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
    columns |= {"change_db": ("against the first (dB)", "+z.3f")}
    flat = []
    for row in rows:
        values = {f"seed {seed}": psnr for seed, psnr in row.psnr_y.items()}
        counts = " + ".join(f"{count:,}" for count in row.steps.values())
        flat.append(dataclasses.asdict(row) | values | {"steps": counts})
    return columns, [{key: row.get(key) for key in columns} for row in flat]
