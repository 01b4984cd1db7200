"""Activations written out: calls that together bend one signal, as one formula of it.

``x * torch.sigmoid(x)`` is two calls, and one activation.  A chain of calls that keep each value in
its place, and take nothing but one signal and numbers, is a function of that signal's values; its
formula is what `fanin.moments` takes, under its own name where it has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fanin import moments
from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.errors import ArgumentError
from fanin.kinds import BENDING, PASSIVE, PRODUCTS, QUOTIENTS, RECURRENT, SPLITS, SUMS
from fanin.moments import formulas

__all__ = ["COMPARISONS", "Written", "written_after", "written_before"]

# Calls that one activation has at most: gelu in its tanh form, with changes of dtype, takes 12.
_MOST = 24
# What hands each value on in its place.
_SAME = frozenset({
    "clone", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "alias",
    "identity", "dropout",
})  # fmt: skip
# What gives several signals under one call: two of them are not one.
_SEVERAL = RECURRENT | SPLITS | {
    "topk", "sort", "max", "min", "aminmax", "frexp", "modf", "var_mean", "std_mean", "cummax",
    "cummin", "kthvalue", "median", "nanmedian", "mode",
}  # fmt: skip
_OPERATORS = {
    "add": "({} + {})", "radd": "({1} + {0})", "sub": "({} - {})", "subtract": "({} - {})",
    "rsub": "({1} - {0})", "mul": "({} * {})", "multiply": "({} * {})", "rmul": "({1} * {0})",
    "div": "({} / {})", "divide": "({} / {})", "true_divide": "({} / {})", "rdiv": "({1} / {0})",
    "rtruediv": "({1} / {0})", "pow": "({} ** {})", "rpow": "({1} ** {0})", "neg": "(-{})",
    "negative": "(-{})", "gt": "({} > {})", "ge": "({} >= {})", "lt": "({} < {})",
    "le": "({} <= {})", "maximum": "maximum({}, {})", "minimum": "minimum({}, {})",
    "clamp_min": "maximum({}, {})", "clamp_max": "minimum({}, {})", "where": "where({}, {}, {})",
}  # fmt: skip
# What each of them takes; the others take two.
_TAKES = {"neg": 1, "negative": 1, "where": 3}
_CLAMPS = frozenset({"clamp", "clip"})
COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne"})
_AFFINE = SUMS | PRODUCTS | QUOTIENTS | {"subtract", "neg", "negative"}
_CALLED = {"gelu_tanh": "gelu"}
# Where a formula is compared with named activations, and how near is the same: constants are
# written with few digits (0.7978845608 for √(2/π), 0.044715).
_POINTS = np.linspace(-6.0, 6.0, 121)
_ALIKE = 1e-6
_STRAIGHT = 1e-9  # second differences of what bends nothing, as a share of its values


@dataclass(frozen=True)
class Written:
    """An activation written out.

    Attributes:
        start: index of the call whose output it bends.
        end: index of its last call.
        curve: as `fanin.moments` takes it: a name, or a formula of z.
        scaled: whether one nonlinearity alone bends, and numbers are added and multiplied.
    """

    start: int
    end: int
    curve: str
    scaled: bool = False

    @property
    def name(self) -> str:
        """As a call of it would be called, without arguments; a formula as it is."""
        base = moments.find(self.curve).base
        return _CALLED.get(base, base) or self.curve


def written_before(architecture: Architecture, end: int) -> Written | None:
    """The activation written out whose last call is `end`; None where that is none.

    A single nonlinearity, of a signal that is multiplied with a number at most, is none: its call
    says all.
    """
    calls = architecture.trace.calls
    inside: list[Call] = []
    waiting, start = {end}, -1
    while waiting and len(inside) < _MOST:
        latest = max(waiting)
        if inside and len(waiting) == 1:
            start = latest
        if latest < 0 or not _follows(architecture, calls[latest], calls[end]):
            break
        inside.append(calls[latest])
        waiting |= {t for t in calls[latest].terms if isinstance(t, int)}
        waiting.remove(latest)
    if start < 0 or calls[start].op in _SEVERAL or calls[start].op.startswith("unnamed:"):
        return None
    if calls[end].op in COMPARISONS:
        return None
    chain = [c for c in reversed(inside) if c.index > start]
    if calls[start].shape != calls[end].shape or _is_plain(chain):
        return None
    curve = _recognized(_formula(chain, start))
    bent = [c for c in chain if not _is_straight(c)]
    scaled = len(bent) == 1 and bent[0].op in BENDING
    return None if curve is None else Written(start, end, curve, scaled)


def written_after(architecture: Architecture, start: int) -> Written | None:
    """The activation written out that the output of a call goes through; None where it is none.

    All that is made of the output goes through it, and a layer reads what it gives.
    """
    calls = architecture.trace.calls
    inside, ends = {start}, []
    for call in calls[start + 1 : start + 1 + 2 * _MOST]:
        own = {t for t in call.terms if isinstance(t, int)}
        if own and own <= inside and _follows(architecture, call, calls[start]):
            inside.add(call.index)
            ends.append(call.index)
    for end in reversed(ends):
        before = {i for i in inside if i < end}
        after = {c.index for i in before for c in architecture.followers[i]}
        if after <= {i for i in inside if i <= end} and _is_read(architecture, calls[end]):
            written = written_before(architecture, end)
            return written if written is not None and written.start == start else None
    return None


def _follows(architecture: Architecture, call: Call, other: Call) -> bool:
    """Whether a call makes each of its values of those at the same place, and of numbers."""
    if call.op in _CLAMPS:
        known = len(call.terms) == 3
    elif call.op in _OPERATORS:
        known = len(call.terms) == _TAKES.get(call.op, 2)
    else:
        known = bool(call.terms) and (call.op in _SAME | formulas.FUNCTIONS or bool(call.curve))
    plain = call.units is None and not call.operands and call.shape == other.shape
    return known and plain and not architecture.normalizes(call)


def _is_read(architecture: Architecture, call: Call) -> bool:
    """Whether a layer takes what a call gives, as it is or in another shape."""
    seen, waiting = {call.index}, [call]
    while waiting:
        for after in architecture.followers[waiting.pop().index]:
            if after.units is not None and "i" in after.layout:
                return True
            if after.op in PASSIVE and after.index not in seen:
                seen.add(after.index)
                waiting.append(after)
    return False


def _is_plain(chain: list[Call]) -> bool:
    """Whether one call does all the bending, at the end, and numbers are multiplied before it."""
    steps = [c for c in chain if c.op not in _SAME]
    if not steps:
        return True
    *before, last = steps
    known = last.op in BENDING and last.op not in formulas.FUNCTIONS
    return known and all(c.op in PRODUCTS | QUOTIENTS | {"neg", "negative"} for c in before)


def _is_straight(call: Call) -> bool:
    """Whether a step hands a signal on, or adds numbers to it and multiplies it with numbers."""
    alone = sum(isinstance(term, int) for term in call.terms) == 1
    return call.op in _SAME or (call.op in _AFFINE and alone)


def _formula(chain: Iterable[Call], start: int) -> str:
    """The last call of a chain as a formula of what call `start` gives."""
    texts = {start: formulas.VARIABLE}
    text = ""
    for call in chain:
        given = [texts[t] if isinstance(t, int) else _number(t) for t in call.terms]
        text = texts[call.index] = _step(call, given)
        if len(text) > 4 * formulas.LONGEST:  # brackets that are taken away again
            return ""
    return text


def _number(value: float) -> str:
    """With as many digits as mean something to people; in brackets where it has a sign."""
    text = f"{value:.12g}"
    return f"({text})" if value < 0 else text


def _step(call: Call, given: list[str]) -> str:
    if call.op in _SAME:
        return given[0]
    if call.op in _OPERATORS:
        return _OPERATORS[call.op].format(*given)
    if call.op in _CLAMPS:
        signal, low, high = given
        signal = signal if low == "(-inf)" else f"maximum({signal}, {low})"
        return signal if high == "inf" else f"minimum({signal}, {high})"
    if call.curve is not None:
        name, _, arguments = call.curve.rstrip(")").partition("(")
        return f"{name}({', '.join([*given[:1], *filter(None, [arguments])])})"
    return f"{call.op}({', '.join(given)})"


@lru_cache(maxsize=1024)
def _recognized(formula: str) -> str | None:
    """A formula as `fanin.moments` takes it, by its name if it has one; None if it bends nothing.

    >>> _recognized("(z * sigmoid(z))"), _recognized("((z * 3.0) + 1.0)")
    ('silu', None)
    >>> _recognized("(tanh((z * 0.5)) * 2.0)")
    'tanh(z * 0.5) * 2'
    """
    try:
        tidy = formulas.tidy(formula)
        values = moments.find(tidy)(_POINTS)
        moments.moments(tidy)
    except (ArgumentError, SyntaxError):
        return None
    if not np.isfinite(values).all():
        return None
    size = float(np.abs(values).max())
    if float(np.abs(np.diff(values, 2)).max()) <= _STRAIGHT * size:
        return None
    slope = float(-values[_POINTS == -1.0][0])
    for name in (*moments.NAMES, f"leaky_relu({slope!r})"):
        try:
            known = moments.find(name)(_POINTS)
        except ArgumentError:  # needs an argument
            continue
        if np.allclose(values, known, rtol=_ALIKE, atol=_ALIKE * size):
            return moments.find(name).name
    return tidy
