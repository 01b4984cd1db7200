"""The draw: known answers, the same bits on every path, and the distributions promised."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import tracemalloc
import warnings
from fractions import Fraction

import draw_table
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from mpmath import mp
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

import fanin
from fanin.draw import (
    Key,
    hadamard,
    hadamard_rows,
    key,
    normal,
    normal_,
    orthogonal,
    tensors,
    trunc_normal_,
    uniform_,
    words,
)
from fanin.draw.gaussian import LARGEST, UNIT, fixed_point
from fanin.draw.normal_table import ROWS
from fanin.draw.philox import CHUNK, blocks
from fanin.draw.truncation import interval
from fanin.errors import ArgumentError

FEW = settings(max_examples=60, deadline=None, derandomize=True)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FILLS = [normal_, uniform_, trunc_normal_]
A = key(0, "a")


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


# ── words ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("counter", "own", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_the_published_answers_of_philox4x32_10(counter: str, own: str, answer: str):
    c, k = ([int(w, 16) for w in text.split()] for text in (counter, own))
    drawn = blocks(Key(k[0] | k[1] << 32, c[2] | c[3] << 32), c[0] | c[1] << 32, 1)
    assert [f"{w:08x}" for w in drawn] == answer.split()


def philox(own: Key, index: int) -> int:
    """One word, in Python's integers."""
    block, mask = index >> 2, 2**32 - 1
    c = [block & mask, block >> 32, own.high & mask, own.high >> 32]
    k = [own.low & mask, own.low >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & mask, (p >> 32) ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[index & 3]


PLACES = st.one_of(
    st.integers(0, 100), st.integers(2**34 - 20, 2**34 + 20), st.integers(0, 2**64 - 40)
)


@FEW
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), PLACES, st.integers(0, 40))
def test_words_are_those_of_an_independent_implementation(low, high, start: int, count: int):
    own = Key(low, high)
    expected = [philox(own, start + i) for i in range(count)]
    assert words(own, start, count).tolist() == expected


def test_words_end_with_the_last_index_of_64_bits():
    assert words(A, 2**64 - 3, 3).tolist() == [philox(A, 2**64 - 3 + i) for i in range(3)]
    with pytest.raises(ArgumentError, match=r"^count: 4; an integer from 0 to 3"):
        words(A, 2**64 - 3, 4)


@pytest.mark.parametrize("start", [0, 1, 3, CHUNK - 1])
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK + 5, 3 * CHUNK + 2])
def test_long_ranges_are_joined_without_a_seam(start: int, count: int):
    whole = blocks(A, 0, CHUNK)[start : start + count]
    assert (words(A, start, count)[: len(whole)] == whole).all()
    assert words(A, start, count)[-3:].tolist() == words(A, start + count - 3, 3).tolist()


# ── keys ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["", "a", "blocks.0.weight", "größe", "层.权重", "\0", "a" * 5000])
def test_the_bytes_of_a_key(name: str):
    text = name.encode("utf-8")
    digest = hashlib.blake2b(
        len(text).to_bytes(8, "little") + text,
        digest_size=16,
        key=(258).to_bytes(8, "little"),
        person=b"uniform/7\0\0\0\0\0\0\0",
    ).digest()
    low, high = np.frombuffer(digest, "<u8").tolist()
    assert key(258, name, "uniform", 7) == Key(low, high)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
STREAMS = st.sampled_from(["normal", "uniform", "orthogonal"])
NAMES = st.tuples(st.integers(0, 2**64 - 1), TEXT, STREAMS, st.integers(1, 999))


@FEW
@given(NAMES, NAMES)
def test_different_names_have_different_keys(one, other):
    assert (key(*one) == key(*other)) == (one == other)


def test_a_key_knows_where_the_name_ends():
    assert key(0, "ab", "c") != key(0, "a", "bc")
    assert key(0, "a") != key(0, "a\0")
    assert key(0, "é") != key(0, "e\u0301")  # equal to the eye, two names
    assert key(np.uint64(3), "a") == key(3, "a")


@pytest.mark.parametrize("seed", [-1, 2**64, True, 1.0, "1", None])
def test_a_seed_is_an_integer_of_64_bits(seed):
    with pytest.raises(ArgumentError, match=r"^seed: "):
        key(seed, "a")


@pytest.mark.parametrize(
    ("name", "stream", "version", "argument"),
    [
        (None, "normal", 1, "name"),
        (b"a", "normal", 1, "name"),
        ("\ud800", "normal", 1, "name"),
        ("a", "", 1, "stream"),
        ("a", "gauß", 1, "stream"),
        ("a", None, 1, "stream"),
        ("a", "a_long_stream_x", 1, "stream"),
        ("a", "normal", 0, "version"),
        ("a", "normal", "1", "version"),
    ],
)
def test_bad_keys_name_the_argument(name, stream, version, argument: str):
    with pytest.raises(ArgumentError, match=rf"^{argument}: ") as caught:
        key(0, name, stream, version)
    assert "\n" not in str(caught.value)


def test_names_seeds_and_streams_are_uncorrelated():
    count = 4000
    keys = [key(0, f"layers.{i}.weight") for i in range(200)]
    keys += [key(seed, "layers.0.weight") for seed in range(1, 20)]
    keys += [key(0, "layers.0.weight", stream) for stream in ("uniform", "orthogonal")]
    keys += [key(0, "layers.0.weight", version=version) for version in (2, 3)]
    drawn = np.stack([normal(k, count) for k in keys]).astype(np.float64)
    found = drawn @ drawn.T / count - np.eye(len(keys))
    # 25,000 pairs: the largest of as many normal numbers is 4.2 σ
    assert np.abs(found[~np.eye(len(keys), dtype=bool)]).max() * math.sqrt(count) < 5
    assert np.abs(np.diagonal(found)).max() * math.sqrt(count / 2) < 4.5


def test_neighbours_in_one_stream_are_uncorrelated_and_bits_fair():
    drawn = words(A, 0, 1 << 18)
    z = fixed_point(drawn) * UNIT
    lags = [z[:-lag] @ z[lag:] / math.sqrt(len(z)) for lag in (1, 2, 3, 4, 5, 8, 64, 1024)]
    assert np.abs(lags).max() < 4
    ones = np.array([(drawn >> b & 1).sum() for b in range(32)])
    assert np.abs(ones - len(z) / 2).max() / math.sqrt(len(z) / 4) < 4


# ── the normal map ───────────────────────────────────────────────────────────────────────────


def test_the_table_is_the_one_its_maker_computes():
    assert draw_table.rows() == ROWS


def scalar(word: int) -> int:
    """z·2²⁸, in Python's integers: the position of the highest bit, and 32-bit products."""
    lower = word < 2**31
    r = word if lower else 2**32 - 1 - word
    shift = max(r.bit_length() - 5, 0)
    c0, c1, c2, c3 = ROWS[16 * shift + (r >> shift)]
    t = r % 2**shift << 32 - shift
    for c in (c0, c1, c2, c3):
        assert 0 <= c < 2**32  # the table fits the 32-bit words of other implementations
    inner = c2 - (t * c3 >> 32)
    outer = c1 - (t * inner >> 32)
    assert inner >= 0
    assert outer >= 0
    z = c0 - ((t * outer >> 32) >> 7)
    return -z if lower else z


def edges() -> np.ndarray:
    """The words on both sides of each row's borders, in order."""
    starts = [(16 + i % 16) << (i // 16 - 1) for i in range(16, 448)] + [2**31]
    near = {r + d for r in [*range(16), *starts] for d in range(-4, 5)}
    lower = [r for r in near if 0 <= r < 2**31]
    return np.array(sorted({*lower, *(2**32 - 1 - r for r in lower)}), dtype=np.uint32)


def test_the_map_is_that_of_plain_integers():
    some = np.concatenate([edges(), words(A, 0, 3000), words(A, 0, 3000) >> 12])
    assert fixed_point(some).tolist() == [scalar(int(w)) for w in some]


def test_the_map_is_monotone_and_odd():
    runs = [np.arange(2000, dtype=np.uint32) + (w & 0xFFFFF000) for w in words(A, 0, 500)]
    for some in [edges(), np.sort(words(A, 0, 1 << 18)), *runs]:
        assert (np.diff(fixed_point(some)) >= 0).all()
        assert (fixed_point(~some) == -fixed_point(some)).all()


def test_the_map_keeps_its_shape():
    assert fixed_point(np.zeros((3, 0, 2), np.uint32)).shape == (3, 0, 2)
    some = words(A, 0, 24).reshape(4, 6)
    assert (fixed_point(some.T) == fixed_point(some).T).all()


def test_the_map_is_the_quantile_to_seventeen_billionths():
    some = np.concatenate([edges(), np.arange(0, 2**32, 40009).astype(np.uint32)])
    z = fixed_point(some) * UNIT
    assert np.abs(z - ndtri((some + 0.5) / 2**32)).max() < 1.7e-8
    assert np.abs(z).max() == LARGEST == pytest.approx(6.3379, abs=1e-4)


def test_moments_and_distribution_over_all_words():
    """Every row by all its words or about a thousand evenly spread ones, weighted by its width."""
    lower, weight = [np.arange(32)], [np.ones(32)]
    for index in range(32, 448):
        shift, first = index // 16 - 1, 16 + index % 16
        count = min(2**shift, 512)
        middle = (first << shift) + (np.arange(count) * 2 + 1) * 2**shift // (2 * count)
        around = (0,) if 2**shift == count else (-1, 0)  # the middle lies between two words
        for d in around:
            lower.append(middle + d)
            weight.append(np.full(count, 2.0**shift / count / len(around)))
    r = np.concatenate(lower)
    share = np.concatenate(weight) / 2**31
    assert share.sum() == 1
    z = fixed_point(r.astype(np.uint32)) * UNIT
    assert share @ z**2 == pytest.approx(1, abs=1e-9)
    assert share @ -z == pytest.approx(math.sqrt(2 / math.pi), abs=1e-9)
    assert share @ z**4 == pytest.approx(3, abs=1e-7)
    steps = np.abs(np.stack([r, r + 1.0]) / 2**32 - ndtr(z))
    assert steps.max() < 6e-9


# ── tensors ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("std", [0.02, 1.0, 4e-30, 1e30])
@pytest.mark.parametrize("mean", [0.0, -0.7])
def test_normal_is_one_product_and_one_sum_in_float32(std: float, mean: float):
    z = fixed_point(words(A, 0, 1000))
    expected = z.astype(np.float32) * np.float32(std * 2.0**-28)
    if mean:
        expected = expected + np.float32(mean)
    assert bits(normal_(torch.empty(1000), A, std, mean)) == expected.tobytes()


def test_normals_for_matrices_are_those_of_tensors():
    filled = normal_(torch.empty(CHUNK + 9), A).numpy()
    assert normal(A, CHUNK + 9).tobytes() == filled.tobytes()
    assert normal(A, 7, start=CHUNK - 2).tobytes() == filled[CHUNK - 2 : CHUNK + 5].tobytes()
    assert normal(A, 0).shape == (0,)


@pytest.mark.parametrize("bound", [1.0, 0.3, 1e-29])
def test_uniform_is_an_exact_integer_rounded_once(bound: float):
    filled = uniform_(torch.empty(500), A, bound).tolist()
    scale = Fraction(float(np.float32(bound * 2.0**-24)))
    for word, value in zip(words(A, 0, 500).tolist(), filled, strict=True):
        exact = (2 * (word >> 8) + 1 - 2**24) * scale
        assert value == float(np.float32(float(exact)))  # 48 bits: exact as a double
    drawn = uniform_(torch.empty(1 << 18, dtype=torch.float64), A, bound)
    assert 0 < drawn.abs().min() < drawn.abs().max() <= bound
    noise = 4 / math.sqrt(len(drawn))
    assert drawn.mean() / bound == pytest.approx(0, abs=noise)
    assert (drawn / bound).square().mean() * 3 == pytest.approx(1, abs=noise)


@pytest.mark.parametrize("fill_", FILLS)
def test_std_zero_gives_zeros_without_a_sign(fill_):
    assert bits(fill_(torch.ones(50), A, 0.0)) == bytes(200)


@pytest.mark.parametrize("fill_", FILLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_the_float32_values_rounded_once(fill_, dtype: torch.dtype):
    filled = fill_(torch.empty(3, 700, dtype=dtype), A, 0.02)
    assert filled.dtype == dtype
    assert bits(filled) == bits(fill_(torch.empty(3, 700), A, 0.02).to(dtype))


LAYOUTS = {
    "contiguous": lambda shape, dtype: torch.empty(shape, dtype=dtype),
    "reversed strides": lambda shape, dtype: torch.empty(shape[::-1], dtype=dtype).permute(
        *reversed(range(len(shape)))
    ),
    "every second": lambda shape, dtype: torch.empty([2 * n for n in shape], dtype=dtype)[
        tuple(slice(None, None, 2) for _ in shape)
    ],
    "turned": lambda shape, dtype: torch.empty([*shape[1:], shape[0]], dtype=dtype).movedim(-1, 0),
}
SHAPES = [(), (1,), (0,), (3, 0, 2), (5, 7), (2, 3, 4, 5), (CHUNK + 3,), (3, CHUNK + 1), (70, 999)]


@pytest.mark.parametrize("fill_", FILLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_follow_the_logical_index_whatever_the_strides(fill_, shape: tuple[int, ...]):
    count = math.prod(shape)
    expected = bits(fill_(torch.empty(count), A))
    for name, layout in LAYOUTS.items():
        if len(shape) > 0 or name == "contiguous":
            assert bits(fill_(layout(shape, torch.float32), A)) == expected, name


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_values_do_not_depend_on_the_size_of_the_pieces(size: int, monkeypatch):
    drawn = [bits(fill_(torch.empty(6, 5, 7).transpose(0, 2), A)) for fill_ in FILLS]
    monkeypatch.setattr(tensors, "CHUNK", size)
    for fill_, expected in zip(FILLS, drawn, strict=True):
        assert bits(fill_(torch.empty(6, 5, 7).transpose(0, 2), A)) == expected
        assert bits(fill_(torch.empty(210), A)) == expected


@FEW
@given(st.sampled_from(FILLS), st.lists(st.integers(0, 40), max_size=6))
def test_parts_filled_apart_are_the_whole(fill_, lengths: list[int]):
    whole = fill_(torch.empty(sum(lengths)), A)
    start, parts = 0, [torch.empty(0)]
    for length in lengths:
        parts.append(fill_(torch.empty(length), A, start=start))
        start += length
    assert bits(torch.cat(parts)) == bits(whole)


def test_memory_is_that_of_one_piece():
    tensor = torch.empty(1 << 10, 1 << 12).t()  # 16 MiB
    for fill_ in FILLS:
        tracemalloc.start()
        fill_(tensor, A)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22


def test_only_the_view_given_is_written():
    whole = torch.zeros(6, 8)
    normal_(whole[1:3, ::2], A)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[1:3, ::2] = True
    assert ((whole != 0) == mask).all()


@pytest.mark.parametrize("fill_", FILLS)
def test_no_global_random_state_is_read_or_advanced(fill_):
    def states() -> list[object]:
        named = np.random.get_state(legacy=False)
        return [bits(torch.get_rng_state()), repr(named), random.getstate()]

    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = states()
        drawn.append(bits(fill_(torch.empty(100), A)))
        orthogonal(A, 3, 4)
        hadamard(A, 4, 4)
        assert states() == before
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("fill_", FILLS)
def test_parameters_are_filled_in_place_in_every_mode(fill_):
    expected = bits(fill_(torch.empty(4, 5), A))
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        parameter = nn.Parameter(torch.zeros(4, 5))
        version, place = parameter._version, parameter.data_ptr()
        with mode():
            assert fill_(parameter, A) is parameter
        assert parameter._version > version  # autograd notices what was changed under it
        assert (parameter.requires_grad, parameter.is_leaf, parameter.grad) == (True, True, None)
        assert parameter.data_ptr() == place
        assert bits(parameter) == expected
    with torch.inference_mode():
        inference = torch.zeros(4, 5)
    assert bits(fill_(inference, A)) == expected


def test_a_part_of_a_parameter_is_filled_outside_of_its_history():
    parameter = nn.Parameter(torch.zeros(4, 5))
    normal_(parameter.split(2)[1], A)  # autograd refuses to write such a view
    assert bits(parameter[2:]) == bits(normal_(torch.empty(2, 5), A))
    assert not parameter[:2].any()
    assert parameter.is_leaf


@pytest.mark.parametrize("fill_", FILLS)
def test_no_setting_of_the_process_changes_a_bit(fill_):
    expected = bits(fill_(torch.empty(5000, dtype=torch.float16), A, 1e-6))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_flush_denormal(True)
        with torch.device("meta"):  # the default device of new tensors
            filled = fill_(torch.empty(5000, dtype=torch.float16, device="cpu"), A, 1e-6)
    finally:
        torch.set_flush_denormal(False)
        torch.set_default_dtype(before)
    assert bits(filled) == expected


# ── truncation ───────────────────────────────────────────────────────────────────────────────

BOUNDS = [
    (-2.0, 2.0), (-1.0, 3.0), (0.0, math.inf), (-math.inf, 1.0), (-3.0, 3.0), (-0.1, 0.1),
    (1.0, 1.01), (3.0, 4.0), (5.0, math.inf), (-6.0, -5.0), (-50.0, 50.0), (0.0, 1e-6),
]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_the_words_and_the_std_between_two_bounds(low: float, high: float):
    found = interval(low, high)
    with mp.workdps(40):
        a, b = (mp.ncdf(x) for x in (low, high))
        assert found.first == int(mp.nint(a * 2**32))
        assert found.first + found.width == int(mp.nint(b * 2**32)) <= 2**32
        first, second = (
            mp.quad(lambda x, k=k: x**k * mp.npdf(x), [max(low, -20), min(high, 20)]) / (b - a)
            for k in (1, 2)
        )
        assert found.std == pytest.approx(float(mp.sqrt(second - first**2)), rel=1e-14)


def test_the_usual_cut_at_two_sigma():
    assert interval(-2.0, 2.0).std == pytest.approx(0.87962566, abs=5e-9)
    assert interval(-2.0, 2.0).first == 97711073  # Φ(−2)·2³² = 97711072.7


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_truncated_values_have_the_asked_std_and_stay_between(low, high, corrected: bool):
    count, std = 1 << 16, 0.5
    drawn = trunc_normal_(torch.empty(count, dtype=torch.float64), A, std, low, high, corrected)
    sigma = std / interval(low, high).std if corrected else std
    z = drawn.numpy() / sigma
    error = 1.7e-8 + 1.5e-7 * np.abs(z).max()  # of the map, and of its rounding to float32
    assert low - error <= z.min() < z.max() <= high + error
    width = interval(low, high).std
    noise = 4 / math.sqrt(count) + 0.01 * (interval(low, high).width < 5000)  # few values
    assert drawn.std() / sigma / width == pytest.approx(1, abs=noise)
    if interval(low, high).width > 5000:
        distribution = scipy.stats.truncnorm(low, high)
        assert scipy.stats.kstest(z, distribution.cdf).statistic < 2 / math.sqrt(count)


def test_values_cut_at_two_sigma_are_never_beyond_in_float32():
    drawn = trunc_normal_(torch.empty(1 << 20), A, 0.02, corrected=False)
    assert drawn.abs().max() <= np.float32(0.04)
    ends = interval(-2.0, 2.0)
    last = np.array([ends.first, ends.first + ends.width - 1], dtype=np.uint32)
    assert (np.abs(fixed_point(last).astype(np.float32) * np.float32(UNIT)) <= 2).all()


def test_bounds_at_infinity_are_the_normal_itself():
    drawn = trunc_normal_(torch.empty(5000), A, 0.3, -math.inf, math.inf)
    assert bits(drawn) == bits(normal_(torch.empty(5000), A, 0.3))


@pytest.mark.parametrize(
    ("low", "high"),
    [(2.0, -2.0), (1.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (7.0, math.inf), (-9.0, -8.0),
     (0.0, 1e-12), (math.inf, math.inf), ("a", 2.0), (True, 2.0), (None, 1.0)],
)  # fmt: skip
def test_bounds_with_nothing_between_are_refused(low, high):
    tensor = torch.full((3,), 7.0)
    with pytest.raises(ArgumentError, match=r"^(low|high|low, high): ") as caught:
        trunc_normal_(tensor, A, 1.0, low, high)
    assert "\n" not in str(caught.value)
    assert (tensor == 7).all()


# ── what cannot be filled ────────────────────────────────────────────────────────────────────


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, and still to be met
        return torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


UNFIT = {
    "integers": lambda: torch.zeros(3, dtype=torch.int64),
    "booleans": lambda: torch.zeros(3, dtype=torch.bool),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "float8": lambda: torch.zeros(3, dtype=torch.float8_e4m3fn),
    "sparse": lambda: torch.zeros(3, 3).to_sparse(),
    "quantized": quantized,
    "nested": nested,
    "meta": lambda: torch.empty(3, device="meta"),
    "lazy": lambda: nn.UninitializedParameter(),
    "expanded": lambda: torch.zeros(3, 1).expand(3, 4),
    "array": lambda: np.zeros(3),
    "none": lambda: None,
}


@pytest.mark.parametrize("fill_", FILLS)
@pytest.mark.parametrize("what", UNFIT)
def test_tensors_that_cannot_be_filled_are_refused(fill_, what: str):
    tensor = UNFIT[what]()
    with pytest.raises(ArgumentError, match=r"^tensor: ") as caught:
        fill_(tensor, A)
    assert "\n" not in str(caught.value)
    if what == "expanded":
        assert not tensor.any()


@pytest.mark.parametrize("what", UNFIT)
def test_a_scheme_refuses_them_in_the_same_words(what: str):
    told = []
    for fill_ in (lambda tensor: normal_(tensor, A), lambda tensor: fanin.fill_(tensor, "normal")):
        with pytest.raises(ArgumentError) as caught:
            fill_(UNFIT[what]())
        told.append(str(caught.value))
    assert told[0] == told[1]


BAD_SCALES = st.one_of(
    st.floats(max_value=0, exclude_max=True),
    st.floats(5e-324, 3.1e-30),
    st.sampled_from([math.nan, math.inf, None, "1", True, [1.0], 1j, 10**400]),
)


@FEW
@given(st.sampled_from(FILLS), BAD_SCALES)
def test_a_scale_is_zero_or_a_finite_positive_number(fill_, scale):
    tensor = torch.full((3,), 7.0)
    argument = "bound" if fill_ is uniform_ else "std"
    with pytest.raises(ArgumentError, match=rf"^{argument}: ") as caught:
        fill_(tensor, A, scale)
    assert "\n" not in str(caught.value)
    assert (tensor == 7).all()
    assert tensor._version == 0


@FEW
@given(st.floats(0, 1e300), st.sampled_from(DTYPES), st.sampled_from(FILLS))
def test_what_is_filled_is_finite(scale: float, dtype: torch.dtype, fill_):
    tensor = torch.full((100,), 7.0, dtype=dtype)
    with contextlib.suppress(ArgumentError):
        fill_(tensor, A, scale)
        assert not (tensor == 7).all()
    assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "std", "mean"),
    [(torch.float16, 2e4, 0.0), (torch.float16, 1.0, -65500.0), (torch.float64, 1e38, 0.0)],
)
def test_values_that_overflow_are_refused(dtype: torch.dtype, std: float, mean: float):
    tensor = torch.full((3,), 7.0, dtype=dtype)
    with pytest.raises(ArgumentError, match="would overflow"):
        normal_(tensor, A, std, mean)
    assert (tensor == 7).all()


@pytest.mark.parametrize("mean", [math.nan, -math.inf, "0", None, False])
def test_a_mean_is_a_finite_number(mean):
    with pytest.raises(ArgumentError, match=r"^mean: "):
        normal_(torch.empty(3), A, 1.0, mean)


@pytest.mark.parametrize("start", [-1, 2**64 - 2, 1.0, True, None])
@pytest.mark.parametrize("fill_", FILLS)
def test_a_start_leaves_room_for_the_tensor(fill_, start):
    with pytest.raises(ArgumentError, match=r"^start: "):
        fill_(torch.empty(3), A, start=start)


# ── matrices ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (4, 4), (3, 40), (40, 3), (1, 9), (64, 64)])
def test_orthogonal_rows_or_columns(rows: int, cols: int):
    q = orthogonal(A, rows, cols)
    assert (q.shape, q.dtype) == ((rows, cols), np.float64)
    gram = q @ q.T if rows <= cols else q.T @ q
    np.testing.assert_allclose(gram, np.eye(min(rows, cols)), atol=1e-14)
    # the factor that is left is triangular with a positive diagonal: that makes q unique
    drawn = normal(A, rows * cols).astype(np.float64).reshape(rows, cols)
    r = q @ drawn.T if rows <= cols else q.T @ drawn
    np.testing.assert_allclose(np.tril(r, -1), 0, atol=1e-13)
    assert (np.diagonal(r) > 0).all()


def test_orthogonal_matrices_are_spread_evenly():
    """Of the orthogonal group: E tr Q = 0, E (tr Q)² = E tr Q² = 1, E q⁴ = 3/(n(n + 2))."""
    n, count = 3, 1500
    q = np.stack([orthogonal(key(s, "w", "orthogonal"), n, n) for s in range(count)])
    trace = np.trace(q, axis1=1, axis2=2)
    noise = 4 / math.sqrt(count)
    assert trace.mean() == pytest.approx(0, abs=noise)
    assert (trace**2).mean() == pytest.approx(1, abs=2 * noise)
    assert np.trace(q @ q, axis1=1, axis2=2).mean() == pytest.approx(1, abs=2 * noise)
    np.testing.assert_allclose((q**4).mean(0), 3 / (n * (n + 2)), atol=noise)
    np.testing.assert_allclose(q.mean(0), 0, atol=noise)


@pytest.mark.parametrize("n", [1, 2, 8, 12, 20, 24, 40, 64, 96, 160])
def test_hadamard_products_are_orthogonal_in_integers(n: int):
    m = hadamard_rows(A, n, 0, n)
    assert m.dtype == np.int64
    assert (m @ m.T == n * n * np.eye(n, dtype=np.int64)).all()
    assert (m.T @ m == n * n * np.eye(n, dtype=np.int64)).all()
    for start, count in ((0, 1), (n // 2, n - n // 2), (n, 0), (n - 1, 1)):
        assert (hadamard_rows(A, n, start, count) == m[start : start + count]).all()
    for rows, cols in ((n, n), (max(n // 3, 1), n), (n, max(n // 3, 1))):
        assert (hadamard(A, rows, cols) == m[:rows, :cols] / n).all()


@pytest.mark.parametrize("n", [256, 192, 320])
def test_entries_of_hadamard_products_are_nearly_normal(n: int):
    m = hadamard(A, n, n) * math.sqrt(n)
    noise = 4 / n
    assert m.mean() == pytest.approx(0, abs=noise)
    assert (m**2).mean() == pytest.approx(1, rel=1e-12)
    assert (m**4).mean() == pytest.approx(3 - 2 / n, abs=4 * noise * math.sqrt(6))
    # no two rows hold the same sizes in another order, as those of H·D·H do
    assert len(np.unique(np.sort(np.abs(m), axis=1), axis=0)) == n
    assert not (hadamard(key(1, "a"), n, n) * math.sqrt(n) == m).all()


def test_large_hadamard_products_are_computed_in_blocks_of_rows():
    m = hadamard(A, 5, 65536)
    assert (m[3] * 65536 == hadamard_rows(A, 65536, 3, 1)[0]).all()
    np.testing.assert_array_equal(m @ m.T, np.eye(5))


@pytest.mark.parametrize(
    ("n", "nearest"), [(3, "2 and 4"), (100, "96 and 128"), (700, "640 and 768")]
)
def test_a_size_without_a_hadamard_matrix_names_the_nearest(n: int, nearest: str):
    with pytest.raises(ArgumentError, match=rf"^rows, cols: .*{n}.*{nearest}"):
        hadamard(A, 2, n)
    with pytest.raises(ArgumentError, match=rf"^n: .*{nearest}"):
        hadamard_rows(A, n, 0, 1)


@pytest.mark.parametrize("matrix", [orthogonal, hadamard])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, 2**40])
def test_a_side_is_a_positive_integer(matrix, size):
    with pytest.raises(ArgumentError, match=r"^rows: "):
        matrix(A, size, 4)
    with pytest.raises(ArgumentError, match=r"^cols: "):
        matrix(A, 4, size)


# ── the values of version 1 ──────────────────────────────────────────────────────────────────


def values(stream: str, own: Key) -> list[float]:
    """The first values of a stream; of `orthogonal`, the normals that go into it."""
    tensor = torch.empty(6, dtype=torch.float64)
    if stream == "uniform":
        return uniform_(tensor, own, 0.05).tolist()
    if stream == "trunc_normal":
        return trunc_normal_(tensor, own, 0.02).tolist()
    if stream == "hadamard":
        return hadamard(own, 1, 24)[0, :6].tolist()
    return normal_(tensor, own, 0.02 if stream == "normal" else 1.0).tolist()


def test_the_values_of_version_1_stay_what_they_are(golden):
    """Weights of users depend on these: rewrite them only together with a new version."""
    names = [(0, "weight"), (1, "layers.0.attention.q.weight"), (2**64 - 1, "größe")]
    streams = {}
    for stream in ("normal", "uniform", "trunc_normal", "orthogonal", "hadamard"):
        rows = streams[f"{stream}/1"] = []
        for seed, name in names:
            own = key(seed, name, stream)
            rows.append(
                {
                    "seed": seed,
                    "name": name,
                    "key": f"{own.low:016x} {own.high:016x}",
                    "words": " ".join(f"{w:08x}" for w in words(own, 0, 6)),
                    "far": " ".join(f"{w:08x}" for w in words(own, 2**40 + 1, 3)),
                    "values": " ".join(x.hex() for x in values(stream, own)),
                }
            )
    golden("draw.json", json.dumps(streams, indent=1, ensure_ascii=False) + "\n")
