"""The whole model behind one that is spread over processes: on meta, to be read."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from fanin.errors import ModelError
from fanin.placement import held, is_spread

__all__ = ["give_values_", "is_sharded", "unsharded", "with_values"]

#: Bytes that are gathered to look at them: of a model of 10¹² parameters the small ones.
GATHERED = 256 << 20

# Hooks of these packages gather, scatter or convert; without shards there is nothing to do so for.
_PARALLEL = ("torch.distributed.",)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# The copy is never saved or loaded.
_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
# Under names that start so, `fully_shard` and others like it keep their state in a module.
_COMPOSED = "__composable_api_state"


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter is spread over processes."""
    return any(is_spread(p) for p in model.parameters())


def unsharded(model: nn.Module) -> nn.Module:
    """A copy of a sharded model as it was before: whole parameters on meta, no parallel hooks.

    Buffers are copied with their values, so that a forward can run that looks at them.

    Raises:
        ModelError: something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
    copies = []
    for module in model.modules():
        _without_hooks(module, memo)
        original = _original(module)
        if original is not None:
            memo[id(module)] = original.__new__(original)
            copies.append(module)
    try:
        for module in copies:
            memo[id(module)].__dict__.update(copy.deepcopy(module.__dict__, memo))
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"model: it is spread over processes and cannot be copied to be read ({error}); plan "
            "it before it is sharded, on meta too, and apply the plan after"
        ) from error


def give_values_(model: nn.Module, whole: nn.Module) -> None:
    """Give the small parameters of the copy of a sharded model the values that they have.

    What an author chose is seen in small ones: offsets, tokens, masks, adapters.  Every process has
    to call it: shards are gathered, the smallest first.
    """
    left, chosen = GATHERED, set()
    for name, parameter in sorted(model.named_parameters(), key=lambda named: named[1].nbytes):
        left -= parameter.nbytes
        if left < 0:
            break
        own: Any = parameter
        elsewhere = is_spread(own) and own.device_mesh.get_coordinate() is None
        if not elsewhere and not held(own).is_meta:
            chosen.add(name)
    _give_(model, whole, chosen)


def with_values(model: nn.Module, whole: nn.Module, names: set[str]) -> nn.Module:
    """Give the copy of a sharded model memory, and to the parameters of these names values.

    The others are left unwritten.  Every process has to call it: shards are gathered.
    """
    _give_(model, whole, names)
    _give_(model, whole, {name for name, _ in model.named_parameters()} - names, values=False)
    return whole


def _give_(model: nn.Module, whole: nn.Module, names: set[str], *, values: bool = True) -> None:
    """Give parameters of the copy memory in the place of meta, and their values on request."""
    spread = dict(model.named_parameters())
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in whole.modules():
        for key, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, key))
    for name, empty in list(whole.named_parameters()):
        if name not in names:
            continue
        like: Any = spread[name]
        if values:
            own = like.detach()
            data = own.full_tensor() if is_spread(like) else own.clone()
        else:
            data = torch.empty(like.shape, dtype=like.dtype, device=held(like).device)
        made = nn.Parameter(data, requires_grad=empty.requires_grad)
        for module, key in places[id(empty)]:
            module._parameters[key] = made


def _original(module: nn.Module) -> type[nn.Module] | None:
    """The class that a module had before `fully_shard` changed it; such modules refuse copies."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is None or not isinstance(module, kind):
        return None
    return next(c for c in type(module).__mro__[1:] if c is not kind and issubclass(c, nn.Module))


def _without_hooks(module: nn.Module, memo: dict[int, Any]) -> None:
    """Let a copy of the module have all hooks but those of parallel training, and be as written."""
    for name in _HOOKS:
        hooks: OrderedDict[int, Any] = getattr(module, name)
        kept = OrderedDict((k, h) for k, h in hooks.items() if not _is_parallel(h))
        if len(kept) != len(hooks):
            memo[id(hooks)] = kept
    if module._compiled_call_impl is not None:  # bound to the module it was compiled for
        memo[id(module._compiled_call_impl)] = None
    states = [name for name in vars(module) if name.startswith(_COMPOSED)]
    for name in (*_STATE_HOOKS, *states):
        memo[id(getattr(module, name))] = OrderedDict()


def _is_parallel(hook: Any) -> bool:
    function = getattr(hook, "__func__", hook)
    function = getattr(function, "func", function)  # functools.partial
    return str(getattr(function, "__module__", "")).startswith(_PARALLEL)
