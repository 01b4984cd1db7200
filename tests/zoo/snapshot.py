"""Everything a check must leave as it found it, bit for bit.

    before = snapshot(model, batch)
    fanin.check(model, batch)
    after = snapshot(model, batch)
    assert after == before, before.difference(after)

A snapshot holds on to every object whose identity it records, so that an identity cannot be
given to another object in the meantime.
"""

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Snapshot", "snapshot"]

_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)

_REBOUND = {"manual_seed"}  # by torch itself, when it first imports torch._dynamo

_PATCHABLE = {  # functions that could be replaced for the time of a check, and left so
    owner.__name__: (
        owner,
        [n for n, value in vars(owner).items() if callable(value) and n not in _REBOUND],
    )
    for owner in (
        torch,
        F,
        nn.init,
        torch.Tensor,
        torch.autograd,
        nn.Module,
        nn.MultiheadAttention,
        nn.TransformerEncoderLayer,
        nn.RNNBase,
        nn.LSTM,
        nn.Linear,
    )
}


class Same:
    """Equal only to another that holds the very same object (a plain value: an equal one)."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        if self.held is other.held:
            return True
        mine, theirs = self.held, other.held
        return (
            type(mine) is type(theirs) and isinstance(mine, _VALUES) and repr(mine) == repr(theirs)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self.held).__name__} at {id(self.held):#x}>"


class Bits:
    """The bits of a tensor: NaN payloads and the sign of zero count."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.form = (str(tensor.dtype), str(tensor.layout), str(tensor.device))
        self.parts = [_raw(part) for part in _dense(tensor)]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bits):
            return NotImplemented
        return (
            self.form == other.form
            and len(self.parts) == len(other.parts)
            and all(torch.equal(a, b) for a, b in zip(self.parts, other.parts, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Bits({self.form}, {sum(part.numel() for part in self.parts)} bytes)"


class Snapshot(dict[str, Any]):
    """What was seen, by place."""

    def difference(self, other: Snapshot) -> str:
        """The places at which two snapshots differ, for the message of an assertion."""
        with torch.no_grad():
            keys = list(self) + [key for key in other if key not in self]
            lines = [
                f"{key}: {before!r} became {after!r}"
                for key in keys
                for before, after in [
                    _narrow(self.get(key, "(absent)"), other.get(key, "(absent)"))
                ]
                if key not in self or key not in other or self[key] != other[key]
            ]
        return "\n".join(lines[:40] + ([f"… {len(lines) - 40} more"] if len(lines) > 40 else []))


def _narrow(before: Any, after: Any) -> tuple[Any, Any]:
    """Of two mappings, only what differs."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return before, after
    apart = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return tuple({key: side[key] for key in apart if key in side} for side in (before, after))


def snapshot(model: Any, batch: Any = None) -> Snapshot:
    """The model, the batch, and every global state a check could disturb."""
    seen = Snapshot()
    seen.update(_process())
    with torch.no_grad():
        if isinstance(model, nn.Module):
            seen.update(_model(model))
        seen.update(_walk("batch", batch, depth=4))
    return seen


# ── the process ──────────────────────────────────────────────────────────────────────────────


def _process() -> Iterator[tuple[str, Any]]:
    yield "torch rng", Bits(torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield "cuda rng", [Bits(state) for state in torch.cuda.get_rng_state_all()]
    kind, keys, *rest = numpy.random.get_state()
    yield "numpy rng", (kind, keys.tobytes(), *rest)
    yield "python rng", random.getstate()
    yield "default dtype", torch.get_default_dtype()
    yield "default device", torch.get_default_device()
    yield "grad mode", torch.is_grad_enabled()
    yield "inference mode", torch.is_inference_mode_enabled()
    yield "anomaly mode", torch.is_anomaly_enabled()
    yield "multithreaded backward", torch.autograd.is_multithreading_enabled()
    yield "deterministic", torch.are_deterministic_algorithms_enabled()
    yield "threads", torch.get_num_threads()
    yield "attention fast path", torch.backends.mha.get_fastpath_enabled()
    yield "mkldnn", torch.backends.mkldnn.enabled
    yield "autocast", tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    yield "function modes", torch._C._len_torch_function_stack()
    yield "dispatch modes", torch._C._len_torch_dispatch_stack()
    if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):  # torch 2.7 or later
        yield "saved tensor hooks", Same(torch._C._autograd._top_saved_tensors_default_hooks(True))
    yield "parametrization cache", nn.utils.parametrize._cache_enabled
    yield "tracing", (sys.gettrace(), sys.getprofile())
    yield "garbage collector", gc.isenabled()
    filters = map(repr, warnings.filters)  # torch imports sympy late, which adds one of its own
    yield "warning filters", [entry for entry in filters if "sympy" not in entry]
    for name, value in vars(nn.modules.module).items():
        if name.startswith("_global") and isinstance(value, Mapping):
            yield f"nn.modules.module.{name}", {key: Same(hook) for key, hook in value.items()}
    for where, (owner, names) in _PATCHABLE.items():
        yield f"{where}'s functions", {name: Same(vars(owner).get(name)) for name in names}


# ── the model ────────────────────────────────────────────────────────────────────────────────


def _model(model: nn.Module) -> Iterator[tuple[str, Any]]:
    done: set[int] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        place = f"model.{path}" if path else "model"
        yield place, (Same(module), type(module))
        if id(module) in done:
            continue
        done.add(id(module))
        yield f"{place}'s attributes", sorted(vars(module))
        for name, value in vars(module).items():
            yield from _walk(f"{place}.{name}", value, depth=2)


def _walk(place: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    yield place, (Same(value), type(value))
    if isinstance(value, torch.Tensor):
        yield from _tensor(place, value)
    elif isinstance(value, numpy.ndarray):
        yield f"{place}'s bits", (value.shape, str(value.dtype), value.tobytes())
    elif isinstance(value, nn.Module) or depth == 0:
        return
    elif isinstance(value, Mapping):
        yield f"{place}'s keys", [Same(key) for key in value]
        for number, (key, item) in enumerate(value.items()):
            yield from _walk(f"{place}[{number}: {str(key)[:60]}]", item, depth - 1)
    elif isinstance(value, list | tuple):
        yield f"{place}'s length", len(value)
        for number, item in enumerate(value):
            yield from _walk(f"{place}[{number}]", item, depth - 1)
    elif isinstance(value, set | frozenset):
        yield f"{place}'s members", sorted(map(id, value))


def _tensor(place: str, tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield f"{place}.requires_grad", (tensor.requires_grad, tensor.is_leaf, Same(tensor.grad_fn))
    yield (
        f"{place}'s hooks",
        [
            {} if hooks is None else {key: Same(hook) for key, hook in hooks.items()}
            for hooks in (
                tensor._backward_hooks,
                getattr(tensor, "_post_accumulate_grad_hooks", None),
            )
        ],
    )
    yield f"{place}'s attributes", {key: Same(item) for key, item in vars(tensor).items()}
    if nn.parameter.is_lazy(tensor):
        return
    yield f"{place}'s form", (tuple(tensor.shape), tensor.is_inference())
    if tensor.layout is torch.strided and not tensor.is_meta:
        yield f"{place}'s memory", (tensor.stride(), tensor.storage_offset(), tensor.data_ptr())
    yield f"{place}'s bits", Bits(tensor)
    if tensor.is_leaf:
        yield f"{place}.grad", Same(tensor.grad)
        if tensor.grad is not None:
            yield f"{place}.grad's bits", Bits(tensor.grad)


def _dense(tensor: torch.Tensor) -> list[torch.Tensor]:
    tensor = tensor.detach()
    if tensor.is_meta:
        return []
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout is torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().clone().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)
