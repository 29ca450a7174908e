"""Training: both stages learn, resume exactly, keep what must stay frozen, refuse bad configs."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import logging
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rdsr.cli.main import app
from rdsr.models.errors import CheckpointError
from rdsr.models.registry import load_model
from rdsr.models.training import trainer as trainer_module
from rdsr.models.training.config import TrainConfig, find_config
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.run import train
from rdsr.tests.models.training.runs import NETWORK, STAGE1, STAGE2, losses, run_on


def test_two_stages_end_in_a_deployable_checkpoint(pictures: Path, tmp_path: Path) -> None:
    first = run_on(pictures, STAGE1, tmp_path / "one", validation=pictures.parent)
    with pytest.raises(CheckpointError, match="stage2"):
        load_model(first)
    config = dataclasses.replace(STAGE2, init=str(first))
    second = run_on(pictures, config, tmp_path / "two", validation=pictures.parent)
    before, after = load_file(first), load_file(second)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("lpe.")), "stage 2 leaves the LPE alone"
    assert not torch.equal(before["decoder.tail.weight"], after["decoder.tail.weight"])
    loaded = load_model(second)
    assert loaded.notes["stage"] == "stage2"
    assert loaded.network.lpe is not None
    with (tmp_path / "two" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(r["prior"]) > 0 for r in rows)
    assert [r["step"] for r in rows if r["psnr_y"]] == ["8", "16", "24"]


def test_training_learns(pictures: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(STAGE1, iterations=150, batch=8, learning_rate=2e-3, validate_every=75, ema_decay=0.9)
    run_on(pictures, config, tmp_path / "run", validation=pictures.parent)
    untrained = dataclasses.replace(config, iterations=1, learning_rate=1e-9, final_learning_rate=0.0)
    run_on(pictures, untrained, tmp_path / "untrained", validation=pictures.parent)

    def quality(folder: Path) -> float:
        with (folder / "log.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["psnr_y"])

    assert quality(tmp_path / "run") > quality(tmp_path / "untrained") + 0.2


@pytest.mark.parametrize(
    ("stage", "number", "raised"),
    [("stage1", signal.SIGINT, KeyboardInterrupt), ("stage2", signal.SIGTERM, SystemExit)],
)
def test_resume_is_exact(
    pictures: Path,
    tmp_path: Path,
    stage: str,
    number: signal.Signals,
    raised: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = STAGE1
    if stage == "stage2":
        config = dataclasses.replace(STAGE2, init=str(run_on(pictures, STAGE1, tmp_path / "one")))
    whole = load_file(run_on(pictures, config, tmp_path / "whole"))
    former = signal.getsignal(number)
    with monkeypatch.context() as patch:
        original = trainer_module.Trainer._train_step

        def interrupt_after_11(self: trainer_module.Trainer, batch: object) -> object:
            if self.step == 10:
                os.kill(os.getpid(), number)  # Ctrl-C, or SIGTERM of a cluster, in the middle of a step
            return original(self, batch)

        patch.setattr(trainer_module.Trainer, "_train_step", interrupt_after_11)
        with pytest.raises(raised):
            run_on(pictures, config, tmp_path / "cut")
    assert signal.getsignal(number) == former
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 11
    resumed = load_file(run_on(pictures, config, tmp_path / "cut", resume=True))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_dead_channels_are_revived_and_counted(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log counts them, and keeps its means although a step was left out."""
    original = trainer_module.Trainer._train_step

    def kill_and_skip(self: trainer_module.Trainer, batch: object) -> dict[str, float]:
        if self.step == 5:
            with torch.no_grad():
                self.network.decoder.body[1].bias[:3] = -1e3
        terms = original(self, batch)
        return {} if self.step == 7 else terms

    monkeypatch.setattr(trainer_module.Trainer, "_train_step", kill_and_skip)
    config = dataclasses.replace(STAGE1, iterations=20, validate_every=20, revive_every=6, learning_rate=1e-4)
    run_on(pictures, config, tmp_path / "run", validation=pictures.parent)
    with (tmp_path / "run" / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert int(row["revived"]) >= 3
    assert float(row["loss"]) > 0
    for weights in (load_file(tmp_path / "run" / "ema.safetensors"), torch.load(tmp_path / "run" / "state.pt")["network"]):
        assert weights["decoder.body.1.bias"].abs().max() < 10, "in the average, too"
    config = dataclasses.replace(config, revive_every=0)
    run_on(pictures, config, tmp_path / "without", validation=pictures.parent)
    assert load_file(tmp_path / "without" / "ema.safetensors")["decoder.body.1.bias"].abs().max() > 100


def test_a_larger_network_starts_from_a_smaller_one(pictures: Path, tmp_path: Path) -> None:
    """Before the first step, validation gives what it gave at the end of the smaller network's run."""
    first = run_on(pictures, STAGE1, tmp_path / "one", validation=pictures.parent)
    larger = {"network": NETWORK | {"width": 12, "depth": 4}, "init": str(first), "learning_rate": 1e-9, "iterations": 1}
    with pytest.raises(CheckpointError, match="has shape"):
        run_on(pictures, dataclasses.replace(STAGE1, **larger), tmp_path / "two")
    run_on(pictures, dataclasses.replace(STAGE1, **larger, grow=True), tmp_path / "two", validation=pictures.parent)

    def last_psnr(run: str) -> float:
        with (tmp_path / run / "log.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["psnr_y"])

    assert last_psnr("two") == pytest.approx(last_psnr("one"), abs=1e-3)
    second = run_on(pictures, dataclasses.replace(STAGE2, init=str(first)), tmp_path / "deployable")
    save_file(load_file(second), tmp_path / "bare.safetensors")  # no metadata: sizes are read off the shapes
    larger["init"] = str(tmp_path / "bare.safetensors")
    run_on(pictures, dataclasses.replace(STAGE1, **larger, grow=True), tmp_path / "three")


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_modulation_learns_at_its_own_rate(pictures: Path, tmp_path: Path, optimizer: str) -> None:
    config = dataclasses.replace(STAGE1, modulation_rate=0.0, optimizer=optimizer)
    weights = load_file(run_on(pictures, config, tmp_path / "run"))
    assert not weights["decoder.modulation.0.weight"].any()
    weights = load_file(run_on(pictures, dataclasses.replace(config, modulation_rate=0.02), tmp_path / "other"))
    assert weights["decoder.modulation.0.weight"].any()


def test_slices_by_time_go_on_where_they_stopped(pictures: Path, tmp_path: Path) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == 1
    run_on(pictures, STAGE1, tmp_path / "run", resume=True)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == STAGE1.iterations


def test_loss_spikes_are_left_out(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    original = trainer_module.stage_losses

    def spiky(*arguments, **options):
        result = original(*arguments, **options)
        spiky.calls += 1
        return dataclasses.replace(result, total=result.total * (float("nan") if spiky.calls == 5 else 1.0))

    spiky.calls = 0
    monkeypatch.setattr(trainer_module, "stage_losses", spiky)
    with caplog.at_level(logging.WARNING):
        weights = load_file(run_on(pictures, STAGE1, tmp_path / "run"))
    assert caplog.text.count("left out") == 1
    assert all(bool(torch.isfinite(v).all()) for v in weights.values())
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["skipped"] == 1


def test_a_nan_in_the_network_leaves_no_trace(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches neither the weights, nor the running statistics of the latent prior, nor the log."""
    original = trainer_module.stage_losses

    def poisoned(network, config, lr, hr, *rest, **options):
        poisoned.calls += 1
        return original(network, config, lr, hr * float("nan") if poisoned.calls == 5 else hr, *rest, **options)

    poisoned.calls = 0
    monkeypatch.setattr(trainer_module, "stage_losses", poisoned)
    weights = load_file(run_on(pictures, STAGE1, tmp_path / "run", validation=pictures.parent))
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["skipped"] == 1
    assert all(bool(torch.isfinite(v).all()) for v in weights.values())
    assert all(np.isfinite(float(loss)) for loss in losses(tmp_path / "run"))


def test_finite_spikes_are_left_out_and_divergence_stops_the_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer_module.stage_losses

    def exploding(*arguments, **options):
        result = original(*arguments, **options)
        exploding.calls += 1
        return dataclasses.replace(result, total=result.total * (1e3 if exploding.calls > 205 else 1.0))

    exploding.calls = 0
    monkeypatch.setattr(trainer_module, "stage_losses", exploding)
    with pytest.raises(TrainingError, match="diverged"):
        run_on(pictures, dataclasses.replace(STAGE1, iterations=400, validate_every=400), tmp_path / "run")
    assert exploding.calls == 205 + trainer_module.MAX_SKIPPED


def test_resume_on_other_pictures_is_refused(pictures: Path, tmp_path: Path) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    (tmp_path / "more").mkdir()
    cv2.imwrite(str(tmp_path / "more" / "x.png"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(TrainingError, match="other pictures"):
        train(dataclasses.replace(STAGE1, data=(str(pictures), str(tmp_path / "more"))), tmp_path / "run", resume=True)


def test_a_damaged_state_is_named(pictures: Path, tmp_path: Path) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state\.pt is damaged"):
        run_on(pictures, STAGE1, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", "3"),
        ("config", 3),
        ("config", "["),
        ("config", "[" * 100_000),
        ("config", "5"),
        ("network", {}),
        ("ema", {"a": 1}),
        ("optimizers", None),
        ("sums", None),
        ("network", 5),
    ],
)
def test_a_state_of_strange_values_is_named(pictures: Path, tmp_path: Path, field: str, value: object) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True) | {field: value}
    if value is None:
        del state[field]
    torch.save(state, tmp_path / "run" / "state.pt")
    with pytest.raises(TrainingError, match=r"state\.pt is damaged"):
        run_on(pictures, STAGE1, tmp_path / "run", resume=True)


def test_options_that_cannot_be_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="grow starts from a smaller network"):
        run_on(pictures, dataclasses.replace(STAGE1, grow=True), tmp_path / "run")
    with pytest.raises(TrainingError, match=r"validation folder .* holds no"):
        run_on(pictures, STAGE1, tmp_path / "run", validation=tmp_path)
    with pytest.raises(TrainingError, match="does not exist"):
        train(dataclasses.replace(STAGE1, data=("nowhere",)), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is written before all fits"
    with pytest.raises(TrainingError, match="nothing to train on"):
        train(STAGE1, tmp_path / "run")
    with pytest.raises(TrainingError, match="device must be"):
        run_on(pictures, STAGE1, tmp_path / "run", device="gpu")
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot write the run folder"):
        run_on(pictures, STAGE1, tmp_path / "file" / "run")
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="belongs to no part"):
        run_on(pictures, dataclasses.replace(STAGE1, init=str(tmp_path / "other.safetensors")), tmp_path / "run")


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_full_disk_keeps_the_previous_checkpoint(
    pictures: Path, tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after `writes` of these files: config.json, ema.safetensors, state.pt."""
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != "log.csv"}
    (tmp_path / "run" / ".0123456789ab.tmp").write_bytes(b"of a run that was killed")
    done = 0

    def full_disk(handle: int) -> None:
        nonlocal done
        done += 1
        if done > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("rdsr.atomic.os.fsync", full_disk)
        with pytest.raises(TrainingError, match="No space left"):
            run_on(pictures, STAGE1, tmp_path / "run", resume=True, seconds=1e-9)
    assert (tmp_path / "run" / "state.pt").read_bytes() == before["state.pt"]
    assert set(before) == {path.name for path in (tmp_path / "run").iterdir() if path.name != "log.csv"}
    run_on(pictures, STAGE1, tmp_path / "run", resume=True)


def test_a_log_cut_short_does_not_stop_resuming(pictures: Path, tmp_path: Path) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9, validation=pictures.parent)
    with (tmp_path / "run" / "log.csv").open("a") as file:
        file.write("8,0.0")
    run_on(pictures, STAGE1, tmp_path / "run", resume=True, validation=pictures.parent)
    with (tmp_path / "run" / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["8", "16", "24"]


@pytest.mark.parametrize(
    "text", [b"step,psnr_y\nx,1\n", b"a\n1\n", b"\xff\xfe\xfd\n1\n", b"step,psnr_y\n" + b"1" * 200_000 + b",1\n"]
)
def test_a_damaged_log_is_named(pictures: Path, tmp_path: Path, text: bytes) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    (tmp_path / "run" / "log.csv").write_bytes(text)
    with pytest.raises(TrainingError, match=r"log\.csv is damaged"):
        run_on(pictures, STAGE1, tmp_path / "run", resume=True)


def test_resume_under_another_config_names_the_fields(pictures: Path, tmp_path: Path) -> None:
    run_on(pictures, STAGE1, tmp_path / "run", seconds=1e-9)
    with pytest.raises(TrainingError, match=r"batch: 2 there, 3 here"):
        run_on(pictures, dataclasses.replace(STAGE1, batch=3), tmp_path / "run", resume=True)
    with pytest.raises(TrainingError, match="--resume"):
        run_on(pictures, STAGE1, tmp_path / "run")
    with pytest.raises(TrainingError, match="nothing to resume"):
        run_on(pictures, STAGE1, tmp_path / "other", resume=True)


def test_stage2_needs_a_stage1_checkpoint_of_its_size(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="init"):
        run_on(pictures, STAGE2, tmp_path / "two")
    first = run_on(pictures, STAGE1, tmp_path / "one", seconds=1e-9)
    wider = dataclasses.replace(STAGE2, network=NETWORK | {"width": 12}, init=str(first))
    with pytest.raises(CheckpointError, match=r"decoder\..* has shape"):
        run_on(pictures, wider, tmp_path / "two")
    weights = {key: value.double() for key, value in load_file(first).items()}
    save_file(weights | {"decoder.tail.bias": weights["decoder.tail.bias"] + 1e39}, tmp_path / "large.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.tail\.bias holds values beyond the range of float32"):
        run_on(pictures, dataclasses.replace(STAGE2, init=str(tmp_path / "large.safetensors")), tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing field"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\nlerning_rate = 1.0", "unknown field lerning_rate"),
        ("stage = 'stage1'\npreset = 'huge'\niterations = 5", "preset must be one of base, small, tiny"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 0", "iterations must be a whole number from 1"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\nema_decay = 1.0", "ema_decay must be a number from"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\npatch_sizes = [4]", "patch_sizes"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\n[network]\nwidht = 3", "unknown field widht"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\n[network]\nwidth = 0", "width must be"),
        ("stage = 'stage1'\npreset = ['tiny']\niterations = 5", "preset must be a string"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\noptimizer = 'sgd'", "optimizer must be one of muon, adam"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\npixel_loss = 'l3'", "pixel_loss must be one of l1, l2"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\ngrow = 1", "grow must be true or false"),
        (
            "stage = 'stage1'\npreset = 'tiny'\niterations = 5\nmodulation_rate = -1.0",
            "modulation_rate must be a number from",
        ),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\npatch_sizes = 48", "patch_sizes must be a list"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\ncompile = 'no'", "compile must be true or false"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\n[network]\nbranches = ['exapnd']", "'exapnd'"),
        (
            "stage = 'stage1'\npreset = 'tiny'\niterations = 5\n[network]\nmodulation_depths = 3",
            "modulation_depths must be a list",
        ),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\n[network]\nbeta_start = 'x'", "beta_start"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\n[network]\nlpe_depth = 0", "lpe_depth must be at least 1"),
        ("stage = 'stage1'\npreset = 'tiny'\niterations = 5\ndata = [3]", "data must be a list of folders"),
        ("stage = ", "not valid TOML"),
    ],
)
def test_bad_configs_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(TrainingError, match=words):
        TrainConfig.load(tmp_path / "config.toml")


def test_presets_are_found_by_name_and_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrainConfig.load(find_config(Path("tiny-stage2"))).preset == "tiny"
    monkeypatch.chdir(tmp_path)
    Path("tiny-stage2").write_text("")
    assert find_config(Path("tiny-stage2")) == Path("tiny-stage2")
    with pytest.raises(TrainingError, match="cannot read the config huge-stage1"):
        TrainConfig.load(find_config(Path("huge-stage1")))


def test_shipped_presets_are_valid() -> None:
    folder = Path(trainer_module.__file__).parent / "presets"
    configs = sorted(folder.glob("*.toml"))
    assert configs
    for path in configs:
        config = TrainConfig.load(path)
        if config.stage == "qat":
            assert path.name == "qat.toml", "one for all sizes"
            continue
        step = "grown" if config.grow else "finish" if config.pixel_loss == "l2" else config.stage
        names = {f"{config.preset}-{step}.toml"} | (
            {f"{config.preset}-{way}.toml" for way in ("long", "gpu")} if step == "stage2" else set()
        )
        assert path.name in names


def test_train_commands(pictures: Path, tmp_path: Path) -> None:
    def toml(name: str, config: TrainConfig) -> Path:
        values = {k: v for k, v in config.to_dict().items() if k != "network"}
        lines = [f"{k} = {json.dumps(v)}" for k, v in values.items()]
        lines += ["[network]", *(f"{k} = {json.dumps(v)}" for k, v in config.network.items())]
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    short = {"iterations": 2, "validate_every": 1}
    one = toml("one.toml", dataclasses.replace(STAGE1, **short))
    two = toml("two.toml", dataclasses.replace(STAGE2, **short))
    runner = CliRunner()
    common = ["--data", str(pictures), "--validation", str(pictures.parent)]
    first = runner.invoke(app, ["train", "stage1", "--config", str(one), *common, "-o", str(tmp_path / "1")])
    assert first.exit_code == 0, first.output
    slice_of = ["train", "stage1", "--config", str(one), *common, "-o", str(tmp_path / "s"), "--seconds", "1"]
    longer = toml("one.toml", dataclasses.replace(STAGE1, iterations=100_000))
    part = runner.invoke(app, slice_of)
    assert part.exit_code == 0, part.output
    assert "of 100000; --resume goes on" in part.stdout
    assert longer == one
    arguments = ["train", "stage2", "--config", str(two), "--init", str(tmp_path / "1" / "ema.safetensors"), *common]
    second = runner.invoke(app, [*arguments, "-o", str(tmp_path / "2")])
    assert second.exit_code == 0, second.output
    assert load_model(tmp_path / "2" / "ema.safetensors").arch == "rdsr"
    wrong = runner.invoke(app, ["train", "stage2", "--config", str(one), *common, "-o", str(tmp_path / "3")])
    assert wrong.exit_code == 2
    assert "describes stage1" in wrong.stderr
    changed = runner.invoke(
        app, [*slice_of, "--set", "batch=3", "--set", "pixel_loss=l2", "--set", "iterations=1", "--resume"]
    )
    assert changed.exit_code == 2
    for words in ("batch: 2 there, 3 here", "'l1' there, 'l2' here", "100000 there, 1 here"):
        assert words in changed.stderr
    assert "FIELD=VALUE" in runner.invoke(app, [*slice_of, "--set", "batch"]).stderr
