"""Ship what the family's training has come to: weights and model card, where the validation set has risen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...atomic import atomic_write
from ...models.checkpoint import read_checkpoint, save_checkpoint
from ...models.photo_degradation import TEST_DEGRADATIONS
from ...models.training.errors import TrainingError
from ...models.training.family import FamilyPlan, Member, Run, finished_runs
from ...models.training.family_runner import adopted
from ..errors import BenchmarkError
from ..quality.datasets import find_dataset
from ..quality.measure import QualityRow, bundle, measure

__all__ = ["adopt_weights", "take_member"]

_LEAST_RISE_DB = 0.001
Progress = Callable[[str], None]


def take_member(
    plan: FamilyPlan,
    name: str,
    runs: Path,
    *,
    tests: Sequence[Path] = (),
    weights: Path | None = None,
    threads: int,
    progress: Progress = lambda step: None,
) -> str:
    """Put the best finished weights of a member, and their card, into `weights`; returns a sentence that says what happened.

    Nothing is written unless PSNR-Y of the validation set is higher than that of the weights there, in float and in int8.
    `tests`: data sets whose figures go on the card. Raises `TrainingError` for an unknown member, `BenchmarkError` where the
    weights do not export or a data set is at fault.
    """
    import torch

    from ...models.training.validation import load_pairs

    torch.set_num_threads(threads)
    member = plan.member(name)
    missing = next((folder for folder in (Path(plan.validation), *tests) if not folder.is_dir()), None)
    if missing is not None:
        raise TrainingError(f"the data set {missing} does not exist")
    done = finished_runs(member, runs)
    quantized = [run for run in done if run.kind == "qat"]
    if not quantized:
        return f"nothing to take: no quantization-aware run of {name} has finished in {runs}"
    run = max(quantized, key=lambda run: run.state().best or 0.0)
    candidate = run.result()
    photo = run.config()["degradation"] == "photo"
    target = (weights or Path(__file__).parents[2] / "models" / "weights") / f"rdsr-{name}-x4.safetensors"
    pairs = load_pairs(Path(plan.validation), 4, photo=photo)
    progress(f"measuring {run.label}")
    new = _validate(candidate, pairs)
    before = _validate(target, pairs) if target.is_file() else None
    told = f"{Path(plan.validation).name} {new[0]:.3f} dB (int8 {new[1]:.3f})"
    if before is not None:
        told += f", shipped {before[0]:.3f} (int8 {before[1]:.3f})"
        if any(a < b + _LEAST_RISE_DB for a, b in zip(new, before, strict=True)):
            return f"not taken: {name} has not risen: {told}"
    used = [done_run for done_run in done if done_run.round <= run.round]
    card = _card(plan, member, used, candidate, [Path(plan.validation), *tests], threads, photo=photo, progress=progress)
    # The weights last: as long as they are the old ones, the next call writes both.
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target.with_suffix(".md"), card.encode())
    atomic_write(target, candidate.read_bytes())
    return f"taken: {target.name} from {run.label}: {told}"


def adopt_weights(plan: FamilyPlan, name: str, runs: Path, checkpoint: Path, *, threads: int) -> str:
    """Let weights from elsewhere, trained on a GPU say, be what a member's next round starts from, if they are the best.

    `checkpoint`: a stage2 result of the member's sizes. Weights that were adopted before are replaced by better ones only.
    Returns a sentence. Raises `CheckpointError`, and `TrainingError` for a network of other sizes.
    """
    import torch

    from ...models.registry import load_model
    from ...models.training.config import TrainConfig, find_config
    from ...models.training.stages import predict_with
    from ...models.training.validation import load_pairs, mean_psnr_y

    torch.set_num_threads(threads)
    member = plan.member(name)
    stages = [TrainConfig.load(find_config(Path(stage.config)), **stage.overrides) for stage in member.stages]
    stage = next(stage for stage in stages if stage.stage == "stage2")
    loaded = load_model(checkpoint)
    network: Any = loaded.network
    if loaded.config != stage.network_config():
        raise TrainingError(f"{checkpoint} holds no network of {name}'s sizes")
    pairs = load_pairs(Path(plan.validation), 4, photo=stage.degradation == "photo")
    psnr = mean_psnr_y(predict_with(network, "stage2"), pairs, 4, torch.device("cpu"))
    told = f"{Path(plan.validation).name} {psnr:.3f} dB"
    if (before := adopted(member, runs)) is not None and before[0] >= round(psnr, 4):
        return f"not adopted: {name} has {before[0]:.3f} from elsewhere already, this has {told}"
    tensors = {key: value for key, value in read_checkpoint(checkpoint)[0].items() if not key.startswith("quantized.")}
    (runs / name).mkdir(parents=True, exist_ok=True)
    notes = loaded.notes | {"psnr_y": f"{psnr:.4f}"}
    save_checkpoint(runs / name / "adopted.safetensors", tensors, "rdsr", loaded.config.to_dict(), notes)
    bests = [run.state().best or 0.0 for run in finished_runs(member, runs) if run.kind == "stage2"]
    better = "the best so far" if psnr > max(bests, default=0.0) else f"the family's own have {max(bests):.3f}"
    return f"adopted for {name}: {told}, {better}"


def _validate(checkpoint: Path, pairs: Sequence[Any]) -> tuple[float, float]:
    """PSNR-Y in dB of the float network and of the quantized one, as training validates them."""
    import torch

    from ...models.registry import load_model
    from ...models.training.stages import predict_with
    from ...models.training.validation import mean_psnr_y

    network: Any = load_model(checkpoint).network
    values = [mean_psnr_y(predict_with(network, stage), pairs, 4, torch.device("cpu")) for stage in ("stage2", "qat")]
    return values[0], values[1]


def _card(
    plan: FamilyPlan,
    member: Member,
    used: Sequence[Run],
    candidate: Path,
    datasets: Sequence[Path],
    threads: int,
    *,
    photo: bool,
    progress: Progress,
) -> str:
    """The model card: sizes, data, recipe, figures of the exported bundle."""
    from ...models.registry import load_model
    from ..latency.flops import convolution_gflops

    loaded = load_model(candidate)
    network: Any = loaded.network
    kind = "photos (random blur, resampling, noise and JPEG)" if photo else "bicubic degradation"
    rows = _figures(candidate, datasets, threads, photo=photo, progress=progress)
    lacking = [name for name in ("Set5", "Set14", "B100") if name not in {row.dataset for row, _ in rows}]
    return "\n".join(
        [
            f"# rdsr-{member.name}-x4",
            "",
            f"RDSR `{member.name}`, ×4, for {kind}, in training form (branches unfused, latent prior encoder included).",
            f"{network.inference_parameters():,} parameters at inference, "
            f"{convolution_gflops(network, 128, 128):.1f} GFLOP at 128×128 LR (two per multiplication).",
            "",
            "## Data",
            plan.card.get("data", "").strip(),
            "",
            "## Recipe",
            *_recipe(member, used),
            "",
            "## Numbers",
            "PSNR-Y and SSIM-Y of the exported bundle, float32 and int8, seed 0; border of 4 pixels cropped, outputs",
            "rounded to 8 bits (`rdsr bench quality`). What int8 loses is the mean, and that of the worst picture.",
            *([f"Not measured: {', '.join(lacking)}."] if lacking else []),
            "",
            "| data set | LR | float32 | SSIM | int8 | int8 loses (dB) | worst (dB) |",
            "|---|---|--:|--:|--:|--:|--:|",
            *(
                f"| {fp32.dataset} | {fp32.degradation} | {fp32.psnr_y:.3f} | {fp32.ssim_y:.4f} | {int8.psnr_y:.3f} "
                f"| {int8.psnr_drop_db:.3f} | {int8.worst_drop_db:.3f} |"
                for fp32, int8 in rows
            ),
            "",
            "## Licence",
            plan.card.get("licence", "").strip(),
            "",
        ]
    )


def _recipe(member: Member, used: Sequence[Run]) -> list[str]:
    """One row a run; what it started from is another run's folder, the shipped weights, or what was adopted."""
    lines = [
        "Trained by `make family` (models/training/family.toml). Minutes are of two CPU cores, in part shared with others.",
        "",
        "| run | preset | from | steps | minutes | patches (LR) | loss | teacher | validation (dB) |",
        "|---|---|---|--:|--:|---|---|--:|--:|",
    ]
    for run in used:
        config, state = run.config(), run.state()
        patches = f"{config['batch']} of {'/'.join(map(str, config['patch_sizes']))}"
        teacher = f"{config['teacher_weight']:g}" if config["teacher"] else "none"
        best = "" if state.best is None else f"{state.best:.3f}"
        lines.append(
            f"| {run.label} | {run.stage.config} | {_origin(config['init'], member)} | {state.step} "
            f"| {state.minutes:.0f} | {patches} | {config['pixel_loss']} | {teacher} | {best} |"
        )
    return lines


def _origin(init: str, member: Member) -> str:
    """What a run started from, for a reader who has not its folder."""
    if not init:
        return "nothing"
    if init == member.init:
        return f"{init}, as shipped before"
    path = Path(init)
    return "weights from elsewhere" if path.stem == "adopted" else path.parent.name


def _figures(
    candidate: Path, datasets: Sequence[Path], threads: int, *, photo: bool, progress: Progress
) -> list[tuple[QualityRow, QualityRow]]:
    """(float32, int8) rows of the candidate's bundle on every data set."""
    from ...export.exporter import ExportOptions, export_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        progress("exporting")
        result = export_checkpoint(ExportOptions(checkpoint=candidate, output=folder, single_graph=False))
        if not result.passed:
            raise BenchmarkError(f"the export of {candidate} failed its proof")
        ways = [bundle(str(folder), backend="auto", precision=p, threads=threads) for p in ("fp32", "int8")]
        rows = []
        for root in datasets:
            for degradation in TEST_DEGRADATIONS if photo else (None,):
                progress(f"{root.name}{f', {degradation}' if degradation else ''}")
                dataset = find_dataset(root, 4, degradation)
                rows.append((measure(ways[0], dataset), measure(ways[1], dataset, ways[0])))
        return rows
