"""Weights that were drawn once and used twice: equal parameters, equal rows of a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["clones", "equal", "repeated_rows", "repeats", "shared"]

_SAMPLE = 4096  # entries looked at to tell a random start from a designed one
_ROWS = 256  # rows in which neighbours are compared
_FEW = 256  # entries that are too few to see whether neighbours are alike
# Mean square of the steps between neighbours over that of independent entries, without the means of
# rows and columns: 1 for a draw (std 0.1 with _FEW entries), 0.01 to 0.2 for a table of sines.
SMOOTH = 0.5


def clones(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Groups of modules or parameters that start bit-identical without being tied.

    Only trainable matrices with random-looking entries, each in memory of its own, count: zeros,
    ones, identities, tables of sines and repeated rows are designs, not accidents.
    """
    again = {name for _, name in shared(model)}
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name not in again and _is_matrix(parameter)
    }
    groups_of_equal = [same for same in equal(matrices) if _is_drawn(matrices[same[0]])]
    if not groups_of_equal:
        return ()
    # what looks random → the first that is equal
    kin = {name: name for name, parameter in matrices.items() if _is_drawn(parameter)}
    for same in groups_of_equal:
        kin.update(dict.fromkeys(same, same[0]))
    inside = _members(kin)
    groups = dict.fromkeys(_places(same, kin, inside) for same in groups_of_equal)
    return tuple(g for g in groups if not any(_inside(g, other) for other in groups if other != g))


def shared(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Pairs of different parameters that lie, in whole or in part, in the same memory.

    >>> layer = nn.Linear(2, 2)
    >>> layer.again = nn.Parameter(layer.weight.data)
    >>> shared(layer)
    (('weight', 'again'),)
    """
    spans: list[tuple[str, int, int, int, str, Tensor]] = []
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        plain = type(values) is Tensor and values.layout == torch.strided
        if plain and values.numel() and not values.is_meta:
            steps = zip(values.shape, values.stride(), strict=True)
            first, reach = values.data_ptr(), sum((n - 1) * step for n, step in steps)
            last = first + (reach + 1) * values.element_size()
            spans.append((str(values.device), first, last, len(spans), name, values))
    found = []
    near: list[tuple[str, int, int, int, str, Tensor]] = []
    for span in sorted(spans, key=lambda s: s[:4]):
        near = [s for s in near if s[0] == span[0] and s[2] > span[1]]
        for other in (s for s in near if _meet(s[5], span[5])):
            one, two = sorted((other, span), key=lambda s: s[3])
            found.append((one[4], two[4]))
        near.append(span)
    return tuple(found)


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, whose spans of memory overlap, have an entry in common."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    places = [
        torch.arange(t.untyped_storage().nbytes() // t.element_size(), device="cpu")
        .as_strided(t.shape, t.stride(), t.storage_offset())
        .flatten()
        * t.element_size()
        for t in (one, other)
    ]
    return bool(torch.isin(*places).any())


def equal(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors with the same values, in groups of two or more.

    >>> equal({"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(2)})
    [['a', 'c']]
    """
    buckets: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        head = tensor.detach().flatten()[:8].tolist()
        buckets.setdefault((tensor.shape, tensor.dtype, tensor.device, *head), []).append(name)
    found = []
    for bucket in buckets.values():
        while len(bucket) > 1:
            first = tensors[bucket[0]]
            same = [bucket[0], *(n for n in bucket[1:] if torch.equal(tensors[n], first))]
            if len(same) > 1:
                found.append(same)
            bucket = [name for name in bucket if name not in same]
    return found


# Share of rows that must repeat others before it is called a draw that was used twice; a few equal
# rows are found as equal units.
REPEATED = 0.25
_HEAD = 4  # entries by which rows are compared first


def repeated_rows(model: nn.Module) -> tuple[tuple[str, int, int], ...]:
    """(parameter, rows that repeat another, rows) of matrices with many equal rows or columns.

    Two shards of one matrix that were drawn with one seed look so.
    """
    found = []
    for name, parameter in model.named_parameters():
        if _is_matrix(parameter):
            flat = parameter.detach().flatten(1)
            again = max((_repeats(m), len(m)) for m in (flat, flat.T))
            if again[0] > 0 and again[0] >= REPEATED * again[1] and _values(parameter) > _HEAD:
                found.append((name, *again))
    return tuple(found)


def repeats(values: Tensor) -> tuple[list[int], list[int]]:
    """Rows, and columns, of a weight that are equal to an earlier one and not zero.

    >>> repeats(torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 3.0]]))
    ([1], [])
    """
    flat = values.detach().flatten(1)
    return _later(flat), _later(flat.T)


def _later(rows: Tensor) -> list[int]:
    kinds = torch.unique(rows, dim=0, return_inverse=True)[1].tolist()
    first: dict[int, int] = {}
    for place, kind in enumerate(kinds):
        first.setdefault(kind, place)
    live = rows.any(1).tolist()
    return [i for i, kind in enumerate(kinds) if first[kind] != i and live[i]]


def _values(parameter: Tensor) -> float:
    """Distinct values in the first row that is not constant; identities and signs have a few."""
    return max(len(torch.unique(row)) for row in parameter.detach().flatten(1)[:_HEAD])


def _repeats(rows: Tensor) -> int:
    if rows.shape[0] < 2 or rows.shape[1] < _HEAD:
        return 0
    values = rows[:, :_HEAD].double()
    weights = values.new_tensor([1.0, 0.7320508, 0.4142136, 0.2360680])
    heads = (values * weights).sum(1)
    if len(torch.unique(heads)) > (1 - REPEATED) * len(rows) + 1:  # 1: rows of zeros are one kind
        return 0
    live = rows.any(1)  # zeros are not drawn: kernels with a centre alone, pruned inputs
    rows, heads = rows[live], heads[live]
    if len(torch.unique(heads)) > (1 - REPEATED) * len(rows):
        return 0
    distinct = len(torch.unique(rows, dim=0))
    return len(rows) - distinct if distinct >= _HEAD else 0  # one row for all is a design


def _is_matrix(parameter: Tensor) -> bool:
    """Trainable, with two axes or more (axes of length one do not count)."""
    wide = sum(size > 1 for size in parameter.shape) > 1
    return parameter.requires_grad and parameter.is_floating_point() and wide


def _is_drawn(parameter: Tensor) -> bool:
    return _random_looking(parameter) and not _smooth(parameter)


def _random_looking(parameter: Tensor) -> bool:
    part = parameter.detach().flatten()
    part = part[:: max(1, part.numel() // _SAMPLE)]
    return len(torch.unique(part)) > 0.5 * len(part)


def _smooth(parameter: Tensor) -> bool:
    """Whether neighbours are alike, as in a table of sines: a formula made it, no draw."""
    part = parameter.detach().flatten(1)[:_ROWS].float()
    if part.numel() < _FEW:
        return False
    part = part - part.mean(0, keepdim=True)
    part = part - part.mean(1, keepdim=True)
    spread = 2 * float(part.square().mean())
    steps = (part.diff(dim=d) for d in (0, 1) if part.shape[d] > 1)
    return any(float(step.square().mean()) < SMOOTH * spread for step in steps)


def _members(kin: Mapping[str, str]) -> dict[str, list[str]]:
    """Each module's path → what is left of the paths of the parameters in it."""
    found: dict[str, list[str]] = {}
    for name in kin:
        parts = name.split(".")
        for i in range(1, len(parts)):
            found.setdefault(".".join(parts[:i]), []).append(".".join(parts[i:]))
    return found


def _places(
    names: list[str], kin: Mapping[str, str], inside: Mapping[str, list[str]]
) -> tuple[str, ...]:
    """The largest modules around equal parameters in which all the others are equal too."""
    split = [n.split(".") for n in names]
    tail = 0
    while all(len(s) > tail + 1 for s in split) and len({s[-1 - tail] for s in split}) == 1:
        tail += 1
    for cut in range(tail, 0, -1):
        paths = tuple(".".join(s[:-cut]) for s in split)
        rests = [inside[p] for p in paths]
        if all(rest == rests[0] for rest in rests) and all(
            len({kin[f"{p}.{rest}"] for p in paths}) == 1 for rest in rests[0]
        ):
            return paths
    return tuple(names)


def _inside(group: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return len(group) == len(other) and all(
        a != b and a.startswith(f"{b}.") for a, b in zip(group, other, strict=True)
    )
