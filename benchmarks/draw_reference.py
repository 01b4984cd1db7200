"""How exact are the draws, over every word there is, and how fast?

    python benchmarks/draw_reference.py              all 2^31 magnitudes: some minutes
    python benchmarks/draw_reference.py --step 64    every 64th block of them
    python benchmarks/draw_reference.py --json -     the same as JSON

**Exactness** of the normal map, against Φ⁻¹ and Φ in double precision (scipy.special.ndtri, ndtr).
Word v and its complement have opposite values, so that the lower half of the words is all.  The
Kolmogorov distance is that of the 2^32 fixed-point values to the normal distribution, at both
sides of each step.  A value is within one unit in the last place where float32 of it differs from
Φ⁻¹ by no more than the float32 spacing there.  With ``--step`` all figures are those of the words
seen, and the variance is left out.

**Speed**: one thread, float32, fanin and torch take turns on one tensor; medians of ``--rounds``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import ndtr, ndtri

from fanin.draw import key, normal_, trunc_normal_, uniform_
from fanin.draw.gaussian import UNIT, fixed_point

GOALS = {  # what a prototype of the same map in C has reached
    "max_error": 1.9e-8,
    "kolmogorov": 6e-9,
    "variance_error": 2.5e-9,
    "share_within_ulp": 0.975,
    "max_z": 6.338,
}
HALF = 2**31  # words below it have negative values
BLOCK = 1 << 20
ELEMENTS = 1 << 22  # of the tensor that is filled


def exactness(step: int, console: Console) -> dict[str, Any]:
    found = {"max_error": 0.0, "kolmogorov": 0.0, "max_z": 0.0}
    squares = close = seen = falls = uneven = 0
    before = np.iinfo(np.int32).min
    for first in track(range(0, HALF, BLOCK * step), "all words", console=console, transient=True):
        v = np.arange(first, first + BLOCK, dtype=np.uint32)
        fixed = fixed_point(v)
        falls += int((np.diff(fixed, prepend=before) < 0).sum())
        uneven += int((fixed_point(~v) != -fixed).sum())
        before = fixed[-1]
        z, p = fixed * UNIT, v.astype(np.float64)
        exact, reached = ndtri((p + 0.5) / 2**32), ndtr(z)
        beside = max(np.abs(p / 2**32 - reached).max(), np.abs((p + 1) / 2**32 - reached).max())
        found["max_error"] = max(found["max_error"], float(np.abs(z - exact).max()))
        found["kolmogorov"] = max(found["kolmogorov"], float(beside))
        found["max_z"] = max(found["max_z"], float(np.abs(z).max()))
        rounded = fixed.astype(np.float32) * np.float32(UNIT)
        spacing = np.spacing(np.abs(exact).astype(np.float32))
        close += int((np.abs(rounded - exact) <= spacing).sum())
        squares += float((z * z).sum())
        seen += len(v)
    return {
        **found,
        "variance_error": squares / seen - 1 if step == 1 else None,
        "share_within_ulp": close / seen,
        "words": 2 * seen,
        "falling_steps": falls,
        "not_odd": uneven,
    }


def speed(rounds: int) -> list[dict[str, Any]]:
    tensor, name = torch.empty(ELEMENTS), key(0, "layer.weight")
    drawn: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "normal": (lambda: normal_(tensor, name), lambda: tensor.normal_()),
        "uniform": (lambda: uniform_(tensor, name), lambda: tensor.uniform_(-1, 1)),
        "trunc_normal ±2σ": (
            lambda: trunc_normal_(tensor, name),
            lambda: torch.nn.init.trunc_normal_(tensor),
        ),
    }
    rows = []
    for stream, both in drawn.items():
        times: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for which, run in enumerate(both):
                start = time.perf_counter()
                run()
                if turn:  # the first round warms up
                    times[which].append(1e9 * (time.perf_counter() - start) / ELEMENTS)
        ours, theirs = map(median, times)
        rows.append({"stream": stream, "fanin": ours, "torch": theirs, "ratio": ours / theirs})
    return rows


def within(found: dict[str, Any]) -> bool:
    return (
        found["max_error"] <= GOALS["max_error"]
        and found["kolmogorov"] <= GOALS["kolmogorov"]
        and found["max_z"] <= GOALS["max_z"]
        and found["share_within_ulp"] >= GOALS["share_within_ulp"]
        and abs(found["variance_error"] or 0.0) <= GOALS["variance_error"]
        and found["falling_steps"] == found["not_odd"] == 0
    )


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"the normal map over {result['exactness']['words']:,} words")
    for head in ("", "measured", "goal"):
        table.add_column(head, justify="left" if not head else "right")
    for name, value in result["exactness"].items():
        goal = GOALS.get(name)
        table.add_row(
            name, "" if value is None else f"{value:.6g}", "" if goal is None else f"{goal:g}"
        )
    console.print(table)
    table = Table(title=f"ns per element, float32, {ELEMENTS:,} elements, one thread")
    for head in ("stream", "fanin", "torch", "ratio"):
        table.add_column(head, justify="left" if head == "stream" else "right")
    for row in result["speed"]:
        ratio = f"{row['ratio']:.2f}×"
        table.add_row(row["stream"], f"{row['fanin']:.1f}", f"{row['torch']:.1f}", ratio)
    console.print(table)
    console.print(f"made by: {result['command']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--step", type=int, default=1, help="every STEP-th block of words (1)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (7)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args()
    if options.step < 1 or options.rounds < 1:
        parser.error("--step and --rounds have to be at least 1")
    torch.set_num_threads(1)
    console = Console(stderr=options.json == "-", soft_wrap=True)
    found = exactness(options.step, console)
    result = {
        "command": " ".join(["python", "benchmarks/draw_reference.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "goals": GOALS,
        "exactness": found,
        "speed": speed(options.rounds),
    }
    if options.json == "-":
        print(json.dumps(result, indent=2))
    else:
        show(console, result)
        if options.json:
            Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if within(found) else 1


if __name__ == "__main__":
    sys.exit(main())
