"""The training loop: schedule, EMA, spike guard, exact resume, checkpoints, log."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...atomic import atomic_write
from ..checkpoint import save_checkpoint
from ..rdsr.network import RDSR
from .config import TrainConfig
from .data import Batch, PatchSource
from .errors import TrainingError
from .muon import Muon
from .stages import STAGE_PARTS, predict_with, stage_losses
from .validation import Pair, mean_psnr_y

__all__ = ["Trainer", "cpu_has_bf16", "read_state"]

logger = logging.getLogger(__name__)
MAX_SKIPPED = 50
LOG_FIELDS = ("step", "minutes", "loss", "pixel", "prior", "learning_rate", "data_wait_share", "skipped", "psnr_y")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine from `learning_rate` to `final_learning_rate`.

    Steps of the prior alone go through all of it by themselves, at `prior_rate` times the rate.
    """
    alone = step < config.prior_steps
    step, steps = (
        (step, config.prior_steps) if alone else (step - config.prior_steps, config.iterations - config.prior_steps)
    )
    if step < config.warmup:
        rate = config.learning_rate * (step + 1) / config.warmup
    else:
        progress = (step - config.warmup) / max(1, steps - config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        rate = config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
    return rate * config.prior_rate if alone else rate


def read_state(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """The state of the run in `folder`; `TrainingError` where it is missing, damaged, or of another config."""
    path = folder / "state.pt"
    if not path.is_file():
        raise TrainingError(f"there is nothing to resume in {folder}: it has no state.pt")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler raises for a damaged file
        raise TrainingError(f"{path} is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"config", "step", "data", "network", "ema"} <= set(state):
        raise TrainingError(f"{path} is damaged: it is no state of a training run")
    # Fields that came into being after the run began have their defaults there.
    before, now = TrainConfig.from_values(json.loads(state["config"]), str(path)).to_dict(), config.to_dict()
    free = ("checkpoint_minutes", "validate_every", "init", "data", "teacher")
    if differ := [k for k in now if k not in free and before.get(k) != now[k]]:
        changes = "; ".join(f"{k}: {before.get(k)!r} there, {now[k]!r} here" for k in differ)
        raise TrainingError(f"{folder} was trained under another config ({changes})")
    return dict(state)


def _optimizers(network: RDSR, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Adam, or Muon for the decoder's body and tail and Adam for the rest; modulation at its own rate."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    kernels = {name for name, p in trained.items() if name.startswith(("decoder.body.", "decoder.tail.")) and p.ndim == 4}
    if config.optimizer == "adam":
        kernels = set()
    modulating = {name for name in trained if ".modulation." in name}
    ranges = {name for name in trained if ".log_" in name}
    groups = [
        {"params": [p for n, p in trained.items() if n not in kernels | modulating | ranges], "rate": 1.0},
        {"params": [p for n, p in trained.items() if n in modulating], "rate": config.modulation_rate},
        {"params": [p for n, p in trained.items() if n in ranges], "rate": config.range_rate},
    ]
    adam = torch.optim.Adam([g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.99), fused=True)
    if not kernels:
        return [adam]
    return [Muon([trained[name] for name in trained if name in kernels], lr=config.learning_rate), adam]


class Trainer:
    """One run in one folder, which must exist.

    It holds `state.pt` (everything to resume), `ema.safetensors` (the result), `best.safetensors` (the weights that did
    best in validation), `log.csv` and `config.json`.
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
        """`hold`: asked before every step; seconds that it has waited because somebody else needs the machine, which are not
        training's, or 0 to go on."""
        self.hold = hold
        self.config = config
        self.data = data
        self.folder = folder
        self.progress = progress
        self.device = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        if threads:
            torch.set_num_threads(threads)
        # The levels that quantization-aware training rounds to need more digits than bf16 has.
        self.autocast = config.stage != "qat" and (self.device.type == "cuda" or cpu_has_bf16())
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = STAGE_PARTS[config.stage]
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained)
        self.parameters: Sequence[nn.Parameter] = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizers = _optimizers(self.network, config)
        self.ema = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.losses = torch.compile(stage_losses) if config.compile else stage_losses
        self.pairs = pairs
        self.step = 0
        self.skipped = 0
        self.running_loss: float | None = None
        self.seconds_before = 0.0
        self.best: float | None = None
        """PSNR-Y of `best.safetensors`."""
        self.skipped_in_a_row = 0
        self.between_steps = True
        self.stop = False
        self.sums: dict[str, float] = {}
        """Sums over the steps since the last row of the log."""

    # -- persistence ------------------------------------------------------------------------------------------------

    def save(self, elapsed: float) -> None:
        """Write EMA weights and state, each whole or not at all: an interruption keeps the previous ones."""
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
        # The state last: where it says that a run is finished, the result is there.
        content = io.BytesIO()  # torch's writer turns a full disk into an error of its own kind
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
        """Continue from what `read_state` has read; `TrainingError` if the run was trained on other pictures."""
        for left_over in self.folder.glob(".*.tmp"):  # of a run that was killed while it wrote
            left_over.unlink()
        if state["data"] != self.data.digest:
            raise TrainingError(
                f"{self.folder} was trained on other pictures, or a teacher's others, than --data and --teacher name now"
            )
        self.network.load_state_dict(state["network"])
        self.ema = {k: v.to(self.device) for k, v in state["ema"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.skipped = state["step"], state["skipped"]
        self.running_loss, self.seconds_before = state["running_loss"], state["seconds"]
        self.sums, self.best = state["sums"], state.get("best")
        self._trim_log()

    def _trim_log(self) -> None:
        """Drop rows that a run which did not reach its next checkpoint has logged; they will be written again."""
        path = self.folder / "log.csv"
        if path.is_file():
            with path.open(newline="") as file:
                # A row that a kill or a full disk cut short has no last field.
                rows = [r for r in csv.DictReader(file) if r["psnr_y"] is not None and int(r["step"]) <= self.step]
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, LOG_FIELDS)
            writer.writeheader()
            writer.writerows(rows)
            atomic_write(path, text.getvalue().encode())

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _averaged(self) -> RDSR:
        """The network with the EMA weights, quantized ones at their levels."""
        averaged = copy.deepcopy(self.network).eval()
        averaged.load_state_dict(self.ema)
        if averaged.quantized is not None:
            averaged.quantized.snap()
        return averaged

    def validate(self) -> float:
        """Mean PSNR-Y in dB of the EMA weights over the validation pairs, float32."""
        averaged = self._averaged()
        predict = predict_with(averaged, self.config.stage)
        return mean_psnr_y(predict, self.pairs, averaged.config.scale, self.device)

    def _tensor(self, patches: np.ndarray) -> Tensor:
        return torch.from_numpy(patches).to(self.device).permute(0, 3, 1, 2).float().div_(255)

    def _train_step(self, batch: Batch) -> dict[str, float]:
        config = self.config
        hr, target, lr = (self._tensor(patches) for patches in (batch.hr, batch.target, batch.lr))
        degradation = torch.from_numpy(batch.degradation).to(self.device)
        prior_alone = self.step < config.prior_steps
        generator = torch.Generator().manual_seed((config.seed << 32) + self.step)
        noise = torch.randn(len(lr), self.network.config.latent_size, generator=generator).to(self.device)
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
            self.running_loss = None  # from here on it is another loss
        steps_of_this_loss = self.step - (0 if prior_alone else config.prior_steps)
        limit = math.inf if self.running_loss is None or steps_of_this_loss < 200 else factor * self.running_loss
        if math.isfinite(value) and math.isfinite(norm) and value <= limit:
            for optimizer in self.optimizers:
                optimizer.step()
            self.skipped_in_a_row = 0
            self.running_loss = value if self.running_loss is None else 0.99 * self.running_loss + 0.01 * value
            decay = min(config.ema_decay, (self.step + 1) / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.ema.values()), list(self.network.state_dict().values()), 1 - decay)
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            logger.warning("step %d left out: loss %.4g, gradient norm %.4g", self.step, value, norm)
            return {}
        terms = {"loss": value, "pixel": float(losses.pixel), "prior": float(losses.prior), "learning_rate": rate}
        return {"count": 1, **terms}

    def _row(self, elapsed: float, validate: bool) -> dict[str, Any]:
        """One row of the log: means over the steps since the last row that were not left out."""
        terms = dict(self.sums)
        count, waited, busy = (terms.pop(name, 0) for name in ("count", "waited", "busy"))
        row: dict[str, Any] = dict.fromkeys(LOG_FIELDS, "") | {k: f"{v / count:.6g}" for k, v in terms.items()}
        row |= {"step": self.step, "minutes": f"{elapsed / 60:.2f}", "skipped": self.skipped}
        row |= {"data_wait_share": f"{waited / busy:.4f}"}
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
        terms |= {"waited": got - before, "busy": time.monotonic() - before}
        self.sums = {k: self.sums.get(k, 0.0) + v for k, v in terms.items()}
        self.step += 1
        self.between_steps = True
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"the run has diverged: {MAX_SKIPPED} steps in a row were left out up to step {self.step}; "
                "start again with a lower learning rate"
            )

    def run(self, seconds: float | None = None) -> None:
        """Train until the configured iterations are done, or for about `seconds`; ends on a checkpoint either way.

        The first Ctrl-C ends the step in hand, writes a checkpoint and raises `KeyboardInterrupt`; a second one
        does not wait: the step in hand is lost, and resuming starts from the previous checkpoint.
        """
        with _interrupts_deferred(self):
            self._run(seconds)
        if self.stop:
            raise KeyboardInterrupt

    def _run(self, seconds: float | None) -> None:
        config = self.config
        atomic_write(self.folder / "config.json", (json.dumps(config.to_dict(), indent=1) + "\n").encode())
        log_path = self.folder / "log.csv"
        fresh = self.step == 0 or not log_path.is_file()
        started = saved = time.monotonic()
        # A GPU is through with a batch sooner than one thread makes the next, and so is a CPU with steps of the prior alone.
        workers = 2 if self.device.type == "cpu" else max(2, (os.cpu_count() or 1) - 2)
        stream = self.data.stream(self.step, config.iterations, config.batch, workers)
        self.network.train()
        if config.stage == "stage2" and self.network.lpe is not None:
            self.network.lpe.eval()  # frozen, its running statistics too
        try:
            with log_path.open("w" if fresh else "a", newline="") as file:
                log = csv.DictWriter(file, LOG_FIELDS)
                if fresh:
                    log.writeheader()
                while self.step < config.iterations and not self.stop:
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
            if self.between_steps:  # never a state with half a step in it
                self.save(self.seconds_before + time.monotonic() - started)


@contextlib.contextmanager
def _interrupts_deferred(trainer: Trainer) -> Iterator[None]:
    """Turn the first SIGINT into `trainer.stop`; elsewhere than in the main thread signals cannot be caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        trainer.stop = True
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
