"""What a verification found, as text and as data."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from fanin.plain import as_json
from fanin.summary import count, pattern, starred, to_text
from fanin.wording import listed, visible

__all__ = ["Checked", "State", "Verification", "render"]

State = Literal[
    "same", "differs", "other shape", "missing", "not judged", "left as it was", "not in the recipe"
]

#: States of tensors that the recipe does not draw.
_ASIDE = ("left as it was", "not in the recipe")
_DIGITS = {"float64": 17, "float32": 9, "float16": 5, "bfloat16": 4}  # that tell two values apart
_GAPS = 8  # cells between the four columns and around them
_NAME, _WHAT = 12, 24  # cells that names, and what is told, keep in a narrow terminal


@dataclass(frozen=True)
class Checked:
    """One tensor, held against its start.

    Attributes:
        name: of the parameter in the recipe; of a tensor that it does not name, in the checkpoint.
        state: "same" (every bit), "differs", "other shape", "missing" (not in the checkpoint),
            "not judged" (`told` says why); for tensors that the recipe does not draw: "left as it
            was" (the recipe gives `told` as the reason) or "not in the recipe".
        key: name in the checkpoint; None where it is missing.
        shape: in the recipe; None where the recipe does not draw it.
        found_shape: in the checkpoint; None where it is missing.
        dtype: in the checkpoint, which decides the rounding; None where it is missing.
        entries: how many were compared.
        differing: how many of them are not the same to the bit.
        first: index of the first that differs, in row-major order; None where none does.
        expected: the start there.
        found: the value in the checkpoint there.
        largest: largest absolute difference, of finite values.
        not_finite: how many of the differing entries are infinite or NaN.
        told: what is certain of the difference, or the reason of the state; may be empty.
    """

    name: str
    state: State
    key: str | None = None
    shape: tuple[int, ...] | None = None
    found_shape: tuple[int, ...] | None = None
    dtype: str | None = None
    entries: int = 0
    differing: int = 0
    first: tuple[int, ...] | None = None
    expected: float | None = None
    found: float | None = None
    largest: float | None = None
    not_finite: int = 0
    told: str = ""

    @property
    def assigned(self) -> bool:
        """Whether the recipe draws it."""
        return self.state not in _ASIDE


@dataclass(frozen=True, repr=False)
class Verification:
    """Which tensors of a checkpoint are still exactly at their start.

    Attributes:
        checkpoint: its path.
        scheme: of the recipe.
        seed: of the draw.
        tensors: those the recipe draws, in its order; then the others of the checkpoint.
        notes: where recipe and seed are from, and how names were found where it is not plain.

    Example::

        found = fanin.verify("start.safetensors")
        print(found)
        found.ok            # every tensor of the recipe is at its start, to the bit
        found["0.weight"].first
    """

    checkpoint: str
    scheme: str
    seed: int
    tensors: tuple[Checked, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every tensor that the recipe draws is there, and the same to the bit."""
        return all(t.state == "same" for t in self.tensors if t.assigned)

    @property
    def verdict(self) -> str:
        """One line: how many tensors are at their start, and what the others are."""
        states = Counter(t.state for t in self.tensors if t.assigned)
        total = states.total()
        if not total:
            return "the recipe draws no tensor"
        same = states.pop("same", 0)
        verb, whose = ("is", "its") if total == 1 else ("are", "their")
        lead = f"{same:,} of {count(total, 'tensor')} {verb} at {whose} start"
        if not states:
            return f"{lead}, to the bit"
        words = {
            "differs": ("differs", "differ"),
            "other shape": ("has another shape", "have another shape"),
            "missing": ("is missing", "are missing"),
            "not judged": ("cannot be judged", "cannot be judged"),
        }
        rest = (f"{n:,} {words[state][n > 1]}" for state, n in sorted(states.items()))
        return f"{lead}, to the bit; {', '.join(rest)}"

    def __getitem__(self, name: str) -> Checked:
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(f"{name}: neither in the recipe nor in the checkpoint")

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for JSON; values that are not finite are text."""
        return {
            "schema_version": 1,
            "ok": self.ok,
            "verdict": self.verdict,
            "checkpoint": self.checkpoint,
            "scheme": self.scheme,
            "seed": self.seed,
            "notes": list(self.notes),
            "tensors": [_plain(tensor) for tensor in self.tensors],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The result as JSON."""
        return as_json(self.to_dict(), indent)

    def __rich__(self) -> ConsoleRenderable:
        return render(self)

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        return f"<fanin.Verification: {self.verdict}>"


def _plain(tensor: Checked) -> dict[str, Any]:
    found = dataclasses.asdict(tensor)
    for name, value in found.items():
        if isinstance(value, tuple):
            found[name] = list(value)
        elif isinstance(value, float) and not math.isfinite(value):
            found[name] = str(value)
    return found


def render(found: Verification, *, full: bool = False) -> ConsoleRenderable:
    """The result for a terminal.

    Args:
        found: the result.
        full: a row for each tensor, where otherwise one stands for a kind of them.
    """
    parts: list[ConsoleRenderable] = [Text(visible(found.verdict))]
    parts += [Text(visible(note)) for note in found.notes]
    assigned = [t for t in found.tensors if t.assigned]
    if assigned:
        parts.append(_Table(tuple(_rows(assigned, full=full))))
    parts += map(Text, _aside(found))
    return Group(*parts)


def _rows(tensors: Sequence[Checked], *, full: bool) -> Iterator[tuple[str, str, str, str]]:
    """Fold what differs in the numbers of its path alone."""
    folded: dict[object, list[Checked]] = {}
    for at, tensor in enumerate(tensors):
        key = (starred(tensor.name), tensor.state, tensor.dtype, starred(tensor.told))
        folded.setdefault(at if full else key, []).append(tensor)
    for members in folded.values():
        differing, entries = sum(t.differing for t in members), sum(t.entries for t in members)
        share = f"{differing:,} of {entries:,}" if entries else "–"
        name = visible(pattern([t.name for t in members]))
        yield name, members[0].state, share, visible("; ".join(_what(members)))


@dataclass(frozen=True)
class _Table:
    """Rows (parameter, state, differing, what) in the width that there is.

    Names stay in one line as long as they can: first `what` is made narrower, then `differing`
    written in two lines.
    """

    rows: tuple[tuple[str, str, str, str], ...]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Table]:
        titles = ("parameter", "state", "differing", "what")
        columns = zip(titles, *self.rows, strict=True)
        name, state, share, what = (max(map(cell_len, column)) for column in columns)
        lines = (line for row in self.rows for line in _two_lines(row[2]).split("\n"))
        short, least = max(map(cell_len, (titles[2], *lines))), min(what, _WHAT)
        room = options.max_width - _GAPS - state
        name = min(name, max(room - short - least, _NAME))
        if room - name - share < least:
            share = short
        what = min(what, max(room - name - share, _NAME))
        shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for title, width in zip(titles, (name, state, share, what), strict=True):
            justify: Literal["left", "right"] = "right" if title == "differing" else "left"
            shown.add_column(title, justify=justify, overflow="fold", width=width)
        for path, kind, part, told in self.rows:
            part = part if cell_len(part) <= share else _two_lines(part)
            shown.add_row(Text(path), kind, part, Text(told))
        yield shown


def _two_lines(share: str) -> str:
    return share.replace(" of ", " of\n")


def _what(members: Sequence[Checked]) -> Iterator[str]:
    """What the row of some tensors says; figures are those of the first."""
    one, several = members[0], len(members) > 1
    if one.told:
        yield one.told
    if one.state == "other shape":
        yield f"{_sizes(one.found_shape)}, not {_sizes(one.shape)}"
    if one.first is not None:
        at = f"{_sizes(one.first)}{' of the first' if several else ''}"
        expected, value = (_value(v, one.dtype) for v in (one.expected, one.found))
        yield f"first at {at}: {expected} expected, {value} found"
    if one.largest:
        yield f"largest difference {max(t.largest or 0.0 for t in members):.3g}"


def _value(value: float | None, dtype: str | None) -> str:
    return f"{value:.{_DIGITS.get(dtype or '', 17)}g}"


def _sizes(sizes: Sequence[int] | None) -> str:
    return f"[{', '.join(map(str, sizes or ()))}]"


def _aside(found: Verification) -> Iterator[str]:
    """The tensors of the checkpoint that the recipe does not draw."""
    grouped: dict[str, list[str]] = {}
    for tensor in found.tensors:
        if not tensor.assigned:
            told = f"{tensor.state}: {tensor.told}" if tensor.told else tensor.state
            grouped.setdefault(told, []).append(tensor.name)
    for told, names in grouped.items():
        yield visible(f"{listed(names)}: {told}")
