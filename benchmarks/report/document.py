"""A report as a list of blocks, written as one HTML page that needs nothing else, or as Markdown."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...runtime.files import read_regular
from ..errors import BenchmarkError
from .tables import Columns, cells

__all__ = ["Block", "Bullets", "Heading", "Picture", "Table", "Text", "as_html", "as_markdown", "markdown_text"]

_LARGEST_PICTURE = 32 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 68rem;
  padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #bbb; break-after: avoid; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
td.n, th.n { text-align: right; }
td.n { white-space: nowrap; }
tbody tr:nth-child(even) { background: #f6f6f6; }
figure { margin: 1rem 0; break-inside: avoid; }
figure .wide { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption, .note { font-size: .85rem; color: #444; }
@media (max-width: 45rem) {
  figure img.plot { max-width: none; width: 46rem; }
  tr { background: #fff; }
  th:first-child, td:first-child { position: sticky; left: 0; background: inherit; }
}
@media print {
  @page { margin: 15mm; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  thead { display: table-header-group; }
  tr { break-inside: avoid; }
  h2 + p { break-after: avoid; }
  figure img, figure img.plot { width: auto; max-width: 100%; max-height: 230mm; }
}
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """The start of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    texts: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under columns; columns with a number's format stand to the right. `notes` explain marks in the cells."""

    columns: Columns
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()

    @property
    def numeric(self) -> list[bool]:
        return [bool(form) for _, form in self.columns.values()]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG of the report's folder."""

    name: str
    caption: str
    plot: bool = True
    """Whether it has small letters, so that a phone must not shrink it."""


Block = Heading | Text | Bullets | Table | Picture


def as_html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """One page with its pictures inside. Raises `BenchmarkError` for a picture that cannot be read."""
    body = "\n".join(_html(block, folder) for block in blocks)
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever stood in a file that was read: nothing is fetched, nothing runs.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(texts):
            items = "".join(f"<li>{escape(text)}</li>" for text in texts)
            return f"<ul>{items}</ul>"
        case Picture(name, caption, plot):
            kind = ' class="plot"' if plot else ""
            image = f'<img{kind} alt="{escape(caption)}" src="data:image/png;base64,{_picture(folder / name)}">'
            return f'<figure>\n<div class="wide">{image}</div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>'
        case Table():
            return _html_table(block)


def _html_table(table: Table) -> str:
    kinds = [' class="n"' if numeric else "" for numeric in table.numeric]

    def line(tag: str, texts: Sequence[str]) -> str:
        entries = zip(kinds, texts, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(text)}</{tag}>' for kind, text in entries)}</tr>"

    titles = [title for title, _ in table.columns.values()]
    head = f"<thead>{line('th', titles)}</thead>\n" if any(titles) else ""
    body = "\n".join(line("td", cells(table.columns, row)) for row in table.rows)
    notes = f'<p class="note">{"<br>".join(map(escape, table.notes))}</p>' if table.notes else ""
    return f'<div class="wide"><table>\n{head}<tbody>\n{body}\n</tbody>\n</table></div>\n{notes}'


def _picture(path: Path) -> str:
    try:
        content = read_regular(path, _LARGEST_PICTURE)
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from error
    if not content.startswith(_PNG):
        raise BenchmarkError(f"{path} is no PNG")
    return base64.b64encode(content).decode()


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same with links to the pictures, which lie beside it."""
    return "\n\n".join([f"# {markdown_text(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {markdown_text(text)}"
        case Text(text):
            return markdown_text(text)
        case Bullets(texts):
            return "\n".join(f"- {markdown_text(text)}" for text in texts)
        case Picture(name, caption):
            return f"![{markdown_text(caption)}]({quote(name)})"
        case Table(columns, rows, notes):
            lines = [
                [title for title, _ in columns.values()],
                *(cells(columns, row) for row in rows),
            ]
            head, *body = [f"| {' | '.join(map(markdown_text, line))} |" for line in lines]
            rule = "".join("|--:" if numeric else "|---" for numeric in block.numeric) + "|"
            return "\n".join([head, rule, *body]) + "".join(f"\n\n{markdown_text(note)}" for note in notes)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: no table cells, tags, links, or emphasis come out of it."""
    text = re.sub(r"([\\|<>\[\]`*&~!#])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within words an underscore is one
    text = re.sub(r"^([-+=]|\d+[.)])(?=\s|$)", r"\\\1", text)  # lists and headings
    return re.sub(r"://|\bwww\.", lambda match: match[0].replace(":", r"\:").replace(".", r"\."), text)
