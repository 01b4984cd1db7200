"""Models and losses that ask more of a check: derivatives by the batch, containers, odd names."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree
from zoo import seeded
from zoo.checks import unchanged

import fanin
from fanin.nested import arguments, map_batch


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


# ── derivatives by the batch ─────────────────────────────────────────────────────────────────


class Field(nn.Module):
    """u(x, t), from one tensor, two, or a dict of them."""

    def __init__(self, inputs: int = 1) -> None:
        super().__init__()
        widths = (inputs, 16, 16, 1)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        self.layers = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        return self.layers(x if t is None else torch.cat([x, t], 1))


def derivative(u: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def points() -> Tensor:
    return (torch.rand(32, 1) * 2 - 1).requires_grad_()


def poisson(x: Tensor) -> Callable[[Tensor], Tensor]:
    """−u'' = π² sin πx, with the boundary as a penalty."""

    def loss(u: Tensor) -> Tensor:
        bend = derivative(derivative(u, x), x)
        inside = (bend + math.pi**2 * torch.sin(math.pi * x)).square().mean()
        return inside + (u * (x.abs() > 0.9)).square().mean()

    return loss


def advection(x: Tensor, t: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda u: (derivative(u, t) + derivative(u, x) - x).square().mean()


def given(kind: str) -> tuple[nn.Module, Any, Callable[[Tensor], Tensor]]:
    x, t = points(), points()
    if kind == "one":
        return Field(), x, poisson(x)
    batch = {"tuple": (x, t), "dict": {"x": x, "t": t}, "joined": torch.cat([x * 1, t], 1)}[kind]
    return Field(2), batch, advection(x, t)


KINDS = ("one", "tuple", "dict", "joined")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["check", "plan", "init_", "repair_"])
def test_a_loss_may_take_derivatives_by_the_batch(kind: str, verb: str):
    model, batch, loss = given(kind)
    parts = [loss.__closure__[i].cell_contents for i in range(len(loss.__closure__))]
    with unchanged(None, [batch, parts]):
        if verb == "check":
            with unchanged(model, batch):
                assert fanin.check(model, batch, loss).ok
        elif verb == "repair_":
            assert fanin.repair_(model, batch, loss).after.ok
        else:
            getattr(fanin, verb)(model, batch)


def test_the_loss_is_that_of_the_model_on_the_batch():
    model, batch, loss = given("one")
    assert fanin.check(model, batch, loss).loss == pytest.approx(loss(model(batch)).item())


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_steps_take_derivatives_too(kind: str):
    model, batch, loss = given(kind)
    with torch.no_grad():
        for layer in model.layers[::2]:
            layer.weight.fill_(0.3)
            layer.bias.fill_(0.1)
    with unchanged(model, batch):
        report = fanin.check(model, batch, loss)
    assert "S101" in [f.code for f in report.findings]
    dtype = "float32" if kind == "joined" else "float64"
    assert report.symmetry.dtype == dtype
    repair = fanin.repair_(model, batch, loss)
    assert repair.after.ok


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_a_loss_leaves_at_the_batch_are_forgotten(kind: str):
    model, _, _ = given(kind)
    x = points()
    batch = {"one": x, "tuple": (x, x), "dict": {"x": x, "t": x}}.get(kind)
    batch = torch.cat([x, x * 2], 1) if batch is None else batch
    x.grad = torch.full_like(x, 7.0)

    def loss(u: Tensor) -> Tensor:
        x.grad = None
        u.sum().backward(create_graph=True, inputs=[x])
        return (x.grad - 1.0).square().mean() + u.square().mean()

    with unchanged(model, [batch, x]):
        assert fanin.check(model, batch, loss).ok


def test_a_forward_that_writes_into_a_batch_with_a_gradient_leaves_it():
    class Writes(Field):
        def forward(self, x: Tensor) -> Tensor:
            x.data.mul_(2)
            return super().forward(x)

    model, x = Writes(), points()
    for verb in (fanin.check, fanin.plan):
        with unchanged(model, x):
            verb(model, x)


def test_a_forward_may_ask_for_gradients_by_an_input_that_has_them():
    class Force(Field):
        def forward(self, x: Tensor) -> Tensor:
            x.requires_grad = True  # only a leaf may be asked so
            return derivative(super().forward(x), x)

    model, x = Force(), points()
    with torch.no_grad():
        model.layers[0].weight.fill_(0.3)  # virtual steps are taken
        model.layers[0].bias.fill_(0.1)
    with unchanged(model, x):
        assert fanin.check(model, x).symmetry.dtype == "float64"


def test_a_batch_made_by_the_models_own_parameters_keeps_its_graph():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 8), nn.Linear(8, 3)

        def forward(self, embedded: Tensor) -> Tensor:
            return self.last(embedded.tanh())

    model = Tokens()
    batch = model.table(torch.randint(9, (16,))) * model.table.weight[0]
    with unchanged(model, batch):
        fanin.check(model, batch)
        fanin.check(model, batch)
    model(batch).sum().backward()  # the graph was not used up


# ── parameters that are not where their names say ────────────────────────────────────────────


class Held(nn.Module):
    """Its parameters lie in a plain dict, under names that lead nowhere, as torchrl's do."""

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Linear(6, 8), nn.Linear(8, 2)
        made = {"0": first, "1": last}
        self.held = {f"{i}.{n}": p for i, m in made.items() for n, p in m.named_parameters()}

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.held.items()

    def get_parameter(self, target: str) -> nn.Parameter:
        raise RuntimeError(f"{target} is locked")

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.held["0.weight"], self.held["0.bias"])
        return F.linear(inner.tanh(), self.held["1.weight"], self.held["1.bias"])


@pytest.mark.parametrize(("value", "code"), [(0.0, "S102"), (0.1, "S101")])
def test_virtual_steps_run_where_parameters_cannot_be_replaced(value: float, code: str):
    model, x, target = Held(), torch.randn(16, 6), torch.randn(16, 2)
    with torch.no_grad():
        for parameter in model.held.values():
            parameter.fill_(value)
    with unchanged(model, x):
        report = fanin.check(model, x, lambda out: F.mse_loss(out, target))
    assert code in [f.code for f in report.findings if f.severity == "error"]
    assert report.symmetry.dtype == "float64"


# ── containers ───────────────────────────────────────────────────────────────────────────────


class Cells(Mapping[str, Any]):
    """A mapping that torch knows, and a model takes whole, as TensorDict is."""

    def __init__(self, **cells: Any) -> None:
        self.cells = cells

    def __getitem__(self, key: str) -> Any:
        return self.cells[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)


class Named(OrderedDict):
    """A dict that torch knows, as transformers' ModelOutput is."""


for kind in (Cells, Named):
    _pytree.register_pytree_node(
        kind,
        lambda cells: (list(cells.values()), list(cells)),
        lambda values, keys, kind=kind: kind(**dict(zip(keys, values, strict=True))),
    )


class Whole(nn.Module):
    """Reads its input from the container, and writes its output into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, cells: Cells) -> Cells:
        assert type(cells) is Cells
        cells.cells["out"] = self.last(self.first(cells["x"]).tanh())
        return cells


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("start", ["own", "equal"])
def test_a_model_may_take_a_container_whole(positional: bool, start: str):
    model, target = Whole(), torch.randn(16, 2)
    cells = Cells(x=torch.randn(16, 6))
    batch = (cells,) if positional else cells
    if start == "equal":
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.2)

    def loss(out: Cells) -> Tensor:
        return F.mse_loss(out["out"], target)

    with unchanged(model, [batch]):
        assert fanin.check(model, batch, loss).ok is (start == "own")
        assert fanin.plan(model, batch)["first.weight"].std > 0
    assert fanin.repair_(model, batch, loss).after.ok
    fanin.init_(model, batch)
    assert list(cells) == ["x"]


def test_a_mapping_is_keyword_arguments_but_for_one_of_a_kind_of_its_own():
    x = torch.ones(1)
    cells = Cells(x=x)
    assert arguments(cells) == ((cells,), {})
    for batch in ({"x": x}, OrderedDict(x=x), UserDict(x=x), Named(x=x)):
        assert arguments(batch) == ((), {"x": x})


def test_a_copied_batch_keeps_the_kinds_that_torch_knows():
    x = torch.ones(1)
    batch = (Cells(a=x, b=[x]), Named(c=x), UserDict(d=x))
    copy = map_batch(lambda tensor: tensor + 1, batch)
    assert [type(part) for part in copy] == [Cells, Named, dict]
    assert [copy[0]["a"], copy[0]["b"][0], copy[1]["c"], copy[2]["d"]] == [
        torch.full((1,), 2.0)
    ] * 4
    assert batch[0]["a"] is x


class Tuned(nn.Module):
    """Takes a step of its own on what it is given, as in training at test time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.enable_grad():
            inner = x.detach().requires_grad_() if not x.requires_grad else x
            self.first(inner).square().mean().backward()
        self.zero_grad()
        return self.head(self.first(x.detach()).relu())


def test_the_graph_of_a_batch_is_left_to_whom_it_belongs():
    model, start = Tuned(), torch.randn(16, 8, requires_grad=True)
    batch = start.exp()  # whose graph a backward pass would use up
    assert fanin.check(model, batch).ok
    fanin.plan(model, batch)
    batch.sum().backward()
    assert torch.equal(start.grad, start.detach().exp())
