"""`fanin.plan` and `fanin.init_`: trace → architecture → roles → recipe → model."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import ConsoleRenderable
from torch import nn

from fanin import draw
from fanin.adapters import at_rest
from fanin.apply import apply_, lent
from fanin.architecture import Architecture, parameters_of
from fanin.assignment import Assignment, Recipe
from fanin.catalogue import find
from fanin.clones import equal
from fanin.errors import ArgumentError, BatchError, ModelError
from fanin.fused import Fused
from fanin.measuring import Target, Total, measure_
from fanin.placement import agreement, held, is_spread, prepared
from fanin.plain import as_json, to_plain
from fanin.policies import decide
from fanin.policies.targets import targets
from fanin.priors import meant
from fanin.reading import bare, check_batch, reading
from fanin.recipe import Difference, Mismatch, check, diff, from_toml, to_toml
from fanin.roles import Role, roles
from fanin.shut import shut
from fanin.sparse import with_sparse
from fanin.summary import table, to_text
from fanin.trace import reject_refusing
from fanin.tried import at_risk, trying
from fanin.unsharded import give_values_, is_sharded, unsharded, with_values

__all__ = ["Plan", "closed_forms", "init_", "plan"]


@dataclass(frozen=True, repr=False)
class Plan(Recipe):
    """How every parameter of a model starts, and why: printable, comparable, a text file.

    Iterating gives the assignments in the model's order; ``plan["layer.weight"]`` one of them;
    ``plan.untouched`` says why each other parameter keeps its values.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = plan(model, torch.randn(16, 4))
    >>> found["0.weight"].scheme, [a.parameter for a in found][-1]
    ('lecun_normal', '2.bias')
    """

    def __iter__(self) -> Iterator[Assignment]:
        return iter(self.assignments)

    def __len__(self) -> int:
        return len(self.assignments)

    def __contains__(self, parameter: object) -> bool:
        return any(a.parameter == parameter for a in self.assignments)

    def __getitem__(self, parameter: str) -> Assignment:
        for assignment in self.assignments:
            if assignment.parameter == parameter:
                return assignment
        told = self.untouched.get(parameter)
        raise KeyError(f"{parameter}: {'left as it is: ' + told if told else 'not in this plan'}")

    def apply_(
        self,
        model: nn.Module,
        seed: int = 0,
        *,
        frozen: bool = False,
        device: torch.device | str | None = None,
        fused: Fused | None = None,
    ) -> Plan:
        """Draw every assigned parameter of `model` in place, and return the plan.

        Each value is a function of the seed, the parameter's path and its place alone.  All or
        nothing: whatever is raised, the model is as it was.

        Args:
            model: the model that was planned, or one with the same parameters.
            seed: of every draw, 0 to 2**64 − 1.
            frozen: whether parameters that require no gradient are drawn too.
            device: where parameters on the meta device are made (default: CPU).
            fused: where the model keeps in one tensor what the plan knows by several names: pattern
                of the tensor → those names, in order along the one dimension that is joined.  ``*``
                stands for a part of a path; ``{}`` for the index in a stack along the first
                dimension; (name, start, stop) for some rows.

        Raises:
            RecipeError: the plan is for another model.
            ModelError: something on the meta device would be left without a value, or a parameter
                is spread over processes in a way that no part of it can be drawn.
            ArgumentError: the seed is not possible, or a pattern fits nothing.

        >>> model = nn.Linear(4, 2)
        >>> _ = plan(model, torch.randn(8, 4)).apply_(model, seed=1)
        >>> model.bias.tolist()
        [0.0, 0.0]

        >>> qkv = {"*.qkv.weight": ["*.q.weight", "*.k.weight", "*.v.weight"]}
        >>> experts = {"*.experts.up": ["*.experts.{}.up.weight"]}
        """
        apply_(self, model, seed=seed, frozen=frozen, device=device, fused=fused)
        return self

    def check(self, model: nn.Module) -> tuple[Mismatch, ...]:
        """What does not fit between the plan and a model: missing, extra, of another shape."""
        return check(self, {p.name: p.shape for p in parameters_of(bare(model))})

    def diff(self, other: Recipe) -> Difference:
        """What another plan has otherwise: added, removed and changed parameters.

        >>> model, batch = nn.Linear(4, 2), torch.randn(8, 4)
        >>> bool(plan(model, batch).diff(plan(model, batch)))
        False
        """
        if not isinstance(other, Recipe):
            raise ArgumentError(f"other: {type(other).__name__} is not a plan")
        return diff(self, other)

    def to_toml(self) -> str:
        """The plan as a recipe, a text that `from_toml` reads back exactly."""
        return to_toml(self)

    @classmethod
    def from_toml(cls, text: str) -> Plan:
        """Read a recipe.

        Raises:
            RecipeError: it is none; one line says where and what is allowed.

        >>> model, batch = nn.Linear(4, 2), torch.randn(8, 4)
        >>> made = plan(model, batch)
        >>> Plan.from_toml(made.to_toml()) == made
        True
        """
        return cls.of(from_toml(text))

    @classmethod
    def of(cls, recipe: Recipe) -> Plan:
        """The plan with the content of a recipe."""
        return cls(recipe.assignments, recipe.untouched, recipe.scheme)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON; a number that is not finite is a string."""
        rows = [
            {
                "parameter": a.parameter,
                "scheme": a.scheme,
                "gain": a.gain,
                "std": a.std,
                "fan": a.fan,
                "shape": list(a.shape),
                "layout": a.layout,
                "blocks": a.blocks,
                "arguments": dict(a.arguments),
                "because": a.because,
            }
            for a in self.assignments
        ]
        plain = {"schema_version": 1, "scheme": self.scheme, "assignments": to_plain(rows)}
        return {**plain, "untouched": dict(self.untouched)}

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as strict JSON text; a number that is not finite is a string.

        >>> plan(nn.Linear(4, 2), torch.randn(8, 4)).to_json(None)[:38]
        '{"schema_version": 1, "scheme": "auto"'
        """
        return as_json(self.to_dict(), indent)

    def __rich__(self) -> ConsoleRenderable:
        return table(self)

    def __str__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        told = html.escape(to_text(self, every_character=True))
        return f'<pre style="white-space:pre;overflow-x:auto;line-height:1.35">{told}</pre>'

    def __repr__(self) -> str:
        return f"<fanin.Plan: {self.scheme}, {len(self.assignments)} parameters>"


def plan(
    model: nn.Module,
    batch: Any,
    scheme: str = "auto",
    *,
    seed: int = 0,
    gain: float = 1.0,
    frozen: bool = False,
    **arguments: Any,
) -> Plan:
    """Decide how every parameter of a model starts, without changing it.

    The model is run once to see what each parameter does.  Where closed forms are not enough
    (layers without norms, whose input is whatever the data is), it is run once more with the
    planned values, which are taken back; scales found so are part of the plan.  A model on the
    meta device is planned without memory, from closed forms alone.

    A model that is spread over processes (`fully_shard`, tensor parallel, DistributedDataParallel)
    is planned by all of them, each with its own part of the batch: scales are measured on all
    parts together.  Where anything is measured, each process needs memory for the whole model.

    Args:
        model: any module that runs.
        batch: a tensor (one positional argument), a tuple (positional) or a dict (keyword).
        scheme: a name of `fanin.schemes`: "auto", a published recipe such as "residual_scaling",
            or a scheme for all weights such as "he_normal".
        seed: of the values that scales are measured with.
        gain: multiplies what the scheme draws (not "auto").
        frozen: whether parameters that require no gradient are planned too.
        arguments: of the scheme.

    Raises:
        ArgumentError: an unknown scheme (the nearest are offered) or argument, or a scheme that has
            nothing to do in this model.
        ModelError: the model cannot be watched; ForwardError: its forward raised.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> plan(model, torch.randn(16, 4), scheme="he_normal")["2.weight"].std
    0.5
    """
    _check_model(model)
    total = agreement(model)
    spread = bare(model)
    prepared(spread)
    sharded = is_sharded(spread)
    model = unsharded(spread) if sharded else spread
    name = find(scheme).name
    if name == "auto" and gain != 1.0:
        raise ArgumentError(f"gain: {gain!r}; auto decides every gain itself")
    seed = draw.integer("seed", seed, 0, 2**64)
    architecture = reading(model, batch)
    found = roles(architecture, model)
    meta = any(p.is_meta for p in spread.parameters())
    if sharded and not meta:
        give_values_(spread, model)
    if name == "auto" and not meta:
        place = held(next(spread.parameters())).device
        found = with_sparse(found, architecture, batch, total, place)
    recipe = decide(found, name, gain=gain, arguments=arguments, frozen=frozen, meta=meta)
    if name == "auto" and not frozen:
        recipe = _without(recipe, at_rest(model, found) | meant(model, found, architecture))
    recipe = _without_unfit(recipe, model)
    recipe = _with_copies(_without(recipe, shut(model, found)), model)
    if name == "auto" and not meta and not sharded and at_risk(architecture, recipe, model):
        recipe = _finite(recipe, model, batch, total, seed=seed, frozen=frozen)
    wanted = targets(recipe, found)
    if not wanted:
        return Plan.of(recipe)
    if meta:
        if name != "auto":
            raise ModelError(f"model: {name} measures a batch, and a model on meta has no values")
        return Plan.of(recipe)
    if total is not None:
        _check_together(spread, batch, total)
    if sharded:  # each process measures the whole model on its part of the batch
        trained = {p.name for p in parameters_of(model) if frozen or p.trainable}
        drawn = trained & {a.parameter for a in recipe.assignments}
        model = with_values(spread, model, {p.name for p in parameters_of(model)} - drawn)
    return Plan.of(_measured(recipe, found, model, batch, wanted, total, seed=seed, frozen=frozen))


def _check_together(model: nn.Module, batch: Any, total: Total) -> None:
    """Raise on every process where one of them has a batch that cannot be measured."""
    told = ""
    try:
        check_batch(model, batch)
    except BatchError as error:
        told = str(error)
    first: Any = next(model.parameters())
    place = held(first).device
    if total(torch.tensor([float(bool(told))], device=place)).item():
        raise BatchError(told or "batch: that of another process cannot be measured; it says why")


def closed_forms(architecture: Architecture, model: nn.Module) -> Recipe:
    """The automatic choice for a model that was read already, from closed forms alone."""
    found = roles(architecture, model)
    return _without(_without_unfit(decide(found, "auto"), model), shut(model, found))


def init_(
    model: nn.Module,
    batch: Any,
    scheme: str = "auto",
    *,
    seed: int = 0,
    gain: float = 1.0,
    frozen: bool = False,
    device: torch.device | str | None = None,
    **arguments: Any,
) -> Plan:
    """Plan a model's start and apply it in place; returns the plan.

    The same as ``plan(model, batch, scheme, seed=seed).apply_(model, seed)``.  All or nothing:
    whatever is raised, the model is as it was.

    Args:
        model: to be changed.
        batch: a tensor (one positional argument), a tuple (positional) or a dict (keyword).
        scheme: a name of `fanin.schemes`.
        seed: of every draw.
        gain: multiplies what the scheme draws (not "auto").
        frozen: whether parameters that require no gradient are drawn too.
        device: where parameters on the meta device are made (default: CPU).
        arguments: of the scheme.

    Raises:
        ArgumentError, ModelError: as `plan` and `Plan.apply_`.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> init_(model, torch.randn(16, 4))["2.weight"].scheme
    'he_normal'
    """
    found = plan(model, batch, scheme, seed=seed, gain=gain, frozen=frozen, **arguments)
    return found.apply_(model, seed, frozen=frozen, device=device)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: {type(model).__name__} is not a torch.nn.Module")
    if not any(True for _ in model.parameters()):
        raise ModelError("model: it has no parameters, so there is nothing to plan")
    reject_refusing(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"model: the lazy parameter {name!r} is not materialized; run the model once first"
            )
        if parameter.layout != torch.strided:
            raise ModelError(
                f"model: the parameter {name!r} is sparse ({parameter.layout}); a plan needs dense "
                "parameters"
            )
        if parameter.is_inference():
            raise ModelError(
                f"model: the parameter {name!r} was made in inference mode and can have no "
                "gradient; build the model outside of torch.inference_mode()"
            )


def _without_unfit(recipe: Recipe, model: nn.Module) -> Recipe:
    """Leave what cannot be drawn: integer, complex, quantized and empty parameters."""
    unfit: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_quantized:
            unfit[name] = "it is quantized"
        elif parameter.dtype not in draw.DTYPES:
            unfit[name] = f"its dtype is {str(parameter.dtype).removeprefix('torch.')}"
        elif parameter.numel() == 0:
            unfit[name] = "it is empty"
    return _without(recipe, unfit)


def _with_copies(recipe: Recipe, model: nn.Module) -> Recipe:
    """Say of each frozen parameter that is a copy of a drawn one that a draw parts the two.

    A momentum encoder and the target network of Q-learning have to start as what they follow.
    """
    drawn = {a.parameter for a in recipe.assignments}
    there = {
        name: parameter
        for name, parameter in model.named_parameters()
        if (name in drawn or not parameter.requires_grad)
        and not (parameter.is_meta or is_spread(parameter))
        and parameter.dtype in draw.DTYPES
        and parameter.numel() > 0
    }
    told: dict[str, str] = {}
    for same in equal(there):
        source = next((name for name in same if name in drawn), None)
        values = there[same[0]].detach()
        if source is not None and bool((values != values.flatten()[0]).any()):
            told |= {
                name: f"{recipe.untouched[name]}, and a copy of {source}, which is drawn anew: "
                "copy it again"
                for name in same
                if name in recipe.untouched
            }
    return replace(recipe, untouched={**recipe.untouched, **told})


def _without(recipe: Recipe, left: Mapping[str, str]) -> Recipe:
    """The recipe, but that these parameters keep their values."""
    if not left:
        return recipe
    kept = tuple(a for a in recipe.assignments if a.parameter not in left)
    return Recipe(kept, {**recipe.untouched, **left}, recipe.scheme)


def _finite(
    recipe: Recipe, model: nn.Module, batch: Any, total: Total | None, *, seed: int, frozen: bool
) -> Recipe:
    """The recipe without what would make numbers that are not finite, as its own values do not.

    Processes that plan together leave what goes wrong on any of their batches.
    """
    spoiling = trying(model, batch, seed=seed, frozen=frozen)
    while True:
        left = spoiling(recipe)
        names = [a.parameter for a in recipe.assignments]
        if total is not None:
            place = next(model.parameters()).device
            flags = torch.tensor([float(n in left) for n in names], device=place)
            left = {
                name: left.get(name, "new values would not give finite numbers everywhere")
                for name, flag in zip(names, total(flags).tolist(), strict=True)
                if flag
            }
        if not left:
            return recipe
        recipe = _without(recipe, left)


def _measured(
    recipe: Recipe,
    found: tuple[Role, ...],
    model: nn.Module,
    batch: Any,
    wanted: Mapping[str, Target],
    total: Total | None,
    *,
    seed: int,
    frozen: bool,
) -> Recipe:
    """The recipe with the scales that a pass over the batch asks for; the model is put back."""
    with lent(recipe, model, seed=seed, frozen=frozen):
        factors = measure_(model, batch, wanted, total)
    order = {role.parameter: role for role in found}
    return replace(
        recipe,
        assignments=tuple(
            _scaled(a, factors[a.parameter], wanted, order[a.parameter])
            if a.parameter in factors
            else a
            for a in recipe.assignments
        ),
    )


def _scaled(
    assignment: Assignment, factors: tuple[float, ...], wanted: Mapping[str, Target], role: Role
) -> Assignment:
    """An assignment with what was measured for it."""
    if assignment.parameter in wanted and not wanted[assignment.parameter].units:
        (factor,) = factors
        told = f"{assignment.because}; × {factor:g}, measured on the batch"
        gain, std = assignment.gain * factor, assignment.std * factor
        return replace(assignment, gain=gain, std=std, because=told)
    arguments = {**assignment.arguments, "rows": factors}
    told = f"{assignment.because}; each output by itself, measured on the batch"
    if role.kind == "bias":
        size = math.sqrt(math.fsum(f * f for f in factors) / len(factors))
        return replace(
            assignment,
            scheme="ones",
            gain=1.0,
            std=1.0,
            arguments=arguments,
            because=f"the means of the outputs, taken away (root mean square {size:.3g})",
        )
    return replace(assignment, arguments=arguments, because=told)
