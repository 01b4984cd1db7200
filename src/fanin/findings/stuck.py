"""P206 of parts: queries that all pick one key, gates of an LSTM or a GRU that are far out, gates
among the units of a layer that are shut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from fanin.architecture import Layer
from fanin.attention import Attention, attentions, way_back
from fanin.calls import Call
from fanin.findings.evidence import Evidence
from fanin.findings.reach import TAME, gain
from fanin.findings.rules import Finding, finding
from fanin.findings.signals import saturated
from fanin.focus import PICKED, Focus
from fanin.gates import Stuck
from fanin.kinds import PRODUCTS, QUOTIENTS, RECURRENT
from fanin.wording import listed

__all__ = ["RULES"]

# Share of the queries that have picked a key, of one attention.  Healthy zoo and traps: 0.  Eight
# small transformers whose queries and keys were enlarged, loss after 150 steps of Adam: up to 0.61
# two language models with norms in front (GPT, Llama) end 2 and 5 % above a usual start, from 0.76
# on 4 to 50 %; BERT ends 13 % above it at 0.5, and 14 % from 0.8 on, T5 50 %, and at 0.9 and more
# Conformer, Informer and FT-Transformer 45 % to many times.  (A wav2vec 2.0 whose convolutions
# solve the task does without.)
SHARP = 0.75
FEW_QUERIES = 16  # fewer say nothing
# Size of the products of queries and keys from where they pick, and not what is added to scores
# (distances, a mask of its own): of normal scores of std 3, 3 in 100 rows of 8 keys have picked,
# and 2 in 1000 of 64.
OF_PRODUCTS = 3.0
# Share of units and steps at which a gate is far out.  An LSTM with forget gates at 20 ends 33 and
# 40 % above its usual loss, a GRU with update gates at 20 43 %, with new gates 79 %.  Healthy zoo
# and traps: below 0.02.
STUCK = 0.95


def picking(evidence: Evidence) -> Iterator[Finding]:
    """P206 of layers that make queries and keys, where nearly every query has picked a key."""
    read = evidence.seen.architecture
    found: dict[tuple[str, ...], list[Focus]] = {}
    gains = {y.name: gain(evidence, y) for y in read.layers}
    for attention in attentions(read):
        seen = evidence.seen.focus.get(attention.call.index)
        if seen is None or attention.call.index >= read.trace.length:
            continue
        names = _makers(evidence, attention, seen.scale)
        if names:
            found.setdefault(names, []).append(seen)
    told: dict[tuple[str, ...], tuple[float, int]] = {}
    for names, some in found.items():
        queries = sum(f.queries for f in some)
        share = sum(f.picked * f.queries for f in some) / queries
        if share > SHARP and queries >= FEW_QUERIES:
            told[names] = share, queries
    for by_weights in (True, False):
        these = {n: told[n] for n in told if (max(gains[y] for y in n) >= TAME) is by_weights}
        if these:
            yield _of_attention(these, by_weights)


def _of_attention(told: dict[tuple[str, ...], tuple[float, int]], by_weights: bool) -> Finding:
    shown = (f"{', '.join(n)}: {s:.0%} of {q} queries" for n, (s, q) in told.items())
    return finding(
        "P206",
        "warning",
        [name for names in told for name in names],
        measured=listed(shown, 4, apart="; "),
        expected=f"below {SHARP:.0%} that give one key more than {PICKED:.0%} of their weight",
        message="Nearly every query of an attention puts all its weight on one key."
        if by_weights
        else "What an attention is given is so large that nearly every query puts all its weight "
        "on one key.",
        why="A softmax that has picked is flat: next to no gradient reaches the layers that "
        "make queries and keys, and attention goes on looking where it was drawn to look.",
        fix="Draw the weights of queries and keys smaller (nn.init.xavier_uniform_(w)), divide "
        "their products by √(head size), or normalize queries and keys."
        if by_weights
        else "Bring what these layers read to unit size: smaller embeddings (no factor √d in front "
        "of rows of std 1), normalized inputs, or a norm in front of the attention.",
    )


def _makers(evidence: Evidence, attention: Attention, scale: float) -> tuple[str, ...]:
    """The layers that make queries and keys.

    None where scores are enlarged on purpose, or sharp by what is added to them, where these layers
    are frozen, and where one signal is compared with itself, as channels are that have no layers of
    their own for it.
    """
    read, made = evidence.seen.architecture, dict(attention.parts)
    ways = [way_back(read, made[letter]) for letter in "qk" if letter in made]
    if len(ways) < 2 or not all(ways):
        return ()
    learned = any(c.op == "scale" and c.operands for c in attention.between)
    scale = _enlarged((*attention.between, *ways[0], *ways[1]), scale)
    if learned or scale > 1 or _products(evidence, ways) * scale < OF_PRODUCTS:
        return ()
    query, source = ways[0][0], ways[0][-1]
    packed = math.prod(query.shape) < math.prod(source.shape)  # the query is a part
    if source is ways[1][-1] and not packed:
        return ()
    layers = (read.layer_of.get(way[-1].index) for way in ways)
    return tuple(dict.fromkeys(y.name for y in layers if y is not None and y.trainable))


def _products(evidence: Evidence, ways: Sequence[Sequence[Call]]) -> float:
    """Size of the products of queries and keys, taken to be independent."""
    read, cells = evidence.seen.architecture, evidence.seen.cells
    sizes = []
    for way in ways:
        cell = cells.get(way[-1].index)
        normed = any(read.normalizes(call) for call in way)
        sizes.append(1.0 if normed else math.inf if cell is None else cell.rms)
    return math.prod(sizes) * math.sqrt(ways[0][0].shape[-1])


def _enlarged(calls: Iterable[Call], scale: float) -> float:
    """The product of the numbers that scores, queries and keys are multiplied with."""
    for call in calls:
        if call.option:
            scale *= abs(call.option) if call.op in PRODUCTS else 1.0
            scale /= abs(call.option) if call.op in QUOTIENTS else 1.0
    return scale


def gates(evidence: Evidence) -> Iterator[Finding]:
    """P206 of a gate that is far out on nearly all units and steps, where the others are not."""
    told = {name for f in saturated(evidence) for name in f.layers}
    found: dict[tuple[str, bool], list[tuple[str, tuple[str, ...], Stuck]]] = {}
    for layer in evidence.seen.architecture.layers:
        if layer.op not in RECURRENT or layer.name in told or not layer.trainable:
            continue
        for stuck in _stuck(evidence, layer):
            biases = tuple(_biases(evidence, layer, stuck))
            if biases and evidence.frozen.issuperset(biases):
                continue
            found.setdefault((stuck.gate, bool(biases)), []).append((layer.name, biases, stuck))
    for (gate, by_biases), some in found.items():
        yield _of_gate(gate, by_biases, some)


def _stuck(evidence: Evidence, layer: Layer) -> Iterator[Stuck]:
    """Gates of a layer that are far out at every one of its calls."""
    calls = [c.gates.stuck for c in evidence.seen.cells_of(layer) if c.gates is not None]
    for same in zip(*calls, strict=False):
        least = min(same, key=lambda stuck: stuck.share)
        if least.share >= STUCK:
            yield least


def _biases(evidence: Evidence, layer: Layer, stuck: Stuck) -> Iterator[str]:
    for operand in evidence.seen.architecture.trace.calls[layer.calls[0]].operands:
        if operand.role in stuck.biases:
            yield from operand.parameters


def _of_gate(gate: str, by_biases: bool, some: list[tuple[str, tuple[str, ...], Stuck]]) -> Finding:
    shown = (
        f"{', '.join(_part(b, s) for b in biases) or name}: {s.share:.0%} beyond ±{s.bound:g} "
        f"(mean {s.inputs:.3g})"
        for name, biases, s in some
    )
    near = "one (or from 1 to 9 where it shall remember long)" if gate == "forget gate" else "zero"
    return finding(
        "P206",
        "warning",
        [*(n for n, _, _ in some), *(b for _, biases, _ in some for b in biases)],
        measured=listed(shown, 4, apart="; "),
        expected=f"below {STUCK:.0%} of its units and steps",
        message=f"{'Biases' if by_biases else 'Weights or inputs'} are so large that the {gate} "
        "is stuck: it hardly moves with what it is given.",
        why="Its slope is 1e-7 there: neither inputs nor states reach it, and its weights hardly "
        "move.",
        fix=f"Set its part of the biases near {near}."
        if by_biases
        else "Draw smaller weights: nn.init.xavier_normal_(w), with a gain of 1, biases near zero.",
    )


def _part(bias: str, stuck: Stuck) -> str:
    return f"{bias}[{stuck.rows[0]}:{stuck.rows[1]}]"


def shut(evidence: Evidence) -> Iterator[Finding]:
    """P206 of gates that are some units of a layer, others of which pass another nonlinearity.

    Three residual blocks x + W(tanh(a) σ(b)) whose b has a bias of -30 end at 0.98 for 1e-6 (Adam)
    and 9e-4 (SGD), and so do they without the blocks.
    """
    told = {name for f in saturated(evidence) for name in f.layers}
    layers = evidence.seen.architecture.layers
    cells = {y.name: evidence.seen.cells_of(y) for y in layers if y.trainable}
    found = [n for n, own in cells.items() if own and n not in told and all(c.shut for c in own)]
    if found:
        yield finding(
            "P206",
            "warning",
            found,
            measured=f"sigmoids of a part of the units of {listed(found, 4)}: all below 1e-7",
            expected="gates that are open by a few per cent at least",
            message="Units that are gates are shut for every sample of the batch.",
            why="What they are multiplied with comes to nothing, and next to no gradient reaches "
            "either side.",
            fix="Set their part of the biases near zero (or from 1 to 4 below it where a gate "
            "shall start nearly shut).",
        )


RULES = (picking, gates, shut)
