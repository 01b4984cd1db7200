"""`fanin.calibrate_`: every layer's output brought to its size on a batch, in one watched pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fanin.apply import kept, require_memory
from fanin.architecture import parameters_of
from fanin.catalogue.scheme import is_number
from fanin.errors import ArgumentError, ModelError
from fanin.measuring import Outcome, Target, outcomes_
from fanin.plain import as_json, to_plain
from fanin.policies.auto import SIREN, target_size
from fanin.reading import bare, reading
from fanin.roles import Role, roles
from fanin.summary import count, grouped
from fanin.wording import did_you_mean, visible

__all__ = ["Calibrated", "Calibration", "calibrate_"]

# Why a parameter of each kind has no output whose size it decides.
_REASONS = {
    "unused": "never reached",
    "table": "a table: what reads it takes its size up, and tables that are added keep their share",
    "recurrent": "used on a state: its size decides how long the state lasts, not one output",
    "projection": "used on a state: its size decides how long the state lasts, not one output",
    "computed": "computed with other parameters into what is used",
    "unknown": "no layer whose output is known to grow with it",
}
_TIED = "a table that is the output layer too: no one size serves both"
_NO_WEIGHT = "no weight of a layer"


@dataclass(frozen=True)
class Calibrated:
    """One weight that was calibrated.

    Attributes:
        parameter: canonical path, with the rows where each of several calls uses a part of it:
            "attention.in_proj_weight[0:16]".
        before: root mean square of its output as the pass met it: every layer before it was
            calibrated already.
        after: the same after its weight was scaled.
        factor: that all of its values were multiplied with.
        bias_moved: root mean square of what the bias was moved by; 0 where it was not.
        wanted: size that its output was to have.
    """

    parameter: str
    before: float
    after: float
    factor: float
    bias_moved: float
    wanted: float


@dataclass(frozen=True, repr=False)
class Calibration:
    """What a calibration did: printable, iterable over its `Calibrated` rows in the model's order.

    Attributes:
        rows: the weights that were scaled (or whose bias was moved).
        untouched: parameter → why it keeps its values; other paths of a tied weight stand here too.
        passes: forward passes of the model that it took.

    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU())
    >>> done = calibrate_(model, torch.randn(16, 4))
    >>> [row.parameter for row in done], done.passes
    (['0.weight'], 2)
    """

    rows: tuple[Calibrated, ...]
    untouched: Mapping[str, str] = field(default_factory=dict)
    passes: int = 2

    def __iter__(self) -> Iterator[Calibrated]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, parameter: object) -> bool:
        return any(row.parameter == parameter for row in self.rows)

    def __getitem__(self, parameter: str) -> Calibrated:
        for row in self.rows:
            if row.parameter == parameter:
                return row
        told = self.untouched.get(parameter)
        raise KeyError(f"{parameter}: {'left as it is: ' + told if told else 'no such parameter'}")

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain data, for JSON; a number that is not finite is a string."""
        return {
            "schema_version": 1,
            "passes": self.passes,
            "rows": to_plain(self.rows),
            "untouched": dict(self.untouched),
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The calibration as strict JSON text; a number that is not finite is a string.

        >>> Calibration(()).to_json(None)
        '{"schema_version": 1, "passes": 2, "rows": [], "untouched": {}}'
        """
        return as_json(self.to_dict(), indent)

    def __str__(self) -> str:
        head = ("parameter", "before", "after", "wanted", "factor", "bias moved")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        told = [
            f"calibrated: {count(len(self.rows), 'weight')} in "
            f"{count(self.passes, 'forward pass', 'forward passes')}"
        ]
        for name, *numbers in lines if self.rows else ():
            cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
            told.append("  ".join(("  " + name.ljust(widths[0]), *cells)))
        return "\n".join([*told, *grouped(self.untouched)])

    def __repr__(self) -> str:
        return f"<fanin.Calibration: {count(len(self.rows), 'weight')}>"


def calibrate_(
    model: nn.Module,
    batch: Any,
    *,
    std: float = 1.0,
    centre: bool = False,
    only: Iterable[str] | None = None,
    tolerance: float = 1.0,
    frozen: bool = False,
) -> Calibration:
    """Scale every layer's weight in place, so that its output on a batch has its size.

    Each weight is multiplied with one factor, found in the order of execution while the model
    runs: a layer is measured on inputs that are calibrated already.  The size is the root mean
    square of the whole output, so a batch of one is enough.  It is `std`, times what the layer's
    place asks for: 1/√L for the last layer of one of L residual branches, less in deep stretches of
    tanh or sine without norms.  The output layer is brought to `std` like any other.

    What is read is the model in the mode it is in; its mode, buffers, gradients and random states
    stay.  A weight that is used several times is scaled at its first call.  A weight that is all
    zero stays so.  In recurrent layers the product of the input with its weights is what counts.
    All or nothing: whatever is raised, an interrupt included, the model is as it was.

    Args:
        model: to be changed.
        batch: a tensor (one positional argument), a tuple (positional) or a dict (keyword).
        std: wanted size of a plain layer's output.
        centre: whether the bias of each layer that has one takes the mean of every unit away (where
            there are two values of a unit or more), before the size counts.
        only: paths of parameters or modules to calibrate; all by default.
        tolerance: factor within which an output is left as it is; 1 for none.
        frozen: whether parameters that require no gradient are calibrated too.

    Returns:
        what was done to each weight, and why the others keep their values.

    Raises:
        ArgumentError: an argument is not possible.
        ModelError: the model cannot be watched, or has no values (on meta, lazy).
        BatchError: the batch is not finite or on another device.
        ForwardError: the forward raised.

    Source: the idea is LSUV's (Mishkin, Matas 2016, arXiv:1511.06422), which runs the model anew
    for each layer.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batch = torch.randn(16, 4)
    >>> done = calibrate_(model, batch, std=0.5)
    >>> size = float(model(batch).detach().square().mean().sqrt())
    >>> round(done["2.weight"].after, 4), round(size, 4)
    (0.5, 0.5)
    """
    _check_arguments(std, centre, tolerance, frozen)
    _check_model(model)
    model = bare(model)
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    chosen = _chosen(model, only)
    found = roles(reading(model, batch), model)
    values = dict(model.named_parameters())
    untouched = {r.parameter: _reason(r, values[r.parameter], chosen, frozen) for r in found}
    biases = {
        r.call: r.parameter
        for r in found
        if centre and r.kind == "bias" and r.parameter in chosen and (r.trainable or frozen)
    }
    targets = {
        role.parameter: Target(
            float(std) * _place(role, found),
            float(tolerance),
            bias=biases.get(role.call),
            centre=centre,
            exact=True,
        )
        for role in found
        if not untouched[role.parameter]
    }
    if not targets:
        return Calibration((), _left(model, targets, {}, untouched), passes=1)
    names = [*targets, *{t.bias for t in targets.values() if t.bias is not None}]
    require_memory({name: values[name] for name in names})
    with torch.inference_mode(False), kept(model) as keep:
        for name in names:
            keep(values[name])
        outcomes = outcomes_(model, batch, targets)
        left = _left(model, targets, outcomes, untouched)
        return Calibration(_rows(targets, outcomes), left, passes=2)


def _rows(targets: Mapping[str, Target], outcomes: Mapping[str, Outcome]) -> tuple[Calibrated, ...]:
    """What was scaled, in the model's order; parts of one parameter in the order of their calls."""
    found: dict[str, list[Calibrated]] = {name: [] for name in targets}
    for name, done in outcomes.items():
        if done.because:
            continue
        whole, factor = name.removesuffix(done.part), math.prod(done.factors)
        row = Calibrated(name, done.before, done.after, factor, done.moved, targets[whole].size)
        found[whole].append(row)
    return tuple(row for rows in found.values() for row in rows)


def _left(
    model: nn.Module,
    targets: Mapping[str, Target],
    outcomes: Mapping[str, Outcome],
    untouched: Mapping[str, str],
) -> dict[str, str]:
    """What keeps its values, in the model's order, and why."""
    moved = {targets[name.removesuffix(o.part)].bias for name, o in outcomes.items() if o.bias}
    met: dict[str, dict[str, str]] = {name: {} for name in untouched}
    for name, done in outcomes.items():
        met[name.removesuffix(done.part)][name] = done.because
    found: dict[str, str] = {}
    for parameter in parameters_of(model):
        name = parameter.name
        told = untouched[name] or "no call of it could be run again"
        reasons = met[name] or {name: told}
        found.update((n, why) for n, why in reasons.items() if why and n not in moved)
        scaled = ", scaled at its first call" if "" in met[name].values() else ""
        found.update((alias, f"it is {name}{scaled}") for alias in parameter.aliases[1:])
    return found


# ---- what is wanted ------------------------------------------------------------------------------


def _place(role: Role, found: Sequence[Role]) -> float:
    """What the place of a weight in the model asks for, where a plain layer has 1."""
    if role.kind == "magnitude" and role.part is not None:
        pair = (r for r in found if r.part is not None and r.part.weight == role.part.weight)
        role = next((r for r in pair if r.kind == "weight"), role)
    return target_size(role)


def _reason(role: Role, parameter: Tensor, chosen: Collection[str], frozen: bool) -> str:
    """Why a parameter keeps its values; "" for a weight that is to be measured."""
    if role.parameter not in chosen:
        return "not asked for"
    if role.kind in _REASONS:
        both = role.kind == "table" and "weight" in role.uses
        return _TIED if both else _REASONS[role.kind]
    if role.part is not None and role.part.kind == "direction":
        return f"{role.part.how} divides by its size: its magnitudes are scaled"
    if role.part is not None and role.part.kind == "normalized":
        return f"{role.part.how} divides by its size"
    if role.part is not None and role.part.kind == "other":
        return f"the weight is computed from it by {role.part.how}"
    if role.kind not in ("weight", "magnitude"):
        return _NO_WEIGHT
    if role.repeated and role.activation is None and role.branch is None:
        return _REASONS["recurrent"]  # of a network unrolled by hand
    if role.activation == "sin" and role.factor >= SIREN:
        return f"a sine of {role.factor:g} times its output follows: its size is a frequency"
    if not role.trainable and not frozen:
        return "frozen"
    if not parameter.is_floating_point():
        return f"its dtype is {str(parameter.dtype).removeprefix('torch.')}"
    return "" if bool(parameter.detach().any()) else "it is zero, and stays so"


def _chosen(model: nn.Module, only: Iterable[str] | None) -> set[str]:
    """Canonical paths of the parameters that `only` names."""
    names = {id(p): n for n, p in model.named_parameters()}
    if only is None:
        return set(names.values())
    wanted: Any = (only,) if isinstance(only, str) else only
    if not isinstance(wanted, Iterable):
        raise ArgumentError(f"only: {only!r}; paths of parameters or modules are needed")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    found: set[str] = set()
    for path in wanted:
        if path in parameters:
            inside = [parameters[path]]
        elif path in modules:
            inside = list(modules[path].parameters())
        else:
            offered = did_you_mean(str(path), [*parameters, *modules], 1)
            raise ArgumentError(
                f"only: {path!r} is the path of no parameter or module of the model{offered}"
            )
        if not inside:
            raise ArgumentError(f"only: the module {path!r} has no parameters")
        found.update(names[id(p)] for p in inside)
    if not found:
        raise ArgumentError("only: it is empty; leave it out to calibrate every layer")
    return found


def _check_arguments(std: Any, centre: Any, tolerance: Any, frozen: Any) -> None:
    if not is_number(std) or std <= 0:
        raise ArgumentError(f"std: {std!r}; a positive number is needed")
    if not is_number(tolerance) or tolerance < 1:
        raise ArgumentError(f"tolerance: {tolerance!r}; a factor of at least 1 is needed")
    for name, value in (("centre", centre), ("frozen", frozen)):
        if not isinstance(value, bool):
            raise ArgumentError(f"{name}: {value!r}; True or False is needed")


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: {type(model).__name__} is not a torch.nn.Module")
    named = list(model.named_parameters())
    if not named:
        raise ModelError("model: it has no parameters, so there is nothing to calibrate")
    for name, parameter in named:
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            told = "is lazy and not materialized; run the model once first"
        elif parameter.is_meta:
            told = "is on the meta device and has no values; give it memory first (fanin.init_)"
        elif parameter.layout != torch.strided:
            told = f"is sparse ({parameter.layout}); dense parameters are needed"
        elif parameter.is_inference():
            told = "was made in inference mode; build the model outside of torch.inference_mode()"
        else:
            continue
        raise ModelError(f"model: the parameter {name!r} {told}")


# ---- as text -------------------------------------------------------------------------------------


def _cells(row: Calibrated) -> tuple[str, ...]:
    numbers = (row.before, row.after, row.wanted, row.factor, row.bias_moved)
    return visible(row.parameter), *(f"{number:.4g}" for number in numbers)
