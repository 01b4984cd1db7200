"""Cost: what ``fanin.check`` takes, beside one forward + backward of the same model and batch.

    python benchmarks/check_cost.py              GPT-2, two ResNet-50, one family at three sizes
    python benchmarks/check_cost.py --json -     the same as JSON
    python benchmarks/check_cost.py gpt2-124m    only what is named

**Time**: in one process the plain pass and the check take turns, ``--rounds`` times after a round
that warms up; a ratio is that of the two medians.

**Memory**: each measurement in a process of its own that builds the model and does one thing, once;
the peak is the largest resident size the system saw (``ru_maxrss``).  Two ratios are shown: "peak"
of the whole process, "added" of what came on top of the process with its model built.  Medians of
``--processes``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # imported in the measuring processes alone: this one has to stay small
    from torch import Tensor, nn

TIME_GOAL, MEMORY_GOAL = 3.0, 1.25
REAL = ("gpt2-124m", "resnet-50")
FAMILY = ("gpt2-2-layers", "gpt2-8-layers", "gpt2-24-layers")  # of one width, so all else is equal
WIDTH = 512


class Problem(NamedTuple):
    """What is run: a model, its batch, and its loss (None: the output's own)."""

    model: nn.Module
    batch: Any
    loss: Callable[[Any], Tensor] | None


# ------------------------------------------------------------------------------------- models


def gpt2(layers: int, width: int, heads: int, samples: int = 2, tokens: int = 128) -> Problem:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads))
    ids = torch.randint(model.config.vocab_size, (samples, tokens))
    return Problem(model, {"input_ids": ids, "labels": ids}, None)


def resnet50(
    samples: int = 4, side: int = 224, classes: int = 1000, closed: bool = False
) -> Problem:
    """[3, 4, 6, 3] bottleneck blocks, 25.6 M parameters; `closed`: their last norms start at 0."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * width
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU(inplace=True)
            self.skip: nn.Module = nn.Identity()
            if stride != 1 or inputs != outputs:
                self.skip = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y)) + self.skip(x)
            return F.relu(y, inplace=True)

    blocks, inputs = [], 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(Bottleneck(inputs, 64 << stage, stride))
            inputs = 4 * (64 << stage)
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    model = nn.Sequential(
        *stem, nn.MaxPool2d(3, 2, 1), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if closed and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
    target = torch.randint(classes, (samples,))
    return Problem(
        model, torch.randn(samples, 3, side, side), lambda output: F.cross_entropy(output, target)
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "gpt2-124m": partial(gpt2, 12, 768, 12),
    "resnet-50": resnet50,
    "resnet-50-closed": partial(resnet50, closed=True),
    **{name: partial(gpt2, int(name.split("-")[1]), WIDTH, 8) for name in FAMILY},
}


# ------------------------------------------------------------- inside of a measuring process


def build(name: str) -> Problem:
    import torch

    torch.manual_seed(0)
    return PROBLEMS[name]()


def plain(problem: Problem) -> None:
    """One forward + backward, as a training step has it."""
    model, batch, loss = problem
    output = model(**batch) if isinstance(batch, dict) else model(batch)
    (output.loss if loss is None else loss(output)).backward()
    for parameter in model.parameters():
        parameter.grad = None


def check(problem: Problem) -> Any:
    import fanin

    return fanin.check(problem.model, problem.batch, problem.loss)


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure_time(name: str, rounds: int) -> dict[str, Any]:
    import torch

    problem = build(name)
    plain(problem)
    report = check(problem)
    took: dict[str, list[float]] = {"plain": [], "check": []}
    for _ in range(rounds):
        took["plain"].append(seconds(lambda: plain(problem)))
        took["check"].append(seconds(lambda: check(problem)))
    return {
        "parameters": report.parameters,
        "plain_seconds": median(took["plain"]),
        "check_seconds": median(took["check"]),
        "plain_fastest": min(took["plain"]),
        "check_fastest": min(took["check"]),
        "virtual_steps": report.symmetry.steps,
        "ok": report.ok,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def measure_memory(name: str, what: str) -> dict[str, int]:
    """Peak resident bytes of one plain pass or one check, and those before it."""
    import fanin  # noqa: F401  (both kinds of process load the same code)

    problem = build(name)
    before, built = resident(), peak()
    {"plain": plain, "check": check}[what](problem)
    after = peak()
    if after <= built:
        raise RuntimeError(f"{name}: building the model took more memory than running it")
    return {"before": before, "peak": after}


def peak() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def resident() -> int:
    """Bytes resident now; the peak so far where the system does not say."""
    status = Path("/proc/self/statm")
    return (
        int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else peak()
    )


# ------------------------------------------------------------------------------------ the table


def worker(*arguments: str) -> dict[str, Any]:
    """The result of this file's ``--worker`` in a fresh process."""
    command = [sys.executable, __file__, "--worker", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env={**os.environ})
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(arguments: list[str]) -> dict[str, Any]:
    kind, name, rest = arguments
    return measure_time(name, int(rest)) if kind == "time" else measure_memory(name, rest)


def measured(name: str, rounds: int, processes: int) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, **worker("time", name, str(rounds))}
    for what in ("plain", "check"):
        runs = [worker("memory", name, what) for _ in range(processes)]
        row[f"{what}_peak"] = median(r["peak"] for r in runs)
        row[f"{what}_added"] = median(r["peak"] - r["before"] for r in runs)
    row["time_ratio"] = row["check_seconds"] / row["plain_seconds"]
    row["peak_ratio"] = row["check_peak"] / row["plain_peak"]
    row["added_ratio"] = row["check_added"] / row["plain_added"]
    goals = row["time_ratio"] <= TIME_GOAL and row["peak_ratio"] <= MEMORY_GOAL
    row["within_goals"] = goals and row["virtual_steps"] == 0
    return row


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="fanin.check beside one forward + backward")
    heads = (
        "model", "parameters", "plain", "check", "time", "per M param.",
        "peak plain", "peak check", "peak", "added", "virtual steps",
    )  # fmt: skip
    for head in heads:
        shown.add_column(head, justify="left" if head == "model" else "right")
    for row in rows:
        millions = row["parameters"] / 1e6
        shown.add_row(
            row["model"],
            f"{millions:.1f} M",
            f"{row['plain_seconds']:.3f} s",
            f"{row['check_seconds']:.3f} s",
            f"{row['time_ratio']:.2f}×",
            f"{1e3 * row['check_seconds'] / millions:.1f} ms",
            f"{row['plain_peak'] / 2**20:.0f} MiB",
            f"{row['check_peak'] / 2**20:.0f} MiB",
            f"{row['peak_ratio']:.2f}×",
            f"{row['added_ratio']:.2f}×",
            str(row["virtual_steps"]),
        )
    return shown


def slopes(rows: list[dict[str, Any]]) -> list[float]:
    """Milliseconds of check per additional million parameters, between neighbouring sizes."""
    return [
        1e9 * (b["check_seconds"] - a["check_seconds"]) / (b["parameters"] - a["parameters"])
        for a, b in pairwise(rows)
    ]


@contextmanager
def told(console: Console, text: str) -> Iterator[None]:
    with console.status(text):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(PROBLEMS)}; all")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (7)")
    parser.add_argument("--processes", type=int, default=3, help="processes per peak (3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker)))
        return 0
    unknown = [m for m in options.models if m not in PROBLEMS]
    if unknown:
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(PROBLEMS)}")
    console = Console(stderr=options.json == "-", soft_wrap=True)
    rows = []
    for name in options.models or PROBLEMS:
        with told(console, f"measuring {name}"):
            rows.append(measured(name, options.rounds, options.processes))
    family = [r for r in rows if r["model"] in FAMILY]
    real = [r for r in rows if r["model"] in REAL]
    result = {
        "command": " ".join(["python", "benchmarks/check_cost.py", *sys.argv[1:]]),
        "goals": {"time_ratio": TIME_GOAL, "peak_ratio": MEMORY_GOAL},
        "rows": rows,
        "milliseconds_per_more_million_parameters": slopes(family),
    }
    if options.json == "-":
        print(json.dumps(result, indent=2))
    else:
        console.print(table(rows))
        if len(family) > 1:
            each = ", ".join(f"{s:.1f}" for s in slopes(family))
            console.print(
                f"{FAMILY[0]} → {FAMILY[-1]}: {each} ms of check per additional M parameters"
            )
        console.print(f"goals: time ≤ {TIME_GOAL:g}×, peak ≤ {MEMORY_GOAL:g}×, no virtual step")
        console.print(f"made by: {result['command']}")
        if options.json:
            Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(r["within_goals"] for r in real) else 1


if __name__ == "__main__":
    sys.exit(main())
