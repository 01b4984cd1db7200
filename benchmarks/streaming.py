"""Checkpoints drawn straight into their files: memory, rate, and what SIGKILL leaves.

    python benchmarks/streaming.py                     all of it, some ten minutes
    python benchmarks/streaming.py memory rate         only what is named
    python benchmarks/streaming.py --folder /mnt/data  where the files are written (default: /tmp)

**memory** writes a Llama-shaped checkpoint of more than twice the memory that the process may
have: the limit is set by the system (RLIMIT_DATA: everything that is neither a file nor shared),
and the peak is the largest resident size that the system saw (``ru_maxrss``), torch and
transformers included.  **rate** writes one with 1 and 2 threads, beside drawing the same number of
values into one piece of memory, and beside files of zeros of the same sizes, written and brought
to the disk in the same way; then it goes on with one that is finished but for its last step, which
reads and verifies everything.  On a machine that has other work, look at the time of the
processors.  **kills** ends `fanin init --out` by SIGKILL at random moments, goes on with it, and
compares every byte with a run that nothing ended; then transformers loads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LIMIT = 1536 * 2**20  # bytes of memory that the process may have
PEAK_GOAL = 2**30  # bytes resident
KILLS = 20
BLOCK = 4 << 20  # bytes of zeros written at once, as fanin writes
LAYER, TABLES = 103e6, 262e6  # bytes in bfloat16 of one layer, and of both tables, of the model


def config(folder: Path, bytes_: float) -> Path:
    """The configuration of a Llama-shaped model of about this size in bfloat16."""
    told = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": max(1, round((bytes_ - TABLES) / LAYER)),
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def command(path: Path, place: Path, shard: str, jobs: int = 2) -> list[str]:
    fanin = [sys.executable, "-m", "fanin", "init", f"hf:{path}", "--out", str(place)]
    return [*fanin, "--dtype", "bfloat16", "--shard-size", shard, "--jobs", str(jobs), "--quiet"]


def digests(place: Path) -> dict[str, str]:
    found = {}
    for path in sorted(p for p in place.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(place))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def size(place: Path) -> int:
    return sum(path.stat().st_size for path in place.glob("*.safetensors"))


# ------------------------------------------------------------------------------------- memory


def memory(folder: Path) -> dict[str, Any]:
    """The largest resident size of a run that may have less than half of what it writes."""
    path, place = config(folder, 2.1 * LIMIT), folder / "memory"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    started = time.perf_counter()
    process = subprocess.Popen(command(path, place, "1GB", jobs=4), preexec_fn=limited)
    _, status, used = os.wait4(process.pid, 0)
    result = {
        "status": os.waitstatus_to_exitcode(status),
        "bytes": size(place),
        "limit": LIMIT,
        "peak": used.ru_maxrss * 1024,
        "seconds": time.perf_counter() - started,
        "files": len(list(place.glob("*.safetensors"))),
    }
    result["loaded"] = loaded(place)
    shutil.rmtree(place)
    good = result["status"] == 0 and result["loaded"]
    result["good"] = good and result["peak"] < PEAK_GOAL and result["bytes"] > 2 * LIMIT
    return result


def loaded(place: Path) -> bool:
    """Whether transformers loads a checkpoint as the values that its recipe and seed say."""
    script = (
        "import sys, torch, transformers\n"
        "from fanin.checkpoint import origin\n"
        "from fanin.fill import assign_\n"
        "model, told = transformers.AutoModelForCausalLM.from_pretrained(\n"
        "    sys.argv[1], output_loading_info=True)\n"
        "assert not any(told.values()), told\n"
        "recipe, seed = origin(sys.argv[1])\n"
        "assert len(recipe.assignments) == len(list(model.parameters()))\n"
        "for a in recipe.assignments:\n"
        "    found = model.get_parameter(a.parameter)\n"
        "    wanted = torch.empty_like(found)\n"
        "    assign_(wanted, a, seed, a.parameter)\n"
        "    assert torch.equal(found, wanted), a.parameter\n"
    )
    return subprocess.run([sys.executable, "-c", script, str(place)], check=False).returncode == 0


# --------------------------------------------------------------------------------------- rate

_RATE = """
import json, sys, time
import torch
import fanin
from fanin import draw
from fanin.streaming import write
from fanin.streaming.folder import Folder
from fanin.targets import load

class Ended(Exception):
    pass

def ended(*_):
    raise Ended

def timed(work):
    started = time.perf_counter(), time.process_time()
    try:
        work()
    except Ended:
        pass
    return time.perf_counter() - started[0], time.process_time() - started[1]

config, place, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3])
target = load(f"hf:{config}", meta=True)
plan = fanin.plan(target.model, target.batch)
count = sum(p.numel() for p in target.model.parameters())
piece, key = torch.empty(1 << 21, dtype=torch.bfloat16), draw.key(0, "piece")

def drawn():
    for start in range(0, count, len(piece)):
        draw.normal_(piece[: count - start], key, 0.02, start=start)

def written():
    write(target.model, plan, place, dtype=torch.bfloat16, shard_size=10**9, jobs=jobs)

told = {"drawn": timed(drawn)}
publish, Folder.publish = Folder.publish, ended
told["written"] = timed(written)
Folder.publish = publish
told["verified"] = timed(written)
print(json.dumps(told))
"""


def rate(folder: Path) -> dict[str, Any]:
    """Bytes in a second, of the clock and of the processors, beside drawing and zeros alone."""
    path = config(folder, 2e9)
    result: dict[str, Any] = {}
    for jobs in (1, 2):
        place = folder / f"rate-{jobs}"
        command = [sys.executable, "-c", _RATE, str(path), str(place), str(jobs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        told = json.loads(done.stdout)
        sizes = [file.stat().st_size for file in sorted(place.glob("*.safetensors"))]
        shutil.rmtree(place)
        told["zeros"] = plain(folder / "zeros", sizes)
        total = sum(sizes)
        for name, (clock, processors) in told.items():
            result[f"{name}, {jobs} threads"] = total / clock
            result[f"{name}, {jobs} threads, in a second of a processor"] = total / processors
        parts = told["drawn"][1] + told["zeros"][1]
        result[f"{jobs} threads: processor time, of that of drawing and of zeros"] = (
            told["written"][1] / parts
        )
        result["bytes"] = total
    return result | {"good": True}


def plain(place: Path, sizes: list[int]) -> tuple[float, float]:
    """Seconds to write files of zeros of these sizes and bring each to the disk."""
    place.mkdir()
    block = memoryview(bytes(BLOCK))
    started = time.perf_counter(), time.process_time()
    for number, count in enumerate(sizes):
        with (place / str(number)).open("wb", buffering=0) as file:
            for at in range(0, count, BLOCK):
                file.write(block[: min(BLOCK, count - at)])
            os.fsync(file.fileno())
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    shutil.rmtree(place)
    return seconds


# -------------------------------------------------------------------------------------- kills


def kills(folder: Path) -> dict[str, Any]:
    """End it at random moments, go on, compare."""
    path, chance = config(folder, 0.6e9), random.Random(0)
    reference = folder / "reference"
    subprocess.run(command(path, reference, "60MB"), check=True)
    wanted, total = digests(reference), size(reference)
    same, finished = 0, []
    for number in range(KILLS):
        place = folder / f"killed-{number}"
        process = subprocess.Popen(command(path, place, "60MB"))
        staging = place / ".fanin-unfinished"
        share = chance.random()  # of the bytes, at which it is killed
        while process.poll() is None and not (
            staging.is_dir() and under_way(staging) >= share * total
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished.append(len(list(staging.glob("*.safetensors"))))
        subprocess.run(command(path, place, "60MB"), check=True)
        same += digests(place) == wanted
        shutil.rmtree(place)
    result = {
        "bytes": total,
        "files": len([name for name in wanted if name.endswith(".safetensors")]),
        "kills": KILLS,
        "finished": finished,
        "identical": same,
        "loaded": loaded(reference),
    }
    shutil.rmtree(reference)
    return result | {"good": same == KILLS and bool(result["loaded"])}


def under_way(staging: Path) -> int:
    total = 0
    for path in staging.glob("*.safetensors*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it got its name meanwhile
            continue
    return total


# -------------------------------------------------------------------------------------- table


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "memory": memory,
    "rate": rate,
    "kills": kills,
}


def show(console: Console, name: str, result: dict[str, Any]) -> None:
    table = Table(title=name, show_header=False)
    for key, value in result.items():
        if isinstance(value, float) and value > 1e6:
            text = f"{value / 1e6:.0f} MB/s"
        elif key in ("bytes", "peak", "limit"):
            text = f"{value / 1e9:.2f} GB ({value / 2**30:.2f} GiB)"
        else:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
        table.add_row(key, text)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--folder", help="where the files are written; default: the system's")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    good = True
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        for name in options.parts or PARTS:
            result = PARTS[name](Path(place))
            show(console, name, result)
            good &= result["good"]
    console.print(f"goals: peak < {PEAK_GOAL / 2**30:g} GiB, every kill bit-identical, loaded")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
