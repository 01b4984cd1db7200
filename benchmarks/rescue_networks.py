"""The networks and the starts of ``rescue.py``.

Families, tasks and layers of ``trainability_networks.py``, further families, and depths up to 100.
A start here is what a user would do to a whole model: ``STARTS[name](net, recipe, task)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
import trainability_networks as networks
from torch import Tensor, nn
from trainability_networks import (
    ACTIVATIONS,
    WIDTH,
    Block,
    Builder,
    Chain,
    Mixture,
    Network,
    Recipe,
    Recurrent,
    Residual,
    Task,
    Transformer,
    bars,
    biases,
    mixture,
    pulses,
    weights,
)

__all__ = ["BASELINES", "STARTS", "SUITE", "Recurrent", "build", "recipes", "task"]

NARROW = 6  # width of the narrow nets
CHANNELS = 8


# ----------------------------------------------------------------------------------- families


class Gate(nn.Module):
    """value(x) · φ(gate(x))."""

    def __init__(self, inputs: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.activation(self.gate(x))


class Gated(Network):
    """Gated layers one after the other, without norm or skip."""

    def __init__(self, sizes: list[int], outputs: int, activation: str) -> None:
        super().__init__()
        layers = [Gate(a, b, activation) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PostNorm(Transformer):
    """The transformer of 2017: a norm after each sum, none before the head."""

    def __init__(self, activation: str, depth: int, words: int, length: int) -> None:
        super().__init__(activation, 0, words, length)
        layer = partial(nn.TransformerEncoderLayer, WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True)
        self.blocks = nn.ModuleList(layer(ACTIVATIONS[activation]()) for _ in range(depth))
        self.norm = nn.Identity()


class ConvAutoencoder(Network):
    """Strided convolutions down to 2×2, convolutions there, strided transposed ones back."""

    def __init__(self, activation: str, depth: int) -> None:
        super().__init__()
        act, c = ACTIVATIONS[activation], CHANNELS
        layers: list[nn.Module] = [nn.Conv2d(1, c, 4, 2, 1), act(), nn.Conv2d(c, c, 4, 2, 1), act()]
        for _ in range(depth - 4):
            layers += [nn.Conv2d(c, c, 3, 1, 1), act()]
        layers += [nn.ConvTranspose2d(c, c, 4, 2, 1), act(), nn.ConvTranspose2d(c, 1, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def images(g: torch.Generator) -> Task:
    """The bars, to be drawn again."""
    inputs = bars(g).inputs
    return Task(inputs, inputs, float(inputs.var(0, unbiased=False).mean()))


def outputs_of(t: Task) -> int:
    return int(t.targets.max()) + 1 if t.classes else t.targets.shape[1]


def sizes_of(t: Task, depth: int, width: int = WIDTH) -> list[int]:
    return [t.inputs.shape[1]] + [width] * (depth - 1)


def linears(sizes: list[int]) -> list[nn.Module]:
    return [nn.Linear(a, b) for a, b in pairwise(sizes)]


def narrow(t: Task, activation: str, depth: int) -> Network:
    return Chain(linears([*sizes_of(t, depth, NARROW), outputs_of(t)]), [], activation)


def layernorm(t: Task, activation: str, depth: int) -> Network:
    norms: list[nn.Module] = [nn.LayerNorm(WIDTH) for _ in range(depth - 1)]
    return Chain(linears([*sizes_of(t, depth), outputs_of(t)]), norms, activation)


def conv_batchnorm(t: Task, activation: str, depth: int) -> Network:
    net = networks.FAMILIES["conv"][1](t, activation, depth)
    net.norms.extend(nn.BatchNorm2d(CHANNELS) for _ in range(depth - 1))
    return net


def residual_conv(t: Task, activation: str, depth: int) -> Network:
    """Residual convolutions without any norm."""
    conv = partial(nn.Conv2d, CHANNELS, CHANNELS, 3, padding=1)
    blocks = [Block(conv(), conv(), nn.Identity(), activation) for _ in range((depth - 2) // 2)]
    stem = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1)
    return Residual(stem, blocks, nn.Linear(CHANNELS, outputs_of(t)))


def deep_experts(t: Task, activation: str, depth: int) -> Network:
    net = Mixture(t.inputs.shape[1], outputs_of(t), activation, experts=4, width=8)
    chain = lambda: linears([*sizes_of(t, depth, 8), outputs_of(t)])  # noqa: E731
    net.experts = nn.ModuleList(Chain(chain(), [], activation) for _ in range(4))
    return net


def rnn(t: Task, activation: str, depth: int) -> Network:
    cell = partial(nn.RNN, nonlinearity=activation)
    return Recurrent(cell, 2, depth, outputs_of(t))


long_pulses = partial(pulses, length=24)
Family = tuple[Callable[[torch.Generator], Task], Builder]
FAMILIES: dict[str, Family] = {
    **networks.FAMILIES,
    "narrow": (mixture, narrow),
    "layernorm": (mixture, layernorm),
    "gated": (mixture, lambda t, a, d: Gated(sizes_of(t, d), outputs_of(t), a)),
    "deep_experts": (mixture, deep_experts),
    "conv_batchnorm": (bars, conv_batchnorm),
    "residual_conv": (bars, residual_conv),
    "conv_autoencoder": (images, lambda t, a, d: ConvAutoencoder(a, d)),
    "post_norm": (
        networks.copies,
        lambda t, a, d: PostNorm(a, d, outputs_of(t), t.inputs.shape[1]),
    ),
    "rnn": (pulses, rnn),
    "long_rnn": (long_pulses, rnn),
    "long_lstm": (long_pulses, networks.FAMILIES["lstm"][1]),
    "long_gru": (long_pulses, networks.FAMILIES["gru"][1]),
}

# family, activation: depths
SUITE = """
plain relu: 4 16 30 50 100
plain leaky_relu: 30
plain tanh: 8 30 50 100
plain sigmoid: 4 8 16 30
plain gelu: 8 30 50 100
plain silu: 8 30 50
plain elu: 30
plain selu: 30 100
plain softplus: 8 30
plain sin: 8 30 50
narrow relu: 4 10
narrow tanh: 10
coordinate sin: 4 10
coordinate relu: 6
coordinate tanh: 6
conv relu: 8 16 40
conv tanh: 16
conv gelu: 16
conv silu: 8
conv sigmoid: 8
batchnorm relu: 16 30
batchnorm sigmoid: 8
layernorm relu: 16 50
layernorm tanh: 30
layernorm gelu: 50
conv_batchnorm relu: 16
gated silu: 4 8 16
gated sigmoid: 8
residual relu: 16 40 100
residual tanh: 40
residual gelu: 40 100
residual silu: 20
residual_conv relu: 30
residual_conv gelu: 16
residual_norm gelu: 16
residual_norm relu: 60
resnet relu: 10
transformer gelu: 2 4
post_norm relu: 2
post_norm gelu: 6
rnn tanh: 1 2
rnn relu: 1
lstm tanh: 1 3
gru tanh: 1 3
long_rnn tanh: 1
long_rnn relu: 1
long_lstm tanh: 1
long_gru tanh: 1
autoencoder tanh: 8 16
autoencoder relu: 8 16
autoencoder sigmoid: 4 8
autoencoder silu: 8
conv_autoencoder relu: 4 10
conv_autoencoder tanh: 10
experts relu: 2
experts gelu: 2
deep_experts relu: 8
deep_experts tanh: 16
"""


# ------------------------------------------------------------------------------------- starts

Start = Callable[[Network, Recipe, Task], None]


def torch_gain(activation: str) -> float:
    """What ``torch.nn.init.calculate_gain`` says; 1 where it does not know the activation."""
    try:
        return nn.init.calculate_gain(activation, 0.01 if activation == "leaky_relu" else None)
    except ValueError:
        return 1.0


@torch.no_grad()
def draw(net: Network, fill: Callable[[Tensor], object]) -> None:
    """Fill every weight matrix and filter; biases zero; norms and embeddings as torch left them."""
    for weight in weights(net):
        fill(weight)
    for bias in biases(net):
        bias.zero_()


def lsuv(net: Network, inputs: Tensor) -> None:
    """The package as its README has it: orthonormal, then each layer's output to std 1."""
    from lsuv import lsuv_with_singlebatch

    lsuv_with_singlebatch(net, inputs, verbose=False)


def auto(net: Network, inputs: Tensor, seed: int) -> None:
    import fanin

    fanin.init_(net, inputs, scheme="auto", seed=seed)


STARTS: dict[str, Start] = {
    "default": lambda net, recipe, t: None,  # as torch left it
    "xavier": lambda net, recipe, t: draw(
        net, partial(nn.init.xavier_normal_, gain=torch_gain(recipe.activation))
    ),
    "he": lambda net, recipe, t: draw(net, nn.init.kaiming_normal_),
    "orthogonal": lambda net, recipe, t: draw(
        net, partial(nn.init.orthogonal_, gain=torch_gain(recipe.activation))
    ),
    "lsuv": lambda net, recipe, t: lsuv(net, t.inputs),
    "auto": lambda net, recipe, t: auto(net, t.inputs, recipe.seed),
}
BASELINES = tuple(name for name in STARTS if name != "auto")


# ------------------------------------------------------------------------------------ recipes


def recipes(start: str, seed: int = 0) -> Iterator[Recipe]:
    """Every architecture of the suite, begun in one way."""
    for line in SUITE.strip().splitlines():
        family, activation = line.partition(":")[0].split()
        for depth in line.partition(":")[2].split():
            yield Recipe(family, activation, int(depth), start, seed)


def task(recipe: Recipe) -> Task:
    data, _ = FAMILIES[recipe.family]
    return data(torch.Generator().manual_seed(recipe.seed))


def build(recipe: Recipe, t: Task) -> Network:
    """The recipe's network at its start; torch's global generator is left as it was."""
    _, family = FAMILIES[recipe.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = family(t, recipe.activation, recipe.depth)
        STARTS[recipe.start](net, recipe, t)
    return net
