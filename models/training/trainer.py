"""The training loop: EMA, spike guard, exact resume, checkpoints, log."""

from __future__ import annotations

import copy
import csv
import io
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...atomic import atomic_write
from ..checkpoint import save_checkpoint
from ..rdsr.network import RDSR
from ..rdsr.revive import revive
from .config import TrainConfig
from .data import Batch, PatchSource
from .errors import TrainingError
from .optimizers import learning_rate, optimizers_for
from .signals import Stop, stop_on
from .stages import STAGE_PARTS, predict_with, prior_with, stage_losses
from .validation import Pair, as_tensor, mean_psnr_y

__all__ = ["Trainer", "cpu_has_bf16", "read_state"]

logger = logging.getLogger(__name__)
MAX_SKIPPED = 50
LOG_FIELDS = (
    "step",
    "minutes",
    "loss",
    "pixel",
    "prior",
    "learning_rate",
    "data_wait_share",
    "skipped",
    "revived",
    "psnr_y",
)
"""Columns of `log.csv`: losses and `data_wait_share` are means over the steps since the row before, `revived` (channels) is
the sum; `skipped` (steps) counts from the start. `psnr_y` (dB) stands where the run was validated."""


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def read_state(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Read the state of the run in `folder`; `TrainingError` if it is missing, damaged, or belongs to another config."""
    path = folder / "state.pt"
    if not path.is_file():
        raise TrainingError(f"there is nothing to resume in {folder}: it has no state.pt")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds for a damaged file
        raise TrainingError(f"{path} is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"config", "step", "data", "network", "ema"} <= set(state):
        raise TrainingError(f"{path} is damaged: it is not the state of a training run")
    if not isinstance(state["step"], int) or not isinstance(state["config"], str):
        raise TrainingError(f"{path} is damaged: it is not the state of a training run")
    try:
        saved = json.loads(state["config"])
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged: its config is no JSON") from error
    if not isinstance(saved, dict):
        raise TrainingError(f"{path} is damaged: its config is no JSON object")
    # Fields that are newer than the run have their defaults there.
    before, now = TrainConfig.from_values(saved, str(path)).to_dict(), config.to_dict()
    free = ("checkpoint_minutes", "validate_every", "init", "data", "teacher")
    if differ := [k for k in now if k not in free and before.get(k) != now[k]]:
        changes = "; ".join(f"{k}: {before.get(k)!r} there, {now[k]!r} here" for k in differ)
        raise TrainingError(f"{folder} was trained under another config ({changes})")
    return dict(state)


class Trainer:
    """One run in one folder.

    It writes `state.pt` (everything needed to resume), `ema.safetensors` (the result), `best.safetensors` (the weights with
    the best validation), `log.csv` and `config.json`.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: RDSR,
        data: PatchSource,
        folder: Path,
        *,
        pairs: Sequence[Pair] = (),
        device: str = "auto",
        threads: int | None = None,
        progress: Callable[[int, dict[str, Any]], None] | None = None,
        hold: Callable[[], float] | None = None,
    ) -> None:
        """`hold` is called before every step. It may wait because others need the machine. It returns the seconds waited,
        which do not count as training, or 0 to go on."""
        self.hold = hold
        self.config = config
        self.data = data
        self.folder = folder
        self.progress = progress
        self.device = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        if threads:
            torch.set_num_threads(threads)
        bf16 = self.device.type == "cuda" or cpu_has_bf16()
        self.autocast = bf16 and config.stage != "qat"
        if network.quantized is not None:  # bf16 holds its levels exactly and rounds their sums; scales stay float32
            network.quantized.trains_in_bf16 = bf16
            network.quantized.learn_factors()
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = STAGE_PARTS[config.stage]
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained)
        self.parameters: Sequence[nn.Parameter] = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizers = optimizers_for(self.network, config)
        self.ema = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.losses = torch.compile(stage_losses) if config.compile else stage_losses
        self.pairs = pairs
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.running_loss: float | None = None
        self.seconds_before = 0.0
        self.best: float | None = None
        """PSNR-Y of `best.safetensors` in dB."""
        self.between_steps = True
        self.stop = Stop()
        self.sums: dict[str, float] = {}
        """Sums over the steps since the last row of the log."""

    def save(self, elapsed: float) -> None:
        """Write EMA weights and state, each whole or not at all; after an interruption the previous ones are still there."""
        state = {
            "config": json.dumps(self.config.to_dict()),
            "step": self.step,
            "skipped": self.skipped,
            "running_loss": self.running_loss,
            "seconds": elapsed,
            "sums": self.sums,
            "best": self.best,
            "data": self.data.digest,
            "network": self.network.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        self._save_average("ema.safetensors")
        # The state comes last: if it says that the run is finished, the result is there.
        content = io.BytesIO()  # torch's own writer does not raise OSError for a full disk
        torch.save(state, content)
        atomic_write(self.folder / "state.pt", content.getvalue())

    def _save_average(self, name: str, **notes: str) -> None:
        """Write the EMA weights as a checkpoint."""
        config = self.config
        parts = STAGE_PARTS["stage1"] if config.stage == "stage1" else ("lpe", *STAGE_PARTS["stage2"], "quantized")
        weights = {key: value for key, value in self._averaged().state_dict().items() if key.split(".")[0] in parts}
        notes = {"stage": config.stage, "iterations": str(self.step), "ema_decay": str(config.ema_decay)} | notes
        save_checkpoint(self.folder / name, weights, "rdsr", self.network.config.to_dict(), notes)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `read_state`; `TrainingError` if the run was trained on other pictures."""
        if state["data"] != self.data.digest:
            raise TrainingError(f"{self.folder} was trained on other pictures than those of --data and --teacher")
        try:
            self._take(state)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{self.folder / 'state.pt'} is damaged ({type(error).__name__})") from error
        self._trim_log()

    def _take(self, state: Mapping[str, Any]) -> None:
        """Everything that `save` wrote. Raises what torch raises for what does not fit."""
        self.network.load_state_dict(state["network"])
        self.ema = {k: v.to(self.device) for k, v in state["ema"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.skipped = state["step"], state["skipped"]
        self.running_loss, self.seconds_before = state["running_loss"], state["seconds"]
        self.sums, self.best = state["sums"], state.get("best")

    def _trim_log(self) -> None:
        """Drop the rows after the last checkpoint; training writes them again."""
        path = self.folder / "log.csv"
        if path.is_file():
            try:
                with path.open(newline="") as file:
                    # A row that was cut short (by a kill or a full disk) has no last field.
                    rows = [r for r in csv.DictReader(file) if r["psnr_y"] is not None and int(r["step"]) <= self.step]
            except (ValueError, KeyError, TypeError, csv.Error) as error:
                raise TrainingError(f"{path} is damaged: it is not the log of a training run") from error
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, LOG_FIELDS)
            writer.writeheader()
            writer.writerows(rows)
            atomic_write(path, text.getvalue().encode())

    def _averaged(self) -> RDSR:
        """A copy of the network with the EMA weights; quantized weights are rounded to their levels."""
        averaged = copy.deepcopy(self.network).eval()
        averaged.load_state_dict(self.ema)
        if averaged.quantized is not None:
            averaged.quantized.snap()
        return averaged

    def validate(self) -> float:
        """Mean PSNR-Y in dB of the EMA weights over the validation pairs, in float32."""
        averaged = self._averaged()
        return mean_psnr_y(predict_with(averaged, self.config.stage), self.pairs, averaged.config.scale, self.device)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Generator]:
        """LR, HR, degradation, noise (N×latent) of a batch on the device, and the step's generator, which drew the noise."""
        hr, lr = (as_tensor(patches, self.device) for patches in (batch.hr, batch.lr))
        generator = torch.Generator().manual_seed((self.config.seed << 32) + self.step)
        noise = torch.randn(len(lr), self.network.config.latent_size, generator=generator).to(self.device)
        return lr, hr, torch.from_numpy(batch.degradation).to(self.device), noise, generator

    def _train_step(self, batch: Batch) -> dict[str, float]:
        config = self.config
        lr, hr, degradation, noise, _ = self._inputs(batch)
        target = None if batch.target is batch.hr else as_tensor(batch.target, self.device)
        prior_alone = self.step < config.prior_steps
        rate = learning_rate(config, self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            losses = self.losses(self.network, config, lr, hr, noise, target, degradation, prior_alone=prior_alone)
        self.network.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip))
        value = float(losses.total.detach())
        factor = config.spike_factor ** (2 if config.pixel_loss == "l2" else 1)
        if self.step == config.prior_steps:
            self.running_loss = None  # the full steps have another loss
        steps_of_this_loss = self.step - (0 if prior_alone else config.prior_steps)
        limit = math.inf if self.running_loss is None or steps_of_this_loss < 200 else factor * self.running_loss
        if not (math.isfinite(value) and math.isfinite(norm) and value <= limit):
            self.skipped += 1
            self.skipped_in_a_row += 1
            logger.warning("step %d left out: loss %.4g, gradient norm %.4g", self.step, value, norm)
            return {}
        for optimizer in self.optimizers:
            optimizer.step()
        self.skipped_in_a_row = 0
        self.running_loss = value if self.running_loss is None else 0.99 * self.running_loss + 0.01 * value
        decay = min(config.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.network.state_dict().values()), 1 - decay)
        terms = {"loss": value, "pixel": float(losses.pixel), "prior": float(losses.prior), "learning_rate": rate}
        return {"count": 1, **terms}

    def _may_revive(self) -> bool:
        config = self.config
        if config.stage == "qat" or not config.revive_every or self.step == 0 or self.step % config.revive_every:
            return False
        return 0 <= self.step - config.prior_steps <= 2 / 3 * (config.iterations - config.prior_steps)

    def _revive(self, batch: Batch) -> int:
        """Revive dead channels in the network and in its average; returns their number."""
        lr, hr, degradation, noise, generator = self._inputs(batch)
        with torch.no_grad():
            z = prior_with(self.network, self.config.stage, noise)(lr, hr, degradation)
            before = {name: p.detach().clone() for name, p in self.network.decoder.named_parameters()}
            revived = revive(self.network.decoder, lr, z, generator)
            for name, parameter in self.network.decoder.named_parameters():
                changed = parameter != before[name]
                # Averaged with what they were, new weights would be noise to the rest; so would old momentum.
                self.ema[f"decoder.{name}"][changed] = parameter[changed]
                for optimizer in self.optimizers:
                    for value in optimizer.state.get(parameter, {}).values():
                        if isinstance(value, Tensor) and value.shape == parameter.shape:
                            value[changed] = 0
        return revived

    def _row(self, elapsed: float, validate: bool) -> dict[str, Any]:
        """One row of the log: means over the steps since the last row, without those left out."""
        terms = dict(self.sums)
        count, waited, busy, revived = (terms.pop(name, 0) for name in ("count", "waited", "busy", "revived"))
        row: dict[str, Any] = dict.fromkeys(LOG_FIELDS, "") | {k: f"{v / count:.6g}" for k, v in terms.items()}
        row |= {"step": self.step, "minutes": f"{elapsed / 60:.2f}", "skipped": self.skipped, "revived": int(revived)}
        row["data_wait_share"] = f"{waited / busy:.4f}"
        if validate:
            psnr = self.validate()
            row["psnr_y"] = f"{psnr:.4f}"
            if self.best is None or psnr > self.best:
                self.best = psnr
                self._save_average("best.safetensors", psnr_y=row["psnr_y"])
        return row

    def _one_step(self, stream: Iterator[Batch]) -> None:
        """Fetch a batch, train on it, count it."""
        before = time.monotonic()
        batch = next(stream)
        got = time.monotonic()
        self.between_steps = False
        terms = self._train_step(batch)
        if self._may_revive():
            terms |= {"revived": self._revive(batch)}
        terms |= {"waited": got - before, "busy": time.monotonic() - before}
        self.sums |= {k: self.sums.get(k, 0.0) + v for k, v in terms.items()}
        self.step += 1
        self.between_steps = True
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"the run has diverged: {MAX_SKIPPED} steps in a row were left out up to step {self.step}; "
                "start again with a lower learning rate"
            )

    def run(self, seconds: float | None = None) -> None:
        """Train until the configured iterations are done, or for about `seconds`, then write a checkpoint.

        The first Ctrl-C or SIGTERM finishes the step in hand, writes a checkpoint and raises `KeyboardInterrupt` or what the
        handler of SIGTERM raises (without one, `SystemExit`). A second one does not wait: resuming then starts from the
        previous checkpoint. `TrainingError` if the run diverges.
        """
        with stop_on(signal.SIGINT, signal.SIGTERM, once=True) as self.stop:
            self._run(seconds)
        if self.stop.number == signal.SIGTERM:
            handler = signal.getsignal(signal.SIGTERM)
            if callable(handler):
                handler(signal.SIGTERM, None)
            raise SystemExit(128 + signal.SIGTERM)
        if self.stop.asked:
            raise KeyboardInterrupt

    def _run(self, seconds: float | None) -> None:
        config = self.config
        atomic_write(self.folder / "config.json", (json.dumps(config.to_dict(), indent=1) + "\n").encode())
        log_path = self.folder / "log.csv"
        fresh = self.step == 0 or not log_path.is_file()
        started = saved = time.monotonic()
        # A GPU uses up batches faster than one thread makes them, and so does a CPU in the `prior_steps`.
        workers = 2 if self.device.type == "cpu" else max(2, (os.cpu_count() or 1) - 2)
        stream = self.data.stream(self.step, config.iterations, config.batch, workers)
        self.network.train()
        if config.stage == "stage2" and self.network.lpe is not None:
            self.network.lpe.eval()  # its running statistics are frozen, too
        try:
            with log_path.open("w" if fresh else "a", newline="") as file:
                log = csv.DictWriter(file, LOG_FIELDS)
                if fresh:
                    log.writeheader()
                while self.step < config.iterations and not self.stop.asked:
                    if self.hold is not None and (waited := self.hold()):
                        started += waited
                        continue
                    self._one_step(stream)
                    now = time.monotonic()
                    elapsed = self.seconds_before + now - started
                    last = self.step == config.iterations
                    validate = bool(self.pairs) and (last or self.step % config.validate_every == 0)
                    if validate or last or self.step % 100 == 0:
                        row = self._row(elapsed, validate)
                        log.writerow(row)
                        file.flush()
                        self.sums = {}
                        if self.progress:
                            self.progress(self.step, row)
                    if now - saved > config.checkpoint_minutes * 60:
                        self.save(elapsed)
                        saved = now
                    if seconds is not None and now - started > seconds:
                        break
        finally:
            stream.close()  # type: ignore[attr-defined]
            if self.between_steps:  # half a step must not get into the state
                self.save(self.seconds_before + time.monotonic() - started)
