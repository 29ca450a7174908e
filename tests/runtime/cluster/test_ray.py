"""A folder on a local Ray cluster of two workers, each a process; and the service on Ray Serve."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from ray import serve
from typer.testing import CliRunner

from rdsr.cli.main import app as command_line
from rdsr.runtime import EngineError, OptionError, Upscaler
from rdsr.runtime.cluster import ray_job
from rdsr.runtime.cluster.addresses import AddressedFile, plan_addresses
from rdsr.runtime.cluster.batch import AddressBatch
from rdsr.runtime.cluster.deployment import app
from rdsr.runtime.cluster.ray_job import ClusterJob, ray_cluster, run_on_ray
from rdsr.runtime.pictures.formats import WriteOptions
from rdsr.tests.conftest import until
from rdsr.tests.runtime.cluster.pictures import encoded, fill
from rdsr.tests.runtime.cluster.poisoned import Poisoned

pytestmark = pytest.mark.slow
PICTURES = 500


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    serve.shutdown()
    ray.shutdown()


def workers() -> list[int]:
    """Processes of the pool's actors."""
    titles = ((process.pid, " ".join(process.info["cmdline"] or ())) for process in psutil.process_iter(["cmdline"]))
    return [number for number, title in titles if title.startswith("ray::") and "Worker" in title]


def test_every_picture_once_though_a_worker_is_killed(tmp_path: Path) -> None:
    source, here, there = fill(tmp_path / "in", PICTURES), tmp_path / "here", tmp_path / "there"
    done = CliRunner().invoke(command_line, ["upscale", str(source), "-o", str(here), "--recursive", "--threads", "1"])
    assert done.exit_code == 0
    plan = plan_addresses([str(source)], str(there), WriteOptions(), recursive=True)
    batch = AddressBatch(Upscaler.load(threads=1), plan, WriteOptions(), engine="ray", threads=1)
    killed: list[int] = []

    def kill(done: int, name: str) -> None:
        if done >= PICTURES // 5 and not killed and len(workers()) == 2:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    batch.run(kill)
    assert killed, "there were never two workers"
    assert sorted(outcome.output for outcome in batch.outcomes) == sorted(file.output for file in plan.files)
    assert not [outcome.error for outcome in batch.outcomes if outcome.error]
    paths = [path.relative_to(here) for path in here.rglob("p*")]
    assert len(paths) == PICTURES
    for path in paths:
        assert (there / path).read_bytes() == (here / path).read_bytes()
    again = AddressBatch(Upscaler.load(threads=1), plan, WriteOptions(), engine="ray", threads=1, resume=True)
    again.run()
    assert (len(again.done_before), again.outcomes) == (PICTURES, [])


def test_on_the_command_line(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", 4)
    (source / "bad.png").write_bytes(b"no picture")
    arguments = ["upscale", str(source), "-o", str(tmp_path / "out"), "--engine", "ray", "--threads", "1", "--json"]
    done = CliRunner().invoke(command_line, arguments)
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (len(report["outputs"]), len(report["failed"])) == (3, 1)
    assert "known format" in report["failed"][0]["error"]


def test_a_file_that_kills_its_workers_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job, "_Worker", Poisoned)
    names = [*(str(number) for number in range(20)), "poison"]
    files = [AddressedFile(name, f"out/{name}") for name in names]
    outcomes = list(run_on_ray(files, ClusterJob({}, "", WriteOptions()), processors=1))
    assert sorted(outcome.input for outcome in outcomes) == sorted(names)
    assert [outcome.input for outcome in outcomes if outcome.error] == ["poison"]


def test_another_bundle_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    files = plan_addresses([str(fill(tmp_path / "in", 2))], str(tmp_path / "out"), WriteOptions(), recursive=False).files
    with pytest.raises(EngineError, match="another bundle lies at"), ray_cluster(None):
        list(
            run_on_ray(files, ClusterJob({"bundle": None, "backend": "onnxruntime"}, "0" * 64, WriteOptions()), processors=1)
        )


# -- Ray Serve


def test_ray_serve_answers_the_same_bytes_and_grows() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"processors": "1", "max_replicas": "2", "max_pixels": "100000"}), name="rdsr", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=180) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200, seconds=180)
        answer = client.post("/v1/upscale", content=encoded(0), headers={"X-Request-ID": "abc"})
        assert answer.content == Upscaler.load(threads=1).encoded(encoded(0))
        assert "network;dur=" in answer.headers["server-timing"]
        assert client.post("/v1/upscale", content=b"none").status_code == 422
        assert client.get("/").text.startswith("<!doctype html>")

        def replicas() -> int:
            return serve.status().applications["rdsr"].deployments["rdsr"].replica_states.get("RUNNING", 0)

        with ThreadPoolExecutor(12) as pool:
            while replicas() < 2:
                answers = list(pool.map(lambda _: client.post("/v1/upscale", content=encoded(0)).status_code, range(100)))
                assert set(answers) <= {200, 429}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nothing": 1}, "no option nothing"), ({"max_replicas": "0"}, "max_replicas"), ({"queue": -1}, "queue"),
        ({"bundles": "a b=x"}, "cannot be called"), ({"processors": "many"}, "processors"), ({"queue": "x"}, "queue"),
    ],
)  # fmt: skip
def test_deployments_that_make_no_sense(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        app(arguments)
