"""Of a set of changes that clears a fault, those that it does not need are taken back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

from fanin.assignment import KEPT, Assignment
from fanin.summary import starred

__all__ = ["BESIDE", "fewest", "kindred"]

# Checks that are spent on it: the kinds of parameters of a block, and what is left of them.
TRIALS = 10
#: What is said of biases that go with the scale of their weights.
BESIDE = "beside a signal scaled to"

Names = frozenset[str]


def kindred(chosen: Mapping[str, Assignment], names: Collection[str]) -> list[list[Names]]:
    """Names that are taken back together or not at all, in lists of what repeats in depth.

    Scales that one pass has measured hold for one another, and so do the weights of a deep stretch.
    Biases, which are needed least often, come first.
    """
    together: dict[str, set[str]] = {}
    for name in names:
        made = chosen[name]
        measured = made.scheme == KEPT or not {"rows", "kept"}.isdisjoint(made.arguments)
        measured |= BESIDE in made.because
        deep = "in a deep stretch" in made.because
        together.setdefault("scaled" if measured else "deep" if deep else name, set()).add(name)
    repeats: dict[str, list[Names]] = {}
    for key, members in together.items():
        repeats.setdefault(starred(key), []).append(frozenset(members))
    axes = {key: max(len(chosen[n].shape) for n in group[0]) for key, group in repeats.items()}
    return [repeats[key] for key in sorted(repeats, key=axes.__getitem__)]


def fewest(blocks: Iterable[list[Names]], holds: Callable[[Names], bool]) -> Names:
    """Names that can be taken back: each block whole, else by halves, as long as the rest holds.

    Args:
        blocks: lists of names that go together.
        holds: whether the fault stays gone with these names taken back.

    >>> blocks = [[frozenset("a"), frozenset("b")], [frozenset("c")]]
    >>> sorted(fewest(blocks, lambda back: "b" not in back))
    ['a', 'c']
    """
    queue = deque(blocks)
    back: Names = frozenset()
    for _ in range(TRIALS):
        if not queue:
            break
        block = queue.popleft()
        if holds(back.union(*block)):
            back = back.union(*block)
        elif len(block) > 1:
            middle = len(block) // 2
            queue += [block[:middle], block[middle:]]
    return back
