"""The values that a plan would draw, tried: which of them make numbers that are not finite.

Logarithms, roots and inverse cosines are defined for some numbers alone.  That a table holds rates,
which are positive, or points inside of a ball, no call says; that the model's own values give
finite numbers, and new ones do not, a run of each does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from fanin.apply import lent
from fanin.architecture import Architecture
from fanin.assignment import Recipe
from fanin.calls import Call, Observer
from fanin.errors import ForwardError
from fanin.guard import private, reseed, watching
from fanin.kinds import PASSIVE, PRODUCTS
from fanin.operations import ELEMENTWISE
from fanin.reparametrized import parts
from fanin.trace import Watch, trace

__all__ = ["at_risk", "trying"]

# What gives positive numbers, or none below zero, and what keeps them so.
_POSITIVE = frozenset({
    "square", "abs", "exp", "softplus", "sigmoid", "softmax", "relu", "var", "std", "norm",
    "linalg_norm", "linalg_vector_norm", "vector_norm", "cosh", "clamp", "clamp_min", "clip",
})  # fmt: skip
_KEEPING = PASSIVE | PRODUCTS | {"add", "radd", "mean", "sum", "div", "true_divide", "cumsum"}


def at_risk(architecture: Architecture, recipe: Recipe, model: nn.Module) -> bool:
    """Whether other values of the parameters may make numbers that are not finite.

    Where a function is called that is not defined for every number, or something is computed of a
    parameter alone, which is not watched.  Roots of squares, as norms that are written out take
    them, are at no risk, nor is a norm of weights.
    """
    calls = architecture.trace.calls
    drawn = {a.parameter for a in recipe.assignments}.difference(parts(model))
    if any(call.partial and not _of_positive(calls, call) for call in calls):
        return True
    operands = (o for c in calls for o in (*c.operands, *c.learned))
    computed = (o for o in operands if o.offset is None and o.factor is None)
    return any(not drawn.isdisjoint(operand.parameters) for operand in computed)


def _of_positive(calls: Sequence[Call], call: Call) -> bool:
    """Whether all that a call is given is positive whatever the parameters are."""
    waiting, seen = list(call.behind), set[int]()
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        before = calls[index]
        even = before.op == "pow" and before.option is not None and before.option % 2 == 0
        squared = before.op in PRODUCTS and len(before.sources) == 2 and len(before.behind) == 1
        if before.op in _POSITIVE or even or squared:
            continue
        if before.op not in _KEEPING or before.operands:
            return False
        waiting += before.behind
    return True


def trying(
    model: nn.Module, batch: Any, *, seed: int, frozen: bool
) -> Callable[[Recipe], dict[str, str]]:
    """A function that gives, for a recipe, the parameters nearest to where its values go wrong.

    It tells why they should keep their values; it gives none where the model's own values go wrong
    too, or neither do.
    """

    @cache
    def own() -> _Run:
        return _run(model, batch)

    def spoiling(recipe: Recipe) -> dict[str, str]:
        with lent(recipe, model, seed=seed, frozen=frozen):
            drawn = _run(model, batch)
        if not (drawn.raised or drawn.odd) or own().raised:
            return {}
        first = min((i for i in drawn.odd if own().is_finite_at(i, drawn.calls[i].op)), default=-1)
        if first < 0 and not (drawn.raised and drawn.calls):
            return {}
        names = _nearest(drawn.calls, first, {a.parameter for a in recipe.assignments})
        op = drawn.calls[first].op.removeprefix("unnamed:")
        where = "" if op in ELEMENTWISE else f" in torch.{op}"
        told = f"new values would give numbers{where} that are not finite, as its own do not"
        return dict.fromkeys(names, told)

    return spoiling


@dataclass(frozen=True)
class _Run:
    """The calls of one forward pass, the indices of those whose result is not finite all over,
    and whether it raised behind the last of them."""

    calls: tuple[Call, ...]
    odd: frozenset[int]
    raised: bool

    def is_finite_at(self, index: int, op: str) -> bool:
        """Whether the same call is there, and its result is finite."""
        there = index < len(self.calls) and self.calls[index].op == op
        return there and index not in self.odd


class _Finite(Observer):
    """Notes the calls whose result is not finite."""

    def __init__(self) -> None:
        self.odd: set[int] = set()

    def produced(self, call: Call, output: Tensor) -> None:
        if output.is_floating_point() and not bool(output.detach().isfinite().all()):
            self.odd.add(call.index)


def _run(model: nn.Module, batch: Any) -> _Run:
    finite, raised = _Finite(), False
    with watching(model) as guard:
        reseed(0)
        watch = Watch(model, model.named_parameters(), guard, finite)
        try:
            trace(model, private(batch), None, watch)
        except ForwardError:  # `torch.distributions` refuse what is not in their support
            raised = True
    return _Run(tuple(watch.calls), frozenset(finite.odd), raised)


def _nearest(calls: Sequence[Call], index: int, names: Collection[str]) -> set[str]:
    """Those of `names` that a call uses, or else the nearest calls before it on every way."""
    found: set[str] = set()
    waiting, seen = [calls[index]], set[int]()
    while waiting:
        call = waiting.pop()
        used = {p for operand in (*call.operands, *call.learned) for p in operand.parameters}
        here = used.intersection(names)
        found |= here
        if not here:
            waiting += [calls[i] for i in call.behind if i not in seen]
            seen.update(call.behind)
    return found
