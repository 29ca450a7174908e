"""Fuzz target: mutated OpenVINO IR, opened in a bundle and, where that accepts it, run on the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from numpy.random import Generator

from rdsr.runtime.bundle.operators import LAYERS
from rdsr.tests.fuzz.graphs import all_seeds, attempt, content_of, flip

__all__ = ["attempt", "mutated", "seeds"]


def seeds() -> dict[str, bytes]:
    """The single graph of a small network of each kind."""
    return {name: content for name, content in all_seeds().items() if name.endswith(".xml")}


def mutated(rng: Generator) -> tuple[str, bytes]:
    """One seed with one to three mutations of one sort."""
    name = str(rng.choice(sorted(seeds())))
    line, graph = seeds()[name].split(b"\n", 1)
    facts = json.loads(line)
    xml, weights = graph[: facts["xml"]], graph[facts["xml"] :]
    mutate = _WAYS[int(rng.integers(len(_WAYS)))]
    for _ in range(int(rng.integers(1, 4))):
        xml, weights = mutate(rng, xml, weights)
    return f"{name}: {mutate.__name__.strip('_')}", content_of(facts | {"xml": len(xml)}, xml + weights)


def _flip_xml(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    return flip(rng, xml), weights


def _flip_weights(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    return xml, flip(rng, weights)


def _whole_numbers_of_weights(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    """Another number in a constant of type i64, which sets sizes, axes or indices."""
    places = [(int(m[1]), int(m[2])) for m in re.finditer(rb'"i64" shape="[^"]*" offset="(\d+)" size="(\d+)"', xml)]
    start, size = places[int(rng.integers(len(places)))]
    place = start + 8 * int(rng.integers(size // 8))
    number = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 16, 2**16, 2**31, 2**62)[int(rng.integers(14))]
    return xml, weights[:place] + number.to_bytes(8, "little", signed=True) + weights[place + 8 :]


def _one_match(rng: Generator, xml: bytes, pattern: bytes, group: int, value: bytes) -> bytes:
    matches = list(re.finditer(pattern, xml))
    if not matches:
        return xml
    match = matches[int(rng.integers(len(matches)))]
    return xml[: match.start(group)] + value + xml[match.end(group) :]


def _type(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    others = [*LAYERS, "Loop", "TensorIterator", "If", "ReadValue", "Const", "Parameter", "Result", "NonZero"]
    return _one_match(rng, xml, rb' type="([^"]*)"', 1, str(rng.choice(others)).encode()), weights


def _attribute_number(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    number = str(rng.choice([-1, 0, 1, 2, 3, 4, 9, 2**16, 2**31, 2**62])).encode()
    return _one_match(rng, xml, rb'<data [^>]*"(\d+)', 1, number), weights


def _attribute_list(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    number = str(rng.choice([-1, 0, 1, 2, 3, 4, 9, 2**16, 2**31])).encode()
    return _one_match(rng, xml, rb'(strides|pads_begin|pads_end|dilations|kernel|shape)="(\d+)', 2, number), weights


def _attribute_word(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    words = ("true", "false", "f32", "i64", "u8", "numpy", "none", "bidirectional", "edge", "reflect", "valid", "")
    return _one_match(rng, xml, rb'<data [^>]*="([a-z_0-9]+)"', 1, str(rng.choice(words)).encode()), weights


def _edge(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    layers = re.findall(rb'<edge from-layer="(\d+)"', xml)
    end = (rb'from-layer="(\d+)"', rb'to-layer="(\d+)"', rb'from-port="(\d+)"', rb'to-port="(\d+)"')[int(rng.integers(4))]
    value = layers[int(rng.integers(len(layers)))] if b"layer" in end else str(int(rng.integers(4))).encode()
    return _one_match(rng, xml, b"<edge [^>]*" + end, 1, value), weights


def _offset(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    end = (rb' offset="(\d+)"', rb' size="(\d+)"')[int(rng.integers(2))]
    return _one_match(rng, xml, end, 1, str(int(rng.integers(0, 2 * len(weights)))).encode()), weights


def _drop_line(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    lines = xml.split(b"\n")
    del lines[int(rng.integers(len(lines)))]
    return b"\n".join(lines), weights


def _dimension(rng: Generator, xml: bytes, weights: bytes) -> tuple[bytes, bytes]:
    number = str(rng.choice([-2, -1, 0, 1, 5, 2**31, 2**63])).encode()
    return _one_match(rng, xml, rb"<dim>(-?\d+)</dim>", 1, number), weights


_WAYS: tuple[Callable[..., Any], ...] = (
    _flip_xml, _flip_weights, _whole_numbers_of_weights, _type, _attribute_number, _attribute_list, _attribute_word, _edge,
    _edge, _offset, _drop_line, _dimension,
)  # fmt: skip
