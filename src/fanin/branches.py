"""Residual branches: where a signal is added to what came out of layers that read it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fanin.architecture import Architecture
from fanin.calls import BATCH, INTEGERS, Call
from fanin.kinds import ACTIVATIONS, JOINS, QUOTIENTS, RECURRENT, SUMS

__all__ = ["Branch", "ResidualBranch", "branches", "low_rank_pairs", "residual_branches"]

_ADDS = frozenset({"add", "radd", "sub"})
_SQUASHING = frozenset({"tanh", "hardtanh", "erf", "softsign", "atan"})
_GATES = frozenset({"sigmoid", "hardsigmoid", "softmax"})
# What has all of its operands in its values; elsewhere one can gate another.
_GATHERS = SUMS | JOINS | {"hstack", "vstack", "dstack"}
# What makes integers or booleans of a signal; and what gives indices beside its values.
_COUNTS = frozenset({
    "eq", "ne", "gt", "ge", "lt", "le", "isclose", "isnan", "logical_and", "logical_or",
    "logical_not", "nonzero", "argwhere", "argmax", "argmin", "argsort", "searchsorted",
    "bucketize", "multinomial", "one_hot", "bincount", "histc", "long", "int", "bool",
})  # fmt: skip
_PICKS = _COUNTS | {"topk", "sort"}
_STARTS = 64  # whose depths are kept: the sums of a stream start from few calls, one after another


@dataclass(frozen=True)
class Branch:
    """One residual branch: ``stream + branch(stream)``.

    Attributes:
        start: index of the call that both ways start from (-1: the batch).
        end: index of the call that adds.
        number: place along its stream, from 0.
        of: layers that add to that stream, over its whole length; those of which shares are
            taken that sum to one, such as experts, count as one.
        depth: layers with weights on the longest way through the branch.
        norm: "before" its first layer, "after" the sum, "last" (between its last layer and the
            sum), or "none".
        layers: weighted calls of the branch.
        last: the weighted calls whose output is added.
    """

    start: int
    end: int
    number: int
    of: int
    depth: int
    norm: str
    layers: tuple[int, ...]
    last: tuple[int, ...]


@dataclass(frozen=True)
class ResidualBranch:
    """A residual branch as a person reads it: ``stream + branch(stream)``.

    Attributes:
        number: place along its stream, from 0.
        of: layers that add to that stream, over its whole length; those of which shares are
            taken that sum to one, such as experts, count as one.
        norm: "before" its first layer, "after" the sum, "last" (between its last layer and the
            sum), or "none".
        layers: names of its layers.
        last: names of those whose output is added.
    """

    number: int
    of: int
    norm: str
    layers: tuple[str, ...]
    last: tuple[str, ...]


def residual_branches(
    architecture: Architecture,
) -> tuple[tuple[ResidualBranch, ...], dict[str, int]]:
    """The branches with the names of their layers, and the innermost one of each layer inside."""
    found, inside, _ = architecture.once(branches)
    names = {i: layer.name for i, layer in architecture.layer_of.items()}

    def told(calls: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names[i] for i in calls if i in names))

    shown = tuple(
        ResidualBranch(b.number, b.of, b.norm, told(b.layers), told(b.last)) for b in found
    )
    places = {branch: place for place, branch in enumerate(found)}
    return shown, {names[i]: places[branch] for i, branch in inside.items() if i in names}


def branches(
    architecture: Architecture,
) -> tuple[tuple[Branch, ...], dict[int, Branch], set[int]]:
    """The branches, the innermost branch of each call inside one, and the calls that end them."""
    found: list[tuple[Branch, set[int]]] = []
    starts: dict[int, int] = {}  # end of a branch → where it started
    origins, depths = _Origins(architecture.trace.calls), _Depths(architecture.trace.calls)
    for add in origins.follow():
        if add.op in _ADDS and len(set(add.sources)) == 2:
            pair = _branch(architecture, add, _start(origins, add, starts), depths)
            if pair is not None and not _is_no_stream(architecture, pair[0]):
                found.append(pair)
                starts[add.index] = pair[0].start
    numbered = _numbered(architecture, [branch for branch, _ in found])
    regions = [(branch, region) for branch, (_, region) in zip(numbered, found, strict=True)]
    inside: dict[int, Branch] = {}
    for branch, region in sorted(regions, key=lambda pair: -len(pair[1])):
        inside.update(dict.fromkeys(region, branch))
    lasts = {i for branch in numbered for i in branch.last if inside.get(i) is branch}
    return numbered, inside, lasts


def _is_no_stream(architecture: Architecture, branch: Branch) -> bool:
    """Whether a sum at the very end adds terms of the output, and no branch to a stream.

    What is added are fewer numbers than both ways start from (α·log π(a) − Q(a), of an actor), or
    more, where the output gets its units back (a statistic of the batch is added); or the sum is
    the error of a loss, y − f(x), and the batch holds y.  The layers before it make the output.
    """
    calls = architecture.trace.calls
    if branch.end in architecture.inner:
        return False
    if branch.start < 0:
        return not any(calls[i].shape for i in architecture.trace.outputs)
    start, end = (math.prod(calls[i].shape) for i in (branch.start, branch.end))
    if start > end:
        return True
    layers = any(calls[i].operands for i in architecture.ancestors([branch.start]))
    return start < end and not layers


def low_rank_pairs(architecture: Architecture) -> dict[int, str]:
    """Weighted call → "A" or "B": two linear layers in a row beside a single one (LoRA)."""
    found: dict[int, str] = {}
    calls = architecture.trace.calls
    origins = _Origins(calls)
    for call in origins.follow():
        if call.op not in _ADDS or len(set(call.sources)) != 2 or min(call.sources) < 0:
            continue
        start = origins.meeting(*call.sources)
        if start is None:
            continue
        sides = [s for i in call.sources if (s := _short(calls, i, start)) is not None]
        if len(sides) < 2:
            continue
        chains = [sorted(i for i in side if calls[i].units is not None) for side in sides]
        bent = any(calls[i].op in ACTIVATIONS for side in sides for i in side)
        short, long = sorted(chains, key=len)
        if (len(short), len(long), bent) != (1, 2, False):
            continue
        first, second = (calls[i] for i in long)
        if first.units < min(first.fan_in or 0, second.units or 0):  # type: ignore[operator]
            found[first.index], found[second.index] = "A", "B"
    return found


@dataclass(frozen=True)
class _Way:
    """One of the two ways on which a signal comes to a sum.

    Attributes:
        end: the last call, whose output is added.
        calls: all calls on it, behind where both ways start.
        depth: layers with weights on the longest way through them.
        bent: whether an activation is among them.
    """

    end: int
    calls: set[int]
    depth: int
    bent: bool


def _branch(
    architecture: Architecture,
    add: Call,
    meeting: tuple[int | None, int | None],
    depths: _Depths,
) -> tuple[Branch, set[int]] | None:
    """The branch that a sum ends, with all calls inside; None where it ends none."""
    calls = architecture.trace.calls
    start, stream = meeting
    if start is None:
        return None
    ends = dict.fromkeys(add.sources)
    deep = {end: depths.of(start, end) if end != stream else 0 for end in ends}
    least, most = sorted(deep.values())
    if most == 0 or least > 1 or least == most:
        return None  # none has layers, or both do
    ways = []
    for end in ends:
        inside = _region(calls, end, start) if end != stream else set()
        bent = any(calls[i].op in ACTIVATIONS for i in inside)
        ways.append(_Way(end, inside, deep[end], bent))
    around, through = sorted(ways, key=lambda way: way.depth)
    if not _goes_around(calls, around, through, start):
        return None
    region = _onward(calls, through.calls - around.calls, start)
    layers = tuple(sorted(i for i in region if _counts(calls[i])))
    last = _first_behind(calls, through.end, region)
    if not last:
        return None
    norm = _norm(architecture, add, region, layers, start, through.end)
    adders = len(set(last.values()))
    branch = Branch(start, add.index, 0, adders, through.depth, norm, layers, tuple(sorted(last)))
    return branch, region


class _Origins:
    """What each call comes from, as bits of a number: the batch is bit 0, call i is bit i + 1.

    The number of a call is let go behind the last call that reads it.
    """

    def __init__(self, calls: tuple[Call, ...]) -> None:
        self._calls = calls
        self._last = {i: call.index for call in calls for i in call.inputs}
        self._known = {BATCH: 1, INTEGERS: 0}  # integers are no signal that could go around

    def follow(self) -> Iterator[Call]:
        """Each call in turn, while it is known what its inputs come from."""
        for call in self._calls:
            yield call
            if call.index in self._last:
                own = 1 << (call.index + 1)
                for i in _signals(call):
                    own |= self._known[i]
                self._known[call.index] = own
            for i in call.behind:
                if self._last[i] == call.index:
                    del self._known[i]

    def meeting(self, one: int, two: int) -> int | None:
        """The nearest call from which both come (-1: the batch); None when there is none."""
        if min(one, two) < 0:
            return BATCH if min(one, two) == BATCH else None
        common = self._known[one] & self._known[two]
        return common.bit_length() - 2 if common else None

    def reach(self, start: int, end: int) -> bool:
        """Whether a call comes from another; from the batch comes all that is no integer of it."""
        if start == BATCH:
            return end != INTEGERS
        return bool(self._known[end] >> (start + 1) & 1)


class _Depths:
    """How many layers are on the longest way from one call to another."""

    def __init__(self, calls: tuple[Call, ...]) -> None:
        self._calls = calls
        self._known: dict[int, tuple[dict[int, int], list[int]]] = {}  # the list: up to where

    def of(self, start: int, end: int) -> int:
        """Layers behind `start`, up to `end` and with it; 0 where no way leads there."""
        if start not in self._known and len(self._known) >= _STARTS:
            del self._known[next(iter(self._known))]
        depth, done = self._known.setdefault(start, ({start: 0}, [start]))
        for index in range(done[0] + 1, end + 1):
            before = [depth[i] for i in self._calls[index].inputs if i in depth]
            if before:
                depth[index] = max(before) + _counts(self._calls[index])
        done[0] = max(done[0], end)
        return depth.get(end, 0)


def _start(
    origins: _Origins, add: Call, starts: Mapping[int, int]
) -> tuple[int | None, int | None]:
    """The call from which both ways to a sum start; and which of the two is a sum of the stream.

    In x + a(x) + b(x) the sum with a(x) is the stream that b(x) is added to: both start from x.
    """
    one, two = dict.fromkeys(add.sources)
    start, stream = origins.meeting(one, two), None
    for end, other in ((one, two), (two, one)):
        if end in starts and start != end and origins.reach(starts[end], other):
            start, stream = starts[end], end
    return start, stream


def _goes_around(calls: tuple[Call, ...], around: _Way, through: _Way, start: int) -> bool:
    """Whether the shorter way leads the signal past the layers: as it is, or by one projection."""
    if around.depth > 0:
        if around.depth > 1 or around.bent or through.depth == 1 or not through.bent:
            return False
        if calls[around.end].shape != calls[through.end].shape:
            return False  # keys and a query that is spread over them: two readings of one signal
        if _weights(calls, around.calls) & _weights(calls, through.calls - around.calls):
            return False  # a state: W x(t) + U h(t − 1), where h has seen x(t − 1) by the same W
    # Where another signal joins on the way around, it is a gate, no residual connection.
    return all(i in around.calls or i == start for k in around.calls for i in calls[k].behind)


def _weights(calls: tuple[Call, ...], region: set[int]) -> set[str]:
    """Parameters of the layers in a region."""
    return {name for i in region if _counts(calls[i]) for name in calls[i].parameters}


def _counts(call: Call) -> bool:
    return call.units is not None and "v" not in call.layout


def _signals(call: Call) -> tuple[int, ...]:
    """What a call's values come from: none where it looks at them for integers, or looks up."""
    return () if call.op in _COUNTS or "v" in call.layout else call.inputs


def _region(calls: tuple[Call, ...], end: int, start: int) -> set[int]:
    """Calls on the ways from `start` to `end`, `end` included."""
    seen: set[int] = set()
    queue = [end]
    while queue:
        index = queue.pop()
        if index > start and index not in seen:
            seen.add(index)
            queue += calls[index].behind
    return seen


def _short(calls: tuple[Call, ...], end: int, start: int) -> set[int] | None:
    """As `_region`; None where it has more than two layers."""
    seen: set[int] = set()
    heap, layers = [-end], 0
    while heap:
        index = -heapq.heappop(heap)
        if index <= start or index in seen:
            continue
        seen.add(index)
        layers += calls[index].units is not None
        if layers > 2:
            return None
        for i in calls[index].behind:
            heapq.heappush(heap, -i)
    return seen


def _onward(calls: tuple[Call, ...], region: set[int], start: int) -> set[int]:
    """The calls of a region that depend on its start: not what makes gates of a condition."""
    if start < 0:
        return region
    found: set[int] = set()
    for index in sorted(region):
        if any(i == start or i in found for i in calls[index].behind):
            found.add(index)
    return found


def _first_behind(calls: tuple[Call, ...], end: int, region: set[int]) -> dict[int, int]:
    """The last weighted calls of a region, seen from its end → what mixes each with others.

    That is the gate whose outputs sum to one; the call itself where there is none.
    """
    found: dict[int, int] = {}
    seen: set[int] = set()
    queue: list[tuple[int, int | None]] = [(end, None)]
    while queue:
        index, mixer = queue.pop()
        if index not in region or index in seen:
            continue
        seen.add(index)
        call = calls[index]
        if _counts(call):
            found[index] = index if mixer is None else mixer
            continue
        operands = tuple(i for i in _signals(call) if i >= 0)
        if len(operands) > 1 and call.op not in _GATHERS:
            # A gate, or an index that a router picked, is not what is added: follow what it gates.
            gates = {i: _gate(calls, i, region) for i in operands}
            gated = tuple(i for i in operands if gates[i] is None)
            gated = gated or tuple(i for i in operands if (g := gates[i]) is not None and g.picked)
            if gated:
                mixers = [gate.call for gate in gates.values() if gate is not None and gate.shares]
                operands, mixer = gated, mixers[0] if mixers else mixer
        queue += [(i, mixer) for i in operands]
    return found


@dataclass(frozen=True)
class _Gate:
    """What all of an operand comes from that only weighs or picks other signals.

    Attributes:
        call: a sigmoid, a softmax, or what picks.
        shares: whether its outputs sum to one where they are used.
        picked: whether neither a sigmoid nor a softmax is among them: these may be values.
    """

    call: int
    shares: bool
    picked: bool


def _gate(calls: tuple[Call, ...], end: int, region: set[int]) -> _Gate | None:
    """The gate that all of an operand comes from, such as a router's softmax over experts.

    Past what picks (top-k before the softmax) it may come from layers: the picks are indices.
    """
    seen: set[tuple[int, bool]] = set()
    queue, gates, picks = [(end, False)], [], []
    while queue:
        index, picked = queue.pop()
        if (index, picked) in seen:
            continue
        seen.add((index, picked))
        call = calls[index]
        if index in region and call.op in _GATES:
            gates.append(index)
        elif index not in region or _counts(call):
            if not picked:
                return None
        else:
            if call.op in _PICKS:
                picks.append(index)
                picked = True
            queue += [(i, picked) for i in call.behind]
    if not gates and not picks:
        return None
    shares = any(calls[i].op == "softmax" or calls[i].op in QUOTIENTS for i, _ in seen)
    return _Gate(max(gates or picks), bool(gates) and shares, not gates)


def _squashes(calls: Sequence[Call], call: Call) -> bool:
    """Whether a learned scale follows tanh, or a curve like it: what stands in a norm's place.

    As in dynamic tanh (Zhu et al. 2025): the stream may grow, and what its branches read does not.
    """
    return (
        call.op == "scale"
        and bool(call.operands)
        and max(call.operands[0].shape, default=1) > 1
        and len(call.behind) == 1
        and calls[call.behind[0]].op in _SQUASHING
    )


def _norm(
    architecture: Architecture,
    add: Call,
    region: set[int],
    layers: tuple[int, ...],
    start: int,
    end: int,
) -> str:
    calls = architecture.trace.calls
    norms = [i for i in region if architecture.normalizes(calls[i])]
    if any(i > max(layers) for i in norms):
        return "last"
    held = _all_pass(calls, start, end, region, {*norms})  # one in the middle holds what follows
    norms += [i for i in region if _squashes(calls, calls[i])]
    if held or any(i < min(layers) for i in norms):
        return "before"
    ahead = architecture.followers[add.index]
    return "after" if len(ahead) == 1 and architecture.normalizes(ahead[0]) else "none"


def _all_pass(
    calls: Sequence[Call], start: int, end: int, region: set[int], norms: set[int]
) -> bool:
    """Whether every way through a branch, from its end back to its start, passes a norm."""
    seen, waiting = {end}, [end]
    while waiting:
        index = waiting.pop()
        if index in norms:
            continue
        before = calls[index].behind
        if index not in region and index != start and start >= 0:
            continue  # a condition, which is no part of the stream
        if index not in region or calls[index].entry:
            return False
        waiting += [i for i in before if i not in seen]
        seen.update(before)
    return True


def _numbered(architecture: Architecture, found: list[Branch]) -> tuple[Branch, ...]:
    """Count the branches along each stream."""
    calls = architecture.trace.calls
    by_end = {branch.end: place for place, branch in enumerate(found)}
    stream: list[int] = []  # of each branch
    number: list[int] = []
    for place, branch in enumerate(found):
        index = branch.start
        while index >= 0 and index not in by_end and _passes(calls[index]):
            index = calls[index].behind[0]
        before = by_end.get(index)
        beside = _beside(branch, found, (by_end.get(i) for i in calls[branch.end].sources))
        if beside is not None:
            stream.append(stream[beside])
            number.append(number[beside])
        elif before is None:
            stream.append(place)
            number.append(0)
        else:
            stream.append(stream[before])
            number.append(number[before] + 1)
    adders: dict[int, int] = {}
    for place, branch in enumerate(found):
        adders[stream[place]] = adders.get(stream[place], 0) + branch.of
    return tuple(
        replace(branch, number=number[place], of=adders[stream[place]])
        for place, branch in enumerate(found)
    )


def _beside(branch: Branch, found: list[Branch], ends: Iterable[int | None]) -> int | None:
    """The branch that starts where this one does and is added just before it."""
    return next((i for i in ends if i is not None and found[i].start == branch.start), None)


def _passes(call: Call) -> bool:
    """Whether a stream goes on through the call: one signal in, no weights that mix."""
    return len(call.behind) == 1 and call.units is None and call.op not in RECURRENT
