"""The `rdsr` command line: options in, one sentence or one table or one JSON object out."""

from __future__ import annotations

import dataclasses
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from . import latency as cli_latency  # noqa: F401  # it adds its commands to `bench`
from .bench import bench_app
from .console import (
    FAILED,
    GATE_NOT_MET,
    BackendOption,
    JsonOption,
    MemoryLimitOption,
    PrecisionOption,
    SeedOption,
    ThreadsOption,
    command,
    counted,
    exit_code_of,
    print_json,
    quantization_tables,
    stderr,
    stdout,
    steps_shown,
    variant_table,
)
from .train import train_app

app = typer.Typer(
    name="rdsr",
    help="Diffusion super-resolution on CPUs: export a checkpoint to a verified bundle, run it without torch, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")


# -- export, verify, info ---------------------------------------------------------------------------------------------


@app.command()
@command
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(help="File, or a name: rdsr-small and rdsr-tiny (shipped), rdsr-base and diffir (random weights)."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")],
    precision: Annotated[
        str | None, typer.Option(help="Comma list of fp32,bf16,int8; default: all this CPU can prove.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of pictures for int8: two thirds choose ranges, a third judges.")
    ] = None,
    max_psnr_drop: Annotated[float, typer.Option(min=0, help="What int8 may cost against fp32, in dB PSNR-Y.")] = 0.05,
    post_training: Annotated[
        bool, typer.Option("--post-training", help="Quantize anew what went through `train qat`.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="T of the reverse process; default: the checkpoint's.")
    ] = None,
    seed: SeedOption = 0,
    arch: Annotated[str | None, typer.Option(help="Architecture, where the keys shall not decide.")] = None,
    key_map: Annotated[Path | None, typer.Option(help="JSON file {pattern: replacement} that renames foreign keys.")] = None,
    single_graph: Annotated[bool, typer.Option(help="Whether to write model.onnx and its OpenVINO IR.")] = True,
    keep_failed: Annotated[bool, typer.Option(help="Write a result that failed its proof to OUTPUT.failed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle, once the new one has passed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a trained checkpoint into a verified bundle.

    Example: rdsr export rdsr-small.safetensors -o rdsr-small.bundle --precision fp32,int8
    """
    from ..export.staging import check_target

    check_target(output, force=force)  # before torch is imported, which takes seconds
    from ..export.exporter import ExportOptions, export_checkpoint
    from ..models.registry import resolve_checkpoint

    with steps_shown("export") as progress, tempfile.TemporaryDirectory() as scratch:
        options = ExportOptions(
            checkpoint=resolve_checkpoint(checkpoint, Path(scratch)),
            output=output,
            precisions=None if precision is None else tuple(p.strip() for p in precision.split(",") if p.strip()),
            calibration=calibration,
            max_psnr_drop=max_psnr_drop,
            post_training=post_training,
            arch=arch,
            key_map=key_map,
            steps=steps,
            seed=seed,
            single_graph=single_graph,
            force=force,
            keep_failed=keep_failed,
        )
        result = export_checkpoint(options, progress)
    report = result.to_dict()
    if as_json:
        print_json(report)
    else:
        for table in quantization_tables(report["quantization"]) if result.quantization else []:
            stdout.print(table)
        stdout.print(variant_table(report))
        fusion = report["fusion"]
        stdout.print(
            f"fusion: {fusion['blocks']} blocks, error {fusion['max_abs_err']:.1e} in float32, "
            f"{fusion['max_rel_err_float64']:.1e} relative in float64"
        )
        stdout.print(f"{f'wrote {result.output}' if result.passed else 'failed'} in {result.seconds:.1f} s")
    if not result.passed:
        failed = sorted({f"{v.precision} on {v.engine}" for v in result.verification.variants if v.passed is False})
        fate = f"kept as {result.output}" if result.kept else "not written (--keep-failed keeps it)"
        stderr.quiet = False
        if result.only_gate_failed:
            drop = report["quantization"]["psnr_drop_db"]
            stderr.print(
                f"rdsr: int8 loses {drop} dB, more than the {max_psnr_drop} allowed, and the bundle was {fate}; "
                "`rdsr train qat` lowers it, --max-psnr-drop allows it, --precision fp32 leaves int8 out",
                style="red",
            )
            raise typer.Exit(GATE_NOT_MET)
        stderr.print(f"rdsr: the bundle failed its proof ({', '.join(failed)}) and was {fate}", style="red")
        raise typer.Exit(FAILED)


@app.command()
@command
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Re-prove a bundle on this machine, without torch: checksums, then every engine and precision.

    Example: rdsr verify rdsr-small.bundle
    """
    from ..runtime.bundle import Bundle
    from ..runtime.verify import verify as run

    with steps_shown("verify") as progress:
        result = run(Bundle(bundle), threads=threads, progress=progress)
    report = result.to_dict()
    if as_json:
        print_json(report)
    else:
        stdout.print(variant_table(report))
        stdout.print("passed" if result.passed else "FAILED")
    if not result.passed:
        raise typer.Exit(FAILED)


@app.command()
@command
def info(
    path: Annotated[str, typer.Argument(help="Bundle folder, checkpoint file, or a shipped model's name.")],
    as_json: JsonOption = False,
) -> None:
    """Say what a bundle or a checkpoint is, and how it would run here.

    Example: rdsr info rdsr-small.bundle
    """
    if Path(path).is_dir():
        from ..runtime.describe import describe_bundle

        report = describe_bundle(Path(path))
    else:
        from ..models.registry import load_model, resolve_checkpoint

        report = load_model(resolve_checkpoint(path)).describe()
    if as_json:
        print_json(report)
        return
    table = Table(show_header=False, title=path)
    for key, value in report.items():
        shown = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        table.add_row(key, ", ".join(map(str, shown)) if isinstance(shown, (list, tuple)) else str(shown))
    stdout.print(table)


# -- upscale ----------------------------------------------------------------------------------------------------------


@app.command()
@command
def upscale(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Picture files, folders, or quoted globs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File for one picture, else a folder.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; default: the one the package carries.")] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    memory_limit: MemoryLimitOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Enlarge pictures; existing outputs are replaced.

    Example: rdsr upscale holiday/ -o larger/
    """
    from ..runtime.batch import plan_files, upscale_files
    from ..runtime.upscaler import Upscaler

    jobs = plan_files(inputs, output)
    upscaler = Upscaler.load(
        bundle, backend=backend, precision=precision, threads=threads, memory_limit=memory_limit, seed=seed
    )
    with counted("upscale", len(jobs.files)) as (progress, task):
        done, failed = upscale_files(upscaler, jobs, lambda: progress.advance(task))
    effective = upscaler.effective
    if as_json:
        report: dict[str, Any] = {
            "outputs": [dataclasses.asdict(result) for result in done],
            "failed": [{"input": str(path), "error": str(error)} for path, error in failed],
            "backend": effective.backend,
            "precision": effective.precision,
            "threads": effective.threads,
        }
        print_json(report)
    else:
        for result in done:
            sizes = " → ".join(f"{width}×{height}" for height, width in (result.size_in, result.size_out))
            stdout.print(f"{result.output}  {sizes}  {result.ms:.0f} ms")
        if done:
            stderr.print(f"{effective.backend} {effective.precision}, {effective.threads} threads ({effective.reason})")
    for _, error in failed:
        stderr.print(f"rdsr: {error}", style="red")
    if failed:
        raise typer.Exit(FAILED if jobs.many else exit_code_of(failed[0][1]) or FAILED)


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
    # A terminated process leaves nothing half-written either: turn SIGTERM into an ordinary way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app()
