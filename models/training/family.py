"""The family's training plan and where it stands: members, rounds of stages, run folders. Imports no torch."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import TrainingError
from .toml_file import read_toml

__all__ = [
    "DEFAULT_PLAN",
    "FamilyPlan",
    "Member",
    "Run",
    "Stage",
    "StageState",
    "current_run",
    "finished_runs",
    "minutes_of",
]

DEFAULT_PLAN = Path(__file__).parent / "family.toml"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of every round."""

    name: str
    """Part of the run folder's name, e.g. "finish"."""
    config: str
    """Preset or TOML file of the stage, e.g. "small-finish"."""
    first_round_only: bool = False
    """Whether later rounds begin after this stage, from what the round before them ended on."""
    grows: bool = False
    """Whether later rounds take more iterations (`FamilyPlan.growth`)."""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `TrainConfig` that differ from `config`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One network of the family."""

    name: str
    """Run folders begin with it; its shipped weights are called `rdsr-NAME`."""
    share: float
    """Part of the time that it gets, as a multiple of the others'."""
    stages: tuple[Stage, ...]
    init: str = ""
    """Checkpoint or shipped model that the first stage starts from; "" for nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyPlan:
    """What is trained, in which order and for which share of the time. One TOML file; see `family.toml`."""

    members: tuple[Member, ...]
    data: tuple[str, ...]
    """Folders of training pictures."""
    validation: str
    """Data set folder that decides what is best."""
    teacher: tuple[str, ...] = ()
    """Folders of a teacher's pictures."""
    slice_minutes: float = 15.0
    """How long a member trains before the next one's turn is considered."""
    growth: float = 1.5
    """Iterations of a growing stage in a round, as a multiple of the round before."""
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts for the model cards: "data", "licence"."""

    @classmethod
    def load(cls, path: Path = DEFAULT_PLAN) -> FamilyPlan:
        """Read a TOML file; `TrainingError` names what is wrong."""
        values = read_toml(path, "plan")
        try:
            tables = values.pop("members", [])
            members = tuple(
                Member(**(member | {"stages": tuple(Stage(**stage) for stage in member.get("stages", ()))}))
                for member in tables
            )
            values |= {key: tuple(values[key]) for key in ("data", "teacher") if key in values}
            plan = cls(members=members, **values)
        except (TypeError, AttributeError) as error:
            raise TrainingError(f"{path} is no plan of a family: {error}") from error
        plan._check(path)
        return plan

    def _check(self, path: Path) -> None:
        names = [member.name for member in self.members]
        if not names or len(set(names)) < len(names):
            raise TrainingError(f"{path}: members must be there, each with a name of its own")
        for member in self.members:
            stages = [stage.name for stage in member.stages]
            if not all(_NAME.fullmatch(name) for name in (member.name, *stages)):
                raise TrainingError(f"{path}: names of members and stages are lower-case words joined by '-'")
            if not stages or len(set(stages)) < len(stages) or all(stage.first_round_only for stage in member.stages):
                raise TrainingError(f"{path}: {member.name} needs stages for every round, each with a name of its own")
            if not member.share > 0:
                raise TrainingError(f"{path}: share of {member.name} must be above 0, not {member.share!r}")
        if not self.slice_minutes > 0 or not self.growth >= 1:
            raise TrainingError(f"{path}: slice_minutes must be above 0 and growth at least 1")

    def member(self, name: str) -> Member:
        """The member called so; `TrainingError` names the others."""
        found = next((member for member in self.members if member.name == name), None)
        if found is None:
            known = ", ".join(member.name for member in self.members)
            raise TrainingError(f"the family has no member {name!r}; it has {known}")
        return found


@dataclasses.dataclass(frozen=True)
class StageState:
    """How far a run has come, as its folder tells."""

    step: int
    iterations: int | None
    """None before the run has begun."""
    minutes: float
    psnr_y: float | None
    """Of the last validation, dB."""
    best: float | None
    """Of the best validation."""

    @property
    def finished(self) -> bool:
        """Whether the run has made all its iterations."""
        return self.iterations is not None and self.step >= self.iterations


@dataclasses.dataclass(frozen=True)
class Run:
    """One stage of one round of one member."""

    member: Member
    stage: Stage
    round: int
    """1, 2, …"""
    folder: Path

    @property
    def label(self) -> str:
        """E.g. "round 2, finish"."""
        return f"round {self.round}, {self.stage.name}"

    def state(self) -> StageState:
        """Read config, log and result; a folder that is not there is a run that has not begun."""
        try:
            iterations = int(json.loads((self.folder / "config.json").read_text())["iterations"])
        except (OSError, ValueError, KeyError, TypeError):
            return StageState(0, None, 0.0, None, None)
        step, minutes, checked = 0, 0.0, []
        try:
            with (self.folder / "log.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get("psnr_y") is None:
                        break  # cut short while it was written
                    step, minutes = int(row["step"]), float(row["minutes"])
                    checked += [float(row["psnr_y"])] if row["psnr_y"] else []
        except (OSError, ValueError, KeyError, TypeError):
            pass
        # The last row is of the last step; but what counts is that the result was written after it.
        if step >= iterations and not _ends_at(self.folder / "ema.safetensors", iterations):
            step = iterations - 1
        return StageState(step, iterations, minutes, checked[-1] if checked else None, max(checked, default=None))

    def result(self) -> Path:
        """The weights that the next stage starts from: the best, or where nothing was validated the last."""
        best = self.folder / "best.safetensors"
        return best if best.is_file() else self.folder / "ema.safetensors"


def _ends_at(checkpoint: Path, step: int) -> bool:
    """Whether a checkpoint's notes say that it is of this step."""
    try:
        with checkpoint.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return int(json.loads(header["__metadata__"]["notes"])["iterations"]) >= step
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return False


def runs_of(member: Member, folder: Path, rounds: int) -> list[Run]:
    """All runs of the first `rounds` rounds, in their order."""
    return [
        Run(member, stage, number, folder / member.name / f"{number:02d}-{index + 1}-{stage.name}")
        for number in range(1, rounds + 1)
        for index, stage in enumerate(member.stages)
        if number == 1 or not stage.first_round_only
    ]


def _rounds_begun(member: Member, folder: Path) -> int:
    begun = [path.name for path in (folder / member.name).glob("[0-9][0-9]-*") if path.is_dir()]
    return max((int(name[:2]) for name in begun), default=1)


def current_run(member: Member, folder: Path) -> Run:
    """The first run that is not finished; after a whole round, the first of the next."""
    runs = runs_of(member, folder, _rounds_begun(member, folder) + 1)
    return next(run for run in runs if not run.state().finished)


def finished_runs(member: Member, folder: Path) -> list[Run]:
    """Runs that have made all their iterations, in their order."""
    return [run for run in runs_of(member, folder, _rounds_begun(member, folder)) if run.state().finished]


def minutes_of(member: Member, folder: Path) -> float:
    """Minutes that a member has been trained for."""
    return sum(run.state().minutes for run in runs_of(member, folder, _rounds_begun(member, folder)))
