"""What each parameter is for, read from the calls that use it.

A role says what the parameter does (weight, bias, scale of a norm, table …), what its fans are,
which nonlinearity made its input and which one follows, and where it stands: in which residual
branch, in which attention, at which depth of a stretch without norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fanin.architecture import Architecture
from fanin.attention import attention_parts
from fanin.branches import Branch, branches, low_rank_pairs
from fanin.calls import BATCH, Call, Operand
from fanin.kinds import ADDING, NORMS, PASSIVE, PRODUCTS, QUOTIENTS, RECURRENT, SUMS
from fanin.layouts import layout_of, outputs_given
from fanin.neighbours import (
    Generated,
    Input,
    generated,
    input_of,
    modulates,
    nonlinearity_after,
    reaches_softmax,
    sets_scale,
    sets_steps,
    unrolled,
)
from fanin.outputs import Outputs
from fanin.reparametrized import Part, parts
from fanin.stretches import stretches
from fanin.tables import Beside, beside, is_direct, is_read, picking, sources, spreads, stream

__all__ = ["Role", "roles"]

_UNTOLD = Input("other")
_OVER_IMAGES = ("conv", "batch_norm", "group_norm", "instance_norm")  # units come second
_WITH_UNITS = ("conv", *NORMS)  # without a weight, too: StyleGAN computes its kernels
# Beside its work a weight may be what a step is added to, or what a gradient is taken of (MAML).
_ASIDE = ("token", "unknown")


@dataclass(frozen=True)
class Role:
    """What one parameter is for.

    Attributes:
        parameter: canonical path.
        shape: of the parameter.
        trainable: whether it requires a gradient.
        kind: "weight", "recurrent", "projection", "bias", "recurrent_bias", "table", "codes" (a
            table that says itself which row is picked), "token", "rows" (one for each copy of the
            signal), "input" (of a layer), "state" (a recurrent layer's first), "norm_scale",
            "norm_shift", "branch_scale", "scale", "spread" (a scale that makes several features of
            each number of the data), "score_bias", "slope", "magnitude", "step", "computed",
            "unknown" or "unused".
        op: canonical operation of the call that uses it.
        layer: path of the module that runs that call.
        call: index of its first call.
        layout: what its dimensions are, as in `Assignment.layout`.
        blocks: equal parts along the outputs (groups along the inputs of a transposed convolution)
            that are matrices of their own.
        groups: of a convolution.
        fan_in: inputs summed into one output value, in one block.
        fan_out: outputs that one input value reaches, in one block.
        input: where its input comes from.
        activation: the nonlinearity that follows, None without one.
        curve: the same as `fanin.moments` takes it, with its arguments; None where it knows none.
        factor: number that the output is multiplied with before that nonlinearity (SIREN's ω).
        norm_after: whether a norm stands between the layer and what follows.
        branch: the residual branch it stands in, None outside of any.
        last: whether its output is what the branch adds to the stream.
        alone: whether nothing else reads that output.
        gated_branch: whether a learned scale stands between the branch's last layer and the sum.
        attention: "q", "k", "v", "o", letters of packed ones such as "qkv", or "".
        attention_at: index of the call that mixes that attention's values.
        heads: of that attention, where they can be told.
        shuffled: whether pixel shuffle lays its outputs side by side.
        head: whether its output goes to the model's output, with no layer behind it; also where
            outputs of several are mixed there (experts, dueling heads), by scores of its own too.
        aligned: whether a CTC loss in the model finds the place of each target in what it makes.
        place: layers with weights before it since the last norm, sum or input.
        run: layers with weights in that stretch.
        chain: the same where norms do not end a stretch.
        repeated: whether it is used again on what it made (a state unrolled over time).
        beside: what of unit size is added to the rows of a table (sines of positions, features),
            None where nothing is.
        log_scale: whether an exponential of its output multiplies the signal (coupling layers).
        modulates: whether its output scales, shifts and gates other signals (FiLM, adaptive norms).
        generates: the weights that its output is (a hypernetwork), None where it is a signal.
        offset: what the model adds to the parameter before it uses it (1 in norms with 1 + weight).
        times: size of the constants that the model multiplies it with before it uses it (equalized
            learning rates, the values of a mask).
        kept: share of its inputs that a mask leaves to an output; the fans count those alone.
        uses: further kinds it is used as (a tied table is a "weight" too).
        expert: whether it holds one matrix for each of several experts.
        padding: row of a table that stands for padding.
        part: what it is of a reparametrized weight.
        low_rank: "A" or "B" in a low-rank pair beside another layer (LoRA), else "".
        features: size of the signal it reads (weights) or makes (tables).
        feeds_scores: whether it ends up as a bias on attention scores.
        stream: of a table, token or spread: what its rows are multiplied with before they are added
            to a residual stream, whose norms are the first to read them; 0 where they are not.
        direct: whether rows of a table reach the output past every layer, for more than to be
            returned, in a model without norms; of a weight that reads tables: whether theirs do.
        read: the same of rows that layers read, multiplied or not, and nothing else takes.
        sparse: whether the data that it reads are mostly zeros (`fanin.sparse`).
        seen: torch functions that use it, where its role is not known.
    """

    parameter: str
    shape: tuple[int, ...]
    trainable: bool
    kind: str
    op: str = ""
    layer: str = ""
    call: int = -1
    layout: str = ""
    blocks: int = 1
    groups: int = 1
    fan_in: float | None = None
    fan_out: float | None = None
    input: Input = _UNTOLD
    activation: str | None = None
    curve: str | None = None
    factor: float = 1.0
    norm_after: bool = False
    branch: Branch | None = None
    last: bool = False
    alone: bool = False
    gated_branch: bool = False
    attention: str = ""
    attention_at: int | None = None
    heads: int | None = None
    shuffled: bool = False
    head: bool = False
    aligned: bool = False
    place: int = 0
    run: int = 1
    chain: int = 1
    repeated: bool = False
    log_scale: bool = False
    modulates: bool = False
    beside: Beside | None = None
    generates: Generated | None = None
    offset: float = 0.0
    times: float = 1.0
    kept: float = 1.0
    uses: tuple[str, ...] = ()
    expert: bool = False
    padding: int | None = None
    part: Part | None = None
    low_rank: str = ""
    features: int | None = None
    feeds_scores: bool = False
    stream: float = 0.0
    direct: bool = False
    read: bool = False
    sparse: bool = False
    seen: str = ""


def roles(architecture: Architecture, model: nn.Module) -> tuple[Role, ...]:
    """The role of every parameter, in the model's order."""
    return _Reader(architecture, model).read()


class _Reader:
    """One reading: what is needed of the whole trace for the role of any parameter."""

    def __init__(self, architecture: Architecture, model: nn.Module) -> None:
        self.architecture, self.model = architecture, model
        self.calls = architecture.trace.calls
        self.followers = architecture.followers
        self.parts = parts(model)
        self.branches, self.branch_of, self.lasts = architecture.once(branches)
        self.low_rank = low_rank_pairs(architecture)
        self.outputs = Outputs(architecture)
        self.attention, self.mixed_at = attention_parts(architecture)
        self.ends = {b.end for b in self.branches}
        self.norms = norms = {c.index for c in self.calls if architecture.normalizes(c)}
        self.again = unrolled(architecture)
        self.place, self.ahead = stretches(architecture, self.ends | norms, self.again)
        self.chained = stretches(architecture, self.ends, self.again)
        self.unnamed = dict(architecture.unnamed)
        self.normed = any(b.norm != "none" for b in self.branch_of.values())
        self.drawn = {p.name for p in architecture.parameters if p.trainable}
        self.tables = {c.index for c in self.calls if "v" in c.layout}
        self.layered = {c.index for c in self.calls if c.layout} - self.tables
        self.codes = picking(architecture, self.again)
        self.aligning = {c.index for c in self.calls if c.op == "ctc_loss"}

    def read(self) -> tuple[Role, ...]:
        uses = _by_parameter((c, o) for c in self.calls for o in c.operands)
        inputs = _by_parameter((c, o) for c in self.calls for o in c.learned)
        found = []
        for parameter in self.architecture.parameters:
            role = Role(parameter.name, parameter.shape, parameter.trainable, "unused")
            known = uses.get(parameter.name) or inputs.get(parameter.name)
            if known:
                role = self._role(role, known)
            found.append(role)
        gated = self._gated()
        return tuple(
            replace(r, gated_branch=True) if r.branch is not None and r.branch.end in gated else r
            for r in found
        )

    def _gated(self) -> set[int]:
        """Ends of the branches that a learned scale is the last to act on, computed ones too."""
        scales = (c for c in self.calls if c.op == "scale" and c.operands)
        return {
            branch.end
            for call in scales
            if (branch := self.branch_of.get(call.index)) is not None
            and self._ends(call, branch)
            and not self._is_norm_scale(call)
        }

    def _role(self, bare: Role, uses: list[tuple[Call, Operand]]) -> Role:
        """The role in the first use; a table that is a weight too keeps being a table."""
        kinds = [(self._kind(bare, c, o), c, o) for c, o in uses]
        order = ["table", *(k for k, _, _ in kinds if k != "unknown"), "unknown"]
        kind, call, operand = min(kinds, key=lambda entry: order.index(entry[0]))
        others = tuple(dict.fromkeys(k for k, _, _ in kinds if k != kind))
        part = self.parts.get(bare.parameter)
        role = replace(
            bare,
            kind=kind,
            op=call.op,
            layer=call.module,
            call=call.index,
            uses=others,
            part=part,
            offset=operand.offset or 0.0,
            times=operand.factor or 1.0,
            kept=operand.kept,
            head=self._makes_output(kind, kinds),
            seen=self.unnamed.get(bare.parameter, call.op) if kind == "unknown" else "",
        )
        if self._are_codes(role, uses):
            return replace(role, kind="codes", layout="v" * (len(bare.shape) - 1) + "o")
        if operand.offset is None and part is None and not _is_multiple(kind, kinds):
            named = operand in call.learned or kind == "bias"
            return replace(role, kind="computed", seen=kind if named else call.op)
        if kind in ("input", "token") and self._is_state(bare, call, operand):
            return replace(role, kind="state")
        if kind in ("bias", "token") and sets_steps(self.architecture, call):
            return replace(role, kind="step")
        if kind in ("weight", "recurrent", "projection"):
            late = next(c for k, c, _ in reversed(kinds) if k == kind)
            return self._weight(role, call, operand, late)
        if kind == "table":
            return self._table(role, call)
        if kind in ("bias", "recurrent_bias"):
            return self._bias(role, call)
        if kind == "token":
            role = replace(role, stream=self._stream(call))
        if kind == "scale" and spreads(self.architecture, call, operand) and self._stream(call):
            role = replace(role, kind="spread", stream=self._stream(call))
        return replace(role, layout="o" if len(bare.shape) == 1 else "", **self._standing(call))

    def _are_codes(self, role: Role, uses: list[tuple[Call, Operand]]) -> bool:
        """Whether rows are picked by what the signal has in common with them (a VQ codebook)."""
        if role.kind == "table":
            before = self.architecture.ancestors(self.calls[role.call].behind)
            return any(role.parameter in self.calls[i].parameters for i in before)
        return len(uses) > 1 and any(call.index in self.codes for call, _ in uses)

    def _is_state(self, bare: Role, call: Call, operand: Operand) -> bool:
        """Whether a learned vector is the first state of a recurrent network written by hand.

        The layer that reads it is used again on what it made.  It reads an input beside it, or what
        it gives is added to one: where a state is bent or multiplied alone, zero would stay zero.
        """
        if 1 not in (sum(s > 1 for s in shape) for shape in (bare.shape, operand.shape)):
            return False  # several learned rows are queries, which zeros would make alike
        if call.op == "token" and call.shape[-1] > operand.shape[-1]:
            after = self.followers[call.index]
            if len(after) != 1:
                return False
            call = after[0]
        elif operand not in call.learned or not self._is_added_to(call):
            return False
        if "i" not in call.layout or call.op in RECURRENT:
            return False
        return any(self.calls[i].parameters[:1] == call.parameters[:1] for i in self.again)

    def _is_added_to(self, call: Call) -> bool:
        """Whether all that a call gives is added to something before anything else is done."""
        after = self.followers[call.index]
        return bool(after) and all(a.op in SUMS and len(a.inputs) > 1 for a in after)

    def _stream(self, call: Call) -> float:
        return stream(self.architecture, call, self.layered, self.norms) if self.normed else 0.0

    def _makes_output(self, kind: str, uses: list[tuple[str, Call, Operand]]) -> bool:
        """Whether the calls that use a parameter make the model's output.

        A table is the output layer too; a weight that does more keeps its size for that.
        """
        if kind == "table":
            return any(self._is_head(call) for _, call, _ in uses)
        return all(self._is_head(c) for k, c, _ in uses if k == kind or k not in _ASIDE)

    def _is_head(self, call: Call) -> bool:
        apart = call.index not in self.branch_of and self.attention.get(call.index, "o") == "o"
        return self.outputs.made_by(call, apart)

    def _kind(self, bare: Role, call: Call, operand: Operand) -> str:
        part = self.parts.get(bare.parameter)
        if part is not None and part.kind == "magnitude":
            return "magnitude"
        if call.op.startswith("unnamed:"):
            return "unknown"
        if operand in call.learned:
            return operand.role
        if call.op in NORMS:
            return "norm_scale" if operand.role == "weight" else "norm_shift"
        if call.op == "prelu":
            return "slope"
        if operand.role.startswith(("bias", "recurrent", "projection")):
            return operand.role.removesuffix("_reverse")
        if call.layout:
            return "table" if "v" in call.layout else "weight"
        if call.op == "scale":
            kind = self._scale(call)
            # One of several numbers weighs a term of a sum (x · λ₀ + first · λ₁), no channel.
            one_of = math.prod(operand.shape) == 1 < math.prod(bare.shape)
            return "scale" if kind == "norm_scale" and one_of else kind
        if call.op == "attention":
            return "score_bias" if operand.role == "attn_mask" else "token"
        if call.op in ADDING:
            return self._added(bare, call, operand)
        return "unknown"

    # ---- parameters of elementwise calls ---------------------------------------------------------

    def _is_norm_scale(self, call: Call) -> bool:
        for index in call.behind:
            before = self.calls[index]
            # a change of dtype, a constant factor (√d after a division by the length)
            constant = PASSIVE | PRODUCTS | QUOTIENTS
            while (
                before.op in constant
                and len(before.behind) == 1
                and not self.architecture.normalizes(before)
            ):
                before = self.calls[before.behind[0]]
            # A norm with a scale of its own needs no second: this product is something else.
            if self.architecture.normalizes(before) and not before.operands:
                return True
        return False

    def _scale(self, call: Call) -> str:
        if self._is_norm_scale(call):
            return "norm_scale"
        branch = self.branch_of.get(call.index)
        if branch is not None and self._ends(call, branch):
            return "branch_scale"
        return "scale"

    def _ends(self, call: Call, branch: Branch) -> bool:
        """Whether `call` goes to its branch's end alone, through nothing that mixes."""
        for after in self.architecture.only_way(call.index):
            if after.index == branch.end:
                return True
            if after.units is not None or after.op in NORMS:
                return False
        return False

    def _added(self, bare: Role, call: Call, operand: Operand) -> str:
        before = [self.calls[i] for i in call.behind]
        if not before:
            return "token"
        source = before[0]
        if source.op == "scale" and self._scale(source) == "norm_scale":
            return "norm_shift"
        if reaches_softmax(self.architecture, call):
            return "score_bias"
        if call.op == "shift" and self._is_offset(bare, call, operand):
            return "bias"
        copies = math.prod(call.shape) > math.prod(before[0].shape)
        return "rows" if call.op == "shift" and copies else "token"

    def _is_offset(self, bare: Role, call: Call, operand: Operand) -> bool:
        """Whether what is added has one number for each unit, and not for each position."""
        source = self.calls[call.behind[0]]
        while source.op in PASSIVE | PRODUCTS | {"scale"} and len(source.behind) == 1:
            source = self.calls[source.behind[0]]
        weighted = source.units is not None and "v" not in source.layout
        if weighted and math.prod(bare.shape) == source.units:
            return True
        shape = operand.shape  # as it is added: [1, units, 1, 1] of a bias [units]
        places = [i - len(shape) for i, size in enumerate(shape) if size > 1]
        while source.units is None and not source.op.startswith(_WITH_UNITS) and source.behind:
            source = self.calls[source.behind[-1]]
        images = source.op.startswith(_OVER_IMAGES)
        unit = 1 - len(call.shape) if images and len(call.shape) > 2 else -1
        if places != [unit] or len(call.shape) < -unit:  # one number: a loss, and a penalty of it
            return False
        # A step of learning (MAML) is added to a parameter of any shape, and has no samples.
        return shape != call.shape and max(shape) == call.shape[unit]

    def _table(self, role: Role, call: Call) -> Role:
        if len(role.shape) > 2 and call.op == "embedding" and not call.padding:
            return replace(role, kind="unknown", seen="an index: a matrix is picked for each input")
        return replace(
            role,
            layout=call.layout if len(call.layout) == len(role.shape) else "v" * len(role.shape),
            fan_in=1.0,
            features=role.shape[-1],
            padding=call.padding,
            input=Input("tokens"),
            feeds_scores=reaches_softmax(self.architecture, call),
            direct=self._reads(call.index, is_direct),
            read=self._reads(call.index, is_read),
            stream=self._stream(call),
            beside=beside(self.architecture, call, self.model),
        )

    # ---- weights ---------------------------------------------------------------------------------

    def _weight(self, role: Role, call: Call, operand: Operand, late: Call) -> Role:
        """A weight as its first call uses it; what it reads is what its last call does.

        In a network unrolled over time, the first state is a constant.
        """
        layout = layout_of(role.shape, role.part is None, call, operand)
        if len(layout) != len(role.shape) and role.part is None:
            return replace(role, kind="unknown", seen=call.op)
        repeated = late.index in self.again and call.op not in RECURRENT
        fan_in, fan_out, blocks = self._fans(role, call, operand, layout, repeated)
        attention = self.attention.get(call.index, "")
        generates = self._generated(call, attention)
        learned = bool(late.learned) and not late.sources
        signal, source = self._input(late)
        rows = source.kind == "table" and not learned
        if source.kind in ("sum", "layer", "table") and self._reads_codes(signal):
            source = Input("codes")
        return replace(
            role,
            layout=layout,
            blocks=blocks,
            groups=call.blocks if call.op.startswith("conv") else 1,
            fan_in=None if fan_in is None else float(fan_in),
            fan_out=None if fan_out is None else float(fan_out),
            input=Input("learned") if learned else source,
            direct=rows and self._reads(signal, is_direct),
            read=rows and self._reads(signal, is_read),
            attention=attention,
            attention_at=self.mixed_at.get(call.index),
            heads=self._heads(call.index),
            shuffled=any(c.op == "pixel_shuffle" for c in self.followers[call.index]),
            expert=layout.startswith("b") and role.shape[0] > 1,
            repeated=repeated,
            generates=generates,
            head=role.head and (generates is None or generates.last),
            aligned=role.head and self._is_aligned(call),
            log_scale=not attention and not role.head and sets_scale(self.architecture, call),
            modulates=not (attention or role.head or call.index in self.branch_of)
            and all(modulates(self.architecture, c, self.ends) for c in (call, late)),
            low_rank=self.low_rank.get(call.index, ""),
            features=round(fan_in / role.kept) if fan_in else None,
            **self._standing(call),
        )

    def _is_aligned(self, call: Call) -> bool:
        """Whether what a layer makes goes to a loss that finds the place of each target itself."""
        if not self.aligning:
            return False
        return not self.aligning.isdisjoint(self.architecture.descendants([call.index]))

    def _input(self, call: Call) -> tuple[int, Input]:
        """The signal that a weight reads, and where it comes from; of several the first, but for
        the shares that the others are taken by (one einsum of probabilities, values and weight).
        """
        signals = list(dict.fromkeys(call.sources)) or [BATCH]
        found = [(signal, input_of(self.architecture, signal)) for signal in signals]
        return next((pair for pair in found if pair[1].kind != "softmax"), found[0])

    def _fans(
        self, role: Role, call: Call, operand: Operand, layout: str, repeated: bool
    ) -> tuple[float | None, float | None, int]:
        """Fan-in and fan-out of one of the matrices that a weight is made of, and their number."""
        fan_in: float | None = call.mean_fan_in or call.fan_in
        fan_out: float | None = call.fan_out
        blocks = call.blocks
        if operand is not call.operands[0] or call.op in RECURRENT:
            blocks = 1 if role.kind == "projection" else call.blocks
            fan_in, fan_out = operand.shape[-1], operand.shape[0] / blocks
        parts = self._gates(role, layout) if repeated else 1
        if parts == 1:
            parts = self._packed(role, call, operand, layout)
        if parts > 1:
            blocks, fan_out = parts, role.shape[layout.index("o")] / parts
        if role.kept < 1.0 and fan_in is not None and fan_out is not None:
            fan_in, fan_out = fan_in * role.kept, fan_out * role.kept
        return fan_in, fan_out, blocks

    def _reads_codes(self, signal: int) -> bool:
        """Whether codes are among what a signal is made of."""
        met = self.architecture.first_met({signal}, self.layered | self.tables, onward=False)
        return not self.codes.isdisjoint({signal} | met)

    def _reads(self, signal: int, how: Callable[..., bool]) -> bool:
        """Whether all tables that a signal comes from are so, in a model without norms."""
        read, layered = self.architecture, self.layered
        near = [] if self.normed else sources(read, signal, layered, self.drawn)
        return bool(near) and all(how(read, call, layered) for call in near)

    def _generated(self, call: Call, attention: str) -> Generated | None:
        plain = set(call.layout) == {"i", "o"} and call.layout.count("i") == 1 and not attention
        return generated(self.architecture, call) if plain else None

    def _gates(self, role: Role, layout: str) -> int:
        """Gates of a state's matrix written by hand: as many squares on top of one another."""
        if sorted(layout) != ["i", "o"] or len(role.shape) != 2:
            return 1
        outputs, inputs = (role.shape[layout.index(letter)] for letter in "oi")
        return outputs // inputs if outputs in (3 * inputs, 4 * inputs) else 1

    def _heads(self, index: int) -> int | None:
        """Heads of the attention that a call belongs to: [batch, heads, tokens, size]."""
        mixed = self.mixed_at.get(index)
        shape = () if mixed is None else self.calls[mixed].shape
        return shape[1] if len(shape) == 4 else None

    def _packed(self, role: Role, call: Call, operand: Operand, layout: str) -> int:
        """Equal matrices along the outputs: q, k and v in one parameter."""
        attention = self.attention.get(call.index, "")
        if "o" not in layout or len(layout) != len(role.shape):
            return 1
        at = layout.index("o")
        rows, part = role.shape[at], outputs_given(call, operand, at)
        if 0 < part < rows and rows % part == 0:
            return rows // part
        several = len(attention) if attention not in ("", "o") else 1
        inputs = role.shape[layout.index("i")]
        # Only equal parts are matrices of their own; grouped queries make unequal ones.
        return several if several > 1 and rows == several * inputs else 1

    def _bias(self, role: Role, call: Call) -> Role:
        blocks = call.blocks if call.op in RECURRENT else 1
        return replace(
            role,
            layout="o" * len(role.shape),
            blocks=blocks,
            attention=self.attention.get(call.index, ""),
            **self._standing(call),
        )

    def _standing(self, call: Call) -> dict[str, Any]:
        """Where a call stands, as fields of a role."""
        after = nonlinearity_after(self.architecture, call)
        branch = self.branch_of.get(call.index)
        return {
            "activation": after.activation,
            "curve": after.curve,
            "factor": after.factor,
            "alone": branch is not None and self._ends(call, branch),
            "norm_after": after.normed,
            "branch": branch,
            "last": call.index in self.lasts,
            "place": self.place.get(call.index, 0),
            "run": self.place.get(call.index, 0) + 1 + self.ahead.get(call.index, 0),
            "chain": sum(side.get(call.index, 0) for side in self.chained) + 1,
        }


def _is_multiple(kind: str, uses: list[tuple[str, Call, Operand]]) -> bool:
    """Whether a weight is multiplied with the same constants wherever it is used."""
    multiples = {(o.offset, o.factor, o.kept) for _, _, o in uses}
    return kind == "weight" and len(multiples) == 1 and uses[0][2].factor is not None


def _by_parameter(uses: Iterable[tuple[Call, Operand]]) -> dict[str, list[tuple[Call, Operand]]]:
    """The uses of each parameter, in the order of the calls."""
    found: dict[str, list[tuple[Call, Operand]]] = {}
    for call, operand in uses:
        for name in operand.parameters:
            found.setdefault(name, []).append((call, operand))
    return found
