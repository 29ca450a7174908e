"""Fuzz target: mutated `manifest.json` files of the default bundle, opened, checked, described and planned with."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.random import Generator

from rdsr.errors import RdsrError
from rdsr.runtime.bundle import Bundle, canonical_json, default_bundle_path, manifest_digest
from rdsr.runtime.describe import describe_bundle
from rdsr.runtime.engines import BACKENDS
from rdsr.runtime.files import dump_json
from rdsr.runtime.pipelines import pipeline_kind
from rdsr.runtime.tiling.memory import needs_of

__all__ = ["attempt", "mutated", "seeds"]

_FILES = sorted(path for path in default_bundle_path().iterdir() if path.name != "manifest.json")


@functools.cache
def seeds() -> dict[str, bytes]:
    """The manifest of the default bundle, and one with the field of a single graph."""
    raw = (default_bundle_path() / "manifest.json").read_bytes()
    content = json.loads(raw)
    content["graphs"] |= {"model": "decoder.onnx"}
    return {"default": raw, "single graph": _signed(content)}


def _signed(content: dict[str, Any]) -> bytes:
    return canonical_json(content | {"digest": manifest_digest(content)})


def attempt(content: bytes) -> str:
    """Do with the bundle all that needs no engine."""
    folder = Path(tempfile.mkdtemp(prefix="rdsr-fuzz-"))
    try:
        (folder / "manifest.json").write_bytes(content)
        for path in _FILES:
            _place(path, folder / path.name)
        bundle = Bundle(folder)
        pipeline_kind(bundle.manifest)
        dump_json(describe_bundle(folder))
        for backend in BACKENDS:
            for precision in bundle.manifest.precisions:
                needs_of(bundle.manifest, backend, precision).peak(64 * 64)  # type: ignore[arg-type]
        for role in bundle.manifest.graphs:
            if not role.endswith("_weights"):
                bundle.graph(role)
        bundle.check()
    except RdsrError as error:
        text = str(error)
        if len(text) >= 1500 or "\n" in text:
            raise AssertionError(f"a message of {len(text)} characters: {text[:300]!r}") from error
        return f"refused: {type(error).__name__}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "accepted"


def _place(path: Path, target: Path) -> None:
    """The same file under another name, without a copy where that works."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy(path, target)


def mutated(rng: Generator) -> tuple[str, bytes]:
    """A seed with other bytes, or with one to four other values and a digest that fits again."""
    name = str(rng.choice(sorted(seeds())))
    raw = seeds()[name]
    if rng.random() < 0.25:
        changed = bytearray(raw)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(changed)))
            others = rng.integers(0, 256, int(rng.integers(0, 4)), "uint8")
            changed[place : place + int(rng.integers(0, 3))] = bytes(others)
        return f"{name}: bytes", bytes(changed)
    if rng.random() < 0.1:
        levels = int(rng.choice([20, 200, 900, 3000, 50_000]))
        piece = (b"[", b'{"a":', b'[{"a":')[int(rng.integers(3))]
        place = raw.rindex(b":", 0, int(rng.integers(100, len(raw)))) + 1
        return f"{name}: {levels} deep", raw[:place] + piece * levels + raw[place:]
    content = json.loads(raw)
    done = [_change(rng, content) for _ in range(int(rng.integers(1, 5)))]
    try:
        return f"{name}: {', '.join(done)}", _signed(content)
    except (ValueError, RecursionError):  # JSON has no such value: written as it is
        return f"{name}: {', '.join(done)}", _loosely(content)


def _loosely(content: dict[str, Any]) -> bytes:
    try:
        return json.dumps(content, indent=1, sort_keys=True).encode(errors="surrogatepass")
    except RecursionError:
        return b"[" * 10_000


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value of the JSON."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _change(rng: Generator, content: dict[str, Any]) -> str:
    places = list(_places(content))
    if rng.random() < 0.5:  # the fields that code reads, rather than one of a hundred layers
        read = (content, content.get("process"), content.get("graphs"))
        places = [(box, key) for box, key in places if any(box is other for other in read)]
    box, key = places[int(rng.integers(len(places)))]
    what = int(rng.integers(4))
    if what == 0:
        del box[key]
        return f"without {key}"
    if what == 1 and isinstance(box, dict):
        box[str(rng.choice(["", "x", "../x", "a" * 3000, "\x00", "é", "decoder", "model_ir", "digest"]))] = _odd(rng)
        return "a new key"
    if what == 2:
        other, name = places[int(rng.integers(len(places)))]
        box[key] = json.loads(json.dumps(other[name]))
        return f"{key} like {name}"
    box[key] = _odd(rng)
    return f"another {key}"


def _odd(rng: Generator) -> Any:
    deep: Any = 1
    for _ in range(int(rng.choice([5, 30, 300]))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    values: list[Any] = [
        None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53, 2**64, 10**400, -(2**70), 0.0, -0.5, 1e300, 1e-320, math.inf,
        math.nan, "", "x", "fp32", "direct", "\ud800", "\x00", "../../etc/passwd", "x" * 5000, "x" * 200_000, [], {}, [[]],
        [0] * 1000, [0] * 150_000, {"": ""}, [None], ["fp32"], deep,
    ]  # fmt: skip
    return values[int(rng.integers(len(values)))]
