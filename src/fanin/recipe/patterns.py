"""Braces that stand for numbers, and lists that give each repeat its own value.

``h.{0..11}.mlp`` stands for twelve names, ``{0..22..2}`` for every other number, ``{0,3,7}`` for
three; braces that are meant literally are doubled.  A list under a name with braces has one entry
for each number of the first braces; an entry may be a list again, for the next braces; as with
arrays, a list of one entry stands for all.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from fanin.errors import RecipeError

__all__ = ["LARGEST", "Tree", "braces", "escape", "gather", "parse", "spread"]

#: One value, or a list with one entry a repeat.
Tree: TypeAlias = Any

# Of one recipe.  The largest models have some 1e5 tensors; a slip of the hand in a range should
# give a message, not fill the memory.
LARGEST = 1_000_000

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_ITEM = re.compile(r"\s*([\[\],]|[^\[\],\s]+)")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
# Nine digits keep int() cheap and are more than any index has.
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})(?:\.\.([0-9]{1,9}))?")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")
_SHORTEST = 3  # numbers that are written as a range; two are as short by themselves


def escape(text: str) -> str:
    """Double the braces, so that the text stands for itself.

    >>> escape("set{0}")
    'set{{0}}'
    """
    return text.replace("{", "{{").replace("}", "}}")


def parse(text: str) -> tuple[list[str], list[list[Tree]]]:
    """Split a text at its braces: n + 1 literal parts and the n lists of numbers between them.

    Raises:
        RecipeError: a lone brace, or something else than numbers between two.

    >>> parse("h.{0..2}.w{1,3}")
    (['h.', '.w', ''], [['0', '1', '2'], ['1', '3']])
    """
    literals, lists, literal, at = [], [], "", 0
    for match in _TOKEN.finditer(text):
        literal += text[at : match.start()]
        at = match.end()
        if match[1] is not None:
            literals.append(literal)
            lists.append(_items(match[1]))
            literal = ""
        elif len(match[0]) == 2:
            literal += match[0][0]
        else:
            raise RecipeError(f"a single {match[0]}; a brace that is meant literally is doubled")
    return [*literals, literal + text[at:]], lists


def braces(numbers: Sequence[Tree]) -> str:
    """Write numbers in braces, evenly spaced ones as a range.

    >>> braces(["0", "1", "2", "7"]), braces(["0", "2", "4"]), braces([["0.5", "1"]])
    ('{0..2,7}', '{0..4..2}', '{[0.5,1]}')
    """
    return "{" + _written(numbers) + "}"


def spread(tree: Tree, sizes: Sequence[int], single: Callable[[Tree], bool]) -> list[Any]:
    """One value for each repeat, the first braces slowest.

    Args:
        tree: a value for all repeats, or a list.
        sizes: how many numbers each braces have.
        single: whether something is one value, not a list of several.

    Raises:
        RecipeError: a list of the wrong length, or more lists within lists than braces.

    >>> spread([[1, 2]], (3, 2), lambda tree: isinstance(tree, int))
    [1, 2, 1, 2, 1, 2]
    """
    if single(tree) or not isinstance(tree, list):
        return [tree] * math.prod(sizes)
    if not sizes:
        raise RecipeError("a list, but the name has no braces that it could be for")
    if len(tree) not in (1, sizes[0]):
        entries = "1 entry" if len(tree) == 1 else f"{len(tree)} entries"
        raise RecipeError(f"a list of {entries} for {sizes[0]} repeats")
    parts = [spread(entry, sizes[1:], single) for entry in tree]
    if len(parts) == 1:
        parts *= sizes[0]
    return list(itertools.chain.from_iterable(parts))


def gather(values: Sequence[Any], sizes: Sequence[int]) -> Tree:
    """Write `values`, the first braces slowest, as briefly as `spread` can read them.

    >>> gather([1, 2, 1, 2, 1, 2], (3, 2)), gather([1, 1, 2, 2], (2, 2)), gather([5, 5], (2,))
    ([[1, 2]], [1, 2], 5)
    """
    if not sizes or values.count(values[0]) == len(values):
        return values[0]
    step = len(values) // sizes[0]
    parts = [values[at : at + step] for at in range(0, len(values), step)]
    if parts.count(parts[0]) == len(parts):
        parts = parts[:1]
    return [gather(part, sizes[1:]) for part in parts]


def _items(text: str) -> list[Tree]:
    """Read what stands between two braces."""
    items: list[Tree] = []
    opened = [items]
    wanted = True  # an item, not a comma
    for match in _ITEM.finditer(text):
        token = match[1]
        if token == "," and not wanted:
            wanted = True
        elif token == "]" and not wanted and len(opened) > 1:
            opened.pop()
        elif token == "[" and wanted:
            inner: list[Tree] = []
            opened[-1].append(inner)
            opened.append(inner)
        elif wanted and token not in ",]":
            opened[-1].extend(_numbers(token))
            wanted = False
        else:
            wanted = True
            break
    if wanted or len(opened) > 1:
        raise RecipeError(
            f"{{{text}}} is no list of numbers such as {{0..11}}, {{0..22..2}} or {{0,3,7}}; "
            "a brace that is meant literally is doubled"
        )
    return items


def _numbers(token: str) -> list[str]:
    found = _RANGE.fullmatch(token)
    if found:
        first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
        if step == 0:
            raise RecipeError(f"{{{token}}}: the step is 0")
        if abs(last - first) // step >= LARGEST:
            raise RecipeError(f"{{{token}}} stands for more than {LARGEST} numbers")
        ends = (last + 1, step) if last >= first else (last - 1, -step)
        return [str(number) for number in range(first, *ends)]
    if not _NUMBER.fullmatch(token):
        raise RecipeError(
            f"{token!r} in braces is no number; a brace that is meant literally is doubled"
        )
    return [token]


def _written(numbers: Sequence[Tree]) -> str:
    return ",".join(_ranges(numbers))


def _ranges(numbers: Sequence[Tree]) -> Iterator[str]:
    at = 0
    while at < len(numbers):
        number = numbers[at]
        if isinstance(number, list):
            yield f"[{_written(number)}]"
            at += 1
            continue
        end, step = _even(numbers, at)
        if end - at >= _SHORTEST:
            yield f"{number}..{numbers[end - 1]}" + (f"..{step}" if step > 1 else "")
            at = end
        else:
            yield str(number)
            at += 1


def _even(numbers: Sequence[Tree], start: int) -> tuple[int, int]:
    """Where the evenly spaced, rising whole numbers from `start` end, and their step."""
    step = previous = 0
    for at in range(start, len(numbers)):
        number = numbers[at]
        if isinstance(number, list) or not _WHOLE.fullmatch(number):
            return at, step
        value = int(number)
        if at == start + 1:
            step = value - previous
        if at > start and (value - previous != step or step <= 0):
            return at, step
        previous = value
    return len(numbers), step
