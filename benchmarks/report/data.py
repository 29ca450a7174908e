"""What `rdsr bench report` reads: the JSON files of a results folder, checked by pydantic."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, Strict, TypeAdapter, ValidationError

from ...runtime.files import read_regular
from ..errors import BenchmarkError
from ..latency.rows import SWEEPS

__all__ = ["Fit", "Quality", "Results", "Row", "Sweep", "Way", "read_quality", "read_results"]

_LARGEST_FILE = 64 << 20
_LONGEST_TEXT = 1000
Text = Annotated[str, Strict()]
Short = Annotated[Text, AfterValidator(lambda text: text[:24])]
"""Name of an engine, precision or data set. Longer ones push the plots off their page."""
# Larger numbers mean nothing here, and break axes and columns.
Number = Annotated[float, Strict(), Field(gt=-1e12, lt=1e12)]
Positive = Annotated[Number, Field(ge=1e-9)]
Whole = Annotated[int, Strict(), Field(gt=0, lt=10**9)]
Side = Annotated[Whole, Field(lt=10**6)]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Way:
    """A model, as the user named it, on an engine at a precision. It identifies the baseline and the lines of a sweep."""

    model: Text
    backend: Short
    precision: Short

    @property
    def way(self) -> Way:
        """The same without anything else."""
        return Way(self.model, self.backend, self.precision)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Way):
    """One way to run a model at one LR size, batch and thread count. It has times unless `error` is set.

    `peak_rss_mb` is in MiB, `gflops` is 2·MACs of a call in 10⁹, `params_m` parameters in millions, `throughput_gflops` 10⁹
    operations a second.
    """

    weights: Text = ""
    """trained, random, none or given."""
    size: tuple[Side, Side]
    """Height and width of the LR picture."""
    batch: Whole = 1
    threads: Whole = 1
    error: Text | None = None
    """Why there are no figures."""
    failed_later: Text | None = None
    """Why there are fewer rounds than there should be."""
    runs: Whole | None = None
    p50_ms: Positive = math.nan
    """Median time of a whole call; NaN in a row with an error."""
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None
    min_ms: Positive | None = None
    spread: Number | None = None
    """How far the medians of the rounds lie apart, as a share of the middle one; see `latency/rows.py`."""
    stable: Annotated[bool, Strict()] = True
    cold_start_ms: Positive | None = None
    peak_rss_mb: Positive | None = None
    gflops: Number | None = None
    params_m: Number | None = None
    speedup_vs_baseline: Positive | None = None
    throughput_gflops: Number | None = None
    share_of_peak: Number | None = None
    """Throughput over the measured peak of this engine and precision; 1 is all of it."""

    def __post_init__(self) -> None:
        if self.error is None and math.isnan(self.p50_ms):
            raise ValueError("has neither p50_ms nor error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit(Way):
    """Growth of a line of a sweep: time ∝ what is swept to the power of `exponent`."""

    exponent: Number | None = None
    steepest: Number | None = None
    """The largest exponent between two neighbours."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Rows that differ in size, threads or batch, and the fits to them."""

    rows: tuple[Row, ...]
    fits: tuple[Fit, ...] = ()
    date: Text | None = None
    commit: Text | None = None


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most that the machine was measured to give, 10⁹ operations a second."""

    backend: Short
    precision: Short
    threads: Whole
    convolution_gflops: Number | None = None
    matmul_gflops: Number | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality(Way):
    """One model on one data set; means over the pictures."""

    dataset: Short
    psnr_y: Number
    scale: Whole = 4
    images: Whole | None = None
    ssim_y: Number | None = None
    psnr_rgb: Number | None = None
    weights: Text = ""
    degradation: Text = "bicubic"


@dataclasses.dataclass(frozen=True)
class Peer:
    """PSNR-Y of a model as others published it, data set by data set."""

    model: Text
    psnr_y: dict[Short, Number]
    source: Text = ""
    note: Text = ""


@dataclasses.dataclass(frozen=True)
class Host:
    """The machine. None stands for what is not known."""

    cpu: Text | None = None
    isa: Text | None = None
    isa_cap: Text | None = None
    cores: Whole | None = None
    governor: Text | None = None
    memory_gb: Number | None = None
    os: Text | None = None
    python: Text | None = None
    versions: dict[Text, Text] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rated:
    """The contents of quality.json."""

    rows: tuple[Quality, ...]
    date: Text | None = None
    commit: Text | None = None


@dataclasses.dataclass(frozen=True)
class Published:
    """The contents of peers.json."""

    peers: tuple[Peer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a results folder holds: the contents of latency.json, and what other files add."""

    date: Text
    commit: Text | None = None
    host: Host = dataclasses.field(default_factory=Host)
    threads: Whole
    settings: tuple[Text, ...] = ()
    baseline: Way | None = None
    peaks: tuple[Peak, ...] = ()
    rows: tuple[Row, ...]
    sweeps: dict[str, Sweep]
    """size, threads, batch → the sweep, if it was made."""
    rated: Rated
    published: Published
    crops: bool
    """True if the folder has crops.png."""


def read_results(folder: Path) -> Results:
    """Read latency.json, which must be there, and the other files of the folder.

    Raises `BenchmarkError`, one sentence that names the file and the key, for a file that cannot be read or is no result.
    """
    if not (folder / "latency.json").exists():
        raise BenchmarkError(f"{folder} has no latency.json; `rdsr bench latency -o {folder}` writes one")
    return _read(
        Results,
        folder / "latency.json",
        sweeps={name: _read(Sweep, path) for name in SWEEPS if (path := folder / f"sweep-{name}.json").exists()},
        rated=read_quality(path) if (path := folder / "quality.json").exists() else Rated(()),
        published=_read(Published, path) if (path := folder / "peers.json").exists() else Published(()),
        crops=(folder / "crops.png").is_file(),
    )


def read_quality(path: Path) -> Rated:
    """Read quality.json, a report of rows or of a single one. Raises `BenchmarkError` like `read_results`.

    Rows of degraded pictures are left out: their PSNR cannot stand beside the usual one.
    """
    rated = _read(Rated, path)
    return dataclasses.replace(rated, rows=tuple(row for row in rated.rows if row.degradation == "bicubic"))


def _read(kind: type[T], path: Path, **known: Any) -> T:
    """The contents of a JSON file, and what is known already, as a dataclass. Unknown keys are allowed; null is no value."""
    try:
        content = _cleaned(json.loads(read_regular(path, _LARGEST_FILE)))
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and numbers of thousands of digits
        raise BenchmarkError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BenchmarkError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    if kind is Rated and "rows" not in content:
        content["rows"] = [dict(content)]
    try:
        return TypeAdapter(kind).validate_python(content | known)
    except ValidationError as error:
        raise BenchmarkError(f"{path}: {_sentence(error)}") from error


def _cleaned(value: Any) -> Any:
    """Make every text one line without control characters, lone surrogates and marks that turn the direction of writing.

    Keys whose value is null are dropped.
    """
    if isinstance(value, str):
        line = " ".join(value[:_LONGEST_TEXT].split())
        return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(entry) for key, entry in value.items() if entry is not None}
    return [_cleaned(entry) for entry in value] if isinstance(value, list) else value


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong: rows[0].p50_ms should be a valid number, not 'fast'."""
    first = error.errors()[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "value_error":
        return f"{key} {first['ctx']['error']}"
    wanted = re.sub(r"a dictionary or an instance of \w+", "an object", first["msg"].removeprefix("Input "))
    return f"{key} {wanted}, not {repr(first['input'])[:60]}"
