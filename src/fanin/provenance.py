"""What each tensor of a watched run is made of.

*Learned* values are parameters or computed from parameters alone; *signals* depend on a layer or on
the batch; everything else is a constant.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fanin.axes import Axes, axes_of, carried, letters
from fanin.calls import Operand
from fanin.kinds import PASSIVE, PRODUCTS, QUOTIENTS

__all__ = ["Multiple", "Provenance", "Record", "learned_by", "names_of", "operand_of"]


@dataclass(frozen=True)
class Multiple:
    """Constants that a parameter is multiplied with: a number, a mask.

    Attributes:
        factor: root mean square of what is not zero.
        mask: where it is not zero, as the parameter lies; None for everywhere.
    """

    factor: float = 1.0
    mask: Tensor | None = None

    def kept(self, layout: str, axes: Axes | None) -> float | None:
        """Share of its inputs that an output keeps, of those that keep any; None if not known.

        Args:
            layout: what the dimensions are of what was made of the parameter, as in `Weighted`.
            axes: which dimensions of the parameter those hold.
        """
        if self.mask is None:
            return 1.0
        if axes is None or len(axes) != len(layout):
            return None
        places = letters(layout, axes, self.mask.shape)
        inputs = [d for d, letter in enumerate(places) if letter in "ik"]
        if not inputs:
            return None
        shares = self.mask.double().mean(inputs)
        return float(shares[shares > 0].mean())


@dataclass(frozen=True)
class Record:
    """What a tensor is made of.

    Attributes:
        call: index of the call that made a signal, negative for the batch; None for what is none.
        parameters: those that a learned value is, or is computed from.
        varies: whether it depends on the batch.
        offset: what was added to a parameter; None where more than that was done to it.
        axes: which dimensions of the parameter each of its dimensions holds, where that is known.
        value: the one number of a constant that was made of it, as the zeros of a first state.
        multiple: what a parameter was multiplied with, where that is all that was done to it.
        given: which of the batch's tensors it is; None for anything that was made.
    """

    call: int | None
    parameters: tuple[str, ...] = ()
    varies: bool = True
    offset: float | None = 0.0
    axes: Axes | None = None
    value: float | None = None
    multiple: Multiple | None = None
    given: int | None = None


class Provenance:
    """The records of the tensors that are alive.

    Args:
        parameters: path and tensor of each parameter.
        merged: parameters → the one of them that what is computed from them all counts as.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        merged: Mapping[frozenset[str], str] | None = None,
    ) -> None:
        self._merged = merged or {}
        self._records: dict[int, tuple[weakref.ref[Tensor], Record]] = {}
        self._frozen: set[int] = set()
        named = list(parameters)
        for name, parameter in named:
            axes = axes_of(parameter.dim())
            self.set(parameter, Record(None, (name,), varies=False, axes=axes))
        self._frozen = {id(parameter) for _, parameter in named if not parameter.requires_grad}

    def set(self, tensor: Tensor, record: Record) -> None:
        """Note what one tensor is made of."""
        if record.call is None and id(tensor) in self._frozen:
            return  # a teacher that follows by an average is not computed from its student
        whole = self._merged.get(frozenset(record.parameters)) if record.call is None else None
        if whole is not None:
            record = replace(record, parameters=(whole,), offset=0.0, multiple=None)
        self._records[id(tensor)] = (weakref.ref(tensor), record)

    def note(self, outputs: Iterable[Tensor], record: Record) -> Record:
        """Note what the results of a call are made of, and with them what they are views of."""
        for tensor in outputs:
            self.set(tensor, record)
            base = tensor._base
            known = None if base is None else self.own(base)
            if base is not None and (
                known is None or (known.call is None and record.call is not None)
            ):
                self.set(base, record)
        return record

    def own(self, tensor: Tensor) -> Record | None:
        """What was noted of this very tensor."""
        entry = self._records.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def of(self, tensor: Tensor) -> Record | None:
        """What was noted of a tensor, or of what it is a view of where that says more."""
        record, base = self.own(tensor), tensor._base
        if base is not None and (record is None or record.call is None):
            below = self.own(base)
            if below is not None and (record is None or below.call is not None):
                return below
        return record

    def value(self, tensor: Tensor) -> float | None:
        """The number that a constant, or what it is a view of, was filled with as it was made."""
        noted = (self.own(t) for t in (tensor, tensor._base) if t is not None)
        return next((r.value for r in noted if r is not None and r.value is not None), None)

    def written(self, tensor: Tensor) -> None:
        """Note that something is about to be written into a tensor, which may be a constant."""
        for place in (tensor, tensor._base):
            known = None if place is None else self.own(place)
            if place is not None and known is not None and known.value is not None:
                self.set(place, Record(None))
        if self.own(tensor) is None and tensor._base is None and tensor.grad_fn is None:
            self.set(tensor, Record(None))

    def behind(self, tensor: Tensor) -> list[Record]:
        """The nearest known tensors in the autograd graph of one that no torch function made.

        That is where what a custom autograd Function made has its producers.
        """
        nodes: dict[Any, Record] = {}
        for reference, record in self._records.values():
            other = reference()
            if other is not None and other.grad_fn is not None:
                nodes[other.grad_fn] = record
        found: list[Record] = []
        seen: set[Any] = set()
        queue: list[Any] = [tensor.grad_fn]
        while queue:
            node = queue.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in nodes:
                found.append(nodes[node])
            elif hasattr(node, "variable"):
                leaf = self.own(node.variable)
                found += [leaf] if leaf is not None else []
            else:
                queue += [n for n, _ in node.next_functions]
        return found


def names_of(records: Iterable[Record]) -> tuple[str, ...]:
    """The parameters in some records, each once."""
    return tuple(dict.fromkeys(p for r in records for p in r.parameters))


def operand_of(role: str, tensor: Tensor, record: Record | None, layout: str) -> Operand:
    """What a call takes from parameters; `layout` says what the dimensions of a main weight are."""
    shape = tuple(tensor.shape)
    if record is None:
        return Operand(role, (), shape, None)
    found = Operand(role, record.parameters, shape, record.offset, record.axes)
    multiple = record.multiple
    kept = None if multiple is None else multiple.kept(layout, record.axes)
    if multiple is None or kept is None:
        return found
    return replace(found, factor=multiple.factor, kept=kept)


def learned_by(
    name: str, args: tuple[Any, ...], given: Sequence[tuple[Tensor, Record]], made: Tensor
) -> Record:
    """The record of what a call makes of learned values alone."""
    records = [record for _, record in given]
    offset = _offset(name, args, records[0].offset) if len(records) == 1 else None
    multiple = _multiple(name, args, *given[0], made) if len(records) == 1 else None
    alike = (pair for pair in given if pair[0].shape == made.shape)
    main = given[0] if name in PASSIVE else next(alike, given[0])
    axes = carried(name, main[0], made, main[1].axes)
    names = names_of(records)
    return Record(None, names, varies=False, offset=offset, axes=axes, multiple=multiple)


def _offset(name: str, args: tuple[Any, ...], before: float | None) -> float | None:
    """What was added to a parameter so far; None when more than that was done to it."""
    if before is None or name in PASSIVE:
        return before
    numbers = [a for a in args if isinstance(a, (int, float))]
    if name in ("add", "radd") and len(args) == 2 and len(numbers) == 1:
        return before + float(numbers[0])
    return None


def _multiple(
    name: str, args: tuple[Any, ...], given: Tensor, record: Record, made: Tensor
) -> Multiple | None:
    """What a parameter was multiplied with so far; None when it is another thing."""
    before = record.multiple or (Multiple() if record.offset == 0.0 else None)
    if before is None or name in PASSIVE:
        return record.multiple
    if name in ("neg", "negative"):
        return before
    divided = name in QUOTIENTS
    if not (divided or name in PRODUCTS) or len(args) != 2 or given.shape != made.shape:
        return None
    if divided and args[0] is not given:
        return None
    constant = args[1] if args[0] is given else args[0]
    found = _constant(constant, record.axes, made)
    if found is None:
        return None
    factor = before.factor / found.factor if divided else before.factor * found.factor
    mask = found.mask
    if divided and mask is not None:  # by zero
        return None
    if before.mask is not None:
        mask = before.mask if mask is None else before.mask & mask
    return Multiple(factor, mask) if mask is None or bool(mask.any()) else None


def _constant(value: Any, axes: Axes | None, made: Tensor) -> Multiple | None:
    """A number, or a tensor with values that are known, as a multiple."""
    if type(value) in (int, float):
        return Multiple(abs(float(value))) if value and math.isfinite(value) else None
    unknown = not isinstance(value, Tensor) or value.is_meta or value.is_complex()
    if unknown or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return None
    size = value.detach().double()
    on = size != 0
    factor = float(size[on].square().mean().sqrt())
    if not math.isfinite(factor):  # also where it is zero everywhere
        return None
    if bool(on.all()):
        return Multiple(factor)
    order = [d for held in axes or () for d in held]
    if made.dim() != len(order) or sorted(order) != list(range(len(order))):
        return None
    return Multiple(
        factor, on.expand(made.shape).permute([order.index(d) for d in range(len(order))])
    )
