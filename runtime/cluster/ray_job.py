"""A batch of files as a Ray Data job: a pool of actors, one `Upscaler` each, and only names and outcomes between them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import shortened
from ..errors import EngineError, OptionError
from ..pictures.formats import WriteOptions
from ..upscaler import Upscaler
from .addresses import AddressedFile
from .outcomes import Outcome, outcome_of

__all__ = ["ClusterJob", "ray_cluster", "run_on_ray"]

_ROWS = 8
"""Most files that an actor gets at a time."""
_TRIES = 3
"""How often files are given to an actor that dies with them."""


@dataclasses.dataclass(frozen=True)
class ClusterJob:
    """What every actor needs to know. It travels as it is, so it holds nothing but plain values."""

    load: Mapping[str, Any]
    """Arguments of `Upscaler.load`. A bundle must lie at the same path on every node."""
    digest: str
    """That of its manifest, so that another bundle of that name is noticed."""
    write: WriteOptions
    max_pixels: int | None = None


class _Worker:
    """An actor of the pool. Its engine has as many threads as Ray gives it processors."""

    def __init__(self, job: ClusterJob) -> None:
        import ray

        self._job = job
        self._threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        self._upscaler = self._loaded()

    def _loaded(self) -> Upscaler:
        upscaler = Upscaler.load(**{**self._job.load, "threads": self._threads})
        if upscaler.bundle.manifest.digest != self._job.digest:
            raise EngineError(f"another bundle lies at {upscaler.bundle.path} on {socket.gethostname()}")
        return upscaler

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        file = AddressedFile(row["input"], row["output"])
        try:
            try:
                outcome = self._outcome(file)
            except EngineError:  # once more, with an engine that has seen nothing
                self._upscaler = self._loaded()
                outcome = self._outcome(file)
        except Exception as error:  # also a bug: nobody sees what an actor logs
            outcome = Outcome(file.input, file.output, error=f"{file.input}: {shortened(error or type(error).__name__)}")
        return {"outcome": json.dumps(dataclasses.asdict(outcome))}

    def _outcome(self, file: AddressedFile) -> Outcome:
        return outcome_of(self._upscaler, file, self._job.write, self._job.max_pixels)


@contextlib.contextmanager
def ray_cluster(address: str | None) -> Iterator[int]:
    """Connect to a cluster, and yield the processors of its smallest node. `address` None starts one on this machine.

    A cluster that is connected to already stays so. Raises `OptionError` if there is no cluster, and `EngineError` if it
    fails.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it has its logs; what matters here becomes an error
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    started_here = not ray.is_initialized()
    try:
        if started_here:
            terminated = signal.getsignal(signal.SIGTERM)
            here = {} if address else {"include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **here)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, terminated)  # Ray has put its own in its place
        yield min((count for count in _processors() if count), default=1)
    except ConnectionError as error:
        raise OptionError(f"there is no Ray cluster at {address}: {' '.join(str(error).split())[:300]}") from error
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]  # a traceback, with the error in the end
        raise EngineError(f"the Ray job failed: {shortened(lines[-1] if lines else type(error).__name__)}") from error
    finally:
        if started_here and ray.is_initialized():
            ray.shutdown()


def _processors() -> list[int]:
    """Of each node that is alive."""
    import ray

    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def run_on_ray(files: Sequence[AddressedFile], job: ClusterJob, *, processors: int) -> Iterator[Outcome]:
    """Upscale files on the cluster of `ray_cluster`, and give each outcome once, as it comes, in any order.

    `processors`: of each actor; a node holds as many actors as it has room for. Work of an actor that dies is done again; a
    file that is written twice has the same bytes. Files whose actor dies each time are tried alone, and then have failed.
    Raises what Ray raises.
    """
    missing = {file.output: file for file in files}
    for rows in (_ROWS, 1):
        for outcome in _pass(list(missing.values()), job, processors, rows):
            if missing.pop(outcome.output, None) is not None:
                yield outcome
        if not missing:
            return
    for file in missing.values():
        yield Outcome(file.input, file.output, error=f"{file.input}: each worker that had it died")


def _pass(files: Sequence[AddressedFile], job: ClusterJob, processors: int, rows: int) -> Iterator[Outcome]:
    import ray

    most = max(1, sum(count // processors for count in _processors()))
    blocks = max(1, -(-len(files) // max(1, min(rows, len(files) // (4 * most)))))
    data = ray.data.from_items([dataclasses.asdict(file) for file in files], override_num_blocks=blocks)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # up to 2.63 there is no other way to bound these retries
        results = data.map(
            _Worker,
            fn_constructor_args=(job,),
            compute=pool,
            num_cpus=processors,
            max_task_retries=_TRIES - 1,
        )
    results.context.enable_progress_bars = False
    results.context.max_errored_blocks = -1  # files whose actor died are missing then, and nothing else
    for row in results.iter_rows():
        facts: dict[str, Any] = json.loads(row["outcome"])
        facts |= {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
        yield Outcome(**facts)
