"""Cost and precision: `fanin.calibrate_` beside LSUV (PyPI `lsuv`, optional) on the same network.

    python benchmarks/calibration.py             depth 10, 50 and 200, relu and tanh
    python benchmarks/calibration.py --json -    the same as JSON
    python benchmarks/calibration.py --depths 10

A plain MLP of width 128 on a batch of 256 samples N(0, 1).  Each start is the same for all:
orthogonal weights, zero biases.  LSUV runs twice: as it is published (it stops within 0.1 of its
std), and to the precision that `calibrate_` has (within 0.001).

**Passes**: how often the model's forward ran, counted by a hook on the model.

**Time**: in one process the plain forward and each method take turns, ``--rounds`` times after one
round that warms up; a ratio is that of the medians.  The plain forward keeps no gradients.

**Error**: of the worst layer, |size/target − 1|, measured on the calibrated model.  LSUV's target
is a std of 1 over the whole output.  `calibrate_` has a root mean square as its target, which in
deep tanh networks is below 1; both sizes are shown for it.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fanin

WIDTH, SAMPLES = 128, 256
DEPTHS = (10, 50, 200)
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
PASSES_GOAL = 2
TIGHT = 1e-3  # of LSUV: about what one pass of calibrate_ reaches

Targets = dict[str, float]  # layer → the size that its output was to have
Method = Callable[[nn.Module, Tensor], Targets]


def network(depth: int, activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers "0", "2", "4" …, with orthogonal weights and zero biases."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), activation()]
    model = nn.Sequential(*layers[:-1])
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def calibrated(model: nn.Module, batch: Tensor) -> Targets:
    done = fanin.calibrate_(model, batch)
    return {row.parameter.removesuffix(".weight"): row.wanted for row in done}


def lsuv(tolerance: float, model: nn.Module, batch: Tensor) -> Targets:
    from lsuv import lsuv_with_singlebatch

    lsuv_with_singlebatch(model, batch, std_tol=tolerance, do_orthonorm=False, verbose=False)
    return {name: 1.0 for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def methods() -> dict[str, Method]:
    found: dict[str, Method] = {"calibrate_": calibrated}
    if find_spec("lsuv") is not None:
        found["lsuv"] = partial(lsuv, 0.1)
        found["lsuv, tight"] = partial(lsuv, TIGHT)
    return found


# --------------------------------------------------------------------------------- measurements


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def passes(method: Method, model: nn.Module, batch: Tensor) -> tuple[int, Targets]:
    """How often the model's forward runs."""
    counted: list[int] = []
    hook = model.register_forward_hook(lambda *_: counted.append(1))
    try:
        targets = method(model, batch)
    finally:
        hook.remove()
    return len(counted), targets


def errors(model: nn.Module, batch: Tensor, targets: Targets) -> dict[str, float]:
    """Of the worst layer, by its std and by its root mean square; in float64."""
    worst = {"std": 0.0, "rms": 0.0}

    def look(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        values = output.double()
        sizes = {"std": values.std(unbiased=False), "rms": values.square().mean().sqrt()}
        for kind, size in sizes.items():
            worst[kind] = max(worst[kind], abs(float(size) / targets[name] - 1))

    hooks = [
        module.register_forward_hook(partial(look, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return worst


def plain(model: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        model(batch)


def measure(activation: str, depth: int, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    start, batch = network(depth, ACTIVATIONS[activation]), torch.randn(SAMPLES, WIDTH)
    found = []
    for name, method in methods().items():
        model = copy.deepcopy(start)
        count, targets = passes(method, model, batch)
        worst = errors(model, batch, targets)
        found.append({"activation": activation, "depth": depth, "method": name, "passes": count})
        found[-1].update(std_error=worst["std"], rms_error=worst["rms"])
    times: dict[str, list[float]] = {"plain": [], **{row["method"]: [] for row in found}}
    for turn in range(rounds + 1):
        taken = {"plain": seconds(partial(plain, start, batch))}
        for name, method in methods().items():
            taken[name] = seconds(partial(method, copy.deepcopy(start), batch))
        for name, value in taken.items() if turn else ():
            times[name].append(value)
    for row in found:
        row["seconds"] = median(times[row["method"]])
        row["forwards"] = row["seconds"] / median(times["plain"])
    return found


# ----------------------------------------------------------------------------------------- main


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("network", "method", "passes", "time", "in plain forwards", "std error", "rms")
    for row in rows:
        table.add_row(
            f"{row['activation']} × {row['depth']}",
            row["method"],
            str(row["passes"]),
            f"{row['seconds'] * 1e3:.1f} ms",
            f"{row['forwards']:.1f}",
            f"{row['std_error']:.1e}",
            f"{row['rms_error']:.1e}",
        )
    Console(width=100).print(table)
    most = max(row["passes"] for row in rows if row["method"] == "calibrate_")
    met = "met" if most <= PASSES_GOAL else "NOT met"
    print(f"at most {PASSES_GOAL} passes at any depth: {most}, {met}")
    if find_spec("lsuv") is None:
        print("lsuv is not installed, so nothing stands beside it: pip install lsuv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there (- for stdout)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for activation in ACTIVATIONS
        for depth in options.depths
        for row in measure(activation, depth, options.rounds)
    ]
    if options.json is None:
        show(rows)
        return
    text = json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
    else:
        Path(options.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
