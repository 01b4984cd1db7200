"""A model whose small tensors alone have memory: what a constructor computes, at any size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

__all__ = ["SMALL", "small_values"]

#: Elements of the largest tensor that has memory: temperatures, steps, scales, tables of offsets.
SMALL = 1 << 16


def small_values(build: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
    """The values of the small parameters and buffers of a model, by their paths.

    The others are on the meta device.  Empty where a model cannot be built so, since it brings
    large and small tensors together.

    >>> small_values(lambda: nn.Linear(2, 3))["bias"].shape
    torch.Size([3])
    >>> list(small_values(lambda: nn.Linear(1000, 1000, bias=False)))
    []
    """
    with contextlib.suppress(Exception), _Small():  # whatever a constructor raises
        model = build()
        held = (*model.named_parameters(), *model.named_buffers())
        return {name: tensor.detach() for name, tensor in held if not tensor.is_meta}
    return {}


class _Small(TorchFunctionMode):
    """New tensors are made on meta where they are large."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _device_constructors() and kwargs.get("device") is None:
            shape = func(*args, **{**kwargs, "device": "meta"})
            if shape.numel() > SMALL:
                return shape
        return func(*args, **kwargs)
