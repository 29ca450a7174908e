"""Read just enough of the protobuf wire format to see whether an ONNX graph refers to data outside itself.

The runtime does not depend on `onnx`, and the engines would read such data from the working directory.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["refers_outside"]

# Message type → {field number: message type of its content}; only the paths that can lead to a TensorProto.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 64


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, content) of one message. Raises `ValueError` or `IndexError` if it is malformed."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("a field reaches beyond its message")
            yield number, data[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def refers_outside(graph: bytes) -> bool:
    """Whether any tensor of a serialized ONNX model lies outside it. Raises `ValueError` for anything but such a model."""
    waiting: list[tuple[str, memoryview, int]] = [("model", memoryview(graph), 0)]
    try:
        while waiting:
            kind, data, depth = waiting.pop()
            if depth > _MAX_DEPTH:
                raise ValueError("graphs are nested too deeply")
            for number, content in _fields(data):
                if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and content != 0)):
                    return True
                child = _CHILDREN[kind].get(number)
                if child is not None and isinstance(content, memoryview):
                    waiting.append((child, content, depth + 1))
    except IndexError as error:
        raise ValueError("it ends in the middle of a field") from error
    return False
