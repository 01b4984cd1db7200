"""Offsets that an author gave values of their own: priors of rare classes, gates, transforms.

No default start makes a bias that is one number other than zero.  Below an output layer it is the
logarithm of odds, which keeps the many negatives of a detector from drowning the loss (Lin 2017,
focal loss: −4.6 for 1 %); at a gate it says what passes at the start (Srivastava 2015, highway
networks: −1 to −3; Jozefowicz 2015, forget gates: 1); under a root it keeps the slope finite (Ballé
2016, divisive normalization: 1).  Numbers of one sign that differ from channel to channel, in front
of what a state is multiplied with, say how long each remembers (Tallec 2018, chrono initialization;
Peng 2023, RWKV; Beck 2024, xLSTM).  A pattern over weights that are all zero is what a layer gives
for every input at first: a transform that changes nothing (Jaderberg 2015), positions in a grid
(Zhu 2021, deformable attention).  Zeros on a way that only joins another are a start at which that
one passes as it is, and rotations have no effect on a likelihood (Kingma 2018, Glow).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fanin.architecture import Architecture
from fanin.kinds import BENDING, BILINEAR, PRODUCTS, SUMS
from fanin.roles import Role

__all__ = ["meant"]

# Odds of 27 % and of 3e-7: above, an offset says little; below, it is no prior but a mask.
PRIOR = (-15.0, -1.0)
# A gate that is 73 % open (or shut); from 98 % on it has no slope left to be opened by.
GATE = (1.0, 4.0)
# Of random numbers no two are equal; of those of a pattern at least one in four repeats another.
_DISTINCT = 0.75
_SAME = 1e-6  # of the largest: what a pattern's sines and cosines are rounded by
# What distances in a hyperbolic space are made by.
_HYPERBOLIC = frozenset({"acosh", "arccosh", "atanh", "arctanh"})
# What makes a share of a state that is kept, or a rate at which it decays.
_RATES = frozenset({"sigmoid", "hardsigmoid", "logsigmoid", "softplus", "exp", "exp2"})
# Mean of the sizes of such offsets: default biases lie within ±1, uniform ones in [0, 1) have 0.5.
# Published: 2.9 (chrono over 48 steps), 3.5 (RWKV), 4.5 (xLSTM, retention), 6.9 at most (chrono
# over a thousand).  Beyond, a gate is shut.
SPREAD = (1.0, 8.0)
# What makes a scale of the output of a layer, which bends no signal by that.
_SCALING = frozenset({"sigmoid", "tanh", "softplus"})
_ROUNDED = 1e-3  # of a rotation, as of one in half precision
_LOGITS = (None, "sigmoid", "softmax", "log_softmax", "logsigmoid")
_GATES = ("sigmoid", "hardsigmoid")
_BIASES = ("bias", "recurrent_bias")


def meant(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """Parameters that keep what their author gave them → why; empty on the meta device."""
    rules = (_factors, _offsets, _maps, _points, _rates, _joining, _rotations)
    return {name: told for rule in rules for name, told in rule(model, roles, architecture).items()}


def _offsets(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """Biases of one number by their author's choice → why; empty on the meta device.

    >>> import torch
    >>> from fanin.reading import reading
    >>> layer = nn.Linear(8, 3)
    >>> _ = nn.init.constant_(layer.bias, -4.6)
    >>> read = reading(layer, torch.randn(4, 8))
    >>> _offsets(layer, [Role("bias", (3,), True, "bias", call=0)], read)
    {'bias': 'its author made it -4.6: the prior of a rare class'}
    """
    found = {}
    for role in roles:
        if role.kind != "bias" or not role.trainable:
            continue
        values = model.get_parameter(role.parameter).detach()
        if values.is_meta or values.numel() == 0 or values.is_complex():
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
        elif low > 0 and any(c.partial for c in architecture.followers[role.call]):
            told = "what keeps a root or a logarithm from zero"
            found[role.parameter] = f"its author made it {low:.3g}: {told}"
    return found


def _maps(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """Weights that are all zero, and the bias with a pattern over each → why; empty on meta.

    What a nonlinearity follows, or a gate, is no map: there zeros are a layer that nobody drew.

    >>> from fanin.reading import reading
    >>> layer = nn.Linear(8, 6)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> layer.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
    >>> both = [Role(name, (6,), True, name, call=0) for name in ("weight", "bias")]
    >>> _maps(layer, both, reading(layer, torch.randn(4, 8)))["weight"]
    'zero by design: for every input it gives the pattern of bias'
    """
    weights = {role.call: role for role in roles if role.kind == "weight" and role.trainable}
    bends = {c.index for c in architecture.trace.calls if c.op in BENDING}
    layers = {c.index for c in architecture.trace.calls if "i" in c.layout}
    found = {}
    for role in roles:
        weight = weights.get(role.call)
        if role.kind != "bias" or not role.trainable or weight is None:
            continue
        values, matrix = (model.get_parameter(r.parameter).detach() for r in (role, weight))
        if values.is_meta or matrix.is_meta or matrix.count_nonzero() or not _patterned(values):
            continue
        if architecture.first_met({role.call}, bends | layers, onward=True) & bends:
            continue
        told = f"zero by design: for every input it gives the pattern of {role.parameter}"
        found[weight.parameter] = told
        found[role.parameter] = "a pattern of its author's over weights that are zero"
    return found


def _factors(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """What is added in front of a product and holds zeros and ones → why; empty on meta.

    It says what passes at the start: hyper-connections mix their streams by an identity (Zhu 2024),
    a layer that makes scales and shifts of a condition has ones in one half of its bias (Perez
    2018, FiLM).

    >>> from fanin.reading import reading
    >>> class Scaled(nn.Linear):
    ...     def forward(self, x):
    ...         return x * super().forward(x)
    >>> layer = Scaled(8, 8)
    >>> _ = nn.init.ones_(layer.bias)
    >>> read = reading(layer, torch.randn(4, 8))
    >>> _factors(layer, [Role("bias", (8,), True, "bias", call=0)], read)
    {'bias': 'ones of its author: they scale another signal'}
    """
    calls = architecture.trace.calls
    products = {c.index for c in calls if c.op in BILINEAR and len(set(c.sources)) > 1}
    others = {c.index for c in calls if c.op in BENDING or "i" in c.layout} - products
    own = dict(model.named_parameters())
    found = {}
    for role in roles:
        values = own.get(role.parameter)
        if role.kind not in ("bias", "token") or not role.trainable or values is None:
            continue
        if values.is_meta or not bool((values == 1).any()):
            continue
        if not bool(((values == 0) | (values == 1)).all()):
            continue
        if architecture.first_met({role.call}, products | others, onward=True) & products:
            told = "ones" if bool((values == 1).all()) else "zeros and ones"
            found[role.parameter] = f"{told} of its author: they scale another signal"
    return found


def _rates(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """Offsets that say how long each channel remembers → why; empty on the meta device.

    They are added in front of a sigmoid or an exponential that a state is multiplied with, or are
    the second block of a bias of an LSTM (the forget gate's) or a GRU (the update gate's).  Weights
    in front of them that are all zero stay as well.

    >>> from fanin.reading import reading
    >>> class Decay(nn.Linear):
    ...     def forward(self, x):
    ...         return x * super().forward(x).sigmoid()
    >>> layer = Decay(8, 8)
    >>> layer.bias.data = torch.linspace(3, 6, 8)
    >>> read = reading(layer, torch.randn(4, 8))
    >>> _rates(layer, [Role("bias", (8,), True, "bias", call=0)], read)
    {'bias': 'its author spread it from 3 to 6: how long each channel remembers'}
    """
    own = dict(model.named_parameters())
    spread: dict[int | None, str] = {}
    for role in roles:
        offsets = own.get(role.parameter)
        if role.kind not in _BIASES or not role.trainable or offsets is None or offsets.is_meta:
            continue
        gates = 4 if role.op.startswith("lstm") else 3 if role.op.startswith("gru") else 1
        values = offsets.detach().chunk(gates)[min(1, gates - 1)]
        if values.numel() == 0 or values.is_complex():
            continue
        low, high = (float(v) for v in values.aminmax())
        size = float(values.abs().mean())
        if low == high or low * high < 0 or not SPREAD[0] <= size <= SPREAD[1]:
            continue
        if gates > 1 or _is_rate(role, architecture):
            spread[role.call] = f"its author spread it from {low:.3g} to {high:.3g}"
    found = {}
    for role in roles:
        if role.call not in spread:
            continue
        if role.kind in _BIASES:
            found[role.parameter] = f"{spread[role.call]}: how long each channel remembers"
        elif role.kind == "weight" and not own[role.parameter].count_nonzero():
            found[role.parameter] = "zero by design: every input is forgotten at the same rate"
    return found


def _is_rate(role: Role, architecture: Architecture) -> bool:
    """Whether what a bias is added to goes through a sigmoid or an exponential into a product."""
    calls = architecture.trace.calls
    rates = {c.index for c in calls if c.op in _RATES}
    ends = {c.index for c in calls if c.op in BILINEAR and len(set(c.sources)) > 1}
    layers = {c.index for c in calls if "i" in c.layout}
    others = {c.index for c in calls if c.op in BENDING} | ends | layers
    first = architecture.first_met({role.call}, rates | others, onward=True)
    if not first or not first <= rates:
        return False
    return bool(architecture.first_met(first, ends | layers, onward=True) & ends)


def _joining(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """Layers that are all zero and only change another signal → why; empty on the meta device.

    That signal comes from the batch around them, and as a factor is not zero; what they read is
    made by layers that are not.  Twelve couplings of a Glow end at 0.046 for 0.066 so at the best
    of three rates, at 0.17 and 0.42 for 0.35 and 0.68 (two seeds) at the lowest.

    >>> from fanin.reading import reading
    >>> class Coupled(nn.Linear):
    ...     def forward(self, x):
    ...         return x[:, :4] + super().forward(x[:, 4:])
    >>> layer = Coupled(4, 4)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> read = reading(layer, torch.ones(2, 8))
    >>> _joining(layer, [Role("weight", (4, 4), True, "weight", call=2)], read)
    {'weight': 'zero by design: the signal that its output is joined with passes as it is'}
    """
    own = dict(model.named_parameters())
    drawn = {n: p for n, p in own.items() if p.is_floating_point() and not p.is_meta}
    empty = {n for n, p in drawn.items() if p.dim() > 1 and not p.any()}
    # A gate of its own starts at zero: two zeros would hold each other (Fixup, with its scales).
    gated = {r.branch for r in roles if r.kind == "branch_scale"}
    found = {}
    for role in roles:
        free = role.branch is None or (role.branch.norm == "none" and role.branch not in gated)
        apart = free and not (role.head or role.modulates or role.low_rank)
        if role.kind != "weight" or not role.trainable or role.parameter not in empty or not apart:
            continue
        if _only_joins(role.call, architecture, empty):
            told = "zero by design: the signal that its output is joined with passes as it is"
            found[role.parameter] = told
    return found


def _only_joins(index: int, architecture: Architecture, empty: set[str]) -> bool:
    """Whether what a layer makes meets a signal from around it, in sums and products, first of all.

    Neither a factor of it nor what the layer reads is made by a layer that is in `empty`.
    """
    calls = architecture.trace.calls
    around: set[int] = set()
    for call in calls:
        if call.index != index and (call.entry or not around.isdisjoint(call.behind)):
            around.add(call.index)
    layers = {c.index for c in calls if c.layout}
    bends = {c.index for c in calls if c.op in BENDING - _SCALING}
    met = (c for c in calls if c.op in SUMS | PRODUCTS and not around.isdisjoint(c.behind))
    joins = {c.index: c for c in met}
    first = architecture.first_met({index}, layers | bends | joins.keys(), onward=True)
    if not first or not first <= joins.keys():
        return False
    factors = {i for c in first if joins[c].op in PRODUCTS for i in joins[c].behind if i in around}
    before = architecture.first_met({*factors, index}, layers, onward=False) - {index}
    return not any(empty.intersection(calls[i].parameters[:1]) for i in before)


def _rotations(
    model: nn.Module, roles: Sequence[Role], architecture: Architecture
) -> dict[str, str]:
    """Rotations that a layer uses, and the model something computed of → why; empty on meta.

    As of the invertible layers of a Glow, whose log-determinant is a term of the likelihood: beside
    couplings that start as the identity it ends at 0.15 and 0.12 for 0.17 and 0.42 (two seeds).
    """
    own = dict(model.named_parameters())
    calls = architecture.trace.calls
    computed = {n for c in calls for o in c.operands if o.offset is None for n in o.parameters}
    found = {}
    for role in roles:
        layer = role.kind == "weight" and role.trainable and role.parameter in computed
        if layer and role.uses and _is_rotation(own[role.parameter].detach()):
            told = "a rotation of its author's, of which more is computed, as of its determinant"
            found[role.parameter] = told
    return found


def _is_rotation(values: Tensor) -> bool:
    """Whether a matrix is square and its rows are orthonormal."""
    if values.is_meta or not values.is_floating_point() or values.dim() < 2:
        return False
    matrix = values.flatten(1)
    if len(matrix) != matrix.shape[1]:
        return False
    unit = torch.eye(len(matrix), dtype=torch.double, device=matrix.device)
    return torch.allclose(matrix.double() @ matrix.double().mT, unit, atol=_ROUNDED)


def _points(model: nn.Module, roles: Sequence[Role], architecture: Architecture) -> dict[str, str]:
    """Tables of points in a hyperbolic space → why they stay; empty on the meta device.

    Poincaré embeddings (Nickel 2017) start next to the origin and have to stay inside of a ball;
    where distances are clamped, points outside of it give numbers, and no gradient.
    """
    layers = {c.index for c in architecture.trace.calls if "i" in c.layout}
    curved = {c.index for c in architecture.trace.calls if c.op in _HYPERBOLIC}
    own = dict(model.named_parameters())
    found = {}
    for role in roles:
        values = own.get(role.parameter)
        if not curved or role.kind != "table" or values is None or values.is_meta:
            continue
        if architecture.first_met({role.call}, layers | curved, onward=True) & curved:
            found[role.parameter] = "points of a hyperbolic space, whose place its author chose"
    return found


def _patterned(values: Tensor) -> bool:
    """Whether there are several numbers, many of them more than once."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not 0 < largest < torch.inf:
        return False
    distinct = len(torch.unique((values.double() / largest / _SAME).round()))
    return 1 < distinct <= _DISTINCT * values.numel()
