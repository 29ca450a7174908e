"""`rdsr bench latency`: models × engines × precisions × sizes × threads, every row in its own processes, interleaved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ...atomic import atomic_write
from ...runtime.bundle import Bundle
from ...runtime.engines import BACKENDS as ENGINES
from ...runtime.engines import supported_precisions
from ...runtime.files import dump_json
from ...runtime.host import cpu
from ...runtime.host.processes import call_apart
from ..errors import BenchmarkError
from ..host import code_digest, stamp
from ..subjects.find import Subject, kept_folder
from .rows import BASELINE, SWEEPS, Job, compare, fit_exponents, input_of, row_of

__all__ = ["BACKENDS", "NOT_RUN", "PRECISIONS", "SWEEPS", "Options", "jobs_of", "measure_latency"]

Progress = Callable[[str], None]
Sample = Mapping[str, Any]
BACKENDS = ("torch-eager", "torch-compile", "onnxruntime", "openvino", "opencv")
PRECISIONS = ("fp32", "bf16", "int8", "uint8")
NOT_RUN = "not run"
"""What the error of a point of a sweep begins with that was left out on purpose."""
_LARGEST_SHARE = 0.25
"""Of the budget that one call in a sweep may be expected to take."""
_TIMEOUT = 900.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How long and how to measure."""

    budget: float = 600.0
    """Seconds for all timing, exports not counted; every row runs once in any case."""
    rounds: int = 5
    """Rounds at most."""
    isa_cap: str | None = None
    """Limit to the instruction sets of oneDNN (OpenVINO, torch), e.g. "AVX512_CORE_VNNI"."""
    sweep: str | None = None
    """One of `SWEEPS`, where the jobs are points of series."""
    peaks: bool = True
    """Whether to measure what the machine can do at best."""


def jobs_of(
    subjects: Sequence[Subject],
    *,
    backends: Sequence[str],
    precisions: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    threads: Sequence[int],
    isa_cap: str | None = None,
) -> list[Job]:
    """Every combination that exists; empty `backends` and `precisions` mean all there are.

    `isa_cap`: the limit that the rows will run under (`Options.isa_cap`), which may leave no bf16.

    Raises `BenchmarkError` for unknown names, and where what was asked for leaves a model without a row.
    """
    for kind, asked, known in (("backend", backends, BACKENDS), ("precision", precisions, PRECISIONS)):
        if unknown := [name for name in asked if name not in known]:
            raise BenchmarkError(f"no {kind} is called {unknown[0]!r}; known are {', '.join(known)}")
    jobs = []
    for subject in subjects:
        ways = [
            (backend, precision)
            for backend, precision in _ways(subject, isa_cap)
            if subject.kind == "bicubic"
            or ((not backends or backend in backends) and (not precisions or precision in precisions))
        ]
        if not ways:
            have = ", ".join(" ".join(way) for way in _ways(subject, isa_cap))
            raise BenchmarkError(f"{subject.model} runs in none of what was asked for; it has {have}")
        for size in sizes:
            for batch in batches:
                for count in threads:
                    jobs += [Job(subject, backend, precision, size, batch, count) for backend, precision in ways]
    return jobs


def _ways(subject: Subject, isa_cap: str | None) -> list[tuple[str, str]]:
    """(backend, precision) that a subject can be run in on this machine, under a limit or without one."""
    if subject.kind == "bicubic":
        return [("opencv", "uint8")]
    if subject.kind == "onnx":
        return _ways_of_file(Path(str(subject.path)), isa_cap)
    if subject.kind == "function":
        return [("torch-eager", "fp32")]
    ways = [("torch-eager", "fp32"), ("torch-compile", "fp32")] if subject.kind == "network" else []
    exported = _engine_ways(ENGINES, isa_cap)
    if subject.failure is None:
        manifest = Bundle(subject.path).manifest
        exported = [way for way in exported if manifest.proven(way[1], way[0])]
    return ways + exported


def _ways_of_file(path: Path, isa_cap: str | None) -> list[tuple[str, str]]:
    own = ("int8",) if input_of(path).quantized else ("fp32", "bf16")
    engines = ("openvino",) if path.suffix.lower() == ".xml" else ENGINES
    return [(engine, precision) for engine, precision in _engine_ways(engines, isa_cap) if precision in own]


def _engine_ways(engines: Sequence[str], isa_cap: str | None) -> list[tuple[str, str]]:
    """(engine, precision) that these engines and this CPU can run."""
    return [
        (engine, precision)
        for engine in engines
        for precision in supported_precisions(engine)
        if precision != "bf16" or cpu.has_bf16(isa_cap)
    ]


class _State:
    """Samples so far, kept beside the results so that a run that was cut off goes on."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity
        self.samples: dict[str, list[Sample]] = {}
        self.errors: dict[str, str] = {}
        self.costs: dict[str, float] = {}
        """Seconds that each row took in its last round, its start included."""
        self.seconds = 0.0
        """Spent by runs before this one."""
        if path is not None and path.is_file():
            try:
                content = json.loads(path.read_bytes())
                if content["identity"] == identity:
                    self.samples, self.costs = content["samples"], content["costs"]  # what failed is tried again
                    self.seconds = content["seconds"]
            except (ValueError, KeyError, TypeError, OSError):
                pass  # damaged: measured anew

    def write(self, seconds: float) -> None:
        if self.path is not None:
            content = {"identity": self.identity, "samples": self.samples, "costs": self.costs, "seconds": seconds}
            atomic_write(self.path, dump_json(content).encode())


def measure_latency(
    jobs: Sequence[Job], options: Options, *, partial: Path | None = None, progress: Progress = lambda step: None
) -> dict[str, Any]:
    """Run every job over interleaved rounds and report, in the design's JSON form.

    `partial`: file in which samples are kept; a call with the same jobs, files and code goes on from there, and the caller
    removes it once it has stored the report. A row that fails says why, and the others go on. Where the budget is not enough
    for one more round of all rows, the cheaper ones go on.
    """
    stamped = stamp()
    host = stamped["host"]
    state = _State(partial, _identity(host, jobs, options))
    environment = _environment(options, jobs)
    # A busy moment makes a peak too low, never too high: once before the rows and once after, the better one counts.
    before, _ = _peaks(jobs, environment, progress) if options.peaks else ([], [])
    begun = time.perf_counter() - state.seconds

    def spent() -> float:
        return time.perf_counter() - begun

    for turn in range(options.rounds):
        left = [job for job in jobs if len(state.samples.get(job.key, ())) <= turn and job.key not in state.errors]
        left = _affordable(left, state.costs, options.budget - spent()) if turn else left
        for index, job in enumerate(left if turn % 2 == 0 else left[::-1]):
            progress(f"round {turn + 1} of {options.rounds}, {index + 1} of {len(left)}: {job.key}")
            started = time.perf_counter()
            _one(job, jobs, state, environment, _slice(options, turn, len(jobs), spent()), options)
            state.costs[job.key] = time.perf_counter() - started
            state.write(spent())
    peaks, unmeasured = _peaks(jobs, environment, progress) if options.peaks else ([], [])
    peaks = [_better(peak, before) for peak in peaks]
    rows = [row_of(job, state.samples.get(job.key, []), state.errors.get(job.key), peaks) for job in jobs]
    compare(rows)
    report = {
        **stamped,
        "host": host | {"isa_cap": options.isa_cap or host["isa_cap"]},
        "threads": max(job.threads for job in jobs),
        "seconds": round(spent(), 1),
        "settings": _settings(options),
        "baseline": BASELINE,
        "peaks": peaks,
        "peak_errors": unmeasured,
        "rows": rows,
    }
    if options.sweep is not None:
        report |= {"sweep": options.sweep, "fits": fit_exponents(rows, options.sweep)}
    return report


def _identity(host: Mapping[str, Any], jobs: Sequence[Job], options: Options) -> str:
    """Digest of the machine, the rows, the contents of their files, and the code."""
    facts = [host, [dataclasses.asdict(job) for job in jobs], options.isa_cap]
    facts.append(code_digest("models", "export", "runtime", "benchmarks"))
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name in sorted({name for job in jobs for name in (job.subject.path, job.subject.checkpoint) if name}):
        path = Path(name)
        file = path / "manifest.json" if path.is_dir() else path
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _affordable(jobs: Sequence[Job], costs: Mapping[str, float], seconds: float) -> list[Job]:
    """Those that fit together, by what they took last time, the cheapest first; in the order they had."""
    kept, total = set(), 0.0
    for job in sorted(jobs, key=lambda job: costs.get(job.key, 0.0)):
        total += costs.get(job.key, 0.0)
        if total <= seconds:
            kept.add(job.key)
    return [job for job in jobs if job.key in kept]


def _environment(options: Options, jobs: Iterable[Job]) -> dict[str, str]:
    environment = {}
    if options.isa_cap:
        environment["ONEDNN_MAX_CPU_ISA"] = options.isa_cap
    if any(job.backend == "torch-compile" for job in jobs):
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(kept_folder() / "torch-inductor")
    return environment


def _settings(options: Options) -> list[str]:
    settings = [
        "Every row: an array of uint8 pictures in, an array of uint8 pictures out, in processes of its own, one a round.",
        "Threads are set in every engine (torch: intra-op, one inter-op; ONNX Runtime: no spinning; OpenVINO: no pinning).",
        "Precision is set in every engine: OpenVINO's float32 rows never run in bf16.",
        "Bundles run through rdsr.runtime.Upscaler, torch runs the fused network as one module.",
        "A batch runs at once in torch, and in ONNX Runtime for other people's graphs; elsewhere one picture after another.",
        "Above 384×384 LR pixels an Upscaler cuts tiles, and torch does not; operations are counted without halos.",
        "Cold start: from before the process is started to the first picture; median of the rounds. The first compiles what "
        "OpenVINO's later ones find in a cache, for peers as for bundles.",
        "Float rows turn uint8 into floats and back in NumPy (some 2 ms at 128×128); graphs of uint8 do it themselves.",
        "Memory comes from the system's allocator as it is set by default, for torch's rows as for all others.",
        "Of fewer than 10 (100) runs, p90 (p99) is little but the slowest one.",
        "Spread: largest less smallest median of the rounds, over the middle one; of four or more the furthest is left out.",
    ]
    if options.isa_cap:
        settings.append(
            f"ONEDNN_MAX_CPU_ISA={options.isa_cap} limits oneDNN's kernels (OpenVINO's, torch's convolutions), no others."
        )
    return settings


def _slice(options: Options, turn: int, jobs: int, spent: float) -> float:
    """Seconds of calls for a row in this round: half of its part of the budget, for starting takes time as well."""
    rounds = options.rounds - turn
    return max(0.1, 0.5 * (options.budget - spent) / (rounds * jobs))


def _one(
    job: Job, jobs: Sequence[Job], state: _State, environment: Mapping[str, str], seconds: float, options: Options
) -> None:
    if job.subject.failure is not None:
        state.errors[job.key] = job.subject.failure
        return
    if options.sweep is not None and (reason := _beyond(job, jobs, state, options)) is not None:
        state.errors[job.key] = reason
        return
    variables = {**environment, "OMP_NUM_THREADS": str(job.threads)}
    try:
        facts = dataclasses.asdict(job) | {"seconds": seconds}
        if job.subject.kind == "onnx":
            facts["input"] = dataclasses.asdict(input_of(Path(str(job.subject.path))))
        arguments = [facts | {"begun": time.time()}]
        sample = call_apart(f"{__package__}.worker", "measure", arguments, timeout=_TIMEOUT, environment=variables)
    except ChildProcessError as error:
        sample = {"error": " ".join(str(error).split())}
    if "error" in sample:
        state.errors[job.key] = sample["error"]
    else:
        state.samples.setdefault(job.key, []).append(sample)


def _beyond(job: Job, jobs: Iterable[Job], state: _State, options: Options) -> str | None:
    """Why a point of a sweep is not run, by what the series' smaller points so far let expect."""
    points = []
    for other in jobs:
        samples = state.samples.get(other.key)
        if samples and other.series == job.series and other.threads == job.threads:
            points.append((other.pixels, statistics.median(samples[0]["times_ms"]) / 1e3, samples[0]["peak_rss_mb"]))
    wanted = job.pixels
    smaller = sorted(point for point in points if point[0] < wanted)
    if not smaller:
        return None
    pixels, seconds, megabytes = smaller[-1]
    expected = seconds * wanted / pixels
    if expected > _LARGEST_SHARE * options.budget:
        return f"{NOT_RUN}: it would take some {expected:.0f} s a call, more than a quarter of the budget"
    growth = 0.0 if len(smaller) < 2 else (megabytes - smaller[-2][2]) / (pixels - smaller[-2][0])
    need, have = megabytes + growth * (wanted - pixels), psutil.virtual_memory().total / 2**20
    if need > 0.8 * have:
        return f"{NOT_RUN}: it would need some {need / 1024:.0f} GiB of memory, of {have / 1024:.0f} here"
    return None


def _better(peak: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Its figures, or those of the same way among `others` where they are higher."""
    of = ("backend", "precision", "threads")
    same = [other for other in others if all(other[key] == peak[key] for key in of)]
    return {key: value if key in of else max([value, *(other[key] for other in same)]) for key, value in peak.items()}


def _peaks(
    jobs: Sequence[Job], environment: Mapping[str, str], progress: Progress
) -> tuple[list[dict[str, Any]], list[str]]:
    """The best that each engine does at each precision and thread count, and a sentence for each that fails."""
    ways = {
        ("torch-eager" if job.backend == "torch-compile" else job.backend, job.precision, job.threads)
        for job in jobs
        if job.backend != "opencv"
    }
    peaks, failed = [], []
    for backend, precision, threads in sorted(ways):
        way = f"peak of {backend} {precision}, {threads} threads"
        progress(way)
        arguments = [backend, precision, threads]
        variables = {**environment, "OMP_NUM_THREADS": str(threads)}
        try:
            peak = call_apart(f"{__package__}.peaks", "measure_peak", arguments, timeout=_TIMEOUT, environment=variables)
        except ChildProcessError as error:
            failed.append(f"{way}: {' '.join(str(error).split())}")
        else:
            peaks.append(peak)
    return peaks, failed
