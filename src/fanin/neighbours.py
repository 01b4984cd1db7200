"""What stands before and behind a layer: what made its input, what becomes of its output."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from fanin.architecture import Architecture, Key, key_of
from fanin.attention import MIXES, attended, source_of
from fanin.calls import BATCH, INTEGERS, Call
from fanin.kinds import (
    BENDING,
    FUSED,
    JOINS,
    NORMS,
    PASSIVE,
    PRODUCTS,
    QUOTIENTS,
    RECURRENT,
    RECURRENT_CELLS,
    SPLITS,
    SUMS,
)
from fanin.written import COMPARISONS, written_after, written_before

__all__ = [
    "After",
    "Generated",
    "Input",
    "generated",
    "input_of",
    "modulates",
    "nonlinearity_after",
    "reaches_softmax",
    "sets_scale",
    "sets_steps",
    "unrolled",
]

# Activations that are often written out with one of a simpler kind.
_WRITTEN = {"sigmoid": ("silu", "silu"), "tanh": ("gelu", "gelu_tanh"), "erf": ("gelu", "gelu")}
# Calls that are followed at most: a norm written out, with its changes of dtype, takes 8.
_NEAR = 12
# What takes the largest of several units: it bends what no nonlinearity has bent.
_LARGEST = frozenset({"amax", "max", "maximum", "amin", "min", "minimum"})
# Where a signal may be the weight: as the second argument, or on either side.
_LAYERS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
_MATMULS = frozenset({"matmul", "bmm", "mm", "linalg_matmul"})
# What makes a product with a generated matrix no output: it is read on, or brought to one size.
_ENDS = _LAYERS | _MATMULS | NORMS | {"einsum", "normalize"}
# What a distance is made of, and a score is not.
_DISTANCES = frozenset({"square", "pow", "abs", "norm", "linalg_vector_norm", "similarity"})
# What stands between a layer and the exponential of its output, where that is a scale.
_BOUNDS = PASSIVE | PRODUCTS | QUOTIENTS | SUMS | {"tanh", "clamp", "atan", "softsign", "neg"}
_PARTS = SPLITS | {"select", "narrow", "__getitem__", "index_select"}
_TURNS = frozenset({"t", "T", "mT", "transpose", "swapaxes", "swapdims", "permute", "movedim"})


@dataclass(frozen=True)
class Input:
    """Where the input of a weight comes from.

    Attributes:
        kind: "data" (the batch itself), "tokens", "table" (an embedding), "learned" (a parameter),
            "norm", "softmax", "activation", "layer" (another layer, nothing between), "codes" (rows
            that a signal was compared with), "sum" (a residual stream, or branches that meet),
            "product" (two signals multiplied), "attention", "recurrent" or "other".
        activation: the nonlinearity, where `kind` is "activation", or that of a gate.
        curve: the same as `fanin.moments` takes it, with its arguments; None where it knows none.
    """

    kind: str
    activation: str | None = None
    curve: str | None = None


@dataclass(frozen=True)
class After:
    """What becomes of a layer's output.

    Attributes:
        activation: the nonlinearity that follows, None without one.
        curve: the same as `fanin.moments` takes it, with its arguments; None where it knows none.
        normed: whether a norm stands between the two.
        factor: number that the output is multiplied with before it.
    """

    activation: str | None = None
    curve: str | None = None
    normed: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class Generated:
    """The weights that a layer's output is (a hypernetwork).

    Attributes:
        fan_in: inputs that they sum into one output.
        input: where these inputs come from.
        last: whether no layer is behind the one they are the weights of, made ones included.
    """

    fan_in: int
    input: Input
    last: bool = False


def input_of(architecture: Architecture, index: int) -> Input:
    """What gives the signal of call `index` its distribution."""
    calls, largest, plain = architecture.trace.calls, False, True
    while index >= 0:
        call = calls[index]
        kind = _kind(architecture, call)
        if kind == "softmax" and not plain:
            kind = "norm"  # shares of something else, which they are multiplied with
        if kind is not None:
            return Input("other" if kind == "layer" and largest else kind)
        written = written_before(architecture, index)
        if written is not None:
            return Input("activation", written.name, written.curve)
        if call.op in BENDING:
            return Input("activation", call.op, call.curve)
        signals = list(dict.fromkeys(i for i in call.sources if i != INTEGERS))
        if len(signals) > 1 and call.op in SUMS:
            return Input("sum")
        if len(signals) > 1 and call.op in PRODUCTS:
            return _product(architecture, signals)
        if call.op in PRODUCTS and len(call.sources) > 1 and calls[call.sources[0]].op in _PARTS:
            return Input("product")  # of two parts that one call made
        if len(set(call.sources)) > 1 and call.op in JOINS:
            parts = {input_of(architecture, i) for i in dict.fromkeys(call.sources)}
            return parts.pop() if len(parts) == 1 else Input("other")
        if not call.behind:
            return Input("data" if BATCH in call.inputs else "tokens")
        largest, plain = largest or call.op in _LARGEST, plain and call.op in PASSIVE
        values = [i for i in call.sources if i < 0 or calls[i].op not in COMPARISONS]
        index = call.behind[-1] if len(call.behind) == 1 else [*values, *call.sources][0]
    return Input("data" if index == BATCH else "tokens")


def _kind(architecture: Architecture, call: Call) -> str | None:
    """What a call is to the layer that reads it, where that says all."""
    if "v" in call.layout:
        return "table"
    if call.op in RECURRENT:
        return "recurrent"
    if call.units is not None:
        return "layer"
    if architecture.normalizes(call):
        return "softmax" if call.op == "softmax" else "norm"
    return "attention" if call.op in MIXES and not call.operands else None


def _product(architecture: Architecture, signals: list[int]) -> Input:
    """Two signals multiplied: a gate, or an activation written out (x·sigmoid(x))."""
    factors = [c for i in signals if (c := _nearest(architecture, i)) is not None]
    bent = [c for c in factors if c.op in BENDING]
    plain = [c for c in factors if c not in bent]
    if len(bent) == len(plain) == 1 and bent[0].op in _WRITTEN and bent[0].sources:
        inside = _nearest(architecture, bent[0].sources[0])
        ends = {source_of(architecture, c.index) for c in (plain[0], bent[0])}
        layer = plain[0].units is not None or architecture.normalizes(plain[0])
        if any(_takes_part(architecture, i) for i in signals):
            return Input("product", bent[0].op, bent[0].curve)  # parts of one output: a gate
        if inside is plain[0] or (layer and len(ends) == 1 and None not in ends):
            return Input("activation", *_WRITTEN[bent[0].op])
    return Input("product", bent[0].op, bent[0].curve) if bent else Input("product")


def _takes_part(architecture: Architecture, index: int) -> bool:
    """Whether a signal is a part of what one call made, such as half of its channels."""
    for _ in range(_NEAR):
        if index < 0:
            return False
        call = architecture.trace.calls[index]
        if call.op in _PARTS:
            return True
        if call.op not in PASSIVE or len(set(call.sources)) != 1:
            return False
        index = call.sources[0]
    return False


def _nearest(architecture: Architecture, index: int) -> Call | None:
    """The call that made a signal, through what passes it on and sums with constants."""
    for _ in range(_NEAR):
        if index < 0:
            return None
        call = architecture.trace.calls[index]
        through = call.op in PASSIVE or call.op in SUMS | PRODUCTS
        if not through or len(set(call.sources)) != 1:
            return call
        index = call.sources[0]
    return None


def nonlinearity_after(architecture: Architecture, call: Call) -> After:
    """The nonlinearity that follows a call, through norms and what keeps each value."""
    normed, factor = False, 1.0
    for _ in range(_NEAR):
        after = architecture.followers[call.index]
        bends = written_after(architecture, call.index)
        if bends is not None:
            return After(bends.name, bends.curve, normed, factor)
        bent = next((c for c in after if c.op in BENDING), None)
        if bent is not None:
            return After(bent.op, bent.curve, normed, factor)
        written = _norm_written_out(architecture, call) if len(after) > 1 else None
        if written is not None:
            call, normed = written, True
            continue
        if len(after) != 1 or after[0].units is not None or len(set(after[0].sources)) > 1:
            break
        call = after[0]
        normed = normed or architecture.normalizes(call)
        if call.op in PRODUCTS | QUOTIENTS and call.option:
            factor *= abs(call.option) ** (1 if call.op in PRODUCTS else -1)
        elif not (normed or call.op in PASSIVE or call.op in ("shift", "scale")):
            break
    return After(normed=normed)


def _norm_written_out(architecture: Architecture, call: Call) -> Call | None:
    """The call that ends a norm of several calls, where every way from `call` leads there."""
    inside = {call.index}
    for later in architecture.trace.calls[call.index + 1 : call.index + _NEAR]:
        if not later.behind or not inside.issuperset(later.behind) or later.units is not None:
            continue
        if architecture.normalizes(later):
            after = (c.index for i in inside for c in architecture.followers[i])
            return later if inside.issuperset(set(after) - {later.index}) else None
        inside.add(later.index)
    return None


def generated(architecture: Architecture, call: Call) -> Generated | None:
    """The weights that the output of a linear layer is, where it is a matrix for each sample."""
    waiting = [call]
    while waiting:
        made = waiting.pop()
        for after in architecture.followers[made.index]:
            if after.op in PASSIVE:
                # What is turned stays a matrix; heads that change places with tokens are none.
                if after.op not in _TURNS or after.shape[-2:] == made.shape[:-3:-1]:
                    waiting.append(after)
                continue
            fan = None if after.operands else _summed(architecture, call, made, after)
            if fan is not None:
                signal = next(i for i in after.sources if i != made.index)
                if call.index not in architecture.ancestors(i for i in [signal] if i >= 0):
                    last = _is_last(architecture, after)
                    return Generated(fan, input_of(architecture, signal), last)
    return None


def _is_last(architecture: Architecture, call: Call) -> bool:
    """Whether no layer or norm is behind a call, and no product with a matrix that was made."""
    seen, waiting = {call.index}, [call]
    while waiting:
        for after in architecture.followers[waiting.pop().index]:
            if after.op in _ENDS or after.units is not None:
                return False
            if after.index not in seen:
                seen.add(after.index)
                waiting.append(after)
    return True


def _summed(architecture: Architecture, layer: Call, made: Call, after: Call) -> int | None:
    """Inputs that a call sums with `made` as its weight; None where that is no weight.

    One output of the layer has to hold a whole matrix: in an attention the tokens are one side of
    it, and each of them has an output of its own.
    """
    if after.sources.count(made.index) != 1 or len(after.sources) < 2 or len(made.shape) < 2:
        return None
    if after.op in _LAYERS:
        whole = after.op != "linear" or math.prod(made.shape) <= layer.shape[-1]
        return math.prod(made.shape[1:]) if whole and after.sources[1] == made.index else None
    *several, rows, columns = made.shape
    whole = rows * columns <= layer.shape[-1] and math.prod(several) <= math.prod(layer.shape[:-1])
    if min(rows, columns) < 2 or not whole or len(after.sources) != 2:
        return None
    if after.op in _MATMULS:
        return columns if after.sources[0] == made.index else rows
    if after.op != "einsum":
        return None
    other = next(i for i in after.sources if i != made.index)
    beside = architecture.trace.calls[other].shape if other >= 0 else ()
    if rows == columns:
        return rows if beside.count(rows) < 2 else None
    summed = [s for s in (rows, columns) if s not in after.shape]
    shared = rows in beside and columns in beside  # one of them counts matrices, as heads do
    return summed[0] if len(summed) == 1 and not shared else None


def reaches_softmax(architecture: Architecture, call: Call) -> bool:
    """Whether a call ends up in attention scores, or is their mask."""
    for _ in range(_NEAR):
        after = architecture.followers[call.index]
        if any(c.op in _DISTANCES for c in after):
            return False  # centres, of which the nearest is looked for
        if any(c.op == "softmax" for c in after):
            return True
        fused = (c for c in after if c.op in FUSED)
        if any(all(call.index != i for _, i in attended(c)) for c in fused):
            return True  # as the mask
        if len(after) != 1 or after[0].units is not None:
            return False
        call = after[0]
    return False


def sets_steps(architecture: Architecture, call: Call) -> bool:
    """Whether softplus makes step sizes of a sum, and their exponential is a decay."""
    for _ in range(_NEAR):
        after = architecture.followers[call.index]
        if any(c.op == "softplus" for c in after):
            return any(_decays(architecture, c) for c in after if c.op == "softplus")
        if len(after) != 1 or after[0].op not in PASSIVE:
            return False
        call = after[0]
    return False


def _decays(architecture: Architecture, call: Call) -> bool:
    """Whether it is multiplied with learned rates, and an exponential follows."""
    rated = (c for c in _reached(architecture, call) if c.op == "scale")
    return any(c.op == "exp" for rate in rated for c in _reached(architecture, rate))


def _reached(architecture: Architecture, call: Call) -> list[Call]:
    """What a call reaches with no layer in between."""
    found: dict[int, Call] = {}
    waiting = [call]
    while waiting:
        for after in architecture.followers[waiting.pop().index]:
            if after.index not in found and (after.units is None or after.op == "scale"):
                found[after.index] = after
                waiting.append(after)
    return list(found.values())


def sets_scale(architecture: Architecture, call: Call) -> bool:
    """Whether a layer's output is the logarithm of a scale that the signal is multiplied with.

    As in the coupling layers of a flow: cut, bounded by a tanh or a clamp, and through an
    exponential to a product with something that this layer has not made, or has shifted (Glow).
    """
    made = architecture.descendants([call.index])
    seen, waiting = {call.index}, [call]
    while waiting:
        for after in architecture.followers[waiting.pop().index]:
            if after.op == "exp":
                scaled = architecture.followers[after.index]
                others = {i for c in scaled if c.op in PRODUCTS | QUOTIENTS for i in c.sources}
                sums = (architecture.trace.calls[i] for i in others & made)
                others.update(i for c in sums if c.op in SUMS for i in c.sources)
                if not others <= made:
                    return True
            bounds = after.op in _BOUNDS and after.units is None and len(set(after.sources)) == 1
            if bounds and after.index not in seen:
                seen.add(after.index)
                waiting.append(after)
    return False


def modulates(architecture: Architecture, call: Call, ends: Collection[int]) -> bool:
    """Whether a layer's output does nothing but scale other signals, by one and it, and shift them.

    So do FiLM (Perez 2018) and adaptive norms (Peebles 2023), whose gates stand in front of the
    sums in `ends`.
    """
    waiting, scales = [(call.index, False)], False
    while waiting:
        index, added = waiting.pop()
        for after in architecture.followers[index]:
            others = [i for i in after.behind if i != index]
            if not others and after.op in PASSIVE | SPLITS:
                waiting.append((after.index, added))
            elif not others and after.op in SUMS and 1.0 in after.terms:
                waiting.append((after.index, True))
            elif others and after.op in PRODUCTS:
                if not added and not _joins(architecture, after, {*others}, ends):
                    return False
                scales = True
            elif not others or after.op not in SUMS:
                return False
    return scales


def _joins(
    architecture: Architecture, product: Call, others: set[int], ends: Collection[int]
) -> bool:
    """Whether a product is added to a signal in it (x + x·a), or at the end of a branch."""
    for after in architecture.only_way(product.index):
        if after.op in SUMS:
            return after.index in ends or not others.isdisjoint(after.behind)
        if after.op not in PASSIVE:
            return False
    return False


def unrolled(architecture: Architecture) -> set[int]:
    """The later calls of layers of a cell that is unrolled over time: they make nothing deeper.

    Such a layer is used again on what it made, and something new has joined in between; a layer
    that is merely used several times in a row is as deep as others.
    """
    uses: dict[Key, list[Call]] = {}
    for call in architecture.trace.calls:
        if call.units is not None and call.operands:
            uses.setdefault(key_of(call), []).append(call)
    found: set[int] = set()
    for first, *later in (calls for calls in uses.values() if len(calls) > 1):
        made = architecture.descendants([first.index])
        if later[0].index not in made:
            continue
        if first.op in RECURRENT_CELLS:  # it is given both at once
            found.update(c.index for c in later)
            continue
        way = (made & architecture.ancestors([later[0].index])) - {first.index}
        joins = (c for c in map(architecture.trace.calls.__getitem__, way) if c.op in JOINS | SUMS)
        if any(set(c.inputs) - made for c in joins):
            found.update(c.index for c in later)
    return found
