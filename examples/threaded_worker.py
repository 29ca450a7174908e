"""A worker that enlarges pictures from a folder as they come, several at once. Run: python threaded_worker.py IN OUT"""

import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rdsr.runtime import Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")  # one for all threads: they take turns, tile by tile


def work(source: Path, target: Path) -> None:
    try:
        done = upscaler.file(source, target)
        print(f"{done.output.name} {done.ms:.0f} ms", flush=True)
    except Exception as error:  # one bad picture stops nobody
        print(f"failed: {error}", file=sys.stderr, flush=True)


def main(source: Path, target: Path, seconds: float = float("inf")) -> None:
    seen, end = set[Path](), time.monotonic() + seconds
    with ThreadPoolExecutor(3) as threads:  # three read, wait and write at once
        while time.monotonic() < end:
            for path in sorted(set(source.iterdir()) - seen):
                with contextlib.suppress(FileNotFoundError):  # it may be gone already
                    if time.time() - path.stat().st_mtime > 0.5:  # nobody is writing it any more
                        seen.add(path)
                        threads.submit(work, path, target / f"{path.name}.png")
            time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
