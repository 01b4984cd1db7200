"""What a policy answers for one parameter, and how that becomes an assignment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fanin.assignment import Assignment, matrix_sizes
from fanin.catalogue import find
from fanin.errors import ArgumentError
from fanin.roles import Role

__all__ = [
    "Blueprint",
    "Choice",
    "Leave",
    "Skip",
    "assign",
    "blueprint",
    "counted",
    "words",
]


@dataclass(frozen=True)
class Choice:
    """Draw it: a scheme that fills one tensor, its gain and arguments, and the reason."""

    scheme: str
    because: str
    gain: float = 1.0
    fan: float | None = None  # None: what the role says
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Leave:
    """Leave it as it is, for this reason."""

    because: str


@dataclass(frozen=True)
class Skip:
    """The policy has nothing to say of this parameter; the defaults decide."""


@dataclass(frozen=True)
class Blueprint:
    """The roles of a model, and what follows from all of them together.

    Attributes:
        roles: of every parameter, in the model's order.
        width: size of the signal that most weights read (the model's width).
        blocks: residual branches on the longest stream.
        normed: whether a residual stream is normalized anywhere.
        meta: whether the model has no values.
    """

    roles: tuple[Role, ...]
    width: int
    blocks: int
    normed: bool
    meta: bool

    def weight_at(self, call: int) -> Role | None:
        """The main weight of a call."""
        return self._weights.get(call)

    def chained(self, role: Role) -> bool:
        """Whether biases can shift every unit in stretches as long as this weight's.

        All their activations are one, every layer before the last has a bias, and the next one
        reads what it makes (not a product with it, as of a gate); branches and layers used again
        are other stretches.
        """
        return role.run not in self._broken

    @cached_property
    def _broken(self) -> frozenset[int]:
        biased = {r.call for r in self.roles if r.kind == "bias" and r.trainable}
        weights = self._weights.values()
        read = {
            (r.run, r.place, r.input.activation) for r in weights if r.input.kind == "activation"
        }
        names: dict[int, set[str | None]] = {}
        broken = set()
        for role in weights:
            if role.head or role.activation is None:
                continue
            names.setdefault(role.run, set()).add(role.activation)
            follows = (role.run, role.place + 1, role.activation) in read
            plain = role.branch is None and not role.repeated and role.call in biased and follows
            if len(names[role.run]) > 1 or not plain:
                broken.add(role.run)
        return frozenset(broken)

    @cached_property
    def _weights(self) -> dict[int, Role]:
        return {role.call: role for role in self.roles if role.kind == "weight"}


def blueprint(roles: Sequence[Role], meta: bool) -> Blueprint:
    """Read off the whole model's width and depth."""
    inputs: dict[int, int] = {}
    for role in roles:
        if role.kind == "weight" and role.features and len(role.shape) > 1:
            inputs[role.features] = inputs.get(role.features, 0) + 1
    width = max(inputs, key=lambda n: (inputs[n], n), default=1)
    found = [role.branch for role in roles if role.branch is not None]
    return Blueprint(
        tuple(roles),
        width,
        max((b.of for b in found), default=0),
        any(b.norm in ("before", "after", "last") for b in found),
        meta,
    )


def assign(role: Role, choice: Choice) -> Assignment:
    """The assignment that a choice makes of a role.

    Raises:
        ArgumentError: the scheme cannot fill this parameter.
    """
    scheme = find(choice.scheme)
    fan = choice.fan
    arguments = dict(choice.arguments)
    if role.op.startswith("conv_transpose") and role.groups > 1:
        arguments["groups"] = role.groups
    if role.padding is not None:
        arguments["padding"] = role.padding
    if scheme.fan is not None and fan is None:
        if role.fan_in is None:
            raise ArgumentError(f"{role.parameter}: its fan is not known; {scheme.name} needs one")
        pair = (role.fan_in, role.fan_out or role.fan_in)
        fan = scheme.divisor(pair, scheme.complete(choice.arguments))
    given: Any = _one_matrix(role) if scheme.form == "matrix" and scheme.fan is None else fan
    if _by_variance(role, choice):  # a stride makes the fan smaller than the matrix
        given = fan = role.fan_in
    return Assignment(
        parameter=role.parameter,
        scheme=scheme.name,
        gain=choice.gain,
        std=scheme.std(given, choice.gain, **choice.arguments),
        fan=fan if scheme.fan is not None or given is fan else None,
        because=choice.because,
        shape=role.shape,
        layout=role.layout,
        blocks=1 if "groups" in arguments else role.blocks,
        arguments=arguments,
    )


def _by_variance(role: Role, choice: Choice) -> bool:
    """Whether an orthogonal kernel is scaled by a fan that its shape does not tell."""
    strided = role.op.startswith("conv_transpose") and role.fan_in is not None
    return strided and choice.scheme == "orthogonal" and choice.arguments.get("scale") == "variance"


def _one_matrix(role: Role) -> tuple[int, ...]:
    """(inputs, outputs, *kernel) of one of the role's matrices; of a vector, all its entries."""
    transposed = role.op.startswith("conv_transpose") and role.groups > 1
    blocks, groups = (1, role.groups) if transposed else (role.blocks, 1)
    sizes = matrix_sizes(role.shape, role.layout, blocks, groups)
    return sizes if sizes is not None else (math.prod(role.shape), 1)


def counted(number: int, one: str, several: str = "") -> str:
    """A number of things as a reason writes it.

    >>> counted(3, "layer"), counted(1, "branch", "branches")
    ('3 layers', '1 branch')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"


def words(value: float) -> str:
    """A number as a reason writes it.

    >>> words(1.4142135), words(50257.0)
    ('1.414', '50257')
    """
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"
