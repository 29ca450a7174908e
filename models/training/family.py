"""The family's training plan and its progress: members, rounds of stages, run folders. Imports no torch."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base_config import is_number
from .errors import TrainingError
from .toml_file import read_toml

__all__ = ["DEFAULT_PLAN", "FamilyPlan", "Member", "Run", "checkpoint_notes", "current_run", "finished_runs", "minutes_of"]

DEFAULT_PLAN = Path(__file__).parent / "family.toml"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of every round."""

    name: str
    """Part of the run folder's name, e.g. "finish"."""
    config: str
    """Preset or TOML file of the stage, e.g. "small-stage2"."""
    first_round_only: bool = False
    """Leave the stage out of later rounds, which start from the result of the round before."""
    grows: bool = False
    """Give later rounds more iterations (`FamilyPlan.growth`)."""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `TrainConfig` that differ from `config`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One network of the family."""

    name: str
    """Name of its folder of runs; its shipped weights are called `rdsr-NAME`."""
    share: float
    """Part of the time that it gets, as a multiple of the others'."""
    stages: tuple[Stage, ...]
    init: str = ""
    """Checkpoint or shipped model that the first stage starts from; "" for random weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyPlan:
    """The members, their stages in order, and their shares of the time. One TOML file; see `family.toml`."""

    members: tuple[Member, ...]
    data: tuple[str, ...]
    """Folders of training pictures."""
    validation: str
    """Data set folder that decides which weights are best."""
    teacher: tuple[str, ...] = ()
    """Folders of a teacher's pictures."""
    slice_minutes: float = 15.0
    """Minutes that a member trains before the next one may get its turn."""
    growth: float = 1.5
    """Iterations of a growing stage, as a multiple of the round before."""
    stand_aside: bool = True
    """Wait while others use more of the machine than training's own threads leave free."""
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts for the model cards: "data", "licence"."""

    @classmethod
    def load(cls, path: Path = DEFAULT_PLAN) -> FamilyPlan:
        """Read a TOML file; `TrainingError` names what is wrong."""
        values = read_toml(path, "plan")
        if not all(isinstance(values.get(key, []), list) for key in ("data", "teacher", "members")):
            raise TrainingError(f"{path}: data, teacher and members must be lists")
        try:
            members = tuple(
                Member(**(member | {"stages": tuple(Stage(**stage) for stage in member.get("stages", ()))}))
                for member in values.pop("members", [])
            )
            values |= {key: tuple(values[key]) for key in ("data", "teacher") if key in values}
            plan = cls(members=members, **values)
        except (TypeError, AttributeError) as error:
            raise TrainingError(f"{path} is not a plan of a family: {error}") from error
        plan._check(path)
        return plan

    def _check(self, path: Path) -> None:
        names = [str(member.name) for member in self.members]
        if not names or len(set(names)) < len(names):
            raise TrainingError(f"{path}: the plan needs members, and their names must differ")
        for member in self.members:
            stages = [str(stage.name) for stage in member.stages]
            if not all(_NAME.fullmatch(name) for name in (str(member.name), *stages)):
                raise TrainingError(f"{path}: names of members and stages must be lower-case words joined by '-'")
            if not stages or len(set(stages)) < len(stages) or all(stage.first_round_only for stage in member.stages):
                raise TrainingError(f"{path}: {member.name} needs stages for every round, and their names must differ")
            if not is_number(member.share) or not member.share > 0:
                raise TrainingError(f"{path}: share of {member.name} must be a number above 0, not {member.share!r}")
            if not all(isinstance(stage.overrides, dict) and isinstance(stage.config, str) for stage in member.stages):
                raise TrainingError(f"{path}: in stages of {member.name}, config must be a string and overrides a table")
        if not (is_number(self.slice_minutes) and self.slice_minutes > 0 and is_number(self.growth) and self.growth >= 1):
            raise TrainingError(f"{path}: slice_minutes must be a number above 0 and growth a number of at least 1")

    def check_configs(self) -> None:
        """Load the config of every stage; `TrainingError` names the one that does not fit. Imports torch."""
        from .config import TrainConfig, find_config

        for member in self.members:
            for stage in member.stages:
                if taken := sorted({"data", "teacher", "init"} & set(stage.overrides)):
                    raise TrainingError(f"{member.name}, {stage.name}: overrides must not set {taken[0]}")
                TrainConfig.load(find_config(Path(stage.config)), **stage.overrides)

    def member(self, name: str) -> Member:
        """The member of that name; `TrainingError` lists the names if there is none."""
        members = {member.name: member for member in self.members}
        if name not in members:
            raise TrainingError(f"the family has no member {name!r}; it has {', '.join(members)}")
        return members[name]


@dataclasses.dataclass(frozen=True)
class StageState:
    """The progress of a run, read from its folder."""

    step: int
    iterations: int | None
    """None before the run has begun."""
    minutes: float
    psnr_y: float | None
    """Last validation, dB."""
    best: float | None
    """Best validation, dB."""

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
        """Read config, log and result. A run without a folder has not begun."""
        iterations = self.config().get("iterations")
        if not isinstance(iterations, int):
            return StageState(0, None, 0.0, None, None)
        step, minutes, checked = 0, 0.0, []
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            (self.folder / "log.csv").open(newline="") as file,
        ):
            for row in csv.DictReader(file):
                if row.get("psnr_y") is None:
                    break  # the row was cut short while it was written
                step, minutes = int(row["step"]), float(row["minutes"])
                checked += [float(row["psnr_y"])] if row["psnr_y"] else []
        # The log may be ahead of the result or behind it. The result counts: the next stage starts from it.
        written = int(checkpoint_notes(self.folder / "ema.safetensors").get("iterations", 0))
        step = iterations if written >= iterations else min(max(step, written), iterations - 1)
        return StageState(step, iterations, minutes, checked[-1] if checked else None, max(checked, default=None))

    @property
    def kind(self) -> str:
        """Stage of the config that the run began with: "stage1", "stage2" or "qat"; "" if it has not begun."""
        return str(self.config().get("stage", ""))

    def config(self) -> dict[str, Any]:
        """Fields of the `TrainConfig` that the run began with; {} if it has not begun."""
        try:
            return dict(json.loads((self.folder / "config.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def result(self) -> Path:
        """The weights that the next stage starts from: the best, or without validation the last."""
        best = self.folder / "best.safetensors"
        return best if best.is_file() else self.folder / "ema.safetensors"


def checkpoint_notes(checkpoint: Path) -> dict[str, str]:
    """Read the notes of one of our checkpoints without its tensors; {} if there are none."""
    try:
        with checkpoint.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return dict(json.loads(header["__metadata__"]["notes"]))
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return {}


def runs_of(member: Member, folder: Path, rounds: int | None = None) -> list[Run]:
    """All runs of the first `rounds` rounds (None: of the rounds that have begun, at least one), in order."""
    return [
        Run(member, stage, number, folder / member.name / f"{number:02d}-{index + 1}-{stage.name}")
        for number in range(1, (rounds or _rounds_begun(member, folder)) + 1)
        for index, stage in enumerate(member.stages)
        if number == 1 or not stage.first_round_only
    ]


def _rounds_begun(member: Member, folder: Path) -> int:
    begun = [path.name for path in (folder / member.name).glob("[0-9][0-9]-*") if path.is_dir()]
    return max((int(name[:2]) for name in begun), default=1)


def current_run(member: Member, folder: Path) -> Run:
    """The first run that is not finished; after a whole round, the first run of the next."""
    return next(run for run in runs_of(member, folder, _rounds_begun(member, folder) + 1) if not run.state().finished)


def finished_runs(member: Member, folder: Path) -> list[Run]:
    """Runs that have made all their iterations, in order."""
    return [run for run in runs_of(member, folder) if run.state().finished]


def minutes_of(member: Member, folder: Path) -> float:
    """Minutes that a member has trained."""
    return sum(run.state().minutes for run in runs_of(member, folder))
