"""A recipe as text: TOML, with repeated blocks folded into patterns.

The text is written here and not by a library, because a list of a hundred numbers has to fill
lines, and a whole recipe two screens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

from fanin.assignment import Assignment, Recipe
from fanin.errors import ArgumentError, RecipeError
from fanin.recipe.folding import Entry, Item, Written, fold
from fanin.recipe.patterns import braces, escape
from fanin.recipe.scale import Unit, check_scale, units

__all__ = ["FORMAT", "to_toml"]

_S = TypeVar("_S", bound=Hashable)

FORMAT = 1

_HEAD = """\
# A fanin recipe: how every parameter of a model starts, and why.
# {0..11} stands for the numbers 0 to 11; a list under such a name has one entry for each.
"""
_WIDTH = 100  # of a line, where a list can be broken
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that `from_toml` reads back exactly.

    Arguments that are None are left out (TOML has no None); lists among arguments come back as
    tuples.

    Raises:
        RecipeError: what could not be read back: a number that is not finite, std and gain in
            contradiction, an argument that TOML cannot hold, a parameter named twice.

    >>> norm = [Assignment(f"h.{i}.ln.weight", "ones", 1.0, 1.0, None, "a norm") for i in (0, 1)]
    >>> print(to_toml(Recipe(tuple(norm))))
    # A fanin recipe: how every parameter of a model starts, and why.
    # {0..11} stands for the numbers 0 to 11; a list under such a name has one entry for each.
    format = 1
    scheme = "auto"
    <BLANKLINE>
    [[assignment]]
    parameter = "h.{0,1}.ln.weight"
    scheme = "ones"
    std = 1.0
    because = "a norm"
    shape = []
    <BLANKLINE>
    """
    unit = units()
    items: list[Item[_Style]] = []
    implied: dict[str, _Implied] = {}
    for assignment in recipe.assignments:
        name, given = assignment.parameter, assignment.arguments
        if name in implied or name in recipe.untouched:
            raise RecipeError(f"{name!r}: named twice; once is needed")
        arguments = {key: value for key, value in given.items() if value is not None}
        items.append(_item(assignment, arguments))
        implied[name] = _implied(assignment, arguments, unit)
    left = (_left(name, reason) for name, reason in recipe.untouched.items())
    parts = [f"{_HEAD}format = {FORMAT}\nscheme = {_text(recipe.scheme)}\n"]
    parts += [_table("assignment", _assignment(entry, implied)) for entry in fold(items)]
    parts += [_table("untouched", _untouched(entry)) for entry in fold(left)]
    return "\n".join(parts)


def _table(kind: str, lines: Iterable[str]) -> str:
    return "\n".join((f"[[{kind}]]", *lines, ""))


class _Style(NamedTuple):
    """What is the same for all parameters of an entry."""

    scheme: str
    layout: str
    blocks: int
    divides: bool  # by a fan
    arguments: tuple[str, ...]  # their names
    tuples: tuple[str, ...]  # arguments that are lists themselves, and so cannot be in a list
    words: tuple[str, ...]  # of the reason, between its numbers


class _Implied(NamedTuple):
    """What of an assignment goes without saying."""

    gain: bool  # it is 1, or the std itself
    std: bool  # it follows from the gain, to the bit


def _item(assignment: Assignment, arguments: Mapping[str, Any]) -> Item[_Style]:
    place = repr(assignment.parameter)
    std = _number(place, "std", assignment.std)
    gain = _number(place, "gain", assignment.gain)
    fan = "" if assignment.fan is None else _fan(place, assignment.fan)
    written = tuple(_value(f"{place}: {name}", value) for name, value in arguments.items())
    shape = _value(f"{place}: shape", tuple(assignment.shape))
    words, numbers = _split(assignment.because)
    style = _Style(
        assignment.scheme,
        assignment.layout,
        assignment.blocks,
        assignment.fan is not None,
        tuple(arguments),
        tuple(str(value) for value in arguments.values() if isinstance(value, (list, tuple))),
        words,
    )
    return Item(assignment.parameter, style, (std, gain, fan, shape, *written), numbers)


def _implied(assignment: Assignment, arguments: Mapping[str, Any], unit: Unit) -> _Implied:
    a = assignment
    try:
        at_one = unit(a.scheme, a.fan, arguments, a.shape, a.layout, a.blocks)
        check_scale(a.scheme, a.fan, a.std, a.gain, at_one)
    except (ArgumentError, RecipeError) as error:
        raise RecipeError(f"{a.parameter!r}: {error}") from error
    if at_one is None:
        return _Implied(False, False)
    clear = (a.gain == 1 and _same(a.std, at_one)) or (at_one == 1 and _same(a.std, a.gain))
    return _Implied(clear, _same(a.std, abs(a.gain) * at_one))


def _same(a: float, b: float) -> bool:
    """Equal to the bit: 0.0 and −0.0 are not."""
    return a == b and math.copysign(1.0, a) == math.copysign(1.0, b)


def _assignment(entry: Entry[_Style], implied: Mapping[str, _Implied]) -> Iterator[str]:
    style = entry.style
    clear = all(implied[item.name].gain for item in entry.items)
    follows = all(implied[item.name].std for item in entry.items)
    columns = range(len(entry.items[0].values))
    std, gain, fan, shape, *arguments = (entry.value(at) for at in columns)
    yield f"parameter = {_text(entry.pattern)}"
    yield f"scheme = {_text(style.scheme)}"
    if clear or not (follows and _is_list(std)):
        yield _field("std", std)
    if not clear:
        yield _field("gain", gain)
    if style.divides:
        yield _field("fan", fan)
    if style.arguments:
        yield _arguments(style.arguments, arguments)
    if style.words != ("",):
        yield f"because = {_text(_because(entry, style.words))}"
    yield _field("shape", shape)
    if style.layout:
        yield f"layout = {_text(style.layout)}"
    if style.blocks != 1:
        yield f"blocks = {style.blocks}"


def _left(name: str, reason: str) -> Item[tuple[str, ...]]:
    words, numbers = _split(reason)
    return Item(name, words, (), numbers)


def _untouched(entry: Entry[tuple[str, ...]]) -> Iterator[str]:
    yield f"parameter = {_text(entry.pattern)}"
    yield f"because = {_text(_because(entry, entry.style))}"


def _split(sentence: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words and the numbers of a sentence."""
    parts = _NUMBER.split(sentence)
    return tuple(parts[::2]), tuple(parts[1::2])


def _because(entry: Entry[_S], words: Iterable[str]) -> str:
    written = ""
    for at, text in enumerate(words):
        if at:
            number = entry.number(at - 1)
            written += braces(number) if _is_list(number) else number
        written += escape(text)
    return written


def _arguments(names: Iterable[str], values: Iterable[Any]) -> str:
    pairs = list(zip(names, values, strict=True))
    line = f"arguments = {{ {', '.join(_argument(*pair, _flat) for pair in pairs)} }}"
    if len(line) <= _WIDTH:
        return line
    return f"arguments = {{ {', '.join(_argument(*pair, _filled) for pair in pairs)} }}"


def _argument(name: str, value: Any, write: Callable[[Any], str]) -> str:
    # an argument may be a tuple itself, so a list of arguments has to say that it is one
    key = name if _BARE.fullmatch(name) else _text(name)
    return f"{key} = {{ each = {write(value)} }}" if _is_list(value) else f"{key} = {write(value)}"


def _field(name: str, value: Any) -> str:
    """One line, or an array that fills lines."""
    line = f"{name} = {_flat(value)}"
    return line if len(line) <= _WIDTH else f"{name} = {_filled(value)}"


def _filled(value: Any) -> str:
    """An array that fills lines."""
    if isinstance(value, str):
        return value
    lines = ["  "]
    for entry in value:
        text = f"{_flat(entry)},"
        if len(lines[-1]) + 1 + len(text) > _WIDTH and lines[-1].strip():
            lines.append("  ")
        lines[-1] += text if lines[-1] == "  " else f" {text}"
    return "\n".join(("[", *lines, "]"))


def _flat(value: Any) -> str:
    return value if isinstance(value, str) else f"[{', '.join(map(_flat, value))}]"


def _is_list(value: Any) -> bool:
    """Whether it has one entry a repeat; an array within one repeat is a tuple."""
    return isinstance(value, list)


def _number(place: str, name: str, value: float) -> str:
    if not math.isfinite(value):
        raise RecipeError(f"{place}: {name}: {value!r}; a finite number is needed")
    return repr(float(value))


def _fan(place: str, value: float) -> str:
    text = _number(place, "fan", value)
    return text.removesuffix(".0")


def _value(place: str, value: Any) -> Written:
    """An argument as TOML has it, arrays as tuples."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Integral):  # numpy's too
        return repr(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return tuple(_value(place, entry) for entry in value)
    raise RecipeError(
        f"{place}: {type(value).__name__} cannot stand in a recipe; "
        "a number, text, True, False or a tuple of them is needed"
    )


def _text(text: str) -> str:
    """A string in quotes, on one line, with nothing in it that a terminal would obey."""
    return '"' + "".join(_letter(letter) for letter in text) + '"'


def _letter(letter: str) -> str:
    if letter in _ESCAPED:
        return _ESCAPED[letter]
    if letter.isprintable():
        return letter
    if "\ud800" <= letter <= "\udfff":
        raise RecipeError(f"{letter!r} cannot stand in a recipe: TOML has no lone surrogates")
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
