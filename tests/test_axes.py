"""Which dimensions of a parameter a reshaped one holds, and how layers of such weights start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo.checks import QUIET

import fanin
from fanin.axes import axes_of, carried
from fanin.reading import reading
from fanin.roles import roles

pytestmark = QUIET


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, tuple]]]:
    """A shape, and calls that reshape, turn and pick from a tensor of it."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    made, calls = torch.empty(shape), []
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(["permute", "reshape", "select", "narrow", "flatten", "mT"]))
        dims = made.dim()
        if dims == 0 or (name == "mT" and dims < 2):
            continue
        if name == "permute":
            arguments = tuple(draw(st.permutations(range(dims))))
        elif name == "reshape":
            sizes = [d for d in range(1, made.numel() + 1) if made.numel() % d == 0]
            first = draw(st.sampled_from(sizes))
            arguments = draw(st.sampled_from([(first, -1), (-1, first), (1, first, -1)]))
        elif name == "select":
            d = draw(st.integers(0, dims - 1))
            arguments = (d, draw(st.integers(0, made.shape[d] - 1)))
        elif name == "narrow":
            d = draw(st.integers(0, dims - 1))
            arguments = (d, 0, draw(st.integers(1, made.shape[d])))
        else:
            arguments = () if name == "mT" else (draw(st.integers(0, dims - 1)),)
        calls.append((name, arguments))
        made = called(made, name, arguments)
    return shape, calls


def called(tensor: Tensor, name: str, arguments: tuple) -> Tensor:
    return tensor.mT if name == "mT" else getattr(tensor, name)(*arguments)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chains())
def test_a_step_along_a_dimension_moves_along_those_that_it_holds_alone(chain):
    shape, calls = chain
    made = torch.arange(torch.empty(shape).numel()).reshape(shape)
    axes = axes_of(len(shape))
    for name, arguments in calls:
        after = called(made, name, arguments)
        axes = carried(name, made, after, axes)
        made = after
        if axes is None:
            return
    assert len(axes) == made.dim()
    places = torch.stack(torch.unravel_index(made, shape), dim=-1)
    for d, held in enumerate(axes):
        steps = places.diff(dim=d).reshape(-1, len(shape)).abs().sum(0)
        moved = {i for i, step in enumerate(steps.tolist()) if step}
        assert moved <= set(held)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(chains())
def test_axes_of_views_are_never_lost(chain):
    shape, calls = chain
    made, axes = torch.empty(shape), axes_of(len(shape))
    for name, arguments in calls:
        made, before = called(made, name, arguments), made
        axes = carried(name, before, made, axes)
    assert axes is not None


class Held(nn.Module):
    """Two layers whose weights are stored in one form and used in another."""

    def __init__(self, shape: tuple[int, ...], use) -> None:
        super().__init__()
        self.first, self.weight = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.zeros(shape))
        self.use, self.head = use, nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(torch.relu(self.first(x)), self.weight).mean((-2, -1)))


def unfolded(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1)


KERNELS = {
    "conv2d": ((12, 8, 3, 3), lambda x, w: F.conv2d(x, w)),
    "flattened": ((12, 8, 3, 3), lambda x, w: (w.flatten(1) @ unfolded(x))[..., None]),
    "linear": (
        (12, 8, 3, 3),
        lambda x, w: F.linear(unfolded(x).mT, w.view(12, -1)).mT[..., None],
    ),
    "turned": ((8, 3, 3, 12), lambda x, w: F.conv2d(x, w.permute(3, 0, 1, 2))),
    "turned-copied": ((8, 3, 3, 12), lambda x, w: (w.reshape(72, 12).t() @ unfolded(x))[..., None]),
    "stored-flat": ((12, 72), lambda x, w: F.conv2d(x, w.view(12, 8, 3, 3))),
    "stored-halved": ((2, 6, 72), lambda x, w: F.conv2d(x, w.reshape(12, 8, 3, 3))),
    "first-of-three": ((3, 12, 72), lambda x, w: F.conv2d(x, w[0].view(12, 8, 3, 3))),
    "all-of-three": ((3, 4, 72), lambda x, w: F.conv2d(x, torch.cat([*w]).view(12, 8, 3, 3))),
}


@pytest.mark.parametrize("form", [form for form in KERNELS if form != "all-of-three"])
def test_a_kernel_starts_the_same_however_it_is_stored(form: str):
    shape, use = KERNELS[form]
    found = fanin.plan(Held(shape, use), torch.randn(16, 3, 6, 6))["weight"]
    assert (found.scheme, found.fan) == ("he_normal", 72)
    assert found.std == pytest.approx((2 / 72) ** 0.5, rel=0.5)  # measured, beside padding


def test_rows_of_one_parameter_that_are_put_together_again_are_left_alone():
    shape, use = KERNELS["all-of-three"]
    found = fanin.plan(Held(shape, use), torch.randn(16, 3, 6, 6))
    assert "is computed from it, in a way not known here" in found.untouched["weight"]


def per_head(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nhi,hio->nho", x, weight)


@pytest.mark.parametrize(
    ("shape", "use", "layout", "fan", "blocks"),
    [
        ((24, 6), lambda x, w: x @ w.view(4, 6, 6).mT, "oi", 6, 4),
        ((4, 6, 6), lambda x, w: x @ w.mT, "boi", 6, 1),
        ((4, 6, 6), lambda x, w: per_head(x.transpose(0, 1), w).transpose(0, 1), "bio", 6, 1),
        ((6, 4, 6), lambda x, w: x @ w.transpose(0, 1), "ibo", 6, 1),
        ((1, 6, 6), lambda x, w: x @ w.squeeze(0), "oio", 6, 1),
        ((6, 1, 6), lambda x, w: F.linear(x, w.flatten(1)), "oii", 6, 1),
    ],
    ids=["heads-stacked", "heads", "einsum", "heads-inside", "squeezed", "single"],
)
def test_the_layout_of_a_parameter_is_that_of_its_own_dimensions(shape, use, layout, fan, blocks):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(5, 6), nn.Parameter(torch.randn(shape))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x)).expand(4, -1, -1)
            return self.head(torch.tanh(use(x, self.weight)).mean(0))

    net = Net()
    read = reading(net, torch.randn(7, 5))
    found = next(role for role in roles(read, net) if role.parameter == "weight")
    assert (found.kind, found.layout, found.fan_in, found.blocks) == ("weight", layout, fan, blocks)
