"""Exports of these tests are not timed; those of `tests/cli` are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    """Timing int8 against float32, at 128×128, takes some networks half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rdsr.export.exporter.measure_time", lambda folder: [])
        yield
