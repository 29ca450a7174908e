"""What jobs have made below one address, for `--resume`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import OutputError, RdsrError
from .addresses import AddressedFile, list_addresses, read_address, write_address
from .outcomes import Outcome

__all__ = ["AddressRecord"]

_FOLDER = ".rdsr-done"
_SECONDS = 15.0
"""How long an outcome may be in memory alone."""


class AddressRecord:
    """The record of one output folder: files of JSON lines in a hidden folder, because object stores cannot append to one.

    A process that is killed has recorded everything but the last quarter of a minute, which a resumed job does again. Safe
    to use from several threads.
    """

    def __init__(self, folder: str, made_by: Mapping[str, Any]) -> None:
        """`made_by`: everything beside the input that the bytes of a result depend on, in plain values."""
        self._folder = f"{folder.rstrip('/')}/{_FOLDER}"
        self._made_by = json.loads(json.dumps(made_by))
        self._entries: dict[str, dict[str, Any]] = {}
        self._new: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def read(self) -> None:
        """Read what earlier jobs have recorded. Lines that are damaged or foreign count for nothing.

        Raises `OutputError`, and `PictureError` for a file that cannot be read.
        """
        for address in list_addresses(self._folder, ".jsonl"):
            for line in read_address(address).splitlines():
                entry: Any = None
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("output"), str):
                    if entry.get("made_by") == self._made_by:
                        self._entries[entry["output"]] = entry
                    else:  # something else may lie there now
                        self._entries.pop(entry["output"], None)

    def has(self, file: AddressedFile) -> bool:
        """Whether this input, as it is now, was made into this output in this way, and the output is whole."""
        entry = self._entries.get(file.output)
        if entry is None:
            return False
        with contextlib.suppress(RdsrError):  # the job itself will say what is wrong
            return _digest(file.input) == entry.get("input_sha256") and _digest(file.output) == entry.get("output_sha256")
        return False

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Write what was added now and then, and in the end. Raises `OutputError` in the end if that cannot be done."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(_SECONDS):
                with contextlib.suppress(OutputError):  # it is tried again
                    self._write()

        thread = threading.Thread(target=keep, name="rdsr-record", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._write()

    def add(self, outcome: Outcome) -> None:
        """Note a file that is done."""
        facts = {"output": outcome.output, "input_sha256": outcome.input_sha256, "output_sha256": outcome.output_sha256}
        with self._lock:
            self._new.append(facts | {"made_by": self._made_by})

    def _write(self) -> None:
        """Write what is in memory alone. Raises `OutputError`."""
        with self._lock:
            new = list(self._new)
        if new:
            lines = "".join(f"{json.dumps(entry)}\n" for entry in new)
            # Names begin with the time, so that files are read in the order in which they were written.
            write_address(f"{self._folder}/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl", lines.encode())
            with self._lock:
                del self._new[: len(new)]


def _digest(address: str) -> str:
    return hashlib.sha256(read_address(address)).hexdigest()
