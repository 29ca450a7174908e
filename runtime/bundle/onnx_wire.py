"""Read a serialized ONNX graph from the protobuf wire format, strictly: what exports do not write is refused.

The runtime does not depend on `onnx`, and no engine sees a graph before it is checked. Messages are walked in place, field
by field. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .graph import BOOL, FLOAT, INT8, INT64, MAX_NODES, UINT8, Attribute, Graph, GraphError, Node, Port, Tensor

__all__ = ["read_onnx"]

_DTYPES = {1: FLOAT, 2: UINT8, 3: INT8, 7: INT64, 9: BOOL}
_OPSETS = (17,)
_IR_VERSIONS = range(3, 21)
_MAX_FIELDS = 500_000
_MAX_NAME = 1000
Content = int | memoryview | bytes
"""Of a field: a number, a message in place, or the bytes of a number of fixed size."""


class _Wire:
    """Walks messages and counts their fields, and the numbers of their lists."""

    def __init__(self) -> None:
        self.fields_left = _MAX_FIELDS

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        """The number at a place of a message, and the place behind it."""
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            if shift > 63:
                raise ValueError("a number of more than ten bytes")

    def fields(self, data: memoryview, repeated: tuple[int, ...] = ()) -> Iterator[tuple[int, Content]]:
        """(field number, content) of one message. Only fields of `repeated` may come twice: parsers merge the others."""
        at, end, seen = 0, len(data), 0
        while at < end:
            self._count()
            tag, at = self.varint(data, at)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 100:
                raise ValueError(f"field {number}")
            if number not in repeated:
                if seen >> number & 1:
                    raise GraphError(f"has field {number} twice in one message")
                seen |= 1 << number
            if wire == 0:
                value, at = self.varint(data, at)
                yield number, value
                continue
            if wire == 2:
                size, at = self.varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            if at + size > end:
                raise ValueError("a field reaches beyond its message")
            part = data[at : at + size]
            yield number, part if wire == 2 else bytes(part)
            at += size

    def numbers(self, content: Content, into: list[int]) -> None:
        """Append the signed numbers of a repeated field, packed or not."""
        if isinstance(content, int):
            into.append(_signed(content))
        else:
            at, packed = 0, _message(content)
            while at < len(packed):
                self._count()
                value, at = self.varint(packed, at)
                into.append(_signed(value))

    def _count(self) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise GraphError(f"has more than {_MAX_FIELDS} fields and numbers")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(content: Content) -> str:
    raw = _message(content)
    if len(raw) > _MAX_NAME:
        raise GraphError(f"has a name of {len(raw)} bytes")
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError:
        raise GraphError(f"has a name that is no UTF-8 ({bytes(raw[:40])!r})") from None
    if not text.isprintable():
        raise GraphError(f"has a name of unprintable letters ({text[:40]!r})")
    return text


def _number(content: Content) -> int:
    if not isinstance(content, int):
        raise ValueError("bytes where a number belongs")
    return _signed(content)


def _message(content: Content) -> memoryview:
    if not isinstance(content, memoryview):
        raise ValueError("a number where a message belongs")
    return content


def _unknown(what: str, number: int) -> GraphError:
    return GraphError(f"has field {number} in a {what}, which no export writes")


def read_onnx(content: bytes) -> Graph:
    """The graph of a serialized ONNX model. Raises `GraphError` for anything but a model of the form that exports write."""
    try:
        return _model(_Wire(), memoryview(content))
    except GraphError:
        raise
    except (IndexError, struct.error):
        raise GraphError("is no ONNX graph (it ends in the middle of a field)") from None
    except ValueError as error:
        raise GraphError(f"is no ONNX graph ({error})") from None


def _model(wire: _Wire, data: memoryview) -> Graph:
    graphs: list[Graph] = []
    opsets: list[tuple[str, int]] = []
    for number, content in wire.fields(data, repeated=(7, 8, 14)):
        if number == 7:
            graphs.append(_graph(wire, _message(content)))
        elif number == 8:
            opsets.append(_opset(wire, _message(content)))
        elif number == 1:
            if _number(content) not in _IR_VERSIONS:
                raise GraphError(f"has the ONNX IR version {_number(content)}")
        elif number in (2, 3, 6):  # producer, its version, description
            _text(content)
        elif number == 14:  # metadata, which no engine follows
            _metadata(wire, _message(content))
        elif number in (20, 25):
            raise GraphError("holds training information" if number == 20 else "holds functions of its own")
        else:
            raise _unknown("model", number)
        if len(graphs) > 1 or len(opsets) > 1:
            break
    if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx") or opsets[0][1] not in _OPSETS:
        raise GraphError(f"uses the operator sets {opsets}, not ONNX's of version {', '.join(map(str, _OPSETS))} alone")
    if len(graphs) != 1:
        raise GraphError(f"is no ONNX graph (it holds {'no graph' if not graphs else 'several graphs'})")
    graphs[0].check_order()
    return graphs[0]


def _metadata(wire: _Wire, data: memoryview) -> None:
    for number, content in wire.fields(data):
        if number not in (1, 2):
            raise _unknown("metadata entry", number)
        _text(content)


def _opset(wire: _Wire, data: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, content in wire.fields(data):
        if number == 1:
            domain = _text(content)
        elif number == 2:
            version = _number(content)
        else:
            raise _unknown("operator set", number)
    return domain, version


def _graph(wire: _Wire, data: memoryview) -> Graph:
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    inputs: dict[str, Port] = {}
    claims: dict[str, Port] = {}
    outputs: list[str] = []
    for number, content in wire.fields(data, repeated=(1, 5, 11, 12, 13)):
        if number == 1:
            nodes.append(_node(wire, _message(content)))
        elif number == 5:
            name, tensor = _tensor(wire, _message(content))
            if name in constants:
                raise GraphError(f"makes the value {name!r} twice")
            constants[name] = tensor
        elif number == 11:
            name, port = _value_info(wire, _message(content))
            if name in inputs:
                raise GraphError(f"has two inputs {name!r}")
            inputs[name] = port
        elif number == 12:
            name, claims[name] = _value_info(wire, _message(content))
            outputs.append(name)
        elif number == 13:  # what the exporter knew about values in between
            name, claims[name] = _value_info(wire, _message(content))
        elif number in (2, 10):  # name, description
            _text(content)
        elif number == 15:
            raise GraphError("holds a sparse tensor")
        else:
            raise _unknown("graph", number)
        if max(len(nodes), len(constants), len(claims)) > MAX_NODES or max(len(inputs), len(outputs)) > 100:
            raise GraphError(f"has more than {MAX_NODES} nodes or constants, or more than 100 inputs or outputs")
    return Graph(inputs, constants, nodes, outputs, claims)


def _node(wire: _Wire, data: memoryview) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    name = operator = ""
    for number, content in wire.fields(data, repeated=(1, 2, 5)):
        if number == 1:
            inputs.append(_text(content))
        elif number == 2:
            outputs.append(_text(content))
        elif number == 3:
            name = _text(content)
        elif number == 4:
            operator = _text(content)
        elif number == 5:
            key, value = _attribute(wire, _message(content))
            if key in attributes:
                raise GraphError(f"has a node with two attributes {key!r}")
            attributes[key] = value
        elif number == 6:
            _text(content)
        elif number == 7:
            if _text(content):
                raise GraphError(f"holds an operator of the foreign domain {_text(content)!r}")
        else:
            raise _unknown("node", number)
        if len(inputs) + len(outputs) + len(attributes) > 100:
            raise GraphError("has a node of more than 100 inputs, outputs and attributes")
    return Node(operator, name or (outputs[0] if outputs else ""), tuple(inputs), tuple(outputs), attributes)


_FORMS = {1: "f", 2: "i", 3: "s", 4: "t", 7: "ints"}
"""Type of an attribute → the field that holds its value."""


def _attribute(wire: _Wire, data: memoryview) -> tuple[str, Attribute]:
    name, form = "", 0
    found: dict[str, Attribute] = {}
    ints: list[int] = []
    for number, content in wire.fields(data, repeated=(8,)):
        if number == 1:
            name = _text(content)
        elif number == 2:
            if not isinstance(content, bytes) or len(content) != 4:
                raise ValueError("a number of another size")
            (found["f"],) = struct.unpack("<f", content)
        elif number == 3:
            found["i"] = _number(content)
        elif number == 4:
            found["s"] = _text(content)
        elif number == 5:
            found["t"] = _tensor(wire, _message(content))[1]
        elif number == 8:
            wire.numbers(content, ints)
        elif number == 20:
            form = _number(content)
        elif number in (6, 11):
            raise GraphError(f"holds a subgraph in the attribute {name!r}")
        elif number in (22, 23):
            raise GraphError("holds a sparse tensor")
        elif number != 13 or _text(content):  # 13: description
            raise _unknown("attribute", number)
    if ints:
        found["ints"] = tuple(ints)
    if form not in _FORMS or list(found) != [_FORMS[form]]:
        raise GraphError(f"has the attribute {name!r}, whose value is not of its type")
    return name, found[_FORMS[form]]


def _tensor(wire: _Wire, data: memoryview) -> tuple[str, Tensor]:
    name, dtype = "", None
    dims: list[int] = []
    numbers: list[int] = []
    raw: memoryview | None = None
    for number, content in wire.fields(data, repeated=(1, 7, 13)):
        if number == 1:
            wire.numbers(content, dims)
        elif number == 2:
            dtype = _DTYPES.get(_number(content))
        elif number == 7:
            wire.numbers(content, numbers)
        elif number == 8:
            name = _text(content)
        elif number == 9:
            raw = _message(content)
        elif number == 13 or (number == 14 and content != 0):
            raise GraphError("refers to data outside itself")
        elif number not in (12, 14):  # description; where the data lies: here
            raise _unknown("tensor", number)
    if (numbers and raw is not None) or (numbers and dtype != INT64):
        raise GraphError(f"holds the constant {name!r}, whose values are not of its type")
    if numbers:
        raw = memoryview(struct.pack(f"<{len(numbers)}q", *numbers))
    return name, Tensor.of(name, dtype, dims, raw if raw is not None else memoryview(b""))


def _value_info(wire: _Wire, data: memoryview) -> tuple[str, Port]:
    """Name, element type and shape of an input or output."""
    name, dtype = "", "unknown"
    shape: list[int | None] | None = None
    for number, content in wire.fields(data):
        if number == 1:
            name = _text(content)
        elif number == 2:
            for kind, form in wire.fields(_message(content)):
                if kind != 1:
                    raise GraphError("has a value that is no tensor")
                for part, value in wire.fields(_message(form)):
                    if part == 1:
                        dtype = _DTYPES.get(_number(value), dtype)
                    elif part == 2:
                        shape = [_side(wire, number, side) for number, side in wire.fields(_message(value), repeated=(1,))]
                    else:
                        raise _unknown("type", part)
        elif number == 3:
            _text(content)
        else:
            raise _unknown("value", number)
    return name, (dtype, None if shape is None else tuple(shape))


def _side(wire: _Wire, field: int, data: Content) -> int | None:
    side = None
    if field != 1:
        raise _unknown("shape", field)
    for number, content in wire.fields(_message(data)):
        if number == 1:
            side = _number(content)
        elif number in (2, 3):
            _text(content)
        else:
            raise _unknown("side", number)
    return side
