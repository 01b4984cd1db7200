"""The values of the parameters themselves, and what was seen of their making."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from fanin.kinds import name_of, takes_shape
from fanin.nested import tensors_in

__all__ = ["TINY", "Audit", "Record", "audit", "recording"]


@dataclass(frozen=True)
class Audit:
    """What the entries of one parameter look like.

    Attributes:
        name: parameter path.
        count: entries.
        nonfinite: entries that are NaN or infinite.
        rms: root mean square of the finite entries.
        max_abs: largest finite magnitude.
        tiny: share of (sampled) entries that are non-zero but below `TINY`.
        outliers: entries on a clamped bound far out in the tail.
        bound: that bound; 0 without outliers.
    """

    name: str
    count: int
    nonfinite: int
    rms: float
    max_abs: float
    tiny: float
    outliers: int
    bound: float

    @property
    def zero(self) -> bool:
        """Whether there are entries, and all are zero."""
        return self.count > 0 and self.max_abs == 0.0 and not self.nonfinite

    @property
    def uniform(self) -> bool:
        """Whether the entries look uniform (bound/rms = √3) rather than normal."""
        return self.rms > 0 and abs(self.max_abs / self.rms / 3**0.5 - 1) < 0.02


TINY = 1e-30  # no scheme, at any width or depth, draws weights near this; leftover integers look so
# The largest of 1e12 normal draws stays below 7.2 σ; an exact bound beyond 8 σ was put there.
FAR = 8.0
# Share of float32 entries on exactly the largest magnitude that a continuous draw never reaches; a
# clamp at 3 σ leaves 2.7e-3.
CLAMPED = 1e-3
# The nearest bound that truncated normals use is 2 σ; tables of sines end at 1.5.
NEAREST = 1.8
_SAMPLE = 65_536


def audit(model: nn.Module) -> tuple[Audit, ...]:
    """Look at every parameter's entries once."""
    return tuple(_audit(name, p.detach()) for name, p in model.named_parameters())


def _audit(name: str, values: Tensor) -> Audit:
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.numel() == 0 or not values.is_floating_point():
        return Audit(name, values.numel(), 0, 0.0, 0.0, 0.0, 0, 0.0)
    wide = torch.float32 if values.element_size() < 4 else None
    norm = float(torch.linalg.vector_norm(values, dtype=wide))
    nonfinite = 0
    finite = values
    if not math.isfinite(norm):
        nonfinite = int((~torch.isfinite(values)).sum())
        finite = values[torch.isfinite(values)].double()
        norm = float(torch.linalg.vector_norm(finite)) if finite.numel() else 0.0
    if finite.numel() == 0:
        return Audit(name, values.numel(), nonfinite, 0.0, 0.0, 0.0, 0, 0.0)
    low, high = (float(v) for v in torch.aminmax(finite))
    largest, rms = max(abs(low), abs(high)), norm / finite.numel() ** 0.5
    sample = finite.flatten()[:: max(1, finite.numel() // _SAMPLE)].abs()
    tiny = float(((sample > 0) & (sample < TINY)).float().mean())
    drawn = rms > 0 and values.dim() > 1 and values.element_size() >= 4  # biases are often set
    outliers = _outliers(finite, sample, largest) if drawn else 0
    return Audit(
        name, values.numel(), nonfinite, rms, largest, tiny, outliers, largest if outliers else 0.0
    )


def _outliers(values: Tensor, sample: Tensor, bound: float) -> int:
    """Entries exactly on ±`bound` in a bell: clamped there, or far out in its tail."""
    ordered = np.sort(sample.cpu().numpy())
    places = np.array([0.5, 0.6827]) * (len(ordered) - 1)
    middle, inner = np.interp(places, np.arange(len(ordered)), ordered)
    sigma, distinct = middle / 0.6745, 1 + np.count_nonzero(np.diff(ordered))
    if sigma == 0 or abs(inner / sigma - 1) > 0.1 or distinct < len(ordered) // 2:
        return 0  # no bell: 68.27 % of a normal lie within 1 σ
    if bound <= FAR * sigma and ordered[-1] != bound:
        return 0  # where a share of CLAMPED lies on the bound, some of the sample does
    on = sum(int(torch.count_nonzero(values == edge)) for edge in (bound, -bound))
    clamped = on >= max(3, CLAMPED * values.numel()) and bound > NEAREST * sigma
    return on if clamped or bound > FAR * sigma else 0


# ---- watching a construction ---------------------------------------------------------------------


class _Draw(NamedTuple):
    """A draw into what is computed, which changes none of the leaves that it is computed from."""

    tensor: weakref.ref[Tensor]
    leaves: list[Tensor]
    recorded: bool  # whether gradients told what they are


class Record:
    """What was seen while a model was built.

    Attributes:
        truncations: storage of a tensor → (std, lower bound, upper bound) of its truncated normal.
    """

    def __init__(self) -> None:
        self.truncations: dict[int, tuple[float, float, float]] = {}
        self._empty: dict[int, Tensor] = {}
        self._behind: list[Tensor] = []  # leaves behind computed tensors that were drawn
        self._data: Any = WeakTensorKeyDictionary()  # .data of a computed tensor → that tensor
        self._made: Any = WeakTensorKeyDictionary()  # computed without gradients → its leaves
        self._drawn: list[_Draw] = []  # into these two
        self._since: frozenset[str] = frozenset()  # parameters that were written afterwards

    def without(self, written: Collection[str]) -> Record:
        """The same record, for a model some of whose parameters were drawn again since."""
        later = copy(self)
        later._since = frozenset(written)
        return later

    def _parameters(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        return ((n, p) for n, p in model.named_parameters() if n not in self._since)

    def unwritten(self, model: nn.Module) -> tuple[str, ...]:
        """Parameters made by an uninitialized allocation that nothing wrote into."""
        return tuple(n for n, p in self._parameters(model) if _key(p) in self._empty)

    def idle(self, model: nn.Module) -> tuple[tuple[str, float, float], ...]:
        """(parameter, std, nearest bound in std) of truncated normals whose bounds cut nothing."""
        found = []
        for name, parameter in self._parameters(model):
            std, low, high = self.truncations.get(_key(parameter), (0.0, 0.0, 0.0))
            if std > 0 and min(abs(low), abs(high)) > IDLE * std:
                found.append((name, std, min(abs(low), abs(high)) / std))
        return tuple(found)

    def lost(self, model: nn.Module) -> tuple[str, ...]:
        """Parameters behind a computed weight that an initializer drew in their place."""
        sure = {id(t) for t in self._behind}
        sure |= {id(t) for d in self._drawn if d.recorded for t in d.leaves}
        # Without a record of gradients, only a parametrization is known to make a weight of them.
        likely = {id(t) for d in self._drawn for t in d.leaves}
        return tuple(
            n
            for n, p in self._parameters(model)
            if id(p) in sure or (id(p) in likely and ".parametrizations." in f".{n}")
        )

    def drew(self, tensor: Tensor) -> None:
        """Note a random draw into a tensor; only one into a computed tensor has leaves behind."""
        computed = self._data.get(tensor, tensor)
        if computed._base is not None:  # rows of a weight, written one by one
            return
        aside = computed is not tensor or tensor in self._made
        found: list[Tensor] = list(self._made.get(tensor, ()))
        queue, seen = [computed.grad_fn], set()
        while queue:
            node: Any = queue.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                found.append(node.variable)
            queue += [before for before, _ in node.next_functions]
        if not aside:
            self._behind += found
        elif any(leaf.shape == tensor.shape for leaf in found):  # a weight, and no activation
            self._drawn.append(_Draw(weakref.ref(tensor), found, tensor not in self._made))

    def made(self, out: Any, given: Iterable[Tensor]) -> None:
        """Note what is computed from parameters while no gradients are recorded."""
        leaves: list[Tensor] = []
        for tensor in given:
            leaves += [tensor] if isinstance(tensor, nn.Parameter) else self._made.get(tensor, [])
        # Each once: a power iteration reads what it made, time and again.
        leaves = list({id(leaf): leaf for leaf in leaves}.values())
        memory = {_key(leaf) for leaf in leaves}
        for tensor in tensors_in(out) if leaves else ():
            if _key(tensor) not in memory:  # a view writes through
                self._made[tensor] = leaves

    def used(self, tensors: Iterable[Tensor]) -> None:
        """Forget draws into what is used afterwards: it may be copied to where it counts."""
        ids = {id(tensor) for tensor in tensors}
        self._drawn = [d for d in self._drawn if id(d.tensor()) not in ids]


# Beyond 6 σ a normal has 2e-9 of its mass: a bound there cuts nothing in any real matrix.
IDLE = 6.0
_UNWRITTEN = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})


_DRAWS = frozenset({"normal_", "uniform_"})
_DATA: Any = vars(torch._C.TensorBase)["data"].__get__
# What hands out the memory of a tensor; whatever is written to that is not seen.
_HANDS_OUT = frozenset(
    {"numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage"}
)


class _Watch(TorchFunctionMode):
    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._record._drawn:
            self._record.used(tensors_in((args, kwargs)))
        if name in _DRAWS:
            for tensor in tensors_in((args[:1], kwargs.get("tensor"))):
                self._record.drew(tensor)
        out = func(*args, **kwargs)
        if func == _DATA and args[0].grad_fn is not None:
            self._record._data[out] = args[0]
        elif not (torch.is_grad_enabled() or name_of(func)[1] or takes_shape(name)):
            self._record.made(out, tensors_in((args, kwargs)))
        if name in _UNWRITTEN and isinstance(out, Tensor) and not out.is_meta:
            # the tensor itself is kept, so that its storage cannot be handed out a second time
            self._record._empty[_key(out)] = out
        elif name_of(func)[1]:
            if name != "requires_grad_":
                for tensor in tensors_in((args[:1], kwargs.get("tensor"), kwargs.get("out"))):
                    self._record._empty.pop(_key(tensor), None)
        elif kwargs.get("out") is not None or name in _HANDS_OUT:
            for tensor in tensors_in(kwargs.get("out", args[:1])):
                self._record._empty.pop(_key(tensor), None)
        return out


@contextmanager
def recording() -> Iterator[Record]:
    """Watch the construction of a model, for what its values cannot show afterwards.

    >>> with recording() as record:
    ...     layer = torch.nn.Linear(4, 4)
    ...     _ = torch.nn.init.trunc_normal_(layer.weight, std=0.02, a=-2.0, b=2.0)
    >>> [(name, round(bound)) for name, _, bound in record.idle(layer)]
    [('weight', 100)]
    """
    record = Record()
    names = ("trunc_normal_", "_no_grad_trunc_normal_")
    kept = {n: getattr(nn.init, n) for n in names if hasattr(nn.init, n)}

    def note(function: Any) -> Any:
        def wrapped(
            tensor: Tensor,
            mean: float = 0.0,
            std: float = 1.0,
            a: float = -2.0,
            b: float = 2.0,
            *rest: Any,
            **more: Any,
        ) -> Any:
            record.truncations[_key(tensor)] = (float(std), a - mean, b - mean)
            record._empty.pop(_key(tensor), None)
            return function(tensor, mean, std, a, b, *rest, **more)

        return wrapped

    for name, function in kept.items():
        setattr(nn.init, name, note(function))
    try:
        with _Watch(record):
            yield record
    finally:
        for name, function in kept.items():
            setattr(nn.init, name, function)


def _key(tensor: Tensor) -> int:
    try:
        with torch._C.DisableTorchFunction():  # a record may be under way
            return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return id(tensor)
