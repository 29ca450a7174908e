"""The commands are tested with all that they do."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_exports() -> None:
    """Exports are whole here."""
