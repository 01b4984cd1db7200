"""Does an installed fanin draw the bits of the reference?  For a wheel, where no pytest is.

    python tests/installed_draw.py compiled     fails where there is no compiled draw
    python tests/installed_draw.py reference    fails where there is one

Each instruction set of this machine draws every kind in every dtype, from the beginning and from
far inside of a stream, with one thread and with several.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import fanin
from fanin import draw
from fanin.draw import native

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COUNT = 70_001  # enough for several threads, and a multiple of nothing
STARTS = (0, 2**34 - 7, 2**64 - COUNT)  # a carry between words of the counter; the end
# Of the key below: a change of the generator is a change for every user.
KNOWN = (0.4265599846839905, 1.1119743585586548, 2.0519702434539795)


def drawn() -> Iterator[Tensor]:
    key = draw.key(0, "layer.weight")
    for dtype in DTYPES:
        for start in STARTS:
            tensor = torch.empty(COUNT, dtype=dtype)
            yield draw.normal_(tensor, key, 0.02, start=start).clone()
            yield draw.normal_(tensor, key, 1.0, 0.3, start=start).clone()
            yield draw.uniform_(tensor, key, 0.1, start=start).clone()
            yield draw.trunc_normal_(tensor, key, 0.02, start=start).clone()
            yield draw.trunc_normal_(tensor, key, 1.0, -math.inf, 0.5, start=start).clone()


def wrong(expected: str) -> str:
    """What is not as it should be, or nothing."""
    sets = native.present()
    if bool(sets) != (expected == "compiled"):
        return f"compiled draws: {', '.join(sets) or 'none'}, where {expected} was expected"
    known = draw.normal(draw.key(0, "layer.weight"), len(KNOWN))
    if tuple(known.tolist()) != KNOWN:
        return f"the known values are {KNOWN}; drawn was {tuple(known.tolist())}"
    torch.set_num_threads(max(2, torch.get_num_threads()))
    os.environ[native.CHOICE] = native.REFERENCE
    reference = list(drawn())
    for name in sets:
        os.environ[native.CHOICE] = name
        for one, two in zip(drawn(), reference, strict=True):
            if not torch.equal(one.view(torch.uint8), two.view(torch.uint8)):
                return f"{name} draws other bits than the reference in {one.dtype}"
    return ""


def main() -> None:
    if sys.argv[1:] not in (["compiled"], ["reference"]):
        sys.exit("installed_draw.py: say compiled or reference")
    problem = wrong(sys.argv[1])
    if problem:
        sys.exit(problem)
    place, sets = Path(fanin.__file__).parent, ", ".join(native.present())
    print(f"fanin {fanin.__version__} at {place}: {sets or 'reference'}")  # noqa: T201


if __name__ == "__main__":
    main()
