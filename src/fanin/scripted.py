"""Functions and modules compiled by torch.jit: calls that no function mode would see.

While a block lasts, a scripted function runs as the Python function that it was made from, so that
what it does is seen like all else.  Of a scripted module there is no Python: its call goes to the
function modes as one, with its parameters before its arguments.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import overrides

from fanin.process import Lasting

__all__ = ["seen"]

_overrides: Any = overrides
_Function: Any = torch.jit.ScriptFunction
_Method: Any = torch._C.ScriptMethod
_wrapped: Any = torch.jit._recursive.wrap_cpp_module
_call_function, _call_method = vars(_Function)["__call__"], vars(_Method)["__call__"]


def _begin() -> None:
    _Function.__call__, _Method.__call__ = _function, _method


def _end() -> None:
    _Function.__call__, _Method.__call__ = _call_function, _call_method


_LASTING = Lasting(_begin, _end)


def seen() -> AbstractContextManager[None]:
    """Let function modes see what scripted functions do, and that scripted modules are called."""
    return _LASTING.block()


def _function(scripted: Any, *args: Any, **kwargs: Any) -> Any:
    if not _overrides._is_torch_function_mode_enabled():  # of another thread
        return _call_function(scripted, *args, **kwargs)
    python = getattr(scripted, "_torchdynamo_inline", None)
    if python is not None:
        return python(*args, **kwargs)
    return _as_one(lambda *given, **named: _call_function(scripted, *given, **named), args, kwargs)


def _method(scripted: Any, *args: Any, **kwargs: Any) -> Any:
    if not _overrides._is_torch_function_mode_enabled():
        return _call_method(scripted, *args, **kwargs)
    parameters = tuple(_wrapped(scripted.owner).parameters())

    def call(_: Any, *given: Any, **named: Any) -> Any:
        return _call_method(scripted, *given, **named)

    return _as_one(call, (parameters, *args), kwargs)


def _as_one(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    call.__name__ = "jit.script"  # as it is told
    return overrides.handle_torch_function(call, (), *args, **kwargs)
