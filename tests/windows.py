"""Parts of tensors, for tests of what takes one."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np

from fanin.window import Window


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Any part of a tensor of up to four dimensions, of several runs in each."""
    shape, runs = [], []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 6))
        held = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        edges = np.flatnonzero(np.diff([False, *held, False]))
        shape.append(size)
        runs.append(tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2)))
    return Window(tuple(shape), tuple(runs))
