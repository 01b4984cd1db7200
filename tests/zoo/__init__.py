"""A zoo of small models to check, and what a check of each must say.

`healthy` start well at their own default initialization, `traps` look odd and are fine, `faults`
are ill in a known way, `bad_input` cannot be checked (or only look as if they could not).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import nn

__all__ = ["Case", "Zoo", "seeded"]

#: One place, or several of which any one will do.
Place = str | tuple[str, ...]

Built = tuple[nn.Module, Any, Callable[[Any], torch.Tensor] | None]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every generator within the block and gives it its former state back afterwards."""
    python, legacy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(legacy)


@dataclass(frozen=True)
class Case:
    """One model with its batch and loss, and what a check of it must say.

    A finding meets the expectation when its code is one of `codes`, its severity one of
    `severities`, and it holds each of `words` somewhere in its text.  Together, the findings that
    meet it must name every one of `layers` (any one of a tuple).
    """

    name: str
    builder: Callable[[], Any]
    seed: int = 0
    slow: bool = False
    needs: str | None = None  # a package without which the case is skipped
    thread: str = ""  # the public thread the case was reduced from
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of check
    watched: bool = False  # check is given a function that builds the model
    codes: tuple[str, ...] = ()
    severities: tuple[str, ...] = ("error", "warning", "info")
    layers: tuple[Place, ...] = ()
    words: tuple[Place, ...] = ()
    absent: tuple[str, ...] = ()  # codes that must not appear
    ok: bool | None = None  # what report.ok must be
    raises: type[BaseException] | tuple[type[BaseException], ...] = ()
    may_work: bool = False  # with `raises`: a report will do as well

    def __str__(self) -> str:
        return self.name

    def build(self) -> Built:
        """(model, batch, loss or None), the same at every call."""
        with seeded(self.seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is old on purpose says so
            built = self.builder()
        model, batch, *loss = built
        return model, batch, loss[0] if loss else None


class Zoo(list[Case]):
    """A list of cases, filled by decorating their builders."""

    def __init__(self, **defaults: Any) -> None:
        super().__init__()
        self.defaults = defaults

    def __call__(self, name: str = "", **fields: Any) -> Callable[[Callable], Callable]:
        """Decorates a builder: its name, unless given, becomes that of the case."""

        def register(builder: Callable) -> Callable:
            self.add(name or builder.__name__.replace("_", "-").strip("-"), builder, **fields)
            return builder

        return register

    def add(self, name: str, builder: Callable, **fields: Any) -> None:
        if any(case.name == name for case in self):
            raise ValueError(f"two cases are called {name!r}")
        self.append(Case(name, builder, **{**self.defaults, **fields}))
