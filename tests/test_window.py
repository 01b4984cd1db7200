"""Windows: the same elements as numpy's own indexing, and torch's own sharding."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import assume, given
from torch.distributed.tensor.placement_types import Shard, _StridedShard
from windows import windows, windows_of

from fanin.window import Window, chunk


def taken(window: Window) -> np.ndarray:
    """Row-major indices of the elements of the part, in the part's shape."""
    whole = np.arange(int(np.prod(window.shape))).reshape(window.shape)
    if not window.shape:
        return whole
    return whole[np.ix_(*(window.indices(d) for d in range(len(window.shape))))]


@given(windows())
def test_the_rows_are_the_elements_each_once(window: Window) -> None:
    found = np.full(window.count, -1)
    for rows in window.rows():
        for k in range(rows.repeats):
            at = rows.place + k * rows.step
            assert (found[at : at + rows.count] == -1).all()
            first = rows.start + k * rows.stride
            found[at : at + rows.count] = np.arange(first, first + rows.count)
    assert np.array_equal(found, taken(window).reshape(-1))


@given(windows(), st.data())
def test_a_narrowed_window_holds_a_slice(window: Window, data: st.DataObject) -> None:
    if not window.shape:
        return
    dim = data.draw(st.integers(0, len(window.shape) - 1))
    size = window.sizes[dim]
    first = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - first))
    part = window.narrow(dim, first, count)
    expected = taken(window).take(range(first, first + count), axis=dim)
    assert np.array_equal(taken(part), expected)


@given(windows(), st.data())
def test_within_a_box_are_the_elements_of_both(window: Window, data: st.DataObject) -> None:
    starts, sizes = [], []
    for size in window.shape:
        starts.append(data.draw(st.integers(0, size)))
        sizes.append(data.draw(st.integers(0, size - starts[-1])))
    part, slices = window.within(starts, sizes)
    box = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    whole = np.arange(int(np.prod(window.shape))).reshape(window.shape)
    inside = np.isin(taken(window), whole[box])
    assert np.array_equal(taken(window)[slices].reshape(-1), taken(window)[inside])
    if window.shape:
        of_box = whole[box][np.ix_(*(part.indices(d) for d in range(len(sizes))))]
        assert np.array_equal(of_box, taken(window)[slices])


@given(windows(), st.data())
def test_other_indices_of_a_dimension_leave_the_rest(window: Window, data: st.DataObject) -> None:
    if not window.shape:
        return
    dim = data.draw(st.integers(0, len(window.shape) - 1))
    other = data.draw(windows_of(window.shape))
    part = window.with_runs(dim, other.runs[dim])
    assert part.shape == window.shape
    for d in range(len(window.shape)):
        assert part.indices(d) == (other if d == dim else window).indices(d)


@given(st.lists(st.integers(0, 6), max_size=4), st.integers(1, 60))
def test_pieces_are_runs_that_follow_one_another(shape: list[int], most: int) -> None:
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    pieces = list(Window.pieces(shape, most))
    found = [whole[piece.slices] for piece in pieces]
    assert np.array_equal(np.concatenate([part.reshape(-1) for part in found]), whole.reshape(-1))
    for piece, part in zip(pieces, found, strict=True):
        assert np.array_equal(taken(piece), part)
        assert piece.count <= most
        assert [rows.repeats for rows in piece.rows()] == [1] * bool(piece.count)
    assert len(pieces) == 1 or all(piece.count for piece in pieces)


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=3),
    st.data(),
)
def test_the_shares_are_those_of_torch(size, cuts, data) -> None:
    runs, held = ((0, size),) if size else (), torch.arange(size)
    for ranks, factor in cuts:
        # torch 2.6 and 2.9 cut uneven strided shards in another order than FSDP2.
        assume(factor == 1 or len(held) % (ranks * factor) == 0 or torch.__version__ >= (2, 10))
        rank = data.draw(st.integers(0, ranks - 1))
        placement = Shard(0) if factor == 1 else _StridedShard(0, split_factor=factor)
        runs = chunk(runs, ranks, rank, factor)
        held = placement._split_tensor(held, ranks, with_padding=False)[0][rank]
        assert [i for a, b in runs for i in range(a, b)] == held.tolist()
