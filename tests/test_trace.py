"""What the watch names, and that it changes nothing of what a model computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from zoo import blocks, seeded
from zoo.checks import QUIET
from zoo.healthy import HEALTHY
from zoo.traps import Spectral

import fanin
from fanin.architecture import Architecture, read
from fanin.calls import BATCH, Observer
from fanin.errors import ForwardError, ModelError
from fanin.guard import Guard, untouched
from fanin.nested import arguments, tensors_in
from fanin.reading import reading
from fanin.trace import Watch, trace

pytestmark = QUIET


class Net(nn.Module):
    """Named parts, and a forward of (self, *inputs)."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def watched(model: nn.Module, batch: Any) -> tuple[Architecture, Any]:
    """What was seen of a pass, and the model's output."""
    with untouched(model) as guard, torch.enable_grad():
        torch.manual_seed(0)
        return _watched(model, batch, guard)


def _watched(model: nn.Module, batch: Any, guard: Guard) -> tuple[Architecture, Any]:
    watch = Watch(model, model.named_parameters(), guard, Observer())
    seen, output, _ = trace(model, batch, None, watch)
    return read(seen, model), output


def named(model: nn.Module, *batch: Any) -> dict[str, fanin.Report]:
    """The layers that a check lists, by name; every parameter has been named."""
    report = fanin.check(model, batch)
    assert report.unnamed == ()
    names = [layer.name for layer in report.layers]
    assert len(set(names)) == len(names)
    known = {n for n, _ in model.named_modules()} | {
        n for n, _ in model.named_parameters(remove_duplicate=False)
    }
    assert set(names) <= known
    return {layer.name: layer for layer in report.layers}


def same(model: nn.Module, batch: Any, tolerance: float = 0.0) -> Architecture:
    """The watched output, its gradient and the random state after it are the unwatched ones."""
    args, kwargs = arguments(batch)
    weights = [p for p in model.parameters() if p.requires_grad]
    results = []
    for watching in (True, False):
        with untouched(model) as guard, torch.enable_grad():
            torch.manual_seed(0)
            if watching:
                seen, output = _watched(model, batch, guard)
            else:
                output = model(*args, **kwargs)
            state, tensors = torch.get_rng_state(), list(tensors_in(output))
            scalar = sum(t.float().cos().sum() for t in tensors if t.requires_grad)
            gradients = torch.autograd.grad(scalar, weights, allow_unused=True)
            results.append(([t.detach() for t in tensors], gradients, state))
    (found, slopes, after), (expected, own, without) = results
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    for a, b in zip(slopes, own, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)
    assert torch.equal(after, without)
    return seen


@pytest.fixture(autouse=True)
def _seed():
    with seeded(11):
        yield


# ── composite functions are opened ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention_is_opened(batch_first: bool, training: bool, need_weights: bool):
    model = Net(
        lambda m, x: m.attn(x, x, x, need_weights=need_weights)[0],
        attn=nn.MultiheadAttention(16, 4, batch_first=batch_first),
    ).train(training)
    x = torch.randn(6, 9, 16)
    same(model, x, 1e-6)
    layers = named(model, x)
    assert list(layers) == ["attn.in_proj_weight", "attn.out_proj"]
    packed, out = layers.values()
    assert packed.parameters == ("attn.in_proj_weight", "attn.in_proj_bias")
    assert out.parameters == ("attn.out_proj.weight", "attn.out_proj.bias")
    assert (packed.fan_in, packed.units, packed.calls) == (16, 48, 1)
    assert (out.fan_in, out.units) == (16, 16)


@pytest.mark.parametrize("training", [True, False])
def test_cross_attention_uses_its_packed_weight_in_parts(training: bool):
    model = Net(
        lambda m, x, y: m.attn(x, y, y)[0], attn=nn.MultiheadAttention(16, 4, batch_first=True)
    ).train(training)
    batch = torch.randn(6, 9, 16), torch.randn(6, 5, 16)
    same(model, batch, 1e-6)
    layers = named(model, *batch)
    assert list(layers) == ["attn.in_proj_weight", "attn.out_proj"]
    assert layers["attn.in_proj_weight"].fan_in == 16
    assert layers["attn.in_proj_weight"].calls > 1


def test_cross_attention_over_other_widths_has_one_layer_for_each_projection():
    model = Net(
        lambda m, x, y, z: m.attn(x, y, z)[0],
        attn=nn.MultiheadAttention(16, 4, kdim=10, vdim=12, batch_first=True, add_bias_kv=True),
    )
    batch = torch.randn(6, 9, 16), torch.randn(6, 5, 10), torch.randn(6, 5, 12)
    same(model, batch, 1e-6)
    layers = named(model, *batch)
    fans = {name: layers[f"attn.{name}_proj_weight"].fan_in for name in "qkv"}
    assert fans == {"q": 16, "k": 10, "v": 12}
    assert {"attn.bias_k", "attn.bias_v", "attn.out_proj"} <= set(layers)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_encoder_layer_is_opened_in_either_mode(training: bool, norm_first: bool):
    model = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first
    ).train(training)
    same(model, torch.randn(6, 9, 16), 1e-5)
    assert set(named(model, torch.randn(6, 9, 16))) == {
        "self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2",
    }  # fmt: skip


RECURRENT = {
    "lstm": lambda: nn.LSTM(6, 10, 2),
    "lstm-batch-first": lambda: nn.LSTM(6, 10, 2, batch_first=True),
    "lstm-bidirectional": lambda: nn.LSTM(6, 10, 2, bidirectional=True),
    "lstm-projected": lambda: nn.LSTM(6, 10, 2, proj_size=4),
    "lstm-projected-bidirectional": lambda: nn.LSTM(6, 10, 3, proj_size=4, bidirectional=True),
    "lstm-without-bias": lambda: nn.LSTM(6, 10, 3, bias=False),
    "gru": lambda: nn.GRU(6, 10, 2, batch_first=True),
    "gru-bidirectional": lambda: nn.GRU(6, 10, 3, bidirectional=True),
    "rnn": lambda: nn.RNN(6, 10, 3),
    "rnn-relu-bidirectional": lambda: nn.RNN(
        6, 10, 2, nonlinearity="relu", bidirectional=True, batch_first=True
    ),
}


def per_depth(rnn: nn.RNNBase, layers: Any) -> None:
    """One layer for each depth, fed by the one before."""
    names = [f"weight_ih_l{depth}" for depth in range(rnn.num_layers)]
    assert list(layers) == names
    for depth, name in enumerate(names):
        used = {p for p in dict(rnn.named_parameters()) if f"_l{depth}" in p}
        assert set(layers[name].parameters) == used


@pytest.mark.parametrize("name", RECURRENT)
def test_a_fused_recurrent_layer_is_seen_by_depth_and_computes_the_same(name: str):
    rnn = RECURRENT[name]()
    x = torch.randn(7, 5, 6)
    seen = same(rnn, x, 1e-6)
    per_depth(rnn, named(rnn, x))
    for below, above in pairwise(seen.layers):
        assert below.calls[0] in seen.ancestors(above.calls)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_packed_sequence_is_seen_by_depth_and_computes_the_same(name: str):
    rnn = RECURRENT[name]()

    def forward(m: Net, x: Tensor, lengths: Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        out, state = m.rnn(packed)
        return nn.utils.rnn.pad_packed_sequence(out)[0], state

    model = Net(forward, rnn=rnn)
    batch = torch.randn(7, 5, 6), torch.tensor([3, 7, 1, 5, 5])
    same(model, batch, 1e-6)
    seen, _ = watched(model, batch)
    assert [y.name for y in seen.layers] == [f"rnn.weight_ih_l{d}" for d in range(rnn.num_layers)]


@pytest.mark.parametrize("name", ["lstm", "lstm-projected", "gru-bidirectional"])
def test_a_given_state_and_a_single_sequence_compute_the_same(name: str):
    rnn = RECURRENT[name]()
    state = rnn(torch.randn(7, 5, 6))[1]
    start = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    same(rnn, (torch.randn(7, 5, 6), start), 1e-6)
    same(rnn, (torch.randn(7, 6),), 1e-6)


def test_dropout_between_depths_still_drops():
    rnn = nn.LSTM(6, 40, 2, dropout=0.5)
    x = torch.randn(7, 5, 6)
    first, second = watched(rnn, x)[1][0], watched(rnn.eval(), x)[1][0]
    assert not torch.allclose(first, second)
    same(rnn, x, 1e-6)


# ── weights that are computed ────────────────────────────────────────────────────────────────


def old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


class Shifted(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01


def parametrized(module: nn.Module) -> nn.Module:
    nn.utils.parametrize.register_parametrization(module, "weight", Shifted())
    return module


@pytest.mark.parametrize(
    ("wrap", "weights"),
    [
        (old_weight_norm, {"weight_g", "weight_v"}),
        (
            nn.utils.parametrizations.weight_norm,
            {"parametrizations.weight.original0", "parametrizations.weight.original1"},
        ),
        (parametrized, {"parametrizations.weight.original"}),
        (nn.utils.parametrizations.spectral_norm, {"parametrizations.weight.original"}),
        (nn.utils.parametrizations.orthogonal, {"parametrizations.weight.original"}),
    ],
    ids=["weight-norm-old", "weight-norm", "parametrization", "spectral-norm", "orthogonal"],
)
def test_a_computed_weight_is_one_layer_named_for_its_module(wrap: Any, weights: set[str]):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), wrap(nn.Linear(8, 8)), nn.Tanh())
    x = torch.randn(32, 6)
    same(model, x)
    layers = named(model, x)
    assert list(layers) == ["0", "2"]
    assert set(layers["2"].parameters) == {f"2.{w}" for w in weights} | {"2.bias"}
    assert (layers["2"].op, layers["2"].fan_in, layers["2"].units) == ("linear", 8, 8)
    assert layers["2"].activation == "tanh"


def test_a_low_rank_sum_of_weights_is_one_layer_of_all_three():
    model = Net(
        lambda m, x: F.linear(x, m.base + m.b @ m.a),
        base=nn.Parameter(torch.randn(12, 9) * 0.3),
        a=nn.Parameter(torch.randn(2, 9)),
        b=nn.Parameter(torch.zeros(12, 2)),
    )
    (layer,) = named(model, torch.randn(16, 9)).values()
    assert set(layer.parameters) == {"base", "a", "b"}
    assert (layer.fan_in, layer.fan_out, layer.units) == (9, 12, 12)


def test_a_low_rank_branch_is_layers_of_its_own():
    model = Net(
        lambda m, x: m.base(x) + m.b(m.a(x)),
        base=nn.Linear(9, 12).requires_grad_(False),
        a=nn.Linear(9, 2, bias=False),
        b=nn.Linear(2, 12, bias=False),
    )
    layers = named(model, torch.randn(16, 9))
    assert {n: y.trainable for n, y in layers.items()} == {"base": False, "a": True, "b": True}
    assert (layers["a"].fan_in, layers["b"].fan_in) == (9, 2)


def test_a_tied_weight_is_two_layers_of_one_parameter():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embed(tokens).tanh())

    layers = named(Tied(), torch.randint(0, 30, (6, 5)))
    assert [(n, y.op, y.fan_in, y.units) for n, y in layers.items()] == [
        ("embed", "embedding", 1, 8),
        ("head", "linear", 8, 30),
    ]
    assert {y.parameters for y in layers.values()} == {("embed.weight",)}


def test_a_weight_that_is_also_used_transposed_is_two_layers():
    model = Net(lambda m, x: F.linear(m.a(x).tanh(), m.a.weight.T), a=nn.Linear(8, 8))
    layers = named(model, torch.randn(16, 8))
    assert {n: y.calls for n, y in layers.items()} == {"a": 1, "a.weight": 1}
    assert layers["a.weight"].parameters == ("a.weight",)


def test_a_module_used_twice_is_one_layer_of_two_calls():
    model = Net(lambda m, x: m.a(m.a(x).tanh()), a=nn.Linear(8, 8))
    layers = named(model, torch.randn(16, 8))
    assert {n: y.calls for n, y in layers.items()} == {"a": 2}


# ── writing in place, views, functions ───────────────────────────────────────────────────────


def columns(m: Net, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 3)
    for i, head in enumerate((m.a, m.b, m.c)):
        out[:, i] = head(x).squeeze(-1)
    return m.join(out)


def test_what_is_written_into_columns_is_followed():
    parts = {name: nn.Linear(6, 1) for name in "abc"}
    model = Net(columns, **parts, join=nn.Linear(3, 4))
    seen = same(model, torch.randn(16, 6))
    assert [y.name for y in seen.layers] == ["a", "b", "c", "join"]
    behind = seen.ancestors(seen.layers[-1].calls)
    assert all(layer.calls[0] in behind for layer in seen.layers)
    named(model, torch.randn(16, 6))


IN_PLACE = {
    "add_": lambda m, x: m.b(m.a(x).add_(x)),
    "__iadd__": lambda m, x: m.b(added(m.a(x), x)),
    "relu_": lambda m, x: m.b(m.a(x).relu_()),
    "F.relu(inplace)": lambda m, x: m.b(F.relu(m.a(x), inplace=True)),
    "torch.relu_": lambda m, x: m.b(torch.relu_(m.a(x))),
    "view.mul_": lambda m, x: m.b(halved(m.a(x))),
    "copy_": lambda m, x: m.b(torch.empty(len(x), 6).copy_(m.a(x))),
    "out-of-view": lambda m, x: m.b(torch.zeros(len(x), 2, 6).index_copy_(
        1, torch.tensor([1]), m.a(x).unsqueeze(1))[:, 1]),
    "chunk": lambda m, x: m.b(torch.cat(m.a(x).chunk(2, -1), -1)),
    "view-of-view": lambda m, x: m.b(m.a(x).view(-1, 2, 3).transpose(1, 2).reshape(len(x), 6)),
}  # fmt: skip


def added(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def halved(x: Tensor) -> Tensor:
    x[:, :3].mul_(0.5)
    return x


@pytest.mark.parametrize("name", IN_PLACE)
def test_writing_in_place_keeps_the_layers_linked(name: str):
    model = Net(IN_PLACE[name], a=nn.Linear(6, 6), b=nn.Linear(6, 4))
    seen = same(model, torch.randn(16, 6))
    assert [y.name for y in seen.layers] == ["a", "b"]
    first, second = (y.calls for y in seen.layers)
    assert first[0] in seen.ancestors(second)
    assert set(named(model, torch.randn(16, 6))) == {"a", "b"}


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_program_is_seen_as_what_it_was_exported_from(training: bool):
    """What torch.export gives calls the overloads of torch.ops.aten."""
    aten = torch.ops.aten

    def exported(m, tokens):
        x = aten.embedding.default(m.e.weight, tokens)
        x = aten.linear.default(x, m.a.weight, m.a.bias)
        x = aten.relu_.default(aten.add.Tensor(x, x))
        x = aten.batch_norm.default(
            x, m.n.weight, m.n.bias, m.n.running_mean, m.n.running_var, training, 0.1, 1e-5, True
        )
        return aten.linear.default(x, m.b.weight, m.b.bias)

    def plain(m, tokens):
        x = m.a(m.e(tokens))
        return m.b(m.n((x + x).relu_()))

    tokens, found = torch.arange(32) % 9, []
    for forward in (exported, plain):
        parts = {"e": nn.Embedding(9, 6), "a": nn.Linear(6, 8), "n": nn.BatchNorm1d(8)}
        model = Net(forward, **parts, b=nn.Linear(8, 3)).train(training)
        found.append(fanin.init_(model, tokens))
        assert fanin.check(model, tokens).ok
    assert found[0].assignments == found[1].assignments


ACTIVATIONS = {
    "relu": [
        torch.relu,
        F.relu,
        Tensor.relu,
        nn.ReLU(),
        F.relu_,
        nn.ReLU(inplace=True),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0.0),
        lambda x: torch.clip(x, 0, None),
    ],
    "relu6": [F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: F.hardtanh(x, 0.0, 6.0)],
    "hardtanh": [F.hardtanh, nn.Hardtanh(-2, 2), lambda x: x.clamp(0, 1)],
    "threshold": [nn.Threshold(0.1, 0.0), lambda x: F.threshold(x, 0.1, 0.0)],
    "logsigmoid": [F.logsigmoid, nn.LogSigmoid()],
    "atan": [torch.atan, torch.arctan],
    "tanh": [torch.tanh, F.tanh, Tensor.tanh, nn.Tanh(), torch.tanh_],
    "sigmoid": [torch.sigmoid, F.sigmoid, Tensor.sigmoid, nn.Sigmoid()],
    "gelu": [F.gelu, nn.GELU(), lambda x: F.gelu(x, approximate="tanh")],
    "silu": [F.silu, nn.SiLU(), lambda x: F.silu(x, inplace=True)],
    "leaky_relu": [F.leaky_relu, nn.LeakyReLU(), lambda x: F.leaky_relu_(x, 0.2)],
    "softplus": [F.softplus, nn.Softplus()],
    "sin": [torch.sin, Tensor.sin, lambda x: (30 * x).sin()],
    "prelu": [nn.PReLU()],
}


@pytest.mark.parametrize(("name", "act"), [(n, a) for n, acts in ACTIVATIONS.items() for a in acts])
def test_the_activation_is_named_however_it_is_called(name: str, act: Any):
    if isinstance(act, nn.PReLU):
        model = Net(lambda m, x: m.b(m.act(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 4), act=act)
    else:
        model = Net(lambda m, x: m.b(act(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 4))
    layers = {y.name: y for y in fanin.check(model, torch.randn(32, 6)).layers}
    assert (layers["a"].activation, layers["b"].activation) == (name, None)


@pytest.mark.parametrize(
    "function", [lambda x: x.clamp(-1, 1), lambda x: x.clamp(max=0), lambda x: x.clamp(min=-9.0)]
)
def test_what_keeps_a_signal_in_bounds_is_no_activation(function: Any):
    model = Net(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 4))
    layers = {y.name: y for y in fanin.check(model, torch.randn(32, 6)).layers}
    assert layers["a"].activation is None


def test_a_norm_written_out_is_no_activation():
    def normed(x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    model = Net(lambda m, x: m.b(normed(m.a(x)).tanh()), a=nn.Linear(6, 6), b=nn.Linear(6, 4))
    layers = {y.name: y for y in fanin.check(model, torch.randn(32, 6)).layers}
    assert layers["a"].activation == "tanh"


def test_the_activation_is_found_behind_a_norm():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.GELU())
    layers = named(model, torch.randn(32, 6))
    assert layers["0"].activation == "gelu"


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3 * ctx.saved_tensors[0] ** 2


class Times(torch.autograd.Function):
    """x @ W by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Foreign(Times):
    """x @ W by a library that torch knows nothing of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy())


def multiplied(function: type[torch.autograd.Function]) -> nn.Module:
    return Net(
        lambda m, x: m.b(function.apply(m.a(x), m.w)),
        a=nn.Linear(6, 6),
        b=nn.Linear(5, 4),
        w=nn.Parameter(torch.randn(6, 5) * 0.4),
    )


def test_an_autograd_function_links_what_is_before_it_with_what_follows():
    model = Net(lambda m, x: m.b(Cube.apply(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 4))
    seen = same(model, torch.randn(16, 6))
    first, second = (y.calls for y in seen.layers)
    assert first[0] in seen.ancestors(second)
    named(model, torch.randn(16, 6))


def test_a_weight_inside_of_an_autograd_function_is_seen_where_torch_uses_it():
    layers = named(multiplied(Times), torch.randn(16, 6))
    assert list(layers) == ["a", "w", "b"]
    assert (layers["w"].fan_in, layers["w"].units) == (6, 5)


def test_a_weight_that_only_a_foreign_function_uses_is_listed_as_unnamed():
    model = multiplied(Foreign)
    report = fanin.check(model, torch.randn(16, 6))
    assert [name for name, _ in report.unnamed] == ["w"]
    assert [layer.name for layer in report.layers] == ["a", "b"]
    seen = same(model, torch.randn(16, 6))
    first, second = (y.calls for y in seen.layers)
    assert first[0] in seen.ancestors(second)


def test_a_weight_in_a_function_without_a_known_role_is_listed_with_it():
    model = Net(
        lambda m, x: m.a(torch.atan2(x, m.w)),
        a=nn.Linear(6, 6),
        w=nn.Parameter(torch.randn(6)),
        idle=nn.Parameter(torch.randn(3, 3)),
    )
    report = fanin.check(model, torch.randn(16, 6))
    assert dict(report.unnamed) == {"w": "torch.atan2", "idle": "unused"}


def checkpointed(reentrant: bool) -> nn.Module:
    return Net(
        lambda m, x: m.c(checkpoint(m.b, m.a(x), use_reentrant=reentrant)),
        a=nn.Linear(6, 8),
        b=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        c=nn.Linear(8, 3),
    )


def test_a_checkpoint_hides_nothing():
    report = fanin.check(checkpointed(reentrant=False), torch.randn(16, 6))
    assert [y.name for y in report.layers] == ["a", "b.0", "b.2", "c"]
    assert [y.calls for y in report.layers] == [1, 1, 1, 1]
    assert report.unnamed == ()
    assert all(y.cotangent_rms for y in report.layers)


def test_a_reentrant_checkpoint_is_refused_with_its_reason():
    """torch allows it nothing but ``.backward()``, which would write into ``.grad``."""
    with pytest.raises(fanin.FaninError, match="use_reentrant"):
        fanin.check(checkpointed(reentrant=True), torch.randn(16, 6))


# ── names ────────────────────────────────────────────────────────────────────────────────────


def test_a_layer_is_named_for_its_module_or_for_its_parameter():
    """The module where it is that one layer alone, and the parameter where the module has more."""
    model = Net(
        lambda m, x: m.head(m.deep(x @ m.w1 @ m.w2)),
        w1=nn.Parameter(torch.randn(6, 7) * 0.3),
        w2=nn.Parameter(torch.randn(7, 8) * 0.3),
        deep=nn.ModuleDict({"a": nn.Linear(8, 8)})["a"],
        head=nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), nn.Linear(8, 3)),
    )
    assert list(named(model, torch.randn(16, 6))) == [
        "w1", "w2", "deep", "head.0.0", "head.0.1", "head.1",
    ]  # fmt: skip


def test_the_whole_model_being_one_layer_is_named_for_its_parameter():
    assert list(named(nn.Linear(4, 3), torch.randn(8, 4))) == ["weight"]


# ── the watch changes nothing ────────────────────────────────────────────────────────────────

SOME = (
    "mlp-relu-4", "mlp-batch-norm", "mlp-functional-normalised", "matmul-in-out", "bilinear",
    "siren", "mlp-bfloat16", "mlp-float64", "vae", "unet", "lstm-packed", "lstm-cells",
    "lstm-projected-language-model", "lstm-classifier-eval", "multihead-attention",
    "lora", "lora-merged", "prompt-tuning", "experts-batched", "experts-routed", "weight-norm-old",
    "spectral-norm", "orthogonal-parametrization", "normalizing-flow", "text-convolution",
    "rezero-40", "dit-like", "perceiver-like", "attention-by-einsum", "wavenet-like",
    "state-space-by-hand",
)  # fmt: skip


def test_the_chosen_models_are_there():
    assert set(SOME) <= {case.name for case in HEALTHY}


@pytest.mark.parametrize("case", [c for c in HEALTHY if c.name in SOME], ids=str)
def test_a_watched_model_computes_what_it_computes_unwatched(case):
    model, batch, _ = case.build()
    same(model, batch, 1e-5 if "bfloat16" not in case.name else 1e-2)


def test_randomness_is_drawn_as_without_the_watch():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), blocks.Residual(nn.Linear(8, 8)))
    same(model, torch.randn(16, 6))


def test_copies_are_proved_also_beside_complex_weights():
    model = Spectral()
    with torch.no_grad():
        model.modes[:] = model.modes[:1, :1].clone()
        for parameter in (model.first.weight, model.first.bias, model.last.weight):
            nn.init.constant_(parameter, 0.3)
    report = fanin.check(model, torch.randn(8, 16, 4))
    assert {"first", "modes"} <= {x for f in report.findings if f.code == "S101" for x in f.layers}


@pytest.mark.parametrize("first", ["samples", "time"])
def test_variation_across_samples_is_seen_wherever_their_axis_is(first):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 24)

        def forward(self, x):
            return self.layer(x if first == "samples" else x.transpose(0, 1))

    steps = torch.randn(1, 7, 16)  # one for all samples
    model = Model()
    nn.init.zeros_(model.layer.bias)
    for own, expected in ((0.0, 0.0), (3.0, 0.95)):
        batch = steps + own * torch.randn(128, 7, 16)
        (layer,) = fanin.check(model, batch).layers
        assert layer.variation == pytest.approx(expected, abs=0.03)


def test_variation_across_tokens_is_seen_also_where_samples_and_tokens_share_an_axis():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 16)

        def forward(self, x):
            return self.a(x.reshape(-1, 8)).reshape(*x.shape[:2], 16)

    model, x = Flat(), torch.randn(4, 6, 8)
    (flat,) = fanin.check(model, x).layers
    assert flat.token_variation == pytest.approx(0.9, abs=0.1)
    (same,) = fanin.check(model, x[:, :1].expand(-1, 6, -1)).layers
    assert same.token_variation == pytest.approx(0.0, abs=1e-6)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):  # one that is handled is not the one to name
            self.body[1](torch.ones(1))
        return self.body(x)


def test_a_forward_that_fails_is_told_with_the_module_that_failed():
    with pytest.raises(ForwardError, match=r"shapes cannot be multiplied .* \(in body\.1\)$"):
        fanin.check(Inner(), torch.randn(3, 4))


def test_a_forward_that_fails_by_itself_names_no_module():
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    with pytest.raises(ForwardError, match=r"its forward raised ValueError: not today$"):
        fanin.check(Own(2, 2), torch.randn(3, 2))


@pytest.mark.parametrize(
    ("batch", "loss", "told"),
    [
        ((torch.ones(2, 3), 1), None, "A tuple gives positional arguments, here 2; a target"),
        ([torch.ones(2, 3), 1], None, "A list gives positional arguments, here 2; a target is no"),
        ({"x": torch.ones(2, 3)}, None, "A dict gives keyword arguments, here x$"),
        ({}, None, "A dict gives keyword arguments, here none$"),
        (DataLoader(TensorDataset(torch.ones(2, 3))), None, "DataLoader; give one of its batches"),
        (torch.ones(2, 3), nn.CrossEntropyLoss(), "missing .* It gets the model's output alone: l"),
        (torch.ones(2, 3), nn.functional.mse_loss, "missing .* gets the model's output alone: los"),
    ],
)
@pytest.mark.parametrize("verb", [fanin.check, fanin.repair_])
def test_what_newcomers_give_in_the_place_of_batch_and_loss(verb, batch, loss, told):
    with pytest.raises(ForwardError, match=told):
        verb(nn.Sequential(nn.Linear(3, 2)), batch, loss)


class Frames(nn.Module):
    """Reads pictures as bytes and scales them by itself, as agents of video games do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(4, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 4, 2))
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5))

    def forward(self, frames):
        return self.head(self.body(frames.float() / 255))


@pytest.mark.parametrize(
    ("name", "factor", "code"),
    [("body.2.weight", 1.0, ""), ("body.2.weight", 100.0, "P202"), ("body.2.bias", -1e4, "P205")],
)
def test_pictures_of_bytes_are_a_signal_like_those_of_floats(name: str, factor: float, code: str):
    model, frames = Frames(), torch.randint(0, 256, (16, 4, 32, 32), dtype=torch.uint8)
    parameter = model.get_parameter(name)
    with torch.no_grad():
        parameter.mul_(factor) if factor > 0 else parameter.fill_(factor)
    labels = torch.randint(0, 5, (16,))

    def loss(out):
        return F.cross_entropy(out, labels)

    of_bytes, of_floats = (fanin.check(model, batch, loss) for batch in (frames, frames.float()))
    assert of_bytes.findings == of_floats.findings
    assert not code or code in [f.code for f in of_bytes.findings]


class Graph:
    """A batch of a class of its own, with a store inside."""

    def __init__(self, x: Tensor, edges: Tensor) -> None:
        self.store, self.name, self.owner = {"x": x}, "graph", self
        self.edges = [edges]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_tensors_in_an_object_are_signals_like_others(scale: float):
    """And what the forward writes into them stays with the copy that it was given."""

    def forward(m, *given):
        x, (start, end) = given if len(given) > 1 else (given[0].store["x"], given[0].edges[0])
        x /= 2
        for weight in m.weights:
            h = x @ weight
            x = torch.zeros_like(h).index_add(0, end, h[start]).relu()
        return m.head(x)

    weights = nn.ParameterList(scale * torch.randn(16, 16) / 2 for _ in range(3))
    model = Net(forward, weights=weights, head=nn.Linear(16, 3))
    x, edges = torch.randn(40, 16), torch.randint(40, (2, 160))
    graph, kept = Graph(x, edges), x.clone()
    loss, found = blocks.classify(40, 3), []
    for batch in ((x, edges), graph):
        report = fanin.check(model, batch, loss)
        assert torch.equal(x, kept)
        assert graph.store["x"] is x
        found.append(([f.code for f in report.findings], [y.rms for y in report.layers]))
        found[-1] += (fanin.plan(model, batch).assignments,)
    assert found[0] == found[1]
    assert report.ok == (scale == 1.0)


def test_bytes_beside_tokens_are_a_mask():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

        def forward(self, tokens, mask):
            h = self.table(tokens)
            scores = (h @ h.mT / 4).masked_fill(mask[:, 0] == 0, -1e9)
            return self.head(scores.softmax(-1) @ h)

    tokens, mask = torch.randint(0, 20, (8, 6)), torch.ones(8, 1, 6, 6, dtype=torch.uint8)
    seen = reading(Tagger(), (tokens, mask))
    assert [call.entry for call in seen.trace.calls if call.op == "embedding"] == [True]
    assert not any(BATCH in call.inputs for call in seen.trace.calls)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", ["strided", "jagged"])
def test_nested_tensors_are_one_clear_error(layout: str):
    def forward(self, x):
        rows = [self.first(x)[i, : i + 1] for i in range(3)]
        nested = torch.nested.as_nested_tensor(rows, layout=getattr(torch, layout))
        return torch.nested.to_padded_tensor(nested.relu(), 0.0)

    model, x = Net(forward, first=nn.Linear(4, 6)), torch.randn(3, 5, 4)
    for verb in (fanin.check, fanin.plan, fanin.init_, fanin.repair_):
        with pytest.raises(ModelError, match="makes a nested tensor, which cannot be watched; pad"):
            verb(model, x)
