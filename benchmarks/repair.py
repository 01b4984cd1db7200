"""Does a repaired network train as well as a new one?  Every error of the zoo of faults.

    python benchmarks/repair.py            repairs and trains each (a minute or two)
    python benchmarks/repair.py --only X   those with X in their name

Each faulty network of ``tests/zoo/faults.py`` in which the check finds an error is built three
times: as it is, repaired by ``fanin.repair_``, and drawn anew by ``fanin.init_``.  Each is trained
on its own batch by Adam at three learning rates for the same number of steps; the best run counts.
A network trains *as well as a new one* where it has gained at least :data:`SHARE` of what the new
one has gained from its start; where the new one has no finite loss, of what it could gain itself.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fanin

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from zoo import Case
from zoo.faults import FAULTS

STEPS = 300
RATES = (0.03, 0.01, 0.003)
SHARE = 0.9

Loss = Callable[[Any], Tensor]


def call(model: nn.Module, batch: Any) -> Any:
    """The model's output on a batch as fanin takes it."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def some_loss(model: nn.Module, batch: Any) -> Loss:
    """The distance to a fixed random target, for a model that comes without a loss."""
    with torch.no_grad():
        target = torch.randn(call(model, batch).shape, generator=torch.Generator().manual_seed(0))
    return lambda output: nn.functional.mse_loss(output, target)


def train(model: nn.Module, batch: Any, loss: Loss) -> tuple[float, float]:
    """(loss at the start, lowest loss at the end over the learning rates)."""
    ends, start = [], math.nan
    for rate in RATES:
        net = copy.deepcopy(model)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], rate)
        torch.manual_seed(0)
        value = math.nan
        for step in range(STEPS + 1):
            optimizer.zero_grad()
            objective = loss(call(net, batch))
            value = float(objective.detach())
            start = value if step == 0 else start
            if not math.isfinite(value) or step == STEPS:
                break
            objective.backward()
            optimizer.step()
        ends.append(value if math.isfinite(value) else math.inf)
    return start, min(ends)


def measure(case: Case) -> dict[str, Any] | None:
    """One row; None where the check finds no error."""
    built = {}
    for name in ("broken", "repaired", "new"):
        with fanin.recording() as record:
            model, batch, loss = case.build()
        built[name] = (model, batch, loss or some_loss(model, batch))
        if name == "repaired":
            done = fanin.repair_(model, batch, loss, record=record, **case.options)
            if done.before.ok:
                return None
        if name == "new":
            fanin.init_(model, batch)
    runs = {name: train(*given) for name, given in built.items()}
    start, best = runs["new"]
    if not math.isfinite(best):  # what the fault lies in has no new value
        start, best = runs["repaired"][0], 0.0
    end = runs["repaired"][1]
    return {
        "name": case.name,
        "codes": sorted({f.code for f in done.before.findings if f.severity == "error"}),
        "ok": done.ok,
        "changed": sum(c.entries for c in done.changes) / done.before.parameters,
        "losses": {name: end for name, (_, end) in runs.items()},
        "well": end <= start - SHARE * (start - best) and math.isfinite(end),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="cases with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    print(f"{'fault':46s}{'changed':>8s}{'broken':>10s}{'repaired':>10s}{'new':>10s}  errors")
    for case in FAULTS:
        row = measure(case) if arguments.only in case.name else None
        if row is None:
            continue
        rows.append(row)
        losses = "".join(f"{row['losses'][n]:10.3g}" for n in ("broken", "repaired", "new"))
        mark = "" if row["well"] else "  does not train as well"
        left = "" if row["ok"] else "  errors left"
        print(
            f"{row['name']:46s}{row['changed']:8.1%}{losses}  {' '.join(row['codes'])}{mark}{left}"
        )
    well = sum(row["well"] for row in rows)
    print(f"\nfaulty networks                {len(rows)}")
    print(f"no error after the repair      {sum(row['ok'] for row in rows)}")
    print(f"train as well as a new one     {well} ({well / max(1, len(rows)):.1%})")


if __name__ == "__main__":
    main()
