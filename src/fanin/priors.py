"""Offsets that an author gave a value of their own: the prior of a rare class, gates open or shut.

No default start makes a bias that is one number other than zero.  Below an output layer it is the
logarithm of odds, which keeps the many negatives of a detector from drowning the loss (Lin 2017,
focal loss: −4.6 for 1 %); at a gate it says what passes at the start (Srivastava 2015, highway
networks: −1 to −3; Jozefowicz 2015, forget gates: 1).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fanin.roles import Role

__all__ = ["meant_offsets"]

# Odds of 27 % and of 3e-7: above, an offset says little; below, it is no prior but a mask.
PRIOR = (-15.0, -1.0)
# A gate that is 73 % open (or shut); from 99.97 % on it has no slope left to be opened by.
GATE = (1.0, 8.0)
_LOGITS = (None, "sigmoid", "softmax", "log_softmax", "logsigmoid")
_GATES = ("sigmoid", "hardsigmoid")


def meant_offsets(model: nn.Module, roles: Sequence[Role]) -> dict[str, str]:
    """Biases of one number by their author's choice → why; empty on the meta device.

    >>> layer = nn.Linear(8, 3)
    >>> _ = nn.init.constant_(layer.bias, -4.6)
    >>> meant_offsets(layer, [Role("bias", (3,), True, "bias")])
    {'bias': 'a bias of -4.6, of its own by its author: the prior of a rare class, or a gate'}
    """
    found = {}
    for role in roles:
        if role.kind != "bias" or not role.trainable:
            continue
        values = model.get_parameter(role.parameter).detach()
        if values.is_meta or values.numel() == 0:
            continue
        low, high = (float(v) for v in values.aminmax())
        prior = role.activation in _LOGITS and PRIOR[0] <= low <= PRIOR[1]
        gate = role.activation in _GATES and GATE[0] <= abs(low) <= GATE[1]
        if low == high and (prior or gate):
            found[role.parameter] = (
                f"a bias of {low:.3g}, of its own by its author: the prior of a rare class, or a "
                "gate"
            )
    return found
