"""A worker that enlarges pictures from a folder as they come, several at once. Run: python threaded_worker.py IN OUT"""

import queue
import sys
import threading
import time
from pathlib import Path

from rdsr.runtime import RdsrError, Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")  # one for all threads: they take turns, tile by tile
jobs: "queue.Queue[Path]" = queue.Queue(maxsize=100)


def work(target: Path) -> None:
    while source := jobs.get():
        try:
            done = upscaler.file(source, target / f"{source.stem}.png")
            print(f"{done.output.name} {done.ms:.0f} ms", flush=True)
        except RdsrError as error:  # one bad picture stops nobody
            print(f"failed: {error}", file=sys.stderr, flush=True)
        finally:
            jobs.task_done()


def main(source: Path, target: Path, seconds: float = float("inf")) -> None:
    for _ in range(3):
        threading.Thread(target=work, args=(target,), daemon=True).start()
    seen, end = set[Path](), time.monotonic() + seconds
    while time.monotonic() < end:
        for path in sorted(set(source.iterdir()) - seen):
            seen.add(path)
            jobs.put(path)
        time.sleep(0.2)
    jobs.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
