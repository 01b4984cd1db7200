"""Moments and maps: the figures of the theory, closed forms, other integrators and samples."""

from __future__ import annotations

import ast
import math
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from scipy import integrate, stats

import fanin
from fanin.errors import ArgumentError
from fanin.moments import (
    NAMES,
    Activation,
    Moments,
    chi,
    correlation_map,
    critical,
    depth_scale,
    expectation,
    fixed_correlation,
    fixed_point,
    function,
    gain,
    length_map,
    moments,
)
from fanin.moments.functions import find
from fanin.moments.quadrature import edges

FEW = settings(max_examples=60, deadline=None, derandomize=True)
every_name = pytest.mark.parametrize("name", NAMES)
JUMPS = {"hardshrink"}  # φ itself jumps


# ── the figures of the theory ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "second", "expected"),
    [
        ("relu", "0.500000", "1.4142"),
        ("tanh", "0.394294", "1.5925"),
        ("sigmoid", "0.293379", "1.8462"),
        ("silu", "0.355776", "1.6765"),
        ("gelu", "0.425221", "1.5335"),
        ("sin", "0.432332", "1.5209"),
        ("elu", "0.644945", "1.2452"),
        ("selu", "1.000000", "1.0000"),
        ("softplus", "0.921246", "1.0419"),
        ("mish", "0.452342", "1.4868"),
        ("hardtanh", "0.516059", "1.3920"),
        ("leaky_relu(0.01)", "0.500050", "1.4141"),
    ],
)
def test_second_moments_and_gains_are_those_of_the_theory(name: str, second: str, expected: str):
    assert f"{moments(name).second:.6f}" == second
    assert f"{gain(name):.4f}" == expected


def test_torch_has_other_gains():
    for name, value in {"tanh": 5 / 3, "selu": 3 / 4, "sigmoid": 1.0}.items():
        assert torch.nn.init.calculate_gain(name) == value
        assert abs(gain(name) - value) > 0.05
    assert gain("relu") == pytest.approx(torch.nn.init.calculate_gain("relu"))


def test_critical_tanh_is_that_of_the_theory():
    weight_variance, q = critical("tanh", 0.05)
    assert f"{weight_variance:.5f} {q:.5f}" == "1.76095 0.57005"


@pytest.mark.parametrize(
    ("weight_variance", "correlation", "depth"),
    [
        (1.0, "1.000", "21.8"),
        (1.25, "1.000", "40.8"),
        (1.5, "1.000", "94.7"),
        (2.0, "0.744", "151.3"),
        (2.5, "0.447", "70.8"),
        (3.0, "0.299", "54.3"),
    ],
)
def test_trainable_depths_of_tanh_are_those_of_the_theory(
    weight_variance: float, correlation: str, depth: str
):
    assert f"{fixed_correlation('tanh', weight_variance, 0.05):.3f}" == correlation
    assert f"{6 * depth_scale('tanh', weight_variance, 0.05):.1f}" == depth


THEORY = Path(__file__).parent.parent / "docs" / "theory.md"


def rows(columns: int) -> list[list[str]]:
    """Of the tables of that many columns in the document whose first cell is a name."""
    cells = [line.strip("| ").split(" | ") for line in THEORY.read_text("utf-8").splitlines()]
    return [row for row in cells if len(row) == columns and row[0] in NAMES]


def test_the_moments_in_the_document_are_computed_ones():
    table = rows(7)
    assert len(table) > 12
    for name, *told in table:
        m = moments(name)
        numbers = [m.mean, m.second, gain(name), m.variance, m.slope, m.centred_chi]
        digits = [6, 6, 4, 6, 6, 4]
        found = [
            f"{x:.{d}f}".replace("-0.000000", "0.000000")
            for x, d in zip(numbers, digits, strict=True)
        ]
        assert found == told, name


def test_the_critical_points_in_the_document_are_computed_ones():
    table = rows(5)
    assert len(table) > 8
    for name, *told in table:
        for cell, bias_variance in zip(told, (0.0, 0.05, 0.2, 1.0), strict=True):
            if cell == "–":
                with pytest.raises(ArgumentError, match="no weight variance"):
                    critical(name, bias_variance)
            else:
                weight_variance, q = critical(name, bias_variance)
                assert cell == f"{weight_variance:.4f}, {q:.4f}", name


def test_the_depths_in_the_document_are_those_tested_here():
    text = THEORY.read_text("utf-8").replace("\\", "")
    assert "| c* | 1.000 | 1.000 | 1.000 | 0.744 | 0.447 | 0.299 |" in text
    assert "| 6 ξ | 21.8 | 40.8 | 94.7 | 151.3 | 70.8 | 54.3 |" in text


# ── the named functions ──────────────────────────────────────────────────────────────────────

TORCH = {
    "identity": lambda x: x,
    "prelu": lambda x: F.prelu(x, torch.tensor(0.25, dtype=x.dtype)),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "relu_squared": lambda x: F.relu(x).square(),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "leaky_relu(0.2)": lambda x: F.leaky_relu(x, 0.2),
    "elu(0.5)": lambda x: F.elu(x, 0.5),
    "celu(0.5)": lambda x: F.celu(x, 0.5),
    "softplus(2)": lambda x: F.softplus(x, 2.0),
    "hardtanh(-0.5, 2)": lambda x: F.hardtanh(x, -0.5, 2.0),
    "softshrink(0.3)": lambda x: F.softshrink(x, 0.3),
    "hardshrink(0.3)": lambda x: F.hardshrink(x, 0.3),
    "threshold(0.1, 2)": lambda x: F.threshold(x, 0.1, 2.0),
    "rrelu(0.1, 0.3)": lambda x: F.rrelu(x, 0.1, 0.3),
    "sin(3)": lambda x: torch.sin(3 * x),
    "cos(3)": lambda x: torch.cos(3 * x),
    "silu(2)": lambda x: x * torch.sigmoid(2 * x),
}


@pytest.mark.parametrize("name", [*NAMES, *(name for name in TORCH if "(" in name)])
def test_named_functions_and_slopes_are_those_of_torch(name: str):
    theirs = TORCH.get(name) or getattr(torch, name, None) or getattr(F, name)
    inner = np.random.default_rng(0).uniform(-9, 9, 400)
    kinks = np.array(find(name).kinks)
    x = torch.from_numpy(np.concatenate([inner, kinks + 1e-7, kinks - 1e-7, [-60.0, 60.0]]))
    x = x.requires_grad_()
    value = theirs(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    near = {"rtol": 1e-13, "atol": 1e-13}
    if name.startswith(("softplus", "hardsigmoid")):
        near = {"rtol": 1e-7, "atol": 1e-7}  # theirs: the identity beyond 20; a float32 1/6
    z = x.detach().numpy()
    derivative = find(name).derivative
    assert derivative is not None
    np.testing.assert_allclose(function(name)(z), value.detach().numpy(), **near)
    np.testing.assert_allclose(derivative(z), slope.numpy(), **near)


@every_name
def test_named_functions_keep_all_digits_far_from_zero(name: str):
    z = np.array([-30.0, -9.0, -1e-3, -1e-5, 1e-5, 1e-3, 9.0, 30.0])
    exact = {
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
        "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
        "logsigmoid": lambda x: -mpmath.log1p(mpmath.exp(-x)),
        "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
        "tanhshrink": lambda x: x - mpmath.tanh(x),
        "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    }.get(name)
    values = function(name)(z)
    assert np.isfinite(values).all()
    if exact is not None:
        with mpmath.workdps(40):
            right = [float(exact(mpmath.mpf(float(x)))) for x in z]
        np.testing.assert_allclose(values, right, rtol=1e-12, atol=0)


def test_names_may_be_written_as_torch_writes_its_modules():
    assert find("LeakyReLU(0.2)").name == find("leaky_relu( 0.2 )").name == "leaky_relu(0.2)"
    assert find("GELU").name == "gelu"
    assert find("log_sigmoid").name == "logsigmoid"
    assert find("swish").name == "silu"
    assert find("linear").name == "identity"
    assert all(find(name).name == name for name in NAMES)


def test_a_callable_is_its_own_function():
    assert function(np.tanh) is np.tanh
    assert function("relu")(np.array([[-1.0, 2.0]])).tolist() == [[0.0, 2.0]]


# ── one Gaussian, against other integrators ──────────────────────────────────────────────────


def by_quad(f, mean: float, variance: float, kinks=()) -> float:
    """scipy's adaptive quadrature, piece by piece."""
    sigma = math.sqrt(variance)
    ends = {-12.0, -6.0, -2.0, 0.0, 2.0, 6.0, 12.0, *((k - mean) / sigma for k in kinks)}
    inside = sorted(t for t in ends if -12 <= t <= 12)
    total = 0.0
    for a, b in pairwise(inside):
        total += integrate.quad(
            lambda t: float(f(np.array([mean + sigma * t]))[0]) * stats.norm.pdf(t),
            a, b, epsabs=1e-13, epsrel=1e-12,
        )[0]  # fmt: skip
    return total


@every_name
def test_moments_agree_with_scipy(name: str):
    activation = find(name)
    mean, variance = 0.4, 2.3
    m = moments(name, mean, variance)
    first = by_quad(activation, mean, variance, activation.kinks)
    assert m.mean == pytest.approx(first, rel=1e-9, abs=1e-11)
    for value, f in [
        (m.second, lambda z: activation(z) ** 2),
        (m.variance, lambda z: (activation(z) - first) ** 2),
        (m.slope, lambda z: activation.derivative(z) ** 2),
    ]:
        assert value == pytest.approx(by_quad(f, mean, variance, activation.kinks), rel=1e-9)


EXACT = {
    "tanh": mpmath.tanh,
    "gelu": lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "tanhshrink": lambda z: z - mpmath.tanh(z),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("mean", "variance"), [(0.0, 1e-8), (100.0, 1e-2), (-8.0, 1.0), (5.0, 1e4)]
)
def test_moments_agree_with_mpmath_at_extremes(name: str, mean: float, variance: float):
    with mpmath.workdps(25):
        sigma = mpmath.sqrt(variance)
        m = moments(name, mean, variance)
        size = math.sqrt(m.second)  # mpmath's quadrature is exact to an absolute error
        scales = [s * 2.0**j for j in range(-2, 10, 2) for s in (-1, 1)]
        ends = [mean + sigma * t for t in (-13, -9, -6, -4, -2, 0, 2, 4, 6, 9, 13)]
        inner = sorted({*ends, *(p for p in [0.0, *scales] if ends[0] < p < ends[-1])})

        def integral(power: int) -> mpmath.mpf:
            return mpmath.quad(
                lambda t: (EXACT[name](mean + sigma * t) / size) ** power * mpmath.npdf(t),
                [(p - mean) / sigma for p in inner],
            )

        first, second = integral(1), integral(2)
        assert abs(m.second / size**2 / second - 1) < 1e-10
        assert abs(m.mean / size - first) < 1e-10 * mpmath.sqrt(second)


@FEW
@given(st.floats(-50, 50), st.floats(1e-6, 1e4), st.integers(1, 8))
def test_powers_have_the_moments_of_a_gaussian(mean: float, variance: float, power: int):
    terms = [
        math.comb(power, k) * mean ** (power - k) * variance ** (k // 2) * math.prod(range(1, k, 2))
        for k in range(0, power + 1, 2)
    ]
    exact, size = sum(terms), sum(map(abs, terms)) + math.sqrt(variance) ** power
    found = expectation(lambda z: z**power, mean, variance)
    assert abs(found - exact) <= 1e-11 * size


@pytest.mark.parametrize("variance", [1e-8, 0.1, 1.0, 9.0, 100.0])
def test_growth_beyond_the_middle_of_the_gaussian_is_not_cut_off(variance: float):
    assert expectation("exp", 0.3, variance) == pytest.approx(
        math.exp(0.3 + variance / 2), rel=1e-11
    )


@pytest.mark.parametrize("distance", [3.0, 9.0, 10.0, 13.0, 20.0, 30.0])
@pytest.mark.parametrize("f", ["relu", lambda z: np.maximum(z, 0)], ids=["name", "callable"])
def test_a_kink_far_in_the_tail_still_counts(f, distance: float):
    with mpmath.workdps(40):
        d = mpmath.mpf(distance)
        tail = mpmath.erfc(d / mpmath.sqrt(2)) / 2
        second = float((1 + d * d) * tail - d * mpmath.npdf(d))
    m = moments(f, -distance, 1.0)
    assert m.second == pytest.approx(second, rel=1e-10)
    assert m.slope == pytest.approx(float(tail), rel=1e-9)


def test_a_variance_of_zero_is_a_limit():
    m = moments("tanh", 0.5, 0.0)
    assert (m.mean, m.second) == pytest.approx((math.tanh(0.5), math.tanh(0.5) ** 2), rel=1e-14)
    assert m.variance == 0.0
    assert m.slope == pytest.approx((1 - math.tanh(0.5) ** 2) ** 2, rel=1e-10)
    assert moments("relu", 0.0, 0.0).slope == pytest.approx(0.5, rel=1e-10)
    assert moments(np.tanh, 0.0, 0.0).slope == pytest.approx(1.0, rel=1e-8)


def test_the_variance_keeps_its_digits_where_the_mean_is_large():
    m = moments("sigmoid", 0.0, 1e-8)
    assert m.variance == pytest.approx(1e-8 / 16 * (1 - 1e-8 / 2), rel=1e-10)
    shifted = moments(lambda z: 1e3 + np.tanh(z))
    assert shifted.variance == pytest.approx(moments("tanh").second, rel=1e-11)
    assert moments(np.ones_like).variance == 0.0


# ── callables ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted({*NAMES} - JUMPS))
def test_callables_have_the_moments_of_the_named(name: str):
    """Neither kinks nor derivative are told."""
    named, plain = moments(name), moments(lambda z: find(name)(z))
    for field in ("mean", "second", "variance", "slope"):
        assert getattr(plain, field) == pytest.approx(getattr(named, field), rel=1e-9, abs=1e-11)


def shifted_relu(k: float) -> tuple[float, float, float]:
    """E[φ], E[φ²] and E[φ'²] of max(z − k, 0)."""
    above, density = float(stats.norm.sf(k)), float(stats.norm.pdf(k))
    return density - k * above, (1 + k * k) * above - k * density, above


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.floats(-3, 3))
def test_unknown_kinks_and_jumps_are_found(k: float):
    m = moments(lambda z: np.maximum(z - k, 0))
    assert (m.mean, m.second, m.slope) == pytest.approx(shifted_relu(k), rel=1e-9)
    jump = expectation(lambda z: np.where(z > k, 1.0, -0.5))
    assert jump == pytest.approx(1.5 * stats.norm.sf(k) - 0.5, abs=1e-10)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 0.0])
def test_kinks_beside_the_end_of_a_piece_are_found(distance: float):
    """There all nodes of a piece may lie on one side."""
    for end in edges(0.0, 1.0, ()):
        if abs(end) < 4:
            for k in (float(end) - distance, float(end) + distance):
                m = moments(lambda z, k=k: np.maximum(z - k, 0))
                first, second, slope = shifted_relu(k)
                assert (m.mean, m.second) == pytest.approx((first, second), rel=1e-9)
                assert m.slope == pytest.approx(slope, rel=1e-8)
                assert moments(lambda z, k=k: (z > k) * 1.0).mean == pytest.approx(
                    stats.norm.sf(k), rel=1e-9
                )


@pytest.mark.parametrize("steep", [30.0, 1e3, 1e6])
def test_steep_steps_are_found(steep: float):
    found = moments(lambda z: np.tanh(steep * z))
    scaled = moments("tanh", 0.0, steep**2)
    assert found.second == pytest.approx(scaled.second, rel=1e-10)
    assert found.slope == pytest.approx(scaled.slope * steep**2, rel=1e-9)
    smooth = moments(f"softplus({steep!r})")
    assert smooth.slope == pytest.approx(moments("sigmoid", 0.0, steep**2).second, rel=1e-10)


def test_staircases_are_integrated_step_by_step():
    found = moments(lambda z: np.round(16 * z) / 16)
    steps = (np.arange(-200, 200) + 0.5) / 16
    exact = np.sum(np.diff(stats.norm.cdf(steps)) * (steps[1:] - 1 / 32) ** 2)
    assert found.second == pytest.approx(float(exact), rel=1e-9)
    assert abs(found.slope) < 1e-9


def test_known_kinks_are_taken():
    seen: list[int] = []

    def f(z: np.ndarray) -> np.ndarray:
        seen.append(z.size)
        return np.abs(z - 0.3)

    told, told_calls = expectation(f, kinks=(0.3,)), sum(seen)
    seen.clear()
    found = expectation(f)
    assert told == pytest.approx(found, rel=1e-11)
    assert told_calls < sum(seen)
    wrapped = Activation("abs", lambda z: np.abs(z - 0.3), lambda z: np.sign(z - 0.3), (0.3,))
    assert moments(wrapped).slope == pytest.approx(1.0, rel=1e-13)


def test_functions_that_compute_in_float32_have_six_digits():
    m = moments(lambda z: np.tanh(z.astype(np.float32)))
    assert m.second == pytest.approx(moments("tanh").second, rel=1e-6)
    assert m.slope == pytest.approx(moments("tanh").slope, rel=1e-5)
    assert gain(lambda z: z.astype(np.float32)) == pytest.approx(1.0, rel=1e-6)


def test_fast_oscillations_are_resolved():
    m = moments("sin(30)", 0.0, 1e4)
    assert (m.second, m.slope) == pytest.approx((0.5, 450.0), rel=1e-9)
    assert moments(lambda z: np.sin(30 * z)).slope == pytest.approx(450.0, rel=1e-9)


def test_moments_agree_with_samples():
    z = np.random.default_rng(3).standard_normal(400_000) * 1.5 + 0.3
    for name in ("gelu", "hardswish", "hardshrink", "mish"):
        m, values = moments(name, 0.3, 2.25), function(name)(z)
        assert values.mean() == pytest.approx(m.mean, abs=5 * values.std() / 600)
        assert (values**2).mean() == pytest.approx(m.second, abs=5 * (values**2).std() / 600)


# ── gain, and the centred χ ──────────────────────────────────────────────────────────────────


def test_gain_keeps_the_second_moment_through_real_layers():
    generator = torch.Generator().manual_seed(0)
    for name in ("tanh", "gelu", "softplus", "relu"):
        x = torch.randn(512, 1024, generator=generator)
        for _ in range(4):
            weight = torch.randn(1024, 1024, generator=generator) * gain(name) / 32
            x = torch.from_numpy(function(name)(x.numpy())).float() @ weight.T
        assert float(x.square().mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", sorted({*NAMES} - JUMPS))
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 0.2), (-0.4, 3.0)])
def test_the_centred_chi_is_at_least_one(name: str, mean: float, variance: float):
    m = moments(name, mean, variance)
    assert m.centred_chi == pytest.approx(variance * m.slope / m.variance, rel=1e-12)
    assert m.centred_chi >= 1 - 1e-12
    assert (m.centred_chi == pytest.approx(1, abs=1e-12)) == (name == "identity")


def test_the_centred_chi_is_the_growth_of_a_difference_through_centred_weights():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4096, 64, generator=generator, dtype=torch.float64)
    near = z + 1e-4 * torch.randn(4096, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(256, 4096, generator=generator, dtype=torch.float64)
    weight -= weight.mean(1, keepdim=True)
    after = [weight @ torch.relu(x) for x in (z, near)]
    before_ratio = (near - z).square().mean() / z.square().mean()
    after_ratio = (after[1] - after[0]).square().mean() / after[0].square().mean()
    assert float(after_ratio / before_ratio) == pytest.approx(moments("relu").centred_chi, rel=0.05)


def test_a_constant_lets_nothing_through():
    assert moments("relu", -100.0, 1.0).centred_chi == math.inf
    assert moments(np.ones_like).centred_chi == math.inf


# ── two correlated Gaussians ─────────────────────────────────────────────────────────────────

CORRELATIONS = [-1.0, -1 + 1e-9, -0.3, 0.0, 0.5, 0.99, 1 - 1e-6, 1 - 1e-9, 1.0]


def kernel(name: str, c: float, q: float) -> float:
    """E[φ(u)φ(v)] in closed form."""
    c = max(-1.0, min(1.0, c))
    root = math.sqrt(1 - c * c)
    forms = {
        "relu": lambda: q * (root + (math.pi - math.acos(c)) * c) / (2 * math.pi),
        "abs": lambda: q * 2 * (root + c * math.asin(c)) / math.pi,
        "erf": lambda: 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)),
        "sin": lambda: (math.exp(q * (c - 1)) - math.exp(-q * (c + 1))) / 2,
        "cos": lambda: (math.exp(q * (c - 1)) + math.exp(-q * (c + 1))) / 2,
        "identity": lambda: q * c,
        "square": lambda: q * q * (1 + 2 * c * c),
        "exp": lambda: math.exp(q * (1 + c)),
        "sign": lambda: 2 / math.pi * math.asin(c),
    }
    return forms[name]()


@pytest.mark.parametrize(
    ("name", "c"),
    [
        *((name, c) for name in ("relu", "erf", "sin", "square", "exp") for c in CORRELATIONS),
        *((name, c) for name in ("abs", "cos", "identity") for c in CORRELATIONS[::4]),
    ],
)
def test_correlation_maps_have_their_closed_forms(name: str, c: float):
    for q in (0.04, 4.0):
        exact = (1.7 * kernel(name, c, q) + 0.1) / (1.7 * kernel(name, 1.0, q) + 0.1)
        assert correlation_map(name, c, q, 1.7, 0.1) == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("c", CORRELATIONS)
def test_correlation_maps_of_callables_find_kinks_and_jumps(c: float):
    relu = correlation_map(lambda z: np.maximum(z, 0), c, 2.0, 2.0)
    assert relu == pytest.approx(kernel("relu", c, 1.0) * 2, abs=1e-10)
    assert correlation_map(np.sign, c, 3.0, 1.0) == pytest.approx(kernel("sign", c, 1), abs=1e-8)
    odd = correlation_map(lambda z: np.clip(z + 0.123, -1, 1), c, 1.0, 1.0)
    told = Activation("clip", lambda z: np.clip(z + 0.123, -1, 1), None, (-1.123, 0.877))
    assert odd == pytest.approx(correlation_map(told, c, 1.0, 1.0), abs=1e-10)


@pytest.mark.parametrize("c", [0.5, 0.99, 1 - 1e-7])
def test_wide_and_narrow_gaussians_keep_the_correlation_map_exact(c: float):
    assert correlation_map("erf", c, 1e4, 1.0) == pytest.approx(
        kernel("erf", c, 1e4) / kernel("erf", 1.0, 1e4), abs=1e-9
    )
    assert correlation_map("tanh", c, 1e-8, 1.0) == pytest.approx(c, abs=1e-7)
    assert correlation_map("relu", c, 1e-8, 2.0) == pytest.approx(2 * kernel("relu", c, 1.0))


def test_the_correlation_map_agrees_with_samples():
    rng = np.random.default_rng(1)
    u, w = rng.standard_normal((2, 500_000))
    for c in (-0.6, 0.3, 0.95):
        v = c * u + math.sqrt(1 - c * c) * w
        for name in ("gelu", "softsign", "hardshrink"):
            f = function(name)
            product = f(math.sqrt(1.5) * u) * f(math.sqrt(1.5) * v)
            told = correlation_map(name, c, 1.5, 1.0) * moments(name, 0.0, 1.5).second
            assert product.mean() == pytest.approx(told, abs=5 * product.std() / 700)


# ── maps ─────────────────────────────────────────────────────────────────────────────────────

SETTINGS = [(1.5, 0.05), (2.5, 0.3), (0.7, 0.0), (1.2, 0.01)]


@pytest.mark.parametrize(
    ("name", "weight_variance", "bias_variance"),
    [
        *(("tanh", *setting) for setting in SETTINGS),
        *(
            (name, *SETTINGS[k % 4])
            for k, name in enumerate(("erf", "sigmoid", "softsign", "hardtanh", "sin", "relu6"))
        ),
    ],
)
def test_fixed_points_are_fixed_and_stable(name: str, weight_variance: float, bias_variance: float):
    q = fixed_point(name, weight_variance, bias_variance)
    assert math.isfinite(q)
    after = length_map(name, q, weight_variance, bias_variance)
    assert after == pytest.approx(q, rel=1e-9, abs=1e-9)
    x = 1.0
    for _ in range(3000):
        x = length_map(name, x, weight_variance, bias_variance)
        if abs(x - q) < 1e-7:
            break
    assert x == pytest.approx(q, abs=2e-3)  # near the critical point it comes slowly


def test_lengths_may_die_out_stay_or_grow_without_bound():
    assert fixed_point("tanh", 0.9) == 0.0
    assert fixed_point("relu", 1.9) == 0.0
    assert fixed_point("relu", 2.0) == 1.0
    assert fixed_point("relu", 2.1) == math.inf
    assert fixed_point("relu", 2.0, 1e-3) == math.inf
    assert fixed_point("relu", 1.0, 0.2) == pytest.approx(0.4)
    assert fixed_point("exp", 1.0) == math.inf
    assert fixed_point("tanh", 0.0, 0.3) == pytest.approx(0.3)
    assert fixed_point("identity", 0.5, 1e-13) == pytest.approx(0.0, abs=1e-12)


def test_chi_is_the_slope_of_the_correlation_map_at_one():
    for name in ("tanh", "gelu", "softplus"):
        q = fixed_point(name, 1.3, 0.1)
        step = 1e-5
        slope = (1 - correlation_map(name, 1 - step, q, 1.3, 0.1)) / step
        assert slope == pytest.approx(chi(name, q, 1.3), rel=1e-3)


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "sin"])
def test_fixed_correlations_are_fixed_and_near_ones_come_at_the_depth_scale(name: str):
    w, b = 2.3, 0.05
    q, c = fixed_point(name, w, b), fixed_correlation(name, w, b)
    assert 0 < c < 1
    assert chi(name, q, w) > 1
    assert correlation_map(name, c, q, w, b) == pytest.approx(c, abs=1e-9)
    step = 1e-4
    ends = [correlation_map(name, c + side * step, q, w, b) for side in (-1, 1)]
    slope = (ends[1] - ends[0]) / (2 * step)
    assert depth_scale(name, w, b) == pytest.approx(-1 / math.log(slope), rel=1e-4)


def test_correlations_of_an_odd_function_without_bias_tend_to_zero():
    assert fixed_correlation("tanh", 2.0) == pytest.approx(0.0, abs=1e-9)


def test_correlations_below_the_edge_of_chaos_tend_to_one():
    assert fixed_correlation("relu", 2.0) == 1.0
    assert fixed_correlation("tanh", 0.5) == 1.0
    assert depth_scale("relu", 2.0) == math.inf
    assert depth_scale("relu", 1.0) == pytest.approx(1 / math.log(2))
    assert depth_scale("tanh", critical("tanh", 0.05)[0], 0.05) > 1e6


def test_maps_take_callables():
    assert fixed_correlation(np.tanh, 2.0, 0.05) == pytest.approx(
        fixed_correlation("tanh", 2.0, 0.05), abs=1e-8
    )
    assert critical(np.tanh, 0.05) == pytest.approx(critical("tanh", 0.05), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "bias_variance"),
    [
        *((name, b) for name in ("tanh", "selu") for b in (0.0, 1e-6, 0.05, 0.4)),
        *((name, 0.05) for name in ("erf", "sin", "atan", "softsign", "elu", "relu6")),
    ],
)
def test_critical_points_are_fixed_points_where_chi_is_one(name: str, bias_variance: float):
    weight_variance, q = critical(name, bias_variance)
    assert chi(name, q, weight_variance) == pytest.approx(1.0, rel=1e-9)
    assert fixed_point(name, weight_variance, bias_variance) == pytest.approx(q, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "bias_variance"), [("relu", 0.1), ("gelu", 0.0), ("silu", 0.05), ("softplus", 0.5)]
)
def test_where_signals_come_to_rest_at_no_critical_point_it_is_said(
    name: str, bias_variance: float
):
    with pytest.raises(ArgumentError, match=f"no weight variance .*{name}"):
        critical(name, bias_variance)


# ── bad input ────────────────────────────────────────────────────────────────────────────────


def one_line(caught: pytest.ExceptionInfo[ArgumentError]) -> str:
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "near"),
    [("reul", "relu"), ("geluu", "gelu"), ("tahn", "tanh"), ("Sigmoyd", "sigmoid")],
)
def test_unknown_names_get_the_nearest_ones(name: str, near: str):
    with pytest.raises(ArgumentError) as caught:
        gain(name)
    message = one_line(caught)
    assert name in message
    assert near in message


@FEW
@given(st.text(max_size=20))
def test_any_text_is_a_name_or_an_argument_error(text: str):
    try:
        known = find(text)
    except ArgumentError as caught:
        error = str(caught)
    else:
        error = ""
        assert known.name.split("(")[0] in NAMES
    assert "\n" not in error


@pytest.mark.parametrize(
    "name",
    [
        "leaky_relu(0.1, 0.2)", "tanh(1)", "elu(nan)", "elu(x)", "celu(0)", "softplus(-1)",
        "hardtanh(1, -1)", "softshrink(-1)", "sin(inf)", "relu(", "relu)(", "",
    ],
)  # fmt: skip
def test_bad_arguments_of_a_name_are_refused(name: str):
    with pytest.raises(ArgumentError) as caught:
        moments(name)
    assert "activation" in one_line(caught)


@FEW
@given(
    st.sampled_from(["mean", "variance"]),
    st.one_of(
        st.just(math.nan), st.just(math.inf), st.just("x"), st.none(), st.floats(max_value=-1e-9)
    ),
)
def test_bad_numbers_are_refused_by_name(argument: str, value):
    if argument == "mean" and isinstance(value, float) and math.isfinite(value):
        value = -math.inf
    for f in (moments, expectation):
        with pytest.raises(ArgumentError) as caught:
            f("relu", **{argument: value})
        assert argument in one_line(caught)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: length_map("relu", -1.0, 1.0), "q"),
        (lambda: length_map("relu", 1.0, -1.0), "weight_variance"),
        (lambda: fixed_point("relu", math.nan), "weight_variance"),
        (lambda: fixed_point("relu", 1.0, -1.0), "bias_variance"),
        (lambda: chi("relu", 1.0, math.inf), "weight_variance"),
        (lambda: critical("tanh", -0.1), "bias_variance"),
        (lambda: correlation_map("relu", 1.1, 1.0, 2.0), "c must"),
        (lambda: correlation_map("relu", 0.5, 0.0, 2.0), "weight_variance"),
        (lambda: fixed_correlation("relu", 3.0), "weight_variance"),
        (lambda: depth_scale("abs", 1.5), "weight_variance"),
        (lambda: expectation("relu", kinks=(math.nan,)), "kinks"),
        (lambda: gain(3), "activation"),
        (lambda: function(None), "activation"),
        (lambda: gain(np.zeros_like), "zero"),
        (lambda: moments("exp", 0.0, 1e4), "finite"),
        (lambda: moments(lambda z: np.exp(z), 0.0, 900.0), "float64"),
    ],
)
def test_values_that_are_not_allowed_are_refused(call, argument: str):
    with pytest.raises(ArgumentError, match=argument) as caught:
        call()
    one_line(caught)


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (np.log, "finite"),
        (lambda z: z / 0, "finite"),
        (lambda z: z[:3], "shape"),
        (lambda z: z.sum(), "shape"),
        (lambda z: 1.0, "shape"),
        (lambda z: z[:, None], "shape"),
        (lambda z: 1j * z, "complex"),
        (lambda z: None, "object"),
        (lambda z: [str(x) for x in z], "real"),
        (lambda z: 1.0 if z > 0 else 0.0, "ValueError"),
        (lambda: 1.0, "TypeError"),
        (lambda z: z * np.random.default_rng().random(z.shape), "random"),
    ],
)
def test_callables_that_are_no_functions_of_arrays_are_refused(f, word: str):
    with pytest.raises(ArgumentError, match=word) as caught:
        gain(f)
    one_line(caught)


def test_a_callable_may_work_in_place():
    def relu_(z: np.ndarray) -> np.ndarray:
        return np.maximum(z, 0, out=z)

    assert moments(relu_).slope == pytest.approx(0.5, rel=1e-10)


# ── the module ───────────────────────────────────────────────────────────────────────────────


def test_moments_of_names_are_remembered():
    assert moments("gelu", 0.1, 0.2) is moments("gelu", 0.1, 0.2)


def test_a_callable_may_change_its_mind():
    slope = [1.0]

    def f(z: np.ndarray) -> np.ndarray:
        return slope[0] * z

    assert gain(f) == pytest.approx(1.0)
    slope[0] = 2.0
    assert gain(f) == pytest.approx(0.5)


def test_moments_are_plain_numbers():
    m = moments(np.tanh, 0.1, np.float64(2.0))
    assert isinstance(m, Moments)
    assert all(type(v) is float for v in vars(m).values())
    assert type(gain(np.tanh)) is float
    assert all(type(v) is float for v in critical("tanh", 0.05))
    assert type(correlation_map(np.tanh, 0.5, 1.0, 1.0)) is float


def test_the_mathematics_imports_neither_torch_nor_scipy():
    folder = Path(fanin.__file__).parent / "moments"
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    assert not imported & {"torch", "scipy", "mpmath"}
