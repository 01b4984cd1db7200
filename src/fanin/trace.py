"""Watch a model run: which torch calls really happened, on which parameters, linked to one another.

A `torch.overrides.TorchFunctionMode` stands between every torch-level call and its result, so any
Python control flow is followed and nothing is asked of the model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from fanin import scripted
from fanin.activations import traced
from fanin.calls import BATCH, INTEGERS, Call, Observer, Operand, Trace
from fanin.criteria import CRITERIA, DIFFERENCES, PARTS
from fanin.errors import FaninError, ForwardError, LossError, ModelError
from fanin.guard import Guard
from fanin.kinds import (
    ACTIVATIONS,
    FUSED,
    PASSIVE,
    RECURRENT,
    RECURRENT_LAYERS,
    derived,
    name_of,
    takes_shape,
)
from fanin.mapped import is_mapped, outside, plainly
from fanin.nested import arguments, inputs_in, map_tensors, refuses, signals_in, tensors_in
from fanin.opened import open_recurrent, transparent, written_out
from fanin.operations import LEARNED_INPUT, MULTIPLYING, Weighted, describe
from fanin.placement import is_spread, reject_flat
from fanin.provenance import Provenance, Record, learned_by, names_of, operand_of
from fanin.terms import filled, in_order, option
from fanin.wording import listed

__all__ = ["Adjust", "Watch", "reject_refusing", "reject_unwatchable", "trace"]


Adjust = Callable[[Weighted, tuple[str, ...], Tensor, Callable[[], Tensor]], Tensor]

# What names the dimensions of all that it is given, a mapped one not among them.
_SPELLED = frozenset({"einsum", "tensordot"})


class Watch(TorchFunctionMode):
    """Records every call on a signal or a parameter.

    Args:
        model: the model whose modules give the calls their place.
        parameters: path and tensor of each parameter as it is called in this run.
        guard: told before something is written in place.
        observer: takes measurements.
        substitute: id of a tensor → the tensor to use in its place.
        promote: floating dtype that every result is brought to, or None.
        adjust: given a weighted call, the parameters of its main weight, its result and a function
            that runs it again; what it returns takes the place of the result.
        merged: as `Provenance` takes it.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[tuple[str, Tensor]],
        guard: Guard,
        observer: Observer,
        substitute: Mapping[int, Tensor] | None = None,
        promote: torch.dtype | None = None,
        adjust: Adjust | None = None,
        merged: Mapping[frozenset[str], str] | None = None,
    ) -> None:
        super().__init__()
        self._adjust = adjust
        self.calls: list[Call] = []
        self.failure: BaseException | None = None
        self._quiet = False  # in the backward pass nothing is recorded
        self._guard, self._observer = guard, observer
        self._substitute, self._promote = substitute or {}, promote
        self.provenance = Provenance(parameters, merged)
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._stack: list[str] = [""]
        self._failed: tuple[BaseException | None, str] = None, ""
        self._inside: list[str] = []
        self._held: list[Tensor] = []  # what lies behind the tensors inside of vmap

    def adjust(self, function: Adjust) -> None:
        """Let a function adjust the results of weighted calls from now on."""
        self._adjust = function

    # ---- provenance -----------------------------------------------------------------------------

    def note_batch(self, batch: Any) -> None:
        """Mark every tensor of the batch, as a signal or as integers."""
        signals = {id(tensor) for tensor in signals_in(batch)}
        for number, tensor in enumerate(inputs_in(batch)):
            made = BATCH if id(tensor) in signals else INTEGERS
            self.provenance.set(tensor, Record(made, given=number))

    def producers(self, value: Any) -> tuple[int, ...]:
        """Indices of the calls that made the tensors of `value`."""
        records = (self._record_of(t) for t in tensors_in(value))
        return tuple(dict.fromkeys(r.call for r in records if r is not None and r.call is not None))

    def _record_of(self, tensor: Tensor) -> Record | None:
        record = self.provenance.of(tensor)
        if record is None and tensor.grad_fn is not None:
            record = self._unseen(tensor)
        return record

    def _unseen(self, tensor: Tensor) -> Record:
        """Note a tensor made by something that torch functions do not show."""
        found = self.provenance.behind(tensor)
        signals = [r for r in found if r.call is not None]
        names = names_of(found)
        if not signals and names:
            return self.provenance.note([tensor], Record(None, names, varies=False, offset=None))
        call = self._unnamed(derived(tensor.grad_fn), names, signals or [Record(BATCH)], tensor)
        return self.provenance.note([tensor], Record(call.index, varies=call.varies))

    def learned(self, value: Any) -> bool:
        """Whether a value is a parameter or computed from parameters alone."""
        record = self._record_of(value) if isinstance(value, Tensor) else None
        return record is not None and record.call is None and bool(record.parameters)

    # ---- the watch ------------------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name, in_place = name_of(func)
        if self._substitute:
            args, kwargs = map_tensors(self._swap, args), map_tensors(self._swap, kwargs)
        if name in RECURRENT_LAYERS and len(args) > 8:
            with self:
                return open_recurrent(name, func, args, self._recurrent)
        if name == "multi_head_attention_forward":
            self._inside.append(name)
            try:
                with self:
                    return transparent(func)(*args, **kwargs)
            finally:
                self._inside.pop()
        control = written_out(func)
        if control is not None:
            with self:
                return control(*args, **kwargs)
        target = kwargs.get("out")
        if target is not None or in_place or kwargs.get("inplace"):
            self._written(target if target is not None else args[:1] or list(kwargs.values())[:1])
        if name in CRITERIA | PARTS | DIFFERENCES:
            for tensor in tensors_in((args, kwargs)):
                self._record_of(tensor)  # what torch functions do not show gets its call first
            self._observed(self._observer.criterion, len(self.calls), name, args, kwargs)
        out = self._called(func, args, kwargs)
        if self._promote is not None and not in_place:
            out = map_tensors(self._lift, out)
        if self._adjust is not None and isinstance(out, Tensor) and not in_place:
            out = self._adjusted(name, args, kwargs, out, lambda: func(*args, **kwargs))
        made = args[0] if name == "__setitem__" else out
        inside = outside(args, kwargs, made)
        if inside is None:
            self._observed(self._seen, name, args, kwargs, made)
        else:
            self._observed(self._mapped, name, inside, list(tensors_in((args, kwargs))))
        return out

    def _called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call; in another dtype where a fused kernel does not know this one."""
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            given = args[0] if args else None
            told = str(error).lower()
            if isinstance(given, Tensor) and given.is_meta and ("bf16" in told or "bfloat" in told):
                # The shape of a grouped product is known for bfloat16 alone; others run as well.
                made = func(*map_tensors(_brain, args), **map_tensors(_brain, kwargs))
                return map_tensors(lambda tensor: tensor.to(given.dtype), made)
            if self._promote is not torch.float64 or "double" not in told:
                raise
            return func(*map_tensors(_single, args), **map_tensors(_single, kwargs))

    def _adjusted(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Tensor,
        again: Callable[[], Tensor],
    ) -> Tensor:
        """The result of a weighted call, after its weight was adjusted."""
        if not any(self.learned(t) for t in tensors_in((args, kwargs))):
            return out
        weighted = describe(name, args, kwargs, self.learned)
        if self._adjust is None or weighted is None or not weighted.weights or not weighted.layout:
            return out
        record = self._record_of(weighted.weights[0][1])
        if record is None or (record.offset != 0.0 and record.multiple is None):
            return out
        with torch._C.DisableTorchFunction():
            return self._adjust(weighted, record.parameters, out, again)

    def _written(self, target: Any) -> None:
        """Note what a call is about to write into."""
        for tensor in tensors_in(target):
            self._guard.protect(tensor)
            self.provenance.written(tensor)

    def gradients(self, value: Tensor, wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of a scalar; what is computed again on the way (checkpoints) sees the same
        tensors and the same opened functions as in the forward pass, and is not recorded."""
        self._quiet = True
        with self:
            found = transparent(torch.autograd.grad)(value, wanted, allow_unused=True)
        return tuple(found)

    def _observed(self, function: Callable[..., None], *args: Any) -> None:
        if self._quiet:
            return
        try:
            with torch._C.DisableTorchFunction():  # what is measured is not part of what is watched
                function(*args)
        except BaseException as error:
            self.failure = error
            raise

    def _swap(self, tensor: Tensor) -> Tensor:
        tensor = self._substitute.get(id(tensor), tensor)
        lifted = self._lift(tensor)
        record = None if lifted is tensor else self.provenance.own(tensor)
        if record is not None:
            self.provenance.set(lifted, record)
        return lifted

    def _lift(self, tensor: Tensor) -> Tensor:
        if self._promote is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor.to(self._promote.to_complex() if tensor.is_complex() else self._promote)

    def _seen(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        outputs = list(tensors_in(out))
        number = filled(name, args)
        if number is not None:
            self.provenance.note(outputs, Record(None, varies=False, value=number))
        if not outputs or takes_shape(name) or name == "bernoulli":  # which hands no value on
            return
        operands = list(tensors_in((args, kwargs)))
        if name == "grad" and len(args) > 1:  # made of what is derived; by what is asked alone
            places = [t for t in tensors_in(args[1]) if not self._is_signal(t)]
            operands = [*tensors_in(args[0]), *places]
        values = [v for t in operands if (v := self.provenance.value(t)) is not None]
        if name in PASSIVE and not self._picked(operands):
            operands = operands[:1]
        known = [(t, r) for t in operands if (r := self._record_of(t)) is not None]
        known = [(t, r) for t, r in known if r.call is not None or r.parameters]
        records = [r for _, r in known]
        signals = [r for r in records if r.call is not None]
        names = names_of(records)
        factors = tensors_in(args[-2:]) if name in MULTIPLYING else ()
        empty = any(self.provenance.value(t) == 0.0 for t in factors)
        if signals or (names and (name in LEARNED_INPUT or empty)):
            self._signal(name, args, kwargs, outputs, signals, names)
        elif records:
            self.provenance.note(outputs, learned_by(name, args, known, outputs[0]))
        elif values and name in PASSIVE:
            self.provenance.note(outputs, Record(None, varies=False, value=values[0]))

    def _mapped(self, name: str, inside: tuple[Any, ...], given: list[Tensor]) -> None:
        """A call inside of vmap, as it would be outside; one on a mapped parameter, whose other
        dimensions only the function knows, has no role."""
        args, kwargs, out = inside
        operands = list(tensors_in((args, kwargs)))
        self._held += [*operands, *tensors_in(out)]  # as long as they are known, so are their calls
        with plainly():
            changed = (t for t, g in zip(operands, given, strict=True) if t is not g)
            if name not in _SPELLED and not any(self.learned(t) for t in changed):
                self._seen(name, args, kwargs, out)
                return
            known = [r for t in operands if (r := self._record_of(t)) is not None]
            signals = [r for r in known if r.call is not None]
            outputs = list(tensors_in(out))
            if signals and outputs:
                call = self._unnamed(name, names_of(known), signals, outputs[0])
                self.provenance.note(outputs, Record(call.index, varies=call.varies))
            elif outputs:
                names = names_of(known)
                self.provenance.note(outputs, Record(None, names, varies=False, offset=None))

    def _picked(self, operands: list[Tensor]) -> bool:
        """Whether the first operand is a table that a signal, an index, picks rows of.

        A stack of matrices of which a single number picks one is no table: what is picked is a
        weight, as that of an expert.
        """
        base = self._record_of(operands[0]) if operands else None
        if base is None or base.call is not None or not base.parameters:
            return False  # what picks sequences out of a state of zeros hands nothing on
        indices = [t for t in operands[1:] if not t.is_floating_point() and self._is_signal(t)]
        one = operands[0].dim() > 2 and all(t.dim() == 0 for t in indices)
        return bool(indices) and not one

    def _is_signal(self, value: Any) -> bool:
        record = self._record_of(value) if isinstance(value, Tensor) else None
        return record is not None and record.call is not None

    def _signal(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: list[Tensor],
        signals: list[Record],
        names: tuple[str, ...],
    ) -> None:
        """Record a call on a signal; `names` are the parameters that take part."""
        weighted = describe(name, args, kwargs, self.learned) if names else None
        if weighted is not None and not weighted.weights:
            weighted = None
        if names and weighted is None:
            call = self._unnamed(name, names, signals, outputs[0])
        else:
            op, curve = traced(weighted.op if weighted else name, args, kwargs)
            factor = option(name, args, kwargs)
            terms: tuple[Any, ...] = ()
            if weighted is None and not (op in PASSIVE and not outputs[0].is_floating_point()):
                # Numbers are not cut to integers, or to true and false.
                one = curve is not None or op in PASSIVE
                terms = self._terms(args[:1] if one else in_order(op, args, kwargs))
            call = self._add_call(op, signals, outputs[0], weighted, factor, curve, terms)
        self.provenance.note(outputs, Record(call.index, varies=call.varies))
        self._report(call, weighted, args, kwargs, outputs[0])

    def _terms(self, values: tuple[Any, ...]) -> tuple[int | float, ...]:
        """`Call.terms`: signals and numbers, or nothing where one is something else."""
        found: list[int | float] = []
        for value in values:
            known: int | float | None = None
            if isinstance(value, Tensor):
                record = self._record_of(value)
                call = None if record is None else record.call
                known = self.provenance.value(value) if call is None else call
            elif type(value) in (int, float):
                known = float(value)
            if known is None:
                return ()
            found.append(known)
        return tuple(found)

    def _recurrent(self, weighted: Weighted, outputs: tuple[Tensor, ...]) -> None:
        """One layer of a fused recurrent call."""
        with torch._C.DisableTorchFunction():  # what is looked up is not part of what is watched
            records = [r for t in weighted.inputs if (r := self._record_of(t)) is not None]
            call = self._add_call(weighted.op, records, outputs[0], weighted)
        self.provenance.note(outputs, Record(call.index, varies=call.varies))
        self._observed(self._report, call, weighted, (), {}, outputs[0])

    def _report(
        self,
        call: Call,
        weighted: Weighted | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> None:
        if is_mapped(output):
            return  # inside of vmap or another transform a tensor has no values to measure
        if output.is_floating_point() or output.is_complex():
            self._observer.produced(call, output)
            if weighted is not None:
                self._observer.weighted(call, weighted, output)
        if call.op in ACTIVATIONS and args and isinstance(args[0], Tensor):
            self._observer.activation(call, args[0], output)
        if call.op in FUSED:
            self._observer.attended(call, args, kwargs)
        if weighted is None and call.op not in PASSIVE and len(call.inputs) == 1 and call.terms:
            for given in args:
                if self._is_signal(given) and given.is_floating_point() and given is not output:
                    self._observer.step(call, given)
                    break

    def _operand(self, role: str, tensor: Tensor, layout: str = "") -> Operand:
        return operand_of(role, tensor, self._record_of(tensor), layout)

    def _unnamed(
        self,
        function: str,
        names: tuple[str, ...],
        signals: Sequence[Record],
        output: Tensor,
    ) -> Call:
        """Record a call that uses parameters in a way that is not known here."""
        call = self._add_call(f"unnamed:{function}", signals, output, None)
        if names:
            call = replace(call, operands=(Operand("unknown", names, ()),))
            self.calls[call.index] = call
        return call

    def _add_call(
        self,
        op: str,
        signals: Sequence[Record],
        output: Tensor,
        weighted: Weighted | None,
        option: float | None = None,
        curve: str | None = None,
        terms: tuple[int | float, ...] = (),
    ) -> Call:
        if output.is_nested:  # it has no shape, or one whose numbers cannot be compared
            raise ModelError(
                f"model: {self._stack[-1] or 'its forward'} makes a nested tensor, which cannot be "
                "watched; pad the rows to one length and give the lengths as a mask"
            )
        uses = weighted or Weighted(op, (), ())
        sources = tuple(r.call for r in signals if r.call is not None)
        call = Call(
            index=len(self.calls),
            op=op,
            module=self._stack[-1],
            inputs=tuple(sorted(set(sources))),
            shape=tuple(output.shape),
            operands=tuple(
                self._operand(role, t, "" if i else uses.layout)
                for i, (role, t) in enumerate(uses.weights)
            ),
            learned=tuple(
                self._operand("state" if i and uses.op in RECURRENT else "input", t)
                for i, t in enumerate(uses.inputs)
                if self.learned(t)
            ),
            units=_units(uses, output.shape),
            fan_in=uses.fan_in,
            fan_out=uses.fan_out,
            varies=any(r.varies for r in signals),
            inside=self._inside[-1] if self._inside else None,
            sources=sources,
            given=tuple(dict.fromkeys(r.given for r in signals if r.given is not None)),
            layout=uses.layout,
            blocks=uses.blocks,
            mean_fan_in=uses.mean_fan_in,
            padding=uses.padding,
            option=option,
            curve=curve,
            terms=terms,
        )
        self.calls.append(call)
        return call

    @contextmanager
    def places(self) -> Iterator[None]:
        """Follow which module is running, for as long as the block lasts."""

        def enter(module: nn.Module, _: Any) -> None:
            self._stack.append(self._paths.get(id(module), self._stack[-1]))

        def leave(*_: Any) -> None:
            error = sys.exc_info()[1]
            if error is not None and self._failed[0] is not error:
                self._failed = error, self._stack[-1]  # the innermost module is left first
            if len(self._stack) > 1:
                self._stack.pop()

        first = nn_module.register_module_forward_pre_hook(enter)
        last = nn_module.register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            first.remove()
            last.remove()

    def failed_in(self, error: BaseException) -> str:
        """Path of the innermost module that an exception came out of; "" where it is not known."""
        return self._failed[1] if self._failed[0] is error else ""


def trace(
    model: Callable[..., Any], batch: Any, loss: Callable[[Any], Tensor] | None, watch: Watch
) -> tuple[Trace, Any, Any]:
    """Run `model` on `batch` and `loss` on its output under `watch`.

    Returns:
        the trace, the model's output, and the loss: what `loss` returned, else the output's own
        ``.loss``, else None.

    Raises:
        ForwardError: the model or the loss raised; the cause is chained.
        LossError: the loss returned no tensor.
    """
    args, kwargs = arguments(batch)
    watch.note_batch(batch)
    what = "forward"
    try:
        with watch.places(), scripted.seen(), watch:
            output = model(*args, **kwargs)
            what, length = "loss", len(watch.calls)
            value = None if loss is None else loss(output)
            if loss is not None and not isinstance(value, Tensor):
                raise LossError(
                    f"loss: it returned {type(value).__name__}; a scalar tensor is needed"
                )
    except FaninError:
        raise
    except Exception as error:
        if error is watch.failure and not isinstance(error, RecursionError):
            raise
        told = " ".join(str(error).split()) or type(error).__name__
        subject = "model: its forward" if what == "forward" else "loss: it"
        where = watch.failed_in(error)
        told = f"{told} (in {where})" if where else told
        told += _on_forward(model, batch) if what == "forward" else _on_loss(loss, output)
        raise ForwardError(f"{subject} raised {type(error).__name__}: {told}") from error
    if value is None:
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        value = own if isinstance(own, Tensor) else None
    outputs = tuple(i for i in watch.producers(output) if i >= 0)
    made = [i for i in watch.producers(value) if i >= 0] if value is not None else []
    return Trace(tuple(watch.calls), outputs, length, made[0] if made else None), output, value


def _on_forward(model: Any, batch: Any) -> str:
    """What to give instead, where a batch is not what a forward can be called with at all."""
    args, kwargs = arguments(batch)
    if isinstance(batch, DataLoader):
        return ". The batch is a DataLoader; give one of its batches, without the target"
    if not refuses(model, args, kwargs):
        return ""
    if kwargs or isinstance(batch, dict):
        return f". A dict gives keyword arguments, here {listed(kwargs) or 'none'}"
    return (
        f". A {type(batch).__name__} gives positional arguments, here {len(args)}; a target is "
        "no part of them: loss=lambda output: criterion(output, target)"
    )


def _on_loss(loss: Any, output: Any) -> str:
    if not refuses(loss, (output,), {}):
        return ""
    return ". It gets the model's output alone: loss=lambda output: criterion(output, target)"


def reject_unwatchable(model: nn.Module) -> None:
    """Raise for a ScriptModule; for parameters spread over processes, or that refuse functions."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "model: a ScriptModule's calls cannot be watched; give the Python module it was made "
            "from"
        )
    reject_flat(model)
    reject_refusing(model)
    spread = next((name for name, p in model.named_parameters() if is_spread(p)), None)
    if spread is not None:
        raise ModelError(
            f"model: its parameters are spread over processes ({spread!r} is a DTensor), and its "
            "calls are watched in one; do this before it is sharded (plan, init_ and Plan.apply_ "
            "take it as it is)"
        )


def reject_refusing(model: nn.Module) -> None:
    """Raise for parameters of a class that lets no torch function be called on it."""
    for name, parameter in model.named_parameters():
        try:
            parameter.is_inference()
        except TypeError as error:
            raise ModelError(
                f"model: the parameter {name!r} ({type(parameter).__name__}) refuses torch's "
                f"functions, by which a run is watched: {error}"
            ) from error
        except ValueError:  # a lazy one, which has an error of its own
            continue


def _units(uses: Weighted, shape: torch.Size) -> int | None:
    """Output channels of a call; None where it has none, as one without weights."""
    if uses.unit_dims:
        return math.prod(shape[d] if -len(shape) <= d < len(shape) else 1 for d in uses.unit_dims)
    return 1 if set(uses.layout) == {"i"} else None  # a vector makes one number of each


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _brain(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor
