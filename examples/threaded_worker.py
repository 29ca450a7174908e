"""A worker that enlarges the pictures that arrive in a folder, several at once. Run: python threaded_worker.py IN OUT"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rdsr.runtime import Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")  # one for all threads, which take turns tile by tile


def work(source: Path, target: Path) -> None:
    try:
        done = upscaler.file(source, target)
        print(f"{done.output.name} {done.ms:.0f} ms", flush=True)
    except Exception as error:  # one bad picture does not stop the others
        print(f"failed: {error}", file=sys.stderr, flush=True)


def main(source: Path, target: Path, seconds: float = float("inf")) -> None:
    known, end = dict[str, float](), time.monotonic() + seconds
    with ThreadPoolExecutor(3) as threads:  # three read, wait and write at once
        while time.monotonic() < end:
            found = {entry.name: entry.stat().st_mtime for entry in source.iterdir() if entry.is_file()}
            known = {name: changed for name, changed in known.items() if name in found}
            for name, changed in found.items():
                if known.get(name) != changed and time.time() - changed > 0.5:  # it is complete
                    known[name] = changed
                    threads.submit(work, source / name, target / f"{name}.png")
            time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
