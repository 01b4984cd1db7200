"""Scales from what a layer's input is: the gain of the activation that made it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fanin import moments
from fanin.neighbours import Input
from fanin.policies.choice import Choice, words
from fanin.roles import Role

__all__ = [
    "DIRECT_STD",
    "ENOUGH_INPUTS",
    "GROWN",
    "READ_STD",
    "STEEP",
    "Curve",
    "bending",
    "is_even",
    "keeps_scale",
    "odd_part",
    "operating_point",
    "preactivation_std",
    "quick_chi",
    "shifted_point",
    "spread",
    "unit_size",
]

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]

# Rows that are logits, or factors of them (matrix factorization, factorization machines): at 1 the
# loss starts far above guessing, and so it does from 0.3 where the products of many rows are summed
# (16 fields: 1.33, which is 0.69 from 0.1).  At the best rate of each, after 150 to 200 steps of
# Adam: DeepFM over 5 fields 0.066 for 0.102, over 16 0.0014 for 0.0033, with batch norm 0.0018 for
# 0.0035, a factorization machine 0.0021 for 0.0051, matrix factorization 0.0017 for 0.0047; a wide
# part beside layers and a table of bigrams train alike.  0.03 is worse in two of these.
DIRECT_STD = 0.1
# Rows that layers read, which make up for it.  Steps of Adam, however rare, move them against their
# size: from unit rows a two-tower retriever of 2000 users learns nothing in 400 steps (5.54, which
# is guessing; 2.75), a bag of 3000 words ends at 1.0 for 0.13, an LSTM over 500 words at 1.46 for
# 1.34, others alike.
# Multiplied with one another first (DLRM, DCN, a neural factorization machine): 0.19, 0.09 and 0.25
# as from the authors' starts, and 0.40, 0.14 and 0.43 from unit rows.
READ_STD = 0.1
# A mean this large a part of the second moment makes all inputs look alike: weights ignore it.
_BIASED = 0.5
# Mean square, of a unit signal, below which an activation passes rare values alone: threshold(8)
# would ask for weights × 5e6.  The faintest that somebody may mean, softshrink(2), has 0.012.
_FAINT = 1e-3
#: χ, the growth of the gradient's square, up to which an activation may meet a unit signal.  The
#: steepest named one, abs, has 2.8; exp(−(z/0.1)²/2) has 58, and MLPs of it with 6 hidden layers
#: learn nothing from unit signals, all there is from those where χ is 8 (χ = 3: as well).
STEEP = 8.0
#: The same over a whole stretch: a gradient that grows to 50 times its size, of 100 from which P204
#: warns.
GROWN = 50.0**2
# χ of an even activation is 2 at the least, where the signal is so small that it is a square; at
# 2.25 the signal is not yet next to nothing.
_EVEN = 2.25
_SIDES = np.linspace(-4.0, 4.0, 82)
# Of its bend, χ − 1, an activation keeps so much of a smaller signal.  From the factors of Fixup
# networks of tanh are next to linear: of depth 40 they get 0.72 and 0.48 of the way to the best
# start (two seeds), of depth 100 0.17 and 0.24.  With half of the bend it is 1.00, 0.86 and 0.96,
# 0.74, with 0.8 of it 1.00, 0.95 and 1.00, 0.87.  relu and gelu train alike from all of them.
BEND = 0.8
# Fewer inputs than this are too few to give one direction away.
ENOUGH_INPUTS = 8
_STRAIGHT = 1e-4  # of a bend, χ − 1: hardsigmoid, cut off at 3σ, has 2e-3, a line 1e-7 by rounding
_SMALLEST = 1e-3  # every smooth activation looks linear at this size
_HALVINGS = 24  # of the logarithm of the size: 5e-7 of it is left
# Where the middle of a pair is looked for, and z ~ N(0, 1) to take means over.
_SHIFTS = np.linspace(-8.0, 0.0, 321)
_Z = np.linspace(-9.0, 9.0, 361)
# A step of the fine grid that is so many times as large as those beside it is a jump: 20 tells them
# from all curves as wide as 20 steps, 0.04 of the signal.
_JUMP = 20.0
_FINE = np.linspace(-6.0, 6.0, 6001)
_FINE_DENSITY = np.exp(-(_FINE**2) / 2) / np.exp(-(_FINE**2) / 2).sum()
_HERMITE = (_Z**3 - 3 * _Z) * np.exp(-(_Z**2) / 2)  # the third polynomial, weighted


_ATTENTION = {
    "q": "queries",
    "k": "keys",
    "v": "values",
    "o": "the output of an attention",
    "qk": "queries and keys, each a matrix of its own",
    "kv": "keys and values, each a matrix of its own",
    "qkv": "queries, keys and values, each a matrix of its own",
}


def keeps_scale(role: Role) -> Choice:
    """Weights that give unit variance, from what is known of the layer's input."""
    choice = _sized(role, _by_input(role))
    told = _ATTENTION.get(role.attention)
    if told is not None and "own" in told and role.blocks == 1:
        told = told.partition(",")[0] if role.attention != "qkv" else "queries, keys and values"
    if role.expert:
        told = f"one matrix for each of {role.shape[0]} experts"
    return replace(choice, because=f"{told}: {choice.because}") if told else choice


def unit_size(curve: str | None, run: int) -> float:
    """Std of a pre-activation in a stretch of `run` layers: 1, or less before a steep activation.

    Those that are odd, or that pass x on in pairs, have a start of their own in deep stretches.
    """
    if curve is None or moments.find(curve).base:
        return 1.0  # no named one is steep
    growth = min(STEEP, max(_EVEN, GROWN ** (1 / run)))
    return _last_that(lambda s: quick_chi(curve, s) <= growth, 1.0) or 1.0


def preactivation_std(role: Role) -> float:
    """Std that a layer's output should have: `unit_size`, or 1 where a norm makes it so."""
    return 1.0 if role.norm_after else unit_size(role.curve, role.run)


@lru_cache(maxsize=1024)
def bending(curve: str | None, size: float) -> float:
    """What a signal of a size may be multiplied with, at the least, and still be bent.

    A smaller one would be next to straight: tanh is a line near 0.  0 where an activation bends all
    signals alike, as relu does, and where there is none.
    """
    if curve is None:
        return 0.0
    due = BEND * (quick_chi(curve, size) - 1)
    if due < _STRAIGHT:
        return 0.0
    straight = _last_that(lambda factor: quick_chi(curve, factor * size) - 1 < due, 1.0)
    return round(straight or 0.0, 2)  # two digits, whatever the last bits of exp are here


def _sized(role: Role, choice: Choice) -> Choice:
    """The choice with the size of output that the activation behind it asks for."""
    size = preactivation_std(role)
    if size == 1.0:
        return choice
    because = (
        f"{choice.because}; × {words(size)}: {role.activation} is steep, and of larger signals it "
        "would let the gradient grow"
    )
    return replace(choice, gain=choice.gain * size, because=because)


def is_even(curve: str | None) -> bool:
    """Whether an activation gives x and −x the same value."""
    if curve is None:
        return False
    values = moments.function(curve)(_SIDES)
    return bool(np.allclose(values, values[::-1], rtol=1e-9, atol=0.0))


def _by_input(role: Role) -> Choice:
    source = role.input
    fan = f"fan_in {words(role.fan_in)}" if role.fan_in is not None else "its fan_in"
    if source.kind == "activation" and source.activation in ("relu", "leaky_relu", "prelu"):
        return _rectified(source, fan)
    if source.kind in ("activation", "product") and source.activation is not None:
        return _bent(role, source, fan)
    if source.kind == "table" and role.direct:
        told = f"its input is an embedding of std {DIRECT_STD}, whose rows reach the output too"
        return Choice("lecun_normal", f"{told}: × 1/{DIRECT_STD} ({fan})", gain=1 / DIRECT_STD)
    if source.kind == "table" and role.read:
        told = f"its input is an embedding of std {READ_STD}"
        return Choice("lecun_normal", f"{told}: × 1/{READ_STD} ({fan})", gain=1 / READ_STD)
    if source.kind == "softmax" and role.fan_in:
        told = "a softmax before it gives its inputs shares of one, so each has a variance of one"
        return Choice("lecun_normal", f"{told} ({fan})", gain=math.sqrt(role.fan_in))
    reasons = {
        "data": "it reads the data",
        "tokens": "it reads the data",
        "table": "its input is an embedding of unit scale",
        "learned": "its input is learned",
        "norm": "its input is normalized",
        "codes": "it reads codes, which come to be as large as what they stand for",
        "layer": "nothing bends the signal before it",
        "sum": "its input is a sum held at unit scale",
        "attention": "its input is a weighted mean of values",
        "recurrent": "its input is a hidden state",
        "product": "its input is a product of two signals",
    }
    reason = reasons.get(source.kind, "nothing is known of its input but its size")
    return Choice("lecun_normal", f"{reason}, so a variance of 1/fan_in keeps the scale ({fan})")


def _rectified(source: Input, fan: str) -> Choice:
    (slope,) = moments.find(source.curve or "").arguments or (0.0,)
    if not slope:
        because = f"relu before it halves the second moment, so the variance is 2/fan_in ({fan})"
        return Choice("he_normal", because)
    because = (
        f"{source.activation} of slope {slope:g} before it: variance 2/((1+a²)·fan_in) ({fan})"
    )
    return Choice("he_normal", because, arguments={"negative_slope": slope})


def _bent(role: Role, source: Input, fan: str) -> Choice:
    """An activation other than ReLU: the gain by quadrature."""
    if source.curve is None:
        because = f"the moments of {source.activation} before it are not known ({fan})"
        return Choice("lecun_normal", because)
    seen = moments.moments(source.curve, variance=unit_size(source.curve, role.run) ** 2)
    if seen.second < _FAINT:
        because = (
            f"{source.curve} before it passes next to nothing of a unit signal (E[φ²] = "
            f"{words(seen.second)}), which no size of these weights makes good ({fan})"
        )
        return Choice("lecun_normal", because)
    # a gate's mean multiplies a signal: what comes out has none of its own
    biased = source.kind == "activation" and seen.mean**2 > _BIASED * seen.second
    if biased and (role.fan_in or 0) >= ENOUGH_INPUTS and role.layout and not role.expert:
        gain = 1 / math.sqrt(seen.variance)
        because = (
            f"{source.activation} before it has mean {words(seen.mean)} and std "
            f"{words(math.sqrt(seen.variance))}: rows that sum to zero ignore the mean, gain "
            f"{words(gain)} restores the std ({fan})"
        )
        return Choice("lecun_normal", because, gain, arguments={"centred": True})
    gain = 1 / math.sqrt(seen.second)
    gated = " times another signal" if source.kind == "product" else ""
    because = (
        f"{source.activation}{gated} before it has E[φ²] = {words(seen.second)}: gain "
        f"{words(gain)} keeps the scale ({fan})"
    )
    return Choice("lecun_normal", because, gain)


@lru_cache(maxsize=256)
def odd_part(curve: str, shift: float = 0.0) -> Curve:
    """φ(b + x) − φ(b − x), what a mirrored pair of units with biases b = `shift` passes on."""
    phi = moments.function(curve)
    return lambda x: np.asarray(phi(shift + x) - phi(shift - x), dtype=np.float64)


def spread(phi: str | Curve, size: float) -> float:
    """Std of φ(s·z), z ~ N(0, 1)."""
    return math.sqrt(moments.moments(phi, variance=size * size).variance)


def operating_point(phi: str | Curve, growth: float, largest: float = 1.0) -> float | None:
    """The std of the pre-activation at which near inputs part by `growth` (χ) in each layer.

    With weights that ignore the mean and keep the centred variance, χ = s²E[φ'²]/Var φ(s·z) rises
    from 1 (φ looks linear) with s; the largest s ≤ `largest` with χ ≤ growth is returned, None
    where no such s is found.
    """
    return _last_that(lambda s: _chi(phi, s) <= growth, largest)


def shifted_point(curve: str, growth: float, largest: float) -> tuple[float, float] | None:
    """(std, bias) at which mirrored pairs let near inputs part by `growth`; see `operating_point`.

    The bias b is where E[φ‴(b + s·z)] = 0: what a pair about b passes on has no cubic part, so s
    can be larger than elsewhere.
    """
    phi = moments.function(curve)

    def straight(s: float) -> bool:
        return _chi(odd_part(curve, _middle(phi, s)), s) <= growth

    size = _last_that(straight, largest)
    return None if size is None else (size, _middle(phi, size))


def _middle(phi: Curve, size: float) -> float:
    """b ≤ 0, the one next to 0, where E[φ‴(b + size·z)] changes its sign; 0 without any."""
    cubic = phi(_SHIFTS[:, None] + size * _Z) @ _HERMITE
    turns = np.flatnonzero(np.sign(cubic[:-1]) * np.sign(cubic[1:]) < 0)
    if not len(turns):
        return 0.0
    i = turns[-1]
    share = cubic[i] / (cubic[i] - cubic[i + 1])
    return round(float(_SHIFTS[i] + share * (_SHIFTS[i + 1] - _SHIFTS[i])), 3)


def _chi(phi: str | Curve, size: float) -> float:
    return moments.moments(phi, variance=size * size).centred_chi


def quick_chi(phi: str | Curve, size: float) -> float:
    """`_chi` on a fixed grid, to a few thousandths: for formulas with kinks that nobody told of."""
    values = moments.function(phi)(size * _FINE)
    mean = values @ _FINE_DENSITY
    variance = (values - mean) ** 2 @ _FINE_DENSITY
    steps = np.abs(np.diff(values))
    beside = np.maximum(np.append(steps[1:], 0.0), np.append(0.0, steps[:-1]))
    steps[steps > _JUMP * beside] = 0.0  # back-propagation sees no slope in a jump
    slopes = (steps / np.diff(_FINE)) ** 2 @ _FINE_DENSITY[1:]
    return float(slopes / variance) if variance > 0 else math.inf


def _last_that(fits: Callable[[float], bool], largest: float) -> float | None:
    """The largest size that fits, by halving; None where none does."""
    if fits(largest):
        return largest
    low, high = _SMALLEST, largest
    if not fits(low):
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
