"""Pictures to train on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "HR"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        cv2.imwrite(
            str(folder / f"{index}.png"), cv2.GaussianBlur(rng.integers(0, 256, (64, 72, 3), dtype=np.uint8), (0, 0), 1.5)
        )
    return folder
