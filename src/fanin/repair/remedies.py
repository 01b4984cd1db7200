"""Which remedy each rule has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fanin.assignment import Assignment
from fanin.findings import Finding
from fanin.repair.case import Case
from fanin.repair.copies import cloned_layers, locked_units, mirrored_units
from fanin.repair.deadlocks import dead_units, gradient_deadlock
from fanin.repair.signals import (
    collapsed,
    drowned,
    exploding,
    loss_above_chance,
    packed,
    saturated,
    swapped,
    vanishing,
)
from fanin.repair.values import clamped, idle_initializer, idle_truncation, non_finite, unwritten

__all__ = ["TIERS", "Remedy"]

#: (case, finding, how often the rule was treated before) → what to change; nothing: no idea left.
Remedy = Callable[[Case, Finding, int], list[Assignment]]

#: What is treated together, causes before what follows from them: values that are no numbers, then
#: gradients that never come, then copies and dead units, then scales, one kind after the other.
#: Rules that stand nowhere (unused parameters, what breaks by itself) have no remedy.
TIERS: tuple[Mapping[str, Remedy], ...] = (
    {
        "N402": unwritten,
        "N401": non_finite,
        "W504": idle_initializer,
        "W503": idle_truncation,
        "W505": clamped,
    },
    {"P207": swapped},
    {"S102": gradient_deadlock},
    {
        "S101": locked_units,
        "P205": dead_units,
        "S104": cloned_layers,
        "S105": mirrored_units,
        "W502": packed,
    },
    {"P206": saturated},
    {"N403": exploding, "N404": exploding},
    {"P202": exploding},
    {"P208": drowned},
    {"P201": vanishing},
    {"P207": collapsed},
    {"P203": vanishing},
    {"P204": exploding},
    {"O301": loss_above_chance},
)
