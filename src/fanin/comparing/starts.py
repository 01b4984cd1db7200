"""What a training can start from: a scheme by its name, a plan, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fanin.catalogue import find
from fanin.comparing.batches import cause
from fanin.errors import ArgumentError, FaninError, RecipeError
from fanin.planning import init_
from fanin.wording import did_you_mean

__all__ = ["AS_BUILT", "Start", "read"]

AS_BUILT = "default"  # the name of the start that leaves the model as it was built


@dataclass(frozen=True)
class Start:
    """A start and its name.

    Attributes:
        name: stands in the table; each start has another.
        place: called with the model, one batch and the seed; initializes the model in place.
    """

    name: str
    place: Callable[[nn.Module, Any, int], object]

    def apply_(self, model: nn.Module, batch: Any, seed: int) -> None:
        """Initialize `model` in place.

        Raises:
            ArgumentError: the start cannot be used for this model.
        """
        try:
            self.place(model, batch, seed)
        except (ArgumentError, RecipeError) as error:
            raise ArgumentError(f"schemes: {self.name!r} cannot be applied: {error}") from error
        except FaninError:
            raise
        except Exception as error:
            raise ArgumentError(f"schemes: {self.name!r} raised {cause(error)}") from error


def read(schemes: Any) -> tuple[Start, ...]:
    """Read the `schemes` argument of `fanin.compare`.

    Raises:
        ArgumentError: there is none, one is unknown or of another kind, or two have the same name.

    >>> [start.name for start in read(["default", nn.init.zeros_])]
    ['default', 'zeros_']
    """
    if isinstance(schemes, Mapping):
        named = [(name, given) for name, given in schemes.items()]
    elif isinstance(schemes, str) or not isinstance(schemes, Iterable):
        named = [(None, schemes)]
    else:
        named = [(None, given) for given in schemes]
    starts = tuple(_start(name, given) for name, given in named)
    names = [start.name for start in starts]
    if not starts:
        raise ArgumentError("schemes: there is none; at least one start is needed")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ArgumentError(
            f"schemes: two are called {twice[0]!r}; give a dict with a name of its own for each"
        )
    return starts


def _start(name: str | None, given: Any) -> Start:
    if name is not None and not isinstance(name, str):
        raise ArgumentError(f"schemes: the name {name!r} is {type(name).__name__}, not a string")
    if isinstance(given, str):
        if given == AS_BUILT:
            return Start(name or given, lambda model, batch, seed: None)
        try:
            scheme = find(given).name
        except ArgumentError:
            if hint := did_you_mean(given, [AS_BUILT]):
                raise ArgumentError(f"schemes: there is no {given!r}{hint}") from None
            raise
        return Start(
            name or given,
            lambda model, batch, seed: init_(model, batch, scheme=scheme, seed=seed),
        )
    if callable(getattr(given, "apply_", None)):
        return Start(name or "plan", lambda model, batch, seed: given.apply_(model, seed=seed))
    if callable(given) and not isinstance(given, (type, nn.Module)):
        return Start(
            name or str(getattr(given, "__name__", "function")),
            lambda model, batch, seed: given(model),
        )
    raise ArgumentError(
        f"schemes: {given!r:.40} is {type(given).__name__}; the name of a scheme, a Plan, or a "
        "function that initializes a model in place is needed"
    )
