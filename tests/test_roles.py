"""What a parameter is for is read from the calls that use it, whatever its module is called."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fans import ROWS, Row, tolerance
from torch import Tensor, nn
from torch.func import functional_call
from zoo import blocks, seeded
from zoo.blocks import Lambda, Residual, Scaled
from zoo.checks import QUIET
from zoo.healthy import HEALTHY

import fanin
from fanin.branches import Branch, low_rank_pairs, residual_branches
from fanin.neighbours import Generated, Input
from fanin.reading import reading
from fanin.roles import Role, roles

pytestmark = QUIET

BY_NAME = {case.name: case for case in HEALTHY}


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


def seen(model: nn.Module, batch: Any) -> dict[str, Role]:
    """Parameter → its role."""
    return {role.parameter: role for role in roles(reading(model, batch), model)}


def seen_in(name: str) -> dict[str, Role]:
    """The roles in a healthy model of the zoo."""
    model, batch, _ = BY_NAME[name].build()
    return seen(model, batch)


def kinds(model: nn.Module, batch: Any) -> dict[str, str]:
    return {name: role.kind for name, role in seen(model, batch).items()}


def branch_of(found: dict[str, Role], name: str) -> Branch:
    branch = found[name].branch
    assert branch is not None, f"{name} is in no branch"
    return branch


# ── attention ────────────────────────────────────────────────────────────────────────────────


class Separate(nn.Module):
    """q, k, v and o as layers of their own; how they are mixed is given."""

    def __init__(self, width: int, heads: int, mix: Callable[..., Tensor], groups: int = 0) -> None:
        super().__init__()
        self.heads, self.size, self.mix = heads, width // heads, mix
        inner = self.size * (groups or heads)
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, inner)
        self.c, self.d = nn.Linear(width, inner), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:2], -1, self.size).transpose(1, 2)
        return x.repeat_interleave(self.heads // x.shape[1], 1)

    def forward(self, x):
        mixed = self.mix(*(self.split(f(x)) for f in (self.a, self.b, self.c)))
        return self.d(mixed.transpose(1, 2).flatten(2))


def eager(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def eager_scaled_first(q, k, v):
    return F.softmax((q * q.shape[-1] ** -0.5) @ k.mT, dim=-1) @ v


def eager_masked(q, k, v):
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.5
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = torch.softmax(scores.masked_fill(~mask, -1e9).float(), -1).type_as(v)
    return torch.matmul(F.dropout(weights, 0.1), v)


def by_bmm(q, k, v):
    flat = [t.reshape(-1, *t.shape[2:]) for t in (q, k, v)]
    weights = torch.bmm(flat[0], flat[1].transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, flat[2]).view(q.shape)


def by_einsum(q, k, v):
    weights = torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def fused_by_name(q, k, v):
    return F.scaled_dot_product_attention(query=q, key=k, value=v)


def normed(q, k, v):
    return eager(F.normalize(q, dim=-1) * 3, F.layer_norm(k, k.shape[-1:]), v)


MIXES = [
    eager,
    eager_scaled_first,
    eager_masked,
    by_bmm,
    by_einsum,
    fused,
    fused_by_name,
    normed,
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda f: f.__name__)
def test_query_key_value_and_output_are_told_apart_however_they_are_mixed(mix):
    found = seen(Separate(24, 3, mix), torch.randn(2, 5, 24))
    letters = {name: found[f"{name}.weight"].attention for name in "abcd"}
    assert letters == {"a": "q", "b": "k", "c": "v", "d": "o"}
    assert {found[f"{name}.bias"].attention for name in "abcd"} == set("qkvo")
    assert len({found[f"{name}.weight"].attention_at for name in "abcd"}) == 1
    if mix is not by_bmm:  # which lays batch and heads together
        assert {found[f"{name}.weight"].heads for name in "abcd"} == {3}
    assert found["d.weight"].input.kind == "attention"
    assert {found[f"{name}.weight"].blocks for name in "abcd"} == {1}


@pytest.mark.parametrize("mix", [eager, fused], ids=lambda f: f.__name__)
def test_grouped_keys_and_values_have_fewer_outputs(mix):
    found = seen(Separate(24, 4, mix, groups=2), torch.randn(2, 5, 24))
    assert [found[f"{name}.weight"].attention for name in "abcd"] == list("qkvo")
    assert [found[f"{name}.weight"].fan_out for name in "abcd"] == [24, 12, 12, 24]


def test_one_packed_layer_is_three_matrices():
    found = seen(blocks.Attention(24, 3), torch.randn(2, 5, 24))
    packed = found["qkv.weight"]
    assert (packed.attention, packed.blocks, packed.fan_in, packed.fan_out) == ("qkv", 3, 24, 24)
    assert found["proj.weight"].attention == "o"
    assert found["proj.weight"].attention_at == packed.attention_at
    assert packed.heads == found["proj.weight"].heads == 3


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_attention_is_packed_too(need_weights: bool, training: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    found = seen(Net().train(training), torch.randn(2, 5, 24))
    packed = found["attention.in_proj_weight"]
    assert (packed.attention, packed.blocks, packed.fan_in, packed.fan_out) == ("qkv", 3, 24, 24)
    assert found["attention.in_proj_bias"].kind == "bias"
    assert found["attention.out_proj.weight"].attention == "o"


def test_cross_attention_uses_its_packed_weight_in_parts():
    attention = nn.MultiheadAttention(24, 3, batch_first=True)
    x, y = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    packed = seen(attention, (x, y, y))["in_proj_weight"]
    assert (packed.kind, packed.blocks, packed.fan_in, packed.fan_out) == ("weight", 3, 24, 24)


def test_keys_and_values_of_other_widths_have_weights_of_their_own():
    found = seen_in("multihead-attention")
    weights = [found[f"attention.{letter}_proj_weight"] for letter in "qkv"]
    assert [w.attention for w in weights] == ["q", "k", "v"]
    assert [w.fan_in for w in weights] == [24, 10, 14]
    assert found["attention.out_proj.weight"].attention == "o"


def test_keys_and_values_packed_without_the_query_are_two_matrices():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.kv, self.o = nn.Linear(24, 24), nn.Linear(24, 48), nn.Linear(24, 24)

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (3, 8)).transpose(1, 2) for t in (
                self.q(x), *self.kv(x).chunk(2, -1)
            ))  # fmt: skip
            return self.o(fused(q, k, v).transpose(1, 2).flatten(2))

    found = seen(Net(), torch.randn(2, 5, 24))
    packed = found["kv.weight"]
    assert (packed.attention, packed.blocks, packed.fan_in, packed.fan_out) == ("kv", 2, 24, 24)


class Einsum(nn.Module):
    """Weights [in, heads, size] and [heads, size, out]."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = (nn.Parameter(torch.randn(24, 3, 8) * 0.2) for _ in range(3))
        self.o = nn.Parameter(torch.randn(3, 8, 24) * 0.2)

    def forward(self, x):
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhtk,bhsk->bhts", q, k).softmax(-1)
        if self.fused:
            return torch.einsum("bhts,bhsk,hkd->btd", weights, v, self.o)
        return torch.einsum("bhtk,hkd->btd", torch.einsum("bhts,bhsk->bhtk", weights, v), self.o)


@pytest.mark.parametrize("together", [False, True])
def test_heads_in_bare_parameters_are_dimensions_of_their_outputs(together: bool):
    found = seen(Einsum(together), torch.randn(2, 5, 24))
    assert [found[letter].layout for letter in "qkvo"] == ["ioo", "ioo", "ioo", "iio"]
    assert [found[letter].fan_in for letter in "qkvo"] == [24, 24, 24, 24]
    assert [found[letter].attention for letter in "qkvo"] == list("qkvo")


def test_a_softmax_is_not_always_an_attention():
    """A router's shares, and the classes at the end."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.head = nn.Linear(8, 3), nn.Linear(8, 4)
            self.experts = nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x):
            share = self.router(x).softmax(-1)
            every = torch.einsum("bi,eoi->beo", x, self.experts)
            return self.head(torch.einsum("be,beo->bo", share, every)).softmax(-1)

    assert {role.attention for role in seen(Net(), torch.randn(6, 8)).values()} == {""}


# ── fans: the truth table ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_fans_are_those_of_the_truth_table(row: Row):
    role = seen(row.build(), tuple(torch.randn(*s) for s in row.shapes))[row.weight]
    assert role.kind == "weight"
    assert role.fan_in == row.fan_in
    if row.fan_out is not None:
        assert role.fan_out == row.fan_out
    assert len(role.layout) == len(role.shape)


STRIDED = [row.name for row in ROWS if "transpose" in row.name and row.name != "conv-transpose1d"]

LARGE = ["conv-transpose2d-k4-s2", "conv-transpose3d", "bilinear"]  # matrices that take seconds


def each_row_with(scheme: str) -> list[Any]:
    rows = [row for row in ROWS if scheme != "orthogonal" or row.name not in LARGE]
    return [pytest.param(row, scheme, id=f"{row}-{scheme}") for row in rows]


@pytest.mark.parametrize(
    ("row", "scheme"), [*each_row_with("lecun_normal"), *each_row_with("orthogonal")]
)
def test_what_is_planned_for_a_row_of_the_table_keeps_the_variance(row: Row, scheme: str):
    model, inputs = row.build(), tuple(torch.randn(*s) for s in row.shapes)
    options = {} if scheme == "lecun_normal" else {"scale": "variance"}
    found = fanin.init_(model, inputs, scheme, **options)
    assert found[row.weight].scheme == scheme
    with torch.no_grad():
        out = row.outputs(model(*inputs))
    bound = tolerance(model.get_parameter(row.weight), *inputs)
    assert float(out.square().mean()) == pytest.approx(1.0, abs=bound)


@pytest.mark.parametrize("shape", [(9, 6), (6, 6)])
def test_a_transposed_weight_has_the_layout_of_the_parameter(shape: tuple[int, int]):
    """Rows that sum to zero have to be rows of the parameter as the layer reads it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return x @ self.weight.T

    assert seen(Net(), torch.randn(5, 6))["weight"].layout == "oi"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_matrices_of_a_recurrent_layer_are_its_gates(kind):
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    found = seen(kind(10, 14, 2, bidirectional=True, batch_first=True), torch.randn(3, 6, 10))
    for layer, direction in ((0, ""), (0, "_reverse"), (1, ""), (1, "_reverse")):
        name = f"l{layer}{direction}"
        weight, hidden = found[f"weight_ih_{name}"], found[f"weight_hh_{name}"]
        assert (weight.kind, weight.fan_in, weight.fan_out) == ("weight", 28 if layer else 10, 14)
        assert (hidden.kind, hidden.fan_in, hidden.fan_out) == ("recurrent", 14, 14)
        assert {weight.blocks, hidden.blocks} == {gates}
        assert found[f"bias_ih_{name}"].kind == "bias"
        assert found[f"bias_hh_{name}"].kind == "recurrent_bias"


def test_a_projected_state_has_a_matrix_that_is_no_gate():
    found = seen(nn.LSTM(10, 14, proj_size=6, batch_first=True), torch.randn(3, 6, 10))
    projection, hidden = found["weight_hr_l0"], found["weight_hh_l0"]
    assert (projection.kind, projection.blocks) == ("projection", 1)
    assert (projection.fan_in, projection.fan_out) == (14, 6)
    assert (hidden.kind, hidden.blocks, hidden.fan_in, hidden.fan_out) == ("recurrent", 4, 6, 14)


def test_cells_in_a_loop_have_the_roles_of_a_layer():
    found = seen_in("lstm-cells")
    cell, gru = found["cell.weight_hh"], found["second.weight_ih"]
    assert (cell.kind, cell.blocks, cell.fan_in, cell.fan_out) == ("recurrent", 4, 20, 20)
    assert (gru.kind, gru.blocks, gru.fan_in, gru.input.kind) == ("weight", 3, 20, "recurrent")
    assert found["cell.bias_ih"].kind == "bias"
    assert found["cell.bias_hh"].kind == "recurrent_bias"


# ── residual branches ────────────────────────────────────────────────────────────────────────


def two(n: int, *first: nn.Module, last: tuple[nn.Module, ...] = ()) -> list[nn.Module]:
    return [*first, nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), *last]


STREAMS = {
    "before": (lambda: [Residual(*two(8, nn.LayerNorm(8)))], "before", "body.1", "body.3"),
    "after": (lambda: [Residual(*two(8)), nn.LayerNorm(8)], "after", "body.0", "body.2"),
    "last": (
        lambda: [Residual(*two(8, nn.LayerNorm(8), last=(nn.LayerNorm(8),)))],
        "last",
        "body.1",
        "body.3",
    ),
    "last-only": (
        lambda: [Residual(*two(8, last=(nn.RMSNorm(8),)))],
        "last",
        "body.0",
        "body.2",
    ),
    "none": (lambda: [Residual(*two(8))], "none", "body.0", "body.2"),
}


@pytest.mark.parametrize("name", list(STREAMS))
def test_a_residual_branch_knows_its_norm_its_place_and_its_last_layer(name: str):
    build, norm, first, last = STREAMS[name]
    chain = [m for _ in range(3) for m in build()]
    model = nn.Sequential(nn.Linear(5, 8), *chain, nn.Linear(8, 2))
    found = seen(model, torch.randn(6, 5))
    assert found["0.weight"].branch is None
    assert found[f"{len(chain) + 1}.weight"].branch is None
    for number in range(3):
        at = 1 + number * (len(chain) // 3)
        for layer in (first, last):
            branch = branch_of(found, f"{at}.{layer}.weight")
            assert (branch.norm, branch.number, branch.of) == (norm, number, 3)
            assert branch.depth == 2
        assert not found[f"{at}.{first}.weight"].last
        assert found[f"{at}.{last}.weight"].last
        assert found[f"{at}.{last}.bias"].last


def test_a_projection_on_the_way_around_leaves_a_branch():
    """A residual net's first block of a stage: 1×1 on the shortcut, two layers beside it."""
    found = seen_in("resnet-basic")
    for stage in "012":
        for block in "01":
            branch = branch_of(found, f"stages.{stage}.{block}.conv2.weight")
            assert branch.depth == 2
            assert found[f"stages.{stage}.{block}.conv2.weight"].last
            assert found[f"stages.{stage}.{block}.conv1.weight"].branch == branch
    down = found["stages.1.0.down.0.weight"]
    assert not down.last
    assert down.branch is None
    assert branch_of(found, "stages.2.1.conv2.weight").of == 6


def test_two_linear_layers_that_meet_are_no_residual_connection():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.a(x) + self.b(x)

    found = seen(Net(), torch.randn(6, 8))
    assert all(role.branch is None and not role.last for role in found.values())


class Parallel(nn.Module):
    """GPT-J: attention and feed-forward read one norm and are added together."""

    def __init__(self, stream_first: bool) -> None:
        super().__init__()
        self.stream_first = stream_first
        self.norm, self.attention = nn.LayerNorm(8), blocks.Attention(8, 2)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        h = self.norm(x)
        a, f = self.attention(h), self.down(F.gelu(self.up(h)))
        return x + a + f if self.stream_first else (a + f) + x


@pytest.mark.parametrize("stream_first", [True, False])
def test_parallel_branches_count_each_for_itself(stream_first: bool):
    model = nn.Sequential(*(Parallel(stream_first) for _ in range(3)), nn.LayerNorm(8))
    found = seen(model, torch.randn(2, 5, 8))
    for block in "012":
        for name in ("attention.proj", "down"):
            role = found[f"{block}.{name}.weight"]
            assert role.last
            assert branch_of(found, f"{block}.{name}.weight").of == 6
            assert branch_of(found, f"{block}.{name}.weight").norm == "before"
        assert not found[f"{block}.up.weight"].last
        assert not found[f"{block}.attention.qkv.weight"].last


class AddingUNet(nn.Module):
    """Skips by addition: each level is a branch around the levels below it."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 2, 1)
        self.down1, self.down2 = nn.Conv1d(8, 8, 2, 2), nn.Conv1d(8, 8, 2, 2)
        self.up1, self.up2 = nn.ConvTranspose1d(8, 8, 2, 2), nn.ConvTranspose1d(8, 8, 2, 2)

    def forward(self, x):
        a = self.inlet(x).relu()
        b = self.down1(a).relu()
        c = self.down2(b).relu()
        b = b + self.up2(c)
        return self.outlet(a + self.up1(b.relu()))


def test_branches_around_branches_belong_to_the_innermost():
    found = seen(AddingUNet(), torch.randn(3, 2, 16))
    inner, outer = branch_of(found, "up2.weight"), branch_of(found, "up1.weight")
    assert branch_of(found, "down2.weight") == inner
    assert branch_of(found, "down1.weight") == outer
    assert inner != outer
    assert (inner.of, outer.of) == (1, 1)
    assert found["up1.weight"].last
    assert found["up2.weight"].last
    assert found["inlet.weight"].branch is found["outlet.weight"].branch is None


def test_a_highway_has_gates_and_no_residual_branch():
    found = seen_in("highway")
    assert all(role.branch is None and not role.last for role in found.values())


class HandGRU(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.zx, self.zh = nn.Linear(6, 10), nn.Linear(10, 10)
        self.nx, self.nh = nn.Linear(6, 10), nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 10)
        for step in x.unbind(1):
            z = torch.sigmoid(self.zx(step) + self.zh(h))
            n = torch.tanh(self.nx(step) + self.nh(h))
            if self.form == "mixture":
                h = (1 - z) * n + z * h
            elif self.form == "lerp":
                h = torch.lerp(n, h, z)
            else:
                h = n + z * (h - n)
        return self.head(h)


@pytest.mark.parametrize("form", ["mixture", "lerp", "difference"])
def test_a_gated_state_written_by_hand_has_no_residual_branch(form: str):
    found = seen(HandGRU(form), torch.randn(4, 5, 6))
    for name in ("zx", "zh", "nx", "nh"):
        assert found[f"{name}.weight"].branch is None, name
        assert not found[f"{name}.weight"].last


class HandRNN(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.x, self.h, self.head, self.act = (
            nn.Linear(6, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 3),
            act,
        )

    def forward(self, batch):
        h = batch.new_zeros(len(batch), 16)
        for step in batch.unbind(1):
            h = self.act(self.x(step) + self.h(h))
        return self.head(h)


def test_a_state_written_by_hand_has_no_residual_branch_either():
    found = seen(HandRNN(torch.tanh), torch.randn(4, 7, 6))
    assert all(role.branch is None for role in found.values())
    assert found["x.weight"].input.kind == "data"
    assert found["head.weight"].input == Input("activation", "tanh", "tanh")


def test_a_state_that_starts_at_zero_is_no_data():
    found = seen(HandRNN(torch.tanh), torch.randn(4, 7, 6))
    assert found["h.weight"].input.kind != "data"


def test_a_gate_of_one_number_is_part_of_the_branch_and_its_size_is_learned():
    found = seen_in("rezero-40")
    gate, layer = found["7.gamma"], found["7.body.0.weight"]
    assert gate.kind == "branch_scale"
    assert layer.last
    assert layer.gated_branch
    assert branch_of(found, "7.body.0.weight").of == 40


def test_layer_scale_belongs_to_the_branch():
    found = seen_in("convnext-like")
    assert found["blocks.2.gamma"].kind == "branch_scale"
    assert found["blocks.2.down.weight"].last
    assert found["blocks.2.down.weight"].gated_branch


def test_a_scale_at_the_end_of_no_branch_is_a_scale():
    model = nn.Sequential(nn.Linear(5, 8), blocks.Lambda(lambda x: x), nn.Linear(8, 2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.temperature = model, nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.net(x) * self.temperature

    assert kinds(Net(), torch.randn(6, 5))["temperature"] == "scale"


# ── low-rank pairs ───────────────────────────────────────────────────────────────────────────


def test_two_thin_layers_beside_another_are_a_low_rank_pair():
    found = seen(blocks.LoRA(nn.Linear(12, 10), rank=3), torch.randn(6, 12))
    assert (found["A"].low_rank, found["B"].low_rank) == ("A", "B")
    assert found["base.weight"].low_rank == ""
    assert (found["A"].fan_in, found["B"].fan_in) == (12, 3)


def test_a_scaled_pair_with_dropout_is_one_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(12, 10)
            self.down, self.up = nn.Linear(12, 4, bias=False), nn.Linear(4, 10, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(F.dropout(x, 0.1))) * 2.0

    found = seen(Net(), torch.randn(6, 12))
    assert (found["down.weight"].low_rank, found["up.weight"].low_rank) == ("A", "B")


@pytest.mark.parametrize("case", ["activation", "wide", "around"])
def test_what_only_looks_like_a_low_rank_pair_is_none(case: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(12, 10 if case != "around" else 12)
            middle, out = (20 if case == "wide" else 4), (10 if case != "around" else 12)
            self.down, self.up = nn.Linear(12, middle), nn.Linear(middle, out)

        def forward(self, x):
            h = self.down(x)
            h = self.up(h.relu() if case == "activation" else h)
            return (x if case == "around" else self.base(x)) + h

    found = seen(Net(), torch.randn(6, 12))
    assert {role.low_rank for role in found.values()} == {""}


def test_a_pair_that_is_multiplied_into_the_weight_is_computed():
    model = blocks.MergedLoRA(nn.Linear(12, 10), rank=3)
    assert {kinds(model, torch.randn(6, 12))[name] for name in "AB"} == {"computed"}


# ── tables, tokens, positions ────────────────────────────────────────────────────────────────


def test_a_tied_table_keeps_being_a_table_and_is_the_output_layer_too():
    found = seen_in("language-model-tied")
    table = found["tokens.weight"]
    assert (table.kind, table.uses, table.head) == ("table", ("weight",), True)
    assert (table.layout, table.fan_in, table.features) == ("vo", 1, 32)
    assert "head.weight" not in found
    untied = seen_in("language-model-untied")
    assert (untied["tokens.weight"].uses, untied["tokens.weight"].head) == ((), False)
    assert (untied["head.weight"].kind, untied["head.weight"].head) == ("weight", True)


def test_positions_looked_up_are_tables_and_added_ones_are_tokens():
    assert seen_in("language-model-tied")["positions.weight"].kind == "table"
    found = seen_in("vit-by-hand")
    assert (found["token"].kind, found["position"].kind) == ("token", "token")
    assert found["position"].branch is None


@pytest.mark.parametrize("how", ["where", "multiplied", "assigned"])
def test_a_token_that_stands_for_what_is_masked_is_a_token(how: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
            self.token = nn.Parameter(torch.zeros(8))

        def forward(self, x):
            h = self.inlet(x)
            mask = torch.arange(x.shape[1]) % 2 == 0
            if how == "where":
                h = torch.where(mask[None, :, None], self.token, h)
            elif how == "multiplied":
                h = h * ~mask[None, :, None] + self.token * mask[None, :, None]
            else:
                h = h.clone()
                h[:, mask] = self.token
            return self.head(h)

    kind = kinds(Net(), torch.randn(3, 6, 5))["token"]
    assert kind == ("computed" if how == "multiplied" else "token")


@pytest.mark.parametrize("padding", [0, 3, -1])
def test_the_padding_row_is_known(padding: int):
    model = nn.Sequential(nn.Embedding(9, 6, padding_idx=padding), nn.Linear(6, 2))
    role = seen(model, torch.arange(9)[None])["0.weight"]
    assert role.padding == padding % 9
    assert seen(nn.Embedding(9, 6), torch.arange(9))["weight"].padding is None


def test_a_table_that_is_indexed_by_hand_is_a_table():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(9, 6)), nn.Linear(6, 2)

        def forward(self, tokens):
            return self.head(self.table[tokens])

    role = seen(Net(), torch.arange(9)[None])["table"]
    assert (role.kind, role.fan_in, role.layout, role.features) == ("table", 1, "vo", 6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("how", ["parameter", "indexed", "embedding"])
def test_relative_positions_feed_the_scores(how: str, fused: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.o = nn.Linear(12, 36), nn.Linear(12, 12)
            if how == "embedding":
                self.relative = nn.Embedding(9, 3)
            else:
                shape = (3, 5, 5) if how == "parameter" else (9, 3)
                self.relative = nn.Parameter(torch.zeros(shape))

        def bias(self):
            if how == "parameter":
                return self.relative[None]
            apart = torch.arange(5)[:, None] - torch.arange(5) + 4
            picked = self.relative(apart) if how == "embedding" else self.relative[apart]
            return picked.permute(2, 0, 1)[None]

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            if fused:
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias())
            else:
                y = (q @ k.mT * 0.5 + self.bias()).softmax(-1) @ v
            return self.o(y.transpose(1, 2).flatten(2))

    found = seen(Net(), torch.randn(2, 5, 12))
    role = found["relative.weight" if how == "embedding" else "relative"]
    if how == "embedding":
        assert (role.kind, role.feeds_scores) == ("table", True)
    else:
        assert role.kind == "score_bias"
    assert found["qkv.weight"].attention == "qkv"


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_table_that_is_added_to_queries_keys_or_values_is_no_score(part: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.more = nn.Embedding(9, 12), nn.Embedding(9, 12)
            self.qkv, self.o = nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, tokens):
            q, k, v = self.qkv(self.words(tokens)).chunk(3, -1)
            q, k, v = (
                x + self.more(tokens) if name == part else x
                for name, x in (("query", q), ("key", k), ("value", v))
            )
            q, k, v = (x.unflatten(-1, (3, 4)).transpose(1, 2) for x in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v)
            return self.o(y.transpose(1, 2).flatten(2))

    role = seen(Net(), torch.arange(8).view(2, 4))["more.weight"]
    assert (role.kind, role.feeds_scores) == ("table", False)


# ── norms ────────────────────────────────────────────────────────────────────────────────────


class HandNorm(nn.Module):
    def __init__(self, form: str, offset: float = 0.0) -> None:
        super().__init__()
        self.form, self.offset = form, offset
        self.scale = nn.Parameter(torch.full((8,), 1.0 - offset))
        self.shift = nn.Parameter(torch.zeros(8)) if form == "layer" else None

    def forward(self, x):
        if self.form == "rsqrt":
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        elif self.form == "pow":
            x = x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-6, -0.5)
        elif self.form == "power":
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6) ** 0.5
        elif self.form == "cast":
            wide = x.float()
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
            x = wide.type_as(x)
        elif self.form == "sqrt":
            x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        elif self.form == "norm":
            x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6) * 8**0.5
        elif self.form == "normalize":
            x = F.normalize(x, dim=-1) * 8**0.5
        elif self.form == "layer":
            x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)
        elif self.form == "rms_norm":
            x = F.rms_norm(x, (8,))
        weight = self.scale + self.offset if self.offset else self.scale
        out = weight * x if self.form in ("cast", "norm") else x * weight
        return out if self.shift is None else out + self.shift


FORMS = ["rsqrt", "pow", "power", "cast", "sqrt", "norm", "normalize", "layer", "rms_norm"]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_norms_written_by_hand_have_a_scale_and_a_shift(form: str, offset: float):
    model = nn.Sequential(nn.Linear(5, 8), HandNorm(form, offset), nn.ReLU(), nn.Linear(8, 2))
    found = seen(model, torch.randn(6, 5))
    assert (found["1.scale"].kind, found["1.scale"].offset) == ("norm_scale", offset)
    if form == "layer":
        assert found["1.shift"].kind == "norm_shift"
    assert found["0.weight"].norm_after
    assert found["0.weight"].activation == "relu"
    assert found["3.weight"].input == Input("activation", "relu", "relu")


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(8), nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.RMSNorm(8)],
    ids=lambda m: type(m).__name__,
)
def test_the_parameters_of_torchs_norms(norm: nn.Module):
    model = nn.Sequential(nn.Linear(5, 8), norm, nn.Linear(8, 2))
    found = seen(model, torch.randn(6, 5))
    assert found["1.weight"].kind == "norm_scale"
    assert found["1.weight"].offset == 0
    assert "1.bias" not in found or found["1.bias"].kind == "norm_shift"
    assert found["2.weight"].input.kind == "norm"


def test_gemmas_norms_have_their_offset():
    pytest.importorskip("transformers")
    found = seen_in("gemma")
    scales = [role for name, role in found.items() if "norm" in name]
    assert scales
    assert {(role.kind, role.offset) for role in scales} == {("norm_scale", 1.0)}


# ── step sizes ───────────────────────────────────────────────────────────────────────────────


class StateSpace(nn.Module):
    """States that decay by a step size which softplus makes of a sum."""

    def __init__(self, own: bool, decays: bool = True):
        super().__init__()
        self.steps, self.inlet = nn.Linear(8, 16, bias=not own), nn.Linear(8, 16)
        self.offset = nn.Parameter(torch.full((16,), -4.0)) if own else None
        self.rates, self.outlet = nn.Parameter(torch.rand(16)), nn.Linear(16, 4)
        self.decays = decays

    def forward(self, x):
        steps = self.steps(x)
        steps = F.softplus(steps if self.offset is None else steps + self.offset)
        kept = steps * -self.rates.exp()
        kept = kept.exp() if self.decays else kept
        state = torch.zeros_like(kept[:, 0])
        for at in range(x.shape[1]):
            state = kept[:, at] * state + steps[:, at] * self.inlet(x[:, at])
        return self.outlet(state)


@pytest.mark.parametrize(("own", "name"), [(True, "offset"), (False, "steps.bias")])
def test_step_sizes_of_a_state_space_model_stay(own: bool, name: str):
    model, batch = StateSpace(own), torch.randn(16, 6, 8)
    assert seen(model, batch)[name].kind == "step"
    for scheme in ("auto", "he_normal"):
        assert "step sizes" in fanin.plan(model, batch, scheme).untouched[name]


@pytest.mark.parametrize(("own", "name"), [(True, "offset"), (False, "steps.bias")])
def test_a_bias_before_softplus_is_a_step_size_only_of_a_decay(own: bool, name: str):
    model, batch = StateSpace(own, decays=False), torch.randn(16, 6, 8)
    assert seen(model, batch)[name].kind == "bias"


def test_the_biases_of_a_network_of_softplus_are_no_step_sizes():
    model = nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 16), nn.Softplus())
    found = seen(model, torch.randn(16, 8))
    assert {r.kind for n, r in found.items() if n.endswith("bias")} == {"bias"}


# ── experts ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("function", "shape", "batch", "layout"),
    [
        (lambda w, x: torch.bmm(x, w), (4, 8, 10), (4, 7, 8), "bio"),
        (lambda w, x: x.unsqueeze(0) @ w, (4, 8, 10), (7, 8), "bio"),
        (lambda w, x: torch.einsum("ebi,eoi->ebo", x, w), (4, 10, 8), (4, 7, 8), "boi"),
        (lambda w, x: torch.matmul(x, w.transpose(1, 2)), (4, 10, 8), (4, 7, 8), "boi"),
    ],
    ids=["bmm", "broadcast", "einsum", "transposed"],
)
def test_a_stack_of_matrices_is_one_expert_each(function, shape, batch, layout: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return function(self.experts, x)

    role = seen(Net(), torch.randn(batch))["experts"]
    assert (role.kind, role.layout, role.expert) == ("weight", layout, True)
    assert (role.fan_in, role.fan_out) == (8, 10)


def routed(w: Tensor, x: Tensor) -> Tensor:
    """All samples by the expert of the largest input: the index is a signal."""
    return F.linear(x, w[x.sum(0).argmax() % 4])


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: sum(F.linear(x, w[i]) for i in range(4)),
        lambda w, x: sum(F.linear(x, one) for one in w),
        lambda w, x: sum(F.linear(x, one) for one in w.unbind(0)),
        lambda w, x: sum(x @ w.select(0, i).T for i in range(4)),
        lambda w, x: sum(F.linear(x, w[i : i + 1].squeeze(0)) for i in range(4)),
        lambda w, x: sum(F.linear(x, w[torch.tensor(i)]) for i in range(4)),
        routed,
    ],
    ids=["index", "iterated", "unbind", "select", "slice", "tensor", "routed"],
)
def test_one_matrix_of_a_stack_is_an_expert(function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(4, 10, 8))

        def forward(self, x):
            return function(self.experts, x)

    role = seen(Net(), torch.randn(7, 8))["experts"]
    assert (role.kind, role.layout, role.expert) == ("weight", "boi", True)
    assert (role.fan_in, role.fan_out) == (8, 10)


def test_mixtrals_experts_are_known_where_they_run_one_by_one():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=99, num_local_experts=4,
    )  # fmt: skip
    config._experts_implementation = "eager"
    model = transformers.MixtralForCausalLM(config)
    found = seen(model, {"input_ids": torch.randint(0, 99, (4, 12))})
    stacks = {name: role for name, role in found.items() if ".experts." in name}
    assert {(r.kind, r.layout, r.expert) for r in stacks.values()} == {("weight", "boi", True)}


class Fields(nn.Module):
    """A table for each field, in one parameter; what is looked up is a signal."""

    def __init__(self, pick):
        super().__init__()
        self.tables, self.head = nn.Parameter(torch.randn(3, 20, 4)), nn.Linear(12, 2)
        self.pick = pick

    def forward(self, tokens):
        return self.head(self.pick(self.tables, tokens).flatten(1))


@pytest.mark.parametrize(
    "pick",
    [
        lambda t, i: t[torch.arange(3), i],
        lambda t, i: t[0][i].view(-1, 3, 4),
        lambda t, i: t.transpose(0, 1)[i[:, 0]],
    ],
    ids=["a table each", "the first table", "several rows of a token"],
)
def test_what_tokens_pick_of_a_stack_of_tables_is_a_signal(pick):
    model, batch = Fields(pick), torch.randint(0, 20, (16, 3))
    read = reading(model, batch)
    assert "tables" not in dict(read.unnamed) or dict(read.unnamed)["tables"] != "unused"
    assert next(y for y in read.layers if y.name == "head").calls[0] in read.descendants(
        {c.index for c in read.trace.calls if "tables" in c.parameters}
    )


def test_mixtrals_experts_have_the_fan_of_one():
    pytest.importorskip("transformers")
    found = seen_in("mixtral")
    stacks = {name: role for name, role in found.items() if ".experts." in name}
    assert stacks
    for name, role in stacks.items():
        assert role.kind == "weight", name
        assert role.fan_in == (64 if "down" in name else 32), name
        assert role.expert, name


# ── reparametrized weights ───────────────────────────────────────────────────────────────────


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), wrap(nn.Linear(8, 6)), nn.ReLU())


def custom(layer: nn.Module) -> nn.Module:
    class Symmetric(nn.Module):
        def forward(self, x):
            return x + x.mean()

    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


@pytest.mark.parametrize(
    ("wrap", "direction", "magnitude"),
    [
        (nn.utils.weight_norm, "2.weight_v", "2.weight_g"),
        (
            nn.utils.parametrizations.weight_norm,
            "2.parametrizations.weight.original1",
            "2.parametrizations.weight.original0",
        ),
    ],
    ids=["old", "new"],
)
def test_weight_norm_has_a_direction_and_magnitudes(wrap, direction: str, magnitude: str):
    found = seen(wrapped(wrap), torch.randn(6, 5))
    assert (found[direction].kind, found[direction].part.kind) == ("weight", "direction")
    assert (found[magnitude].kind, found[magnitude].part.kind) == ("magnitude", "magnitude")
    assert found[direction].part.weight == found[magnitude].part.weight == "2.weight"
    assert found[direction].fan_in == 8
    assert found[direction].layout == "oi"
    assert found[direction].input == Input("activation", "relu", "relu")
    assert found["2.bias"].kind == "bias"


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (nn.utils.spectral_norm, "2.weight_orig"),
        (nn.utils.parametrizations.spectral_norm, "2.parametrizations.weight.original"),
    ],
    ids=["old", "new"],
)
def test_a_spectral_norm_leaves_a_weight_without_a_size(wrap, name: str):
    role = seen(wrapped(wrap), torch.randn(6, 5))[name]
    assert (role.kind, role.part.kind, role.part.how) == ("weight", "normalized", "spectral_norm")
    assert (role.fan_in, role.layout) == (8, "oi")


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.orthogonal, custom])
def test_other_parametrizations_are_named(wrap):
    found = seen(wrapped(wrap), torch.randn(6, 5))
    role = found["2.parametrizations.weight.original"]
    assert role.part.kind == "other"
    assert role.part.weight == "2.weight"
    assert role.part.how in ("_Orthogonal", "Symmetric")


def test_a_weight_that_forward_computes_is_said_to_be():
    found = seen_in("resnet-group-norm-standardised")
    assert found["0.weight"].kind == "computed"
    assert found["0.bias"].kind == "bias"


# ── activations ──────────────────────────────────────────────────────────────────────────────


class Between(nn.Module):
    """Linear, something, Linear."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.function(self.first(x)))


PLAIN = {
    "relu": torch.relu,
    "relu-in-place": F.relu_,
    "relu-clamped": lambda x: x.clamp(min=0),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "selu": F.selu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "sin": torch.sin,
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_the_activation_before_and_after_is_named(name: str):
    found = seen(Between(PLAIN[name]), torch.randn(5, 6))
    plain = name.partition("-")[0]
    assert found["first.weight"].activation == plain
    before = found["second.weight"].input
    assert (before.kind, before.activation) == ("activation", plain)
    assert found["first.weight"].input == Input("data")
    assert found["second.weight"].activation is None


@pytest.mark.parametrize(
    ("function", "name", "curve"),
    [
        (lambda x: F.leaky_relu(x, 0.2), "leaky_relu", "leaky_relu(0.2)"),
        (lambda x: F.leaky_relu(x, negative_slope=0.2), "leaky_relu", "leaky_relu(0.2)"),
        (nn.LeakyReLU(0.3), "leaky_relu", "leaky_relu(0.3)"),
        (nn.LeakyReLU(0.3, inplace=True), "leaky_relu", "leaky_relu(0.3)"),
        (nn.ELU(1.5), "elu", "elu(1.5)"),
        (nn.Hardtanh(-20, 20), "hardtanh", "hardtanh(-20.0, 20.0)"),
        (lambda x: F.hardtanh(x, max_val=3.0), "hardtanh", "hardtanh(-1.0, 3.0)"),
        (nn.GELU("tanh"), "gelu", "gelu_tanh"),
        (nn.Softplus(5.0), "softplus", "softplus(5.0)"),
        (nn.Softshrink(0.1), "softshrink", "softshrink(0.1)"),
        (nn.PReLU(), "prelu", "prelu"),
        (lambda x: x.clamp(0, 2), "hardtanh", "hardtanh(0.0, 2.0)"),
    ],
)
def test_the_arguments_of_an_activation_are_kept(function, name: str, curve: str):
    found = seen(Between(function), torch.randn(5, 6))
    assert found["second.weight"].input == Input("activation", name, curve)
    assert (found["first.weight"].activation, found["first.weight"].curve) == (name, curve)


def test_a_gated_unit_has_no_moments():
    model = nn.Sequential(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 4))
    assert seen(model, torch.randn(5, 6))["2.weight"].input == Input("activation", "glu")


MODULES = [
    nn.ReLU(), nn.LeakyReLU(0.3), nn.PReLU(init=0.25), nn.RReLU(0.1, 0.5).eval(), nn.ReLU6(),
    nn.Threshold(0.2, 0.1), nn.ELU(0.7), nn.SELU(), nn.CELU(1.3), nn.GELU(), nn.GELU("tanh"),
    nn.SiLU(), nn.Mish(), nn.Softplus(3.0), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softsign(),
    nn.Hardtanh(-2, 2), nn.Hardtanh(-0.5, 3), nn.Hardsigmoid(), nn.Hardswish(), nn.Tanhshrink(),
    nn.Softshrink(0.2), nn.Hardshrink(0.3),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_that_is_watched_has_the_gain_of_the_module(module: nn.Module):
    curve = seen(Between(module), torch.randn(5, 6))["second.weight"].input.curve
    assert fanin.gain(curve) == pytest.approx(fanin.gain(module), rel=1e-9)


@pytest.mark.parametrize("function", [lambda x: x.relu().square(), lambda x: F.relu(x) ** 2])
def test_a_squared_relu_is_an_activation_of_its_own(function):
    found = seen(Between(function), torch.randn(5, 6))["second.weight"].input
    assert found == Input("activation", "relu_squared", "relu_squared")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x.relu(), 0.5),
        lambda x: x.relu().view(-1, 2, 4).transpose(1, 2).reshape(-1, 8),
        lambda x: F.max_pool1d(x.relu(), 1),
        lambda x: x.relu().contiguous().clone(),
    ],
    ids=["dropout", "reshapes", "pooling", "copies"],
)
def test_what_hands_a_signal_on_hides_no_activation(function):
    assert seen(Between(function), torch.randn(5, 6))["second.weight"].input == Input(
        "activation", "relu", "relu"
    )


def test_a_gate_times_another_signal_is_a_product():
    found = seen_in("attention-scaled-dot-product")
    assert found["1.mlp.down.weight"].input == Input("product", "silu", "silu")
    assert found["1.mlp.gate.weight"].activation == "silu"
    assert found["1.mlp.up.weight"].activation is None


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x, "layer"),
        (lambda x: F.layer_norm(x, (8,)), "norm"),
        (lambda x: F.softmax(x, -1), "softmax"),
        (lambda x: x * x.roll(1, -1), "product"),
    ],
    ids=["nothing", "norm", "softmax", "product"],
)
def test_inputs_without_an_activation(function, kind: str):
    assert seen(Between(function), torch.randn(5, 6))["second.weight"].input.kind == kind


def test_inputs_from_tables_states_and_sums():
    assert seen_in("language-model-tied")["blocks.0.mixer.qkv.weight"].input.kind == "norm"
    assert seen_in("lstm-classifier")["rnn.weight_ih_l0"].input.kind == "table"
    assert seen_in("lstm-classifier")["head.weight"].input.kind == "recurrent"
    assert seen_in("rezero-40")["9.body.0.weight"].input.kind == "sum"


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (lambda x: torch.sin(30 * x), 30),
        (lambda x: torch.sin(x * 30.0), 30),
        (lambda x: torch.mul(x, 30.0).sin(), 30),
        (lambda x: torch.sin(x.mul_(30)), 30),
        (lambda x: torch.sin(3.0 * (10.0 * x)), 30),
        (lambda x: torch.sin(x / 0.5), 2),
        (torch.sin, 1),
    ],
    ids=["left", "right", "mul", "in-place", "twice", "divided", "none"],
)
def test_the_factor_before_a_sine_is_read(function, factor: float):
    role = seen(Between(function), torch.randn(5, 6))["first.weight"]
    assert role.activation == "sin"
    assert role.factor == pytest.approx(factor)


def test_a_layer_before_pixel_shuffle_is_known():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 3, 3))
    found = seen(model, torch.randn(2, 3, 8, 8))
    assert [found[f"{i}.weight"].shuffled for i in (0, 2)] == [True, False]


# ── output layers, stretches ─────────────────────────────────────────────────────────────────


def test_only_what_goes_to_the_output_alone_is_an_output_layer():
    found = seen_in("nerf")
    heads = {name for name, role in found.items() if role.head and name.endswith("weight")}
    assert heads == {"density.weight", "colour.2.weight"}
    assert found["density.bias"].head


def test_a_layer_in_a_branch_that_ends_the_model_is_no_output_layer():
    found = seen(nn.Sequential(Residual(*two(8)), Residual(*two(8))), torch.randn(5, 8))
    assert not any(role.head for role in found.values())


def test_the_place_in_a_stretch_counts_from_the_last_norm_or_sum():
    model = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8),
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    found = seen(model, torch.randn(6, 5))
    weights = [found[f"{i}.weight"] for i in (0, 2, 5, 7, 9)]
    assert [(role.place, role.run) for role in weights] == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def test_norms_end_a_stretch_and_sums_end_a_chain():
    steps = [m for _ in range(4) for m in (nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU())]
    found = seen(nn.Sequential(*steps, Residual(*two(8)), nn.Linear(8, 3)), torch.randn(6, 8))
    assert [found[f"{i}.weight"].run for i in (0, 3, 6, 9)] == [1, 1, 1, 1]
    assert [found[f"{i}.weight"].chain for i in (0, 3, 6, 9)] == [6, 6, 6, 6]
    assert (found["13.weight"].run, found["13.weight"].chain) == (1, 1)


class Adapted(nn.Module):
    """One step of gradient descent inside of the forward pass (MAML), then the loss."""

    def __init__(self, outputs=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, x, y):
        first = dict(self.net.named_parameters())
        loss = F.mse_loss(functional_call(self.net, first, (x,)), y)
        steps = torch.autograd.grad(loss, list(first.values()), create_graph=True)
        fast = {name: p - 0.1 * g for (name, p), g in zip(first.items(), steps, strict=True)}
        return F.mse_loss(functional_call(self.net, fast, (x,)), y)


@pytest.mark.parametrize("outputs", [3, 1])
def test_the_last_layer_of_a_model_that_adapts_itself_is_its_output_layer(outputs: int):
    found = seen(Adapted(outputs), (torch.randn(8, 2), torch.randn(8, outputs)))
    assert {n for n, role in found.items() if role.head} == {"net.2.weight", "net.2.bias"}


@pytest.mark.parametrize("more", ["matmul", "scale"])
def test_an_output_layer_that_does_more_is_none(more):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.head = nn.Linear(5, 6), nn.Linear(6, 6)

        def forward(self, x):
            h = self.inlet(x).relu()
            weight = self.head.weight
            h = h @ weight if more == "matmul" else (h[:, None] * weight).mean(1)
            return self.head(h.relu())

    assert not seen(Net(), torch.randn(4, 5))["head.weight"].head


# ── hypernetworks, and products of signals that are none ─────────────────────────────────────


class Hyper(nn.Module):
    """A layer whose weights another one makes, for each sample."""

    def __init__(self, how, inputs=6, outputs=5):
        super().__init__()
        self.how, self.inputs, self.outputs = how, inputs, outputs
        self.code = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.maker = nn.Linear(8, outputs * inputs + outputs)
        self.head = nn.Linear(outputs, 3)

    def forward(self, z, x):
        made = self.maker(self.code(z))
        shift = made[:, self.outputs * self.inputs :]
        weight = made[:, : self.outputs * self.inputs].view(-1, self.outputs, self.inputs)
        h = {
            "bmm": lambda: torch.bmm(weight, x[:, :, None])[:, :, 0],
            "turned": lambda: torch.bmm(x[:, None], weight.transpose(1, 2))[:, 0],
            "matmul": lambda: (weight @ x[:, :, None]).squeeze(-1),
            "einsum": lambda: torch.einsum("boi,bi->bo", weight, x),
            "linear": lambda: torch.stack([F.linear(a, w) for a, w in zip(x, weight, strict=True)]),
            "conv": lambda: F.conv1d(
                x.view(1, -1, 1), weight.flatten(0, 1)[..., None], groups=7
            ).view(7, -1),
        }[self.how]()
        return self.head(torch.tanh(h + shift))


@pytest.mark.parametrize("inputs", [6, 5])
@pytest.mark.parametrize("how", ["bmm", "turned", "matmul", "einsum", "linear", "conv"])
def test_a_layer_may_make_the_weights_of_another(how, inputs):
    found = seen(Hyper(how, inputs), (torch.randn(7, 4), torch.randn(7, inputs)))
    assert {n: r.generates for n, r in found.items() if r.generates is not None} == {
        "maker.weight": Generated(inputs, Input("data"))
    }


def attended(how: str, tokens: int = 6, packed: bool = False) -> tuple[nn.Module, Any]:
    """Attentions and other products of signals, with 4 heads of 2."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.head = (nn.Linear(8, 8) for _ in range(4))
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1) if packed else (self.q(x), self.k(x), self.v(x))
            parts = [t.view(*t.shape[:2], 4, 2) for t in (q, k, v)]
            a, b, c = (t.transpose(1, 2) for t in parts)
            mixed = {
                "softmax": lambda: (q @ k.mT).softmax(-1) @ v,
                "heads": lambda: ((a @ b.mT).softmax(-1) @ c).transpose(1, 2).flatten(2),
                "linear": lambda: q @ (k.mT @ v),
                "linear heads": lambda: (a @ (b.mT @ c)).transpose(1, 2).flatten(2),
                "sigmoid": lambda: torch.bmm(torch.bmm(q, k.mT).sigmoid(), v),
                "einsum": lambda: torch.einsum(
                    "bhts,bshd->bthd",
                    torch.einsum("bthd,bshd->bhts", *parts[:2]).relu(),
                    parts[2],
                ).flatten(2),
                "states": lambda: torch.einsum(
                    "bthd,bhde->bthe", parts[0], torch.einsum("bthd,bthe->bhde", *parts[1:])
                ).flatten(2),
                "pointer": lambda: torch.bmm(k, q[:, 0, :, None]) + v,
                "outer": lambda: (q[:, 0, :, None] @ k[:, 0, None, :]).relu().mean() + v,
                "pair": lambda: F.linear(q[0], k[0]).mean() + v,
                "score": lambda: torch.bmm(q[:, :1], k[:, 0, :, None]) + v,
            }[how]()
            return self.head(mixed)

    return Net(), torch.randn(3, tokens, 8)


@pytest.mark.parametrize(
    "how",
    [
        *("softmax", "heads", "linear", "linear heads", "sigmoid", "einsum", "states"),
        *("pointer", "outer", "pair", "score"),
    ],
)
@pytest.mark.parametrize("tokens", [2, 4, 6])
@pytest.mark.parametrize("packed", [False, True])
def test_signals_that_are_multiplied_are_no_weights(how, tokens, packed):
    found = seen(*attended(how, tokens, packed))
    assert all(role.generates is None for role in found.values())


# ── learned inputs ───────────────────────────────────────────────────────────────────────────


class Queries(nn.Module):
    """Learned queries that one layer reads and nothing else."""

    def __init__(self, how):
        super().__init__()
        self.how, self.seeds = how, nn.Parameter(torch.randn(1, 4, 8))
        self.q, self.k, self.v, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        seeds = {
            "plain": lambda: self.seeds,
            "expand": lambda: self.seeds.expand(len(x), -1, -1),
            "repeat": lambda: self.seeds.repeat(len(x), 1, 1),
        }[self.how]()
        queries = self.q(seeds).expand(len(x), -1, -1)
        return self.head(F.scaled_dot_product_attention(queries, self.k(x), self.v(x)))


@pytest.mark.parametrize("how", ["plain", "expand", "repeat"])
def test_what_a_layer_reads_may_be_a_parameter(how):
    found = seen(Queries(how), torch.randn(3, 6, 8))
    assert found["seeds"].kind == "input"
    assert found["q.weight"].input.kind == "learned"
    assert found["k.weight"].input.kind == "data"
    report = fanin.check(Queries(how), torch.randn(3, 6, 8))
    assert not report.unnamed


def test_the_first_states_and_the_first_input_of_recurrent_layers_may_be_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.h, self.c = (nn.Parameter(torch.zeros(1, 1, 8)) for _ in range(2))
            self.start = nn.Parameter(torch.randn(1, 8))
            self.reader = nn.LSTM(5, 8, batch_first=True)
            self.writer, self.head = nn.GRUCell(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            first = tuple(s.expand(-1, len(x), -1).contiguous() for s in (self.h, self.c))
            _, (h, _) = self.reader(x, first)
            return self.head(self.writer(self.start.expand(len(x), -1), h[0]))

    found = kinds(Net(), torch.randn(4, 6, 5))
    assert (found["h"], found["c"], found["start"]) == ("state", "state", "input")


@pytest.mark.parametrize("how", ["product", "expanded", "joined"])
def test_the_first_state_of_a_recurrent_network_written_by_hand_may_be_a_parameter(how: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.read = nn.Parameter(torch.zeros(8)), nn.Linear(2, 8)
            self.state, self.cell, self.head = nn.Linear(8, 8), nn.Linear(10, 8), nn.Linear(8, 1)

        def forward(self, x):
            h = self.first if how == "product" else self.first.expand(len(x), -1)
            for step in x.unbind(1):
                if how == "joined":
                    h = self.cell(torch.cat((step, h), -1)).tanh()
                else:
                    h = (self.read(step) + self.state(h)).tanh()
            return self.head(h)

    assert kinds(Net(), torch.randn(16, 5, 2))["first"] == "state"


@pytest.mark.parametrize("how", ["gated", "multiplied", "alone"])
def test_a_first_state_that_nothing_is_added_to_may_not_be_zero(how: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Parameter(torch.randn(8))
            self.state, self.read = nn.Linear(8, 8, bias=False), nn.Linear(2, 8, bias=False)
            self.head = nn.Linear(8, 1)

        def forward(self, x):
            h = self.first.expand(len(x), -1)
            for step in x.unbind(1):
                if how == "multiplied":
                    h = (self.state(h) * self.read(step)).relu()
                else:
                    h = self.state(h).relu()
                    h = h * self.read(step).sigmoid() if how == "gated" else h
            return self.head(h * self.read(x[:, 0]))

    model, x = Net(), torch.randn(16, 5, 2)
    assert kinds(model, x)["first"] == "input"
    fanin.init_(model, x)
    assert fanin.check(model, x).ok


def test_a_learned_input_that_does_more_is_what_else_it_does():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.latents, self.norm = nn.Parameter(torch.randn(4, 8)), nn.LayerNorm(8)
            self.q, self.k, self.v, self.head = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            latents = self.latents.expand(len(x), -1, -1)
            queries = self.q(self.norm(latents))
            found = F.scaled_dot_product_attention(queries, self.k(x), self.v(x))
            return self.head(latents + found)

    found = kinds(Net(), torch.randn(3, 6, 8))
    assert found["latents"] == "token"
    assert found["norm.weight"] == "computed"  # what q reads, but not alone


# ── what is not known ────────────────────────────────────────────────────────────────────────


def test_what_the_forward_does_not_use_is_unused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    assert kinds(Net(), torch.randn(4, 5)) == {
        "used.weight": "weight",
        "used.bias": "bias",
        "other.weight": "unused",
        "other.bias": "unused",
    }


def test_a_function_without_a_known_role_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.head = nn.Parameter(torch.randn(5) * 0.1), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.atan2(x, self.odd))

    role = seen(Net(), torch.randn(4, 5))["odd"]
    assert role.kind == "unknown"
    assert "atan2" in role.seen


def test_frozen_parameters_have_roles_too():
    found = seen_in("frozen-backbone")
    assert not found["backbone.stem.0.weight"].trainable
    assert found["backbone.stem.0.weight"].kind == "weight"
    assert found["head.weight"].trainable


@pytest.mark.parametrize("scalar", [True, False])
def test_prelu_has_slopes(scalar: bool):
    model = nn.Sequential(nn.Linear(5, 8), nn.PReLU(1 if scalar else 8), nn.Linear(8, 2))
    found = seen(model, torch.randn(6, 5))
    assert found["1.weight"].kind == "slope"
    assert found["2.weight"].input.activation == "prelu"


def test_biases_added_by_hand_are_biases():
    found = seen_in("matmul-in-out")
    assert [found[name].kind for name in ("b1", "b2")] == ["bias", "bias"]
    assert [found[name].layout for name in ("w1", "w2", "w3")] == ["io", "io", "io"]


def test_scaled_residual_and_lambda_blocks_are_only_python():
    """Roles do not depend on modules: the same net as one function has the same roles."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            shapes = {"a": (8, 5), "b": (8, 8), "c": (8, 8), "g": (1,), "d": (3, 8)}
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.3))

        def forward(self, x):
            h = F.linear(x, self.a)
            h = h + self.g * F.linear(F.linear(h, self.b).relu(), self.c)
            return F.linear(h, self.d)

    modules = nn.Sequential(
        nn.Linear(5, 8, bias=False),
        Scaled(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False)),
        Lambda(lambda x: x),
        nn.Linear(8, 3, bias=False),
    )
    batch = torch.randn(6, 5)
    one, two = seen(Functional(), batch), seen(modules, batch)
    pairs = {"a": "0.weight", "b": "1.body.0.weight", "c": "1.body.2.weight", "g": "1.gamma"}
    for name, other in {**pairs, "d": "3.weight"}.items():
        for field in ("kind", "fan_in", "fan_out", "input", "activation", "last", "head", "run"):
            assert getattr(one[name], field) == getattr(two[other], field), (name, field)


def test_every_parameter_of_every_healthy_model_has_a_role_that_holds_together():
    for name in ("vae", "transformer", "unet", "swin-like", "wavenet-like", "mlp-mixer"):
        model, batch, _ = BY_NAME[name].build()
        found = seen(model, batch)
        assert list(found) == [n for n, _ in model.named_parameters()]
        for role in found.values():
            assert role.kind not in ("unknown", "unused"), role
            if role.kind in ("weight", "recurrent", "projection", "table"):
                assert len(role.layout) == len(role.shape), role
                assert role.fan_in, role
            if role.last:
                assert role.branch is not None


class TokenShift(nn.Module):
    """A mix of each token with the one before it, by learned shares behind a norm (RWKV)."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16, elementwise_affine=affine)
        self.mix = nn.Parameter(torch.linspace(0, 1, 16))
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        before = F.pad(x, (0, 0, 1, -1))
        return self.layer(x * self.mix + before * (1 - self.mix))


def test_a_product_behind_a_norm_with_a_scale_is_no_second_scale_of_it():
    net = TokenShift(affine=True)
    plan = fanin.plan(net, torch.randn(4, 6, 16))
    assert "mix" in plan.untouched


def test_a_product_behind_a_norm_without_a_scale_is_its_scale():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.layer = nn.Parameter(torch.zeros(16)), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.layer_norm(x, (16,)) * self.gamma)

    plan = fanin.plan(Written(), torch.randn(4, 16))
    assert (plan["gamma"].scheme, plan["gamma"].std) == ("ones", 1.0)


def test_numbers_that_weigh_a_sum_behind_a_norm_are_no_scale_of_it():
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.tensor([1.0, 0.0]))
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = first = F.rms_norm(x, (16,))
            for layer in self.layers:
                mixed = self.weights[0] * x + self.weights[1] * first
                x = x + layer(F.rms_norm(mixed, (16,)))
            return self.head(x)

    plan = fanin.plan(Weighed(), torch.randn(4, 16))
    assert "author chose" in plan.untouched["weights"]


class Additive(nn.Module):
    """Attention by tanh(key + query), whose query is made from the same inputs (Bahdanau)."""

    def __init__(self, spread: bool) -> None:
        super().__init__()
        self.spread = spread
        self.key, self.query, self.inner = (nn.Linear(16, 16) for _ in range(3))
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.inner(x.mean(1, keepdim=True) if self.spread else x))
        return self.score(torch.tanh(self.key(x) + self.query(state)))


def test_a_sum_that_spreads_one_signal_over_the_other_is_no_residual_connection():
    batch = torch.randn(4, 6, 16)
    spread = fanin.plan(Additive(True), batch)
    assert "residual" not in spread["query.weight"].because
    assert spread["query.weight"].std > 0
    assert "residual" in fanin.plan(Additive(False), batch)["query.weight"].because


def test_an_output_layer_before_a_norm_keeps_its_scale():
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(16, 32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.out(torch.relu(self.inner(x))), dim=-1)

    found = fanin.plan(Tower(), torch.randn(4, 16))["out.weight"]
    assert found.std == pytest.approx(math.sqrt(2 / 32))
    assert "before a norm" in found.because
    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    assert "guessing" in fanin.plan(plain, torch.randn(4, 16))["2.weight"].because


@torch.library.custom_op("fanin_tests::grouped_mm_fallback", mutates_args=())
def grouped_mm_fallback(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """What transformers computes where torch has no grouped product."""
    pieces = torch.tensor_split(x, offs[:-1].cpu().long())
    return torch.cat([piece @ own for piece, own in zip(pieces, weight, strict=True)])


def test_experts_have_a_role_also_where_torch_has_no_grouped_product():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.experts = nn.Linear(8, 16), nn.Parameter(torch.randn(2, 16, 24))

        def forward(self, x):
            ends = torch.tensor([len(x) // 2, len(x)], dtype=torch.int32)
            return torch.ops.fanin_tests.grouped_mm_fallback(self.inlet(x), self.experts, ends)

    role = seen(Experts(), torch.randn(32, 8))["experts"]
    assert (role.fan_in, role.fan_out) == (16, 24)


# ── cells written by hand ────────────────────────────────────────────────────────────────────


class Cell(nn.Module):
    """A cell of two layers, unrolled: as deep as it is, however many steps it takes."""

    def __init__(self, fresh: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(2 + 32 if fresh else 32, 64), nn.Linear(64, 32)
        self.enter, self.head, self.fresh = nn.Linear(2, 32), nn.Linear(32, 1), fresh

    def forward(self, x):
        h = x.new_zeros(len(x), 32) if self.fresh else self.enter(x[:, 0])
        for step in x.unbind(1):
            h = torch.cat([step, h], 1) if self.fresh else h
            h = self.out(self.inner(h).tanh()).tanh()
        return self.head(h)


def test_a_cell_that_is_unrolled_over_time_is_no_deep_stretch():
    x = torch.randn(64, 24, 2)
    found = seen(Cell(), x)
    assert [found[f"{n}.weight"].run for n in ("inner", "out", "head")] == [3, 3, 3]
    assert found["inner.weight"].repeated
    assert found["out.weight"].repeated
    assert not found["head.weight"].repeated
    plan = fanin.plan(Cell(), x)
    # 1/√34 for the input and the state together: at the first step, where the state is zero, a
    # measurement would make it five times as large, and chaos of the steps behind it
    assert plan["inner.weight"].std == pytest.approx(1 / math.sqrt(34), rel=1e-6)
    assert "orthogonal, since it is used again" in plan["inner.weight"].because


class Transition(nn.Module):
    """A cell whose new state is what its last layer gives, with nothing behind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out, self.head = nn.Linear(34, 64), nn.Linear(64, 32), nn.Linear(32, 1)

    def forward(self, x):
        h = x.new_zeros(len(x), 32)
        for step in x.unbind(1):
            h = self.out(self.inner(torch.cat([step, h], 1)).relu())
        return self.head(h)


def test_a_layer_of_a_cell_that_reads_another_of_its_layers_has_the_gain_of_what_is_between():
    plan = fanin.plan(Transition(), torch.randn(64, 9, 2))
    assert plan["out.weight"].std == pytest.approx(math.sqrt(2 / 64), rel=1e-6)
    assert "relu before it" in plan["out.weight"].because


def test_a_layer_that_is_used_many_times_in_a_row_is_deep():
    found = seen(Cell(fresh=False), torch.randn(64, 24, 2))
    assert found["inner.weight"].run == 50
    assert not found["inner.weight"].repeated


@pytest.mark.parametrize("affine", [False, True])
def test_the_layer_before_the_units_are_put_back_is_the_output_layer(affine: bool):
    """What is subtracted and divided by before the model is put back behind it (RevIN)."""

    class Forecaster(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.middle, self.out = (
                nn.Linear(24, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 12),
            )
            self.scale = nn.Parameter(torch.ones(3)) if affine else 1.0

        def forward(self, x):
            mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
            h = self.enter(((x - mean) / std * self.scale).transpose(1, 2)).relu()
            h = self.out(h + self.middle(h).relu()).transpose(1, 2)
            return h / (self.scale + 1e-6) * std + mean

    found = seen(Forecaster(), torch.randn(16, 24, 3) + 5)
    assert found["out.weight"].head
    assert found["out.weight"].branch is None
    assert branch_of(found, "middle.weight").of == 1


class Judged(nn.Module):
    """An action, and what a critic says of it: terms of a loss, or two branches of a stream."""

    def __init__(self, loss: bool):
        super().__init__()
        self.loss, self.actor = loss, blocks.mlp(6, 8, 3)
        self.critic, self.head = blocks.mlp(3, 8, 1 if loss else 3), nn.Linear(3, 2)

    def forward(self, x, wanted, given):
        action = self.actor(x).tanh()
        judged = self.critic(action)
        if not self.loss:
            return self.head(action + judged)
        entropy = (1 - action**2 + 1e-6).log().sum(-1, keepdim=True)
        return (entropy - judged).mean() + (self.critic(given) - wanted).square().mean()


@pytest.mark.parametrize("loss", [True, False])
def test_terms_of_a_loss_are_no_residual_branch(loss: bool):
    """As an actor's log π(a) − Q(a), and the error Q(a) − y, where the batch holds y."""
    batch = (torch.randn(16, 6), torch.randn(16, 1), torch.randn(16, 3))
    found = seen(Judged(loss), batch)
    assert found["critic.2.weight"].head == loss
    assert (found["critic.2.weight"].branch is None) == loss


class Offset(nn.Module):
    """Something is done to what a layer gives, and to a parameter that is added."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(6, 16)
        self.blocks = nn.Parameter(torch.randn(4, 4, 4))
        self.scale, self.added = nn.Parameter(torch.ones(16)), nn.Parameter(torch.randn(shape))
        self.head = nn.Linear(16, 3)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self, x))


def grouped(m, x):
    made = torch.einsum("bgi,gio->bgo", m.first(x).view(-1, 4, 4), m.blocks)
    return torch.tanh((made + m.added).flatten(1))


def at_places(m, x):
    return torch.tanh(torch.stack([m.first(x)] * 5, 1) + m.added).mean(1)


@pytest.mark.parametrize(
    ("function", "shape", "kind"),
    [
        (lambda m, x: torch.tanh(m.first(x) + m.second(x) + m.added), (16,), "bias"),
        (lambda m, x: torch.tanh(m.first(x)) * m.scale + m.added, (16,), "bias"),
        (lambda m, x: torch.relu(m.first(x).abs() + m.added), (1, 16), "bias"),
        (grouped, (4, 4), "bias"),
        (at_places, (16,), "bias"),
        (at_places, (5, 16), "token"),
        (at_places, (1, 5, 16), "token"),
        (at_places, (5, 1), "token"),
    ],
    ids=["two-layers", "scaled", "size", "blocks", "each-unit", "places", "places-1", "place"],
)
def test_what_has_one_number_for_each_unit_is_a_bias(function, shape, kind: str):
    assert kinds(Offset(function, *shape), torch.randn(7, 6))["added"] == kind


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("shape", [(16,), (16, 1, 1), (1, 16, 1, 1)])
def test_one_number_for_each_channel_of_a_computed_convolution_is_a_bias(shape, noisy: bool):
    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 3, 3, 3))
            self.style, self.added = nn.Linear(6, 3), nn.Parameter(torch.zeros(shape))
            self.noise = nn.Parameter(torch.zeros(()))

        def forward(self, x, style):
            kernels = self.weight * self.style(style)[:, None, :, None, None]
            maps = x.reshape(1, -1, 8, 8)
            made = F.conv2d(maps, kernels.reshape(-1, 3, 3, 3), padding=1, groups=len(x))
            made = made.view(len(x), 16, 8, 8)
            if noisy:
                made = made + self.noise * torch.randn(len(x), 1, 8, 8)
            return F.leaky_relu(made + self.added.view(1, -1, 1, 1), 0.2)

    found = kinds(Modulated(), (torch.randn(4, 3, 8, 8), torch.randn(4, 6)))
    assert found["added"] == "bias"


def test_the_only_number_that_is_added_to_the_only_output_is_a_bias():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 1))
            self.added, self.times = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x @ self.weight + self.added) * self.times

    found = kinds(One(), torch.randn(7, 6))
    assert (found["added"], found["times"]) == ("bias", "scale")


STATES = {
    "matmul": lambda h, w: h @ w,
    "mm": torch.mm,
    "einsum": lambda h, w: torch.einsum("bi,io->bo", h, w),
    "linear": lambda h, w: F.linear(h, w.T),
}
FIRST = {
    "new": lambda x: x.new_zeros(len(x), 8),
    "zeros": lambda x: torch.zeros(len(x), 8, device=x.device),
    "like": lambda x: torch.zeros_like(x[:, 0])[:, :1].expand(-1, 8).contiguous(),
}


class ByHand(nn.Module):
    """A state of zeros meets its matrix at the first step."""

    def __init__(self, product, first) -> None:
        super().__init__()
        self.read, self.state = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 8))
        self.head, self.product, self.first = nn.Linear(8, 3), product, first

    def forward(self, x):
        h = self.first(x)
        for step in x.unbind(1):
            h = torch.tanh(self.read(step) + self.product(h, self.state))
        return self.head(h)


@pytest.mark.parametrize("first", list(FIRST))
@pytest.mark.parametrize("product", list(STATES))
def test_the_matrix_of_a_state_is_a_weight_though_its_first_input_is_a_constant(
    product: str, first: str
):
    for device in ("cpu", "meta"):
        model = ByHand(STATES[product], FIRST[first]).to(device)
        role = seen(model, torch.randn(5, 4, 6, device=device))["state"]
        assert (role.kind, role.repeated) == ("weight", True)


def test_what_is_written_into_zeros_is_a_constant_again():
    class Basis(nn.Module):
        """A weight that is computed of a parameter and a fixed matrix."""

        def __init__(self):
            super().__init__()
            self.coefficients = nn.Parameter(torch.randn(4, 8))

        def forward(self, x):
            basis = x.new_zeros(6, 4)
            basis[0].add_(1.0)
            basis[1:5] = torch.eye(4, device=x.device)[:4]
            return x @ (basis @ self.coefficients)

    assert kinds(Basis(), torch.randn(5, 6))["coefficients"] == "computed"


@pytest.mark.parametrize(
    "product",
    [torch.matmul, torch.mv, lambda h, w: torch.einsum("bi,i->b", h, w), F.linear],
    ids=["matmul", "mv", "einsum", "linear"],
)
def test_a_vector_that_makes_one_number_of_each_sample_is_the_output_layer(product):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.vector = nn.Linear(6, 16), nn.Parameter(torch.randn(16))
            self.offset = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return product(torch.tanh(self.hidden(x)), self.vector) + self.offset

    found = seen(Net(), torch.randn(7, 6))
    assert (found["vector"].head, found["hidden.weight"].head) == (True, False)
    assert found["vector"].fan_in == 16
    assert found["offset"].kind == "bias"


class Squashed(nn.Module):
    """x + W₂ relu(W₁ t(x)): t is dynamic tanh, tanh alone, or a scale behind the last layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Linear(8, 8), nn.Linear(8, 8)
        self.alpha, self.gamma = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        if self.how == "dynamic":
            return x + self.second(self.first(torch.tanh(self.alpha * x) * self.gamma).relu())
        if self.how == "alone":
            return x + self.second(self.first(torch.tanh(self.alpha * x)).relu())
        return x + torch.tanh(self.second(self.first(self.alpha * x).relu())) * self.gamma


@pytest.mark.parametrize(
    ("how", "norm"), [("dynamic", "before"), ("alone", "none"), ("behind", "none")]
)
def test_dynamic_tanh_stands_in_the_place_of_a_norm(how: str, norm: str):
    model = nn.Sequential(nn.Linear(6, 8), Squashed(how), Squashed(how), nn.Linear(8, 3))
    found = seen(model, torch.randn(7, 6))
    assert branch_of(found, "1.first.weight").norm == norm


@pytest.mark.parametrize(
    ("before", "shape", "kind"),
    [
        (nn.LayerNorm(16), (16,), "bias"),
        (nn.LayerNorm(16), (5, 1), "token"),
        (nn.Sequential(nn.Linear(16, 16), nn.ReLU()), (16,), "bias"),
    ],
    ids=["norm", "places", "bent"],
)
def test_offsets_behind_what_has_tokens(before, shape, kind: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.added = before, nn.Parameter(torch.randn(shape))
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.before(x) + self.added))

    assert kinds(Net(), torch.randn(7, 5, 16))["added"] == kind


@pytest.mark.parametrize("bent", [nn.Identity(), nn.ReLU(), nn.BatchNorm2d(4)])
@pytest.mark.parametrize(("shape", "kind"), [((1, 4, 1, 1), "bias"), ((6, 6), "token")])
def test_offsets_of_the_channels_of_an_image(bent, shape, kind: str):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bent = nn.Conv2d(3, 4, 3, padding=1), bent
            self.added, self.head = nn.Parameter(torch.randn(shape)), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.head(torch.tanh(self.bent(self.conv(x)) + self.added))

    assert kinds(Net(), torch.randn(7, 3, 6, 6))["added"] == kind


def test_zeros_that_a_product_is_added_to_are_no_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 6))
            self.unused = nn.Parameter(torch.randn(3))

        def forward(self, x):
            weight = torch.addmm(x.new_zeros(3, 6), self.up, self.down)
            return F.linear(x, weight) + (self.unused * x.new_zeros(3)).sum()

    assert kinds(Net(), torch.randn(7, 6)) == dict.fromkeys(["up", "down", "unused"], "computed")


@pytest.mark.parametrize(
    ("way", "norm"),
    [
        (lambda m, x: m.second(m.norm(m.first(x)).relu()), "before"),
        (lambda m, x: m.second(m.first(x).relu()), "none"),
        (lambda m, x: m.second(m.norm(m.first(x)).relu() + m.beside(x).relu()), "none"),
        (lambda m, x: m.second(m.norm(m.first(x)).relu() * m.gate(x.new_ones(8))), "before"),
        (lambda m, x: m.norm(m.second(m.first(x).relu())), "last"),
    ],
    ids=["middle", "without", "around", "beside-a-constant", "last"],
)
def test_a_norm_in_the_middle_of_a_branch_holds_it_where_every_way_passes(way, norm: str):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.beside, self.gate = (nn.Linear(8, 8) for _ in range(4))
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x):
            return x + way(self, x)

    model = nn.Sequential(nn.Linear(6, 8), Block(), Block(), nn.Linear(8, 3))
    assert branch_of(seen(model, torch.randn(7, 6)), "1.second.weight").norm == norm


@pytest.mark.parametrize("function", [torch.sparse.mm, torch.mm, lambda x, w: w.T.mm(x.mT).mT])
def test_a_product_with_a_sparse_matrix_is_a_layer_like_any_other(function: Any):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Parameter(torch.randn(40, 8)), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(function(x, self.words).relu())

    dense = torch.randn(16, 40) * (torch.rand(16, 40) < 0.1)
    batch = dense.to_sparse() if function is torch.sparse.mm else dense
    role = seen(Bag(), batch)["words"]
    assert (role.kind, role.fan_in) == ("weight", 40)
    assert fanin.check(Bag(), batch).ok


def test_what_quantization_rounds_while_it_trains_is_what_it_was():
    """Weights and signals, as `prepare_qat` of torch.ao.quantization puts them into a model."""

    class Rounded(nn.Module):
        def __init__(self, rounds: bool):
            super().__init__()
            self.rounds, self.scales = rounds, [torch.full((n,), 0.01) for n in (32, 3)]
            with seeded(5):
                self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 3)
            self.seen = torch.tensor([torch.inf]), torch.tensor([-torch.inf])
            self.on, self.scale = torch.ones(1).long(), (torch.ones(1), torch.zeros(1).int())

        def rows(self, weight, scale):
            none = torch.zeros_like(scale).int()
            made = torch.fake_quantize_per_channel_affine(weight, scale, none, 0, -128, 127)
            return made if self.rounds else weight

        def forward(self, x):
            x = F.linear(x, self.rows(self.a.weight, self.scales[0]), self.a.bias).relu()
            if self.rounds:
                args = (self.on, self.on, *self.seen, *self.scale, 0.01, 0, 255, -1)
                x = torch.fused_moving_avg_obs_fake_quant(x, *args)
            return F.linear(x, self.rows(self.b.weight, self.scales[1]), self.b.bias)

    batch = torch.randn(64, 8)
    rounded, plain = (fanin.plan(Rounded(rounds), batch) for rounds in (True, False))
    assert [a.parameter for a in rounded] == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert [a.std for a in rounded] == pytest.approx([a.std for a in plain], rel=0.02)
    assert fanin.check(Rounded(True), batch, blocks.classify(64, 3)).ok


def test_reading_a_recurrence_by_hand_takes_time_in_proportion_to_its_length():
    """Both ways to a sum of its state come from the input, far back."""

    def scan(x):
        first, gate, inlet, h = *layers[:3], 0.0
        u = first(x)
        for at in range(u.shape[1]):
            h = torch.sigmoid(gate(u[:, at])) * h + inlet(u[:, at])
        return layers[3](h)

    def seconds(steps: int) -> float:
        read, took = reading(model, torch.randn(2, steps, 4)), []
        for _ in range(3):
            begun = time.process_time()
            assert residual_branches(read) == ((), {})
            assert low_rank_pairs(read) == {}
            took.append(time.process_time() - begun)
        return min(took)

    layers = [nn.Linear(4, 4) for _ in range(4)]
    model = Lambda(scan)
    model.layers = nn.ModuleList(layers)
    assert seconds(120) < 10 * seconds(30)  # 16 times, if it grew with the square
