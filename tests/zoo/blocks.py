"""Building blocks that several cases of the zoo share."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Loss = Callable[[Any], torch.Tensor]


# ── losses and batches ───────────────────────────────────────────────────────────────────────


def classify(samples: int, classes: int) -> Loss:
    """Cross-entropy against random labels, over the last axis when there is a sequence."""
    labels = torch.randint(0, classes, (samples,))
    return lambda out: F.cross_entropy(out, labels)


def regress(*shape: int) -> Loss:
    target = torch.randn(*shape)
    return lambda out: F.mse_loss(out, target)


def next_token(tokens: torch.Tensor) -> Loss:
    """Cross-entropy of each position's logits against the token that follows."""
    labels = tokens[:, 1:].reshape(-1)
    return lambda logits: F.cross_entropy(logits[:, :-1].reshape(len(labels), -1), labels)


# ── small stacks ─────────────────────────────────────────────────────────────────────────────


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers of the given widths with `act` between them: "0", "2", "4" … are linear."""
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def he_(model: nn.Module) -> nn.Module:
    """He's normal weights and zero biases in every linear and convolution layer."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def zero_(*modules: nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


class Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return x + self.body(x)


class Scaled(nn.Module):
    """x + γ body(x), with γ of one element (ReZero, SkipInit) or one per channel (LayerScale)."""

    def __init__(self, *body: nn.Module, start: float = 0.0, channels: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.gamma = nn.Parameter(torch.full((channels,), start))

    def forward(self, x):
        return x + self.gamma * self.body(x)


class Lambda(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


# ── attention and transformers ───────────────────────────────────────────────────────────────


class Attention(nn.Module):
    """Written by hand: packed projection, heads by view, softmax(q kᵀ/√d) v."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(mask, float("-inf"))
        mixed = scores.softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, t, d))


class EinsumAttention(nn.Module):
    """q, k, v and the output as bare parameters [in, heads, size], joined by einsum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = width // heads
        self.wq, self.wk, self.wv = (
            nn.Parameter(torch.randn(width, heads, size) / math.sqrt(width)) for _ in range(3)
        )
        self.wo = nn.Parameter(torch.randn(heads, size, width) / math.sqrt(width))

    def forward(self, x):
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, w) for w in (self.wq, self.wk, self.wv))
        weights = torch.einsum("bhtk,bhsk->bhts", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        return torch.einsum("bhts,bhsk,hkd->btd", weights, v, self.wo)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool = False, mixer=None, mlp=None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = mixer or Attention(width, heads, causal)
        self.mlp = mlp or nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Token and position embeddings, blocks, a final norm, a head that may share the embedding."""

    def __init__(self, vocabulary=101, width=32, depth=2, heads=4, length=16, tied=True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
            elif name.endswith(("qkv.bias", "proj.bias", "mlp.0.bias", "mlp.2.bias")):
                nn.init.zeros_(parameter)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class LoRA(nn.Module):
    """W x + B A x with W frozen; A is random and B zero, unless told otherwise."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.A), self.B)


class MergedLoRA(LoRA):
    """The same, with the sum formed in weight space first."""

    def forward(self, x):
        return F.linear(x, self.base.weight + self.B @ self.A, self.base.bias)


# ── images ───────────────────────────────────────────────────────────────────────────────────


class BasicBlock(nn.Module):
    def __init__(self, n: int, m: int, stride: int = 1, zero_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n, m, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.conv2 = nn.Conv2d(m, m, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(m)
        self.down = (
            nn.Identity()
            if stride == 1 and n == m
            else nn.Sequential(nn.Conv2d(n, m, 1, stride, bias=False), nn.BatchNorm2d(m))
        )
        if zero_norm:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.down(x), inplace=True)


class Bottleneck(nn.Module):
    def __init__(self, n: int, m: int, stride: int = 1, zero_norm: bool = False) -> None:
        super().__init__()
        h = m // 4
        self.conv1, self.bn1 = nn.Conv2d(n, h, 1, bias=False), nn.BatchNorm2d(h)
        self.conv2, self.bn2 = nn.Conv2d(h, h, 3, stride, 1, bias=False), nn.BatchNorm2d(h)
        self.conv3, self.bn3 = nn.Conv2d(h, m, 1, bias=False), nn.BatchNorm2d(m)
        self.relu = nn.ReLU(inplace=True)
        self.down = (
            None
            if stride == 1 and n == m
            else nn.Sequential(nn.Conv2d(n, m, 1, stride, bias=False), nn.BatchNorm2d(m))
        )
        if zero_norm:
            nn.init.zeros_(self.bn3.weight)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(
        self, block, depths, widths, stem: int, classes: int = 10, zero_norm=False
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        stages, n = [], stem
        for number, (depth, m) in enumerate(zip(depths, widths, strict=True)):
            stage = []
            for position in range(depth):
                stride = 2 if position == 0 and number > 0 else 1
                stage.append(block(n, m, stride, zero_norm))
                n = m
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(n, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class UNet(nn.Module):
    """Two levels down, two up by transposed convolutions, skips by concatenation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        def pair(n: int, m: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(n, m, 3, padding=1),
                nn.BatchNorm2d(m),
                nn.ReLU(inplace=True),
                nn.Conv2d(m, m, 3, padding=1),
                nn.BatchNorm2d(m),
                nn.ReLU(inplace=True),
            )

        w = width
        self.down1, self.down2, self.bottom = pair(3, w), pair(w, 2 * w), pair(2 * w, 4 * w)
        self.up2, self.join2 = nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), pair(4 * w, 2 * w)
        self.up1, self.join1 = nn.ConvTranspose2d(2 * w, w, 2, 2), pair(2 * w, w)
        self.head = nn.Conv2d(w, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        a = self.join1(torch.cat([self.up1(b), a], 1))
        return self.head(a)


# ── experts ──────────────────────────────────────────────────────────────────────────────────


class BatchedExperts(nn.Module):
    """All experts at once, weights [experts, out, in], mixed by a soft router."""

    def __init__(self, width: int = 16, experts: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(experts, hidden, width) * math.sqrt(2 / width))
        self.w2 = nn.Parameter(torch.randn(experts, width, hidden) * math.sqrt(1 / hidden))

    def forward(self, x):
        share = self.router(x).softmax(-1)
        hidden = torch.einsum("bd,ehd->beh", x, self.w1).relu()
        return torch.einsum("be,beh,edh->bd", share, hidden, self.w2)


class RoutedExperts(nn.Module):
    """Modules in a list; each sample visits its top two (or all, when `top` says so)."""

    def __init__(self, width: int = 16, experts: int = 4, hidden: int = 24, top: int = 2) -> None:
        super().__init__()
        self.top = top
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(mlp(width, hidden, width) for _ in range(experts))

    def forward(self, x):
        share, chosen = self.router(x).softmax(-1).topk(self.top, dim=-1)
        share = share / share.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            sample, slot = (chosen == number).nonzero(as_tuple=True)
            if len(sample):
                out = out.index_add(0, sample, share[sample, slot, None] * expert(x[sample]))
        return out


def ensemble():
    """Three networks under torch.vmap, of which two stacked weights are the parameters."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(3, 16, 8) / 8**0.5)
            self.b = nn.Parameter(torch.randn(3, 4, 16) / 16**0.5)

        def forward(self, x):
            def one(a, b):
                return F.linear(F.linear(x, a).relu(), b)

            return torch.vmap(one)(self.a, self.b).mean(0)

    return Ensemble(), torch.randn(32, 8), classify(32, 4)


class Bent(nn.Module):
    """x + W(tanh(a) σ(b)), where one layer makes a and b; the bias of b starts at `gate`."""

    def __init__(self, width: int, gate: float) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        nn.init.constant_(self.wide.bias[width:], gate)

    def forward(self, x):
        a, b = self.wide(x).chunk(2, -1)
        return x + self.out(a.tanh() * b.sigmoid())


class Variational(nn.Module):
    """An autoencoder that hands its input on, as the loss needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(16, 32, 32), mlp(4, 32, 16)
        self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x):
        h = self.encoder(x).relu()
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(z), x, mean, log_variance

    @staticmethod
    def loss(output):
        made, x, mean, log_variance = output
        rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return ((made - x) ** 2).sum(1).mean() + rate.sum(1).mean()


class Routed(nn.Module):
    """Blocks that a gate relu(tanh(·)) multiplies (dynamic routing), with no way around them."""

    def __init__(self, bias, width=16, depth=3):
        super().__init__()
        self.first, self.head = nn.Linear(20, width), nn.Linear(width, 5)
        self.gates = nn.ModuleList(nn.Linear(width, 1) for _ in range(depth))
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.normal_(gate.weight, std=0.01)
            nn.init.constant_(gate.bias, bias)

    def forward(self, x):
        x = self.first(x).relu()
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = gate(x).tanh().relu() * block(x).relu()
        return self.head(x)


class Actor(nn.Module):
    """A policy that draws: normal about a mean, of a learned size, and bounded by tanh (SAC)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.mean, self.size = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        drawn = torch.distributions.Normal(self.mean(h), self.size(h).clamp(-20, 2).exp())
        return drawn.rsample().tanh()


class Stepwise(nn.Module):
    """A recurrent network over a sequence, written by hand, with the class at its end or its steps.

    The state's matrix is orthogonal, or normal of a given std.
    """

    def __init__(self, std: float | None = None, every: bool = False) -> None:
        super().__init__()
        self.read, self.state, self.head = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.every = every
        if std is None:
            nn.init.orthogonal_(self.state.weight)
        else:
            nn.init.normal_(self.state.weight, std=std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, seen = x.new_zeros(len(x), 32), []
        for step in x.unbind(1):
            h = torch.tanh(self.read(step) + self.state(h))
            seen.append(h)
        return self.head(torch.stack(seen).mean(0) if self.every else h)


class Towers(nn.Module):
    """Two networks with an input in common and nothing else; what joins them is `joined`."""

    def __init__(self, one: nn.Module, other: nn.Module, joined) -> None:
        super().__init__()
        self.one, self.other, self.joined = one, other, joined

    def forward(self, x):
        return self.joined(self.one(x), self.other(x))


def deep(inputs: int, outputs: int, std: float | None = None, bias: float = 0.0) -> nn.Sequential:
    """Twelve layers with relu between, from He or from a std and a bias of their own."""
    model = mlp(inputs, *[64] * 11, outputs)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std or (2 / layer.in_features) ** 0.5)
            nn.init.constant_(layer.bias, bias)
    return model


# ── learned rows ─────────────────────────────────────────────────────────────────────────────


class Resampler(nn.Module):
    """Latents read a sequence, as in a Perceiver; a class for their mean, or one for each."""

    def __init__(self, latents: torch.Tensor, *, places: bool = False, each: bool = False) -> None:
        super().__init__()
        count, width = latents.shape
        self.latents, self.each = nn.Parameter(latents), each
        self.places = nn.Parameter(torch.randn(count, width) / 50) if places else None
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.mlp = nn.LayerNorm(width), mlp(width, 2 * width, width, act=nn.GELU)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        latents = self.latents if self.places is None else self.latents + self.places
        latents = latents.expand(len(x), -1, -1)
        read = F.scaled_dot_product_attention(self.q(self.norm(latents)), self.k(x), self.v(x))
        latents = latents + self.o(read)
        latents = latents + self.mlp(latents)
        return self.head(latents if self.each else latents.mean(1))


class Prefixed(nn.Module):
    """Learned rows (registers, prompts) before the tokens of a transformer, which knows no order.

    `places`, one for each row and token, are added to both.
    """

    def __init__(self, rows: torch.Tensor, places: torch.Tensor | None = None) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.places = None if places is None else nn.Parameter(places)
        self.block, self.head = Block(rows.shape[-1], 4), nn.Linear(rows.shape[-1], 5)

    def forward(self, x):
        x = torch.cat([self.rows.expand(len(x), -1, -1), x], 1)
        x = x if self.places is None else x + self.places
        return self.head(self.block(x).mean(1))


class Mixture(nn.Module):
    """The logarithm of the density of a mixture of normals, by sample."""

    def __init__(self, means: torch.Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)
        self.log_sizes = nn.Parameter(torch.zeros_like(means))
        self.shares = nn.Parameter(torch.zeros(len(means)))

    def forward(self, x):
        far = (x[:, None] - self.means) * torch.exp(-self.log_sizes)
        densities = -0.5 * far.square() - self.log_sizes
        densities = densities.sum(-1) if densities.dim() > 2 else densities
        return torch.logsumexp(densities + self.shares.log_softmax(0), 1)


# ── graphs ───────────────────────────────────────────────────────────────────────────────────


class GraphLayer(nn.Module):
    """Ã X W + b of Kipf and Welling, drawn as they do."""

    def __init__(self, width: int, out: int):
        super().__init__()
        bound = 1 / math.sqrt(out)
        self.weight = nn.Parameter(torch.empty(width, out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-bound, bound))

    def forward(self, x, edges):
        return edges @ (x @ self.weight) + self.bias


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = GraphLayer(64, 16), GraphLayer(16, 4)

    def forward(self, x, edges):
        return self.last(F.relu(self.first(x, edges)), edges)


def graph_network(first: float, last: float):
    """Nodes of four kinds with words of their own; the weights of both layers times a factor."""
    model, kinds = GraphNetwork(), torch.randint(4, (96,))
    with torch.no_grad():
        model.first.weight.mul_(first)
        model.last.weight.mul_(last)
    near = torch.where(kinds[:, None] == kinds, 0.15, 0.02)
    edges = (torch.rand(96, 96) < near).float().triu(1)
    edges = edges + edges.T + torch.eye(96)
    scale = edges.sum(1).rsqrt()
    own = torch.arange(64) // 16 == kinds[:, None]
    words = (torch.rand(96, 64) < 0.03 + 0.12 * own).float()
    x = words / words.sum(1, keepdim=True).clamp(min=1)
    batch = (x, scale[:, None] * edges * scale)
    return model, batch, lambda out: F.cross_entropy(out, kinds)
