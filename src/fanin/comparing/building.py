"""A fresh copy of the user's model for every training; the user's own is never trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

from fanin.comparing.batches import cause
from fanin.errors import ArgumentError, ModelError
from fanin.guard import reseed

__all__ = ["Source"]


class Source:
    """Gives the same model again and again.

    Args:
        build: a function without arguments that returns a model, or a model.
        seed: of the first build.

    Attributes:
        first: a model as it was built, or the user's own; it is only looked at.

    Raises:
        ArgumentError: `build` is neither, or it raised, or returned something else.
    """

    def __init__(self, build: Any, seed: int) -> None:
        if not callable(build):
            raise ArgumentError(
                f"build: {build!r:.40} is {type(build).__name__}; a function without arguments "
                "that returns a model, or a model, is needed"
            )
        self._build = build
        reseed(seed)
        self.first = self._made()
        self._known = {id(tensor) for tensor in _tensors(self.first)}

    def fresh(self, seed: int) -> nn.Module:
        """A model nobody else holds; everything random is seeded, whether it is built or copied.

        A function that returns one model twice, or shares a part of it, has it copied.

        Raises:
            ModelError: the model cannot be copied.
        """
        reseed(seed)
        model = self._made()
        if not any(id(tensor) in self._known for tensor in _tensors(model)):
            return model
        try:
            return copy.deepcopy(model)
        except Exception as error:
            raise ModelError(
                f"model: it cannot be copied ({cause(error)}); give a function "
                "that builds it instead"
            ) from error

    def _made(self) -> nn.Module:
        if isinstance(self._build, nn.Module):
            return self._build
        try:
            model: object = self._build()
        except Exception as error:
            raise ArgumentError(f"build: it raised {cause(error)}") from error
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"build: it returned {type(model).__name__}, not a torch.nn.Module")
        return model


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
