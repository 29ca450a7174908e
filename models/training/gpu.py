"""Half an hour of a GPU on a bare machine: pictures packed beforehand, one run cut into slices, results that can be carried.

`python -m rdsr.models.training.gpu pack` on this machine, `… slice` on the other, the same command again for each slice;
gpu_slice.sh beside this file calls it from a checkout that nobody has installed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import random
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import TrainingError

__all__ = ["main", "pack", "train_slice"]

MEGABYTE = 2**20
_PART = 15 * MEGABYTE
"""A carrier takes files of 16 MiB at most."""
_PROBE_STEPS = 300
_RESERVE_SECONDS = 45.0
"""Of a slice, for loading, the last validation and writing."""
_SMALLEST_CROP = 256
"""Pixels a side: patches of 64 LR pixels at ×4."""
Rgb = NDArray[np.uint8]


def pack(
    target: Path, *, data: Path, teacher: Path, validation: Path, start: Path | None = None, megabytes: float = 36.0
) -> str:
    """Write a tar of pictures: a crop of every original and of its teacher's picture, as large as `megabytes` allow.

    Crops are JPEGs of quality 92, 4:4:4, whose error is a fraction of a grey level in LR; the same every time. With some
    validation originals, and `start`, the weights to start from. Raises `TrainingError` for a missing folder or where the
    pictures do not fit. Returns a sentence that says what is in it.
    """
    from .data import find_pictures

    teachers = {path.relative_to(teacher).with_suffix(""): path for path in find_pictures([teacher])}
    originals = {path.relative_to(data).with_suffix(""): path for path in find_pictures([data])}
    kept = sorted((validation / "HR").glob("*.png"))[::4]
    if not kept:
        raise TrainingError(f"the validation folder {validation} holds no HR/*.png")
    files = {f"val/HR/{path.name}": path.read_bytes() for path in kept}
    if start is not None:
        files["start.safetensors"] = start.read_bytes()
    room = megabytes * MEGABYTE - sum(map(_size_in_tar, files.values())) - 20 * 512
    side = 1024
    while True:
        crops = _crops(originals, teachers, side)
        size = sum(map(_size_in_tar, crops.values()))
        if size <= room:
            break
        side = min(side - 4, int(side * (max(room, 0) / size) ** 0.5)) // 4 * 4
        if side < _SMALLEST_CROP:
            raise TrainingError(f"{megabytes} MiB cannot hold {len(originals)} pictures of {_SMALLEST_CROP} pixels a side")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    with tarfile.open(temporary, "w") as archive:
        for name, content in sorted((files | crops).items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    temporary.replace(target)
    count = sum(name.startswith("train/") for name in crops)
    return f"{target}: {count} pictures of up to {side}×{side}, {target.stat().st_size / MEGABYTE:.1f} MiB"


def _crops(originals: Mapping[Path, Path], teachers: Mapping[Path, Path], side: int) -> dict[str, bytes]:
    """File name in the archive → JPEG of at most `side` pixels a side, original and teacher's cut at the same place."""
    from ..degradation import crop_to_multiple
    from .data import read_rgb

    files = {}
    for name, path in originals.items():
        picture = read_rgb(path)
        if picture is None or min(picture.shape[:2]) < _SMALLEST_CROP:
            continue
        picture = crop_to_multiple(picture, 4)
        height, width = picture.shape[:2]
        rng = random.Random(str(name))
        top, left = (4 * rng.randrange(max(0, length - side) // 4 + 1) for length in (height, width))
        cut = slice(top, min(height, top + side)), slice(left, min(width, left + side))
        files[f"train/{name}.jpg"] = _jpeg(picture[cut])
        taught = read_rgb(teachers[name]) if name in teachers else None
        if taught is not None:
            files[f"teacher/{name}.jpg"] = _jpeg(taught[cut])
    return files


def _jpeg(picture: Rgb) -> bytes:
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92, *sampling])
    assert done, "a picture in memory can be compressed"
    return data.tobytes()


def _size_in_tar(content: bytes) -> int:
    return 512 + -(-len(content) // 512) * 512


def train_slice(
    archive: Path,
    work: Path,
    out: Path,
    *,
    config: Path,
    slices: int = 3,
    minutes: float = 9.0,
    device: str = "auto",
    state: Path | None = None,
) -> str:
    """Go on with the run in `work` for one slice, and leave what is to be carried back in `out`.

    `state`: an `out` that was carried here from another machine, to go on from.

    The first slice unpacks the archive, times some steps, and sets the iterations to what `slices` of `minutes` will hold.
    Raises `TrainingError` and `CheckpointError`.
    """
    from .config import TrainConfig, find_config
    from .run import train

    began = time.monotonic()
    pictures, run = work / "pictures", work / "run"
    if not pictures.is_dir():
        unpacking = work / "unpacking"
        shutil.rmtree(unpacking, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(unpacking, filter="data")
        unpacking.rename(pictures)
    if state is not None and not (run / "state.pt").is_file():
        _restore(state, run)
    start = pictures / "start.safetensors"
    where = {"data": [str(pictures / "train")], "teacher": [str(pictures / "teacher")]}
    if not (run / "config.json").is_file():
        values = TrainConfig.load(find_config(config), **where).to_dict()
        if start.is_file():
            values["init"] = str(start)
        iterations = _fitting(
            TrainConfig.from_values(values, str(config)), work, slices * (minutes * 60 - _RESERVE_SECONDS), device
        )
        every = max(1, iterations // (4 * slices))
        settled = TrainConfig.from_values(values | {"iterations": iterations, "validate_every": every}, str(config))
    else:
        settled = TrainConfig.from_values(json.loads((run / "config.json").read_text()) | where, str(run))
    left = minutes * 60 - (time.monotonic() - began) - _RESERVE_SECONDS
    train(
        settled,
        run,
        resume=(run / "state.pt").is_file(),
        validation=pictures / "val",
        device=device,
        seconds=max(1.0, left),
    )
    _leave(run, out)
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    import torch

    where_run = "on a GPU" if device != "cpu" and torch.cuda.is_available() else "on the CPU"
    if not rows:
        return f"{where_run}: no row of the log yet, of {settled.iterations} steps"
    waited = f"{float(rows[-1]['data_wait_share']):.1%} of the time waiting for data"
    return f"{where_run}: step {rows[-1]['step']} of {settled.iterations}, loss {rows[-1]['loss']}, {waited}"


def _fitting(config: object, work: Path, seconds: float, device: str) -> int:
    """Iterations that fit into so many seconds, by the time of the second half of a short run."""
    import dataclasses

    from .config import TrainConfig
    from .run import train

    assert isinstance(config, TrainConfig)
    probe = work / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    began = time.monotonic()
    rows: list[float] = []
    # Without steps of the prior alone, which are the short ones.
    short = dataclasses.replace(config, iterations=_PROBE_STEPS, prior_steps=0)
    train(short, probe, device=device, progress=lambda step, row: rows.append(time.monotonic()))
    shutil.rmtree(probe)
    per_step = (rows[-1] - rows[0]) / (_PROBE_STEPS - 100)  # the first hundred warm up
    return max(_PROBE_STEPS, int((seconds - (time.monotonic() - began)) / per_step))


def _leave(run: Path, out: Path) -> None:
    """The best weights, the log, and everything to resume in parts that can be carried."""
    out.mkdir(parents=True, exist_ok=True)
    best = run / "best.safetensors"
    shutil.copy(best if best.is_file() else run / "ema.safetensors", out / "best.safetensors")
    shutil.copy(run / "log.csv", out / "log.csv")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("state.pt", "config.json", "ema.safetensors"):
            archive.add(run / name, name)
    for old in out.glob("state.part*"):
        old.unlink()
    data = content.getvalue()
    for number, begin in enumerate(range(0, len(data), _PART)):
        (out / f"state.part{number:02d}").write_bytes(data[begin : begin + _PART])


def _restore(carried: Path, run: Path) -> None:
    """Put the parts that `_leave` made together again."""
    parts = sorted(carried.glob("state.part*"))
    if not parts:
        raise TrainingError(f"{carried} holds no state.part* to go on from")
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        archive.extractall(run, filter="data")
    shutil.copy(carried / "log.csv", run / "log.csv")
    shutil.copy(carried / "best.safetensors", run / "best.safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `pack` and `slice`; argparse alone, as a bare machine may have nothing else."""
    parser = argparse.ArgumentParser(prog="python -m rdsr.models.training.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the archive")
    packing.add_argument("target", type=Path)
    for name in ("data", "teacher", "validation"):
        packing.add_argument(f"--{name}", type=Path, required=True)
    packing.add_argument("--start", type=Path, help="checkpoint to start from")
    packing.add_argument("--megabytes", type=float, default=36.0, help="MiB at most (default 36)")
    slicing = commands.add_parser("slice", help="train for one slice")
    slicing.add_argument("archive", type=Path)
    slicing.add_argument("--work", type=Path, required=True, help="folder that stays between slices")
    slicing.add_argument("--out", type=Path, required=True, help="folder to carry back")
    slicing.add_argument("--config", type=Path, default=Path("small-gpu"), help="TOML file or preset (default small-gpu)")
    slicing.add_argument("--slices", type=int, default=3)
    slicing.add_argument("--minutes", type=float, default=9.0)
    slicing.add_argument("--device", default="auto", help="cuda to refuse anything slower")
    slicing.add_argument("--state", type=Path, help="an OUT carried from another machine, to go on from")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    values = {key: value for key, value in vars(options).items() if key != "command"}
    from ..errors import CheckpointError

    try:
        if options.command == "pack":
            sentence = pack(values.pop("target"), **values)
        else:
            sentence = train_slice(values.pop("archive"), values.pop("work"), values.pop("out"), **values)
    except (TrainingError, CheckpointError, tarfile.TarError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{sentence}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
