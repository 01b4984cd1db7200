"""O301 and W501–W505: losses, unused parameters, and recipes that did not do what was meant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from fanin.architecture import Layer, weighted_source
from fanin.criteria import FAR
from fanin.findings.evidence import Evidence
from fanin.findings.reach import large_inputs, outlier
from fanin.findings.rules import Finding, finding
from fanin.numbers import Audit
from fanin.summary import count
from fanin.wording import listed

__all__ = ["RULES"]

# Of 510 healthy architectures 99 % start below ln C + 1.05, the largest of them at ln C + 1.55;
# nine library defaults start 3 to 32 nats above it and still train.
ABOVE_CHANCE = 2.0
# A loss of any kind that is hopeless: squares of 3e7, or e^35.  A VAE with weights ten times too
# large starts at 3e16, MAML at 2e15; after 200 steps both are 3 to 12 times behind a healthy start.
HUGE_LOSS = 1e15
# A loss of any kind over that of the same outputs at a size of at most 1: as for a regression.  A
# VAE whose log-variances start at 20 has 2e9 for 45, and ends at 417 for 8 (120 steps of Adam); a
# detector of N(0, 1) has 3e4 for 3, and ends at 6.0 for 0.23.
ABOVE_UNIT = FAR**2
# Size of what an exponential makes 3,000 of.
EXPONENT = 8.0
# A known loss this many times that of guessing is an error.  Labelled (both seeds): sound up to
# 140 times, half learned up to 9e4, from there on all faulty.
HOPELESS = 1e5


def loss_above_chance(evidence: Evidence) -> Iterator[Finding]:
    """O301: the model is sure of wrong answers before it has seen one."""
    chance, loss = evidence.seen.chance, evidence.seen.loss
    heads = [s for s in evidence.layers if s.units is not None]
    place = heads[-1].name if heads else ""
    if evidence.seen.guess is not None:
        above = _loss_above_zero(evidence, place, *evidence.seen.guess)
        yield from (_laid(evidence, f, place) for f in above)
    elif chance is None and evidence.seen.named_loss and HUGE_LOSS < loss < math.inf:
        yield _laid(evidence, _huge_loss(evidence, place), place)
    elif evidence.at_unit is not None and loss > ABOVE_UNIT * max(1.0, abs(evidence.at_unit)):
        yield _laid(evidence, _loss_of_large_outputs(evidence, place, evidence.at_unit), place)
    if chance is None or not loss - chance.loss > ABOVE_CHANCE * chance.guesses:
        return
    fix = large_inputs(evidence, place)
    cause = "The loss starts" if fix is None else "The inputs are so large that the loss starts"
    alone = any(y.name == place for y in evidence.seen.architecture.heads)
    largest = heads[-1].max_abs if alone else None
    excess = (loss - chance.loss) / chance.guesses
    if largest is not None and excess > 2 * largest:  # more than its outputs can cost
        cause = "What follows the output layer enlarges its logits so much that the loss starts"
        fix = "Start that factor smaller (the scale s of a cosine head): the layer itself is small."
    tables = _tables_multiplied(evidence, place)
    if tables:
        fix = fix or "Start the tables whose rows are multiplied smaller: std 0.1, or 1/√width."
    found = finding(
        "O301",
        _severity(evidence, chance.loss, place),
        (place, *tables),
        measured=f"loss {loss:.4g}",
        expected=f"about {chance.loss:.4g}, the loss of guessing",
        message=f"{cause} far above that of guessing.",
        fix=fix,
    )
    yield found if fix is not None else _laid(evidence, found, place)


def _laid(evidence: Evidence, found: Finding, place: str) -> Finding:
    """The same, laid to the one layer whose weights are out of all proportion, if there is one and
    it is not the last."""
    one = outlier(evidence, place)
    if one is None:
        return found
    return replace(
        found,
        layer=one.name,
        layers=tuple(dict.fromkeys((one.name, *found.layers))),
        why=f"The weights of {one.name} are {one.most:.3g} times 1/√fan_in in size, those of all "
        f"other layers at most {one.following:.2g} times: what it gives is too large for all that "
        "follows, and the first steps go into unlearning that.",
        fix=one.fix,
    )


def _severity(evidence: Evidence, guess: float, place: str) -> str:
    """An error where the loss is hopeless, and not by the inputs alone."""
    hopeless = evidence.seen.loss > HOPELESS * guess
    return "error" if hopeless and large_inputs(evidence, place) is None else "warning"


def _tables_multiplied(evidence: Evidence, place: str) -> list[str]:
    """The tables that make the output, where no layer does: scores are products of their rows."""
    read = evidence.seen.architecture
    last = [y for y in read.layers if y.units is not None and read.inner.isdisjoint(y.calls)]
    tables = [y.name for y in last if y.op == "embedding"]
    return tables if place in tables and len(tables) == len(last) else []


def _loss_above_zero(evidence: Evidence, place: str, guess: float, far: float) -> Iterator[Finding]:
    """A regression whose outputs start many times as large as its targets."""
    if not far < evidence.seen.loss < math.inf:
        return
    target = evidence.seen.target_rms or 0.0
    fix = large_inputs(evidence, place)
    cause = "The loss starts" if fix is None else "The inputs are so large that the loss starts"
    told = f"targets of size {target:.3g}" if target >= 1.0 else "targets of size 1 or less"
    yield finding(
        "O301",
        _severity(evidence, guess, place),
        (place,),
        measured=f"loss {evidence.seen.loss:.4g}",
        expected=f"about {guess:.4g}, as for outputs of zero and {told}",
        message=f"{cause} far above that of guessing zero.",
        why="The outputs are many times as large as the targets: the first steps go into making "
        "them small, at a learning rate that is then too small, or break off.",
        fix=fix
        or "Start the output layer smaller, or at zero, and draw all weights at their usual size "
        "(std 1/√fan_in).",
    )


def _huge_loss(evidence: Evidence, place: str) -> Finding:
    """A loss that is not known, at a size that none of normalized data has."""
    return finding(
        "O301",
        "warning",
        (place,),
        measured=f"loss {evidence.seen.loss:.4g}",
        expected=f"below {HUGE_LOSS:g}, whatever the loss",
        message="The loss starts so large that next to no step makes a difference to it.",
        why="Weights that are too large, an exponential of what they give, or raw targets do that.",
        fix=large_inputs(evidence, place)
        or "Draw the weights at their usual size (std 1/√fan_in), start the layer in front of an "
        "exponential at zero, and normalize the targets.",
    )


def _loss_of_large_outputs(evidence: Evidence, place: str, at_unit: float) -> Finding:
    """A loss that is not known, and is large since outputs are."""
    powers = list(dict.fromkeys(_exponents(evidence)))
    fix = "Start the output layer smaller, or at zero, and draw all weights at their usual size"
    if powers:
        fix = (
            f"Start what an exponential is taken of ({listed(powers, 4)}) near zero, weights small"
        )
    return finding(
        "O301",
        "warning",
        (*powers, place),
        measured=f"loss {evidence.seen.loss:.4g}",
        expected=f"about {at_unit:.4g}, that of the same outputs at a size of 1",
        message="The loss starts far above that of outputs of unit size.",
        why="The first steps go into making the outputs small, at a learning rate that is then too "
        "small, or break off.",
        fix=large_inputs(evidence, place) or f"{fix} (std 1/√fan_in).",
    )


def _exponents(evidence: Evidence) -> Iterator[str]:
    """Layers of whose outputs an exponential is taken, and that are large for it."""
    read, cells = evidence.seen.architecture, evidence.seen.cells
    for call in read.trace.calls:
        source = weighted_source(read.trace.calls, call) if call.op == "exp" else None
        if source is not None and source.index in cells and cells[source.index].rms > EXPONENT:
            yield evidence.place(source)


def unused_parameter(evidence: Evidence) -> Iterator[Finding]:
    """W501: trainable parameters without a gradient because the forward does not use them."""
    unused = [n for n, g in evidence.seen.gradients.items() if g is None]
    if not unused:
        return
    used = {n for layer in evidence.seen.architecture.layers for n in layer.parameters}
    aside = " (they run, but their output is not used)" if used.issuperset(unused) else ""
    yield finding(
        "W501",
        "warning",
        [*unused, *_whole_modules(evidence, unused)],
        measured=f"{count(len(unused), 'parameter')} without a path to the loss: {listed(unused)}",
        expected="every trainable parameter used",
        message=f"Trainable parameters play no part in the loss{aside}.",
    )


def _whole_modules(evidence: Evidence, names: list[str]) -> list[str]:
    """Modules all of whose parameters are among `names`."""
    everything = [p.name for p in evidence.seen.architecture.parameters]
    owners = dict.fromkeys(n.rpartition(".")[0] for n in names)
    return [o for o in owners if o and all(n in names for n in everything if n.startswith(f"{o}."))]


# Two schemes' standard deviations are told apart by √2; sampling error at 64 entries is 9 %.
SAME_STD = 0.05

# N(0, 0.02) is the start of GPT-2 and BERT, and at a width of 1,250 it has the std that W502 looks
# for; the others are round numbers of the same kind.
SET_STDS = (0.01, 0.02, 0.05, 0.1)


def packed_fan(evidence: Evidence) -> Iterator[Finding]:
    """W502: three matrices in one tensor, drawn with the fans of one."""
    audits = {a.name: a for a in evidence.audits}
    found = []
    for layer in evidence.seen.architecture.layers:
        audit = audits.get(layer.weight[0]) if len(layer.weight) == 1 else None
        if audit is None or not layer.fan_in or not _is_packed(evidence, layer):
            continue
        packed, apart = (2 / (layer.fan_in + 3 * layer.fan_in)) ** 0.5, layer.fan_in**-0.5
        if _of_std(audit, packed):
            found.append((layer.name, audit.rms, apart))
    if found:
        yield finding(
            "W502",
            "warning",
            (n for n, _, _ in found),
            measured=f"std {found[0][1]:.4g} ({found[0][0]})",
            expected=f"std {found[0][2]:.4g}: Xavier of each block [E, E]",
            message="A packed q, k, v matrix was drawn with Xavier over [3E, E], "
            "as if it were one.",
        )


def _of_std(audit: Audit, std: float) -> bool:
    """Whether entries were drawn with this std.

    Uniform ones need not be told from other schemes' any closer.  Normal ones may be drawn with any
    std, so it must be this one to within three standard errors, and none that is set by hand.
    """
    if audit.uniform:
        return abs(audit.rms / std - 1) < SAME_STD
    error = min(SAME_STD, 3 / (2 * audit.count) ** 0.5)
    by_hand = any(abs(audit.rms / s - 1) < error for s in SET_STDS)
    return abs(audit.rms / std - 1) < error and not by_hand


def _is_packed(evidence: Evidence, layer: Layer) -> bool:
    """[3E, E], or [E, 3E] of `x @ W`, whose output is cut in three and goes into attention."""
    architecture, inputs = evidence.seen.architecture, layer.fan_in or 0
    shape = next(p.shape for p in architecture.parameters if p.name == layer.weight[0])
    if shape not in ((3 * inputs, inputs), (inputs, 3 * inputs)):
        return False
    trace, index = architecture.trace, layer.calls[0]
    if trace.calls[index].inside == "multi_head_attention_forward":
        return True
    near = [trace.calls[i].op for i in sorted(architecture.descendants({index}))[:24]]
    return layer.units == 3 * inputs and any(
        op in ("scaled_dot_product_attention", "softmax") for op in near
    )


def idle_truncation(evidence: Evidence) -> Iterator[Finding]:
    """W503: a truncated normal whose bounds lie where nothing is ever drawn."""
    if evidence.idle:
        name, std, bound = evidence.idle[0]
        yield finding(
            "W503",
            "warning",
            (n for n, _, _ in evidence.idle),
            measured=f"{name}: std {std:g}, bounds at ±{bound:.0f} σ",
            expected="bounds within a few σ (usually ±2 σ)",
            message="The truncation truncates nothing: trunc_normal_ takes its bounds as values, "
            "not in σ.",
            fix="Give the bounds in units of the weights: "
            f"trunc_normal_(w, std={std:g}, a={-2 * std:g}, b={2 * std:g}).",
        )


def idle_initializer(evidence: Evidence) -> Iterator[Finding]:
    """W504: a weight that is computed from others was drawn, and is computed again."""
    if evidence.thrown:
        yield finding(
            "W504",
            "warning",
            [*evidence.thrown, *(n.rpartition(".")[0] for n in evidence.thrown)],
            measured="a result of torch.normal that nothing used, of the shape of "
            f"{listed(evidence.thrown, 4)}",
            expected="a draw into the parameter",
            message="An initializer had no effect: torch.normal makes a new tensor, and writes "
            "into none.",
            why="The parameter keeps what it had before: its default, zeros, or unwritten memory.",
            fix="Draw in place: nn.init.normal_(w, mean, std).",
        )
    if evidence.lost:
        yield finding(
            "W504",
            "warning",
            [*evidence.lost, *(n.rpartition(".")[0] for n in evidence.lost)],
            measured=f"a draw into the weight computed from {listed(evidence.lost)}",
            expected="a draw into the parameters that the weight is computed from",
            message="An initializer had no effect: it drew a computed weight, which the next "
            "forward pass computes again.",
        )


def clamped_outliers(evidence: Evidence) -> Iterator[Finding]:
    """W505: entries clamped onto a bound that lies far out in the tail."""
    odd = [a for a in evidence.audits if a.outliers]
    if odd:
        shown = (
            f"{a.name}: {a.outliers} entries at ±{a.bound:g} ({a.bound / a.rms:.0f} × rms)"
            for a in odd
        )
        yield finding(
            "W505",
            "warning",
            [*(a.name for a in odd), *(a.name.rpartition(".")[0] for a in odd)],
            measured=listed(shown, apart="; "),
            expected="no entry beyond 8 σ",
            message="A few entries lie exactly on a bound far out in the tail of the others.",
        )


RULES = (
    loss_above_chance,
    unused_parameter,
    packed_fan,
    idle_truncation,
    idle_initializer,
    clamped_outliers,
)
