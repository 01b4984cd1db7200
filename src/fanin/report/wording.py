"""The words and figures every renderer shares: short numbers, lists of names, the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from fanin.findings import Finding
from fanin.layers import Depth
from fanin.report.record import Record
from fanin.summary import count
from fanin.symmetry import UnitClass
from fanin.wording import layer_named, visible

__all__ = [
    "MARKS",
    "copies",
    "facts",
    "growth",
    "interval",
    "listing",
    "number",
    "places",
    "verdict",
]

CODES = 6  # of the rules that were left out, before the rest fold into a number
MARKS = {"error": "✗", "warning": "!", "info": "·", "ok": "✓"}


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure with ``digits`` significant digits, short enough for a table.

    >>> number(0.43219), number(0.0000123), number(48213.2), number(None)
    ('0.432', '1.23e-5', '48213', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size == 0:
        return "0"
    if 10 ** (digits - 1) <= size < 10 ** (digits + 2):
        return f"{value:.0f}"
    if 0.001 <= size < 10 ** (digits - 1):
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def interval(values: Iterable[float | None]) -> str:
    """Write the figures of a folded row: one figure when they agree, else smallest–largest.

    >>> interval([0.5, 0.5]), interval([0.5, None, 2.25])
    ('0.5', '0.5–2.2')
    """
    known = [value for value in values if value is not None]
    if not known or any(math.isnan(value) for value in known):
        return "nan" if known else "–"
    low, high = min(known), max(known)
    if number(low) == number(high):
        return number(low)
    return "–".join(dict.fromkeys(map(_end, (low, high))))


def _end(value: float) -> str:
    """One end of an interval: two digits, or one before an exponent."""
    text = number(value, 2)
    return number(value, 1) if "e" in text else text


def listing(names: Sequence[str], limit: int | None = 3) -> str:
    """Write a list of names, folding a long one.

    >>> listing(["0", "2", "4", "6", "8"])
    '0, 2, 4 … (+2)'
    """
    shown = [visible(name) or "(the whole model)" for name in names]
    if limit is None or len(shown) <= limit + 1:
        return ", ".join(shown)
    return f"{', '.join(shown[:limit])} … (+{len(shown) - limit})"


def copies(found: UnitClass, limit: int | None) -> str:
    """Write the units, or rows, of a class of copies: their run, or their list, folding a long one.

    >>> copies(UnitClass("0", (0, 1, 2, 3), "locked", 4), 8)
    'units 0–3 (4 copies)'
    >>> copies(UnitClass("latents", (0, 5), "locked", 4, rows=8), 8)
    'rows 0, 5 (2 copies)'
    """
    units = found.units
    run = len(units) > 2 and units == tuple(range(units[0], units[-1] + 1))
    named = f"{units[0]}–{units[-1]}" if run else listing([str(unit) for unit in units], limit)
    noun = "rows" if found.rows else "units"
    return f"{noun} {named} ({count(len(units), 'copy', 'copies')})"


def places(finding: Finding) -> tuple[str, ...]:
    """Return every place a finding names, the primary one first."""
    return tuple(dict.fromkeys((finding.layer, *finding.layers)))


def verdict(record: Record) -> str:
    """Say in one line whether the model starts well, with its mark.

    Examples: ``✗ Net will not train as it should: 2 errors, 1 warning`` and
    ``✓ Net starts sound: 12 layers, 9,000 parameters, nothing found``.
    """
    severities = [finding.severity for finding in record.findings]
    errors, warnings, infos = (severities.count(level) for level in ("error", "warning", "info"))
    found = [
        count(amount, noun)
        for amount, noun in ((errors, "error"), (warnings, "warning"), (infos, "note"))
        if amount
    ]
    name = visible(record.model)
    if errors:
        return f"{MARKS['error']} {name} will not train as it should: {', '.join(found)}"
    size = [count(len(record.layers), "layer"), count(record.parameters, "parameter")]
    nothing = "nothing found by the rules that were asked" if record.ignored else "nothing found"
    body = ", ".join(size + (found or [nothing]))
    return f"{MARKS['ok']} {name} starts sound: {body}"


def facts(record: Record) -> list[str]:
    """Return the short facts about the run that stand under the verdict."""
    shown = []
    if not record.ok:
        shown += [count(len(record.layers), "layer"), count(record.parameters, "parameter")]
    if record.trainable != record.parameters:
        shown.append(f"{record.trainable:,} trainable")
    if record.loss is not None:
        chance = "" if record.chance is None else f" (chance {number(record.chance, 4)})"
        shown.append(f"loss {number(record.loss, 4)}{chance}")
    shown.append(f"{visible(record.dtype)} on {visible(record.device)}")
    shown.append(f"{visible(record.mode)} mode")
    if record.samples is not None:
        shown.append(f"batch of {record.samples:,}")
    shown += [f"seed {record.seed}", f"{record.seconds:.1f} s"]
    if record.ignored:
        shown.append(f"rules left out: {listing(list(record.ignored), CODES)}")
    return shown


def growth(depth: Depth, write: Callable[[str], str] = visible) -> str:
    """Say how signal and cotangent change along depth; ``write`` makes a layer's name safe.

    Example: ``along depth: signal ×0.98 a layer; cotangent ×1.02 a layer towards the input``.
    """
    parts = []
    for what, factor, turn in (
        ("signal ×{} a layer", depth.signal_growth, depth.signal_turn),
        ("cotangent ×{} a layer towards the input", depth.cotangent_growth, depth.cotangent_turn),
    ):
        if factor is not None:
            start = "" if turn is None else f", from {write(layer_named(turn))} on"
            parts.append(what.format(number(factor)) + start)
    return f"along depth: {'; '.join(parts)}" if parts else ""
