"""After `init_` models are sound: healthy ones, very deep ones, and with every scheme there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_roles import HandGRU, HandRNN, Separate, eager
from torch import Tensor, nn
from zoo import Case, blocks, seeded
from zoo.blocks import Residual, classify, mlp
from zoo.checks import QUIET, parametrize
from zoo.healthy import HEALTHY

import fanin
from fanin.planning import Plan, init_, plan

pytestmark = QUIET

BY_NAME = {case.name: case for case in HEALTHY}
QUICK = [case for case in HEALTHY if not case.slow]
NEAR_CHANCE = 0.05  # of ln C


@pytest.fixture(autouse=True)
def _seed():
    with seeded(3):
        yield


def sound(model: nn.Module, batch: Any, loss: Any, near_chance: bool = True) -> fanin.Report:
    """The report on a model without an error and, for a classifier, with the loss of guessing."""
    report = fanin.check(model, batch, loss)
    errors = [f"{f.code} {f.layer}: {f.message}" for f in report.findings if f.severity == "error"]
    assert not errors, "\n".join(errors)
    if report.chance and near_chance:
        assert report.loss is not None
        assert abs(report.loss - report.chance) <= NEAR_CHANCE * report.chance, (
            f"the loss is {report.loss:.4f}, that of guessing {report.chance:.4f}"
        )
    return report


# ── healthy models ───────────────────────────────────────────────────────────────────────────

#: Their logits are cosines times a temperature that the author chose, which is left alone.
BY_TEMPERATURE = {"contrastive-two-towers", "clip"}


@parametrize(QUICK)
def test_a_healthy_model_is_healthy_after_init(case: Case):
    if case.needs:
        pytest.importorskip(case.needs)
    model, batch, loss = case.build()
    found = init_(model, batch)
    for a in found:
        values = model.get_parameter(a.parameter).detach().double()
        assert torch.isfinite(values).all(), a
        if a.std == 0:
            assert not values.any(), a
        elif values.numel() > 200 and "rows" not in a.arguments:
            assert float(values.square().mean().sqrt()) == pytest.approx(a.std, rel=0.25), a
    sound(model, batch, loss, near_chance=case.name not in BY_TEMPERATURE)


@pytest.mark.parametrize("scale", [1e-3, 255.0])
@pytest.mark.parametrize("name", ["mlp-relu-8", "lenet", "cnn-gelu", "resnet-basic", "mlp-tanh-8"])
def test_data_of_another_size_starts_at_chance_too(name: str, scale: float):
    model, batch, loss = BY_NAME[name].build()
    init_(model, batch * scale)
    sound(model, batch * scale, loss)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["mlp-relu-8", "cnn-relu-6", "language-model-tied"])
def test_other_seeds_start_as_well(name: str, seed: int):
    model, batch, loss = BY_NAME[name].build()
    init_(model, batch, seed=seed)
    sound(model, batch, loss)


def test_a_spoilt_model_is_healed():
    """Zeros, constants, NaN: nothing of what was there is left."""
    for start in (0.0, 0.1, math.nan):
        model, batch, loss = BY_NAME["vgg"].build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(start)
        init_(model, batch)
        sound(model, batch, loss)


# ── deep plain networks ──────────────────────────────────────────────────────────────────────


class Sin(nn.Module):
    def forward(self, x):
        return x.sin()


ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "sin": Sin,
}


def deep_mlp(act: Callable[[], nn.Module], depth: int = 50, width: int = 64):
    model = mlp(10, *[width] * (depth - 1), 5, act=act)
    return model, torch.randn(64, 10), classify(64, 5)


def deep_cnn(act: Callable[[], nn.Module], depth: int = 50, width: int = 16):
    layers: list[nn.Module] = []
    for n in (3, *[width] * (depth - 2)):
        layers += [nn.Conv2d(n, width, 3, padding=1), act()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5))
    return model, torch.randn(16, 3, 8, 8), classify(16, 5)


def deep_residual(act: Callable[[], nn.Module], depth: int = 100, width: int = 16):
    """`depth` layers in blocks of two, and no norm."""
    body = (
        Residual(nn.Linear(width, width), act(), nn.Linear(width, width)) for _ in range(depth // 2)
    )
    model = nn.Sequential(nn.Linear(10, width), *body, nn.Linear(width, 5))
    return model, torch.randn(64, 10), classify(64, 5)


def signals(model: nn.Module, batch: Any, kinds: Any = (nn.Linear, nn.Conv2d)) -> list[Tensor]:
    """Outputs of all layers of some kinds, in order."""
    found: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _, __, out: found.append(out.detach().double()))
        for m in model.modules()
        if isinstance(m, kinds)
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return found


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_a_deep_plain_mlp_starts_sound(name: str):
    model, batch, loss = deep_mlp(ACTIVATIONS[name])
    init_(model, batch)
    sizes = [rms(out) for out in signals(model, batch)[:-1]]
    assert max(sizes) / min(sizes) < 5, sizes
    sound(model, batch, loss)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_a_deep_plain_cnn_starts_sound(name: str):
    model, batch, loss = deep_cnn(ACTIVATIONS[name])
    init_(model, batch)
    sizes = [rms(out) for out in signals(model, batch)[:-1]]
    assert max(sizes) / min(sizes) < 5, sizes
    sound(model, batch, loss)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_a_deep_network_tells_inputs_apart(name: str):
    """Not only the scale: the outputs of different inputs differ as the inputs do."""
    model, batch, _ = deep_mlp(ACTIVATIONS[name], width=32)
    init_(model, batch)
    hidden = signals(model, batch)[-2]
    apart = float((hidden - hidden.mean(0)).square().sum() / hidden.square().sum())
    assert apart > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "softplus"])
def test_a_deep_residual_network_without_norms_starts_sound(name: str):
    model, batch, loss = deep_residual(ACTIVATIONS[name])
    init_(model, batch)
    sound(model, batch, loss)
    with torch.no_grad():
        stream = model[:-1](batch)
    assert rms(stream) == pytest.approx(rms(model[0](batch).detach()), rel=0.5)


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_a_deep_stream_with_norms_keeps_its_size(name: str):
    act = ACTIVATIONS[name]
    body = (
        Residual(nn.LayerNorm(32), nn.Linear(32, 64), act(), nn.Linear(64, 32)) for _ in range(24)
    )
    model = nn.Sequential(nn.Linear(10, 32), *body, nn.LayerNorm(32), nn.Linear(32, 5))
    batch = torch.randn(64, 10)
    init_(model, batch)
    with torch.no_grad():
        first, last = model[0](batch), model[:25](batch)
    assert rms(last) / rms(first) == pytest.approx(math.sqrt(2), rel=0.25)
    sound(model, batch, classify(64, 5))


@pytest.mark.parametrize("steps", [4, 40])
@pytest.mark.parametrize("name", ["tanh", "relu", "sigmoid"])
def test_a_recurrent_network_written_by_hand_starts_sound(name: str, steps: int):
    model, batch = HandRNN(ACTIVATIONS[name]()), torch.randn(32, steps, 6)
    init_(model, batch)
    largest = float(torch.linalg.matrix_norm(model.h.weight.detach(), 2))
    assert largest < 2.5  # a state that is blown up in every step would drown the data
    sound(model, batch, classify(32, 3))


@pytest.mark.parametrize("form", ["mixture", "difference"])
def test_a_gated_state_written_by_hand_starts_sound(form: str):
    model, batch = HandGRU(form), torch.randn(32, 20, 6)
    found = init_(model, batch)
    assert not any(a.std == 0 for a in found if len(a.shape) > 1)
    sound(model, batch, classify(32, 3))


# ── measured starts ──────────────────────────────────────────────────────────────────────────


class Mixed(nn.Module):
    """Convolutions, linear layers, activations of many kinds; no norm."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(12, 12, 3, stride=2, groups=3, bias=bias)
        self.c = nn.Linear(12 * 9, 40, bias=bias)
        self.d = nn.Linear(40, 40, bias=bias)
        self.e = nn.Linear(40, 5, bias=bias)
        self.calls = 0

    def forward(self, x):
        x = self.b(self.a(x).relu()).sigmoid().flatten(1)
        x = torch.nn.functional.softplus(self.c(x))
        return self.e(self.d(x).tanh())


def images() -> Tensor:
    return torch.randn(32, 3, 8, 8) * 7 + 3


@pytest.mark.parametrize("bias", [True, False])
def test_lsuv_gives_every_layer_unit_variance(bias: bool):
    model, batch = Mixed(bias), images()
    found = init_(model, batch, "lsuv")
    for out in signals(model, batch):
        assert float(out.var(unbiased=False)) == pytest.approx(1.0, rel=2e-3)
    assert found["c.weight"].scheme == "orthogonal"


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_lsuv_holds_at_any_depth(name: str):
    model, batch, _ = deep_mlp(ACTIVATIONS[name], depth=20, width=32)
    init_(model, batch, "lsuv")
    for out in signals(model, batch):
        assert float(out.var(unbiased=False)) == pytest.approx(1.0, rel=5e-3)


def test_a_measured_start_takes_one_pass_to_read_and_one_to_measure():
    model, batch, _ = deep_mlp(nn.ReLU, depth=20, width=16)
    calls: list[int] = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    for scheme in ("lsuv", "within_layer", "auto"):
        calls.clear()
        init_(model, batch, scheme)
        assert len(calls) == 2, scheme


def test_lsuv_scales_a_layer_that_is_used_twice_by_its_first_use():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inlet, self.cell = nn.Linear(6, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.cell(self.cell(self.inlet(x)).tanh())

    model, batch = Net(), torch.randn(64, 6)
    init_(model, batch, "lsuv")
    assert float(signals(model, batch)[1].var(unbiased=False)) == pytest.approx(1.0, rel=2e-3)


class Transposed(nn.Module):
    """x @ W.T and F.linear(x, W.T) of bare weights."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(shape))
        self.b = nn.Parameter(torch.zeros(shape))
        self.signals: list[Tensor] = []

    def forward(self, x):
        first = x @ self.a.T
        second = nn.functional.linear(first.tanh(), self.b.T)
        self.signals = [first.detach().double(), second.detach().double()]
        return second


@pytest.mark.parametrize("shape", [(16, 16), (24, 16)])
def test_lsuv_reaches_weights_that_are_used_transposed(shape: tuple[int, int]):
    model, batch = Transposed(shape), torch.randn(64, shape[1]) * 5
    init_(model, batch, "lsuv")
    model(batch)
    for out in model.signals:
        assert float(out.var(unbiased=False)) == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("shape", [(16, 16), (24, 16)])
def test_within_layer_scales_no_inputs_of_weights_that_are_used_transposed(shape):
    model, batch = Transposed(shape), torch.randn(64, shape[1]) * 5
    found = init_(model, batch, "within_layer")
    assert not any("rows" in a.arguments for a in found)


@pytest.mark.parametrize("name", ["multihead-attention", "hypernetwork", "transformer-encoder"])
def test_within_layer_takes_the_bias_of_the_layer_and_no_other(name: str):
    model, batch, _ = BY_NAME[name].build()
    found = init_(model, batch, "within_layer")
    for a in found:
        if "rows" in a.arguments:
            assert len(a.arguments["rows"]) == a.shape[a.layout.index("o")]


def channels(out: Tensor) -> Tensor:
    """[channels, everything else]"""
    return out.movedim(1 if out.dim() == 4 else -1, 0).flatten(1)


def test_within_layer_gives_every_channel_unit_variance_and_zero_mean():
    model, batch = Mixed(), images()
    found = init_(model, batch, "within_layer")
    for out in map(channels, signals(model, batch)):
        torch.testing.assert_close(out.mean(1), torch.zeros(len(out)).double(), atol=2e-4, rtol=0)
        torch.testing.assert_close(
            out.std(1, unbiased=False), torch.ones(len(out)).double(), atol=1e-3, rtol=0
        )
    assert len(found["a.weight"].arguments["rows"]) == 12
    assert "means" in found["a.bias"].because


def test_within_layer_without_biases_gives_every_channel_unit_variance():
    model, batch = Mixed(bias=False), images()
    init_(model, batch, "within_layer")
    for out in map(channels, signals(model, batch)):
        torch.testing.assert_close(
            out.std(1, unbiased=False), torch.ones(len(out)).double(), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("scheme", ["lsuv", "within_layer"])
def test_outputs_that_do_not_vary_are_left_as_they_are(scheme: str):
    model, batch = mlp(6, 16, 3), torch.zeros(16, 6)
    found = init_(model, batch, scheme)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert Plan.from_toml(found.to_toml()) == found


# ── every scheme ─────────────────────────────────────────────────────────────────────────────


def plain() -> tuple[nn.Module, Any]:
    return mlp(32, 32, 32, 8), torch.randn(64, 32)


def kernels() -> tuple[nn.Module, Any]:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(),
        nn.Linear(128, 4),
    )  # fmt: skip
    return model, torch.randn(16, 8, 4, 4)


def shuffle() -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1))
    return model, torch.randn(4, 3, 6, 6)


def upsampling() -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 4, 2, 1))
    return model, torch.randn(4, 3, 8, 8)


def lstm() -> tuple[nn.Module, Any]:
    return BY_NAME["lstm-classifier"].build()[:2]


def rnn() -> tuple[nn.Module, Any]:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.RNN(6, 12, nonlinearity="relu", batch_first=True), mlp(12, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return Net(), torch.randn(16, 7, 6)


def stream() -> tuple[nn.Module, Any]:
    body = (Residual(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(4))
    return nn.Sequential(nn.Linear(6, 16), *body, nn.Linear(16, 3)), torch.randn(64, 6)


def gated() -> tuple[nn.Module, Any]:
    body = (blocks.Scaled(nn.Linear(16, 16), nn.ReLU(), start=0.5) for _ in range(4))
    return nn.Sequential(nn.Linear(6, 16), *body, nn.Linear(16, 3)), torch.randn(64, 6)


def language() -> tuple[nn.Module, Any]:
    return BY_NAME["language-model-untied"].build()[:2]


def attention() -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.LayerNorm(24), Separate(24, 3, eager), nn.Linear(24, 2))
    return model, torch.randn(2, 5, 24)


def adapter() -> tuple[nn.Module, Any]:
    return blocks.LoRA(nn.Linear(16, 16)), torch.randn(32, 16)


def sines() -> tuple[nn.Module, Any]:
    return mlp(6, 32, 32, 3, act=Sin), torch.rand(64, 6)


def mirrored() -> tuple[nn.Module, Any]:
    return mlp(*[16] * 15, 3), torch.randn(64, 16)


#: Scheme → (model, a parameter that must have it, what else it is given).
SUITED: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str, dict[str, Any]]] = {
    **{
        name: (plain, "2.weight", {})
        for name in (
            *("zeros", "ones", "constant", "identity", "sparse", "normal", "uniform"),
            *("trunc_normal", "variance_scaling", "critical", "orthogonal", "hadamard"),
            *("zero_hadamard",),
            *(
                f"{stem}_{form}"
                for stem in ("lecun", "xavier", "xavier_in", "he")
                for form in ("normal", "uniform", "trunc_normal")
            ),
        )
    },
    "dirac": (kernels, "2.weight", {}),
    "delta_orthogonal": (kernels, "2.weight", {}),
    "icnr": (shuffle, "0.weight", {}),
    "bilinear_upsampling": (upsampling, "1.weight", {}),
    "siren": (sines, "2.weight", {"omega": 1.0}),
    "looks_linear": (plain, "2.weight", {}),
    "mirrored_bias": (mirrored, "0.bias", {}),
    "irnn": (rnn, "rnn.weight_hh_l0", {}),
    "forget_gate_bias": (lstm, "rnn.bias_ih_l0", {}),
    "chrono_bias": (lstm, "rnn.bias_ih_l0", {}),
    "prior_bias": (plain, "4.bias", {"priors": (1, 2, 3, 4, 5, 6, 7, 8)}),
    "focal_bias": (plain, "4.bias", {}),
    "mimetic": (attention, "1.a.weight", {}),
    # for whole models: what they draw has the name of another scheme
    "fixup": (stream, "", {}),
    "skipinit": (gated, "", {}),
    "rezero": (gated, "", {}),
    "residual_scaling": (language, "", {}),
    "deepnorm": (language, "", {}),
    "t_fixup": (language, "", {}),
    "small_init": (language, "", {}),
    "depthwise_trunc_normal": (language, "", {}),
    "mup": (plain, "", {}),
    "spectral": (plain, "", {}),
    "recurrent": (lstm, "", {}),
    "lora": (adapter, "", {}),
    "lsuv": (plain, "", {}),
    "within_layer": (plain, "", {}),
    "auto": (plain, "", {}),
}


def test_every_scheme_has_a_model_here():
    assert set(SUITED) == set(fanin.schemes)


@pytest.mark.parametrize("scheme", list(SUITED))
def test_every_scheme_starts_a_model_that_it_suits(scheme: str):
    build, parameter, options = SUITED[scheme]
    model, batch = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = init_(model, batch, scheme, seed=1, **options)
    assert found.scheme == scheme
    if parameter:
        assert found[parameter].scheme == scheme
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all()
        if name in found.untouched:
            assert torch.equal(value, before[name])
            continue
        a = found[name]
        if value.numel() > 200 and "rows" not in a.arguments:
            measured = float(value.detach().double().square().mean().sqrt())
            assert measured == pytest.approx(a.std, rel=0.15, abs=1e-12), name
    out = model(batch) if isinstance(batch, Tensor) else model(*batch)
    assert torch.isfinite(out).all()
    assert Plan.from_toml(found.to_toml()) == found
    assert plan(model, batch, scheme, seed=1, **options) == found


@pytest.mark.parametrize("alias", ["kaiming_normal", "glorot_uniform", "gpt2", "edge_of_chaos"])
def test_the_names_of_other_libraries_start_models_too(alias: str):
    model, batch = language()
    assert (
        init_(model, batch, alias).scheme
        == fanin.schemes[
            {
                "kaiming_normal": "he_normal",
                "glorot_uniform": "xavier_uniform",
                "gpt2": "residual_scaling",
                "edge_of_chaos": "critical",
            }[alias]
        ].name
    )


def test_biases_with_a_meaning_leave_the_weights_to_auto():
    model, batch = plain()
    chosen = plan(model, batch)
    found = init_(model, batch, "prior_bias", priors=(1, 1, 1, 1, 1, 1, 1, 93))
    assert [a for a in found if a.parameter != "4.bias"] == [
        a for a in chosen if a.parameter != "4.bias"
    ]
    shares = torch.softmax(model[4].bias.detach(), 0)
    assert float(shares[7]) == pytest.approx(0.93, abs=1e-6)


def test_icnr_and_bilinear_upsampling_leave_no_checkerboard():
    model, batch = shuffle()
    init_(model, batch, "icnr")
    image = model[1](model[0](batch))
    torch.testing.assert_close(image[..., ::2, ::2], image[..., 1::2, 1::2])
    model, batch = upsampling()
    init_(model, batch, "bilinear_upsampling")
    flat = model[1](torch.ones(1, 4, 8, 8))
    torch.testing.assert_close(flat[..., 2:-2, 2:-2], torch.ones(1, 4, 12, 12))


def test_hadamard_fills_the_sizes_it_names_and_leaves_others():
    model = mlp(12, 20, 24, 9, 7)
    drawn = fanin.init_(model, torch.randn(4, 12), scheme="hadamard")
    assert [drawn[f"{i}.weight"].scheme == "hadamard" for i in (0, 2, 4, 6)] == [True] * 3 + [False]
    assert torch.allclose(model[2].weight.T @ model[2].weight, torch.eye(20), atol=1e-5)
