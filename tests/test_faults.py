"""Faults that really happened are found, at the right layer and by the right rule."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import Case
from zoo.blocks import Lambda, Resampler, classify, mlp, regress
from zoo.checks import QUIET, check_case, expectation, parametrize, unchanged
from zoo.faults import FAULTS

import fanin
from fanin.findings import RULES, document

pytestmark = QUIET

BY_NAME = {case.name: case for case in FAULTS}


@parametrize(FAULTS)
def test_a_fault_is_found_with_its_layer_and_its_severity_and_its_findings_are_complete(case: Case):
    report = check_case(case)
    expectation(case, report)
    for finding in report.findings:
        rule = RULES[finding.code]
        assert finding.name == rule.name
        assert finding.severity in rule.severities
        assert finding.message
        assert finding.why
        assert finding.fix
        assert finding.measured
        assert finding.expected
        assert finding.layer in finding.layers or not finding.layers
        assert "\n" not in finding.message


@pytest.mark.parametrize("code", sorted({code for case in FAULTS for code in case.codes}))
def test_every_code_that_a_fault_asks_for_has_a_document(code: str):
    assert document(code).strip()
    assert document(RULES[code].name) == document(code)


def test_every_rule_has_a_fault():
    assert set(RULES) <= {code for case in FAULTS for code in case.codes}


@pytest.mark.parametrize(
    ("name", "layer", "groups"),
    [
        ("one-cloned-pair", "0", {(3, 7)}),
        ("net2net-without-noise", "0", {(i, i + 8) for i in range(8)}),
        ("two-shards-and-the-columns-as-well", "0", {(i, i + 16) for i in range(16)}),
        ("locked-channels-of-a-convolution", "0", {(i, i + 4) for i in range(4)}),
        ("zeros-under-sigmoid", "0", {tuple(range(32))}),
        ("zeros-under-sigmoid", "2", {tuple(range(32))}),
        ("constants", "2", {tuple(range(32))}),
        ("circulant-in-the-middle", "2", {tuple(range(16))}),
        ("equal-in-and-all-zero-out", "0", {tuple(range(16))}),
    ],
)
def test_locked_units_are_named_exactly(name: str, layer: str, groups: set[tuple[int, ...]]):
    symmetry = check_case(BY_NAME[name]).symmetry
    locked = {c.units for c in symmetry.classes if c.layer == layer and c.kind == "locked"}
    assert locked == groups


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("perceiver-latents-of-ones", {("latents", tuple(range(8)), 8)}),
        (
            "registers-of-zeros-at-places-of-zeros",
            {("rows", (0, 1, 2, 3), 4), ("places", (0, 1, 2, 3), 12)},
        ),
        ("deep-prompts-of-zeros", {("prompts", (0, 1, 2), 6), ("prompts", (3, 4, 5), 6)}),
        ("equal-means-of-a-mixture-over-one-number", {("means", tuple(range(6)), 6)}),
    ],
)
def test_locked_rows_are_those_of_a_parameter(name: str, rows: set):
    symmetry = check_case(BY_NAME[name]).symmetry
    locked = [c for c in symmetry.classes if c.kind == "locked"]
    assert {(c.layer, c.units, c.rows) for c in locked} == rows


def test_rows_are_told_as_rows():
    report = check_case(BY_NAME["equal-means-of-a-mixture"])
    (found,) = [f for f in report.findings if f.code == "S101"]
    assert found.message.startswith("Rows 0–5 of means; rows 0–5 of log_sizes are copies: same")
    assert "units" not in "\n".join((found.message, found.measured, found.expected, found.why))
    assert "means  locked: rows 0–5 (6 copies), 4 virtual steps in float64" in str(report)
    beside = check_case(BY_NAME["prompts-that-start-as-one-word"])
    (found,) = [f for f in beside.findings if f.code == "S101"]
    assert found.layers == ("0.rows",)  # and not its module, whose other layers are sound


@pytest.mark.parametrize("each", [True, False])
def test_rows_that_only_the_targets_of_a_batch_hold_together_are_no_copies(each: bool):
    """Those of another would part them, where each latent has an output of its own."""
    torch.manual_seed(0)
    target = torch.randn(16, 5)
    report = fanin.check(
        Resampler(torch.zeros(4, 8), each=each),
        torch.randn(16, 6, 8),
        lambda out: F.mse_loss(out, (target[:, None] if each else target).expand_as(out)),
    )
    assert report.symmetry.steps > 0
    assert ("S101" in {f.code for f in report.findings}) is not each


def test_a_batch_that_cannot_be_another_is_no_obstacle_to_a_check():
    """What the proof would need, a model may refuse; then nothing is said."""
    torch.manual_seed(0)

    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Resampler(torch.zeros(4, 8))

        def forward(self, x):
            if float(x.max()) > 1 or float(x.min()) < 0:
                raise ValueError("shares from 0 to 1 are needed")
            return self.net(x)

    model, batch, loss = Strict(), torch.rand(16, 6, 8), regress(16, 5)
    with unchanged(model, batch):
        report = fanin.check(model, batch, loss)
    assert report.ok
    assert not any(c.rows for c in report.symmetry.classes)


@pytest.mark.parametrize(
    "name",
    [
        "zeros-under-sigmoid",
        "constants",
        "circulant-in-the-middle",
        "one-cloned-pair",
        "perceiver-latents-of-ones",
        "equal-means-of-a-mixture",
    ],
)
def test_a_lock_is_proven_by_four_identities_at_each_step(name: str):
    symmetry = check_case(BY_NAME[name]).symmetry
    assert symmetry.dtype == "float64"
    assert symmetry.steps >= 2
    for found in (c for c in symmetry.classes if c.kind == "locked"):
        assert len(found.certificate) >= 2
        for identity in found.certificate:
            for value in (identity.inputs, identity.outputs, identity.gradients, identity.updates):
                assert 0 <= value < 1e-6


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("head-that-shouts", "output layer smaller"),
        ("regression-with-weights-ten-times-too-large", "output layer smaller"),
        ("raw-pixels-into-a-relu-network", "Normalize the inputs"),
        ("cosines-enlarged-64-times", "scale s of a cosine head"),
        ("variance-whose-logarithm-is-huge", "in front of an exponential"),
    ],
)
def test_a_loss_that_starts_high_comes_with_what_helps(name: str, advice: str):
    (fix,) = (f.fix for f in check_case(BY_NAME[name]).findings if f.code == "O301")
    assert advice in fix


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recurrent-weights-of-variance-one", "The signal grows step by step."),
        ("cell-that-doubles-its-state", "The signal grows step by step."),
        ("huge-weights-in-a-deep-relu-net", "The signal grows layer by layer."),
    ],
)
def test_a_signal_grows_by_layers_or_by_the_steps_of_a_recurrence(name: str, message: str):
    (found,) = (f for f in check_case(BY_NAME[name]).findings if f.code == "P202")
    assert found.message == message
    assert ("orthogonal" in found.fix) == ("step" in message)


@pytest.mark.parametrize("name", ["constant-first-layer", "two-shards-drawn-with-one-seed"])
def test_units_that_separate_are_said_to_separate_and_when(name: str):
    symmetry = check_case(BY_NAME[name]).symmetry
    kinds = {c.kind for c in symmetry.classes if c.layer == "0"}
    assert kinds == {"self-breaking"}
    assert all(1 <= c.step <= symmetry.steps for c in symmetry.classes if c.layer == "0")


@pytest.mark.parametrize(
    ("name", "parameters", "cause"),
    [
        ("lora-with-both-factors-zero", {"0.A", "0.B", "2.A", "2.B"}, "two zero factors"),
        ("gate-of-two-zero-layers", {"1.gate.0.weight", "1.gate.2.weight"}, "two zero factors"),
        ("large-negative-bias-before-relu", {"0.weight", "0.bias", "2.weight"}, "dead units"),
        ("unused-parameter", {"spare.weight", "spare.bias"}, "unused"),
        ("zeros-under-relu", {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight"}, None),
    ],
)
def test_a_deadlock_lists_exactly_the_parameters_that_never_move(
    name: str, parameters: set[str], cause: str | None
):
    deadlocks = check_case(BY_NAME[name]).symmetry.deadlocks
    assert {d.parameter for d in deadlocks} == parameters
    assert cause is None or {cause} <= {d.cause for d in deadlocks}


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize(("moving", "severity"), [(False, "error"), (True, "warning")])
def test_weights_that_stay_where_nothing_is_measured_are_reported(moving: bool, severity: str):
    """An error where no other weight moves."""
    torch.manual_seed(0)
    hidden, around = mlp(8, 16, 8), mlp(8, 8, 8)
    for layer in (hidden[0], hidden[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    scripted = torch.jit.script(hidden)
    model = nn.Sequential(Lambda(lambda x: scripted(x) + moving * around(x)))
    model.scripted, model.around = scripted, around.requires_grad_(moving)
    report = fanin.check(model, torch.randn(32, 8), regress(32, 8))
    (finding,) = [f for f in report.findings if f.code == "S102"]
    assert finding.severity == severity
    assert finding.layers[:2] == ("scripted.0", "scripted.2")
    assert finding.message.endswith("nothing that was watched says why.")
    assert fanin.repair_(model, torch.randn(32, 8), regress(32, 8), warnings=True).ok


def test_select_and_ignore_leave_findings_out():
    from dataclasses import replace

    case = BY_NAME["transformer-encoder-of-copies"]
    for asked in ("S104", "cloned-layers"):
        found = check_case(replace(case, options={"select": [asked]})).findings
        assert {f.code for f in found} == {"S104"}
    assert not any(
        f.code.startswith("S")
        for f in check_case(replace(case, options={"ignore": ["S"]})).findings
    )


def test_raw_inputs_are_named_where_they_saturate_the_first_layer():
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    report = fanin.check(model, torch.randn(64, 16) * 150)
    (finding,) = [f for f in report.findings if f.code == "P206"]
    assert finding.layer == "0"
    assert "The inputs are so large" in finding.message
    assert "Normalize the inputs" in finding.fix


@pytest.mark.parametrize(
    ("act", "gain"),
    [
        (nn.Tanh, "calculate_gain('tanh')"),
        (nn.Sigmoid, "a gain of 1"),
        (nn.Hardsigmoid, "a gain of 1"),
    ],
)
def test_the_gain_that_a_flat_layer_is_told_is_that_of_its_activation(act: type, gain: str):
    model = nn.Sequential(nn.Linear(16, 32), act(), nn.Linear(32, 4))
    nn.init.normal_(model[0].weight, std=10.0)
    (finding,) = [f for f in fanin.check(model, torch.randn(64, 16)).findings if f.code == "P206"]
    assert gain in finding.fix


@pytest.mark.parametrize(
    ("bias", "times", "told"),
    [
        (-12.0, 0.0, "Set the biases"),
        (12.0, 1.0, "Set the biases"),
        (0.0, 100.0, "Draw smaller weights"),
        (-12.0, 100.0, "Draw smaller weights"),
        (4.0, 20.0, "Draw smaller weights"),
    ],
)
def test_units_are_flat_because_of_their_biases_or_of_their_weights(
    bias: float, times: float, told: str
):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
    )
    with torch.no_grad():
        model[2].weight.mul_(times)
        model[2].bias.fill_(bias)
    (found,) = [f for f in fanin.check(model, torch.randn(64, 16)).findings if f.code == "P206"]
    assert found.layer == "2"
    assert told in found.fix
    assert ("biases are so large" in found.message) == ("biases" in told)


class Read(nn.Module):
    """A recurrent layer, or cells step by step, behind a layer or none; or a gate beside a sum."""

    def __init__(self, kind: str, times: float):
        super().__init__()
        self.before = nn.Linear(6, 6) if kind == "behind a layer" else nn.Identity()
        self.head, self.kind = nn.Linear(24, 3), kind
        if kind == "gate":
            self.bounded, self.beside = nn.Linear(6, 24), nn.Linear(6, 24)
            weight = self.bounded.weight
        elif kind == "cell":
            self.bounded = nn.LSTMCell(6, 24)
            weight = self.bounded.weight_ih
        else:
            self.bounded = nn.GRU(6, 24, batch_first=True)
            weight = self.bounded.weight_ih_l0
        with torch.no_grad():
            weight.mul_(times)

    def forward(self, x):
        x, state = self.before(x), None
        if self.kind == "gate":
            x = x[:, -1]
            return self.head(self.beside(x) + self.bounded(x).sigmoid())
        if self.kind != "cell":
            return self.head(self.bounded(x)[0][:, -1])
        for step in x.unbind(1):
            state = self.bounded(step, state)
        return self.head(state[0])


@pytest.mark.parametrize("kind", ["layer", "cell", "behind a layer", "gate"])
@pytest.mark.parametrize(
    ("raw", "times", "told"),
    [
        (200.0, 1.0, "Normalize the inputs"),
        (1.0, 200.0, "Draw smaller weights"),
        (20.0, 60.0, "Draw smaller weights"),
    ],
)
def test_gates_are_flat_because_of_raw_inputs_or_of_their_weights(
    kind: str, raw: float, times: float, told: str
):
    torch.manual_seed(0)
    report = fanin.check(Read(kind, times), raw * torch.randn(32, 9, 6), classify(32, 3))
    (found,) = [f for f in report.findings if f.code == "P206"]
    assert found.layers == ("bounded",)
    assert told in found.fix
    assert ("inputs are so large" in found.message) == ("inputs" in told)


def test_a_large_bias_is_no_fault_of_raw_inputs():
    torch.manual_seed(0)
    model = Read("layer", 1.0)
    nn.init.constant_(model.bounded.bias_ih_l0, -100.0)
    report = fanin.check(model, 20 * torch.randn(32, 9, 6), classify(32, 3))
    (found,) = [f for f in report.findings if f.code == "P206"]
    assert "Draw smaller weights" in found.fix


def _drown(model: nn.Sequential) -> None:
    nn.init.normal_(model[2].bias, std=1e6)


def _starve(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[2].weight.mul_(1e-6)


@pytest.mark.parametrize("also", [_drown, _starve])
def test_a_small_table_is_no_excuse_for_what_collapses_behind_it(also):
    """Biases that would drown any signal; a second layer next to zero, which SGD does not train."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(40, 16), nn.Flatten(), nn.Linear(48, 32, bias=also is _drown), nn.ReLU(),
        nn.Linear(32, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    also(model)
    report = fanin.check(model, torch.randint(0, 40, (64, 3)), classify(64, 5))
    assert "P207" in {f.code for f in report.findings if f.severity == "error"}


class Gated(nn.Module):
    """A residual block with a zero gate behind a zero convolution: nothing in it ever moves."""

    def __init__(self):
        super().__init__()
        self.norm, self.a = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.b, self.gate = nn.Conv2d(16, 16, 3, padding=1), nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x):
        return x + self.gate * self.b(nn.functional.silu(self.a(nn.functional.silu(self.norm(x)))))


def test_each_deadlock_names_what_holds_it_and_copies_are_compared_before_they_meet_others():
    """Blocks further on do not hold the first one; what a sum adds to a unit is not its output."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), Gated(), Gated(), nn.Flatten(), nn.LazyLinear(4))
    batch = torch.randn(6, 3, 8, 8)
    model(batch)
    nn.init.zeros_(model[-1].weight)
    report = fanin.check(
        model, batch, lambda o: nn.functional.cross_entropy(o, torch.arange(6) % 4)
    )
    held = {d.parameter: d.because for d in report.symmetry.deadlocks}
    assert held["1.gate"] == ("1.b.weight",)
    assert held["1.b.weight"] == ("1.gate",)
    assert held["1.a.weight"] == ("1.b.weight",)
    assert {"2.gate", "2.b.weight", "2.a.weight"} <= held.keys()
    assert not {"0.weight", "4.weight"} & held.keys()
    locked = [c for c in report.symmetry.classes if c.kind == "locked"]
    assert {c.layer for c in locked} == {"1.b", "2.b"}
    assert max(i.outputs for c in locked for i in c.certificate) == 0.0


FLAT = {
    "softmax": lambda: (nn.Sequential(*mlp(20, 64, 1), nn.Softmax(-1)), regress(64, 1)),
    "cross_entropy": lambda: (mlp(20, 64, 1), classify(64, 1)),
    "round": lambda: (nn.Sequential(*mlp(20, 64, 3), Lambda(torch.round)), regress(64, 3)),
    "sub": lambda: (nn.Sequential(*mlp(20, 64, 3), Lambda(lambda x: x - x)), regress(64, 3)),
    "sign": lambda: (mlp(20, 64, 3, act=lambda: Lambda(torch.sign)), classify(64, 3)),
    "layer_norm": lambda: (nn.Sequential(*mlp(20, 64, 1), nn.LayerNorm(1)), regress(64, 1)),
}


@pytest.mark.parametrize("function", FLAT)
def test_a_function_without_slope_is_named(function: str):
    torch.manual_seed(0)
    model, loss = FLAT[function]()
    batch = torch.randn(64, 20)
    (found,) = [f for f in fanin.check(model, batch, loss).findings if f.code == "S102"]
    assert (found.severity, found.layer) == ("error", "0")
    assert f"a function without slope ({function}" in found.message
    with unchanged(model, batch):
        assert fanin.repair_(model, batch, loss).changed == ()


def test_an_activation_that_is_all_flat_is_no_function_without_slope():
    torch.manual_seed(0)
    model = nn.Sequential(*mlp(20, 64, 1), nn.Sigmoid())
    with torch.no_grad():
        model[2].weight.mul_(1e4).abs_()
    batch, labels = torch.randn(64, 20), torch.zeros(64, 1)

    def loss(output):
        return nn.functional.binary_cross_entropy(output, labels)

    (found,) = [f for f in fanin.check(model, batch, loss).findings if f.code == "S102"]
    assert "an activation in its flat part (sigmoid in 3)" in found.message
    assert "smaller weights" in found.fix
    assert fanin.repair_(model, batch, loss).after.ok


class Grouped(nn.Module):
    """Experts in one fused product, which torch computes in float32 at most."""

    def __init__(self):
        super().__init__()
        self.inlet, self.head = nn.Linear(8, 16), nn.Linear(16, 4)
        self.experts = nn.Parameter(torch.randn(2, 16, 16) / 4)

    def forward(self, x):
        x, ends = self.inlet(x).relu(), torch.tensor([len(x) // 2, len(x)], dtype=torch.int32)
        return self.head(torch._grouped_mm(x, self.experts, offs=ends).relu())


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no such kernel")
def test_a_kernel_without_float64_is_no_obstacle_to_a_proof():
    torch.manual_seed(0)
    model, batch = Grouped(), torch.randn(32, 8)
    nn.init.constant_(model.inlet.weight, 0.1)
    nn.init.constant_(model.inlet.bias, 0.0)
    with torch.no_grad():
        model.experts.copy_(model.experts[:, :1].expand_as(model.experts).clone())
    report = fanin.check(model, batch)
    assert report.symmetry.steps > 0
    assert "S101" in {f.code for f in report.findings}


class Single(nn.Module):
    """A kernel of its own, which takes float32 alone."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("this kernel takes float32")
        return self.head(self.middle(self.first(x).relu()).relu())


def test_a_model_that_takes_no_float64_is_proven_in_float32():
    torch.manual_seed(0)
    model, batch = Single(), torch.randn(32, 8)
    nn.init.constant_(model.middle.weight, 0.1)
    nn.init.zeros_(model.middle.bias)
    with torch.no_grad():
        model.head.weight[:] = model.head.weight[:, :1].clone()
    loss = classify(32, 4)
    with unchanged(model, batch):
        report = fanin.check(model, batch, loss)
    assert report.symmetry.dtype == "float32"
    (found,) = [f for f in report.findings if f.code == "S101"]
    assert found.layer == "middle"


def test_a_zero_head_is_sound_in_float32_too():
    torch.manual_seed(0)
    model, batch = Single(), torch.randn(32, 8)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    report = fanin.check(model, batch, classify(32, 4))
    assert report.ok
    assert report.symmetry.dtype == "float32"


class Drowned(nn.Module):
    """A layer whose bias drowns what differs, behind a branch that ends in zeros or a norm."""

    def __init__(self, before: str):
        super().__init__()
        self.before = before
        self.inlet, self.inner = nn.Linear(64, 64), nn.Linear(64, 64)
        self.weight, self.shift = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(64))
        self.matrix = nn.Parameter(torch.zeros(64, 64))
        self.drown, self.head = nn.Linear(64, 64), nn.Linear(64, 4)
        with torch.no_grad():
            self.drown.bias.normal_(std=1e6)

    def forward(self, x):
        x = self.inlet(x)
        if self.before == "branch":
            x = x + (self.inner(x).relu() @ self.matrix + self.shift)
        else:
            normed = x / x.square().mean(-1, keepdim=True).sqrt()
            scale = self.weight.exp() if self.before == "exp" else 1 + self.weight
            x = x + self.inner(normed * scale + self.shift).relu()
        return self.head(self.drown(x).tanh())


@pytest.mark.parametrize("before", ["branch", "norm", "exp"])
def test_a_collapse_is_found_behind_what_starts_at_zero(before: str):
    torch.manual_seed(0)
    report = fanin.check(Drowned(before), torch.randn(64, 64), classify(64, 4))
    assert "P207" in {f.code for f in report.findings if f.severity == "error"}


@pytest.mark.parametrize("reduced", [torch.mean, torch.amax], ids=["mean", "max"])
def test_a_reduction_over_all_samples_by_accident_is_a_collapse(reduced):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x):
            every = reduced(self.a(x).relu()).expand(len(x), 32)  # over the last axis was meant
            return self.c(self.b(every).relu())

    torch.manual_seed(0)
    report = fanin.check(Net(), torch.randn(64, 16), classify(64, 4))
    assert "P207" in {f.code for f in report.findings if f.severity == "error"}


def test_a_layer_that_underflow_gives_zeros_is_dead():
    class Radial(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.randn(16, 8))
            self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 4)
            nn.init.zeros_(self.b.bias)

        def forward(self, x):
            near = torch.exp(-50 * torch.cdist(x, self.centres).square())
            return self.c(self.b(near).relu())

    torch.manual_seed(0)
    report = fanin.check(Radial(), 3 * torch.randn(64, 8), classify(64, 4))
    assert "P205" in {f.code for f in report.findings if f.severity == "error"}


class Picking(nn.Module):
    """A token of several is picked before or after a layer that makes all samples one."""

    def __init__(self, collapsed: str):
        super().__init__()
        self.collapsed = collapsed
        self.inlet, self.drown, self.head = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 4)
        with torch.no_grad():
            self.drown.bias.normal_(std=1e6)

    def forward(self, x):
        x = self.inlet(x).tanh()
        x = self.drown(x)[:, -1] if self.collapsed == "before" else self.drown(x[:, -1])
        return self.head(x.tanh())


@pytest.mark.parametrize("collapsed", ["before", "after"])
def test_a_collapse_is_found_on_either_side_of_a_pick(collapsed: str):
    torch.manual_seed(0)
    report = fanin.check(Picking(collapsed), torch.randn(64, 6, 8), classify(64, 4))
    found = [f for f in report.findings if f.code == "P207"]
    assert {f.severity for f in found} == {"error"}
    assert {"drown", "head"} <= set(found[0].layers)


class Pooled(nn.Module):
    """Nodes behind units that are dead, normalized, and summed over graphs of eight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 32), nn.BatchNorm1d(32)
        self.middle, self.head = nn.Linear(32, 32), nn.Linear(32, 4)
        nn.init.constant_(self.first.bias, -50.0)

    def forward(self, x):
        nodes = self.norm(self.middle(self.first(x).relu())).relu()
        return self.head(nodes.unflatten(0, (-1, 8)).sum(1))


def test_a_norm_of_what_is_the_same_everywhere_is_no_base_of_a_growth():
    """It makes rounding; the layer behind it gives its bias."""
    torch.manual_seed(0)
    codes = {f.code for f in fanin.check(Pooled(), torch.randn(64, 8), classify(8, 4)).findings}
    assert "P205" in codes
    assert "P202" not in codes


class _Summed(nn.Module):
    """A deep branch and a wide one, whose sum the model itself gives."""

    def __init__(self, times: float, last: float):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.deep, self.wide = mlp(16, 32, 4), nn.Linear(16, 4)
        with torch.no_grad():
            self.first.weight.mul_(times)
            self.deep[2].weight.mul_(last)
            self.wide.weight.mul_(last if last < 1 else 1.0)
            for layer in (self.first, self.deep[0], self.deep[2], self.wide):
                layer.bias.zero_()

    def forward(self, x):
        x = self.first(x)
        return self.deep(x) + self.wide(x)


def test_a_signal_that_is_large_in_a_sum_of_the_model_itself_is_laid_to_a_layer():
    torch.manual_seed(0)
    report = fanin.check(_Summed(1.0, 1e4), torch.randn(64, 16), classify(64, 4))
    (found,) = [f for f in report.findings if f.code == "P202"]
    assert found.layers == ("deep.2",)
    assert "at the model itself" in found.measured


def test_the_model_itself_has_a_name_where_a_signal_vanishes():
    torch.manual_seed(0)
    body = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    for layer in body:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    report = fanin.check(nn.Sequential(body, _Summed(1e-3, 1e-3)), torch.randn(64, 16))
    (found,) = [f for f in report.findings if f.code == "P201"]
    assert " at layer 1, " in found.measured
    net = _Summed(1e-3, 1e-3)
    net.first = nn.Sequential(body, net.first)
    (found,) = [f for f in fanin.check(net, torch.randn(64, 16)).findings if f.code == "P201"]
    assert "at the model itself, " in found.measured
    assert "" not in found.layers


class _Flow(nn.Module):
    """A vector field in small steps, or a state that is fed to itself by hand."""

    def __init__(self, field: bool):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 48), nn.Linear(48, 8)
        self.state, self.field = nn.Linear(8, 8), field
        with torch.no_grad():
            self.outer.weight.mul_(300.0)
            self.state.weight.mul_(5.0)

    def forward(self, x):
        state = x[:, 0]
        for step in x.unbind(1):
            if self.field:
                state = state + 0.1 * self.outer(self.inner(state).tanh())
            else:
                state = step + self.state(state)
        return state


@pytest.mark.parametrize(("field", "told"), [(True, "smaller step of a solver"), (False, "orthog")])
def test_the_advice_for_steps_fits_what_takes_them(field: bool, told: str):
    torch.manual_seed(0)
    report = fanin.check(_Flow(field), torch.randn(32, 20, 8), regress(32, 8))
    (found,) = [f for f in report.findings if f.code == "P204"]
    assert found.layer == ("inner" if field else "state")
    assert told in found.fix
    assert ("recurrent" in found.fix) is not field


def _outlying(large: dict[int, float], norm: bool = False) -> nn.Sequential:
    model = mlp(16, 32, 32, 5)
    with torch.no_grad():
        for place, times in large.items():
            model[place].weight.mul_(times)
    return nn.Sequential(*model[:3], nn.LayerNorm(32), *model[3:]) if norm else model


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("loss", [classify, regress])
def test_a_loss_that_starts_high_is_laid_to_the_one_layer_that_makes_it_so(place: int, loss):
    torch.manual_seed(0)
    report = fanin.check(_outlying({place: 1000.0}), torch.randn(64, 16), loss(64, 5))
    (found,) = [f for f in report.findings if f.code == "O301"]
    assert found.layers == (str(place), "4")
    assert f"The weights of {place} are " in found.why
    assert f"Draw the weights of {place} at their usual size: std about" in found.fix


@pytest.mark.parametrize(
    ("large", "norm"),
    [({4: 1000.0}, False), ({0: 100.0, 2: 100.0}, False), ({0: 1e4, 4: 200}, True)],
)
def test_a_loss_is_laid_to_the_last_layer_where_no_other_is_alone_to_blame(large, norm: bool):
    """It is the last itself, there are two, or a norm takes the size of the first away."""
    torch.manual_seed(0)
    report = fanin.check(_outlying(large, norm), torch.randn(64, 16), classify(64, 5))
    (found,) = [f for f in report.findings if f.code == "O301"]
    assert found.layer == ("5" if norm else "4")
    assert "output layer smaller" in found.fix


class _Sparse(nn.Module):
    """Words with sparse gradients, and a residual branch whose end starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8, sparse=True)
        self.body = nn.Sequential(nn.LayerNorm(8), *mlp(8, 16, 8))
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens).mean(1)
        return self.head(x + self.body(x))


def test_zeros_open_after_one_step_where_gradients_are_sparse():
    report = fanin.check(_Sparse(), torch.randint(0, 50, (16, 5)), classify(16, 3))
    assert not report.findings
    assert (report.symmetry.steps, report.symmetry.dtype) == (1, "float32")


def test_copies_are_proven_where_gradients_are_sparse():
    model = _Sparse()
    for parameter in (*model.body[1].parameters(), model.body[3].weight):
        nn.init.constant_(parameter, 0.1)
    report = fanin.check(model, torch.randint(0, 50, (16, 5)), classify(16, 3))
    assert {"S101"} <= {finding.code for finding in report.findings}
    assert report.symmetry.dtype == "float64"


@pytest.mark.parametrize("eps", [1e-5, 1e-8])
def test_a_norm_over_one_unit_is_found_whatever_its_rounding(eps: float):
    """A look in float32 takes what rounding leaves of its gradient for one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            norm = nn.LayerNorm(1, eps=eps)
            self.body = nn.Sequential(nn.Linear(16, 1), norm, *mlp(1, 64, 64, 3))
            self.around = nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.around(x) + self.body(x)

    report = fanin.check(Net(), torch.randn(64, 16), classify(64, 3))
    assert "S102" in {finding.code for finding in report.findings}


def test_one_number_that_is_not_finite_is_told_alone():
    """What comes of NaN has a slope of zero in an L1 loss, and no function is to blame for that."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardsigmoid(), nn.Conv2d(8, 4, 3)
    )
    target = torch.randn(8, 4, 4, 4)
    with torch.no_grad():
        model[1].weight[0] = math.nan
    report = fanin.check(model, torch.randn(8, 3, 8, 8), lambda out: F.l1_loss(out, target))
    assert [f.code for f in report.findings] == ["N401"]
