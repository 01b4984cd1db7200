"""The values that tensors on the meta device start with, where the model's own code knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["give_own_", "started"]

# What a fresh norm has: `reset_running_stats` of torch.
_FRESH = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
# What tensors hold before the model's code runs, twice: what it writes is the same both times.
_BEFORE = (85, 86)
_MOST = 256 << 20  # bytes of all of them: tables of positions, biases of routers; no frozen model


def started(
    model: nn.Module,
    undrawn: Collection[int] = (),
    *,
    unsaved: bool = False,
    seed: int | None = None,
) -> dict[int, Tensor]:
    """The values of tensors on the meta device, by the id of the tensor; the model stays as it is.

    Running statistics of norms start fresh.  Others are what the model's own initialization
    writes into them: `_init_weights` of a transformers model, or `reset_parameters` of a module,
    run on these tensors with memory beside all others without.  What it leaves unwritten has no
    value here, and no more has what it draws, unless there is a seed.

    Args:
        model: of which the buffers that belong to the state are looked at.
        undrawn: ids of the parameters that are looked at as well.
        unsaved: whether buffers that do not belong to the state are looked at too.
        seed: of torch's generator, for what the model's own code draws: the same with the same
            version of torch and of the library.

    >>> with torch.device("meta"):
    ...     norm = nn.BatchNorm1d(2)
    >>> [value.tolist() for value in started(norm).values()]
    [[0.0, 0.0], [1.0, 1.0], 0]
    """
    found: dict[int, Tensor] = {}
    wanted: dict[int, Tensor] = {}
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is None or not buffer.is_meta:
                continue
            if key in module._non_persistent_buffers_set and not unsaved:
                continue
            if isinstance(module, _NormBase) and key in _FRESH:
                found[id(buffer)] = torch.full_like(buffer, _FRESH[key], device="cpu")
            else:
                wanted[id(buffer)] = buffer
    wanted |= {id(p): p for p in model.parameters() if p.is_meta and id(p) in undrawn}
    if not wanted or sum(tensor.nbytes for tensor in wanted.values()) > _MOST:
        return found
    seeds = _BEFORE if seed is None else (seed, seed)
    first, second = (
        _initialized(model, wanted, before, s) for before, s in zip(_BEFORE, seeds, strict=True)
    )
    same = (key for key in wanted if key in first and key in second)
    return found | {key: first[key] for key in same if torch.equal(first[key], second[key])}


def give_own_(
    model: nn.Module, drawn: Collection[str], seed: int, small: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Give what is not drawn the values that the model's own code gives it, in place of meta.

    Args:
        model: some of its tensors on the meta device.
        drawn: paths of the parameters that get their values elsewhere.
        seed: of what the model's own code draws.
        small: values of small tensors as the constructor makes them, by path; they count where the
            model's own initialization does not write.

    Returns:
        the paths of the parameters that have values now.  What nothing gives a value stays on meta.

    >>> with torch.device("meta"):
    ...     model = nn.Linear(2, 3)
    >>> give_own_(model, ["weight"], 0, {})
    ('bias',)
    """
    parameters = dict(model.named_parameters())
    undrawn = {n: p for n, p in parameters.items() if n not in drawn and p.is_meta}
    known = started(model, {id(p) for p in undrawn.values()}, seed=seed)
    for name, tensor in (*undrawn.items(), *model.named_buffers()):
        value = small.get(name)
        if tensor.is_meta and value is not None and value.shape == tensor.shape:
            known.setdefault(id(tensor), value.to(tensor.dtype))
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, own in held.items():
                if own is not None and id(own) in known:
                    held[key] = _as(own, known, id(own))  # type: ignore[assignment]
    return tuple(n for n, p in undrawn.items() if id(p) in known)


def _as(tensor: Tensor, known: dict[int, Tensor], key: int) -> Tensor:
    """The known value as a tensor of the same kind, one for all places that hold it."""
    if isinstance(tensor, nn.Parameter) and not isinstance(known[key], nn.Parameter):
        known[key] = nn.Parameter(known[key], requires_grad=tensor.requires_grad)
    return known[key]


def _initialized(
    model: nn.Module, wanted: dict[int, Tensor], before: int, seed: int
) -> dict[int, Tensor]:
    """What the wanted tensors hold after the model's own initialization."""
    made = {key: _made(tensor, before) for key, tensor in wanted.items()}
    places = [
        (values, key, tensor)
        for module in model.modules()
        for values in (module._parameters, module._buffers)
        for key, tensor in values.items()
        if id(tensor) in made
    ]
    try:
        for values, key, tensor in places:
            values[key] = made[id(tensor)]  # type: ignore[assignment]
        ours = {id(tensor) for tensor in made.values()}
        with torch.random.fork_rng(devices=()), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for module, owner in _modules(model, None):
                write = _initialization(module, owner)
                # Tensors with values of their own are not to be written.
                tensors = (*module.parameters(), *module.buffers())
                if write is not None and all(t.is_meta or id(t) in ours for t in tensors):
                    with contextlib.suppress(Exception):  # what it wrote until then is looked at
                        write()
    finally:
        for values, key, tensor in places:
            values[key] = tensor  # type: ignore[assignment]
    return {key: tensor.detach() for key, tensor in made.items()}


def _made(tensor: Tensor, value: int) -> Tensor:
    full = torch.full_like(tensor, value, device="cpu", requires_grad=False)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(full, requires_grad=False) if is_parameter else full


def _modules(module: nn.Module, owner: nn.Module | None) -> Iterator[tuple[nn.Module, Any]]:
    """Every module after its parts, with the nearest at or above it that initializes them."""
    owner = module if hasattr(module, "_init_weights") else owner
    for child in module.children():
        yield from _modules(child, owner)
    yield module, owner


def _initialization(module: nn.Module, owner: Any) -> Callable[[], object] | None:
    if owner is not None:
        return lambda: owner._init_weights(module)
    reset = getattr(module, "reset_parameters", None)
    return reset if callable(reset) else None
