"""Parameters that no virtual step moved, each with what holds it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fanin.architecture import Architecture
from fanin.calls import Call
from fanin.kinds import ACTIVATIONS
from fanin.passes import Pass
from fanin.symmetry.result import (
    DEAD_UNITS,
    FROZEN_ZERO,
    NO_SLOPE,
    SATURATED,
    STILL,
    TWO_ZEROS,
    UNSEEN,
    Cause,
    Deadlock,
)
from fanin.symmetry.steps import VirtualRun

__all__ = ["deadlocks", "has_no_slope"]

# A cotangent below the least float32 is zero there: the far tail of GELU has one in float64.
LEAST = 1e-45
_NAMED = 8  # of what holds one parameter
# Functions without slope; and those that have none over a single value.
_FLAT = frozenset({"sign", "sgn", "round", "floor", "ceil", "trunc", "fix", "heaviside"})
_RELATIVE = frozenset({"softmax", "log_softmax", "normalize", "layer_norm", "rms_norm"})
_PRODUCTS = frozenset(
    {"mul", "matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
)


def deadlocks(run: VirtualRun, stuck: list[str]) -> tuple[Deadlock, ...]:
    """Parameters of `stuck` that no virtual step moved, each with what holds it."""
    held = [n for n in stuck if n not in run.moved]
    if not held:
        return ()
    holders = _Holders(run, held)
    found = {name: holders.of(name) for name in held}
    if run.moved and _weights(run) <= {*held}:
        found = {n: d or Deadlock(n, holders.layer(n), STILL) for n, d in found.items()}
    return tuple(d for d in found.values() if d is not None)


def _weights(run: VirtualRun) -> set[str]:
    """The trainable matrices of a model; all of its parameters where it has none."""
    trained = [p for p in run.passes[0].architecture.parameters if p.trainable]
    matrices = {p.name for p in trained if sum(n > 1 for n in p.shape) > 1}
    return matrices or {p.name for p in trained}


class _Holders:
    """What can hold a parameter: zeros that stay zero, and layers that are dead in every pass."""

    def __init__(self, run: VirtualRun, held: list[str]) -> None:
        self._run = run
        self._read = read = run.passes[0].architecture
        dead = {i for i, c in run.passes[0].cells.items() if c.dead == 1.0}
        self._dead = {i for i in dead if all(_dead_at(p, i) for p in run.passes)}
        self._users: dict[str, set[int]] = {}  # parameter → the calls that use it
        for call in read.trace.calls:
            for used in call.parameters:
                self._users.setdefault(used, set()).add(call.index)
        self._held_zeros = [n for n in held if n in run.zero]
        still = [*self._held_zeros, *sorted(run.frozen & run.zero)]
        # each zero → the calls that multiply with it, which pass neither signal nor cotangent
        self._zeros = {n: at for n in still if (at := read.factors.get(n))}
        self._stops = self._dead.union(*self._zeros.values())

    def layer(self, name: str) -> str:
        """The first layer that uses a parameter, else the module that holds it."""
        users = (layer.name for layer in self._read.layers if name in layer.parameters)
        return next(users, name.rpartition(".")[0] or name)

    def of(self, name: str) -> Deadlock | None:
        """What holds one parameter; None where it may get no gradient for another reason."""
        layer = self.layer(name)
        if not any(name in y.parameters for y in self._read.layers):
            return self._unseen(name, layer)
        own = self._users[name]
        beside = _beside(self._read, name, own, self._held_zeros) if name in self._run.zero else ()
        if beside:
            return Deadlock(name, layer, TWO_ZEROS, beside)
        # Where no cotangent comes back to it, what holds it lies towards the loss; else its input
        # is zero, and that lies towards the batch.
        silent = self._is_silent(own)
        factors, dead = self._met(name, own, silent)
        if not factors and not dead and not self._is_measured(own):
            factors, dead = self._met(name, own, not silent)
        if factors or dead:
            cause = self._cause(name, factors)
            return Deadlock(name, layer, cause, tuple(dict.fromkeys([*factors, *dead]))[:_NAMED])
        flat = self._without_slope(own) if silent else []
        if flat:
            full = all(c.op in ACTIVATIONS and not has_no_slope(c) for c in flat)
            named = dict.fromkeys(f"{c.op} in {c.module}" if c.module else c.op for c in flat)
            return Deadlock(name, layer, SATURATED if full else NO_SLOPE, tuple(named))
        if self._holds_itself(name):
            return Deadlock(name, layer, TWO_ZEROS, (name,))
        followed = not self._leading.isdisjoint(own)
        return None if followed and self._is_measured(own) else self._unseen(name, layer)

    @cached_property
    def _leading(self) -> set[int]:
        """The calls that lead to the loss."""
        return self._read.ancestors(self._read.goal)

    def _unseen(self, name: str, layer: str) -> Deadlock | None:
        """A gradient of exactly zero where something was not watched; None where it moves."""
        moved = any(p.gradients.get(name) for p in self._run.passes)
        return None if moved else Deadlock(name, layer, UNSEEN)

    def _is_measured(self, own: set[int]) -> bool:
        return any(i in p.cells for p in self._run.passes for i in own)

    def _holds_itself(self, name: str) -> bool:
        """Whether a zero is used twice, one after the other, as in a tied autoencoder."""
        at = self._zeros.get(name, set())
        after = (c.index for i in at for c in self._read.followers[i])
        return len(at) > 1 and not at.isdisjoint(self._read.descendants(after))

    def _is_silent(self, own: set[int]) -> bool:
        """Whether no cotangent ever came back to these calls."""
        cells = (p.cells[i] for p in self._run.passes for i in own if i in p.cells)
        return not any((c.cotangent_squares or 0.0) > LEAST**2 for c in cells)

    def _met(self, name: str, own: set[int], silent: bool) -> tuple[list[str], list[str]]:
        """Zeros, and dead layers, that are the first on the way from a parameter's calls."""
        read, frozen = self._read, self._run.frozen
        reach = read.first_met(own, self._stops, onward=silent)
        others = {n: at for n, at in self._zeros.items() if n != name}
        partners = self._partners(own) if silent else set()
        factors = [n for n, at in others.items() if (at & reach) - own or n in partners]
        if read.open_way(own, self._stops, onward=silent):  # a zero gradient of another cause
            factors = [n for n in factors if n not in frozen or n in partners]
        met = reach | own if silent else reach
        return factors, [y.name for y in read.layers if set(y.calls) & self._dead & met]

    def _partners(self, own: set[int]) -> set[str]:
        """Zeros beside a parameter that meet it in a product first, as keys meet queries."""
        found: set[str] = set()
        met = 0
        for index in sorted(self._read.descendants(own)) if self._zeros else ():
            new = self._arriving[index] & ~met
            if new and index not in own and self._read.trace.calls[index].op in _PRODUCTS:
                names = (n for bit, n in enumerate(self._zeros) if new >> bit & 1)
                found |= {n for n in names if index not in self._zeros[n]}
            met |= new
        return found

    @cached_property
    def _arriving(self) -> list[int]:
        """For each call the zeros that are in what it is given, or its own: bits, in their order.

        In a model of zeros they are a thousand, at thousands of calls.
        """
        bits = [0] * len(self._read.trace.calls)
        for bit, at in enumerate(self._zeros.values()):
            for index in at:
                bits[index] |= 1 << bit
        for call in self._read.trace.calls:
            for before in call.behind:
                bits[call.index] |= bits[before]
        return bits

    def _cause(self, name: str, factors: list[str]) -> Cause:
        if factors and self._run.frozen.issuperset(factors):
            return FROZEN_ZERO
        return TWO_ZEROS if factors or name in self._run.zero else DEAD_UNITS

    def _without_slope(self, start: set[int]) -> list[Call]:
        """Functions that get a gradient, and hand none of it back to what `start` makes.

        Where anything moves, only those that are known to have none: a loss may be weighted with
        zero on purpose.
        """
        heard = frozenset[int]().union(*(p.heard for p in self._run.passes))
        met, seen, queue = [], set(start), list(start)
        while queue:
            for call in self._read.followers[queue.pop()]:
                if call.index in heard:
                    met.append(call)
                elif call.index not in seen:
                    seen.add(call.index)
                    queue.append(call.index)
        return [c for c in met if has_no_slope(c) or not self._run.moved]


def _dead_at(seen: Pass, index: int) -> bool:
    return index in seen.cells and seen.cells[index].dead == 1.0


def has_no_slope(call: Call) -> bool:
    """Whether a call hands no gradient on: exactly, or but for rounding."""
    return call.op in _FLAT or (call.op in _RELATIVE and 1 in call.shape[1:])


def _beside(read: Architecture, name: str, own: set[int], zeros: Sequence[str]) -> tuple[str, ...]:
    """Zeros that one weight is computed from together with a parameter: the factors of a LoRA."""
    operands = (o for i in own for o in read.trace.calls[i].operands if name in o.parameters)
    found = {n for o in operands for n in o.parameters}
    return tuple(n for n in zeros if n in found and n != name)
