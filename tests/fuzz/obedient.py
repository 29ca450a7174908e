"""A target that does what its input says, to test the driver."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

__all__ = ["MEMORY", "PAIRED", "SILENT", "attempt", "mutated", "seeds"]

PAIRED = True
SILENT = True
MEMORY = 2**27
_DRAWN = ("accept", "accept", "refuse", "raise", "differ")


def seeds() -> dict[str, bytes]:
    return {"accept": b"accept"}


def mutated(rng: np.random.Generator) -> tuple[str, bytes]:
    order = _DRAWN[int(rng.integers(len(_DRAWN)))]
    return order, order.encode()


def attempt(content: bytes) -> str:
    order = content.decode()
    if order == "refuse":
        return "refused: PictureError"
    if order == "raise":
        raise IndexError("out of range")
    if order == "exit":
        raise SystemExit(0)
    if order == "crash":
        os.abort()
    if order == "end":
        os._exit(0)
    if order == "hang":
        time.sleep(600)
    if order == "grow":
        held = np.ones(2**28, np.uint8)
        time.sleep(600)
        del held
    if order == "speak":
        sys.stderr.write("hello")
    return f"accepted: {os.environ['MALLOC_PERTURB_']}" if order == "differ" else "accepted"
