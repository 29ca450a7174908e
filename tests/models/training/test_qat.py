"""Quantization-aware training: it leaves the float network alone, learns, resumes exactly, and its result exports."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rdsr.export.build_proof import SAMPLES
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.models.registry import load_model
from rdsr.models.training import trainer as trainer_module
from rdsr.models.training.config import TrainConfig
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.run import train
from rdsr.runtime.bundle import Bundle
from rdsr.tests.conftest import random_network, write_checkpoint

QAT = TrainConfig(
    stage="qat",
    data=(str(SAMPLES),),
    iterations=6,
    batch=2,
    patch_sizes=(12,),
    warmup=2,
    optimizer="adam",
    pixel_loss="l2",
    validate_every=3,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to start from."""
    return write_checkpoint(tmp_path_factory.mktemp("finished") / "net.safetensors", random_network())


def log(folder: Path, field: str) -> list[str]:
    with (folder / "log.csv").open() as file:
        return [row[field] for row in csv.DictReader(file) if row[field]]


def test_the_float_network_stays_and_the_quantized_one_moves(finished: Path, tmp_path: Path) -> None:
    result = train(dataclasses.replace(QAT, init=str(finished)), tmp_path / "run", validation=SAMPLES)
    before, after = load_file(finished), load_file(result)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {key.split(".")[0] for key in after} - {key.split(".")[0] for key in before} == {"quantized"}
    loaded = load_model(result)
    assert loaded.notes["stage"] == "qat"
    fresh = train(dataclasses.replace(QAT, init=str(finished), iterations=1), tmp_path / "one")
    moved = {key for key, value in load_file(fresh).items() if not torch.equal(value, after[key])}
    for part in ("convs.0.weight", "convs.0.log_input_scale", "convs.0.output_low", "modulation.0.weight", "head.weight"):
        assert f"quantized.{part}" in moved
    for conv in loaded.network.quantized.layers():
        levels = conv.weight / conv.log_weight_scale.exp()
        assert torch.allclose(levels, levels.round(), atol=1e-3), "the checkpoint's weights are levels"


LONGER = {"iterations": 60, "batch": 8, "learning_rate": 1e-3, "validate_every": 1, "ema_decay": 0.5}


def test_training_on_originals_learns(finished: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(QAT, init=str(finished), distillation=0.0, **LONGER)
    train(config, tmp_path / "run", validation=SAMPLES)
    quality = [float(value) for value in log(tmp_path / "run", "psnr_y")]
    assert quality[-1] > quality[0] + 0.2


def test_distillation_comes_nearer_to_the_float_network(finished: Path, tmp_path: Path) -> None:
    train(dataclasses.replace(QAT, init=str(finished), **LONGER), tmp_path / "run", validation=SAMPLES)
    losses = [float(value) for value in log(tmp_path / "run", "loss")]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert losses[0] < 0.1 * float(log(tmp_path / "run", "pixel")[0]), "rounding is small beside the network's own error"


def test_resume_is_exact(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(QAT, init=str(finished))
    whole = load_file(train(config, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        original = trainer_module.Trainer._train_step

        def interrupt(self: trainer_module.Trainer, batch: object) -> object:
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, batch)

        patch.setattr(trainer_module.Trainer, "_train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut")
    resumed = load_file(train(dataclasses.replace(config, init=""), tmp_path / "cut", resume=True))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_its_result_exports_and_can_be_trained_on(finished: Path, tmp_path: Path) -> None:
    result = train(dataclasses.replace(QAT, init=str(finished)), tmp_path / "run")
    options = ExportOptions(checkpoint=result, output=tmp_path / "b", max_psnr_drop=9.0, single_graph=False)
    assert export_checkpoint(options).passed
    assert Bundle(tmp_path / "b").manifest.quantization["source"] == "training"
    again = train(dataclasses.replace(QAT, init=str(result)), tmp_path / "again")
    assert load_file(again).keys() == load_file(result).keys()
    network = load_model(finished).config.to_dict()
    stage2 = TrainConfig(
        stage="stage2",
        preset="tiny",
        network=network,
        data=QAT.data,
        iterations=1,
        batch=2,
        patch_sizes=(12,),
        init=str(result),
    )
    floats = load_file(train(stage2, tmp_path / "stage2"))
    assert not any(key.startswith("quantized.") for key in floats), "trained on, the old quantization is no longer its own"


def test_it_is_trained_by_adam() -> None:
    with pytest.raises(TrainingError, match="optimizer must be"):
        dataclasses.replace(QAT, optimizer="muon")


@pytest.mark.parametrize(("field", "value"), [("preset", "small"), ("network", {"width": 8}), ("grow", True)])
def test_the_network_is_that_of_the_checkpoint(field: str, value: object) -> None:
    with pytest.raises(TrainingError, match="not for qat"):
        dataclasses.replace(QAT, **{field: value})


def test_it_needs_a_finished_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="qat starts from a finished checkpoint"):
        train(QAT, tmp_path / "run")
    assert not (tmp_path / "run").exists()
