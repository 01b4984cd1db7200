"""What a scheme of the catalogue is: its formula, its arguments, and what it can fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeAlias

from fanin.errors import ArgumentError

__all__ = [
    "MODES",
    "Argument",
    "Fan",
    "Scheme",
    "among",
    "both_fans",
    "flag",
    "integer",
    "is_number",
    "number",
    "sizes",
]

#: One fan, or the pair (fan_in, fan_out); for a structured scheme (inputs, outputs, *kernel).
Fan: TypeAlias = float | Sequence[float] | None

MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite real number (True and False are none)."""
    try:
        is_real = isinstance(value, (float, Real))  # float is asked for itself, which is quicker
        return is_real and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int beyond the range of floats
        return False


@dataclass(frozen=True)
class Argument:
    """An argument of a scheme.

    Attributes:
        name: as `fill_` takes it.
        default: what it is when not given.
        allowed: in words.
        check: whether a value is allowed.
    """

    name: str
    default: Any
    allowed: str
    check: Callable[[Any], bool] = field(repr=False)


def number(name: str, default: float | None, allowed: str, low: float = -math.inf) -> Argument:
    """An argument that is a number above `low`; None too where that is the default."""
    return Argument(
        name,
        default,
        allowed,
        lambda v: (v is None and default is None) or (is_number(v) and v > low),
    )


def integer(name: str, default: int | None, allowed: str, low: int) -> Argument:
    """An argument that is an integer of at least `low`; None too where that is the default."""
    return Argument(
        name,
        default,
        allowed,
        lambda v: (
            (v is None and default is None) or (is_number(v) and int(v) == v and int(v) >= low)
        ),
    )


def among(name: str, default: str | None, options: Sequence[str]) -> Argument:
    """An argument that is one of a few words; None too where that is the default."""
    return Argument(
        name,
        default,
        " or ".join(f'"{o}"' for o in options),
        lambda v: v is None if v is None and default is None else v in options,
    )


def flag(name: str) -> Argument:
    """An argument that is True or False."""
    return Argument(name, False, "True or False", lambda v: isinstance(v, bool))


def both_fans(fan: Fan) -> tuple[float, float]:
    """(fan_in, fan_out), where one number stands for both."""
    pair: tuple[Any, ...] = tuple(fan) if isinstance(fan, Sequence) else (fan, fan)
    if len(pair) != 2 or not all(is_number(n) and n > 0 for n in pair):
        raise ArgumentError(
            f"fan: {_short(fan)}; a positive number or a pair (fan_in, fan_out) of them is needed"
        )
    return float(pair[0]), float(pair[1])


def sizes(scheme: str, fan: Fan) -> tuple[int, int, tuple[int, ...]]:
    """(inputs, outputs, kernel) of one matrix, from what `Scheme.std` got as its fan."""
    given = tuple(fan) if isinstance(fan, Sequence) else ()
    if len(given) < 2 or not all(is_number(n) and n >= 1 and int(n) == n for n in given):
        raise ArgumentError(
            f"fan: {fan!r}; {scheme} needs the sizes (inputs, outputs, *kernel) of one matrix"
        )
    inputs, outputs, *kernel = (int(n) for n in given)
    return inputs, outputs, tuple(kernel)


@dataclass(frozen=True)
class Scheme:
    """One way to draw weights: a closed form, with when to use it and where it is from.

    Attributes:
        name: such as "he_normal".
        summary: what it is, in a few words.
        formula: of the std of one weight, or of the weight itself.
        when: when to use it.
        source: paper, section or equation.
        form: what is drawn: "constant", "normal", "uniform", "trunc_normal", "matrix" (all entries
            together), or "model" (for schemes that need a whole model).
        spread: (fan, arguments) → std of one weight at gain 1.
        fan: which fan it divides by: "fan_in", "fan_out", "fan_avg", "fan_geo"; None for none.
        scope: "tensor" (`fill_` can do it) or "model" (needs a whole model: `plan`, `init_`).
        arguments: what else it takes.
        needs: the kind of tensor that it can fill, in words; "" for any.
        example: a few lines of Python that use it.
        signed: whether a negative gain has a meaning.
        version: of the values; they stay the same as long as it does.
    """

    name: str
    summary: str
    formula: str
    when: str
    source: str
    form: str
    spread: Callable[[Any, Mapping[str, Any]], float] = field(repr=False)
    fan: str | None = None
    scope: str = "tensor"
    arguments: tuple[Argument, ...] = ()
    needs: str = ""
    example: str = field(default="", repr=False)
    signed: bool = False
    version: int = 1

    def std(self, fan: Fan = None, gain: float = 1.0, **arguments: Any) -> float:
        """Std of one weight: the root mean square, where it is not random.

        Args:
            fan: the number that is divided by, or (fan_in, fan_out), of which the scheme takes what
                it needs.  For schemes of the form "matrix": `(inputs, outputs, *kernel)` of
                one matrix.  None for a scheme that uses no fan.
            gain: multiplies the result.
            arguments: of the scheme.

        Raises:
            ArgumentError: the fan is missing or not positive, the gain is not finite (or negative
                where that has no meaning), an argument is unknown or not allowed.

        >>> from fanin.catalogue import find
        >>> find("he_normal").std(50)
        0.2
        >>> find("xavier_normal").std((30, 20), gain=2.0)
        0.4
        """
        complete = self.complete(arguments)
        self.check_gain(gain)
        if self.fan is not None:
            fan = self.divisor(fan, complete)
        try:
            return abs(float(gain)) * float(self.spread(fan, complete))
        except OverflowError as error:
            given = ", ".join(f"{k}={_short(v)}" for k, v in arguments.items())
            raise ArgumentError(f"{given}: the std of {self.name} overflows") from error

    def complete(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments with those that were not given at their defaults; checked."""
        known = {argument.name: argument for argument in self.arguments}
        for name, value in arguments.items():
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes none"
                takes += "; gain multiplies its std" if name == "std" else ""
                raise ArgumentError(f"{name}: {self.name} has no such argument; {takes}")
            if not _allows(known[name], value):
                allowed = known[name].allowed
                raise ArgumentError(f"{name}: {_short(value)}; {self.name} needs {allowed}")
        filled = {name: arguments.get(name, a.default) for name, a in known.items()}
        for name, argument in known.items():
            if name not in arguments and not _allows(argument, argument.default):
                raise ArgumentError(f"{name}: missing; {self.name} needs {argument.allowed}")
        if filled.get("low") is not None and not filled["low"] < filled["high"]:
            bounds = f"{filled['low']!r} and {filled['high']!r}"
            raise ArgumentError(f"low and high: {bounds}; low must be below high")
        if filled.get("centred") and self.drawn(filled) not in ("normal", "matrix"):
            raise ArgumentError('centred: True; only with distribution="normal"')
        return MappingProxyType(filled)

    def drawn(self, arguments: Mapping[str, Any]) -> str:
        """The form with these arguments: an argument `distribution` decides it."""
        return str(arguments.get("distribution", self.form))

    def check_gain(self, gain: Any) -> None:
        """Raise ArgumentError unless this gain has a meaning for this scheme."""
        if not is_number(gain) or (gain < 0 and not self.signed):
            allowed = "a finite number" if self.signed else "a finite number, 0 or more"
            raise ArgumentError(f"gain: {_short(gain)}; {self.name} needs {allowed}")

    def divisor(self, fan: Fan, arguments: Mapping[str, Any]) -> float:
        """The number that the variance is divided by; an argument `mode` picks it of a pair."""
        mode = str(arguments.get("mode", self.fan))
        if fan is None:
            raise ArgumentError(
                f"fan: missing; {self.name} divides by the {mode}: give fan=, a positive number or "
                "(fan_in, fan_out)"
            )
        fan_in, fan_out = both_fans(fan)
        return {
            "fan_in": fan_in,
            "fan_out": fan_out,
            "fan_avg": (fan_in + fan_out) / 2,
            "fan_geo": math.sqrt(fan_in * fan_out),
        }[mode]


def _allows(argument: Argument, value: Any) -> bool:
    try:
        return bool(argument.check(value))
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # of an odd object's own methods
        return False


def _short(value: Any) -> str:
    """One line of at most a few words for a value in a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"
