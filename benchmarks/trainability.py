"""Truth: does the verdict of ``fanin.check`` agree with what training shows?

    python benchmarks/trainability.py label      trains every network, writes the labels (minutes)
    python benchmarks/trainability.py compare    checks every network against its label (seconds)
    python benchmarks/trainability.py table      prints the labels
    python benchmarks/trainability.py repair     repairs what is faulty and trains it (minutes)

**How a network is labelled.**  All starts of one architecture are trained on the same data by SGD
with momentum and by Adam, each at several learning rates, for :data:`STEPS` small batches, twice,
with different orders of the samples.  A start's loss is the lowest of these runs (over all the
data, averaged over the end of the run).  Its *progress* is that loss on a scale from 0, the loss
of the best constant answer, to 1, the loss of the best start of the same architecture.  It is

- ``sound`` when the progress is at least :data:`SOUND` for both orders,
- ``faulty`` when it is at most :data:`FAULTY` for both, and the accuracy does not contradict
  (it stays below :data:`SOUND` of the best start's),
- ``grey`` otherwise: training itself does not say,
- ``untrainable`` when not even the best start of the architecture learned: nothing to compare.

Agreement is counted on ``sound`` and ``faulty`` alone.  All copies of an architecture (starts ×
learning rates) run side by side in one ``torch.func.vmap``, so one core is enough.

**Held out.**  The thresholds in ``fanin.findings`` were chosen with the labels of seed 0 in sight.
``--seed N`` redraws the weights and the data of every recipe (the architectures and starts stay
what they are), so ``label --seed 1`` and ``compare --seed 1`` measure on networks no threshold has
seen.  Every seed has a file of labels; ``--seed`` may be given several times: ``compare --seed 0
--seed 1`` reports on each seed and ends with one table of both.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, replace_all_batch_norm_modules_, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainability_networks import RECIPES, Recipe, Recurrent, Task, build, task

STEPS = 320
BATCH = 32
RATES = {"sgd": (0.1, 0.03, 0.01, 0.001), "adam": (0.03, 0.01, 0.003, 0.001)}
MOMENTUM = 0.9
ORDERS = (0, 1)  # seeds of the order of the samples
LAST = (260, 280, 300, 320)  # steps whose full losses are averaged
SOUND, FAULTY = 0.8, 0.4
LEARNED = 0.4  # share of the chance loss the best start of an architecture must take away


def labels(seed: int) -> Path:
    """The file with the labels of one seed."""
    return Path(__file__).with_name(f"trainability_labels{f'_seed{seed}' if seed else ''}.json")


# -------------------------------------------------------------------------------------- label


class Copies:
    """Many copies of one architecture, trained side by side: row i of ``values`` is one copy."""

    def __init__(self, nets: list[nn.Module]) -> None:
        self.skeleton = deepcopy(nets[0])
        replace_all_batch_norm_modules_(self.skeleton)  # no running statistics under vmap
        named = {name: p for name, p in self.skeleton.named_parameters() if p.requires_grad}
        self.shapes = {name: p.shape for name, p in named.items()}
        self.values = torch.stack([self._flat(net, self.shapes) for net in nets])
        others = [name for name, p in nets[0].named_parameters() if not p.requires_grad]
        self.frozen = {
            name: torch.stack([net.get_parameter(name).detach() for net in nets]) for name in others
        }

    @staticmethod
    def _flat(net: nn.Module, names: Iterable[str]) -> Tensor:
        return torch.cat([net.get_parameter(name).detach().flatten() for name in names])

    def output(self, flat: Tensor, frozen: dict[str, Tensor], inputs: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        named = zip(self.shapes.items(), parts, strict=True)
        values = {name: part.view(shape) for (name, shape), part in named}
        return functional_call(self.skeleton, {**values, **frozen}, (inputs,))


def train(copies: Copies, t: Task, rates: Tensor, adam: Tensor, order: int) -> tuple[Tensor, ...]:
    """Final loss and accuracy of every copy; ``rates`` and ``adam`` say how each is trained."""

    def loss(flat: Tensor, frozen: dict[str, Tensor], rows: Tensor) -> Tensor:
        return t.loss(copies.output(flat, frozen, t.inputs[rows]), t.targets[rows])

    def look(flat: Tensor, frozen: dict[str, Tensor]) -> Tensor:
        # Through vjp because vmap alone has no rule for the fused recurrent layers.
        return vjp(lambda flat: copies.output(flat, frozen, t.inputs), flat)[0].detach()

    step = vmap(grad_and_value(loss), in_dims=(0, 0, None))
    draw = torch.Generator().manual_seed(order)
    values = copies.values.clone()
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    losses, rights = [], []
    for k in range(1, STEPS + 1):
        rows = torch.randint(len(t.inputs), (BATCH,), generator=draw)
        gradient, _ = step(values, copies.frozen, rows)
        first.mul_(torch.where(adam, 0.9, MOMENTUM)).add_(gradient * torch.where(adam, 0.1, 1.0))
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scaled = (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
        values -= rates * torch.where(adam, scaled, first)
        if k in LAST:
            outputs = vmap(look)(values, copies.frozen)
            losses.append(torch.stack([t.loss(output) for output in outputs]))
            rights.append(torch.stack([_accuracy(output, t) for output in outputs]))
    return torch.stack(losses).mean(0), torch.stack(rights).mean(0)


def _accuracy(output: Tensor, t: Task) -> Tensor:
    return (output.argmax(-1) == t.targets).float().mean() if t.classes else torch.tensor(math.nan)


def label_architecture(recipes: list[Recipe]) -> list[dict[str, Any]]:
    """Train all starts of one architecture; one record for each."""
    t = task(recipes[0])
    trained = train_all(recipes[0], [build(recipe)[0] for recipe in recipes])
    records: list[dict[str, Any]] = [
        {**asdict(r), "chance": t.chance, "orders": orders}
        for r, orders in zip(recipes, trained, strict=True)
    ]
    _judge(records, t.chance)
    return records


def train_all(recipe: Recipe, nets: list[nn.Module]) -> list[list[dict[str, Any]]]:
    """Train networks of one architecture in every way; for each its best runs, order by order."""
    t = task(recipe)
    ways = [(name, rate) for name, rates in RATES.items() for rate in rates]
    copies = Copies([net for net in nets for _ in ways])
    rates = torch.tensor([rate for _, rate in ways] * len(nets))[:, None]
    adam = torch.tensor([name == "adam" for name, _ in ways] * len(nets))[:, None]
    found: list[list[dict[str, Any]]] = [[] for _ in nets]
    fused = not isinstance(copies.skeleton, Recurrent)  # oneDNN's recurrent layers cannot vmap
    for order in ORDERS:
        with torch.backends.mkldnn.flags(enabled=fused), sdpa_kernel(SDPBackend.MATH):
            losses, rights = train(copies, t, rates, adam, order)
        for i, orders in enumerate(found):
            part = slice(i * len(ways), (i + 1) * len(ways))
            orders.append(_summary(ways, losses[part], rights[part]))
    return found


def _summary(ways: list[tuple[str, float]], losses: Tensor, rights: Tensor) -> dict[str, Any]:
    """The best run of one start, over all and by optimizer."""
    losses = losses.nan_to_num(math.inf)
    best = int(losses.argmin())
    result = {"loss": _short(losses[best]), "accuracy": _short(rights[best])}
    for name in RATES:
        mine = [i for i, way in enumerate(ways) if way[0] == name]
        i = min(mine, key=lambda i: float(losses[i]))
        result[name] = {"loss": _short(losses[i]), "rate": ways[i][1]}
    return result


def _short(value: Tensor) -> float | None:
    return float(f"{float(value):.4g}") if math.isfinite(value) else None


def _judge(records: list[dict[str, Any]], chance: float) -> None:
    """Add progress, label and which optimizers train to the records of one architecture."""
    runs = [[record["orders"][i] for record in records] for i in range(len(ORDERS))]
    lowest = [min(_loss(run) for run in order) for order in runs]
    highest = [max(run["accuracy"] or 0.0 for run in order) for order in runs]
    learned = all(chance - best >= LEARNED * chance for best in lowest)

    for record in records:
        both = list(zip(record["orders"], lowest, strict=True))
        record["progress"] = [_progress(run, best, chance) for run, best in both]
        record["right"] = [  # accuracy against that of the best start; 0 in a regression
            round((run["accuracy"] or 0.0) / best, 3) if best else 0.0
            for run, best in zip(record["orders"], highest, strict=True)
        ]
        record["label"] = _label(record) if learned else "untrainable"
        record["trains_with"] = [
            name
            for name in RATES
            if learned and all(_progress(run[name], best, chance) >= SOUND for run, best in both)
        ]


def _progress(run: dict[str, Any], best: float, chance: float) -> float:
    return round(max(-1.0, (chance - _loss(run)) / (chance - best)), 3)


def _loss(run: dict[str, Any]) -> float:
    return math.inf if run["loss"] is None else run["loss"]


def _label(record: dict[str, Any]) -> str:
    if min(record["progress"]) >= SOUND:
        return "sound"
    if max(record["progress"]) <= FAULTY and max(record["right"]) <= SOUND:
        return "faulty"
    return "grey"


def label(recipes: Iterable[Recipe]) -> dict[str, Any]:
    """Label all recipes, architecture by architecture."""
    records = []
    start = time.perf_counter()
    for architecture, group in groupby(
        sorted(recipes, key=lambda r: r.architecture), key=lambda r: r.architecture
    ):
        begin = time.perf_counter()
        new = label_architecture(list(group))
        records += new
        seconds = time.perf_counter() - begin
        counts = dict(Counter(record["label"] for record in new))
        print(*architecture, counts, f"{seconds:.1f} s", file=sys.stderr, flush=True)
    return {
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - start),
        "steps": STEPS,
        "batch": BATCH,
        "rates": RATES,
        "sound": SOUND,
        "faulty": FAULTY,
        "learned": LEARNED,
        "networks": records,
    }


def dump(result: dict[str, Any]) -> str:
    """JSON with one network on a line."""
    head = json.dumps({**result, "networks": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n".join("  " + json.dumps(network) for network in result["networks"])
    return f"{head}[\n{lines}\n ]\n}}\n"


# ------------------------------------------------------------------------------------- repair


def repair(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Repair every faulty network and train it as its architecture's starts were trained.

    A network in which the check found warnings alone is repaired with ``warnings=True``; one in
    which a fault is left and some of it is frozen, with ``frozen=True``.
    """
    key = lambda n: (n["family"], n["activation"], n["depth"])  # noqa: E731
    rows = []
    for architecture, group in groupby(sorted(networks, key=key), key=key):
        records = list(group)
        if faulty := [r for r in records if r["label"] == "faulty"]:
            begin = time.perf_counter()
            new = _repaired(records, faulty)
            rows += new
            counts = dict(Counter(row["label"] for row in new))
            seconds = time.perf_counter() - begin
            print(*architecture, counts, f"{seconds:.1f} s", file=sys.stderr, flush=True)
    return rows


def _repaired(records: list[dict[str, Any]], faulty: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one architecture: what the repair did, and the label that training gives now."""
    import fanin

    recipes = [
        Recipe(*(r[k] for k in ("family", "activation", "depth", "start", "seed"))) for r in faulty
    ]
    nets, rows = [], []
    for recipe in recipes:
        net, batch, loss = build(recipe)
        done = fanin.repair_(net, batch, loss)
        if not done.changes:
            done = fanin.repair_(net, batch, loss, warnings=True)
        if done.frozen:
            net, batch, loss = build(recipe)
            done = fanin.repair_(net, batch, loss, frozen=True)
        nets.append(net)
        changed = sum(c.entries for c in done.changes) / done.before.parameters
        found = [[f"{f.code} {f.severity}" for f in r.findings] for r in (done.before, done.after)]
        rows.append({"name": str(recipe), "start": recipe.start, "changed": round(changed, 4)})
        rows[-1] |= {"before": found[0], "after": found[1], "ok": done.ok}
    trained = train_all(recipes[0], nets)
    best = [min(_loss(r["orders"][i]) for r in records) for i in range(len(ORDERS))]
    right = [max(r["orders"][i]["accuracy"] or 0.0 for r in records) for i in range(len(ORDERS))]
    chance = records[0]["chance"]
    for row, orders in zip(rows, trained, strict=True):
        row["progress"] = [_progress(o, b, chance) for o, b in zip(orders, best, strict=True)]
        row["right"] = [
            round((o["accuracy"] or 0.0) / b, 3) if b else 0.0
            for o, b in zip(orders, right, strict=True)
        ]
        row["label"] = _label(row)
    return rows


def show_repairs(rows: list[dict[str, Any]]) -> None:
    """Print how many of the faulty networks train now, and those that do not."""
    for row in rows:
        if row["label"] != "sound":
            print(f"  {row['label']:8s}{row['name']:44s}progress {row['progress']}", end="  ")
            print(f"{row['before']} → {row['after']}")
    sound = sum(row["label"] == "sound" for row in rows)
    print(f"faulty networks                  {len(rows)}")
    print(f"no error after the repair        {sum(row['ok'] for row in rows)}")
    print(f"train like a healthy start now   {sound} ({sound / max(1, len(rows)):.1%})")


# ------------------------------------------------------------------------------------ compare


def compare(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Check every labelled network; one row for each, and what they add up to."""
    import fanin

    rows = []
    start = time.perf_counter()
    for network in networks:
        recipe = Recipe(*(network[k] for k in ("family", "activation", "depth", "start", "seed")))
        report = fanin.check(*build(recipe))
        found = [f"{f.code} {f.severity} {f.layer}" for f in report.findings]
        rows.append({**network, "ok": report.ok, "findings": found, "name": str(recipe)})
    return {"seconds": round(time.perf_counter() - start, 1), **summary(rows), "networks": rows}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Agreement, false alarms and missed faults, over all and along family and start."""
    judged = [row for row in rows if row["label"] in ("sound", "faulty")]
    sound = [row for row in judged if row["label"] == "sound"]
    alarms = [row["name"] for row in sound if not row["ok"]]
    missed = [row["name"] for row in judged if row["label"] == "faulty" and row["ok"]]
    return {
        "labels": dict(Counter(row["label"] for row in rows)),
        "judged": len(judged),
        "agreement": 1 - (len(alarms) + len(missed)) / max(1, len(judged)),
        "false_alarm_rate": len(alarms) / max(1, len(sound)),
        "false_alarms": alarms,
        "missed_faults": missed,
        "by_family": _confusion(rows, "family"),
        "by_start": _confusion(rows, "start"),
    }


def _confusion(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(CELLS, 0))
    for row in rows:
        verdict = "ok" if row["ok"] else "error"
        label = row["label"] if row["label"] in ("sound", "faulty") else "grey"
        table[row[key]][f"{label} {verdict}"] += 1
    return dict(sorted(table.items()))


CELLS = ("sound ok", "sound error", "faulty error", "faulty ok", "grey ok", "grey error")


def show(result: dict[str, Any]) -> None:
    """Print the result of ``compare`` as text."""
    for key in ("by_family", "by_start"):
        print(f"{key[3:]:20s}" + "".join(f"{cell:>14s}" for cell in CELLS))
        for name, cells in result[key].items():
            print(f"{name:20s}" + "".join(f"{cells[cell] or '·':>14}" for cell in CELLS))
        print()
    print("disagreements")
    wrong = {*result["false_alarms"], *result["missed_faults"]}
    for row in result["networks"]:
        if row["name"] in wrong:
            kind = "missed fault" if row["ok"] else "false alarm"
            print(f"  {kind:13s}{row['name']:42s}progress {row['progress']}  {row['findings']}")
    print()
    print("labels", result["labels"], f"checked in {result['seconds']} s")
    print(f"agreement outside the grey zone  {result['agreement']:.1%}")
    print(f"false alarms                     {result['false_alarm_rate']:.1%} of the sound ones")
    print(f"missed faults                    {len(result['missed_faults'])}")


def show_seeds(results: dict[int, dict[str, Any]]) -> None:
    """Print one line for each seed."""
    print(f"\n{'seed':>4}{'judged':>10}{'agreement':>13}{'false alarms':>16}{'missed':>10}")
    for seed, result in results.items():
        alarms, missed = len(result["false_alarms"]), len(result["missed_faults"])
        agreement = f"{result['agreement']:.1%}"
        print(f"{seed:4}{result['judged']:10}{agreement:>13}{alarms:16}{missed:10}")


def table(networks: list[dict[str, Any]]) -> None:
    """Print the labels: one line for each architecture."""
    letter = {"sound": "+", "faulty": "−", "grey": "?", "untrainable": "x"}
    key = lambda n: (n["family"], n["activation"], n["depth"])  # noqa: E731
    for architecture, group in groupby(networks, key=key):
        marks = " ".join(f"{letter[n['label']]}{n['start']}" for n in group)
        print("{} {} {}: ".format(*architecture) + marks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = ["label", "compare", "table", "repair"]
    parser.add_argument("verb", nargs="?", default="compare", choices=verbs)
    parser.add_argument("--seed", type=int, action="append", help="default 0; may be repeated")
    parser.add_argument("--json", action="store_true", help="print each result as JSON")
    parser.add_argument("--only", default="", help="architectures with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for seed in dict.fromkeys(arguments.seed or [0]):
        if arguments.verb == "label":
            torch.set_flush_denormal(True)
            labels(seed).write_text(dump(label(replace(r, seed=seed) for r in RECIPES)))
            continue
        networks = json.loads(labels(seed).read_text())["networks"]
        wanted = arguments.only
        networks = [n for n in networks if wanted in "{family}/{activation}/{depth}".format(**n)]
        if arguments.verb == "table":
            table(networks)
            continue
        if arguments.verb == "repair":
            torch.set_flush_denormal(True)
            rows = repair(networks)
            print(json.dumps(rows, indent=1)) if arguments.json else show_repairs(rows)
            continue
        results[seed] = result = {"seed": seed, **compare(networks)}
        if arguments.json:
            print(json.dumps(result, indent=1))
            continue
        print(f"seed {seed}\n")
        show(result)
        print()
    if len(results) > 1 and not arguments.json:
        show_seeds(results)


if __name__ == "__main__":
    main()
