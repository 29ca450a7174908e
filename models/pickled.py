"""Read a pickle as data. Nothing that it names is imported or called, and only names that state dicts use are allowed."""

from __future__ import annotations

import dataclasses
import pickletools
import re
from typing import Any, BinaryIO

__all__ = ["Called", "ForbiddenNameError", "Global", "Persistent", "read_pickle"]

MOST_OPERATIONS = 1_000_000
"""Most operations of a pickle. A tensor takes some thirty."""
_HARMLESS = re.compile(
    r"(collections\.(OrderedDict|defaultdict|Counter))|((builtins|__builtin__)\.(set|frozenset|bytearray|int|list|dict))"
    r"|(_codecs\.encode)|(torch\.(Size|device|Tensor))|(torch\.nn\.parameter\.(Parameter|Buffer))"
    r"|(torch\._utils\._rebuild_\w+)|(torch\._tensor\._rebuild_from_type_v2)|(torch\.serialization\._get_layout)"
    r"|(torch\.((cuda|storage|sparse)\.)?\w*(Storage|Tensor))|(torch\.(b?float|u?int|q?u?int|complex|bool|bits|per_tensor|per_channel)\w*)"
)
_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")


class ForbiddenNameError(ValueError):
    """The pickle names something that is no part of a state dict, e.g. a function to run."""


@dataclasses.dataclass(frozen=True)
class Global:
    """Something that the pickle names: "module.name"."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Called:
    """What the pickle wants to make by a call; it is not made."""

    name: str
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to data outside the pickle."""

    value: Any


def read_pickle(file: BinaryIO, references: list[Any] | None = None) -> Any:
    """One pickle as dictionaries, lists, tuples, plain values, and `Global`, `Called` and `Persistent` in place of all else.

    The file is left behind its end. The values of all `Persistent` are appended to `references`. Dictionaries lose keys that
    are no plain values. Raises `ValueError` for a pickle that is damaged or has too many operations, and
    `ForbiddenNameError` for one that names anything foreign.
    """
    machine = _Machine([] if references is None else references)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MOST_OPERATIONS:
                raise ValueError(f"it has more than {MOST_OPERATIONS} operations")
            machine.do(operation.name, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its pickle is damaged: {error}") from error


_PLAIN = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
"""Operations that push their argument."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack machine that pickles are written for. Sets are lists here: what they hold need not be hashable."""

    def __init__(self, references: list[Any]) -> None:
        self.references = references
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks below each mark."""
        self._memo: dict[int, Any] = {}
        self._entries = 0
        """Entries of mappings that were copied from lists, which a pickle may name again and again."""

    def do(self, name: str, argument: Any) -> None:
        """One operation."""
        stack = self.stack
        if name in _PLAIN:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._below.append(stack)
            self.stack = []
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._collect(name, argument)

    def _collect(self, name: str, argument: Any) -> None:
        """The operations that make something of what lies on the stack."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(_allowed(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(_allowed(f"{module}.{last}"))
        elif name == "BINPERSID":
            self.references.append(stack.pop())
            stack.append(Persistent(self.references[-1]))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            stack.pop()  # the attributes of an object, for a state dict the versions of its modules
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _put(stack[-1], key, value)
        elif name == "APPEND":
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            self._gather(name)

    def _gather(self, name: str) -> None:
        """The operations that take all down to the last mark."""
        if name not in ("TUPLE", "LIST", "FROZENSET", "DICT", "SETITEMS", "APPENDS", "ADDITEMS", "POP_MARK"):
            raise ForbiddenNameError(name.lower())
        items, self.stack = self.stack, self._below.pop()
        if name == "TUPLE":
            self.stack.append(tuple(items))
        elif name in ("LIST", "FROZENSET"):
            self.stack.append(items)
        elif name in ("DICT", "SETITEMS"):
            if name == "DICT":
                self.stack.append({})
            for key, value in zip(items[::2], items[1::2], strict=True):
                _put(self.stack[-1], key, value)
        elif name in ("APPENDS", "ADDITEMS"):
            _list(self.stack[-1]).extend(items)

    def _called(self, function: Any, arguments: Any) -> Any:
        """A call, except of what makes a dictionary, or a parameter of a tensor: those become what they hold."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no function")
        if function.name in _MAPPINGS:
            result: dict[Any, Any] = {}
            if arguments and isinstance(arguments[0], (list, tuple)):
                self._entries += len(arguments[0])
                if self._entries > MOST_OPERATIONS:
                    raise ValueError(f"its mappings have more than {MOST_OPERATIONS} entries")
                for key, value in arguments[0]:
                    _put(result, key, value)
            return result
        if function.name == "torch._tensor._rebuild_from_type_v2":
            inner, _, inner_arguments, _ = arguments
            return self._called(inner, inner_arguments)
        if function.name.startswith("torch._utils._rebuild_parameter"):
            return arguments[0]
        return Called(function.name, arguments)


def _allowed(name: str) -> Global:
    if not _HARMLESS.fullmatch(name):
        raise ForbiddenNameError(name)
    return Global(name)


def _put(mapping: Any, key: Any, value: Any) -> None:
    if not isinstance(mapping, dict):
        raise TypeError("an entry of something that is no dictionary")
    # A tuple as a key could be nested so deep that hashing it crashes the interpreter.
    if key is None or isinstance(key, (str, bytes, int, float)):
        mapping[key] = value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("an entry of something that is no list")
    return value
