"""Read a batch of pictures in a process of its own, and print a line of JSON after each: `python read_batch.py BATCH START`.

BATCH holds the pictures one after the other, each behind its length (8 bytes). START is the number of the first one to read.
A crash or a hang concerns the picture after the last line. Standard error must be a file: what is written to it is reported.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np

from rdsr.errors import RdsrError
from rdsr.runtime.pictures.reading import open_picture

MAX_PIXELS = 4_000_000
"""Callers compare the header with their limit, before they decode."""
_CHANNELS = {2: (1,), 3: (2, 3, 4)}


def result_of(content: bytes, number: int) -> tuple[str, str]:
    """(read, refused, too large or fault; digest of the pixels, or the sentence)."""
    try:
        with open_picture(content, f"picture {number}") as picture:
            header = picture.header
            if header.height * header.width > MAX_PIXELS:
                return "too large", f"{header.shape} {header.dtype}"
            pixels = picture.pixels()
            warnings = tuple(picture.warnings)
            if (pixels.shape, pixels.dtype.name) != (header.shape, header.dtype):
                return "fault", f"{pixels.shape} {pixels.dtype} under a header of {header.shape} {header.dtype}"
            if pixels.dtype.name not in ("uint8", "uint16", "float32") or pixels.ndim not in _CHANNELS:
                return "fault", f"{pixels.shape} {pixels.dtype} is no picture"
            if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS[3]:
                return "fault", f"{pixels.shape} is no picture"
            if number % 4 == 0 and header.in_strips:
                strips = np.concatenate(list(picture.strips(16)))
                if strips.tobytes() != pixels.tobytes():
                    return "fault", "strips differ from the whole picture"
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            return "read", f"{pixels.shape} {pixels.dtype} {digest} {warnings}"
    except RdsrError as error:
        return "refused", str(error)
    except BaseException as error:  # whatever else comes out is what the test looks for
        return "fault", f"{type(error).__name__}: {error}"


def anonymous_mb() -> float:
    """Anonymous memory of this process, MiB, without what the allocator could give back."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024


def main() -> None:
    batch, start = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
    at, number = 0, 0
    while at < len(batch):
        (size,) = struct.unpack_from("<Q", batch, at)
        content = batch[at + 8 : at + 8 + size]
        at += 8 + size
        if number >= start:
            before, started = os.fstat(2).st_size, time.perf_counter()
            what, text = result_of(content, number)
            seconds = time.perf_counter() - started
            sys.stderr.flush()
            spoken = os.pread(2, 500, before).decode(errors="replace")
            memory = anonymous_mb() if number % 50 == 0 else None
            line = {"what": what, "text": text, "seconds": seconds, "stderr": spoken, "memory": memory}
            print(json.dumps(line), flush=True)
        number += 1


if __name__ == "__main__":
    main()
