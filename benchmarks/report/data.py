"""What `rdsr bench report` reads: the JSON files of a results folder, checked key by key."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BenchmarkError
from ..latency.rows import SWEEPS
from .fields import Node, clean, load

__all__ = ["CROPS", "Fit", "Host", "Peak", "Peer", "Quality", "Results", "Row", "Sweep", "Way", "read_results"]

CROPS = "crops.png"
_LONGEST_KIND = 24
"""Letters of an engine, precision or data set; longer ones push the plots off their page."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one engine at one precision, LR size, batch and thread count; measured unless `error` is set."""

    model: str
    """As it was named by the user."""
    weights: str
    """trained, random, none or given."""
    backend: str
    precision: str
    size: tuple[int, int]
    """Height and width of the LR picture."""
    batch: int
    threads: int
    error: str | None
    """Why there are no figures."""
    failed_later: str | None = None
    """Why there are fewer rounds than there should be."""
    runs: int | None = None
    p50_ms: float = math.nan
    """Of a whole call; above 0 where `error` is None."""
    p90_ms: float | None = None
    p99_ms: float | None = None
    min_ms: float | None = None
    spread: float | None = None
    """Of the rounds' medians, see `latency_rows`."""
    stable: bool = True
    cold_start_ms: float | None = None
    peak_rss_mb: float | None = None
    """MiB."""
    gflops: float | None = None
    """2·MACs of a call, 10⁹."""
    params_m: float | None = None
    speedup_vs_baseline: float | None = None
    throughput_gflops: float | None = None
    """10⁹ operations a second."""
    share_of_peak: float | None = None
    """Of the measured peak of this engine and precision; 1 is all of it."""


@dataclasses.dataclass(frozen=True)
class Way:
    """What identifies the baseline, or a line of a sweep."""

    model: str
    backend: str
    precision: str

    @classmethod
    def of(cls, row: Row) -> Way:
        """That of a row."""
        return cls(row.model, row.backend, row.precision)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a line of a sweep grows: time ∝ what is swept to the power of `exponent`."""

    of: Way
    exponent: float | None
    steepest: float | None = None
    """The largest between two neighbours."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Rows that differ in size, threads or batch, and the fits to them."""

    rows: tuple[Row, ...]
    fits: tuple[Fit, ...]
    date: str | None
    commit: str | None


@dataclasses.dataclass(frozen=True)
class Peak:
    """What the machine was measured to give at most, 10⁹ operations a second."""

    backend: str
    precision: str
    threads: int
    convolution_gflops: float | None
    matmul_gflops: float | None


@dataclasses.dataclass(frozen=True)
class Quality:
    """One model on one data set; means over the pictures."""

    dataset: str
    scale: int
    model: str
    backend: str
    precision: str
    images: int | None
    psnr_y: float
    ssim_y: float | None
    psnr_rgb: float | None
    weights: str = ""
    """As of `Row`."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """PSNR-Y of a model, data set by data set, that was not measured here."""

    model: str
    psnr_y: Mapping[str, float]
    source: str
    note: str


@dataclasses.dataclass(frozen=True)
class Host:
    """The machine; None for what it did not tell."""

    cpu: str | None
    isa: str | None
    isa_cap: str | None
    cores: int | None
    governor: str | None
    memory_gb: float | None
    os: str | None
    python: str | None
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Results:
    """All that a results folder holds."""

    date: str
    commit: str | None
    host: Host
    threads: int
    settings: tuple[str, ...]
    baseline: Way | None
    peaks: tuple[Peak, ...]
    rows: tuple[Row, ...]
    sweeps: Mapping[str, Sweep]
    """size, threads, batch → the sweep, for those that were made."""
    quality: tuple[Quality, ...]
    quality_of: str | None
    """When and with which code quality was measured, where that is not `date` and `commit`."""
    peers: tuple[Peer, ...]
    crops: bool
    """Whether the folder has a PNG of crops."""


def read_results(folder: Path) -> Results:
    """Read latency.json, which must be there, and what else lies beside it.

    Raises `BenchmarkError`, one sentence that names the file and the key, for a file that cannot be read or is none.
    """
    if not (folder / "latency.json").exists():
        raise BenchmarkError(f"{folder} has no latency.json; `rdsr bench latency -o {folder}` writes one")
    latency = load(folder / "latency.json")
    quality, peers = (load(path) if path.exists() else None for path in (folder / "quality.json", folder / "peers.json"))
    baseline = latency.maybe_node("baseline")
    date, commit = latency.text("date"), latency.maybe_text("commit")
    return Results(
        date=date,
        commit=commit,
        host=_host(latency.maybe_node("host") or Node(latency.file, "host", {})),
        threads=latency.whole("threads"),
        settings=tuple(latency.texts("settings")),
        baseline=_way(baseline) if baseline else None,
        peaks=tuple(_peak(node) for node in latency.nodes("peaks", optional=True)),
        rows=tuple(_row(node) for node in latency.nodes("rows")),
        sweeps={name: _sweep(load(path)) for name in SWEEPS if (path := folder / f"sweep-{name}.json").exists()},
        quality=tuple(_quality(node) for node in _quality_nodes(quality)) if quality else (),
        quality_of=_measured_otherwise(quality, commit) if quality else None,
        peers=tuple(_peer(node) for node in peers.nodes("peers")) if peers else (),
        crops=(folder / CROPS).is_file(),
    )


def _measured_otherwise(node: Node, commit: str | None) -> str | None:
    """ "2026-11-25, commit 0123456" of a file that another commit's code measured."""
    date, other = node.maybe_text("date"), node.maybe_text("commit")
    if date is None or other == commit:
        return None
    return date[:10] + (f", commit {other}" if other else "")


def _way(node: Node) -> Way:
    return Way(node.text("model"), node.text("backend")[:_LONGEST_KIND], node.text("precision")[:_LONGEST_KIND])


def _row(node: Node) -> Row:
    size = node.content.get("size")
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 10**6 for side in size)
    ):
        node.refuse("size", "[height, width]")
    subject = _way(node)
    common: dict[str, Any] = {
        **dataclasses.asdict(subject),
        "weights": node.maybe_text("weights") or "",
        "size": (size[0], size[1]),
        "batch": node.whole("batch", 1),
        "threads": node.whole("threads", 1),
        "error": node.maybe_text("error"),
    }
    if common["error"] is not None:
        return Row(**common)
    common["failed_later"] = node.maybe_text("failed_later")
    stable = node.content.get("stable")
    if stable is not None and not isinstance(stable, bool):
        node.refuse("stable", "true or false")
    keys = ("p90_ms", "p99_ms", "min_ms", "cold_start_ms", "peak_rss_mb", "speedup_vs_baseline")
    more = ("spread", "gflops", "params_m", "throughput_gflops", "share_of_peak")
    figures: dict[str, Any] = {key: node.maybe_positive(key) for key in keys}
    figures |= {key: node.maybe_number(key) for key in more}
    p50_ms = node.positive("p50_ms")
    return Row(**common, runs=node.maybe_whole("runs"), p50_ms=p50_ms, stable=stable is not False, **figures)


def _sweep(node: Node) -> Sweep:
    return Sweep(
        rows=tuple(_row(entry) for entry in node.nodes("rows")),
        fits=tuple(
            Fit(_way(entry), entry.maybe_number("exponent"), entry.maybe_number("steepest"))
            for entry in node.nodes("fits", optional=True)
        ),
        date=node.maybe_text("date"),
        commit=node.maybe_text("commit"),
    )


def _peak(node: Node) -> Peak:
    return Peak(
        node.text("backend")[:_LONGEST_KIND],
        node.text("precision")[:_LONGEST_KIND],
        node.whole("threads", 1),
        node.maybe_number("convolution_gflops"),
        node.maybe_number("matmul_gflops"),
    )


def _quality_nodes(node: Node) -> list[Node]:
    """A report of one row is that row itself. Rows of degraded pictures cannot stand beside others'."""
    nodes = node.nodes("rows") if "rows" in node.content else [node]
    return [row for row in nodes if row.maybe_text("degradation") in (None, "bicubic")]


def _quality(node: Node) -> Quality:
    return Quality(
        dataset=node.text("dataset")[:_LONGEST_KIND],
        scale=node.whole("scale", 4),
        **dataclasses.asdict(_way(node)),
        images=node.maybe_whole("images"),
        psnr_y=node.number("psnr_y"),
        ssim_y=node.maybe_number("ssim_y"),
        psnr_rgb=node.maybe_number("psnr_rgb"),
        weights=node.maybe_text("weights") or "",
    )


def _peer(node: Node) -> Peer:
    psnr = node.node("psnr_y")
    return Peer(
        node.text("model"),
        {clean(name)[:_LONGEST_KIND]: psnr.number(name) for name in psnr.content},
        node.maybe_text("source") or "",
        node.maybe_text("note") or "",
    )


def _host(node: Node) -> Host:
    versions = node.maybe_node("versions")
    return Host(
        **{key: node.maybe_text(key) for key in ("cpu", "isa", "isa_cap", "governor", "os", "python")},
        cores=node.maybe_whole("cores"),
        memory_gb=node.maybe_number("memory_gb"),
        versions={clean(name): versions.text(name) for name in versions.content} if versions else {},
    )
