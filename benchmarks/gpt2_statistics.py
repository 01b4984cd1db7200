"""GPT-2 124M: is every parameter what the published recipe says?

    python benchmarks/gpt2_statistics.py

The model is built on meta and initialised with ``scheme="gpt2"`` (`residual_scaling`).  The mean
and std of every kind of parameter stand beside the recipe: N(0, 0.02²) for weights and both
embeddings, N(0, 0.02²/(2·12)) where a branch meets the residual stream, biases 0, norms 1 and 0
(Radford et al. 2019, section 2.3, as ``transformers`` writes it out).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import torch
from plan_large import gpt2, tokens
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fanin

LAYERS, BASE = 12, 0.02
ERRORS = 5.0  # standard errors within which a figure counts as right: 1 in 1.7 million is outside


class Expected(NamedTuple):
    mean: float
    std: float


# ending of the name → what it starts as; the first that fits counts
PUBLISHED = {
    "attn.c_proj.weight": Expected(0, BASE / math.sqrt(2 * LAYERS)),
    "mlp.c_proj.weight": Expected(0, BASE / math.sqrt(2 * LAYERS)),
    "ln_1.weight": Expected(1, 0),
    "ln_2.weight": Expected(1, 0),
    "ln_f.weight": Expected(1, 0),
    "weight": Expected(0, BASE),
    "bias": Expected(0, 0),
}


def published(kind: str) -> Expected:
    return next(expected for ending, expected in PUBLISHED.items() if kind.endswith(ending))


def kind(name: str) -> str:
    """The name with * for the block's number."""
    return re.sub(r"\.\d+\.", ".*.", name)


def right(values: Tensor, expected: Expected) -> bool:
    """Are mean and std within the sampling error of so many draws?"""
    n = values.numel()
    mean = abs(values.mean() - expected.mean) <= ERRORS * expected.std / math.sqrt(n)
    std = abs(values.std() - expected.std) <= ERRORS * expected.std / math.sqrt(2 * n)
    return bool(mean and std)


def named(model: torch.nn.Module) -> Iterable[tuple[str, list[Tensor]]]:
    """Kind → its tensors, in the order of the model."""
    parameters = dict(model.named_parameters())
    order = {k: i for i, k in enumerate(dict.fromkeys(map(kind, parameters)))}
    names = sorted(parameters, key=lambda name: order[kind(name)])
    for each, group in groupby(names, key=kind):
        yield each, [parameters[name].detach().double() for name in group]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    model = gpt2()
    plan = fanin.init_(model, tokens(), "gpt2", seed=options.seed)

    table = Table(title="GPT-2 124M, scheme gpt2: every kind of parameter")
    for head in ("parameter", "tensors", "recipe mean", "mean", "recipe std", "std", "right"):
        table.add_column(head, justify="left" if head == "parameter" else "right", no_wrap=True)
    sound = True
    for each, tensors in named(model):
        values, expected = torch.cat([t.flatten() for t in tensors]), published(each)
        good = all(right(t, expected) for t in [values, *tensors])
        sound &= good
        table.add_row(
            each.removeprefix("transformer."),
            str(len(tensors)),
            f"{expected.mean:g}",
            f"{float(values.mean()):.2g}",
            f"{expected.std:.6f}",
            f"{float(values.std()):.6f}",
            "yes" if good else "NO",
        )
    console.print(table)
    console.print("\nWhy, for the first of each kind:")
    reasons = {kind(a.parameter): a for a in reversed(list(plan))}
    for each in dict.fromkeys(kind(a.parameter) for a in plan):
        a = reasons[each]
        console.print(f"  {a.parameter}: {a.scheme}, std {a.std:.4g}. {a.because}", soft_wrap=True)
    for parameter, reason in plan.untouched.items():
        console.print(f"  untouched: {parameter}: {reason}", soft_wrap=True)
    return 0 if sound and not plan.untouched else 1


if __name__ == "__main__":
    sys.exit(main())
