"""Activation functions by name, as numpy functions with derivative and kinks.

Each follows `torch.nn.functional` with its default arguments; other arguments stand in brackets
after the name: ``"leaky_relu(0.2)"``, ``"sin(30)"``.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from fanin.errors import ArgumentError
from fanin.moments import formulas
from fanin.wording import did_you_mean

__all__ = ["NAMES", "Activation", "Function", "arguments", "find", "function"]

Function = Callable[[np.ndarray], np.ndarray]
Parts = tuple[Function, Function, tuple[float, ...]]  # function, derivative, kinks

# Klambauer et al. 2017, equation 14: the fixed point of mean 0 and variance 1.
_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805

# tanh(z) = z − z³/3 + 2z⁵/15 − …; below this |z| the difference z − tanh(z) loses digits, and six
# terms are exact to rounding.
_SERIES_BELOW = 0.1
_TANHSHRINK_SERIES = (1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925, -21844 / 6081075)


@dataclass(frozen=True)
class Activation:
    """An elementwise function with what is known of it.

    Attributes:
        name: for messages; for the named ones, what `find` takes.
        function: float64 array → array of the same shape.
        derivative: its derivative, right away from the kinks; None to find it numerically.
        kinks: where the function or its derivative jumps, as far as known.
        rounding: relative rounding error of its values; more where it computes in float32.
        base: of the named ones, the name without arguments.
        arguments: of the named ones, all of them, defaults too.
    """

    name: str
    function: Function
    derivative: Function | None = None
    kinks: tuple[float, ...] = ()
    rounding: float = float(np.finfo(np.float64).eps)
    base: str = ""
    arguments: tuple[float, ...] = ()

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """φ(z)."""
        return self.function(np.asarray(z, dtype=np.float64))


# ── stable pieces ────────────────────────────────────────────────────────────────────────────


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)))


def _sigmoid_slope(z: np.ndarray) -> np.ndarray:
    return np.asarray(_sigmoid(z) * _sigmoid(-z))


def _softplus(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0.0, z))


def _tanh_slope(z: np.ndarray) -> np.ndarray:
    decay = np.exp(-2 * np.abs(z))  # 1 − tanh² would lose all digits where it is small
    return np.asarray(4 * decay / (1 + decay) ** 2)


def _erf(z: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erf, z.ravel().tolist()), float, z.size).reshape(z.shape)


def _normal_below(z: np.ndarray) -> np.ndarray:
    """Φ(z), with all its digits also far below zero."""
    scaled = (z * -math.sqrt(0.5)).ravel().tolist()
    return 0.5 * np.fromiter(map(math.erfc, scaled), float, z.size).reshape(z.shape)


def _normal_density(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def _step(z: np.ndarray) -> np.ndarray:
    return np.asarray(z > 0, dtype=np.float64)


def _between(z: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray((z > low) & (z < high), dtype=np.float64)


# ── one builder a name: its arguments are those of torch.nn.functional ───────────────────────


def _fixed(function: Function, derivative: Function, *kinks: float) -> Callable[[], Parts]:
    return lambda: (function, derivative, kinks)


def _leaky_relu(negative_slope: float = 0.01) -> Parts:
    return (
        lambda z: np.where(z > 0, z, negative_slope * z),
        lambda z: np.where(z > 0, 1.0, negative_slope),
        (0.0,),
    )


def _prelu(weight: float = 0.25) -> Parts:
    return _leaky_relu(weight)


def _rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Parts:
    return _leaky_relu((lower + upper) / 2)  # as in evaluation; in training the slope is random


def _threshold(threshold: float = 0.0, value: float = 0.0) -> Parts:
    return (
        lambda z: np.where(z > threshold, z, value),
        lambda z: np.asarray(z > threshold, dtype=np.float64),
        (threshold,),
    )


def _elu(alpha: float = 1.0) -> Parts:
    return (
        lambda z: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1.0, alpha * np.exp(np.minimum(z, 0))),
        (0.0,),
    )


def _selu() -> Parts:
    value, slope, kinks = _elu(_SELU_ALPHA)
    return lambda z: _SELU_SCALE * value(z), lambda z: _SELU_SCALE * slope(z), kinks


def _celu(alpha: float = 1.0) -> Parts:
    if alpha <= 0:
        raise ValueError("alpha must be positive")
    return (
        lambda z: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0) / alpha)),
        lambda z: np.where(z > 0, 1.0, np.exp(np.minimum(z, 0) / alpha)),
        (0.0, -5 * alpha, -40 * alpha),  # the latter so that a small alpha is not overlooked
    )


def _gelu() -> Parts:
    return (
        lambda z: z * _normal_below(z),
        lambda z: _normal_below(z) + z * _normal_density(z),
        (),
    )


def _gelu_tanh() -> Parts:
    scale = 2 * math.sqrt(2 / math.pi)  # (1 + tanh u)/2 = sigmoid(2u)

    def gate(z: np.ndarray) -> np.ndarray:
        return np.asarray(scale * (z + 0.044715 * z**3))

    def slope(z: np.ndarray) -> np.ndarray:
        g = gate(z)
        inner = scale * (1 + 0.134145 * z * z)
        return np.asarray(_sigmoid(g) + z * _sigmoid_slope(g) * inner)

    return lambda z: z * _sigmoid(gate(z)), slope, ()


def _swish(beta: float = 1.0) -> Parts:
    return (
        lambda z: z * _sigmoid(beta * z),
        lambda z: _sigmoid(beta * z) + beta * z * _sigmoid_slope(beta * z),
        (),
    )


def _mish() -> Parts:
    def slope(z: np.ndarray) -> np.ndarray:
        gate = _softplus(z)
        return np.asarray(np.tanh(gate) + z * _tanh_slope(gate) * _sigmoid(z))

    return lambda z: z * np.tanh(_softplus(z)), slope, ()


def _softplus_beta(beta: float = 1.0) -> Parts:
    if beta <= 0:
        raise ValueError("beta must be positive")
    return lambda z: _softplus(beta * z) / beta, lambda z: _sigmoid(beta * z), ()


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Parts:
    if min_val >= max_val:
        raise ValueError("min_val must be less than max_val")
    return (
        lambda z: np.clip(z, min_val, max_val),
        lambda z: _between(z, min_val, max_val),
        (min_val, max_val),
    )


def _hardswish() -> Parts:
    return (
        lambda z: z * np.clip(z + 3, 0, 6) / 6,
        lambda z: np.where(z >= 3, 1.0, np.where(z <= -3, 0.0, (2 * z + 3) / 6)),
        (-3.0, 3.0),
    )


def _softshrink(lambd: float = 0.5) -> Parts:
    if lambd < 0:
        raise ValueError("lambd must not be negative")
    return (
        lambda z: z - np.clip(z, -lambd, lambd),
        lambda z: 1 - _between(z, -lambd, lambd),
        (-lambd, lambd),
    )


def _hardshrink(lambd: float = 0.5) -> Parts:
    return (
        lambda z: np.where(np.abs(z) > lambd, z, 0.0),
        lambda z: np.asarray(np.abs(z) > lambd, dtype=np.float64),
        (-lambd, lambd),
    )


def _tanhshrink() -> Parts:
    def value(z: np.ndarray) -> np.ndarray:
        small = np.clip(z, -_SERIES_BELOW, _SERIES_BELOW)
        square = small * small
        series: np.ndarray = (
            small * square * np.polynomial.polynomial.polyval(square, _TANHSHRINK_SERIES)
        )
        return np.where(np.abs(z) < _SERIES_BELOW, series, z - np.tanh(z))

    return value, lambda z: np.tanh(z) ** 2, ()


def _sin(omega: float = 1.0) -> Parts:
    return lambda z: np.sin(omega * z), lambda z: omega * np.cos(omega * z), ()


def _cos(omega: float = 1.0) -> Parts:
    return lambda z: np.cos(omega * z), lambda z: -omega * np.sin(omega * z), ()


_BUILDERS: dict[str, Callable[..., Parts]] = {
    "identity": _fixed(lambda z: 1.0 * z, np.ones_like),
    "relu": _fixed(lambda z: np.maximum(z, 0), _step, 0.0),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "rrelu": _rrelu,
    "relu6": _fixed(lambda z: np.clip(z, 0, 6), lambda z: _between(z, 0, 6), 0.0, 6.0),
    "relu_squared": _fixed(lambda z: np.maximum(z, 0) ** 2, lambda z: 2 * np.maximum(z, 0), 0.0),
    "threshold": _threshold,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda: _swish(1.702),
    "silu": _swish,
    "mish": _mish,
    "softplus": _softplus_beta,
    "tanh": _fixed(np.tanh, _tanh_slope),
    "sigmoid": _fixed(_sigmoid, _sigmoid_slope),
    "logsigmoid": _fixed(lambda z: -_softplus(-z), lambda z: _sigmoid(-z)),
    "softsign": _fixed(lambda z: z / (1 + np.abs(z)), lambda z: (1 + np.abs(z)) ** -2.0, 0.0),
    "hardtanh": _hardtanh,
    "hardsigmoid": _fixed(
        lambda z: np.clip(z + 3, 0, 6) / 6, lambda z: _between(z, -3, 3) / 6, -3.0, 3.0
    ),
    "hardswish": _hardswish,
    "tanhshrink": _tanhshrink,
    "softshrink": _softshrink,
    "hardshrink": _hardshrink,
    "erf": _fixed(_erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z)),
    "atan": _fixed(np.arctan, lambda z: 1 / (1 + z * z)),
    "sin": _sin,
    "cos": _cos,
    "abs": _fixed(np.abs, np.sign, 0.0),
    "square": _fixed(lambda z: z * z, lambda z: 2 * z),
    "exp": _fixed(np.exp, np.exp),
    "expm1": _fixed(np.expm1, np.exp),
}

#: The names that `function`, `moments`, `gain` and the maps take.
NAMES: tuple[str, ...] = tuple(_BUILDERS)

_ALIASES = {
    "linear": "identity", "swish": "silu", "sine": "sin", "arctan": "atan", "relu2": "relu_squared",
    "squared_relu": "relu_squared", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_CALL = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
_OF_Z = re.compile(rf"\b{formulas.VARIABLE}\b")


def _squashed(name: str) -> str:
    """`LeakyReLU`, `leaky_relu` and `leakyrelu` are one name."""
    return name.lower().replace("_", "")


_SQUASHED = {_squashed(name): name for name in NAMES}
_SQUASHED |= {_squashed(alias): name for alias, name in _ALIASES.items()}


@lru_cache(maxsize=4096)
def find(name: str) -> Activation:
    """The activation of a name, with its arguments in brackets; or of a formula of z.

    Letter case and underscores of names do not matter.

    Args:
        name: one of `NAMES`, as in ``"gelu"`` or ``"leaky_relu(0.2)"``; or a formula of z, as
            ``"z * sigmoid(1.702 * z)"`` or ``"exp(-z ** 2 / 2)"``, with numbers, ``+ - * / **``,
            comparisons, and functions by name: `NAMES`, each with the signal as its first
            argument, sqrt, rsqrt, log, log2, log1p, exp2, sinh, cosh, tan, asinh, sinc, sign,
            reciprocal, minimum, maximum, logaddexp, where and clamp.

    Raises:
        ArgumentError: the name is unknown, or its arguments are not allowed.

    >>> find("LeakyReLU(0.2)").name
    'leaky_relu(0.2)'
    >>> find("where(z > 0, z, 0.2 * z)")(np.array([-1.0, 2.0]))
    array([-0.2,  2. ])
    """
    parsed = _CALL.fullmatch(name)
    known = _SQUASHED.get(_squashed(parsed[1])) if parsed else None
    if _OF_Z.search(name):
        try:
            return Activation(name, formulas.function(name, _named))
        except ValueError as error:
            raise ArgumentError(f"activation: {name!r} is not allowed: {error}") from None
    if parsed is None or known is None:
        hint = did_you_mean(name, [*NAMES, *_ALIASES]) or (
            f"; known are formulas of {formulas.VARIABLE} and {', '.join(NAMES)}"
        )
        raise ArgumentError(f"activation: {name!r} is not known{hint}")
    given = [text for text in (parsed[2] or "").split(",") if text.strip()]
    try:
        return _built(known, [float(text) for text in given])
    except ValueError as error:
        raise ArgumentError(f"activation: {name!r} is not allowed: {error}") from None


def _built(known: str, values: list[float]) -> Activation:
    """One of `NAMES` with these arguments; a ValueError where they are not allowed."""
    allowed = arguments(known)
    if not all(map(math.isfinite, values)):
        raise ValueError("its arguments must be finite")
    if len(values) > len(allowed):
        defaults = (f"{key}={default:g}" for key, default in allowed.items())
        raise ValueError(f"{known} takes {', '.join(defaults) or 'no arguments'}")
    value, derivative, kinks = _BUILDERS[known](*values)
    full = f"{known}({', '.join(map(repr, values))})" if values else known
    every = (*values, *tuple(allowed.values())[len(values) :])
    return Activation(full, value, derivative, kinks, base=known, arguments=every)


def _named(name: str, given: tuple[float, ...]) -> Function:
    """The function of a name in a formula; a ValueError where there is none."""
    known = _SQUASHED.get(_squashed(name))
    if known is None:
        raise ValueError(f"{name!r} is not known{did_you_mean(name, [*NAMES, *_ALIASES])}")
    return _built(known, list(given)).function


@lru_cache(maxsize=256)
def arguments(name: str) -> Mapping[str, float]:
    """The arguments that one of `NAMES` takes, as torch calls them, with their defaults.

    >>> dict(arguments("hardtanh"))
    {'min_val': -1.0, 'max_val': 1.0}
    """
    takes = inspect.signature(_BUILDERS[name]).parameters.values()
    return MappingProxyType({p.name: p.default for p in takes})


def function(activation: str | Function) -> Function:
    """The numpy function of a name; a callable is returned as it is.

    Args:
        activation: a name (see `find`), or a function of float64 arrays.

    Returns:
        A function from a float64 array to one of the same shape.

    Raises:
        ArgumentError: the name is unknown, or `activation` is neither name nor callable.

    >>> function("relu")(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    if isinstance(activation, str):
        return find(activation)
    if not callable(activation):
        raise ArgumentError(f"activation must be a name or a function, not {activation!r}")
    return activation
