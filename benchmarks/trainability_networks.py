"""The networks of ``trainability.py``: recipes, offline data, families and starts.

A :class:`Recipe` names a network completely; ``build(recipe)`` returns ``(model, batch, loss)``.
Everything is generated from seeds, nothing is downloaded.  One rule keeps the starts short:
every family tells its ``pairs()``, the (incoming, outgoing) modules of its private hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RECIPES", "Recipe", "Recurrent", "Task", "build", "task"]

SAMPLES = 256
WIDTH = 16
Pairs = list[tuple[nn.Module, nn.Module]]


@dataclass(frozen=True)
class Recipe:
    """One network: what it is, and how it starts."""

    family: str
    activation: str
    depth: int  # layers with weights between input and output, the head included
    start: str  # names of STARTS joined by "+"
    seed: int = 0

    @property
    def architecture(self) -> tuple[str, str, int]:
        return (self.family, self.activation, self.depth)

    def __str__(self) -> str:
        return f"{self.family}/{self.activation}/{self.depth}/{self.start}"


# --------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Task:
    """Inputs, targets, the loss, and the loss of the best constant answer."""

    inputs: Tensor
    targets: Tensor
    chance: float

    @property
    def classes(self) -> bool:
        return not self.targets.is_floating_point()

    def loss(self, output: Tensor, targets: Tensor | None = None) -> Tensor:
        targets = self.targets if targets is None else targets
        if not self.classes:
            return F.mse_loss(output, targets)
        return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def _classify(inputs: Tensor, targets: Tensor) -> Task:
    share = targets.flatten().bincount().double() / targets.numel()
    return Task(inputs, targets, float(-(share * share.log()).nansum()))


def _regress(inputs: Tensor, targets: Tensor) -> Task:
    targets = (targets - targets.mean(0)) / targets.std(unbiased=False)
    return Task(inputs, targets, float(targets.var(0, unbiased=False).mean()))


def blobs(g: torch.Generator, classes: int = 6, dims: int = 8) -> Task:
    """One cluster for each class: a linear map is enough."""
    which = torch.arange(SAMPLES) % classes
    centres = 2 * torch.randn(classes, dims, generator=g)
    return _classify(centres[which] + torch.randn(SAMPLES, dims, generator=g), which)


def mixture(g: torch.Generator, classes: int = 6, dims: int = 8) -> Task:
    """Each class is two clusters at +m and two at −m: no linear map of x says anything."""
    centres = F.normalize(torch.randn(2 * classes, dims, generator=g), dim=1) * 3
    which = torch.arange(SAMPLES) % (2 * classes)
    sign = torch.randint(0, 2, (SAMPLES, 1), generator=g) * 2 - 1
    noise = 0.3 * torch.randn(SAMPLES, dims, generator=g)
    return _classify(sign * centres[which] + noise, which % classes)


def spirals(g: torch.Generator, classes: int = 4, nuisance: int = 2) -> Task:
    """Arms of a spiral that come in pairs (again blind to linear maps), and nuisance inputs."""
    arm = torch.arange(SAMPLES) % (2 * classes)
    radius = 0.2 + torch.rand(SAMPLES, generator=g)
    angle = arm * math.pi / classes + 1.5 * radius
    plane = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None] * 2
    noise = torch.randn(SAMPLES, nuisance, generator=g)
    return _classify(torch.cat([plane, 0.3 * noise], 1), arm % classes)


def teacher(g: torch.Generator, dims: int = 8, outputs: int = 4) -> Task:
    """Regression on the even part of a random network."""
    inputs = torch.randn(SAMPLES, dims, generator=g)
    inner = torch.randn(dims, outputs, generator=g) / math.sqrt(dims)
    return _regress(inputs, (1.5 * inputs @ inner).cos())


def waves(g: torch.Generator) -> Task:
    """A picture as a function of its two coordinates."""
    inputs = torch.rand(SAMPLES, 2, generator=g) * 2 - 1
    x, y = inputs.T
    picture = torch.stack([(4 * x).cos() * (3 * y).sin(), (3 * x * y + y).cos()], 1)
    return _regress(inputs, picture)


def manifold(g: torch.Generator, latent: int = 3, dims: int = 24) -> Task:
    """Points of a curved three-dimensional surface, to be reproduced through a bottleneck."""
    z = torch.randn(SAMPLES, latent, generator=g)
    features = torch.cat([z, (2 * z).sin(), z.roll(1, 1) * z], 1)
    points = features @ torch.randn(3 * latent, dims, generator=g) / math.sqrt(3 * latent)
    targets = _regress(points, points)
    return Task(targets.targets, targets.targets, targets.chance)


def bars(g: torch.Generator, size: int = 8) -> Task:
    """A bar in one of four orientations, anywhere, black or white: the mean image is empty."""
    x, y = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    lines = torch.stack([x, y, x + y, x - y + size - 1])
    which = torch.arange(SAMPLES) % 4
    low = torch.tensor([1, 1, 4, 4])[which]
    span = torch.tensor([6, 6, 7, 7])[which]
    place = low + (torch.rand(SAMPLES, generator=g) * span).long()
    sign = torch.randint(0, 2, (SAMPLES, 1, 1), generator=g) * 2.0 - 1
    image = (lines[which] == place[:, None, None]) * sign
    image = 2 * image + 0.3 * torch.randn(image.shape, generator=g)
    return _classify(image[:, None], which)


def pulses(g: torch.Generator, length: int = 6) -> Task:
    """Two pulses of random sign in a noisy sequence: which step, and which channel, came first."""
    step = torch.arange(SAMPLES) % 3
    channel = torch.arange(SAMPLES) // 3 % 2
    sign = torch.randint(0, 2, (SAMPLES,), generator=g) * 2.0 - 1
    inputs = 0.2 * torch.randn(SAMPLES, length, 2, generator=g)
    inputs[torch.arange(SAMPLES), step, channel] += 3 * sign
    return _classify(inputs, 2 * step + channel)


def copies(g: torch.Generator, length: int = 6, words: int = 5) -> Task:
    """At every place say the word that stands one place before it."""
    tokens = torch.randint(0, words, (SAMPLES, length), generator=g)
    return _classify(tokens, tokens.roll(1, 1))


# ----------------------------------------------------------------------------------- families


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "sin": Sine,
}
GAIN = {
    "relu": 1.4142,
    "leaky_relu": 1.4141,
    "tanh": 1.5925,
    "sigmoid": 1.8462,
    "gelu": 1.5335,
    "silu": 1.6765,
    "elu": 1.2452,
    "selu": 1.0,
    "softplus": 1.0419,
    "sin": 1.5209,
}


class Network(nn.Module):
    """Base of all families."""

    def pairs(self) -> Pairs:
        """The modules before and after each group of hidden units that no other module sees."""
        return []


class Chain(Network):
    """Weighted layers one after the other, with an optional norm before each activation."""

    def __init__(self, layers: list[nn.Module], norms: list[nn.Module], activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norms = nn.ModuleList(norms)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = self.norms[i](x) if self.norms else x
            x = self.activation(x)
        return self.layers[-1](x.mean((-2, -1)) if x.ndim == 4 else x)

    def pairs(self) -> Pairs:
        return list(zip(self.layers[:-1], self.layers[1:], strict=True))


class Block(nn.Module):
    """x + out(φ(in(norm x)))."""

    def __init__(self, inner: nn.Module, outer: nn.Module, norm: nn.Module, act: str) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = norm, inner, outer
        self.last = nn.Identity()
        self.activation = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.outer(self.activation(self.inner(self.norm(x)))))


class Residual(Network):
    """Stem, residual blocks of two layers, head."""

    def __init__(self, stem: nn.Module, blocks: list[Block], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((-2, -1)) if x.ndim == 4 else x)

    def pairs(self) -> Pairs:
        return [(block.inner, block.outer) for block in self.blocks]


class Attention(nn.Module):
    """Encoder layer before whose two branches a norm stands."""

    def __init__(self, activation: str, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        self.mlp = Block(
            nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), self.norm2, activation
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        return self.mlp(x + self.attention(h, h, h, need_weights=False)[0])


class Transformer(Network):
    """Tiny encoder that answers at every place."""

    def __init__(self, activation: str, depth: int, words: int, length: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, WIDTH)
        self.places = nn.Parameter(torch.randn(length, WIDTH))
        self.blocks = nn.ModuleList(Attention(activation) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def pairs(self) -> Pairs:
        return [(block.mlp.inner, block.mlp.outer) for block in self.blocks]


class Recurrent(Network):
    """LSTM or GRU whose last state is read out."""

    def __init__(self, cell: type[nn.RNNBase], inputs: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.rnn = cell(inputs, WIDTH, num_layers=depth, batch_first=True)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Mixture(Network):
    """Softly routed experts."""

    def __init__(self, inputs: int, outputs: int, activation: str, experts: int, width: int):
        super().__init__()
        self.router = nn.Linear(inputs, experts)
        self.experts = nn.ModuleList(
            Chain([nn.Linear(inputs, width), nn.Linear(width, outputs)], [], activation)
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([expert(x) for expert in self.experts], -1)
        return (answers * self.router(x).softmax(-1)[:, None]).sum(-1)

    def pairs(self) -> Pairs:
        return [pair for expert in self.experts for pair in expert.pairs()]


class LoRA(nn.Module):
    """A frozen linear layer plus a trainable product of low rank."""

    def __init__(self, inputs: int, outputs: int, rank: int = 6) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T


def _linears(sizes: list[int], layer: Callable[[int, int], nn.Module] = nn.Linear) -> list:
    return [layer(a, b) for a, b in pairwise(sizes)]


def _plain(t: Task, activation: str, depth: int, norm: bool = False) -> Network:
    sizes = [t.inputs.shape[1]] + [WIDTH] * (depth - 1) + [_outputs(t)]
    norms = [nn.BatchNorm1d(WIDTH) for _ in range(depth - 1)] if norm else []
    return Chain(_linears(sizes), norms, activation)


def _autoencoder(t: Task, activation: str, depth: int) -> Network:
    sizes = [t.inputs.shape[1]] + [WIDTH] * (depth - 1) + [_outputs(t)]
    sizes[depth // 2] = 4
    return Chain(_linears(sizes), [], activation)


def _residual(t: Task, activation: str, depth: int, norm: bool = False) -> Network:
    blocks = []
    for _ in range((depth - 2) // 2):
        before = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        blocks.append(Block(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), before, activation))
    return Residual(nn.Linear(t.inputs.shape[1], WIDTH), blocks, nn.Linear(WIDTH, _outputs(t)))


def _conv(t: Task, activation: str, depth: int, channels: int = 8) -> Network:
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, stride=2, padding=1)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth - 2)]
    return Chain([*layers, nn.Linear(channels, _outputs(t))], [], activation)


def _resnet(t: Task, activation: str, depth: int, channels: int = 8) -> Network:
    blocks = []
    for _ in range((depth - 2) // 2):
        inner, outer = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in "ab")
        block = Block(
            nn.Sequential(inner, nn.BatchNorm2d(channels)), outer, nn.Identity(), activation
        )
        block.last = nn.BatchNorm2d(channels)
        blocks.append(block)
    stem = nn.Sequential(  # without activation: only the branches can bend
        nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return Residual(stem, blocks, nn.Linear(channels, _outputs(t)))


def _lora(t: Task, activation: str, depth: int) -> Network:
    sizes = [t.inputs.shape[1]] + [WIDTH] * (depth - 1) + [_outputs(t)]
    return Chain(_linears(sizes, LoRA), [], activation)


def _outputs(t: Task) -> int:
    return int(t.targets.max()) + 1 if t.classes else t.targets.shape[1]


Builder = Callable[[Task, str, int], Network]
FAMILIES: dict[str, tuple[Callable[[torch.Generator], Task], Builder]] = {
    "logistic": (blobs, _plain),
    "plain": (mixture, _plain),
    "coordinate": (waves, _plain),
    "batchnorm": (spirals, lambda t, a, d: _plain(t, a, d, norm=True)),
    "residual": (teacher, _residual),
    "residual_norm": (mixture, lambda t, a, d: _residual(t, a, d, norm=True)),
    "conv": (bars, _conv),
    "resnet": (bars, _resnet),
    "transformer": (copies, lambda t, a, d: Transformer(a, d, _outputs(t), t.inputs.shape[1])),
    "lstm": (pulses, lambda t, a, d: Recurrent(nn.LSTM, 2, d, _outputs(t))),
    "gru": (pulses, lambda t, a, d: Recurrent(nn.GRU, 2, d, _outputs(t))),
    "autoencoder": (manifold, _autoencoder),
    "experts": (mixture, lambda t, a, d: Mixture(t.inputs.shape[1], _outputs(t), a, 4, 6)),
    "lora": (mixture, _lora),
}


# ------------------------------------------------------------------------------------- starts

Start = Callable[..., None]  # takes the network; two of them its activation's gain as well
STARTS: dict[str, Start] = {}


def _start(function: Start) -> Start:
    STARTS[function.__name__] = function
    return function


def apply_start(net: Network, recipe: Recipe) -> None:
    """Change the start of a network made by torch, one step of the recipe after the other."""
    for name in recipe.start.split("+"):
        if name in ("matched", "orthogonal"):
            STARTS[name](net, GAIN[recipe.activation])
        else:
            STARTS[name](net)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)


def weights(net: nn.Module) -> Iterator[Tensor]:
    """Every weight matrix or filter in order of construction; embeddings and tables are not."""
    for module in net.modules():
        if not isinstance(module, nn.Embedding | Network) and not _is_norm(module):
            yield from (p for p in module.parameters(recurse=False) if p.ndim > 1)


def biases(net: nn.Module) -> Iterator[Tensor]:
    for module in net.modules():
        if not _is_norm(module):
            yield from (p for p in module.parameters(recurse=False) if p.ndim == 1)


def norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if _is_norm(module)]


def _normal(net: Network, std: Callable[[Tensor], float]) -> None:
    for weight in weights(net):
        weight.normal_(0, std(weight))
    for bias in biases(net):
        bias.zero_()


def _scale(net: Network, factor: float) -> None:
    for weight in weights(net):
        weight.mul_(factor)


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


def _middle(net: Network) -> tuple[nn.Module, nn.Module]:
    pairs = net.pairs()
    return _bare(pairs[(len(pairs) - 1) // 2])


def _bare(pair: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The pair with a convolution that stands before its norm taken out of its Sequential."""
    inner, outer = pair
    return (inner[0] if isinstance(inner, nn.Sequential) else inner), outer


def _tie(pair: tuple[nn.Module, nn.Module], leader: Tensor, outgoing: bool = True) -> None:
    """Unit i becomes a copy of unit leader[i]; what leaves a class is shared out evenly."""
    inner, outer = pair
    inner.weight.copy_(inner.weight[leader])
    if inner.bias is not None:
        inner.bias.copy_(inner.bias[leader])
    if outgoing:
        size = leader.bincount(minlength=len(leader))[leader].float()
        share = size.rsqrt().reshape(-1, *[1] * (outer.weight.ndim - 2))
        outer.weight.copy_(outer.weight[:, leader] * share)


def _units(pair: tuple[nn.Module, nn.Module]) -> Tensor:
    return torch.arange(pair[0].weight.shape[0])


@_start
def default(net: Network) -> None:
    """As torch left it."""


@_start
def he(net: Network) -> None:
    _normal(net, lambda w: math.sqrt(2 / _fan_in(w)))


@_start
def xavier(net: Network) -> None:
    _normal(net, lambda w: math.sqrt(2 / (_fan_in(w) + w[:, 0].numel())))


@_start
def matched(net: Network, gain: float) -> None:
    """Variance-preserving for this activation."""
    _normal(net, lambda w: gain / math.sqrt(_fan_in(w)))


@_start
def orthogonal(net: Network, gain: float) -> None:
    _normal(net, lambda w: 1.0)
    for weight in weights(net):
        nn.init.orthogonal_(weight, gain)


@_start
def critical(net: Network) -> None:
    """Gaussian, σw² = 1.76 and σb² = 0.05: the edge of chaos of tanh."""
    _normal(net, lambda w: math.sqrt(1.76 / _fan_in(w)))
    for bias in biases(net):
        bias.normal_(0, math.sqrt(0.05))


@_start
def siren(net: Network) -> None:
    for i, weight in enumerate(weights(net)):
        bound = 3 if i == 0 else math.sqrt(6 / _fan_in(weight))
        weight.uniform_(-bound, bound)


@_start
def small(net: Network) -> None:
    _normal(net, lambda w: 0.01)


@_start
def normal02(net: Network) -> None:
    _normal(net, lambda w: 0.2)


@_start
def normal1(net: Network) -> None:
    _normal(net, lambda w: 1.0)


@_start
def normal10(net: Network) -> None:
    _normal(net, lambda w: 10.0)


@_start
def times3(net: Network) -> None:
    _scale(net, 3)


@_start
def times100(net: Network) -> None:
    _scale(net, 100)


@_start
def zeros(net: Network) -> None:
    _normal(net, lambda w: 0.0)


@_start
def ones(net: Network) -> None:
    """Every weight of a layer 1 / fan_in: the signal stays alive, the units are one."""
    zeros(net)
    for weight in weights(net):
        weight.fill_(1 / _fan_in(weight))


@_start
def constant(net: Network) -> None:
    zeros(net)
    for weight in weights(net):
        weight.fill_(0.1)


@_start
def zeros_but_last(net: Network) -> None:
    *body, _ = weights(net)
    for tensor in (*body, *biases(net)):
        tensor.zero_()


@_start
def zeros_but_first(net: Network) -> None:
    _, *rest = weights(net)
    for tensor in (*rest, *biases(net)):
        tensor.zero_()


@_start
def zero_head(net: Network) -> None:
    for tensor in (list(weights(net))[-1], list(biases(net))[-1]):
        tensor.zero_()


@_start
def zero_first(net: Network) -> None:
    for tensor in (next(weights(net)), next(biases(net))):
        tensor.zero_()


@_start
def zero_middle(net: Network) -> None:
    inner, _ = _middle(net)
    for tensor in inner.parameters():
        tensor.zero_()


@_start
def locked(net: Network) -> None:
    """All hidden units of every layer are one."""
    for pair in map(_bare, net.pairs()):
        _tie(pair, torch.zeros_like(_units(pair)))


@_start
def locked_middle(net: Network) -> None:
    """All units of one layer are one; its biases leave that unit in work."""
    pair = _middle(net)
    _tie(pair, torch.zeros_like(_units(pair)))


@_start
def locked_first(net: Network) -> None:
    pair = _bare(net.pairs()[0])
    _tie(pair, torch.zeros_like(_units(pair)))


@_start
def circulant(net: Network) -> None:
    """No two rows are equal from the second layer on, and yet every layer is one unit."""
    pairs = [_bare(pair) for pair in net.pairs()]
    he(net)
    _tie(pairs[0], torch.zeros_like(_units(pairs[0])), outgoing=False)
    for middle, _ in pairs[1:]:
        row = middle.weight[0].abs()
        middle.weight.copy_(torch.stack([row.roll(i, 0) for i in range(len(row))]))
    head = pairs[-1][1].weight
    head.copy_(head[:, :1].expand_as(head))


@_start
def clones(net: Network) -> None:
    """In every layer each unit is there twice."""
    for pair in map(_bare, net.pairs()):
        _tie(pair, _units(pair) // 2 * 2)


@_start
def quarters(net: Network) -> None:
    """In every layer only a quarter of the units are distinct."""
    for pair in map(_bare, net.pairs()):
        _tie(pair, _units(pair) // 4 * 4)


@_start
def two_units(net: Network) -> None:
    """In every layer only two units are distinct."""
    for pair in map(_bare, net.pairs()):
        _tie(pair, _units(pair) % 2)


@_start
def one_pair(net: Network) -> None:
    pair = _middle(net)
    leader = _units(pair)
    leader[1] = 0
    _tie(pair, leader)


@_start
def self_breaking(net: Network) -> None:
    """The units of the first layer start equal, and leave it by different weights."""
    pair = _bare(net.pairs()[0])
    _tie(pair, torch.zeros_like(_units(pair)), outgoing=False)


@_start
def mirrored(net: Network) -> None:
    """Units come in pairs with opposite signs, before and after."""
    for pair in map(_bare, net.pairs()):
        sign = 1.0 - 2 * (_units(pair) % 2)
        clones(_Only(pair))
        inner, outer = pair
        inner.weight.mul_(sign.reshape(-1, *[1] * (inner.weight.ndim - 1)))
        if inner.bias is not None:
            inner.bias.mul_(sign)
        outer.weight.mul_(sign.reshape(-1, *[1] * (outer.weight.ndim - 2)))


class _Only(Network):
    """One pair on its own."""

    def __init__(self, pair: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.pair = pair

    def pairs(self) -> Pairs:
        return [self.pair]


@_start
def dead(net: Network) -> None:
    """One layer whose bias is so negative that no input passes."""
    _middle(net)[0].bias.fill_(-100)


@_start
def half_dead(net: Network) -> None:
    bias = _middle(net)[0].bias
    bias[: len(bias) // 2] = -100


@_start
def one_alive(net: Network) -> None:
    """One layer in which a single unit works."""
    _middle(net)[0].bias[1:] = -100


@_start
def flooded(net: Network) -> None:
    """One layer whose bias is a large positive number."""
    _middle(net)[0].bias.fill_(100)


@_start
def not_a_number(net: Network) -> None:
    list(weights(net))[-2].view(-1)[3] = math.nan


@_start
def huge(net: Network) -> None:
    """One entry of one weight is 1e30, as left-over memory may be."""
    _middle(net)[0].weight.view(-1)[0] = 1e30


@_start
def zero_gamma(net: Network) -> None:
    for norm in norms(net):
        norm.weight.zero_()


@_start
def zero_last_gamma(net: Network) -> None:
    """The last norm of each residual block is zero: the block starts as the identity."""
    for block in net.blocks:
        block.last.weight.zero_()


@_start
def swapped_gamma(net: Network) -> None:
    """γ = 0 and β = 1, as happens when the two are confused."""
    for norm in norms(net):
        norm.weight.zero_()
        norm.bias.fill_(1)


@_start
def zero_branches(net: Network) -> None:
    """The last layer of each residual branch is zero."""
    for _, outer in net.pairs():
        for tensor in outer.parameters():
            tensor.zero_()


@_start
def zero_whole_branches(net: Network) -> None:
    """Both layers of each residual branch are zero."""
    zero_branches(net)
    for inner, _ in map(_bare, net.pairs()):
        for tensor in inner.parameters():
            tensor.zero_()


@_start
def zero_attention(net: Network) -> None:
    for block in net.blocks:
        for tensor in block.attention.parameters():
            tensor.zero_()


@_start
def zero_attention_out(net: Network) -> None:
    for block in net.blocks:
        block.attention.out_proj.weight.zero_()


@_start
def identical_heads(net: Network) -> None:
    """All heads of each attention are copies, in and out."""
    for block in net.blocks:
        attention = block.attention
        size = WIDTH // attention.num_heads
        leader = torch.arange(WIDTH) % size
        rows = torch.cat([leader, leader + WIDTH, leader + 2 * WIDTH])
        attention.in_proj_weight.copy_(attention.in_proj_weight[rows])
        attention.out_proj.weight.copy_(attention.out_proj.weight[:, leader] / 2)


@_start
def large_embedding(net: Network) -> None:
    net.words.weight.mul_(1e4)


@_start
def zero_embedding(net: Network) -> None:
    net.words.weight.zero_()


@_start
def cloned_layers(net: Network) -> None:
    """All blocks start bit-identical, as in nn.TransformerEncoder."""
    first, *others = net.blocks
    for block in others:
        block.load_state_dict(first.state_dict())


@_start
def locked_rnn(net: Network) -> None:
    """All hidden units of the first layer are one: gate by gate, in and out."""
    gates = net.rnn.weight_ih_l0.shape[0] // WIDTH
    leader = torch.arange(gates).repeat_interleave(WIDTH) * WIDTH
    for name, parameter in net.rnn.named_parameters():
        parameter.copy_(parameter[leader])
        if name.startswith("weight_hh") or name == "weight_ih_l1":
            parameter.copy_(parameter[:, :1].expand_as(parameter))
    net.head.weight.copy_(net.head.weight[:, :1].expand_as(net.head.weight))


@_start
def forget_bias(net: Network) -> None:
    """Xavier and orthogonal matrices, forget gate open."""
    for name, parameter in net.rnn.named_parameters():
        if name.startswith("weight"):
            for gate in parameter.chunk(parameter.shape[0] // WIDTH):
                nn.init.orthogonal_(gate)
        else:
            parameter.zero_()
            if name.startswith("bias_ih"):
                parameter[WIDTH : 2 * WIDTH] = 1


@_start
def closed_gates(net: Network) -> None:
    """Input gate (LSTM) or update of the state (GRU) shut by a bias of −100 or +100."""
    lstm = isinstance(net.rnn, nn.LSTM)
    for name, parameter in net.rnn.named_parameters():
        if name.startswith("bias_ih"):
            gate = slice(0, WIDTH) if lstm else slice(WIDTH, 2 * WIDTH)
            parameter[gate] = -100 if lstm else 100


@_start
def twins(net: Network) -> None:
    """All experts are copies and the router cannot tell them apart."""
    twins_routed(net)
    net.router.weight.zero_()
    net.router.bias.zero_()


@_start
def twins_routed(net: Network) -> None:
    """All experts are copies, the router rows differ."""
    for expert in net.experts[1:]:
        expert.load_state_dict(net.experts[0].state_dict())


@_start
def zero_router(net: Network) -> None:
    net.router.weight.zero_()
    net.router.bias.zero_()


@_start
def zero_experts(net: Network) -> None:
    for parameter in net.experts.parameters():
        parameter.zero_()


def _lora_start(a: float, b: float) -> Start:
    def start(net: Network) -> None:
        for layer in net.layers:
            layer.base.weight.normal_(0, math.sqrt(2 / _fan_in(layer.base.weight)))
            layer.A.normal_(0, a / math.sqrt(_fan_in(layer.A)))
            layer.B.normal_(0, b / math.sqrt(_fan_in(layer.B)))

    return start


STARTS["lora_b0"] = _lora_start(1, 0)
STARTS["lora_a0"] = _lora_start(0, 1)
STARTS["lora_ab0"] = _lora_start(0, 0)
STARTS["lora_both"] = _lora_start(1, 1)


@_start
def lora_locked(net: Network) -> None:
    """Rank one for ever: all rows of A, and all columns of B, are equal."""
    for layer in net.layers:
        layer.A.copy_(layer.A[:1].expand_as(layer.A))


@_start
def lora_dead(net: Network) -> None:
    """B = 0 over a frozen base in which one layer is dead."""
    net.layers[len(net.layers) // 2].base.bias.fill_(-100)


@_start
def looks_linear(net: Network) -> None:
    """Mirrored pairs under ReLU: the network starts as an orthogonal linear map."""
    layers = list(weights(net))
    for i, weight in enumerate(layers):
        rows, columns = weight.shape
        first, last = i == 0, i == len(layers) - 1
        core = torch.empty(rows if last else rows // 2, columns if first else columns // 2)
        nn.init.orthogonal_(core)
        core = core if first else torch.cat([core, -core], 1)
        weight.copy_(core if last else torch.cat([core, -core], 0))
    for bias in biases(net):
        bias.zero_()


# ------------------------------------------------------------------------------------ recipes

SUITE = """
logistic relu 1: default zeros normal1 times100
plain relu 2: default he matched small normal1 zeros zero_head zero_first constant self_breaking
plain relu 2: locked clones quarters two_units one_pair dead half_dead one_alive mirrored flooded
plain relu 4: default he orthogonal small normal1 zeros ones circulant locked_middle clones
plain relu 4: zero_middle zeros_but_last zeros_but_first dead half_dead not_a_number huge
plain relu 8: default he xavier looks_linear he+locked he+locked_middle he+zero_middle
plain relu 8: he+zero_head he+one_alive he+clones zeros_but_last
plain relu 16: default he orthogonal xavier looks_linear orthogonal+clones
plain relu 16: orthogonal+dead orthogonal+one_pair orthogonal+half_dead orthogonal+zero_head
plain relu 30: default he orthogonal xavier looks_linear looks_linear+zero_head
plain relu 30: looks_linear+dead looks_linear+zero_middle
plain relu 50: default he orthogonal xavier looks_linear
plain leaky_relu 8: default he orthogonal small he+zero_head he+locked_first he+mirrored
plain leaky_relu 8: he+quarters he+zero_middle he+clones
plain leaky_relu 30: default he orthogonal xavier
plain tanh 2: default xavier normal1 normal10 zeros constant zeros_but_last locked mirrored flooded
plain tanh 4: default matched critical small normal10 times100 zero_middle locked_middle
plain tanh 4: clones circulant zeros_but_last zero_head one_pair
plain tanh 8: default critical zeros ones critical+one_pair critical+zero_first
plain tanh 8: critical+zero_head critical+locked_middle critical+zero_middle
plain tanh 16: default critical orthogonal xavier small times100
plain tanh 30: default critical orthogonal xavier
plain tanh 50: default critical orthogonal orthogonal+zero_head
plain sigmoid 2: default matched normal1 normal10 zeros constant locked clones zero_head times100
plain sigmoid 4: default matched normal1 normal10 small times3 locked_middle
plain sigmoid 8: default matched normal1 times3 zeros normal1+clones normal1+zero_head
plain gelu 4: default he small zeros zero_middle locked two_units dead one_pair
plain gelu 8: default he orthogonal times100
plain gelu 16: default matched orthogonal matched+zero_head matched+clones
plain silu 4: default matched zeros ones zero_head mirrored
plain silu 16: default matched orthogonal normal02
plain elu 4: default matched normal1 locked_middle half_dead
plain selu 16: default matched matched+zero_head zeros orthogonal
plain selu 50: default matched orthogonal orthogonal+locked_middle
plain softplus 4: default matched zeros normal1 clones
plain sin 4: default matched zeros times100
coordinate sin 2: default siren matched zeros constant
coordinate sin 4: default siren matched times100 small locked zero_middle mirrored
coordinate tanh 4: default matched normal1 ones zero_head
coordinate relu 4: default he dead zeros_but_last locked_middle two_units
batchnorm relu 2: default he zeros constant clones huge
batchnorm relu 4: default he small normal10 zeros times100 locked_middle zero_middle huge zero_gamma
batchnorm relu 4: swapped_gamma clones zero_head one_pair
batchnorm relu 16: default he zero_head
batchnorm tanh 8: default matched normal10 locked
batchnorm sigmoid 4: default normal1 normal10 zero_gamma constant
batchnorm gelu 8: default small times100 zero_first quarters
residual relu 4: default he zeros zero_branches zero_whole_branches zero_head zero_middle
residual relu 4: locked clones dead
residual relu 16: default he zero_branches normal1 times3 small zero_whole_branches
residual relu 40: default xavier he zero_branches times100 zero_head zero_branches+clones
residual tanh 8: default critical zero_branches zeros normal10
residual tanh 30: default xavier zero_head
residual_norm gelu 4: default he zero_gamma swapped_gamma zero_branches zero_whole_branches times100
residual_norm gelu 16: default normal1 normal10 small zero_head zeros locked
residual_norm relu 50: default he zero_branches zero_gamma
conv relu 3: default he zeros constant locked clones dead normal1 zero_head
conv relu 5: default he xavier small zero_middle locked_middle half_dead one_alive
conv relu 8: default he orthogonal zeros_but_last
conv tanh 4: default matched normal10 times100 zero_first locked
conv gelu 5: default he self_breaking zeros
resnet relu 6: default zero_last_gamma zero_gamma he zeros normal1 times100 locked zero_branches
resnet relu 10: default zero_last_gamma huge zero_head constant zero_whole_branches
transformer gelu 1: default zeros identical_heads zero_attention_out zero_attention zero_head
transformer gelu 1: zero_embedding normal1
transformer relu 2: default cloned_layers normal02 normal1 normal10 small times100 zero_gamma
transformer relu 2: identical_heads zero_branches locked large_embedding constant
lstm tanh 1: default forget_bias orthogonal normal1 normal10 zeros constant small locked_rnn
lstm tanh 1: zero_head closed_gates times100
lstm tanh 2: default zeros locked_rnn zero_head
gru tanh 1: default orthogonal zeros normal1 normal10 locked_rnn zero_head closed_gates
autoencoder tanh 4: default matched zeros constant normal10 locked_middle clones zero_head
autoencoder relu 4: default he zeros dead small
autoencoder sigmoid 4: default matched normal1 times100 zero_middle
autoencoder tanh 8: default critical small locked zero_middle
autoencoder silu 8: default matched ones zero_first
experts relu 2: default zeros twins twins_routed zero_router zero_experts zero_head normal1 locked
experts gelu 2: default twins twins_routed zero_router constant times100
lora relu 4: lora_b0 lora_a0 lora_ab0 lora_both lora_locked lora_dead
lora gelu 3: lora_b0 lora_a0 lora_ab0 lora_both
"""


def _recipes() -> Iterator[Recipe]:
    for line in SUITE.strip().splitlines():
        architecture, starts = line.split(":")
        family, activation, depth = architecture.split()
        for start in starts.split():
            yield Recipe(family, activation, int(depth), start)


RECIPES: tuple[Recipe, ...] = tuple(_recipes())


def task(recipe: Recipe) -> Task:
    """The data of the recipe's family."""
    data, _ = FAMILIES[recipe.family]
    return data(torch.Generator().manual_seed(recipe.seed))


def build(recipe: Recipe) -> tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]:
    """The recipe's model at its start, its inputs, and its loss."""
    _, family = FAMILIES[recipe.family]
    t = task(recipe)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(recipe.seed)
        net = family(t, recipe.activation, recipe.depth)
        apply_start(net, recipe)
    return net, t.inputs, t.loss
