"""`rdsr bench report`: one page, as HTML and as Markdown, from the JSON files of a results folder and from templates."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path
from typing import Any

import jinja2

from ...atomic import atomic_write
from ...runtime.files import read_regular
from ..errors import BenchmarkError
from ..host import ISA_FOLDERS
from .data import read_results
from .facts import Facts, pareto, quantity, ratio
from .front import frames
from .plots import MOST_BARS, SWEPT
from .sections import draw_plots, readme_table, report_tables
from .tables import cells

__all__ = ["MARKS", "ReportPaths", "readme_block", "update_readme", "write_report"]

MARKS = ("<!-- bench:begin -->", "<!-- bench:end -->")
"""Between them a README holds its table."""
_LARGEST_PICTURE = 32 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_TITLE = "Super-resolution on a CPU: latency, memory and quality"


@dataclasses.dataclass(frozen=True)
class ReportPaths:
    """The files of a report."""

    html: Path
    markdown: Path
    plots: tuple[Path, ...]


def write_report(folder: Path) -> ReportPaths:
    """Write report.html, report.md and their plots beside the JSON files that they are made of.

    Needs matplotlib and textalloc. Raises `BenchmarkError` if latency.json is missing, or a file is no result;
    `OutputError` if nothing can be written.
    """
    facts = Facts(read_results(folder))
    plots = draw_plots(facts, folder)
    values = {"title": _TITLE, "body": "report.j2", "facts": facts, "tables": report_tables(facts)}
    values |= {"most_bars": MOST_BARS, "swept": SWEPT, "front": pareto(facts.points)}
    values["above"] = frames(facts)[1] if facts.points else []
    paths = ReportPaths(folder / "report.html", folder / "report.md", tuple(plots))
    atomic_write(paths.html, _render("html.j2", folder, **values).encode())
    atomic_write(paths.markdown, _render("markdown.j2", folder, **values).encode())
    return paths


def readme_block(folder: Path) -> str:
    """A Markdown table of at most six models whose PSNR was measured here, under a line that says where and when.

    Each model has one row, that of its fastest precision and engine. Raises `BenchmarkError` like `write_report`; needs no
    matplotlib.
    """
    facts = Facts(read_results(folder))
    table, unstable = readme_table(facts)
    values = {"title": "", "body": "readme.j2", "facts": facts, "shown": table, "unstable": unstable}
    return _render("markdown.j2", folder, **values).strip()


def _render(template: str, folder: Path, **values: Any) -> str:
    """Fill in a template. Every text is escaped: for HTML by `autoescape`, for Markdown by the filter `md`.

    Raises `BenchmarkError` for a picture of the folder that cannot be read.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name == "html.j2",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": markdown_text, "cells": cells, "data_url": lambda name: _data_url(folder / name)}
    environment.filters |= {"quantity": quantity, "ratio": ratio}
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(values)).strip() + "\n"


def _data_url(path: Path) -> str:
    try:
        content = read_regular(path, _LARGEST_PICTURE)
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from error
    if not content.startswith(_PNG):
        raise BenchmarkError(f"{path} is no PNG")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no table cells, tags, links, or emphasis come out of it."""
    text = re.sub(r"([\\|<>\[\]`*&~!#])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within words an underscore is one
    text = re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", r"\\\1", text)  # lists and headings
    return re.sub(r"://|\bwww\.", lambda match: match[0].replace(":", r"\:").replace(".", r"\."), text)


def update_readme(readme: Path, folder: Path) -> None:
    """Replace the text between `MARKS` by `readme_block`; the rest stays as it is, to the byte.

    If the folder is one of `ISA_FOLDERS`, those beside it have blocks of their own, in that order.

    Raises `BenchmarkError` if the marks are not there once each and in order, or the file cannot be read.
    """
    folders = [folder]
    if folder.resolve().name in ISA_FOLDERS:
        beside = (folder.resolve().parent / name for name in ISA_FOLDERS)
        folders = [each for each in beside if (each / "latency.json").is_file()]
    block = "\n\n".join(readme_block(each) for each in folders)
    try:
        text = readme.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"cannot read {readme}: {getattr(error, 'strerror', None) or error}") from error
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise BenchmarkError(f"{readme} must have one line {begin} and after it one line {end}")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    # A link is followed; otherwise the file would replace it.
    atomic_write(readme.resolve(), f"{before}{begin}\n{block}\n{end}{after}".encode())
