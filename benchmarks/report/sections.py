"""The sections of a report: tables and plots, each left out where its figures are missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .data import CROPS, Host, Results, Row, Sweep
from .document import Block, Bullets, Heading, Picture, Table, Text
from .facts import NOTES, Facts, headlines, ratio
from .front import plot_front
from .plots import MOST_BARS, plot_latency, plot_memory, plot_peak, plot_sweep
from .tables import Columns

__all__ = ["KIND", "isa_text", "ratio_columns", "rows_table", "sections"]

_SUBJECT: Columns = {"model": ("model", ""), "backend": ("engine", ""), "precision": ("precision", "")}
KIND: Columns = {"model": ("model", ""), "weights": ("weights", ""), **_SUBJECT}
"""The columns that say what a row is of."""
_SWEPT = {"size": "pixels", "threads": "threads", "batch": "pictures a call"}
_FRONT_CAPTION = (
    "PSNR-Y against the time of a call, each model and precision on its fastest engine. Up and to the left is better; "
    "names in bold are on the Pareto front: nothing here is both faster and better."
)


def sections(facts: Facts, folder: Path) -> tuple[list[Block], list[Path]]:
    """All blocks of the report, and the plots, which are drawn into the folder. Needs matplotlib; raises `OutputError`."""
    pictures = _Pictures(folder)
    blocks = [
        *_top(facts),
        *_latency(facts, pictures),
        *_quality(facts, pictures),
        *(block for name, sweep in facts.results.sweeps.items() for block in _sweep(facts, name, sweep, pictures)),
        *_memory(facts, pictures),
        *_peak(facts, pictures),
        *_crops(facts.results),
        *_failures(facts),
    ]
    return blocks, pictures.written


class _Pictures:
    """Draws into the report's folder and remembers what it drew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.written: list[Path] = []

    def draw(self, name: str, caption: str, plot: Callable[[Path], None]) -> Picture:
        target = self._folder / name
        plot(target)
        self.written.append(target)
        return Picture(name, caption)


def rows_table(facts: Facts, columns: Columns, rows: Sequence[Row], **extra: Callable[[Row], Any]) -> Table:
    """A table of benchmark rows, names marked; `extra` are columns that a row does not have itself."""

    def value(row: Row, key: str) -> Any:
        if key in extra:
            return extra[key](row)
        if key == "model":
            return facts.name(row)
        return f"{row.size[0]}×{row.size[1]}" if key == "size" else getattr(row, key)

    filled = [{key: value(row, key) for key in columns} for row in rows]
    # A column that no row has anything for says nothing.
    kept = {key: entry for key, entry in columns.items() if not rows or any(row[key] not in (None, "") for row in filled)}
    return Table(kept, filled, facts.notes(rows))


_SETTING: Columns = {"size": ("LR size", ""), "batch": ("batch", "d"), "threads": ("threads", "d")}
_TIMES: Columns = {
    "p50_ms": ("p50 (ms)", ",.2f"),
    "p90_ms": ("p90 (ms)", ",.2f"),
    "p99_ms": ("p99 (ms)", ",.2f"),
    "min_ms": ("fastest (ms)", ",.2f"),
    "spread": ("spread of rounds", ".1%"),
    "runs": ("runs", "d"),
}


def ratio_columns(facts: Facts) -> tuple[Columns, dict[str, Callable[[Row], Any]]]:
    """Columns of how many times as fast as the baseline, where there is one."""
    baseline = facts.results.baseline
    if baseline is None:
        return {}, {}
    name = facts.names[baseline.model]
    columns = {"times": ("× baseline", "s"), "times_fp32": (f"× {name}'s fastest fp32", "s")}

    def text(of: Callable[[Row], float | None]) -> Callable[[Row], str | None]:
        return lambda row: None if (value := of(row)) is None else ratio(value)

    return columns, {"times": text(facts.speedup), "times_fp32": text(facts.speedup_fp32)}


def _top(facts: Facts) -> list[Block]:
    """What was found, and on what it was measured."""
    results, host = facts.results, facts.results.host
    baseline = results.baseline
    engine = f"{facts.marked(baseline.model)} on {baseline.backend}, {baseline.precision}" if baseline else None
    entries = {
        "date": results.date,
        "commit": results.commit,
        "CPU": host.cpu,
        "instruction set": isa_text(host),
        "cores": host.cores,
        "governor": host.governor,
        "memory": None if host.memory_gb is None else f"{host.memory_gb:g} GB",
        "system": host.os,
        "Python": host.python,
        "versions": ", ".join(f"{name} {version}" for name, version in host.versions.items()),
        "threads": results.threads,
        "baseline": engine,
    }
    rows = [{"what": what, "value": str(value)} for what, value in entries.items() if value]
    blocks: list[Block] = [Bullets(headlines(facts)), Heading("Machine and settings")]
    blocks.append(Table({"what": ("", ""), "value": ("", "")}, rows))
    if results.settings:
        blocks.append(Bullets(results.settings))
    return blocks


def isa_text(host: Host) -> str | None:
    """The instruction set, and the one that the engines were held to if any."""
    return f"{host.isa or 'unknown'}, capped at {host.isa_cap}" if host.isa_cap else host.isa


def _latency(facts: Facts, pictures: _Pictures) -> list[Block]:
    if not facts.rows:
        return []
    caption = f"Median time of a call, {facts.size_text}; shorter is faster."
    if len(facts.rows) > MOST_BARS:
        caption += f" The {len(facts.rows) - MOST_BARS} slowest rows are in the table alone."
    columns, extra = ratio_columns(facts)
    blocks: list[Block] = [
        Heading("Latency"),
        pictures.draw("latency.png", caption, lambda target: plot_latency(facts, target)),
        rows_table(facts, {**KIND, **_TIMES, **columns}, facts.rows, **extra),
    ]
    if facts.others:
        blocks += [
            Text("Rows of other sizes, batches and thread counts:"),
            rows_table(
                facts,
                {**KIND, **_SETTING, **_TIMES, "times": ("× baseline", "s")} if columns else {**KIND, **_SETTING, **_TIMES},
                facts.others,
                **extra,
            ),
        ]
    return blocks


_QUALITY_COLUMNS: Columns = {
    "dataset": ("data set", ""),
    "model": ("model", ""),
    "scale": ("scale", ""),
    "backend": ("engine", ""),
    "precision": ("precision", ""),
    "images": ("images", "d"),
    "psnr_y": ("PSNR-Y (dB)", ".3f"),
    "ssim_y": ("SSIM-Y", ".4f"),
    "psnr_rgb": ("PSNR-RGB (dB)", ".3f"),
}


def _quality(facts: Facts, pictures: _Pictures) -> list[Block]:
    results = facts.results
    if not results.quality and not results.peers:
        return []
    blocks: list[Block] = [Heading("Quality against time")]
    if facts.points:
        caption = _FRONT_CAPTION
        if any(point.published for point in facts.points):
            caption += " Hollow: published PSNR, as the weights here are random."
        blocks.append(pictures.draw("front.png", caption, lambda target: plot_front(facts, target)))
    if results.quality:
        rows = [
            dataclasses.asdict(row) | {"model": facts.marked(row.model), "scale": f"×{row.scale}"} for row in results.quality
        ]
        random = any(facts.is_random(row.model) for row in results.quality)
        if results.quality_of:
            blocks.append(Text(f"Quality was measured {results.quality_of}."))
        blocks.append(Table(_QUALITY_COLUMNS, rows, [f"* {NOTES['*']}"] if random else []))
    if results.peers:
        datasets = dict.fromkeys(name for peer in results.peers for name in peer.psnr_y)
        # Data sets are columns of their own, whatever they are called.
        columns = {"model": ("model", ""), **{f"set {name}": (f"{name} (dB)", ".2f") for name in datasets}}
        columns |= {"source": ("source", ""), "note": ("note", "")}
        filled = [
            {"model": facts.marked(peer.model), "source": peer.source, "note": peer.note}
            | {f"set {name}": peer.psnr_y.get(name) for name in datasets}
            for peer in results.peers
        ]
        blocks += [Text("Published PSNR-Y of models that were not measured for quality here:"), Table(columns, filled)]
    return blocks


def _sweep(facts: Facts, name: str, sweep: Sweep, pictures: _Pictures) -> list[Block]:
    measured = [row for row in sweep.rows if row.error is None]
    if not measured:
        return []
    what = _SWEPT[name]
    blocks: list[Block] = [Heading(f"Time over {what}")]
    results = facts.results
    if (sweep.date, sweep.commit) != (results.date, results.commit) and sweep.date:
        blocks.append(Text(f"Measured {sweep.date}{f', commit {sweep.commit}' if sweep.commit else ''}."))
    caption = f"Median time of a call over {what}; the broad grey line is ideal growth, which a parallel line has."
    blocks.append(
        pictures.draw(f"scaling-{name}.png", caption, lambda target: plot_sweep(facts, name, sweep, target)),
    )
    blocks.append(rows_table(facts, {**KIND, **_SETTING, **_TIMES}, measured))
    fits = [
        {**dataclasses.asdict(fit.of), "model": facts.line_name(fit.of, sweep.rows)}
        | {"exponent": fit.exponent, "steepest": fit.steepest}
        for fit in sweep.fits
        if fit.exponent is not None and fit.of.model in facts.names
    ]
    if fits:
        columns: Columns = {**_SUBJECT, "exponent": (f"exponent: time ∝ {what}^…", ".3f")}
        if any(fit["steepest"] is not None for fit in fits):
            columns = {**columns, "steepest": ("steepest between neighbours", ".3f")}
        blocks.append(Table(columns, fits, facts.notes(measured)))
    return blocks


def _memory(facts: Facts, pictures: _Pictures) -> list[Block]:
    if all(row.peak_rss_mb is None and row.cold_start_ms is None for row in facts.rows):
        return []
    caption = f"Memory at its peak, and the time from start to the first result, {facts.size_text}; shorter is better."
    columns = {
        "peak_rss_mb": ("peak RSS (MiB)", ",.0f"),
        "cold_start_ms": ("cold start (ms)", ",.0f"),
        "params_m": ("parameters (M)", ".2f"),
    }
    return [
        Heading("Memory and cold start"),
        pictures.draw("memory.png", caption, lambda target: plot_memory(facts, target)),
        rows_table(facts, {**KIND, **columns}, facts.rows),
    ]


def _peak(facts: Facts, pictures: _Pictures) -> list[Block]:
    rows = [row for row in facts.rows if row.share_of_peak is not None]
    peaks = facts.results.peaks
    if not rows and not peaks:
        return []
    blocks: list[Block] = [Heading("Share of what the machine can do")]
    if rows:
        caption = "Arithmetic of the network over its time, as a share of the measured peak of the engine at that precision."
        columns = {
            "gflops": ("GFLOP", ",.2f"),
            "throughput_gflops": ("GFLOP/s", ",.1f"),
            "share_of_peak": ("share of peak", ".0%"),
        }
        rows.sort(key=lambda row: -(row.share_of_peak or 0.0))
        blocks.append(pictures.draw("peak.png", caption, lambda target: plot_peak(facts, target)))
        blocks.append(rows_table(facts, {**KIND, **columns}, rows))
    if peaks:
        titles: Columns = {
            "backend": ("engine", ""),
            "precision": ("precision", ""),
            "threads": ("threads", "d"),
            "convolution_gflops": ("convolution (GFLOP/s)", ",.0f"),
            "matmul_gflops": ("matrix product (GFLOP/s)", ",.0f"),
        }
        blocks += [
            Text("The most that was measured on this machine:"),
            Table(titles, [dataclasses.asdict(p) for p in peaks]),
        ]
    return blocks


def _crops(results: Results) -> list[Block]:
    caption = "Crops of pictures, side by side; PSNR-Y is that of the whole picture."
    return [Heading("Crops"), Picture(CROPS, caption, plot=False)] if results.crops else []


def _failures(facts: Facts) -> list[Block]:
    if not facts.failed:
        return []
    columns: Columns = {**KIND, **_SETTING, "why": ("why", "")}
    return [Heading("Failures"), rows_table(facts, columns, facts.failed, why=lambda row: row.error or row.failed_later)]
