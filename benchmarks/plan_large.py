"""Large models: planned on the meta device, without memory for a single weight.

    python benchmarks/plan_large.py              Llama-shaped 70B, and GPT-2 124M
    python benchmarks/plan_large.py llama-70b    only what is named

**llama-70b** is planned alone: its weights would take 141 GB in bfloat16.  **gpt2-124m** is planned
on meta and initialised from the plan, which gives each parameter memory as it is drawn.  Each runs
in a process of its own, whose peak is the largest resident size the system saw (``ru_maxrss``),
torch and transformers included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from check_cost import peak
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # imported in the measuring processes alone: this one has to stay small
    from torch import nn

SECONDS_GOAL, MEMORY_GOAL = 60.0, 4.0  # of the plan of llama-70b; GiB
SAMPLES, TOKENS = 2, 16
SHOWN = 6  # reasons printed of each plan


# ------------------------------------------------------------------------------------- models


def llama() -> nn.Module:
    """The published shape of Llama 3 70B, on meta."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    """GPT-2 124M, on meta."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config())


def tokens(device: str = "meta") -> dict[str, Any]:
    import torch

    return {"input_ids": torch.zeros(SAMPLES, TOKENS, dtype=torch.long, device=device)}


MODELS: dict[str, Callable[[], nn.Module]] = {"llama-70b": llama, "gpt2-124m": gpt2}


# ---------------------------------------------------------------------------------- measuring


def measure(name: str) -> dict[str, Any]:
    """Time and peak memory of planning; for GPT-2 of initialising as well."""
    import transformers  # noqa: F401  (its import is not the build)

    import fanin

    started = time.perf_counter()
    model = MODELS[name]()
    built = time.perf_counter()
    plan = fanin.plan(model, tokens())
    planned = time.perf_counter()
    result: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": sum(1 for _ in model.parameters()),
        "assigned": len(list(plan)),
        "untouched": dict(plan.untouched),
        "build_seconds": built - started,
        "plan_seconds": planned - built,
        "plan_peak": peak(),
        "reasons": [[a.parameter, a.scheme, a.std, a.because] for a in list(plan)[:SHOWN]],
    }
    if name != "llama-70b":
        plan.apply_(model, seed=0)
        result["apply_seconds"] = time.perf_counter() - planned
        result["apply_peak"] = peak()
        result["finite"] = all(bool(p.isfinite().all()) for p in model.parameters())
    return result


def worker(name: str) -> dict[str, Any]:
    """The result of :func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--worker", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -------------------------------------------------------------------------------------- table


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="Planned on the meta device")
    heads = (
        "model",
        "parameters",
        "tensors",
        "planned",
        "build",
        "plan",
        "peak",
        "apply_",
        "peak ",
    )
    for head in heads:
        shown.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for row in rows:
        applied = "apply_seconds" in row
        shown.add_row(
            row["model"],
            f"{row['parameters'] / 1e9:.3g} B",
            str(row["tensors"]),
            str(row["assigned"]),
            f"{row['build_seconds']:.1f} s",
            f"{row['plan_seconds']:.1f} s",
            f"{row['plan_peak'] / 2**30:.2f} GiB",
            f"{row['apply_seconds']:.1f} s" if applied else "–",
            f"{row['apply_peak'] / 2**30:.2f} GiB" if applied else "–",
        )
    return shown


def within_goals(row: dict[str, Any]) -> bool:
    """Is everything planned, in time and memory, and (where it was drawn) finite?"""
    cost = row["plan_seconds"] <= SECONDS_GOAL and row["plan_peak"] <= MEMORY_GOAL * 2**30
    whole = row["assigned"] == row["tensors"] and not row["untouched"]
    return cost and whole and row.get("finite", True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker)))
        return 0
    unknown = [m for m in options.models if m not in MODELS]
    if unknown:
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(MODELS)}")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    rows = [worker(name) for name in options.models or MODELS]
    console.print(table(rows))
    for row in rows:
        console.print(f"\n{row['model']}: the first reasons")
        for parameter, scheme, std, because in row["reasons"]:
            console.print(f"  {parameter}: {scheme}, std {std:.4g}. {because}", soft_wrap=True)
        for parameter, reason in row["untouched"].items():
            console.print(f"  untouched: {parameter}: {reason}", soft_wrap=True)
    console.print(f"\ngoals: plan ≤ {SECONDS_GOAL:g} s, peak ≤ {MEMORY_GOAL:g} GiB, all planned")
    return 0 if all(within_goals(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
