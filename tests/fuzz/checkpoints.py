"""Fuzz target: mutated checkpoints, opened as `rdsr info` and `rdsr export` do, up to the built network."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import pickletools
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.random import Generator

from rdsr.errors import RdsrError
from rdsr.models.checkpoint import save_checkpoint
from rdsr.models.diffir import DiffIR
from rdsr.models.pickled import read_pickle
from rdsr.models.rdsr import RDSR, RDSRConfig
from rdsr.models.registry import load_model
from rdsr.models.repd import RepD, RepDConfig
from rdsr.tests.conftest import DIFFIR_CONFIG

__all__ = ["attempt", "mutated", "seeds"]

MEMORY = 2**28
SMALL = RDSRConfig(
    width=4, depth=2, modulation_depths=(0,), condition_width=4, condition_depth=1, lpe_width=4, lpe_depth=1, latent_size=8
)


def attempt(content: bytes) -> str:
    """Open it and describe the network. An error has to be typed and short."""
    torch.set_num_threads(1)  # on busy cores the small tensors of a checkpoint wait for the other threads
    handle = os.memfd_create("checkpoint")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        try:
            load_model(Path(f"/proc/self/fd/{handle}")).describe()
        except RdsrError as error:
            text = str(error)
            assert len(text) < 1500, text
            assert "\n" not in text, text
            return f"refused: {type(error).__name__}"
    return "accepted"


@functools.cache
def _networks() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of one network of each architecture."""
    torch.manual_seed(0)
    diffir = DiffIR(DIFFIR_CONFIG)
    betas = {"diffusion.betas": torch.tensor(diffir.schedule.betas)}
    networks = {"rdsr": RDSR(SMALL), "repd": RepD(RepDConfig(width=4, depth=2)), "diffir": diffir}
    return {name: dict(network.state_dict()) | (betas if name == "diffir" else {}) for name, network in networks.items()}


def _saved(content: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return _settled(file.getvalue()) if legacy else file.getvalue()


def _pickles(content: bytes) -> tuple[list[bytes], bytes]:
    """The five pickles at the start of a file of the legacy format, and its storages."""
    file, parts = io.BytesIO(content), []
    for _ in range(5):
        begin = file.tell()
        for _ in pickletools.genops(file):
            pass
        parts.append(content[begin : file.tell()])
    return parts, content[file.tell() :]


def _settled(content: bytes) -> bytes:
    """The same legacy file at each run: `torch.save` names storages by their address in memory, and sorts them by it."""
    parts, rest = _pickles(content)
    references: list[Any] = []
    read_pickle(io.BytesIO(parts[3]), references)
    item_sizes = {key: getattr(torch, kind.name.rpartition(".")[2]).dtype.itemsize for _, kind, key, *_ in references}
    storages, at = {}, 0
    for key in read_pickle(io.BytesIO(parts[4])):
        end = at + 8 + int.from_bytes(rest[at : at + 8], "little") * item_sizes[key]
        storages[key], at = rest[at:end], end
    settled, keys = parts[3], list(item_sizes)  # in the order of the tensors
    for number, key in enumerate(keys):
        settled = settled.replace(key.encode(), str(number).zfill(len(key)).encode())
    names = pickle.dumps([str(number).zfill(len(key)) for number, key in enumerate(keys)], 2)
    return b"".join((*parts[:3], settled, names, *(storages[key] for key in keys)))


@functools.cache
def seeds() -> dict[str, bytes]:
    """A checkpoint of every format and architecture."""
    files = {}
    for name, state in _networks().items():
        files[f"{name}.pth"] = _saved({"params_ema": state, "epoch": 3})
        files[f"{name}-legacy.pth"] = _saved(state, legacy=True)
    files["rdsr-protocol4.pth"] = _saved({"state_dict": _networks()["rdsr"]}, protocol=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rdsr.safetensors"
        save_checkpoint(path, _networks()["rdsr"], "rdsr", SMALL.to_dict(), {"stage": "test"})
        files["rdsr.safetensors"] = path.read_bytes()
    return files


def mutated(rng: Generator) -> tuple[str, bytes]:
    """A seed with changed bytes, a changed zip directory, pickle or header, or a state dict of strange tensors."""
    ways = (_flipped, _flipped_start, _cut, _zip_edited, _pickle_edited, _legacy_edited, _header_edited, _strange_state)
    way = ways[rng.integers(len(ways))]
    if way is _strange_state:
        return _strange_state(rng)
    fitting = {_zip_edited: ".pth", _pickle_edited: ".pth", _legacy_edited: "-legacy.pth", _header_edited: ".safetensors"}
    names = [name for name in seeds() if name.endswith(fitting.get(way, ""))]
    if way in (_zip_edited, _pickle_edited):
        names = [name for name in names if "legacy" not in name]
    name = names[rng.integers(len(names))]
    return f"{name}, {way.__name__.strip('_')}", way(rng, seeds()[name])


# -- bytes


def _flipped(rng: Generator, content: bytes, length: int | None = None) -> bytes:
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        changed[rng.integers(length or len(changed))] = rng.integers(256)
    return bytes(changed)


def _flipped_start(rng: Generator, content: bytes) -> bytes:
    """Where headers and pickles are."""
    return _flipped(rng, content, min(len(content), 6000))


def _cut(rng: Generator, content: bytes) -> bytes:
    begin, end = sorted(int(v) for v in rng.integers(len(content), size=2))
    filler = rng.bytes(int(rng.integers(100))) if rng.integers(2) else content[begin:end] * 2
    return content[:begin] + filler + content[end:] if rng.integers(2) else content[:end]


# -- zip


def _number(rng: Generator) -> int:
    """Any number, most often one that is near a limit."""
    return int(rng.choice([0, 1, 2, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, rng.integers(1000)]))


def _zip_edited(rng: Generator, content: bytes) -> bytes:
    """Fields of the directory, or whole members."""
    if rng.integers(2):
        changed = bytearray(content)
        starts = [i for i in range(len(content) - 46) if content[i : i + 4] in (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06")]
        for _ in range(int(rng.integers(1, 4))):
            at = starts[rng.integers(len(starts))] + int(rng.integers(4, 44))
            width = int(rng.choice([1, 2, 4]))
            changed[at : at + width] = (_number(rng) % 256**width).to_bytes(width, "little")
        return bytes(changed[: len(content)])
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of two members with one name, which are meant
        for member in old.infolist():
            data, name, fate = old.read(member), member.filename, rng.integers(40)
            if fate == 0:
                continue
            if fate == 1:
                data = data[: len(data) // 2] if rng.integers(2) else bytes(10 * len(data))
            if fate == 2:
                name = str(rng.choice([name + "x", "../" + name, "a" * 5000, name.replace("data.pkl", "constants.pkl")]))
            if fate == 3:
                _add(new, name, data)
            _add(new, name, data, zipfile.ZIP_DEFLATED if fate == 4 else zipfile.ZIP_STORED)
    return result.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Add a member without the time of the clock."""
    archive.writestr(zipfile.ZipInfo(name), data, compression)


# -- pickles


def _pickle_edited(rng: Generator, content: bytes) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            _add(new, member.filename, _edited(rng, data) if member.filename.endswith("data.pkl") else data)
    return result.getvalue()


def _legacy_edited(rng: Generator, content: bytes) -> bytes:
    """One of the five pickles at the start."""
    parts, rest = _pickles(content)
    index = int(rng.choice([0, 2, 3, 3, 3, 4]))
    parts[index] = _edited(rng, parts[index])
    if not rng.integers(4):
        rest = (_number(rng) * (2**32 if rng.integers(2) else 1)).to_bytes(8, "little") + rest[8:]
    return b"".join(parts) + rest


_INSERTED = (
    b"0", b"2", b"N", b"}", b"]", b")", b"(", b"t", b"u", b"R", b"b", b"Q", b"h\x00", b"h\x05", b"a", b"s", b"\x81", b"d",
    b"1", b"cos\nsystem\n", b"cbuiltins\nbytearray\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"I1\n", b"ccollections\nOrderedDict\n", b"r\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"X\xff\xff\xff\x7f",
    b"e", b"\x95" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"\x96" + b"\xff" * 7 + b"\x00", b"(" * 3000, b"]" * 3000,
    b"\x85" * 3000,
)  # fmt: skip
"""Operations of all kinds, among them some that claim large sizes or nest deep."""


def _edited(rng: Generator, pickle: bytes) -> bytes:
    """A pickle with some operations left out, doubled, exchanged, inserted, or with other numbers."""
    places = [place for _, _, place in pickletools.genops(pickle)]
    operations = [pickle[a:b] for a, b in zip(places, [*places[1:], len(pickle)], strict=True)]
    for _ in range(int(rng.integers(1, 4))):
        index, fate = int(rng.integers(len(operations))), rng.integers(6)
        if fate < 2:  # numbers: sizes, strides, offsets, lengths
            numbers = [i for i, operation in enumerate(operations) if operation[:1] in (b"K", b"M", b"J")]
            if numbers:
                index = numbers[rng.integers(len(numbers))]
                operations[index] = b"J" + (_number(rng) % 2**32).to_bytes(4, "little")
        elif fate == 2:
            operations[index] = b""
        elif fate == 3:
            operations[index] *= 2
        elif fate == 4:
            other = int(rng.integers(len(operations)))
            operations[index], operations[other] = operations[other], operations[index]
        else:
            operations.insert(index, _INSERTED[rng.integers(len(_INSERTED))])
    return b"".join(operations)


# -- safetensors


def _header_edited(rng: Generator, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for _ in range(int(rng.integers(1, 4))):
        _change(rng, header)
    text = json.dumps(header).encode()
    if not rng.integers(8):
        text = text.replace(b'"F32"', b"[" * 5000 + b"]" * 5000, 1)
    size = _number(rng) if not rng.integers(10) else len(text)
    return size.to_bytes(8, "little") + text + content[8 + length :]


def _change(rng: Generator, header: dict[str, Any]) -> None:
    values: list[Any] = [
        None, -1, 0, 1.5, True, "F64", "I32", "F8_E5M2", "", [], {}, [0] * 50, [2**63], 2**70, "x" * 5000, [[[]]], "NaN",
        "[" * 5000, '{"width": 1e999}', json.dumps(SMALL.to_dict() | {"depth": 256}), "rdsr", "diffir", "repd",
    ]  # fmt: skip
    keys = list(header)
    key, value = keys[rng.integers(len(keys))], values[rng.integers(len(values))]
    entry, fate = header[key], rng.integers(5)
    if fate == 0:
        header[key] = value
    elif fate == 1:
        del header[key]
    elif fate == 2:
        header[str(rng.choice([key + "x", "x" * 5000, "decoder.body.99999999999.weight", "\ud800", "a\nb"]))] = entry
    elif isinstance(entry, dict) and entry:
        inner = list(entry)[rng.integers(len(entry))]
        if isinstance(entry[inner], list) and entry[inner] and rng.integers(2):
            entry[inner][rng.integers(len(entry[inner]))] = _number(rng)
        else:
            entry[inner] = value


# -- tensors


def _strange_state(rng: Generator) -> tuple[str, bytes]:
    """A whole file of `torch.save` with one or two tensors of another kind, type, rank or value."""
    makers: tuple[Callable[[torch.Tensor], object], ...] = (
        lambda t: t.double() * 1e300, lambda t: t * torch.nan, lambda t: t.to(torch.int8), lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.float8_e4m3fn), lambda t: t[None], lambda t: t.flatten(), lambda t: t.sum(), lambda t: t[:0],
        lambda t: t.flatten()[:1].expand(t.numel()).reshape(t.shape) if t.ndim == 1 else t.flatten()[:1].expand(10**6),
        lambda t: t.to_sparse(), lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), lambda t: t.to("meta"),
        lambda t: torch.nested.nested_tensor([t.flatten(), t.flatten()[:1]]), lambda t: 3, lambda t: None, lambda t: "x",
        lambda t: torch.nn.Parameter(t), lambda t: t.transpose(0, -1) if t.ndim else t, lambda t: {"a": t}, lambda t: [t],
        lambda t: t.half(), lambda t: t.bfloat16(), lambda t: t.double(),
    )  # fmt: skip
    arch = str(rng.choice(list(_networks())))
    state: dict[Any, Any] = dict(_networks()[arch])
    said = []
    for _ in range(int(rng.integers(1, 3))):
        key, index = str(rng.choice(sorted(state, key=str))), int(rng.integers(len(makers)))
        if isinstance(state[key], torch.Tensor) and type(state[key]) is torch.Tensor and state[key].is_floating_point():
            try:
                state[key] = makers[index](state[key])
            except (RuntimeError, NotImplementedError, IndexError):  # not every kind can be made of every other
                continue
            said.append(f"{key}: kind {index}")
    if not rng.integers(5):
        state |= {str(rng.choice(["x" * 5000, "extra", "n_averaged"])): torch.zeros(2), 5: torch.zeros(1)}
    legacy = bool(rng.integers(2)) and not any("kind 13" in text or "kind 4" in text for text in said)
    try:
        return f"{arch}: {', '.join(said)}", _saved(state, legacy=legacy)
    except (RuntimeError, NotImplementedError, AttributeError, AssertionError):  # of a kind that cannot be written so
        return f"{arch} as it is", _saved(_networks()[arch])
