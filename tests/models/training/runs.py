"""A network small enough to train in a second, its two stages, and the losses in a run's log."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

from rdsr.models.training.config import TrainConfig
from rdsr.models.training.run import train

NETWORK = {"width": 8, "depth": 2, "modulation_depths": [0], "condition_width": 8, "latent_size": 16, "lpe_width": 8}
STAGE1 = TrainConfig(
    stage="stage1", preset="tiny", network=NETWORK, iterations=24, batch=2, patch_sizes=(12,), warmup=4, validate_every=8
)
STAGE2 = dataclasses.replace(STAGE1, stage="stage2")


def run_on(pictures: Path, config: TrainConfig, folder: Path, **options: object) -> Path:
    return train(dataclasses.replace(config, data=(str(pictures),)), folder, **options)


def losses(folder: Path) -> list[str]:
    with (folder / "log.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]
