"""Rules of the code's layout: packages, arrows, no circles, file lengths, public names, no paths of a machine."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdsr.models.registry import ARCHITECTURES
from rdsr.tests.conftest import ROOT

PACKAGES = ("cli", "models", "export", "runtime", "benchmarks")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
GROUND = {"rdsr", "rdsr.errors", "rdsr.atomic", "rdsr.lazy"}
"""Modules of the root, which every package may use."""
ALLOWED = {
    "cli": {"benchmarks", "export", "models", "runtime"},
    "benchmarks": {"export", "models", "runtime"},
    "export": {"models", "runtime"},
    "models": set(),
    "runtime": set(),
}
RUNTIME_FLOORS = (
    ("arguments", "errors", "files", "metrics", "results", "timing"),
    ("host",),
    ("bundle", "engines"),
    ("choice", "pictures", "tiling", "trial"),
    ("pipelines",),
    ("batch", "claims", "describe", "done_files", "encoded", "file_plan", "inputs", "trial_child", "upscaler", "verify"),
    ("cluster", "service"),
)
"""Rooms of `runtime/` from the ground up: a room uses those on its own floor and below."""
HEAVY = {"torch", "onnx", "onnx_ir", "nncf", "onnxsim"}
NAMES = {
    "rdsr": ["Bundle", "RdsrError", "Upscaler", "__version__"],
    "rdsr.export": ["ExportOptions", "export_checkpoint"],
    "rdsr.models": ["load_model"],
    "rdsr.runtime": [
        "Bundle", "BundleError", "Cancel", "CancelledError", "Effective", "EngineError", "FileResult", "Manifest",
        "MemoryLimitError", "OptionError", "OutputError", "PictureError", "Plan", "RdsrError", "Result", "Upscaler",
        "WriteOptions",
    ],
}  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("rdsr", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in [*SOURCES, *ROOT.glob("*.py")]}


def test_wheel_lists_every_package_of_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {module for module, path in MODULES.items() if path.name == "__init__.py"}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it, types included."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    here = path.relative_to(ROOT).parts
    for name in imports(path):
        if not (name == "rdsr" or name.startswith("rdsr.")):
            assert not (here[0] == "runtime" and name.split(".")[0] in HEAVY), f"{path} imports {name}"
            continue
        if name in GROUND:
            continue
        there = name.split(".")[1:]
        training = here[:2] == ("models", "training") and there == ["runtime", "metrics"]
        assert there[0] in ALLOWED[here[0]] | {here[0]} or training, f"{path} imports {name}"


def floor_of(module: str) -> int:
    room = module.split(".")[2]
    return next(floor for floor, rooms in enumerate(RUNTIME_FLOORS) if room in rooms)


def test_nothing_in_the_runtime_reaches_upwards() -> None:
    inside = {module: path for module, path in MODULES.items() if module.startswith("rdsr.runtime.")}
    for module, path in inside.items():
        for name in imports(path):
            if name in inside:
                assert floor_of(name) <= floor_of(module), f"{module} imports {name}"


@pytest.mark.parametrize("rooms", [False, True], ids=["modules", "rooms"])
def test_no_circles(rooms: bool) -> None:
    """Neither modules nor folders import each other in a circle, inside functions or not."""

    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        ends = [module, *(name for name in imports(path) if name in MODULES)]
        start, *others = [".".join(name.split(".")[:3]) for name in ends] if rooms else ends
        arrows.setdefault(start, set()).update(set(others) - {start})
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                visit(other, (*way, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())


@pytest.mark.parametrize("path", [*SOURCES, *sorted(ROOT.glob("*.py"))], ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_are_and_stay_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it does"
    assert len(text.splitlines()) <= 400, f"{path} asks to be split"


@pytest.mark.parametrize("package", NAMES)
def test_exported_names(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(NAMES[package])
    for name in NAMES[package]:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_no_network_is_looked_up_by_its_name() -> None:
    """What differs between networks is asked of the network: export and runtime import no network's module or name."""
    homes = {arch.network.__module__.removesuffix(".network") for arch in ARCHITECTURES.values()}
    names = set(ARCHITECTURES) - {"rdsr"}  # the package has that name, too
    for module, path in MODULES.items():
        if module.startswith(("rdsr.export", "rdsr.runtime")):
            assert not [name for name in imports(path) if name.startswith(tuple(homes))], module
            strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not strings & names, module


def test_nothing_of_a_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so there is no list of committed files")
    pattern = re.compile(r"/(home|root|work|opt)/|://\S*py(pi|thonhosted)\.")  # folders of a machine, package registries
    for name in tracked.stdout.split():
        path = ROOT / name
        assert not path.is_symlink(), f"{name} is a link"
        if path.suffix in {".py", ".md", ".toml", ".txt", ".json", ".yml"} or path.name in {"Makefile", "run"}:
            if path == Path(__file__) or not path.is_file():
                continue
            match = pattern.search(path.read_text())
            assert not match, f"{name} names {match[0]}"
