"""The automatic choice: for each parameter what its place in the model asks for.

The decision table (`TABLE`) stands in the documentation and is printed by ``fanin explain auto``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fanin.catalogue import find
from fanin.catalogue.models import fixup_factor
from fanin.policies.choice import Blueprint, Choice, Leave, Skip, counted, words
from fanin.policies.deep import DEEP_HEAD, deep, deep_shift, deep_size, in_a_row
from fanin.policies.signal import READ_STD, bending, is_even, keeps_scale, preactivation_std
from fanin.roles import Role

__all__ = ["HEAD_GAIN", "MODULATION", "SIREN", "TABLE", "auto", "head_gain", "target_size"]

TABLE: tuple[tuple[str, str, str], ...] = (
    (
        "output layer",
        "keeps the scale, × 0.05 (× 0.15 behind a deep stretch without norms)",
        "logits near zero: the loss starts at guessing",
    ),
    (
        "output layer before a CTC loss that the model computes",
        "keeps the scale",
        "scores that are all alike put the blank everywhere, and that is unlearned late",
    ),
    (
        "its output is the weights of another layer",
        "keeps the scale, × the std of those",
        "a hypernetwork: generated weights start like any other (Chang 2020); those of the "
        "output layer as small as an output layer, so that the loss starts at guessing",
    ),
    ("second of a low-rank pair", "zeros", "the adapter starts by changing nothing (LoRA)"),
    (
        "logarithm of a scale",
        "zeros",
        "coupling layers: a scale of one at the start (Glow, Kingma 2018)",
    ),
    (
        "scales, shifts and gates other signals: FiLM, adaptive norms",
        "keeps the scale, × 0.1",
        "they start nearly as they are (Perez 2018; Peebles 2023, whose zero does as well)",
    ),
    (
        "last of a residual branch, no norms",
        "zeros",
        "every block starts as the identity (Fixup); any depth is bounded",
    ),
    (
        "inside a residual branch, no norms",
        "keeps the scale, × L^(−1/(2m−2)), or as much as keeps the bend of φ",
        "L branches of m layers move the stream at one rate (Fixup); tanh is a line near 0",
    ),
    (
        "last of a residual branch, normed",
        "keeps the scale, × 1/√L",
        "L branches add up to the variance of one (GPT-2)",
    ),
    ("before a sine of ω times its output", "siren", "SIREN as published: ω·(W x) is N(0, 1)"),
    (
        "recurrent matrix",
        "orthogonal per gate",
        "a state is neither lost nor blown up in a step",
    ),
    (
        "deep stretch without norms, φ(x) − φ(−x) ≈ x",
        "looks_linear",
        "relu, gelu, silu …: mirrored pairs pass the signal exactly, at any depth",
    ),
    (
        "deep stretch without norms, odd φ",
        "orthogonal (sigmoid: looks_linear, biases b)",
        "tanh, sin …: at the size where χ^depth = e², so inputs stay apart; sigmoid: mirrored "
        "pairs about b, where φ(b + x) − φ(b − x) is nearly straight",
    ),
    ("deep stretch without norms, elu or selu", "orthogonal × 1/√E[φ²]", "self-normalizing"),
    ("bias of the first layer of a mirrored stretch", "mirrored_bias", "no two kinks meet in 0"),
    (
        "bias of the first layer before a steep one, φ(−x) = φ(x)",
        "normal, std of the pre-activation",
        "without offsets all units would be about 0, and x told from −x late",
    ),
    (
        "bias of a layer that reads up to 3 numbers of the data, before an activation",
        "normal, std of the pre-activation",
        "coordinates, times: with zeros all units would bend in one point of a plane",
    ),
    ("behind relu or leaky relu", "he_normal", "the variance that the kink takes away"),
    ("behind another activation", "lecun_normal × 1/√E[φ²]", "the gain by quadrature"),
    (
        "behind an activation with a large mean",
        "lecun_normal, centred",
        "sigmoid, softplus: rows that sum to zero ignore the mean",
    ),
    (
        "behind a softmax",
        "lecun_normal × √fan_in",
        "its shares add up to one: each row that they pick from is as large as a signal",
    ),
    (
        "these, 9 or more in a row with norms between",
        "orthogonal, of the same size",
        "norms hold the size, not the directions",
    ),
    (
        "before an activation written out that is steep (χ > 8, less in long stretches)",
        "the same, × the size where χ is no more",
        "exp(−(x/0.1)²), x = 1 …: of larger signals it would let the gradient grow",
    ),
    (
        "that reads data of which nine in ten numbers are zero, and layers read what it makes",
        "the same, × 0.1",
        "bags of words, counts: like rows of a table, steps of Adam move them against their size",
    ),
    ("any other weight", "lecun_normal", "variance 1/fan_in keeps the scale"),
    ("table that is the output layer too", "lecun_normal over the width, × 0.3", "small logits"),
    (
        "table whose rows reach the output past every layer, no norms",
        "normal, std 0.1",
        "rows that are logits, or that are multiplied with one another: sums of many start small "
        "too; a layer that reads them makes up for it",
    ),
    (
        "table to whose rows fixed positions are added, before norms",
        "normal, std 1 over the factor between",
        "sines have unit size: beside them rows of 0.02 are next to nothing",
    ),
    (
        "table to whose rows what a layer makes is added, before norms",
        "normal, std 1 over the factor between",
        "features of the same sample have unit size, and their kind (type, label, time) counts as "
        "much",
    ),
    (
        "tables, learned tokens and positions in a residual stream, norms being first to read it",
        "normal, std 1 over the factor between",
        "as large as what layers add (Takase 2023); rows of 0.02 drown beside it, and positions of "
        "0.02 beside features are learned late",
    ),
    (
        "what makes several features of one number of the data, in such a stream",
        "normal, std 1 over the factor between",
        "a layer of one input, of a column of a table: as large as the positions beside it",
    ),
    (
        "table whose rows layers read, and nothing else takes, no norms",
        "normal, std 0.1; × 10 in the layers",
        "steps of Adam move rows against their size, and most are seen rarely",
    ),
    (
        "other tables",
        "normal, std 0.02 in models with norms, else 1",
        "one row is looked up: fan_in is 1",
    ),
    ("learned input of a layer", "normal, std 1", "the layer expects unit variance of its input"),
    ("other learned tokens and positions", "normal, std 0.02", "small beside the signal"),
    (
        "rows that a signal is copied for (centres, tasks)",
        "normal, std 1",
        "as large as the signal, so that its copies differ",
    ),
    ("biases, norm shifts, score biases, first states", "zeros", "weights tell units apart"),
    ("forget gate bias of an LSTM", "forget_gate_bias", "the cell remembers at the start"),
    ("norm scales", "one (0 where the norm uses 1 + weight)", "a fresh norm changes nothing"),
    ("gates on branches without norms", "zeros", "SkipInit, ReZero"),
    (
        "adapter beside frozen weights that is zero, if it is no low-rank pair",
        "left alone",
        "it starts by changing nothing",
    ),
    ("LayerScale, other scales", "left alone", "their size is the author's choice"),
    (
        "codes that the signal is compared with (vector quantization)",
        "left alone",
        "their size is the author's choice",
    ),
    (
        "single numbers that the model's own code uses",
        "left alone",
        "their value is the author's choice",
    ),
    (
        "zeros and ones in front of a product with another signal",
        "left alone",
        "they say what passes at the start: streams mixed by an identity, scales of a condition",
    ),
    (
        "biases of one number: −1 to −15 at outputs, ±1 to ±4 at gates, above zero under a root",
        "left alone",
        "the prior of a rare class, gates open or shut, divisive norms: no default makes such a "
        "bias",
    ),
    (
        "biases of one sign, of mean size 1 to 8, whose sigmoid or exponential multiplies a state; "
        "such ones at the gate of an LSTM or a GRU that keeps its state",
        "left alone",
        "how long each channel remembers: chrono initialization, RWKV, retention, xLSTM",
    ),
    (
        "weights that are all zero, under a bias with a pattern, and that bias",
        "left alone",
        "what a layer gives for every input at first: the identity of a transform, positions in a "
        "grid",
    ),
    (
        "weights that are all zero, whose output is only joined with a signal from around them",
        "left alone",
        "that signal passes as it is at first: couplings of a flow (Glow, Kingma 2018)",
    ),
    (
        "rotations of which more is computed, as the determinant",
        "left alone",
        "invertible layers, whose determinant is one (Glow)",
    ),
    (
        "table of points whose distances are hyperbolic (acosh, atanh)",
        "left alone",
        "they start next to the origin, and have to stay inside of a ball",
    ),
    ("step sizes of state-space models", "left alone", "their range is the author's choice"),
    (
        "what is added or looked up, with one number below −1000 among ordinary ones",
        "left alone",
        "a mask: transitions of a CRF, positions that are out of sight",
    ),
    (
        "what new values would make NaN or infinite, and its own do not",
        "left alone",
        "rates, variances, points of a ball, of which a logarithm, a root or acosh is taken",
    ),
)

# Logits of std 0.05: the loss of a classifier starts within 5 % of ln C even where all samples look
# alike still. At 0.02 deep networks train slower by Adam, from 0.1 on they diverge sooner by SGD.
# Behind norms and recurrent layers 0.3 trains sooner (LSTM and GRU over 24 steps learn what they do
# not from 0.05), but then the loss of a few samples starts more than 5 % off ln C.
HEAD_GAIN = 0.05
# CTC looks for the place of each target among the scores of every frame: where these are alike, all
# frames learn the blank first.  After 100 steps of Adam a Conformer ends at 0.05 from 1, 0.17 from
# 0.6 and 2.27 from 0.05, which is the blank (torch's default: 0.14); a wav2vec 2.0 does the same.
ALIGNED_GAIN = 1.0
# Std of the first layer's offsets over that of its pre-activation: 0.25 and 1 train as well or
# worse; without it all kinks pass through the origin, and what is radial is learned slowly.
OFFSET = 0.5
# Numbers of the data that a layer reads up to which its units need offsets.  MLPs of two hidden
# layers of 64 end, after 300 steps of Adam at 1e-3 and 3e-3 on sums of six waves, from zeros and
# from offsets as large as the pre-activation: relu of 1 input at 0.036, 0.014 and 0.0055, 0.0030,
# of 2 at 0.125, 0.077 and 0.054, 0.011, of 3 at 0.53, 0.28 and 0.41, 0.13; gelu of 2 at 0.093,
# 0.041 and 0.054, 0.010; tanh of 1 at 0.022, 0.014 and 0.010, 0.005.  From half of that size they
# gain half; 4 inputs gain a fifth, 8 a tenth (0.40 and 0.36).
FEW_INPUTS = 3
# Size of what other signals are scaled and shifted by. A transformer with adaptive norms (DiT)
# trains alike from 0 (as published) to 0.3, and worse at 1 (a loss of 1.03 for 0.72).
MODULATION = 0.1
SIREN = 2.0  # a factor before sine from which the layer is one of a SIREN (published: 30)


def auto(role: Role, drawn: Blueprint) -> Choice | Leave | Skip:
    """The automatic choice for one parameter; Skip where the defaults decide."""
    if role.kind in ("bias", "recurrent_bias") and role.op.startswith("lstm"):
        return _lstm_bias(role)
    if role.kind == "bias":
        return _offset(role, drawn)
    if role.kind == "recurrent":
        return _recurrent(role)
    if role.kind not in ("weight", "projection"):
        return Skip()
    if role.low_rank == "B":
        return Choice(
            "zeros", "the second of a low-rank pair: the adapter starts by changing nothing"
        )
    if role.log_scale:
        because = "an exponential of its output is a scale: zero makes that one (Kingma 2018)"
        return Choice("zeros", because)
    if role.modulates:
        base = keeps_scale(role)
        told = (
            f"it scales and shifts other signals: × {MODULATION:g} leaves them nearly as they are"
        )
        return replace(base, gain=base.gain * MODULATION, because=f"{told}; {base.because}")
    if role.activation == "sin" and role.factor >= SIREN:
        first = role.input.kind == "data"
        because = f"a sine of {role.factor:g} times this layer's output: as SIREN is published"
        given = {"omega": role.factor, "first": first}
        return Choice("siren", because, arguments=given)
    if role.head:
        return _head(role, drawn)
    if role.generates is not None:
        return _generator(role)
    if role.repeated and role.activation is None and role.branch is None:
        return _in_time(role)
    if _by_branch(role):
        return _in_branch(role)
    chosen = deep(role, drawn)
    if chosen is None and role.sparse:
        return _rarely_moved(role)
    return chosen or in_a_row(role, keeps_scale(role))


def _rarely_moved(role: Role) -> Choice:
    """A layer whose input is mostly zeros: a table, of which each sample picks a few rows."""
    base = keeps_scale(role)
    because = (
        f"the data that it reads are mostly zeros: × {READ_STD:g}, so that steps can move the few "
        f"rows that a sample picks; {base.because}"
    )
    return replace(base, gain=base.gain * READ_STD, because=because)


def _head(role: Role, drawn: Blueprint) -> Choice:
    """The output layer: small, so that the loss starts at that of guessing."""
    if role.generates is not None:
        base = _generator(role)
    else:
        base = deep(role, drawn) or in_a_row(role, keeps_scale(role))
    gain = head_gain(role)
    if gain == 1.0:
        told = "output layer before a norm, which takes any scale away"
        if role.aligned:
            told = "output layer before a CTC loss, which needs frames that differ from the start"
        return replace(base, because=f"{told}; {base.because}")
    because = f"output layer: × {gain:g} puts the loss at that of guessing; {base.because}"
    return replace(base, gain=base.gain * gain, because=because)


def _generator(role: Role) -> Choice:
    """The last layer of a hypernetwork."""
    size, base = generated_size(role), keeps_scale(role)
    told = f"its output is the weights of another layer, which have std {words(size)}"
    because = f"{told} (Chang 2020): × {words(size)}; {base.because}"
    return replace(base, gain=base.gain * size, because=because)


def generated_size(role: Role) -> float:
    """Std of the weights that a layer's output is; 1 where it is a signal."""
    if role.generates is None:
        return 1.0
    fan = float(role.generates.fan_in)
    asked = keeps_scale(replace(role, input=role.generates.input, fan_in=fan))
    return find(asked.scheme).std(fan, asked.gain, **asked.arguments)


def head_gain(role: Role) -> float:
    """Std of the logits: what the output layer's gain is multiplied with."""
    if role.norm_after:
        return 1.0
    if role.aligned:
        return ALIGNED_GAIN
    return HEAD_GAIN if role.generates is not None or deep(role) is None else DEEP_HEAD


def _recurrent(role: Role) -> Choice:
    gates = f" in each of its {role.blocks} gates" if role.blocks > 1 else ""
    because = f"a recurrent matrix: orthogonal{gates} keeps the size of the state"
    return Choice("orthogonal", because)


def _in_time(role: Role) -> Choice:
    """A state's matrix in a recurrent network written by hand: it meets the input in a sum."""
    if role.fan_in != role.fan_out or not {"o", "i"} <= set(role.layout) or role.expert:
        return keeps_scale(role)  # another layer of the cell made its input
    because = "used again on what it made, beside an input: orthogonal keeps the size of the state"
    return Choice("orthogonal", because)


def _lstm_bias(role: Role) -> Choice:
    if role.kind == "recurrent_bias":
        return Choice("zeros", "the second bias of an LSTM adds nothing to the first")
    because = "forget gate at 1: the cell remembers at the start (Jozefowicz 2015); the others 0"
    return Choice("forget_gate_bias", because)


def _by_branch(role: Role) -> bool:
    """Whether its place in a residual branch decides a layer's choice."""
    inside = role.branch is not None and role.branch.of > 0
    return inside and not role.head and role.input.kind != "table"


def _in_branch(role: Role) -> Choice:
    branch = role.branch
    assert branch is not None
    free = branch.norm == "none" and not role.gated_branch
    if free and role.last and role.alone and role.activation is None:
        blocks = "the block start" if branch.of == 1 else f"each of {branch.of} blocks start"
        because = (
            f"last layer of a residual branch without norms: zero makes {blocks} as the "
            "identity (Fixup)"
        )
        return Choice("zeros", because)
    base, factor = keeps_scale(role), _branch_factor(role)
    if factor == 1.0:
        return base
    if role.last:
        because = (
            f"last layer of one of {branch.of} residual branches: × 1/√{branch.of} holds the "
            f"stream's variance; {base.because}"
        )
    else:
        whole = fixup_factor(branch.of, branch.depth)
        told = "Fixup"
        if factor != whole:
            told += f"'s {words(whole)} would leave {role.activation} next to linear"
        because = (
            f"in one of {branch.of} residual branches of {branch.depth} layers without norms: "
            f"× {words(factor)} ({told}); {base.because}"
        )
    return replace(base, gain=base.gain * factor, because=because)


def _branch_factor(role: Role) -> float:
    """What a layer's place in a residual branch multiplies the size of its output with.

    1 where the place asks for nothing.
    """
    branch = role.branch
    if branch is None or branch.of < 1 or role.head or role.gated_branch:
        return 1.0
    if role.last:
        return 1.0 if branch.norm == "last" else 1 / math.sqrt(branch.of)
    if branch.norm == "none" and branch.depth > 1:
        least = bending(role.curve, preactivation_std(role))
        return max(fixup_factor(branch.of, branch.depth), least)
    return 1.0


def _offset(role: Role, drawn: Blueprint) -> Choice | Skip:
    """The bias of a layer in a mirrored stretch, or of one that reads few numbers of the data.

    The middle of its pairs; where that is 0, offsets in the first layer alone: no two kinks meet
    in the origin.
    """
    weight = drawn.weight_at(role.call)
    if weight is None or not weight.trainable or len(role.shape) != 1 or _by_branch(weight):
        return Skip()
    shift = deep_shift(weight, drawn)
    if shift:
        because = f"the middle of mirrored pairs: there {weight.activation} bends least"
        return Choice("constant", because, gain=shift)
    chosen = deep(weight, drawn)
    if chosen is None and weight.input.kind == "data" and not weight.norm_after:
        return _apart(weight)
    if chosen is None or not chosen.arguments.get("first"):
        return Skip()
    because = "offsets in opposite pairs, which the mirrored layers carry through the whole stretch"
    return Choice("mirrored_bias", because, gain=OFFSET * (deep_size(weight) or 1.0))


def _apart(weight: Role) -> Choice | Skip:
    """The bias of a layer that reads the data, before an activation that needs offsets."""
    size = preactivation_std(weight)
    if size < 1.0 and is_even(weight.curve):
        because = (
            f"{weight.activation} is steep and the same for x and −x: offsets as large as the "
            "pre-activation let the model tell them apart"
        )
        return Choice("normal", because, gain=size)
    if not _reads_few(weight):
        return Skip()
    read = counted(round(weight.fan_in or 0), "number")
    because = (
        f"its layer reads {read} of the data: offsets as large as the pre-activation, so that "
        f"units of {weight.activation} bend in different places"
    )
    return Choice("normal", because, gain=size)


def _reads_few(weight: Role) -> bool:
    """Whether a hidden layer reads a few numbers of the data, such as coordinates or a time."""
    matrix = sorted(weight.layout) == ["i", "o"] and weight.kind == "weight"
    hidden = weight.curve is not None and not (weight.head or weight.repeated or weight.attention)
    apart = weight.log_scale or weight.modulates or weight.low_rank or weight.factor >= SIREN
    return matrix and hidden and not apart and 1 <= (weight.fan_in or 0) <= FEW_INPUTS


def target_size(role: Role | None, drawn: Blueprint | None = None) -> float:
    """Root mean square that the output of a weight is planned to have (before HEAD_GAIN).

    Without the bias that shifts every unit of it; with `drawn` None, biases shift none.
    """
    if role is None:
        return 1.0
    if role.generates is not None:
        return generated_size(role)
    if role.modulates:
        return MODULATION
    # What reads a table has no factor in its plan; measured, its branch counts as any other.
    size = None if _by_branch(role) else deep_size(role, drawn)
    if size is not None:
        return size
    rare = READ_STD if role.sparse and deep(role, drawn) is None else 1.0
    return rare * _branch_factor(role) * preactivation_std(role)
