"""The per-layer table as rows: repeated blocks folded into one, guilty layers never hidden."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fanin.findings import Finding
from fanin.layers import LayerStats
from fanin.report.record import Record
from fanin.report.wording import places
from fanin.wording import visible

__all__ = ["Gap", "Row", "all_rows", "folded_names", "folded_rows", "guilty", "indices",
           "stem"]  # fmt: skip

# A path component that is only digits: "h.0.mlp".  Nine digits keep int() cheap on any name.
_INDEX = re.compile(r"(?<![^.])([0-9]{1,9})(?![^.])")
# Digits anywhere: "denselayer12.conv1"; used only when the strict pattern leaves too many rows.
_DIGITS = re.compile(r"([0-9]{1,9})")


@dataclass(frozen=True)
class Row:
    """One line of the table: a layer, or several layers of one pattern."""

    name: str
    members: tuple[LayerStats, ...]
    codes: tuple[str, ...]
    severity: str | None


@dataclass(frozen=True)
class Gap:
    """The place where layers were left out."""

    layers: int


def guilty(record: Record) -> dict[str, tuple[Finding, ...]]:
    """Map the name of each layer to the errors and warnings that name it.

    A finding names a layer by its path, by the path of one of its parameters, or by the path of a
    module that contains it.
    """
    by_place: dict[str, list[Finding]] = {}
    for finding in record.findings:
        if finding.severity in ("error", "warning"):
            for place in places(finding):
                by_place.setdefault(place, []).append(finding)
    by_place.pop("", None)
    found = {}
    for layer in record.layers:
        parts = layer.name.split(".")
        paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        named = [f for path in (*paths, *layer.parameters) for f in by_place.get(path, ())]
        if named:
            found[layer.name] = tuple(dict.fromkeys(named))
    return found


def all_rows(record: Record) -> list[Row]:
    """Return one row a layer, in order of execution."""
    blame = guilty(record)
    return [_row(visible(layer.name), [layer], blame) for layer in record.layers]


def folded_rows(record: Record, limit: int) -> list[Row | Gap]:
    """Return at most about ``limit`` rows; only guilty rows may exceed it.

    Layers fold when their paths differ in indices alone and operation, fans, units and findings
    are the same.  What still does not fit is cut from the middle.
    """
    blame = guilty(record)
    rows = _fold(record.layers, blame, _INDEX)
    if len(rows) > limit:
        rows = _fold(record.layers, blame, _DIGITS)
    return _cut(rows, limit)


def folded_names(names: Sequence[str], limit: int) -> list[str]:
    """Write each name; of a list longer than ``limit``, one pattern for each repeated path.

    Names that are nothing but an index stay as they are.

    >>> folded_names([f"h.{block}.mlp" for block in range(12)], 3)
    ['h.{0..11}.mlp ×12']
    """
    if len(names) <= limit + 1:
        return [visible(name) for name in names]
    keys: dict[str, object] = {}
    groups: dict[object, list[str]] = {}
    for name in names:
        common = stem(name)
        keys[name] = common if any(common) else name
        groups.setdefault(keys[name], []).append(name)
    folded = {key: _pattern(group, _INDEX) for key, group in groups.items() if len(group) > limit}
    return list(dict.fromkeys(folded.get(keys[name]) or visible(name) for name in names))


def stem(name: str, index: re.Pattern[str] = _INDEX) -> tuple[str, ...]:
    """Return what two paths that differ in their indices alone have in common.

    >>> stem("h.0.mlp") == stem("h.11.mlp")
    True
    """
    return tuple(index.split(name)[::2])


def _fold(
    layers: Iterable[LayerStats], blame: Mapping[str, tuple[Finding, ...]], index: re.Pattern[str]
) -> list[Row]:
    groups: dict[object, list[LayerStats]] = {}
    for layer in layers:
        fans = (layer.op, layer.fan_in, layer.fan_out, layer.units, layer.trainable)
        codes = tuple(finding.code for finding in blame.get(layer.name, ()))
        groups.setdefault((stem(layer.name, index), fans, codes), []).append(layer)
    return [
        _row(_pattern([layer.name for layer in group], index), group, blame)
        for group in groups.values()
    ]


def _row(name: str, members: Sequence[LayerStats], blame: Mapping[str, tuple[Finding, ...]]) -> Row:
    found = blame.get(members[0].name, ())
    codes = tuple(dict.fromkeys(finding.code for finding in found))
    severities = [finding.severity for finding in found]
    severity = "error" if "error" in severities else severities[0] if severities else None
    return Row(name, tuple(members), codes, severity)


def _pattern(names: Sequence[str], index: re.Pattern[str]) -> str:
    """Write the common path of a group: ``h.{0..11}.mlp ×12``."""
    if len(names) == 1:
        return visible(names[0])
    pieces = [index.split(name) for name in names]
    parts = [
        indices([int(piece[at]) for piece in pieces]) if at % 2 else visible(piece)
        for at, piece in enumerate(pieces[0])
    ]
    return f"{''.join(parts)} ×{len(names)}"


def indices(values: Iterable[int]) -> str:
    """Write a set of indices: ``{0..11}``, ``{0,2..22}``, ``{0..3,7,9,…}``; a single one as it is.

    >>> indices([0, 1, 2, 3]), indices([5])
    ('{0..3}', '5')
    """
    numbers = sorted(set(values))
    if len(numbers) == 1:
        return str(numbers[0])
    step = numbers[1] - numbers[0]
    if len(numbers) > (2 if step == 1 else 3) and numbers == list(
        range(numbers[0], numbers[-1] + 1, step)
    ):
        start = str(numbers[0]) if step == 1 else f"{numbers[0]},{numbers[1]}"
        return f"{{{start}..{numbers[-1]}}}"
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs]
    return "{" + ",".join(parts if len(parts) <= 4 else [*parts[:3], "…"]) + "}"


def _cut(rows: Sequence[Row], limit: int) -> list[Row | Gap]:
    """Keep the first and last few rows and all guilty ones; put gaps where the others were."""
    if len(rows) <= limit:
        return list(rows)
    marked = sum(row.severity is not None for row in rows)
    free = max(6, limit - marked)
    head, tail = free - free // 3, len(rows) - free // 3
    shown: list[Row | Gap] = []
    for at, row in enumerate(rows):
        if at < head or at >= tail or row.severity is not None:
            shown.append(row)
        elif shown and isinstance(shown[-1], Gap):
            shown[-1] = Gap(shown[-1].layers + len(row.members))
        else:
            shown.append(Gap(len(row.members)))
    return shown
