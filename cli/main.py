"""The `rdsr` command line: all commands put together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .bench import bench_app
from .bench_service import load, runtime, service
from .console import lost_output, prepare_streams, print_json, printed_json, stderr, stdout
from .exit_codes import BAD_INPUT, FAILED
from .export import export, info, verify
from .latency import latency, report
from .serve import serve
from .signals import watch_signals
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
app.command()(serve)
bench_app.command()(latency)
bench_app.command()(report)
for measuring in (load, service, runtime):
    bench_app.command()(measuring)
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
    prepare_streams()
    watch_signals()
    try:
        app()
    except SystemExit as done:
        if done.code == BAD_INPUT and "--json" in sys.argv and not printed_json():
            print_json({"error": "the command line is wrong: see the standard error", "exit_code": BAD_INPUT})
        lost = lost_output()
        if lost is not None:
            stderr.quiet = False
            stderr.print(f"rdsr: the report could not be written: {lost}", style="red")
        sys.exit(done.code or (FAILED if lost else 0))
