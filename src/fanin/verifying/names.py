"""Which tensor of a checkpoint is which parameter of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fanin.errors import ArgumentError
from fanin.reading import plain

__all__ = ["Names", "match"]


@dataclass(frozen=True)
class Names:
    """The names that were found for one another.

    Attributes:
        keys: parameter of the recipe → name in the checkpoint.
        added: what stands before the names in the checkpoint, and not in the recipe.
        removed: what stands before the names in the recipe, and not in the checkpoint.
    """

    keys: Mapping[str, str]
    added: str = ""
    removed: str = ""

    def parameter(self, key: str) -> str:
        """What the recipe would call a tensor of the checkpoint."""
        return self.removed + key.removeprefix(self.added)


def match(
    parameters: Sequence[str], known: Mapping[str, str], given: Mapping[str, str] | None = None
) -> Names:
    """Find the tensor of each parameter; those that are not found have none.

    Names that agree are taken, whatever torch.compile and activation checkpoints put into them.
    Where none does, a prefix that stands before the names on one side
    is left out, if it is the only one with which more than half of the parameters are found:
    wrappers add "module.", "_orig_mod.", "model.".

    Args:
        parameters: of the recipe.
        known: every name that leads to a tensor of the checkpoint → the name it has there.
        given: parameter → name in the checkpoint, where they are known to be called otherwise.

    Raises:
        ArgumentError: a name that was given is on neither side.

    >>> match(["0.weight"], {"module.0.weight": "module.0.weight"}).added
    'module.'
    """
    given = given or {}
    for parameter, key in given.items():
        if parameter not in parameters:
            raise ArgumentError(f"alias: {parameter!r}; the recipe draws no such parameter")
        if key not in known:
            raise ArgumentError(f"alias: {key!r}; the checkpoint holds no such tensor")
    told = {parameter: known[key] for parameter, key in given.items()}
    rest = [name for name in parameters if name not in given]
    keys = {name: known[name] for name in rest if name in known}
    bare = {plain(key): key for key in known}
    wrapped = {name: known[bare[plain(name)]] for name in rest if plain(name) in bare}
    if keys or not rest:
        return Names({**wrapped, **keys, **told})
    both = (*_prefixes(known, rest, True), *_prefixes(rest, known, False))
    enough = [(added, removed) for added, removed, found in both if 2 * found > len(rest)]
    if len(enough) != 1:
        return Names({**wrapped, **told})
    ((added, removed),) = enough
    wanted = {name: added + name.removeprefix(removed) for name in rest}
    keys = {name: known[key] for name, key in wanted.items() if key in known}
    return Names({**keys, **told}, added, removed)


def _prefixes(
    longer: Collection[str], shorter: Collection[str], added: bool
) -> Iterator[tuple[str, str, int]]:
    """What stands before names that are else known: (added, removed, how many names)."""
    short = set(shorter)
    found: Counter[str] = Counter()
    for name in longer:
        parts = name.split(".")
        for at in range(1, len(parts)):
            if ".".join(parts[at:]) in short:
                found[".".join(parts[:at]) + "."] += 1
    for prefix, amount in found.items():
        yield (prefix, "", amount) if added else ("", prefix, amount)
