"""Where tensors lie in a file: read from headers of safetensors and PyTorch files, and checked before any data is read."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .pickled import Called, Global, Persistent, read_pickle

__all__ = ["RefusedError", "StoredTensor", "TensorOf", "read_legacy_file", "read_safetensors_header", "read_zip_file"]

MOST_HEADER = 2**22
"""Most bytes of a header: of the JSON of safetensors, of a zip directory, of a pickle."""
_LARGEST_SHAPE = 2**40
_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "C64": torch.complex64,
}  # fmt: skip
_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32, "QUInt4x2": torch.uint8, "QUInt2x4": torch.uint8,
}  # fmt: skip
_DENSE = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class RefusedError(ValueError):
    """The file is whole, but would take memory beyond its size, or is of a kind that cannot be read."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    start: int = 0
    """Position in the file of its first element, in bytes."""
    stride: tuple[int, ...] = ()
    """In elements; the tensor lies dense in what `span` covers, or in a part of it, and no element counts twice."""
    span: int = 0
    """Elements from its first one to its last one."""
    strange: str = ""
    """What it is instead of a dense tensor, e.g. "a sparse tensor"; then nothing else is known."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory, with the gaps that its strides leave."""
        return max(math.prod(self.shape), self.span) * self.dtype.itemsize

    def read(self, file: BinaryIO) -> Tensor:
        """The tensor in memory of its own. Raises `ValueError` if the file has become shorter."""
        buffer = bytearray(self.span * self.dtype.itemsize)
        file.seek(self.start)
        rest = memoryview(buffer)
        while rest:  # the system reads at most 2 GiB at once
            count = file.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise ValueError("the file has become shorter while it was read")
            rest = rest[count:]
        if not buffer:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).as_strided(self.shape, self.stride)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in a file."""

    dtype: torch.dtype
    start: int
    elements: int


def _whole_numbers(value: Any) -> tuple[int, ...]:
    if isinstance(value, Called) and value.name == "torch.Size":
        (value,) = value.arguments
    if not isinstance(value, (tuple, list)) or len(value) > 16 or not all(type(v) is int and v >= 0 for v in value):
        raise ValueError("the size of a tensor is no list of whole numbers")
    return tuple(value)


def _within(storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> StoredTensor:
    """A tensor in a storage. `ValueError` if it reaches out of it, or counts an element twice and so expands in memory."""
    if len(shape) != len(stride) or offset < 0 or math.prod(max(1, side) for side in shape) > _LARGEST_SHAPE:
        raise ValueError("a tensor has a size that cannot be")
    last = 0
    if 0 in shape:
        return StoredTensor(shape, storage.dtype, storage.start)
    stride = tuple(step if side > 1 else 1 for step, side in zip(stride, shape, strict=True))
    for step, side in sorted(zip(stride, shape, strict=True)):
        if side > 1 and step <= last:
            raise RefusedError("a tensor is expanded beyond its storage")
        last += (side - 1) * step
    if offset + last >= storage.elements:
        raise ValueError("a tensor reaches beyond its storage")
    return StoredTensor(shape, storage.dtype, storage.start + offset * storage.dtype.itemsize, stride, last + 1)


# -- safetensors --------------------------------------------------------------------------------------------------------


def read_safetensors_header(file: BinaryIO) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises `ValueError`."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > (most := min(MOST_HEADER, size - 8)):
        raise ValueError(f"its header has {length} bytes, more than {most}")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not text")
    tensors, end = {}, 0
    ranges: list[tuple[int, int]] = []
    for key, entry in header.items():
        tensors[key], place = _of_safetensors(entry, 8 + length, size)
        ranges.append(place)
    for begin, stop in sorted(ranges):
        if begin != end:
            raise ValueError("its tensors overlap, or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise ValueError("its tensors do not end where the file does")
    return tensors, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name in its header stands there twice")
    return content


def _of_safetensors(entry: Any, base: int, size: int) -> tuple[StoredTensor, tuple[int, int]]:
    """(tensor, its range behind the header)."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError("an entry of its header is no tensor")
    shape, place = _whole_numbers(entry["shape"]), _whole_numbers(entry["data_offsets"])
    if len(place) != 2 or place[0] > place[1] or base + place[1] > size:
        raise ValueError("a tensor lies outside the file")
    dtype = _SAFETENSORS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        return StoredTensor(strange=f"of the type {str(entry['dtype'])[:20]!r}"), (place[0], place[1])
    if math.prod(shape) * dtype.itemsize != place[1] - place[0]:
        raise ValueError("a tensor's size does not fit its range")
    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = _Storage(dtype, base + place[0], math.prod(shape))
    return _within(storage, 0, shape, stride), (place[0], place[1])


# -- PyTorch ------------------------------------------------------------------------------------------------------------


TensorOf = Callable[[Called], StoredTensor]
"""What a pickle says of a tensor → where it lies. Raises `ValueError` if it cannot lie there."""


class _BoundedReads(io.FileIO):
    """A file that gives no more than `MOST_HEADER` bytes at once: `zipfile` reads the whole directory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > MOST_HEADER:
            raise ValueError(f"its directory has {size} bytes, more than {MOST_HEADER}")
        return super().read(size)


def read_zip_file(file: BinaryIO) -> tuple[Any, TensorOf]:
    """(content of a file of `torch.save` as data, function that finds the tensors in it). Raises `ValueError`."""
    size = os.fstat(file.fileno()).st_size
    with _BoundedReads(os.dup(file.fileno())) as bounded:
        try:
            with zipfile.ZipFile(bounded) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError, EOFError, OverflowError) as error:
            raise ValueError(f"its zip directory cannot be read: {error}") from error
    names = {member.filename: member for member in members}
    if len(names) != len(members):
        raise ValueError("two members of its zip directory have one name")
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it holds no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "constants.pkl" in names:
        raise RefusedError("it is a TorchScript archive: save the state dict of its model")
    if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size or m.flag_bits & 1 for m in members):
        raise RefusedError("it has compressed members, which PyTorch never writes")
    if sum(member.file_size for member in members) > size:
        raise RefusedError("its members claim more bytes than the file has")

    def begin(name: str) -> int:
        """Position of a member's content."""
        member = names[name]
        file.seek(member.header_offset)
        local = file.read(30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise ValueError("a member of its zip directory is not where it should be")
        at = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:]))
        if at + member.file_size > size:
            raise ValueError("a member of its zip directory reaches beyond the file")
        return int(at)

    def content(name: str) -> bytes:
        if names[name].file_size > MOST_HEADER:
            raise ValueError(f"its {name} has {names[name].file_size} bytes, more than {MOST_HEADER}")
        file.seek(begin(name))
        if len(read := file.read(names[name].file_size)) < names[name].file_size:
            raise ValueError(f"its {name} is cut off")
        return read

    if folder + "byteorder" in names and content(folder + "byteorder") != b"little":
        raise RefusedError("it was written on a big-endian machine")

    def find(key: str, dtype: torch.dtype, elements: int) -> _Storage:
        name = f"{folder}data/{key}"
        if name not in names or elements * dtype.itemsize > names[name].file_size:
            raise ValueError("a storage is missing, or shorter than its tensors say")
        return _Storage(dtype, begin(name), elements)

    return read_pickle(io.BytesIO(content(pickles[0]))), functools.partial(_find_tensor, find)


def read_legacy_file(file: BinaryIO) -> tuple[Any, TensorOf]:
    """The same for the format before PyTorch 1.6: five pickles, then the storages one after another."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    pickles = io.BytesIO(file.read(MOST_HEADER))
    if read_pickle(pickles) != _LEGACY_MAGIC or read_pickle(pickles) != _LEGACY_PROTOCOL:
        raise ValueError("it is no file of torch.save")
    system = read_pickle(pickles)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedError("it was written on a big-endian machine")
    references: list[Any] = []
    content, keys = read_pickle(pickles, references), read_pickle(pickles)
    # The lengths of the storages stand between them, so the sizes of their items are needed to find the next one.
    types = {key: dtype for key, dtype, _ in map(_reference, references)}
    places: dict[str, _Storage] = {}
    at = pickles.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in types:
            raise ValueError("a storage belongs to no tensor")
        file.seek(at)
        elements = int.from_bytes(file.read(8), "little")
        at += 8
        if elements * types[key].itemsize > size - at:
            raise ValueError("a storage reaches beyond the file")
        places[key] = _Storage(types[key], at, elements)
        at += elements * types[key].itemsize

    def find(key: str, dtype: torch.dtype, elements: int) -> _Storage:
        if key not in places or places[key].dtype != dtype or places[key].elements < elements:
            raise ValueError("a storage is missing, or shorter than its tensors say")
        return places[key]

    return content, functools.partial(_find_tensor, find)


def _reference(value: Any) -> tuple[str, torch.dtype, int]:
    """(key, dtype, elements) of the storage that a reference leads to."""
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[0] != "storage":
        raise ValueError("a reference leads to no storage")
    kind, key, elements = value[1], value[2], value[4]
    if len(value) == 6 and value[5] is not None:
        raise RefusedError("it has views of storages, which PyTorch has not written for years")
    dtype = _STORAGES.get(kind.name.rpartition(".")[2].removesuffix("Storage")) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str) or type(elements) is not int or elements < 0:
        raise ValueError("a reference leads to no storage")
    return key, dtype, elements


def _find_tensor(find: Callable[[str, torch.dtype, int], _Storage], called: Called) -> StoredTensor:
    """The tensor that the pickle wants to make. `find`: (key, dtype, elements) of a storage → the storage."""
    if called.name not in _DENSE or len(called.arguments) < 4:
        kind = called.name.partition("._rebuild_")[2].partition("_")[0]
        return StoredTensor(strange={"qtensor": "a quantized tensor"}.get(kind, f"a {kind} tensor"))
    persistent, offset, shape, stride = called.arguments[:4]
    if not isinstance(persistent, Persistent) or type(offset) is not int:
        raise ValueError("a tensor has no storage")
    storage = find(*_reference(persistent.value))
    if called.name.endswith("_v3"):
        dtype = called.arguments[6] if len(called.arguments) > 6 else None
        return StoredTensor(strange=f"of the type {dtype.name if isinstance(dtype, Global) else 'unknown'}")
    return _within(storage, offset, _whole_numbers(shape), _whole_numbers(stride))
