"""`rdsr upscale`: enlarge picture files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import counted, print_json, stderr, stdout
from .exit_codes import FAILED, command, exit_code_of
from .options import BackendOption, BundleOption, JsonOption, MemoryLimitOption, PrecisionOption, SeedOption, ThreadsOption

__all__ = ["upscale"]


@command
def upscale(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Picture files, folders, or quoted globs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A file for one picture, otherwise a folder.")],
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    memory_limit: MemoryLimitOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Enlarge pictures. Existing outputs are replaced.

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
