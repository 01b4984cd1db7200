"""Depth: which starts make plain networks trainable, at depths from 10 to 1000?

    python benchmarks/depth.py run                     trains what is not written yet, writes it
    python benchmarks/depth.py run --only mlp/tanh/100 trains these again, prints, writes nothing
    python benchmarks/depth.py run --full              without the early stop of hopeless runs
    python benchmarks/depth.py table                   prints the written results (a second)
    python benchmarks/depth.py rows                    the same, a line for each network

Plain networks without norms and skips, on the 1797 handwritten digits (8×8) of scikit-learn: MLPs
of width 128 and convolutions of 16 channels (3×3, the mean over the image before the output layer),
`depth` hidden layers, and an output layer.  The starts:

- default: torch's own,
- gain: He's and Xavier's idea with the right gain, N(0, 1/(E[φ²]·fan_in)), biases zero,
- orthogonal: with the same gain,
- lsuv: `fanin.init_(scheme="lsuv")`, in one pass; the package `lsuv`, which runs the model anew
  for every layer, is not used here,
- auto: `fanin.init_`.

Each has the same budget: Adam at the three learning rates c/depth, c of :data:`RATES`, 300 batches
of 32.  A start *trains* when, at one of these rates, the loss of 20 batches in a row averages half
of that of guessing, ln 10, or less.  A run ends when its start has trained, when its loss is not
finite, and when it is hopeless: after 100 batches the loss of the last 20 is not 2 % below
guessing.

What was chosen in fanin was chosen on seeds 0 and 3, with a few looks at seed 1, whose table had
120 batches; the table is of seed 2, which was looked at when all was chosen.  scikit-learn is
needed: pip install scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fanin

FILE = Path(__file__).with_name("depth_results.json")
RATES = (0.1, 0.03, 0.01)  # times 1/depth: every layer's step adds to those of the others
STEPS, BATCH = 300, 32
CHECK = 10  # steps between two looks at the losses
LAST = 2  # looks whose losses are averaged
TRAINED = 0.5  # of the loss of guessing
PATIENCE, HOPELESS = 100, 0.98  # steps, and the part of the loss of guessing
SEED = 2  # of the table
CLASSES = 10
GUESSING = math.log(CLASSES)
WIDTH, CHANNELS, SIDE = 128, 16, 8
SEEN = 256  # inputs that data-driven starts see
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
MLP_DEPTHS, CNN_DEPTHS = (10, 30, 100, 300, 1000), (30, 100)
STARTS = ("default", "gain", "orthogonal", "lsuv", "auto")


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "sin": Sine,
    "mish": nn.Mish,
    "hardtanh": nn.Hardtanh,
}


@dataclass(frozen=True)
class Case:
    """One architecture."""

    kind: str
    activation: str
    depth: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.activation}/{self.depth}"


@dataclass
class Record:
    """How one start of one architecture went.

    `best` is the lowest mean loss of 20 batches, over the loss of guessing; `rate` the learning
    rate it was seen at, `steps` how many steps that took.
    """

    kind: str
    activation: str
    depth: int
    seed: int
    start: str
    trains: bool
    best: float
    rate: float
    steps: int


def cases(seed: int) -> list[Case]:
    mlps = [Case("mlp", a, d, seed) for d in MLP_DEPTHS for a in ACTIVATIONS]
    return mlps + [Case("cnn", a, d, seed) for d in CNN_DEPTHS for a in ACTIVATIONS]


def data(kind: str) -> tuple[Tensor, Tensor]:
    """Images of mean 0 and std 1, and their digits."""
    if importlib.util.find_spec("sklearn") is None:
        sys.exit(
            "error: scikit-learn is absent, whose digits are learned: pip install scikit-learn"
        )
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    x = x.view(-1, 1, SIDE, SIDE) if kind == "cnn" else x
    return x, torch.tensor(digits.target)


# --------------------------------------------------------------------------------------- starts


class Mean(nn.Module):
    """Over the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((-2, -1))


def build(case: Case) -> nn.Sequential:
    layers: list[nn.Module] = []
    conv = case.kind == "cnn"
    inputs, width = (1, CHANNELS) if conv else (SIDE * SIDE, WIDTH)
    for i in range(case.depth):
        size = width if i else inputs
        layers.append(nn.Conv2d(size, width, 3, padding=1) if conv else nn.Linear(size, width))
        layers.append(ACTIVATIONS[case.activation]())
    return nn.Sequential(*layers, *([Mean()] if conv else []), nn.Linear(width, CLASSES))


def weighted(net: nn.Sequential) -> list[nn.Module]:
    return [module for module in net if isinstance(module, nn.Linear | nn.Conv2d)]


def started(case: Case, start: str, x: Tensor) -> nn.Sequential:
    """The network at its start."""
    torch.manual_seed(case.seed)
    net = build(case)
    if start in ("lsuv", "auto"):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case.seed))
        fanin.init_(net, x[order[:SEEN]], scheme=start, seed=case.seed)
    elif start != "default":
        for i, layer in enumerate(weighted(net)):
            gain = fanin.gain(case.activation) if i else 1.0
            with torch.no_grad():
                if start == "gain":
                    layer.weight.normal_(0, gain / math.sqrt(layer.weight[0].numel()))
                else:
                    nn.init.orthogonal_(layer.weight, gain)
                layer.bias.zero_()
    return net


# ----------------------------------------------------------------------------------------- train


class Copies:
    """Networks of one architecture side by side: one product of a layer serves them all.

    `parameters` are the first layer, the hidden ones [layers, copies, ...] and the output layer,
    each a weight and a bias.
    """

    def __init__(self, nets: list[nn.Sequential], case: Case) -> None:
        self.phi = ACTIVATIONS[case.activation]()
        self.conv = case.kind == "cnn"
        layers = [weighted(net) for net in nets]

        def stack(i: int) -> tuple[Tensor, Tensor]:
            weight = torch.stack([mine[i].weight.detach() for mine in layers])
            bias = torch.stack([mine[i].bias.detach() for mine in layers])
            flat = weight.ndim == 3
            return (weight.mT.contiguous() if flat else weight), (bias[:, None] if flat else bias)

        hidden = [stack(i) for i in range(1, len(layers[0]) - 1)]
        middle = tuple(torch.stack(each) for each in zip(*hidden, strict=True))
        self.parameters = [*stack(0), *middle, *stack(-1)]
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    def keep(self, index: Tensor) -> None:
        """Only these copies go on."""

        def chosen(tensor: Tensor, place: int) -> Tensor:
            return tensor.index_select(1 if place in (2, 3) else 0, index)

        self.parameters = [chosen(p, i) for i, p in enumerate(self.parameters)]
        self.state = [(chosen(m, i), chosen(v, i)) for i, (m, v) in enumerate(self.state)]

    def __call__(self, x: Tensor) -> Tensor:
        """[batch, ...] → [copies, batch, classes]."""
        first, shift, hidden, shifts, last, end = self.parameters
        n = len(first)
        x = x.repeat(1, n, 1, 1) if self.conv else x.expand(n, *x.shape)
        x = self.phi(self._layer(x, first, shift))
        for weight, bias in zip(hidden.unbind(), shifts.unbind(), strict=True):
            x = self.phi(self._layer(x, weight, bias))
        if self.conv:
            x = x.mean((-2, -1)).view(len(x), n, -1).transpose(0, 1)
        return torch.baddbmm(end, x, last)

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if not self.conv:
            return torch.baddbmm(bias, x, weight)
        return F.conv2d(x, weight.flatten(0, 1), bias.flatten(), padding=1, groups=len(weight))

    def step(self, x: Tensor, y: Tensor, rates: Tensor, count: int) -> Tensor:
        """A step of Adam, each copy at its own rate; their losses before it."""
        for p in self.parameters:
            p.requires_grad_()
        logits = self(x)
        each = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="none")
        losses = each.view(len(logits), -1).mean(1)
        gradients = torch.autograd.grad(losses.sum(), self.parameters)
        scale = rates * math.sqrt(1 - BETAS[1] ** count) / (1 - BETAS[0] ** count)
        self.parameters = [p.detach() for p in self.parameters]
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            m, v = self.state[i]
            # layer by layer, so that what is written stays in the cache
            for part in range(len(p)) if i in (2, 3) else (slice(None),):
                adam(p[part], g[part], m[part], v[part], scale)
        return losses.detach()


def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, scale: Tensor) -> None:
    m.lerp_(g, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
    p.sub_(m.div(v.sqrt().add_(EPSILON)).mul_(scale.view(-1, *[1] * (p.ndim - 1))))


def train(case: Case, starts: tuple[str, ...], full: bool) -> list[Record]:
    """Train the starts of one architecture side by side; one record for each."""
    x, y = data(case.kind)
    ways = [(start, c / case.depth) for start in starts for c in RATES]
    nets = {start: started(case, start, x) for start in starts}
    copies = Copies([nets[start] for start, _ in ways], case)
    alive = list(range(len(ways)))
    seen: list[list[float]] = [[] for _ in ways]
    orders = torch.Generator().manual_seed(case.seed)
    for count in range(1, STEPS + 1):
        chosen = torch.randint(len(x), (BATCH,), generator=orders)
        rates = torch.tensor([ways[i][1] for i in alive])
        losses = copies.step(x[chosen], y[chosen], rates, count)
        for i, loss in zip(alive, losses.tolist(), strict=True):
            seen[i].append(loss)
        if count % CHECK == 0:
            done = {ways[i][0] for i in alive if recent(seen[i]) <= TRAINED}
            stay = [i for i in alive if ways[i][0] not in done and hopeful(seen[i], full)]
            if not stay:
                break
            if len(stay) < len(alive):
                copies.keep(torch.tensor([alive.index(i) for i in stay]))
                alive = stay
    return [record(case, start, ways, seen) for start in starts]


def recent(losses: list[float]) -> float:
    """Mean loss of the last batches over that of guessing; infinite where it is not finite."""
    last = losses[-LAST * CHECK :]
    mean = sum(last) / len(last) / GUESSING
    return mean if math.isfinite(mean) and len(last) == LAST * CHECK else math.inf


def hopeful(losses: list[float], full: bool) -> bool:
    if not math.isfinite(losses[-1]):
        return False
    return full or len(losses) != PATIENCE or recent(losses) <= HOPELESS


def record(
    case: Case, start: str, ways: list[tuple[str, float]], seen: list[list[float]]
) -> Record:
    looks = [
        (recent(losses[:count]), rate, count)
        for (name, rate), losses in zip(ways, seen, strict=True)
        if name == start
        for count in range(CHECK * LAST, len(losses) + 1, CHECK)
    ]
    best, rate, steps = min(looks, default=(math.inf, ways[0][1], 0))
    short = round(best, 3) if math.isfinite(best) else -1.0
    return Record(
        **asdict(case), start=start, trains=best <= TRAINED, best=short, rate=rate, steps=steps
    )


# ----------------------------------------------------------------------------------------- table


def read() -> list[Record]:
    if not FILE.exists():
        return []
    return [Record(**each) for each in json.loads(FILE.read_text())["records"]]


def write(records: list[Record], seconds: float) -> None:
    rows = ",\n  ".join(json.dumps(asdict(each)) for each in records)
    FILE.write_text(f'{{"core_seconds": {round(seconds)}, "records": [\n  {rows}\n]}}\n')


def cells(records: list[Record], kind: str, depth: int) -> Iterator[str]:
    """Of each start, how many activations train, of how many; then which ones `auto` leaves."""
    mine = [r for r in records if (r.kind, r.depth) == (kind, depth)]
    trained = {s: {r.activation for r in mine if r.trains and r.start == s} for s in STARTS}
    tried = {s: {r.activation for r in mine if r.start == s} for s in STARTS}
    others = [s for s in STARTS if s != "auto"]
    trained["union"] = set().union(*(trained[s] for s in others))
    tried["union"] = tried[others[0]].intersection(*(tried[s] for s in others))
    for start in (*others, "union", "auto"):
        run = len(tried[start])
        yield f"{len(trained[start] & tried[start])} of {run}" if run else "not run"
    yield ", ".join(a for a in ACTIVATIONS if a in tried["auto"] - trained["auto"]) or "–"


def table(records: list[Record]) -> str:
    """Markdown: activations that train, by depth and start."""
    heads = ["network", *STARTS[:-1], "any of these", "**auto**", "auto does not train"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "-|" * len(heads)]
    for kind, depth in dict.fromkeys((r.kind, r.depth) for r in records):
        name = f"{kind.upper()}, depth {depth}"
        lines.append("| " + " | ".join([name, *cells(records, kind, depth)]) + " |")
    return "\n".join(lines)


def line(records: list[Record]) -> str:
    """An architecture: of each start the best loss over that of guessing."""
    first = records[0]
    marks = (
        f"{r.start} {r.best:.2f}{'✓' if r.trains else '✗'}@{r.rate:.0e}/{r.steps}" for r in records
    )
    return f"{first.kind}/{first.activation}/{first.depth}".ljust(22) + "  ".join(marks)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("verb", nargs="?", default="table", choices=["run", "table", "rows"])
    parser.add_argument("--only", default="", metavar="PART", help="of kind/activation/depth")
    parser.add_argument("--start", action="append", choices=STARTS, help="may be repeated; all")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of weights and batches ({SEED})")
    parser.add_argument("--full", action="store_true", help="hopeless runs go on too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    records = read()
    if options.verb == "run":
        run(records, options)
        return 0
    mine = [r for r in records if r.seed == options.seed]
    if not mine:
        parser.error(f"no results of seed {options.seed}: depth.py run --seed {options.seed}")
    if options.verb == "table":
        print(table(mine))
    else:
        for name in dict.fromkeys((r.kind, r.activation, r.depth) for r in mine):
            print(line([r for r in mine if (r.kind, r.activation, r.depth) == name]))
    return 0


def run(records: list[Record], options: argparse.Namespace) -> None:
    """Train; what is complete is written after each architecture, so a run can be broken off."""
    asked = tuple(options.start or STARTS)
    writes = not options.only and not options.full
    present = (
        {(r.kind, r.activation, r.depth, r.seed, r.start) for r in records} if writes else set()
    )
    before = json.loads(FILE.read_text())["core_seconds"] if FILE.exists() else 0
    for case in cases(options.seed):
        name = tuple(asdict(case).values())
        starts = tuple(start for start in asked if (*name, start) not in present)
        if not starts or not case.name.startswith(options.only):
            continue
        new = train(case, starts, options.full)
        print(f"{line(new)}  {time.process_time():.0f} s", flush=True)
        if writes:
            records += new
            write(records, before + time.process_time())


if __name__ == "__main__":
    sys.exit(main())
