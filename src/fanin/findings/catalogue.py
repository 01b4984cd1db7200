"""The catalogue of rules: what each is called, how serious it is, why it hurts, what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue; its document is `fanin.findings.document(rule.code)`.

    Attributes:
        code: such as "S101"; stays with the rule for ever.
        name: such as "locked-units".
        severities: those that a finding of this rule can have.
        summary: what it finds, in a few words.
        why: why it hurts, unless the finding knows better.
        fix: what to do, unless the finding knows better.
    """

    code: str
    name: str
    severities: tuple[str, ...]
    summary: str
    why: str
    fix: str


_ERROR, _WARNING, _INFO = "error", "warning", "info"

_SYMMETRY = (
    Rule(
        "S101",
        "locked-units",
        (_ERROR, _WARNING),
        "units, or rows of a parameter, that are and stay copies of one another",
        why="Copies get identical updates, so they stay copies for ever and the layer has the "
        "capacity of its distinct units alone.",
        fix="Draw these units' weights at random (for example torch.nn.init.kaiming_normal_), "
        "each its own.",
    ),
    Rule(
        "S102",
        "gradient-deadlock",
        (_ERROR, _WARNING),
        "parameters that never receive a gradient",
        why="Two factors that are zero on every path hold each other at zero: each one's gradient "
        "is a product with the other. One zero factor is only a delay of one step.",
        fix="Start one of the two factors at random and leave the other at zero.",
    ),
    Rule(
        "S103",
        "self-breaking",
        (_INFO,),
        "units that start as copies and separate by themselves",
        why="Their outgoing weights differ, so their gradients do: the copy breaks in the first "
        "steps.",
        fix="None needed; distinct incoming weights would use the first steps better.",
    ),
    Rule(
        "S104",
        "cloned-layers",
        (_WARNING,),
        "untied parameters that start bit-identical",
        why="Usually a seed that was set again, a reused initializer, or deepcopy. Depth or inputs "
        "tell these copies apart, so training goes on, but from fewer random features than paid "
        "for.",
        fix="Draw each one from its own random stream (re-run its reset_parameters()), or tie them "
        "on purpose.",
    ),
    Rule(
        "S105",
        "mirrored-units",
        (_WARNING,),
        "sign-flipped pairs that stay mirrored",
        why="Under an odd activation a mirrored pair computes one function twice: half of its "
        "capacity is lost.",
        fix="Draw the incoming weights of one of each pair again (mirrored pairs are useful with "
        "ReLU only).",
    ),
)

_SIGNALS = (
    Rule(
        "P201",
        "vanishing-signal",
        (_ERROR, _WARNING),
        "the signal shrinks layer by layer",
        why="The output starts independent of the input, and gradients shrink by the same factor "
        "on the way back.",
        fix="Use the gain of the activation: nn.init.kaiming_normal_(w, nonlinearity='relu') for "
        "ReLU, √(1/fan_in)·gain in general; a norm or residual connections for great depth.",
    ),
    Rule(
        "P202",
        "exploding-signal",
        (_ERROR, _WARNING),
        "the signal grows layer by layer",
        why="Outputs and gradients start so large that no learning rate fits all layers.",
        fix="Draw the weights with std √(1/fan_in)·gain; scale each residual branch by "
        "1/√(number of branches), or end it with zero.",
    ),
    Rule(
        "P203",
        "vanishing-gradient",
        (_ERROR, _WARNING),
        "the gradient shrinks on its way to the input",
        why="The first layers stay as they were drawn while the last ones learn from their noise.",
        fix="Use the gain of the activation (orthogonal or He-like weights); a norm or residual "
        "connections for great depth.",
    ),
    Rule(
        "P204",
        "exploding-gradient",
        (_ERROR, _WARNING),
        "the gradient grows on its way to the input",
        why="A tiny change of an early weight turns the output over: the loss surface is chaotic "
        "at the start.",
        fix="Draw smaller weights: std √(1/fan_in)·gain, where the activation is used in its "
        "middle part.",
    ),
    Rule(
        "P205",
        "dead-units",
        (_ERROR, _WARNING),
        "units whose activation is flat on the whole batch",
        why="A dead unit gives nothing on and gets no gradient, so it cannot come back by itself.",
        fix="Set the biases of this layer to zero and draw its weights with the activation's gain.",
    ),
    Rule(
        "P206",
        "saturated-units",
        (_ERROR, _WARNING),
        "units in the flat part of their activation",
        why="The slope there is under 5 % of its largest, so the gradient is cut at every such "
        "layer.",
        fix="Draw smaller weights: nn.init.xavier_normal_(w, "
        "gain=nn.init.calculate_gain('tanh')), biases zero.",
    ),
    Rule(
        "P207",
        "collapsed-inputs",
        (_ERROR, _WARNING),
        "different inputs can no longer be told apart",
        why="Biases (or an activation that is never negative) add the same to every sample while "
        "the weights shrink what differs, so the output cannot depend on the input.",
        fix="Draw the weights at the gain of the activation (He or orthogonal) and start biases at "
        "zero.",
    ),
    Rule(
        "P208",
        "drowned-terms",
        (_ERROR, _WARNING),
        "a sum in which one term drowns another",
        why="What is added comes to about 1 in training; beside a term of hundreds or thousands it "
        "stays too small to be read, and the next norm makes it and its gradient smaller still.",
        fix="Start the large term smaller: an embedding with std 0.02 to 1, a first layer with "
        "std 1/√fan_in on normalized inputs.",
    ),
)

_NUMBERS = (
    Rule(
        "N401",
        "non-finite-parameter",
        (_ERROR, _WARNING),
        "a parameter holds NaN or infinity",
        why="One NaN reaches every output in one step and every weight in the next.",
        fix="Draw these entries again; look for torch.empty without an init, or a broken "
        "checkpoint.",
    ),
    Rule(
        "N402",
        "unwritten-memory",
        (_ERROR, _WARNING),
        "a parameter looks like memory nobody wrote",
        why="What torch.empty finds differs from run to run: huge values, denormals, or leftovers "
        "of other tensors.",
        fix="Initialize the parameter right where it is created (for example "
        "nn.init.normal_(p, std=0.02)).",
    ),
    Rule(
        "N403",
        "non-finite-signal",
        (_ERROR,),
        "the forward or backward pass makes NaN or infinity",
        why="A loss or gradient that is not finite ends training at the first step.",
        fix="Look at this operation's input: a scale that overflowed, a division by zero, a log or "
        "square root of zero.",
    ),
    Rule(
        "N404",
        "out-of-range",
        (_ERROR, _WARNING),
        "values leave the range of the training dtype",
        why="Past the range a value becomes infinite, and the loss NaN.",
        fix="Scale the weights of this layer (or of those before it) down, or train in bfloat16 or "
        "float32.",
    ),
)

_WIRING = (
    Rule(
        "W501",
        "unused-parameter",
        (_WARNING,),
        "a trainable parameter the forward pass never uses",
        why="They cost memory, never change, and make distributed training wait for gradients that "
        "do not come.",
        fix="Remove them, use them, or freeze them with requires_grad_(False).",
    ),
    Rule(
        "W502",
        "packed-fan",
        (_WARNING,),
        "a packed q, k, v matrix scaled as if it were one",
        why="Each block's fan_out is E, not 3E: its weights start √2 too small and attention "
        "scores half as wide.",
        fix="Draw the three blocks apart: for w in in_proj_weight.chunk(3): "
        "nn.init.xavier_uniform_(w).",
    ),
    Rule(
        "W503",
        "idle-truncation",
        (_WARNING,),
        "a truncated normal whose bounds cut nothing",
        why="The recipe meant a truncated normal and got a plain one, with its full tails and std.",
        fix="Give the bounds in units of the weights: trunc_normal_(w, std=s, a=-2*s, b=2*s).",
    ),
    Rule(
        "W504",
        "idle-initializer",
        (_WARNING,),
        "an initializer without effect: what it drew is computed again, or let go",
        why="The weight is computed again from its parameters in every forward pass, so the start "
        "is not the one that was written down.",
        fix="Initialize before the reparametrization is applied, or use fanin.init_, which draws "
        "the parameters that the weight is computed from.",
    ),
    Rule(
        "W505",
        "clamped-outliers",
        (_WARNING,),
        "tail samples clamped onto a far bound",
        why="A truncated normal that clamps stray samples puts them on the bound: single weights "
        "that drown a unit.",
        fix="Draw these entries again; with bounds in σ (a=-2*std, b=2*std) they cannot occur.",
    ),
)

_OBJECTIVE = (
    Rule(
        "O301",
        "loss-above-chance",
        (_ERROR, _WARNING),
        "the loss starts far above that of guessing",
        why="The first steps go into unlearning confident wrong answers; with a tied embedding it "
        "is the embedding's scale.",
        fix="Start the output layer smaller (or its tied embedding: std 0.02, or 1/√width), or at "
        "zero.",
    ),
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {rule.code: rule for rule in (*_SYMMETRY, *_SIGNALS, *_OBJECTIVE, *_NUMBERS, *_WIRING)}
)
