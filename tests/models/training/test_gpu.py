"""Half an hour of a GPU, rehearsed on the CPU: the archive, slices on a bare machine, and the files carried back."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rdsr.models.errors import CheckpointError
from rdsr.models.registry import load_model
from rdsr.models.training.errors import TrainingError
from rdsr.models.training.gpu import pack
from rdsr.tests.conftest import CONFIG, random_network, write_checkpoint

TOML = f"""
stage = "stage2"
preset = "tiny"
iterations = 1
batch = 2
patch_sizes = [12]
warmup = 1
network = {json.dumps(CONFIG.to_dict()).replace(": ", " = ").replace("null", "0")}
"""
# Packages that a machine with PyTorch's image lacks.
BARE = """import sys
sys.modules |= dict.fromkeys(("openvino", "onnxruntime", "onnx", "onnxsim", "typer", "rich", "matplotlib"))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three originals of 300 to 600 pixels, one with a teacher's picture, and a validation set."""
    root = tmp_path_factory.mktemp("data")
    for name in ("data/sub", "teacher/sub", "validation/HR"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, side in enumerate((300, 401, 600)):
        picture = cv2.GaussianBlur(rng.integers(0, 256, (side, side + 50, 3), dtype=np.uint8), (0, 0), 3)
        cv2.imwrite(str(root / f"data/sub/{index}.png"), picture)
        if index == 2:
            height, width = (length - length % 4 for length in picture.shape[:2])
            cv2.imwrite(str(root / f"teacher/sub/{index}.jpg"), picture[:height, :width])
    cv2.imwrite(str(root / "validation/HR/a.png"), picture[:64, :64])
    return {name: root / name for name in ("data", "teacher", "validation")}


def test_the_archive_is_as_small_as_asked_and_always_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert "3 pictures" in pack(tmp_path / f"{name}.tar", **folders, megabytes=0.3)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "a.tar").stat().st_size <= 0.3 * 2**20
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = sorted(archive.getnames())
        archive.extractall(tmp_path / "out", filter="data")
    assert names == ["teacher/sub/2.jpg", *(f"train/sub/{i}.jpg" for i in range(3)), "val/HR/a.png"]
    original, taught = (cv2.imread(str(tmp_path / "out" / f"{kind}/sub/2.jpg")) for kind in ("train", "teacher"))
    assert original.shape == taught.shape
    assert np.abs(original.astype(int) - taught).mean() < 3, "cut at the same place"
    with pytest.raises(TrainingError, match="cannot hold"):
        pack(tmp_path / "c.tar", **folders, megabytes=0.05)
    assert not (tmp_path / "c.tar").exists()


def test_slices_go_on_where_the_last_one_stopped(folders: dict[str, Path], tmp_path: Path) -> None:
    start = write_checkpoint(tmp_path / "start.safetensors", random_network())
    pack(tmp_path / "pack.tar", **folders, start=start, megabytes=0.6)
    (tmp_path / "config.toml").write_text(TOML)

    def slice_once(minutes: float) -> str:
        command = f"{BARE}\nfrom rdsr.models.training import gpu\ngpu._PROBE_STEPS = 120\nsys.exit(gpu.main(sys.argv[1:]))"
        paths = ["slice", tmp_path / "pack.tar", "--work", tmp_path / "work", "--out", tmp_path / "out"]
        options = ["--config", tmp_path / "config.toml", "--minutes", str(minutes), "--slices", "2", "--device", "cpu"]
        arguments = [sys.executable, "-c", command, *map(str, [*paths, *options])]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        return result.stdout

    slice_once(0.8)
    settled = json.loads((tmp_path / "work/run/config.json").read_text())
    steps = [torch.load(tmp_path / "work/run/state.pt", weights_only=True)["step"]]
    for minutes in (0.8, 600):  # on a slow machine the short ones are a second of training
        if steps[-1] == settled["iterations"]:
            break
        slice_once(minutes)
        assert json.loads((tmp_path / "work/run/config.json").read_text()) == settled, "iterations are set once"
        steps.append(torch.load(tmp_path / "work/run/state.pt", weights_only=True)["step"])
        assert steps[-1] > steps[-2]
    assert steps[-1] == settled["iterations"]
    parts = sorted((tmp_path / "out").glob("state.part*"))
    (tmp_path / "state.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(tmp_path / "state.tar") as archive:
        assert set(archive.getnames()) == {"state.pt", "config.json", "ema.safetensors"}
    assert load_model(tmp_path / "out/best.safetensors").config == CONFIG
    with (tmp_path / "out/log.csv").open() as file:
        assert [row for row in csv.DictReader(file) if row["psnr_y"]], "validated on the packed originals"
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "out/log.csv")
