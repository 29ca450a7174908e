"""Ship the result of the family's training, weights and model card, if it is better on the validation set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch

from ...atomic import atomic_write
from ...export.exporter import ExportOptions, export_checkpoint
from ...models.checkpoint import read_checkpoint, save_checkpoint
from ...models.degradation import TEST_DEGRADATIONS
from ...models.registry import LoadedModel, load_model, resolve_checkpoint
from ...models.training.config import TrainConfig, find_config
from ...models.training.errors import TrainingError
from ...models.training.family import FamilyPlan, Member, Run, finished_runs
from ...models.training.family_runner import adopted
from ...models.training.stages import predict_with
from ...models.training.validation import Pair, load_pairs, mean_psnr_y
from ...runtime.files import dump_json
from ..errors import BenchmarkError
from ..latency.flops import convolution_gflops
from ..quality.datasets import BICUBIC, find_dataset
from ..quality.measure import QualityRow, bundle, measure

__all__ = ["adopt_weights", "take_member"]

_LEAST_RISE_DB = 0.001
_NOT_LISTED = (
    "data", "teacher", "teacher_weight", "init", "iterations", "batch", "patch_sizes", "pixel_loss",
    "validate_every", "checkpoint_minutes", "compile",
)  # fmt: skip
"""Fields that a card shows elsewhere, or that do not decide what comes out."""
Rows = list[tuple[QualityRow, QualityRow]]
"""(float32, int8) of each data set and degradation."""


def take_member(
    plan: FamilyPlan,
    name: str,
    runs: Path,
    *,
    tests: Sequence[Path] = (),
    weights: Path | None = None,
    threads: int,
    progress: Callable[[str], None] = lambda step: None,
) -> str:
    """Put the best finished weights of a member, and their card, into `weights`. Returns a sentence with the outcome.

    It writes nothing unless PSNR-Y of the validation set is higher than that of the weights there in float or in int8, and
    lower in neither.
    `tests`: data sets whose figures go on the card. Raises `TrainingError` for an unknown member or a missing data set,
    `BenchmarkError` if the weights do not export or a data set is at fault.
    """
    torch.set_num_threads(threads)
    member = plan.member(name)
    datasets = [Path(plan.validation), *tests]
    if missing := [folder for folder in datasets if not folder.is_dir()]:
        raise TrainingError(f"the data set {missing[0]} does not exist")
    finished = finished_runs(member, runs)
    quantized = [run for run in finished if run.kind == "qat"]
    if not quantized:
        return f"nothing to take: no quantization-aware run of {name} has finished in {runs}"
    best = max(quantized, key=lambda run: run.state().best or 0.0)
    photo = best.config()["degradation"] == "photo"
    result = load_model(best.result())
    scale = result.network.scale
    target = (weights or Path(__file__).parents[2] / "models" / "weights") / f"{_stem(name, scale)}.safetensors"
    pairs = load_pairs(datasets[0], scale, photo=photo)
    with tempfile.TemporaryDirectory() as scratch:
        candidate = _compacted(result, Path(scratch) / target.name)
        progress(f"measuring {best.label}")
        new = _validate(load_model(candidate).network, pairs, "stage2", "qat")
        figures = f"{datasets[0].name} {new[0]:.3f} dB (int8 {new[1]:.3f})"
        if target.is_file():
            before = _validate(load_model(target).network, pairs, "stage2", "qat")
            figures += f", shipped {before[0]:.3f} (int8 {before[1]:.3f})"
            rises = [a - b for a, b in zip(new, before, strict=True)]
            if min(rises) < 0 or max(rises) < _LEAST_RISE_DB:
                return f"not taken: {name} has not risen by {_LEAST_RISE_DB} dB, or has fallen in one precision: {figures}"
        rows = _measure(candidate, datasets, threads, photo, progress)
        card = _card(plan, member, [run for run in finished if run.round <= best.round], candidate, rows, photo)
        # The weights last: as long as they are the old ones, the next call writes both.
        atomic_write(target.with_suffix(".md"), card.encode())
        atomic_write(target, candidate.read_bytes())
    return f"taken: {target.name} from {best.label}: {figures}"


def _stem(member: str, scale: int) -> str:
    """Name of the shipped files: the member "small" is "rdsr-small-x4", "small-x2" is "rdsr-small-x2"."""
    return f"rdsr-{member.removesuffix(f'-x{scale}')}-x{scale}"


def _compacted(loaded: LoadedModel, path: Path) -> Path:
    """Write a run's result to `path` as it is shipped; all figures are of these weights."""
    network, config = loaded.network, loaded.config.to_dict()
    training_only = set(network.training_only())
    tensors = network.state_dict()
    save_checkpoint(path, tensors, loaded.arch, config, loaded.notes, compact=True, training_only=training_only)
    return path


def adopt_weights(plan: FamilyPlan, name: str, runs: Path, checkpoint: Path, *, threads: int) -> str:
    """Offer weights trained elsewhere, on a GPU for example, as the start of a member's next round. The best start is taken.

    `checkpoint`: a stage2 result of the member's sizes. Only better weights replace those that were adopted before.
    Returns a sentence. Raises `CheckpointError`, and `TrainingError` for a network of other sizes.
    """
    torch.set_num_threads(threads)
    member = plan.member(name)
    stages = (TrainConfig.load(find_config(Path(stage.config)), **stage.overrides) for stage in member.stages)
    stage = next(stage for stage in stages if stage.stage == "stage2")
    loaded = load_model(checkpoint)
    if loaded.config != stage.network_config():
        raise TrainingError(f"{checkpoint} holds no network of {name}'s sizes")
    pairs = load_pairs(Path(plan.validation), loaded.network.scale, photo=stage.degradation == "photo")
    (psnr,) = _validate(loaded.network, pairs, "stage2")
    figures = f"{Path(plan.validation).name} {psnr:.3f} dB"
    if (before := adopted(member, runs)) is not None and before[0] >= round(psnr, 4):
        return f"not adopted: {name} already has weights from elsewhere with {before[0]:.3f} dB, these have {figures}"
    tensors = {key: value for key, value in read_checkpoint(checkpoint)[0].items() if not key.startswith("quantized.")}
    notes = loaded.notes | {"psnr_y": f"{psnr:.4f}"}
    save_checkpoint(runs / name / "adopted.safetensors", tensors, "rdsr", loaded.config.to_dict(), notes)
    own = max((run.state().best or 0.0 for run in finished_runs(member, runs) if run.kind == "stage2"), default=0.0)
    return f"adopted for {name}: {figures}, {'the best so far' if psnr > own else f'the family has {own:.3f} dB'}"


def _validate(network: Any, pairs: Sequence[Pair], *stages: str) -> list[float]:
    """PSNR-Y in dB as training validates each stage; "stage2" runs the float network, "qat" the quantized one."""
    return [mean_psnr_y(predict_with(network, stage), pairs, network.scale, torch.device("cpu")) for stage in stages]


def _measure(candidate: Path, datasets: Sequence[Path], threads: int, photo: bool, progress: Callable[[str], None]) -> Rows:
    """Export the candidate and run its bundle on every data set."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        progress("exporting")
        if not export_checkpoint(ExportOptions(checkpoint=candidate, output=folder, single_graph=False)).passed:
            raise BenchmarkError(f"the export of {candidate} failed its proof")
        fp32, int8 = (bundle(str(folder), backend="auto", precision=p, threads=threads) for p in ("fp32", "int8"))
        for root in datasets:
            clean = None if (root / f"LRx{fp32.scale}").is_dir() else BICUBIC
            for degradation in (clean, *(TEST_DEGRADATIONS if photo else ())):
                progress(f"{root.name}{f', {degradation}' if degradation else ''}")
                dataset = find_dataset(root, fp32.scale, degradation)
                rows.append((measure(fp32, dataset), measure(int8, dataset, fp32)))
    return rows


def _card(plan: FamilyPlan, member: Member, runs: Sequence[Run], candidate: Path, rows: Rows, photo: bool) -> str:
    """The model card in Markdown: sizes, data, recipe with one row a run, figures of the exported bundle."""
    text = (Path(__file__).parent / "card.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    network: Any = load_model(candidate).network
    return template.render(
        member=member,
        stem=_stem(member.name, network.scale),
        photo=photo,
        texts=plan.card,
        network=network,
        gflops=convolution_gflops(network, 128, 128),
        earlier=_earlier(member, runs),
        runs=[
            (run, config, _changes(run.stage.config, config), run.state(), _origin(config["init"], member, runs))
            for run, config in ((run, run.config()) for run in runs)
        ],
        rows=rows,
        lacking=[name for name in ("Set5", "Set14", "B100") if name not in {row.dataset for row, _ in rows}],
    )


def _earlier(member: Member, runs: Sequence[Run]) -> list[str]:
    """Rows of the recipe on the card of the weights that a member starts from, oldest first; [] if there are none.

    They are kept beside the member's runs: a later call may find a newer card in its place. In front of rows that have no
    name yet comes that of the weights and the how-manieth recipe of theirs it is, e.g. "rdsr-small #2: round 1, qat".
    """
    kept = runs[0].folder.parent / "earlier.json"
    if not kept.is_file():
        card = resolve_checkpoint(member.init).with_suffix(".md") if member.init else Path()
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        recipe = text.partition("## Recipe\n")[2].partition("\n## ")[0]
        rows = [line.removeprefix("| ") for line in recipe.splitlines() if line.startswith("| ")][1:]
        stem = Path(member.init).stem
        before = {name for row in rows if (name := row.partition(": round ")[0]).startswith(f"{stem} #")}
        name = f"{stem} #{len(before) + 1}"
        rows = [row if ": round " in row.partition("|")[0] else f"{name}: {row}" for row in rows]
        atomic_write(kept, dump_json(rows).encode())
    return [f"| {row}" for row in json.loads(kept.read_text(encoding="utf-8"))]


def _changes(preset: str, config: dict[str, Any]) -> str:
    """The fields of a run's config that differ from its preset's and that the card does not show otherwise."""
    usual = TrainConfig.load(find_config(Path(preset))).to_dict()
    changed = {key: value for key, value in config.items() if key not in _NOT_LISTED and value != usual.get(key)}
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in changed.items())


def _origin(init: str, member: Member, runs: Sequence[Run]) -> str:
    """What a run started from, for a reader who does not have its folder."""
    if not init:
        return "nothing"
    if init == member.init:
        return f"{init}, as shipped before"
    path = Path(init)
    if path.stem == "adopted":
        return "weights from elsewhere"
    return next((run.label for run in runs if run.folder.name == path.parent.name), path.parent.name)
