"""Fixtures: a network small enough to export in a second, its checkpoint, and the bundle made from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from rdsr.export.build_proof import LARGE
from rdsr.export.exporter import ExportOptions, export_checkpoint
from rdsr.models.checkpoint import save_checkpoint
from rdsr.models.diffir import DiffIRConfig
from rdsr.models.int8.samples import Condition
from rdsr.models.rdsr import RDSR, RDSRConfig
from rdsr.runtime import Upscaler
from rdsr.runtime.bundle import canonical_json, manifest_digest

ROOT = Path(__file__).resolve().parents[1]
# The same examples in every run: what fails on one machine fails on the next.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")
_RNG = np.random.default_rng(0)
CONFIG = RDSRConfig(
    width=12,
    depth=4,
    modulation_depths=(0, 2),
    condition_width=8,
    condition_depth=2,
    lpe_width=8,
    lpe_depth=2,
    latent_size=24,
)

DIFFIR_CONFIG = DiffIRConfig(
    dim=8,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    ffn_hidden=(8, 16, 32, 64, 16),
    n_encoder_res=1,
    heads=(1, 2, 2, 4),
)
"""Of a DiffIR small enough to export in seconds."""


def picture(height: int, width: int, channels: tuple[int, ...] = (3,), dtype: str = "uint8") -> np.ndarray:
    """Noise over the whole range of its type."""
    if dtype == "float32":
        return _RNG.random((height, width, *channels), dtype=np.float32)
    return _RNG.integers(0, np.iinfo(dtype).max, (height, width, *channels), dtype=dtype, endpoint=True)


def run_alone(script: str, *arguments: object, seconds: float = 300) -> str:
    """What an (indented) Python script prints in a process of its own, where no other test has touched memory or threads."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], bool], what: str = "it never came", *, seconds: float = 120.0) -> None:
    """Wait for what other threads or processes bring about, and fail where it would be waited for without end."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def random_network(config: RDSRConfig = CONFIG, seed: int = 0) -> RDSR:
    """A network in which every weight matters: nothing is left at an initial zero."""
    torch.manual_seed(seed)
    network = RDSR(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def prior_from(network: RDSR) -> Condition:
    """LR → latent prior of a network, without noise."""
    noise = torch.zeros(1, network.latent_size)
    return lambda lr: (network.latent_prior(lr, noise),)


def write_checkpoint(path: Path, network: RDSR) -> Path:
    save_checkpoint(path, network.state_dict(), "rdsr", network.config.to_dict(), {"stage": "test"})
    return path


def rewrite_manifest(bundle: Path, **changes: object) -> None:
    """What an attacker with an editor and our code would do: change the manifest and give it a matching digest."""
    content = json.loads((bundle / "manifest.json").read_text()) | changes
    content["digest"] = manifest_digest(content)
    (bundle / "manifest.json").write_bytes(canonical_json(content))


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Change a file of a bundle and make the manifest agree, as somebody would who wants to hide it."""
    (bundle / name).write_bytes(content)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    rewrite_manifest(bundle, files=files | {name: entry})


def with_bf16_rows(bundle: Path) -> None:
    """Claim a bf16 proof, so that choices can be tested on CPUs that have no bf16."""
    variants = json.loads((bundle / "manifest.json").read_text())["variants"]
    fp32 = next(v for v in variants if (v["precision"], v["engine"], v["graph"]) == ("fp32", "openvino", "decoder.onnx"))
    rewrite_manifest(bundle, variants=[*(v for v in variants if v["precision"] != "bf16"), fp32 | {"precision": "bf16"}])


def without_int8(bundle: Path) -> None:
    """Take the int8 rows out of the proof."""
    variants = json.loads((bundle / "manifest.json").read_text())["variants"]
    rewrite_manifest(bundle, variants=[row for row in variants if row["precision"] != "int8"])


class _FailuresAtOnce:
    """Names what fails when it fails: a run that is cut off never comes to its summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write_line(f"\n{report.nodeid}: {report.when} failed after {report.duration:.1f} s")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if (terminal := config.pluginmanager.get_plugin("terminalreporter")) is not None:  # in the process that prints
        config.pluginmanager.register(_FailuresAtOnce(terminal))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDSR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_exports() -> Iterator[None]:
    """Exports do not time int8 against float32, at 128×128, and the largest picture of their proof is a small one.

    Either takes some networks half a minute. The proof is whole in `tests/cli`, in `exported` and in other processes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rdsr.export.exporter.measure_time", lambda folder: [])
        patch.setattr("rdsr.export.build_proof.LARGE", (37, 45))
        yield


@pytest.fixture(scope="session")
def network() -> RDSR:
    return random_network()


@pytest.fixture(scope="session")
def checkpoint(network: RDSR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.safetensors", network)


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests must not change."""
    output = tmp_path_factory.mktemp("bundle") / "small.bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rdsr.export.build_proof.LARGE", LARGE)  # whichever test comes first
        assert export_checkpoint(ExportOptions(checkpoint=checkpoint, output=output)).passed
    return output


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own, to damage."""
    return shutil.copytree(exported, tmp_path / "copy.bundle")


@pytest.fixture(
    scope="module", params=[(b, p, t) for b in ("openvino", "onnxruntime") for p in ("fp32", "int8") for t in (1, 2)]
)
def engine(request: pytest.FixtureRequest, exported: Path) -> Upscaler:
    """Every engine, precision and thread count."""
    backend, precision, threads = request.param
    return Upscaler.load(exported, backend=backend, precision=precision, threads=threads)
