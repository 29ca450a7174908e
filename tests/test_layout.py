"""The house's own rules: packages, arrows between them, file lengths, nothing of a machine in the text."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from rdsr.tests.conftest import ROOT

PACKAGES = ("models", "export", "runtime", "benchmarks")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
ALLOWED = {"models": set(), "runtime": set(), "export": {"models", "runtime"}, "benchmarks": {"export", "models", "runtime"}}
HEAVY = {"torch", "onnx", "nncf", "onnxsim"}


def test_wheel_lists_every_package_of_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"rdsr"} | {
        ".".join(("rdsr", *p.parent.relative_to(ROOT).parts)) for n in PACKAGES for p in (ROOT / n).rglob("__init__.py")
    }
    assert listed == found


def imported(path: Path) -> set[tuple[str, ...]]:
    """Modules that a file imports, ours as ("rdsr", package, …)."""
    package = path.parent.relative_to(ROOT).parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = ("rdsr", *package)[: len(package) + 2 - node.level]
                names |= {(*base, *module, alias.name) for alias in node.names}
            else:
                names.add(module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = path.relative_to(ROOT).parts
    for name in imported(path):
        if name[0] != "rdsr":
            assert not (here[0] == "runtime" and name[0] in HEAVY), f"{path} imports {name[0]}"
            continue
        target = name[1]
        if target in PACKAGES and target != here[0]:
            training = here[:2] == ("models", "training") and name[1:3] == ("runtime", "metrics")
            assert target in ALLOWED[here[0]] or training, f"{path} imports {'.'.join(name)}"


@pytest.mark.parametrize("path", [*SOURCES, *sorted(ROOT.glob("*.py"))], ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_are_and_stay_short(path: Path) -> None:
    text = path.read_text()
    if path.name != "__init__.py" or text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it does"
    assert len(text.splitlines()) <= 400, f"{path} asks to be split"


def test_nothing_of_a_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so there is no list of committed files")
    pattern = re.compile(r"/(home|root|work|opt)/|://\S*py(pi|thonhosted)\.")  # folders of a machine, package registries
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".yml"} or path.name in {"Makefile", "run"}:
            if path == Path(__file__) or not path.is_file():
                continue
            match = pattern.search(path.read_text())
            assert not match, f"{name} names {match[0]}"
