"""What the values of a model do not show, from watching its construction."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fanin.kinds import name_of, takes_shape
from fanin.nested import tensors_in

__all__ = ["Record", "recorded", "recording"]

T = TypeVar("T")


class _Draw(NamedTuple):
    """A draw into what is computed, which changes none of the leaves that it is computed from."""

    tensor: weakref.ref[Tensor]
    leaves: list[Tensor]
    recorded: bool  # whether gradients told what they are, and it was random


class _Loose(NamedTuple):
    """A draw that made a new tensor: its memory, its shape, and the memory of its means."""

    storage: Any
    shape: torch.Size
    means: int | None


class Record:
    """What was seen while a model was built.

    Attributes:
        truncations: storage of a tensor → (std, lower bound, upper bound) of its truncated normal.
    """

    def __init__(self) -> None:
        self.truncations: dict[int, tuple[float, float, float]] = {}
        # kept, so that what lay there cannot be handed out a second time
        self._empty: dict[int, Any] = {}
        self._behind: list[Tensor] = []  # leaves behind computed tensors that were drawn
        self._data: Any = WeakTensorKeyDictionary()  # .data of a computed tensor → that tensor
        self._made: Any = WeakTensorKeyDictionary()  # computed without gradients → its leaves
        self._drawn: list[_Draw] = []  # into these two
        self._loose: list[_Loose] = []  # draws that nothing has used so far
        self._thrown: list[_Loose] = []
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
        # Without a record of gradients, and of numbers that are set, as a mask's are, only a
        # parametrization is known to make a weight of them.
        likely = {id(t) for d in self._drawn for t in d.leaves}
        return tuple(
            n
            for n, p in self._parameters(model)
            if id(p) in sure or (id(p) in likely and ".parametrizations." in f".{n}")
        )

    def thrown(self, model: nn.Module) -> tuple[str, ...]:
        """Parameters that a draw was for, as far as its means or its shape tell, that is lost."""
        self._let_go(frozenset())
        found: dict[str, None] = {}
        for draw in self._thrown:
            alike = {n: p for n, p in self._parameters(model) if p.shape == draw.shape}
            own = [n for n, p in alike.items() if _key(p) == draw.means]
            found.update(dict.fromkeys(own or alike))
        return tuple(found)

    def made_new(self, out: Tensor, means: Any) -> None:
        """Note a draw into a new tensor, which is lost if it is let go before anything uses it."""
        given = _key(means) if isinstance(means, Tensor) else None
        self._loose = [*self._loose[1 - _LOOSE :], _Loose(_storage(out), out.shape, given)]

    def _let_go(self, used: Collection[int]) -> None:
        """Tell draws that were let go from those that are used, by their memory, or still kept."""
        kept = [d for d in self._loose if d.storage._cdata not in used]
        count: Any = torch._C._storage_Use_Count
        self._thrown += [d for d in kept if count(d.storage._cdata) == 1]  # that is this record's
        self._loose = [d for d in kept if count(d.storage._cdata) > 1]

    def taken(self, tensors: Iterable[Tensor]) -> None:
        """Note what a call is given."""
        if self._loose:
            self._let_go({_key(tensor) for tensor in tensors})

    def allocated(self, tensor: Tensor) -> None:
        """Note memory that nothing was written into; what has none of its own is left out."""
        if tensor.numel() and type(tensor) in _PLAIN and not tensor.is_meta:
            self._empty[_key(tensor)] = _storage(tensor)

    def wrote(self, tensors: Iterable[Tensor]) -> None:
        """Note that something was written into tensors, or may be from now on."""
        for tensor in tensors if self._empty else ():
            self._empty.pop(_key(tensor), None)

    def drew(self, tensor: Tensor, random: bool = True) -> None:
        """Note a draw into a tensor; only one into a computed tensor has leaves behind.

        Args:
            tensor: that it was made into.
            random: whether it drew; what sets numbers may as well work on a signal.
        """
        computed = self._data.get(tensor, tensor)
        if computed._base is not None:  # rows of a weight, written one by one
            return
        aside = computed is not tensor or tensor in self._made or not random
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
            sure = random and tensor not in self._made
            self._drawn.append(_Draw(weakref.ref(tensor), found, sure))

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


_LOOSE = 8  # draws that are watched for their use at a time
# Beyond 6 σ a normal has 2e-9 of its mass: a bound there cuts nothing in any real matrix.
IDLE = 6.0
_UNWRITTEN = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})
_RESIZES = frozenset({"resize_", "resize_as_"})
_PLAIN = (Tensor, nn.Parameter)


# The last is one call to a mode, which does not see what it calls.
_DRAWS = frozenset({"normal_", "uniform_", "kaiming_uniform_"})
# What initializers by constants, and those that copy, come to.
_SETS = frozenset({"zero_", "fill_", "copy_", "constant_"})
_DATA: Any = vars(torch._C.TensorBase)["data"].__get__
# What hands out the memory of a tensor; whatever is written to that is not seen.
_HANDS_OUT = frozenset(
    {"numpy", "__array__", "__dlpack__", "data_ptr", "storage", "untyped_storage"}
)


class _Watch(TorchFunctionMode):
    """Sees the calls of a construction, but for those of C++ that ask no mode."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.inside = False  # a call that it saw

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, record = kwargs or {}, self.record
        if self.inside:  # `_Beneath` hands on what it saw
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        record.taken(tensors_in((args, kwargs)))
        if record._drawn:
            record.used(tensors_in((args, kwargs)))
        if name in _DRAWS:
            for tensor in tensors_in((args[:1], kwargs.get("tensor"))):
                record.drew(tensor)
        elif name in _SETS or (func is torch.eye and "out" in kwargs):
            for tensor in tensors_in((args[:1], kwargs.get("tensor"), kwargs.get("out"))):
                record.drew(tensor, random=False)
        grows = name in _RESIZES and not _bytes(args[0])
        self.inside = name != "new"  # which hides whether it was given sizes or values
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside = False
        if func == _DATA and args[0].grad_fn is not None:
            record._data[out] = args[0]
        elif not (torch.is_grad_enabled() or name_of(func)[1] or takes_shape(name)):
            record.made(out, tensors_in((args, kwargs)))
        if grows or (name in _UNWRITTEN and isinstance(out, Tensor)):
            record.allocated(out)
        elif func is torch.normal and kwargs.get("out") is None and type(out) is Tensor:
            record.made_new(out, kwargs.get("mean", args[0] if args else None))
        elif name_of(func)[1]:
            if name != "requires_grad_" and name not in _RESIZES:
                record.wrote(tensors_in((args[:1], kwargs.get("tensor"), kwargs.get("out"))))
        elif kwargs.get("out") is not None or name in _HANDS_OUT:
            record.wrote(tensors_in(kwargs.get("out", args[:1])))
        return out


class _Beneath(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what `_Watch` does not: ``torch.Tensor(n, m)``, and what operators and C++ write."""

    supports_higher_order_operators = True  # they are handed on

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled while a model is built stays compiled."""
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """To skip it, torch would import it first: 1 s."""
        return False

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, watch, record = kwargs or {}, self._watch, self._watch.record
        inside, watch.inside = watch.inside, True
        try:
            out = func(*args, **kwargs)
        finally:
            watch.inside = inside
        if not inside and func is torch.ops.aten.empty.memory_format:
            record.allocated(out)
        elif record._empty:
            record.wrote(tensors_in(_written(func, args, kwargs)))
        return out


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operator writes into; others than torch's own may write into any."""
    if func.namespace != "aten":
        return [args, kwargs]
    places, names = _writes(func)
    return [*(args[i] for i in places if i < len(args)), *(kwargs.get(n) for n in names)]


@lru_cache(maxsize=1024)
def _writes(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not func._schema.is_mutable or func is torch.ops.aten.resize_.default:
        return (), ()
    told = [(i, a) for i, a in enumerate(func._schema.arguments) if a.is_write]
    return tuple(i for i, _ in told), tuple(a.name for _, a in told)


def recorded(build: Callable[[], T]) -> tuple[T, Record]:
    """What a function builds, and the record of it.

    A construction that fails under the closest watch is tried once more: there, torch cannot make
    ``Subclass(2, 3)`` of a subclass of Tensor.  Random states are put back in between.

    Raises:
        Exception: that of the function.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        with recording(operators=True) as record:
            return build(), record
    except Exception as error:
        if not isinstance(error, RuntimeError) and not isinstance(error.__cause__, RuntimeError):
            raise
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    with recording() as record:
        return build(), record


@contextmanager
def recording(*, operators: bool = False) -> Iterator[Record]:
    """Watch the construction of a model, for what its values cannot show afterwards.

    Args:
        operators: whether to watch torch's operators too, which alone show the memory of
            ``torch.Tensor(2, 3)``.  Meanwhile no subclass of Tensor can be called so.

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
            record.wrote([tensor])
            return function(tensor, mean, std, a, b, *rest, **more)

        return wrapped

    def copied(tensor: Tensor, *rest: Any, **more: Any) -> Any:
        result = orthogonal(tensor, *rest, **more)  # draws aside, and copies that into the tensor
        record.drew(tensor)
        return result

    for name, function in kept.items():
        setattr(nn.init, name, note(function))
    orthogonal = kept["orthogonal_"] = nn.init.orthogonal_
    setattr(nn.init, "orthogonal_", copied)  # noqa: B010 - mypy lets no function be assigned to
    try:
        watch = _Watch(record)
        with watch, _Beneath(watch) if operators else nullcontext():
            yield record
    finally:
        for name, function in kept.items():
            setattr(nn.init, name, function)


def _key(tensor: Tensor) -> int:
    storage = _storage(tensor)
    return id(storage) if storage is tensor else int(storage._cdata)


def _bytes(tensor: Tensor) -> int:
    storage = _storage(tensor)
    return tensor.nbytes if storage is tensor else int(storage.nbytes())


def _storage(tensor: Tensor) -> Any:
    """The memory of a tensor; the tensor itself where it has none."""
    try:
        with torch._C.DisableTorchFunction():  # a record may be under way
            return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return tensor
