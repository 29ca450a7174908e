"""Where the labels of a plot's points go, so that none covers another, a marker, or leaves the frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "overlap", "place_labels"]

Box = tuple[float, float, float, float]
"""Left, bottom, right, top in pixels."""
Place = tuple[float, float]
"""x, y in pixels."""
_ANGLES = 24
_COVERED_COST = 6.0
"""Pixels further away that a label goes rather than cover one point of a line."""
_GAP = 2.0
"""Pixels between labels."""


def overlap(one: Box, other: Box, gap: float = 0.0) -> bool:
    """Whether two boxes share more than an edge, or are nearer than `gap` pixels."""
    return one[0] < other[2] + gap and other[0] < one[2] + gap and one[1] < other[3] + gap and other[1] < one[3] + gap


def place_labels(
    anchors: Sequence[Place],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    lines: Sequence[Place] = (),
    *,
    clearance: float = 8.0,
) -> list[Box | None]:
    """A box for the label of every anchor, near it; None for a label that fits nowhere within the bounds.

    `sizes` are width and height of the labels; `lines` points along lines, which are rather not covered; `clearance` is
    half the side of a marker. Boxes never overlap each other or a marker. All in pixels.
    """
    markers = [(x - clearance, y - clearance, x + clearance, y + clearance) for x, y in anchors]
    boxes: list[Box | None] = [None] * len(anchors)
    taken: list[Box] = []
    soft = np.array(lines, dtype=float).reshape(-1, 2)
    for index in _crowded_first(anchors, sizes):
        best: tuple[float, Box] | None = None
        for distance, box in _candidates(anchors[index], sizes[index], bounds, clearance):
            if best is not None and distance >= best[0]:
                break  # candidates only get further away
            if any(overlap(box, other, _GAP) for other in taken) or any(overlap(box, marker) for marker in markers):
                continue
            leader = _leader(anchors[index], box)
            crossed = sum(_covered(other, leader) > 0 for other in taken)
            cost = distance + _COVERED_COST * (_covered(box, soft) + 4 * crossed)
            if best is None or cost < best[0]:
                best = cost, box
        if best is not None:
            boxes[index] = best[1]
            taken.append(best[1])
            soft = np.concatenate([soft, _leader(anchors[index], best[1])])
    return boxes


def _crowded_first(anchors: Sequence[Place], sizes: Sequence[tuple[float, float]]) -> list[int]:
    """Those with the most neighbours have the least choice."""

    def neighbours(index: int) -> int:
        (x, y), (width, height) = anchors[index], sizes[index]
        return sum(abs(x - other[0]) < width and abs(y - other[1]) < 3 * height for other in anchors)

    return sorted(range(len(anchors)), key=neighbours, reverse=True)


def _candidates(anchor: Place, size: tuple[float, float], bounds: Box, clearance: float) -> Iterator[tuple[float, Box]]:
    """Boxes around the anchor within the bounds and their distances, nearest first; right and left before the rest."""
    width, height = size
    reach = math.hypot(bounds[2] - bounds[0], bounds[3] - bounds[1])
    distance = clearance
    while distance < reach:
        # The rings' circumference grows, so more places on it differ.
        count = _ANGLES * (1 + int(distance / 60))
        for turn in sorted(range(count), key=lambda turn: abs(math.sin(math.tau * turn / count))):
            sine, cosine = math.sin(math.tau * turn / count), math.cos(math.tau * turn / count)
            left = anchor[0] + cosine * (distance + width / 2) - width / 2
            bottom = anchor[1] + sine * (distance + height / 2) - height / 2
            box = (left, bottom, left + width, bottom + height)
            if bounds[0] <= box[0] and bounds[1] <= box[1] and box[2] <= bounds[2] and box[3] <= bounds[3]:
                yield distance, box
        distance += 4 + distance / 8


def _leader(anchor: Place, box: Box) -> NDArray[np.float64]:
    """Points along the line from the anchor to the nearest point of its box, N×2."""
    end = (min(max(anchor[0], box[0]), box[2]), min(max(anchor[1], box[1]), box[3]))
    count = 2 + int(math.dist(anchor, end) / 4)
    return np.linspace(anchor, end, count)


def _covered(box: Box, points: NDArray[np.float64]) -> int:
    """How many of N×2 points lie within the box."""
    x, y = points[:, 0], points[:, 1]
    return int(np.count_nonzero((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])))
