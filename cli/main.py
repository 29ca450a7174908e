"""The `rdsr` command line: all commands put together."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from .bench import bench_app
from .console import stdout
from .export import export, info, verify
from .latency import latency, report
from .train import train_app
from .upscale import upscale

app = typer.Typer(
    name="rdsr",
    help="Diffusion super-resolution on CPUs: export a checkpoint to a verified bundle, run it without torch, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(export)
app.command()(verify)
app.command()(info)
app.command()(upscale)
bench_app.command()(latency)
bench_app.command()(report)
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        stdout.print(f"rdsr {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `rdsr` command."""
    # SIGTERM becomes an ordinary exit, so that a terminated process leaves nothing half-written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app()
