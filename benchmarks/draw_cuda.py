"""Does a GPU draw the bits of the CPU, and how near is it to the speed of filling memory?

    python benchmarks/draw_cuda.py               bits, then speed up to 2^30 elements
    python benchmarks/draw_cuda.py --sweep       and which size of a program is fastest
    python benchmarks/draw_cuda.py --json FILE   the same as JSON

**Bits**: every kind and dtype, contiguous and in strided rows, whole blocks and odd pieces, against
the numpy reference.  **Speed**: `fill_` and the draw take turns on one tensor; the median of
``--rounds`` times between two events on the GPU, in GB/s of values written.  The share is that of
`fill_` of the same dtype and size.  Small tensors stay in the second cache, which both then fill.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fanin.draw import cuda, key, philox
from fanin.draw.gaussian import UNIT
from fanin.draw.truncation import interval
from fanin.draw.values import Values

GOAL = 0.8  # of the bandwidth of fill_, for normals of float32 and bfloat16
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TIMED = (torch.float32, torch.bfloat16)
KEY = key(0, "layer.weight")
KINDS = {
    "normal": Values("normal", np.float32(0.02 * UNIT)),
    "normal, mean": Values("normal", np.float32(UNIT), np.float32(0.3)),
    "uniform": Values("uniform", np.float32(2.0**-24)),
    "trunc_normal": Values("between", np.float32(UNIT), bounds=interval(-2.0, 2.0)),
}
PIECES = {  # start, count, repeats, stride
    "from 0": (0, 1 << 20, 1, 0),
    "odd piece": (2**34 - 500_003, (1 << 20) + 3, 1, 0),
    "columns": (512, 512, 2048, 4096),
    "odd columns": (2**34 - 77, 509, 2048, 4097),
}
COLUMNS = 512  # of a row that is timed, out of twice as many


def differing(dtype: torch.dtype, values: Values, rows: cuda.Launch) -> int:
    """How many values have other bits than the reference."""
    start, count, repeats, stride = rows
    tensor = torch.empty(count * repeats, dtype=dtype, device="cuda")
    cuda.fill(tensor, KEY, rows, values)
    words = [philox.words(KEY, start + row * stride, count) for row in range(repeats)]
    expected = torch.from_numpy(values.of(np.concatenate(words))).to(dtype)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int((tensor.cpu().view(whole) != expected.view(whole)).sum())


def bits(console: Console) -> int:
    table = Table(title="values with other bits than the reference")
    for head in ("kind", "piece", *(str(dtype).removeprefix("torch.") for dtype in DTYPES)):
        table.add_column(head, justify="left" if head in ("kind", "piece") else "right")
    total = 0
    for kind, values in KINDS.items():
        for piece, rows in PIECES.items():
            found = [differing(dtype, values, rows) for dtype in DTYPES]
            total += sum(found)
            table.add_row(kind, piece, *map(str, found))
    console.print(table)
    return total


def seconds(runs: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Medians, where the runs take turns; the first two rounds compile and warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 2):
        for run, of_run in zip(runs, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            if turn >= 2:
                of_run.append(begin.elapsed_time(end) / 1e3)
    return [median(of_run) for of_run in times]


def speed(sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    result = []
    for dtype, size in itertools.product(TIMED, sizes):
        tensor = torch.empty(size, dtype=dtype, device="cuda")
        drawn = {name: (values, (0, size, 1, 0)) for name, values in KINDS.items()}
        half = (0, COLUMNS, size // COLUMNS, 2 * COLUMNS)
        drawn["normal, columns"] = (KINDS["normal"], half)
        drawn["normal, from 1"] = (KINDS["normal"], (1, size, 1, 0))
        runs: dict[str, Callable[[], Any]] = {
            name: partial(cuda.fill, tensor, KEY, rows, values)
            for name, (values, rows) in drawn.items()
        }
        runs["torch's normal_"] = tensor.normal_
        filled, *times = seconds([partial(tensor.fill_, 1.0), *runs.values()], rounds)
        gigabytes = size * tensor.element_size() / 1e9
        result += [
            {
                "dtype": str(dtype).removeprefix("torch."),
                "elements": size,
                "draw": name,
                "fill_ GB/s": gigabytes / filled,
                "GB/s": gigabytes / taken,
                "share": filled / taken,
            }
            for name, taken in zip(runs, times, strict=True)
        ]
    return result


def sweep(size: int, rounds: int) -> list[dict[str, Any]]:
    """Blocks of a tile, tiles and warps of a program, for normals."""
    before = cuda.BLOCKS, cuda.TILES, cuda.WARPS
    result = []
    for dtype, blocks, tiles, warps in itertools.product(TIMED, (128, 256), (4, 16, 64), (2, 4, 8)):
        cuda.BLOCKS, cuda.TILES, cuda.WARPS = blocks, tiles, warps
        tensor = torch.empty(size, dtype=dtype, device="cuda")
        run = partial(cuda.fill, tensor, KEY, (0, size, 1, 0), KINDS["normal"])
        rate = size * tensor.element_size() / seconds([run], rounds)[0] / 1e9
        name = str(dtype).removeprefix("torch.")
        sizes = {"blocks": blocks, "tiles": tiles, "warps": warps}
        result.append({"dtype": name, **sizes, "GB/s": rate})
    cuda.BLOCKS, cuda.TILES, cuda.WARPS = before
    return sorted(result, key=lambda row: (row["dtype"], -row["GB/s"]))


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for head, value in rows[0].items():
        table.add_column(head, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        places = {head: 2 if head == "share" else 0 for head in row}
        table.add_row(
            *(
                value if isinstance(value, str) else f"{value:,.{places[head]}f}"
                for head, value in row.items()
            )
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--largest", type=int, default=30, help="log2 of the most elements (30)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (20)")
    parser.add_argument("--sweep", action="store_true", help="try sizes of a program too")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if not 20 <= options.largest <= 34 or options.rounds < 1:
        parser.error("--largest has to be from 20 to 34, --rounds at least 1")
    if not torch.cuda.is_available():
        sys.exit("draw_cuda: no GPU here, which this script measures (torch sees no CUDA)")
    for dtype in DTYPES:
        if not cuda.available(torch.empty(1, dtype=dtype, device="cuda")):
            sys.exit(f"draw_cuda: Triton does not draw {dtype} here: is it installed?")
    console = Console(soft_wrap=True)
    wrong = bits(console)
    sizes = [1 << power for power in range(20, options.largest + 1, 2)]
    result = {
        "command": " ".join(["python", "benchmarks/draw_cuda.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "goal": GOAL,
        "differing": wrong,
        "speed": speed(sizes, options.rounds),
    }
    show(console, f"values written by {result['device']}", result["speed"])
    if options.sweep:
        result["sweep"] = sweep(1 << min(28, options.largest), options.rounds)
        show(console, "normals, by the size of a program", result["sweep"])
    console.print(f"made by: {result['command']}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    largest = [row for row in result["speed"] if row["elements"] == sizes[-1]]
    reached = min(row["share"] for row in largest if row["draw"] == "normal")
    return 0 if wrong == 0 and reached >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
