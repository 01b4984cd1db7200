"""Fans: output variance through real layers, after the same named scheme of four libraries.

    python benchmarks/fans.py             torch, fanin, and of Keras and JAX what is installed
    python benchmarks/fans.py --draws 32  smaller sampling error

Unit inputs go through the real torch layer; each row names the scheme for which the right answer is
1.00 (0.00 where a row measures an error of orthogonality).  Keras and JAX draw the weight in the
shape that their own layer of this kind has, with the initializer's default axes; the values are
then laid into the torch layer.  Where they have no such layer, outputs come last and inputs before
them, as everywhere in these libraries.  (JAX can be told which axes are inputs, outputs and copies;
then it is right on embeddings and experts too.)  fanin gets the model and a batch, nothing else;
for the slices of a sharded weight it is told the fan of the whole.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fanin

DRAWS = 16
ERRORS = 4.0  # standard errors within which a mean counts as right: 1 in 16,000 is outside
SAMPLES = 256

Fill = Callable[[nn.Module, Any, int], None]  # model, batch, seed


# ------------------------------------------------------------------------------------- layers


class Product(nn.Module):
    """x @ W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Experts(nn.Module):
    """Every expert's own matrix of one tensor [experts, outputs, inputs]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,eoi->neo", x, self.weight)


class PackedAttention(nn.Module):
    """q, k and v of one product with a weight [3·width, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = (split(part) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Sharded(nn.Module):
    """A linear layer whose inputs are spread over ranks: their partial results are summed."""

    def __init__(self, ranks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.slices = nn.ParameterList(torch.zeros(outputs, inputs // ranks) for _ in range(ranks))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.slices), -1)
        return sum(part @ w.T for part, w in zip(parts, self.slices, strict=True))


# ---------------------------------------------------------------------------------- measuring


def variance(model: nn.Module, batch: Any) -> float:
    """Mean square of the output (all means are zero)."""
    output = model(*batch) if isinstance(batch, tuple) else model(batch)
    return float(output.square().mean())


def packed_variance(model: nn.Module, batch: Tensor) -> float:
    """Of q, k and v."""
    return float(model.get_submodule("qkv")(batch).square().mean())


def first_variance(model: nn.Module, batch: Tensor) -> float:
    """Of the first layer's output."""
    return float(model.get_submodule("0")(batch).square().mean())


def projected_variance(model: nn.Module, batch: tuple[Tensor, ...]) -> float:
    """Of q, k and v of ``nn.MultiheadAttention``."""
    return float(F.linear(batch[0], model.get_parameter("in_proj_weight")).square().mean())


def gate_error(model: nn.Module, _batch: Tensor) -> float:
    """‖WᵀW − I‖ / √hidden of each gate's hidden-to-hidden matrix, averaged."""
    weight = model.get_parameter("weight_hh_l0")
    hidden = weight.shape[1]
    gates = weight.reshape(-1, hidden, hidden)
    error = gates.mT @ gates - torch.eye(hidden)
    return float(error.flatten(1).norm(dim=1).mean()) / hidden**0.5


# --------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Row:
    """One layer and the scheme whose right result is ``right``.

    ``layout`` names the dimensions of the torch weight: o output, i input, h w kernel, e expert;
    ``keras`` and ``jax`` are the order in which these libraries have them.
    """

    layer: str
    scheme: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    layout: str
    keras: str
    jax: str
    parameters: tuple[str, ...] = ("weight",)
    measure: Callable[[nn.Module, Any], float] = variance
    right: float = 1.0


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


def positive(*shape: int) -> Callable[[], Tensor]:
    """What a ReLU makes of unit inputs."""
    return lambda: torch.randn(shape).relu()


def words(count: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (4 * SAMPLES,))


def three(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    def make() -> tuple[Tensor, ...]:
        x = torch.randn(shape)
        return x, x, x

    return make


def rows() -> list[Row]:
    """The truth table of fans, layer by layer."""
    linear = partial(nn.Linear, bias=False)
    conv1, conv2 = partial(nn.Conv1d, bias=False), partial(nn.Conv2d, bias=False)
    # padding 2 crops the border of the output, where fewer than ∏k/∏s taps meet
    strided = lambda: nn.ConvTranspose2d(64, 256, 4, 2, 2, bias=False)  # noqa: E731
    return [
        Row("Linear 256→512", "lecun_normal", lambda: linear(256, 512), normal(SAMPLES, 256),
            "oi", "io", "io"),
        Row("Linear 256→512 after ReLU", "he_normal", lambda: linear(256, 512),
            positive(SAMPLES, 256), "oi", "io", "io"),
        Row("x @ W, W [256, 512]", "lecun_normal", lambda: Product(256, 512), normal(SAMPLES, 256),
            "io", "io", "io"),
        Row("Conv1d 64→128, k 5", "lecun_normal", lambda: conv1(64, 128, 5), normal(32, 64, 16),
            "oiw", "wio", "wio"),
        Row("Conv2d 32→64, 3×3", "lecun_normal", lambda: conv2(32, 64, 3), normal(16, 32, 10, 10),
            "oihw", "hwio", "hwio"),
        Row("Conv2d 64→128, 3×3, 4 groups", "lecun_normal", lambda: conv2(64, 128, 3, groups=4),
            normal(16, 64, 10, 10), "oihw", "hwio", "hwio"),
        Row("Conv2d 64→64, 3×3, depthwise", "lecun_normal", lambda: conv2(64, 64, 3, groups=64),
            normal(16, 64, 10, 10), "oihw", "hwoi", "hwio"),
        Row("the same", "fan_out", lambda: conv2(64, 64, 3, groups=64), normal(16, 64, 10, 10),
            "oihw", "hwoi", "hwio"),
        Row("ConvTranspose2d 64→256, k 4, stride 2", "lecun_normal", strided, normal(8, 64, 8, 8),
            "iohw", "hwoi", "hwio"),
        Row("packed q, k, v [3·128, 128]", "xavier_normal", lambda: PackedAttention(128, 4),
            normal(16, 16, 128), "oi", "io", "io", ("qkv.weight",), packed_variance),
        Row("MultiheadAttention 128", "xavier_normal",
            lambda: nn.MultiheadAttention(128, 4, batch_first=True), three(16, 16, 128),
            "oi", "io", "io", ("in_proj_weight",), projected_variance),
        Row("LSTM 64, error per gate", "orthogonal", lambda: nn.LSTM(64, 64, batch_first=True),
            normal(8, 4, 64), "oi", "io", "io", ("weight_hh_l0",), gate_error, 0.0),
        Row("GRU 64, error per gate", "orthogonal", lambda: nn.GRU(64, 64, batch_first=True),
            normal(8, 4, 64), "oi", "io", "io", ("weight_hh_l0",), gate_error, 0.0),
        Row("Embedding 1000→128, in a model", "lecun_normal",
            lambda: nn.Sequential(nn.Embedding(1000, 128), nn.Linear(128, 8)), words(1000),
            "io", "io", "io", ("0.weight",), first_variance),
        Row("Bilinear 16, 16→64", "lecun_normal", lambda: nn.Bilinear(16, 16, 64, bias=False),
            lambda: (torch.randn(SAMPLES, 16), torch.randn(SAMPLES, 16)), "ohi", "hio", "hio"),
        Row("experts [8, 128, 64], einsum", "lecun_normal", lambda: Experts(8, 64, 128),
            normal(SAMPLES, 64), "eoi", "eio", "eio"),
        Row("slices [128, 64] of 4 ranks", "lecun_normal", lambda: Sharded(4, 256, 128),
            normal(SAMPLES, 256), "oi", "io", "io", tuple(f"slices.{i}" for i in range(4))),
    ]  # fmt: skip


# ----------------------------------------------------------------------------- the libraries


def torch_fill(row: Row) -> Fill:
    """``torch.nn.init``, which reads the fans from the shape."""
    linear = partial(nn.init.kaiming_normal_, nonlinearity="linear")
    schemes: dict[str, Callable[[Tensor], Tensor]] = {
        "lecun_normal": linear,
        "he_normal": nn.init.kaiming_normal_,
        "fan_out": partial(linear, mode="fan_out"),
        "xavier_normal": nn.init.xavier_normal_,
        "orthogonal": nn.init.orthogonal_,
    }

    def fill(model: nn.Module, _batch: Any, _seed: int) -> None:
        for name in row.parameters:
            schemes[row.scheme](model.get_parameter(name))

    return fill


@torch.no_grad()
def lay(tensor: Tensor, layout: str, theirs: str, draw: Callable[[Sequence[int]], Any]) -> None:
    """Fill a tensor with values drawn in another library's order of dimensions."""
    import numpy as np

    drawn = draw([tensor.shape[layout.index(letter)] for letter in theirs])
    order = [theirs.index(letter) for letter in layout]
    tensor.copy_(torch.from_numpy(np.array(drawn, np.float32)).permute(order))


def keras_fill(row: Row) -> Fill:
    os.environ.setdefault("KERAS_BACKEND", "jax" if installed("jax") else "torch")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from keras import initializers

    schemes = {
        "lecun_normal": initializers.LecunNormal,
        "he_normal": initializers.HeNormal,
        "fan_out": partial(initializers.VarianceScaling, 1.0, "fan_out", "untruncated_normal"),
        "xavier_normal": initializers.GlorotNormal,
        "orthogonal": initializers.Orthogonal,
    }

    def fill(model: nn.Module, _batch: Any, seed: int) -> None:
        for i, name in enumerate(row.parameters):
            draw = schemes[row.scheme](seed=100 * seed + i)
            lay(model.get_parameter(name), row.layout, row.keras, draw)

    return fill


def jax_fill(row: Row) -> Fill:
    import jax
    from jax.nn import initializers

    schemes = {
        "lecun_normal": initializers.lecun_normal,
        "he_normal": initializers.he_normal,
        "fan_out": partial(initializers.variance_scaling, 1.0, "fan_out", "normal"),
        "xavier_normal": initializers.glorot_normal,
        "orthogonal": initializers.orthogonal,
    }

    def fill(model: nn.Module, _batch: Any, seed: int) -> None:
        for i, name in enumerate(row.parameters):
            draw = partial(schemes[row.scheme](), jax.random.key(100 * seed + i))
            lay(model.get_parameter(name), row.layout, row.jax, draw)

    return fill


def fanin_fill(row: Row) -> Fill:
    def fill(model: nn.Module, batch: Any, seed: int) -> None:
        if isinstance(model, Sharded):
            for name in row.parameters:
                tensor = model.get_parameter(name)
                fanin.fill_(tensor, row.scheme, fan=model.inputs, seed=seed, name=name)
        elif row.scheme == "fan_out":
            fanin.init_(model, batch, "variance_scaling", seed=seed, mode="fan_out")
        else:
            fanin.init_(model, batch, row.scheme, seed=seed)

    return fill


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


LIBRARIES: dict[str, tuple[str, Callable[[Row], Fill]]] = {
    "torch.nn.init": ("torch", torch_fill),
    "Keras": ("keras", keras_fill),
    "JAX": ("jax", jax_fill),
    "fanin": ("fanin", fanin_fill),
}


# -------------------------------------------------------------------------------------- table


def measured(row: Row, fill: Fill, draws: int) -> list[float]:
    """The row's figure after each of several draws."""
    results = []
    for seed in range(draws):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, batch = row.build(), row.batch()
            fill(model, batch, seed)
            with torch.no_grad():
                results.append(row.measure(model, batch))
    return results


def right(row: Row, figures: list[float]) -> bool:
    """Is the mean right within its sampling error (and 1e-4 of rounding)?"""
    error = statistics.stdev(figures) / len(figures) ** 0.5
    return abs(statistics.mean(figures) - row.right) <= ERRORS * error + 1e-4


def cell(row: Row, figures: list[float]) -> str:
    mean = statistics.mean(figures)
    text = f"{mean:.2f}" if mean > 0.1 or abs(mean - row.right) < 0.01 else f"{mean:.2g}"
    return text if right(row, figures) else f"{text} ✗"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"of each weight ({DRAWS})")
    options = parser.parse_args()
    if options.draws < 2:
        parser.error(f"--draws {options.draws}: at least 2, for a sampling error")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(title="Output variance for unit inputs (✗: not so within sampling error)")
    for head in ("layer", "scheme"):
        table.add_column(head, no_wrap=True)
    for head in ("right", *LIBRARIES, "±"):
        table.add_column(head, justify="right", no_wrap=True)
    sound = True
    for row in rows():
        figures = {
            name: measured(row, fill(row), options.draws)
            for name, (package, fill) in LIBRARIES.items()
            if installed(package)
        }
        sound &= right(row, figures["fanin"])
        error = statistics.stdev(figures["fanin"]) / options.draws**0.5
        cells = (cell(row, figures[name]) if name in figures else "–" for name in LIBRARIES)
        table.add_row(row.layer, row.scheme, f"{row.right:.2f}", *cells, f"{error:.3f}")
    console.print(table)
    packages = [p for p, _ in LIBRARIES.values() if installed(p)]
    versions = [f"{p} {importlib.import_module(p).__version__}" for p in packages]
    console.print(f"{options.draws} draws; {', '.join(versions)}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
