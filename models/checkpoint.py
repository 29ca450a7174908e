"""Read any checkpoint safely, and write our own: safetensors with the config in the metadata."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from ..atomic import atomic_write
from ..errors import shortened
from .errors import CheckpointError
from .files import open_regular, read_small, reason_of
from .pickled import Called, ForbiddenNameError
from .stored import RefusedError, StoredTensor, read_legacy_file, read_safetensors_header, read_zip_file

__all__ = ["Checkpoint", "apply_key_map", "open_checkpoint", "read_checkpoint", "read_key_map", "save_checkpoint"]

Value = TypeVar("Value")
MOST_TENSORS = 10_000
LONGEST_NAME = 500
"""Characters in the name of a tensor."""
MOST_METADATA = 2**20
"""Characters in the metadata of safetensors."""

FORMAT = "rdsr-checkpoint-1"
EMA_KEYS = ("params_ema", "ema", "model_ema", "ema_state_dict", "state_dict_ema")
STATE_KEYS = (*EMA_KEYS, "params", "state_dict", "model_state_dict", "model", "network", "net", "generator")
PREFIXES = ("module.", "_orig_mod.")
_LOG_SCALE = "log_weight_scale"
"""Last part of the name of a quantized kernel's scales, as logarithms."""
_LARGE = 4096
"""Tensors of fewer values (head, skip, biases) stay float32 in compact files: the picture would show their errors."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. Its header is read and checked; its tensors are read when they are asked for."""

    path: Path
    stored: dict[str, StoredTensor]
    """Key → tensor in the file: EMA weights if the file holds them, without the prefixes of wrappers."""
    metadata: dict[str, str]
    file: BinaryIO

    def read(self, key: str) -> Tensor:
        """A tensor; `CheckpointError` names one that is sparse, quantized or the like. Levels become weights."""
        tensor = self.stored[key]
        if tensor.strange:
            raise CheckpointError(f"tensor {key} is {tensor.strange}, expected dense floating point")
        try:
            value = tensor.read(self.file)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"tensor {key} cannot be read: {error}") from error
        if (scales := self._scales_of(key)) is None:
            return value
        try:
            return value.float() * self.read(scales).float().exp()
        except RuntimeError as error:
            raise CheckpointError(f"tensor {scales} does not fit the levels in {key}") from error

    def dtype(self, key: str) -> torch.dtype:
        """Type of what `read` returns."""
        return self.stored[key].dtype if self._scales_of(key) is None else torch.float32

    def _scales_of(self, key: str) -> str | None:
        """The key of the scales, if a tensor holds the levels of a quantized kernel (`save_checkpoint`, `compact`)."""
        scales = _key_of_scales(key)
        return scales if self.stored[key].dtype == torch.int8 and scales in self.stored else None

    def digest(self) -> str:
        """sha256 of the file."""
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()  # type: ignore[arg-type]


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a safetensors or PyTorch file. Nothing in it is ever run, and no tensor is read yet.

    Raises `CheckpointError` for a file that is damaged, holds more than tensors, or would take more memory than its size
    shows: by compression, by tensors that are expanded or share their data, by the number or length of their names.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            start = file.read(16)
            file.seek(0)
        except OSError as error:
            what = "it is a folder" if error.errno == errno.EISDIR or os.path.isdir(path) else reason_of(error)
            raise CheckpointError(f"cannot read the checkpoint {shortened(path)}: {what}") from error
        try:
            tensors, metadata = _read_header(file, start)
            _check_amounts(tensors, metadata, os.fstat(file.fileno()).st_size)
        except ForbiddenNameError as error:
            raise CheckpointError(
                f"{path} holds Python objects other than tensors ({shortened(error, 80)}) and was refused (nothing in it "
                "was run); save only its state dict, or convert it to safetensors"
            ) from error
        except RefusedError as error:
            raise CheckpointError(f"the checkpoint {path} is refused: {shortened(error)}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"the checkpoint {path} is damaged or truncated: {shortened(error)}") from error
        yield Checkpoint(path, _strip_prefixes(tensors), metadata, file)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a checkpoint, all in memory. Raises `CheckpointError`, see `open_checkpoint`."""
    with open_checkpoint(path) as checkpoint:
        try:
            return {key: checkpoint.read(key) for key in checkpoint.stored}, checkpoint.metadata
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


def _read_header(file: BinaryIO, start: bytes) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    if not start:
        raise CheckpointError("the checkpoint is empty")
    if len(start) > 8 and start[8:9] == b"{":
        tensors, metadata = read_safetensors_header(file)
    elif start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        content, tensor_of = read_zip_file(file) if start[:1] == b"P" else read_legacy_file(file)
        tensors, metadata = {key: tensor_of(called) for key, called in _find_state_dict(content).items()}, {}
    else:
        raise CheckpointError("it is neither a safetensors file nor a PyTorch checkpoint")
    if not tensors:
        raise CheckpointError("the checkpoint holds no tensors")
    return tensors, metadata


def _check_amounts(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str], size: int) -> None:
    """Raise `RefusedError` for more names, text or tensor data than a checkpoint of `size` bytes can need."""
    if len(tensors) > MOST_TENSORS:
        raise RefusedError(f"it has {len(tensors)} tensors, more than {MOST_TENSORS}")
    if (longest := max(map(len, tensors))) > LONGEST_NAME:
        raise RefusedError(f"the name of a tensor has {longest} characters, more than {LONGEST_NAME}")
    if (text := sum(len(key) + len(value) for key, value in metadata.items())) > MOST_METADATA:
        raise RefusedError(f"its metadata has {text} characters, more than {MOST_METADATA}")
    # Released checkpoints of DiffIR hold two parts twice, and both names share their data.
    if (total := sum(tensor.nbytes for tensor in tensors.values())) > 2 * size:
        raise RefusedError(f"its tensors would take {total} bytes, but it has only {size}")


def _find_state_dict(content: Any) -> dict[str, Called]:
    """Descend to the mapping of tensors, EMA weights first."""
    for _ in range(4):
        if not isinstance(content, dict):
            break
        inner = next((content[k] for k in STATE_KEYS if isinstance(content.get(k), dict) and content[k]), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, dict):
        # AveragedModel (torch.optim.swa_utils) counts its updates in the tensor n_averaged.
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and _is_tensor(value)}
        tensors.pop("n_averaged", None)
        if tensors:
            return tensors
        found = ", ".join(shortened(k, 40) for k in list(content)[:8]) or "nothing"
        raise CheckpointError(f"the checkpoint holds no state dict; found {found}")
    kind = "tensor" if _is_tensor(content) else type(content).__name__
    raise CheckpointError(f"the checkpoint holds a {kind}, not a state dict")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Called) and value.name.startswith("torch._utils._rebuild_")


def _strip_prefixes(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def read_key_map(path: Path) -> dict[str, str]:
    """Read a key map: a JSON object of regular expression for a whole foreign key → replacement, with \\1 for groups."""
    try:
        content = json.loads(read_small(path).decode())
    except OSError as error:
        raise CheckpointError(f"cannot read the key map {shortened(path)}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the key map {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise CheckpointError(f"the key map {path} must be a JSON object of pattern: replacement strings")
    for pattern, replacement in content.items():
        try:
            groups = re.compile(pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(f"the key map {path} has a bad pattern {shortened(pattern, 80)!r}: {error}") from error
        if len(replacement) > LONGEST_NAME:
            raise CheckpointError(f"the key map {path} has a replacement of {len(replacement)} characters")
        wanted = max((int(n[:9]) for n in re.findall(r"\\(\d+)", replacement)), default=0)
        if wanted > min(groups, 99):
            pattern = shortened(pattern, 80)
            raise CheckpointError(f"the key map {path} uses group {wanted} in {replacement!r}, but {pattern!r} has {groups}")
        if re.search(r"\\[^\d\\]|\\$", replacement):
            raise CheckpointError(
                f"the key map {path} has a bad replacement {replacement!r}: only \\1, \\2, … may be escaped"
            )
    return content


def apply_key_map(tensors: Mapping[str, Value], key_map: Mapping[str, str]) -> dict[str, Value]:
    """Rename keys. The first pattern that matches a whole key gives its new name; keys without a match stay as they are.

    Raises `CheckpointError` if two keys get the same name.
    """
    renamed: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for key, value in tensors.items():
        match = next(((m, r) for p, r in key_map.items() if (m := re.fullmatch(p, key))), None)
        name = match[0].expand(match[1]) if match else key
        if name in renamed:
            raise CheckpointError(f"the key map gives both {origin[name]} and {key} the name {name}")
        renamed[name], origin[name] = value, key
    return renamed


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    arch: str,
    config: Mapping[str, Any],
    notes: Mapping[str, str] | None = None,
    *,
    compact: bool = False,
    training_only: Collection[str] = (),
) -> None:
    """Write our own format: float32 safetensors with metadata `format`, `arch`, `config` (JSON) and `notes` (JSON).

    With `compact`, for weights that are shipped, kernels beside `log_weight_scale` are stored as their levels (int8), and
    other tensors of at least 4,096 values as float16, rounded; those of the keys `training_only` as bfloat16, which packs 13
    per cent smaller (measured on `small`'s latent prior encoder). Same content, same bytes. Raises `OutputError`.
    """
    metadata = {
        "format": FORMAT,
        "arch": arch,
        "config": json.dumps(dict(config), sort_keys=True),
        "notes": json.dumps(dict(notes or {}), sort_keys=True),
    }
    plain = {key: value.detach().cpu().float().contiguous() for key, value in tensors.items()}
    if compact:
        plain = {key: _compact(key, value, plain, key in training_only) for key, value in plain.items()}
    atomic_write(path, _in_order(save(plain, metadata=metadata)))


def _key_of_scales(key: str) -> str:
    """The key of a quantized kernel's scales; "" for what is no kernel."""
    return f"{key.removesuffix('weight')}{_LOG_SCALE}" if key.endswith(".weight") else ""


def _compact(key: str, value: Tensor, tensors: Mapping[str, Tensor], training_only: bool) -> Tensor:
    if (scales := tensors.get(_key_of_scales(key))) is not None:
        return (value / scales.exp()).round().to(torch.int8)
    if value.numel() < _LARGE:
        return value
    return value.bfloat16() if training_only else value.half()


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file: the library writes them in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__")
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]
