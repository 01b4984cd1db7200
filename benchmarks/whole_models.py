"""From a configuration to an initialized model in memory: how long, and beside whom?

    python benchmarks/whole_models.py                        all models, torch's threads
    python benchmarks/whole_models.py gpt2-124m --threads 1
    python benchmarks/whole_models.py --json results.json

**library** is how such a model is made today: transformers' ``from_config``, which builds the
layers (each draws torch's default) and then draws every weight as the model's class says; or, for a
vision transformer, a constructor that calls ``trunc_normal_`` for each layer, as timm does.
**prepared** builds the same model with its parameters on the meta device (its buffers are real),
reads a recipe from its text and draws it, which gives each parameter its memory.  **planned**
builds it on meta once more, to plan it, and goes by that.  Both draw the kinds and scales of the
library.  **fill** writes one number into as much new memory: what no initialization can undercut.
The four take turns in one process; each figure is the median of ``--rounds``.  Time of the
processor (all threads, user and system) is given too: other programs change it less.

**meta** and **memory** are ``apply_`` alone: on parameters that have none yet, and on a model that
has, of which it keeps a copy while it draws, to put it back should anything fail.
"""

from __future__ import annotations

import argparse
import gc
import json
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
ROUNDS = 3
SAMPLES, TOKENS = 2, 16  # of the batch that a model is planned with
WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES = 768, 12, 12, 16, 224, 1000  # ViT-B/16
SAME = 0.02  # how far the std of a weight may be from the library's: 600 times the sampling error


# ------------------------------------------------------------------------------------- models


class Model(NamedTuple):
    """How to build a model, a batch on meta, and the recipe of its library."""

    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    scheme: str
    gain: float
    weight: str  # whose std is compared


def gpt2() -> nn.Module:
    """The published shape of GPT-2 124M."""
    from transformers import AutoModelForCausalLM, GPT2Config

    return AutoModelForCausalLM.from_config(GPT2Config())


def llama(dtype: str) -> nn.Module:
    """The published shape of Llama 3.2 1B."""
    from transformers import AutoModelForCausalLM, LlamaConfig

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
    return AutoModelForCausalLM.from_config(config)


def vit() -> nn.Module:
    """ViT-B/16, each layer drawn by ``trunc_normal_`` with std 0.02 as timm does."""
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
            nn.init.trunc_normal_(self.position, std=0.02)
            nn.init.normal_(self.token, std=1e-6)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
            return self.head(self.norm(self.blocks(x))[:, 0])

    return VisionTransformer()


def tokens() -> dict[str, Any]:
    import torch

    return {"input_ids": torch.zeros(SAMPLES, TOKENS, dtype=torch.long, device="meta")}


def images() -> torch.Tensor:
    import torch

    return torch.zeros(SAMPLES, 3, IMAGE, IMAGE, device="meta")


MODELS = {
    "gpt2-124m": Model(gpt2, tokens, "residual_scaling", 1.0, "transformer.wte.weight"),
    "vit-b": Model(vit, images, "trunc_normal", 0.02, "blocks.0.fc1.weight"),
    "llama-1b": Model(
        lambda: llama("float32"), tokens, "normal", 0.02, "model.embed_tokens.weight"
    ),
    "llama-1b-bf16": Model(
        lambda: llama("bfloat16"), tokens, "normal", 0.02, "model.embed_tokens.weight"
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


def measure(name: str, rounds: int, threads: int | None) -> dict[str, Any]:
    """The four ways in turn, in this process."""
    import torch

    import fanin
    from fanin import draw

    if threads is not None:
        torch.set_num_threads(threads)
    model = MODELS[name]
    recipe = planned(model).to_toml()  # loads what a library loads lazily, too
    clock, stds = Clock(), {}
    for _ in range(rounds):
        with clock("library"):
            made = model.build()
        stds["library"] = std(made, model.weight)
        count, size = counted(made)
        del made
        gc.collect()
        with clock("prepared"):
            made = drawn(model, lambda: fanin.Plan.from_toml(recipe))
        stds["prepared"] = std(made, model.weight)
        del made
        gc.collect()
        with clock("planned"):
            made = drawn(model, lambda: planned(model))
        del made
        gc.collect()
        with clock("fill"):
            memory = torch.empty(size, dtype=torch.uint8).fill_(1)
        del memory
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
        "times": clock.medians(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def planned(model: Model) -> Any:
    """The plan of a model that is built on meta for it."""
    import torch

    import fanin

    with torch.device("meta"):
        shapes = model.build()
    return fanin.plan(shapes, model.batch(), model.scheme, gain=model.gain)


def drawn(model: Model, plan: Callable[[], Any]) -> nn.Module:
    """The model with parameters on meta, drawn by a plan."""
    wanted = plan()
    with parameters_on_meta():
        made = model.build()
    wanted.apply_(made, seed=0)
    return made


def parts(model: Model, plan: Any, clock: Clock) -> None:
    """``apply_`` alone: on meta, and, where a copy fits, on memory."""
    with parameters_on_meta(), clock("build"):
        made = model.build()
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


def worker(name: str, rounds: int, threads: int | None) -> dict[str, Any]:
    """The result of :func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--worker", name, "--rounds", str(rounds)]
    command += [] if threads is None else ["--threads", str(threads)]
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
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, options.rounds, options.threads)))
        return 0
    unknown = [m for m in options.models if m not in MODELS]
    if unknown:
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(MODELS)}")
    rows = [worker(name, options.rounds, options.threads) for name in options.models or MODELS]
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
