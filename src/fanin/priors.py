"""Offsets that an author gave a value of their own: the prior of a rare class, gates open or shut.

No default start makes a bias that is one number other than zero.  Below an output layer it is the
logarithm of odds, which keeps the many negatives of a detector from drowning the loss (Lin 2017,
focal loss: −4.6 for 1 %); at a gate it says what passes at the start (Srivastava 2015, highway
networks: −1 to −3; Jozefowicz 2015, forget gates: 1).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fanin.architecture import Architecture
from fanin.roles import Role

__all__ = ["meant_offsets"]

# Odds of 27 % and of 3e-7: above, an offset says little; below, it is no prior but a mask.
PRIOR = (-15.0, -1.0)
# A gate that is 73 % open (or shut); from 98 % on it has no slope left to be opened by.
GATE = (1.0, 4.0)
_LOGITS = (None, "sigmoid", "softmax", "log_softmax", "logsigmoid")
_GATES = ("sigmoid", "hardsigmoid")


def meant_offsets(
    model: nn.Module, roles: Sequence[Role], architecture: Architecture
) -> dict[str, str]:
    """Biases of one number by their author's choice → why; empty on the meta device.

    >>> import torch
    >>> from fanin.reading import reading
    >>> layer = nn.Linear(8, 3)
    >>> _ = nn.init.constant_(layer.bias, -4.6)
    >>> read = reading(layer, torch.randn(4, 8))
    >>> meant_offsets(layer, [Role("bias", (3,), True, "bias", call=0)], read)
    {'bias': 'its author made it -4.6: the prior of a rare class'}
    """
    found = {}
    for role in roles:
        if role.kind != "bias" or not role.trainable:
            continue
        values = model.get_parameter(role.parameter).detach()
        if values.is_meta or values.numel() == 0:
            continue
        low, high = (float(v) for v in values.aminmax())
        if low != high:
            continue
        last = role.call not in architecture.inner and role.activation in _LOGITS
        if last and PRIOR[0] <= low <= PRIOR[1]:
            found[role.parameter] = f"its author made it {low:.3g}: the prior of a rare class"
        elif role.activation in _GATES and GATE[0] <= abs(low) <= GATE[1]:
            state = "open" if low > 0 else "shut"
            found[role.parameter] = f"its author made it {low:.3g}: a gate that starts {state}"
    return found
