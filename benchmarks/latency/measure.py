"""Run `rdsr bench latency`: models × engines × precisions × sizes × threads; every row in its own processes, interleaved."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
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
from ..subjects.photograph import photograph
from .rows import BASELINE, Job, compare, fit_exponents, input_of, row_of

__all__ = ["BACKENDS", "NOT_RUN", "Options", "jobs_of", "measure_latency"]

Progress = Callable[[str], None]
Sample = Mapping[str, Any]
Peaks = Mapping[tuple[str, str, int], Sample]
BACKENDS = ("torch-eager", "torch-compile", "onnxruntime", "openvino", "opencv")
_PRECISIONS = ("fp32", "bf16", "int8", "uint8")
NOT_RUN = "not run"
"""Start of the error of a sweep's point that was left out on purpose."""
_LARGEST_SHARE = 0.25
"""Largest share of the budget that one call in a sweep may be expected to take."""
_TIMEOUT = 900.0
_SETTINGS = """\
Every row runs in its own processes, one a round, on a photograph.
Bundles and torch take an array of uint8 pictures and return one: converting it is part of their time.
Other people's graphs are timed on the engine's own call; what converting pictures takes beside it is apart (conversion_ms).
Threads are set in every engine (torch: intra-op, one inter-op; ONNX Runtime: no spinning; OpenVINO: no pinning).
Precision is set in every engine: OpenVINO's float32 rows never run in bf16.
Bundles run through rdsr.runtime.Upscaler; torch runs the fused network as one module.
torch runs a batch at once, and so does ONNX Runtime for other people's graphs; all others run picture by picture.
Above 512×512 LR pixels an Upscaler cuts tiles and torch does not; halos are not counted as operations.
Networks of several heavy graphs say how long a run of each takes (graphs_ms): the median of all runs in a process.
Cold start: from before the process starts to the first picture; median of the rounds.
OpenVINO compiles in the first round and finds the result in a cache in later ones, for peers as for bundles.
Memory comes from the system's allocator in its default settings, for torch as for all others.
With fewer than 10 (100) runs, p90 (p99) is little more than the slowest run.
Spread: largest minus smallest median of the rounds, over the middle one; of four or more the furthest is left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How long and how to measure."""

    budget: float = 600.0
    """Seconds for all timing, without exports. Every row runs once even if that takes longer."""
    rounds: int = 5
    """Largest number of rounds."""
    isa_cap: str | None = None
    """Limit to the instruction sets of oneDNN (OpenVINO, torch), e.g. "AVX512_CORE_VNNI"."""
    sweep: str | None = None
    """One of `rows.SWEEPS` if the jobs are points of series."""
    peaks: bool = True
    """Also measure what the machine can do at best."""


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
    """List every combination that exists. Empty `backends` and `precisions` mean all there are; bicubic ignores both.

    `isa_cap`: the limit under which the rows will run (`Options.isa_cap`); it may rule out bf16.
    Raises `BenchmarkError` for an unknown name, and if a model is left without a row.
    """
    for kind, asked, known in (("backend", backends, BACKENDS), ("precision", precisions, _PRECISIONS)):
        if unknown := [name for name in asked if name not in known]:
            raise BenchmarkError(f"no {kind} is called {unknown[0]!r}; known are {', '.join(known)}")
    jobs = []
    for subject in subjects:
        ways = every = _ways(subject, isa_cap)
        if subject.kind != "bicubic":
            ways = [way for way in every if way[0] in (backends or BACKENDS) and way[1] in (precisions or _PRECISIONS)]
        if not ways:
            have = ", ".join(" ".join(way) for way in every)
            raise BenchmarkError(f"{subject.model} runs in none of what was asked for; it has {have}")
        for size, batch, count in itertools.product(sizes, batches, threads):
            jobs += [Job(subject, *way, size, batch, count) for way in ways]
    return jobs


def _ways(subject: Subject, isa_cap: str | None) -> list[tuple[str, str]]:
    """List the (backend, precision) pairs in which this machine can run a subject under the limit."""
    if subject.kind == "bicubic":
        return [("opencv", "uint8")]
    if subject.kind == "function":
        return [("torch-eager", "fp32")]
    ways: list[tuple[str, str]] = [
        (engine, precision)
        for engine in ENGINES
        for precision in supported_precisions(engine)
        if precision != "bf16" or cpu.has_bf16(isa_cap)
    ]
    if subject.kind == "onnx":
        path = Path(str(subject.path))
        engines = ("openvino",) if path.suffix.lower() == ".xml" else ENGINES
        precisions = ("int8",) if input_of(path).quantized else ("fp32", "bf16")
        return [way for way in ways if way[0] in engines and way[1] in precisions]
    if subject.failure is None:
        manifest = Bundle(subject.path).manifest
        ways = [(engine, precision) for engine, precision in ways if manifest.proven(precision, engine)]
    return [("torch-eager", "fp32"), ("torch-compile", "fp32"), *ways] if subject.kind == "network" else ways


def _read_state(partial: Path | None, identity: str) -> dict[str, Any]:
    """Return what a run that was cut off left in the file; nothing if it is missing, damaged or of another run.

    "samples": row → its samples. "costs": row → seconds of its last round, start included. "seconds": time spent.
    """
    state: dict[str, Any] = {"identity": identity, "samples": {}, "costs": {}, "seconds": 0.0}
    if partial is not None and partial.is_file():
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(partial.read_bytes())
            if content["identity"] == identity:
                return {key: content[key] for key in state}
    return state


def measure_latency(
    jobs: Sequence[Job], options: Options, *, partial: Path | None = None, progress: Progress = lambda step: None
) -> dict[str, Any]:
    """Run every job over interleaved rounds and return the JSON report.

    `partial`: file that keeps the samples. A call with the same jobs, files and code goes on from there; the caller removes
    the file once the report is stored. A row that fails says why, and the others go on. If the budget is too short for one
    more round of all rows, the cheaper ones go on.
    """
    stamped = stamp()
    state = _read_state(partial, _identity(stamped["host"], jobs, options))
    samples, errors = state["samples"], dict[str, str]()
    environment = {"ONEDNN_MAX_CPU_ISA": options.isa_cap} if options.isa_cap else {}
    if any(job.backend == "torch-compile" for job in jobs):
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(kept_folder() / "torch-inductor")
    with_peak = [job for job in jobs if options.peaks and job.backend != "opencv"]
    # A busy moment makes a peak too low, never too high: measure it before and after the rows and take the better one.
    peaks, _ = _peaks(with_peak, environment, progress, {})
    begun = time.perf_counter() - state["seconds"]
    for turn in range(options.rounds):
        left = [job for job in jobs if len(samples.get(job.key, ())) <= turn and job.key not in errors]
        if turn:
            left = _affordable(left, state["costs"], options.budget - (time.perf_counter() - begun))
        for index, job in enumerate(left if turn % 2 == 0 else left[::-1]):
            progress(f"round {turn + 1} of {options.rounds}, {index + 1} of {len(left)}: {job.key}")
            started = time.perf_counter()
            # Half of the row's part of what is left of the budget: starting takes time as well.
            seconds = 0.5 * (options.budget - (started - begun)) / ((options.rounds - turn) * len(jobs))
            reason = job.subject.failure or _beyond(job, jobs, samples, options)
            sample = {"error": reason} if reason else _sample(job, max(0.1, seconds), environment)
            if "error" in sample:
                errors[job.key] = sample["error"]
            else:
                samples.setdefault(job.key, []).append(sample)
            state["costs"][job.key] = time.perf_counter() - started
            state["seconds"] = time.perf_counter() - begun
            if partial is not None:
                atomic_write(partial, dump_json(state).encode())
    peaks, failed = _peaks(with_peak, environment, progress, peaks)
    best = list(peaks.values())
    rows = [row_of(job, samples.get(job.key, []), errors.get(job.key), best) for job in jobs]
    compare(rows)
    settings = _SETTINGS.splitlines()
    if options.isa_cap:
        cap = f"ONEDNN_MAX_CPU_ISA={options.isa_cap}"
        settings.append(f"{cap} limits oneDNN's kernels (OpenVINO's, torch's convolutions) and no others.")
    report = {
        **stamped,
        "host": stamped["host"] | {"isa_cap": options.isa_cap or stamped["host"]["isa_cap"]},
        "threads": max(job.threads for job in jobs),
        "seconds": round(time.perf_counter() - begun, 1),
        "settings": settings,
        "baseline": BASELINE,
        "peaks": best,
        "peak_errors": failed,
        "rows": rows,
    }
    if options.sweep is not None:
        report |= {"sweep": options.sweep, "fits": fit_exponents(rows, options.sweep)}
    return report


def _identity(host: Mapping[str, Any], jobs: Sequence[Job], options: Options) -> str:
    """Return a digest of the machine, the rows, the contents of their files, and the code."""
    names = sorted({name for job in jobs for name in (job.subject.path, job.subject.checkpoint) if name})
    files = [file for name in names for file in (Path(name), Path(name) / "manifest.json") if file.is_file()]
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    code = code_digest("models", "export", "runtime", "benchmarks")
    facts = [host, [dataclasses.asdict(job) for job in jobs], options.isa_cap, contents, code]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _affordable(jobs: Sequence[Job], costs: Mapping[str, float], seconds: float) -> list[Job]:
    """Keep the cheapest jobs that fit together into the time, by what each took last time; the order stays."""
    kept, total = set(), 0.0
    for job in sorted(jobs, key=lambda job: costs.get(job.key, 0.0)):
        total += costs.get(job.key, 0.0)
        if total <= seconds:
            kept.add(job.key)
    return [job for job in jobs if job.key in kept]


def _apart(module: str, function: str, arguments: Sequence[Any], environment: Mapping[str, str], threads: int) -> Sample:
    """Call a function of a module beside this one in a new process; a failure becomes {"error": one line}."""
    variables = {**environment, "OMP_NUM_THREADS": str(threads)}
    try:
        return call_apart(f"{__package__}.{module}", function, arguments, timeout=_TIMEOUT, environment=variables)
    except ChildProcessError as error:
        return {"error": " ".join(str(error).split())}


def _sample(job: Job, seconds: float, environment: Mapping[str, str]) -> Sample:
    """Run a row once in a new process; see `worker.measure`."""
    facts = dataclasses.asdict(job) | {"seconds": seconds}
    if job.subject.kind == "onnx":
        facts["input"] = dataclasses.asdict(input_of(Path(str(job.subject.path))))
    with tempfile.TemporaryDirectory() as folder:
        facts["pictures"] = str(Path(folder) / "pictures.npy")
        np.save(facts["pictures"], np.repeat(photograph(*job.size)[None], job.batch, axis=0))
        return _apart("worker", "measure", [facts | {"begun": time.time()}], environment, job.threads)


def _beyond(job: Job, jobs: Sequence[Job], samples: Mapping[str, Sequence[Sample]], options: Options) -> str | None:
    """Say why a point of a sweep is not run, judging by the smaller points of its series; None: it is run."""
    smaller: list[tuple[int, float, float]] = []
    for other in jobs if options.sweep else ():
        same_series = dataclasses.replace(other, size=job.size, batch=job.batch) == job
        if same_series and other.pixels < job.pixels and other.key in samples:
            first = samples[other.key][0]
            smaller.append((other.pixels, statistics.median(first["times_ms"]) / 1e3, first["peak_rss_mb"]))
    if not smaller:
        return None
    *others, (pixels, seconds, megabytes) = sorted(smaller)
    expected = seconds * job.pixels / pixels
    if expected > _LARGEST_SHARE * options.budget:
        return f"{NOT_RUN}: it would take some {expected:.0f} s a call, more than a quarter of the budget"
    growth = (megabytes - others[-1][2]) / (pixels - others[-1][0]) if others else 0.0
    need, have = megabytes + growth * (job.pixels - pixels), psutil.virtual_memory().total / 2**20
    if need > 0.8 * have:
        return f"{NOT_RUN}: it would need some {need / 1024:.0f} GiB of memory, of {have / 1024:.0f} here"
    return None


def _peaks(
    jobs: Sequence[Job], environment: Mapping[str, str], progress: Progress, before: Peaks
) -> tuple[Peaks, list[str]]:
    """Measure the peaks that the jobs are compared with; return them, and a sentence for each that failed.

    A figure that was higher `before` counts.
    """
    peaks: dict[tuple[str, str, int], Sample] = {}
    failed = []
    for way in sorted({job.peak for job in jobs}):
        name = "peak of {} {}, {} threads".format(*way)
        progress(name)
        peak = _apart("peaks", "measure_peak", way, environment, way[2])
        if "error" in peak:
            failed.append(f"{name}: {peak['error']}")
        else:
            other = before.get(way, peak)
            peaks[way] = {key: max(value, other[key]) for key, value in peak.items()}
    return peaks, failed
