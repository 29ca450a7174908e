"""`rdsr bench load`, `service` and `runtime`: what a service needs to know."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .bench import deliver, need_matplotlib, parse_sizes
from .console import stdout, steps_shown
from .exit_codes import command
from .options import BackendOption, BundleOption, JsonOption, MemoryLimitOption, PrecisionOption, SizeOption, ThreadsOption

__all__ = ["load", "runtime", "service"]

_SIZES = ("64x64", "128x128", "96x160")
"""LR sizes of a mixed load."""


@command
def load(
    bundle: BundleOption = None,
    concurrency: Annotated[
        list[int] | None, typer.Option("--concurrency", min=1, max=1000, help="Number of callers; may be repeated.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Pictures per second that arrive (Poisson); default: a closed loop.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="Seconds of each load.")] = 20.0,
    size: SizeOption = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    memory_limit: MemoryLimitOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for load.json, load.md and load.png.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load one bundle with many callers: time of a call, throughput, fairness, and memory over time.

    Example: rdsr bench load --concurrency 1 --concurrency 4 --concurrency 16 --seconds 20
    """
    from ..benchmarks.host import stamp
    from ..benchmarks.report.tables import LOAD_COLUMNS
    from ..benchmarks.service.load import measure_load, plot_load
    from ..runtime.upscaler import Upscaler

    need_matplotlib(output)
    sizes = parse_sizes(size, _SIZES)
    upscaler = Upscaler.load(bundle, backend=backend, precision=precision, threads=threads, memory_limit=memory_limit)
    with steps_shown("load") as progress:
        callers = concurrency or (1, 2, 4, 16)
        measured = measure_load(upscaler, sizes=sizes, concurrency=callers, rate=rate, seconds=seconds, progress=progress)
    rows = [dataclasses.asdict(row) for row in measured]
    report = {
        **stamp(),
        "bundle": bundle or "default",
        "sizes": sizes,
        "memory_limit": upscaler.memory_limit,
        **dataclasses.asdict(upscaler.effective),
        "rows": rows,
    }
    deliver("load", report, LOAD_COLUMNS, rows, output, as_json, plot=partial(plot_load, measured))


@command
def service(
    bundle: BundleOption = None,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds of each load.")] = 20.0,
    queue: Annotated[int | None, typer.Option(min=0, help="--queue of the service; default: its own.")] = None,
    size: SizeOption = None,
    threads: ThreadsOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for service.json and service.md.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Load `rdsr serve` on loopback at and beyond its capacity, beside the library in one process.

    Example: rdsr bench service --threads 2 -o service/
    """
    from ..benchmarks.host import stamp
    from ..benchmarks.report.tables import SERVICE_COLUMNS
    from ..benchmarks.service.http import measure_service
    from ..runtime.host import cpu

    sizes = parse_sizes(size, _SIZES)
    count = threads or cpu.available_threads()
    with steps_shown("service") as progress:
        inside, share, measured = measure_service(
            bundle, sizes=sizes, threads=count, seconds=seconds, queue=queue, progress=progress
        )
    rows = [dataclasses.asdict(row) for row in measured]
    report = {
        **stamp(),
        "bundle": bundle or "default",
        "sizes": sizes,
        "threads": count,
        "queue": queue,
        "library_throughput": inside,
        "share_of_library": share,
        "rows": rows,
    }
    deliver("service", report, SERVICE_COLUMNS, rows, output, as_json)
    if not as_json:
        stdout.print(f"library: {inside:.1f} pictures/s; the service has {share:.0%} of that")


@command
def runtime(
    bundle: BundleOption = None,
    new_sizes: Annotated[int, typer.Option(min=10, max=10_000, help="Number of random sizes, 32² to 512².")] = 300,
    side: Annotated[
        list[int] | None, typer.Option(min=1, max=8192, help="Side of a picture to measure memory with; may be repeated.")
    ] = None,
    memory_limit: MemoryLimitOption = "256MiB",
    concurrency: Annotated[
        list[int] | None, typer.Option("--concurrency", min=2, max=1000, help="Number of callers; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds of each load; twenty rounds.")] = 1.0,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for runtime.json, runtime.md and runtime.png.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a service needs from the runtime: start, unseen sizes, memory under a limit, many callers.

    Example: rdsr bench runtime --side 64 --side 1024 -o runtime/
    """
    from ..benchmarks.host import stamp
    from ..benchmarks.report.tables import FIGURE_COLUMNS
    from ..benchmarks.service import runtime as bench
    from ..runtime.engines import BACKENDS
    from ..runtime.host import cpu
    from ..runtime.upscaler import Upscaler

    need_matplotlib(output)
    sides = side or (64, 256, 1024, 4096)
    limited = Upscaler.load(bundle, backend=backend, precision=precision, threads=threads, memory_limit=memory_limit)
    effective = limited.effective
    subject = bench.Subject(bundle, effective.backend, effective.precision, effective.threads)
    for length in sides:
        limited.plan(length, length)  # refuse now if it does not fit
    with steps_shown("runtime") as progress:
        asked = bench.Subject(bundle, backend, precision, effective.threads)
        others = [engine for engine in BACKENDS if limited.bundle.manifest.proven(subject.precision, engine)]
        starts = {engine: dataclasses.replace(subject, backend=engine) for engine in others}
        figures = bench.measure_start({"as asked": asked} | starts, progress)
        sizes = bench.measure_new_sizes(subject, new_sizes, progress)
        figures += sizes.figures()
        figures += bench.measure_memory(subject, sides, memory_limit or "256MiB", progress)
        figures += bench.measure_callers(subject, concurrency or (2, 4, 16), seconds, 20, progress)
    rows = [dataclasses.asdict(figure) for figure in figures]
    report = {
        **stamp(),
        "cpu": cpu.cpu_name(),
        "bundle": bundle or "default",
        **dataclasses.asdict(effective),
        "steady_ms": dict(zip(("offset", "per_pixel"), sizes.line(), strict=True)),
        "rows": rows,
        "new_sizes": dataclasses.asdict(sizes),
    }
    deliver("runtime", report, FIGURE_COLUMNS, rows, output, as_json, plot=partial(bench.plot_new_sizes, sizes))
