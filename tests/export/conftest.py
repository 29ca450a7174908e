"""Exports of these tests are not timed; those of `tests/cli` are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rdsr.tests.conftest import untimed_exports


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    with untimed_exports():
        yield
