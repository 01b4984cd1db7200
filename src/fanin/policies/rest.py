"""What every policy leaves to the defaults: biases, norms, tables, scales, and what stays as it is.

A policy decides for weights; these are the conventional starts of everything else.
"""

from __future__ import annotations

import math

from fanin.kinds import NORMS
from fanin.policies.choice import Blueprint, Choice, Leave, counted, words
from fanin.policies.signal import DIRECT_STD, READ_STD
from fanin.roles import Role

__all__ = ["STREAM_STD", "rest", "stays"]

# The size of tokens beside a signal, and of tables in models with norms (as in GPT-2, BERT and ViT)
# that something else than norms reads.  Where norms are the first, ten language models of 2023 to
# 2026 train as well or better from unit rows (a gated delta net ends at 1.37 for 2.08), and a ViT
# that has to tell positions does so in 200 steps (0.07 for 2.77, which is guessing; from positions
# of 0.3 it is at 0.9).  Transformers reverse a sequence as soon from either.
STREAM_STD = 0.02
# Logits of a tied table get this std: the loss starts within 0.05 nats of guessing (½·0.3²).
TIED_LOGITS = 0.3
PRELU_SLOPE = 0.25  # He et al. 2015, section 2.1
# LayerScale by depth, CaiT (Touvron et al. 2021), section 2: blocks → scale.
LAYER_SCALE = ((18, 0.1), (24, 1e-5), (math.inf, 1e-6))

# What an elementwise operation does with a parameter, or with what is computed from it.
_USED = {
    "scale": "what the signal is multiplied with",
    "shift": "what is added to the signal",
    "select": "what is put into the signal",
    "token": "what is put beside the signal",
    "input": "the input of a layer",
    "state": "the first state of a recurrent layer",
    "clamp": "a bound of the signal",
    "similarity": "what the signal is compared with",
    "attention": "what is added to attention scores",
    "bias": "the bias of a layer",
}


def stays(role: Role, drawn: Blueprint, frozen: bool) -> Leave | None:
    """Why a parameter keeps its values, whatever the scheme; None when it is drawn."""
    if not role.trainable and not frozen:
        return Leave("frozen (requires_grad=False)")
    if role.kind == "unused":
        return Leave("no call that was watched on this batch reads it, so its role is not known")
    if role.kind == "unknown":
        seen = role.seen if " " in role.seen else f"torch.{role.seen.removeprefix('torch.')}"
        return Leave(f"its role is not known: it is used in {seen}")
    if role.part is not None and role.part.kind == "other":
        return Leave(
            f"W504 idle-initializer: {role.part.weight} is computed from it by {role.part.how}, so "
            "a distribution set here would not reach the weight"
        )
    if role.kind == "computed":
        used = _USED.get(role.seen, f"the weight in torch.{role.seen}")
        return Leave(f"{used} is computed from it, in a way not known here")
    if role.kind == "step":
        return Leave("softplus makes step sizes of it, whose range the model's author chose")
    if role.kind == "table" and len(role.shape) == 1 and not drawn.meta:
        return Leave("a number for each index, whose use the model's author chose")
    if role.kind == "codes" and not drawn.meta:
        return Leave("codes that the signal is compared with: their size is the author's choice")
    if role.kind == "scale" and not drawn.meta:
        return Leave("a scale whose size the model's author chose")
    if role.kind == "branch_scale" and not drawn.meta and not _gate(role):
        return Leave("LayerScale: its size is a choice of the model's author")
    if _number(role) and not drawn.meta:
        return Leave("a single number whose value the model's author chose")
    return None


def _number(role: Role) -> bool:
    """A single number that the model's own code adds, multiplies with or puts in, no layer's.

    The bias of SigLIP's logits, the scale of cosines, a constant of physics.
    """
    by_hand = role.kind in ("token", "score_bias", "norm_shift", "norm_scale")
    return by_hand and role.op not in NORMS and math.prod(role.shape) == 1


def _gate(role: Role) -> bool:
    """A scalar that a branch without norms is multiplied with."""
    return math.prod(role.shape) == 1 and role.branch is not None and role.branch.norm == "none"


def rest(role: Role, drawn: Blueprint) -> Choice | Leave:
    """The conventional start of a parameter that is no weight matrix."""
    kind = role.kind
    if kind == "table":
        return _table(role, drawn)
    if kind == "magnitude":
        return Leave("set with the direction it belongs to")
    if kind == "norm_scale":
        return _norm_scale(role)
    if kind == "branch_scale":
        return _branch_scale(role)
    if kind == "spread":
        # An FT-Transformer of two blocks ends at 0.16 (seven seeds; from its author's start at
        # 0.17), where it ended at 0.67 beside positions of unit size.
        told, gain = _in_stream(role)
        return Choice("normal", f"it makes features of a number of the data {told}", gain=gain)
    if kind == "scale":
        return Choice("ones", "a scale with nothing known of it: one changes nothing")
    if kind == "slope":
        return Choice("constant", "PReLU's slope starts at 0.25 (He 2015)", gain=PRELU_SLOPE)
    if kind == "token" and _number(role):
        return Choice("zeros", "a single number with nothing known of it: zero adds nothing")
    if kind == "token" and role.stream:
        told, gain = _in_stream(role)
        return Choice("normal", f"a learned token or position {told}", gain=gain)
    if kind == "token":
        return Choice(
            "normal",
            f"a learned token or position: std {STREAM_STD}, small beside the signal",
            gain=STREAM_STD,
        )
    if kind == "codes":
        return Choice("normal", "codes that a signal of unit size is compared with")
    if kind == "rows":
        because = "one row for each copy of the signal: as large as that, so that they differ"
        return Choice("normal", because)
    if kind == "input":
        return Choice("normal", "a learned input of a layer, which expects unit variance")
    reasons = {
        "state": "a first state is empty",
        "bias": "a bias starts at zero: weights tell units apart",
        "recurrent_bias": "the second bias of a recurrent layer adds nothing to the first",
        "norm_shift": "a fresh norm shifts nothing",
        "score_bias": "attention starts without a preference for positions",
    }
    return Choice("zeros", reasons.get(kind, "zero adds nothing"))


def _table(role: Role, drawn: Blueprint) -> Choice:
    note = "" if role.padding is None else f"; row {role.padding} is padding and stays zero"
    if "weight" in role.uses:
        return Choice(
            "lecun_normal",
            f"a table that is the output layer too: std {TIED_LOGITS}/√{role.features} gives "
            f"logits of std {TIED_LOGITS}, so the loss starts at that of guessing{note}",
            gain=TIED_LOGITS,
            fan=float(role.features or 1),
        )
    if role.feeds_scores:
        return Choice("zeros", "a bias on attention scores: no preference at the start")
    if drawn.normed and role.beside is not None:
        factor = role.beside.factor
        told = "what a layer makes is added to its rows: beside it they need unit size"
        if role.beside.kept:
            told = "positions that keep their values are added to its rows, which need their size"
        elif role.beside.fixed:
            told = "fixed positions are added to its rows: beside sines they need unit size"
        after = f" after the factor {words(factor)}" if factor != 1 else ""
        return Choice("normal", f"{told}{after}{note}", gain=1 / factor)
    if drawn.normed and role.stream:
        told, gain = _in_stream(role)
        return Choice("normal", f"a table {told}{note}", gain=gain)
    if drawn.normed:
        return Choice(
            "normal",
            f"a table in a model with norms: std {STREAM_STD}, as GPT-2 and BERT{note}",
            gain=STREAM_STD,
        )
    if role.direct:
        return Choice(
            "normal",
            f"a table whose rows reach the output past every layer: std {DIRECT_STD}, small beside "
            f"a unit, and products of rows smaller still{note}",
            gain=DIRECT_STD,
        )
    if role.read:
        return Choice(
            "normal",
            f"a table whose rows layers read: std {READ_STD}, so that steps can move them{note}",
            gain=READ_STD,
        )
    return Choice(
        "normal",
        f"one row is looked up (fan_in 1), and what follows expects unit variance{note}",
    )


def _in_stream(role: Role) -> tuple[str, float]:
    """What is said of rows that norms read first, and their size."""
    after = f" after the factor {words(role.stream)}" if role.stream != 1 else ""
    told = f"in a stream that norms read: as large as what layers add (Takase 2023){after}"
    return told, 1 / role.stream


def _norm_scale(role: Role) -> Choice:
    if role.offset == 0.0:
        return Choice("ones", "a fresh norm scales by one")
    return Choice(
        "constant",
        f"the norm multiplies with {role.offset:g} + weight, so {1 - role.offset:g} scales by one",
        gain=1.0 - role.offset,
    )


def _branch_scale(role: Role) -> Choice:
    if _gate(role):
        return Choice(
            "zeros", "a gate on a branch without norms: zero makes every block the identity"
        )
    blocks = role.branch.of if role.branch is not None else 1
    scale = next(value for limit, value in LAYER_SCALE if blocks <= limit)
    return Choice(
        "constant",
        f"LayerScale for {counted(blocks, 'branch', 'branches')}: {scale:g} (CaiT, section 2)",
        gain=scale,
    )
