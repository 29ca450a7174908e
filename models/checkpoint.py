"""Read any checkpoint safely, and write our own: safetensors with the config in the metadata."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..atomic import atomic_write
from .errors import CheckpointError

__all__ = ["apply_key_map", "read_checkpoint", "read_key_map", "save_checkpoint"]

FORMAT = "rdsr-checkpoint-1"
EMA_KEYS = ("params_ema", "ema", "model_ema", "ema_state_dict", "state_dict_ema")
STATE_KEYS = (*EMA_KEYS, "params", "state_dict", "model_state_dict", "model", "network", "net", "generator")
PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a checkpoint: EMA weights if the file holds them, without the prefixes of wrappers.

    Reads safetensors and PyTorch files (`weights_only=True`: nothing in the file is ever run). Raises `CheckpointError`.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"the checkpoint {path} is empty")
    if len(start) > 8 and start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
    elif start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        tensors, metadata = _read_torch(path), {}
    else:
        raise CheckpointError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")
    if not tensors:
        raise CheckpointError(f"the checkpoint {path} holds no tensors")
    return _strip_prefixes(tensors), metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the safetensors file {path} is damaged or truncated ({error})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted pickle can raise anything from inside the unpickler
        text = str(error)
        # torch raises UnpicklingError for refusals and for most damage; a refusal names the forbidden global.
        refused = "Unsupported" in text or "GLOBAL" in text or "not allowed" in text.lower()
        if refused and isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path} holds Python objects other than tensors and was refused (nothing in it was run); "
                "save only its state dict, or convert it to safetensors"
            ) from error
        raise CheckpointError(f"the PyTorch checkpoint {path} is damaged or truncated ({type(error).__name__})") from error
    return _find_state_dict(content, path)


def _find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Descend to the mapping of tensors, EMA weights first."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = next((content[k] for k in STATE_KEYS if isinstance(content.get(k), Mapping) and content[k]), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        # AveragedModel (torch.optim.swa_utils) counts its updates in the tensor n_averaged.
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor) and k != "n_averaged"}
        if tensors:
            return tensors
        found = ", ".join(str(k) for k in list(content)[:8]) or "nothing"
        raise CheckpointError(f"the checkpoint {path} holds no state dict; found {found}")
    raise CheckpointError(f"the checkpoint {path} holds a {type(content).__name__}, not a state dict")


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def read_key_map(path: Path) -> dict[str, str]:
    """Read a key map: a JSON object of regular expression for a whole foreign key → replacement, with \\1 for groups."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the key map {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"the key map {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise CheckpointError(f"the key map {path} must be a JSON object of pattern: replacement strings")
    for pattern, replacement in content.items():
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise CheckpointError(f"the key map {path} has a bad pattern {pattern!r}: {error}") from error
        wanted = max((int(n) for n in re.findall(r"\\(\d+)", replacement)), default=0)
        if wanted > groups:
            raise CheckpointError(f"the key map {path} uses group {wanted} in {replacement!r}, but {pattern!r} has {groups}")
        if re.search(r"\\[^\d\\]|\\$", replacement):
            raise CheckpointError(
                f"the key map {path} has a bad replacement {replacement!r}: only \\1, \\2, … may be escaped"
            )
    return content


def apply_key_map(tensors: Mapping[str, Tensor], key_map: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename keys. The first pattern that matches a whole key gives its new name; keys without a match stay as they are.

    Raises `CheckpointError` if two keys get the same name.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in tensors.items():
        match = next(((m, r) for p, r in key_map.items() if (m := re.fullmatch(p, key))), None)
        name = match[0].expand(match[1]) if match else key
        if name in renamed:
            raise CheckpointError(f"the key map gives both {origin[name]} and {key} the name {name}")
        renamed[name], origin[name] = value, key
    return renamed


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], arch: str, config: Mapping[str, Any], notes: Mapping[str, str] | None = None
) -> None:
    """Write our own format: float32 safetensors with metadata `format`, `arch`, `config` (JSON) and `notes` (JSON).

    Same content, same bytes. Raises `OutputError`.
    """
    metadata = {
        "format": FORMAT,
        "arch": arch,
        "config": json.dumps(dict(config), sort_keys=True),
        "notes": json.dumps(dict(notes or {}), sort_keys=True),
    }
    plain = {key: value.detach().cpu().float().contiguous() for key, value in tensors.items()}
    atomic_write(path, _in_order(save(plain, metadata=metadata)))


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file: the library writes them in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__")
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]
