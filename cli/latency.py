"""`rdsr bench latency` and `rdsr bench report`: time models on engines, and show all results on one page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .bench import need_matplotlib, parse_sizes, show_rows
from .console import print_json, stderr, stdout, steps_shown
from .exit_codes import FAILED, command
from .options import Engine, JsonOption, SizeOption

__all__ = ["latency", "report"]

_SWEPT_SIZES = ("64x64", "128x128", "256x256", "512x512", "1024x1024")
_SWEPT_BATCHES = (1, 2, 4, 8)
_NOT_SHOWN = ("p99_ms", "conversion_ms", "graphs_ms", "runs", "gflops", "error", "stable", "batch")
"""Columns that only the files show: a terminal has no room for them."""


@command
def latency(
    model: Annotated[
        list[str] | None,
        typer.Option(help="rdsr-base, rdsr-small, …, diffir, bicubic, span, …, or a bundle, checkpoint, ONNX or IR file."),
    ] = None,
    backend: Annotated[
        list[Engine] | None, typer.Option(help="Engine; may be repeated; default: all except torch-compile.")
    ] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, bf16, int8, separated by commas; default: all.")] = None,
    size: SizeOption = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Number of threads; default: all that affinity and quota allow.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, max=256, help="Pictures per call; may be repeated.")] = None,
    sweep: Annotated[
        Literal["size", "threads", "batch"] | None, typer.Option(help="Show how time grows, with fitted exponents.")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1, help="Seconds for all rows together; each peak takes some 10 s more.")
    ] = 600.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Largest number of interleaved rounds.")] = 5,
    isa_cap: Annotated[
        str | None, typer.Option(help="Limit the rows to ONEDNN_MAX_CPU_ISA=…, e.g. AVX512_CORE_VNNI (Cascade Lake).")
    ] = None,
    peaks: Annotated[bool, typer.Option(help="Measure the machine's peak, to give each row's share of it.")] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for latency.json and .md (or sweep-…); resumes a run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time models on engines, by default at 128×128 LR, with ratios to DiffIR in torch eager float32.

    Each row runs in its own processes, and the rounds of all rows are interleaved.

    Example: rdsr bench latency --model rdsr-small --model diffir --threads 2 -o bench/
    """
    from ..atomic import atomic_write
    from ..benchmarks.errors import BenchmarkError
    from ..benchmarks.latency import measure as bench
    from ..benchmarks.report.tables import LATENCY_COLUMNS, SWEEP_COLUMNS, write_table
    from ..benchmarks.subjects.find import find_subject
    from ..benchmarks.subjects.peers import PEERS, published
    from ..runtime.files import dump_json
    from ..runtime.host import cpu

    swept = _SWEPT_SIZES if sweep == "size" else ("128x128",)
    sizes = parse_sizes(size, swept)
    counts = threads or (_powers(cpu.process_threads()) if sweep == "threads" else [cpu.available_threads()])
    batches = batch or (list(_SWEPT_BATCHES) if sweep == "batch" else [1])
    if isa_cap is not None and isa_cap.upper() not in cpu.isa_caps():
        raise BenchmarkError(f"no instruction set is called {isa_cap!r}; oneDNN knows {', '.join(cpu.isa_caps())}")
    axes: dict[str, list[Any]] = {"size": sizes, "threads": counts, "batch": batches}
    if sweep is not None and any(len(values) > 1 for axis, values in axes.items() if axis != sweep):
        raise BenchmarkError(f"a sweep over {sweep} wants one value of everything else")
    wanted = model or ["rdsr-base", "rdsr-small", "rdsr-photo", "rdsr-tiny", "diffir", "bicubic"]
    with steps_shown("latency") as progress:
        precisions = [each.strip() for given in precision or [] for each in given.split(",")]
        subjects = [find_subject(name, progress, precisions) for name in dict.fromkeys(wanted)]
        jobs = bench.jobs_of(
            subjects,
            backends=backend or [name for name in bench.BACKENDS if name != "torch-compile"],
            precisions=precisions,
            sizes=sizes,
            batches=batches,
            threads=counts,
            isa_cap=isa_cap,
        )
        name = "latency" if sweep is None else f"sweep-{sweep}"
        options = bench.Options(budget=budget, rounds=rounds, isa_cap=isa_cap, sweep=sweep, peaks=peaks)
        with tempfile.TemporaryDirectory() as scratch:
            partial = (output or Path(scratch)) / f"{name}.partial.json"
            report = bench.measure_latency(jobs, options, partial=partial, progress=progress)
    rows = [
        row | {"size": "×".join(map(str, row["size"])), "graphs_ms": _listed(row["graphs_ms"])} for row in report["rows"]
    ]
    columns = {
        key: LATENCY_COLUMNS[key]
        for key in LATENCY_COLUMNS
        if key not in ("graphs_ms", "conversion_ms") or any(row[key] for row in rows)
    }
    if sweep is not None:
        fits = {(fit["model"], fit["backend"], fit["precision"]): fit for fit in report["fits"]}
        rows = [
            row | {key: fits[row["model"], row["backend"], row["precision"]][key] for key in ("exponent", "steepest")}
            for row in rows
        ]
        columns |= {key: SWEEP_COLUMNS[key] for key in ("exponent", "steepest")}
    if output is not None:
        write_table(output, name, report, columns, rows)
        if sweep is None:
            peers = [name for name in wanted if name in PEERS]
            atomic_write(output / "peers.json", dump_json(published(peers)).encode())
        (output / f"{name}.partial.json").unlink(missing_ok=True)
    show_rows(report, {key: columns[key] for key in columns if key not in _NOT_SHOWN}, rows, as_json)
    for row in rows if not as_json else ():
        if row["conversion_ms"]:
            named = f"{row['model']}, {row['backend']} {row['precision']}, {row['size']}"
            stdout.print(f"{named}: pictures to floats and back take {row['conversion_ms']:.1f} ms beside it")
        if row["graphs_ms"]:
            stdout.print(f"{row['model']}, {row['backend']} {row['precision']}, {row['size']}: {row['graphs_ms']} ms a run")
    _say_what_went_wrong(report)
    failures = [row["error"] or row["failed_later"] for row in report["rows"]]
    if any(failure and not failure.startswith(bench.NOT_RUN) for failure in failures):
        raise typer.Exit(FAILED)


def _listed(graphs: dict[str, float] | None) -> str:
    return ", ".join(f"{role} {milliseconds:.0f}" for role, milliseconds in (graphs or {}).items())


def _say_what_went_wrong(report: dict[str, Any]) -> None:
    def named(row: dict[str, Any]) -> str:
        return f"{row['model']}, {row['backend']} {row['precision']}, {row['size'][0]}×{row['size'][1]}"

    from ..benchmarks.latency.rows import LEAST_ROUNDS

    for sentence in report["peak_errors"]:
        stderr.print(f"rdsr: {sentence}", style="red")
    few: list[str] = []
    for row in report["rows"]:
        if row["error"]:
            stderr.print(f"rdsr: {named(row)}: {row['error']}", style="red")
        elif row["failed_later"]:
            times = "one round" if row["rounds"] == 1 else f"{row['rounds']} rounds"
            stderr.print(f"rdsr: {named(row)}: failed after {times}: {row['failed_later']}", style="red")
        elif row["rounds"] < LEAST_ROUNDS:
            few.append(named(row))
        elif not row["stable"]:
            stderr.print(f"rdsr: {named(row)} is not stable: the medians of its rounds spread by {row['spread']:.0%}")
    if few:
        stderr.print(f"rdsr: fewer than {LEAST_ROUNDS} rounds, so their stability is not known: {'; '.join(few)}")


def _powers(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself."""
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})


@command
def report(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder with latency.json and other results.")],
    readme: Annotated[
        Path | None, typer.Option(help="Markdown file; the table replaces its text between the bench marks.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page and its Markdown twin from the results in a folder: tables, ratios, plots, crops.

    Example: rdsr bench report -o bench/
    """
    need_matplotlib(output)
    from ..benchmarks.report.page import update_readme, write_report

    paths = write_report(output)
    if readme is not None:
        update_readme(readme, output)
    if as_json:
        print_json({"html": str(paths.html), "markdown": str(paths.markdown), "plots": [str(path) for path in paths.plots]})
    else:
        stdout.print(f"{paths.html}\n{paths.markdown}")
