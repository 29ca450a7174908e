"""`rdsr bench`: measure quality, int8, load, the runtime, the latent prior, candidates and ablations, write crops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from .console import print_json, print_table, stderr, stdout, steps_shown
from .exit_codes import FAILED, command, fail
from .options import (
    BackendOption,
    BundlesOption,
    DegradationOption,
    JsonOption,
    PrecisionOption,
    SizeOption,
    ThreadsOption,
)

ABLATIONS = Path(__file__).parents[1] / "benchmarks" / "ablations.toml"
Columns = Mapping[str, Sequence[str]]
bench_app = typer.Typer(no_args_is_help=True, help="Measure quality, speed and load, and report the results.")


@bench_app.command()
@command
def quality(
    dataset: Annotated[list[Path], typer.Option("--dataset", help="Data set folder (HR/, LRx4/); may be repeated.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[DIR]...", help="More data set folders.")] = None,
    bundle: BundlesOption = None,
    onnx: Annotated[list[Path] | None, typer.Option("--onnx", help="ONNX file of any upscaler; may be repeated.")] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option("--checkpoint", help="Checkpoint to run in torch; may be repeated.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="As in `bench latency`: rdsr-small, bicubic, …; may be repeated.")
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Add the drop of each bundle against its own fp32, mean and worst.")
    ] = False,
    degradation: DegradationOption = None,
    with_bicubic: Annotated[bool, typer.Option("--bicubic", help="Add bicubic enlargement as a row.")] = False,
    backend: BackendOption = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, int8, separated by commas.")] = "auto",
    threads: ThreadsOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for quality.json and quality.md.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure PSNR and SSIM on data sets (Y of BT.601, border cropped, 8-bit outputs). Default: the package's bundle.

    Example: rdsr bench quality --dataset Set5 --bundle rdsr-small.bundle --precision fp32
    """
    from ..benchmarks.errors import BenchmarkError
    from ..benchmarks.host import stamp
    from ..benchmarks.quality import measure as bench
    from ..benchmarks.report.tables import DROP_COLUMNS, QUALITY_COLUMNS, write_table
    from ..benchmarks.subjects.find import find_subject

    wanted = [p.strip() for p in precision.split(",") if p.strip()] or ["auto"]
    with steps_shown("quality") as progress:
        candidates = [bench.bundle(b, backend=backend, precision=p, threads=threads) for b in bundle or [] for p in wanted]
        candidates += [bench.onnx_file(path, backend=backend, threads=threads) for path in onnx or []]
        candidates += [bench.torch_checkpoint(name, threads=threads) for name in checkpoint or []]
        failures: list[str] = []
        for subject in [find_subject(name, progress) for name in model or []]:
            found, failed = bench.of_subject(subject, backend=backend, precisions=wanted, threads=threads)
            candidates += found
            failures += failed  # the others go on
    if not candidates and not failures:
        candidates = [bench.bundle(None, backend=backend, precision=p, threads=threads) for p in wanted]
    if with_bicubic:
        candidates.append(bench.bicubic(candidates[0].scale if candidates else 4))
    if not candidates:
        fail("; ".join(failures), FAILED, as_json)
    against = {}
    if drop and not bundle and (onnx or checkpoint or model):
        raise BenchmarkError("--drop needs bundles: name them with --bundle, or name no model for the package's own")
    if drop:
        named: list[str | None] = [*bundle] if bundle else [None]
        references = [bench.bundle(b, backend=backend, precision="fp32", threads=threads) for b in named]
        against = {reference.model: reference for reference in references}
    columns, stamped = DROP_COLUMNS if drop else QUALITY_COLUMNS, stamp()

    def keep(so_far: list[bench.QualityRow]) -> None:
        if output is not None:
            rows = [dataclasses.asdict(row) for row in so_far]
            write_table(output, "quality", stamped | {"rows": rows}, columns, rows)

    with steps_shown("quality") as progress:
        sets = [*dataset, *(more or [])]
        measured, failed = bench.quality(candidates, sets, progress, against, degradation or (None,), keep)
    failures += failed
    if not measured:
        fail("; ".join(failures), FAILED, as_json)
    rows = [dataclasses.asdict(row) for row in measured]
    report = stamped | (rows[0] if len(rows) == 1 and not failures else {"rows": rows})
    if failures:
        report |= {"failures": failures}
    deliver("quality", report, columns, rows, output, as_json)
    for sentence in failures:
        stderr.print(f"rdsr: {sentence}", style="red")
    if failures:
        raise typer.Exit(FAILED)


def parse_sizes(given: list[str] | None, default: Sequence[str] = ("128x128", "272x480")) -> list[tuple[int, int]]:
    """ "128x128" → (128, 128)."""
    from ..benchmarks.errors import BenchmarkError

    sizes = []
    for text in given or default:
        height, _, width = text.lower().partition("x")
        if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise BenchmarkError(f"a size is HEIGHTxWIDTH in LR pixels, like 272x480, not {text!r}")
        sizes.append((int(height), int(width)))
    return sizes


@bench_app.command()
@command
def int8(
    model: Annotated[
        str, typer.Option("--model", help="Checkpoint, name of a shipped model (base), or diffir with random weights.")
    ] = "base",
    size: SizeOption = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Number of timed rounds.")] = 10,
    threads: ThreadsOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for int8.json and int8.md.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time int8 and fp32 on both engines, as graphs and from array to array, beside a bare stack of int8 convolutions.

    Example: rdsr bench int8 --model base --threads 2
    """
    from ..benchmarks.host import stamp
    from ..benchmarks.latency.int8 import measure_int8
    from ..benchmarks.report.tables import INT8_COLUMNS
    from ..runtime.host import cpu

    sizes = parse_sizes(size)
    with steps_shown("int8") as progress:
        measured = measure_int8(model, sizes=sizes, threads=threads, rounds=rounds, progress=progress)
    rows = [dataclasses.asdict(row) for row in measured]
    facts = {"cpu": cpu.cpu_name(), "isa": cpu.instruction_set(), "isa_cap": cpu.isa_cap()}
    report = stamp() | facts | {"rows": rows}
    shown = [row | {"size": "×".join(map(str, row["size"]))} for row in rows]
    deliver("int8", report, INT8_COLUMNS, shown, output, as_json)


@bench_app.command()
@command
def crops(
    dataset: Annotated[Path, typer.Option("--dataset", help="Data set folder (HR/, LRx4/).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG file to write.")],
    bundle: BundlesOption = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Name of a picture of the set; NAME:jpeg degrades it first. May be repeated."),
    ] = None,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Write crops of bicubic, the bundles and the original side by side as one PNG.

    Example: rdsr bench crops --dataset Set14 --name monarch --name zebra:jpeg -o crops.png
    """
    from ..benchmarks.quality import measure as bench
    from ..benchmarks.quality.crops import crop_strip

    bundles: Sequence[str | None] = bundle or [None]
    candidates = [bench.bundle(each, backend=backend, precision=precision, threads=threads) for each in bundles]
    crop_strip(candidates, dataset, output, names=name or [])
    stdout.print(str(output))


@bench_app.command()
@command
def prior(
    dataset: Annotated[Path, typer.Option("--dataset", help="Data set folder (HR/, LRx4/).")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="Checkpoint file, or a shipped model's name.")],
    windows: Annotated[list[int] | None, typer.Option(min=1, help="Side of a window in LR pixels; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds 0 … N−1 of the initial latent.")] = 10,
    degradation: DegradationOption = None,
    threads: ThreadsOption = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for prior.json and prior.md.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the effect of the latent prior: pooled over pictures or windows, from other pictures, from other seeds.

    Example: rdsr bench prior --checkpoint rdsr-small --dataset Kodak24
    """
    from ..benchmarks.host import stamp
    from ..benchmarks.quality.prior import measure_prior
    from ..benchmarks.report.tables import PRIOR_COLUMNS
    from ..runtime.host.cpu import available_threads

    used = threads or available_threads()
    with steps_shown("prior") as progress:
        measured = measure_prior(
            checkpoint,
            dataset,
            windows=windows or (24, 48, 96),
            seeds=seeds,
            degradations=degradation or (),
            threads=used,
            progress=progress,
        )
    rows = [dataclasses.asdict(row) for row in measured]
    facts = {"dataset": dataset.resolve().name, "degradations": degradation or [], "checkpoint": checkpoint, "threads": used}
    report = stamp() | facts | {"rows": rows}
    deliver("prior", report, PRIOR_COLUMNS, rows, output, as_json)


@bench_app.command()
@command
def candidates(
    config: Annotated[Path, typer.Option("--config", help="TOML file; see benchmarks/candidates.toml.")],
    data: Annotated[list[Path], typer.Option("--data", help="Folder of training pictures; may be repeated.")],
    validation: Annotated[Path, typer.Option("--validation", help="Data set folder (HR/, LRx4/) for the PSNR.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the runs, candidates.json, .md and .png.")],
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train network sizes briefly on one budget, and compare their PSNR and their latency at 128×128 LR.

    Example: rdsr bench candidates --config benchmarks/candidates.toml --data photos/ --validation Kodak24 -o runs/candidates
    """
    need_matplotlib(output)
    from ..benchmarks.host import stamp
    from ..benchmarks.training import candidates as bench
    from ..runtime.host.cpu import available_threads

    plan = bench.read_plan(config)
    used = threads or available_threads()
    with steps_shown("candidates") as progress:
        measured = bench.measure_candidates(plan, output, data=data, validation=validation, threads=used, progress=progress)
    columns, rows = bench.candidate_table(measured)
    report = stamp() | {"threads": used, "size": [bench.SIZE, bench.SIZE]}
    report |= {"rows": [dataclasses.asdict(row) for row in measured]}
    deliver("candidates", report, columns, rows, output, as_json, plot=partial(bench.plot_candidates, measured))


@bench_app.command()
@command
def ablations(
    data: Annotated[list[Path], typer.Option("--data", help="Folder of training pictures; may be repeated.")],
    validation: Annotated[Path, typer.Option("--validation", help="Data set folder (HR/, LRx4/) for the PSNR.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the runs, ablations.json and .md.")],
    config: Annotated[Path, typer.Option(help="TOML file; default: benchmarks/ablations.toml.")] = ABLATIONS,
    teacher: Annotated[list[Path] | None, typer.Option("--teacher", help="As in `rdsr train stage1`.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each with one thread.")] = 1,
    seconds: Annotated[float | None, typer.Option(min=0, help="Begin no further run after this time.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train variants of a network, all for the same processor time, and compare their PSNR. Finished runs are kept.

    Example: rdsr bench ablations --data photos/ --validation Kodak24 -o runs/ablations --jobs 2
    """
    from ..benchmarks.host import stamp
    from ..benchmarks.training import ablations as bench

    plan = bench.read_ablations(config)
    with steps_shown("ablations") as progress:
        measured = bench.measure_ablations(
            plan,
            output,
            data=data,
            teacher=teacher or (),
            validation=validation,
            jobs=jobs,
            seconds=seconds,
            progress=progress,
        )
    columns, rows = bench.ablation_table(measured, plan.seeds)
    report = stamp() | {"minutes": plan.minutes, "threads": 1, "seeds": list(plan.seeds)}
    report |= {"rows": [dataclasses.asdict(row) for row in measured]}
    deliver("ablations", report, columns, rows, output, as_json)


def need_matplotlib(output: Path | None) -> None:
    """Fail before the work, not after it, if `output` asks for a plot and matplotlib is missing."""
    if output is not None:
        import matplotlib.figure  # noqa: F401


def deliver(
    name: str,
    report: dict[str, Any],
    columns: Columns,
    rows: list[dict[str, Any]],
    output: Path | None,
    as_json: bool,
    plot: Callable[[Path], None] | None = None,
) -> None:
    """Write NAME.json, NAME.md and the plot NAME.png into the folder `output`, if there is one, and show the report."""
    from ..benchmarks.report.tables import write_table

    if output is not None:
        write_table(output, name, report, columns, rows)
        if plot is not None:
            plot(output / f"{name}.png")
    show_rows(report, columns, rows, as_json)


def show_rows(report: dict[str, Any], columns: Columns, rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print the report as one JSON object, or its rows as a table."""
    from ..benchmarks.report.tables import cells

    if as_json:
        print_json(report)
        return
    table = Table(*(Column(title, overflow="fold") for title, _ in columns.values()))
    for row in rows:
        table.add_row(*cells(columns, row))
    print_table(table)
