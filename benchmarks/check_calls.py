"""Cost of many small calls: does ``fanin.check`` grow with their number, or with its square?

    python benchmarks/check_calls.py            every family, each size twice the one before
    python benchmarks/check_calls.py scan       only what is named

The networks are so narrow that all time goes into following their calls: a selective scan written
as a loop over time (Gu & Dao 2023, Mamba), a loop over experts of which a batch visits some, and a
transformer whose weights are all zero, where every parameter waits for others.  Beside one forward
and backward pass of the same model and batch, in one process; medians of ``--rounds``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fanin


class Scan(nn.Module):
    """One block of Mamba, whose recurrence is a loop."""

    def __init__(self, width: int, states: int = 8) -> None:
        super().__init__()
        self.states, self.norm = states, nn.LayerNorm(width)
        self.inner, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.select, self.step = nn.Linear(width, 2 * states + 2), nn.Linear(2, width)
        self.rate = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.inner(self.norm(x)).chunk(2, -1)
        by, to, narrow = self.select(y).split([self.states, self.states, 2], -1)
        step = F.softplus(self.step(narrow))
        kept = torch.exp(-step[..., None] * self.rate.exp())
        added = (step * y)[..., None] * by[..., None, :]
        state, told = torch.zeros_like(added[:, 0]), []
        for t in range(y.shape[1]):
            state = kept[:, t] * state + added[:, t]
            told.append(torch.einsum("bdn,bn->bd", state, to[:, t]))
        return x + self.out(torch.stack(told, 1) * F.silu(gate))


class Experts(nn.Module):
    """A mixture of experts, two for each sample, that runs one after the other."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        weights, chosen = self.router(y).softmax(-1).topk(2, -1)
        out = torch.zeros_like(y)
        for number, expert in enumerate(self.experts):
            at, place = torch.where(chosen == number)
            out.index_add_(0, at, expert(y[at]) * weights[at, place, None])
        return x + out


def scan(steps: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(Scan(16), Scan(16), nn.Linear(16, 10)), torch.randn(4, steps, 16)


def experts(each: int) -> tuple[nn.Module, Tensor]:
    body = [Experts(16, each) for _ in range(4)]
    return nn.Sequential(*body, nn.Linear(16, 10)), torch.randn(16, 16)


def zeros(layers: int) -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    model = nn.Sequential(body, nn.Linear(16, 10))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model, torch.randn(4, 8, 16)


FAMILIES: dict[str, tuple[Callable[[int], tuple[nn.Module, Tensor]], tuple[int, ...]]] = {
    "scan": (scan, (64, 128, 256)),
    "experts": (experts, (16, 32, 64)),
    "zeros": (zeros, (12, 24, 48)),
}


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measured(name: str, size: int, rounds: int) -> tuple[float, float]:
    """Seconds of one forward and backward pass, and of one check."""
    torch.manual_seed(0)
    model, batch = FAMILIES[name][0](size)
    labels = torch.randint(10, batch.shape[:-1]).flatten()

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, -2), labels)

    plain, check = [], []
    for _ in range(rounds):
        plain.append(seconds(lambda: loss(model(batch)).backward()))
        model.zero_grad()
        check.append(seconds(lambda: fanin.check(model, batch, loss)))
    return median(plain), median(check)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (3)")
    options = parser.parse_args()
    if unknown := set(options.families) - set(FAMILIES):
        parser.error(f"no family {min(unknown)!r}; known: {', '.join(FAMILIES)}")
    table = Table(title="fanin.check on many small calls")
    for head in ("family", "size", "forward + backward", "check", "ratio", "for twice the size"):
        table.add_column(head, justify="left" if head == "family" else "right")
    for name in options.families or FAMILIES:
        before = None
        for size in FAMILIES[name][1]:
            plain, check = measured(name, size, options.rounds)
            grown = "" if before is None else f"{check / before:.1f}×"
            row = (name, str(size), f"{plain:.3f} s", f"{check:.2f} s", f"{check / plain:.1f}×")
            table.add_row(*row, grown)
            before = check
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
