"""What a loss would be, did the model guess: of a known loss, or of a sum of such and their parts.

A loss that is a sum of known losses, each times a constant, is known as a whole: the gradient at
each of them, which the backward pass makes anyway, tells how often it counts.  So it is with the
functions that a loss written by hand is made of: -logsigmoid(a - b), softplus(z) - z y,
logsumexp(z) - z[y].  What else is added, such as a penalty, stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.criteria import Guess, Targets, by_hand
from fanin.kinds import JOINS, PASSIVE, PRODUCTS, QUOTIENTS, SUMS

__all__ = ["Chance", "Part", "Parts", "chance", "regressions", "terms_of_loss"]


class Chance(NamedTuple):
    """What a loss would be, did the model guess.

    Attributes:
        loss: that.
        guesses: how many mean losses of one guess it counts: 1 for a mean, n for a sum over n.
    """

    loss: float
    guesses: float = 1.0


@dataclass
class Part:
    """What the loss has of one known function.

    Attributes:
        guess: what guessing makes of the function.
        weighed: what that adds to the loss.
        guesses: of how many mean losses of one guess.
        excess: what the function adds above that.
        through: gradient × scores, summed, by way of this function.
        scored: the same by every way.
        source: call that made the scores; -1 without any.
    """

    guess: Guess
    weighed: float = 0.0
    guesses: float = 0.0
    excess: float = 0.0
    through: float = 0.0
    scored: float = 0.0
    source: int = -1


class Parts:
    """The known losses of a pass and their parts, with how often the loss counts each.

    Args:
        listen: calls a function with a tensor's gradient, when that arrives.
    """

    def __init__(self, listen: Callable[[Tensor, Callable[[Tensor], None]], None]) -> None:
        self._listen = listen
        self.found: dict[int, Part] = {}  # by their calls
        self._expected: tuple[int, str, Guess | None] = -1, "", None

    def expect(self, index: int, name: str, guess: Guess) -> None:
        """A known function is about to run; its call, if any, will have this index."""
        self._expected = index, name.replace("log_sigmoid", "logsigmoid"), guess

    def made(self, calls: Sequence[Call], call: Call, output: Tensor) -> None:
        """Listen to the result of a call, where it is known."""
        index, name, guess = self._expected
        known = guess if (index, name) == (call.index, call.op) else None
        if call.op == "log":
            known = _of_share(calls, call)
        if known is None or not output.requires_grad:
            return
        # The scores hold the whole graph: only their values are kept, until their gradient is here.
        part = self.found[call.index] = Part(known._replace(scores=None))
        self._follow(part, call.op, output, known.scores)
        if known.scores is not None and len(call.behind) == 1:
            self._score(part, known.scores, calls, call.behind[0])

    def _follow(self, part: Part, op: str, output: Tensor, scores: Tensor | None) -> None:
        guess, result = part.guess, output.detach()
        given = None if scores is None else scores.detach()

        def take(gradient: Tensor) -> None:
            counted = gradient * guess.result
            part.weighed = _total(counted)
            part.guesses = _total(counted.abs()) / guess.unit
            part.excess = _total(gradient * result - counted)
            if given is not None:
                turned = _turned(op, given, guess.dim)
                part.through = _total(gradient * turned.reshape(gradient.shape))

        self._listen(output, take)

    def _score(self, part: Part, scores: Tensor, calls: Sequence[Call], index: int) -> None:
        """Listen to the scores: to the tensor that they are a view of, and all its views with it.

        The call that made it is the first of those that only hand it on.
        """
        whole = scores if scores._base is None else scores._base
        values = whole.detach()
        part.source = index
        while calls[index].op in PASSIVE and len(calls[index].behind) == 1:
            index = calls[index].behind[0]
            if calls[index].shape == whole.shape:
                part.source = index

        def take(gradient: Tensor) -> None:
            part.scored = _total(gradient * values)

        if whole.grad_fn is not None:
            self._listen(whole, take)


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _turned(op: str, scores: Tensor, dim: int) -> Tensor:
    """What a part changes by, to first order, as its scores grow by their own size."""
    if op in ("softplus", "logsigmoid"):
        return scores * torch.sigmoid(scores if op == "softplus" else -scores)
    mean = (scores.softmax(dim) * scores).sum(dim, keepdim=True)
    return scores - mean if op == "log_softmax" else mean


def _of_share(calls: Sequence[Call], call: Call) -> Guess | None:
    """That of the logarithm of a sigmoid, or of a softmax; a number such as 1e-8 may be added."""
    while len(call.inputs) == 1 and call.behind:
        call = calls[call.behind[0]]
        if call.op in ("sigmoid", "softmax"):
            classes = 2 if call.op == "sigmoid" else max(2, call.shape[-1])
            return Guess(math.log(classes), -math.log(classes))
        if call.op not in PASSIVE | {"clamp", "clamp_min", "add"} or call.operands:
            break
    return None


_Known = TypeVar("_Known")


def _of_loss(architecture: Architecture, known: Mapping[int, _Known]) -> _Known | None:
    """What is known of the loss, by its call, where it is a single one and not a sum of several."""
    trace, index = architecture.trace, architecture.trace.loss
    while index is not None and index not in known:
        call = trace.calls[index]
        index = call.behind[0] if call.op in PASSIVE and len(call.behind) == 1 else None
    return None if index is None else known[index]


def terms_of_loss(architecture: Architecture, known: Collection[int]) -> list[tuple[int, float]]:
    """The calls, of those known, that a loss is a sum of, with what each is multiplied with; none
    where there are others too.  A constant may be added, which the calls do not tell."""
    index = architecture.trace.loss
    return [] if index is None else _terms(architecture, known, index, 1.0)


def _terms(
    architecture: Architecture, known: Collection[int], index: int, times: float
) -> list[tuple[int, float]]:
    if index in known:
        return [(index, times)]
    call = architecture.trace.calls[index]
    if call.op in PRODUCTS | QUOTIENTS and call.option and len(call.behind) == 1:
        times *= call.option if call.op in PRODUCTS else 1 / call.option
    elif call.op not in ("add", "radd") and not (call.op in PASSIVE and len(call.behind) == 1):
        return []
    terms = [_terms(architecture, known, i, times) for i in call.behind]
    return [term for several in terms for term in several] if all(terms) and times > 0 else []


# Of a signal alone: a product with itself, and with no constant.
_POWERS: dict[tuple[str, float | None], float] = {
    ("abs", None): 1.0, ("square", None): 2.0, ("mul", None): 2.0,
}  # fmt: skip


def regressions(
    architecture: Architecture, differences: Mapping[int, Tensor]
) -> dict[int, Targets]:
    """Regression losses written by hand, by their calls: the mean or sum of (output − target)²."""
    calls, found = architecture.trace.calls, {}
    for call in calls[architecture.trace.length :] if differences else ():
        if call.op not in ("mean", "sum") or call.shape or len(call.behind) != 1:
            continue
        bent = calls[call.behind[0]]
        power = bent.option if bent.op == "pow" else _POWERS.get((bent.op, bent.option))
        index = bent.behind[0] if len(set(bent.behind)) == 1 else -1
        if index in differences and power is not None and power > 0:
            found[call.index] = by_hand(differences[index], power, call.op == "mean")
    return found


# Most of the loss of guessing must be that of known functions; the rest counts as it is.
_REST = 1.0


def chance(architecture: Architecture, parts: Mapping[int, Part], loss: float) -> Chance | None:
    """What the loss would be, did the model guess; None where that is not known."""
    whole = _of_loss(architecture, parts)
    result = None if whole is None else whole.guess.result
    if isinstance(result, float):  # the mean of a known loss, which may be no number
        return Chance(result)
    counted = _counted(architecture, parts)
    if counted is None or not math.isfinite(loss):
        return None
    reached, direct = counted
    excess = sum(parts[i].excess for i in reached)
    for own in direct.values():  # what the scores add besides, which guesses add nothing to
        excess += parts[own[0]].scored - sum(parts[i].through for i in own)
    weighed = sum(parts[i].weighed for i in reached)
    guessed = loss - excess
    if not abs(guessed - weighed) <= _REST * weighed:
        return None
    return Chance(guessed, sum(parts[i].guesses for i in reached))


def _counted(
    architecture: Architecture, parts: Mapping[int, Part]
) -> tuple[set[int], dict[int, list[int]]] | None:
    """The parts that a loss is a weighted sum of, and those scores that it adds by themselves, with
    their parts; None where one of either is in the loss in another way too."""
    calls, start = architecture.trace.calls, architecture.trace.loss
    if start is None or not parts:
        return None
    scores = {i: p.source for i, p in parts.items() if p.source >= 0}
    known = set(parts).union(scores.values())
    reached, direct, other = set(), set(), set()
    queue, seen = [start], set()
    while queue:
        index = queue.pop()
        if index in seen:
            continue
        seen.add(index)
        if index in parts:
            reached.add(index)
        elif index in scores.values():
            direct.add(index)
        else:
            summed = _summed(architecture, calls[index], known)
            queue += summed
            other.update({index} if not summed else set(calls[index].behind).difference(summed))
    deeper = {i for p in reached for i in calls[p].behind}
    elsewhere = architecture.ancestors(other)
    plain = {i for p in reached if p not in scores for i in calls[p].behind}
    if (set(parts) - architecture.inner) & elsewhere or reached & architecture.ancestors(deeper):
        return None
    if direct & (elsewhere | architecture.ancestors(plain)):
        return None
    found = {z: [i for i in reached if scores.get(i) == z] for z in direct}
    return None if not reached or not all(found.values()) else (reached, found)


_AFFINE = PASSIVE | JOINS | SUMS | {
    "subtract", "neg", "negative", "mean", "sum", "nanmean", "nansum", "where", "masked_fill",
    "masked_select", "diagonal", "diag", "trace",
}  # fmt: skip


def _summed(architecture: Architecture, call: Call, known: set[int]) -> list[int]:
    """Those of the calls behind one that its result is a weighted sum of."""
    if call.operands:
        return []
    if call.op in _AFFINE:
        return list(call.behind)
    if call.op in PRODUCTS:
        before = {i: architecture.ancestors({i}) for i in call.behind}
        found = [i for i in before if known & before[i]]
        calls = architecture.trace.calls
        fixed = all(not calls[j].operands for i in before if i not in found for j in before[i])
        return found if len(found) == 1 == call.sources.count(found[0]) and fixed else []
    if call.op in QUOTIENTS and call.sources and call.sources[0] >= 0:
        first = call.sources[0]
        return [first] if call.sources.count(first) == 1 else []
    return []
