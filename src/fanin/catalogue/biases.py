"""Biases with a meaning: gates that remember, outputs that start at the base rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fanin.catalogue.scheme import Argument, Scheme, is_number, number

__all__ = ["BIASES", "focal_value", "log_priors"]

_Arguments = Mapping[str, Any]


def focal_value(prior: float) -> float:
    """−log((1 − π)/π): the logit of π.

    >>> round(focal_value(0.01), 4)
    -4.5951
    """
    return -math.log((1 - prior) / prior)


def log_priors(priors: Sequence[float]) -> list[float]:
    """log of each share; counts are divided by their sum first.

    >>> [round(v, 4) for v in log_priors([1, 3])]
    [-1.3863, -0.2877]
    """
    total = math.fsum(priors)
    return [math.log(p / total) for p in priors]


def _prior_bias(_: Any, arguments: _Arguments) -> float:
    values = log_priors(arguments["priors"])
    return math.sqrt(math.fsum(v * v for v in values) / len(values))


def _chrono(_: Any, arguments: _Arguments) -> float:
    longest = arguments["t_max"] - 1.0
    log = math.log(longest)
    square = (longest * (log * log - 2 * log + 2) - 2) / (longest - 1)  # E[log² U(1, longest)]
    return math.sqrt(square / 2)  # two of four gates


def _are_priors(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(is_number(p) and p > 0 for p in value)
        and math.isfinite(math.fsum(value))
    )


_GATES = "an LSTM bias [4·hidden] (torch's order of gates: i, f, g, o)"

BIASES = (
    Scheme(
        "forget_gate_bias",
        "an LSTM that starts by remembering",
        "b_f = gain·value, b_i = b_g = b_o = 0; root mean square gain·|value| / 2",
        "One of the two biases of an LSTM (they are added; the other one `zeros`).",
        "Gers, Schmidhuber, Cummins (2000), Learning to Forget, section 3; Jozefowicz, Zaremba, "
        "Sutskever (2015), An Empirical Exploration of Recurrent Network Architectures, "
        "section 2.2: https://proceedings.mlr.press/v37/jozefowicz15.html",
        "matrix",
        lambda fan, arguments: abs(arguments["value"]) / 2,
        arguments=(number("value", 1.0, "a finite number"),),
        needs=_GATES,
        example="""\
lstm = torch.nn.LSTM(4, 8)
fanin.fill_(lstm.bias_ih_l0, "forget_gate_bias")
fanin.fill_(lstm.bias_hh_l0, "zeros")
assert lstm.bias_ih_l0.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
""",
    ),
    Scheme(
        "chrono_bias",
        "an LSTM whose units remember for times up to t_max",
        "b_f = gain·log U(1, t_max − 1), b_i = −b_f, b_g = b_o = 0; root mean square "
        "gain·√(E[log² U] / 2)",
        "One of the two biases of an LSTM (the other one `zeros`), where dependencies are known to "
        "span up to t_max steps.",
        "Tallec, Ollivier (2018), Can Recurrent Neural Networks Warp Time?, eq. 16: "
        "arXiv:1804.11188",
        "matrix",
        _chrono,
        arguments=(number("t_max", 100.0, "a number of steps above 2", 2.0),),
        needs=_GATES,
        example="""\
lstm = torch.nn.LSTM(4, 8)
fanin.fill_(lstm.bias_ih_l0, "chrono_bias", t_max=784)
i, f, g, o = lstm.bias_ih_l0.chunk(4)
assert torch.equal(i, -f)
""",
    ),
    Scheme(
        "mirrored_bias",
        "offsets in opposite pairs, for the first layer of a looks_linear network",
        "b = [β, −β], β ~ N(0, gain²); the spare unit of an odd width 0; root mean square gain",
        "The first layer of a `looks_linear` network, with gain 0.5 where pre-activations have std "
        "1: the linear start carries the offsets through all layers, so that no two kinks meet in "
        "the origin.",
        "Balduzzi et al. (2017), The Shattered Gradients Problem, section 4, for the mirrored "
        "units: arXiv:1702.08591; the offset and its size were measured here",
        "matrix",
        lambda fan, arguments: 1.0,
        needs="a vector: one bias for each unit",
        example="""\
bias = torch.empty(64)
fanin.fill_(bias, "mirrored_bias", gain=0.5)
assert torch.equal(bias[:32], -bias[32:])
""",
    ),
    Scheme(
        "prior_bias",
        "a classifier that starts at the frequencies of the classes",
        "b_c = gain·log(π_c)",
        "The bias of the last layer before softmax, where classes are of unequal size: the loss "
        "starts at the entropy of the classes.",
        "Bishop (2006), Pattern Recognition and Machine Learning, eq. 4.63; Karpathy (2019), A "
        "Recipe for Training Neural Networks",
        "matrix",
        _prior_bias,
        arguments=(Argument("priors", None, "a share or count for each class", _are_priors),),
        needs="a vector with one entry for each class",
        example="""\
bias = torch.empty(3)
fanin.fill_(bias, "prior_bias", priors=[800, 150, 50])
assert torch.allclose(bias.softmax(0), torch.tensor([0.80, 0.15, 0.05]))
""",
    ),
    Scheme(
        "focal_bias",
        "a detector that starts by finding nothing",
        "b = −gain·log((1 − prior) / prior)",
        "The bias of the last layer before sigmoid, where almost all targets are 0.",
        "Lin, Goyal, Girshick, He, Dollár (2017), Focal Loss for Dense Object Detection, "
        "section 4.1: arXiv:1708.02002",
        "matrix",
        lambda fan, arguments: abs(focal_value(arguments["prior"])),
        arguments=(
            Argument(
                "prior",
                0.01,
                "a probability between 0 and 1",
                lambda v: is_number(v) and 0 < v < 1 and 1 - v < 1,
            ),
        ),
        example="""\
bias = torch.empty(80)
fanin.fill_(bias, "focal_bias", prior=0.01)
assert torch.allclose(bias.sigmoid(), torch.tensor(0.01))
""",
    ),
)
