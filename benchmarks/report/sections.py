"""The tables and plots of a report. `templates/report.j2` puts them in order and says what they show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .data import Row
from .facts import Facts, quantity, ratio
from .front import draw_front
from .plots import Bars, plot_bars, plot_sweep
from .tables import COLUMNS, Columns, write_figure

__all__ = ["Table", "draw_plots", "readme_table", "report_tables"]

_COLUMNS = COLUMNS["report"]
_KIND, _SETTING, _TIMES = _COLUMNS["kind"], _COLUMNS["setting"], _COLUMNS["times"]
_SPELLED = {"diffir": "DiffIR", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "torch-eager": "torch"}
_README_ROWS = 6


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under columns. Columns with a format stand to the right."""

    columns: Columns
    rows: Sequence[Mapping[str, Any]]


def _table(titles: Columns, rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table without the columns that no row has anything for."""
    rows = list(rows)
    return Table({key: title for key, title in titles.items() if any(row[key] not in (None, "") for row in rows)}, rows)


def _rows_table(facts: Facts, titles: Columns, rows: Iterable[Row]) -> Table:
    """A table of benchmark rows."""

    def filled(row: Row) -> dict[str, Any]:
        times, times_fp32 = facts.speedup(row), facts.speedup_fp32(row)
        more = {"times": times and ratio(times), "times_fp32": times_fp32 and ratio(times_fp32)}
        more |= {"model": facts.names[row.model], "size": f"{row.size[0]}×{row.size[1]}"}
        return vars(row) | more | {"why": row.error or row.failed_later}

    return _table({**_KIND, **titles}, map(filled, rows))


def report_tables(facts: Facts) -> dict[str, Table]:
    """All tables of the report; those without rows are empty. A sweep has two: of its rows, and of its exponents."""
    results, host, name = facts.results, facts.results.host, facts.names
    versions = ", ".join(f"{package} {version}" for package, version in host.versions.items())
    machine = vars(results) | vars(host) | {"versions": versions, "baseline": facts.baseline_text}
    times = dict(_TIMES)
    if results.baseline:
        times |= {"times": ("× baseline", "s"), "times_fp32": (f"× {name[results.baseline.model]}'s fastest fp32", "s")}
    # Keys of data sets do not collide with other keys, whatever they are called.
    peers = [(peer, {f"set {key}": psnr for key, psnr in peer.psnr_y.items()}) for peer in results.published.peers]
    datasets = {key: (f"{key[4:]} (dB)", ".2f") for _, psnr in peers for key in psnr}
    tables = {
        "machine": Table(
            {"what": ("", ""), "value": ("", "")},
            [{"what": what, "value": str(machine[key])} for key, (what, _) in _COLUMNS["machine"].items() if machine[key]],
        ),
        "latency": _rows_table(facts, times, facts.rows),
        "others": _rows_table(facts, {**_SETTING, **times}, facts.others),
        "quality": _table(
            _COLUMNS["rated"],
            (vars(row) | {"model": name[row.model], "scale": f"×{row.scale}"} for row in results.rated.rows),
        ),
        "published": _table(
            {"model": ("model", ""), **datasets, "source": ("source", ""), "note": ("note", "")},
            (dict.fromkeys(datasets) | vars(peer) | psnr | {"model": name[peer.model]} for peer, psnr in peers),
        ),
        "memory": _rows_table(facts, _COLUMNS["memory"], facts.weighed),
        "share": _rows_table(facts, _COLUMNS["share"], facts.by_share),
        "peaks": _table(_COLUMNS["peaks"], map(vars, results.peaks)),
        "failures": _rows_table(facts, {**_SETTING, "why": ("why", "")}, facts.failed),
    }
    for swept, rows in facts.swept.items():
        weights = {row.model: row.weights for row in rows}
        fits = [fit for fit in results.sweeps[swept].fits if fit.exponent is not None and fit.model in weights]
        tables[swept] = _rows_table(facts, {**_SETTING, **_TIMES}, rows)
        tables[f"{swept} fits"] = _table(
            _COLUMNS["fits"],
            (vars(fit) | {"model": name[fit.model], "weights": weights[fit.model]} for fit in fits),
        )
    return tables


def readme_table(facts: Facts) -> tuple[Table, int]:
    """At most six rows whose PSNR was measured, and how many of them are unstable.

    Each model comes in its fastest precision, our own models before others. If that gives fewer rows, our most precise other
    rows fill them up. The baseline's fastest engine stands beside the baseline itself.
    """
    fastest: dict[str, Row] = {}
    measured = [point for point in facts.points if not point.published]
    for point in measured:
        fastest.setdefault(point.row.model, point.row)
    others = sorted(measured, key=lambda point: -point.psnr_y)
    fill = [point.row for point in others if facts.is_ours(point.row) and point.row not in fastest.values()]
    kept = [*sorted(fastest.values(), key=lambda row: not facts.is_ours(row)), *fill][:_README_ROWS]
    rows = []
    for row in sorted(kept, key=lambda row: row.p50_ms):
        times, fair, psnr = facts.speedup(row), facts.speedup_fp32(row), facts.psnr_y(row)
        engine = f", {_spelled(row.backend)}" if facts.is_ours(row) else ""
        rows.append({"model": f"{facts.names[row.model]}, {row.precision}{engine}", "psnr": psnr and psnr[0]})
        rows[-1] |= {"ms": quantity(row.p50_ms), "times": times and ratio(times), "fair": fair and ratio(fair)}
    titles = {"model": ("model", ""), "psnr": ("PSNR-Y (dB)", ".2f"), "ms": ("ms", "s")}
    if base := facts.results.baseline:
        name, engine = _spelled(facts.names[base.model]), _spelled(base.backend)
        titles["times"] = f"× as fast as {name} ({engine}, {base.precision})", "s"
        if (best := facts.baseline_fp32) is not None and best.backend != base.backend:
            titles["fair"] = f"({_spelled(best.backend)}, fp32)", "s"
    return _table(titles, rows), sum(not row.stable for row in kept)


def _spelled(name: str) -> str:
    """A model or engine as its makers write it."""
    return _SPELLED.get(name, name)


def draw_plots(facts: Facts, folder: Path) -> list[Path]:
    """Write the plots that there are figures for as PNG. Needs matplotlib and textalloc; raises `OutputError`."""

    def time_text(row: Row) -> str:
        times = facts.speedup(row)
        after = ", baseline" if facts.is_baseline(row) else "" if times is None else f", {ratio(times)}×"
        return f"{quantity(row.p50_ms)} ms{after}"

    def share_text(row: Row) -> str:
        speed = "" if row.throughput_gflops is None else f", {quantity(row.throughput_gflops)} GFLOP/s"
        return f"{100 * (row.share_of_peak or 0.0):.0f} %{speed}"

    title = facts.size_text + (f"; × = times as fast as {facts.baseline_text}" if facts.baseline_text else "")
    label = "share of the measured peak of the engine at that precision (%)"
    times = [Bars("median time of a call (ms, logarithmic)", lambda row: row.p50_ms, time_text)]
    shares = [Bars(label, lambda row: 100 * (row.share_of_peak or 0.0), share_text, start=0.0, limit=100.0)]
    memory = [
        Bars("peak resident memory of the process (MiB)", lambda row: row.peak_rss_mb, start=0.0),
        Bars("from start to the first result (ms, logarithmic)", lambda row: row.cold_start_ms),
    ]
    drawn: dict[str, tuple[Any, Callable[[Path], None]]] = {
        "latency": (facts.rows, partial(plot_bars, facts, facts.rows, times, title)),
        "front": (facts.points, lambda target: write_figure(draw_front(facts)[0], target)),
        "memory": (facts.weighed, partial(plot_bars, facts, facts.weighed, memory, "")),
        "peak": (facts.by_share, partial(plot_bars, facts, facts.by_share, shares, "")),
    }
    for name, rows in facts.swept.items():
        drawn[f"scaling-{name}"] = rows, partial(plot_sweep, facts, name)
    paths = []
    for name, (needed, draw) in drawn.items():
        if needed:
            paths.append(folder / f"{name}.png")
            draw(paths[-1])
    return paths
