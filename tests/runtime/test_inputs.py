"""Which files are inputs, which are left out and why, and what the outputs are called."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest

from rdsr.runtime import OutputError, PictureError
from rdsr.runtime.file_plan import FilePlan, plan_files
from rdsr.runtime.inputs import STANDARD_STREAM, Inputs, find_inputs
from rdsr.runtime.pictures.formats import WriteOptions

LONG = "x" * 300


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(*names: str) -> None:
    """Files that hold nothing: here only names count."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(inputs: Inputs) -> list[str]:
    return [str(entry.path) for entry in inputs.files]


def skipped(inputs: Inputs | FilePlan) -> dict[str, str]:
    return {str(entry.input): entry.reason for entry in inputs.skipped}


def outputs(plan: FilePlan) -> dict[str, str]:
    return {str(file.input): str(file.output) for file in plan.files}


def test_a_folder_and_the_list_that_a_shell_makes_of_it_are_alike() -> None:
    files("g/a.png", "g/b.JPG", "g/c.jfif", "g/d.gif", "g/Thumbs.db", "g/e.heic", "g/notes.txt", "g/README")
    os.symlink("nowhere.png", "g/gone.png")
    os.symlink("round.png", "g/round.png")
    os.mkfifo("g/pipe.png")
    of_folder, of_list = find_inputs(["g"]), find_inputs([f"g/{name}" for name in sorted(os.listdir("g"))])
    assert found(of_folder) == found(of_list) == ["g/a.png", "g/b.JPG", "g/c.jfif", "g/d.gif"]
    assert skipped(of_folder) == skipped(of_list) == {
        "g/README": "its name has no suffix",
        "g/Thumbs.db": ".db files cannot be read",
        "g/e.heic": ".heic files cannot be read",
        "g/gone.png": "it is a link that leads nowhere",
        "g/notes.txt": ".txt files cannot be read",
        "g/pipe.png": "it is no regular file",
        "g/round.png": "it cannot be read: Too many levels of symbolic links",
    }  # fmt: skip
    quoted = find_inputs(["g/*"])
    assert (found(quoted), skipped(quoted)) == (found(of_folder), skipped(of_folder))


def test_hidden_files_are_not_pictures_of_a_folder() -> None:
    files("g/a.png", "g/._a.png", "g/.thumbnails/b.png")
    assert found(find_inputs(["g"], recursive=True)) == found(find_inputs(["g/**"])) == ["g/a.png"]
    assert found(find_inputs(["g/._a.png"])) == ["g/._a.png"], "unless they are named"
    assert found(find_inputs(["g/.*.png"])) == ["g/._a.png"]


@pytest.mark.parametrize("name", ["photo.dat", "photo", "photo.heic", "ph[o]to.xyz", "*.png"])
def test_a_single_file_is_tried_whatever_its_suffix_is(name: str) -> None:
    files(name)
    assert found(find_inputs([name])) == [name]
    assert outputs(plan_files([name], "out")) == {name: f"out/{Path(name).stem}.png"}


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("d[1]/*.png", ["d[1]/a.png", "d[1]/b[2].png"]),
        ("d[1]/b[2].png", ["d[1]/b[2].png"]),
        ("*/b[2].png", ["d[1]/b[2].png"]),
        ("d[1]/?.p[mn]g", ["d[1]/a.png"]),
        ("**/*.png", ["d1/c.png", "d1/deep/er/e.png", "d[1]/a.png", "d[1]/b[2].png", "top.png"]),
        ("d1/**", ["d1/c.png", "d1/deep/er/e.png"]),
        ("d1/**/er/*", ["d1/deep/er/e.png"]),
        ("d[1-9]/*", ["d1/c.png"]),
    ],
)
def test_globs(pattern: str, matches: list[str]) -> None:
    files("d[1]/a.png", "d[1]/b[2].png", "d1/c.png", "d1/deep/er/e.png", "top.png")
    os.symlink("..", "d1/deep/up")  # round in a circle
    assert sorted(found(find_inputs([pattern]))) == matches
    absolute = str(Path(pattern).absolute())
    assert sorted(found(find_inputs([absolute]))) == [str(Path(name).absolute()) for name in matches]


def test_recursion_mirrors_the_tree() -> None:
    files("in/a.png", "in/x/a.png", "in/x/y/b.jpg", "in/.hidden/c.png", "in/out/old.png", "in/empty/notes.txt")
    os.symlink("..", "in/x/up")
    plan = plan_files(["in"], "in/out", recursive=True)
    assert outputs(plan) == {
        "in/a.png": "in/out/a.png",
        "in/x/a.png": "in/out/x/a.png",
        "in/x/y/b.jpg": "in/out/x/y/b.jpg",
    }
    assert skipped(plan) == {
        "in/empty/notes.txt": ".txt files cannot be read",
        "in/x/up": "it is a link to a folder",
    }
    flat = plan_files(["in"], "in/out")
    assert outputs(flat) == {"in/a.png": "in/out/a.png"}
    assert skipped(flat) == {"in/empty": "it is a folder", "in/x": "it is a folder"}


def test_a_tree_deeper_than_the_stack() -> None:
    name = str(Path("in", *["d"] * 200, "a.png"))
    files(name)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert found(find_inputs(["in"], recursive=True)) == [name]
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_below_that_cannot_be_searched_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The permission is simulated, because root may search everything."""
    files("in/a.png", "in/x/b.png")
    listdir = os.listdir

    def refuse(path: object) -> list[str]:
        if str(path).endswith("x"):
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    inputs = find_inputs(["in"], recursive=True)
    assert (found(inputs), skipped(inputs)) == (["in/a.png"], {"in/x": "the folder cannot be read: Permission denied"})
    with pytest.raises(PictureError, match="cannot read the folder in/x: Permission denied"):
        find_inputs(["in/x"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["none.png"], "cannot read none.png: No such file or directory"),
        ([""], "empty name"),
        ([LONG], "File name too long"),
        (["a\0b.png"], "null byte"),
        (["a\0*.png"], "null byte"),
        (["round.png"], "Too many levels of symbolic links"),
        (["a.png/b"], "Not a directory"),
        (["bare"], "the folder bare holds no pictures"),
        (["*.xyz"], r"no picture matches \*\.xyz"),
        (["b*"], r"no picture matches b\*"),
        ([f"{LONG}*"], "no picture matches"),
        (["a.png", "none.png"], "cannot read none.png"),
        (["a.png", "-"], "only input"),
        (["x.txt", "y.heic", "bare"], "none of the 3 inputs can be read as a picture"),
        (["/dev/null"], "no regular file"),
    ],
)
def test_what_is_no_input(inputs: list[str], words: str) -> None:
    files("a.png", "bare/x.txt", "x.txt", "y.heic")
    os.symlink("round.png", "round.png")
    with pytest.raises(PictureError, match=words):
        find_inputs(inputs)


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("a.png", {}, "a.png"),
        ("a.JPG", {}, "a.JPG"),
        ("a.b.jfif", {}, "a.b.jfif"),
        ("a.gif", {}, "a.png"),
        ("a.gif", {"format": "avif"}, "a.avif"),
        ("a.png", {"format": "jpg"}, "a.jpg"),
        ("a.tiff", {"format": "tif"}, "a.tiff"),
    ],
)
def test_names_of_outputs(name: str, options: dict[str, str], output: str) -> None:
    files(f"in/{name}")
    assert outputs(plan_files(["in"], "out", options=WriteOptions(**options))) == {f"in/{name}": f"out/{output}"}
    os.mkdir("there")
    assert outputs(plan_files([f"in/{name}"], "there", options=WriteOptions(**options))) == {f"in/{name}": f"there/{output}"}


def test_a_file_a_folder_or_the_standard_output() -> None:
    files("a.png")
    os.mkdir("d.tif")
    assert outputs(plan_files(["a.png"], "b.webp")) == {"a.png": "b.webp"}
    assert outputs(plan_files(["a.png"], "v1.2/")) == {"a.png": "v1.2/a.png"}, "a name with a slash is a folder"
    assert outputs(plan_files(["a.png"], "d.tif")) == {"a.png": "d.tif/a.png"}
    assert plan_files(["a.png"], "-").files[0].output == STANDARD_STREAM
    assert plan_files(["-"], "b.png").files[0].input == STANDARD_STREAM
    assert plan_files(["a.png"], "b.webp").folder is None


def test_a_file_that_is_named_twice_is_one_file() -> None:
    files("in/a.png", "in/b.png")
    assert outputs(plan_files(["in", "in/a.png", "./in/../in/b.png"], "out")) == {
        "in/a.png": "out/a.png",
        "in/b.png": "out/b.png",
    }


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (["in/a.png", "other/a.png"], "out", r"in/a\.png and other/a\.png would both become out/a\.png"),
        (["in/g.gif", "in/g.png"], "out", r"in/g\.gif and in/g\.png would both become out/g\.png"),
        (["in/a.png"], "in/a.png", r"the output in/a\.png is one of the inputs"),
        (["in"], "in", "is one of the inputs"),
        (["in/a.png"], "linked", r"the output linked/a\.png is one of the inputs"),
        (["in"], "out.png", "several pictures need a folder"),
        (["in"], "in/a.png", "it is a file, not a folder"),
        (["in"], "in/a.png/x", "not a folder"),
        (["in"], "-", "only a single picture"),
        (["-"], "out", "needs a file or - as output"),
        (["in/a.png"], "", "empty name"),
        (["in/a.png"], "x.gif", "suffix"),
        (["in/a.png"], f"{LONG}.png", "File name too long"),
        (["in/a.png"], f"{LONG}/a.png", "File name too long"),
        (["in"], LONG, "File name too long"),
        (["in"], "a\0b", "null byte"),
        (["in"], "round", "Too many levels of symbolic links"),
        (["in"], "round/x", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_output(inputs: list[str], output: str, words: str) -> None:
    files("in/a.png", "in/g.gif", "in/g.png", "other/a.png")
    if inputs == ["in"]:
        os.unlink("in/g.gif")
    os.symlink("in", "linked")
    os.symlink("round", "round")
    before = sorted(Path().rglob("*"))
    with pytest.raises((OutputError, PictureError), match=words):
        plan_files(inputs, output)
    assert sorted(Path().rglob("*")) == before


def test_names_that_are_no_unicode() -> None:
    name = os.fsdecode(b"in/\xff\xfe.png")
    files(name)
    assert found(find_inputs(["in"])) == found(find_inputs([name])) == found(find_inputs(["in/*"])) == [name]
    assert outputs(plan_files(["in"], "out")) == {name: os.fsdecode(b"out/\xff\xfe.png")}
