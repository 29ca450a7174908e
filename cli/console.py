"""How the command line talks: exit codes, one sentence for an error, tables, progress on stderr, JSON on stdout."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..runtime.files import dump_json

__all__ = [
    "BAD_INPUT",
    "FAILED",
    "GATE_NOT_MET",
    "INTERRUPTED",
    "BackendOption",
    "JsonOption",
    "MemoryLimitOption",
    "PrecisionOption",
    "SeedOption",
    "ThreadsOption",
    "command",
    "counted",
    "exit_code_of",
    "fail",
    "print_json",
    "quantization_tables",
    "stderr",
    "stdout",
    "steps_shown",
    "variant_table",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout, nothing else.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads; default: what affinity and cgroup quota allow.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the initial latent.")]
BackendOption = Annotated[str, typer.Option(help="auto, openvino or onnxruntime.")]
MemoryLimitOption = Annotated[
    str | None, typer.Option(help="Of all but the pictures themselves, e.g. 256MiB; tiles are cut to fit.")
]
PrecisionOption = Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")]

_WIDTH = None if sys.stdout.isatty() else 160  # tables that go to a file or a pipe are not squeezed into 80 columns
# No markup: file names and bundles may hold square brackets.
stdout = Console(soft_wrap=True, width=_WIDTH, markup=False, highlight=False)
stderr = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
Command = TypeVar("Command", bound=Callable[..., None])

FAILED, BAD_INPUT, GATE_NOT_MET, INTERRUPTED = 1, 2, 3, 130


def exit_code_of(error: Exception) -> int | None:
    """2 where the user's input is at fault, 1 where something failed while running, None for what is a bug."""
    from ..export.errors import ProofError
    from ..runtime.errors import EngineError, RdsrError

    if isinstance(error, RdsrError):
        return FAILED if isinstance(error, (EngineError, ProofError)) else BAD_INPUT
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "onnx", "onnxsim", "matplotlib", "psutil"):
        return FAILED
    return None


def sentence_of(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        extra = "bench" if error.name in ("matplotlib", "psutil") else "export"
        return f"this command needs {error.name}, which is not installed: pip install 'rdsr[{extra}]'"
    return " ".join(str(error).split())


def fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    stderr.print(f"rdsr: {sentence}", style="red")
    if as_json:
        print_json({"error": sentence, "exit_code": code})
    raise typer.Exit(code)


def command(function: Command) -> Command:
    """Turn the project's errors into one sentence and an exit code, Ctrl-C into 130, and keep `--json` output clean."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("as_json"))
        stderr.quiet = as_json
        logging.basicConfig(format="rdsr: %(message)s", level=logging.ERROR if as_json else logging.WARNING)
        try:
            function(*args, **options)
        except KeyboardInterrupt:
            stderr.print("rdsr: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            code = exit_code_of(error)
            if code is None:
                raise
            stderr.quiet = False
            fail(sentence_of(error), code, as_json)

    return wrapped  # type: ignore[return-value]


def print_json(content: Any) -> None:
    sys.stdout.write(dump_json(content))
    sys.stdout.flush()


@contextlib.contextmanager
def steps_shown(title: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr that shows the step a long job is in."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=stderr.quiet) as progress:
        task = progress.add_task(title, total=None)
        yield lambda step: progress.update(task, description=f"{title}: {step}")


def variant_table(report: dict[str, Any]) -> Table:
    title = f"{report['arch']} ×{report['scale']}, {report['params'] / 1e6:.2f} M parameters, {report['steps']} steps"
    if report["weights"] == "random":
        title += "; random weights: drops are against the float output, and mean nothing for quality"
    table = Table("precision", "engine", "graph", "max abs error", "PSNR drop (dB)", "sizes", "", title=title)
    for row in report["variants"]:
        verdict = {True: "passed", False: "FAILED", None: row.get("skipped", "not run")}[row["passed"]]
        table.add_row(
            row["precision"],
            row["engine"],
            row["graph"],
            "" if row["max_abs_err"] is None else f"{row['max_abs_err']:.1e}",
            "" if row["psnr_drop_db"] is None else f"{row['psnr_drop_db']:+.4f}",
            str(len(row["sizes"])),
            verdict,
            style="red" if row["passed"] is False else None,
        )
    return table


def quantization_tables(report: dict[str, Any]) -> list[Table]:
    """What an export says of int8: layer by layer, remedy by remedy, set by set, and the time it saves."""

    def span(values: list[float] | None) -> str:
        return "" if values is None else f"{values[0]:.3g} … {values[1]:.3g}"

    layers = Table(
        "layer",
        "precision",
        "weights up to",
        "input up to",
        "output",
        "cost of weights, input, output (dB)",
        title="int8, layer by layer",
    )
    for row in report["layers"]:
        layers.add_row(
            row["layer"] + (", identity outside" if row["identity"] else ""),
            row["precision"],
            f"{row['weight_range']:.3g}",
            "" if row["input_range"] is None else f"{row['input_range']:.3g}",
            span(row["output_range"]),
            ", ".join(f"{cost:.4f}" for cost in row["cost_db"].values()),
        )
    remedies = Table("remedy", "chosen", "PSNR drop with it (dB)", title=f"int8 by {report['source']}")
    for row in report["remedies"]:
        remedies.add_row(row["remedy"], row["chosen"], f"{row['psnr_drop_db']:+.4f}")
    sets = Table("pictures", "number", "PSNR drop (dB)", "worst (dB)", title="int8, set by set")
    for row in report["datasets"]:
        drops = (f"{row[key]:+.4f}" for key in ("psnr_drop_db", "worst_psnr_drop_db"))
        sets.add_row(row["dataset"], str(row["images"]), *drops)
    times = Table("engine", "LR size", "threads", "fp32 (ms)", "int8 (ms)", "times faster", title="a whole call")
    for row in report.get("times", []):
        size = "×".join(map(str, row["size"]))
        ratio = row["fp32_ms"] / row["int8_ms"]
        times.add_row(
            row["engine"], size, str(row["threads"]), f"{row['fp32_ms']:.1f}", f"{row['int8_ms']:.1f}", f"{ratio:.2f}"
        )
    return [layers, remedies, sets, *([times] if times.rows else [])]


@contextlib.contextmanager
def counted(title: str, total: int) -> Iterator[tuple[Progress, Any]]:
    """A progress bar on stderr over `total` things, with its task."""
    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    # Speed over an hour: things that take long, or come a hundred at a time, have no second sample within half a minute.
    with Progress(*columns, console=stderr, transient=True, disable=stderr.quiet, speed_estimate_period=3600) as progress:
        yield progress, progress.add_task(title, total=total)
