"""Train on a borrowed GPU for half an hour: pack the pictures, train one run in slices, carry the results back.

`python -m rdsr.models.training.gpu pack` on this machine, `… slice` on the other; the same command again continues the run.
gpu_slice.sh beside this file calls it from a checkout that is not installed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
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
import torch

from ...atomic import atomic_write
from ...errors import RdsrError
from ..downscaling import crop_to_multiple
from .config import TrainConfig, find_config
from .data import Rgb, named_pictures, read_rgb
from .errors import TrainingError
from .run import train

__all__ = ["main", "pack", "train_slice"]

MEGABYTE = 2**20
_PART = 15 * MEGABYTE  # the state is cut into parts, because some ways to copy files allow 16 MiB at most
_PROBE_STEPS = 300
_RESERVE_SECONDS = 45.0  # of a slice, for loading, the last validation and writing
_SMALLEST_CROP = 256  # pixels a side: patches of 64 LR pixels at ×4


def pack(
    target: Path, *, data: Path, teacher: Path, validation: Path, start: Path | None = None, megabytes: float = 36.0
) -> str:
    """Write a tar of pictures: crops of all originals and their teacher's pictures, as large as `megabytes` (MiB) allow.

    It also holds every fourth validation original and `start`, the weights to start from. Crops are JPEGs of quality 92,
    4:4:4, whose error is a fraction of a grey level in LR. The same input gives the same bytes. Returns a sentence about the
    content. Raises `TrainingError` for a missing folder or if the pictures do not fit, and `OutputError`.
    """
    teachers, originals = dict(named_pictures([teacher])), dict(named_pictures([data]))
    kept = sorted((validation / "HR").glob("*.png"))[::4]
    if not kept:
        raise TrainingError(f"the validation folder {validation} holds no HR/*.png")
    files = {f"val/HR/{path.name}": path.read_bytes() for path in kept}
    if start is not None:
        files["start.safetensors"] = start.read_bytes()
    room = megabytes * MEGABYTE - _size_in_tar(files) - 20 * 512
    side = 1024
    crops = _crops(originals, teachers, side)
    while (size := _size_in_tar(crops)) > room:
        side = min(side - 4, int(side * (max(room, 0) / size) ** 0.5)) // 4 * 4
        if side < _SMALLEST_CROP:
            raise TrainingError(f"{megabytes} MiB cannot hold {len(originals)} pictures of {_SMALLEST_CROP} pixels a side")
        crops = _crops(originals, teachers, side)
    content = _tar(dict(sorted((files | crops).items())))
    atomic_write(target, content)
    count = sum(name.startswith("train/") for name in crops)
    return f"{target}: {count} pictures of up to {side}×{side}, {len(content) / MEGABYTE:.1f} MiB"


def _crops(originals: dict[Path, Path], teachers: dict[Path, Path], side: int) -> dict[str, bytes]:
    """File name in the archive → JPEG of at most `side` pixels a side; original and teacher's are cut at the same place.

    Pictures that cannot be used are taken out of `originals` and `teachers`, so that each is named once.
    """
    files = {}
    for name, path in list(originals.items()):
        picture = read_rgb(path)
        if picture is None or min(picture.shape[:2]) < _SMALLEST_CROP:
            del originals[name]
            continue
        picture = crop_to_multiple(picture, 4)
        height, width = picture.shape[:2]
        rng = random.Random(str(name))
        top, left = (4 * rng.randrange(max(0, length - side) // 4 + 1) for length in (height, width))
        cut = slice(top, min(height, top + side)), slice(left, min(width, left + side))
        files[f"train/{name}.jpg"] = _jpeg(picture[cut])
        taught = read_rgb(teachers[name]) if name in teachers else None
        if taught is None:
            teachers.pop(name, None)
        elif taught.shape != picture.shape:
            raise TrainingError(f"the teacher's picture {teachers[name]} has another size than its original {path}")
        else:
            files[f"teacher/{name}.jpg"] = _jpeg(taught[cut])
    return files


def _jpeg(picture: Rgb) -> bytes:
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92, *sampling])
    assert done, "a picture in memory can be compressed"
    return data.tobytes()


def _size_in_tar(files: Mapping[str, bytes]) -> int:
    return sum(512 + -(-len(content) // 512) * 512 for content in files.values())


def _tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of files, without owners or times: the same files give the same bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


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
    """Continue the run in `work` for one slice and write what must be carried back to `out`. Returns a sentence.

    `state`: an `out` that was carried here from another machine, to continue from. The first slice unpacks the archive,
    times some steps, and sets the iterations to the number that `slices` of `minutes` can hold.
    Raises `TrainingError`, `CheckpointError`, `tarfile.TarError` and `OSError`.
    """
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
    places: dict[str, object] = {"data": [str(pictures / "train")], "teacher": [str(pictures / "teacher")]}
    if (run / "config.json").is_file():
        settled = TrainConfig.from_values(json.loads((run / "config.json").read_text()) | places, str(run))
    else:
        if (pictures / "start.safetensors").is_file():
            places["init"] = str(pictures / "start.safetensors")
        loaded = TrainConfig.load(find_config(config), **places)
        iterations = _fitting(loaded, work, slices * (minutes * 60 - _RESERVE_SECONDS), device)
        every = max(1, iterations // (4 * slices))
        settled = dataclasses.replace(loaded, iterations=iterations, validate_every=every)
    left = max(1.0, minutes * 60 - (time.monotonic() - began) - _RESERVE_SECONDS)
    resume = (run / "state.pt").is_file()
    train(settled, run, resume=resume, validation=pictures / "val", device=device, seconds=left)
    _leave(run, out)
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    machine = "on a GPU" if device != "cpu" and torch.cuda.is_available() else "on the CPU"
    if not rows:
        return f"{machine}: no row of the log yet, of {settled.iterations} steps"
    waited = f"{float(rows[-1]['data_wait_share']):.1%} of the time waiting for data"
    return f"{machine}: step {rows[-1]['step']} of {settled.iterations}, loss {rows[-1]['loss']}, {waited}"


def _fitting(config: TrainConfig, work: Path, seconds: float, device: str) -> int:
    """Number of iterations that fit into `seconds`, from the time of the later steps of a short run."""
    probe = work / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    began = time.monotonic()
    rows: list[float] = []
    short = dataclasses.replace(config, iterations=_PROBE_STEPS, prior_steps=0)  # without the steps that take less time
    train(short, probe, device=device, progress=lambda step, row: rows.append(time.monotonic()))
    shutil.rmtree(probe)
    per_step = (rows[-1] - rows[0]) / (_PROBE_STEPS - 100)  # the first hundred warm up
    return max(_PROBE_STEPS, int((seconds - (time.monotonic() - began)) / per_step))


def _leave(run: Path, out: Path) -> None:
    """Write the best weights, the log, and everything needed to resume, in parts that can be carried."""
    out.mkdir(parents=True, exist_ok=True)
    best = run / "best.safetensors"
    shutil.copy(best if best.is_file() else run / "ema.safetensors", out / "best.safetensors")
    shutil.copy(run / "log.csv", out / "log.csv")
    data = _tar({name: (run / name).read_bytes() for name in ("state.pt", "config.json", "ema.safetensors")})
    for old in out.glob("state.part*"):
        old.unlink()
    for number, begin in enumerate(range(0, len(data), _PART)):
        (out / f"state.part{number:02d}").write_bytes(data[begin : begin + _PART])


def _restore(carried: Path, run: Path) -> None:
    """Join the parts that `_leave` wrote, and unpack them into the run folder."""
    parts = sorted(carried.glob("state.part*"))
    if not parts:
        raise TrainingError(f"{carried} holds no state.part* to continue from")
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        archive.extractall(run, filter="data")
    for name in ("log.csv", "best.safetensors"):
        shutil.copy(carried / name, run / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `pack` and `slice`. It uses argparse, because a bare machine has no typer."""
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
    slicing.add_argument("--work", type=Path, required=True, help="folder that is kept between slices")
    slicing.add_argument("--out", type=Path, required=True, help="folder to carry back")
    slicing.add_argument("--config", type=Path, default=Path("small-gpu"), help="TOML file or preset (default small-gpu)")
    slicing.add_argument("--slices", type=int, default=3)
    slicing.add_argument("--minutes", type=float, default=9.0)
    slicing.add_argument("--device", default="auto", help="auto, cpu or cuda; cuda refuses to train on a CPU")
    slicing.add_argument("--state", type=Path, help="an OUT from another machine, to continue from")
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    command = options.pop("command")
    try:
        sentence = pack(**options) if command == "pack" else train_slice(**options)
    except (RdsrError, tarfile.TarError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{sentence}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
