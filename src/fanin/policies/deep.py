"""Deep stretches without norms: a start at which inputs stay apart over the whole depth.

Schemes that keep the scale alone let the correlation of two inputs go to 1 with depth (relu, gelu,
sigmoid) or part near ones (tanh with gain): see docs/theory.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fanin import moments
from fanin.policies.choice import Blueprint, Choice, words
from fanin.policies.signal import (
    ENOUGH_INPUTS,
    is_even,
    odd_part,
    operating_point,
    quick_chi,
    shifted_point,
    spread,
)
from fanin.roles import Role

__all__ = ["BIASED", "DEEP_HEAD", "deep", "deep_shift", "deep_size", "in_a_row"]

# Layers in a row without norms from which a start that keeps inputs apart over the whole depth
# trains better than he_normal and its kin (plain MLPs: no difference at 3 and 5, clear at 10).
DEEP = 9
# Sigmoid and softplus lose their inputs first, sine and hardtanh part them first.
DEEP_BIASED, DEEP_BENT = 5, 8
# How far near inputs may part over the whole depth of a stretch: χ^depth (1 to e⁴ train alike, e²
# is the middle of the flat part).
PARTING = math.e**2
# φ(x) − φ(−x) is x, or next to it, so a mirrored pair of units passes x on.
MIRRORED = frozenset({
    "relu", "leaky_relu", "prelu", "rrelu", "relu6", "elu", "celu", "selu", "gelu", "quick_gelu",
    "silu", "mish", "softplus", "hardswish",
})  # fmt: skip
# Odd about 0: a mirrored pair there would stay one for ever.
ODD = frozenset({
    "tanh", "sin", "hardtanh", "sigmoid", "hardsigmoid", "softsign", "erf", "atan",
})  # fmt: skip
_FAR = 100.0  # beyond all bounds
# An activation written out counts as tanh where it is odd about 0, as gelu where a mirrored pair of
# it parts near inputs by less than a stretch of `DEEP` layers may in each.
_LIKE_ODD, _LIKE_MIRRORED = "tanh", "gelu"
_POINTS = np.linspace(-4.0, 4.0, 81)
BIASED = frozenset({"sigmoid", "hardsigmoid", "softplus"})
BENT = frozenset({"sin", "hardtanh"})
# Odd about 0, with a mean: pairs about a bias b have a smaller one, and are two units.  (About its
# kink half of all hardsigmoids would be at their bound.)
SHIFTED = frozenset({"sigmoid"})
# Std of the pre-activations where the mean of φ is large, at most: beside a larger signal the mean,
# which every step moves, weighs less (sigmoid at depth 10: 2 trains as 1, 2.5 slower; softplus in
# convolutions of depth 30: 220 batches from 1, 160 from 2).
WIDE = 2.0
# Self-normalizing: orthogonal weights with the exact gain train as well as mirrored ones, while the
# gradient drifts by no more than e^DRIFT over the stretch (selu at depth 100 trains better so).
STEADY = frozenset({"elu", "celu", "selu"})
DRIFT = 8.0
# Std of the logits behind such a stretch.  A bounded activation does not let the signal grow with
# the weights, so the output layer alone has to: in a tanh MLP of width 128 and depth 100, Adam at
# 1e-4, steps 26 to 50, the loss is 1.64 from 0.05, 0.83 from 0.15 and 0.30 from 0.3.  From 0.3 the
# loss of a CNN that sees all inputs alike starts 8.5 % above guessing, from 0.15 less than 5 %.
DEEP_HEAD = 0.15
_PAIRED = 4  # units: fewer make less than two pairs


def deep(role: Role, drawn: Blueprint | None = None) -> Choice | None:
    """A layer of a deep stretch without norms; None where it is in none.

    Without `drawn`, biases are taken to be none of ours.
    """
    if not _is_plain_matrix(role) or role.run < _depth(role):
        return None
    if _curve(role) is None:
        return None
    if _name(role) in STEADY and _is_steady(role):
        return _exact(role)
    if _name(role) in MIRRORED:
        return _mirrored(role)
    if _is_odd(role):
        return _shifted(role, drawn) or _odd(role)
    return None


def in_a_row(role: Role, choice: Choice) -> Choice:
    """Orthogonal weights of the size of `choice`, where many layers follow one another, or itself.

    Norms between them hold the size of the signal, but not its directions.
    """
    sizes = {"he_normal": math.sqrt(2.0), "lecun_normal": 1.0}
    long = role.chain >= DEEP or role.repeated
    if not long or choice.scheme not in sizes or not _is_plain_matrix(role):
        return choice
    slope = float(choice.arguments.get("negative_slope", 0.0))
    gain = choice.gain * sizes[choice.scheme] / math.sqrt(1 + slope**2)
    centred = bool(choice.arguments.get("centred", False))
    told = f"{role.chain} layers follow one another without a sum"
    told = "it is used again on what it made" if role.repeated else told
    because = f"{choice.because}; orthogonal, since {told}"
    arguments = {"scale": "variance", "centred": centred}
    return Choice("orthogonal", because, gain, arguments=arguments)


def _is_plain_matrix(role: Role) -> bool:
    plain = not role.expert and role.groups == 1 and role.blocks == 1
    matrix = "o" in role.layout and "i" in role.layout and "b" not in role.layout
    return plain and matrix and not role.op.startswith("conv_tr")


def _before(role: Role) -> str | None:
    """The activation before a layer, by the name it counts as; None where there is none."""
    source = role.input
    return _like(source.activation, source.curve) if source.kind == "activation" else None


def _after(role: Role) -> str | None:
    """The activation behind a layer, by the name it counts as."""
    return _like(role.activation, role.curve)


@lru_cache(maxsize=1024)
def _like(name: str | None, curve: str | None) -> str | None:
    """The activation that one counts as here: itself, or of those written out the nearest kind."""
    if curve is None or moments.find(curve).base:
        return name
    phi = moments.function(curve)
    values, middle = phi(_POINTS), float(phi(np.zeros(1))[0])
    if np.allclose(values + values[::-1], 2 * middle, atol=1e-6 * float(np.abs(values).max())):
        return _LIKE_ODD
    if not is_even(curve) and quick_chi(odd_part(curve), 1.0) <= PARTING ** (1 / DEEP):
        return _LIKE_MIRRORED
    return name


def _name(role: Role) -> str:
    """The activation that a stretch is made of: the one before a layer, or the one behind it."""
    return _before(role) or _after(role) or ""


def _told(role: Role) -> tuple[str, str]:
    """The same for people: what it is called, and a clause that says what φ is, or nothing."""
    name = (role.input.activation if _before(role) else role.activation) or ""
    curve = _curve(role)
    if curve is None or moments.find(curve).base:
        return name, ""
    return "φ", f" (φ(z) = {curve})"


def _curve(role: Role) -> str | None:
    """The same as `fanin.moments` takes it, with its arguments."""
    return role.input.curve if _before(role) else role.curve


def _is_odd(role: Role) -> bool:
    """Whether the activation is odd about 0: a hardtanh is where its bounds are."""
    curve = _curve(role)
    if _name(role) not in ODD or curve is None:
        return False
    low, high = moments.function(curve)(np.array([-_FAR, _FAR]))
    middle = moments.function(curve)(np.zeros(1))[0]
    return bool(np.isclose(low + high, 2 * middle))


def _is_steady(role: Role) -> bool:
    """Whether the gradient keeps its size over the stretch with the exact gain."""
    seen = moments.moments(_curve(role) or "")
    return role.run * abs(math.log(seen.slope / seen.second)) < DRIFT


def _exact(role: Role) -> Choice:
    curve = _curve(role) or ""
    gain = 1.0 if _before(role) is None else 1 / math.sqrt(moments.moments(curve).second)
    because = (
        f"layer {role.place + 1} of {role.run} in a row without norms: {_told(role)[0]} "
        "keeps inputs apart by itself; orthogonal, so that all directions fare alike"
    )
    return Choice(_scheme(role), because, gain, arguments={"scale": "variance"})


def _depth(role: Role) -> int:
    """Layers in a row from which the activation asks for a start of its own."""
    names = {_after(role), _like(role.input.activation, role.input.curve)}
    if names & BIASED:
        return DEEP_BIASED
    return DEEP_BENT if names & BENT else DEEP


def _sizes(role: Role) -> tuple[int, int]:
    inputs = math.prod(n for n, c in zip(role.shape, role.layout, strict=True) if c == "i")
    outputs = math.prod(n for n, c in zip(role.shape, role.layout, strict=True) if c == "o")
    return inputs, outputs


def _sees_patch(role: Role, rows: int) -> bool:
    """Whether a kernel starts over all its taps: the first one, of fewer channels than `rows`.

    Its centre tap has one direction for each channel, and the stretch passes on what it gets.  On
    grey digits, CNNs of 16 channels and depth 30 train after 40 to 100 batches so, after 80 to 160
    from the centre tap (seeds 0 and 3); sigmoid after 120 and 130, and after 230 or not at all.
    """
    return _before(role) is None and _taps(role) > 1 and _sizes(role)[0] < rows


def _taps(role: Role) -> int:
    return math.prod(role.shape) // math.prod(_sizes(role))


def _scheme(role: Role) -> str:
    at_centre = "k" in role.layout and not _sees_patch(role, _sizes(role)[1])
    return "delta_orthogonal" if at_centre else "orthogonal"


@dataclass(frozen=True)
class _Point:
    """Where an activation works in a deep stretch.

    Attributes:
        size: std of the pre-activation, without the bias.
        spread: std of what is passed on.
        shift: bias of every unit.
    """

    size: float
    spread: float
    shift: float = 0.0


@lru_cache(maxsize=1024)
def _point(curve: str, run: int, mirrored: bool) -> _Point | None:
    """The operating point in a stretch of `run` layers; None where there is none."""
    growth = PARTING ** (1 / run)
    name, shift = moments.find(curve).base, 0.0
    largest = WIDE if mirrored and name in BIASED else 1.0
    if mirrored and name in SHIFTED:
        size, shift = shifted_point(curve, growth, largest) or (None, 0.0)
    else:
        size = operating_point(odd_part(curve) if mirrored else curve, growth, largest)
    phi = odd_part(curve, shift) if mirrored else curve
    return None if size is None else _Point(size, spread(phi, size), shift)


def _mirrored(role: Role) -> Choice | None:
    point = _point(_curve(role) or "", role.run, True)
    if point is None:
        return None
    name, what = _told(role)
    because = (
        f"units in mirrored pairs, so that {name}(x) − {name}(−x) passes x on at any depth{what}"
    )
    return _pairs(role, point, MIRRORED, because)


def _shifted(role: Role, drawn: Blueprint | None) -> Choice | None:
    """Mirrored pairs about a bias; None where a layer in the stretch has none."""
    name = _name(role)
    if name not in SHIFTED or drawn is None or not drawn.chained(role):
        return None
    point = _point(_curve(role) or "", role.run, True)
    if point is None or not point.shift:
        return None
    b = words(point.shift)
    because = (
        f"units in mirrored pairs about the bias {b}, where {name}({b} + x) − {name}({b} − x) is "
        "nearly straight: it passes x on"
    )
    return _pairs(role, point, SHIFTED, because)


def _pairs(role: Role, point: _Point, family: frozenset[str], because: str) -> Choice | None:
    inputs, outputs = _sizes(role)
    first, last = _before(role) is None, role.head or _after(role) not in family
    rows, columns = (outputs if last else outputs // 2), (inputs if first else inputs // 2)
    narrow = (not last and outputs < _PAIRED) or (not first and inputs < _PAIRED)
    if narrow or (first and last):
        return None
    gain = (1.0 if last else point.size) / (1.0 if first else point.spread)
    patch = _sees_patch(role, rows)
    columns *= _taps(role) if patch else 1
    gain *= max(1.0, math.sqrt(rows / columns))
    told = f"layer {role.place + 1} of {role.run} in a row without norms: {because}"
    arguments = {"first": first, "last": last, **({"patch": True} if patch else {})}
    return Choice("looks_linear", told, gain, arguments=arguments)


def _odd(role: Role) -> Choice | None:
    inputs, _ = _sizes(role)
    point = _point(_curve(role) or "", role.run, False)
    centred = _before(role) in BIASED
    if point is None or (centred and inputs < ENOUGH_INPUTS):
        return None
    last = _after(role) not in ODD
    gain = point.size if _before(role) is None else (1.0 if last else point.size) / point.spread
    name, what = _told(role)
    because = (
        f"layer {role.place + 1} of {role.run} in a row without norms: pre-activations of std "
        f"{words(point.size)}, where {name} lets near inputs part by no more than "
        f"{words(PARTING ** (1 / role.run))} a layer{what}; orthogonal, so that all directions "
        "fare alike"
    )
    arguments = {"scale": "variance", "centred": centred}
    return Choice(_scheme(role), because, gain, arguments=arguments)


def deep_size(role: Role, drawn: Blueprint | None = None) -> float | None:
    """Planned root mean square of the pre-activation; None for a layer in no such stretch.

    A bias that shifts every unit (`deep_shift`) is not counted.
    """
    chosen = deep(role, drawn)
    if chosen is None or role.curve is None or _after(role) not in MIRRORED | ODD:
        return None
    if role.activation in STEADY and chosen.scheme != "looks_linear":
        return 1.0
    paired = chosen.arguments.get("last") is False
    if role.head and chosen.scheme == "looks_linear":
        return 1.0
    mirrored = _after(role) in MIRRORED or paired
    point = _point(role.curve, role.run, mirrored)
    return None if point is None else point.size


def deep_shift(role: Role, drawn: Blueprint) -> float:
    """The bias of every unit of a layer: the middle of its mirrored pairs; 0 elsewhere."""
    chosen = deep(role, drawn)
    if (
        role.activation not in SHIFTED
        or role.curve is None
        or chosen is None
        or chosen.arguments.get("last") is not False
    ):
        return 0.0
    point = _point(role.curve, role.run, True)
    return 0.0 if point is None else point.shift
