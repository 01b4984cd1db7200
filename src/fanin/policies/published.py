"""Published recipes for whole models, one function each: role → choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fanin.catalogue.models import (
    deepnorm_beta,
    fixup_factor,
    olmo_std,
    spectral_factor,
    t_fixup_factor,
)
from fanin.policies.choice import Blueprint, Choice, Leave, Skip, counted, words
from fanin.policies.signal import keeps_scale
from fanin.roles import Role

__all__ = ["PUBLISHED", "Policy"]

Arguments = Mapping[str, Any]
Answer = Choice | Leave | Skip
Policy = Callable[[Role, Blueprint, Arguments], Answer]

_WEIGHTS = ("weight", "projection", "recurrent")


def _layers(role: Role, arguments: Arguments, name: str = "layers", adders: int = 2) -> int:
    """Blocks of the model: given, or counted on the stream that the layer stands in."""
    if arguments.get(name) is not None:
        return int(arguments[name])
    return max(1, round(role.branch.of / adders)) if role.branch is not None else 1


def residual_scaling(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """GPT-2: one small std, divided by √(2·layers) where a branch meets the stream."""
    base = float(arguments["base"])
    if role.kind in ("table", "token"):
        return Choice("normal", f"GPT-2: std {base:g} for embeddings and positions", gain=base)
    if role.kind not in _WEIGHTS:
        return Skip()
    if role.last and role.branch is not None:
        adders = 2 * _layers(role, arguments) if arguments["layers"] else role.branch.of
        which = "the only" if adders == 1 else f"one of {adders}"
        branches = "branch" if adders == 1 else "branches"
        because = f"GPT-2: the last layer of {which} residual {branches}: {base:g}/√{adders}"
        because = because.removesuffix("/√1")
        return Choice("normal", because, gain=base / math.sqrt(adders))
    return Choice("normal", f"GPT-2: std {base:g} for every weight", gain=base)


def small_init(role: Role, drawn: Blueprint, _: Arguments) -> Answer:
    """Transformers without tears: √(2/(5d))."""
    if role.kind not in (*_WEIGHTS, "table"):
        return Skip()
    because = f"small init: √(2/(5d)) with the model's width d = {drawn.width}"
    return Choice("normal", because, gain=math.sqrt(2 / (5 * drawn.width)))


def depthwise_trunc_normal(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """OLMo: the last layer of a branch the smaller the deeper it stands."""
    if role.kind == "table":
        because = f"1/√d with the model's width d = {drawn.width}"
        cut = {"low": -3.0, "high": 3.0}
        return Choice("trunc_normal", because, gain=drawn.width**-0.5, arguments=cut)
    if role.kind not in _WEIGHTS:
        return Skip()
    cut = {"low": -3.0, "high": 3.0}
    if role.last and role.branch is not None:
        given = arguments["layer"]
        block = role.branch.number // 2 if given is None else int(given)
        because = f"last layer of a branch of block {block}: 1/√(2·fan_in·{block + 1})"
        return Choice("lecun_trunc_normal", because, olmo_std(block), arguments=cut)
    return Choice("lecun_trunc_normal", "1/√fan_in, cut at ±3σ", arguments=cut)


def fixup(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """Fixup: branches scaled by their number, their last layer and the output layer zero."""
    if role.kind not in _WEIGHTS:
        return Skip()
    if role.head:
        return Choice("zeros", "Fixup: the output layer starts at zero")
    if role.branch is None:
        return keeps_scale(role)
    if role.last:
        return Choice("zeros", "Fixup: the last layer of a residual branch starts at zero")
    depth = max(2, int(arguments["layers"] or role.branch.depth))
    count = int(arguments["branches"] or role.branch.of)
    factor = fixup_factor(count, depth)
    base = keeps_scale(role)
    because = f"Fixup: × {count}^(−1/{2 * depth - 2}) = {words(factor)}; {base.because}"
    return replace(base, gain=base.gain * factor, because=because)


def skipinit(role: Role, drawn: Blueprint, _: Arguments) -> Answer:
    """SkipInit and ReZero: the scale at the end of each branch zero, or its last layer."""
    if role.kind == "branch_scale":
        return Choice("zeros", "the scale at the end of a branch: every block is the identity")
    if role.kind not in _WEIGHTS:
        return Skip()
    if role.last and not role.gated_branch:
        return Choice("zeros", "the branch has no scale at its end: its last layer is zero instead")
    return keeps_scale(role)


def deepnorm(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """DeepNorm: v, o and feed-forward layers × β."""
    if role.kind not in _WEIGHTS:
        return Skip()
    part = arguments["part"]
    layers = _layers(role, arguments, adders=3 if part == "decoder" else 2)
    beta = deepnorm_beta(layers, part, int(arguments["decoder_layers"] or layers))
    if role.branch is None or role.attention in ("q", "k", "qk"):
        return Choice("xavier_normal", "DeepNorm: q, k and what is in no branch keep gain 1")
    if len(role.attention) > 1:
        return Choice("xavier_normal", "DeepNorm: q, k and v are one parameter, so v keeps gain 1")
    because = f"DeepNorm: β = {words(beta)} for {counted(layers, 'layer')}"
    return Choice("xavier_normal", because, gain=beta)


def t_fixup(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """T-Fixup: v, o, feed-forward layers and embeddings × 0.67·N^(−¼) or (9M)^(−¼)."""
    part = arguments["part"]
    layers = arguments["layers"] or max(1, round(drawn.blocks / (3 if part == "decoder" else 2)))
    factor = t_fixup_factor(layers, part)
    because = f"T-Fixup: × {words(factor)} for {counted(layers, 'layer')}"
    if role.kind == "table":
        return Choice("normal", because, gain=factor * (role.features or 1) ** -0.5)
    if role.kind not in _WEIGHTS:
        return Skip()
    if role.branch is None or role.attention in ("q", "k", "qk"):
        return Choice("xavier_normal", "T-Fixup: q, k and what is in no branch keep gain 1")
    if len(role.attention) > 1:
        return Choice("xavier_normal", "T-Fixup: q, k and v are one parameter, so v keeps gain 1")
    return Choice("xavier_normal", because, gain=factor)


def mup(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """Maximal update parametrization: 1/√fan_in, and 1/fan_in for the output layer."""
    if role.kind == "table":
        return Choice("normal", "μP: an input weight of one-hot inputs (fan_in 1) has std 1")
    if role.kind not in _WEIGHTS or role.fan_in is None:
        return Skip()
    part = arguments["part"]
    if role.head or part == "output":
        because = f"μP: the output layer has std 1/fan_in = 1/{words(role.fan_in)}"
        return Choice("lecun_normal", because, gain=role.fan_in**-0.5)
    return Choice("lecun_normal", "μP: input and hidden weights have std 1/√fan_in")


def spectral(role: Role, drawn: Blueprint, _: Arguments) -> Answer:
    """The spectral condition: ‖W‖ ≈ √(fan_out/fan_in)."""
    if role.kind not in _WEIGHTS or not role.fan_in or not role.fan_out:
        return Skip()
    factor = spectral_factor(role.fan_in, role.fan_out)
    because = (
        f"spectral condition: largest singular value √({words(role.fan_out)}/{words(role.fan_in)})"
    )
    return Choice("lecun_normal", because, gain=factor)


def recurrent(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """Orthogonal for each gate, the forget gate open."""
    if role.kind == "recurrent":
        return Choice("orthogonal", "orthogonal in each gate: the state keeps its size")
    if role.kind == "bias" and role.op.startswith("lstm"):
        value = {"value": float(arguments["forget_bias"])}
        return Choice("forget_gate_bias", "the forget gate starts open", arguments=value)
    if role.kind in ("weight", "projection") and role.op.startswith(("lstm", "gru", "rnn")):
        return Choice("xavier_normal", "input weights of a recurrent layer, each gate by itself")
    return keeps_scale(role) if role.kind == "weight" else Skip()


def irnn(role: Role, drawn: Blueprint, _: Arguments) -> Answer:
    """The identity for recurrent matrices, small input weights (Le 2015, section 2)."""
    if role.kind == "recurrent":
        if role.blocks > 1:
            return Choice("orthogonal", "gates: the identity is for plain recurrent layers")
        return Choice("irnn", "the state starts by staying what it is")
    if role.kind == "weight" and role.op.startswith("rnn"):
        return Choice("normal", "IRNN: input weights of std 0.001", gain=0.001)
    return keeps_scale(role) if role.kind in _WEIGHTS else Skip()


def lora(role: Role, drawn: Blueprint, _: Arguments) -> Answer:
    """Adapters alone: A random, B zero."""
    if role.low_rank == "A":
        because = "A ~ U(−1/√fan_in, 1/√fan_in), as LoRA is published"
        return Choice("lecun_uniform", because, gain=1 / math.sqrt(3))
    if role.low_rank == "B":
        return Choice("zeros", "B = 0: the adapter starts by changing nothing")
    return Leave("no part of a low-rank adapter")


def siren(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """Sine networks: the first layer ±1/fan_in, the others ±√(6/fan_in)/ω."""
    if role.kind not in _WEIGHTS:
        return Skip()
    first = role.input.kind == "data" or bool(arguments["first"])
    given = {"omega": arguments["omega"], "first": first}
    because = "first layer of a sine network" if first else "layer of a sine network"
    return Choice("siren", because, arguments=given)


def looks_linear(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """Mirrored pairs from the first hidden layer to the output."""
    if role.kind != "weight" or not {"i", "o"} <= set(role.layout):
        return Skip() if role.kind != "weight" else keeps_scale(role)
    first = role.input.kind != "activation" or bool(arguments["first"])
    last = role.activation is None or bool(arguments["last"])
    sizes = dict.fromkeys("oi", 1)
    for length, letter in zip(role.shape, role.layout, strict=True):
        if letter in sizes:
            sizes[letter] *= length
    odd = (not last and sizes["o"] % 2) or (not first and sizes["i"] % 2)
    if odd or (first and last) or role.groups > 1 or role.blocks > 1 or role.expert:
        return keeps_scale(role)
    because = "mirrored pairs: relu(x) − relu(−x) = x, so the network starts linear"
    return Choice("looks_linear", because, arguments={"first": first, "last": last})


def mimetic(role: Role, drawn: Blueprint, arguments: Arguments) -> Answer:
    """q, k, v, o as trained attention has them; the defaults elsewhere."""
    if role.kind != "weight" or not role.attention or role.attention_at is None:
        return keeps_scale(role) if role.kind in _WEIGHTS else Skip()
    same = [r for r in drawn.roles if r.attention_at == role.attention_at and r.kind == "weight"]
    first = {r.attention: r.parameter for r in same}
    pair = {"q": "q", "k": "q", "v": "v", "o": "v", "qkv": "qkv"}.get(role.attention)
    partner = first.get(pair or "") or first.get("qkv")
    if pair is None or partner is None or not _is_pair(role, same):
        return keeps_scale(role)
    given = {
        "part": role.attention,
        "partner": partner,
        "heads": int(role.heads or 1),
        "alpha": arguments["alpha"],
        "beta": arguments["beta"],
    }
    heads = counted(int(role.heads or 1), "head")
    because = f"mimetic attention with {heads}: the product with its partner is near ±I"
    return Choice("mimetic", because, arguments={k: v for k, v in given.items() if v is not None})


def _is_pair(role: Role, same: Sequence[Role]) -> bool:
    """Whether a role and its partner are factors of one square matrix for each head."""
    letters = {"q": "qk", "k": "qk", "v": "vo", "o": "vo"}.get(role.attention, role.attention)
    pair = [r for r in same if r.attention in (*letters, role.attention)]
    sizes = {(r.fan_out, r.fan_in) if r.attention == "o" else (r.fan_in, r.fan_out) for r in pair}
    width, inner = sizes.pop()
    heads = int(role.heads or 1) if role.attention in ("q", "k", "qkv") else 1
    fits = width is not None and inner is not None and not inner % heads and inner / heads <= width
    packed = next((r.blocks for r in same if r.attention == "qkv"), 3)
    return not sizes and fits and packed == 3 and not role.low_rank


PUBLISHED: Mapping[str, Policy] = {
    "residual_scaling": residual_scaling,
    "small_init": small_init,
    "depthwise_trunc_normal": depthwise_trunc_normal,
    "fixup": fixup,
    "skipinit": skipinit,
    "rezero": skipinit,
    "deepnorm": deepnorm,
    "t_fixup": t_fixup,
    "mup": mup,
    "spectral": spectral,
    "recurrent": recurrent,
    "irnn": irnn,
    "lora": lora,
    "siren": siren,
    "looks_linear": looks_linear,
    "mimetic": mimetic,
}
