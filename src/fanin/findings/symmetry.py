"""S101–S105: units and parameters that are copies, or hold one another still."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fanin.architecture import Layer
from fanin.findings.evidence import Evidence
from fanin.operations import RECURRENT
from fanin.findings.rules import Finding, finding
from fanin.symmetry import Deadlock, UnitClass

__all__ = ["RULES"]

# A layer whose effective width is at most this share of its units has collapsed.  Networks with half
# of each layer's units doubled train like their healthy twins (trainability benchmark); those with
# one unit a layer do not.
COLLAPSED_SHARE = 0.25


def locked_units(evidence: Evidence) -> Iterator[Finding]:
    """S101: an error where every path from input to output passes a collapsed layer."""
    by_layer: dict[str, list[UnitClass]] = {}
    for unit_class in evidence.symmetry.classes:
        if unit_class.kind == "locked":
            by_layer.setdefault(unit_class.layer, []).append(unit_class)
    if not by_layer:
        return
    width = {s.name: (s.distinct_units or 0, s.units or 0) for s in evidence.layers}
    collapsed = {n for n in by_layer if width[n][0] <= max(1, COLLAPSED_SHARE * width[n][1])}
    fatal = bool(collapsed) and _fatal(evidence, collapsed)
    for severity, names in (
        ("error", [n for n in by_layer if fatal and n in collapsed]),
        ("warning", [n for n in by_layer if not (fatal and n in collapsed)]),
    ):
        if names:
            yield _locked(evidence, severity, names, by_layer, width)


def _fatal(evidence: Evidence, collapsed: set[str]) -> bool:
    """Whether what must be learned has to pass a collapsed layer.

    A collapsed layer that works on many positions (a convolution, a token-wise layer) still hands on
    as many numbers as there are positions: it is fatal only where most of its kind have collapsed.
    """
    read = evidence.seen.architecture
    last = read.heads
    hidden = [y for y in read.layers if y.trainable and (y.units or 0) > 1 and y not in last]
    gone = [y for y in read.layers if y.name in collapsed]
    wide = [y for y in gone if _positions(evidence, y) > 1]
    if 2 * len(wide) < len([y for y in hidden if _positions(evidence, y) > 1]):
        gone = [y for y in gone if y not in wide]
    calls = {i for y in gone for i in y.calls}
    return bool(gone) and not read.reached(calls, {i for y in hidden for i in y.calls})


def _positions(evidence: Evidence, layer: Layer) -> int:
    count = sum(evidence.seen.cells[i].count for i in layer.calls[:1] if i in evidence.seen.cells)
    return count // max(1, (layer.units or 1) * (evidence.samples or 1))


def _locked(
    evidence: Evidence, severity: str, names: list[str], by_layer: dict[str, list[UnitClass]],
    width: dict[str, tuple[int, int]],
) -> Finding:  # fmt: skip
    shown = [f"{n}: {width[n][0]} distinct of {width[n][1]} units" for n in names[:4]]
    more = f" (+{len(names) - 4} layers)" if len(names) > 4 else ""
    copies = [c.units for n in names for c in by_layer[n]]
    steps = evidence.symmetry.steps
    worst = max(
        (v for n in names for c in by_layer[n] for i in c.certificate
         for v in (i.inputs, i.outputs, i.gradients, i.updates) if v == v), default=0.0,
    )  # fmt: skip
    layers = {y.name: y for y in evidence.seen.architecture.layers}
    modules = [n.rpartition(".")[0] for n in names if layers[n].op in RECURRENT]
    return finding(
        "S101",
        severity,
        [*names, *(m for m in modules if m)],
        measured="; ".join(shown) + more,
        expected="; ".join(f"{n}: {width[n][1]}" for n in names[:4]) + " distinct units",
        message=(
            f"Units {_units(copies)} are copies: same inputs, outputs, gradients and updates "
            f"over {steps} steps (largest difference {worst:.1g})."
        ),
        why=(
            "Copies get identical updates, so they stay copies for ever and the layer has the "
            "capacity of its distinct units alone."
        ),
        fix="Draw these units' weights at random (for example torch.nn.init.kaiming_normal_), each its own.",
    )


def _units(groups: list[tuple[int, ...]]) -> str:
    def one(group: tuple[int, ...]) -> str:
        if len(group) > 4 and group == tuple(range(group[0], group[-1] + 1)):
            return f"{group[0]}–{group[-1]}"
        text = " = ".join(str(i) for i in group[:6])
        return text + (f" = … (+{len(group) - 6})" if len(group) > 6 else "")

    text = ", ".join(one(g) for g in groups[:4])
    return text + (f" and {len(groups) - 4} more groups" if len(groups) > 4 else "")


def deadlocks(evidence: Evidence) -> Iterator[Finding]:
    """S102: parameters that no virtual step moved, held by zero factors or dead units."""
    found = tuple(d for d in evidence.symmetry.deadlocks if d.cause != "unused")
    if not found:
        return
    held = sorted({b for d in found for b in d.because})
    causes = sorted({d.cause for d in found})
    total = len(evidence.seen.gradients)
    layers = [*_blamed(evidence, found), *(d.layer for d in found), *(d.parameter for d in found)]
    yield finding(
        "S102",
        "error",
        layers,
        measured=f"{len(found)} of {total} parameters got no gradient in {evidence.symmetry.steps} steps",
        expected="a gradient in every used parameter after a step or two",
        message=f"No update ever reaches {_names(d.parameter for d in found)}: {' and '.join(causes)} ({_names(held)}).",
        why=(
            "Two factors that are zero on every path hold each other at zero: each one's gradient is "
            "a product with the other. One zero factor is only a delay of one step."
            if "two zero factors" in causes
            else "A unit whose slope is zero on every sample passes no gradient on, so neither it nor "
            "anything that reaches the loss only through it can move."
        ),
        fix=(
            "Start one of the two factors at random and leave the other at zero."
            if "two zero factors" in causes
            else "Move the biases of the dead units towards zero and draw their weights again."
        ),
    )


def _blamed(evidence: Evidence, found: tuple[Deadlock, ...]) -> list[str]:
    """Layers whose own weight is zero and held, the cause rather than the victims."""
    held = {b for d in found for b in d.because}
    zeros = {a.name for a in evidence.audits if a.count and a.max_abs == 0.0 and not a.nonfinite}
    guilty = [d.layer for d in found if d.parameter in zeros and d.parameter in held]
    first = [d.layer for d in found if d.parameter in zeros and d.parameter.endswith("weight")]
    return guilty or first


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def self_breaking(evidence: Evidence) -> Iterator[Finding]:
    """S103: classes that start equal and were shown to separate."""
    found = [c for c in evidence.symmetry.classes if c.kind == "self-breaking"]
    if not found:
        return
    step = max(c.step for c in found)
    yield finding(
        "S103",
        "info",
        (c.layer for c in found),
        measured=f"units {_units([c.units for c in found])} equal at the start, apart after {step} step(s)",
        expected="nothing to do",
        message="Some units start with equal pre-activations and separate by themselves.",
        why="Their outgoing weights differ, so their gradients do: the copy breaks in the first steps.",
        fix="None needed; distinct incoming weights would use the first steps better.",
    )


def cloned_layers(evidence: Evidence) -> Iterator[Finding]:
    """S104: untied parameters that start bit-identical."""
    groups = evidence.symmetry.clones
    if not groups:
        return
    yield finding(
        "S104",
        "warning",
        [*(n for g in groups for n in g), *_owners(evidence, groups)],
        measured="; ".join(" = ".join(g[:4]) + (f" = … (+{len(g) - 4})" if len(g) > 4 else "") for g in groups[:3])
        + (f" and {len(groups) - 3} more groups" if len(groups) > 3 else ""),
        expected="every untied weight drawn on its own",
        message="Different, untied parameters start bit-identical.",
        why=(
            "Usually a seed that was set again, a reused initializer, or deepcopy. Depth or inputs "
            "tell these copies apart, so training goes on, but from fewer random features than paid for."
        ),
        fix="Draw each one from its own random stream (re-run its reset_parameters()), or tie them on purpose.",
    )


def _owners(evidence: Evidence, groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """The layers inside of cloned modules."""
    places = {n for g in groups for n in g}
    return [s.name for s in evidence.layers if any(s.name.startswith(f"{p}.") for p in places)]


def mirrored_units(evidence: Evidence) -> Iterator[Finding]:
    """S105: sign-flipped pairs under an odd activation."""
    found = [c for c in evidence.symmetry.classes if c.kind == "mirrored"]
    if not found:
        return
    yield finding(
        "S105",
        "warning",
        (c.layer for c in found),
        measured=f"{len(found)} pair(s): {_units([c.units for c in found])}",
        expected="no unit that is the negative of another",
        message=f"Pairs of units are each other's negative and stayed so over {evidence.symmetry.steps} steps.",
        why="Under an odd activation a mirrored pair computes one function twice: half of its capacity is lost.",
        fix="Draw the incoming weights of one of each pair again (mirrored pairs are useful with ReLU only).",
    )


RULES = (locked_units, deadlocks, self_breaking, cloned_layers, mirrored_units)
