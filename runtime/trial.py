"""The trial of a bundle: its graphs run once in a child process before an engine of this process sees them.

A graph that crashes an engine, keeps it busy for ever or takes all memory then costs an error and nothing else. What passed
is remembered in the user's cache folder, for graphs, engine and machine.
"""

from __future__ import annotations

import hashlib
import json
import threading

from .bundle import Bundle, Manifest, default_bundle_path
from .engines import Backend, Precision, engine_version
from .engines.cache import recall, remember
from .errors import BundleError, EngineError, RdsrError
from .host import cpu
from .host.memory import available_memory
from .host.processes import in_forked_children

__all__ = ["child_memory", "child_seconds", "raise_from_child", "remember_passed", "try_first"]

PIXELS = 1000
"""More LR pixels than the pictures of a trial have together."""
_MIB = 2**20
_LOCK = threading.Lock()
_PASSED: set[str] = set()
_REFUSED: dict[str, RdsrError] = {}
"""The errors of this process's trials. They hold for its whole life: a service must not try a bad bundle at every call."""
_CONTENT = b"passed"


def try_first(bundle: Bundle, backend: Backend, precision: Precision) -> None:
    """Try the pipeline in a child process, unless this machine has proven it. The package's own bundle needs no trial.

    Raises `BundleError` if the graphs make the engine crash, hang or break a limit, and what the pipeline itself raises;
    `EngineError` if no child process can be started.
    """
    if bundle.path.resolve() == default_bundle_path().resolve():
        return
    name = _name(bundle.manifest, backend, precision)
    with _LOCK:
        if name in _REFUSED:
            error = _REFUSED[name]
            raise type(error)(*error.args)
        if name in _PASSED or recall(name) == _CONTENT:
            return
        try:
            _try(bundle, backend, precision)
        except BundleError as error:
            _REFUSED[name] = type(error)(*error.args)  # without its traceback, which holds frames
            raise
        _keep(name)


def remember_passed(manifest: Manifest, backend: Backend, precision: Precision) -> None:
    """Remember that the engine has just run the bundle's pipeline at this precision on this machine."""
    _keep(_name(manifest, backend, precision))


def _keep(name: str) -> None:
    _PASSED.add(name)
    remember(name, _CONTENT)


def _name(manifest: Manifest, backend: Backend, precision: Precision) -> str:
    """A name in the cache for everything that a trial depends on."""
    roles = {manifest.role(role, precision) for role in manifest.pipeline_roles}
    digests = {role: manifest.files[manifest.graphs[role]][0] for role in roles if role in manifest.graphs}
    facts = [digests, manifest.process, manifest.scale, backend, precision, engine_version(backend), cpu.identity()]
    return f"tried-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]}"


def _try(bundle: Bundle, backend: Backend, precision: Precision) -> None:
    from .host.watched import ChildLostError, Limits, call_watched  # few processes start others

    limits = Limits(child_seconds(bundle.manifest, PIXELS), child_memory(bundle.manifest, PIXELS))
    facts = (str(bundle.path.absolute()), bundle.manifest.digest, backend, precision)
    try:
        outcome = call_watched("rdsr.runtime.trial_child", "run_once", facts, limits)
    except ChildLostError as error:
        raise BundleError(
            f"the bundle {bundle.path} is refused: the trial of its {precision} graphs in {backend} {error}"
        ) from error
    except ChildProcessError as error:
        raise EngineError(
            f"the bundle {bundle.path} is new to this machine, and no process can be started to try it ({error}): "
            "run `rdsr verify` on it first"
        ) from error
    raise_from_child(outcome)


def raise_from_child(outcome: dict[str, str]) -> None:
    """Raise the typed error that a child process returned, if it returned one."""
    if "error" in outcome:
        kind = BundleError if outcome["error"] == "BundleError" else EngineError
        raise kind(outcome["sentence"])


def _bytes(manifest: Manifest) -> int:
    return sum(manifest.files[name][1] for name in set(manifest.graphs.values()))


def child_seconds(manifest: Manifest, pixels: int) -> float:
    """Seconds of processor time that loading the graphs and upscaling so many LR pixels may take.

    A machine that multiplies 10⁹ numbers a second has enough; processors of 2020 reach 20 to 60 times that. Starting Python
    and an engine takes 1 to 2 s, and OpenVINO compiles 10 MiB in a second.
    """
    weights = _bytes(manifest) / 4
    return 5 + weights * 4 / _MIB + weights * pixels * 1e-9


def child_memory(manifest: Manifest, pixels: int) -> int:
    """Resident bytes that a child may take to load the graphs and upscale a picture of so many LR pixels.

    Python and OpenVINO take 250 MiB, the graphs up to 4 times their size, and an LR pixel some 2 KiB.
    """
    wanted = 512 * _MIB + 10 * _bytes(manifest) + 16 * 1024 * pixels
    return min(wanted, max(256 * _MIB, int(0.9 * available_memory())))


@in_forked_children
def _forget_the_parent() -> None:
    global _LOCK
    _LOCK = threading.Lock()
