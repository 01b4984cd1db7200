"""Fingerprints: equal units share a class and others do not, at any scale, order or layout."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fanin.sketch import DIRECTIONS, Directions, classes, labels, project

FEW = settings(max_examples=80, deadline=None, derandomize=True)
TOLERANCE = 1e-7


def canonical(groups: np.ndarray) -> list[int]:
    """The same partition, its classes numbered by their first members."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(g), len(seen)) for g in groups]


@st.composite
def planted(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a few generic centres with round-off, in any order and at any scale; their groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    columns = draw(st.integers(1, 8))
    scale = 10.0 ** draw(st.integers(-12, 12))
    spread = draw(st.sampled_from([0.0, 1.0, 2.0]))  # of the centres' sizes, in decades
    distance = draw(st.sampled_from([1.0, 1e-3]))  # of the centres from one another
    centres = rng.standard_normal(columns) + distance * rng.standard_normal((len(sizes), columns))
    centres[:, 0] += 10 * distance * rng.permutation(len(sizes))  # no two alike by chance
    centres *= 10.0 ** rng.uniform(-spread, 0, (len(sizes), 1))
    if draw(st.booleans()):
        centres[0] = 0.0  # a silent unit
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise = 1 + 1e-13 * rng.standard_normal((len(groups), columns))
    return scale * centres[groups] * noise, groups


@FEW
@given(planted())
def test_labels_group_exactly_the_rows_that_were_planted_equal(case):
    vectors, groups = case
    assert labels(vectors, TOLERANCE).tolist() == canonical(groups)


@FEW
@given(planted(), st.randoms(use_true_random=False))
def test_labels_do_not_depend_on_the_order_of_rows_or_columns(case, random):
    vectors, _ = case
    rows, columns = list(range(len(vectors))), list(range(vectors.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    moved = labels(vectors[rows][:, columns], TOLERANCE)
    assert moved.tolist() == canonical(labels(vectors, TOLERANCE)[rows])


@FEW
@given(planted(), st.integers(-30, 30))
def test_labels_do_not_depend_on_the_scale(case, exponent: int):
    vectors, _ = case
    scaled = labels(vectors * 2.0**exponent, TOLERANCE)
    assert scaled.tolist() == labels(vectors, TOLERANCE).tolist()


@FEW
@given(
    st.integers(-(10**6), 10**6),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([TOLERANCE, 1e-9, 10.0, 1.0, 0.1]),
)
def test_equal_values_are_never_parted_by_the_border_of_a_grid(k: int, half: float, cell: float):
    """Values on either side of any multiple of the tolerance, or of a decimal, one step apart."""
    border = (k + half) * cell
    beside = [np.nextafter(border, -np.inf), border, np.nextafter(border, np.inf)]
    vectors = np.array([*itertools.product(beside, repeat=2), (border + 1e3, border)])
    assert labels(vectors, TOLERANCE).tolist() == [0] * 9 + [1]


@pytest.mark.parametrize("tolerance", [1e-9, 1e-5, 1e-2])
def test_labels_part_what_differs_by_more_than_the_tolerance(tolerance: float):
    vectors = np.ones((3, 4))
    vectors[1, 2] += 0.1 * tolerance
    vectors[2, 2] += 10 * tolerance
    assert labels(vectors, tolerance).tolist() == [0, 0, 1]


def test_rows_without_a_finite_value_are_all_told_apart():
    vectors = np.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 0.0]])
    assert labels(vectors, TOLERANCE).tolist() == [0, 1, 2]
    assert labels(np.empty((0, 4)), TOLERANCE).tolist() == []


@FEW
@given(st.lists(st.integers(0, 8), max_size=30))
def test_classes_are_the_groups_of_more_than_one(numbers: list[int]):
    array = np.array(canonical(np.array(numbers, dtype=int)), dtype=int)
    found = classes(array)
    expected = {
        tuple(np.flatnonzero(array == n).tolist())
        for n in set(array.tolist())
        if (array == n).sum() > 1
    }
    assert set(found) == expected
    assert len(found) == len(expected)


# ── fingerprints ─────────────────────────────────────────────────────────────────────────────


def naive(values: torch.Tensor, dims: tuple[int, ...], rows: torch.Tensor) -> torch.Tensor:
    """One unit after the other, its values in the order of samples and positions."""
    dims = tuple(d % values.dim() for d in dims)
    result = []
    for unit in itertools.product(*(range(values.shape[d]) for d in dims)):
        at = tuple(unit[dims.index(d)] if d in dims else slice(None) for d in range(values.dim()))
        own = values[at].reshape(-1).double()
        result.append(own @ rows.double())
    return torch.stack(result)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """A shape, the dimensions that count units, and whether these count from the end."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    order = draw(st.permutations(range(len(shape))))
    dims = tuple(order[: draw(st.integers(1, len(shape)))])
    return shape, dims, draw(st.booleans())


@FEW
@given(layouts(), st.sampled_from([torch.float64, torch.float32]), st.integers(0, 3))
def test_fingerprints_are_those_of_a_loop_over_units(case, dtype, occurrence: int):
    shape, dims, negative = case
    values = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))
    given_dims = tuple(d - len(shape) for d in dims) if negative else dims
    directions = Directions(5)
    found = project(values, given_dims, directions, occurrence)
    units = int(np.prod([shape[d] for d in dims]))
    count = values.numel() // units
    rows = project(torch.eye(count, dtype=dtype), (-1,), directions, occurrence)
    assert found.shape == (units, DIRECTIONS)
    close = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, naive(values, dims, rows), rtol=close, atol=close)


@pytest.mark.parametrize(
    "layout",
    [lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), lambda x: x.flip(-1).flip(-1)],
    ids=["transposed", "flipped"],
)
@pytest.mark.parametrize("dims", [(-1,), (1,), (0,), (1, 2)])
def test_fingerprints_do_not_depend_on_strides(layout, dims: tuple[int, ...]):
    values = torch.randn(4, 5, 6, 3, dtype=torch.float64)
    a, b = (project(v, dims, Directions(0), 0) for v in (values, layout(values)))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype):
    values = torch.randn(3000, 6).to(dtype)
    wide = project(values.float(), (-1,), Directions(0), 0)
    torch.testing.assert_close(project(values, (-1,), Directions(0), 0), wide)


def test_units_that_are_equal_in_the_real_part_alone_differ():
    values = torch.randn(20, 2, dtype=torch.complex64)
    values[:, 1] = values[:, 0].conj()
    first, second = project(values, (-1,), Directions(0), 0)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("positions", [70_001, 200_000])
def test_long_layers_still_tell_units_apart_by_any_one_value(positions: int):
    values = torch.zeros(positions, 3, dtype=torch.float64)
    values[-1, 1] = 1.0
    values[3, 2] = 1.0
    a, b, c = project(values, (-1,), Directions(0), 0)
    assert not torch.allclose(a, b, atol=1e-9)
    assert not torch.allclose(b, c, atol=1e-9)


def test_directions_follow_the_seed_and_the_occurrence_and_nothing_else():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    values = torch.eye(40, dtype=torch.float64)

    def rows(seed: int, occurrence: int) -> torch.Tensor:
        return project(values, (-1,), Directions(seed), occurrence)

    first = rows(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(rows(0, 0), first)
    assert not torch.allclose(rows(0, 1), first)
    assert not torch.allclose(rows(1, 0), first)
