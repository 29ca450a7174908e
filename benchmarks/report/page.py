"""`rdsr bench report`: one page, as HTML and as Markdown, from the JSON files of a results folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...atomic import atomic_write
from ..errors import BenchmarkError
from .data import Row, read_results
from .document import Text, as_html, as_markdown
from .facts import Facts, eager_lines, quantity
from .sections import KIND, isa_text, ratio_columns, rows_table, sections

__all__ = ["MARKS", "ReportPaths", "readme_block", "update_readme", "write_report"]

MARKS = ("<!-- bench:begin -->", "<!-- bench:end -->")
"""Between them a README holds its table."""
_TITLE = "Super-resolution on a CPU: latency, memory and quality"


@dataclasses.dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(folder: Path) -> ReportPaths:
    """Write report.html, report.md and their plots beside the JSON files that they are made of.

    Needs matplotlib. Raises `BenchmarkError` where latency.json is missing, or a file is none or lacks a key; `OutputError`
    where nothing can be written.
    """
    facts = Facts(read_results(folder))
    blocks, plots = sections(facts, folder)
    paths = ReportPaths(folder / "report.html", folder / "report.md", tuple(plots))
    atomic_write(paths.html, as_html(_TITLE, blocks, folder).encode())
    atomic_write(paths.markdown, as_markdown(_TITLE, blocks).encode())
    return paths


def readme_block(folder: Path) -> str:
    """A Markdown table of every model and precision on its fastest engine, under a line that says where it was measured.

    Raises `BenchmarkError` as `write_report` does; needs no matplotlib.
    """
    facts = Facts(read_results(folder))
    columns, extra = ratio_columns(facts)
    columns = {**KIND, "ms": ("p50 (ms)", "s"), **columns}
    if any(facts.psnr_y(row) for row in facts.best()):
        columns["psnr"] = (f"PSNR-Y {facts.dataset} (dB)", "s")
    columns["peak_rss_mb"] = ("peak RSS (MiB)", ",.0f")
    extra |= {"ms": lambda row: quantity(row.p50_ms), "psnr": lambda row: _psnr_text(facts, row)}
    table = rows_table(facts, columns, facts.best(), **extra)
    results, host = facts.results, facts.results.host
    machine = f"{host.cpu or 'an unknown CPU'} ({isa_text(host) or 'unknown instruction set'})"
    commit = f", commit {results.commit}" if results.commit else ""
    line = f"Measured {results.date[:10]} on {machine}, {facts.size_text}{commit}; "
    line += "the fastest engine of each model and precision."
    if results.quality_of and "psnr" in columns:
        line += f" PSNR was measured {results.quality_of}."
    line = " ".join([line, *eager_lines(facts)])
    notes = (
        ["“published” is what a model's paper gives, or what others measured with its released weights."]
        if any(p.published for p in facts.points)
        else []
    )
    table = dataclasses.replace(table, notes=[*table.notes, *notes])
    return "\n\n".join(as_markdown("", [Text(line), table]).split("\n\n")[1:])


def _psnr_text(facts: Facts, row: Row) -> str | None:
    found = facts.psnr_y(row)
    return None if found is None else f"{found[0]:.2f}{' (published)' * found[1]}"


def update_readme(readme: Path, folder: Path) -> None:
    """Replace what stands between `MARKS` by `readme_block`; the rest stays as it is, to the byte.

    Raises `BenchmarkError` where the marks are not there once each and in order, or the file cannot be read.
    """
    block = readme_block(folder)
    try:
        text = readme.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"cannot read {readme}: {getattr(error, 'strerror', None) or error}") from error
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise BenchmarkError(f"{readme} must have one line {begin} and after it one line {end}")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    # Through a link to the file itself, which would otherwise be replaced.
    atomic_write(readme.resolve(), f"{before}{begin}\n{block}\n{end}{after}".encode())
