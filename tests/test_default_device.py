"""A default device that the user set: fanin's own tensors stay where fanin works with them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._device import _device_constructors

import fanin
from fanin.assignment import Assignment
from fanin.fill import assign_
from fanin.streaming import write
from fanin.targets import load
from fanin.window import Window

ROOT = Path(fanin.__file__).parent

#: The functions that torch itself moves to the default device, by their names in `torch`.
FACTORIES = {
    name
    for function in _device_constructors()
    if getattr(torch, name := function.__name__, None) is function
}


def unplaced(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of the factory calls that name no device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            names = FACTORIES & {alias.name for alias in node.names}
            assert not names, f"call them as torch.{names}, so that they are seen here"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module, name = node.func.value, node.func.attr
            ours = isinstance(module, ast.Name) and module.id == "torch" and name in FACTORIES
            if ours and not any(keyword.arg == "device" for keyword in node.keywords):
                yield node.lineno, name


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_tensor_that_is_made_names_its_device(path: Path):
    assert not list(unplaced(path.read_text(encoding="utf-8")))


def test_what_names_no_device_is_found_and_its_look_alikes_are_not():
    assert {"randn", "empty", "arange", "tensor", "full", "eye", "asarray"} <= FACTORIES
    assert [name for _, name in unplaced("torch.randn(3)\ntorch.ones(2, dtype=d)")] == [
        "randn",
        "ones",
    ]
    assert not list(
        unplaced(
            "torch.randn(3, device='cpu'); torch.ones_like(x); x.new_zeros(3); np.empty(3);"
            "torch.from_numpy(a); torch.Generator(); '>>> torch.randn(3)'"
        )
    )


def test_a_generator_and_what_numpy_holds_are_on_the_cpu_in_any_case():
    """So these two need not name a device."""
    with torch.device("meta"):
        assert torch.Generator().device.type == "cpu"
        assert torch.from_numpy(torch.zeros(2, device="cpu").numpy()).device.type == "cpu"


# ---- a default device on which nothing has values ------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(8, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x[:, None].expand(-1, 3, -1))[0][:, -1])


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
    )


def constant() -> nn.Module:
    model = perceptron()
    nn.init.constant_(model[2].weight, 0.1)
    nn.init.zeros_(model[2].bias)
    return model


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent()


BATCH = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
TARGET = BATCH[:, :1]


def loss(output: Tensor) -> Tensor:
    return F.mse_loss(output, TARGET)


def report(report: fanin.Report) -> dict[str, Any]:
    return {**report.to_dict(), "seconds": 0}


def compared(model: nn.Module) -> Any:
    found = fanin.compare(model, BATCH, loss, schemes=("default", "auto"), steps=3)
    return [run.losses for outcome in found.outcomes for run in outcome.runs]


WORK: dict[str, Callable[[nn.Module], Any]] = {
    "check": lambda model: report(fanin.check(model, BATCH)),
    "check with a loss": lambda model: report(fanin.check(model, BATCH, loss)),
    "plan": lambda model: fanin.plan(model, BATCH).to_toml(),
    "init_": lambda model: fanin.init_(model, BATCH).to_toml(),
    "repair_": lambda model: fanin.repair_(model, BATCH, loss).changed,
    "calibrate_": lambda model: str(fanin.calibrate_(model, BATCH)),
    "compare": compared,
}


@pytest.mark.parametrize("build", [perceptron, constant, recurrent])
@pytest.mark.parametrize("work", WORK)
def test_a_model_elsewhere_is_worked_on_as_without_a_default_device(
    work: str, build: Callable[[], nn.Module]
):
    there, here = build(), build()
    with torch.device("meta"):
        found = WORK[work](there)
    assert found == WORK[work](here)
    for one, other in zip(there.parameters(), here.parameters(), strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, other)


def filled(scheme: str) -> Tensor | type:
    try:
        return fanin.fill_(torch.empty(16, 16, device="cpu"), scheme, seed=3)
    except fanin.FaninError as error:
        return type(error)


@pytest.mark.parametrize("scheme", sorted(fanin.schemes))
def test_every_scheme_is_drawn_where_the_tensor_is(scheme: str):
    with torch.device("meta"):
        there = filled(scheme)
    here = filled(scheme)
    assert torch.equal(there, here) if isinstance(there, Tensor) else there is here


def test_a_part_of_a_matrix_is_drawn_where_it_is():
    plan = Assignment("w", "orthogonal", 1.0, 0.25, None, "", (16, 16), "oi")
    whole, part = torch.empty(16, 16), torch.empty(4, 5)
    assign_(whole, plan, 0, "w")
    with torch.device("meta"):
        assign_(part, plan, 0, "w", Window.box((16, 16), (2, 3), (4, 5)))
    assert torch.equal(part, whole[2:6, 3:8])


def test_a_checkpoint_is_written_and_verified(tmp_path: Path):
    with torch.device("meta"):
        model = perceptron()
        recipe = fanin.plan(model, BATCH.to("meta"))
        write(model, recipe, tmp_path / "start", seed=1)
        assert fanin.verify(tmp_path / "start", recipe, seed=1).ok


@pytest.mark.parametrize("spec", ["4x8", "tokens:4x8@10"])
def test_an_input_in_words_is_drawn_on_the_cpu(spec: str):
    with torch.device("meta"):
        batch = load("torch.nn:Identity", inputs=[spec]).batch
    assert torch.equal(batch, load("torch.nn:Identity", inputs=[spec]).batch)


def test_an_input_in_words_is_moved_to_where_a_factory_builds(tmp_path: Path):
    text = "import torch\ndef build():\n    return torch.nn.Linear(8, 2, device='meta')\n"
    (tmp_path / "there.py").write_text(text, encoding="utf-8")
    assert load(f"{tmp_path / 'there.py'}:build", inputs=["4x8"]).batch.is_meta
    text = text.replace("'meta'", "'cpu'")
    (tmp_path / "here.py").write_text(text, encoding="utf-8")
    assert not load(f"{tmp_path / 'here.py'}:build", inputs=["4x8"]).batch.is_meta


def test_the_package_is_imported_under_one():
    code = (
        "import torch; torch.set_default_device('meta'); import fanin, fanin.lab; "
        "print(round(fanin.gain(lambda z: z.clamp(min=0)), 6))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(2**0.5, abs=1e-4)
