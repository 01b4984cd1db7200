"""A model whose frozen parameters are, for a while, as trainable as the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["thawed"]


@contextmanager
def thawed(model: nn.Module) -> Iterator[None]:
    """Every parameter that can have a gradient requires one, until the block ends."""
    wide = (p for p in model.parameters() if p.is_floating_point() or p.is_complex())
    frozen = [p for p in wide if not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
