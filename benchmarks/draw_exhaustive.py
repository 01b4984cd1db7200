"""All 2^32 words through every backend: one hash, and how exact the normals are.

    python benchmarks/draw_exhaustive.py                 some ten minutes on one core
    python benchmarks/draw_exhaustive.py --jobs 2        on two
    python benchmarks/draw_exhaustive.py --backends avx2 scalar   the hash of these alone
    python benchmarks/draw_exhaustive.py --step 64       every 64th segment: seconds, no known hash
    python benchmarks/draw_exhaustive.py --json FILE     the figures as JSON; - is stdout

**One hash.**  The words are mapped in order by the numpy reference and by each instruction set of
this machine.  A segment is 2^24 words; its digest is the SHA-256 of the int32 numbers z·2^28,
little endian; the hash is the SHA-256 of the 256 digests in a row.  It has to be the same for all,
and the one that is known.

**Exactness** of the reference, and so of all, against Φ⁻¹ and Φ in double precision
(scipy.special.ndtri, ndtr).  Word v and its complement have opposite values, which is checked, so
that the lower half of the words gives all figures.  The Kolmogorov distance is that of the 2^32
values to the normal distribution, at both sides of each step.  A value is within one unit in the
last place where its float32 differs from Φ⁻¹ by no more than the spacing of float32 there.

The exit status is 1 where two hashes differ, or a figure is beyond its limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import ndtr, ndtri

from fanin.draw import native
from fanin.draw.gaussian import UNIT, fixed_point

#: Of all words, whatever draws them; of another number there is none.
KNOWN = "3689a22f14abc424fcbe593c075220b989bed7fc92f32ad160bd255ed47ce048"
LIMITS = {
    "max_error": 1.9e-8,  # the specification of the draw
    "kolmogorov": 6e-9,
    "variance_error": 2.5e-9,
    "fourth_moment_error": 1e-7,
    "share_beyond_ulp": 0.025,
    "max_z": 6.338,
    "falling_steps": 0,
    "not_odd": 0,
}
WORDS = 2**32
SEGMENT = 2**24
BLOCK = 2**16  # words mapped at once: they stay in the second cache


@dataclass
class Seen:
    """Sums over the magnitudes of some words."""

    words: int = 0
    max_error: float = 0.0
    kolmogorov: float = 0.0
    max_z: float = 0.0
    squares: float = 0.0
    fourths: float = 0.0
    beyond: int = 0
    falling: int = 0
    not_odd: int = 0

    def add(self, other: Seen) -> None:
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            largest = name in ("max_error", "kolmogorov", "max_z")
            setattr(self, name, max(mine, value) if largest else mine + value)


def blocks(segment: int) -> Iterator[NDArray[np.uint32]]:
    first = segment * SEGMENT
    for start in range(first, first + SEGMENT, BLOCK):
        yield np.arange(start, start + BLOCK, dtype=np.uint32)


def digest(backend: str, segment: int) -> bytes:
    """Of the numbers of one segment."""
    os.environ[native.CHOICE] = backend
    found = hashlib.sha256()
    for words in blocks(segment):
        if backend == native.REFERENCE:
            numbers = fixed_point(words)
        else:
            native.mapped(words, "normal")
            numbers = words.view(np.int32)
        found.update(numbers.astype("<i4", copy=False).tobytes())
    return found.digest()


def exactness(segment: int) -> Seen:
    """Of the reference in one segment of the lower half."""
    sums = Seen()
    first = segment * SEGMENT
    before = int(fixed_point(np.array([max(first, 1) - 1], np.uint32))[0])
    for words in blocks(segment):
        fixed = fixed_point(words)
        z, p = fixed * UNIT, words.astype(np.float64)
        exact, reached = ndtri((p + 0.5) / WORDS), ndtr(z)
        rounded = fixed.astype(np.float32) * np.float32(UNIT)
        spacing = np.spacing(np.abs(exact).astype(np.float32))
        steps = np.abs(p / WORDS - reached).max(), np.abs((p + 1) / WORDS - reached).max()
        squares = z * z
        sums.add(
            Seen(
                words=2 * len(words),
                max_error=float(np.abs(z - exact).max()),
                kolmogorov=float(max(steps)),
                max_z=float(np.abs(z).max()),
                squares=2 * float(squares.sum()),
                fourths=2 * float((squares * squares).sum()),
                beyond=2 * int((np.abs(rounded - exact) > spacing).sum()),
                falling=int((np.diff(fixed, prepend=before) < 0).sum()),
                not_odd=int((fixed_point(~words) != -fixed).sum()),
            )
        )
        before = int(fixed[-1])
    return sums


def figures(sums: Seen, complete: bool) -> dict[str, Any]:
    return {
        "words": sums.words,
        "max_error": sums.max_error,
        "kolmogorov": sums.kolmogorov,
        "variance_error": abs(sums.squares / sums.words - 1) if complete else None,
        "fourth_moment_error": abs(sums.fourths / sums.words - 3) if complete else None,
        "share_beyond_ulp": sums.beyond / sums.words,
        "max_z": sums.max_z,
        "falling_steps": sums.falling,
        "not_odd": sums.not_odd,
    }


def run(step: int, jobs: int, backends: list[str], console: Console) -> dict[str, Any]:
    segments = range(0, WORDS // SEGMENT, step)
    hashes, seconds, sums = {}, {}, Seen()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for name in backends:
            began = time.perf_counter()
            digests = pool.map(digest, [name] * len(segments), segments)
            shown = track(digests, f"{name}, all words", len(segments), console=console)
            hashes[name] = hashlib.sha256(b"".join(shown)).hexdigest()
            seconds[name] = round(time.perf_counter() - began, 1)
        lower = [segment for segment in segments if 2 * segment * SEGMENT < WORDS]
        if native.REFERENCE not in backends:
            lower = []
        found = pool.map(exactness, lower)
        for some in track(found, "against Φ⁻¹ in double", len(lower), console=console):
            sums.add(some)
    return {
        "hashes": hashes,
        "known": KNOWN if step == 1 else None,
        "exactness": figures(sums, step == 1) if sums.words else None,
        "limits": LIMITS,
        "seconds": seconds,
        "jobs": jobs,
        "processor": platform.machine(),
        "versions": {"numpy": np.__version__, "python": platform.python_version()},
    }


def good(result: dict[str, Any]) -> bool:
    wanted = {*result["hashes"].values(), *([result["known"]] if result["known"] else [])}
    found = result["exactness"] or {}
    return len(wanted) == 1 and all((found.get(name) or 0) <= LIMITS[name] for name in LIMITS)


def table(found: dict[str, Any]) -> Table:
    made = Table(title=f"the normal map over {found['words']:,} words")
    for head in ("", "measured", "limit"):
        made.add_column(head, justify="right" if head else "left")
    for name, value in found.items():
        limit = LIMITS.get(name)
        shown = "" if limit is None else f"{limit:g}"
        made.add_row(name, "" if value is None else f"{value:.6g}", shown)
    return made


def show(console: Console, result: dict[str, Any]) -> None:
    for name, found in result["hashes"].items():
        console.print(f"{name:10} {found}")
    if result["known"]:
        console.print(f"{'known':10} {result['known']}")
    if result["exactness"]:
        console.print(table(result["exactness"]))
    console.print("good" if good(result) else "NOT GOOD", style="bold")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--step", type=int, default=1, help="every STEP-th segment (1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    backends = [native.REFERENCE, *native.present()]
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends)
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args()
    if options.step < 1 or options.jobs < 1:
        parser.error("--step and --jobs have to be at least 1")
    console = Console(stderr=True, soft_wrap=True)
    result = run(options.step, options.jobs, options.backends, console)
    show(console, result)
    if options.json:
        text = json.dumps(result, indent=2) + "\n"
        if options.json == "-":
            print(text, end="")
        else:
            Path(options.json).write_text(text, encoding="utf-8")
    return 0 if good(result) else 1


if __name__ == "__main__":
    sys.exit(main())
