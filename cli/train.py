"""`rdsr train`: the training stages, and a plot of runs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import counted, stderr, stdout
from .exit_codes import command
from .family import family_app
from .options import DeviceOption, ThreadsOption

train_app = typer.Typer(no_args_is_help=True, help="Train a network of the family (needs the [export] extra).")
train_app.add_typer(family_app, name="family")


def _plot(stage: str, run: Path) -> None:
    """Draw the run's log. Without matplotlib, which training itself does not need, draw nothing."""
    from ..benchmarks.errors import BenchmarkError
    from ..benchmarks.training.curves import plot_runs
    from ..runtime.errors import OutputError

    try:
        plot_runs({stage: [run]}, run / "curve.png")
    except (ModuleNotFoundError, BenchmarkError):  # BenchmarkError: the log has no row yet
        pass
    except OutputError as error:
        stderr.print(f"rdsr: {error}")


def _train(stage: str, config: Path, overrides: dict[str, Any], output: Path, options: dict[str, Any]) -> None:
    from ..models.checkpoint import read_checkpoint
    from ..models.training.config import TrainConfig, find_config
    from ..models.training.errors import TrainingError
    from ..models.training.run import train

    loaded = TrainConfig.load(find_config(config), **overrides)
    if loaded.stage != stage:
        raise TrainingError(f"{config} describes {loaded.stage}, not {stage}")
    with counted(stage, loaded.iterations) as (progress, task):

        def show(step: int, row: dict[str, Any]) -> None:
            quality = f", PSNR-Y {row['psnr_y']} dB" if row["psnr_y"] else ""
            progress.update(task, completed=step, description=f"{stage}: loss {row['loss']}{quality}")
            if quality or step % 1000 == 0:
                left = float(row["minutes"]) / step * (loaded.iterations - step)
                progress.console.print(
                    f"step {step} of {loaded.iterations}, {row['minutes']} minutes, about {left:.0f} left: "
                    f"loss {row['loss']}{quality}, {float(row['data_wait_share']):.1%} of the time spent waiting for data"
                )
                _plot(stage, output)

        result = train(loaded, folder=output, progress=show, **options)
    _plot(stage, output)
    step = int(json.loads(read_checkpoint(result)[1]["notes"])["iterations"])
    unfinished = "" if step == loaded.iterations else f"  step {step} of {loaded.iterations}; --resume goes on"
    stdout.print(f"{result}{unfinished}")


ConfigOption = Annotated[
    Path, typer.Option("--config", help="TOML file of the stage, or the name of a preset: small-stage1, …")
]
DataOption = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder of training pictures, in place of the config's; may be repeated.")
]
TeacherOption = Annotated[
    list[Path] | None,
    typer.Option("--teacher", help="Folder of a teacher's pictures that mirrors a --data folder; may be repeated."),
]
RunOption = Annotated[Path, typer.Option("-o", "--output", help="Run folder: weights, state, config, log.csv, curve.png.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")]
ValidationOption = Annotated[
    Path | None, typer.Option("--validation", help="Data set folder (HR/, LRx4/) for validation PSNR.")
]
InitOption = Annotated[Path | None, typer.Option("--init", help="Checkpoint to start from, or a shipped model's name.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the config, e.g. teacher_weight=0.5; may be repeated."),
]
SecondsOption = Annotated[float | None, typer.Option(min=1, help="Stop after about this time; --resume goes on later.")]


def _fields(changes: list[str]) -> dict[str, Any]:
    """ "teacher_weight=0.5" → {"teacher_weight": 0.5}; a value that is no TOML is taken as text."""
    from ..models.training.errors import TrainingError

    fields: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name.strip().isidentifier():
            raise TrainingError(f"--set takes FIELD=VALUE, not {change!r}")
        try:
            fields[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            fields[name.strip()] = value
    return fields


def _train_command(stage: str, what: str) -> None:
    """Register `rdsr train STAGE`; the stages take the same options."""
    config, init = {
        "stage1": ("small-stage1", ""),
        "stage2": ("small-stage2", " --init runs/stage1/ema.safetensors"),
        "qat": ("qat", " --init rdsr-small"),
    }[stage]
    example = f"rdsr train {stage} --config {config} --data photos/{init} -o runs/{stage}"

    @train_app.command(stage, help=f"{what}\n\nExample: {example}")
    @command
    def run(
        config: ConfigOption,
        output: RunOption,
        data: DataOption = None,
        teacher: TeacherOption = None,
        resume: ResumeOption = False,
        validation: ValidationOption = None,
        init: InitOption = None,
        changes: SetOption = None,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        seconds: SecondsOption = None,
    ) -> None:
        from ..runtime.host.cpu import available_threads

        overrides: dict[str, Any] = _fields(changes or [])
        if init:
            overrides["init"] = str(init)
        if data:
            overrides["data"] = [str(folder) for folder in data]
        if teacher:
            overrides["teacher"] = [str(folder) for folder in teacher]
        options = {"resume": resume, "validation": validation, "device": device, "seconds": seconds}
        options["threads"] = threads or available_threads()
        _train(stage, config, overrides, output, options)


_train_command("stage1", "Stage 1: train latent prior encoder and decoder together.")
_train_command("stage2", "Stage 2: train condition encoder, denoiser and decoder, with the latent prior encoder frozen.")
_train_command(
    "qat", "Quantization-aware fine-tuning: the fused decoder adapts to int8; the checkpoint keeps the float network, too."
)


@train_app.command()
@command
def plot(
    runs: Annotated[
        list[str], typer.Argument(metavar="[LABEL=]RUN[,RUN]...", help="Run folders or copies of their log.csv.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")],
) -> None:
    """Plot validation PSNR and loss over time. Runs joined by commas follow each other in one curve.

    Example: rdsr train plot small=runs/small-1,runs/small-2 tiny=runs/tiny -o curve.png
    """
    from ..benchmarks.errors import BenchmarkError
    from ..benchmarks.training.curves import plot_runs

    curves: dict[str, list[Path]] = {}
    for entry in runs:
        if Path(entry).exists():
            label, paths = entry, [entry]
        else:
            name, equals, listed = entry.partition("=")
            label, paths = name, (listed if equals else name).split(",")
        if label in curves:
            raise BenchmarkError(f"two curves have the label {label}")
        curves[label] = [Path(path) for path in paths]
    plot_runs(curves, output)
    stdout.print(str(output))
