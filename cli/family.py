"""`rdsr train family`: train the whole family unattended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .console import print_json, print_table, stderr, stdout
from .exit_codes import command
from .options import DeviceOption, JsonOption, ThreadsOption

family_app = typer.Typer(no_args_is_help=True, help="Train the whole family unattended: resumable, at the lowest priority.")

RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of all runs, outside the checkout.")]
PlanOption = Annotated[
    Path | None,
    typer.Option("--plan", help="TOML file of members, stages and shares; default: models/training/family.toml."),
]


def _plan(path: Path | None) -> Any:
    from ..models.training.family import DEFAULT_PLAN, FamilyPlan

    return FamilyPlan.load(path or DEFAULT_PLAN)


@family_app.command()
@command
def run(
    runs: RunsOption,
    plan: PlanOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    slices: Annotated[int | None, typer.Option(min=1, help="Stop after this number of slices; default: never.")] = None,
) -> None:
    """Train until stopped, a slice at a time: the member that is furthest behind its share of the time is next.

    Ctrl-C, a kill or a power cut cost a few minutes at most. The same command goes on, also on another machine.

    Example: rdsr train family run --runs ../runs
    """
    from ..models.training.family_runner import run_family
    from ..runtime.host.cpu import available_threads

    def report(line: str) -> None:
        stdout.print(f"{time.strftime('%Y-%m-%d %H:%M')}  {line}")

    run_family(_plan(plan), runs, threads=threads or available_threads(), device=device, slices=slices, report=report)


@family_app.command()
@command
def status(runs: RunsOption, plan: PlanOption = None, as_json: JsonOption = False) -> None:
    """Show stage, step, minutes and validation PSNR of every member, and its best values so far.

    Example: rdsr train family status --runs ../runs
    """
    from ..models.training.family_runner import status_of

    report = status_of(_plan(plan), runs)
    if as_json:
        print_json(report)
        return
    columns = ("member", "stage", "step", "minutes", "PSNR-Y now (dB)", "best so far", "best in int8")
    table = Table(*columns, title=f"{runs}: {report['state']}; {Path(report['validation']).name}")
    for row in report["members"]:
        numbers = ("" if row[key] is None else f"{row[key]:.3f}" for key in ("psnr_y", "best", "best_int8"))
        table.add_row(
            row["member"] + (" ←" if row["now"] else ""),
            f"round {row['round']}, {row['stage']}",
            f"{row['step']} of {row['iterations'] or '?'}",
            f"{row['minutes']:.1f}",
            *numbers,
        )
    print_table(table)
    for row in report["members"]:
        if row["failed"]:
            stdout.print(f"{row['member']} failed: {row['failed']}", style="red")


@family_app.command()
@command
def pause(runs: RunsOption) -> None:
    """Stop training at the next step, and keep it stopped over restarts. Returns once the cores are free.

    Example: rdsr train family pause --runs ../runs
    """
    from ..models.training.family_runner import pause_family

    pause_family(runs)
    stdout.print(f"{runs} is paused")


@family_app.command("continue")
@command
def go_on(runs: RunsOption) -> None:
    """Let a paused family go on.

    Example: rdsr train family continue --runs ../runs
    """
    from ..models.training.family_runner import continue_family, is_running

    continue_family(runs)
    stdout.print(f"{runs} goes on" if is_running(runs) else f"{runs} is no longer paused; nothing is running there")


@family_app.command()
@command
def take(
    runs: RunsOption,
    member: Annotated[str, typer.Option("--member", help="A member of the plan: tiny, small, small-x2, photo or base.")],
    plan: PlanOption = None,
    test: Annotated[
        list[Path] | None, typer.Option("--test", help="Test set folder; its PSNR goes on the card; may be repeated.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Folder for weights and card; default: models/weights.")
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Ship a member's best finished weights with their card, but only if the validation PSNR has risen.

    Example: rdsr train family take --runs ../runs --member small --test Set5
    """
    from ..benchmarks.training.ship import take_member
    from ..runtime.host.cpu import available_threads

    taken = take_member(
        _plan(plan), member, runs, tests=test or (), weights=weights, threads=threads or available_threads(),
        progress=lambda step: stderr.print(f"{member}: {step}"),
    )  # fmt: skip
    stdout.print(taken)


@family_app.command()
@command
def adopt(
    checkpoint: Annotated[Path, typer.Argument(help="Weights trained elsewhere, e.g. best.safetensors of a GPU slice.")],
    runs: RunsOption,
    member: Annotated[str, typer.Option("--member", help="A member of the plan: tiny, small, small-x2, photo or base.")],
    plan: PlanOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure weights that were trained elsewhere. If they are the best, the member's next round starts from them.

    Example: rdsr train family adopt out/best.safetensors --runs ../runs --member small
    """
    from ..benchmarks.training.ship import adopt_weights
    from ..runtime.host.cpu import available_threads

    stdout.print(adopt_weights(_plan(plan), member, runs, checkpoint, threads=threads or available_threads()))
