"""``fanin --version``: the version, and what draws on this machine."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import fanin
from fanin.cli import cli
from fanin.draw import native

PRESENT = native.present()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def lines() -> list[str]:
    result = run("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no library was built."""
    monkeypatch.delenv(native.CHOICE, raising=False)
    monkeypatch.setattr(native, "LIBRARY", Path("/nowhere/draw.so"))
    cached = native._library, native.present, native._chosen
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch):
    """Pretend that Triton is, or is not, installed, and that there is, or is not, a device."""
    real = importlib.metadata.version

    def pretend(version: str | None, device: bool) -> None:
        def told(name: str) -> str:
            if name != "triton":
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", told)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device)

    return pretend


def test_three_lines_say_version_and_draws():
    version, cpu, cuda = lines()
    assert version == f"fanin, version {fanin.__version__}"
    assert cpu.startswith("draw: ")
    assert cuda.startswith("CUDA draw: ")


@pytest.mark.skipif(not PRESENT, reason="no compiled draw here")
def test_the_set_that_is_used_stands_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in PRESENT:
        monkeypatch.setenv(native.CHOICE, name)
        line = lines()[1]
        assert line.startswith(f"draw: compiled C, {name}")
        assert line.endswith(", 2 threads")
        others = line.partition("(also ")[2].partition(")")[0]
        assert sorted(filter(None, others.split(", "))) == sorted({*PRESENT} - {name})


@pytest.mark.skipif(not PRESENT, reason="no compiled draw here")
def test_one_thread_is_not_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(native.CHOICE, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert lines()[1].endswith(", 1 thread")


def test_the_reference_that_was_asked_for_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(native.CHOICE, "reference")
    assert lines()[1] == "draw: numpy reference (FANIN_DRAW=reference)"


def test_without_a_library_the_reason_is_told(nothing_built: None):
    expected = "draw: numpy reference (no compiled draw: it is built where a C compiler is found)"
    assert lines()[1] == expected


@pytest.mark.parametrize("arguments", [("--version",), ("--debug", "--version")])
def test_an_unknown_draw_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
):
    monkeypatch.setenv(native.CHOICE, "sse9")
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("fanin: FANIN_DRAW: 'sse9'; this machine has reference")


def test_cuda_is_drawn_by_triton_where_both_are_there(triton):
    triton("3.5.1", True)
    assert lines()[2] == "CUDA draw: Triton 3.5.1"
    triton("3.5.1", False)
    assert lines()[2] == "CUDA draw: none (no CUDA device)"
    triton(None, True)
    assert lines()[2] == "CUDA draw: none (Triton is not installed)"


def test_a_command_does_not_tell_the_version():
    assert "draw: " not in run("explain", "S101").stdout
    assert run("check", "--version").exit_code == 2
