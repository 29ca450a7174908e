"""The bundle on disk: manifest, integrity, and access to its files. Bundles are untrusted input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BundleError
from .files import read_regular
from .onnx_wire import refers_outside

__all__ = ["SCHEMA", "Bundle", "Manifest", "canonical_json", "default_bundle_path", "manifest_digest"]

SCHEMA = 2
"""Version of the manifest's form; a bundle of another version is refused."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MAX_MANIFEST = 2**20
_MAX_BYTES = 4 * 2**30
_ONNX_ROLES = ("encoder", "reverse", "decoder", "decoder_int8", "model", "model_int8")


def default_bundle_path() -> Path:
    """Folder of the bundle that the package carries."""
    return Path(__file__).parent / "default_bundle"


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """The one form in which manifests are written: sorted keys, one space of indent, a final newline."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def manifest_digest(content: Mapping[str, Any]) -> str:
    """sha256 of the manifest without its own `digest` field."""
    return hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "digest"})).hexdigest()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says, checked."""

    arch: str
    """Architecture, e.g. "rdsr"."""
    scale: int
    """Upscaling factor."""
    params: int
    """Weights of the deployed network."""
    steps: int
    """T of the reverse process, unrolled in `reverse.onnx`."""
    betas: tuple[float, ...]
    """Noise schedule that was folded into `reverse.onnx`."""
    latent_size: int
    """Length of the noise and of the latent prior z."""
    size_multiple: int
    """LR pixels per cell of the condition feature map; the encoder graph pads to it by itself."""
    receptive_radius: int | None
    """LR pixels on each side that an output pixel depends on; None where it is the whole picture."""
    condition_radius: int
    """Cells of the condition feature map on each side that one of them depends on."""
    peak_channels: int
    """Values per LR pixel that the decoder holds at once, at most: what memory is planned with."""
    tile_rule: str
    """"exact", "overlap" or "whole"."""
    seed: int
    """Seed of the noise that is baked into `model.onnx`."""
    files: Mapping[str, tuple[str, int]]
    """File name → (sha256, bytes)."""
    graphs: Mapping[str, str]
    """Role → file name."""
    variants: tuple[Mapping[str, Any], ...]
    """Rows of the proof: precision, engine, graph, max_abs_err, psnr_drop_db, sizes, passed."""
    quantization: Mapping[str, Any]
    """How the int8 graphs were quantized, layer by layer; empty where there are none."""
    fusion: Mapping[str, Any]
    """Blocks fused and the largest error of it."""
    checkpoint: Mapping[str, Any]
    """sha256 and notes of the checkpoint it was made from."""
    tools: Mapping[str, str]
    """Versions of what made the bundle."""
    cpu: Mapping[str, str]
    """CPU on which the proof was made."""

    def graph(self, role: str, precision: str) -> str | None:
        """File that holds a role ("decoder", "model", "model_ir", …) at a precision; None where there is none.

        int8 has graphs of its own, which take and give 8-bit pictures; bf16 runs the float32 ones.
        """
        return self.graphs.get(self.role(role, precision))

    @staticmethod
    def role(role: str, precision: str) -> str:
        """The key of `graphs` for a role at a precision."""
        if precision != "int8" or role in ("encoder", "reverse"):
            return role
        first, *rest = role.split("_", 1)
        return "_".join([first, "int8", *rest])

    @property
    def weights(self) -> str:
        """ "random" where the checkpoint said so (right for time, meaningless for quality), else "trained"."""
        notes = self.checkpoint.get("notes")
        return "random" if isinstance(notes, dict) and notes.get("weights") == "random" else "trained"

    def _chain(self, precision: str, engine: str | None) -> list[Mapping[str, Any]]:
        """Rows of the chain of graphs that the runtime runs, at this precision, on this engine or any."""
        return [
            v
            for v in self.variants
            if v["precision"] == precision
            and v["graph"] == self.graph("decoder", precision)
            and engine in (None, v["engine"])
        ]

    def proven(self, precision: str, engine: str | None = None) -> bool:
        """Whether the chain of graphs that the runtime runs passed its proof at this precision (on this engine, or any)."""
        return any(v["passed"] is True for v in self._chain(precision, engine))

    def psnr_drop(self, precision: str, engine: str | None = None) -> float:
        """Measured PSNR-Y drop in dB of the chain of graphs (on this engine, or the worse of them); infinite if unknown."""
        drops = [v["psnr_drop_db"] for v in self._chain(precision, engine)]
        return max((math.inf if drop is None else float(drop) for drop in drops), default=math.inf)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that are proven on at least one engine."""
        return tuple(p for p in ("fp32", "bf16", "int8") if self.proven(p))


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BundleError(f"manifest.json: {name} must be a whole number from {low} to {high}, not {value!r}")
    return value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"manifest.json: {name} must be an object, not {type(value).__name__}")
    return value


def _plain(name: Any) -> str:
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise BundleError(f"manifest.json names the file {name!r}, which is no plain file name inside the bundle")
    return name


def _check_variant(row: Mapping[str, Any]) -> None:
    for name in ("precision", "engine", "graph"):
        if not isinstance(row[name], str):
            raise BundleError(f"manifest.json: a variant's {name} must be a string, not {row[name]!r}")
    drop = row["psnr_drop_db"]
    if drop is not None and (isinstance(drop, bool) or not isinstance(drop, (int, float)) or not abs(drop) < 1e6):
        raise BundleError("manifest.json: a variant's psnr_drop_db must be a number of dB")


def _parse(content: Any) -> Manifest:
    content = _mapping(content, "the whole")
    if content.get("schema") != SCHEMA:
        raise BundleError(f"manifest.json has schema version {content.get('schema')!r}; this release reads {SCHEMA}")
    files = {
        _plain(name): (str(_mapping(entry, name).get("sha256")), _whole(entry.get("bytes"), name, 0, _MAX_BYTES))
        for name, entry in _mapping(content.get("files"), "files").items()
    }
    graphs = {role: _plain(name) for role, name in _mapping(content.get("graphs"), "graphs").items()}
    for role, name in graphs.items():
        if name not in files:
            raise BundleError(f"manifest.json: the {role} graph {name} is not among its files")
        if role in _ONNX_ROLES and not name.endswith(".onnx"):
            raise BundleError(f"manifest.json: the {role} graph {name} is no .onnx file")
    if content.get("digest") != manifest_digest(content):
        raise BundleError("manifest.json was changed after it was written (its digest does not match)")
    for role in ("encoder", "reverse", "decoder"):
        if role not in graphs:
            raise BundleError(f"manifest.json: the {role} graph is missing")
    for ir in ("model_ir", "model_int8_ir"):
        if (ir in graphs) != (f"{ir}_weights" in graphs):
            raise BundleError(f"manifest.json: {ir} and {ir}_weights go together")
    variants = content.get("variants")
    fields = {"precision", "engine", "graph", "max_abs_err", "psnr_drop_db", "sizes", "passed"}
    if not isinstance(variants, list) or not all(isinstance(v, dict) and fields <= set(v) for v in variants):
        raise BundleError(f"manifest.json: variants must be a list of objects with {', '.join(sorted(fields))}")
    for row in variants:
        _check_variant(row)
    betas = content.get("betas")
    steps = _whole(content.get("steps"), "steps", 1, 10_000)
    if not isinstance(betas, list) or len(betas) != steps or not all(isinstance(b, float) and 0 < b < 1 for b in betas):
        raise BundleError(f"manifest.json: betas must be {steps} numbers between 0 and 1")
    radius = content.get("receptive_radius")
    tile_rule = content.get("tile_rule")
    if tile_rule not in ("exact", "overlap", "whole"):
        raise BundleError(f"manifest.json: tile_rule must be exact, overlap or whole, not {tile_rule!r}")
    return Manifest(
        arch=str(content.get("arch")),
        scale=_whole(content.get("scale"), "scale", 1, 16),
        params=_whole(content.get("params"), "params", 1, 10**12),
        steps=steps,
        betas=tuple(betas),
        latent_size=_whole(content.get("latent_size"), "latent_size", 1, 65536),
        size_multiple=_whole(content.get("size_multiple"), "size_multiple", 1, 1024),
        receptive_radius=None if radius is None else _whole(radius, "receptive_radius", 0, 100_000),
        condition_radius=_whole(content.get("condition_radius"), "condition_radius", 0, 100_000),
        peak_channels=_whole(content.get("peak_channels"), "peak_channels", 1, 10**6),
        tile_rule=tile_rule,
        seed=_whole(content.get("seed"), "seed", 0, 2**32 - 1),
        files=files,
        graphs=graphs,
        variants=tuple(variants),
        quantization=_mapping(content.get("quantization", {}), "quantization"),
        fusion=_mapping(content.get("fusion"), "fusion"),
        checkpoint=_mapping(content.get("checkpoint"), "checkpoint"),
        tools=_mapping(content.get("tools"), "tools"),
        cpu=_mapping(content.get("cpu"), "cpu"),
    )


class Bundle:
    """A bundle folder whose manifest has been read and checked; its files are checked when they are read."""

    path: Path
    manifest: Manifest

    def __init__(self, path: Path | str | None = None) -> None:
        """Open the bundle at `path` (None: the one the package carries). Raises `BundleError`."""
        self.path = default_bundle_path() if path is None else Path(path)
        name = self.path / "manifest.json"
        if not self.path.is_dir():
            raise BundleError(
                f"there is no bundle at {self.path}: " + ("not a folder" if self.path.exists() else "not found")
            )
        try:
            raw = read_regular(name, _MAX_MANIFEST)
        except OSError as error:
            raise BundleError(f"{self.path} is no bundle: cannot read manifest.json ({error.strerror})") from error
        try:
            content = json.loads(raw.decode("utf-8"))
            self.manifest = _parse(content)
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
        """The ONNX graph of a role, checked; graphs that refer to other files are refused."""
        if role not in self.manifest.graphs:
            raise BundleError(f"the bundle {self.path} has no {role} graph")
        name = self.manifest.graphs[role]
        content = self.read(name)
        if role in _ONNX_ROLES:
            try:
                outside = refers_outside(content)
            except ValueError as error:
                raise BundleError(f"the bundle {self.path} is refused: {name} is no ONNX graph ({error})") from error
            if outside:
                raise BundleError(f"the bundle {self.path} is refused: {name} refers to data outside itself")
        return content

    def check(self) -> None:
        """Read and check every file of the manifest."""
        for name in self.manifest.files:
            self.read(name)
