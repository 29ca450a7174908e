"""Pictures at fsspec addresses: planning, `rdsr upscale`, resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner, Result

from rdsr.cli.main import app
from rdsr.runtime import OutputError, PictureError, Upscaler
from rdsr.runtime.cluster import batch as batch_module
from rdsr.runtime.cluster.addresses import (
    AddressedFile,
    address_of,
    is_address,
    list_addresses,
    plan_addresses,
    read_address,
    write_address,
)
from rdsr.runtime.cluster.batch import AddressBatch
from rdsr.runtime.pictures.formats import WriteOptions
from rdsr.tests.runtime.cluster.pictures import encoded, fill


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def put(system: Any, **files: bytes) -> None:
    for name, content in files.items():
        system.pipe_file("/" + name.replace("__", "/").replace("HIDDEN", ".hidden").replace("_", "."), content)


def rdsr(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["upscale", *arguments, "--threads", "1"])


def report(*arguments: str) -> dict[str, Any]:
    return dict(json.loads(rdsr(*arguments, "--json").stdout))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("s3://a/b", True),
        ("file:///a", True),
        ("a/b", False),
        ("/a", False),
        ("C:\\a", False),
        ("://a", False),
        ("a", False),
    ],
)
def test_what_is_an_address(name: str, answer: bool) -> None:
    assert is_address(name) == answer


def test_paths_are_addresses_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert address_of("a b/ü.png") == f"file://{tmp_path}/a b/ü.png"
    assert address_of("s3://x") == "s3://x"


def planned(inputs: list[str], output: str, **options: Any) -> dict[str, str]:
    plan = plan_addresses(
        inputs, output, WriteOptions(options.pop("format", None)), recursive=options.pop("recursive", False)
    )
    return {file.input.removeprefix("memory://"): file.output for file in plan.files}


def test_plans(memory: Any) -> None:
    put(memory, in__a_png=b"", in__b_jpg=b"", in__below__c_gif=b"", in__d_txt=b"", in__HIDDEN_png=b"")
    assert planned(["memory://in"], "memory://out") == {"/in/a.png": "memory://out/a.png", "/in/b.jpg": "memory://out/b.jpg"}
    assert planned(["memory://in/"], "memory://out/", recursive=True, format="webp") == {
        "/in/a.png": "memory://out/a.webp",
        "/in/b.jpg": "memory://out/b.webp",
        "/in/below/c.gif": "memory://out/below/c.webp",
    }
    assert planned(["memory://in/*.png"], "memory://out") == {"/in/a.png": "memory://out/a.png"}
    assert planned(["memory://in/a.png"], "memory://x/y.avif") == {"/in/a.png": "memory://x/y.avif"}
    assert planned(["memory://in/a.png"], "memory://x") == {"/in/a.png": "memory://x/a.png"}
    skipped = plan_addresses(["memory://in"], "memory://out", WriteOptions(), recursive=False).skipped
    assert [name.rsplit("/", 1)[1] for name, _ in skipped] == ["d.txt"]


@pytest.mark.parametrize(
    ("inputs", "output", "error", "words"),
    [
        (["memory://no"], "memory://out", PictureError, "no such file"),
        (["memory://none"], "memory://out", PictureError, "no picture"),
        (["memory://in"], "memory://out/x.png", OutputError, "folder"),
        (["memory://in", "memory://other"], "memory://out", OutputError, "both become"),
        (["memory://in"], "memory://in", OutputError, "one of the inputs"),
        (["nofs://in"], "memory://out", PictureError, "nofs"),
        (["memory://in"], "s4://out", OutputError, "s4"),
    ],
)
def test_what_cannot_be_planned(memory: Any, inputs: list[str], output: str, error: type[Exception], words: str) -> None:
    put(memory, in__a_png=b"", in__b_png=b"", other__a_png=b"", none__a_txt=b"")
    with pytest.raises(error, match=words):
        plan_addresses(inputs, output, WriteOptions(), recursive=False)


def test_files_are_whole_and_found_again(memory: Any, tmp_path: Path) -> None:
    for folder in ("memory://deep/er", f"file://{tmp_path}/deep/er"):
        assert list_addresses(folder, ".x") == []
        write_address(f"{folder}/a.x", b"1")
        write_address(f"{folder}/a.x", b"22")
        (found,) = list_addresses(folder, ".x")
        assert read_address(found) == b"22"
        with pytest.raises(PictureError, match="no such file"):
            read_address(f"{folder}/b.x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot use"):
        write_address(f"file://{tmp_path}/file/below.png", b"")


def test_a_tree_in_memory(memory: Any, tmp_path: Path) -> None:
    put(memory, in__a_png=encoded(0), in__below__b_jpg=encoded(1, ".jpg"), in__bad_png=b"none", in__c_txt=b"")
    done = rdsr("memory://in", "-o", "memory://out", "--recursive")
    assert done.exit_code == 1
    assert "known format" in done.stderr
    assert "skipped 1 files" in done.stderr
    library = Upscaler.load(threads=1)
    for name, seed, suffix in (("a.png", 0, ".png"), ("below/b.jpg", 1, ".jpg")):
        source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
        source.write_bytes(encoded(seed, suffix))
        library.file(source, target)
        assert memory.cat_file(f"/out/{name}") == target.read_bytes()
    again = report("memory://in", "-o", "memory://out", "--recursive", "--resume")
    assert sorted(each["reason"] for each in again["skipped"]) == ["already done"] * 2 + ["its suffix is that of no picture"]
    assert [again["outputs"], len(again["failed"])] == [[], 1]


def test_resuming_looks_at_inputs_outputs_and_options(memory: Any) -> None:
    put(memory, in__a_png=encoded(0), in__b_png=encoded(1), in__c_png=encoded(2), in__d_png=encoded(3))

    def redone(*options: str) -> list[str]:
        found = report("memory://in", "-o", "memory://out", "--resume", *options)["outputs"]
        return sorted(each["input"].rsplit("/", 1)[1] for each in found)

    assert redone() == ["a.png", "b.png", "c.png", "d.png"]
    assert redone() == []
    put(memory, in__a_png=encoded(9), out__b_png=b"damaged")
    memory.rm("/out/c.png")
    assert redone() == ["a.png", "b.png", "c.png"]
    assert redone("--scale", "2") == ["a.png", "b.png", "c.png", "d.png"]
    assert redone() == ["a.png", "b.png", "c.png", "d.png"], "what lies there was made in another way"
    record, *_ = list_addresses("memory://out/.rdsr-done", ".jsonl")
    write_address(record, b'{"output": 5}\n[[\n\xff\n')
    assert redone() == [], "the later lines count"


def test_the_output_folder_is_none_of_the_inputs(memory: Any) -> None:
    put(memory, in__a_png=encoded(0), in__out__b_png=encoded(1))
    for options in ((), ("--resume",)):
        found = report("memory://in", "-o", "memory://in/out", "--recursive", *options)
        assert [each["output"] for each in found["outputs"]] == ([] if options else ["memory://in/out/a.png"])
        assert found["failed"] == []


def test_names_are_literal(tmp_path: Path) -> None:
    for name in ("a[1].png", "b::c.png"):
        (tmp_path / name).write_bytes(encoded(0))
        plan = plan_addresses([str(tmp_path / name)], "memory://", WriteOptions(), recursive=False)
        assert plan.files == (AddressedFile(f"file://{tmp_path / name}", f"memory:///{name}"),)
        assert read_address(plan.files[0].input) == encoded(0)


def test_threads_share_a_file_system(memory: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_address(f"memory://many/{number}.x", b"%d" % number), range(200)))
    assert len(list_addresses("memory://many", ".x")) == 200


def test_a_single_bad_picture_is_bad_input(memory: Any) -> None:
    put(memory, in__a_png=b"none")
    assert rdsr("memory://in/a.png", "-o", "memory://out").exit_code == 2


def test_an_interrupted_job_has_recorded_what_it_did(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(memory, in__a_png=encoded(0), in__b_png=encoded(1), in__c_png=encoded(2), in__d_png=encoded(3))
    plan = plan_addresses(["memory://in"], "memory://out", WriteOptions(), recursive=False)
    batch = AddressBatch(Upscaler.load(threads=1), plan, WriteOptions())

    def stop(done: int, name: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.run(stop)
    assert (len(batch.outcomes), len(batch.left)) == (2, 2)
    again = AddressBatch(Upscaler.load(threads=1), plan, WriteOptions(), resume=True)
    again.run()
    assert (len(again.done_before), len(again.outcomes), again.left) == (2, 2, [])


def test_engines_that_fail_are_named(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rdsr.runtime import EngineError

    def broken(*_: object) -> None:
        raise EngineError("the engine is gone")

    monkeypatch.setattr(batch_module, "outcome_of", broken)
    put(memory, in__a_png=encoded(0))
    (failed,) = report("memory://in", "-o", "memory://out")["failed"]
    assert failed["error"] == "memory:///in/a.png: the engine is gone"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("memory://in", "-o", "-"), "neither addresses"), (("-", "-o", "memory://out"), "neither addresses"),
        (("memory://in", "-o", "memory://out", "--frames", "all"), "--frames all"),
        (("memory://in", "-o", "memory://out", "--address", "auto"), "--engine ray"),
        (("memory://in", "-o", "memory://out", "--engine", "ray"), "memory of this process"),
        (("memory://in", "-o", "memory://out", "--scale", "9"), "at most 4"),
        (("memory://in/a.png", "-o", "memory://out.jpg", "--lossless"), "always loses"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(memory: Any, arguments: tuple[str, ...], words: str) -> None:
    put(memory, in__a_png=encoded(0))
    done = rdsr(*arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_local_files_by_address(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 6)
    assert rdsr(f"file://{folder}", "-o", f"file://{tmp_path}/out", "--recursive").exit_code == 0
    assert rdsr(str(folder), "-o", str(tmp_path / "plain"), "--recursive").exit_code == 0
    for path in (tmp_path / "plain").rglob("p*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "plain")).read_bytes() == path.read_bytes()
