"""A bundle folder: its manifest, and access to its files with their checksums checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..errors import BundleError
from ..files import read_regular
from .manifest import Manifest, canonical_json, is_onnx, parse_manifest
from .onnx_wire import refers_outside

__all__ = ["Bundle", "default_bundle_path"]

_MAX_MANIFEST = 2**20


def default_bundle_path() -> Path:
    """Folder of the bundle that the package carries."""
    return Path(__file__).parent.parent / "default_bundle"


class Bundle:
    """A bundle folder. Opening it checks its manifest, `read` checks one file. Both raise `BundleError`, which names it."""

    path: Path
    manifest: Manifest

    def __init__(self, path: Path | str | None = None) -> None:
        """Open the bundle at `path` (None: the one that the package carries)."""
        self.path = default_bundle_path() if path is None else Path(path)
        if not self.path.is_dir():
            reason = "not a folder" if self.path.exists() else "not found"
            raise BundleError(f"there is no bundle at {self.path}: {reason}")
        try:
            raw = read_regular(self.path / "manifest.json", _MAX_MANIFEST)
        except OSError as error:
            raise BundleError(f"{self.path} is no bundle: cannot read manifest.json ({error.strerror})") from error
        try:
            content = json.loads(raw.decode("utf-8"))
            self.manifest = parse_manifest(content)
            canonical = canonical_json(content)
        except BundleError as error:
            raise BundleError(f"the bundle {self.path} is refused: {error}") from error
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the bundle {self.path} is refused: manifest.json is not valid JSON") from error
        if canonical != raw:
            raise BundleError(f"the bundle {self.path} is refused: manifest.json was changed after it was written")

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"

    def read(self, name: str) -> bytes:
        """The bytes of one of the manifest's files, checked against its checksum."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.path} has no file {name}")
        digest, size = self.manifest.files[name]
        try:
            content = read_regular(self.path / name, size)
        except OSError as error:
            raise BundleError(f"the bundle {self.path} is damaged: cannot read {name} ({error.strerror})") from error
        if len(content) != size:
            raise BundleError(f"the bundle {self.path} is damaged: {name} has {len(content)} bytes, not {size}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise BundleError(f"the bundle {self.path} is damaged: {name} does not match its checksum")
        return content

    def graph(self, role: str) -> bytes:
        """The graph of a role, checked. ONNX graphs that refer to other files are refused."""
        if role not in self.manifest.graphs:
            raise BundleError(f"the bundle {self.path} has no {role} graph")
        name = self.manifest.graphs[role]
        content = self.read(name)
        try:
            outside = is_onnx(role) and refers_outside(content)
        except ValueError as error:
            raise BundleError(f"the bundle {self.path} is refused: {name} is no ONNX graph ({error})") from error
        if outside:
            raise BundleError(f"the bundle {self.path} is refused: {name} refers to data outside itself")
        return content

    def check(self) -> None:
        """Read and check every file of the manifest."""
        for name in self.manifest.files:
            self.read(name)
