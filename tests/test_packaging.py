"""What a wheel holds: the compiled draw where it can be built, and all else where it cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
DRAW = "fanin/draw/compiled/draw.so"
SOURCES = ("draw.c", "kernel.h", "lanes.h")
# Tracked files that neither wheel nor sdist is made of, and what other programs left.
UNUSED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "_build", "*.so")
CHECK = ROOT / "tests" / "installed_draw.py"

needs_compiler = pytest.mark.skipif(
    os.name != "posix" or not (shutil.which("cc") or shutil.which("gcc")),
    reason="no C compiler: apt-get install gcc",
)


@pytest.fixture(scope="session")
def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source tree, without anything that was built."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=UNUSED)
    return folder


@pytest.fixture
def build(tree: Path, monkeypatch: pytest.MonkeyPatch):
    """Build the wheel of the tree with these variables; its path."""

    def made(**variables: str) -> Path:
        for name in ("FANIN_COMPILE", "CC", "CFLAGS", "ARCHFLAGS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        builder = WheelBuilder(str(tree))
        (path,) = builder.build(directory=str(tree / "dist"), versions=["standard"])
        return Path(path)

    return made


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def checked(wheel: Path, expected: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the check of an installed fanin on what is in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return subprocess.run(
        [sys.executable, str(CHECK), expected], capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@needs_compiler
def test_with_a_compiler_the_wheel_is_for_this_platform_and_any_python_3(build, tmp_path: Path):
    wheel = build(FANIN_COMPILE="always")
    assert wheel.name.startswith("fanin-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    assert DRAW in names(wheel)
    done = checked(wheel, "compiled", tmp_path / "installed")
    assert (done.returncode, done.stderr) == (0, "")
    assert f" at {tmp_path / 'installed' / 'fanin'}: " in done.stdout  # not the one tested here


@pytest.mark.parametrize(
    "variables", [{"FANIN_COMPILE": "never"}, {"CC": "no-such-compiler"}, {"CC": "false"}]
)
def test_without_a_compiler_the_wheel_is_for_any_platform(
    build, tree: Path, tmp_path: Path, variables: dict[str, str]
):
    """A library of an earlier build must not come along: the wheel would claim any platform."""
    left = tree / "src" / "fanin" / "draw" / "compiled" / "draw.so"
    left.write_bytes(b"of another machine")
    wheel = build(**variables)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert DRAW not in names(wheel)
    assert not left.exists()
    if variables == {"FANIN_COMPILE": "never"}:
        done = checked(wheel, "reference", tmp_path / "installed")
        assert (done.returncode, done.stderr) == (0, "")


def test_both_wheels_hold_the_same_but_for_the_library(build):
    plain = names(build(FANIN_COMPILE="never"))
    assert f"{Path(DRAW).parent.as_posix()}/draw.c" in plain
    assert "fanin/py.typed" in plain
    if shutil.which("cc"):
        assert {name for name in names(build()) if ".dist-info" not in name} == {
            *(name for name in plain if ".dist-info" not in name),
            DRAW,
        }


def test_always_ends_the_build_where_nothing_can_be_compiled(build):
    with pytest.raises(SystemExit, match="the draw cannot be compiled: no C compiler is found"):
        build(FANIN_COMPILE="always", CC="no-such-compiler")
    with pytest.raises(SystemExit, match="FANIN_COMPILE: 'maybe'; never or always"):
        build(FANIN_COMPILE="maybe")


def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_windows_is_left_to_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Even where a compiler is found: it has no POSIX threads."""
    module = hook()
    monkeypatch.setattr(module, "os", SimpleNamespace(name="nt", environ={"CC": sys.executable}))
    problem = module.compiled(ROOT / "src" / "fanin" / "draw" / "compiled" / "draw.c", tmp_path)
    assert problem == "only POSIX systems are supported"


def test_flags_reach_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of macOS too, by which it is told what processor to build for."""
    told = tmp_path / "told"
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" > {told}\nexit 1\n', encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -g0")
    monkeypatch.setenv("CFLAGS", "-DA -DB")
    monkeypatch.setenv("ARCHFLAGS", "-arch arm64")
    assert hook().compiled(tmp_path / "draw.c", tmp_path / "draw.so").startswith(f"{compiler}: ")
    given = told.read_text(encoding="utf-8").split()
    assert given[0] == "-g0"
    assert {"-DA", "-DB", "-arch", "arm64", "-ffp-contract=off"} <= set(given)


@pytest.mark.skipif(not shutil.which("clang"), reason="no clang: apt-get install clang")
def test_clang_builds_the_same_draw(build, tmp_path: Path):
    wheel = build(CC="clang", FANIN_COMPILE="always")
    done = checked(wheel, "compiled", tmp_path / "installed")
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("gcc"):
        other = checked(build(CC="gcc", FANIN_COMPILE="always"), "compiled", tmp_path / "other")
        assert done.stdout.split(": ")[1] == other.stdout.split(": ")[1]  # instruction sets


def test_the_source_distribution_holds_what_a_wheel_is_built_from(tree: Path):
    (path,) = SdistBuilder(str(tree)).build(directory=str(tree / "dist"))
    folder = tree / "unpacked"
    shutil.unpack_archive(path, folder, filter="data")
    (inside,) = folder.iterdir()
    assert (inside / "hatch_build.py").is_file()
    for name in SOURCES:
        assert (inside / "src" / "fanin" / "draw" / "compiled" / name).is_file()


def test_cibuildwheel_builds_one_wheel_for_each_platform(settings: dict[str, Any]):
    """A second Python would build the same wheel once more."""
    config = settings["tool"]["cibuildwheel"]
    lowest = settings["project"]["requires-python"].removeprefix(">=").replace(".", "")
    platforms = [name.partition("-")[2] for name in config["build"]]
    assert config["build"] == [f"cp{lowest}-{platform}" for platform in platforms]
    assert len(set(platforms)) == len(platforms)
    assert config["environment"]["FANIN_COMPILE"] == "always"
    assert config["macos"]["environment"]["FANIN_COMPILE"] == "always"
    command = config["test-command"].replace("{project}", str(ROOT)).split()
    assert Path(command[1]) == CHECK
    assert command[2:] == ["compiled"]


def test_the_workflow_has_a_runner_for_each_platform(settings: dict[str, Any]):
    path = ROOT / ".github" / "workflows" / "wheels.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    runners = jobs["compiled"]["strategy"]["matrix"]["os"]
    assert len(runners) == len(settings["tool"]["cibuildwheel"]["build"])
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert any("cibuildwheel" in command for command in commands)
    for job in ("plain-test", "windows"):
        last = jobs[job]["steps"][-1]["run"]
        assert last == f"python {CHECK.relative_to(ROOT).as_posix()} reference"
