"""The trial of a bundle that is new to this machine, and the child processes in which it and `verify` run engines."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from rdsr.runtime import BundleError, EngineError, Upscaler, trial
from rdsr.runtime.bundle import Bundle
from rdsr.runtime.host import processes, watched
from rdsr.runtime.host.watched import ChildLostError, Limits, call_watched
from rdsr.runtime.verify import verify
from rdsr.tests.cli.running import run
from rdsr.tests.conftest import picture, replace_file, rewrite_manifest, run_alone

HERE = "rdsr.tests.runtime.child_functions"
ENOUGH = Limits(30, 2**30)


@pytest.fixture(autouse=True)
def _new_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has verified nothing yet."""
    monkeypatch.setenv("RDSR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_PASSED", set())
    monkeypatch.setattr(trial, "_REFUSED", {})


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The watched children that were started."""
    started: list[subprocess.Popen] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(watched.subprocess, "Popen", Recorded)
    return started


def all_gone(children: list[subprocess.Popen]) -> bool:
    return bool(children) and all(child.returncode is not None for child in children)


# -- children


@pytest.mark.parametrize(
    ("function", "limits", "words"),
    [
        ("crash", ENOUGH, "crashed with SIGSEGV (in the crash)"),
        ("spin", Limits(1, 2**30), "took more than 1 s of processor time (in the loop)"),
        ("fill", Limits(30, 2**28), "took more than 256 MiB of memory"),
        ("fail", ENOUGH, "failed: ValueError: a reason [31m in colour"),
    ],
)
def test_a_child_that_crashes_hangs_or_takes_too_much_ends_in_one_sentence(
    function: str, limits: Limits, words: str, children: list[subprocess.Popen]
) -> None:
    with pytest.raises(ChildLostError) as raised:
        call_watched(HERE, function, [], limits)
    assert str(raised.value) == words
    assert all_gone(children)


def test_a_child_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen]) -> None:
    monkeypatch.setattr(watched, "_IDLE_SECONDS", 1.0)
    with pytest.raises(ChildLostError, match="stood still"):
        call_watched(HERE, "sleep", [], ENOUGH)
    assert all_gone(children)


def test_an_error_of_the_caller_ends_the_child(children: list[subprocess.Popen]) -> None:
    def stop(step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_watched(HERE, "sleep", [], ENOUGH, progress=stop)
    assert all_gone(children)


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from rdsr.runtime.host.watched import Limits, call_watched\n"
        f"call_watched({HERE!r}, 'sleep', [], Limits(30, 2**30), progress=lambda _: print('asleep', flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "asleep\n"
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def test_what_libraries_print_does_not_mix_with_the_result() -> None:
    assert call_watched(HERE, "shout", [], ENOUGH) == "heard"


def test_a_child_imports_nothing_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "numpy", "importlib", "rdsr"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('from the working folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    folder, *path = call_watched(HERE, "place", [], ENOUGH)
    assert folder == str(tmp_path)
    assert folder not in path


def test_children_load_nothing_of_the_export() -> None:
    assert not {"torch", "onnx", "nncf", "onnxsim"} & set(call_watched(HERE, "modules_of_a_trial", [], ENOUGH))


def test_a_program_that_embeds_python_finds_the_interpreter_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/sbin/a-web-server")
    assert os.path.basename(processes.interpreter()) == "python3"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ChildProcessError, match="no Python interpreter"):
        processes.interpreter()


# -- trials


def test_a_new_bundle_is_tried_once_for_each_engine_and_precision(
    exported: Path, children: list[subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in ("onnxruntime", "openvino"):
        for precision in ("fp32", "int8"):
            upscaler = Upscaler.load(exported, backend=backend, precision=precision, threads=1)
            before = len(children)
            for _ in range(2):
                upscaler(picture(5, 4))
            assert len(children) == before + 1
    monkeypatch.setattr(trial, "_PASSED", set())  # another process
    Upscaler.load(exported, backend="onnxruntime", precision="fp32")(picture(5, 4))
    assert len(children) == 4
    assert all_gone(children)


def test_opening_a_bundle_starts_no_process(exported: Path, children: list[subprocess.Popen]) -> None:
    Upscaler.load(exported, precision="fp32").plan(100, 100)
    assert not children


def test_the_own_bundle_needs_no_trial(children: list[subprocess.Popen]) -> None:
    Upscaler.load(backend="onnxruntime", precision="fp32")(picture(5, 4))
    assert not children


def test_another_graph_is_tried_anew(bundle: Path, children: list[subprocess.Popen]) -> None:
    Upscaler.load(bundle, backend="onnxruntime", precision="fp32")(picture(5, 4))
    model = onnx.load(bundle / "decoder.onnx")
    model.producer_name = "another"
    replace_file(bundle, "decoder.onnx", model.SerializeToString())
    Upscaler.load(bundle, backend="onnxruntime", precision="fp32")(picture(5, 4))
    assert len(children) == 2


def test_without_a_cache_each_process_tries_once(
    exported: Path, children: list[subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDSR_CACHE_DIR", os.devnull)
    for _ in range(2):
        Upscaler.load(exported, backend="onnxruntime", precision="fp32")(picture(5, 4))
    assert len(children) == 1
    monkeypatch.setattr(trial, "_PASSED", set())  # another process
    Upscaler.load(exported, backend="onnxruntime", precision="fp32")(picture(5, 4))
    assert len(children) == 2


def test_what_verify_has_proven_needs_no_trial(exported: Path, children: list[subprocess.Popen]) -> None:
    assert verify(Bundle(exported)).passed
    del children[:]
    for precision in ("fp32", "int8"):
        Upscaler.load(exported, backend="openvino", precision=precision)(picture(5, 4))
    assert not children


def test_what_an_export_has_proven_needs_no_trial(
    checkpoint: Path, tmp_path: Path, children: list[subprocess.Popen]
) -> None:
    output = tmp_path / "new.bundle"
    assert run("export", checkpoint, "-o", output, "--precision", "fp32").exit_code == 0
    del children[:]
    Upscaler.load(output, backend="onnxruntime")(picture(5, 4))
    assert not children


@pytest.mark.parametrize(
    ("limit", "value", "word"), [("child_seconds", 0.01, "processor time"), ("child_memory", 2**20, "MiB of memory")]
)
def test_a_bundle_that_takes_too_much_is_refused_once_and_for_all(
    exported: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen], limit: str, value: int, word: str
) -> None:
    upscaler = Upscaler.load(exported, backend="onnxruntime", precision="int8")
    with monkeypatch.context() as patch:
        patch.setattr(trial, limit, lambda *_: value)
        for _ in range(3):
            with pytest.raises(BundleError, match=f"int8 graphs in onnxruntime took more than .* {word}"):
                upscaler(picture(5, 4))
    assert len(children) == 1
    assert all_gone(children)
    assert upscaler(picture(5, 4, dtype="uint16")).shape == (20, 16, 3)  # its float32 graphs are tried on their own


def test_a_crash_of_an_engine_is_an_error(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = watched.call_watched
    crash = "crash_of_a_trial"
    monkeypatch.setattr(watched, "call_watched", lambda module, function, *rest, **more: real(HERE, crash, *rest, **more))
    with pytest.raises(BundleError, match="fp32 graphs in openvino crashed with SIGSEGV"):
        Upscaler.load(exported, backend="openvino", precision="fp32")(picture(5, 4))
    with pytest.raises(BundleError, match="verify it crashed with SIGSEGV"):
        verify(Bundle(exported))


def test_what_the_pipeline_raises_in_a_trial_keeps_its_type(bundle: Path) -> None:
    rewrite_manifest(bundle, scale=2)
    with pytest.raises(EngineError, match="shape"):
        Upscaler.load(bundle, precision="fp32")(picture(5, 4))


def test_where_no_process_can_be_started_the_error_names_the_way_out(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "frozen", True, raising=False)
        with pytest.raises(EngineError, match=r"new to this machine.*`rdsr verify`"):
            Upscaler.load(exported, backend="onnxruntime", precision="fp32")(picture(5, 4))
    assert verify(Bundle(exported)).passed
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    Upscaler.load(exported, backend="onnxruntime", precision="fp32")(picture(5, 4))


def test_threads_that_need_the_same_trial_share_it(exported: Path, children: list[subprocess.Popen]) -> None:
    upscalers = [Upscaler.load(exported, backend="onnxruntime", precision="fp32", threads=1) for _ in range(4)]
    results: list[np.ndarray] = []
    source = picture(5, 4)
    threads = [threading.Thread(target=lambda u=u: results.append(u(source))) for u in upscalers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(children) == 1


def test_a_trial_works_in_a_daemon_without_streams_under_a_memory_limit(exported: Path, tmp_path: Path) -> None:
    script = """
        import os, sys
        import numpy as np
        from rdsr.runtime import Upscaler
        upscaler = Upscaler.load(sys.argv[1], backend="openvino", precision="int8", memory_limit="256MiB")
        kept = os.dup(1)
        for descriptor in range(3):
            os.close(descriptor)
        done = upscaler.submit(np.zeros((5, 4, 3), np.uint8)).result()
        os.write(kept, str(done.shape).encode())
    """
    assert run_alone(script, exported) == "(20, 16, 3)"


def test_ctrl_c_ends_a_trial(exported: Path) -> None:
    script = """
        import os, signal, sys
        import numpy as np
        from rdsr.runtime import Upscaler
        from rdsr.runtime.host import watched
        signal.signal(signal.SIGINT, signal.default_int_handler)
        real = watched.subprocess.Popen
        def popen(*args, **options):
            os.kill(os.getpid(), signal.SIGINT)
            return real(*args, **options)
        upscaler = Upscaler.load(sys.argv[1], backend="onnxruntime", precision="fp32")
        watched.subprocess.Popen = popen
        try:
            upscaler(np.zeros((5, 4, 3), np.uint8))
        except KeyboardInterrupt:
            print("stopped")
        watched.subprocess.Popen = real
        print(upscaler(np.zeros((5, 4, 3), np.uint8)).shape)
    """
    assert run_alone(script, exported).split("\n")[:2] == ["stopped", "(20, 16, 3)"]
