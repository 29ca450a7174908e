"""Peak memory of pictures of ever other sizes and kinds, in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

from rdsr.tests.conftest import run_alone

__all__ = ["KINDS", "peaks"]

KINDS = {"fp32": "rgb,rgba,16 bit", "int8": "rgb,rgba"}
"""Kinds of pictures that a precision takes; they come in turn."""
_SCRIPT = """
    import json, sys, numpy as np, rdsr.runtime.upscaler, rdsr.runtime.pictures.alpha
    from pathlib import Path
    from rdsr.benchmarks.process import peak_mb, resident_mb
    bundle, backend, precision, limit, kinds, count, least, most = sys.argv[1:]
    kinds, rows, rng = kinds.split(","), [], np.random.default_rng(0)
    before = resident_mb()
    upscaler = rdsr.runtime.Upscaler.load(
        bundle, backend=backend, precision=precision, threads=2, memory_limit=f"{limit}MiB"
    )
    for number in range(int(count)):
        height, width = (int(side) for side in rng.integers(int(least), int(most) + 1, 2))
        kind = kinds[number % len(kinds)]
        shape = height, width, 4 if kind == "rgba" else 3
        source = np.full(shape, 7 * number % 256, np.uint16 if kind == "16 bit" else np.uint8)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        larger = upscaler(source)
        rows.append(peak_mb() - before - (source.nbytes + larger.nbytes) / 2**20)
        del source, larger
    print(json.dumps(rows))
"""


def peaks(bundle: Path, backend: str, precision: str, *, limit_mib: int, count: int, sides: tuple[int, int]) -> list[float]:
    """Peak MiB of each of `count` pictures beyond those before loading, without its input and output. Linux only.

    `sides`: least and most height and width in pixels.
    """
    facts = (bundle, backend, precision, limit_mib, KINDS[precision], count, *sides)
    rows: list[float] = json.loads(run_alone(_SCRIPT, *facts, seconds=3600))
    return rows
