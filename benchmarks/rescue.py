"""Rescue: which starts train, over about a hundred architectures and depths up to 100?

    python benchmarks/rescue.py run                   trains everything (22 core minutes), writes it
    python benchmarks/rescue.py run --start auto      only that start; the others stay as written
    python benchmarks/rescue.py run --only plain/relu prints every line, writes nothing
    python benchmarks/rescue.py table                 prints the written results (a second)
    python benchmarks/rescue.py rows                  the same, a line for each architecture

The starts are torch's own; Xavier (normal) and orthogonal with the gain torch gives the activation;
He (normal, ReLU); LSUV, the PyPI package `lsuv` (0.3) as its README uses it; and `fanin.init_` with
`auto`.  Each has the same budget: SGD with momentum and Adam at four learning rates each, 320
batches of 32, two orders of the samples, all as in ``trainability.py``, whose definition also says
what "trains" is: in both orders a start gets 80 % of the way from the loss of the best constant
answer to the loss of the best start of that architecture.  An architecture counts if its best start
takes away 40 % of the loss of the constant answer.  "Union" counts an architecture if any of the
starts other than `auto` trains it: what trying all five would give.

``--seed N`` redraws the weights and the data; its results have a file of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import rescue_networks as networks
import torch
import trainability as training
from rescue_networks import BASELINES, STARTS
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainability_networks import Recipe

Record = dict[str, Any]
WAYS = [(name, rate) for name, rates in training.RATES.items() for rate in rates]
TRAINS = "sound"  # the label of trainability.py
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def file(seed: int) -> Path:
    """The results of one seed."""
    return Path(__file__).with_name(f"rescue_results{f'_seed{seed}' if seed else ''}.json")


# --------------------------------------------------------------------------------------- train


def train_architecture(recipes: list[Recipe]) -> list[Record]:
    """Train the starts of one architecture side by side; one record for each."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    begin = time.process_time()
    t = networks.task(recipes[0])
    nets = [networks.build(recipe, t) for recipe in recipes]
    copies = training.Copies([net for net in nets for _ in WAYS])
    rates = torch.tensor([rate for _, rate in WAYS] * len(nets))[:, None]
    adam = torch.tensor([name == "adam" for name, _ in WAYS] * len(nets))[:, None]
    records = [{**asdict(r), "chance": t.chance, "orders": []} for r in recipes]
    # oneDNN is twice as fast on vmapped convolutions, half as fast on small matrix products, and
    # has no rule for vmapped recurrent layers.
    convolutions = any(isinstance(module, CONVOLUTIONS) for module in nets[0].modules())
    warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)  # of the next line
    for order in training.ORDERS:
        with torch.backends.mkldnn.flags(enabled=convolutions), sdpa_kernel(SDPBackend.MATH):
            losses, rights = training.train(copies, t, rates, adam, order)
        for i, record in enumerate(records):
            part = slice(i * len(WAYS), (i + 1) * len(WAYS))
            record["orders"].append(training._summary(WAYS, losses[part], rights[part]))
    seconds = (time.process_time() - begin) / len(records)
    return [{**record, "seconds": round(seconds, 1)} for record in records]


def train(recipes: list[list[Recipe]], processes: int) -> Iterator[Record]:
    """Every architecture in turn, the deepest first."""
    recipes = sorted(recipes, key=lambda group: -group[0].depth)
    fields = (*Progress.get_default_columns()[:3], TimeElapsedColumn())
    last = TextColumn("{task.fields[last]}")
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        Progress(*fields, last, console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("architectures", total=len(recipes), last="")
        for records in pool.imap_unordered(train_architecture, recipes):
            yield from records
            progress.update(bar, advance=1, last="/".join(map(str, architecture(records[0]))))


def architecture(record: Record) -> tuple[str, str, int]:
    return record["family"], record["activation"], record["depth"]


def available(starts: Iterable[str], console: Console) -> list[str]:
    """The starts that can be made here."""
    kept = []
    for start in starts:
        if start == "lsuv" and importlib.util.find_spec("lsuv") is None:
            console.print("start lsuv is skipped: the package is absent (pip install lsuv)")
        else:
            kept.append(start)
    return kept


def run(starts: list[str], only: str, seed: int, processes: int) -> list[Record]:
    """Train; the results with the written ones of the starts that were not trained now."""
    groups = [
        [replace(recipe, start=start) for start in starts]
        for recipe in networks.recipes(starts[0], seed)
        if only in f"{recipe.family}/{recipe.activation}/{recipe.depth}"
    ]
    if not groups:
        sys.exit(f"error: no architecture has {only!r} in its name; see the table for the names")
    new = list(train(groups, processes))
    trained = {architecture(record) for record in new}
    old = [
        record
        for record in read(seed)
        if architecture(record) in trained and record["start"] not in starts
    ]
    order = [architecture(asdict(recipe)) for recipe in networks.recipes(starts[0], seed)]
    names = list(STARTS)
    key = lambda r: (order.index(architecture(r)), names.index(r["start"]))  # noqa: E731
    return sorted(old + new, key=key)


def read(seed: int) -> list[Record]:
    if not file(seed).exists():
        return []
    networks: list[Record] = json.loads(file(seed).read_text())["networks"]
    return networks


def write(records: list[Record], seed: int) -> None:
    result = {
        "torch": torch.__version__,
        "core_seconds": round(sum(record["seconds"] for record in records)),
        "steps": training.STEPS,
        "batch": training.BATCH,
        "rates": training.RATES,
        "networks": records,
    }
    file(seed).write_text(training.dump(result))


# --------------------------------------------------------------------------------------- table


def judged(records: list[Record]) -> list[dict[str, Record]]:
    """For each architecture that counts: start → record, with label and progress."""
    result = []
    for _, group in groupby(records, key=architecture):
        starts = list(group)
        training._judge(starts, starts[0]["chance"])
        if starts[0]["label"] != "untrainable":
            result.append({record["start"]: record for record in starts})
    return result


def trains(starts: dict[str, Record], names: Iterable[str]) -> bool:
    return any(name in starts and starts[name]["label"] == TRAINS for name in names)


def columns(records: list[Record]) -> dict[str, tuple[str, ...]]:
    """Heading → the starts that it counts together."""
    present = {record["start"] for record in records}
    single = {name: (name,) for name in STARTS if name in present}
    auto = {"auto": single.pop("auto")} if "auto" in single else {}
    return {**single, "union": BASELINES, **auto}


def table(records: list[Record]) -> Table:
    groups = judged(records)
    heads = columns(records)
    shown = Table(title="Architectures that train, by start")
    for head in ("family", "count", *heads):
        shown.add_column(head, justify="left" if head == "family" else "right")
    families = dict.fromkeys(record["family"] for record in records)
    for family in families:
        mine = [g for g in groups if next(iter(g.values()))["family"] == family]
        shares = [sum(trains(g, names) for g in mine) for names in heads.values()]
        shown.add_row(family, str(len(mine)), *(str(share or "·") for share in shares))
    total = [sum(trains(g, names) for g in groups) for names in heads.values()]
    shown.add_section()
    shown.add_row("all", str(len(groups)), *map(str, total))
    shown.add_row("share", "", *(f"{share / max(1, len(groups)):.1%}" for share in total))
    return shown


def show(records: list[Record], console: Console) -> None:
    """Print the table, what `auto` and the others leave behind, and what did not count."""
    console.print(table(records))
    groups = judged(records)
    if any(record["start"] == "auto" for record in records):
        left = [g for g in groups if not trains(g, ("auto",))]
        console.print(f"\nauto does not train {len(left)} of {len(groups)}:")
        for g in left:
            console.print(f"  {line(g)}")
        rescued = [g for g in groups if trains(g, ("auto",)) and not trains(g, BASELINES)]
        console.print(f"\nauto alone trains {len(rescued)}:")
        for g in rescued:
            console.print(f"  {line(g)}")
    counted = {architecture(next(iter(g.values()))) for g in groups}
    others = dict.fromkeys(architecture(r) for r in records if architecture(r) not in counted)
    names = ", ".join("/".join(map(str, name)) for name in others)
    console.print(f"\nno start learned, so not counted: {names or 'none'}")
    minutes = sum(record["seconds"] for record in records) / 60
    console.print(f"{len(counted) + len(others)} architectures, {minutes:.1f} core minutes")


def line(g: dict[str, Record]) -> str:
    """An architecture, and of each start the progress in the order that went worse."""
    name = "/".join(map(str, architecture(next(iter(g.values())))))
    marks = {TRAINS: "✓", "faulty": "✗", "grey": "?"}
    each = (
        f"{s} {round(min(r['progress']), 2) + 0.0:.2f}{marks[r['label']]}" for s, r in g.items()
    )
    return f"{name:26s}" + "  ".join(each)


def rows(records: list[Record], console: Console) -> None:
    """Print one line for each architecture."""
    for g in judged(records):
        console.print(line(g))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("verb", nargs="?", default="table", choices=["run", "table", "rows"])
    parser.add_argument(
        "--only", default="", metavar="SUBSTRING", help="of family/activation/depth"
    )
    parser.add_argument("--start", action="append", choices=STARTS, help="may be repeated; all")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (0)")
    parser.add_argument("--processes", type=int, default=2, help="that train at once (2)")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if options.verb == "run":
        starts = available(options.start or STARTS, console)
        records = run(starts, options.only, options.seed, options.processes)
        if not options.only:
            write(records, options.seed)
    else:
        records = read(options.seed)
        if not records:
            parser.error(f"no results of seed {options.seed}: rescue.py run --seed {options.seed}")
    (rows if options.verb == "rows" or options.only else show)(records, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
