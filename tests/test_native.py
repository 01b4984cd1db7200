"""The compiled draw: the bits of the reference, whatever the instruction set and the threads."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from windows import windows

import fanin
from fanin import draw
from fanin.draw import key, native, philox
from fanin.draw.gaussian import fixed_point
from fanin.draw.truncation import interval
from fanin.errors import ArgumentError
from fanin.window import Rows, Window

PRESENT = sorted(native.present())  # in one order in all workers: which is best is timed


def of_the_build() -> Callable[[Path, Path], str]:
    """`compiled` of the build hook, which stands beside the package."""
    path = Path(__file__).parents[1] / "hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compiled


compiled = of_the_build()
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KEY = key(3, "layer.weight")

needs_compiled = pytest.mark.skipif(
    not PRESENT, reason="no compiled draw here: install with a C compiler (apt-get install gcc)"
)
every_set = pytest.mark.parametrize("name", PRESENT or ["none"])
pytestmark = needs_compiled


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch):
    """Choose what draws."""

    def choose(name: str) -> None:
        monkeypatch.setenv(native.CHOICE, name)
        assert draw.backend().name == name

    return choose


def drawn(count: int, dtype: torch.dtype, start: int) -> Iterator[torch.Tensor]:
    """One tensor of each kind, with and without what changes its path."""
    yield draw.normal_(torch.empty(count, dtype=dtype), KEY, 0.02, start=start)
    yield draw.normal_(torch.empty(count, dtype=dtype), KEY, 2.0**-20, start=start)
    yield draw.normal_(torch.empty(count, dtype=dtype), KEY, 1.0, 0.3, start=start)
    yield draw.normal_(torch.empty(count, dtype=dtype), KEY, 0.0, start=start)
    yield draw.uniform_(torch.empty(count, dtype=dtype), KEY, 0.1, start=start)
    yield draw.trunc_normal_(torch.empty(count, dtype=dtype), KEY, 0.02, start=start)
    unlike = torch.empty(count, dtype=dtype)
    yield draw.trunc_normal_(unlike, KEY, 1.0, -math.inf, 0.5, start=start)
    yield draw.trunc_normal_(unlike.clone(), KEY, 1.0, -math.inf, math.inf, start=start)


@every_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 9000), (3, 4097), (2**40 + 1, 5), (2**34 - 7, 3000), (1, 1), (2, 0), (2**64 - 4001, 4001)],
)
def test_every_kind_has_the_bits_of_the_reference(
    chosen, name: str, dtype: torch.dtype, start: int, count: int
):
    chosen("reference")
    expected = list(drawn(count, dtype, start))
    chosen(name)
    for one, two in zip(drawn(count, dtype, start), expected, strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one.view(torch.uint8), two.view(torch.uint8))


@every_set
def test_words_are_those_of_philox(chosen, name: str):
    chosen(name)
    for start, count in [(0, 100), (7, 1), (2**64 - 100, 100), (5, 0)]:
        assert np.array_equal(draw.words(KEY, start, count), philox.words(KEY, start, count))


@every_set
def test_the_map_of_chosen_words(chosen, name: str):
    """The ends of rows and octaves, small and large words, and a sample of all."""
    ends = [2**k + d for k in range(32) for d in range(-3, 4) if 0 <= 2**k + d < 2**32]
    rows = [(16 + f) << s for s in range(27) for f in range(16)]
    near = [r + d for r in rows for d in (-1, 0, 1)]
    ends += [w for w in near + [2**32 - 1 - w for w in near] if 0 <= w < 2**32]
    sample = np.arange(0, 2**32, 65_537, dtype=np.uint64)
    words = np.concatenate([np.array(sorted(set(ends)), np.uint64), sample]).astype(np.uint32)
    words = words[: len(words) // 16 * 16]
    chosen(name)
    got = words.copy()
    native.mapped(got, "normal")
    assert np.array_equal(got.view(np.int32), fixed_point(words))
    bounds = interval(-1.0, 2.0)
    got = words.copy()
    native.mapped(got, "between", bounds.first, bounds.width)
    place = ((words.astype(np.uint64) * bounds.width) >> 32) + bounds.first
    assert np.array_equal(got.view(np.int32), fixed_point(place.astype(np.uint32)))
    got = words.copy()
    native.mapped(got, "uniform")
    expected = 2 * (words >> 8).astype(np.int64) + 1 - 2**24
    assert np.array_equal(got.view(np.int32), expected)


@every_set
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, 2**64 - 10_000),
    count=st.integers(0, 9000),
    seed=st.integers(0, 2**64 - 1),
    std=st.floats(2.0**-98, 1e30),
)
def test_any_piece_of_any_stream(chosen, name: str, start: int, count: int, seed: int, std: float):
    stream = key(seed, "any")
    chosen("reference")
    expected = draw.normal_(torch.empty(count), stream, std, start=start)
    chosen(name)
    assert torch.equal(draw.normal_(torch.empty(count), stream, std, start=start), expected)


@every_set
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
def test_threads_change_nothing(chosen, name: str, threads: int):
    chosen(name)
    count = 300_007  # no multiple of anything
    whole = np.empty(count, np.float32)
    queue = native.Queue()
    queue.put(whole.ctypes.data, KEY, Rows(11, count), "normal", "float32", scale=2.0**-28)
    queue.run(threads)
    assert np.array_equal(whole, draw.normal(KEY, count, 11))
    rows = np.empty((1001, 299), np.float32)  # of a matrix of 1001 × 350, from column 7 on
    part = Rows(7, 299, 1001, 350, 0, 299)
    queue.put(rows.ctypes.data, KEY, part, "normal", "float32", scale=2.0**-28)
    queue.run(threads)
    whole = draw.normal(KEY, 1001 * 350).reshape(1001, 350)
    assert np.array_equal(rows, whole[:, 7:306])


@every_set
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tasks=st.lists(st.tuples(windows(), st.sampled_from(DTYPES)), max_size=12),
    large=st.sampled_from([0, 70_000, 300_007]),
    threads=st.integers(1, 5),
    most=st.sampled_from([1 << 26, 1000]),
)
def test_what_waits_in_a_queue_is_what_is_drawn_at_once(
    chosen, name: str, tasks: list, large: int, threads: int, most: int
):
    """Parts of tensors of all dtypes, some empty, whatever threads share them and in what calls."""
    chosen(name)
    asked = [(w, torch.empty(w.sizes, dtype=dtype)) for w, dtype in tasks]
    asked.insert(len(asked) // 2, (Window.whole((large,)), torch.empty(large)))
    queue = native.Queue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_SLICE", most)
        for place, (window, tensor) in enumerate(asked):
            draw.normal_(tensor, key(place, "queue"), 0.5, window=window, queue=queue)
        queue.run(threads)
    queue.run(threads)  # nothing is left in it
    for place, (window, tensor) in enumerate(asked):
        alone = draw.normal_(torch.empty_like(tensor), key(place, "queue"), 0.5, window=window)
        assert torch.equal(tensor, alone)


def test_a_queue_keeps_the_memory_that_it_will_write_to():
    queue, memory = native.Queue(), np.zeros(1000, np.float32)
    held = weakref.ref(memory)
    draw.normal_(torch.from_numpy(memory), KEY, queue=queue)
    del memory
    gc.collect()
    found = held()
    assert found is not None
    assert not found.any()  # it waits
    queue.run()
    assert np.array_equal(found, draw.normal(KEY, 1000))
    del found
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("name", [*PRESENT, "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows(), start=st.sampled_from([0, 5, 2**33 - 9]), turned=st.booleans())
def test_a_part_of_a_tensor_has_the_values_of_the_whole(
    chosen, name: str, dtype: torch.dtype, window: Window, start: int, turned: bool
):
    chosen("reference")
    at = tuple(np.ix_(*(window.indices(d) for d in range(len(window.shape))))) or ...
    part = torch.empty(window.sizes[::-1], dtype=dtype)
    part = part.permute(list(range(part.dim()))[::-1])  # not contiguous where it has two dimensions
    part = part if turned else part.contiguous()
    whole = torch.empty(window.shape, dtype=dtype)
    draws = (
        lambda t, **given: draw.normal_(t, KEY, 0.02, start=start, **given),
        lambda t, **given: draw.uniform_(t, KEY, 0.1, start=start, **given),
        lambda t, **given: draw.trunc_normal_(t, KEY, start=start, **given),
    )
    for drawing in draws:
        chosen("reference")
        expected = drawing(whole)[at]
        chosen(name)
        assert torch.equal(drawing(part, window=window), expected)


def test_a_part_of_another_size_is_refused():
    with pytest.raises(ArgumentError, match=r"window: of the sizes \[2, 3\]; .* \[3, 2\]"):
        draw.normal_(torch.empty(3, 2), KEY, window=Window.box((4, 3), (0, 0), (2, 3)))


@every_set
def test_flushing_to_zero_changes_no_bit(chosen, name: str):
    """Values that are subnormal in float16, with a processor that would flush float32's."""
    chosen("reference")
    expected = draw.normal_(torch.empty(4096, dtype=torch.float16), KEY, 1e-6)
    smallest = draw.normal_(torch.empty(4096), KEY, 2.0**-98)
    chosen(name)
    torch.set_flush_denormal(True)
    try:
        assert torch.equal(
            draw.normal_(torch.empty(4096, dtype=torch.float16), KEY, 1e-6), expected
        )
        assert torch.equal(draw.normal_(torch.empty(4096), KEY, 2.0**-98), smallest)
    finally:
        torch.set_flush_denormal(False)


@every_set
def test_memory_around_the_tensor_is_left_alone(chosen, name: str):
    chosen(name)
    for count in (1, 3, 4, 63, 64, 65, 1023, 1024, 1025):
        for dtype in DTYPES:
            room = torch.full((count + 64,), 7.0, dtype=dtype)
            draw.normal_(room[32 : 32 + count], KEY)
            assert (room[:32] == 7).all()
            assert (room[32 + count :] == 7).all()
            assert (room[32 : 32 + count] != 7).all()


@every_set
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_much_memory_gets_the_values_of_its_parts(chosen, name: str, dtype: torch.dtype, new: bool):
    """It is written past the caches where it was there before, and made in one go where not."""
    chosen(name)
    count = (1 << 25) // dtype.itemsize + 5003
    room = (
        torch.empty(count + 64, dtype=dtype) if new else torch.full((count + 64,), 7, dtype=dtype)
    )
    edges, inside = (room[:33], room[33 + count :]), room[33 : 33 + count]  # no line begins there
    for edge in edges:
        edge.fill_(7)
    draw.normal_(inside, KEY, 0.02, start=3)
    for first in range(0, count, 1 << 20):  # little memory at once
        part = torch.empty(min(1 << 20, count - first), dtype=dtype)
        draw.normal_(part, KEY, 0.02, start=3 + first)
        assert torch.equal(inside[first : first + len(part)], part)
    assert all((edge == 7).all() for edge in edges)


@every_set
def test_views_that_are_not_plain_memory_get_the_same_values(chosen, name: str):
    chosen("reference")
    expected = draw.normal_(torch.empty(60, 50), KEY)
    chosen(name)
    turned = torch.zeros(50, 60).T
    assert torch.equal(draw.normal_(turned, KEY), expected)
    spread = torch.zeros(60, 100)
    assert torch.equal(draw.normal_(spread[:, ::2], KEY), expected)
    assert (spread[:, 1::2] == 0).all()
    negative = torch._neg_view(torch.zeros(60, 50))
    assert torch.equal(draw.normal_(negative, KEY), expected)


def test_autograd_notices_the_change():
    weight = torch.ones(8, requires_grad=True)
    made = (weight * weight).sum()
    draw.normal_(weight, KEY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made.backward()


def test_an_inference_tensor_is_filled():
    with torch.inference_mode():
        weight = torch.empty(100)
    assert torch.equal(draw.normal_(weight, KEY), draw.normal_(torch.empty(100), KEY))


def test_an_unknown_choice_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(native.CHOICE, "sse9")
    with pytest.raises(ArgumentError, match=r"FANIN_DRAW: 'sse9'; this machine has reference, "):
        draw.backend()
    with pytest.raises(ArgumentError, match="FANIN_DRAW"):
        fanin.fill_(torch.ones(3), "normal")


_HIDDEN = """
import os, sys
from pathlib import Path
import torch
import fanin
from fanin.draw import native, backend, normal, key
for library in sys.argv[1:]:
    if os.fork() == 0:  # what is loaded stays loaded
        native.LIBRARY = Path(library)
        print(backend(), normal(key(3, "layer.weight"), 3).tolist(), flush=True)
        fanin.init_(torch.nn.Linear(4, 3), torch.randn(8, 4))
        os._exit(0)
    assert os.wait()[1] == 0
"""


def told_by(*libraries: Path) -> list[str]:
    """What new processes print, each of which draws with one of these libraries."""
    done = subprocess.run(
        [sys.executable, "-c", _HIDDEN, *map(str, libraries)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.stdout.splitlines()


def built_from(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, old: str, new: str
) -> Path:
    """A library of other sources, in which `new` stands for `old`."""
    shutil.copytree(native.LIBRARY.parent, folder, ignore=shutil.ignore_patterns("*.so"))
    source = (folder / name).read_text(encoding="utf-8")
    assert old in source
    (folder / name).write_text(source.replace(old, new), encoding="utf-8")
    monkeypatch.setenv("CFLAGS", "-O0")  # it is quickly built, and draws next to nothing
    assert compiled(folder / "draw.c", folder / "draw.so") == ""
    return folder / "draw.so"


def test_without_a_library_of_the_same_bits_the_reference_draws_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There is none, or one of an older version, by a faulty compiler or with other functions."""
    told = told_by(
        Path("/nowhere/draw.so"),
        built_from(monkeypatch, tmp_path / "bits", "draw.c", "0x9E3779B9u", "0x9E3779B8u"),
        built_from(monkeypatch, tmp_path / "names", "draw.c", "fanin_write(", "fanin_fill("),
    )
    whys = ("it is built where", "it draws other bits", "it cannot be loaded")
    for line, why in zip(told, whys, strict=True):
        assert f"numpy reference (no compiled draw: {why}" in line
        assert str(draw.normal(KEY, 3).tolist()) in line  # the bits of the reference


def test_a_compiler_that_fails_is_named_and_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    library = tmp_path / "draw.so"
    library.write_bytes(b"before")
    source = native.LIBRARY.with_name("draw.c")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler" in compiled(source, library)
    monkeypatch.setenv("CC", "false")
    assert compiled(source, library).startswith("false: ")
    monkeypatch.delenv("CC")
    broken = tmp_path / "broken.c"
    broken.write_text("int fanin(", encoding="utf-8")
    assert "error" in compiled(broken, library)
    assert library.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.c", "draw.so"]


@pytest.mark.parametrize("slow", ["avx512", "avx512-gather"])
def test_of_two_ways_the_quicker_comes_first(slow: str):
    class Library:
        def fanin_map(self, job: object, words: int, count: int, number: int) -> None:
            time.sleep(0.005 if number == native.SETS[slow] else 0)

    names = ("avx512-gather", "avx512")
    assert native._quicker(Library(), *names)[1] == slow  # type: ignore[arg-type]


def test_the_best_set_is_used_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(native.CHOICE, raising=False)
    assert draw.backend().name == native.present()[0]
    assert str(draw.backend()) == f"compiled C, {native.present()[0]}"
    monkeypatch.setenv(native.CHOICE, "reference")
    assert str(draw.backend()) == "numpy reference (FANIN_DRAW=reference)"
