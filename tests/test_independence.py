"""Parameters do not know of one another: correlations lie within noise.

For independent rows of n standard normals, r·√n of two rows has variance 1 (exactly: the mean of n
products of variance 1), and is nearly normal.  Of m pairs the largest |r|·√n is about
√(2·ln(2m)) less a little: its distribution is known (`largest`), and so are the mean and the spread
of n·r² over all pairs.  Seeds and names are fixed, so every figure is one number, and each test
would fail about once in a million other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri

from fanin.draw import Key, key, normal, words

Array = NDArray[np.float64]
COUNT = 1000  # streams: 499,500 pairs
LENGTH = 4096  # normals of each
RARE = 1e-6  # how often a test would fail by chance


def correlations(keys: Iterable[Key], start: int = 0) -> Array:
    """r·√n of all pairs of streams."""
    rows = np.stack([normal(own, LENGTH, start) for own in keys]).astype(np.float64)
    products = rows @ rows.T / math.sqrt(LENGTH)
    return products[np.triu_indices(len(rows), 1)]


def largest(pairs: int) -> tuple[float, float]:
    """Between what bounds the largest of |r|·√n of so many pairs lies, but for RARE cases."""
    return tuple(  # P(largest < x) = (2Φ(x) − 1)^pairs
        float(ndtri((1 + math.exp(math.log(p) / pairs)) / 2)) for p in (RARE / 2, 1 - RARE / 2)
    )


def even(found: Array, fourth: float = 3.0) -> None:
    """The mean of r, and that of n·r², are those of independent streams.

    With u the variable of variance 1 and E u⁴ = fourth: n·r² has mean 1 and variance
    2 + (fourth² − 3)/n; two pairs that share a stream have the covariance (fourth − 1)/n, and each
    pair has 2·(streams − 2) of these.
    """
    pairs = len(found)
    streams = (1 + math.sqrt(1 + 8 * pairs)) / 2
    beyond = -float(ndtri(RARE / 2))  # of a normal variable
    assert abs(found.mean()) * math.sqrt(pairs) < beyond
    spread = 2 + (fourth**2 - 3 + 2 * (streams - 2) * (fourth - 1)) / LENGTH
    assert abs((found**2).mean() - 1) * math.sqrt(pairs / spread) < beyond


def uncorrelated(found: Array) -> None:
    even(found)
    low, high = largest(len(found))
    assert low < np.abs(found).max() < high * 1.02  # tails of a mean of products: a little longer


def test_a_thousand_names() -> None:
    uncorrelated(correlations(key(0, f"layers.{i}.weight") for i in range(COUNT)))


def test_a_thousand_names_that_differ_in_one_letter_or_in_length() -> None:
    letters = [f"{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}.weight" for i in range(COUNT // 2)]
    uncorrelated(correlations(key(0, name) for name in [*letters, *("w" * i for i in range(500))]))


def test_a_thousand_seeds() -> None:
    uncorrelated(correlations(key(seed, "layers.0.weight") for seed in range(COUNT)))


def test_seeds_of_one_bit() -> None:
    seeds = [0, *(1 << bit for bit in range(64)), *(2**64 - 1 - (1 << b) for b in range(64))]
    uncorrelated(correlations(key(seed, "layers.0.weight") for seed in seeds))


def test_a_thousand_streams_and_versions_of_one_name() -> None:
    streams = ("normal", "uniform", "trunc_normal", "orthogonal", "hadamard")
    uncorrelated(
        correlations(
            key(0, "layers.0.weight", stream, version)
            for stream in streams
            for version in range(1, COUNT // len(streams) + 1)
        )
    )


def test_far_places_of_a_thousand_names() -> None:
    """Beyond 2³² blocks the upper half of the counter counts."""
    uncorrelated(correlations((key(0, f"layers.{i}.weight") for i in range(COUNT)), 2**40 - 2048))


def test_a_thousand_pieces_of_one_name() -> None:
    """Neighbouring rows of one matrix [1000, 4096]."""
    rows = normal(key(0, "layers.0.weight"), COUNT * LENGTH).reshape(COUNT, LENGTH)
    products = rows.astype(np.float64) @ rows.T / math.sqrt(LENGTH)
    uncorrelated(products[np.triu_indices(COUNT, 1)])


def test_a_thousand_lags_of_one_name() -> None:
    """Element i and element i + lag, for all lags up to 1000: neighbours above all."""
    n = 1 << 20
    drawn = normal(key(0, "layers.0.weight"), n + COUNT).astype(np.float64)
    found = np.array([drawn[:n] @ drawn[lag : lag + n] for lag in range(1, COUNT + 1)])
    uncorrelated(found / math.sqrt(n))


def test_the_four_lanes_of_a_block() -> None:
    """Words of one Philox block, and of the next: each with each."""
    n = 1 << 17
    lanes = normal(key(1, "layers.0.weight"), 8 * n).reshape(n, 8).astype(np.float64)
    products = lanes.T @ lanes / math.sqrt(n)
    uncorrelated(products[np.triu_indices(8, 1)])


def test_squares_are_uncorrelated_too() -> None:
    """A shared scale would show in no correlation of the values themselves."""
    keys = [key(0, f"layers.{i}.weight") for i in range(COUNT)]
    rows = np.stack([normal(own, LENGTH) for own in keys]).astype(np.float64) ** 2 - 1
    products = rows @ rows.T / (2 * math.sqrt(LENGTH))  # the variance of z² is 2
    found = products[np.triu_indices(COUNT, 1)]
    even(found, fourth=15)  # E (z² − 1)⁴ = 60
    assert np.abs(found).max() < 1.15 * largest(len(found))[1]  # products of squares: long tails


@pytest.mark.parametrize("order", ["names", "seeds"])
def test_bits_of_first_words_are_fair_and_independent(order: str) -> None:
    """Word 0 of many streams: each bit half the time, each two bits equal half the time."""
    count = 5_000
    keys = (
        (key(0, f"layers.{i}.weight") if order == "names" else key(i, "weight"))
        for i in range(count)
    )
    first = np.array([words(own, 0, 1)[0] for own in keys], np.uint32)
    bits = 2.0 * (first[:, None] >> np.arange(32, dtype=np.uint32) & 1) - 1
    assert np.abs(bits.sum(0)).max() / math.sqrt(count) < largest(32)[1]
    products = bits.T @ bits / math.sqrt(count)
    found = products[np.triu_indices(32, 1)]
    assert np.abs(found).max() < largest(len(found))[1]


# ── that the measures can fail ───────────────────────────────────────────────────────────────


def test_one_repeated_stream_among_a_thousand_is_noticed() -> None:
    names = [f"layers.{i}.weight" for i in range(COUNT - 1)]
    found = correlations(key(0, name) for name in [*names, names[0]])
    with pytest.raises(AssertionError):
        uncorrelated(found)


def test_streams_that_share_a_hundredth_of_their_variance_are_noticed() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((COUNT, LENGTH)) + 0.1 * rng.standard_normal(LENGTH)
    rows /= math.sqrt(1.01)
    products = rows @ rows.T / math.sqrt(LENGTH)
    with pytest.raises(AssertionError):
        uncorrelated(products[np.triu_indices(COUNT, 1)])


def test_independent_streams_of_another_generator_are_not() -> None:
    rows = np.random.default_rng(1).standard_normal((COUNT, LENGTH))
    products = rows @ rows.T / math.sqrt(LENGTH)
    uncorrelated(products[np.triu_indices(COUNT, 1)])
