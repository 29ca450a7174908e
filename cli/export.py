"""`rdsr export`, `rdsr verify`, `rdsr info`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from .console import print_json, print_table, printable, stderr, stdout, steps_shown
from .exit_codes import FAILED, GATE_NOT_MET, command
from .options import ArchOption, AutoencoderOption, JsonOption, SeedOption, ThreadsOption

__all__ = ["export", "info", "verify"]


@command
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Checkpoint file or rdsr-base, rdsr-small, rdsr-small-x2, rdsr-photo, rdsr-tiny (shipped), diffir (random)."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")],
    autoencoder: AutoencoderOption = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16, int8, separated by commas; default: what the network's kind has and this CPU can prove."
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of pictures for int8: two thirds choose the ranges, one third judges.")
    ] = None,
    max_psnr_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Largest drop against fp32 in dB PSNR-Y; default: 0.05 for int8, 0.01 for bf16."),
    ] = None,
    post_training: Annotated[
        bool, typer.Option("--post-training", help="Quantize anew, even if the checkpoint comes from `train qat`.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Steps T of the reverse process; default: the checkpoint's.")
    ] = None,
    seed: SeedOption = 0,
    arch: ArchOption = None,
    key_map: Annotated[Path | None, typer.Option(help="JSON file {pattern: replacement} that renames foreign keys.")] = None,
    single_graph: Annotated[bool, typer.Option(help="Also write the whole network as model.onnx and its IR.")] = True,
    layout: Annotated[
        Literal["bundle", "ovms", "triton"],
        typer.Option(help="What OUTPUT becomes: a bundle, or a model repository of OpenVINO Model Server or Triton."),
    ] = "bundle",
    keep_failed: Annotated[bool, typer.Option(help="Write a bundle that failed its proof to OUTPUT.failed.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle once the new one has passed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a trained checkpoint into a verified bundle.

    Example: rdsr export rdsr-small.safetensors -o rdsr-small.bundle --precision fp32,int8
    """
    from ..export.staging import check_new, check_target
    from ..runtime.errors import OptionError

    if layout != "bundle":
        check_new(output)
        if keep_failed or not single_graph:
            raise OptionError(f"--layout {layout} goes together with neither --keep-failed nor --no-single-graph")
    check_target(output, force=force)  # before torch is imported, which takes seconds
    from ..export.exporter import MAX_INT8_DROP, ExportOptions, export_checkpoint
    from ..export.layouts import lay_out
    from ..models.registry import resolve_checkpoint
    from ..runtime.bundle import Bundle

    with steps_shown("export") as progress, tempfile.TemporaryDirectory() as scratch:
        options = ExportOptions(
            checkpoint=resolve_checkpoint(checkpoint, Path(scratch)),
            output=output if layout == "bundle" else Path(scratch) / "bundle",
            precisions=None if precision is None else tuple(p.strip() for p in precision.split(",") if p.strip()),
            calibration=calibration,
            max_psnr_drop=max_psnr_drop,
            post_training=post_training,
            arch=arch,
            key_map=key_map,
            autoencoder=autoencoder,
            steps=steps,
            seed=seed,
            single_graph=single_graph,
            force=force,
            keep_failed=keep_failed,
        )
        result = export_checkpoint(options, progress)
        report = result.to_dict()
        if layout != "bundle" and result.passed:
            models = lay_out(Bundle(result.output), output, layout, output.name)
            report |= {"bundle": None, "layout": layout, "repository": str(output), "models": list(models)}
    if as_json:
        print_json(report)
    else:
        for table in _quantization_tables(report["quantization"]) if result.quantization else []:
            print_table(table)
        print_table(_variant_table(report))
        fusion = report["fusion"]
        stdout.print(
            f"fusion: {fusion['blocks']} blocks, error {fusion['max_abs_err']:.1e} in float32, "
            f"{fusion['max_rel_err_float64']:.1e} relative in float64"
        )
        written = result.output if layout == "bundle" else output
        stdout.print(f"{f'wrote {written}' if result.passed else 'failed'} in {result.seconds:.1f} s")
    if not result.passed:
        failed = sorted({f"{v.precision} on {v.engine}" for v in result.verification.variants if v.passed is False})
        fate = f"kept as {result.output}" if result.kept else "not written (--keep-failed keeps it)"
        stderr.quiet = False
        if result.only_gate_failed:
            drop = report["quantization"]["psnr_drop_db"]
            allowed = MAX_INT8_DROP if max_psnr_drop is None else max_psnr_drop
            layers = [
                layer for layer in report["quantization"]["layers"] if layer["cost_db"] and layer["precision"] == "int8"
            ]
            most = max(layers, key=lambda layer: sum(layer["cost_db"].values()), default=None)
            stderr.print(
                f"rdsr: int8 loses {drop} dB, more than the {allowed} allowed, and the bundle was {fate}; "
                + (f"of its layers, {most['layer']} costs most; " if most else "")
                + "`rdsr train qat` lowers it for RDSR, --max-psnr-drop allows it, --precision fp32 leaves int8 out",
                style="red",
            )
            raise typer.Exit(GATE_NOT_MET)
        stderr.print(f"rdsr: the bundle failed its proof ({', '.join(failed)}) and was {fate}", style="red")
        raise typer.Exit(FAILED)


@command
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove a bundle again on this machine, without torch: checksums, then every engine and precision.

    Example: rdsr verify rdsr-small.bundle
    """
    from ..runtime.bundle import Bundle
    from ..runtime.verify import verify as run

    with steps_shown("verify") as progress:
        result = run(Bundle(bundle), threads=threads, progress=progress)
    report = result.to_dict()
    if as_json:
        print_json(report)
    else:
        print_table(_variant_table(report))
        stdout.print("passed" if result.passed else "FAILED")
    if not result.passed:
        raise typer.Exit(FAILED)


@command
def info(
    path: Annotated[str, typer.Argument(help="Bundle folder, checkpoint file, or a shipped model's name.")],
    arch: ArchOption = None,
    autoencoder: AutoencoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a bundle or a checkpoint, and say how the bundle would run here.

    Example: rdsr info rdsr-small.bundle
    """
    if Path(path).is_dir():
        from ..runtime.describe import describe_bundle

        report = describe_bundle(Path(path))
    else:
        from ..models.registry import load_model, resolve_checkpoint

        report = load_model(resolve_checkpoint(path), arch=arch, autoencoder=autoencoder).describe()
    if as_json:
        print_json(report)
        return
    table = Table(show_header=False, title=printable(path))
    for key, value in report.items():
        shown = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value
        table.add_row(key, printable(", ".join(map(str, shown)) if isinstance(shown, (list, tuple)) else shown))
    print_table(table)


def _variant_table(report: dict[str, Any]) -> Table:
    title = f"{report['arch']} ×{report['scale']}, {report['params'] / 1e6:.2f} M parameters, {report['steps']} steps"
    if report["weights"] == "random":
        title += "; random weights: drops are against the float output and say nothing about quality"
    table = Table("precision", "engine", "graph", "max abs error", "PSNR drop (dB)", "sizes", "", title=printable(title))
    for row in report["variants"]:
        verdict = {True: "passed", False: "FAILED", None: row.get("skipped", "not run")}[row["passed"]]
        table.add_row(
            row["precision"],
            row["engine"],
            printable(row["graph"]),
            "" if row["max_abs_err"] is None else f"{row['max_abs_err']:.1e}",
            "" if row["psnr_drop_db"] is None else f"{row['psnr_drop_db']:+.4f}",
            str(len(row["sizes"])),
            verdict,
            style="red" if row["passed"] is False else None,
        )
    return table


def _quantization_tables(report: dict[str, Any]) -> list[Table]:
    """The report on int8: layer by layer, remedy by remedy, set by set, and the time it saves."""
    columns = ("layer", "precision", "weights up to", "input up to", "output", "cost (dB)")
    layers = Table(*columns, title="int8, layer by layer")
    for row in report["layers"]:
        layers.add_row(
            row["layer"] + (", identity outside" if row["identity"] else ""),
            row["precision"],
            f"{row['weight_range']:.3g}",
            "" if row["input_range"] is None else f"{row['input_range']:.3g}",
            "" if row["output_range"] is None else "{:.3g} … {:.3g}".format(*row["output_range"]),
            ", ".join(f"{what} {cost:.4f}" for what, cost in row["cost_db"].items()),
        )
    remedies = Table("remedy", "chosen", "PSNR drop with it (dB)", title=f"int8 by {report['source']}")
    for row in report["remedies"]:
        remedies.add_row(row["remedy"], row["chosen"], f"{row['psnr_drop_db']:+.4f}")
    sets = Table("pictures", "number", "PSNR drop (dB)", "worst (dB)", title="int8, set by set")
    for row in report["datasets"]:
        drops = (f"{row[key]:+.4f}" for key in ("psnr_drop_db", "worst_psnr_drop_db"))
        sets.add_row(row["dataset"], str(row["images"]), *drops)
    times = Table("engine", "LR size", "threads", "fp32 (ms)", "int8 (ms)", "times faster", title="a whole call")
    for row in report.get("times", []):
        size = "×".join(map(str, row["size"]))
        ratio = row["fp32_ms"] / row["int8_ms"]
        milliseconds = (f"{row[key]:.1f}" for key in ("fp32_ms", "int8_ms"))
        times.add_row(row["engine"], size, str(row["threads"]), *milliseconds, f"{ratio:.2f}")
    return [layers, remedies, sets, *([times] if times.rows else [])]
