"""S101–S105: units and parameters that are copies, or hold one another still."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fanin.architecture import Layer
from fanin.calls import Call
from fanin.findings.evidence import Evidence
from fanin.findings.rules import Finding, finding
from fanin.kinds import RECURRENT_LAYERS
from fanin.summary import count
from fanin.symmetry import (
    FROZEN_ZERO,
    NO_SLOPE,
    SATURATED,
    STILL,
    TWO_ZEROS,
    UNSEEN,
    UNUSED,
    Deadlock,
    UnitClass,
)
from fanin.wording import layer_named, listed

__all__ = ["COLLAPSED_SHARE", "RULES", "member_list"]

# A layer whose effective width is at most this share of its units has collapsed.  Networks with
# half of each layer's units doubled train like their healthy twins (trainability benchmark); those
# with one unit a layer do not.
COLLAPSED_SHARE = 0.25
# A part that a softmax over one value holds is idle by design where at least this share of all
# trained entries learns: below it, most of what was paid for never moves.
LEARNING_SHARE = 0.5
# What gives a constant (or only a sign) over a single value.
_OVER_ONE = frozenset({"softmax", "log_softmax", "normalize", "layer_norm", "rms_norm"})


def locked_units(evidence: Evidence) -> Iterator[Finding]:
    """S101: an error where all paths from the inputs, or from one, pass a collapsed layer."""
    by_layer: dict[str, list[UnitClass]] = {}
    for unit_class in evidence.symmetry.classes:
        if unit_class.kind == "locked" and not unit_class.rows:
            by_layer.setdefault(unit_class.layer, []).append(unit_class)
    if not by_layer:
        return
    # Of two layers of one name, as both uses of a tied weight, the one with more copies counts.
    parted = sorted(evidence.layers, key=lambda s: (s.distinct_units or 0) - (s.units or 0))
    width = {s.name: (s.distinct_units or 0, s.units or 0) for s in reversed(parted)}
    collapsed = {n for n in by_layer if width[n][0] <= max(1, COLLAPSED_SHARE * width[n][1])}
    fatal = bool(collapsed) and _fatal(evidence, collapsed)
    for severity, names in (
        ("error", [n for n in by_layer if fatal and n in collapsed]),
        ("warning", [n for n in by_layer if not (fatal and n in collapsed)]),
    ):
        if names:
            yield _locked(evidence, severity, names, by_layer, width)


def _fatal(evidence: Evidence, collapsed: set[str]) -> bool:
    """Whether what must be learned, of all the batch or of one side, passes a collapsed layer."""
    read = evidence.seen.architecture
    return _barred(evidence, collapsed, read.layers, read.entries) or any(
        _barred(evidence, collapsed, side.layers, side.entries) for side in evidence.sides
    )


def _barred(
    evidence: Evidence, collapsed: set[str], layers: Sequence[Layer], entries: frozenset[int]
) -> bool:
    """Whether every path from some entries through these layers passes a collapsed one of them.

    A collapsed layer that works on many positions (a convolution, a token-wise layer) still hands
    on as many numbers as there are positions: it is fatal only where most of its kind have
    collapsed.  Layers that nothing comes to, behind a collapsed one or as experts, do not count.
    """
    read = evidence.seen.architecture
    last = read.heads
    hidden = [y for y in layers if y.trainable and (y.units or 0) > 1 and y not in last]
    hidden = [y for y in hidden if not _idle(evidence, y)]
    gone = [y for y in layers if y.name in collapsed]
    wide = [y for y in gone if _positions(evidence, y) > 1]
    tokenwise = [y for y in hidden if _positions(evidence, y) > 1]
    if 2 * len([y for y in tokenwise if y in wide]) < len(tokenwise):
        gone = [y for y in gone if y not in wide]
    calls = {i for y in gone for i in y.calls}
    learned = {i for y in hidden for i in y.calls}
    return bool(gone) and not read.reached(calls, learned, entries)


def _idle(evidence: Evidence, layer: Layer) -> bool:
    """Whether a layer gives zeros although its weights are none."""
    cells = evidence.seen.cells_of(layer)
    silent = bool(cells) and all(c.max_abs == 0.0 for c in cells)
    return silent and evidence.zeros.isdisjoint(layer.weight)


def _positions(evidence: Evidence, layer: Layer) -> int:
    values = sum(evidence.seen.cells[i].count for i in layer.calls[:1] if i in evidence.seen.cells)
    return values // max(1, (layer.units or 1) * (evidence.samples or 1))


def _locked(
    evidence: Evidence,
    severity: str,
    names: list[str],
    by_layer: dict[str, list[UnitClass]],
    width: dict[str, tuple[int, int]],
) -> Finding:
    shown = (f"{layer_named(n)}: {width[n][0]} distinct of {width[n][1]} units" for n in names)
    copies = [c for n in names for c in by_layer[n]]
    certified = [i for c in copies for i in c.certificate]
    differences = [v for i in certified for v in (i.inputs, i.outputs, i.gradients, i.updates)]
    worst = max((v for v in differences if not math.isnan(v)), default=0.0)
    layers = {y.name: y for y in evidence.seen.architecture.layers}
    modules = [n.rpartition(".")[0] for n in names if layers[n].op in RECURRENT_LAYERS]
    return finding(
        "S101",
        severity,
        [*names, *(m for m in modules if m)],
        measured=listed(shown, 4, apart="; ", what="layer"),
        expected="; ".join(f"{layer_named(n)}: {width[n][1]}" for n in names[:4])
        + " distinct units",
        message=f"{_where(names, by_layer)} are copies: same inputs, outputs, gradients and "
        f"updates over {evidence.symmetry.steps} steps (largest difference {worst:.1g}).",
    )


def _where(names: list[str], by_layer: dict[str, list[UnitClass]]) -> str:
    parts = [
        f"units {member_list([c.units for c in by_layer[n]])} of {layer_named(n)}"
        for n in names[:3]
    ]
    text = "; ".join(parts) + (
        f"; and in {count(len(names) - 3, 'more layer')}" if len(names) > 3 else ""
    )
    return text[0].upper() + text[1:]


def member_list(groups: Sequence[tuple[int, ...]]) -> str:
    """Classes of copies, by the indices of their members: "0–7, 9 = 11"."""

    def one(group: tuple[int, ...]) -> str:
        if len(group) > 4 and group == tuple(range(group[0], group[-1] + 1)):
            return f"{group[0]}–{group[-1]}"
        return _equal([str(i) for i in group], 6)

    return listed(map(one, groups), 4, what="group")


def _equal(names: Sequence[str], most: int) -> str:
    left = len(names) - most
    return " = ".join(names[:most]) + (f" = … (+{left})" if left > 0 else "")


_DEAD_WHY = (
    "A unit whose slope is zero on every sample passes no gradient on, so neither it nor anything "
    "that reaches the loss only through it can move."
)
_DEAD_FIX = "Move the biases of the dead units towards zero and draw their weights again."
_FROZEN_WHY = (
    "A weight that is zero passes nothing on, neither signal nor gradient, and a frozen one stays "
    "zero: what reaches the loss only through it, or reads only what it gives, never moves."
)
_FROZEN_FIX = (
    "Give the frozen weight its values, or let it train (requires_grad_(True)).  Where it switches "
    "a branch off on purpose, freeze the rest of that branch too."
)


_SLOPE_WHY = (
    "The result of such a function (a rounding, a sign, a softmax or norm over a single value) "
    "does not change when its input changes a little, so no gradient comes back through it."
)
_SLOPE_FIX = (
    "Take another: a sigmoid for one output, a softmax over the dimension of the classes, a norm "
    "over more than one value; pass the gradient on around a rounding (x + (x.round() - "
    "x).detach())."
)
_SATURATED_WHY = (
    "So far out, a sigmoid is exactly 0 or 1 and its slope exactly zero, as is that of a tanh or a "
    "softmax: what stands in front of it gets no gradient at all."
)
_SATURATED_FIX = (
    "Draw smaller weights in front of it, and bring their biases near zero (nn.init.xavier_normal_ "
    "keeps outputs at about one)."
)


_IDLE_WHY = (
    "A softmax over a single value is one, a norm over a single value a constant or a sign, at any "
    "start: what is computed for it alone never moves.  Most of the model learns past it."
)
_IDLE_FIX = (
    "Nothing in the weights: where one value is meant (a single head, a single variable) those "
    "parameters are only idle; else take the softmax or norm over more than one."
)


_STILL_WHY = (
    "All that the weights compute reaches the loss times zero, or through a part without slope: a "
    "gate that is shut, a distance whose exponential underflows, weights beyond the range where a "
    "rounding hands its gradient on.  What still learns is an offset that is the same for all "
    "samples."
)
_STILL_FIX = (
    "Look at what stands last before the loss and gives zeros, or the same number for all samples: "
    "open the gate, bring its inputs to about one."
)


_UNSEEN_WHY = (
    "Their gradients are exactly zero in float64, step after step, and what they are used in "
    "cannot be followed to the loss or measured: torch.vmap, a compiled module, a function unknown "
    "here.  Two zeros in a row hold each other so."
)
_UNSEEN_FIX = "Draw them again; for their cause, check the same layers outside of that function."


def deadlocks(evidence: Evidence) -> Iterator[Finding]:
    """S102: parameters that no virtual step moved, held by zero factors or dead units.

    A frozen zero that the signal goes around switches a branch off, maybe on purpose; a softmax of
    one head or variable, inside of a model that learns, is no matter of its start.
    """
    found = tuple(d for d in evidence.symmetry.deadlocks if d.cause not in (UNSEEN, UNUSED))
    yield from _unseen(evidence)
    off = tuple(d for d in found if d.cause == FROZEN_ZERO)
    if off and _learns_around(evidence, _closed_by(evidence, off)):
        found = tuple(d for d in found if d.cause != FROZEN_ZERO)
        yield _deadlock(evidence, "warning", off)
    idle = tuple(d for d in found if d.cause == NO_SLOPE and _over_one(evidence, d))
    if idle and _learns_past(evidence, idle):
        found = tuple(d for d in found if d not in idle)
        yield _deadlock(evidence, "warning", idle)
    if found:
        yield _deadlock(evidence, "error", found)


def _unseen(evidence: Evidence) -> Iterator[Finding]:
    """An error where weights are among them and no other weight moves.

    Where others do, a loss may be weighted with zero, or an expert with a zero of its gate: there
    only two weights of zeros beside one another are worth a warning.
    """
    found = tuple(d for d in evidence.symmetry.deadlocks if d.cause == UNSEEN)
    weights = {p.name for p in evidence.seen.architecture.parameters if _is_weight(p.shape)}
    moving = weights & {n for n, g in evidence.seen.gradients.items() if g}
    stuck = [d.parameter for d in found if d.parameter in weights]
    if stuck and not moving:
        yield _deadlock(evidence, "error", found)
        return
    zeros = [n for n in stuck if n in evidence.zeros]
    places = [n.removesuffix(".weight").rpartition(".")[0] for n in zeros]
    if len(set(places)) < len(places):
        yield _deadlock(evidence, "warning", found)


def _is_weight(shape: Sequence[int]) -> bool:
    """Whether it has two dimensions or more; no token or offset, which may go unused."""
    return sum(n > 1 for n in shape) > 1


def _deadlock(evidence: Evidence, severity: str, found: tuple[Deadlock, ...]) -> Finding:
    held = _holders(found)
    causes = sorted({d.cause for d in found})
    why, fix = _DEAD_WHY, _DEAD_FIX
    if FROZEN_ZERO in causes:
        why, fix = _FROZEN_WHY, _FROZEN_FIX
    idle = NO_SLOPE in causes and severity == "warning"
    if NO_SLOPE in causes:
        why, fix = (_IDLE_WHY, _IDLE_FIX) if idle else (_SLOPE_WHY, _SLOPE_FIX)
    if SATURATED in causes:
        why, fix = _SATURATED_WHY, _SATURATED_FIX
    if STILL in causes:
        why, fix = _STILL_WHY, _STILL_FIX
    if UNSEEN in causes:
        why, fix = _UNSEEN_WHY, _UNSEEN_FIX
    factors = TWO_ZEROS in causes
    total, steps = len(evidence.seen.gradients), evidence.symmetry.steps
    layers = [*_blamed(evidence, found), *(d.layer for d in found), *(d.parameter for d in found)]
    return finding(
        "S102",
        severity,
        layers,
        measured=f"{len(found)} of {total} parameters got no gradient in {steps} steps",
        expected="a gradient in every used parameter after a step or two",
        message=f"No update ever reaches {listed(d.parameter for d in found)}"
        f"{', and no start changes that' if idle else ''}: "
        f"{' and '.join(causes)}{f' ({listed(held)})' if held else ''}.",
        why=None if factors else why,
        fix=None if factors else fix,
    )


def _moving(evidence: Evidence) -> set[str]:
    held = {d.parameter for d in evidence.symmetry.deadlocks}
    return {n for n, g in evidence.seen.gradients.items() if g is not None} - held


def _closed_by(evidence: Evidence, off: tuple[Deadlock, ...]) -> set[int]:
    """Calls that read the zeros which hold these parameters."""
    zeros = {b for d in off for b in d.because}
    layers = evidence.seen.architecture.layers
    return {i for y in layers if zeros & set(y.parameters) for i in y.calls}


def _learns_around(evidence: Evidence, closed: set[int]) -> bool:
    """Whether the batch reaches the output around closed calls, through layers that learn."""
    read, moving = evidence.seen.architecture, _moving(evidence)
    return read.reached(
        closed, {i for y in read.layers if moving & set(y.parameters) for i in y.calls}
    )


def _functions(evidence: Evidence, deadlock: Deadlock) -> list[Call]:
    """The calls over a single value that a deadlock names."""
    return [
        c
        for c in evidence.seen.architecture.trace.calls
        if c.op in _OVER_ONE
        and 1 in c.shape[1:]
        and (f"{c.op} in {c.module}" if c.module else c.op) in deadlock.because
    ]


def _over_one(evidence: Evidence, deadlock: Deadlock) -> bool:
    """Whether only functions over one value hold it, and no output is made of these alone."""
    read = evidence.seen.architecture
    functions = _functions(evidence, deadlock)
    if {c.op for c in functions} != {b.partition(" in ")[0] for b in deadlock.because}:
        return False
    seen, queue = set(), functions
    while queue:
        call = queue.pop()
        seen.add(call.index)
        after = read.followers[call.index]
        ends = (c.index >= read.trace.length for c in (call, *after))  # the loss, or read by it
        if call.index in read.goal or any(ends):
            return False
        alone = (c for c in after if not c.entry and seen.issuperset(c.behind))
        queue += [c for c in alone if c.index not in seen]
    return True


def _learns_past(evidence: Evidence, idle: tuple[Deadlock, ...]) -> bool:
    """Whether most of the model learns, and the batch reaches the output past what is idle."""
    read = evidence.seen.architecture
    sizes = {p.name: math.prod(p.shape) for p in read.parameters if p.trainable}
    closed = {c.index for d in idle for c in _functions(evidence, d)}
    open_: set[int] = set()  # calls that the batch reaches past what is closed
    for call in read.trace.calls:
        if call.index not in closed and (call.entry or not open_.isdisjoint(call.behind)):
            open_.add(call.index)
    fed = {n for i in open_ for n in read.trace.calls[i].parameters}
    learning = sum(sizes.get(n, 0) for n in _moving(evidence) & fed)
    return learning >= LEARNING_SHARE * sum(sizes.values()) and _learns_around(evidence, closed)


def _holders(found: tuple[Deadlock, ...]) -> list[str]:
    """What holds them, each place once: a layer's weight stands for the layer."""
    named = dict.fromkeys(b for d in found for b in d.because)
    return [n for n in named if not any(other.startswith(f"{n}.") for other in named)]


def _blamed(evidence: Evidence, found: tuple[Deadlock, ...]) -> list[str]:
    """Layers whose own weight is zero and held, the cause rather than the victims."""
    held = {b for d in found for b in d.because}
    zeros = evidence.zeros
    guilty = [d.layer for d in found if d.parameter in zeros and d.parameter in held]
    first = [d.layer for d in found if d.parameter in zeros and d.parameter.endswith("weight")]
    layers = evidence.seen.architecture.layers
    owners = {n: y.name for y in reversed(layers) for n in y.parameters}  # the first that uses it
    causes = [owners[b] for d in found for b in d.because if b in zeros and b in owners]
    return guilty or causes or first


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
        measured=f"units {member_list([c.units for c in found])} equal at the start, "
        f"apart after {step} step{'s' if step > 1 else ''}",
        expected="nothing to do",
        message="Some units start with equal pre-activations and separate by themselves.",
    )


def cloned_layers(evidence: Evidence) -> Iterator[Finding]:
    """S104: untied parameters that start bit-identical."""
    yield from _repeated_rows(evidence)
    yield from _shared_memory(evidence)
    groups = evidence.symmetry.clones
    if not groups:
        return
    yield finding(
        "S104",
        "warning",
        [*(n for g in groups for n in g), *_owners(evidence, groups)],
        measured=listed((_equal(g, 4) for g in groups), apart="; ", what="group"),
        expected="every untied weight drawn on its own",
        message="Different, untied parameters start bit-identical.",
    )


def _shared_memory(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that are not tied, and lie in one another's memory all the same."""
    if evidence.shared:
        yield finding(
            "S104",
            "warning",
            (name for pair in evidence.shared for name in pair),
            measured=listed((f"{a} and {b}" for a, b in evidence.shared), 4, apart="; "),
            expected="memory of its own for each parameter, or one parameter in both places",
            message="Different parameters lie in the same memory.",
            why="Each has a gradient and an optimizer state of its own, and both steps are written "
            "to the same numbers; whatever draws one of them changes the other.",
            fix="To tie them, put the parameter itself in both places (b.weight = a.weight); if "
            "not, give each a copy (nn.Parameter(a.weight.detach().clone())), and draw that anew.",
        )


def _repeated_rows(evidence: Evidence) -> Iterator[Finding]:
    """One matrix whose rows repeat one another; where the copies are locked, S101 says so."""
    locked = {c.layer for c in evidence.symmetry.classes if c.kind == "locked"}
    users = {n: y.name for y in evidence.seen.architecture.layers for n in y.parameters}
    found = [r for r in evidence.repeats if locked.isdisjoint((r[0], users.get(r[0])))]
    if found:
        shown = (
            f"{n}: {again} of {rows} rows (or columns) repeat another" for n, again, rows in found
        )
        yield finding(
            "S104",
            "warning",
            [*(n for n, _, _ in found), *(users.get(n, n) for n, _, _ in found)],
            measured=listed(shown, 4, apart="; "),
            expected="every row drawn on its own",
            message="Rows of one weight are bit-identical to others, as if two shards had been "
            "drawn with one seed.",
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
        measured=f"{len(found)} pair(s): {member_list([c.units for c in found])}",
        expected="no unit that is the negative of another",
        message="Pairs of units are each other's negative and stayed so over "
        f"{evidence.symmetry.steps} steps.",
    )


RULES = (locked_units, deadlocks, self_breaking, cloned_layers, mirrored_units)
