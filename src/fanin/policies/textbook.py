"""A scheme that fills one tensor, on every parameter of a model that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fanin import draw
from fanin.catalogue import Scheme
from fanin.errors import ArgumentError
from fanin.policies.auto import auto
from fanin.policies.choice import Blueprint, Choice, Leave, Skip, assign
from fanin.policies.signal import keeps_scale
from fanin.roles import Role

__all__ = ["meant_for", "textbook"]

_WEIGHTS = ("weight", "projection", "recurrent")


def _lstm_bias(role: Role) -> bool:
    return role.kind == "bias" and role.op.startswith("lstm")


def _output_bias(role: Role) -> bool:
    return role.kind == "bias" and role.head


def _hidden_bias(role: Role) -> bool:
    recurrent = role.op.startswith(("lstm", "gru", "rnn"))
    return role.kind == "bias" and not role.head and not recurrent and len(role.shape) == 1


def _kernel(role: Role) -> bool:
    return role.kind == "weight" and "k" in role.layout


# Schemes that are meant for some parameters only.
_MEANT: Mapping[str, Callable[[Role], bool]] = {
    "forget_gate_bias": _lstm_bias,
    "chrono_bias": _lstm_bias,
    "mirrored_bias": _hidden_bias,
    "prior_bias": _output_bias,
    "focal_bias": _output_bias,
    "dirac": lambda role: _kernel(role) and not role.op.startswith("conv_tr"),
    "delta_orthogonal": lambda role: _kernel(role) and not role.op.startswith("conv_tr"),
    "icnr": lambda role: role.shuffled,
    "bilinear_upsampling": lambda role: (
        _kernel(role)
        and role.op.startswith("conv_transpose")
        and role.shape[0] == role.shape[1] * role.groups
    ),
    "identity": lambda role: role.kind in _WEIGHTS and "k" not in role.layout,
    "hadamard": lambda role: role.kind in _WEIGHTS and _has_hadamard(role),
}


def _has_hadamard(role: Role) -> bool:
    """Whether there is a Hadamard matrix as large as the larger side of the matrix."""
    if len(role.shape) != len(role.layout) or "k" in role.layout or role.blocks > 1:
        return False
    return len(role.shape) > 1 and draw.has_hadamard(max(role.shape[-2:]))


def meant_for(scheme: Scheme, role: Role, roles: Sequence[Role]) -> bool:
    """Whether a scheme is meant for a parameter of this role, one of the `roles` of a model.

    A fan says little of a table, of which one row is looked up: the fan of a one-hot input, 1, is
    taken where a model has nothing but tables.
    """
    chosen = _MEANT.get(scheme.name)
    if chosen is not None:
        return chosen(role)
    if role.kind == "table":
        alone = scheme.fan is None or not any(r.kind in _WEIGHTS for r in roles)
        return alone and scheme.form in ("normal", "uniform", "trunc_normal")
    return role.kind in _WEIGHTS


def textbook(
    scheme: Scheme, gain: float, arguments: Mapping[str, Any]
) -> Callable[[Role, Blueprint], Choice | Leave | Skip]:
    """A policy: `scheme` where it is meant for, the conventional starts elsewhere."""
    selective = scheme.name in _MEANT

    def policy(role: Role, drawn: Blueprint) -> Choice | Leave | Skip:
        if meant_for(scheme, role, drawn.roles):
            choice = Choice(scheme.name, f"{scheme.name} was asked for", gain, arguments=arguments)
            try:
                assign(role, choice)
            except ArgumentError as error:
                if role.kind in _WEIGHTS:
                    base = keeps_scale(role)
                    told = f"{scheme.name} was asked for, but {error}; {base.because}"
                    return Choice(base.scheme, told, base.gain, arguments=base.arguments)
                raise
            return choice
        if selective:
            return auto(role, drawn)
        return keeps_scale(role) if role.kind in _WEIGHTS else Skip()

    return policy
