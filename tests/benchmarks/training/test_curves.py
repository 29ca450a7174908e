"""Curves of runs: rows of a log, runs that follow each other, files that are not logs."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import pytest

from rdsr.benchmarks.errors import BenchmarkError
from rdsr.benchmarks.training.curves import course, plot_runs, read_log

LOG = "step,minutes,loss,pixel,psnr_y\n100,1.0,0.05,0.04,\n200,2.0,0.04,0.03,28.1\n"


def test_runs_that_follow_each_other_are_one_curve(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text(LOG)
    (tmp_path / "copy.csv").write_text(LOG.replace("28.1", "28.4"))
    minutes, loss, checked, psnr = course([tmp_path / "run", tmp_path / "copy.csv"])
    assert minutes == [1.0, 2.0, 3.0, 4.0]
    assert loss == [0.04, 0.03, 0.04, 0.03]
    assert list(zip(checked, psnr, strict=True)) == [(2.0, 28.1), (4.0, 28.4)]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    plot_runs({"small": [tmp_path], "tiny": [tmp_path / "log.csv"]}, tmp_path / "deep" / "curve.png")
    picture = cv2.imread(str(tmp_path / "deep" / "curve.png"))
    assert picture is not None
    assert picture.std() > 5


@pytest.mark.parametrize("content", [None, "", "step,minutes,pixel,psnr_y\n", "a,b\n1,2\n", "\xff"])
def test_what_is_no_log_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "log.csv").write_text(content, encoding="latin-1")
    with pytest.raises(BenchmarkError, match=r"log\.csv"):
        read_log(tmp_path)


def test_a_pipe_and_a_device_are_no_logs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BenchmarkError, match="no regular file"):
            read_log(path)
