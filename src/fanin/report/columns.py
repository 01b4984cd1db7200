"""The columns of the per-layer table: what each writes for a layer or for a folded row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fanin.layers import LayerStats
from fanin.report.wording import interval
from fanin.wording import visible

__all__ = ["COLUMNS", "Column", "filled"]


@dataclass(frozen=True)
class Column:
    """A column of figures; a larger ``keep`` stays longer when the terminal is narrow."""

    title: str
    keep: int
    legend: str
    cell: Callable[[Sequence[LayerStats]], str]


def _same(members: Sequence[LayerStats], write: Callable[[LayerStats], str]) -> str:
    """The members of a row agree in what this writes, or the row shows the first and a mark."""
    written = list(dict.fromkeys(write(layer) for layer in members))
    return written[0] if len(written) == 1 else f"{written[0]}…"


def _fans(layer: LayerStats) -> str:
    if layer.fan_in is None and layer.fan_out is None:
        return "–"
    return f"{_amount(layer.fan_in)}→{_amount(layer.fan_out)}"


def _amount(amount: int | None) -> str:
    """Write an exact amount, or a dash where there is none."""
    return "–" if amount is None else str(amount)


def _distinct(members: Sequence[LayerStats]) -> str:
    """Write distinct units of all units: ``32/32``, ``1–32/32`` in a folded row."""
    units = members[0].units
    if units is None:
        return "–"
    seen = sorted({layer.distinct_units for layer in members if layer.distinct_units is not None})
    if not seen:
        return f"–/{units}"
    low = f"{seen[0]}" if len(seen) == 1 else f"{seen[0]}–{seen[-1]}"
    return f"{low}/{units}"


def _inactive(members: Sequence[LayerStats]) -> str:
    """Write dead and saturated shares in percent: ``12/0``."""

    def percent(values: list[float]) -> str:
        worst = 100 * max(values, default=0.0)
        return "<1" if 0 < worst < 1 else f"{worst:.0f}"

    dead = [layer.dead for layer in members if layer.dead is not None]
    saturated = [layer.saturated for layer in members if layer.saturated is not None]
    return f"{percent(dead)}/{percent(saturated)}" if dead or saturated else "–"


COLUMNS = (
    Column("op", 2, "", lambda members: visible(members[0].op)),
    Column("fan in→out", 3, "", lambda members: _same(members, _fans)),
    Column("distinct", 9, "distinct units / all", _distinct),
    Column("rms", 8, "rms of the output", lambda members: interval(layer.rms for layer in members)),
    Column(
        "variation",
        7,
        "variation across samples (0: all look the same)",
        lambda members: interval(layer.variation for layer in members),
    ),
    Column(
        "tokens",
        1,
        "tokens: variation across tokens",
        lambda members: interval(layer.token_variation for layer in members),
    ),
    Column(
        "cotangent",
        6,
        "cotangent: rms of the loss's gradient at the output",
        lambda members: interval(layer.cotangent_rms for layer in members),
    ),
    Column(
        "gradient",
        5,
        "gradient: the same for the weight",
        lambda members: interval(layer.gradient_rms for layer in members),
    ),
    Column("dead/sat %", 4, "dead units / saturated values", _inactive),
    Column(
        "non-finite",
        10,
        "non-finite values in the output",
        lambda members: str(max(layer.nonfinite for layer in members)),
    ),
)
SILENT = {"dead/sat %": "0/0", "non-finite": "0"}


def filled(column: Column, cells: Sequence[str]) -> bool:
    """Tell whether a column says anything at all."""
    return not {"–", SILENT.get(column.title, "–")}.issuperset(cells)
