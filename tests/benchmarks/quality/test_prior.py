"""The effect of the latent prior: rows that must be zero are, and rows that must differ do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rdsr.benchmarks.quality.prior import measure_prior
from rdsr.cli.main import app
from rdsr.export.build_proof import SAMPLES


def test_rows_tell_what_changes(checkpoint: Path) -> None:
    """The random network of these tests listens to its prior, so other priors give other pictures."""
    rows = {row.prior: row for row in measure_prior(str(checkpoint), SAMPLES, windows=(16, 4096), seeds=2, threads=2)}
    base = rows["whole picture, seed 0"]
    assert (base.change_db, base.largest_difference, base.changed_pixels) == (0, 0, 0)
    one_window = rows["windows of 4096×4096 LR pixels"]
    assert (one_window.psnr_y, one_window.largest_difference) == (base.psnr_y, 0), "one window is the whole picture"
    for name in (
        "windows of 16×16 LR pixels",
        "another picture's",
        "seed 1",
        "zero as initial latent",
        "LPE, which sees the original",
    ):
        assert rows[name].changed_pixels > 0
        assert rows[name].largest_difference > 0
        assert rows[name].psnr_y == pytest.approx(base.psnr_y + rows[name].change_db, abs=2e-4)


def test_windows_meet_without_seams_where_the_prior_is_not_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the modulation off, windows must give the whole picture to the last bit or two: the halo is right."""
    import torch

    from rdsr.models.rdsr.blocks import Modulation

    monkeypatch.setattr(Modulation, "forward", lambda self, x, z: x)
    with torch.no_grad():
        rows = measure_prior(str(checkpoint), SAMPLES, windows=(7,), seeds=1, threads=2)
    windows = next(row for row in rows if row.prior.startswith("windows"))
    assert windows.largest_difference <= 1  # a value half-way between two levels may round either way
    assert windows.changed_pixels < 1e-4


def test_command(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["bench", "prior", "--checkpoint", str(checkpoint), "--dataset", str(SAMPLES), "--seeds", "1"]
    result = CliRunner().invoke(app, [*arguments, "--windows", "20", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "windows of 20×20 LR pixels" in result.stdout
    assert "zero as initial latent" in (tmp_path / "prior.md").read_text()
    wrong = CliRunner().invoke(app, [*arguments[:-3], str(tmp_path / "none")])
    assert wrong.exit_code == 2
    assert "does not exist" in wrong.stderr


def test_pictures_come_under_every_degradation(checkpoint: Path) -> None:
    options = {"windows": (4096,), "seeds": 1, "threads": 2}
    rows = {row.prior: row for row in measure_prior(str(checkpoint), SAMPLES, degradations=("blur", "jpeg"), **options)}
    blur, jpeg = (
        {row.prior: row for row in measure_prior(str(checkpoint), SAMPLES, degradations=(name,), **options)}
        for name in ("blur", "jpeg")
    )
    name = "whole picture, seed 0"
    assert rows[name].psnr_y == pytest.approx((blur[name].psnr_y + jpeg[name].psnr_y) / 2, abs=1e-3)
    same, other = (rows[f"another picture's, of {what} degradation"] for what in ("the same", "another"))
    assert same.largest_difference > 0
    assert other.largest_difference > 0
    assert "another picture's" in blur
