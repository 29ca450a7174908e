"""Reading other people's checkpoints safely, and writing our own: safetensors with the config in the metadata."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
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
PLAIN_KEYS = ("params", "state_dict", "model_state_dict", "model", "network", "net", "generator")
PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (EMA weights where the file has them, wrapper prefixes stripped) and the metadata of a checkpoint.

    Understands safetensors and PyTorch files (`weights_only=True`: nothing in the file is ever run).
    Raises `CheckpointError` with one sentence that says what is wrong with which file.
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
    except pickle.UnpicklingError as error:
        text = str(error)
        # torch wraps every refusal and most damage into this error; the refusals name the forbidden global.
        if "Unsupported" in text or "GLOBAL" in text or "not allowed" in text.lower():
            raise CheckpointError(
                f"{path} holds Python objects beyond tensors and was refused (nothing in it was run); "
                "save its state dict alone, or convert it to safetensors"
            ) from error
        raise CheckpointError(f"the PyTorch checkpoint {path} is damaged or truncated") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"the PyTorch checkpoint {path} is damaged or truncated") from error
    except Exception as error:  # a crafted pickle can raise anything from inside the unpickler
        raise CheckpointError(f"the PyTorch checkpoint {path} cannot be read ({type(error).__name__})") from error
    return _find_state_dict(content, path)


def _find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """Descend to the mapping of tensors, EMA first."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            break
        inner = next(
            (content[k] for k in (*EMA_KEYS, *PLAIN_KEYS) if isinstance(content.get(k), Mapping) and content[k]), None
        )
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        # AveragedModel (torch.optim.swa_utils) counts its updates in a tensor beside the weights.
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor) and k != "n_averaged"}
        if tensors:
            return tensors
        found = ", ".join(str(k) for k in list(content)[:8]) or "nothing"
        raise CheckpointError(f"the checkpoint {path} holds no state dict; found {found}")
    raise CheckpointError(f"the checkpoint {path} holds a {type(content).__name__}, not a state dict")


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(4):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None:
            break
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors


def read_key_map(path: Path) -> dict[str, str]:
    """A key map: a JSON object of {regular expression for a whole foreign key: replacement, \\1 for groups}."""
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
    """Rename keys: the first pattern that matches a whole key gives its new name; keys no pattern matches stay.

    Raises `CheckpointError` where two keys would get one name.
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
    """Write our own format: float32 safetensors, metadata `format`, `arch`, `config` (JSON) and `notes` (JSON).

    The same content gives the same bytes. Raises `OutputError`.
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
    """A safetensors file with its metadata sorted: the library writes them in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__")
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8, as the format wants it
    return len(text).to_bytes(8, "little") + text + content[end:]
