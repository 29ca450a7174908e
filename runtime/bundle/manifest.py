"""Read and check `manifest.json`. Manifests are untrusted input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import BundleError

__all__ = [
    "SCHEMA",
    "Manifest",
    "canonical_json",
    "check_json",
    "is_onnx",
    "manifest_digest",
    "parse_manifest",
    "whole_number",
]

SCHEMA = 3
"""Version of the manifest's form. A bundle of another version is refused."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MAX_BYTES = 2**31 - 1
"""Of one file: more than protobuf can read."""
_MAX_PARAMS = _MAX_BYTES // 4
_BYTES_A_WEIGHT = 5
"""A graph holds each weight once in float32 at most; the fifth byte is for what surrounds small tensors."""
_STRUCTURE = 16 * 2**20
"""Bytes of a graph beside its weights: its nodes, names and shapes. The largest known network has 1.2 MB."""
_MAX_OTHER = 64 * 2**20
"""Bytes of a file that is no graph, such as the proof."""
_MAX_FILES = 100
_MAX_DEPTH, _MAX_VALUES, _MAX_LENGTH, _MAX_TEXT = 16, 100_000, 20_000, 100_000
"""Of the JSON: nesting, values in all, entries of one list or object, characters of one string."""
_WHOLE_NETWORK = "model"
"""Roles with this beginning hold the whole network as one graph. All other roles are steps of the pipeline."""


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """The one form in which manifests are written: sorted keys, one space of indent, a final newline."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def manifest_digest(content: Mapping[str, Any]) -> str:
    """sha256 of the manifest without its own `digest` field."""
    return hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "digest"})).hexdigest()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The checked content of `manifest.json`."""

    digest: str
    """sha256 of everything else in the manifest, and so, by the files' checksums, of the whole bundle."""
    arch: str
    """Architecture, e.g. "rdsr"."""
    kind: str
    """Process kind: how a picture flows through the graphs, e.g. "latent-prior" (see `runtime.pipelines`)."""
    process: Mapping[str, Any]
    """Section of the process kind. Its pipeline class in `runtime.pipelines` checks it."""
    scale: int
    """Upscaling factor."""
    params: int
    """Number of weights of the deployed network."""
    receptive_radius: int | None
    """LR pixels on each side that an output pixel depends on; None if it depends on the whole picture."""
    peak_channels: int
    """Largest number of values per LR pixel that the decoder holds at once. Memory is planned with it."""
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
    """How the int8 graphs were quantized, layer by layer; empty if there are none."""
    fusion: Mapping[str, Any]
    """Number of fused blocks and the largest error of the fusion."""
    checkpoint: Mapping[str, Any]
    """sha256 and notes of the checkpoint that the bundle was made from."""
    tools: Mapping[str, str]
    """Versions of the tools that made the bundle."""
    cpu: Mapping[str, str]
    """CPU on which the proof was made."""

    def graph(self, role: str, precision: str) -> str | None:
        """Name of the file that holds a role ("decoder", "model", "model_ir", …) at a precision, or None."""
        return self.graphs.get(self.role(role, precision))

    @staticmethod
    def role(role: str, precision: str) -> str:
        """The key of `graphs` for a role. The int8 forms take and return 8-bit pictures; bf16 runs the float32 graphs."""
        first, *rest = role.split("_", 1)
        return "_".join([first, "int8", *rest]) if precision == "int8" and first in ("decoder", _WHOLE_NETWORK) else role

    @property
    def pipeline_roles(self) -> tuple[str, ...]:
        """Roles of the float32 graphs that the runtime runs one after another, the decoder among them."""
        return tuple(role for role in self.graphs if role.split("_")[0] != _WHOLE_NETWORK and "_int8" not in role)

    @property
    def weights(self) -> str:
        """Kind of weights, by the checkpoint's notes: "random" (right for time, meaningless for quality) or "trained"."""
        notes = self.checkpoint.get("notes")
        return "random" if isinstance(notes, dict) and notes.get("weights") == "random" else "trained"

    def _chain(self, precision: str, engine: str | None) -> list[Mapping[str, Any]]:
        """Rows of the proof for the pipeline at this precision, on this engine or any."""
        graph = self.graph("decoder", precision)
        rows = [v for v in self.variants if v["precision"] == precision and v["graph"] == graph]
        return [v for v in rows if engine in (None, v["engine"])]

    def proven(self, precision: str, engine: str | None = None) -> bool:
        """Whether the pipeline passed its proof at this precision, on this engine or any."""
        return any(v["passed"] is True for v in self._chain(precision, engine))

    def psnr_drop(self, precision: str, engine: str | None = None) -> float:
        """Measured PSNR-Y drop of the pipeline in dB, on this engine or on the worst of all; infinite if unknown."""
        drops = [v["psnr_drop_db"] for v in self._chain(precision, engine)]
        return max((math.inf if drop is None else float(drop) for drop in drops), default=math.inf)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that are proven on at least one engine."""
        return tuple(p for p in ("fp32", "bf16", "int8") if self.proven(p))


def check_json(content: Any) -> None:
    """Raise `BundleError` for JSON that is nested too deep, too long, or has numbers beyond 64 bits."""
    waiting, values = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        parts: Collection[Any] = ()
        if isinstance(value, dict):
            parts = [*value.values(), *value]
        elif isinstance(value, list):
            parts = value
        elif isinstance(value, str) and len(value) > _MAX_TEXT:
            raise BundleError(f"manifest.json: a string has {len(value)} characters, more than {_MAX_TEXT}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise BundleError("manifest.json: a number is infinite or NaN")
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise BundleError("manifest.json: a number has more than 64 bits")
        if parts and depth > _MAX_DEPTH:
            raise BundleError(f"manifest.json: fields are nested more than {_MAX_DEPTH} deep")
        if len(parts) > 2 * _MAX_LENGTH or values + len(parts) > _MAX_VALUES:
            raise BundleError("manifest.json: it has too long lists or too many fields")
        waiting += [(part, depth + 1) for part in parts]


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """`value`, if it is a whole number from `low` to `high`. Otherwise raises `BundleError`, which names the field."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BundleError(f"manifest.json: {name} must be a whole number from {low} to {high}, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value in an error message, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BundleError(f"manifest.json: {name} must be an object, not {type(value).__name__}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > 100:
        raise BundleError(f"manifest.json: {name} must be a short string, not {_shown(value)}")
    return value


def _plain(name: Any) -> str:
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise BundleError(f"manifest.json: {_shown(name)} is no plain file name inside the bundle")
    return name


def _variants(rows: Any) -> tuple[Mapping[str, Any], ...]:
    fields = {"precision", "engine", "graph", "max_abs_err", "psnr_drop_db", "sizes", "passed"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and fields <= set(row) for row in rows):
        raise BundleError(f"manifest.json: variants must be a list of objects with {', '.join(sorted(fields))}")
    for row in rows:
        for name in ("precision", "engine", "graph"):
            if not isinstance(row[name], str):
                raise BundleError(f"manifest.json: a variant's {name} must be a string, not {_shown(row[name])}")
        drop = row["psnr_drop_db"]
        if drop is not None and (isinstance(drop, bool) or not isinstance(drop, (int, float)) or not abs(drop) < 1e6):
            raise BundleError("manifest.json: a variant's psnr_drop_db must be a number of dB")
    return tuple(rows)


def _quantization(value: Any) -> Mapping[str, Any]:
    section = _mapping(value, "quantization")
    datasets = section.get("datasets", [])
    if not isinstance(datasets, list) or not all(isinstance(entry, dict) for entry in datasets):
        raise BundleError("manifest.json: datasets of quantization must be a list of objects")
    return section


def _graphs(content: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, str]:
    graphs = {role: _plain(name) for role, name in _mapping(content.get("graphs"), "graphs").items()}
    for role, name in graphs.items():
        if role.endswith("_ir") and f"{role}_weights" not in graphs:
            raise BundleError(f"manifest.json: the {role} graph has no weights")
        if name not in files:
            raise BundleError(f"manifest.json: the {role} graph {name} is not among its files")
        if is_onnx(role) and not name.endswith(".onnx"):
            raise BundleError(f"manifest.json: the {role} graph {name} is no .onnx file")
    return graphs


def _check_sizes(files: Mapping[str, tuple[str, int]], graphs: Mapping[str, str], params: int) -> None:
    """Raise `BundleError` for a file larger than the number of weights explains."""
    for name, (_, size) in files.items():
        limit = _BYTES_A_WEIGHT * params + _STRUCTURE if name in graphs.values() else _MAX_OTHER
        if size > limit:
            raise BundleError(f"manifest.json: {name} has {size} bytes, but {params} weights take at most {limit}")


def is_onnx(role: str) -> bool:
    """Whether a role is an ONNX graph. The other roles are OpenVINO IR and its weights."""
    return not role.endswith(("_ir", "_ir_weights"))


def parse_manifest(content: Any) -> Manifest:
    """Check the content of a `manifest.json`. Raises `BundleError`, which names the field at fault."""
    content = _mapping(content, "its content")
    if content.get("schema") != SCHEMA:
        raise BundleError(
            f"manifest.json has schema version {_shown(content.get('schema'))}, and this release reads {SCHEMA}: "
            "export the checkpoint again"
        )
    entries = _mapping(content.get("files"), "files")
    if len(entries) > _MAX_FILES:
        raise BundleError(f"manifest.json: files has {len(entries)} entries, more than {_MAX_FILES}")
    files = {
        _plain(name): (
            _text(_mapping(entry, name).get("sha256"), name),
            whole_number(entry.get("bytes"), name, 0, _MAX_BYTES),
        )
        for name, entry in entries.items()
    }
    graphs = _graphs(content, files)
    if content.get("digest") != manifest_digest(content):
        raise BundleError("manifest.json was changed after it was written (its digest does not match)")
    if "decoder" not in graphs:
        raise BundleError("manifest.json: the decoder graph is missing")
    for ir in ("model_ir", "model_int8_ir"):
        if (ir in graphs) != (f"{ir}_weights" in graphs):
            raise BundleError(f"manifest.json: {ir} and {ir}_weights go together")
    params = whole_number(content.get("params"), "params", 1, _MAX_PARAMS)
    _check_sizes(files, graphs, params)
    variants = _variants(content.get("variants"))
    radius, tile_rule = content.get("receptive_radius"), content.get("tile_rule")
    if tile_rule not in ("exact", "overlap", "whole"):
        raise BundleError(f"manifest.json: tile_rule must be exact, overlap or whole, not {_shown(tile_rule)}")
    if tile_rule == "exact" and radius is None:
        raise BundleError("manifest.json: exact tiles need a receptive_radius")
    process = _mapping(content.get("process"), "process")
    return Manifest(
        digest=content["digest"],
        arch=_text(content.get("arch"), "arch"),
        kind=_text(process.get("kind"), "the process kind"),
        process=process,
        scale=whole_number(content.get("scale"), "scale", 1, 16),
        params=params,
        receptive_radius=None if radius is None else whole_number(radius, "receptive_radius", 0, 100_000),
        peak_channels=whole_number(content.get("peak_channels"), "peak_channels", 1, 10**6),
        tile_rule=tile_rule,
        seed=whole_number(content.get("seed"), "seed", 0, 2**32 - 1),
        files=files,
        graphs=graphs,
        variants=variants,
        quantization=_quantization(content.get("quantization", {})),
        **{name: _mapping(content.get(name), name) for name in ("fusion", "checkpoint", "tools", "cpu")},
    )
