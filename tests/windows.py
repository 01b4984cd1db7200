"""Parts of tensors, for tests of what takes one."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np

from fanin.window import Window


@st.composite
def windows_of(draw: st.DrawFn, shape: tuple[int, ...]) -> Window:
    """Any part of a tensor of this shape, of several runs in each dimension."""
    runs = []
    for size in shape:
        held = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        edges = np.flatnonzero(np.diff([False, *held, False]))
        runs.append(tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2)))
    return Window(shape, tuple(runs))


def windows() -> st.SearchStrategy[Window]:
    """Any part of a tensor of up to four dimensions."""
    return st.lists(st.integers(0, 6), max_size=4).flatmap(lambda s: windows_of(tuple(s)))
