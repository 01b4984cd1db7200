"""Read a model without measuring it: one watched forward pass, on any device, meta included."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fanin.architecture import Architecture, read
from fanin.calls import Observer
from fanin.errors import BatchError, ForwardError
from fanin.guard import Guard, finite_again, private, reseed, watching
from fanin.nested import arguments, inputs_in, map_batch
from fanin.trace import Watch, reject_unwatchable, trace

__all__ = ["bare", "check_batch", "plain", "reading"]

# Where modules inside of a model are wrapped, these stand in the paths of their parameters.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})


def reading(model: nn.Module, batch: Any) -> Architecture:
    """Run `model` on `batch` once and read its architecture; the model stays as it is.

    A model on the meta device is run on a meta copy of the batch: no value is computed.

    Raises:
        ModelError: the model cannot be watched, or its forward changes its trainable parameters.
        BatchError: the batch is not finite (a mask of 0 and −inf may be) or on another device.
        ForwardError: the forward raised.
    """
    reject_unwatchable(model)
    meta = any(p.is_meta for p in model.parameters())
    if meta:
        batch = map_batch(lambda tensor: tensor.to("meta"), batch)
    check_batch(model, batch)
    # What a forward makes by itself (masks, positions) has to be on meta too.
    made = torch.device("meta") if meta else nullcontext()
    own = {name for name, _ in model.named_parameters()}

    def read() -> Architecture:
        with watching(model) as guard, made:
            reseed(0)
            found = _watched(model, private(batch), guard)
            guard.reject_changed("a plan")
            return found

    try:
        architecture, _ = finite_again(model, read)  # what will be drawn anew may be NaN
    except ForwardError as error:
        if not meta:
            raise
        raise ForwardError(
            f"{error} (on the meta device no value can be looked at: plan the model, or a "
            "smaller one, on a real device)"
        ) from error
    # A forward may add modules, which are gone again.
    kept = tuple(p for p in architecture.parameters if p.name in own)
    return replace(architecture, parameters=kept)


def bare(model: nn.Module) -> nn.Module:
    """The model inside of what torch.compile and data parallelism wrap around it.

    Its parameters have the same paths as before the wrapping, and so the same values.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain(path: str) -> str:
    """A parameter's path without what torch.compile and activation checkpoints put into it.

    >>> plain("layers.0._orig_mod.up.weight")
    'layers.0.up.weight'
    """
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def check_batch(model: nn.Module, batch: Any) -> None:
    """Raise BatchError for an empty batch, a key that is no name, another device, a bad value."""
    args, kwargs = arguments(batch)
    keys: Iterable[object] = kwargs  # a user's dict may hold anything
    odd = [k for k in keys if not isinstance(k, str)]
    if odd:
        raise BatchError(
            f"batch: the key {odd[0]!r} is {type(odd[0]).__name__}; "
            "a dict of inputs needs the argument names (str)"
        )
    places = {t.device for t in (*model.parameters(), *model.buffers())}
    named = [*((str(i), v) for i, v in enumerate(args)), *kwargs.items()]
    given = [tensor for _, value in named for tensor in inputs_in(value)]
    if given and not any(tensor.numel() for tensor in given):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in given)
        raise BatchError(f"batch: it is empty ({shapes}); at least one sample is needed")
    for name, value in named:
        for tensor in inputs_in(value):
            if tensor.device not in places and tensor.dim() > 0:
                here = ", ".join(sorted(str(p) for p in places))
                raise BatchError(
                    f"batch: input {name} is on {tensor.device}, the model on {here}; "
                    "move one of them"
                )
            if tensor.is_nested:
                raise BatchError(
                    f"batch: input {name} is a nested tensor, whose rows differ in length; pad "
                    "them (torch.nested.to_padded_tensor) and give the lengths as a mask"
                )
            values = tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor
            if values.layout != torch.strided or not values.is_floating_point() or values.is_meta:
                continue
            bad = int((~torch.isfinite(values)).sum())
            if bad and not _is_mask(values):
                raise BatchError(
                    f"batch: input {name} holds {bad} NaN or infinite value{'s' * (bad > 1)}; "
                    "a finite batch is needed"
                )


def _is_mask(values: torch.Tensor) -> bool:
    """Added to attention scores: 0 where a token may look, −inf where it may not."""
    seen = values == 0
    return bool(seen.any() and (seen | (values == -math.inf)).all())


def _watched(model: nn.Module, batch: Any, guard: Guard) -> Architecture:
    watch = Watch(model, model.named_parameters(), guard, Observer())
    seen, _, _ = trace(model, batch, None, watch)
    return read(seen, model)
