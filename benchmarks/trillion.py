"""A model of a trillion parameters: planned here, drawn on many machines.

    python benchmarks/trillion.py                          plan, rates, and what follows from them
    python benchmarks/trillion.py run --folder /mnt/disk   where the writing is measured
    python benchmarks/trillion.py run --cores 96 --disk 3  of each host, GB/s
    python benchmarks/trillion.py run --json benchmarks/trillion_results.json
    python benchmarks/trillion.py table                    of these, for docs/trillion.md

**Measured** are the plan of `docs/configs/trillion-moe.json` (``fanin plan … --meta`` in a process
of its own: its time and its peak memory), the rate at which one core and all cores of this machine
draw normals in bfloat16 into memory that is used again, the rate at which a file is written and
synced, and a checkpoint of the first layers of this model with fewer experts, written from end to
end by ``fanin.streaming``, and how much of a core it takes.  **Computed** from these is how long N
hosts take to fill their memory (each its own shards: nobody waits for anybody, so rates add up) and
to write the checkpoint (a host writes as fast as the slower of its cores, by the rate of the
checkpoint, and its disk).  What is assumed of a host is an option.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

CONFIG = Path(__file__).parents[1] / "docs" / "configs" / "trillion-moe.json"
RESULTS = Path(__file__).with_name("trillion_results.json")
HOSTS = (1, 8, 64)
CORES, DISK, MEMORY = 64, 2.0, 200.0  # of a host: cores, GB/s of its disk, GB/s of its memory
ELEMENTS = 1 << 21  # of the buffer that is drawn: 4 MiB, as a piece of a file is
SLICES, WRITES = 200, 3  # repetitions; the best counts, as other programs only slow them
FILE = 1 << 30  # bytes written to measure the disk
SMALL = {"num_hidden_layers": 2, "n_routed_experts": 24, "vocab_size": 8192}  # 2 billion
GB = 1e9


# ------------------------------------------------------------------------------------ the plan


PLANNING = """
import resource, sys
from fanin.cli import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    sys.stderr.write(f"\\n{used.ru_utime + used.ru_stime} {used.ru_maxrss}")
"""


def planned(folder: Path) -> dict[str, Any]:
    """Seconds, peak memory and size of the plan, by the command line in a process of its own."""
    recipe = folder / "recipe.toml"
    command = ["plan", f"hf:{CONFIG}", "--meta", "--quiet", "-o", str(recipe)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PLANNING, *command], stderr=subprocess.PIPE, text=True, check=False
    )
    passed = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    busy, peak = done.stderr.split()[-2:]
    return {
        "seconds": passed,
        "busy": float(busy),
        "peak": int(peak) * 1024,
        "bytes": recipe.stat().st_size,
    }


def counted(config: Path) -> dict[str, int]:
    """Parameters, tensors, and the share of the experts, from a model on meta."""
    parameters = dict(built(config).named_parameters())
    experts = sum(p.numel() for name, p in parameters.items() if ".experts." in name)
    count = sum(p.numel() for p in parameters.values())
    return {"parameters": count, "tensors": len(parameters), "experts": experts}


def built(config: Path) -> Any:
    from fanin.targets import load

    return load(f"hf:{config}", meta=True).model


# --------------------------------------------------------------------------------------- rates


class Rates(NamedTuple):
    """Bytes per second of bfloat16."""

    core: float
    machine: float
    threads: int
    disk: float
    checkpoint: float
    checkpoint_core: float  # in a second of one core
    checkpoint_bytes: int


def best(
    run: Callable[[], Any], size: int, times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Bytes per second of the quickest of some runs."""
    quickest = float("inf")
    for _ in range(times):
        started = clock()
        run()
        quickest = min(quickest, clock() - started)
    return size / quickest


@contextmanager
def threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawing(count: int) -> float:
    """Normals in bfloat16 on so many threads; of one, by the time that it runs."""
    import torch

    from fanin import draw

    tensor, key = torch.empty(ELEMENTS, dtype=torch.bfloat16), draw.key(0, "experts")
    with threads(count):
        clock = time.process_time if count == 1 else time.perf_counter
        return best(lambda: draw.normal_(tensor, key, 0.02), tensor.nbytes, SLICES, clock)


def writing(folder: Path) -> float:
    """A file, written from memory and synced."""
    block = memoryview(bytes(1 << 24))

    def run() -> None:
        with (folder / "zeros").open("wb", buffering=0) as file:
            for _ in range(FILE // len(block)):
                file.write(block)
            os.fsync(file.fileno())

    rate = best(run, FILE, WRITES)
    (folder / "zeros").unlink()
    return rate


def streaming(folder: Path, jobs: int) -> tuple[float, float, int]:
    """A checkpoint of the first layers with fewer experts, matrices in full size."""
    import torch

    from fanin import plan, streaming
    from fanin.targets import load

    config = json.loads(CONFIG.read_text(encoding="utf-8")) | SMALL
    small = folder / "small.json"
    small.write_text(json.dumps(config), encoding="utf-8")
    target = load(f"hf:{small}", meta=True)
    found, place = plan(target.model, target.batch), folder / "checkpoint"
    started, busy = time.perf_counter(), time.process_time()
    streaming.write(target.model, found, place, dtype=torch.bfloat16, jobs=jobs)
    passed, busy = time.perf_counter() - started, time.process_time() - busy
    size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    shutil.rmtree(place)
    return size / passed, size / busy, size


def measured(folder: Path) -> Rates:
    cores = len(os.sched_getaffinity(0))
    disk = writing(folder)
    return Rates(drawing(1), drawing(cores), cores, disk, *streaming(folder, cores))


# ------------------------------------------------------------------------------------- outlook


class Host(NamedTuple):
    """What is assumed of a machine; bytes per second."""

    cores: int
    disk: float
    memory: float


def outlook(size: int, rates: Rates, host: Host) -> list[dict[str, float]]:
    """Seconds to fill the memory of N hosts, and to write the checkpoint from them."""
    draws = min(host.cores * rates.core, host.memory)
    writes = min(host.cores * rates.checkpoint_core, host.disk)
    return [
        {
            "hosts": hosts,
            "each": size / hosts,
            "memory": size / (hosts * draws),
            "files": size / (hosts * writes),
        }
        for hosts in HOSTS
    ]


def duration(seconds: float) -> str:
    """Two figures and a unit.

    >>> duration(5.26), duration(90), duration(7300)
    ('5.3 s', '1.5 min', '2.0 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def rows_measured(result: dict[str, Any]) -> list[tuple[str, str]]:
    plan, rates = result["plan"], result["rates"]
    checkpoint = f"a checkpoint of {rates['checkpoint_bytes'] / GB:.1f} GB, drawn and written"
    return [
        ("plan, from the command to the recipe", duration(plan["seconds"])),
        ("of which a core is busy", duration(plan["busy"])),
        ("peak memory of the plan", f"{plan['peak'] / 2**30:.2f} GiB"),
        ("the recipe", f"{plan['bytes'] / 1000:.1f} kB"),
        (f"draw, 1 core ({result['draw']})", f"{rates['core'] / GB:.2f} GB/s"),
        (f"draw, {rates['threads']} cores", f"{rates['machine'] / GB:.2f} GB/s"),
        ("a file, written and synced", f"{rates['disk'] / GB:.2f} GB/s"),
        (checkpoint, f"{rates['checkpoint'] / GB:.2f} GB/s"),
        ("the same for each second of a core", f"{rates['checkpoint_core'] / GB:.2f} GB"),
    ]


def rows_computed(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(row["hosts"]),
            f"{row['each'] / GB:.0f} GB",
            duration(row["memory"]),
            duration(row["files"]),
        )
        for row in result["outlook"]
    ]


MEASURED_HEADS = ("measured here", "")
COMPUTED_HEADS = ("hosts", "bytes on each", "into memory, computed", "into files, computed")


def sizes(result: dict[str, Any]) -> str:
    model = result["model"]
    return (
        f"{model['parameters']:,} parameters in {model['tensors']} tensors, "
        f"{100 * model['experts'] / model['parameters']:.1f} % of them the experts'; "
        f"{2 * model['parameters'] / 1e12:.2f} TB in bfloat16"
    )


def assumed(result: dict[str, Any]) -> str:
    host = result["host"]
    return (
        f"hosts of {host['cores']} cores, {host['disk'] / GB:g} GB/s of disk, "
        f"{host['memory'] / GB:g} GB/s of memory"
    )


def markdown(result: dict[str, Any]) -> str:
    """Both tables, as `docs/trillion.md` has them."""
    lines: list[str] = []
    tables = ((MEASURED_HEADS, rows_measured(result)), (COMPUTED_HEADS, rows_computed(result)))
    for heads, rows in tables:
        lines += ["", f"| {' | '.join(heads)} |", "|" + "-|" * len(heads)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines[1:])


def shown(result: dict[str, Any], console: Console) -> None:
    console.print(f"{CONFIG.name}: {sizes(result)}", soft_wrap=True)
    for heads, rows in (
        (MEASURED_HEADS, rows_measured(result)),
        (COMPUTED_HEADS, rows_computed(result)),
    ):
        each = Table()
        for head in heads:
            each.add_column(head, justify="left" if head == MEASURED_HEADS[0] else "right")
        for row in rows:
            each.add_row(*row)
        console.print(each)
    console.print(f"computed for {assumed(result)}", soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--folder", type=Path, help="where files are written (a temporary one)")
    parser.add_argument("--cores", type=int, default=CORES, help=f"of a host ({CORES})")
    parser.add_argument("--disk", type=float, default=DISK, help=f"GB/s of a host ({DISK:g})")
    parser.add_argument("--memory", type=float, default=MEMORY, help=f"GB/s ({MEMORY:g})")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    if options.what == "table":
        print(markdown(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return 0
    host = Host(options.cores, options.disk * GB, options.memory * GB)
    result = run(options.folder, host)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    shown(result, Console(width=None if sys.stdout.isatty() else 120, highlight=False))
    return 0


def run(folder: Path | None, host: Host) -> dict[str, Any]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        plan = planned(Path(name))
        model, rates = counted(CONFIG), measured(Path(name))
    from fanin import draw

    return {
        "model": model,
        "plan": plan,
        "draw": str(draw.backend()),
        "rates": rates._asdict(),
        "host": host._asdict(),
        "outlook": outlook(2 * model["parameters"], rates, host),
    }


if __name__ == "__main__":
    sys.exit(main())
