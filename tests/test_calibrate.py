"""`calibrate_` brings every layer to its size in one watched pass, and touches nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from zoo import Case, seeded
from zoo.blocks import Lambda, Residual, mlp
from zoo.checks import QUIET, parametrize
from zoo.healthy import HEALTHY
from zoo.snapshot import snapshot

import fanin
from fanin.calibration import Calibrated, Calibration, calibrate_
from fanin.errors import ArgumentError, BatchError, ForwardError, ModelError
from fanin.measuring import Target, measure_, outcomes_

pytestmark = QUIET

QUICK = [case for case in HEALTHY if not case.slow]


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


def rms(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


def run(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@contextmanager
def outputs(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Path of a module → what each of its calls returns, seen by hooks."""
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        seen.setdefault(name, []).append(output.detach())

    hooks = [
        m.register_forward_hook(partial(keep, n))
        for n, m in model.named_modules()
        if isinstance(m, kinds or (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def sizes(model: nn.Module, batch: Any, *kinds: type[nn.Module]) -> dict[str, float]:
    """Root mean square of the first output of each layer."""
    with outputs(model, *kinds) as seen, torch.no_grad():
        run(model, batch)
    return {name: rms(calls[0]) for name, calls in seen.items()}


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ── every layer at its size ──────────────────────────────────────────────────────────────────


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """An MLP of any widths, activation, scale of its weights, data and biases, in float64."""
    act = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.Identity, nn.ELU]))
    widths = draw(st.lists(st.integers(1, 24), min_size=2, max_size=9))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    model = mlp(*widths, act=act, bias=draw(st.booleans())).double()
    scale = draw(st.sampled_from([1e-6, 0.05, 1.0, 30.0]))
    for layer in model[::2]:
        layer.weight.data.mul_(scale)
    batch = torch.randn(draw(st.integers(1, 12)), widths[0], dtype=torch.float64)
    return model, batch * draw(st.sampled_from([1e-3, 1.0, 1e4]))


@settings(max_examples=30, deadline=None)
@given(networks(), st.sampled_from([1.0, 1.7]))
def test_every_layer_of_any_mlp_has_its_size(network: tuple[nn.Module, Tensor], std: float):
    model, batch = network
    before = copies(model)
    done = calibrate_(model, batch, std=std)
    found = sizes(model, batch)
    for row in done:
        layer = row.parameter.removesuffix(".weight")
        assert found[layer] == pytest.approx(row.wanted, rel=0.01)
        assert row.after == pytest.approx(found[layer], rel=1e-6)
        assert row.wanted == std or row.wanted < std
        expected = before[row.parameter] * row.factor
        torch.testing.assert_close(model.get_parameter(row.parameter).detach(), expected)
    # What is left has a reason that can be seen: no input at all, or a bias that is larger.
    for name, told in done.untouched.items():
        if name.endswith(".weight"):
            assert "bias alone" in told or "its output is zero" in told


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.SiLU])
@pytest.mark.parametrize("depth", [1, 4, 30])
def test_a_plain_stack_has_its_std_at_any_depth(act: type[nn.Module], depth: int):
    model, batch = mlp(*[32] * (depth + 1), act=act).double(), torch.randn(64, 32).double() * 7
    done = calibrate_(model, batch)
    assert len(done) == depth
    wanted = {row.parameter.removesuffix(".weight"): row.wanted for row in done}
    assert sizes(model, batch) == pytest.approx(wanted, rel=1e-6)
    if act is not nn.Tanh or depth < 9:  # a deep tanh stretch is given less
        assert set(wanted.values()) == {1.0}


@parametrize(QUICK[::2])  # each kind of layer has tests of its own below
def test_a_model_of_the_zoo_is_calibrated_and_left_alone_otherwise(case: Case):
    """Each weight is its old self times a factor, and nothing else is another: bit for bit."""
    if case.needs:
        pytest.importorskip(case.needs)
    model, batch, _ = case.build()
    was, before = copies(model), snapshot(model, batch)
    done = calibrate_(model, batch)
    for row in done:
        assert row.after == pytest.approx(row.wanted, rel=0.01), row
        assert row.bias_moved == 0
        if "[" not in row.parameter:
            expected = was[row.parameter].double() * row.factor
            torch.testing.assert_close(
                model.get_parameter(row.parameter).detach().double(),
                expected,
                rtol=torch.finfo(was[row.parameter].dtype).eps,
                atol=0,
            )
    scaled = {row.parameter.partition("[")[0] for row in done}
    paths = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    left = {name.partition("[")[0] for name in done.untouched}
    assert scaled | left == paths
    with torch.no_grad():
        for name in scaled:
            model.get_parameter(name).data.copy_(was[name])
    after = snapshot(model, batch)
    assert after == before, before.difference(after)


def test_a_batch_of_one_is_enough():
    model, batch = mlp(6, 16, 1), torch.randn(1, 6)
    calibrate_(model, batch)
    assert list(sizes(model, batch).values()) == pytest.approx([1.0, 1.0], rel=1e-5)


def test_the_output_layer_is_brought_to_std_too():
    model, batch = mlp(6, 16, 16, 3), torch.randn(64, 6)
    calibrate_(model, batch, std=2.0)
    assert rms(model(batch)) == pytest.approx(2.0, rel=1e-5)


def test_a_calibrated_model_is_not_changed_by_another_calibration():
    model, batch = mlp(6, 16, 16, 3), torch.randn(64, 6)
    calibrate_(model, batch)
    assert [row.factor for row in calibrate_(model, batch)] == pytest.approx([1.0] * 3, rel=1e-5)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.bfloat16, 0.01), (torch.float16, 2e-3)])
def test_narrow_dtypes_reach_their_size_to_their_precision(dtype: torch.dtype, rel: float):
    model, batch = mlp(*[64] * 8).to(dtype), torch.randn(128, 64).to(dtype)
    done = calibrate_(model, batch)
    assert list(sizes(model, batch).values()) == pytest.approx([1.0] * 7, rel=rel)
    assert all(p.dtype == dtype for p in model.parameters())
    assert len(done) == 7


@pytest.mark.parametrize("norm", [None, nn.LayerNorm, nn.BatchNorm1d])
def test_the_last_layer_of_a_residual_branch_has_its_share(norm: type[nn.Module] | None):
    def body() -> list[nn.Module]:
        first = [] if norm is None else [norm(16)]
        return [*first, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)]

    model = nn.Sequential(nn.Linear(8, 16), *(Residual(*body()) for _ in range(9)))
    batch = torch.randn(64, 8)
    done = calibrate_(model, batch, std=2.0)
    found = sizes(model, batch)
    assert done["1.body.3.weight" if norm else "1.body.2.weight"].wanted == pytest.approx(2 / 3)
    for row in done:
        assert found[row.parameter.removesuffix(".weight")] == pytest.approx(row.wanted, rel=1e-4)


def test_the_mode_of_the_model_is_the_one_it_is_measured_in():
    """In training mode a batch norm divides by the batch, in evaluation by what it remembers."""
    batch = torch.randn(64, 6) * 50
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8))
    trained = calibrate_(model, batch)["1.weight"]
    evaluated = calibrate_(model.eval(), batch)["1.weight"]
    assert not model.training
    assert trained.after == pytest.approx(1) == evaluated.after
    assert evaluated.before > 20
    assert torch.equal(model[0].running_mean, torch.zeros(6))


# ── kinds of layers ──────────────────────────────────────────────────────────────────────────


def test_convolutions_plain_grouped_and_transposed_and_gates():
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3), nn.GLU(1), nn.Conv2d(8, 16, 3, groups=4), nn.GELU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2), nn.Flatten(), nn.Linear(8 * 64, 5),
    )  # fmt: skip
    batch = torch.randn(16, 4, 8, 8) * 5 + 2
    done = calibrate_(model, batch)
    assert len(done) == 4
    assert list(sizes(model, batch).values()) == pytest.approx([1.0] * 4, rel=1e-4)


def test_queries_keys_and_values_have_their_size_packed_or_apart():
    """Self-attention uses its packed weight whole, cross-attention in two parts."""
    layer = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    batch = (torch.randn(3, 5, 16), torch.randn(3, 7, 16) * 20)
    was = layer.multihead_attn.in_proj_weight.detach().clone()
    done = calibrate_(layer, batch)
    packed = layer.self_attn
    assert rms(F.linear(batch[0], packed.in_proj_weight, packed.in_proj_bias)) == pytest.approx(1)
    cross = layer.multihead_attn
    assert rms(F.linear(batch[1], cross.in_proj_weight[16:])) == pytest.approx(1, rel=1e-4)
    names = [f"multihead_attn.in_proj_weight[{rows}]" for rows in ("0:16", "16:48")]
    assert set(names) < {row.parameter for row in done}
    ratio = cross.in_proj_weight.detach() / was
    for name, rows in zip(names, (ratio[:16], ratio[16:]), strict=True):
        torch.testing.assert_close(rows, torch.full_like(rows, done[name].factor))


def test_a_part_that_is_used_again_is_scaled_at_its_first_call():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 8))

        def forward(self, x):
            first = x @ self.weight[:8].T
            again = first.relu() @ self.weight[:8].T
            return again, F.linear(x, self.weight[8:])

    model, batch = Sliced(), torch.randn(64, 8)
    done = calibrate_(model, batch)
    assert [row.parameter for row in done] == ["weight[0:8]", "weight[8:24]"]
    assert rms(batch @ model.weight[:8].T) == pytest.approx(1, rel=1e-5)
    assert rms(batch @ model.weight[8:].T) == pytest.approx(1, rel=1e-5)


def recurrent(kind: str, **options: Any) -> nn.RNNBase:
    return getattr(nn, kind)(6, 8, num_layers=2, batch_first=True, **options)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"bias": False}], ids=str)
def test_the_input_weights_of_fused_recurrent_layers_are_scaled(kind: str, options: dict):
    model, batch = recurrent(kind, **options), torch.randn(4, 5, 6) * 3
    was = copies(model)
    done = calibrate_(model, batch)
    inputs = [name for name in was if name.startswith("weight_ih")]
    assert [row.parameter for row in done] == inputs
    assert rms(batch @ model.weight_ih_l0.T) == pytest.approx(1, rel=1e-5)
    between = type(model)(6, 8, batch_first=True, **options)  # the first of the two layers alone
    between.load_state_dict({n: p for n, p in model.state_dict().items() if "_l0" in n})
    hidden = between(batch)[0]
    for name in inputs[len(inputs) // 2 :]:
        assert rms(hidden @ model.get_parameter(name).T) == pytest.approx(1, rel=1e-5)
    states = [name for name in was if "weight_hh" in name]
    assert all(torch.equal(was[name], model.get_parameter(name)) for name in states)
    assert all("state" in done.untouched[name] for name in states)


def test_a_packed_sequence_is_measured_without_its_padding():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(6, 8, batch_first=True)

        def forward(self, x):
            lengths = torch.tensor([5, 3, 1])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.rnn(packed)[0].data

    model, batch = Packed(), torch.randn(3, 5, 6)
    calibrate_(model, batch)
    steps = torch.cat([batch[0], batch[1, :3], batch[2, :1]])
    assert rms(steps @ model.rnn.weight_ih_l0.T) == pytest.approx(1, rel=1e-5)


class Unrolled(nn.Module):
    """A cell called once for each step of the input."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state: Any = torch.zeros(x.shape[0], 8)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, state)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_is_scaled_once_at_its_first_call(cell: type[nn.RNNCellBase]):
    model, batch = Unrolled(cell(6, 8)), torch.randn(16, 5, 6)
    batch[:, 1:] *= 100
    state = model.cell.weight_hh.detach().clone()
    done = calibrate_(model, batch)
    assert rms(batch[:, 0] @ model.cell.weight_ih.T) == pytest.approx(1, rel=1e-5)
    assert [row.parameter for row in done] == ["cell.weight_ih"]
    assert torch.equal(state, model.cell.weight_hh)


def test_the_state_of_a_network_unrolled_by_hand_keeps_its_matrix():
    class Hand(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.state = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x):
            h = torch.zeros(x.shape[0], 8)
            for step in x.unbind(1):
                h = torch.tanh(self.inlet(step) + self.state(h))
            return h

    model, batch = Hand(), torch.randn(16, 5, 6)
    done = calibrate_(model, batch)
    assert [row.parameter for row in done] == ["inlet.weight"]
    assert "state" in done.untouched["state.weight"]


def test_a_layer_that_is_called_again_is_scaled_at_its_first_call():
    model, batch = mlp(6, 16, 16), torch.randn(64, 6)
    model = nn.Sequential(*model, nn.ReLU(), model[2], nn.ReLU(), model[2])
    done = calibrate_(model, batch)
    with outputs(model) as seen:
        model(batch)
    assert rms(seen["2"][0]) == pytest.approx(1, rel=1e-5)
    assert len(seen["2"]) == 3
    assert [row.parameter for row in done] == ["0.weight", "2.weight"]


def test_tied_weights_are_scaled_once_and_told_under_both_paths():
    model = mlp(16, 16, 16, 16)
    model[4].weight = model[0].weight
    batch = torch.randn(64, 16)
    done = calibrate_(model, batch)
    assert [row.parameter for row in done] == ["0.weight", "2.weight"]
    assert done.untouched["4.weight"] == "it is 0.weight, scaled at its first call"
    assert list(sizes(model, batch).values())[:2] == pytest.approx([1, 1], rel=1e-5)


def test_two_parameters_in_one_memory_are_scaled_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(6, 8))
            self.b = nn.Parameter(self.a.data.t())

        def forward(self, x):
            return F.linear(F.linear(x, self.a).relu(), self.b)

    model, batch = Shared(), torch.randn(9, 8)
    done = calibrate_(model, batch)
    assert rms(batch @ model.a.T) == pytest.approx(1, rel=1e-5)
    assert "memory" in done.untouched["b"]


def test_a_tied_table_and_head_keep_their_size():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.inner = nn.Embedding(20, 16), nn.Linear(16, 16)
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.inner(self.table(x)).relu())

    model, batch = Tied(), torch.randint(20, (4, 7))
    was = model.head.weight.detach().clone()
    done = calibrate_(model, batch)
    assert torch.equal(model.head.weight, was)
    assert "table" in done.untouched["table.weight"]
    assert done.untouched["head.weight"] == "it is table.weight"
    assert sizes(model, batch)["inner"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm_is_scaled_by_its_magnitudes(norm: Callable):
    model, batch = mlp(6, 16, 16, 3), torch.randn(64, 6) * 4
    for layer in model[::2]:
        norm(layer)
    was = copies(model)
    done = calibrate_(model, batch)
    assert list(sizes(model, batch).values()) == pytest.approx([1.0] * 3, rel=1e-5)
    assert len(done) == 3
    moved = {n for n, p in model.named_parameters() if not torch.equal(was[n], p)}
    assert moved == {row.parameter for row in done}
    assert all(was[name].shape[1] == 1 for name in moved)


def test_spectral_norm_takes_any_size_away():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU())
    done = calibrate_(model, torch.randn(16, 6))
    assert not len(done)
    assert "divides by its size" in done.untouched["0.parametrizations.weight.original"]


class Cast(nn.Module):
    """Weights that are used as copies in another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 32)
        self.seen: list[Tensor] = []

    def forward(self, x):
        self.seen = [F.linear(x.double(), self.a.weight.double())]
        self.seen += [F.linear(self.seen[0].relu(), self.b.weight.double(), self.b.bias.double())]
        return self.seen[1]


def test_weights_used_through_a_copy_are_scaled_with_it():
    model, batch = Cast(), torch.randn(64, 8)
    calibrate_(model, batch)
    model(batch)
    assert [rms(t) for t in model.seen] == pytest.approx([1, 1], rel=1e-5)


def test_the_copies_that_autocast_keeps_are_made_anew():
    model = mlp(8, 32, 32)
    inside = Lambda(lambda x: model[2](model[2](model[0](x).relu()).relu()))
    inside.model = model

    def cast(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inside(x)

    whole = Lambda(cast)
    whole.inside = inside
    batch = torch.randn(256, 8)
    calibrate_(whole, batch)
    with outputs(model) as seen:
        whole(batch)
    assert [rms(seen["0"][0]), rms(seen["2"][0])] == pytest.approx([1, 1], rel=0.01)


def test_a_compiled_model_is_calibrated_under_the_paths_of_the_original():
    model, batch = mlp(6, 8, 3), torch.randn(16, 6)
    wrapped = nn.DataParallel(model)
    assert [row.parameter for row in calibrate_(wrapped, batch)] == ["0.weight", "2.weight"]
    assert rms(model(batch)) == pytest.approx(1, rel=1e-5)


# ── what keeps its values, and why ───────────────────────────────────────────────────────────


def test_layers_that_are_not_reached_and_frozen_ones_are_left():
    model = mlp(6, 8, 8, 3)
    model[2].requires_grad_(False)
    model.spare = nn.Linear(4, 4)
    inner = nn.Sequential(*list(model)[:5])
    whole = Lambda(lambda x: inner(x))
    whole.model = model
    batch = torch.randn(16, 6)
    done = calibrate_(whole, batch)
    assert [row.parameter for row in done] == ["model.0.weight", "model.4.weight"]
    assert done.untouched["model.spare.weight"] == "never reached"
    assert done.untouched["model.2.weight"] == "frozen"
    assert calibrate_(whole, batch, frozen=True)["model.2.weight"].after == pytest.approx(1)


def test_an_intended_zero_stays_zero():
    model = nn.Sequential(nn.Linear(6, 8), *(Residual(nn.Linear(8, 8)) for _ in range(3)))
    for block in model[1:]:
        nn.init.zeros_(block.body[0].weight)
    done = calibrate_(model, torch.randn(16, 6))
    assert [row.parameter for row in done] == ["0.weight"]
    assert all(not block.body[0].weight.any() for block in model[1:])
    assert done.untouched["1.body.0.weight"] == "it is zero, and stays so"


def test_dead_inputs_give_nothing_to_measure():
    model, batch = mlp(6, 8, 8, 3), torch.randn(16, 6)
    nn.init.zeros_(model[2].weight)
    nn.init.constant_(model[2].bias, -1.0)
    nn.init.zeros_(model[4].bias)
    done = calibrate_(model, batch)
    assert done.untouched["4.weight"] == "its output is zero"
    model[4].bias.data.fill_(0.5)
    assert calibrate_(model, batch).untouched["4.weight"] == "its output is its bias alone"


def test_a_bias_larger_than_the_size_can_only_be_centred_away():
    model, batch = nn.Linear(6, 8), torch.randn(64, 6)
    nn.init.constant_(model.bias, 3.0)
    was = model.weight.detach().clone()
    assert "bias alone is larger" in calibrate_(model, batch).untouched["weight"]
    assert torch.equal(model.weight, was)
    assert calibrate_(model, batch, centre=True)["weight"].bias_moved == pytest.approx(3, rel=0.2)
    assert rms(model(batch)) == pytest.approx(1, rel=1e-5)


def test_an_output_that_is_not_finite_is_left():
    model, batch = mlp(6, 8, 3), torch.randn(16, 6)
    model[2].weight.data[0, 0] = math.inf
    done = calibrate_(model, batch)
    assert done.untouched["2.weight"] == "its output is not finite"
    assert done["0.weight"].after == pytest.approx(1, rel=1e-5)


def test_a_factor_that_the_dtype_has_no_room_for_is_not_used():
    model = nn.Linear(6, 8, bias=False).half()
    batch = (torch.randn(16, 6) * 1e-4).half()
    was = model.weight.detach().clone()
    nn.init.constant_(model.weight, 30.0)
    was = model.weight.detach().clone()
    done = calibrate_(model, batch, std=6e4)
    assert "leave the range" in done.untouched["weight"]
    assert torch.equal(model.weight, was)


def test_weights_inside_of_vmap_are_left():
    layer = nn.Linear(4, 4)
    model = Lambda(lambda x: torch.vmap(lambda v: layer(v))(x))
    model.layer = layer
    assert "vmap" in calibrate_(model, torch.randn(3, 4)).untouched["layer.weight"]


def test_a_weight_that_the_forward_writes_into_is_left():
    model = nn.Linear(6, 8)
    whole = Lambda(lambda x: (model.weight.data.clamp_(-9, 9), model(x))[1])
    whole.model = model
    was = model.weight.detach().clone()
    assert "writes" in calibrate_(whole, torch.randn(16, 6)).untouched["model.weight"]
    assert torch.equal(model.weight, was)


def test_before_a_sine_of_large_frequency_the_weight_is_the_frequency():
    class Siren(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(2, 16), nn.Linear(16, 1)

        def forward(self, x):
            return self.head(torch.sin(30 * self.layer(x)))

    done = calibrate_(Siren(), torch.rand(16, 2))
    assert [row.parameter for row in done] == ["head.weight"]
    assert "frequency" in done.untouched["layer.weight"]


# ── options ──────────────────────────────────────────────────────────────────────────────────


def test_centre_takes_the_mean_of_every_unit_away():
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip
    batch = torch.randn(32, 3, 8, 8) + 2
    done = calibrate_(model, batch, centre=True)
    with outputs(model) as seen:
        model(batch)
    for name, (out,) in seen.items():
        means = out.double().mean([d for d in range(out.dim()) if d != 1])
        assert rms(out) == pytest.approx(1, rel=1e-4)
        if name != "2":
            torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)
    assert done["0.weight"].bias_moved > 0
    assert done["2.weight"].bias_moved == 0  # it has no bias
    assert "0.bias" not in done.untouched


def test_centre_needs_two_values_of_a_unit():
    model, batch = mlp(6, 8, 3), torch.randn(1, 6)
    was = model[0].bias.detach().clone()
    done = calibrate_(model, batch, centre=True)
    assert torch.equal(model[0].bias, was)
    assert list(sizes(model, batch).values()) == pytest.approx([1, 1], rel=1e-5)
    assert "0.bias" in done.untouched


def test_samples_that_are_all_alike_are_not_centred_to_their_rounding():
    model, batch = mlp(6, 8, 3), torch.randn(1, 6).repeat(7, 1)
    batch += torch.randn_like(batch) * 1e-7
    was = model[0].bias.detach().clone()
    calibrate_(model, batch, centre=True)
    assert torch.equal(model[0].bias, was)
    assert list(sizes(model, batch).values()) == pytest.approx([1, 1], rel=1e-5)


def test_a_bias_that_two_layers_share_is_centred_for_the_first():
    model, batch = mlp(8, 8, 8), torch.randn(64, 8) + 0.3
    model[2].bias = model[0].bias
    calibrate_(model, batch, centre=True)
    with outputs(model) as seen:
        model(batch)
    assert float(seen["0"][0].mean(0).abs().max()) < 1e-5
    assert rms(seen["2"][0]) == pytest.approx(1, rel=1e-5)


def test_what_is_within_tolerance_is_left():
    model, batch = mlp(6, 8, 8, 3, bias=False), torch.randn(64, 6)
    calibrate_(model, batch)
    model[2].weight.data.mul_(3)
    was = copies(model)
    done = calibrate_(model, batch, tolerance=2)
    assert [row.parameter for row in done] == ["2.weight"]
    assert done["2.weight"].factor == pytest.approx(1 / 3, rel=1e-4)
    assert done.untouched["0.weight"] == "already within tolerance"
    assert torch.equal(was["4.weight"], model[4].weight)


def test_within_tolerance_the_means_are_taken_away_all_the_same():
    model, batch = nn.Linear(6, 8), torch.randn(64, 6)
    calibrate_(model, batch)
    model.bias.data.add_(5)
    weight = model.weight.detach().clone()
    row = calibrate_(model, batch, centre=True, tolerance=2)["weight"]
    assert row.factor == 1.0
    assert row.bias_moved == pytest.approx(5, rel=0.1)
    assert torch.equal(model.weight, weight)
    assert float(model(batch).detach().mean(0).abs().max()) < 1e-5


@pytest.mark.parametrize("only", ["2", ["2"], ("2.weight",), iter(["2.weight"]), {"2.weight"}])
def test_only_what_is_named_is_calibrated(only: Any):
    model, batch = mlp(6, 8, 8, 3), torch.randn(64, 6)
    was = copies(model)
    done = calibrate_(model, batch, only=only)
    assert [row.parameter for row in done] == ["2.weight"]
    moved = [n for n, p in model.named_parameters() if not torch.equal(was[n], p)]
    assert moved == ["2.weight"]
    assert done.untouched["4.weight"] == "not asked for"
    assert sizes(model, batch)["2"] == pytest.approx(1, rel=1e-5)


def test_only_a_bias_that_is_named_too_is_centred():
    model, batch = mlp(6, 8, 3), torch.randn(64, 6)
    was = model[0].bias.detach().clone()
    calibrate_(model, batch, centre=True, only=["0.weight"])
    assert torch.equal(model[0].bias, was)
    assert calibrate_(model, batch, centre=True, only="0")["0.weight"].bias_moved > 0


def test_only_takes_every_path_of_a_tied_weight():
    model = mlp(8, 8, 8)
    model[2].weight = model[0].weight
    assert [row.parameter for row in calibrate_(model, torch.randn(16, 8), only=["2.weight"])] == [
        "0.weight"
    ]


# ── all or nothing ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("centre", [False, True])
def test_whatever_is_raised_in_the_middle_the_model_is_as_it_was(error, centre: bool):
    model, batch = mlp(6, 8, 8, 3), torch.randn(64, 6)
    was, passes = copies(model), []
    changed: list[bool] = []

    def stop(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 2:  # the first pass reads, the second scales
            changed.append(not torch.equal(was["0.weight"], model[0].weight))
            raise error("stop")

    model[3].register_forward_hook(stop)
    before = snapshot(model, batch)
    with pytest.raises(ForwardError if issubclass(error, Exception) else error):
        calibrate_(model, batch, centre=centre)
    assert changed == [True]
    passes.clear()
    after = snapshot(model, batch)
    assert {n: torch.equal(p, was[n]) for n, p in model.named_parameters()} == dict.fromkeys(
        was, True
    )
    different = before.difference(after)
    assert not different, different


# ── what is told ─────────────────────────────────────────────────────────────────────────────


def test_two_passes_are_run_and_told():
    model, batch = mlp(*[8] * 30), torch.randn(16, 8)
    counted: list[int] = []
    model.register_forward_hook(lambda *_: counted.append(1))
    done = calibrate_(model, batch)
    assert done.passes == len(counted) == 2
    counted.clear()
    nn.init.zeros_(model[0].weight)
    assert calibrate_(model, batch, only="0").passes == len(counted) == 1


def test_a_calibration_reads_as_a_table_and_as_plain_data():
    model, batch = mlp(6, 8, 3), torch.randn(64, 6)
    model.add_module("norm\x1b[31m", nn.LayerNorm(3))
    done = calibrate_(model, batch)
    lines = str(done).splitlines()
    assert lines[0] == "calibrated: 2 weights in 2 forward passes"
    rows = lines[1:4]
    assert [line.split()[0] for line in rows] == ["parameter", "0.weight", "2.weight"]
    assert len({len(line) for line in rows}) == 1
    assert str(done).replace("\n", "").isprintable()
    plain = json.loads(json.dumps(done.to_dict()))
    assert done.to_json() == json.dumps(plain, indent=2)
    assert done.to_json(None) == json.dumps(plain)
    assert plain["passes"] == 2
    assert plain["rows"][0]["parameter"] == "0.weight"
    assert set(plain["untouched"]) == set(done.untouched)
    assert repr(done) == "<fanin.Calibration: 2 weights>"
    assert "0.weight" in done
    with pytest.raises(KeyError, match=r"0\.bias: left as it is: no weight"):
        done["0.bias"]


def test_a_number_of_a_calibration_that_is_not_finite_is_a_string():
    row = Calibrated("weight", math.nan, math.inf, -math.inf, 0.0, 1.0)
    (plain,) = json.loads(Calibration((row,)).to_json())["rows"]
    assert (plain["before"], plain["after"], plain["factor"]) == ("nan", "inf", "-inf")


def test_the_names_are_public():
    assert fanin.calibrate_ is calibrate_
    assert fanin.Calibration is Calibration


# ── what cannot be done ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"std": 0}, "std: 0; a positive number"),
        ({"std": math.nan}, "std: nan"),
        ({"std": True}, "std: True"),
        ({"tolerance": 0.5}, "tolerance: 0.5; a factor of at least 1"),
        ({"centre": 1}, "centre: 1; True or False"),
        ({"frozen": None}, "frozen: None"),
        ({"only": 3}, "only: 3; paths"),
        ({"only": []}, "only: it is empty"),
        ({"only": ["1"]}, "only: the module '1' has no parameters"),
        ({"only": ["0.weigth"]}, "did you mean 0.weight"),
        ({"only": [3]}, "only: 3 is the path of no parameter"),
    ],
    ids=str,
)
def test_an_argument_that_is_not_possible_is_named(given: dict[str, Any], told: str):
    model, batch = mlp(6, 8, 3), torch.randn(4, 6)
    was = copies(model)
    with pytest.raises(ArgumentError) as raised:
        calibrate_(model, batch, **given)
    assert told in str(raised.value)
    assert all(torch.equal(was[n], p) for n, p in model.named_parameters())


def inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(6, 8)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: nn.ReLU(), "no parameters"),
        (lambda: nn.Linear(6, 8, device="meta"), "'weight' is on the meta device"),
        (lambda: nn.LazyLinear(8), "lazy"),
        (inference, "inference mode"),
    ],
)
def test_a_model_without_values_is_refused(build: Callable[[], nn.Module], told: str):
    with pytest.raises(ModelError, match=told):
        calibrate_(build(), torch.randn(4, 6))


def test_what_is_no_module_or_no_finite_batch_is_refused():
    with pytest.raises(ArgumentError, match="model: int is not"):
        calibrate_(3, torch.randn(4, 6))  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="NaN"):
        calibrate_(mlp(6, 8, 3), torch.full((4, 6), math.nan))
    with pytest.raises(ForwardError):
        calibrate_(mlp(6, 8, 3), torch.randn(4, 5))


def test_a_mapping_and_a_call_in_inference_mode_are_fine():
    model = nn.Bilinear(4, 5, 8)
    batch = {"input1": torch.randn(16, 4), "input2": torch.randn(16, 5)}
    with torch.inference_mode():
        done = calibrate_(model, batch, std=2.0)
    assert done["weight"].after == pytest.approx(2, rel=1e-5)
    assert rms(model(**batch)) == pytest.approx(2, rel=1e-5)


# ── measuring, as plans and repairs use it ───────────────────────────────────────────────────


def test_a_target_that_centres_gives_one_factor_and_the_new_bias():
    model, batch = mlp(6, 8, 3), torch.randn(64, 6) + 3
    was = copies(model)
    target = Target(0.5, 1.0, centred=False, centre=True, bias="0.bias")
    found = measure_(model, batch, {"0.weight": target})
    (factor,) = found["0.weight"]
    torch.testing.assert_close(model[0].weight.detach(), was["0.weight"] * factor)
    torch.testing.assert_close(model[0].bias.detach(), torch.tensor(found["0.bias"]))
    out = model[0](batch).detach()
    assert rms(out) == pytest.approx(0.5, rel=1e-3)
    assert float(out.mean(0).abs().max()) < 1e-5


def test_a_bias_of_two_targets_is_moved_once():
    model, batch = mlp(8, 8, 8), torch.randn(64, 8)
    model[2].bias = model[0].bias
    target = Target(1.0, centre=True, bias="0.bias")
    measure_(model, batch, {"0.weight": target, "2.weight": target})
    with outputs(model) as seen:
        model(batch)
    assert float(seen["0"][0].mean(0).abs().max()) < 1e-5


def test_what_meets_its_target_does_not_appear():
    model, batch = mlp(6, 8, 3, bias=False), torch.randn(64, 6)
    size = sizes(model, batch)["0"]
    assert measure_(model, batch, {"0.weight": Target(size * 1.1, 1.25)}) == {}
    outcome = outcomes_(model, batch, {"0.weight": Target(size * 1.1, 1.25)})["0.weight"]
    assert outcome.because == "already within tolerance"


def test_lsuv_measures_the_input_of_a_recurrent_layer():
    model, batch = recurrent("LSTM"), torch.randn(4, 5, 6) * 30
    found = fanin.init_(model, batch, "lsuv")
    product = (batch @ model.weight_ih_l0.T).detach()
    assert float(product.std(unbiased=False)) == pytest.approx(1, rel=2e-3)
    assert "measured" in found["weight_ih_l1"].because
