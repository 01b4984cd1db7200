"""How fast is the draw, beside torch, numpy, JAX and filling memory?

    python benchmarks/draw.py                      some minutes; the table
    python benchmarks/draw.py --json FILE          the figures as JSON too
    python benchmarks/draw.py --sizes 1000000 --dtypes float32 --threads 2

All fill the same tensor and take turns, in each round in another order, so that whatever else the
machine does meets all of them; the time of a contestant is its quickest round, and the ratio of two
is that of their quickest rounds.  Beside it stands the middle half of the ratios round by round.
On a machine that is busy with other things, ``chrt -f 1 python benchmarks/draw.py`` goes first.

    normal     fanin.draw.normal_, torch.nn.init.normal_, numpy standard_normal, jax.random.normal
    uniform    uniform_, torch.nn.init.uniform_, numpy random, jax.random.uniform
    trunc far  std 0.02 and torch's own bounds ±2, which is ±100σ: hardly anything is cut
    trunc ±2σ  the same std and bounds at ±0.04
    fill       torch.Tensor.fill_: what writing costs

fanin appears once for each instruction set of this machine, and for sizes below ten million as the
numpy reference (one thread).  numpy and JAX have no say in threads: numpy draws on one, and JAX on
as many as there are cores, so it appears only there.  fanin draws fewer than 65,536 elements on
one thread, whatever is allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fanin.draw import key, native, normal_, trunc_normal_, uniform_

STD = 0.02
SIZES = (10_000, 1_000_000, 25_000_000)
SLOW = 10_000_000  # elements: the reference would take seconds for more
LEAST = 1_000_000  # elements drawn in one timing: smaller tensors are filled again and again
ROUNDS = 5  # at least
#: By how many times fanin is to be quicker than torch: (what, threads) → ratio, in float32.
GOALS = {
    ("normal", 2): 3.0,
    ("trunc far", 2): 8.0,
    ("trunc ±2σ", 2): 25.0,
    ("uniform", 2): 4.0,
    ("normal", 1): 1.5,
}
Draw = Callable[[], object]


@dataclass(frozen=True)
class Cell:
    """Where contestants meet."""

    dtype: str
    size: int
    threads: int


@dataclass(frozen=True)
class Figure:
    """One contestant in one cell: nanoseconds per element, and what torch's are of them.

    `low`, `middle` and `high` are the quartiles of the ratios to torch, round by round.
    """

    what: str
    who: str
    dtype: str
    size: int
    threads: int
    rounds: int
    quickest: float
    usual: float
    ratio: float
    low: float
    middle: float
    high: float


def of_fanin(tensor: Tensor) -> dict[str, Draw]:
    own = key(0, "layer.weight")
    return {
        "normal": lambda: normal_(tensor, own, STD),
        "uniform": lambda: uniform_(tensor, own, STD),
        "trunc far": lambda: trunc_normal_(tensor, own, STD, -2 / STD, 2 / STD, corrected=False),
        "trunc ±2σ": lambda: trunc_normal_(tensor, own, STD, -2, 2, corrected=False),
    }


def of_torch(tensor: Tensor) -> dict[str, Draw]:
    return {
        "normal": lambda: nn.init.normal_(tensor, std=STD),
        "uniform": lambda: nn.init.uniform_(tensor, -STD, STD),
        "trunc far": lambda: nn.init.trunc_normal_(tensor, std=STD),
        "trunc ±2σ": lambda: nn.init.trunc_normal_(tensor, std=STD, a=-2 * STD, b=2 * STD),
        "fill": lambda: tensor.fill_(STD),
    }


def of_numpy(tensor: Tensor) -> dict[str, Draw]:
    """Without the factor STD, which numpy would take a second pass for."""
    if tensor.dtype != torch.float32:
        return {}
    rng, out = np.random.default_rng(0), tensor.numpy()
    return {
        "normal": lambda: rng.standard_normal(out=out, dtype=np.float32),
        "uniform": lambda: rng.random(out=out, dtype=np.float32),
    }


def of_jax(tensor: Tensor) -> dict[str, Draw]:
    """Arrays of its own, as JAX writes into no other's."""
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        return {}
    dtype = str(tensor.dtype).removeprefix("torch.")
    own, shape = jax.random.key(0), tensor.shape
    drawn = {
        "normal": jax.jit(lambda k: jax.random.normal(k, shape, dtype)),
        "uniform": jax.jit(lambda k: jax.random.uniform(k, shape, dtype, -STD, STD)),
        "trunc ±2σ": jax.jit(lambda k: jax.random.truncated_normal(k, -2, 2, shape, dtype)),
    }
    return {what: partial(_waited, f, own) for what, f in drawn.items()}


def _waited(draw: Callable[[Any], Any], own: Any) -> object:
    return draw(own).block_until_ready()


def by(backend: str, draw: Draw) -> Draw:
    def chosen() -> object:
        os.environ[native.CHOICE] = backend
        return draw()

    return chosen


def contestants(cell: Cell) -> dict[tuple[str, str], Draw]:
    """(what, who) → one draw into the cell's tensor."""
    tensor = torch.empty(cell.size, dtype=getattr(torch, cell.dtype))
    found = {(what, "torch"): draw for what, draw in of_torch(tensor).items()}
    backends = [*native.present(), *([native.REFERENCE] if cell.size < SLOW else [])]
    for backend in backends:
        for what, draw in of_fanin(tensor).items():
            found[what, f"fanin, {backend}"] = by(backend, draw)
    found |= {(what, "numpy"): draw for what, draw in of_numpy(tensor).items()}
    if cell.threads == os.cpu_count():
        found |= {(what, "jax"): draw for what, draw in of_jax(tensor).items()}
    return found


def timed(draw: Draw, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        draw()
    return (time.perf_counter() - began) / repeats


def measured(cell: Cell, seconds: float) -> list[Figure]:
    """All contestants of a cell in turn, for so many seconds."""
    torch.set_num_threads(cell.threads)
    drawn = contestants(cell)
    repeats = max(1, LEAST // cell.size)
    for draw in drawn.values():
        draw()  # compiles, and touches the memory
    times: dict[tuple[str, str], list[float]] = {each: [] for each in drawn}
    order = list(drawn)
    shuffler = random.Random(0)  # what came before has a part in the time: of caches, of memory
    began = time.perf_counter()
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() - began < seconds:
        shuffler.shuffle(order)
        for each in order:
            times[each].append(1e9 * timed(drawn[each], repeats) / cell.size)
        rounds += 1
    return [figure(cell, what, who, times) for what, who in times]


def figure(cell: Cell, what: str, who: str, times: dict[tuple[str, str], list[float]]) -> Figure:
    mine, theirs = times[what, who], times[what, "torch"]
    quartiles = quantiles([b / a for a, b in zip(mine, theirs, strict=True)], n=4)
    numbers = (min(mine), median(mine), min(theirs) / min(mine), *quartiles)
    shown = (float(f"{number:.4g}") for number in numbers)
    return Figure(what, who, cell.dtype, cell.size, cell.threads, len(mine), *shown)


def missed(figures: list[Figure]) -> list[str]:
    """Goals that the best instruction set does not reach at the largest size."""
    best = f"fanin, {native.present()[0]}" if native.present() else "fanin, reference"
    largest = max(figure.size for figure in figures)
    return [
        f"{f.what}, threads: {f.threads}: {f.ratio:.2f}×, not {GOALS[f.what, f.threads]:g}×"
        for f in figures
        if (f.what, f.threads) in GOALS
        and (f.who, f.dtype, f.size) == (best, "float32", largest)
        and f.ratio < GOALS[f.what, f.threads]
    ]


def show(console: Console, figures: list[Figure]) -> None:
    for cell in dict.fromkeys((f.dtype, f.size, f.threads) for f in figures):
        here = [f for f in figures if (f.dtype, f.size, f.threads) == cell]
        title = f"{cell[0]}, {cell[1]:,} elements, threads: {cell[2]}, {here[0].rounds} rounds"
        table = Table(title=title)
        for head in ("what", "who", "ns", "torch / it", "middle half", "goal"):
            table.add_column(head, justify="left" if head in ("what", "who") else "right")
        for f in sorted(here, key=lambda f: (f.what, f.quickest)):
            goal = GOALS.get((f.what, f.threads)) if f.who.startswith("fanin") else None
            own = f.dtype == "float32" and goal is not None
            table.add_row(
                f.what,
                f.who,
                f"{f.quickest:.3g}",
                f"{f.ratio:.2f}×",
                f"{f.low:.2f}–{f.high:.2f}",
                f"{goal:g}×" if own else "",
            )
        console.print(table)


def processor() -> str:
    """The model's name, where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "numpy": np.__version__}
    with contextlib.suppress(ImportError):
        found["jax"] = importlib.import_module("jax").__version__
    return found


def written(result: dict[str, Any], figures: list[Figure]) -> str:
    """JSON, with one figure on each line."""
    head = json.dumps(result, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = ",\n  ".join(json.dumps(asdict(each), ensure_ascii=False) for each in figures)
    return f'{head},\n "figures": [\n  {rows}\n ]\n}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--seconds", type=float, default=6, help="for each cell of the table (6)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    figures: list[Figure] = []
    for threads in options.threads:
        for size in options.sizes:
            for dtype in options.dtypes:
                found = measured(Cell(dtype, size, threads), options.seconds)
                show(console, found)
                figures += found
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/draw.py", *sys.argv[1:]]),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "missed": missed(figures),
    }
    if options.json:
        Path(options.json).write_text(written(result, figures), encoding="utf-8")
    for line in result["missed"]:
        console.print(f"missed: {line}", style="bold")
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
