"""Decide how each parameter starts: the roles of a model in, a recipe out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fanin.assignment import Assignment, Recipe
from fanin.catalogue import find
from fanin.errors import ArgumentError
from fanin.policies.auto import TABLE, auto
from fanin.policies.choice import Blueprint, Choice, Leave, Skip, assign, blueprint, words
from fanin.policies.published import PUBLISHED
from fanin.policies.rest import rest, stays
from fanin.policies.signal import keeps_scale
from fanin.policies.textbook import meant_for, textbook
from fanin.roles import Role

__all__ = ["decide", "decisions"]


def decisions() -> str:
    """The table of the automatic choice, as Markdown: what a parameter is, its start, the reason.

    >>> print(decisions().splitlines()[0])
    ## What is chosen
    """
    rows = [f"| {what} | {start} | {why} |" for what, start, why in TABLE]
    head = ["## What is chosen", "", "The first row that fits decides.", ""]
    return "\n".join([*head, "| parameter | start | reason |", "|-|-|-|", *rows]) + "\n"


# Schemes that are measured on a batch start from these.
_MEASURED = {"lsuv": "orthogonal", "within_layer": "lecun_normal"}
_Policy = Callable[[Role, Blueprint], Choice | Leave | Skip]


def decide(
    roles: Sequence[Role],
    scheme: str = "auto",
    *,
    gain: float = 1.0,
    arguments: Mapping[str, Any] | None = None,
    frozen: bool = False,
    meta: bool = False,
) -> Recipe:
    """The recipe of a scheme for a model with these roles.

    Args:
        roles: of every parameter.
        scheme: a name of the catalogue.
        gain: multiplies the std of what the scheme draws (schemes that fill one tensor).
        arguments: of the scheme.
        frozen: whether parameters that require no gradient are drawn too.
        meta: whether the model has no values, so that nothing can be left as it is.

    Raises:
        ArgumentError: an unknown scheme or argument, or no parameter it is meant for.
    """
    found = find(scheme)
    found.check_gain(gain)
    complete = found.complete(arguments or {})
    drawn = blueprint(roles, meta)
    policy = _policy(found.name, gain, complete)
    _require(found.name, roles)
    assignments: list[Assignment] = []
    untouched: dict[str, str] = {}
    for role in roles:
        answer: Choice | Leave | Skip = stays(role, drawn, frozen) or policy(role, drawn)
        if isinstance(answer, Skip):
            weight = role.kind in ("weight", "projection", "recurrent")
            answer = keeps_scale(role) if weight else rest(role, drawn)
        if isinstance(answer, Leave):
            untouched[role.parameter] = answer.because
        else:
            assignments.append(_placed(role, answer))
    recipe = _with_magnitudes(Recipe(tuple(assignments), untouched, found.name), roles)
    return _without_empty_directions(recipe, roles)


def _policy(name: str, gain: float, arguments: Mapping[str, Any]) -> _Policy:
    if name == "auto":
        return auto
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return lambda role, drawn: _times(published(role, drawn, arguments), gain)
    if name in _MEASURED:
        return textbook(find(_MEASURED[name]), gain, {})
    return textbook(find(name), gain, _given(arguments))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None: those are the scheme's own defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def _times(answer: Choice | Leave | Skip, gain: float) -> Choice | Leave | Skip:
    if isinstance(answer, Choice) and gain != 1.0:
        return replace(answer, gain=answer.gain * gain)
    return answer


_NEEDS: Mapping[str, tuple[Callable[[Role], bool], str]] = {
    "fixup": (lambda r: r.branch is not None, "residual branches"),
    "skipinit": (lambda r: r.branch is not None, "residual branches"),
    "rezero": (lambda r: r.branch is not None, "residual branches"),
    "deepnorm": (lambda r: r.branch is not None, "residual branches"),
    "t_fixup": (lambda r: r.branch is not None, "residual branches"),
    "recurrent": (lambda r: r.kind == "recurrent", "recurrent layers"),
    "irnn": (lambda r: r.kind == "recurrent" and r.blocks == 1, "plain recurrent layers"),
    "lora": (lambda r: bool(r.low_rank), "low-rank adapters"),
    "siren": (lambda r: "sin" in (r.activation, r.input.activation), "sine activations"),
    "mimetic": (lambda r: bool(r.attention), "attention layers"),
}


def _require(name: str, roles: Sequence[Role]) -> None:
    """Raise where the scheme has nothing to do in this model."""
    if name in _NEEDS:
        has, what = _NEEDS[name]
        if not any(has(role) for role in roles):
            raise ArgumentError(f"scheme: {name} needs a model with {what}; this one has none")
    elif name not in PUBLISHED and name != "auto":
        scheme = find(_MEASURED.get(name, name))
        if not any(meant_for(scheme, role, roles) for role in roles):
            what = scheme.needs or "a weight that the forward pass uses"
            raise ArgumentError(f"scheme: {name} fills {what}; this model has none")


def _unstructured(role: Role, choice: Choice) -> Choice:
    """At random and of the same size, where a mask would part the rows and columns of a scheme."""
    scheme = find(choice.scheme)
    if role.kept == 1.0 or not role.fan_in or scheme.form != "matrix" or scheme.fan is not None:
        return choice
    size = assign(role, choice).std * math.sqrt(role.fan_in / role.kept)
    told = f"{choice.because}; at random and of that size under a mask"
    return Choice("lecun_normal", told, gain=size)


def _multiplied(role: Role, choice: Choice) -> Choice:
    """The choice for a parameter that the model multiplies with constants before it uses it."""
    choice = _unstructured(role, choice)
    told = choice.because
    if role.kept < 1.0:
        told = f"{told}; a mask leaves {100 * role.kept:.3g} % of its inputs"
    if role.times != 1.0:
        told = f"{told}; ÷ {words(role.times)}, which the model multiplies it with"
    return replace(choice, because=told, gain=choice.gain / role.times)


def _placed(role: Role, choice: Choice) -> Assignment:
    """The assignment; a spectral norm makes the planned std a shape without a size."""
    assignment = assign(role, _multiplied(role, choice))
    if role.part is not None and role.part.kind == "normalized":
        told = f"{assignment.because}; only its shape counts: spectral_norm divides by ‖W‖"
        return replace(assignment, because=told)
    return assignment


def _with_magnitudes(recipe: Recipe, roles: Sequence[Role]) -> Recipe:
    """Weight norm: magnitudes that give the computed weight the planned std."""
    directions = {
        role.part.weight: role for role in roles if role.part and role.part.kind == "direction"
    }
    planned = {a.parameter: a for a in recipe.assignments}
    found: dict[str, Assignment] = {}
    for role in roles:
        if role.part is None or role.part.kind != "magnitude" or role.parameter in planned:
            continue
        direction = directions.get(role.part.weight)
        assignment = planned.get(direction.parameter) if direction is not None else None
        if direction is None or assignment is None or not role.trainable:
            continue
        entries = math.prod(direction.shape) / max(1, math.prod(role.shape))
        length = assignment.std * math.sqrt(entries)
        told = (
            f"weight norm: the length of one row of std {assignment.std:.4g} and {entries:.0f} "
            "entries"
        )
        found[role.parameter] = assign(role, Choice("constant", told, gain=length))
    if not found:
        return recipe
    order = {role.parameter: place for place, role in enumerate(roles)}
    everything = [*recipe.assignments, *found.values()]
    untouched = {k: v for k, v in recipe.untouched.items() if k not in found}
    return Recipe(
        tuple(sorted(everything, key=lambda a: order[a.parameter])), untouched, recipe.scheme
    )


# What the computed weight is divided by the size of: a zero there makes it NaN.
_DIVIDED: Mapping[str, str] = {
    "direction": "only a direction, as zeros have none: the size is that of its magnitude",
    "normalized": "so it cannot start at zero",
}


def _without_empty_directions(recipe: Recipe, roles: Sequence[Role]) -> Recipe:
    """Weight norm and spectral norm: what was planned as zeros is drawn like any other weight."""
    divided = {r.parameter: r for r in roles if r.part is not None and r.part.kind in _DIVIDED}

    def drawn(assignment: Assignment) -> Assignment:
        role = divided.get(assignment.parameter)
        if role is None or role.part is None or assignment.std > 0:
            return assignment
        told = f"{assignment.because}; {_DIVIDED[role.part.kind]}"
        return replace(assign(role, keeps_scale(role)), because=told)

    return replace(recipe, assignments=tuple(map(drawn, recipe.assignments)))
