"""A few hundred mutated pictures through the reader, each in two processes. `make check-large` reads ten thousand."""

from __future__ import annotations

from pathlib import Path

from rdsr.runtime.pictures.reading import open_picture
from rdsr.tests.runtime.pictures.mutations import judged, mutated, seeds

COUNT = 424
SEED = 1


def test_seeds_are_whole_pictures() -> None:
    """Mutations of what is refused anyway would prove nothing."""
    for name, content in seeds().items():
        if name in ("tiff lab", "tiff tiled planes"):
            continue  # may be refused by name
        with open_picture(content, name) as picture:
            assert picture.pixels().size


def test_mutations_are_the_same_at_each_call() -> None:
    assert mutated(60, seed=3) == mutated(60, seed=3)
    assert len({content for _, content in mutated(200)}) > 190


def test_mutated_pictures_are_read_or_refused(tmp_path: Path) -> None:
    """No crash, no hang, no two reads that differ, no other error than ours, nothing on standard error, no leak."""
    pictures = mutated(COUNT, seed=SEED)
    verdict = judged(pictures, tmp_path)
    listed = "\n".join(f"{pictures[number][0]}: {fault}" for number, fault in list(verdict.faults.items())[:20])
    assert not verdict.faults, f"{len(verdict.faults)} of {COUNT}:\n{listed}"
    assert verdict.counts["read"] > COUNT / 10
    assert verdict.counts["refused"] > COUNT / 10
    assert verdict.growth < 16
