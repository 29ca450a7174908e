"""The wheel, in an environment of its own without torch: imports, verifies, upscales, and says what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from rdsr.models.registry import shipped_weights
from rdsr.tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree in a folder whose name is no Python identifier, without what is not committed."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "demo", "runs", "__pycache__", "*.egg-info", ".*_cache"
    )
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("clone") / "x-1.y", ignore=ignored)


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(clone)]
    subprocess.run(command, check=True, cwd=folder)
    (path,) = folder.glob("rdsr-*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the executables of an environment with the wheel and its base dependencies alone."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, with_pip=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(command, check=True, cwd=folder)
    return folder / "bin"


def test_the_wheel_stays_small_with_all_weights(wheel: Path) -> None:
    assert wheel.stat().st_size < 30e6
    with zipfile.ZipFile(wheel) as content:
        assert {f"rdsr/models/weights/{path.name}" for path in shipped_weights().values()} <= set(content.namelist())


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_clone_under_any_folder_name_passes_its_tests(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "rdsr").symlink_to(clone)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    where = [sys.executable, "-c", "import rdsr.cli as cli; print(cli.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).resolve() == clone / "cli" / "__init__.py"
    tests = [
        "tests/runtime/test_metrics.py",
        "tests/benchmarks/latency/test_schedule.py",
        "tests/models/rdsr/test_network.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=clone, capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout


def test_wheel_carries_what_it_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in ("rdsr/py.typed", "rdsr/runtime/default_bundle/manifest.json", "rdsr/export/samples/HR/chart.png"):
        assert needed in names
    left_out = {"tests", "examples", "build", "dist"}
    folders = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in left_out and p.name[0] != "."]
    sources = [*ROOT.glob("*.py"), *(s for folder in folders for s in folder.rglob("*.py"))]
    carried = [
        p
        for room in ("models", "benchmarks")
        for kind in ("*.safetensors", "*.toml", "*.j2")
        for p in (ROOT / room).rglob(kind)
    ]
    assert {path.suffix for path in carried} == {".safetensors", ".toml", ".j2"}
    assert {f"rdsr/{p.relative_to(ROOT).as_posix()}" for p in [*sources, *carried]} <= names
    assert not [n for n in names if n.startswith(("rdsr/tests", "rdsr/build", "tests"))]
    bundle = sum(i.file_size for i in zipfile.ZipFile(wheel).infolist() if "/default_bundle/" in i.filename)
    assert bundle <= 8e6


def test_runtime_in_a_clean_environment(clean: Path, tmp_path: Path) -> None:
    script = (
        "import importlib.util, sys, json, numpy as np\n"
        "import rdsr.runtime\n"
        "missing = [m for m in ('torch', 'onnx', 'nncf') if importlib.util.find_spec(m) is None]\n"
        "picture = rdsr.Upscaler.load()(np.zeros((5, 7, 3), np.uint8))\n"
        "loaded = [m for m in ('torch', 'onnx', 'nncf') if m in sys.modules]\n"
        "print(json.dumps([missing, loaded, picture.shape]))\n"
    )
    done = run(clean / "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["torch", "onnx", "nncf"], [], [20, 28, 3]]


def test_commands_in_a_clean_environment(clean: Path, tmp_path: Path) -> None:
    bundle = subprocess.run(
        [clean / "python", "-c", "from rdsr.runtime.bundle import default_bundle_path as p; print(p())"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    verified = run(clean / "rdsr", "verify", bundle, "--json", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["passed"] is True
    cv2.imwrite(str(tmp_path / "in.png"), np.full((8, 8, 3), 128, np.uint8))
    upscaled = run(clean / "rdsr", "upscale", "in.png", "-o", "out.png", "--json", cwd=tmp_path)
    assert upscaled.returncode == 0, upscaled.stderr
    assert cv2.imread(str(tmp_path / "out.png")).shape == (32, 32, 3)
    exported = run(clean / "rdsr", "export", "rdsr-small", "-o", "b", cwd=tmp_path)
    assert exported.returncode == 1
    assert "rdsr[export]" in exported.stderr
    assert "Traceback" not in exported.stderr
