"""A recipe read from its text: patterns unfolded, every value checked, mistakes named."""

from __future__ import annotations

import contextlib
import itertools
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fanin.assignment import KEPT, REPAIR, Assignment, Recipe
from fanin.catalogue import find
from fanin.errors import ArgumentError, RecipeError
from fanin.recipe.folding import order
from fanin.recipe.patterns import LARGEST, Tree, parse, spread
from fanin.recipe.scale import Unit, check_scale, units
from fanin.recipe.writing import FORMAT
from fanin.wording import did_you_mean

__all__ = ["from_toml"]

_T = TypeVar("_T")
_Table = Mapping[str, Any]

_TOP = ("format", "scheme", "assignment", "untouched")
_UNTOUCHED = ("parameter", "because")
_ASSIGNMENT = (
    *("parameter", "scheme", "std", "gain", "fan", "arguments"),
    *("because", "shape", "layout", "blocks"),
)
_LETTERS = "oikbv"
_SIZES = "a list of sizes"


def from_toml(text: str) -> Recipe:
    """Read a recipe.

    Of ``std`` and ``gain`` one may be left out: it follows from the scheme.

    Raises:
        RecipeError: the text is not TOML, or says something that is not allowed; one line that
            names the entry, the value and what is allowed.

    >>> recipe = from_toml('''
    ... format = 1
    ... scheme = "auto"
    ... [[assignment]]
    ... parameter = "h.{0..2}.weight"
    ... scheme = "he_normal"
    ... fan = 50
    ... gain = [1, 0.5, 0.25]
    ... shape = [10, 50]
    ... layout = "oi"
    ... ''')
    >>> [(assignment.parameter, assignment.std) for assignment in recipe.assignments]
    [('h.0.weight', 0.2), ('h.1.weight', 0.1), ('h.2.weight', 0.05)]
    """
    data = _loaded(text)
    _known("recipe", data, _TOP)
    version = _required("recipe", data, "format", _is_whole, "a whole number")
    if version != FORMAT:
        raise RecipeError(f"recipe: format: {version}; this fanin reads format {FORMAT}")
    scheme = _required("recipe", data, "scheme", _is_text, "text")
    if scheme != REPAIR:
        with _place("recipe"):
            find(scheme)
    unit = units()
    seen: dict[str, str] = {}
    assigned = list(_entries(data, "assignment", _ASSIGNMENT, seen))
    left = list(_entries(data, "untouched", _UNTOUCHED, seen))
    assignments = _ordered(assigned, [_assignments(entry, unit) for entry in assigned])
    reasons = _ordered(left, [zip(entry.names, entry.sentences(), strict=True) for entry in left])
    return Recipe(tuple(assignments), dict(reasons), scheme)


class _Entry:
    """One table of the file, and the names that its pattern stands for."""

    def __init__(self, place: str, table: _Table, fields: Sequence[str]) -> None:
        pattern = _required(place, table, "parameter", _is_text, "text")
        self.place = f"{place} {pattern!r}"
        self.table = table
        _known(self.place, table, fields)
        with _place(self.place, "parameter"):
            self.literals, groups = parse(pattern)
            for group in groups:
                for number in group:
                    if not (isinstance(number, str) and number.isdecimal()):
                        raise RecipeError(f"{number!r} in a name is no whole number")
        self.groups: list[list[str]] = groups
        self.sizes = [len(group) for group in groups]
        if math.prod(self.sizes) > LARGEST:
            raise RecipeError(f"{self.place}: stands for more than {LARGEST} parameters")
        self.names = [self.unfolded(chosen) for chosen in itertools.product(*groups)]

    def unfolded(self, chosen: Iterable[str]) -> str:
        """The name in which these numbers stand for the braces."""
        pairs = zip(self.literals, (*chosen, ""), strict=True)
        return "".join(itertools.chain.from_iterable(pairs))

    def each(
        self,
        field: str,
        tree: Tree,
        right: Callable[[Any], bool],
        allowed: str,
        single: Callable[[Tree], bool] = lambda tree: not isinstance(tree, list),
    ) -> list[Any]:
        """One value for each name, each of them checked."""
        with _place(self.place, field):
            values: list[Any] = spread(tree, self.sizes, single)
            for value in values:
                if not right(value):
                    raise RecipeError(f"{_short(value)}; {allowed} is needed")
        return values

    def numbers(self, field: str, above: float, allowed: str) -> list[float | None]:
        """One number for each name; None where the field is left out."""
        if field not in self.table:
            return [None] * len(self.names)
        values = self.each(field, self.table[field], _is_number, allowed)
        for name, value in zip(self.names, values, strict=True):
            if not (_is_finite(value) and value > above):
                raise RecipeError(f"{name!r}: {field}: {_short(value)}; {allowed} is needed")
        return [float(value) for value in values]

    def sentences(self) -> list[str]:
        """The reason for each name."""
        said = self.table.get("because", "")
        if not _is_text(said):
            raise RecipeError(f"{self.place}: because: {_short(said)}; text is needed")
        with _place(self.place, "because"):
            words, trees = parse(said)
            columns = [spread(tree, self.sizes, _is_text) for tree in trees]
        if not columns:
            return words * len(self.names)
        rows = zip(*columns, strict=True)
        return ["".join(_alternating(words, row)) for row in rows]


def _assignments(entry: _Entry, unit: Unit) -> list[Assignment]:
    """One for each name of an entry."""
    place, table = entry.place, entry.table
    scheme = _required(place, table, "scheme", _is_text, "text")
    if scheme != KEPT:
        with _place(place):
            find(scheme)
    blocks = table.get("blocks", 1)
    if not (_is_whole(blocks) and blocks >= 1):
        raise RecipeError(f"{place}: blocks: {_short(blocks)}; a whole number from 1 on is needed")
    sizes = _required(place, table, "shape", lambda value: isinstance(value, list), _SIZES)
    shapes = entry.each("shape", sizes, _is_shape, _SIZES, _is_flat)
    layout = _layout(entry, shapes)
    columns = zip(
        entry.names,
        entry.numbers("fan", 0.0, "a positive number"),
        entry.numbers("std", -math.ulp(0.0), "a finite number, 0 or more,"),
        entry.numbers("gain", -math.inf, "a finite number"),
        map(tuple, shapes),
        _arguments(entry),
        entry.sentences(),
        strict=True,
    )
    found = []
    for name, fan, std, gain, shape, arguments, because in columns:
        with _place(repr(name)):
            at_one = unit(scheme, fan, arguments, shape, layout, blocks)
            gain, std = _scale(scheme, fan, std, gain, at_one)
        found.append(
            Assignment(name, scheme, gain, std, fan, because, shape, layout, blocks, arguments)
        )
    return found


def _layout(entry: _Entry, shapes: Iterable[Sequence[int]]) -> str:
    layout = entry.table.get("layout", "")
    if not _is_text(layout) or set(layout) - set(_LETTERS):
        raise RecipeError(
            f"{entry.place}: layout: {_short(layout)}; one of the letters {_LETTERS} for each "
            "dimension is needed"
        )
    for name, shape in zip(entry.names, shapes, strict=True):
        if layout and len(layout) != len(shape):
            raise RecipeError(
                f"{name!r}: layout: {layout!r}; one letter for each of the {len(shape)} dimensions "
                "is needed"
            )
    return str(layout)


def _arguments(entry: _Entry) -> list[_Table]:
    """The further arguments for each name."""
    table = entry.table.get("arguments", {})
    if not isinstance(table, dict):
        raise RecipeError(f"{entry.place}: arguments: {_short(table)}; a table is needed")
    columns = []
    for name, value in table.items():
        field = f"arguments: {name}"
        if isinstance(value, dict):
            _known(f"{entry.place}: {field}", value, ("each",))
            value = value.get("each", [])
            columns.append(entry.each(field, value, _is_plain, "a number, text, true or false"))
        else:
            columns.append([_frozen(f"{entry.place}: {field}", value)] * len(entry.names))
    if not columns:
        return [{} for _ in entry.names]
    rows = zip(*columns, strict=True)
    return [dict(zip(table, row, strict=True)) for row in rows]


def _scale(
    name: str, fan: float | None, std: float | None, gain: float | None, unit: float | None
) -> tuple[float, float]:
    """Gain and std: both given and in agreement, or one from the other."""
    if std is None and gain is None:
        raise RecipeError("std and gain: both missing; one of them is needed")
    if name == KEPT and gain is not None:
        std = gain if std is None else std
    if unit is None and (std is None or gain is None):
        missing = "std" if std is None else "gain"
        raise RecipeError(f"{missing}: missing; {name} does not tell it for this shape and layout")
    if gain is None:
        assert std is not None
        assert unit is not None
        gain = std / unit if unit else 1.0
        if not math.isfinite(gain):
            raise RecipeError(f"std: {std!r}; the gain would not be finite")
    elif std is None:
        assert unit is not None
        std = abs(gain) * unit
    check_scale(name, fan, std, gain, unit)
    return gain, std


def _ordered(entries: Sequence[_Entry], values: Iterable[Iterable[_T]]) -> list[_T]:
    """The values of all entries in the order of the file: blocks number by number."""
    flat = list(itertools.chain.from_iterable(values))
    numbers = [[[int(number) for number in group] for group in e.groups] for e in entries]
    return [flat[at] for at in order([entry.literals for entry in entries], numbers)]


def _entries(
    data: _Table, kind: str, fields: Sequence[str], seen: dict[str, str]
) -> Iterator[_Entry]:
    """Entries of one kind; no name of theirs may be in `seen` (name → place), all are added."""
    tables = data.get(kind, [])
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise RecipeError(f"recipe: {kind}: {_short(tables)}; entries begin with [[{kind}]]")
    for number, table in enumerate(tables, 1):
        entry = _Entry(f"{kind} {number}", table, fields)
        for name in entry.names:
            if name in seen:
                again = "twice" if seen[name] == entry.place else f"in {seen[name]} too"
                raise RecipeError(f"{entry.place}: {name!r} is named {again}; once is needed")
            seen[name] = entry.place
        if len(seen) > LARGEST:
            raise RecipeError(f"recipe: stands for more than {LARGEST} parameters")
        yield entry


def _loaded(text: str) -> _Table:
    if not isinstance(text, str):
        raise RecipeError(f"recipe: {type(text).__name__}; text is needed")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        # ValueError: a date or an integer that no Python value can be
        raise RecipeError(f"recipe: not TOML: {' '.join(str(error).split())}") from error


def _known(place: str, table: _Table, fields: Sequence[str]) -> None:
    for field in table:
        if field not in fields:
            hint = did_you_mean(field, fields, 1) or f"; known are {', '.join(fields)}"
            raise RecipeError(f"{place}: there is no field {_short(field)}{hint}")


def _required(
    place: str, table: _Table, field: str, right: Callable[[Any], bool], allowed: str
) -> Any:
    if field not in table:
        raise RecipeError(f"{place}: {field}: missing; {allowed} is needed")
    if not right(table[field]):
        raise RecipeError(f"{place}: {field}: {_short(table[field])}; {allowed} is needed")
    return table[field]


@contextlib.contextmanager
def _place(*parts: str) -> Iterator[None]:
    """Say where, of a mistake that is found within."""
    try:
        yield
    except (ArgumentError, RecipeError) as error:
        raise RecipeError(": ".join((*parts, str(error)))) from error


def _frozen(place: str, value: Any) -> Any:
    """An argument, its lists as tuples."""
    if isinstance(value, list):
        return tuple(_frozen(place, entry) for entry in value)
    if not _is_plain(value):
        raise RecipeError(
            f"{place}: {_short(value)}; a number, text, true, false or a list of them is needed"
        )
    return value


def _alternating(words: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    return itertools.chain.from_iterable(zip(words, (*numbers, ""), strict=True))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str))  # a bool is an int


def _is_flat(tree: Tree) -> bool:
    return isinstance(tree, list) and not any(isinstance(entry, list) for entry in tree)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(_is_whole(size) and size >= 0 for size in value)
