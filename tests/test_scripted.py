"""Functions and modules compiled by torch.jit inside of a model of Python."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo.checks import unchanged

import fanin
from fanin.errors import ForwardError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Net(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor], middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 3)
        self.middle = middle or nn.Linear(32, 32)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.middle(self.act(self.first(x)))))


def problem(model: nn.Module) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    torch.manual_seed(1)
    x, y = torch.randn(64, 16), torch.randint(0, 3, (64,))
    return model, x, lambda out: nn.functional.cross_entropy(out, y)


def warmed(model: nn.Module) -> nn.Module:
    """After some backward passes torch.jit runs other code, whose graph hides what it did."""
    model, x, loss = problem(model)
    for _ in range(3):
        loss(model(x)).backward()
    model.zero_grad()
    return model


def broken(model: nn.Module, how: str) -> nn.Module:
    named = dict(model.named_parameters())
    with torch.no_grad():
        if how == "zeros":
            [p.zero_() for p in named.values()]
        elif how == "dead":
            named["middle.bias"].fill_(-300.0)
        elif how == "nan":
            named["middle.weight"][0, 0] = float("nan")
    return model


@pytest.mark.parametrize("how", ["sound", "zeros", "dead", "nan"])
def test_a_scripted_function_is_seen_as_what_it_was_made_from(how: str):
    plain = fanin.check(*problem(broken(Net(swish), how)))
    scripted = fanin.check(*problem(broken(warmed(Net(torch.jit.script(swish))), how)))
    assert [f.code for f in scripted.findings] == [f.code for f in plain.findings]
    assert (how == "sound") == scripted.ok
    assert [layer.rms for layer in scripted.layers] == pytest.approx(
        [layer.rms for layer in plain.layers], nan_ok=True
    )


def test_plans_are_those_of_the_python_function():
    expected = fanin.plan(Net(swish), torch.randn(8, 16))
    for model in (Net(torch.jit.script(swish)), warmed(Net(torch.jit.script(swish)))):
        assert fanin.plan(model, torch.randn(8, 16)).to_toml() == expected.to_toml()


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        return self.linear(x) + 1


class Other(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.middle.other(self.act(self.first(x)))))


@pytest.mark.parametrize("net", [Net, Other])
@pytest.mark.parametrize("how", ["sound", "a delay", "zeros", "nan"])
def test_a_scripted_module_stands_between_the_layers_that_it_joins(net: type[Net], how: str):
    """Zeros before a tanh are a delay of one step, before a relu they stay."""
    act = torch.relu if how == "zeros" else torch.tanh
    model, x, loss = problem(warmed(net(act, torch.jit.script(Middle()))))
    named = dict(model.named_parameters())
    with torch.no_grad():
        if how in ("a delay", "zeros"):
            named["middle.linear.weight"].zero_()
            named["middle.linear.bias"].zero_()
        elif how == "nan":
            named["middle.linear.weight"][0, 0] = float("nan")
    with unchanged(model, x):
        report = fanin.check(model, x, loss)
    assert report.ok == (how in ("sound", "a delay") or (how == "zeros" and net is Other))
    assert dict(report.unnamed)["middle.linear.weight"] == "torch.jit.script"
    found = fanin.plan(model, x)
    assert "torch.jit.script" in found.untouched["middle.linear.weight"]
    assert "output layer" not in found["first.weight"].because
    assert "output layer" in found["last.weight"].because


def test_all_is_as_it_was_afterwards_also_in_other_threads():
    function, method = vars(torch.jit.ScriptFunction), vars(torch._C.ScriptMethod)
    before = function["__call__"], method["__call__"]
    act, seen = torch.jit.script(swish), []

    def beside(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: seen.append(act(torch.ones(2))))
        thread.start()
        thread.join()
        fanin.check(*problem(Net(act)))  # a watch inside of a watch
        return act(x)

    with pytest.raises(ForwardError):
        fanin.check(*problem(Net(lambda x: act(x).view(-1, 5, 7))))
    fanin.check(*problem(Net(beside)))
    assert len(seen) > 0
    assert torch.allclose(seen[0], swish(torch.ones(2)))
    assert (function["__call__"], method["__call__"]) == before
