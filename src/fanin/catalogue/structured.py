"""Matrices whose entries are drawn together: orthogonal, mirrored, Hadamard, upsampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fanin.catalogue.basic import CENTRED
from fanin.catalogue.scheme import Fan, Scheme, among, flag, integer, sizes
from fanin.errors import ArgumentError

__all__ = ["STRUCTURED", "triangle"]

_Arguments = Mapping[str, Any]

_SCALE = among("scale", "norm", ("norm", "variance"))
_SCALE_WORDS = 'scale="variance" multiplies with √(rows / rank): each output has variance gain²'


def triangle(taps: int) -> list[float]:
    """Weights along one dimension of linear interpolation by a transposed convolution.

    >>> triangle(4)
    [0.25, 0.75, 0.75, 0.25]
    """
    factor = (taps + 1) // 2
    centre = factor - 1 if taps % 2 else factor - 0.5
    return [1 - abs(i - centre) / factor for i in range(taps)]


def _semi_orthogonal(rows: int, columns: int, arguments: _Arguments) -> float:
    """Root mean square of [rows, columns] with orthonormal rows or columns, scaled as asked."""
    seen = columns - 1 if arguments.get("centred") else columns
    if arguments["scale"] == "variance":
        return 1 / math.sqrt(columns)
    return math.sqrt(min(rows, seen) / (rows * columns))


def _orthogonal(fan: Fan, arguments: _Arguments) -> float:
    if arguments["scale"] == "variance" and isinstance(fan, (int, float)) and fan > 0:
        return 1 / math.sqrt(fan)
    inputs, outputs, kernel = sizes("orthogonal", fan)
    taps = math.prod(kernel)
    if arguments["centred"] and arguments["scale"] == "norm":  # one direction less for each tap
        return math.sqrt(min(outputs, (inputs - 1) * taps) / (outputs * inputs * taps))
    return _semi_orthogonal(outputs, inputs * taps, arguments)


def _delta_orthogonal(fan: Fan, arguments: _Arguments) -> float:
    inputs, outputs, kernel = sizes("delta_orthogonal", fan)
    return _semi_orthogonal(outputs, inputs, arguments) / math.sqrt(math.prod(kernel))


def _looks_linear(fan: Fan, arguments: _Arguments) -> float:
    inputs, outputs, kernel = sizes("looks_linear", fan)
    rows = outputs if arguments["last"] else outputs // 2
    columns = inputs if arguments["first"] else inputs // 2
    columns *= math.prod(kernel) if arguments["patch"] else 1
    spare = 0 if arguments["last"] else outputs % 2
    squares = min(rows, columns) * (1 if arguments["last"] else 2) + spare
    squares *= 1 if arguments["first"] else 2
    return math.sqrt(squares / (outputs * inputs * math.prod(kernel)))


def _hadamard(fan: Fan, _: _Arguments) -> float:
    inputs, outputs, kernel = sizes("hadamard", fan)
    return 1 / math.sqrt(max(inputs * math.prod(kernel), outputs))


def _zero_hadamard(fan: Fan, _: _Arguments) -> float:
    inputs, outputs, kernel = sizes("zero_hadamard", fan)
    if outputs <= inputs:
        return 1 / math.sqrt(inputs * math.prod(kernel))
    power = 2 ** math.ceil(math.log2(outputs))
    return 1 / math.sqrt(power * math.prod(kernel))


def _irnn(fan: Fan, _: _Arguments) -> float:
    inputs, _outputs, _kernel = sizes("irnn", fan)
    return 1 / math.sqrt(inputs)


def _bilinear(fan: Fan, _: _Arguments) -> float:
    inputs, _outputs, kernel = sizes("bilinear_upsampling", fan)
    if not kernel:
        raise ArgumentError(f"fan: {fan!r}; bilinear_upsampling needs (inputs, outputs, *kernel)")
    squares = math.prod(sum(w * w for w in triangle(k)) / k for k in kernel)
    return math.sqrt(squares / inputs)


STRUCTURED = (
    Scheme(
        "orthogonal",
        "orthonormal rows or columns",
        "W Wᵀ = gain²·I (rows ≤ columns) or Wᵀ W = gain²·I (rows ≥ columns), of "
        "[outputs, inputs·taps]; std = gain / √max(rows, columns). "
        f"{_SCALE_WORDS}; std = gain / √fan_in",
        "Deep plain networks: all singular values are one, not only their mean square. "
        'scale="variance" for layers that grow, so that each output keeps the input\'s variance.',
        "Saxe, McClelland, Ganguli (2014), Exact Solutions to the Nonlinear Dynamics of Learning "
        "in Deep Linear Neural Networks, section 3: arXiv:1312.6120",
        "matrix",
        _orthogonal,
        arguments=(_SCALE, CENTRED),
        needs="a matrix, or a kernel seen as the matrix [outputs, inputs·taps]",
        example="""\
weight = torch.empty(64, 64)
fanin.fill_(weight, "orthogonal")
assert torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-6)
""",
    ),
    Scheme(
        "delta_orthogonal",
        "an orthogonal matrix at the centre of a kernel",
        "W[:, :, centre] orthogonal with gain, else 0; std = gain / √(max(inputs, outputs)·taps). "
        f"{_SCALE_WORDS}; std = gain / √(inputs·taps)",
        "Deep plain convolutional nets (10,000 layers in the paper): the norm of the signal is "
        "kept exactly where inputs ≤ outputs.",
        "Xiao, Bahri, Sohl-Dickstein, Schoenholz, Pennington (2018), Dynamical Isometry and a Mean "
        "Field Theory of CNNs (delta-orthogonal kernels): arXiv:1806.05393",
        "matrix",
        _delta_orthogonal,
        arguments=(_SCALE, CENTRED),
        needs="a convolution kernel",
        example="""\
kernel = torch.empty(16, 16, 3, 3)
fanin.fill_(kernel, "delta_orthogonal")
x = torch.randn(1, 16, 8, 8)
y = torch.nn.functional.conv2d(x, kernel, padding=1)
assert torch.allclose(y.norm(), x.norm())
""",
    ),
    Scheme(
        "looks_linear",
        "mirrored orthogonal blocks: layers of ReLU and its kin that start linear",
        "W = [[M, −M], [−M, M]], M orthogonal with gain; first layer [[M], [−M]], last [M, −M]; at "
        "the centre of a kernel, with patch=True over all its taps; the spare unit of an odd width "
        "is N(0, gain²/columns), its outgoing weights 0; std = gain / √max(rows, columns of M)",
        "Deep networks of relu, gelu, silu, softplus … without norm or skip: φ(x) − φ(−x) = x, so "
        "the two halves of a layer carry one linear signal and all singular values of the Jacobian "
        "are one. With `mirrored_bias` in the first layer. patch=True where the first layer is a "
        "convolution of few channels, whose centre tap has few directions.",
        "Balduzzi, Frean, Leary, Lewis, Ma, McWilliams (2017), The Shattered Gradients "
        "Problem (looks-linear initialization): arXiv:1702.08591",
        "matrix",
        _looks_linear,
        arguments=(flag("first"), flag("last"), flag("patch")),
        needs="a matrix or kernel with two units or more on each mirrored side",
        example="""\
first, last = torch.empty(32, 16), torch.empty(16, 32)
fanin.fill_(first, "looks_linear", first=True, name="first")
fanin.fill_(last, "looks_linear", last=True, name="last")
x = torch.randn(16)
assert torch.allclose((last @ torch.relu(first @ x)).norm(), x.norm())
""",
    ),
    Scheme(
        "hadamard",
        "a product of Hadamard matrices and random signs: orthonormal rows or columns",
        "the first rows and columns of S·H·D·P·H·T / n, n = max(rows, columns), of "
        "[outputs, inputs·taps], times gain: H Hadamard, S, D, T random signs, P a random "
        "permutation; std = gain / √n",
        "Large orthogonal layers of the sizes 2ᵏ, 12·2ᵏ and 20·2ᵏ: the same bits on every machine, "
        "and no factorization of n³ operations. Not Haar-distributed.",
        "Ailon, Chazelle (2009), The Fast Johnson–Lindenstrauss Transform, SIAM J. Comput. 39; Yu, "
        "Suresh, Choromanski, Holtmann-Rice, Kumar (2016), Orthogonal Random Features: "
        "arXiv:1610.09072",
        "matrix",
        _hadamard,
        needs="a matrix whose larger side is 2ᵏ, 12·2ᵏ or 20·2ᵏ",
        example="""\
weight = torch.empty(64, 64)
fanin.fill_(weight, "hadamard")
assert torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-6)
""",
    ),
    Scheme(
        "zero_hadamard",
        "identity, or Hadamard where a layer grows: nothing is random",
        "outputs ≤ inputs: gain·I cut to size; outputs > inputs: gain·2^(−m/2)·H cut to size, H "
        "the Hadamard matrix of order 2^m, m = ⌈log₂ outputs⌉; at the centre of a kernel; "
        "std = gain / √(inputs·taps), or gain·2^(−m/2) / √taps",
        "Residual networks of identities and zeros (`zeros` for the last layer of each branch). "
        "The paper prints 2^(−(m−1)/2): that is gain=√2; its code has 2^(−m/2).",
        "Zhao, Schäfer, Anandkumar (2022), ZerO Initialization: Initializing Neural Networks with "
        "only Zeros and Ones, algorithms 1 and 2: arXiv:2110.12661",
        "matrix",
        _zero_hadamard,
        needs="a matrix or a convolution kernel",
        example="""\
weight = torch.empty(8, 4)
fanin.fill_(weight, "zero_hadamard")
assert torch.allclose(weight.T @ weight, torch.eye(4), atol=1e-6)
""",
    ),
    Scheme(
        "irnn",
        "the identity for a recurrent matrix of ReLU units",
        "W = gain·I; std = gain / √hidden",
        "The hidden-to-hidden matrix of a ReLU RNN, with zero biases: it starts by keeping its "
        "state. A gain below 1 forgets.",
        "Le, Jaitly, Hinton (2015), A Simple Way to Initialize Recurrent Networks of Rectified "
        "Linear Units, section 2: arXiv:1504.00941",
        "matrix",
        _irnn,
        needs="a square matrix",
        signed=True,
        example="""\
rnn = torch.nn.RNN(4, 8, nonlinearity="relu")
fanin.fill_(rnn.weight_hh_l0, "irnn")
assert torch.equal(rnn.weight_hh_l0, torch.eye(8))
""",
    ),
    Scheme(
        "icnr",
        "copies for the channels that pixel shuffle lays side by side",
        "the scale² kernels that make one channel are copies of one kernel with "
        "w ~ N(0, gain²/fan_in); std = gain·√(1 / fan_in)",
        "A convolution before `PixelShuffle(scale)`: the start is a nearest-neighbour enlargement, "
        "without a checkerboard.",
        "Aitken, Ledig, Theis, Caballero, Wang, Shi (2017), Checkerboard Artifact Free Sub-Pixel "
        "Convolution, section 3.2: arXiv:1707.02937",
        "matrix",
        lambda fan, _: math.sqrt(1 / fan),
        "fan_in",
        arguments=(integer("scale", 2, "the factor of the pixel shuffle, at least 1", 1),),
        needs="a convolution kernel with outputs divisible by scale²",
        example="""\
conv = torch.nn.Conv2d(8, 4 * 2**2, 3, padding=1, bias=False)
fanin.fill_(conv.weight, "icnr", scale=2)
image = torch.nn.functional.pixel_shuffle(conv(torch.randn(1, 8, 5, 5)), 2)
assert torch.equal(image[..., ::2, ::2], image[..., 1::2, 1::2])
""",
    ),
    Scheme(
        "bilinear_upsampling",
        "a transposed convolution that interpolates",
        "W[c, c] = gain·t⊗t…, t[i] = 1 − |i − centre| / ⌈taps/2⌉, and 0 between channels; "
        "std = gain·√(∏ mean t² / inputs)",
        "Transposed convolutions that enlarge by s with kernels of 2s − (s mod 2): the start is "
        "linear interpolation of each channel.",
        "Shelhamer, Long, Darrell (2017), Fully Convolutional Networks for Semantic Segmentation "
        "(upsampling is fractionally strided convolution): arXiv:1605.06211",
        "matrix",
        _bilinear,
        needs="the kernel of a transposed convolution with as many outputs as inputs",
        signed=True,
        example="""\
up = torch.nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1, bias=False)
fanin.fill_(up.weight, "bilinear_upsampling")
image = up(torch.ones(1, 3, 6, 6))
assert torch.allclose(image[..., 2:-2, 2:-2], torch.ones(8, 8))
""",
    ),
)
