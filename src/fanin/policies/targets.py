"""What is measured on a batch: the outputs whose size no closed form knows."""

from __future__ import annotations

from collections.abc import Sequence

from fanin.assignment import Recipe
from fanin.measuring import Target
from fanin.policies.auto import SIREN, head_gain, target_size
from fanin.policies.choice import blueprint
from fanin.policies.deep import deep_shift
from fanin.roles import Role

__all__ = ["TOLERANCE", "targets", "uncertain"]

# An output within this factor of its planned size is left: sampling alone moves narrow layers so.
TOLERANCE = 1.25
# Inputs whose size is known whatever the batch is; codes (often 1/their number at first) are drawn
# to the signal in training, and a layer that made up for their first size would be far too large.
_STEADY = ("norm", "codes")


def targets(recipe: Recipe, roles: Sequence[Role]) -> dict[str, Target]:
    """Weight → what its output should be on the batch; empty where closed forms are enough."""
    by_name = {role.parameter: role for role in roles}
    biases = {r.call: r.parameter for r in roles if r.kind == "bias"}
    planned = {a.parameter: a for a in recipe.assignments}
    # Random ones are as large as what the weight makes, whose size is what counts.
    offsets = {c for c, name in biases.items() if name in planned and planned[name].std > 0}
    drawn = blueprint(roles, meta=False)
    found: dict[str, Target] = {}
    for assignment in recipe.assignments:
        role = by_name[assignment.parameter]
        if role.kind != "weight" or assignment.std == 0 or role.part is not None:
            continue
        if recipe.scheme == "lsuv":
            found[role.parameter] = Target(1.0, centred=True)
        elif recipe.scheme == "within_layer":
            bias = biases.get(role.call)
            found[role.parameter] = Target(
                1.0, centred=True, units=True, bias=bias if bias in planned else None
            )
        elif recipe.scheme == "auto" and uncertain(role):
            size = target_size(role, drawn) * (head_gain(role) if role.head else 1.0)
            kept = biases.get(role.call, "") in recipe.untouched  # with a value of its own
            shifted = deep_shift(role, drawn) != 0.0
            spread = role.call in offsets
            found[role.parameter] = Target(size, TOLERANCE, centred=shifted or kept, bare=spread)
    return found


def uncertain(role: Role) -> bool:
    """Whether the size of the layer's input depends on the batch or on layers before it."""
    if role.branch is not None and role.branch.norm != "none":
        return False  # a norm in the branch or on the stream holds the size
    if role.repeated:
        return False  # its state is not there yet at the first call, which would decide
    if role.input.kind in _STEADY or role.attention or role.op.startswith(("lstm", "gru", "rnn")):
        return False
    if role.activation == "sin" and role.factor >= SIREN:
        return False
    return not role.low_rank and not role.expert and not role.norm_after
