"""torch.cond and its like: what the functions that they are given do is seen."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.checks import unchanged

import fanin

CONTROL: Any = importlib.import_module("torch._higher_order_ops")
STEPS = 3


class Net(nn.Module):
    """A layer in functions that are given to an operation, or the same in Python."""

    def __init__(self, kind: str, written: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.state, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.hidden = getattr(self, f"{kind}_written" if written else kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.enter(x).tanh()))

    def step(self, h: Tensor) -> Tensor:
        return self.state(h).tanh()

    def cond(self, h: Tensor) -> Tensor:
        return torch.cond(h.square().mean() > 0, self.step, lambda h: h + 1, (h,))

    def cond_written(self, h: Tensor) -> Tensor:
        return self.step(h) if h.square().mean() > 0 else h + 1

    def while_loop(self, h: Tensor) -> Tensor:
        def body(at: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return at + 1, self.step(h)

        return CONTROL.while_loop(lambda at, _: at < STEPS, body, (torch.tensor(0), h))[1]

    def while_loop_written(self, h: Tensor) -> Tensor:
        for _ in range(STEPS):
            h = self.step(h)
        return h

    def scan(self, h: Tensor) -> Tensor:
        def body(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            state = self.step(state + x)
            return state, state.clone()

        return CONTROL.scan(body, torch.zeros_like(h), torch.stack([h] * STEPS))[1].mean(0)

    def scan_written(self, h: Tensor) -> Tensor:
        state, states = torch.zeros_like(h), []
        for _ in range(STEPS):
            state = self.step(state + h)
            states.append(state.clone())
        return torch.stack(states).mean(0)

    def map(self, h: Tensor) -> Tensor:
        return CONTROL.map(self.step, torch.stack([h] * STEPS)).mean(0)

    def map_written(self, h: Tensor) -> Tensor:
        return torch.stack([self.step(h)] * STEPS).mean(0)


def problem(model: nn.Module) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    torch.manual_seed(1)
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))
    return model, x, lambda out: nn.functional.cross_entropy(out, y)


@pytest.fixture(scope="module", autouse=True)
def compiling() -> Iterator[None]:
    """torch's compiler changes nn.Module when it is used for the first time, whoever uses it.

    It also lets distributions take any argument from then on, which other tests would miss.
    """
    checks = torch.distributions.Distribution._validate_args
    with torch.no_grad():
        Net("cond")(torch.randn(5, 8))
    yield
    torch.distributions.Distribution.set_default_validate_args(checks)


KINDS = [kind for kind in ("cond", "while_loop", "scan", "map") if hasattr(CONTROL, kind)]
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_layer_in_it_is_planned_as_in_python(kind: str):
    model, x, _ = problem(Net(kind))
    with unchanged(model, x):
        found = fanin.plan(model, x)
    written = fanin.plan(Net(kind, written=True), x)
    assert {a.parameter: (a.scheme, a.std) for a in found.assignments} == {
        a.parameter: (a.scheme, a.std) for a in written.assignments
    }
    assert "state.weight" in found


@kinds
def test_a_fault_in_it_is_found_and_a_sound_start_is_silent(kind: str):
    model, x, loss = problem(Net(kind))
    fanin.init_(model, x)
    with unchanged(model, x):
        assert not fanin.check(model, x, loss).findings
    found = told(model, x, loss)
    assert {layer for _, layer in found} == {"state"}
    written = Net(kind, written=True)
    written.load_state_dict(model.state_dict())
    assert told(written, x, loss) == found


def told(model: Net, x: Tensor, loss: Callable[[Tensor], Tensor]) -> set[tuple[str, str]]:
    """What is found where all units of a layer start alike."""
    for layer in (model.state, model.head):
        nn.init.constant_(layer.weight, 0.1)
        nn.init.zeros_(layer.bias)
    with unchanged(model, x):
        return {(f.code, f.layer) for f in fanin.check(model, x, loss).findings}


# It may be the first that is compiled in a process.
_FIRST = """
import sys, torch, fanin
from test_control import Net, problem
assert "torch._dynamo" not in sys.modules
compiles = torch.compile
report = fanin.check(*problem(Net("cond")))
assert report.ok and not report.findings, report
assert torch.compile is compiles
with torch.no_grad():
    assert Net("cond")(torch.randn(5, 8)).shape == (5, 3)
"""


# torch's compiler is as before when the last of several threads is done.
_KEPT = """
import sys, threading, time, torch, fanin
from torch import nn
class Net(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.layer, self.seconds = nn.Linear(4, 4), seconds
    def forward(self, x):
        kept.append(torch.compile)
        time.sleep(self.seconds)
        return self.layer(x)
kept, compiles, graphs = [], torch.compile, []
def plan(seconds):
    fanin.plan(Net(seconds), torch.randn(8, 4))
threads = [threading.Thread(target=plan, args=(seconds,)) for seconds in (0.3, 0.6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert torch.compile is compiles
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
for number, compile in enumerate([*kept, torch.compile], 1):
    compile(lambda x: x + number, backend=backend)(torch.randn(3))
    assert len(graphs) == number
"""


# Each in a process that has compiled nothing yet, forked from one that has imported the rest.
_FORKED = """
import os, sys, traceback, torch, fanin, test_control
for program in sys.argv[1:]:
    if os.fork() == 0:
        try:
            exec(program, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_torchs_compiler_is_first_used_in_a_check_or_after_plans_in_several_threads():
    programs = [_FIRST, _KEPT]
    subprocess.run(
        [sys.executable, "-c", _FORKED, *programs], check=True, cwd=Path(__file__).parent
    )
