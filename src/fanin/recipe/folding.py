"""Names that repeat but for a number, folded into patterns; the order is kept.

A folded entry stands for several names.  How entries are put back in order is a rule of the file
(`order`): entries in a row that agree up to their first braces are one block, which is read number
by number: everything of 0, then everything of 1.  Blocks within blocks likewise.  Folding goes by
the same rule: each number in a name either stays as it is or becomes braces, whichever gives the
shorter text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar

from fanin.recipe.patterns import braces, escape, gather

__all__ = ["Entry", "Item", "Written", "fold", "order"]

_S = TypeVar("_S", bound=Hashable)

#: A value as it is written; an array is a tuple.
Written: TypeAlias = "str | tuple[Written, ...]"

# A number of a name, without leading zeros.  Nine digits are more than any index has.
_INDEX = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
# Numbers of a name that may fold.  Names have up to five (block, attention, layer, head, output);
# every further one doubles the work.
_DEEPEST = 6

# What is easier to read, in characters: an entry takes some nine lines of the file; a value that
# is a list is harder to read than a value, and braces around one number than the number.
_ENTRY = 300
_LIST = 100
_SINGLE = 150


@dataclass(frozen=True)
class Item(Generic[_S]):
    """One name with what is said of it.

    Attributes:
        name: to be folded with others.
        style: what must be the same for two names to fold.
        values: what may be given as a list, written out; as many for all of a style.
        numbers: the same, for the numbers in a sentence: shown more easily than `values`.
    """

    name: str
    style: _S
    values: tuple[Written, ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass
class Entry(Generic[_S]):
    """Several items that differ in numbers alone.

    Attributes:
        tokens: of the (first) name: text, number, text, number, …, text.
        style: theirs.
        items: one for each combination of numbers, the first braces slowest.
        groups: the tokens that became braces, and their numbers.
    """

    tokens: tuple[str, ...]
    style: _S
    items: list[Item[_S]]
    groups: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @cached_property
    def cost(self) -> int:
        """What this entry takes to read."""
        singles = _SINGLE * sum(len(indices) == 1 for _, indices in self.groups)
        if len(self.items) == 1:
            return _ENTRY + singles
        columns = [self.value(at) for at in range(len(self.items[0].values))]
        listed = [_letters(tree) for tree in columns if isinstance(tree, list)]
        numbers = (self.number(at) for at in range(len(self.items[0].numbers)))
        letters = sum(_letters(tree) for tree in numbers if isinstance(tree, list))
        return _ENTRY + sum(listed) + _LIST * len(listed) + letters + singles

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each braces hold."""
        return tuple(len(indices) for _, indices in self.groups)

    @cached_property
    def pattern(self) -> str:
        """The name with its braces."""
        tokens = [escape(token) for token in self.tokens]
        for at, indices in self.groups:
            tokens[at] = braces(indices)
        return "".join(tokens)

    def value(self, at: int) -> Any:
        """The value `at`, or the list of it."""
        return gather([item.values[at] for item in self.items], self.sizes)

    def number(self, at: int) -> Any:
        """The number `at` of the sentence, or the list of it."""
        return gather([item.numbers[at] for item in self.items], self.sizes)


def fold(items: Iterable[Item[_S]]) -> list[Entry[_S]]:
    """Fold what can be folded; `order` gives the names back in the same order.

    >>> names = [f"h.{block}.{which}" for block in range(3) for which in ("weight", "bias")]
    >>> [entry.pattern for entry in fold(Item(name, None) for name in ("in", *names, "out"))]
    ['in', 'h.{0..2}.weight', 'h.{0..2}.bias', 'out']
    """
    entries = [
        Entry(tuple(_INDEX.split(item.name, maxsplit=_DEEPEST)), item.style, [item])
        for item in items
    ]
    return _folded(entries, 0, 1)


def order(
    literals: Sequence[Sequence[str]], numbers: Sequence[Sequence[Sequence[int]]]
) -> list[int]:
    """Which name comes next, of the names that entry after entry stands for (first braces slowest).

    Args:
        literals: of each entry, the n + 1 parts of the pattern around its n braces.
        numbers: of each entry, the numbers in each of its braces.

    >>> order([["h.", ".a"], ["h.", ".b"]], [[[0, 1]], [[0, 1]]])
    [0, 2, 1, 3]
    """
    keys: list[tuple[int, ...]] = []
    before: Sequence[str] = ()
    path: list[int] = []
    for number, (parts, groups) in enumerate(zip(literals, numbers, strict=True)):
        shared = 0  # levels of blocks that this entry has in common with the one before
        while shared < min(len(groups), len(before) - 1) and parts[shared] == before[shared]:
            shared += 1
        path = [*path[:shared], *[number] * (len(groups) + 1 - shared)]
        for chosen in itertools.product(*groups):
            pairs = zip(path, (*chosen, 0), strict=True)
            keys.append(tuple(itertools.chain.from_iterable(pairs)))
        before = parts
    return sorted(range(len(keys)), key=keys.__getitem__)


def _letters(tree: Any) -> int:
    return len(str(tree))


def _folded(entries: Sequence[Entry[_S]], start: int, at: int) -> list[Entry[_S]]:
    """Fold from the number `at` on; what stands before `start` is the same for all."""
    folded: list[Entry[_S]] = []
    for prefix, same in itertools.groupby(entries, lambda e: _prefix(e, start, at)):
        run = list(same)
        if prefix is None or len(run) == 1:
            folded += run
            continue
        plain = _folded(run, start, at + 2)
        indices = [int(entry.tokens[at]) for entry in run]
        if indices[0] < indices[-1] and indices == sorted(indices):
            merged = _folded(_merged(run, at), at + 1, at + 2)
            if sum(e.cost for e in merged) < sum(e.cost for e in plain):
                plain = merged
        folded += plain
    return folded


def _prefix(entry: Entry[_S], start: int, at: int) -> tuple[str, ...] | None:
    return entry.tokens[start:at] if at < len(entry.tokens) else None


def _merged(run: Sequence[Entry[_S]], at: int) -> list[Entry[_S]]:
    """Turn the number `at` into braces: entries that agree in all else become one.

    The repeats are laid over one another, each in its own order; what one of them has more than
    those before it stands just before what they have in common next.
    """
    rows: list[list[Entry[_S]]] = []
    places: dict[Hashable, list[int]] = {}
    for _, repeat in itertools.groupby(run, lambda e: e.tokens[at]):
        new: list[tuple[int, Entry[_S]]] = []  # and the row that it stands before
        waiting: list[Entry[_S]] = []
        free = 0  # the first row that is not passed yet
        for entry in repeat:
            place = next((p for p in places.get(_key(entry, at), ()) if p >= free), None)
            if place is None:
                waiting.append(entry)
            else:
                new += [(place, other) for other in waiting]
                waiting.clear()
                rows[place].append(entry)
                free = place + 1
        first = new[0][0] if new else len(rows)
        for place, entry in reversed(new):
            rows.insert(place, [entry])
        rows += [[entry] for entry in waiting]
        if first < len(rows) - len(waiting):  # rows have moved
            first = 0
            places.clear()
        for place in range(first, len(rows)):
            places.setdefault(_key(rows[place][0], at), []).append(place)
    return [entry for row in rows for entry in _joined(row, at)]


def _key(entry: Entry[_S], at: int) -> Hashable:
    return entry.tokens[at + 1 :], entry.style, entry.groups


def _joined(row: Sequence[Entry[_S]], at: int) -> list[Entry[_S]]:
    """Join the entries of a row: into one with lists, or one for each set of values."""
    groups: dict[Hashable, list[Entry[_S]]] = {}
    for entry in row:
        groups.setdefault(tuple(item.values for item in entry.items), []).append(entry)
    split = [_join(group, at) for group in groups.values()]
    whole = _join(row, at) if len(split) > 1 else split[0]
    return [whole] if whole.cost < sum(entry.cost for entry in split) else split


def _join(row: Sequence[Entry[_S]], at: int) -> Entry[_S]:
    first = row[0]
    items = [entry.items[i] for i in range(len(first.items)) for entry in row]
    indices = tuple(entry.tokens[at] for entry in row)
    return Entry(first.tokens, first.style, items, (*first.groups, (at, indices)))
