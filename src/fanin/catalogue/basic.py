"""Schemes whose scale is the gain itself, and the plain patterns: identity, dirac, sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fanin.catalogue.scheme import Argument, Fan, Scheme, flag, is_number, sizes

__all__ = ["BASIC", "BOUNDS", "CENTRED", "zero_inputs"]


def _is_bound(value: Any) -> bool:
    return is_number(value) or value in (math.inf, -math.inf)


#: Of a truncated normal, in σ of the normal that is cut.
BOUNDS = (
    Argument("low", -2.0, "a number below high, or −∞, in σ of the normal that is cut", _is_bound),
    Argument("high", 2.0, "a number above low, or ∞, in σ of the normal that is cut", _is_bound),
)

#: Rows that sum to zero do not see the mean of their input.
CENTRED = flag("centred")


def zero_inputs(inputs: int, sparsity: float) -> int:
    """How many incoming weights of a unit are zero."""
    # the small amount keeps 0.1·30 = 3.0000000000000004 from counting as 4
    return min(math.ceil(sparsity * inputs - 1e-9), inputs - 1)


def _identity(fan: Fan, _: Mapping[str, Any]) -> float:
    inputs, outputs, kernel = sizes("identity", fan)
    return 1 / math.sqrt(max(inputs, outputs) * math.prod(kernel))


def _sparse(fan: Fan, arguments: Mapping[str, Any]) -> float:
    if fan is None:
        return math.sqrt(1 - arguments["sparsity"])
    inputs, _, kernel = sizes("sparse", fan)
    inputs *= math.prod(kernel)
    return math.sqrt(1 - zero_inputs(inputs, arguments["sparsity"]) / inputs)


BASIC = (
    Scheme(
        "zeros",
        "every weight 0",
        "w = 0",
        "Biases; the last layer of a residual branch; one factor of a product whose other factor "
        "is not zero. Never all weights of a network: its units would stay copies of one another.",
        "Goodfellow, Bengio, Courville (2016), Deep Learning, section 8.4",
        "constant",
        lambda fan, arguments: 0.0,
        example="""\
bias = torch.empty(64)
fanin.fill_(bias, "zeros")
assert (bias == 0).all()
""",
    ),
    Scheme(
        "ones",
        "every weight 1",
        "w = gain",
        "The scale of a norm.",
        "Ioffe, Szegedy (2015), Batch Normalization, section 3: arXiv:1502.03167",
        "constant",
        lambda fan, arguments: 1.0,
        signed=True,
        example="""\
scale = torch.empty(64)
fanin.fill_(scale, "ones")
assert (scale == 1).all()
""",
    ),
    Scheme(
        "constant",
        "every weight the gain",
        "w = gain",
        "Biases and gates that start at a known value; LayerScale (gain=1e-4).",
        "Touvron, Cord, Sablayrolles, Synnaeve, Jégou (2021), Going Deeper with Image "
        "Transformers, section 2: arXiv:2103.17239",
        "constant",
        lambda fan, arguments: 1.0,
        signed=True,
        example="""\
gate = torch.empty(64)
fanin.fill_(gate, "constant", gain=-2.0)
assert (gate == -2).all()
""",
    ),
    Scheme(
        "identity",
        "ones on the diagonal",
        "W = gain·I; std = gain / √max(inputs, outputs)",
        "Layers that should hand their input on at the start: recurrent matrices of ReLU units, "
        "adapters, skip projections.",
        "Le, Jaitly, Hinton (2015), A Simple Way to Initialize Recurrent Networks of Rectified "
        "Linear Units, section 2: arXiv:1504.00941",
        "matrix",
        _identity,
        needs="a matrix",
        signed=True,
        example="""\
weight = torch.empty(4, 6)
fanin.fill_(weight, "identity")
x = torch.randn(6)
assert torch.equal(weight @ x, x[:4])
""",
    ),
    Scheme(
        "dirac",
        "a convolution that hands its input on",
        "W[c, c, centre] = gain, else 0, in each group; std = gain / √(max(inputs, outputs)·taps)",
        "Convolutions that should start as the identity: residual and plain deep nets.",
        "Zagoruyko, Komodakis (2017), DiracNets, section 3: arXiv:1706.00388",
        "matrix",
        _identity,
        needs="a convolution kernel",
        signed=True,
        example="""\
kernel = torch.empty(8, 8, 3, 3)
fanin.fill_(kernel, "dirac")
x = torch.randn(1, 8, 10, 10)
assert torch.equal(torch.nn.functional.conv2d(x, kernel, padding=1), x)
""",
    ),
    Scheme(
        "sparse",
        "a few normal weights for each unit, the others 0",
        "⌈sparsity·inputs⌉ weights of each unit are 0, the others N(0, gain²); "
        "std = gain·√(1 − sparsity)",
        "Wide layers whose units should not all see the same: the total input of a unit does not "
        "depend on the width.",
        "Martens (2010), Deep Learning via Hessian-free Optimization, section 5 (there 15 weights "
        "of std 1 for each unit): https://icml.cc/Conferences/2010/papers/458.pdf",
        "matrix",
        _sparse,
        arguments=(
            Argument(
                "sparsity",
                0.9,
                "a share from 0 to 1 (1 not included)",
                lambda v: is_number(v) and 0 <= v < 1,
            ),
        ),
        needs="a matrix",
        example="""\
weight = torch.empty(64, 150)
fanin.fill_(weight, "sparse", sparsity=0.9)
assert ((weight != 0).sum(1) == 15).all()
""",
    ),
    Scheme(
        "normal",
        "independent normal weights",
        "w ~ N(0, gain²); std = gain",
        "Embeddings, or wherever the std is known: gain is the std.",
        "Radford, Wu, Child, Luan, Amodei, Sutskever (2019), Language Models are Unsupervised "
        "Multitask Learners (std 0.02)",
        "normal",
        lambda fan, arguments: 1.0,
        arguments=(CENTRED,),
        example="""\
table = torch.empty(1000, 64)
fanin.fill_(table, "normal", gain=0.02)
assert abs(table.std() / 0.02 - 1) < 0.02
""",
    ),
    Scheme(
        "uniform",
        "independent uniform weights",
        "w ~ U(−gain, gain); std = gain / √3",
        "Wherever the bound is known: gain is the bound.",
        "LeCun, Bottou, Orr, Müller (1998), Efficient BackProp, section 4.6",
        "uniform",
        lambda fan, arguments: 1 / math.sqrt(3),
        example="""\
weight = torch.empty(100, 100)
fanin.fill_(weight, "uniform", gain=0.1)
assert weight.abs().max() <= 0.1
""",
    ),
    Scheme(
        "trunc_normal",
        "independent normal weights without tails",
        "w ~ N(0, σ²) between low·σ and high·σ, σ such that std = gain",
        "As `normal`, where single large weights would hurt: vision transformers, embeddings. "
        "Bounds are in σ, so they cut at any scale; the std is that of what is left (a normal of "
        "std 1 cut at ±2 has 0.8796). With bounds that do not mirror each other the mean is not 0.",
        "Johnson, Kotz, Balakrishnan (1994), Continuous Univariate Distributions 1, section 13.10 "
        "(the std of what is left)",
        "trunc_normal",
        lambda fan, arguments: 1.0,
        arguments=BOUNDS,
        example="""\
weight = torch.empty(200, 200)
fanin.fill_(weight, "trunc_normal", gain=0.02)
assert abs(weight.std() / 0.02 - 1) < 0.02
assert weight.abs().max() <= 2 * 0.02 / 0.8796
""",
    ),
)
