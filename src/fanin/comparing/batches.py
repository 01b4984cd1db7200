"""The batches that every start is trained on: read once, and the same for all of them."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fanin.errors import ArgumentError, BatchError, FaninError
from fanin.nested import inputs_in

__all__ = ["Batches", "cause", "gather"]


@dataclass(frozen=True)
class Batches:
    """The batch of every step.

    Attributes:
        get: step → what the user gave for it.
        many: False where every step has the same batch.
        paired: whether each is a pair (batch, target), for a loss of two arguments.
    """

    get: Callable[[int], Any]
    many: bool
    paired: bool

    def at(self, step: int) -> tuple[Any, tuple[Any, ...]]:
        """A copy of the inputs of a step, and of its target where there is one.

        A copy, because a forward may write into its inputs.

        Raises:
            BatchError: it is no pair where one is needed, or it belongs to an autograd graph.
        """
        try:
            item = self.get(step)
        except FaninError:
            raise
        except Exception as error:
            raise BatchError(
                f"batch: the function given raised at step {step:,} {cause(error)}"
            ) from error
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        if self.paired and not pair:
            raise BatchError(
                f"batch: the loss takes an output and a target, so a pair (batch, target) is "
                f"needed; step {step:,} has {_kind(item)}"
            )
        if any(tensor.grad_fn is not None for tensor in inputs_in(item)):
            raise BatchError("batch: it belongs to an autograd graph; detach it first")
        item = _copied(item)
        return (item[0], (item[1],)) if self.paired else (item, ())


def gather(batch: Any, loss: Any, steps: int) -> Batches:
    """Read the `batch` argument of `fanin.compare`.

    A tensor, tuple or mapping is one batch for all steps; a function gives the batch of a step;
    anything else that can be iterated over gives one batch a step.  Of the last, `steps` batches
    are read and kept, and used again from the first where there are fewer.

    Raises:
        ArgumentError: the loss takes neither one argument nor two.
        BatchError: there is no batch, or reading one raised.

    >>> batches = gather([(1, 2), (3, 4)], lambda output, target: output, steps=3)
    >>> [batches.at(step) for step in range(3)]
    [(1, (2,)), (3, (4,)), (1, (2,))]
    """
    paired = _needs_target(loss)
    if isinstance(batch, (Tensor, tuple, Mapping)):
        return Batches(lambda _: batch, many=False, paired=paired)
    if isinstance(batch, Iterable) and not isinstance(batch, (str, bytes)):
        kept = _read(batch, steps)
        return Batches(lambda step: kept[step % len(kept)], many=len(kept) > 1, paired=paired)
    if callable(batch):
        return Batches(batch, many=True, paired=paired)
    raise BatchError(
        f"batch: {_kind(batch)}; a batch (tensor, tuple or dict), a list or loader of batches, or "
        "a function from the step to its batch is needed"
    )


def _read(batches: Iterable[Any], steps: int) -> list[Any]:
    try:
        kept = list(itertools.islice(batches, steps))
    except Exception as error:
        raise BatchError(f"batch: reading it raised {cause(error)}") from error
    if not kept:
        raise BatchError("batch: it holds no batch; at least one is needed")
    return kept


def _copied(value: Any) -> Any:
    """A deep copy; of plain tensors in plain containers without the cost of the general way."""
    if type(value) is Tensor:
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(_copied(each) for each in value)
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    return copy.deepcopy(value)


def _needs_target(loss: Any) -> bool:
    """Whether the loss cannot be called with an output alone, but with an output and a target."""
    if loss is None:
        return False
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # some builtins have none
        return False
    if _binds(signature, 1):
        return False
    if _binds(signature, 2):
        return True
    raise ArgumentError(
        f"loss: it takes {signature}; a function of the output, or of output and target, is needed"
    )


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return f"{value!r:.40} of type {type(value).__name__}"


def cause(error: BaseException) -> str:
    """The type and message of what the user's code raised, in one line.

    >>> cause(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
