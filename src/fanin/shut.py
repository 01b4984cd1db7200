"""Parameters with a mask in them: entries so far below zero that nothing passes them.

The transitions of a linear-chain CRF hold −10000 where one tag may not follow another, and relative
positions −∞ where attention may not look.  A draw would open what the author has shut.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from fanin.draw import DTYPES
from fanin.roles import Role

__all__ = ["SHUT", "shut"]

#: The exponential of less is zero in every dtype (float64: of −745); masks hold −1e4, −1e9, −∞.
SHUT = -1e3
# Of what else such a parameter holds, drawn or zero, nothing comes near.
_ORDINARY = 100.0
# Weights hold no mask: there, a number like this is an accident.
_KINDS = frozenset({"table", "token", "score_bias", "bias", "rows", "codes", "norm_shift"})


def shut(model: nn.Module, roles: Iterable[Role]) -> dict[str, str]:
    """Parameters that hold a mask → why they keep their values; none on the meta device.

    >>> model = nn.Embedding(3, 3)
    >>> model.weight.data[0] = -10000.0
    >>> shut(model, [Role("weight", (3, 3), True, "table")])
    {'weight': '3 of its 9 numbers are -10000: a mask, by design'}
    """
    own = dict(model.named_parameters())
    found: dict[str, str] = {}
    for role in roles:
        values = own.get(role.parameter)  # a forward may have put another in its place
        if values is None or values.is_meta or values.dtype not in DTYPES:
            continue
        if role.kind in _KINDS:
            count, value = _masked(values.detach())
            if count:
                told = f"{count:,} of its {values.numel():,} numbers are {value:g}"
                found[role.parameter] = f"{told}: a mask, by design"
    return found


def _masked(values: Tensor) -> tuple[int, float]:
    """How many entries are one number below `SHUT`, and which; 0 where the others are not usual.

    Memory that nobody wrote may hold such numbers too, beside others as odd.
    """
    least = float(values.min()) if values.numel() else 0.0
    if not least <= SHUT:
        return 0, 0.0
    closed = values == least
    count = int(closed.sum())
    rest = values[~closed]
    usual = rest.numel() > 0 and bool((rest.abs() <= _ORDINARY).all())  # not where one is NaN
    return (count, least) if usual and count > 1 else (0, 0.0)
