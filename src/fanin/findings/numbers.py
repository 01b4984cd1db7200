"""N401–N404: values that are not numbers, were never written, or leave the dtype's range."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fanin.calls import Call
from fanin.findings.evidence import Evidence
from fanin.findings.rules import Finding, finding
from fanin.numbers import TINY, Audit
from fanin.summary import count
from fanin.wording import layer_named, listed

__all__ = ["HUGE", "RULES"]

# Entries of this size are in no scheme's range (an embedding of variance one stays below 6).
HUGE = 1e8
# Share of entries below 1e-30 but not zero: integers or pointers read as floats.
TINY_SHARE = 1e-3
# A value this near the limit leaves the range within the growth of an ordinary training run; below
# a tenth nothing is said.
NEAR = 0.1

# The root of float32's largest value: the square of a larger gradient is infinite.
SQUARED = 1.8e19


def non_finite_parameter(evidence: Evidence) -> Iterator[Finding]:
    """N401: NaN or infinity inside a parameter; those that nothing reads do no harm."""
    bad, idle = [a for a in evidence.audits if a.nonfinite], _unread(evidence)
    yield from _holding(evidence, [a for a in bad if a.name not in idle])
    yield from _holding(evidence, [a for a in bad if a.name in idle], read=False)


def _unread(evidence: Evidence) -> set[str]:
    """Parameters that no call of the pass has used."""
    return {name for name, use in evidence.seen.architecture.unnamed if use == "unused"}


def _holding(evidence: Evidence, bad: list[Audit], read: bool = True) -> Iterator[Finding]:
    if bad:
        entries = count(sum(a.nonfinite for a in bad), "entry", "entries")
        counts = (f"{a.name}: {a.nonfinite:,} of {a.count:,}" for a in bad)
        message = f"NaN or infinite: {entries} in {count(len(bad), 'parameter')}."
        if evidence.refused:
            message += (
                f" The forward pass refuses them ({evidence.refused}); what follows was measured "
                "with zeros in their place, and nothing else is judged."
            )
        yield finding(
            "N401",
            "error" if read else "warning",
            (a.name for a in bad),
            measured=f"{listed(counts, 4, apart='; ')} not finite",
            expected="0",
            message=message,
            why=None
            if read
            else "Nothing reads it on this batch, so it does no harm now; the "
            "first use of it makes the loss NaN.",
        )


def unwritten_memory(evidence: Evidence) -> Iterator[Finding]:
    """N402: values that nobody drew, or memory that was allocated and never written."""
    odd = [a for a in evidence.audits if a.max_abs > HUGE or a.tiny > TINY_SHARE]
    names = dict.fromkeys([*evidence.unwritten, *(a.name for a in odd)])
    if not names:
        return
    seen = evidence.seen
    harmed = (
        bool(evidence.unwritten)
        or not math.isfinite(seen.loss)
        or any(c.nonfinite or c.cotangent_nonfinite for c in seen.cells.values())
        or abs(seen.loss) > HUGE
        or (evidence.trunk and evidence.trunk[-1].rms > HUGE)
    )
    by_name = {a.name: a for a in evidence.audits}
    texts = [
        f"{n}: up to {by_name[n].max_abs:.3g}"
        + (" (never written)" if n in evidence.unwritten else "")
        for n in names
    ]
    yield finding(
        "N402",
        "error" if harmed else "warning",
        names,
        measured=listed(texts, 4, apart="; "),
        expected=f"entries between {TINY:g} and {HUGE:g}",
        message="A parameter holds values that no scheme draws: memory that was allocated and not "
        "written.",
    )


def non_finite_signal(evidence: Evidence) -> Iterator[Finding]:
    """N403: the pass itself makes NaN or infinity; the first operation is named."""
    if any(a.nonfinite and a.name not in _unread(evidence) for a in evidence.audits):
        return
    bad = evidence.out_of_range
    overflow = bad is not None and bad[1] == math.inf and evidence.limit[1] == "float16"  # N404
    if bad is not None and not math.isfinite(bad[1]) and not overflow:
        yield _first(evidence, bad[0], "forward")
        return
    cells = evidence.seen.cells
    back = [i for i, c in cells.items() if c.cotangent_nonfinite]
    if back and not any(c.nonfinite for c in cells.values()):
        at = evidence.seen.architecture.trace.calls[max(back)]
        yield _first(evidence, _breaks_gradient(evidence, at), "backward", evidence.place(at))


# Functions whose slope is infinite somewhere.
_STEEP = frozenset({
    "sqrt", "rsqrt", "pow", "log", "log2", "log10", "log1p", "acos", "arccos", "asin", "arcsin",
    "acosh", "atanh", "logit", "erfinv", "div", "true_divide", "rdiv", "reciprocal", "norm",
    "vector_norm", "linalg_norm", "linalg_vector_norm", "std", "normalize", "cdist",
})  # fmt: skip


def _breaks_gradient(evidence: Evidence, last: Call) -> Call:
    """The call whose backward pass makes the first gradient that is not finite."""
    seen = evidence.seen.first_bad_gradient
    if seen is None:
        return last
    after = evidence.seen.architecture.followers[seen.index]
    steep = [c for c in after if c.op in _STEEP]
    return (steep or after or [last])[-1]


def _first(evidence: Evidence, call: Call, way: str, *layers: str) -> Finding:
    place = evidence.place(call)
    cell = evidence.seen.cells.get(call.index)
    if way == "forward" and cell is not None and cell.bad_weight:
        return _of_weight(call, place)
    behind = call.index >= evidence.seen.architecture.trace.length
    told = "the loss" if behind else place or "the model"
    return finding(
        "N403",
        "error",
        (*layers, place),
        measured=f"first in {call.op} of {told} ({way})",
        expected="finite values everywhere",
        message=f"The {way} pass makes NaN or infinite values; {call.op} is the first to do so.",
    )


def _of_weight(call: Call, place: str) -> Finding:
    """The parameters are finite; what is computed from them, before it meets any signal, is not."""
    parameters = call.operands[0].parameters
    names = listed(parameters)
    return finding(
        "N403",
        "error",
        (place, *parameters),
        measured=f"the weight that {call.op} of {layer_named(place)} computes from {names}",
        expected="finite values everywhere",
        message=f"The weight that is computed from {names} is NaN or infinite, though these are "
        "finite.",
        fix="Look at how it is computed: zeros divided by their own norm or standard deviation, "
        "or a step or scale of zero.",
    )


def out_of_range(evidence: Evidence) -> Iterator[Finding]:
    """N404: values that the training dtype cannot hold."""
    limit, name = evidence.limit
    if name != "float16":  # bfloat16 has the range of float32
        return
    bad = evidence.out_of_range
    if bad is not None and bad[1] > limit:
        yield _range(evidence, *bad)
        return
    near = [s for s in evidence.layers if s.max_abs is not None and s.max_abs > NEAR * limit]
    if near:
        worst = max(near, key=lambda s: s.max_abs or 0.0)
        yield finding(
            "N404",
            "warning",
            [worst.name, *(s.name for s in near)],
            measured=f"{worst.max_abs:.3g}",
            expected=f"below {NEAR * limit:.3g}, a tenth of {name}'s largest value",
            message=f"Values come near the end of {name}'s range at the start.",
            why="A little growth during training takes them past it, to infinity.",
            fix="Scale this layer's weights down, or train in bfloat16.",
        )


def squared_gradient(evidence: Evidence) -> Iterator[Finding]:
    """N404: gradients whose square, which optimizers and clipping take, is infinite."""
    gradients = evidence.seen.gradients.items()
    large = [(n, g) for n, g in gradients if g is not None and SQUARED < g < math.inf]
    if not large or not abs(evidence.seen.loss) < HUGE:  # what explodes forward has its own finding
        return
    yield finding(
        "N404",
        "error",
        (n for n, _ in large),
        measured=listed((f"{n}: gradient of rms {g:.3g}" for n, g in large), 4, apart="; "),
        expected=f"below {SQUARED:.2g}, the root of float32's largest value",
        message="A gradient is so large that its square is infinite.",
        why="The norm that clipping divides by and Adam's second moment become infinite, so no "
        "update is left of it.",
        fix="Something is divided by next to nothing, as zeros are by their own norm: draw these "
        "parameters anew.",
    )


def _range(evidence: Evidence, call: Call, value: float) -> Finding:
    limit, name = evidence.limit
    place = evidence.place(call)
    return finding(
        "N404",
        "error",
        (place,),
        measured=f"{value:.3g} in {call.op} of {layer_named(place)}",
        expected=f"at most {limit:.5g}, the largest value of {name}",
        message=f"The first value past {name}'s range is in {call.op} of {layer_named(place)}.",
        why=f"In {name} it becomes infinite, and the loss NaN.",
    )


RULES = (non_finite_parameter, unwritten_memory, non_finite_signal, out_of_range, squared_gradient)
