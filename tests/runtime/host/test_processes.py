"""`Upscaler` and processes: forked, spawned, idle."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rdsr.runtime.engines import BACKENDS
from rdsr.runtime.host.processes import call_apart
from rdsr.tests.conftest import run_alone

_FORKS = (
    "import os, sys, numpy as np\n"
    "from rdsr.runtime import EngineError, Upscaler\n"
    "source = np.full((20, 30, 3), 77, np.uint8)\n"
    "upscaler = Upscaler.load(sys.argv[1], backend=sys.argv[2], precision='fp32')\n"
    "if sys.argv[3] == 'used': upscaler(source)\n"
    "codes = []\n"
    "for _ in range(2):\n"
    "    child = os.fork()\n"
    "    if child == 0:\n"
    "        try:\n"
    "            same = (upscaler(source) == upscaler.submit(source).result()).all()\n"
    "        except EngineError as error:\n"
    "            assert 'first call after the fork' in str(error)\n"
    "            os._exit(7)\n"
    "        sys.exit(0 if same else 1)\n"
    "    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    "upscaler(source)\n"
    "print(codes)\n"
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("parent", "codes"), [("unused", [0, 0]), ("used", [7, 7])])
def test_preloaded_it_works_in_forked_children_and_refuses_once_used(
    exported: Path, backend: str, parent: str, codes: list[int]
) -> None:
    """gunicorn's preloading: the parent loads and forks, the children serve (0), or say why they cannot (7)."""
    command = [sys.executable, "-W", "ignore", "-c", _FORKS, str(exported), backend, parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{codes}\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_default_bundle_can_be_preloaded(tmp_path: Path) -> None:
    """Where `auto` has to time int8 first, it does so without loading an engine into the process that forks."""
    script = (
        "import os, sys, numpy as np\n"
        "from rdsr.runtime import Upscaler\n"
        "upscaler = Upscaler.load()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit(0 if upscaler(np.zeros((9, 9, 3), np.uint8)).shape == (36, 36, 3) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = os.environ | {"RDSR_CACHE_DIR": str(tmp_path), "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_spawned_pool_works(exported: Path, tmp_path: Path) -> None:
    """From a script: what the pool runs must be importable in its processes."""
    script = """
        import multiprocessing, sys, numpy as np
        from concurrent.futures import ProcessPoolExecutor
        from rdsr.runtime import Upscaler
        from rdsr.runtime.engines import BACKENDS

        def upscaled_size(bundle, backend):
            return Upscaler.load(bundle, backend=backend, precision="fp32")(np.zeros((5, 6, 3), np.uint8)).shape

        if __name__ == "__main__":
            with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
                print(list(pool.map(upscaled_size, [sys.argv[1]] * 2, BACKENDS)))
    """
    (tmp_path / "pool.py").write_text(textwrap.dedent(script))
    command = [sys.executable, str(tmp_path / "pool.py"), str(exported)]
    assert subprocess.check_output(command, text=True, timeout=300) == "[(20, 24, 3), (20, 24, 3)]\n"


def test_idle_costs_next_to_no_time(exported: Path) -> None:
    script = (
        "import sys, time, numpy as np\n"
        "from rdsr.runtime import Upscaler\n"
        "upscaler = Upscaler.load(sys.argv[1], backend=sys.argv[2], precision='fp32')\n"
        "upscaler.submit(np.zeros((50, 50, 3), np.uint8)).result()\n"
        "time.sleep(0.5)\n"
        "def spent():\n"
        "    before = time.process_time(); time.sleep(0.5); return time.process_time() - before\n"
        "print(min(spent() for _ in range(5)))\n"
    )
    for backend in ("openvino", "onnxruntime"):
        assert float(run_alone(script, exported, backend)) < 0.025, "in the idlest half second of five"


def test_a_program_that_is_no_python_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("frozen", True), ("executable", "/usr/bin/uwsgi"), ("executable", "")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value, raising=False)
            patch.setattr(sys, "prefix", os.devnull)  # nor is there an interpreter beside it
            with pytest.raises(ChildProcessError, match="no Python interpreter"):
                call_apart("os", "getpid", [])
    assert call_apart("os", "getpid", []) != os.getpid()
