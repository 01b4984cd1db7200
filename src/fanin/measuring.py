"""Scales taken from a batch: one watched forward pass, each weight rescaled while it runs.

Because the watch stands between a call and its result, a weight is rescaled, its call run again,
and the pass goes on with an input that is already right: one pass for any depth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fanin.calls import Observer
from fanin.guard import Guard, private, reseed, watching
from fanin.kinds import RECURRENT_CELLS, RECURRENT_LAYERS
from fanin.operations import Weighted
from fanin.reparametrized import parts
from fanin.trace import Watch, trace

__all__ = ["DIGITS", "Outcome", "Target", "Total", "measure_", "outcomes_"]


# A signal this far from its size is lost or exploded on its way: no scale of one weight mends that.
# Raw data of 16 bits (root mean square 4e4) is still within.
FURTHEST = 1e5
# Digits of a factor in a recipe, which is read by people.
DIGITS = 4
# What is left of an output without its means, or its bias, is a signal from this many times the
# dtype's precision on.  The rounding in it, about 0.3 of that precision, then adds 0.1 % at most:
# √(1 + (0.3/8)²).
NOISE = 8.0

#: The reason of what keeps its values since it has its size.
WITHIN = "already within tolerance"

_KEPT: tuple[float, ...] = ()


#: Sums a tensor over processes.
Total: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """What the output of a weight should be on the batch.

    The output of a recurrent layer's input weights is their product with the input, before the
    state is added.

    Attributes:
        size: wanted root mean square (or std, where `centred`) of the output.
        tolerance: factor within which the output is left as it is.
        centred: whether the std counts, not the root mean square.
        bare: whether what the bias adds is left out.
        units: whether every unit is brought to it, with its mean at zero, by itself.
        bias: parameter that takes the means away, with `units` or `centre`.
        centre: whether the bias takes the mean of each unit away, with one factor for the whole
            weight; `tolerance` is for the factor alone.  Where a unit has no second value, or its
            values differ by rounding alone, the means stay.
        exact: whether what the bias adds is counted, and the factor of any size and not rounded.
    """

    size: float
    tolerance: float = 1.0
    centred: bool = False
    bare: bool = False
    units: bool = False
    bias: str | None = None
    centre: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one target.

    Attributes:
        before: size of the output as it was met (root mean square, or std where `centred`).
        after: the same at the end.
        factors: that the weight was multiplied with: none, one, or one for each unit.
        bias: new values of the bias; () where it was not moved.
        moved: root mean square of what the bias was moved by.
        because: why the weight keeps its values; "" where it does not.
        part: "[a:b]", the rows of the parameter that it is for; "" for all of them.
    """

    before: float = math.nan
    after: float = math.nan
    factors: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    moved: float = 0.0
    because: str = ""
    part: str = ""


def measure_(
    model: nn.Module, batch: Any, targets: Mapping[str, Target], total: Total | None = None
) -> dict[str, tuple[float, ...]]:
    """Rescale weights in place in one forward pass, so that each meets its target.

    Args:
        model: whose parameters are changed; all else is put back.
        batch: that the targets are measured on; this process's part of it, with `total`.
        targets: weight → what its output should be.
        total: sums a tensor over the processes that measure together; each has to run the same
            calls.

    Returns:
        parameter → the factor it was multiplied with (one for each unit, with `Target.units`), or
        for a bias its new values.  What met its target already does not appear.

    Raises:
        ForwardError: the model raised.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name, outcome in outcomes_(model, batch, targets, total).items():
        if outcome.factors:
            found[name] = outcome.factors
        bias = targets[name.removesuffix(outcome.part)].bias
        if outcome.bias and bias is not None:
            found[bias] = outcome.bias
    return found


def outcomes_(
    model: nn.Module, batch: Any, targets: Mapping[str, Target], total: Total | None = None
) -> dict[str, Outcome]:
    """As `measure_`; weight → what came of its target.  What was never called does not appear.

    A weight of weight norm is scaled by its magnitudes: give the target under their name.  Where
    each of several calls uses some rows of a parameter and the target is exact, each part has a
    factor and an outcome of its own, under the parameter's name and the rows: "path[0:16]".
    """
    with watching(model) as guard:
        reseed(0)
        adjust = _Adjust(model, targets, guard, _Means(total))
        trace(model, private(batch), None, _Measuring(model, guard, adjust))
    return adjust.found


class _Measuring(Watch):
    """A watch that also adjusts what the calls of other watches hide: recurrent and normed weights.

    The result of a recurrent call is bounded whatever its weights are, so the product of the
    input with its weights is what is measured, before the call.
    """

    def __init__(self, model: nn.Module, guard: Guard, adjust: _Adjust) -> None:
        self._products = adjust.product
        # What is computed from a magnitude and a direction counts as the magnitude.
        merged = {frozenset(pair): pair[0] for pair in _normed(model)}
        given = model, model.named_parameters(), guard, Observer()
        super().__init__(*given, adjust=adjust, merged=merged)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in RECURRENT_CELLS and len(args) > 2:
            self._gates(args[0], args[2:3])
        elif name in RECURRENT_LAYERS and len(args) > 8:
            func = self._layerwise(func)  # called for one layer at a time
        return super().__torch_function__(func, types, args, kwargs)

    def _layerwise(self, func: Any) -> Any:
        @functools.wraps(func)
        def run(*args: Any) -> Any:
            packed = not isinstance(args[2], list)  # x, [sizes,] states, weights, …, both, [first]
            weights, both = (args[3], args[-1]) if packed else (args[2], args[-2])
            self._gates(args[0], weights[:: len(weights) // 2 if both else len(weights)])
            return func(*args)

        return run

    def _gates(self, x: Tensor, weights: Sequence[Tensor]) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for weight in weights:
                record = self.provenance.own(weight)
                if record is not None and len(record.parameters) == 1 and record.offset == 0.0:
                    run = functools.partial(F.linear, x, weight)
                    self._products(record.parameters[0], weight, run(), run)


@dataclass(frozen=True)
class _Use:
    """One call of a weight: the weight as it is used, the output, and how to run it again."""

    weight: Tensor
    output: Tensor
    rerun: Callable[[], Tensor]
    weighted: Weighted | None = None
    part: str = ""

    def again(self) -> Tensor:
        torch.clear_autocast_cache()  # it may hold a copy of the weight as it was
        return self.rerun()

    @property
    def unit_dim(self) -> int | None:
        """The dimension of the output that counts its units, where it is one."""
        dims = self.weighted.unit_dims if self.weighted is not None else ()
        return dims[0] if len(dims) == 1 and -self.output.dim() <= dims[0] else None

    def added(self) -> Tensor | None:
        """What the bias of the call adds to the output, in a shape that broadcasts."""
        weights = self.weighted.weights if self.weighted is not None else ()
        bias = next((t.detach().double() for role, t in weights if role == "bias"), None)
        if bias is None or bias.dim() != 1:
            return bias
        return _along(bias, self.unit_dim or -1)


@dataclass(frozen=True)
class _Means:
    """Means over the batch; where several processes hold parts of it, over all of them."""

    total: Total | None = None

    def of(self, values: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """Over all dimensions, or some."""
        over = range(values.dim()) if dims is None else dims
        if self.total is None:
            return values.mean() if dims is None else values.mean(tuple(over))
        sums = values.sum() if dims is None else values.sum(tuple(over))
        count = math.prod(values.shape[d] for d in over)
        agreed = self.total(torch.cat([sums.flatten(), sums.new_tensor([count])]))
        return (agreed[:-1] / agreed[-1]).view(sums.shape)

    def size(self, values: Tensor, centred: bool = False) -> float:
        """Root mean square, or std."""
        if self.total is None:
            return float(values.std(unbiased=False) if centred else values.square().mean().sqrt())
        if centred:
            values = values - self.of(values)
        return float(self.of(values.square()).sqrt())

    def sum(self, number: int, like: Tensor) -> int:
        """Over all processes; told on the device of a tensor."""
        if self.total is None:
            return number
        told = torch.tensor([number], dtype=torch.float64, device=like.device)
        return round(float(self.total(told)))


class _Adjust:
    """Called between a weighted call and its result; the first call of each weight decides."""

    def __init__(
        self, model: nn.Module, targets: Mapping[str, Target], guard: Guard, means: _Means
    ) -> None:
        self.found: dict[str, Outcome] = {}
        self._means = means
        self._parameters = dict(model.named_parameters())
        self._magnitudes = {pair[0] for pair in _normed(model)}
        self._targets, self._guard = dict(targets), guard
        self._scaled: dict[int, str] = {}  # address of the memory → parameter
        self._moved: set[str] = set()
        self._parts: dict[str, list[range]] = {}  # parameter → its rows that calls have used

    def __call__(
        self,
        weighted: Weighted,
        names: tuple[str, ...],
        output: Tensor,
        again: Callable[[], Tensor],
    ) -> Tensor:
        # A cell was measured before it ran; rows that an index picks are no output of a layer.
        if weighted.op in RECURRENT_CELLS or not weighted.inputs:
            return output
        name = names[0] if len(names) == 1 else ""
        target = self._targets.get(name)
        if target is None or not output.is_floating_point():
            return output
        use = _Use(weighted.weights[0][1], output, again, weighted)
        rows = self._rows(name, use) if target.exact else None
        if rows is None:
            del self._targets[name]  # later calls take the weight as it is then
        elif any(_overlap(rows, used) for used in self._parts.get(name, ())):
            return output
        else:
            self._parts.setdefault(name, []).append(rows)
            use = replace(use, part=f"[{rows.start}:{rows.stop}]")
        return self._adjusted(name, target, use)

    def product(
        self, name: str, weight: Tensor, output: Tensor, again: Callable[[], Tensor]
    ) -> None:
        """The same for the input's share in a recurrent call."""
        target = self._targets.pop(name, None)
        if target is not None and not target.units:
            self._adjusted(name, replace(target, centre=False), _Use(weight, output, again))

    def _adjusted(self, name: str, target: Target, use: _Use) -> Tensor:
        told = self._unfit(name, use)
        if self._means.sum(bool(told), use.output):  # all, or none
            return self._left(name, use, told or "another process cannot measure it")
        if self._means.sum(use.output.numel(), use.output) == 0:
            return self._left(name, use, "its output is empty")
        return self._units(name, target, use) if target.units else self._whole(name, target, use)

    def _left(self, name: str, use: _Use, told: str) -> Tensor:
        self.found[name + use.part] = Outcome(because=told, part=use.part)
        return use.output

    def _rows(self, name: str, use: _Use) -> range | None:
        """The rows of its parameter that a call uses, where they are not all; else None."""
        if torch._C._functorch.is_functorch_wrapped_tensor(use.weight):
            return None
        whole, part = self._parameters[name], use.weight
        if part.dim() == 2 and part.stride() != whole.stride():
            part = part.T  # as in x @ W[a:b].T
        inside = _memory(part) == _memory(whole) and part.dim() > 0 and part.numel() > 0
        rows = inside and part.shape[1:] == whole.shape[1:] and part.stride() == whole.stride()
        if not rows or len(part) == len(whole):
            return None
        first = (part.storage_offset() - whole.storage_offset()) // whole.stride(0)
        return range(first, first + len(part))

    def _unfit(self, name: str, use: _Use) -> str:
        """Why a weight cannot be scaled by this call; "" where it can."""
        if torch._C._functorch.is_functorch_wrapped_tensor(use.output):
            return "it runs inside of a transform such as vmap, where outputs have no values"
        if name in self._guard.written:
            return "the forward writes into it"
        other = self._scaled.get(self._parameters[name].data_ptr(), name)
        if other != name:
            return f"its memory is that of {other}, which is scaled"
        whole = use.weight.numel() == self._parameters[name].numel() and name not in self._parts
        if not (whole or use.part or name in self._magnitudes):
            return "several calls use different parts of it"
        return ""

    # ---- one factor ------------------------------------------------------------------------------

    def _whole(self, name: str, target: Target, use: _Use) -> Tensor:
        """Scale a weight by one factor, and let its bias take the means of its units away."""
        values, added = use.output.detach().double(), use.added()
        product = values if added is None else values - added
        before = self._means.size(product if target.bare else values, target.centred)
        bias = self._bias(target, use)
        means = None if bias is None else self._of_units(product, use)
        if means is not None:
            factor, told = _ratio(self._means.size(product - means), target)
            if told == WITHIN:  # the bias is moved all the same
                factor, told = 1.0, ""
        elif target.exact and added is not None:
            eps = torch.finfo(use.output.dtype).eps
            factor, told = _solved(product, added, target, eps, self._means)
        else:
            factor, told = _ratio(before, target)
        if told or not self._scale(name, use, factor):
            told = told or f"times {factor:.3g} it would leave the range of its dtype"
            return self._left(name, use, told)
        moved, new = 0.0, _KEPT
        if bias is not None and means is not None:
            moved, new = self._centre(target, bias, -factor * means.flatten())
        output = use.again()
        after = self._means.size(output.detach().double(), target.centred)
        factors = () if new and factor == 1.0 else (factor,)
        self.found[name + use.part] = Outcome(before, after, factors, new, moved, part=use.part)
        return output

    def _of_units(self, product: Tensor, use: _Use) -> Tensor | None:
        """Mean of each unit, in a shape that broadcasts; None where they are all there is."""
        at = use.unit_dim
        if at is None or self._means.sum(product.numel(), product) == product.shape[at]:
            return None
        dims = [d for d in range(product.dim()) if d != at % product.dim()]
        means = _along(self._means.of(product, dims), at)
        noise = NOISE * torch.finfo(use.output.dtype).eps * self._means.size(product)
        return means if self._means.size(product - means) > noise else None

    def _bias(self, target: Target, use: _Use) -> Tensor | None:
        """The bias that is to take the means away, where it can."""
        if not target.centre or target.bias is None or target.bias in self._moved:
            return None
        bias = self._parameters.get(target.bias)
        at = use.unit_dim
        if bias is None or at is None or bias.numel() != use.output.shape[at]:
            return None
        return bias

    def _centre(self, target: Target, bias: Tensor, new: Tensor) -> tuple[float, tuple[float, ...]]:
        moved = float((new - bias.detach().double().flatten()).square().mean().sqrt())
        bias.data.copy_(new.view(bias.shape))
        self._moved.add(str(target.bias))
        return moved, tuple(new.tolist())

    def _scale(self, name: str, use: _Use, factor: float) -> bool:
        """Multiply a weight, and the copy of it that a call uses; False where it has no room."""
        parameter = self._parameters[name]
        values = use.weight.data if use.part else parameter.data
        scaled = values * factor
        if not (bool(torch.isfinite(scaled).all()) and bool(scaled.any())):
            return False
        values.copy_(scaled)
        if _memory(use.weight) != _memory(parameter):
            use.weight.data.mul_(factor)  # of another dtype, or computed from a magnitude
        self._scaled[parameter.data_ptr()] = name
        return True

    # ---- a factor for each unit ------------------------------------------------------------------

    def _units(self, name: str, target: Target, use: _Use) -> Tensor:
        parameter, weighted = self._parameters[name], use.weighted
        at = weighted.layout.find("o") if weighted is not None else -1
        values = _by_unit(use)
        same = use.weight.shape == parameter.shape and use.weight.stride() == parameter.stride()
        if not same or at < 0 or values is None or len(values) != parameter.shape[at]:
            return self._left(name, use, "its outputs do not lie along one dimension of it")
        if self._means.sum(values.shape[1], values) < 2:
            return self._left(name, use, "the batch has one value for each unit")
        mean = self._means.of(values, [1])
        std = self._means.of((values - mean[:, None]).square(), [1]).sqrt()
        factor = torch.where(std > 0, target.size / std.clamp_min(1e-300), torch.ones_like(std))
        shape = [1] * parameter.dim()
        shape[at] = -1
        parameter.data.mul_(factor.to(parameter.dtype).view(shape))
        self._scaled[parameter.data_ptr()] = name
        moved, new = 0.0, _KEPT
        bias = self._parameters.get(target.bias or "")
        if bias is not None and bias.shape == factor.shape:
            means = (mean - bias.detach().double()) * factor
            moved, new = self._centre(target, bias, -means)
        output = use.again()
        sizes = (self._means.size(v.detach().double(), True) for v in (use.output, output))
        before, after = sizes
        self.found[name] = Outcome(before, after, tuple(factor.tolist()), new, moved)
        return output


def _normed(model: nn.Module) -> list[tuple[str, str]]:
    """(magnitude, direction) of each weight that weight norm computes."""
    made: dict[str, dict[str, str]] = {}
    for name, part in parts(model).items():
        made.setdefault(part.weight, {})[part.kind] = name
    return [(m["magnitude"], m["direction"]) for m in made.values() if "magnitude" in m]


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _along(values: Tensor, dim: int) -> Tensor:
    """A vector along a dimension counted from the end, in a shape that broadcasts."""
    return values.view(-1, *(1,) * (-dim - 1))


def _by_unit(use: _Use) -> Tensor | None:
    """[units, everything else]"""
    if use.unit_dim is None:
        return None
    values = use.output.detach().double().movedim(use.unit_dim, 0)
    return values.reshape(len(values), -1)


def _ratio(size: float, target: Target) -> tuple[float, str]:
    """The factor that brings an output from a size to its target, or why there is none."""
    if not math.isfinite(size):
        return 1.0, "its output is not finite"
    if size == 0.0:
        return 1.0, "its output is zero"
    factor = target.size / size
    if not target.exact and not 1 / FURTHEST <= factor <= FURTHEST:
        return 1.0, "its output is too far from its size for one factor"
    if 1 / target.tolerance <= factor <= target.tolerance and target.tolerance > 1:
        return 1.0, WITHIN
    return factor if target.exact else float(f"{factor:.{DIGITS}g}"), ""


def _solved(
    product: Tensor, added: Tensor, target: Target, eps: float, means: _Means
) -> tuple[float, str]:
    """The factor f with the size of f·product + added as wanted, or why there is none.

    Of two it is the larger: more of the input gets through.
    """
    if target.centred:
        added = added.expand_as(product)
        product, added = product - means.of(product), added - means.of(added)
    size = means.size(product)
    if not math.isfinite(size) or not bool(added.any()):
        return _ratio(size, target)
    if size <= NOISE * eps * means.size(added.expand_as(product)):
        return 1.0, "its output is its bias alone"
    # f² + 2·half·f + rest = 0
    half = float(means.of(product * added)) / size**2
    rest = (float(means.of(added.square().expand_as(product))) - target.size**2) / size**2
    inner = half**2 - rest
    root = math.sqrt(max(inner, 0.0))
    factor = root - half if half <= 0 else -rest / (half + root)
    if inner < 0 or factor <= 0:
        return 1.0, "its bias alone is larger than the size that is wanted"
    return _ratio(target.size / factor, target)
