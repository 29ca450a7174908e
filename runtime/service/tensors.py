"""Tensors of the Open Inference Protocol v2 as arrays and back: in JSON, and in its binary extension.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol (protocol) and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md (binary tensor data).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arguments import shown
from ..errors import PixelLimitError

__all__ = ["DATATYPES", "INPUT", "OUTPUT", "TensorError", "read_request", "write_response"]

INPUT, OUTPUT = "image", "upscaled"
"""Names of the one input and the one output, pictures N×H×W×3 in RGB."""
DATATYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "FP32": np.dtype("<f4")}
_MOST_JSON = 2**22
"""Most numbers of a tensor in JSON. More take seconds to write and to read, in which Python does nothing else."""
_AT_ONCE = 2**14
"""Numbers that are written in one go."""
_MOST_PICTURES = 64
_HEADER_BYTES = 2**21
"""Most bytes of JSON. Nothing else runs in Python while it is read: 50 ms for this much."""


class TensorError(ValueError):
    """The request is not of the protocol's form. The message is one sentence."""


def _whole(value: Any, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TensorError(f"{what} must be a whole number from {low} to {high}, not {shown(value)}")
    return value


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TensorError(f"{what} must be an object, not {shown(value)}")
    return value


def _only(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, list) or len(value) != 1:
        raise TensorError(f"{what} must be a list of one tensor")
    return _mapping(value[0], f"the tensor of {what}")


def read_request(body: bytes, header_bytes: int | None, most_pixels: int) -> tuple[NDArray[Any], bool, Mapping[str, Any]]:
    """(pictures N×H×W×3, whether the answer is to be binary, the whole request). Raises `TensorError`.

    `header_bytes`: of the JSON before binary data, by the header `Inference-Header-Content-Length`; None if all is JSON.
    """
    if header_bytes is not None and not 0 < header_bytes <= min(len(body), _HEADER_BYTES):
        raise TensorError("Inference-Header-Content-Length does not fit the body")
    head = body if header_bytes is None else body[:header_bytes]
    if len(head) > _HEADER_BYTES:
        raise TensorError(f"the JSON has {len(head)} bytes, more than {_HEADER_BYTES}: send binary data")
    try:
        request = json.loads(head)
    except (ValueError, RecursionError):
        raise TensorError("the body is no JSON") from None
    if not isinstance(request, dict):
        raise TensorError("the body must be an object")
    name = request.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > 1000):
        raise TensorError("id must be a short text")
    tensor = _only(request.get("inputs"), "inputs")
    parameters = _mapping(request.get("parameters"), "parameters")
    binary = parameters.get("binary_data_output") is True
    if request.get("outputs"):
        wanted = _only(request["outputs"], "outputs")
        if wanted.get("name") != OUTPUT:
            raise TensorError(f"the model has the output {OUTPUT}, not {shown(wanted.get('name'))}")
        chosen = _mapping(wanted.get("parameters"), "the parameters of outputs")
        if "classification" in chosen:
            raise TensorError("the output is a picture, which has no classes")
        binary = bool(chosen.get("binary_data", binary))
    return _array(tensor, body[len(head) :], most_pixels), binary, request


def _array(tensor: Mapping[str, Any], rest: bytes, most_pixels: int) -> NDArray[Any]:
    if tensor.get("name") != INPUT:
        raise TensorError(f"the model has the input {INPUT}, not {shown(tensor.get('name'))}")
    dtype = DATATYPES.get(tensor["datatype"]) if isinstance(tensor.get("datatype"), str) else None
    if dtype is None:
        raise TensorError(f"the datatype must be {', '.join(DATATYPES)}, not {shown(tensor.get('datatype'))}")
    sides = tensor.get("shape")
    if not isinstance(sides, list) or len(sides) != 4:
        raise TensorError(f"the shape must be [N, H, W, 3], not {shown(sides)}")
    count, height, width = (_whole(side, "each side of the shape", 1, 2**31) for side in sides[:3])
    if sides[3] != 3 or count > _MOST_PICTURES:
        raise TensorError(f"the shape must be [N, H, W, 3] with at most {_MOST_PICTURES} pictures, not {shown(sides)}")
    if count * height * width > most_pixels:
        raise PixelLimitError(f"the pictures have {count * height * width} pixels together, more than {most_pixels}")
    shape = (count, height, width, 3)
    size = _mapping(tensor.get("parameters"), "the parameters of inputs").get("binary_data_size")
    if size is not None:
        wanted = math.prod(shape) * dtype.itemsize
        if size != wanted or len(rest) != wanted:
            raise TensorError(
                f"the tensor has {wanted} bytes, not the {shown(size)} that are announced, of {len(rest)} sent"
            )
        return np.frombuffer(rest, dtype).reshape(shape)
    if rest:
        raise TensorError("there are bytes after the JSON, but no tensor that says binary_data_size")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise TensorError("the tensor has neither data nor binary_data_size")
    if math.prod(shape) > _MOST_JSON:
        raise TensorError(f"a tensor of more than {_MOST_JSON} numbers must be binary")
    return _from_json(data, shape, dtype)


def _from_json(data: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers of a flat list, or of one that is nested as the shape says."""
    wrong = TensorError(f"data must be {math.prod(shape)} numbers of the datatype, flat or nested as the shape says")
    flat = data
    for length in shape[1:]:
        if not flat or not isinstance(flat[0], list):
            break
        if not all(isinstance(part, list) and len(part) == length for part in flat):
            raise wrong
        flat = [value for part in flat for value in part]
    kinds = (int, float) if dtype.kind == "f" else (int,)  # NumPy would make pictures of texts, too
    if len(flat) != math.prod(shape) or not all(type(value) in kinds for value in flat):
        raise wrong
    if dtype.kind == "u" and not 0 <= min(flat) <= max(flat) <= np.iinfo(dtype).max:
        raise TensorError(f"data must be numbers from 0 to {np.iinfo(dtype).max}")
    try:
        return np.array(flat, dtype).reshape(shape)
    except OverflowError:
        raise wrong from None


def write_response(
    pictures: Sequence[NDArray[Any]], model: str, version: str, request_id: str, *, binary: bool
) -> tuple[memoryview, int | None]:
    """(the body, bytes of JSON before binary data or None). Raises `TensorError` for more than JSON can hold."""
    array = np.ascontiguousarray(pictures[0][None] if len(pictures) == 1 else np.stack(pictures))
    datatype = next(name for name, dtype in DATATYPES.items() if dtype == array.dtype)
    tensor: dict[str, Any] = {"name": OUTPUT, "datatype": datatype, "shape": list(array.shape)}
    answer = {"model_name": model, "model_version": version, **({"id": request_id} if request_id else {})}
    if binary:
        head = json.dumps(answer | {"outputs": [tensor | {"parameters": {"binary_data_size": array.nbytes}}]}).encode()
        body = bytearray(len(head) + array.nbytes)  # in one piece, and no more than once
        body[: len(head)] = head
        np.frombuffer(body, np.uint8, offset=len(head))[:] = array.reshape(-1).view(np.uint8)
        return memoryview(body), len(head)
    if array.size > _MOST_JSON:
        raise TensorError(f"the output has {array.size} numbers, too many for JSON: ask for it as binary data")
    before = json.dumps(answer | {"outputs": [tensor | {"data": []}]})[: -len("]}]}")]
    flat = array.reshape(-1)
    pieces = (flat[start : start + _AT_ONCE].tolist() for start in range(0, flat.size, _AT_ONCE))
    data = ", ".join(json.dumps(piece)[1:-1] for piece in pieces)
    return memoryview(f"{before}{data}]}}]}}".encode()), None
