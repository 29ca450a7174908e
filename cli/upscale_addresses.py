"""`rdsr upscale` of addresses such as `s3://bucket/in`, and on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import typer

from . import exit_codes
from .console import counted, print_json, printable, stderr, stdout
from .exit_codes import BAD_INPUT, FAILED, Terminated

if TYPE_CHECKING:
    from ..runtime.cluster.batch import AddressBatch
    from ..runtime.cluster.outcomes import Outcome
    from ..runtime.pictures.formats import WriteOptions

__all__ = ["upscale_addresses"]


def upscale_addresses(
    inputs: list[str], output: str, write: WriteOptions, load: dict[str, Any], *, engine: Literal["local", "ray"],
    address: str | None, recursive: bool, resume: bool, max_pixels: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Upscale files at addresses or paths, and report like `rdsr upscale` of paths. `load`: arguments of `Upscaler.load`."""
    from ..runtime.cluster.addresses import plan_addresses
    from ..runtime.cluster.batch import AddressBatch
    from ..runtime.errors import OptionError
    from ..runtime.upscaler import Upscaler

    if "-" in (output, *inputs):
        raise OptionError("- (standard input and output) goes together with neither addresses nor --engine ray")
    plan = plan_addresses(inputs, output, write, recursive=recursive)
    batch = AddressBatch(
        Upscaler.load(**load), plan, write,
        max_pixels=max_pixels, resume=resume, engine=engine, address=address, threads=load["threads"],
    )  # fmt: skip
    interrupted: int | None = None
    try:
        with counted("upscale", len(plan.files)) as (bar, task):
            batch.run(
                lambda done, name: bar.update(task, completed=done, description=f"upscale {printable(name)}, pictures")
            )
    except (KeyboardInterrupt, Terminated) as stop:
        interrupted = exit_codes.INTERRUPTED if isinstance(stop, KeyboardInterrupt) else int(str(stop.code))
    failed = [outcome for outcome in batch.outcomes if outcome.error is not None]
    if as_json:
        print_json(_report(batch, plan.skipped, failed) | ({} if interrupted is None else {"interrupted": True}))
    else:
        _print(batch, plan.skipped, failed)
        if interrupted is not None:
            done = len(batch.outcomes) - len(failed) + len(batch.done_before)
            stderr.print(f"rdsr: interrupted: {done} of {len(plan.files)} pictures are done")
    if interrupted is not None:
        raise typer.Exit(interrupted)
    if failed:
        raise typer.Exit(BAD_INPUT if len(plan.files) == 1 and failed[0].bad_input else FAILED)


def _report(batch: AddressBatch, skipped: tuple[tuple[str, str], ...], failed: list[Outcome]) -> dict[str, Any]:
    """The keys of the report on paths."""
    from ..runtime.batch import ALREADY_DONE, INTERRUPTED

    keys = ("input", "output", "size_in", "size_out", "backend", "precision", "ms", "decode_ms", "encode_ms", "warnings")
    done = [{key: getattr(each, key) for key in keys} | {"frames": 1} for each in batch.outcomes if each.error is None]
    left_out = [*skipped, *((file.input, ALREADY_DONE) for file in batch.done_before)]
    left_out += [(file.input, INTERRUPTED) for file in batch.left]
    effective = batch.upscaler.effective
    return {
        "outputs": done,
        "skipped": [{"input": name, "reason": reason} for name, reason in left_out],
        "failed": [{"input": outcome.input, "error": outcome.error} for outcome in failed],
        "backend": effective.backend,
        "precision": effective.precision,
        "threads": effective.threads,
    }


def _print(batch: AddressBatch, skipped: tuple[tuple[str, str], ...], failed: list[Outcome]) -> None:
    for outcome in batch.outcomes:
        if outcome.size_in is not None and outcome.size_out is not None:
            sizes = " → ".join(f"{width}×{height}" for height, width in (outcome.size_in, outcome.size_out))
            stdout.print(f"{printable(outcome.output)}  {sizes}  {outcome.ms:.0f} ms")
        for warning in outcome.warnings:
            stderr.print(f"rdsr: {printable(outcome.input)}: {printable(warning)}", style="yellow")
    if done := len(batch.done_before):
        stderr.print(f"rdsr: skipped {done} {'picture' if done == 1 else 'pictures'} that an earlier run has done")
    if skipped:
        stderr.print(f"rdsr: skipped {len(skipped)} files that are no pictures (--json lists them)")
    for outcome in failed:
        stderr.print(f"rdsr: {printable(outcome.error)}", style="red")
