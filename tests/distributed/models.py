"""Small models of the shapes that are trained on many machines, in sizes that divide badly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
)

__all__ = ["MODELS", "Model", "part_of"]

SAMPLES = 24  # divisible by every number of ranks that is tried


class Attention(nn.Module):
    """Grouped queries; the number of heads is read from what the linears give, for TP's sake."""

    def __init__(self, width: int, heads: int, groups: int, size: int) -> None:
        super().__init__()
        self.size, self.repeat = size, heads // groups
        self.q = nn.Linear(width, heads * size, bias=False)
        self.k = nn.Linear(width, groups * size, bias=False)
        self.v = nn.Linear(width, groups * size, bias=False)
        self.o = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            f(x).view(batch, length, -1, self.size).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        k, v = (t.repeat_interleave(self.repeat, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, -1))


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, size: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, groups, size)
        self.mlp = Gated(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """Embedding, RMSNorm, grouped-query attention, SwiGLU, head; the head tied if asked."""

    def __init__(
        self, vocab: int, width: int, heads: int, groups: int, size: int, hidden: int, tied: bool
    ) -> None:
        super().__init__()
        self.tied = tied
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads, groups, size, hidden) for _ in range(2))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.tie()

    def tie(self) -> None:
        if self.tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(mixed.reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches, class token, positions, packed q, k, v with biases."""

    def __init__(self, width: int = 14, heads: int = 2, hidden: int = 37) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 10, width))
        self.blocks = nn.ModuleList(Encoder(width, heads, hidden) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 7)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class Experts(nn.Module):
    """A mixture in which every expert is one matrix of a 3-d tensor."""

    def __init__(self, count: int = 7, width: int = 13, hidden: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.up = nn.Parameter(torch.zeros(count, width, hidden))
        self.down = nn.Parameter(torch.zeros(count, hidden, width))
        nn.init.normal_(self.up, std=0.1)
        nn.init.normal_(self.down, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        hidden = F.relu(torch.einsum("td,edh->eth", x, self.up))
        return torch.einsum("eth,ehd,te->td", hidden, self.down, shares)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 13), nn.LayerNorm(13)
        self.experts, self.last = Experts(), nn.Linear(13, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.experts(self.norm(x)))


class Separate(nn.Module):
    """The same mixture of gated experts, each of them three linears."""

    def __init__(self, count: int = 7, width: int = 13, hidden: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.gate, self.up, self.down = (
            nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(count))
            for i, o in ((width, hidden), (width, hidden), (hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        each = zip(self.gate, self.up, self.down, shares.unbind(-1), strict=True)
        return sum(s[:, None] * down(F.silu(gate(x)) * up(x)) for gate, up, down, s in each)


class Stacked(nn.Module):
    """Those experts in two tensors.  It is never run."""

    def __init__(self, count: int = 7, width: int = 13, hidden: int = 5) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.both = nn.Parameter(torch.zeros(count, 2 * hidden, width))
        self.down = nn.Parameter(torch.zeros(count, width, hidden))


STACKED = {"both": ["gate.{}.weight", "up.{}.weight"], "down": ["down.{}.weight"]}


def stack(name: str, values: dict[str, Tensor]) -> Tensor:
    if name == "router.weight":
        return values[name]
    kinds = ("gate", "up") if name == "both" else ("down",)
    one = [torch.cat([values[f"{kind}.{e}.weight"] for kind in kinds]) for e in range(7)]
    return torch.stack(one)


def joined() -> nn.Module:
    """A Llama with one linear for q, k, v and one for gate and up.  It is never run."""
    model = Llama(37, 13, 4, 2, 7, 29, False)
    for block in model.blocks:
        attention, gated = block.attention, block.mlp
        attention.qkv, gated.both = (nn.Linear(13, o, bias=False) for o in (56, 58))
        del attention.q, attention.k, attention.v, gated.gate, gated.up
    return model


_BLOCK = "blocks.*."
_BOTH = {f"{_BLOCK}mlp.both.weight": [f"{_BLOCK}mlp.{n}.weight" for n in ("gate", "up")]}
_Q, _K, _V = (f"{_BLOCK}attention.{n}.weight" for n in "qkv")
JOINED = {f"{_BLOCK}attention.qkv.weight": [_Q, _K, _V], **_BOTH}
#: Each group of heads with its own keys and values, as some keep them for tensor parallelism.
GROUPED = {
    f"{_BLOCK}attention.qkv.weight": [
        *((_Q, 0, 14), (_K, 0, 7), (_V, 0, 7)),
        *((_Q, 14, 28), (_K, 7, 14), (_V, 7, 14)),
    ],
    **_BOTH,
}


def join(name: str, values: dict[str, Tensor], groups: int = 1) -> Tensor:
    path, _, key = name.removesuffix(".weight").rpartition(".")
    kinds = {"qkv": ("q", "k", "v"), "both": ("gate", "up")}.get(key)
    if kinds is None:
        return values[name]
    cut = groups if key == "qkv" else 1
    parts = [values[f"{path}.{kind}.weight"].chunk(cut) for kind in kinds]
    return torch.cat([part[group] for group in range(cut) for part in parts])


def mlp() -> nn.Module:
    """Deep and without norms: the automatic choice measures its scales."""
    hidden = [m for _ in range(3) for m in (nn.Linear(37, 37), nn.Tanh())]
    return nn.Sequential(nn.Linear(13, 37), nn.Tanh(), *hidden, nn.Linear(37, 7))


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 13, 3), nn.ReLU(), nn.Conv2d(13, 7, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(28, 7)),
    )


def normed() -> nn.Module:
    """With running statistics, which no plan draws."""
    return nn.Sequential(
        *(nn.Conv2d(3, 13, 3, bias=False), nn.BatchNorm2d(13), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(52, 7)),
    )


class Adapted(nn.Module):
    """Frozen weights and an adapter of three factors, which changes nothing at first."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.tall = nn.Parameter(torch.randn(rank, width))
        self.small = nn.Parameter(torch.randn(rank, rank))
        self.wide = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(F.linear(x, self.tall), self.small), self.wide)


class Meant(nn.Module):
    """With what its author chose: an adapter at rest, a shut gate, a mask, a prior, a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.adapted = Adapted(13, 3)
        self.gate, self.hidden = nn.Linear(13, 29), nn.Linear(13, 29)
        self.teacher = nn.Linear(13, 29).requires_grad_(False)
        self.moves = nn.Parameter(torch.randn(29, 29))
        self.rare = nn.Linear(29, 7)
        with torch.no_grad():
            self.gate.bias.fill_(-2.0)
            self.moves[:, :3] = -10000.0
            self.rare.bias.fill_(-4.6)
            self.teacher.load_state_dict(self.hidden.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        x = self.adapted(x)
        h = torch.relu(self.hidden(x)) * torch.sigmoid(self.gate(x)) + self.teacher(x).detach()
        return self.rare(torch.logsumexp(h[:, :, None] + self.moves, 1))


@dataclass(frozen=True)
class Model:
    """How a model is built, what it is run on, and how tensor parallelism cuts it.

    Attributes:
        build: makes it, in the ambient device and random state.
        batch: makes what it is planned on; the same in every process.
        plan: module path → tensor-parallel style.
        experts: paths of the parameters whose first dimension counts experts.
        apart: the model that knows by several names what this one keeps in one tensor.
        fused: which ones: pattern → names.
        join: makes a parameter of this model from those of the other.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Tensor]
    plan: Callable[[], dict[str, Any]] = dict
    experts: tuple[str, ...] = ()
    apart: str = ""
    fused: dict[str, Any] = field(default_factory=dict)
    join: Callable[[str, dict[str, Tensor]], Tensor] | None = None

    def made(self, device: str, dtype: torch.dtype) -> nn.Module:
        """The model with torch's own values, the same in every process."""
        torch.manual_seed(5)
        with torch.device(device):
            return self.build().to(dtype)

    def inputs(self, dtype: torch.dtype) -> Tensor:
        batch = self.batch(torch.Generator().manual_seed(6))
        return batch.to(dtype) if batch.is_floating_point() else batch

    def loss(self, output: Tensor) -> Tensor:
        classes = output.shape[-1]
        flat = output.reshape(-1, classes)
        return F.cross_entropy(flat.float(), torch.arange(len(flat)) % classes)


def _llama_plan() -> dict[str, Any]:
    gathered = {"input_layouts": (Shard(1),), "desired_input_layouts": (Replicate(),)}
    return {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
        "blocks.*.norm1": SequenceParallel(),
        "blocks.*.norm2": SequenceParallel(),
        "blocks.*.attention": PrepareModuleInput(**gathered),
        "blocks.*.mlp": PrepareModuleInput(**gathered),
        **{f"blocks.*.attention.{n}": ColwiseParallel() for n in "qkv"},
        "blocks.*.attention.o": RowwiseParallel(output_layouts=Shard(1)),
        "blocks.*.mlp.gate": ColwiseParallel(),
        "blocks.*.mlp.up": ColwiseParallel(),
        "blocks.*.mlp.down": RowwiseParallel(output_layouts=Shard(1)),
    }


def _vit_plan() -> dict[str, Any]:
    wide = {f"blocks.*.{n}": ColwiseParallel() for n in ("qkv", "fc1")}
    return wide | {f"blocks.*.{n}": RowwiseParallel() for n in ("proj", "fc2")}


def _tokens(vocab: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(vocab, (SAMPLES, 6), generator=generator)


def _floats(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: 3 * torch.randn(SAMPLES, *shape, generator=generator)


MODELS = {
    "llama": Model(lambda: Llama(37, 13, 4, 2, 7, 29, False), _tokens(37), _llama_plan),
    "tied llama": Model(lambda: Llama(37, 13, 4, 2, 7, 29, True), _tokens(37), _llama_plan),
    # Sizes that tensor parallelism can run on two ranks.
    "even llama": Model(lambda: Llama(40, 16, 4, 2, 4, 24, False), _tokens(40), _llama_plan),
    "even tied llama": Model(lambda: Llama(40, 16, 4, 2, 4, 24, True), _tokens(40), _llama_plan),
    "vit": Model(ViT, _floats(3, 12, 12), _vit_plan),
    "mixture": Model(Mixture, _floats(6), experts=("experts.up", "experts.down")),
    "mlp": Model(mlp, _floats(13), lambda: {"0": ColwiseParallel(), "2": RowwiseParallel()}),
    "cnn": Model(cnn, _floats(3, 9, 9)),
    "normed": Model(normed, _floats(3, 9, 9)),
    "meant": Model(Meant, _floats(13)),
    "joined llama": Model(joined, _tokens(37), apart="llama", fused=JOINED, join=join),
    "grouped llama": Model(
        joined, _tokens(37), apart="llama", fused=GROUPED, join=partial(join, groups=2)
    ),
    "separate": Model(Separate, _floats(13)),
    "stacked": Model(
        Stacked,
        _floats(13),
        experts=("both", "down"),
        apart="separate",
        fused=STACKED,
        join=stack,
    ),
    "wide": Model(lambda: nn.Linear(4096, 4096, bias=False), _floats(4096)),  # 64 MiB
}


def part_of(batch: Tensor, rank: int, ranks: int) -> Tensor:
    """The samples of one rank: as many as every other has."""
    return batch.chunk(ranks)[rank]
