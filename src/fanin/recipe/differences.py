"""A recipe held against a model, and against another recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fanin.assignment import Assignment, Recipe
from fanin.recipe.folding import Item, fold
from fanin.wording import visible

__all__ = ["Change", "Difference", "Mismatch", "check", "diff"]

_FIELDS = tuple(field.name for field in dataclasses.fields(Assignment) if field.name != "parameter")
_DIGITS = 6  # of a number that is shown, where these tell it from the other one


@dataclass(frozen=True)
class Mismatch:
    """A parameter for which a recipe and a model do not fit.

    Attributes:
        parameter: its path.
        kind: "missing" (the recipe does not say what becomes of it), "extra" (the model has no
            such parameter) or "shape".
        recipe: its shape in the recipe; None where the recipe has none.
        model: its shape in the model; None where the model does not have it.

    >>> print(Mismatch("head.weight", "shape", (10, 64), (10, 128)))
    head.weight: [10, 64] in the recipe, [10, 128] in the model
    """

    parameter: str
    kind: str
    recipe: tuple[int, ...] | None
    model: tuple[int, ...] | None

    def __str__(self) -> str:
        name = visible(self.parameter)
        if self.kind == "missing":
            return f"{name}: {_shape(self.model)} in the model, not in the recipe"
        if self.kind == "extra":
            return f"{name}: {_shape(self.recipe)} in the recipe, not in the model"
        return f"{name}: {_shape(self.recipe)} in the recipe, {_shape(self.model)} in the model"


def check(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], untouchable: Collection[str] = ()
) -> tuple[Mismatch, ...]:
    """Hold a recipe against a model; nothing is returned where they fit.

    Args:
        recipe: what is to be applied.
        shapes: of every parameter of the model, in its order.
        untouchable: parameters that a recipe does not have to name.

    >>> weight = Assignment("weight", "he_normal", 1.0, 0.2, 50.0, "", (10, 50), "oi")
    >>> for mismatch in check(Recipe((weight,)), {"weight": (10, 50), "bias": (10,)}):
    ...     print(mismatch)
    bias: [10] in the model, not in the recipe
    """
    assigned = {assignment.parameter: assignment.shape for assignment in recipe.assignments}
    return tuple(_mismatches(assigned, recipe.untouched, shapes, frozenset(untouchable)))


def _mismatches(
    assigned: Mapping[str, tuple[int, ...]],
    untouched: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    untouchable: Collection[str],
) -> Iterator[Mismatch]:
    for name, size in shapes.items():
        shape = tuple(size)
        if name not in assigned:
            if name not in untouched and name not in untouchable:
                yield Mismatch(name, "missing", None, shape)
        elif tuple(assigned[name]) != shape:
            yield Mismatch(name, "shape", tuple(assigned[name]), shape)
    for name in (*assigned, *untouched):
        if name not in shapes:
            yield Mismatch(name, "extra", assigned.get(name), None)


@dataclass(frozen=True)
class Change:
    """One field that two recipes give differently.

    Attributes:
        parameter: its path; "" for the recipe as a whole.
        field: of the assignment; "untouched" where one of the recipes leaves the parameter alone
            (the value is then its reason, and None in the recipe that assigns).
        before: its value in the first recipe.
        after: its value in the second.
    """

    parameter: str
    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Difference:
    """How a second recipe differs from a first; false where it does not.

    Attributes:
        added: parameters that only the second names.
        removed: parameters that only the first names.
        changed: what is different for parameters that both name.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        return "\n".join(_lines(self)) or "no difference"


def diff(a: Recipe, b: Recipe) -> Difference:
    """What is different in `b`, as compared with `a`; the order of the parameters does not count.

    >>> a = Assignment("h.0.w", "he_normal", 1.0, 0.2, 50.0, "relu follows", (10, 50), "oi")
    >>> b = dataclasses.replace(a, gain=0.5, std=0.1)
    >>> print(diff(Recipe((a,)), Recipe((b,))))
    ~ h.0.w
        gain: 1 → 0.5
        std: 0.2 → 0.1
    """
    first = {assignment.parameter: assignment for assignment in a.assignments}
    second = {assignment.parameter: assignment for assignment in b.assignments}
    before = dict.fromkeys((*first, *a.untouched))
    after = dict.fromkeys((*second, *b.untouched))
    changed = [Change("", "scheme", a.scheme, b.scheme)] if a.scheme != b.scheme else []
    for name in before:
        if name in after:
            reasons = a.untouched.get(name), b.untouched.get(name)
            changed += _changes(name, first.get(name), second.get(name), reasons)
    return Difference(
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
        tuple(changed),
    )


def _changes(
    name: str,
    before: Assignment | None,
    after: Assignment | None,
    reasons: tuple[str | None, str | None],
) -> Iterator[Change]:
    if before is None or after is None:
        if reasons[0] != reasons[1]:
            yield Change(name, "untouched", *reasons)
        return
    for field in _FIELDS:
        values = getattr(before, field), getattr(after, field)
        if values[0] != values[1]:
            yield Change(name, field, *values)


def _lines(difference: Difference) -> Iterator[str]:
    by_name: dict[str, list[Change]] = {}
    for change in difference.changed:
        by_name.setdefault(change.parameter, []).append(change)
    for change in by_name.pop("", ()):
        yield f"~ {change.field} of the recipe: {_arrow(change)}"
    for sign, names in (("-", difference.removed), ("+", difference.added)):
        for same in fold(Item(name, None) for name in names):
            yield f"{sign} {_named(same.pattern, len(same.items))}"
    for entry in fold(
        Item(name, tuple(change.field for change in changes), tuple(map(_arrow, changes)))
        for name, changes in by_name.items()
    ):
        yield f"~ {_named(entry.pattern, len(entry.items))}"
        for at, field in enumerate(entry.style):
            arrows = list(dict.fromkeys(item.values[at] for item in entry.items))
            yield f"    {field}: {arrows[0]}" + (f", …, {arrows[-1]}" if arrows[1:] else "")


def _named(pattern: str, count: int) -> str:
    return f"{visible(pattern)} ×{count}" if count > 1 else visible(pattern)


def _arrow(change: Change) -> str:
    pair = change.before, change.after
    if all(isinstance(value, float) for value in pair):
        short = [f"{value:.{_DIGITS}g}" for value in pair]
        return " → ".join(short if short[0] != short[1] else map(repr, pair))
    nothing = "assigned" if change.field == "untouched" else "none"
    return " → ".join(nothing if value is None else _shown(value) for value in pair)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    if isinstance(value, tuple):
        return _shape(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {entry!r}" for name, entry in value.items()) or "none"
    return repr(value)


def _shape(shape: tuple[Any, ...] | None) -> str:
    return "left alone" if shape is None else f"[{', '.join(map(str, shape))}]"
