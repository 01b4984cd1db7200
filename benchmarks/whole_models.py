"""From a configuration to an initialized model in memory: how long, and beside whom?

    python benchmarks/whole_models.py                        all models, torch's threads
    python benchmarks/whole_models.py gpt2-124m --threads 1
    python benchmarks/whole_models.py --json results.json

**library** is how such a model is made today: transformers' ``from_config``, which builds the
layers (each draws torch's default) and then draws every weight as the model's class says; or, for a
vision transformer, what timm's constructor does to the weights, done over here (`vit`): timm needs
torchvision, which not every machine can have.
**prepared** reads a recipe from its text, builds the same model with its parameters on the meta
device (its buffers are real), and draws the recipe, which gives each parameter its memory.  The
library's own draw is switched off while the model is built, by the library's own switch
(``no_init_weights``, ``weight_init="skip"``): on meta it writes nothing and takes 15 to 50 ms.
**planned** builds the model on meta once more, to plan it, and goes by that.  Both draw the kinds
and scales of the library (of the vision transformer the patches otherwise: 0.7 % of the weights).
**fill** writes one number into as much new memory: what no initialization can undercut.  The four
take turns in one process; each figure is the median of ``--rounds``, and the ratios of the single
rounds are given too.  So is the time of the processor (all threads, user and system), which other
programs change less.

The host of a virtual machine may take memory back that is free for some seconds.  When the guest
writes to it again the host has to find and clear it anew, which takes as long as the draw.  That is
not what is asked here, so before each way as much memory is written to and let go; with ``--taken``
it is not.

**build** is the building alone.  **meta** and **memory** are ``apply_`` alone: on parameters that
have no memory yet, and on a model that has, of which it keeps a copy while it draws, to put it back
should anything fail.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # imported in the measuring processes alone
    import torch
    from torch import nn

GOAL = 8.0  # times the speed of the library, with a prepared recipe
ROUNDS = 5
SAMPLES, TOKENS = 2, 16  # of the batch that a model is planned with
STD, CUT = 0.02, 2.0  # of weights; where timm cuts them, far away
WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES = 768, 12, 12, 16, 224, 1000  # ViT-B/16
SAME = 0.02  # how far the std of a weight may be from the library's: 600 times the sampling error


# ------------------------------------------------------------------------------------- models


class Model(NamedTuple):
    """How to build a model, a batch on meta, and the recipe of its library."""

    build: Callable[[bool], nn.Module]  # whether its weights are drawn
    batch: Callable[[], Any]
    scheme: str
    arguments: dict[str, float]
    weight: str  # whose std is compared


def gpt2(draws: bool) -> nn.Module:
    """The published shape of GPT-2 124M."""
    from transformers import GPT2Config

    return transformer(GPT2Config(), draws)


def llama(draws: bool, dtype: str) -> nn.Module:
    """The published shape of Llama 3.2 1B."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    return transformer(config, draws)


def transformer(config: Any, draws: bool) -> nn.Module:
    """A model of transformers; where nothing is drawn, as its ``from_pretrained`` builds it."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if draws:
        return AutoModelForCausalLM.from_config(config)
    with no_init_weights():
        made = AutoModelForCausalLM.from_config(config)
    made.tie_weights()  # which that leaves out too
    return made


def vit(draws: bool) -> nn.Module:
    """ViT-B/16, its weights drawn as the constructor of timm's ``vit_base_patch16_224`` does.

    Each layer draws torch's default when it is made.  Then positions, token and all linear layers
    are drawn, and linear biases are zeroed; patches and norms stay as they are: ``init_weights`` of
    ``VisionTransformer`` with ``needs_reset=False``, and ``init_weights_vit_timm``, in
    ``timm/models/vision_transformer.py`` (1.0.29.dev0, commit aa4b585).  ``weight_init="skip"``
    leaves out all but the first.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, length, _ = x.shape
            packed = self.qkv(self.norm1(x)).view(n, length, 3, HEADS, WIDTH // HEADS)
            q, k, v = packed.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + self.proj(mixed.reshape(n, length, WIDTH))
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    class VisionTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.token = nn.Parameter(torch.empty(1, 1, WIDTH))
            self.position = nn.Parameter(torch.empty(1, (IMAGE // PATCH) ** 2 + 1, WIDTH))
            self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
            if not draws:
                return
            truncated_(self.position, STD)
            nn.init.normal_(self.token, std=1e-6)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    truncated_(module.weight, STD)
                    nn.init.zeros_(module.bias)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
            return self.head(self.norm(self.blocks(x))[:, 0])

    return VisionTransformer()


def truncated_(tensor: torch.Tensor, std: float) -> None:
    """Normals between −2 and 2, which are no multiples of σ, as timm draws them.

    By inversion: the operations of ``_trunc_normal_`` of ``timm/layers/weight_init.py`` on the
    tensor, in their order.  torch's own ``trunc_normal_`` is another, and quicker from 2.13 on.
    """
    import torch

    share = math.erf(CUT / std / math.sqrt(2))
    with torch.no_grad():
        tensor.uniform_(-share, share).erfinv_()
        tensor.mul_(std * math.sqrt(2)).add_(0.0).clamp_(-CUT, CUT)


def tokens() -> dict[str, Any]:
    import torch

    return {"input_ids": torch.zeros(SAMPLES, TOKENS, dtype=torch.long, device="meta")}


def images() -> torch.Tensor:
    import torch

    return torch.zeros(SAMPLES, 3, IMAGE, IMAGE, device="meta")


MODELS = {
    "gpt2-124m": Model(gpt2, tokens, "residual_scaling", {}, "transformer.wte.weight"),
    "vit-b": Model(
        vit,
        images,
        "trunc_normal",
        {"gain": STD, "low": -CUT / STD, "high": CUT / STD},  # in σ
        "blocks.0.fc1.weight",
    ),
    "llama-1b": Model(
        lambda draws: llama(draws, "float32"),
        tokens,
        "normal",
        {"gain": STD},
        "model.embed_tokens.weight",
    ),
    "llama-1b-bf16": Model(
        lambda draws: llama(draws, "bfloat16"),
        tokens,
        "normal",
        {"gain": STD},
        "model.embed_tokens.weight",
    ),
}


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let every parameter that is registered in the block be on meta; buffers stay real."""
    from torch import nn

    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None and not value.is_meta:
            value = nn.Parameter(value.detach().to("meta"), value.requires_grad)
        register(module, name, value)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------- measuring


class Clock:
    """Seconds of the wall and of the processor, by name, of each round."""

    def __init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, busy = time.perf_counter(), time.process_time()
        yield
        passed = time.perf_counter() - wall, time.process_time() - busy
        self.times.setdefault(name, []).append(passed)

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            name: {"wall": median(w for w, _ in each), "cpu": median(c for _, c in each)}
            for name, each in self.times.items()
        }

    def ratios(self, one: str, other: str) -> list[float]:
        """How many times as long one took on the wall as the other, of each round, sorted."""
        both = zip(self.times[one], self.times[other], strict=True)
        return sorted(a[0] / b[0] for a, b in both)


def measure(name: str, rounds: int, threads: int | None, taken: bool) -> dict[str, Any]:
    """The four ways in turn, in this process."""
    import torch

    import fanin
    from fanin import draw

    if threads is not None:
        torch.set_num_threads(threads)
    model = MODELS[name]
    recipe = planned(model).to_toml()  # loads what a library loads lazily, too
    with torch.device("meta"):
        count, size = counted(model.build(False))
    back = (lambda: None) if taken else (lambda: given_back(size))
    ways: dict[str, Callable[[], Any]] = {
        "library": lambda: model.build(True),
        "prepared": lambda: drawn(model, lambda: fanin.Plan.from_toml(recipe)),
        "planned": lambda: drawn(model, lambda: planned(model)),
        "fill": lambda: torch.empty(size, dtype=torch.uint8).fill_(1),
    }
    clock, stds = Clock(), {}
    for _ in range(rounds):
        for way, make in ways.items():
            back()
            with clock(way):
                made = make()
            if way != "fill":
                stds[way] = std(made, model.weight)
                if counted(made) != (count, size):
                    raise SystemExit(f"{name}: {counted(made)} parameters and bytes by {way}")
            del made
            gc.collect()
        back()
        parts(model, fanin.Plan.from_toml(recipe), clock)
        gc.collect()
    if abs(stds["prepared"] / stds["library"] - 1) > SAME:
        raise SystemExit(f"{name}: {model.weight} has std {stds}: not the same initialization")
    return {
        "model": name,
        "parameters": count,
        "bytes": size,
        "threads": torch.get_num_threads(),
        "draw": str(draw.backend()),
        "rounds": rounds,
        "taken": taken,
        "times": clock.medians(),
        "ratios": clock.ratios("library", "prepared"),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def given_back(size: int) -> None:
    """Write to so much new memory and let it go: its pages are then those that come next."""
    import torch

    from fanin.memory import empty_like

    empty_like(torch.empty(size, dtype=torch.uint8, device="meta"), "cpu").fill_(1)


def planned(model: Model) -> Any:
    """The plan of a model that is built on meta for it."""
    import torch

    import fanin

    with torch.device("meta"):
        shapes = model.build(False)
    return fanin.plan(shapes, model.batch(), model.scheme, **model.arguments)


def drawn(model: Model, plan: Callable[[], Any]) -> nn.Module:
    """The model with parameters on meta, drawn by a plan."""
    wanted = plan()
    with parameters_on_meta():
        made = model.build(False)
    wanted.apply_(made, seed=0)
    return made


def parts(model: Model, plan: Any, clock: Clock) -> None:
    """``apply_`` alone: on meta, and, where a copy fits, on memory."""
    with parameters_on_meta(), clock("build"):
        made = model.build(False)
    with clock("meta"):
        plan.apply_(made, seed=0)
    if 3 * counted(made)[1] < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        with clock("memory"):
            plan.apply_(made, seed=0)


def counted(model: nn.Module) -> tuple[int, int]:
    """Parameters, and their bytes."""
    each = list(model.parameters())
    return sum(p.numel() for p in each), sum(p.nbytes for p in each)


def std(model: nn.Module, weight: str) -> float:
    """The std of a weight; raises where anything has no value."""
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise SystemExit(f"{left[0]} is still on meta")
    return float(dict(model.named_parameters())[weight].detach().float().std())


def worker(name: str, rounds: int, threads: int | None, taken: bool) -> dict[str, Any]:
    """The result of :func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--worker", name, "--rounds", str(rounds)]
    command += [] if threads is None else ["--threads", str(threads)]
    command += ["--taken"] if taken else []
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=quiet)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -------------------------------------------------------------------------------------- table


def table(rows: list[dict[str, Any]], which: str) -> Table:
    title = {"wall": "Seconds", "cpu": "Seconds of the processor, all threads"}[which]
    shown = Table(title=title)
    heads = ("library", "prepared", "×", "planned", "×", "fill", "build", "meta", "memory")
    for head in ("model", "threads", *heads):
        shown.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for row in rows:
        at = {name: each[which] for name, each in row["times"].items()}
        told = {name: f"{seconds:.2f}" for name, seconds in at.items()}
        shown.add_row(
            row["model"],
            str(row["threads"]),
            told["library"],
            told["prepared"],
            f"{at['library'] / at['prepared']:.1f}",
            told["planned"],
            f"{at['library'] / at['planned']:.1f}",
            told["fill"],
            told["build"],
            told["meta"],
            told.get("memory", "–"),
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each way ({ROUNDS})")
    parser.add_argument("--threads", type=int, help="torch's number of threads by default")
    parser.add_argument("--taken", action="store_true", help="leave memory as the host has it")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        told = measure(options.worker, options.rounds, options.threads, options.taken)
        print(json.dumps(told))
        return 0
    unknown = [m for m in options.models if m not in MODELS]
    if unknown:
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(MODELS)}")
    given = (options.rounds, options.threads, options.taken)
    rows = [worker(name, *given) for name in options.models or MODELS]
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table(rows, "wall"))
    console.print(table(rows, "cpu"))
    for row in rows:
        per = {name: 1e9 * each["cpu"] / row["parameters"] for name, each in row["times"].items()}
        console.print(
            f"{row['model']}: {row['parameters'] / 1e6:.1f} M parameters, {row['draw']}; "
            f"ns of the processor for each: library {per['library']:.1f}, "
            f"prepared {per['prepared']:.1f}, fill {per['fill']:.1f}; "
            f"× of single rounds {row['ratios'][0]:.1f} … {row['ratios'][-1]:.1f}; "
            f"peak {row['peak'] / 2**30:.1f} GiB",
            soft_wrap=True,
        )
    slow = [row["model"] for row in rows if ratio(row) < GOAL]
    console.print(f"goal: prepared ≥ {GOAL:g} × library; below it: {', '.join(slow) or 'none'}")
    return 1 if slow else 0


def ratio(row: dict[str, Any]) -> float:
    return float(row["times"]["library"]["wall"] / row["times"]["prepared"]["wall"])


if __name__ == "__main__":
    sys.exit(main())
