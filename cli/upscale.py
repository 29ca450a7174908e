"""`rdsr upscale`: enlarge picture files."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from .console import binary_stdin, binary_stdout, counted, print_json, printable, stderr, stdout
from .exit_codes import FAILED, INTERRUPTED, Terminated, command, exit_code_of
from .options import (
    BackendOption,
    BundleOption,
    CompressionOption,
    FormatOption,
    FramesOption,
    JsonOption,
    LosslessOption,
    MaxPixelsOption,
    MemoryLimitOption,
    PrecisionOption,
    QualityOption,
    ScaleOption,
    SeedOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from ..runtime.batch import Batch, BatchProgress
    from ..runtime.file_plan import FilePlan
    from ..runtime.upscaler import Upscaler

__all__ = ["upscale"]

_LINES = 10
"""Skipped files that are listed line by line; more are counted."""


@command
def upscale(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Picture files, folders, quoted globs, or - for the standard input."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", help="A file for one picture, otherwise a folder; - for the standard output.")
    ],
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    memory_limit: MemoryLimitOption = None,
    seed: SeedOption = 0,
    scale: ScaleOption = None,
    format_: FormatOption = None,
    quality: QualityOption = None,
    lossless: LosslessOption = False,
    compression: CompressionOption = None,
    frames: FramesOption = "first",
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Also take the folders below each folder, and mirror them in the output.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what an earlier run has made of the same input, bundle and options.")
    ] = False,
    max_pixels: MaxPixelsOption = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where: this process, or the workers of a Ray cluster (extra [ray]).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster, e.g. ray://head:10001 or auto; default: one on this machine.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Enlarge pictures. Existing outputs are replaced. Inputs and output may be addresses, e.g. s3://bucket/in.

    Example: rdsr upscale holiday/ -o larger/
    """
    from ..runtime.batch import Batch, BatchOptions
    from ..runtime.cluster.addresses import is_address
    from ..runtime.errors import OptionError
    from ..runtime.file_plan import plan_files
    from ..runtime.pictures.formats import WriteOptions
    from ..runtime.upscaler import Upscaler

    if output == "-" and as_json:
        raise OptionError("--json and -o - exclude each other: both write to the standard output")
    write = WriteOptions(format_, quality, lossless or None, compression, scale)
    if address is not None and engine != "ray":
        raise OptionError("--address is that of a Ray cluster: it needs --engine ray")
    if engine == "ray" or any(map(is_address, (output, *inputs))):
        from .upscale_addresses import upscale_addresses

        if frames != "first":
            raise OptionError("--frames all goes together with neither addresses nor --engine ray")
        load = {"bundle": bundle, "backend": backend, "precision": precision, "threads": threads}
        upscale_addresses(
            inputs, output, write, load | {"memory_limit": memory_limit, "seed": seed}, engine=engine, address=address,
            recursive=recursive, resume=resume, max_pixels=max_pixels, as_json=as_json,
        )  # fmt: skip
        return
    plan = plan_files(inputs, output, options=write, recursive=recursive)
    _check_streams(plan)
    upscaler = Upscaler.load(
        bundle, backend=backend, precision=precision, threads=threads, memory_limit=memory_limit, seed=seed
    )
    options = BatchOptions(write, frames, max_pixels, resume)
    interrupted: int | None = None
    with tempfile.TemporaryFile() if output == "-" else contextlib.nullcontext() as encoded:
        batch = Batch(upscaler, plan, options, stdin=binary_stdin(), stdout=encoded)
        try:
            with _shown(len(plan.files)) as progress:
                batch.run(progress)
        except (KeyboardInterrupt, Terminated) as stop:
            interrupted = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else int(str(stop.code))
        with _second_signal_kills():
            if encoded is not None and batch.results:
                _send(encoded)
            if as_json:
                print_json(_report(batch, upscaler) | ({} if interrupted is None else {"interrupted": True}))
            else:
                _print(batch, upscaler, stderr if output == "-" else stdout)
                if interrupted is not None:
                    stderr.print(f"rdsr: interrupted: {len(batch.results)} of {len(plan.files)} pictures are done")
    if interrupted is not None:
        raise typer.Exit(interrupted)
    if failed := batch.failed:
        raise typer.Exit(FAILED if plan.many else exit_code_of(failed[0][1]) or FAILED)


def _check_streams(plan: FilePlan) -> None:
    """Raise if a picture is to come from a terminal, or to go to one."""
    from ..runtime.errors import OutputError, PictureError
    from ..runtime.inputs import STANDARD_STREAM

    file = plan.files[0]
    if file.input == STANDARD_STREAM:
        stream = binary_stdin()
        if stream is None or stream.closed:
            raise PictureError("the standard input is closed, so no picture can come from it")
        if stream.isatty():
            raise PictureError("the standard input is a terminal: send a picture into it, as in `… < picture.png`")
    if file.output == STANDARD_STREAM:
        target = binary_stdout()
        if target is None:
            raise OutputError("the standard output is closed, so no picture can be written to it")
        if target.isatty():
            raise OutputError("the standard output is a terminal: send the picture into a file, as in `… > larger.png`")


@contextlib.contextmanager
def _shown(pictures: int) -> Iterator[Any]:
    """A bar on stderr: pictures of many, or tiles of a single one. Yields the callback that moves it."""
    with counted("upscale", pictures) as (bar, task):

        def show(state: BatchProgress) -> None:
            name = printable(state.input)
            if state.pictures > 1:
                bar.update(task, completed=state.done, description=f"upscale {name}, pictures")
            else:
                bar.update(task, completed=state.tiles_done, total=state.tiles, description=f"upscale {name}, tiles")

        yield show


@contextlib.contextmanager
def _second_signal_kills() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process at once: all pictures are whole, and a second report would garble this one."""
    former = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _send(encoded: Any) -> None:
    """Copy the encoded picture to the standard output. Raises `OutputError`."""
    from ..runtime.errors import OutputError

    target = binary_stdout()
    if target is not None:
        encoded.seek(0)
        try:
            shutil.copyfileobj(encoded, target)
            target.flush()
        except OSError as error:
            raise OutputError(f"cannot write to the standard output: {error.strerror}") from error


def _report(batch: Batch, upscaler: Upscaler) -> dict[str, Any]:
    effective = upscaler.effective
    return {
        "outputs": [dataclasses.asdict(result) for result in batch.results],
        "skipped": [dataclasses.asdict(skipped) for skipped in batch.skipped],
        "failed": [{"input": str(path), "error": str(error)} for path, error in batch.failed],
        "backend": effective.backend,
        "precision": effective.precision,
        "threads": effective.threads,
    }


def _print(batch: Batch, upscaler: Upscaler, console: Console) -> None:
    from ..runtime.batch import ALREADY_DONE, INTERRUPTED

    for result in batch.results:
        sizes = " → ".join(f"{width}×{height}" for height, width in (result.size_in, result.size_out))
        console.print(f"{printable(result.output)}  {sizes}  {result.ms:.0f} ms")
        for warning in result.warnings:
            stderr.print(f"rdsr: {printable(result.input)}: {printable(warning)}", style="yellow")
    if batch.results:
        effective = upscaler.effective
        stderr.print(f"{effective.backend} {effective.precision}, {effective.threads} threads ({effective.reason})")
    if done := sum(skipped.reason == ALREADY_DONE for skipped in batch.skipped):
        stderr.print(f"rdsr: skipped {done} {'picture' if done == 1 else 'pictures'} that an earlier run has done")
    left_out = [skipped for skipped in batch.skipped if skipped.reason not in (ALREADY_DONE, INTERRUPTED)]
    for skipped in left_out[:_LINES]:
        stderr.print(f"rdsr: skipped {printable(skipped.input)}: {printable(skipped.reason)}")
    if len(left_out) > _LINES:
        stderr.print(f"rdsr: skipped {len(left_out) - _LINES} more files (--json lists them all)")
    for _, error in batch.failed:
        stderr.print(f"rdsr: {printable(error)}", style="red")
