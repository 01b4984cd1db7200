"""The gates of LSTM and GRU: how many are flat, and which of them is stuck altogether."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fanin.operations import Weighted
from fanin.slopes import SIGMOID_WEAK

__all__ = ["Gates", "Stuck", "gates_of"]

_ROWS = 64  # time steps looked at
# What the parts of a stacked matrix are, in torch's order; the others have one part.
_NAMES = {
    "lstm": ("input gate", "forget gate", "cell gate", "output gate"),
    "gru": ("reset gate", "update gate", "new gate"),
}
_TANH = frozenset({"cell gate", "new gate"})
# Beyond these the slope of sigmoid and tanh is 1e-7 and 4e-7, next to nothing in float32 beside a
# one.  Starts that remember long have less: chrono initialization for T steps biases up to log T,
# which is 7 for a thousand and 14 for a million.
_FAR_SIGMOID, _FAR_TANH = 16.0, 8.0


@dataclass(frozen=True)
class Stuck:
    """One gate of a recurrent layer that is far out on most units and steps.

    Attributes:
        gate: its name.
        bound: beyond ± this it is far out.
        rows: where its part of a stacked weight or bias begins and ends.
        share: of units and steps where it is far out.
        inputs: mean of what its function is given.
        biases: roles of the parameters that alone would bring it there; empty where weights do.
    """

    gate: str
    bound: float
    rows: tuple[int, int]
    share: float
    inputs: float
    biases: tuple[str, ...]


@dataclass(frozen=True)
class Gates:
    """What was seen of the gates of one recurrent call, on some steps.

    Attributes:
        flat: share in the flat part of the sigmoid, over all gates.
        stuck: of each gate, how far out it is.
    """

    flat: float
    stuck: tuple[Stuck, ...] = ()


def gates_of(weighted: Weighted, state: Tensor) -> Gates | None:
    """Those of a call; None where inputs and states do not fit together.

    `state` is what came before; for a whole sequence what came after stands in for it.
    """
    named = {role: tensor.detach() for role, tensor in weighted.weights}
    x, kind = weighted.inputs[0].detach(), weighted.op.removesuffix("_cell")
    x, h = x.reshape(-1, x.shape[-1])[:_ROWS], state.reshape(-1, state.shape[-1])[:_ROWS]
    width = named["recurrent"].shape[1]
    if width > h.shape[1] or len(x) != len(h):
        return None
    given, kept = _inputs(named, "", x, h[:, :width])
    flat = float(((given + kept).abs() > SIGMOID_WEAK).float().mean())
    stuck = list(_stuck(kind, "", given, kept, named)) if kind in _NAMES else []
    if stuck and "recurrent_reverse" in named:
        both = _inputs(named, "_reverse", x, h[:, width:])
        stuck += _stuck(kind, "_reverse", *both, named)
    return Gates(flat, tuple(stuck))


def _inputs(named: Mapping[str, Tensor], way: str, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """What the gates are given by the inputs, and by the states."""
    given, kept = x @ named[f"weight{way}"].T, h @ named[f"recurrent{way}"].T
    given = given + named[f"bias{way}"] if f"bias{way}" in named else given
    kept = kept + named[f"recurrent_bias{way}"] if f"recurrent_bias{way}" in named else kept
    return given, kept


def _stuck(
    kind: str, way: str, given: Tensor, kept: Tensor, named: Mapping[str, Tensor]
) -> Iterator[Stuck]:
    gates = _NAMES[kind]
    parts = list(zip(given.chunk(len(gates), -1), kept.chunk(len(gates), -1), strict=True))
    for i, (gate, (a, b)) in enumerate(zip(gates, parts, strict=True)):
        # What a new gate hears of the state, the reset gate lets in.
        z = a + b * (parts[0][0] + parts[0][1]).sigmoid() if gate == "new gate" else a + b
        far, size = _FAR_TANH if gate in _TANH else _FAR_SIGMOID, z.shape[-1]
        rows = (i * size, (i + 1) * size)
        biases = tuple(_by_biases(named, way, rows, far))
        share = float((z.abs() > far).float().mean())
        yield Stuck(gate, far, rows, share, float(z.mean()), biases)


def _by_biases(
    named: Mapping[str, Tensor], way: str, rows: tuple[int, int], far: float
) -> Iterator[str]:
    """Biases that bring most units of a gate far out, together or alone."""
    roles = (f"bias{way}", f"recurrent_bias{way}")
    parts = {r: named[r][slice(*rows)] for r in roles if r in named}
    if parts and float(torch.stack([*parts.values()]).sum(0).abs().median()) > far:
        sizes = {r: float(p.abs().median()) for r, p in parts.items()}
        yield from (r for r, size in sizes.items() if size > max(sizes.values()) / 4)
