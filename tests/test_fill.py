"""fill_: values depend on seed, name and place alone; bad input changes nothing."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fanin.assignment import Assignment
from fanin.catalogue import SCHEMES
from fanin.errors import ArgumentError
from fanin.fill import fill_, realize_

FEW = settings(max_examples=150, deadline=None, derandomize=True)
#: What each scheme needs beside a square matrix.
SPECIAL: dict[str, dict[str, Any]] = {
    "dirac": {"shape": (8, 8, 3)},
    "delta_orthogonal": {"shape": (8, 8, 3)},
    "icnr": {"shape": (8, 8, 3)},
    "bilinear_upsampling": {"shape": (8, 8, 4)},
    "forget_gate_bias": {"shape": (16,)},
    "chrono_bias": {"shape": (16,)},
    "prior_bias": {"shape": (4,), "priors": (0.4, 0.3, 0.2, 0.1)},
    "mirrored_bias": {"shape": (16,)},
    "focal_bias": {"shape": (16,)},
}
TENSOR = [s.name for s in SCHEMES.values() if s.scope == "tensor"]
#: Those of a linear algebra library: the same to rounding only.
ROUNDED = {"orthogonal", "delta_orthogonal", "looks_linear", "mimetic"}


def drawn(scheme: str, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    """The scheme on a small tensor that it fits."""
    options = {**SPECIAL.get(scheme, {}), **options}
    return fill_(torch.empty(options.pop("shape", (8, 8)), dtype=dtype), scheme, **options)


every = pytest.mark.parametrize("scheme", TENSOR)

# ── what values depend on ────────────────────────────────────────────────────────────────────


@every
def test_no_random_state_is_read_or_advanced(scheme: str):
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = drawn(scheme)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    assert torch.equal(drawn(scheme), first)


@every
def test_strides_do_not_count(scheme: str):
    options = SPECIAL.get(scheme, {})
    shape = options.get("shape", (8, 8))
    turned = torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))
    spread = torch.empty(*shape, 3)[..., 1]
    for tensor in (turned, spread):
        rest = {k: v for k, v in options.items() if k != "shape"}
        assert torch.equal(fill_(tensor, scheme, **rest), drawn(scheme))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_hold_the_same_values_rounded_once(scheme: str, dtype: torch.dtype):
    wide = drawn(scheme, torch.float64 if SCHEMES[scheme].form == "matrix" else torch.float32)
    assert torch.equal(drawn(scheme, dtype), wide.to(dtype))


RANDOM = [
    s
    for s in TENSOR
    if SCHEMES[s].form != "constant"
    and s not in ("identity", "dirac", "irnn", "zero_hadamard", "bilinear_upsampling")
    and not (s.endswith("_bias") and s not in ("chrono_bias", "mirrored_bias"))
]


@pytest.mark.parametrize("scheme", RANDOM)
def test_seed_and_name_make_other_values(scheme: str):
    assert not torch.equal(drawn(scheme, seed=1), drawn(scheme))
    assert not torch.equal(drawn(scheme, name="a"), drawn(scheme))


@pytest.mark.parametrize("scheme", [s for s in TENSOR if s not in RANDOM])
def test_what_is_not_random_does_not_depend_on_the_seed(scheme: str):
    assert torch.equal(drawn(scheme, seed=1, name="a"), drawn(scheme))


@every
def test_the_gain_multiplies(scheme: str):
    once, twice = drawn(scheme), drawn(scheme, gain=2.0)
    torch.testing.assert_close(twice, 2 * once, rtol=1e-6, atol=0)
    assert (drawn(scheme, gain=0.0) == 0).all()


def test_schemes_of_one_distribution_share_their_numbers_and_others_do_not():
    unit = drawn("normal", torch.float64)
    for scheme in ("he_normal", "xavier_normal", "lecun_normal", "critical"):
        values = drawn(scheme, torch.float64)
        torch.testing.assert_close(values / values[0, 0], unit / unit[0, 0], rtol=1e-6, atol=0)
    ranks = [drawn(s).flatten().argsort() for s in ("normal", "uniform", "trunc_normal")]
    assert not torch.equal(ranks[0], ranks[1])
    assert not torch.equal(ranks[0], ranks[2])
    assert not torch.equal(ranks[1], ranks[2])


def test_a_parameter_is_filled_in_place_without_a_gradient():
    layer = nn.Linear(4, 4)
    weight = layer.weight
    version = weight._version
    assert fill_(weight, "he_normal") is weight
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert weight._version > version
    with torch.inference_mode():
        frozen = torch.empty(4, 4)
    for scheme in ("he_normal", "orthogonal", "ones"):
        assert torch.equal(fill_(frozen, scheme), drawn(scheme, shape=(4, 4)))


@pytest.mark.parametrize(
    "scheme", ["zeros", "normal", "he_normal", "orthogonal", "sparse", "uniform"]
)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_tensors_are_no_error(scheme: str, shape: tuple[int, int]):
    assert fill_(torch.empty(shape), scheme).shape == shape


def test_a_scalar_can_be_filled():
    assert float(fill_(torch.empty(()), "constant", gain=-3)) == -3
    assert float(fill_(torch.empty(()), "normal")) != 0


# ── fans and layouts ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shape", "options", "fan"),
    [
        ((30, 20), {}, 20),
        ((30, 20), {"mode": "fan_out"}, 30),
        ((30, 20), {"layout": "io"}, 30),
        ((30, 20), {"layout": "io", "mode": "fan_out"}, 20),
        ((30, 20), {"blocks": 3, "mode": "fan_out"}, 10),
        ((30, 20), {"layout": "vo"}, 1),
        ((30, 20), {"layout": "oi", "fan": 7}, 7),
        ((30, 20), {"fan": (5, 6), "mode": "fan_out"}, 6),
        ((30, 20, 3, 3), {"layout": "oikk"}, 180),
        ((30, 20, 3, 3), {"layout": "oikk", "groups": 10, "mode": "fan_out"}, 27),
        ((5, 30, 20), {"layout": "boi"}, 20),
        ((20, 5, 6), {"layout": "ioo"}, 20),
        ((5, 6, 20), {"layout": "iio"}, 30),
    ],
)
def test_fans_are_read_from_the_layout(shape: tuple[int, ...], options: dict[str, Any], fan: float):
    mode = {"mode": options["mode"]} if "mode" in options else {}
    read = fill_(torch.empty(shape), "he_normal", **options)
    assert torch.equal(read, fill_(torch.empty(shape), "he_normal", fan=fan, **mode))


def test_matrices_follow_the_layout_whatever_its_order():
    plain = fill_(torch.empty(6, 4, dtype=torch.float64), "orthogonal")
    assert torch.equal(fill_(torch.empty(4, 6).double(), "orthogonal", layout="io").T, plain)
    heads = fill_(torch.empty(4, 2, 3).double(), "orthogonal", layout="ioo")
    assert torch.equal(heads.permute(1, 2, 0).reshape(6, 4), plain)
    stacked = fill_(torch.empty(6, 4, 2).double(), "orthogonal", layout="oib")
    assert torch.equal(stacked[..., 0], plain)
    assert not torch.allclose(stacked[..., 1], plain)


# ── from a plan ──────────────────────────────────────────────────────────────────────────────


VARIANCE = {"scale": "variance"}


def assignment(scheme: str, **options: Any) -> Assignment:
    return Assignment(
        "w", scheme, **{"gain": 1.0, "std": 1.0, "fan": None, "because": "", **options}
    )


@pytest.mark.parametrize(
    ("scheme", "shape", "options"),
    [
        ("he_normal", (6, 4), {"std": math.sqrt(2 / 4), "fan": 4.0}),
        ("uniform", (6,), {"gain": 0.3, "std": 0.3 / math.sqrt(3)}),
        ("trunc_normal", (6, 4), {"arguments": {"low": -3.0, "high": 3.0}}),
        ("ones", (6,), {}),
        ("zeros", (6,), {"std": 0.0}),
        ("constant", (6,), {"gain": -2.0, "std": 2.0}),
        ("orthogonal", (6, 4), {"layout": "oi", "gain": 1.5, "blocks": 3}),
        ("orthogonal", (8, 2, 4), {"layout": "iok", "arguments": {"groups": 2}}),
        ("orthogonal", (4, 4, 2), {"layout": "iok", "fan": 4.0, "arguments": VARIANCE}),
        ("normal", (6, 4), {"layout": "oi", "std": 1.0, "arguments": {"centred": True}}),
        ("icnr", (8, 4, 3, 3), {"layout": "oikk", "fan": 36.0}),
        ("forget_gate_bias", (16,), {"layout": "o", "blocks": 4}),
    ],
)  # fmt: skip
def test_a_plan_is_realized_as_fill_would(scheme: str, shape: tuple[int, ...], options):
    tensor = torch.empty(shape)
    assert realize_(tensor, assignment(scheme, shape=shape, **options), 3, "w") is None
    same = {k: v for k, v in options.items() if k in ("gain", "fan", "layout", "blocks")}
    more = dict(options.get("arguments", {}))
    assert torch.equal(tensor, fill_(torch.empty(shape), scheme, seed=3, name="w", **same, **more))


def test_the_std_of_a_plan_is_what_counts():
    tensor = torch.empty(1000)
    realize_(tensor, assignment("he_normal", std=0.02, fan=50.0), 0, "w")
    assert torch.equal(tensor, fill_(torch.empty(1000), "normal", gain=0.02, name="w"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (3, 3)}, "planned for"),
        ({"std": math.nan}, "std"),
        ({"std": -1.0}, "std"),
        ({"scheme": "fixup"}, "no single tensor"),
        ({"scheme": "nothing"}, "scheme"),
        ({"gain": math.inf}, "gain"),
        ({"arguments": {"groups": 3}, "layout": "oi"}, "groups"),
        ({"arguments": {"sparsity": 3}}, "sparsity"),
        ({"scheme": "orthogonal", "layout": "o"}, "layout"),
    ],
)
def test_a_plan_that_cannot_be_changes_nothing(options: dict[str, Any], words: str):
    tensor = torch.full((4, 4), 7.0)
    with pytest.raises(ArgumentError, match=words):
        realize_(tensor, assignment(**{"scheme": "normal", **options}), 0, "w")
    assert (tensor == 7).all()


# ── bad input ────────────────────────────────────────────────────────────────────────────────

WEIGHT: Callable[[], Tensor] = lambda: torch.full((8, 6), 7.0)  # noqa: E731
KERNEL: Callable[[], Tensor] = lambda: torch.full((8, 6, 3, 3), 7.0)  # noqa: E731
COLUMN: Callable[[], Tensor] = lambda: torch.full((8, 1), 7.0)  # noqa: E731
THREE: Callable[[], Tensor] = lambda: torch.full((3,), 7.0)  # noqa: E731
HALF: Callable[[], Tensor] = lambda: torch.full((8, 6), 7.0).half()  # noqa: E731
NOT_NORMAL = {"centred": True, "distribution": "uniform"}

BAD = [
    ("unknown", WEIGHT, "he_norma", {}, "he_normal"),
    ("no name", WEIGHT, None, {}, "scheme"),
    ("model scheme", WEIGHT, "fixup", {}, "fanin.init_"),
    ("model alias", WEIGHT, "gpt2", {}, 'scheme="residual_scaling"'),
    ("unknown argument", WEIGHT, "he_normal", {"slope": 1}, "slope: he_normal has no such"),
    ("argument of another", WEIGHT, "zeros", {"omega": 1}, "takes none"),
    ("NaN gain", WEIGHT, "he_normal", {"gain": math.nan}, "gain"),
    ("infinite gain", WEIGHT, "constant", {"gain": math.inf}, "gain"),
    ("negative gain", WEIGHT, "normal", {"gain": -1.0}, "gain"),
    ("huge gain", WEIGHT, "orthogonal", {"gain": 1e308}, "gain"),
    ("huger gain", WEIGHT, "normal", {"gain": 10**400}, "gain"),
    ("huge slope", WEIGHT, "he_normal", {"negative_slope": 1e200}, "negative_slope"),
    ("huge mixture", WEIGHT, "mimetic", {"alpha": 1e300}, "alpha"),
    ("huge omega", WEIGHT, "siren", {"omega": 1e-320}, "finite"),
    ("unknown activation", WEIGHT, "critical", {"activation": "relux"}, "relu"),
    ("gain of an activation", WEIGHT, "normal", {"gain": "relu"}, "gain"),
    ("True gain", WEIGHT, "normal", {"gain": True}, "gain"),
    ("zero fan", WEIGHT, "he_normal", {"fan": 0}, "fan"),
    ("negative fan", WEIGHT, "he_normal", {"fan": -3}, "fan"),
    ("NaN fan", WEIGHT, "he_normal", {"fan": math.nan}, "fan"),
    ("three fans", WEIGHT, "he_normal", {"fan": (1, 2, 3)}, "fan"),
    ("text fan", WEIGHT, "he_normal", {"fan": "fan_in"}, "fan"),
    ("zero in a pair", WEIGHT, "xavier_normal", {"fan": (3, 0)}, "fan"),
    ("bad fan, not used", WEIGHT, "normal", {"fan": -1}, "fan"),
    ("no fan of a kernel", KERNEL, "he_normal", {}, "give fan="),
    ("no fan of a vector", lambda: torch.full((8,), 7.0), "he_normal", {}, "give fan="),
    ("no stride", KERNEL, "he_normal", {"layout": "iokk"}, "give fan="),
    ("bad mode", WEIGHT, "he_normal", {"mode": "fan_avg"}, '"fan_in" or "fan_out"'),
    ("bad seed", WEIGHT, "normal", {"seed": -1}, "seed"),
    ("bad seed of a constant", WEIGHT, "zeros", {"seed": 1.5}, "seed"),
    ("bad name", WEIGHT, "orthogonal", {"name": 3}, "name"),
    ("bounds", WEIGHT, "trunc_normal", {"low": 2, "high": -2}, "low"),
    ("NaN bound", WEIGHT, "trunc_normal", {"low": math.nan}, "low"),
    ("bounds in the tail", WEIGHT, "trunc_normal", {"low": 8, "high": 9}, "low"),
    ("integers", lambda: torch.full((8, 6), 7), "normal", {}, "int64"),
    ("complex", lambda: torch.full((8, 6), 7 + 0j), "orthogonal", {}, "complex"),
    ("booleans", lambda: torch.ones(8, 6, dtype=torch.bool), "zeros", {}, "bool"),
    ("float8", lambda: torch.zeros(8, 6, dtype=torch.float8_e5m2), "zeros", {}, "float8"),
    ("meta", lambda: torch.empty(8, 6, device="meta"), "normal", {}, "to_empty"),
    ("sparse", lambda: torch.eye(6).to_sparse(), "zeros", {}, "sparse"),
    ("lazy", lambda: nn.LazyLinear(3).weight, "normal", {}, "no shape yet"),
    ("expanded", lambda: torch.zeros(1, 6).expand(8, 6), "orthogonal", {}, "expanded"),
    ("array", lambda: np.full((8, 6), 7.0), "normal", {}, "ndarray"),
    ("float16", HALF, "normal", {"gain": 1e5}, "float16"),
    ("float16 matrix", HALF, "orthogonal", {"gain": 1e6}, "float16"),
    ("float16 value", HALF, "constant", {"gain": -1e6}, "float16"),
    ("identity of a kernel", KERNEL, "identity", {"layout": "oikk"}, "identity"),
    ("no layout", KERNEL, "orthogonal", {}, "layout"),
    ("dirac of a matrix", WEIGHT, "dirac", {}, "convolution kernel"),
    ("irnn not square", WEIGHT, "irnn", {}, "8×6"),
    ("no halves", lambda: torch.full((1, 6), 7.0), "looks_linear", {}, "halves"),
    ("mirrored matrix", WEIGHT, "mirrored_bias", {}, "vector of biases"),
    ("no hadamard", lambda: torch.full((7, 6), 7.0), "hadamard", {}, "20"),
    ("icnr outputs", KERNEL, "icnr", {"scale": 3}, "scale"),
    ("bilinear", KERNEL, "bilinear_upsampling", {}, "as many outputs"),
    ("vector", lambda: torch.full((8,), 7.0), "orthogonal", {}, "not the shape"),
    ("centred vector", lambda: torch.full((8,), 7.0), "normal", {"centred": True}, "centred"),
    ("centred one", COLUMN, "normal", {"centred": True}, "one input"),
    ("centred one, orthogonal", COLUMN, "orthogonal", {"centred": True}, "one input"),
    ("centred uniform", WEIGHT, "variance_scaling", NOT_NORMAL, "centred"),
    ("gates", lambda: torch.full((9,), 7.0), "forget_gate_bias", {}, "4·hidden"),
    ("priors missing", THREE, "prior_bias", {}, "priors: missing"),
    ("priors zero", THREE, "prior_bias", {"priors": (1, 0, 0)}, "priors"),
    ("priors few", THREE, "prior_bias", {"priors": (0.5, 0.5)}, "priors"),
    ("prior 1", THREE, "focal_bias", {"prior": 1.0}, "prior"),
    ("no partner", WEIGHT, "mimetic", {"part": "k"}, "partner"),
    ("heads", lambda: torch.full((6, 6), 7.0), "mimetic", {"heads": 4}, "heads"),
    ("t_max", lambda: torch.full((8,), 7.0), "chrono_bias", {"t_max": 2}, "t_max"),
    ("layout letters", WEIGHT, "orthogonal", {"layout": "xy"}, "layout"),
    ("layout length", WEIGHT, "orthogonal", {"layout": "oik"}, "layout"),
    ("layout number", WEIGHT, "orthogonal", {"layout": 3}, "layout"),
    ("blocks", WEIGHT, "orthogonal", {"blocks": 3}, "blocks"),
    ("zero blocks", WEIGHT, "orthogonal", {"blocks": 0}, "blocks"),
    ("blocks without a layout", KERNEL, "normal", {"blocks": 2}, "layout"),
    ("groups", KERNEL, "delta_orthogonal", {"groups": 3}, "groups"),
    ("blocks of no outputs", WEIGHT, "normal", {"layout": "ii", "blocks": 2}, "blocks"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "scheme", "options", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD]
)
def test_bad_input_is_one_clear_line_and_changes_nothing(build, scheme, options, words: str):
    tensor = build()
    dense = isinstance(tensor, Tensor) and not tensor.is_meta and type(tensor) is Tensor
    before = tensor.clone() if dense else None
    with pytest.raises(ArgumentError) as caught:
        fill_(tensor, scheme, **options)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    if before is not None:
        assert torch.equal(tensor.to_dense(), before.to_dense())


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=3),
    st.lists(st.floats(), max_size=3), st.sampled_from(["q", "variance", "fan_in", "uniform"]),
)  # fmt: skip
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "fan": st.one_of(st.integers(1, 9), st.tuples(st.floats(), st.floats()), ANY),
    "gain": st.one_of(st.floats(-2, 2), ANY),
    "layout": st.one_of(st.text("oikbv", max_size=4), ANY),
    "blocks": st.one_of(st.integers(1, 4), ANY),
    "groups": st.one_of(st.integers(1, 4), ANY),
    "seed": st.one_of(st.integers(0, 9), ANY),
    "name": st.one_of(st.text(), ANY),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, list[int], dict[str, Any]]:
    """A scheme, a shape, and a few options of which some are odd."""
    scheme = SCHEMES[draw(st.sampled_from(TENSOR))]
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 4, 6]), max_size=4))
    own = {a.name: st.one_of(st.just(a.default), ANY) for a in scheme.arguments}
    names = draw(st.lists(st.sampled_from([*COMMON, *own, *own]), max_size=3))
    options = {name: draw({**COMMON, **own}[name]) for name in names}
    if len(shape) > 2 and "layout" not in options:
        options["layout"] = "oikk"[: len(shape)]
    return scheme.name, shape, options


def outcome(call: Callable[[], Any]) -> str:
    """What an ArgumentError says; "" without one."""
    try:
        call()
    except ArgumentError as error:
        return str(error)
    return ""


@FEW
@given(calls())
def test_anything_is_filled_with_finite_values_or_refused_in_one_line(case):
    scheme, shape, options = case
    tensor = torch.full(shape, 7.0)
    message = outcome(lambda: fill_(tensor, scheme, **options))
    assert "\n" not in message
    assert bool((tensor == 7).all()) if message else bool(tensor.isfinite().all())


@FEW
@given(st.sampled_from([SCHEMES[s] for s in TENSOR if SCHEMES[s].arguments]), st.data())
def test_an_odd_argument_is_named_in_the_error(scheme, data: st.DataObject):
    argument, value = data.draw(st.sampled_from(scheme.arguments)), data.draw(ANY)
    message = outcome(lambda: drawn(scheme.name, **{argument.name: value}))
    assert (
        message == ""
        or argument.name in message
        or message.startswith(("tensor", "partner", "std:"))
    )


# ── golden values ────────────────────────────────────────────────────────────────────────────


def test_values_stay_the_same_as_long_as_the_version_does(request: pytest.FixtureRequest):
    """After a wanted change of a draw, raise the versions and run with --update-golden."""
    found = {
        scheme: {
            "version": SCHEMES[scheme].version,
            "values": drawn(scheme, seed=7, name="layer.weight").flatten().tolist()[:24:3],
        }
        for scheme in TENSOR
    }
    path = Path(__file__).parent / "golden" / "schemes.json"
    if request.config.getoption("--update-golden"):
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == set(found)
    for scheme, entry in kept.items():
        assert entry["version"] == found[scheme]["version"]
        # float32 is written as the double that it is; a factorization is right to rounding
        close = 1e-6 if scheme in ROUNDED else 0.0
        assert found[scheme]["values"] == pytest.approx(entry["values"], rel=close, abs=close), (
            scheme
        )
