"""What a kind of target gives to ``load``: how to construct it, and how to infer its batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fanin.errors import MissingPackageError, TargetError

__all__ = ["Infer", "Loss", "Source", "first_line", "guarded", "kind", "package"]

P = ParamSpec("P")
R = TypeVar("R")
Loss = Callable[[Any], Tensor]
Infer = Callable[[nn.Module, torch.Generator], tuple[Any, Loss | None]]


@dataclass(frozen=True)
class Source:
    """A target that was found but not built yet.

    ``construct`` builds a model, or (model, batch), or (model, batch, loss).  ``infer`` gives
    batch and loss of a model whose library says what it takes; it is None for a user's factory.
    ``fits`` raises where the model is too large for this machine.
    """

    name: str
    construct: Callable[[], object]
    infer: Infer | None = None
    fits: Callable[[], None] = lambda: None


def guarded(problem: str, function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` with what a library raises in it turned into a TargetError."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TargetError:
            raise
        except Exception as error:
            raise TargetError(f"{problem}: {first_line(error)}") from error

    return call


def package(name: str, target: str) -> Any:
    """Import an optional library.

    Raises:
        MissingPackageError: it is not installed; the message holds the install command.
        TargetError: it is installed but cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise MissingPackageError(
                f"{target} needs the package {name}, which is not installed: pip install {name}"
            ) from error
        raise TargetError(f"{name} cannot be imported: {first_line(error)}") from error
    except Exception as error:
        raise TargetError(f"{name} cannot be imported: {first_line(error)}") from error


def kind(value: object) -> str:
    """Name the type of a value in a sentence: "None", "a dict"."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Return "Type: message", of the message only its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
