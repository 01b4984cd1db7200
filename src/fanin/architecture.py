"""Read the calls of a trace as layers: what each is named, what it uses, what it feeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from torch import nn

from fanin.calls import INTEGERS, Call, Trace
from fanin.kinds import ADDING, BENDING, JOINS, NORMS, PASSIVE, SUMS

__all__ = [
    "Architecture",
    "Key",
    "Layer",
    "Parameter",
    "key_of",
    "parameters_of",
    "read",
    "weighted_source",
]

Read = TypeVar("Read")
#: What makes two calls one layer: operation, main weight, whether it is transposed, its layout.
Key = tuple[str, tuple[str, ...], bool, str]

_NORMALIZING = NORMS | {"normalize", "softmax", "local_response_norm"}
_ROOTS = frozenset(
    {"rsqrt", "sqrt", "std", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm"}
)
_ROOT_EXPONENTS = (0.5, -0.5)  # a root, or one over it, written as a power
_PRIME = (1 << 61) - 1
_POOLS = frozenset(
    f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)
)
_CARRIERS = PASSIVE | NORMS | {"add", "sub", "scale", "shift", "mul", "div"}
# What makes each number of the one at the same place.
_ONE_BY_ONE = frozenset({
    "add", "radd", "sub", "rsub", "mul", "rmul", "div", "pow", "square", "abs", "exp", "neg",
    "clamp", "clamp_min",
})  # fmt: skip
_TO_ROOT = 4  # calls: an epsilon, a bound, a reshape
_TO_ACTIVATION = 16  # calls: norms and sums, on every way onward
# A variance is kept above zero, or above an epsilon, before its root is taken.
_BOUNDED = _CARRIERS | {"clamp", "clamp_min", "relu"}


@dataclass(frozen=True)
class Parameter:
    """A parameter tensor.

    Attributes:
        name: its canonical path, as ``named_parameters`` gives it.
        aliases: every path it is reached by, the canonical one first.
        shape: of the tensor.
        trainable: whether it requires a gradient.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    trainable: bool


@dataclass(frozen=True)
class Layer:
    """One weighted layer: all the calls that use the same weight in the same way.

    A weight that is used both as it is and transposed makes two layers.

    Attributes:
        name: module path where the module is this one layer, else the weight's parameter path.
        key: what its calls have in common, the same in every pass.
        op: canonical operation.
        weight: parameters that make up the main weight.
        parameters: every parameter it uses, the main weight's first.
        calls: indices of its calls in the trace.
        units: output channels, None for an elementwise parameter.
        fan_in: inputs summed into one output value.
        fan_out: outputs that one input value reaches.
        activation: the nonlinearity that follows, through norms and reshapes; None without one.
        trainable: whether any of its parameters requires a gradient.
    """

    name: str
    key: Key
    op: str
    weight: tuple[str, ...]
    parameters: tuple[str, ...]
    calls: tuple[int, ...]
    units: int | None
    fan_in: int | None
    fan_out: int | None
    activation: str | None
    trainable: bool


@dataclass(frozen=True)
class Architecture:
    """The layers of a model in order of execution, with the calls that link them.

    Attributes:
        layers: in order of first execution.
        parameters: every parameter of the model.
        unnamed: (parameter, torch function) whose role is not known; "unused" if never seen.
        trace: the calls.
    """

    layers: tuple[Layer, ...]
    parameters: tuple[Parameter, ...]
    unnamed: tuple[tuple[str, str], ...]
    trace: Trace

    @property
    def goal(self) -> tuple[int, ...]:
        """The calls that the gradient starts from: the loss, or the outputs without one."""
        return self.trace.outputs if self.trace.loss is None else (self.trace.loss,)

    def once(self, reading: Callable[[Architecture], Read]) -> Read:
        """What `reading` makes of this architecture: it runs at the first call alone."""
        if reading not in self._readings:
            self._readings[reading] = reading(self)
        found: Read = self._readings[reading]
        return found

    @cached_property
    def _readings(self) -> dict[Callable[[Architecture], Any], Any]:
        return {}

    def reached(
        self,
        without: Collection[int],
        through: Collection[int],
        start: Collection[int] | None = None,
    ) -> bool:
        """Whether the batch reaches the output around the calls in `without`.

        Only paths that pass at least one of the calls in `through` count; with `start`, only those
        that enter at one of these calls.
        """
        entries = self.entries if start is None else start
        plain: set[int] = set()
        layered: set[int] = set()
        for call in self.trace.calls:
            if call.index in without:
                continue
            passed = any(i in layered for i in call.behind)
            if call.index in entries or passed or any(i in plain for i in call.behind):
                (layered if passed or call.index in through else plain).add(call.index)
        return any(i in layered for i in self.goal)

    @cached_property
    def layer_of(self) -> Mapping[int, Layer]:
        """The layer that each call of one belongs to."""
        return {index: layer for layer in self.layers for index in layer.calls}

    @cached_property
    def followers(self) -> Mapping[int, Sequence[Call]]:
        """The calls that take the result of each call, in order of execution."""
        return _followers(self.trace)

    def only_way(self, index: int) -> Iterator[Call]:
        """The calls behind a call, one after another, while each result goes to one call alone."""
        while len(self.followers[index]) == 1:
            (call,) = self.followers[index]
            yield call
            index = call.index

    @cached_property
    def inner(self) -> frozenset[int]:
        """Calls with a layer between them and every end of the run."""
        found: set[int] = set()
        for call in reversed(self.trace.calls):
            if call.units is not None or call.index in found:
                found.update(call.behind)
        return frozenset(found)

    @cached_property
    def heads(self) -> tuple[Layer, ...]:
        """Layers whose output goes to the goal alone, never meeting another signal on its way.

        Other terms of a loss, which are one number, are no such signals.
        """
        return tuple(y for y in self.ends if not any(True for _ in self._met(y)))

    @cached_property
    def ends(self) -> tuple[Layer, ...]:
        """Layers whose output goes to the goal, alone or as a term of a sum or a part of a whole.

        So the target tells their units apart, or nothing does.
        """
        ends = (y for y in self.layers if self.inner.isdisjoint(y.calls))
        return tuple(y for y in ends if all(call.op in SUMS | JOINS for call in self._met(y)))

    def _met(self, layer: Layer) -> Iterator[Call]:
        """Calls on the way from a layer's output to the goal that take another signal in."""
        after = self.descendants(layer.calls)
        for index in after.difference(layer.calls):
            call = self.trace.calls[index]
            other = set(call.behind).difference(after, self.labels)
            if any(math.prod(self.trace.calls[i].shape) != 1 for i in other):
                yield call

    @cached_property
    def labels(self) -> frozenset[int]:
        """Calls that make something of targets, or of the batch's integers alone.

        Targets are tensors of the batch that no layer reads; of integers, labels may be shifted
        tokens, and one-hot where no layer reads those.
        """
        read = frozenset[int]().union(
            *(self.given[c.index] for c in self.trace.calls if c.operands)
        )
        found: set[int] = set()
        for call in self.trace.calls:
            if call.operands or not call.inputs:
                continue
            targets = self.given[call.index] and read.isdisjoint(self.given[call.index])
            integers = all(i == INTEGERS or i in found for i in call.inputs)
            apart = not call.entry or call.index not in self.inner
            if targets or (integers and apart):
                found.add(call.index)
        return frozenset(found)

    @cached_property
    def given(self) -> Mapping[int, frozenset[int]]:
        """The numbers of the batch's tensors that each call depends on."""
        found: dict[int, frozenset[int]] = {}
        for call in self.trace.calls:
            found[call.index] = frozenset(call.given).union(*(found[i] for i in call.behind))
        return found

    @cached_property
    def entries(self) -> frozenset[int]:
        """The calls where the samples enter."""
        return frozenset(call.index for call in self.trace.calls if call.entry)

    @cached_property
    def trunk(self) -> tuple[int, ...]:
        """Calls that every path from the batch to the output (or the loss) passes, in order."""
        return self.shared(self.entries)

    def shared(self, entries: Collection[int]) -> tuple[int, ...]:
        """Calls that every path from some entries to the output (or the loss) passes, in order.

        A call is on every path when the paths through it are all the paths there are; they are
        counted modulo a prime, so that their number stays small.
        """
        calls = self.trace.calls
        into, onward = [0] * len(calls), [0] * len(calls)
        for call in calls:
            here = call.index in entries
            into[call.index] = (here + sum(into[i] for i in call.behind)) % _PRIME
        for index in self.goal:
            onward[index] = 1
        for call in reversed(calls):
            for i in call.behind:
                onward[i] = (onward[i] + onward[call.index]) % _PRIME
        total = sum(into[i] for i in self.goal) % _PRIME
        return tuple(
            i for i in range(len(calls)) if total and into[i] * onward[i] % _PRIME == total
        )

    @cached_property
    def normalizations(self) -> tuple[int, ...]:
        """Calls of the trunk that bring the signal to a scale of its own.

        These are norms, or hand-written ones: a product with the inverse of a root, a standard
        deviation or a norm.
        """
        return tuple(i for i in self.trunk if self.normalizes(self.trace.calls[i]))

    def normalizes(self, call: Call) -> bool:
        """Whether a call brings the signal to a scale of its own."""
        if call.op in _NORMALIZING:
            return True
        return call.op in ("mul", "div", "scale") and self._by_root(call)

    def _by_root(self, call: Call) -> bool:
        """Whether one of its factors is made by a root, a standard deviation or a norm.

        Not of each number by itself: x/√(1 + x²) is an activation.
        """
        for index in call.behind:
            for _ in range(_TO_ROOT):
                behind = self.trace.calls[index]
                root = behind.op == "pow" and behind.option in _ROOT_EXPONENTS
                if root or behind.op in _ROOTS:
                    return not self._of_each(behind, call)
                if behind.op not in _BOUNDED or len(behind.behind) != 1:
                    break
                index = behind.behind[0]
        return False

    def _of_each(self, root: Call, call: Call) -> bool:
        """Whether a root is taken of the number that it divides in `call`, and of nothing else."""
        waiting, seen = [root], set(call.behind)
        while waiting:
            for index in waiting.pop().behind:
                before = self.trace.calls[index]
                if index in seen:
                    continue
                seen.add(index)
                if before.shape != call.shape or before.op not in _ONE_BY_ONE:
                    return False
                waiting.append(before)
        return root.shape == call.shape

    def first_met(self, start: Collection[int], stops: Collection[int], onward: bool) -> set[int]:
        """The first of the calls in `stops` on every way from `start`, onward or back."""
        met: set[int] = set()
        seen, queue = set(start), list(start)
        while queue:
            index = queue.pop()
            behind = self.trace.calls[index].behind
            for other in (c.index for c in self.followers[index]) if onward else behind:
                if other in stops and other not in start:
                    met.add(other)
                elif other not in seen:
                    seen.add(other)
                    queue.append(other)
        return met

    def open_way(self, start: Collection[int], stops: Collection[int], onward: bool) -> bool:
        """Whether a way from `start` reaches the loss (onward) or the batch (back) past `stops`."""
        seen, queue = set(start), list(start)
        while queue:
            call = self.trace.calls[queue.pop()]
            if call.index in self.goal if onward else call.entry:
                return True
            ways = [c.index for c in self.followers[call.index]] if onward else call.behind
            new = {i for i in ways if i not in stops} - seen
            seen |= new
            queue += new
        return False

    @cached_property
    def factors(self) -> Mapping[str, set[int]]:
        """For each parameter the calls that multiply the signal with it (a bias adds).

        Not with what some function, as exp, makes of it alone, nor with 1 + it.
        """
        found: dict[str, set[int]] = {}
        for call in self.trace.calls:
            for operand in call.operands:
                plain = operand.offset == 0.0 or len(operand.parameters) > 1
                if plain and "bias" not in operand.role and call.op not in ADDING:
                    for name in operand.parameters:
                        found.setdefault(name, set()).add(call.index)
        return found

    def ancestors(self, start: Iterable[int]) -> set[int]:
        """Calls from which `start` is reached, `start` included."""
        return _reached(start, lambda index: self.trace.calls[index].behind)

    def descendants(self, start: Iterable[int]) -> set[int]:
        """Calls that `start` reaches, `start` included, also where the trace ends before it."""
        return _reached(start, lambda index: [c.index for c in self.followers.get(index, ())])


def _reached(start: Iterable[int], ways: Callable[[int], Iterable[int]]) -> set[int]:
    seen: set[int] = set()
    queue = list(start)
    while queue:
        index = queue.pop()
        if index not in seen:
            seen.add(index)
            queue += ways(index)
    return seen


def read(trace: Trace, model: nn.Module) -> Architecture:
    """Group the calls of `trace` into the layers of `model`."""
    parameters = parameters_of(model)
    groups: dict[Key, list[Call]] = {}
    for call in trace.calls:
        if call.operands and not call.op.startswith("unnamed:") and call.operands[0].parameters:
            groups.setdefault(key_of(call), []).append(call)
    aliases = {p.name: p.aliases for p in parameters}
    owners = {key: _owner(calls[0], aliases) for key, calls in groups.items()}
    shared = Counter(owner for owner, _ in {(owners[key][0], key[1]) for key in groups})
    holders = {above for owner, _ in owners.values() for above in _above(owner)}
    followers = _followers(trace)
    trainable = {p.name for p in parameters if p.trainable}
    layers = []
    taken: set[str] = set()
    for key, calls in groups.items():
        owner, path = owners[key]
        names = tuple(dict.fromkeys(p for c in calls for p in c.parameters))
        first = owner != "" and owner not in taken
        whole = first and shared[owner] == 1 and owner not in holders
        taken.add(owner)
        layers.append(
            Layer(
                name=owner if whole else path,
                key=key,
                op=key[0],
                weight=key[1],
                parameters=names,
                calls=tuple(c.index for c in calls),
                units=calls[0].units,
                fan_in=calls[0].fan_in,
                fan_out=calls[0].fan_out,
                activation=_activation(calls[0], followers),
                trainable=any(n in trainable for n in names),
            )
        )
    return Architecture(tuple(layers), parameters, _unnamed(trace, parameters), trace)


def key_of(call: Call) -> Key:
    """The key of the layer that a weighted call belongs to."""
    main = call.operands[0]
    return call.op, main.parameters, main.turned, call.layout


def parameters_of(model: nn.Module) -> tuple[Parameter, ...]:
    """Every parameter once, with all the paths that lead to it."""
    paths: dict[int, list[str]] = {}
    tensors = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    return tuple(
        Parameter(names[0], tuple(names), tuple(tensors[key].shape), tensors[key].requires_grad)
        for key, names in paths.items()
    )


def weighted_source(calls: Sequence[Call], call: Call) -> Call | None:
    """The nearest weighted call whose units `call` still shows, through norms, reshapes and pools.

    Of a sum the latest term that shows any: noise of a learned size, added to a mean, shows none.
    """
    seen: set[int] = set()
    waiting = list(call.behind[-1:])
    while waiting:
        before = calls[waiting.pop()]
        if before.units is not None:
            return before
        if before.op in _CARRIERS | _POOLS and before.index not in seen:
            seen.add(before.index)
            waiting += before.behind if before.op in SUMS else before.behind[-1:]
    return None


def _owner(call: Call, aliases: Mapping[str, tuple[str, ...]]) -> tuple[str, str]:
    """The module that a weighted call belongs to, and the path of its main weight there."""
    paths = [a for name in call.operands[0].parameters for a in aliases.get(name, (name,))]
    own = [p for p in paths if _module_of(p) == call.module]
    path = own[0] if own else paths[0]
    return _module_of(path), path


def _module_of(path: str) -> str:
    """The module that holds a parameter; for a parametrized one, not its parametrization."""
    owner = path.rpartition(".")[0]
    if ".parametrizations." in f".{owner}.":
        return owner.partition(".parametrizations")[0]
    return owner


def _above(path: str) -> list[str]:
    """Every module that holds `path`."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _followers(trace: Trace) -> dict[int, list[Call]]:
    followers: dict[int, list[Call]] = {call.index: [] for call in trace.calls}
    for call in trace.calls:
        for index in call.behind:
            followers[index].append(call)
    return followers


def _activation(call: Call, followers: dict[int, list[Call]]) -> str | None:
    """The first nonlinearity downstream, through norms, reshapes and sums."""
    queue, seen = list(followers[call.index]), 0
    while queue and seen < _TO_ACTIVATION:
        after = queue.pop(0)
        seen += 1
        if after.op in BENDING:
            return after.op
        if after.op in _CARRIERS and after.units is None:
            queue += followers[after.index]
    return None


def _unnamed(trace: Trace, parameters: tuple[Parameter, ...]) -> tuple[tuple[str, str], ...]:
    seen: dict[str, set[str]] = {}
    named: set[str] = set()
    for call in trace.calls:
        for operand in (*call.operands, *call.learned):
            for name in operand.parameters:
                if call.op.startswith("unnamed:"):
                    function = call.op.removeprefix("unnamed:")
                    told = function if " " in function else f"torch.{function}"
                    seen.setdefault(name, set()).add(told)
                else:
                    named.add(name)
    return tuple(
        (p.name, ", ".join(sorted(seen.get(p.name, {"unused"}))))
        for p in parameters
        if p.name not in named
    )
