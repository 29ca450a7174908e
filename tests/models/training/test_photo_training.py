"""Training on photos and with a teacher's pictures: exact resuming, the prior's own steps, fields that are checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rdsr.models.checkpoint import read_checkpoint
from rdsr.models.degradation import VECTOR_SIZE
from rdsr.models.registry import load_model
from rdsr.models.training import trainer as trainer_module
from rdsr.models.training.config import TrainConfig
from rdsr.models.training.data import PatchSource
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.optimizers import learning_rate
from rdsr.tests.models.training.runs import NETWORK, STAGE1, STAGE2, losses, run_on

PHOTO = {"degradation_size": VECTOR_SIZE, "condition_encoder": "statistics", "unshuffle": 2}


def photo_config(config: TrainConfig, teacher: Path) -> TrainConfig:
    changes = {"degradation": "photo", "teacher": (str(teacher),), "teacher_weight": 0.5, "modulation_rate": 1.0}
    return dataclasses.replace(config, **changes, network=NETWORK | PHOTO)


@pytest.fixture
def teacher(pictures: Path, tmp_path: Path) -> Path:
    """A teacher's result for one of the pictures."""
    (tmp_path / "teacher").mkdir()
    picture = cv2.imread(str(pictures / "1.png"))
    cv2.imwrite(str(tmp_path / "teacher" / "1.png"), cv2.GaussianBlur(picture, (0, 0), 1))
    return tmp_path / "teacher"


def test_a_teacher_without_weight_is_not_read(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    """Pictures of an upscaler for ×4 have sides that need not fit originals for ×2."""
    cv2.imwrite(str(teacher / "1.png"), np.zeros((4, 4, 3), np.uint8))
    config = dataclasses.replace(STAGE1, network=NETWORK | {"scale": 2}, teacher=(str(teacher),), iterations=1)
    assert run_on(pictures, dataclasses.replace(config, teacher_weight=0.0), tmp_path / "one").is_file()
    with pytest.raises(TrainingError, match="has 4×4 pixels"):
        run_on(pictures, config, tmp_path / "two")


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_resume_is_exact_under_photo_and_teacher(pictures: Path, teacher: Path, tmp_path: Path, stage: str) -> None:
    first = run_on(pictures, photo_config(STAGE1, teacher), tmp_path / "one")
    config = photo_config(STAGE1, teacher)
    if stage == "stage2":
        config = dataclasses.replace(photo_config(STAGE2, teacher), init=str(first), prior_steps=10)
    whole = load_file(run_on(pictures, config, tmp_path / "whole", validation=pictures.parent))
    while True:  # a step at a time, each in a new trainer
        resume = (tmp_path / "cut" / "state.pt").exists()
        run_on(pictures, config, tmp_path / "cut", resume=resume, seconds=1e-9, validation=pictures.parent)
        if torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == config.iterations:
            break
    cut = load_file(tmp_path / "cut" / "ema.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_the_first_steps_of_stage_2_can_be_the_priors_alone(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    first = run_on(pictures, photo_config(STAGE1, teacher), tmp_path / "one")
    config = dataclasses.replace(photo_config(STAGE2, teacher), init=str(first), iterations=10, ema_decay=0.0)
    before = load_file(first)
    for steps, moves in ((10, False), (5, True)):
        after = load_file(run_on(pictures, dataclasses.replace(config, prior_steps=steps), tmp_path / str(steps)))
        assert torch.equal(before["decoder.body.0.weight"], after["decoder.body.0.weight"]) != moves
        assert "condition_encoder.norm.weight" in after
    with pytest.raises(TrainingError, match="prior_steps is for stage2"):
        dataclasses.replace(STAGE1, prior_steps=3)


def test_a_condition_vector_can_be_the_prior(pictures: Path, tmp_path: Path) -> None:
    """T = 0: stage 2 without its diffusion process."""
    first = run_on(pictures, STAGE1, tmp_path / "one")
    config = dataclasses.replace(STAGE2, init=str(first), network=NETWORK | {"steps": 0})
    network = load_model(run_on(pictures, config, tmp_path / "two")).network
    pooled = torch.rand(1, 8)
    with torch.no_grad():
        assert torch.equal(network.prior(pooled, torch.randn(1, 16)), network.condition_encoder.vector(pooled))


def test_the_best_weights_are_kept_beside_the_last(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([20.0, 30.0, 25.0])
    monkeypatch.setattr(trainer_module, "mean_psnr_y", lambda *arguments: next(values))
    run_on(pictures, STAGE1, tmp_path / "run", validation=pictures.parent)
    _, metadata = read_checkpoint(tmp_path / "run" / "best.safetensors")
    notes = json.loads(metadata["notes"])
    assert (notes["iterations"], notes["psnr_y"]) == ("16", "30.0000")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["best"] == 30.0


def test_a_run_of_an_earlier_version_goes_on(pictures: Path, tmp_path: Path) -> None:
    """Fields that are newer than the run have their defaults."""
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    path = tmp_path / "run" / "state.pt"
    state = torch.load(path, weights_only=True)
    config = json.loads(state["config"])
    state["config"] = json.dumps(
        {k: v for k, v in config.items() if k not in ("teacher", "degradation", "photo", "prior_steps")}
    )
    torch.save(state, path)
    run_on(pictures, STAGE1, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"degradation": "jpeg"}, "degradation must be one of bicubic, photo"),
        ({"photo": {"blurr": 1}}, "photo: unknown field blurr"),
        ({"photo": {"jpeg": 2}}, "photo: jpeg must be"),
        ({"teacher": "x"}, "teacher must be a list"),
        ({"teacher_weight": 2.0}, "teacher_weight must be a number from"),
        ({"network": NETWORK | {"degradation_size": 5}}, "degradation_size must be 0 or 12"),
    ],
)
def test_fields_of_photos_and_teachers_are_checked(change: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        dataclasses.replace(STAGE1, **change)


def test_steps_of_the_prior_alone_have_a_schedule_and_patches_of_their_own(pictures: Path) -> None:
    config = dataclasses.replace(
        STAGE2, iterations=100, prior_steps=60, prior_rate=3.0, warmup=10, learning_rate=1e-3, final_learning_rate=1e-5
    )
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[9] == pytest.approx(3e-3)
    assert rates[59] == pytest.approx(3e-5, rel=0.3)
    assert rates[69] == pytest.approx(1e-3)
    assert rates[99] == pytest.approx(1e-5, rel=0.3)
    source = PatchSource([pictures], scale=4, patch_sizes=(8,), seed=0, first=(2, 12))
    assert [source.batch(step, 3).lr.shape[:2] for step in range(4)] == [(3, 12), (3, 12), (3, 8), (3, 8)]
