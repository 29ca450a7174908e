"""A bundle folder: its manifest, and access to its files with their checksums checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...errors import shortened
from ..arguments import path_of, shown
from ..errors import BundleError
from ..files import digest_regular, read_regular
from .graph import GraphError
from .graph_check import check_graph
from .manifest import Manifest, canonical_json, check_json, is_onnx, parse_manifest

__all__ = ["Bundle", "default_bundle_path"]

_MAX_MANIFEST = 2**20
_CHECKED: set[tuple[str, str]] = set()
"""Manifest digest and role of each graph that this process has checked. Checksums say that it has not changed since."""


def default_bundle_path() -> Path:
    """Folder of the bundle that the package carries."""
    return Path(__file__).parent.parent / "default_bundle"


class Bundle:
    """A bundle folder. Opening it checks its manifest, `read` checks one file. Both raise `BundleError`, which names it."""

    path: Path
    manifest: Manifest

    def __init__(self, path: Path | str | None = None) -> None:
        """Open the bundle at `path` (None: the one that the package carries)."""
        found = default_bundle_path() if path is None else path_of(path)
        if found is None:
            raise BundleError(f"a bundle is opened by the path of its folder, not by {shown(path)}")
        self.path = found
        try:
            reason = None if self.path.is_dir() else "not a folder" if self.path.exists() else "not found"
        except (OSError, ValueError) as error:  # a name that no file can have
            reason = getattr(error, "strerror", None) or str(error)
        if reason is not None:
            raise BundleError(f"there is no bundle at {str(self.path)[:200]}: {reason}")
        try:
            raw = read_regular(self.path / "manifest.json", _MAX_MANIFEST)
        except OSError as error:
            raise BundleError(f"{self.path} is no bundle: cannot read manifest.json ({error.strerror})") from error
        try:
            content = json.loads(raw.decode("utf-8"))
            check_json(content)
            self.manifest = parse_manifest(content)
            canonical = canonical_json(content)
        except BundleError as error:
            raise BundleError(f"the bundle {self.path} is refused: {shortened(error)}") from error
        except RecursionError:
            raise BundleError(f"the bundle {self.path} is refused: manifest.json is nested too deep") from None
        except ValueError as error:
            raise BundleError(f"the bundle {self.path} is refused: manifest.json is not valid JSON") from error
        if canonical != raw:
            raise BundleError(f"the bundle {self.path} is refused: manifest.json was changed after it was written")

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    def read(self, name: str) -> bytes:
        """The bytes of one of the manifest's files, checked against its checksum."""
        digest, size = self._entry(name)
        try:
            content = read_regular(self.path / name, size)
        except OSError as error:
            raise self._damaged(f"cannot read {name} ({error.strerror})") from error
        except MemoryError:
            raise BundleError(f"{name} of the bundle {self.path} has {size} bytes, which do not fit into memory") from None
        if len(content) != size:
            raise self._damaged(f"{name} has {len(content)} bytes, not {size}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._damaged(f"{name} does not match its checksum")
        return content

    def graph(self, role: str) -> bytes:
        """The graph of a role, checked: its checksum, and that it holds nothing but what exports write (`check_graph`).

        For OpenVINO IR, `read` gives its weights.
        """
        if role not in self.manifest.graphs:
            raise BundleError(f"the bundle {self.path} has no {role} graph")
        name = self.manifest.graphs[role]
        content = self.read(name)
        if (graph := (self.manifest.digest, role)) not in _CHECKED:
            weights = None if is_onnx(role) else self.read(self.manifest.graphs[f"{role}_weights"])
            try:
                check_graph(self.manifest, content, weights)
            except GraphError as error:
                raise BundleError(f"the bundle {self.path} is refused: {name} {shortened(error)}") from error
            _CHECKED.add(graph)
        return content

    def graph_file(self, role: str) -> Path:
        """The file of a role's graph, checked like `graph`, for engines that read large files themselves."""
        if (self.manifest.digest, role) not in _CHECKED:
            self.graph(role)
        else:
            self._check_file(self.manifest.graphs[role])
        return self.path / self.manifest.graphs[role]

    def check(self) -> None:
        """Check every file of the manifest against its checksum, a little at a time."""
        for name in self.manifest.files:
            self._check_file(name)

    def _check_file(self, name: str) -> None:
        digest, size = self._entry(name)
        try:
            found = digest_regular(self.path / name, size)
        except OSError as error:
            raise self._damaged(f"cannot read {name} ({error.strerror})") from error
        if found is None:
            raise self._damaged(f"{name} does not have {size} bytes")
        if found != digest:
            raise self._damaged(f"{name} does not match its checksum")

    def _entry(self, name: str) -> tuple[str, int]:
        """Checksum and size of a file."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.path} has no file {name}")
        return self.manifest.files[name]

    def _damaged(self, reason: str) -> BundleError:
        return BundleError(f"the bundle {self.path} is damaged: {reason}")
