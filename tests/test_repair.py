"""Each fault of the zoo is repaired, by the smallest change that clears it and by that alone."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import Case, blocks, seeded
from zoo.blocks import classify, mlp, regress, zero_
from zoo.checks import QUIET, parametrize
from zoo.faults import FAULTS
from zoo.healthy import HEALTHY
from zoo.mending import Mended, mend, mended, same_bits
from zoo.traps import TRAPS

import fanin
from fanin.repair.changes import Change

pytestmark = QUIET

BY_NAME = {case.name: case for case in FAULTS}

# What no change of weights can help, and why.
HOPELESS = {
    "logarithm-of-negative-numbers": "the logarithm meets negative numbers at any weights",
    "unused-parameter": "no value makes the forward pass use it",
    "exponentials-of-distances-that-underflow": "the distances are those of 64 inputs",
    "cosines-enlarged-64-times": "the head is normalized, and what enlarges it is no parameter",
    "two-parameters-in-one-memory": "which of the two they should be nobody knows",
    "factor-of-zero-that-is-no-parameter": "the zero is a constant of the model",
    "spectral-norm-over-zeros": "the vectors of its power iteration are zeros, and buffers",
    "norms-with-an-eps-of-a-thousand": "what drowns the variance is no parameter",
    "running-variance-that-nobody-wrote": "it is a buffer",
    "mask-that-nobody-wrote": "it is a buffer",
    **dict.fromkeys(
        (
            "frozen-zero-readout",
            "frozen-zero-in-the-middle",
            "lora-whose-frozen-factor-is-zero",
            "branch-switched-off-with-trainable-layers-inside",
            "queries-frozen-at-zero",
            "frozen-table-of-zeros-beside-positions",
            "frozen-first-layer-next-to-zero",
            "scores-that-do-not-see-what-they-score",
            "scores-that-do-not-see-what-they-score-behind-a-branch-of-zeros",
        ),
        "a repair leaves frozen parameters as they are",
    ),
    **dict.fromkeys(
        (
            "softmax-over-the-one-head-of-a-layer",
            "softmax-over-one-head-that-most-of-the-model-scores",
            "softmax-over-the-single-output-of-one-of-two-heads",
            "norm-over-the-one-unit-in-front-of-most-of-the-model",
            "norm-over-the-one-unit-that-all-learned-layers-read",
        ),
        "a softmax or norm over one value has no slope at any weights",
    ),
}
# Models in a sample of this stride stand for all healthy ones and all traps.
STRIDE = 12


def left(done: Mended, *severities: str) -> list[str]:
    found = done.repair.after.findings
    return [f"{f.code} {f.layer}" for f in found if f.severity in severities]


def found_before(done: Mended, *severities: str) -> list[str]:
    return [f.code for f in done.repair.before.findings if f.severity in severities]


def by_name(name: str, warnings: bool = True) -> Mended:
    return mended(BY_NAME[name], warnings)


# ── every fault ──────────────────────────────────────────────────────────────────────────────


@parametrize(FAULTS[::8])  # the next test mends all, errors among them
def test_no_error_is_left_of_a_fault_and_nothing_else_is_changed(case: Case):
    done = mended(case)
    if case.name in HOPELESS:
        assert not done.repair.changed
        return
    assert done.repair.ok, str(done.repair)
    assert not left(done, "error")
    assert bool(done.repair.changed) == bool(found_before(done, "error"))


@parametrize(FAULTS)
def test_a_fault_is_mended_and_no_warning_is_left(case: Case):
    done = mended(case, warnings=True)
    if case.name in HOPELESS:
        assert not done.repair.changed
        return
    assert not left(done, "error", "warning"), str(done.repair)
    assert bool(done.repair.changed) == bool(found_before(done, "error", "warning"))


@parametrize(FAULTS[::4])
def test_a_fault_is_mended_once_and_for_all(case: Case):
    """A second repair finds nothing, all is told, and the plan does the same to another copy."""
    done = mended(case, warnings=True)
    if case.name not in HOPELESS:
        again = copy.deepcopy(done.model)
        assert not mend(again, done.batch, done.loss, warnings=True, **case.options).repair.changed
    text = done.repair.plan.to_toml()
    read = fanin.Plan.from_toml(text)
    assert read == done.repair.plan
    for plan in (done.repair.plan, read):
        other = copy.deepcopy(done.original)
        plan.apply_(other, seed=0)
        assert same_bits(other, done.model)
    told_as_text_and_as_data(done)


def told_as_text_and_as_data(done: Mended) -> None:
    data = json.loads(done.repair.to_json(None))
    assert done.repair.to_json() == json.dumps(data, indent=2)
    assert data["changed"] == list(done.repair.changed)
    assert data["ok"] is done.repair.ok
    assert [c["entries"] for c in data["changes"]] == list(done.entries.values())
    text = str(done.repair)
    assert max(map(len, text.splitlines())) <= 100
    total = sum(done.entries.values())
    assert not done.repair.changed or f"{total:,} of {done.repair.before.parameters:,}" in text


@parametrize([case for case in FAULTS[::12] if not case.watched])
def test_the_same_repair_twice_is_the_same_model(case: Case):
    """Built again, repaired again; what was drawn from torch in between decides nothing."""
    first = mended(case, warnings=True)
    model, batch, loss = case.build()
    torch.rand(3)
    repair = fanin.repair_(model, batch, loss, warnings=True, **case.options)
    assert repair.changes == first.repair.changes
    assert repair.plan == first.repair.plan
    assert same_bits(model, first.model)


def test_a_size_that_is_not_finite_is_plain_data():
    told = Change("nan", 1, 1, math.nan, math.inf, "").to_dict()
    assert (told["parameter"], told["before"], told["after"]) == ("nan", None, "inf")


def test_another_seed_draws_other_values_for_the_same_entries():
    case = BY_NAME["net2net-without-noise"]
    one, other = (mend(*case.build(), warnings=True, seed=seed) for seed in (0, 1))
    assert one.entries == other.entries
    assert torch.equal(one.changed("0.weight"), other.changed("0.weight"))
    assert not torch.equal(one.now("0.weight"), other.now("0.weight"))
    assert other.repair.ok


# ── healthy models and traps ─────────────────────────────────────────────────────────────────


# `mended` keeps a copy of the model.
UNCOPIED = ("model-that-cannot-be-copied", "generator-of-the-systems-own")
COPIED = [c for c in TRAPS if c.name not in UNCOPIED]


@parametrize([c for c in [*HEALTHY, *COPIED][::STRIDE] if not c.slow and not c.needs])
def test_a_sound_model_stays_bit_for_bit(case: Case):
    done = mended(case)
    assert done.repair.changed == ()
    assert done.repair.after is done.repair.before
    assert len(done.repair.plan) == 0
    assert "nothing to mend" in str(done.repair)


@parametrize([c for c in COPIED[1::STRIDE] if not c.slow and not c.needs])
def test_mending_the_warnings_of_a_trap_brings_no_new_ones(case: Case):
    done = mended(case, warnings=True)
    assert done.repair.ok
    assert set(left(done, "warning")) <= {
        f"{f.code} {f.layer}" for f in done.repair.before.findings
    }


# ── exactly these parameters, exactly so many entries ────────────────────────────────────────

# Errors, mended as errors.
OF_ERRORS = {
    "zeros-under-relu": {"0.weight": 20, "2.weight": 50},
    "zeros-under-sigmoid": {"0.weight": 640, "2.weight": 1024},
    "circulant-in-the-middle": {"0.weight": 15 * 12, "2.weight": 15 * 16, "4.weight": 15 * 3},
    "equal-in-and-all-zero-out": {"0.weight": 15 * 20, "0.bias": 15},
    "constant-lstm": {
        "rnn.weight_ih_l0": 44 * 6,  # eleven hidden units, four gates each
        "rnn.weight_hh_l0": 44 * 12,
        "head.weight": 11 * 3,
    },
    "equal-experts-and-equal-router-rows": {"1.w1": 3 * 24 * 16, "1.router.weight": 3 * 16},
    "gate-of-two-zero-layers": {"1.gate.0.weight": 256},
    "two-zero-layers-on-the-only-path": {"0.weight": 160},
    "zero-layer-without-bias-before-relu": {"2.body.0.weight": 256},
    "zero-first-layer-under-relu": {"0.weight": 320},
    "lora-with-both-factors-zero": {"0.A": 40, "2.A": 64},
    "one-of-two-adapters-with-both-factors-zero": {"1.A": 64},
    "large-negative-bias-before-relu": {"0.bias": 32},
    "dead-layer-in-the-middle": {"2.bias": 32},
    "zero-convolution-in-the-middle": {"2.weight": 768},
    "two-zero-factors-in-each-block": {"1.gamma": 1, "2.gamma": 1},
    "norm-with-scale-and-shift-swapped": {
        f"{n}.{kind}": 24 for n in (1, 4, 7) for kind in ("weight", "bias")
    },
    "batch-norm-closed-before-relu": {"1.weight": 16},
    "queries-and-keys-both-zero": {"q.weight": 256},
    "torch-empty-infinite": {"2.weight": 1},
    "three-nan-in-one-weight": {"2.weight": 3},
    "nan-in-the-scale-of-a-norm": {"1.weight": 1},
    "head-that-overflows-an-exponential": {"head.weight": 64},
    "past-the-range-of-float16": {"0.weight": 640},
    "equal-means-of-a-mixture": {"means": 12},
    "embedding-that-drowns-the-positions": {"tokens.weight": 101 * 32},
    "film-whose-generator-ends-in-zeros": {"generator.2.weight": 96 * 24},
    "zeros-that-are-standardized": {"2.weight": 24 * 24},
    "row-of-zeros-that-is-divided-by-its-length": {"2.weight": 24},
    "quantizers-whose-step-is-next-to-zero": {"0.step": 1, "2.step": 1},
    "temperature-of-zero": {"temperature": 1},
    "temperature-next-to-zero": {"temperature": 1},
    "norms-drawn-like-weights": {
        f"{i}.norms.{j}.weight": 16 for i in range(1, 7) for j in range(2)
    },
    "mixture-whose-widths-underflow": {"widths.bias": 5},
}

# Warnings, mended on request.
OF_WARNINGS = {
    "tables-next-to-zero-in-front-of-biases": {"words.weight": 40 * 16, "kinds.weight": 4 * 16},
    "tables-next-to-zero-in-front-of-an-lstm": {"words.weight": 40 * 16, "kinds.weight": 4 * 16},
    "tied-table-next-to-zero": {"tokens.weight": 101 * 32},
    "one-cloned-pair": {"0.weight": 20},
    "locked-channels-of-a-convolution": {"0.weight": 4 * 27, "3.weight": 4 * 54},
    "identical-heads": {"attention.qkv.weight": 3 * 24 * 32, "attention.proj.weight": 24 * 32},
    "net2net-without-noise": {"0.weight": 8 * 20, "2.weight": 8 * 5},
    "two-shards-drawn-with-one-seed": {"0.weight": 16 * 20},
    "mirrored-under-tanh": {"0.weight": 8 * 10},
    "perceiver-latents-of-ones": {"latents": 8 * 32},
    "registers-of-zeros": {"rows": 4 * 32},
    "registers-of-zeros-at-places-of-zeros": {"rows": 4 * 32},
    "prompts-that-start-as-one-word": {"0.rows": 4 * 32},  # the first of five stays
    "twin-critics-by-deepcopy": {
        "second.0.weight": 256,
        "second.2.weight": 1024,
        "second.4.weight": 32,
    },
    "one-seeded-initializer-for-all-layers": {"2.body.0.weight": 576, "3.body.0.weight": 576},
    "tied-head-of-variance-one": {"embed.weight": 256_000},
    "head-that-shouts": {"2.weight": 640},
    "packed-projection-by-hand": {"0.body.qkv.weight": 192 * 64},
    "truncation-at-a-hundred-sigma": {"0.weight": 256 * 128, "2.weight": 256 * 256},
    "normal-init-after-weight-norm": {
        "0.parametrizations.weight.original0": 16,
        "0.parametrizations.weight.original1": 256,
    },
    "tail-samples-clamped-to-a-far-bound": {"0.weight": 17},
    "raw-timestamps-in-a-residual-stream": {"0.weight": 24 * 3},
    "loud-embedding-beside-positions": {"tokens.weight": 101 * 32},
}


@pytest.mark.parametrize("name", OF_ERRORS)
def test_of_an_error_only_the_guilty_entries_are_changed(name: str):
    assert by_name(name, warnings=False).entries == OF_ERRORS[name]


@pytest.mark.parametrize("name", OF_WARNINGS)
def test_of_a_warning_only_the_guilty_entries_are_changed(name: str):
    done = by_name(name)
    assert not by_name(name, warnings=False).repair.changed
    assert done.entries == OF_WARNINGS[name]


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("zeros-under-relu", ["4.weight", "4.bias", "0.bias"]),
        ("zeros-under-relu-and-softmax", ["4.weight"]),
        ("equal-in-and-all-zero-out", ["2.weight"]),
        ("gate-of-two-zero-layers", ["1.gate.2.weight"]),
        ("two-zero-layers-on-the-only-path", ["2.weight"]),
        ("lora-with-both-factors-zero", ["0.B", "2.B"]),
        ("one-of-two-adapters-with-both-factors-zero", ["0.B", "1.B"]),
        ("two-zero-factors-in-each-block", ["1.body.4.weight", "2.body.4.weight"]),
        ("queries-and-keys-both-zero", ["k.weight", "q.bias", "k.bias"]),
        ("batch-norm-closed-before-relu", ["1.bias"]),
    ],
)
def test_the_zero_that_is_meant_stays_zero(name: str, stays: list[str]):
    done = by_name(name, warnings=False)
    assert done.repair.changed
    for parameter in stays:
        assert not done.now(parameter).any(), parameter


class Behind(nn.Module):
    """Zeros on purpose (LoRA's B, a block's last layer, the head) behind a layer that is dead."""

    def __init__(self, *meant: str) -> None:
        super().__init__()
        self.dead, base = nn.Linear(10, 16), nn.Linear(16, 16)
        self.adapter = blocks.LoRA(base) if "adapter" in meant else base
        self.block = blocks.Residual(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.gated = blocks.Scaled(nn.Linear(16, 16), start=float("gate" not in meant))
        self.head = nn.Linear(16, 4)
        nn.init.constant_(self.dead.bias, -50.0)
        if "block" in meant:
            zero_(self.block.body[2])
        if "head" in meant:
            zero_(self.head)

    def forward(self, x):
        return self.head(self.gated(self.block(self.adapter(self.dead(x).relu()))))


@pytest.mark.parametrize(
    "meant",
    [
        ("block",),
        ("gate",),
        ("head",),
        ("block", "gate", "head"),
        ("adapter",),
    ],
    ids="-".join,
)
def test_intended_zeros_stay_behind_a_layer_that_is_dead(meant: tuple[str, ...]):
    torch.manual_seed(0)
    done = mend(Behind(*meant), torch.randn(40, 10), classify(40, 4))
    assert done.repair.ok
    assert done.repair.changed == ("dead.bias",)


def test_a_zero_head_right_behind_a_dead_layer_stays_zero():
    torch.manual_seed(0)
    model = mlp(20, 32, 4)
    nn.init.constant_(model[0].bias, -100.0)
    zero_(model[2])
    done = mend(model, torch.randn(32, 20), classify(32, 4))
    assert done.repair.ok
    assert done.repair.changed == ("0.bias",)


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("rezero", "13.body.0.bias"),
        ("zero-gamma-in-the-last-norm-of-each-block", "stem.1.bias"),
    ],
)
def test_a_dead_bias_in_a_model_of_intended_zeros_is_all_that_is_changed(name: str, bias: str):
    """ReZero's gates, and the last norm's γ of each block, stay zero."""
    model, batch, loss = next(c for c in [*TRAPS, *HEALTHY] if c.name == name).build()
    nn.init.constant_(model.get_parameter(bias), -100.0)
    done = mend(model, batch, loss)
    assert "S102" in found_before(done, "error")
    assert done.repair.ok
    assert done.repair.changed == (bias,)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d])
def test_units_that_a_norm_holds_down_need_its_shift_alone(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), norm(16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.constant_(model[1].bias, -100.0)
    done = mend(model, torch.randn(32, 8), classify(32, 4))
    assert done.repair.ok
    assert done.repair.changed == ("1.bias",)


def test_a_dead_norm_inside_a_branch_is_revived():
    model, batch, loss = next(c for c in HEALTHY if c.name == "resnet-preactivation").build()
    nn.init.constant_(model.get_parameter("4.bn1.bias"), -100.0)
    done = mend(model, batch, loss)
    assert "S102" in found_before(done, "error")
    assert done.repair.ok
    assert done.repair.changed == ("4.bn1.bias",)


def test_only_the_entries_that_are_no_numbers_are_drawn_and_at_the_scale_of_the_others():
    done = by_name("three-nan-in-one-weight", warnings=False)
    bad = done.was("2.weight").isnan()
    assert int(bad.sum()) == 3
    assert torch.equal(done.changed("2.weight"), bad)
    now = done.now("2.weight")
    assert now.isfinite().all()
    assert now[bad].abs().max() < 6 * now[~bad].std()
    assert by_name("nan-in-the-scale-of-a-norm").now("1.weight").tolist() == [1.0] * 16


def test_a_bad_entry_of_a_small_weight_is_drawn_as_small_as_the_others():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 4)
    )
    nn.init.normal_(model[3].weight, std=0.01)
    with torch.no_grad():
        model[3].weight[::16, ::16] = torch.nan
    done = mend(model, torch.randn(32, 64), classify(32, 4))
    changed = done.changed("3.weight")
    assert int(changed.sum()) == 16
    assert done.now("3.weight")[changed].std() < 3 * 0.01


def test_memory_that_nobody_wrote_is_drawn_as_a_whole():
    """From one bad entry in a hundred on, the others are not to be trusted either."""
    done = by_name("torch-empty-nan", warnings=False)
    assert done.entries == {"2.weight": 1024}


def test_dead_units_alone_get_new_biases():
    torch.manual_seed(0)
    model = mlp(10, 32, 4)
    with torch.no_grad():
        model[0].bias[1:] = -100.0
    done = mend(model, torch.randn(40, 10), classify(40, 4))
    assert done.repair.changed == ("0.bias",)
    changed = done.changed("0.bias")
    assert changed[1:].all()
    assert not changed[0]


@pytest.mark.parametrize(
    ("name", "parameter", "copies"),
    [
        ("one-cloned-pair", "0.weight", [7]),
        ("net2net-without-noise", "0.weight", list(range(8, 16))),
        ("two-shards-and-the-columns-as-well", "0.weight", list(range(16, 32))),
        ("locked-channels-of-a-convolution", "0.weight", [4, 5, 6, 7]),
        ("equal-in-and-all-zero-out", "0.weight", list(range(1, 16))),
        ("circulant-in-the-middle", "2.weight", list(range(1, 16))),
        ("equal-experts-and-equal-router-rows", "1.router.weight", [1, 2, 3]),
        ("mirrored-under-tanh", "0.weight", list(range(8, 16))),
    ],
)
def test_of_copies_the_first_stays_and_the_others_are_drawn_at_its_scale(
    name: str, parameter: str, copies: list[int]
):
    done = by_name(name)
    rows = done.changed(parameter).flatten(1)
    assert rows.all(1).nonzero().flatten().tolist() == copies
    others = [i for i in range(len(rows)) if i not in copies]
    assert not rows[others].any()
    was, now = done.was(parameter).flatten(1), done.now(parameter).flatten(1)
    ratio = float(now[copies].square().mean().sqrt() / was.square().mean().sqrt())
    assert 0.6 < ratio < 1.6
    assert len(torch.unique(now, dim=0)) == len(now)


def locked_layer(bias: Tensor):
    """A hidden layer of copies; its biases are given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].expand(16, 10).clone())
        model[0].bias.copy_(bias)
        model[2].weight.copy_(model[2].weight[:, :1].expand(4, 16).clone())
    return model, torch.randn(40, 10), classify(40, 4)


def test_a_bias_that_a_layer_of_copies_shares_goes_with_them():
    done = mend(*locked_layer(torch.full((16,), 0.2)), warnings=True)
    assert done.entries["0.bias"] == 15
    assert done.now("0.bias").tolist() == [pytest.approx(0.2)] + [0.0] * 15


def test_a_bias_of_zero_stays_where_a_layer_of_copies_is_drawn_again():
    done = mend(*locked_layer(torch.zeros(16)), warnings=True)
    assert done.entries["0.weight"] == 150
    assert "0.bias" not in done.entries


def test_copies_in_front_of_a_weight_that_is_computed_are_drawn_again():
    """Which of its dimensions reads them is not known."""

    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 5)
            nn.init.constant_(self.a.weight, 0.1)
            nn.init.zeros_(self.a.bias)
            nn.init.constant_(self.b.weight, 0.1)

        def forward(self, x):
            return F.linear(self.a(x).relu(), self.b.weight.tanh().sinh(), self.b.bias)

    repair = fanin.repair_(Computed(), torch.randn(32, 8), classify(32, 5))
    assert (repair.before.ok, repair.after.ok) == (False, True)
    assert repair.changed == ("a.weight",)


def test_clones_are_drawn_under_their_own_names_and_the_first_stays():
    done = by_name("twin-critics-by-deepcopy")
    weights = ("0.weight", "2.weight", "4.weight")
    for weight in weights:
        first, second = done.now(f"first.{weight}"), done.now(f"second.{weight}")
        assert torch.equal(first, done.was(f"first.{weight}"))
        assert not (first == second).any()
        assert 0.7 < float(second.std() / first.std()) < 1.4


def test_swapped_norms_are_new_norms():
    done = by_name("norm-with-scale-and-shift-swapped")
    for norm in (1, 4, 7):
        assert done.now(f"{norm}.weight").tolist() == [1.0] * 24
        assert not done.now(f"{norm}.bias").any()


@pytest.mark.parametrize(
    "name", ["tied-head-of-variance-one", "head-that-shouts", "packed-projection-by-hand"]
)
def test_what_is_only_too_large_or_too_small_keeps_its_directions(name: str):
    done = by_name(name)
    (parameter,) = done.repair.changed
    was, now = done.was(parameter), done.now(parameter)
    factor = float((was * now).sum() / was.square().sum())
    assert factor > 0
    assert torch.allclose(now, factor * was, rtol=1e-5, atol=0)


def test_an_embedding_that_drowns_the_positions_comes_down_to_their_size():
    torch.manual_seed(0)
    model = blocks.LanguageModel(tied=False)
    nn.init.normal_(model.tokens.weight, std=5000.0)
    nn.init.normal_(model.positions.weight, std=0.5)
    tokens = torch.randint(0, 101, (8, 12))
    done = mend(model, tokens, blocks.next_token(tokens))
    assert done.entries == {"tokens.weight": 101 * 32}
    was, now = done.was("tokens.weight"), done.now("tokens.weight")
    assert torch.allclose(now / now.norm(), was / was.norm())
    assert now.std() == pytest.approx(0.5, rel=0.1)


def test_a_head_that_shouts_speaks_at_the_level_of_guessing():
    done = by_name("head-that-shouts")
    assert done.repair.before.loss > 3 * math.log(10)
    assert done.repair.after.loss < math.log(10) + 0.7


def exploding_in_the_middle(*, he: bool):
    """Two of seven layers are ten thousand times too large; what follows carries it along."""
    torch.manual_seed(0)
    model = blocks.he_(mlp(32, *[32] * 6, 4))
    with torch.no_grad():
        if not he:
            nn.init.normal_(model[0].weight, std=32**-0.5)
            nn.init.normal_(model[12].weight, std=0.05 * 32**-0.5)
        for layer in (model[6], model[8]):
            layer.weight.mul_(1e4)
    return mend(model, torch.randn(64, 32), classify(64, 4))


@pytest.mark.parametrize(
    "he",
    [
        False,
        True,
    ],
)
def test_of_a_signal_that_explodes_only_the_guilty_layers_are_scaled(he: bool):
    done = exploding_in_the_middle(he=he)
    assert "P202" in found_before(done, "error")
    assert done.repair.ok
    assert done.repair.changed == ("6.weight", "8.weight")


@pytest.mark.parametrize("place", [0, 2])
def test_of_a_loss_that_starts_high_the_one_layer_to_blame_is_scaled(place: int):
    torch.manual_seed(0)
    model = mlp(16, 32, 32, 5)
    with torch.no_grad():
        model[place].weight.mul_(1000)
    done = mend(model, torch.randn(64, 16), classify(64, 5), warnings=True)
    assert "O301" in found_before(done, "warning")
    assert done.repair.ok
    assert done.repair.changed == (f"{place}.weight",)


@pytest.mark.parametrize(("place", "tanh"), [(0, True), (2, True), (0, False)])
def test_where_a_whole_layer_is_too_large_its_biases_go_with_its_weights(place: int, tanh: bool):
    """Beside weights at their usual size they would make all samples one."""
    torch.manual_seed(0)
    model = mlp(16, 32, 32, 32, 3)
    if tanh:
        model[5] = nn.Tanh()
    with torch.no_grad():
        for parameter in model[place].parameters():
            parameter.mul_(1000)
    before = model[4].weight.detach().clone()
    repair = fanin.repair_(model, torch.randn(64, 16), classify(64, 3), warnings=True)
    assert repair.changed == (f"{place}.weight", f"{place}.bias")
    assert not model[place].bias.any()
    assert torch.equal(model[4].weight, before)


def test_branches_are_scaled_by_their_number():
    """A residual stream that doubles with each of 24 branches, without norms."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 64),
        *(blocks.Residual(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(24)),
        nn.Linear(64, 4),
    )
    blocks.he_(model)
    with torch.no_grad():
        for block in model[1:-1]:
            block.body[2].weight.mul_(4)
    done = mend(model, torch.randn(64, 16), classify(64, 4))
    assert "P202" in found_before(done, "error")
    assert done.repair.ok


# ── training ─────────────────────────────────────────────────────────────────────────────────


def trained(model: nn.Module, batch, loss, steps: int, rate: float = 0.05) -> float:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model(batch))
        value.backward()
        optimizer.step()
    return float(value.detach())


@pytest.mark.parametrize(
    "name",
    [
        "zeros-under-relu-and-softmax",
        "zero-first-layer-under-relu",
        "dead-layer-in-the-middle",
        "default-sigmoid-net-of-twelve-layers",
        "three-nan-in-one-weight",
        "two-zero-layers-on-the-only-path",
    ],
)
def test_a_mended_model_learns_what_the_faulty_one_did_not(name: str):
    """It fits random labels, further than the best constant does."""
    done = by_name(name, warnings=False)
    model, faulty = copy.deepcopy(done.model), copy.deepcopy(done.original)
    ended = trained(model, done.batch, done.loss, 150, rate=0.01)
    stuck = trained(faulty, done.batch, done.loss, 150, rate=0.01)
    assert ended < 0.6 * done.repair.after.loss
    assert not stuck < 0.9 * done.repair.after.loss


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("perceiver-latents-of-ones", "latents"),
        ("registers-of-zeros", "rows"),
        ("equal-means-of-a-mixture", "means"),
        ("memory-of-zeros", "memory"),
    ],
)
def test_rows_that_are_copies_stay_so_in_training_and_mended_ones_do_not(name: str, rows: str):
    """In float64, where rounding does not part them in so few steps."""
    done = by_name(name)
    model, faulty = (copy.deepcopy(m).double() for m in (done.model, done.original))
    ended = trained(model, done.batch.double(), done.loss, 60, rate=0.01)
    stuck = trained(faulty, done.batch.double(), done.loss, 60, rate=0.01)
    for net, apart in ((model, True), (faulty, False)):
        table = net.get_parameter(rows).detach()
        assert (float((table - table[:1]).abs().max()) > 1e-5) is apart
    if not done.repair.before.ok:  # an error costs more than capacity that nothing asks for
        assert ended < 0.8 * stuck


class Prompted(nn.Module):
    """Prompts of zeros for each of twenty blocks, in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.ParameterList(torch.zeros(3, 8) for _ in range(20))
        self.blocks = nn.ModuleList(blocks.Attention(8, 2) for _ in range(20))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        for prompts, block in zip(self.prompts, self.blocks, strict=True):
            x = x + block(torch.cat([prompts.expand(len(x), -1, -1), x], 1))[:, 3:]
        return self.head(x.mean(1))


def test_the_rows_of_all_parameters_of_a_list_are_drawn_at_once():
    done = mend(Prompted(), torch.randn(8, 4, 8), classify(8, 5), warnings=True)
    assert {n for n in done.repair.changed if n.startswith("prompts.")} == {
        f"prompts.{i}" for i in range(20)
    }
    assert "S101" not in {f.code for f in done.repair.after.findings}


# ── the output stays: preserve=True ──────────────────────────────────────────────────────────


def net2net():
    """Widened from 12 to 24 and from 8 to 32 units; what they send on is divided among them."""
    torch.manual_seed(0)
    narrow = mlp(20, 12, 8, 5)
    model = mlp(20, 24, 32, 5)
    with torch.no_grad():
        first, second = torch.arange(24) % 12, torch.arange(32) % 8
        model[0].weight.copy_(narrow[0].weight[first])
        model[0].bias.copy_(narrow[0].bias[first])
        model[2].weight.copy_(narrow[2].weight[second][:, first] / 2)
        model[2].bias.copy_(narrow[2].bias[second])
        model[4].weight.copy_(narrow[4].weight[:, second] / 4)
        model[4].bias.copy_(narrow[4].bias)
    pairs = {"0.weight": [(i, i + 12) for i in range(12)], "2.weight": [(0, 8), (1, 9), (7, 31)]}
    return model, torch.randn(64, 20), classify(64, 5), pairs


def widened_convolution():
    """Channels, their batch norm and its statistics, doubled after some training."""
    torch.manual_seed(1)
    narrow = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    images, loss = torch.randn(16, 3, 10, 10), classify(16, 4)
    trained(narrow, images, loss, 10, rate=0.01)
    model = copy.deepcopy(narrow)
    model[0], model[1], model[3] = (
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 8, 3),
    )
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(model[0], name).copy_(getattr(narrow[0], name).repeat_interleave(2, 0))
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model[1], name).copy_(getattr(narrow[1], name).repeat_interleave(2, 0))
        model[3].weight.copy_(narrow[3].weight.repeat_interleave(2, 1) / 2)
        model[3].bias.copy_(narrow[3].bias)
    return model, images, loss, {"0.weight": [(2 * i, 2 * i + 1) for i in range(6)]}


def duplicated_heads():
    """Two heads made four, each twice, with half of its columns of the output projection."""
    model, batch, loss = BY_NAME["identical-heads"].build()
    size = 8
    with torch.no_grad():
        for block in (*model.attention.qkv.weight.chunk(3), *model.attention.qkv.bias.chunk(3)):
            block[: 2 * size] = torch.randn_like(block[: 2 * size]) / 4
            block[2 * size :] = block[: 2 * size].clone()
        out = model.attention.proj.weight
        out[:, : 2 * size] = torch.randn_like(out[:, : 2 * size]) / 8
        out[:, 2 * size :] = out[:, : 2 * size].clone()
    pairs = [(64 + i, 64 + 16 + i) for i in range(16)]  # the value rows of both copies
    return model, batch, loss, {"attention.qkv.weight": pairs}


def upcycled_experts():
    """A trained feed-forward layer made four experts, the router's rows all equal."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 16), blocks.BatchedExperts(), nn.Linear(16, 4))
    with torch.no_grad():
        for weight in (model[1].w1, model[1].w2, model[1].router.weight):
            weight[:] = weight[:1].clone()
    return model, torch.randn(48, 10), classify(48, 4), {"1.w1": [(0, 1), (0, 2), (2, 3)]}


def upcycled_expert_modules():
    """The same as modules in a list, of which each sample visits two."""
    torch.manual_seed(3)
    moe = blocks.RoutedExperts(experts=4, top=2)
    with torch.no_grad():
        for expert in moe.experts[1:]:
            expert.load_state_dict(moe.experts[0].state_dict())
        moe.router.weight[:] = moe.router.weight[:1].clone()
    model = nn.Sequential(nn.Linear(10, 16), moe, nn.Linear(16, 4))
    return model, torch.randn(48, 10), classify(48, 4), {}


WIDENED = [net2net, widened_convolution, duplicated_heads, upcycled_experts]


def output(model: nn.Module, batch, mode: bool):
    """On a batch it has not seen; norms go on as they would, and are put back."""
    state = copy.deepcopy(model).train(mode)
    with torch.no_grad():
        return state(batch)


@pytest.mark.parametrize("warnings", [False, True], ids=["errors", "warnings"])
@pytest.mark.parametrize("build", [*WIDENED, upcycled_expert_modules])
def test_a_widened_model_keeps_its_output_and_its_copies_are_parted(build, warnings: bool):
    model, batch, loss, _ = build()
    done = mend(model, batch, loss, preserve=True, warnings=warnings)
    assert "S101" in found_before(done, "error", "warning")
    assert done.repair.changed
    assert not [f for f in done.repair.after.findings if f.code == "S101"], str(done.repair)
    torch.manual_seed(9)
    for size in (1.0, 3.0):
        fresh = size * torch.randn_like(batch)
        for mode in (False, True):
            was, now = output(done.original, fresh, mode), output(done.model, fresh, mode)
            assert float((now - was).abs().max()) <= 1e-5 * float(was.abs().max())


@pytest.mark.parametrize(("build", "kind"), [*((b, "sgd") for b in WIDENED), (net2net, "adam")])
def test_parted_copies_go_apart_within_fifty_steps(build, kind: str):
    model, batch, loss, pairs = build()
    original = copy.deepcopy(model)
    fanin.repair_(model, batch, loss, preserve=True)

    def distances(net: nn.Module) -> list[float]:
        optimizer = (
            torch.optim.SGD(net.parameters(), lr=0.1)
            if kind == "sgd"
            else torch.optim.Adam(net.parameters(), lr=1e-3)
        )
        for _ in range(50):
            optimizer.zero_grad()
            loss(net(batch)).backward()
            optimizer.step()
        rows = [(net.get_parameter(name), i, j) for name in pairs for i, j in pairs[name]]
        return [float(((w[i] - w[j]).norm() / w[i].norm()).detach()) for w, i, j in rows]

    apart = distances(model)
    assert min(apart) > 1e-3
    # Without the repair they stay together, to rounding (which Adam divides by itself).
    assert sorted(distances(original))[len(apart) // 2] < 0.1 * sorted(apart)[len(apart) // 2]


def test_what_is_split_sums_to_what_it_was_within_each_class():
    model, batch, loss, _ = net2net()
    done = mend(model, batch, loss, preserve=True)
    assert set(done.repair.changed) <= {"2.weight", "4.weight"}
    was, now = done.was("4.weight"), done.now("4.weight")
    for unit in range(8):
        copies = list(range(unit, 32, 8))
        assert torch.allclose(now[:, copies].sum(1), was[:, copies].sum(1), atol=1e-6)
        assert len(torch.unique(now[:, copies], dim=1).T) == len(copies)


def test_copies_that_are_silent_do_not_keep_the_others_together():
    """One class is dead on this batch, so nobody knows whether its units are alike."""
    model, batch, loss, _ = net2net()
    with torch.no_grad():
        model[0].bias[[0, 12]] = -100.0
    done = mend(model, batch, loss, preserve=True)
    assert {"2.weight", "4.weight"} <= set(done.repair.changed)
    assert not left(done, "error")


def test_what_a_batch_of_two_can_part_is_parted():
    torch.manual_seed(0)
    model = mlp(20, 64, 5)
    with torch.no_grad():
        model[0].weight[32:], model[0].bias[32:] = model[0].weight[:32], model[0].bias[:32]
        model[2].weight[:, 32:] = model[2].weight[:, :32]
    done = mend(model, torch.randn(2, 20), classify(2, 5), preserve=True)
    assert done.repair.changed == ("2.weight",)


def test_preserve_leaves_a_fault_that_only_another_output_could_clear():
    """A head a hundred times too large is told, not scaled."""
    model, batch, loss = BY_NAME["head-that-shouts"].build()
    done = mend(model, batch, loss, preserve=True, warnings=True)
    assert not done.repair.changed
    assert left(done, "warning")


def test_preserve_and_nothing_to_part_changes_nothing():
    torch.manual_seed(0)
    done = mend(mlp(20, 32, 5), torch.randn(32, 20), classify(32, 5), preserve=True)
    assert not done.repair.changed
    assert done.repair.preserved


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("name", ["lora-with-both-factors-zero", "zeros-under-relu"])
def test_the_data_says_whether_the_output_had_to_stay(name: str, preserve: bool):
    """Whether a remedy was found that keeps it or not."""
    done = mend(*BY_NAME[name].build(), preserve=preserve)
    assert done.repair.to_dict()["preserved"] is preserve


def test_zeros_that_hold_each_other_are_ended_without_touching_the_output():
    """A is given a value, B stays zero: their product is what it was."""
    model, batch, loss = BY_NAME["lora-with-both-factors-zero"].build()
    done = mend(model, batch, loss, preserve=True)
    assert done.repair.changed == ("0.A", "2.A")
    assert done.repair.ok
    fresh = torch.randn_like(batch)
    assert torch.equal(output(done.original, fresh, False), output(done.model, fresh, False))


# ── what is left ─────────────────────────────────────────────────────────────────────────────


def half_frozen():
    """A frozen layer saturates its tanh, which nothing may change; one behind it is dead."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    nn.init.normal_(model[0].weight, std=10.0)
    model[0].requires_grad_(False)
    nn.init.constant_(model[2].bias, -100.0)
    return model, torch.randn(40, 10), classify(40, 4)


def test_what_could_not_be_mended_is_said_and_what_could_be_is_kept():
    done = mend(*half_frozen())
    assert not done.repair.ok
    assert not done.repair.undone
    assert done.entries == {"2.bias": 32}
    assert "errors left: P206" in str(done.repair)
    assert "errors left" in repr(done.repair)


def adapters_over_a_dead_layer():
    """All that trains is zero or behind it; what holds it dead is a bias of the frozen base."""
    torch.manual_seed(0)
    layers = [blocks.LoRA(nn.Linear(n, m)) for n, m in ((10, 16), (16, 16), (16, 4))]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    name = next(n for n, p in model[2].named_parameters() if p.dim() == 1)
    nn.init.constant_(model.get_parameter(f"2.{name}"), -100.0)
    return model, torch.randn(40, 10), classify(40, 4)


def test_what_is_frozen_is_mended_on_request_alone_and_stays_frozen():
    done = mend(*adapters_over_a_dead_layer())
    held = {n for n, p in done.original.named_parameters() if not p.requires_grad}
    assert not done.repair.ok
    assert set(done.repair.frozen) == held
    assert held.isdisjoint(done.entries)
    done = mend(*adapters_over_a_dead_layer(), frozen=True)
    assert done.repair.ok
    assert not done.repair.before.ok
    assert done.repair.frozen == ()
    (name,) = done.repair.changed
    assert name in held
    assert done.entries[name] == 16
    assert {n for n, p in done.model.named_parameters() if not p.requires_grad} == held


def test_a_sound_model_with_a_frozen_part_stays_where_that_may_be_changed():
    torch.manual_seed(0)
    model = mlp(10, 16, 4)
    model[0].requires_grad_(False)
    assert mend(model, torch.randn(40, 10), classify(40, 4), frozen=True).repair.changed == ()


def test_what_was_frozen_is_so_again_after_an_interrupt():
    def stop(_: str) -> None:
        if all(p.requires_grad for p in model.parameters()):
            raise KeyboardInterrupt

    model, batch, loss = adapters_over_a_dead_layer()
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        fanin.repair_(model, batch, loss, frozen=True, progress=stop)
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_repair_of_frozen_parameters_that_is_stopped_anywhere_changes_nothing(
    error: type[BaseException],
):
    model, batch, loss = adapters_over_a_dead_layer()

    def counted(stop: int) -> tuple[list[None], Any]:
        calls: list[None] = []

        def of(output: Tensor) -> Tensor:
            calls.append(None)
            if len(calls) == stop:
                raise error
            return loss(output)

        return calls, of

    calls, of = counted(0)
    fanin.repair_(copy.deepcopy(model), batch, of, frozen=True)
    total, original = len(calls), copy.deepcopy(model)
    for stop in (1, total // 2, total - 1, total):  # the last is of the check at the end
        with pytest.raises((error, fanin.FaninError)):
            fanin.repair_(model, batch, counted(stop)[1], frozen=True)
        assert same_bits(model, original)
        assert [p.requires_grad for p in model.parameters()] == [
            p.requires_grad for p in original.parameters()
        ]


def test_whether_all_is_mended_is_judged_with_the_frozen_ones_frozen():
    """A zero that holds another, and is not to be trained, goes on holding it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    for layer in model[:2]:
        zero_(layer)
    model[1].requires_grad_(False)
    batch, loss = torch.randn(40, 8), classify(40, 4)
    before = copy.deepcopy(model)
    done = fanin.repair_(model, batch, loss, frozen=True, all_or_nothing=True)
    assert done.ok is not done.undone
    assert not done.undone or same_bits(model, before)


def test_all_or_nothing_puts_the_model_back():
    done = mend(*half_frozen(), all_or_nothing=True)
    assert done.repair.undone
    assert not done.repair.ok
    assert done.repair.changed == ()
    assert len(done.repair.plan) == 0
    assert same_bits(done.original, done.model)
    assert "nothing changed: an error would have remained" in str(done.repair)
    assert done.repair.to_dict()["undone"] is True


def test_all_or_nothing_keeps_a_repair_that_clears_everything():
    case = BY_NAME["zeros-under-relu"]
    done = mend(*case.build(), all_or_nothing=True)
    assert not done.repair.undone
    assert done.entries == OF_ERRORS[case.name]


def test_a_cause_that_is_mended_stays_so_where_the_next_fault_shows():
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(10, 24), nn.Linear(24, 4)
            with torch.no_grad():
                self.b.weight[1, 2] = torch.nan

        def forward(self, x):
            return self.b(torch.log(self.a(x)))

    torch.manual_seed(0)
    done = mend(Logarithm(), torch.randn(32, 10), regress(32, 4))
    assert done.entries == {"b.weight": 1}


def test_a_fault_without_a_remedy_is_told_as_such():
    done = by_name("logarithm-of-negative-numbers", warnings=False)
    assert not done.repair.ok
    assert "the weights are not the cause of N403" in str(done.repair)


class Towers(nn.Module):
    """Two towers whose ends are brought to length one, and compared."""

    def __init__(self):
        super().__init__()
        self.a, self.b = mlp(16, 32, 32), mlp(16, 32, 32)
        self.end_a, self.end_b = (nn.Linear(32, 8, bias=False) for _ in range(2))

    def forward(self, x, y):
        a, b = self.end_a(self.a(x)), self.end_b(self.b(y))
        return 10 * (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T


def test_an_output_layer_of_zeros_that_is_divided_by_its_length_is_drawn_alone():
    torch.manual_seed(0)
    model, batch = Towers(), (torch.randn(16, 16), torch.randn(16, 16))
    zero_(model.end_a)
    done = mend(model, batch, lambda o: F.cross_entropy(o, torch.arange(16)))
    assert done.repair.ok
    assert done.entries == {"end_a.weight": 256}


def test_an_output_layer_of_zeros_stays_where_something_else_makes_the_nan():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = mlp(16, 32, 32), nn.Linear(32, 8), nn.Linear(8, 4)

        def forward(self, x):
            h = self.b(self.a(x))
            return self.head(h / h.norm(dim=1, keepdim=True))

    torch.manual_seed(0)
    model = Net()
    zero_(model.b, model.head)
    done = mend(model, torch.randn(32, 16), classify(32, 4))
    assert done.repair.ok
    assert done.entries == {"b.weight": 256}


def test_select_and_ignore_choose_what_is_mended():
    model, batch, loss = BY_NAME["one-cloned-pair"].build()
    nn.init.constant_(model[0].bias, 0.0)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    chosen = mend(copy.deepcopy(model), batch, loss, warnings=True, select=["N"])
    assert chosen.entries == {"2.weight": 1}
    ignored = mend(copy.deepcopy(model), batch, loss, warnings=True, ignore=["N"])
    assert "2.weight" not in ignored.repair.changed


def test_two_faults_at_once_are_both_mended():
    torch.manual_seed(0)
    model = mlp(10, 32, 32, 4)
    nn.init.constant_(model[2].bias, -100.0)
    with torch.no_grad():
        model[0].weight[3, 4] = torch.inf
    done = mend(model, torch.randn(40, 10), lambda out: F.cross_entropy(out, torch.arange(40) % 4))
    assert done.entries == {"0.weight": 1, "2.bias": 32}
    assert done.repair.ok


class Feed(nn.Module):
    """x + W₂ relu(W₁ norm(x)), without biases."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(n)
        self.inner, self.outer = (
            nn.Linear(n, 2 * n, bias=False),
            nn.Linear(2 * n, n, bias=False),
        )

    def forward(self, x):
        return x + self.outer(self.inner(self.norm(x)).relu())


def test_a_zero_norm_before_a_rectifier_is_what_is_mended_and_not_the_units_it_silences():
    torch.manual_seed(0)
    model = nn.Sequential(Feed(16), Feed(16), nn.Linear(16, 4))
    for block in model[:2]:
        nn.init.zeros_(block.norm.weight)
    done = mend(model, torch.randn(32, 16), classify(32, 4))
    assert "S102" in found_before(done, "error")
    assert done.repair.ok
    assert done.repair.changed == ("0.norm.weight", "1.norm.weight")


def test_of_adapters_in_a_parametrization_the_second_factor_stays_zero():
    done = by_name("lora-as-a-parametrization-with-both-factors-zero")
    assert done.repair.changed == tuple(f"{i}.parametrizations.weight.0.A" for i in (0, 2))


def test_weights_next_to_nothing_are_scaled_and_sound_biases_stay():
    torch.manual_seed(0)
    model = mlp(16, *[32] * 4, 4, act=nn.Tanh)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(1e-3)
    done = mend(model, torch.randn(32, 16), classify(32, 4))
    assert done.repair.ok
    assert all(name.endswith("weight") for name in done.repair.changed)


def test_one_large_value_repeated_is_no_unit_to_keep():
    torch.manual_seed(0)
    model = mlp(20, 32, 32, 4, act=nn.Tanh)
    with torch.no_grad():
        for layer in model[:4:2]:
            layer.weight.fill_(1.0)
    done = mend(model, torch.randn(32, 20), classify(32, 4), warnings=True)
    assert done.entries["0.weight"] == 640
    assert not left(done, "error", "warning")


# ── what no scheme drew comes first, what looks new is left alone ─────────────────────────────


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.rnn, self.head = nn.LSTM(24, 32, 2, batch_first=True), nn.Linear(32, 10)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        blocks = (
            nn.Sequential(
                nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32),
                nn.BatchNorm1d(32),
            )
            for _ in range(3)
        )  # fmt: skip
        self.inlet, self.blocks = nn.Linear(20, 32), nn.ModuleList(blocks)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.inlet(x)
        for block in self.blocks:
            x = (x + block(x)).relu()
        return self.head(x)


class Quotient(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(20, 32), nn.Linear(32, 10)
        nn.init.zeros_(self.a.bias)

    def forward(self, x):
        h = self.a(x)
        return self.b(h / h.norm(dim=1, keepdim=True))


ODD = {
    "table of one value": (Tagger, "embed.weight", lambda w: w.fill_(0.5)),
    "norm of 1e4": (Normed, "blocks.1.4.weight", lambda w: w.fill_(1e4)),
    "zeros that are divided": (Quotient, "a.weight", lambda w: w.zero_()),
    "one weight of 1e5": (Normed, "head.weight", lambda w: w.mul_(1e5)),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_alone_is_all_that_is_changed(name: str):
    build, guilty, damage = ODD[name]
    with seeded(5):
        model = build()
        batch = torch.randint(50, (64, 8)) if build is Tagger else torch.randn(64, 20)
        with torch.no_grad():
            damage(model.get_parameter(guilty))
        done = mend(model, batch, classify(64, 10))
    assert not done.repair.before.ok
    assert done.repair.ok
    assert done.repair.changed == (guilty,)


def test_what_has_only_the_wrong_size_keeps_its_directions_there_too():
    with seeded(5):
        model = Normed()
        own = model.head.weight.detach().clone()
        with torch.no_grad():
            model.head.weight.mul_(1e5)
        mend_in_place = fanin.repair_(model, torch.randn(64, 20), classify(64, 10))
    assert mend_in_place.ok
    ratio = model.head.weight / own
    assert float(ratio.detach().std()) < 1e-4 * float(ratio.detach().mean())


def test_zeros_that_end_residual_branches_stay_where_others_can_be_given_a_value():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x):
            return x + self.down(self.up(self.norm(x)).relu())

    with seeded(5):
        model = nn.Sequential(nn.Linear(8, 32), Block(), Block(), nn.Linear(32, 4))
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        done = mend(model, torch.randn(64, 8), classify(64, 4))
    assert done.repair.ok
    assert not {n for n in done.repair.changed if ".down." in n or n.startswith("3.")}


@pytest.mark.parametrize("name", ["warnings", "preserve", "all_or_nothing", "frozen"])
def test_a_switch_is_true_or_false(name: str):
    with pytest.raises(fanin.errors.ArgumentError, match=f"^{name}: 'yes'; True or False"):
        fanin.repair_(mlp(4, 4), torch.randn(8, 4), **{name: "yes"})


# ── what weights cannot mend, and what turns out not to be needed ─────────────────────────────

ELSEWHERE = {
    "norms-with-an-eps-of-a-thousand": "the eps of 1, 4, 7 and 1 more is 1000",
    "running-variance-that-nobody-wrote": "the buffer 1.running_var holds up to 1e+30",
    "mask-that-nobody-wrote": "the buffer mask holds up to 1e+30",
    "spectral-norm-over-zeros": "the buffer 2.parametrizations.weight.0._v holds 0",
    "factor-of-zero-that-is-no-parameter": "still there with every weight drawn anew",
    "logarithm-of-negative-numbers": "still there with every weight drawn anew",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_lies_beside_the_weights_is_named_and_no_weight_is_changed_for_it(name: str):
    done = by_name(name, warnings=False)
    assert not done.repair.changed
    assert ELSEWHERE[name] in "; ".join(done.repair.causes)
    assert "nothing changed: the weights are not the cause of" in str(done.repair)
    assert done.repair.to_dict()["causes"] == list(done.repair.causes)


@pytest.mark.parametrize("name", ["zeros-under-relu", "frozen-zero-readout"])
def test_no_cause_is_named_where_weights_are_it_or_may_be(name: str):
    assert by_name(name, warnings=False).repair.causes == ()


def test_weights_are_mended_beside_a_buffer_that_is_named():
    model, batch, loss = BY_NAME["mask-that-nobody-wrote"].build()
    with torch.no_grad():
        model.a[0].weight[1, 2] = torch.nan
    done = mend(model, batch, loss)
    assert done.entries == {"a.0.weight": 1}
    assert not done.repair.ok
    assert "the buffer mask" in done.repair.causes[0]
    assert "the weights are not the cause of what is left" in str(done.repair)
    model.mask.fill_(1.0)
    assert fanin.check(model, batch, loss).ok


def test_minus_infinity_in_a_mask_is_not_blamed_for_a_fault_of_the_weights():
    case = next(c for c in TRAPS if c.name == "minus-infinity-in-masks")
    model, batch, loss = case.build()
    name = next(n for n, p in model.named_parameters() if p.dim() > 1)
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = torch.nan
    done = mend(model, batch, loss)
    assert done.repair.ok
    assert (done.entries, done.repair.causes) == ({name: 1}, ())


def test_what_a_remedy_that_did_not_do_has_changed_is_taken_back():
    """Zero biases revive no unit here, so they stay; new weights do it by themselves."""
    torch.manual_seed(0)
    model = mlp(8, 32, 32, 1)
    with torch.no_grad():
        model[2].weight.abs_().neg_()
        model[2].bias.fill_(-0.1)
    done = mend(model, torch.randn(64, 8), regress(64, 1))
    assert done.repair.ok
    assert done.entries == {"2.weight": 32 * 32}


def test_of_zeros_that_hold_one_another_those_that_come_free_stay_zero():
    """Values alone: a gate of zeros is half open, and moves once something passes it."""

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.value, self.out = (nn.Linear(16, 16, bias=False) for _ in range(3))

        def forward(self, x):
            return x + self.out(self.gate(x).sigmoid() * self.value(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Mixer(), nn.LayerNorm(16), nn.Linear(16, 4))
    zero_(model[1])
    done = mend(model, torch.randn(32, 8), classify(32, 4))
    assert done.repair.ok
    assert done.repair.changed == ("1.value.weight",)


def test_parameters_in_one_memory_are_mended_once_under_the_first_name():
    torch.manual_seed(0)
    model = mlp(16, 16, 16, 4)
    model[2].weight = nn.Parameter(model[0].weight.data)
    with torch.no_grad():
        model[0].weight[1, 2] = torch.nan
    repair = fanin.repair_(model, torch.randn(32, 16), classify(32, 4))
    assert repair.ok
    assert [(c.parameter, c.entries) for c in repair.changes] == [("0.weight", 1)]
    assert torch.equal(model[0].weight, model[2].weight)


def test_norms_that_are_small_and_not_zero_are_not_called_swapped():
    told = [c.because for c in by_name("norms-drawn-like-weights").repair.changes]
    assert not any("its scale was zero" in text for text in told)


def test_a_gate_that_the_shift_of_a_norm_shuts_is_opened_by_that_shift_alone():
    case = next(c for c in FAULTS if c.name == "gates-shut-by-the-shift-of-a-norm")
    model, batch, loss = case.build()
    done = fanin.repair_(model, batch, loss, warnings=True)
    assert done.changed == ("norm.bias",)
    assert "P206" not in {finding.code for finding in done.after.findings}


def test_a_repair_looks_at_a_deep_stretch_in_the_order_of_the_model():
    """Not in that of a set, which another process has in another order: it would keep others."""
    done = by_name("two-towers-whose-cosines-are-all-the-same")
    weights = [n for n, p in done.model.named_parameters() if n[:5] == "other" and p.dim() > 1]
    changed = [n for n in weights if n in done.entries]
    assert 1 < len(changed) < len(weights)
    assert changed == weights[-len(changed) :]
