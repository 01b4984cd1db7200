"""The CUDA draw: the bits of the reference, by Triton's interpreter, its compiler, and a GPU.

The interpreter runs the kernels by numpy on the CPU.  In three things it is no GPU, and is helped:
it has no library functions (`int2float_rz`), it reads no PTX (`STAND_INS` do in other words what
stands there), and it cuts float32 to bfloat16 where a GPU rounds to the nearest (`cvt.rn`, which
the tests of the compiled code look for).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from fanin import draw
from fanin.draw import cuda, gaussian, philox
from fanin.draw.philox import Key, key
from fanin.draw.truncation import interval
from fanin.draw.values import Values

SOURCE = Path(cuda.__file__).with_name("cuda_kernel.py")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
KEY = key(3, "layer.weight")
FULL = Key(2**64 - 1, 2**64 - 1)  # nothing is lost of a number of 64 bits

NORMAL = Values("normal", np.float32(0.02 * gaussian.UNIT))
ALL = {
    "normal": NORMAL,
    "shifted": Values("normal", np.float32(0.3 * gaussian.UNIT), np.float32(0.1)),
    "zero": Values("normal", np.float32(0)),
    "small": Values("normal", np.float32(2.0**-20 * gaussian.UNIT)),  # subnormal in float16
    "uniform": Values("uniform", np.float32(0.1 * 2.0**-24)),
    "between": Values("between", np.float32(gaussian.UNIT), bounds=interval(-2.0, 2.0)),
    "below": Values("between", np.float32(gaussian.UNIT), bounds=interval(-math.inf, 0.5)),
    "all words": Values("between", np.float32(gaussian.UNIT), bounds=interval(-math.inf, math.inf)),
}

# Triton 3.2's interpreter counts by an array of one number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: torch brings it for CUDA; pip install triton",
)
OLDEST = (3, 3)  # whose compiler is called as here


def old() -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("triton").split(".")
        return tuple(map(int, version[:2])) < OLDEST
    return False


needs_compiler = pytest.mark.skipif(old(), reason="Triton's compiler is called another way")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here: draws into a tensor on CUDA"
)


def load(name: str) -> ModuleType:
    """The kernels anew: how Triton treats them is settled when they are defined."""
    spec = importlib.util.spec_from_file_location(name, SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def product(x: Any, factor: str) -> tuple[Any, Any]:
    import triton.language as tl

    whole = x.to(tl.uint64) * int(factor, 16)
    return whole.to(tl.uint32), (whole >> 32).to(tl.uint32)


def row(table: Any, offset: Any) -> list[Any]:
    import triton.language as tl

    place = (table.to(tl.uint64) + offset.to(tl.uint64)).to(tl.pointer_type(tl.uint32))
    return [tl.load(place + column) for column in range(4)]


def folded(word: Any, two: Any) -> tuple[Any, Any]:
    import triton.language as tl

    upper = word >= 2**31
    return tl.where(upper, ~word, word), tl.where(upper, -1, 1)


def shifted(r: Any, exponent: Any) -> Any:
    return r << ((163 - exponent) & 31)


STAND_INS = {"_product": product, "_row": row, "_folded": folded, "_shifted": shifted}


@pytest.fixture(scope="module")
def untouched() -> ModuleType:
    """The kernels in the interpreter, with the functions that it does not have."""
    import triton.language as tl  # before the switch is set: Triton's own functions stay compiled
    from triton.runtime.interpreter import TensorHandle

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        module = load("interpreted_kernels")

    def int2float_rz(number: Any) -> Any:
        exact = number.handle.data.astype(np.float64)
        near = exact.astype(np.float32)
        cut = np.where(near > exact, np.nextafter(near, np.float32(0)), near)
        return tl.tensor(TensorHandle(cut, tl.float32), tl.block_type(tl.float32, number.shape))

    module.libdevice = SimpleNamespace(int2float_rz=int2float_rz)  # type: ignore[attr-defined]
    for name, stand_in in STAND_INS.items():
        assert hasattr(module, name)
        setattr(module, name, stand_in)
    return module


@pytest.fixture
def kernels(untouched: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The same, where float32 is rounded to bfloat16."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        brain = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
        return brain.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    return untouched


def bits(tensor: torch.Tensor) -> list[int]:
    """+0 and −0 differ."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.cpu().contiguous().view(whole).flatten().tolist()


def drawn(
    kernels: ModuleType, dtype: torch.dtype, rows: cuda.Launch, values: Values, of: Key = KEY
) -> torch.Tensor:
    tensor = torch.empty(rows[1] * rows[2], dtype=dtype)
    cuda._launch(kernels, tensor, of, rows, values)
    return tensor


def expected(dtype: torch.dtype, rows: cuda.Launch, values: Values, of: Key = KEY) -> torch.Tensor:
    start, count, repeats, stride = rows
    words = [philox.words(of, start + row * stride, count) for row in range(repeats)]
    return torch.from_numpy(values.of(np.concatenate(words))).to(dtype)


# ── in the interpreter ───────────────────────────────────────────────────────────────────────


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_all_kinds_and_dtypes_have_the_bits_of_the_reference(
    kernels: ModuleType, dtype: torch.dtype, name: str
):
    for rows in ((2**34 - 1501, 3003, 1, 0), (2**34 - 6, 6, 30, 11)):
        assert bits(drawn(kernels, dtype, rows, ALL[name])) == bits(
            expected(dtype, rows, ALL[name])
        )


@needs_triton
@pytest.mark.parametrize("start", [1, 2, 3, 2**33 - 5, 2**34 - 4, 2**40 + 1, 2**63, 2**64 - 2052])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 2047, 2048, 2049, 2052])
def test_any_piece_of_a_stream_is_that_piece(kernels: ModuleType, start: int, count: int):
    rows = (start, count, 1, 0)
    assert bits(drawn(kernels, torch.float32, rows, NORMAL, FULL)) == bits(
        torch.from_numpy(NORMAL.of(philox.words(FULL, start, count)))
    )


@needs_triton
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    low=st.integers(0, 2**64 - 1),
    high=st.integers(0, 2**64 - 1),
    start=st.integers(0, 2**63),
    count=st.integers(1, 40),
    repeats=st.integers(1, 40),
    stride=st.integers(0, 2**57),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(sorted(ALL)),
)
@example(2**64 - 1, 1, 2**34 - 8, 8, 40, 8, torch.float32, "normal")  # rows that follow
@example(1, 2**64 - 1, 2**34 - 8, 4, 40, 16, torch.bfloat16, "shifted")  # whole blocks
@example(0, 0, 3, 1, 40, 1, torch.float16, "uniform")  # of one value each
@example(0, 0, 0, 7, 40, 0, torch.float64, "between")  # the same row again
def test_any_rows_are_those_of_the_whole(
    kernels: ModuleType,
    low: int,
    high: int,
    start: int,
    count: int,
    repeats: int,
    stride: int,
    dtype: torch.dtype,
    name: str,
):
    rows, of = (start, count, repeats, stride), Key(low, high)
    assert bits(drawn(kernels, dtype, rows, ALL[name], of)) == bits(
        expected(dtype, rows, ALL[name], of)
    )


@needs_triton
@pytest.mark.parametrize("columns", [(0, 8), (8, 24), (3, 10), (23, 24)])
def test_columns_of_a_matrix(kernels: ModuleType, columns: tuple[int, int]):
    first, last = columns
    whole = draw.normal_(torch.empty(200, 24), KEY, 0.02)
    part = drawn(kernels, torch.float32, (first, last - first, 200, 24), NORMAL)
    assert bits(part) == bits(whole[:, first:last])


@needs_triton
@pytest.mark.parametrize("count", [40, 41])
def test_rows_too_long_for_one_launch_are_drawn_one_by_one(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, count: int
):
    rows = (2**34 - 60, count, 5, 100)
    at_once = drawn(kernels, torch.float32, rows, NORMAL)
    monkeypatch.setattr(cuda, "_LONGEST", 10)
    assert bits(drawn(kernels, torch.float32, rows, NORMAL)) == bits(at_once)


@needs_triton
@pytest.mark.parametrize("rows", [(0, 8, 1, 0), (1, 7, 1, 0), (4, 8, 3, 40), (2, 5, 3, 9)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_written_beside_the_tensor(
    kernels: ModuleType, dtype: torch.dtype, rows: cuda.Launch
):
    count = rows[1] * rows[2]
    memory = torch.full((count + 4096,), 7.0, dtype=dtype)
    cuda._launch(kernels, memory[2048 : 2048 + count], KEY, rows, NORMAL)
    assert (memory[:2048] == 7).all()
    assert (memory[2048 + count :] == 7).all()
    assert (memory[2048 : 2048 + count] != 7).all()


@needs_triton
@pytest.mark.parametrize("rows", [(0, 0, 1, 0), (5, 0, 3, 4), (5, 3, 0, 4)], ids=str)
def test_nothing_is_drawn_into_an_empty_tensor(kernels: ModuleType, rows: cuda.Launch):
    assert drawn(kernels, torch.float32, rows, NORMAL).numel() == 0


@needs_triton
@pytest.mark.parametrize(
    "rows",
    [
        (0, 20_000, 1, 0),
        (2**34 - 9000, 20_000, 1, 0),  # the counter carries
        (7, 19_001, 1, 0),
        (4, 1200, 12, 2000),  # rows longer than a tile
        (5, 1203, 12, 1999),
        (4, 12, 900, 16),  # and shorter
        (3, 5, 900, 11),
    ],
    ids=str,
)
def test_programs_of_several_tiles(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: cuda.Launch
):
    monkeypatch.setattr(cuda, "PROGRAMS", 1)
    monkeypatch.setattr(cuda, "TILES", 4)
    same = bits(expected(torch.float32, rows, NORMAL))
    assert bits(drawn(kernels, torch.float32, rows, NORMAL)) == same


@needs_triton
def test_every_row_of_the_table_gives_its_numbers(kernels: ModuleType):
    words = cuda._ends()
    assert np.array_equal(cuda._numbers(kernels, words, CPU), gaussian.fixed_point(words))
    lower = np.minimum(words, ~words)
    rows = {(int(r).bit_length(), int(r) * 32 >> int(r).bit_length()) for r in lower}
    assert len(rows) == 32 + 26 * 16  # below 32 each word has its row


# ── the check before the first use ───────────────────────────────────────────────────────────


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_device_with_the_same_bits_is_used(kernels: ModuleType, dtype: torch.dtype):
    assert cuda._difference(kernels, CPU, dtype) == ""


@needs_triton
def test_a_device_that_cuts_where_it_should_round_is_noticed(untouched: ModuleType):
    """The interpreter as it is; should this fail, it rounds, and needs no help any more."""
    assert cuda._difference(untouched, CPU, torch.float16) == ""
    assert cuda._difference(untouched, CPU, torch.bfloat16) == "gives other values (normal)"


@needs_triton
@pytest.mark.parametrize("row", [0, 2032, 2032 + 16 * 5 + 3, 2032 + 16 * 30 + 15])
def test_one_wrong_bit_of_the_table_is_noticed(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, row: int
):
    table = cuda._table(CPU).clone()
    table[row, 0] ^= 1
    monkeypatch.setattr(cuda, "_table", lambda device: table)
    assert cuda._difference(kernels, CPU, torch.float32) == "gives other numbers"


def test_a_fused_product_and_sum_would_be_noticed():
    fused = 0
    for values, rows in cuda._samples():
        separate = cuda._reference(KEY, rows, values)
        plain = Values(values.kind, np.float32(1), bounds=values.bounds)
        numbers = cuda._reference(KEY, rows, plain).astype(np.float64)
        exact = numbers * np.float64(values.scale) + np.float64(values.shift)
        fused += int((exact.astype(np.float32) != separate).sum())
    assert fused > 100


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with a GPU and Triton, so far as the decision goes."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    cuda._proven.cache_clear()
    yield
    cuda._proven.cache_clear()


def tensor_on_cuda() -> Any:
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)


@pytest.mark.usefixtures("gpu")
def test_a_device_that_fails_is_told_of_once_and_not_used(monkeypatch: pytest.MonkeyPatch):
    def broken() -> ModuleType:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(cuda, "_kernels", broken)
    expected = "float32 by Triton on cuda:0 failed: RuntimeError: Failed to find C compiler.; "
    with pytest.warns(RuntimeWarning, match=re.escape(expected)):
        assert not cuda.available(tensor_on_cuda())
    with warnings.catch_warnings(action="error"):
        assert not cuda.available(tensor_on_cuda())


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("problem", ["", "gives other numbers"])
def test_what_the_check_finds_decides(monkeypatch: pytest.MonkeyPatch, problem: str):
    monkeypatch.setattr(cuda, "_kernels", lambda: None)
    monkeypatch.setattr(cuda, "_difference", lambda *arguments: problem)
    told = pytest.warns(RuntimeWarning, match=problem) if problem else contextlib.nullcontext()
    with told:
        assert cuda.available(tensor_on_cuda()) == (not problem)


@pytest.mark.usefixtures("gpu")
def test_without_triton_nothing_is_tried_and_nothing_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not cuda.available(tensor_on_cuda())


def test_a_tensor_on_the_cpu_is_none_of_its_business():
    assert not cuda.available(torch.empty(3))


# ── compiled, without a GPU ──────────────────────────────────────────────────────────────────

FORMS = {
    torch.float32: ("fp32", None),
    torch.float64: ("fp64", r"cvt\.f64\.f32"),
    torch.bfloat16: ("bf16", r"cvt\.rn\.bf16(x2)?\.f32"),
    torch.float16: ("fp16", r"cvt\.rn\.f16(x2)?\.f32"),
}


def compiled(target: int, form: str, fused: bool = False, **choice: Any) -> str:
    """The PTX of the kernel, which Triton's own assembler has turned into code for the target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = load("compiled_kernels")
    constants = {
        "KIND": "normal", "SHIFTED": False, "ALIGNED": True, "BLOCKS": cuda.BLOCKS,
    } | choice  # fmt: skip
    kernel = module.draw_rows if "LONG" in constants else module.draw
    types = {parameter.name: parameter.annotation_type for parameter in kernel.params}
    types |= {"out": f"*{form}", "table": "*i32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place in (0, 1)}
    source = ASTSource(kernel, types, constants, aligned)
    options = {"num_warps": cuda.WARPS, "enable_fp_fusion": fused}
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    assert made.asm["cubin"]
    return str(made.asm["ptx"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@needs_triton
@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("dtype", "target"), [*((d, 90) for d in DTYPES), (torch.bfloat16, 80)])
def test_a_gpu_rounds_the_product_the_sum_and_the_value(dtype: torch.dtype, target: int):
    form, conversion = FORMS[dtype]
    code = compiled(target, form, SHIFTED=True)
    assert not re.search(r"\bfma\.|\.ftz|mad\.\w+\.f", code)
    assert re.search(r"\bmul(\.rn)?\.f32\b", code)
    assert re.search(r"\badd(\.rn)?\.f32\b", code)
    assert "cvt.rz.f32.s32" in code  # the row is cut
    assert "cvt.rn.f32.s32" in code  # the number is rounded
    assert conversion is None or re.search(conversion, code)


@needs_triton
@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_left_alone_triton_would_round_once():
    """So the test above can fail."""
    assert "fma.rn.f32" in compiled(90, "fp32", fused=True, SHIFTED=True)


@needs_triton
@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "choice",
    [
        {"KIND": "uniform"},
        {"KIND": "between"},
        {"ALIGNED": False},
        {"LONG": True},
        {"LONG": False, "ALIGNED": False},
    ],
    ids=str,
)
def test_every_form_compiles(choice: dict[str, Any]):
    assert "st.global" in compiled(90, "bf16", **choice)


@needs_triton
@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_four_values_are_written_at_once_and_none_pass_through_shared_memory():
    code = compiled(90, "fp32")
    assert "st.global.v4.b32" in code
    assert "st.shared" not in code


@needs_triton
@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_other_numbers_need_no_other_code(monkeypatch: pytest.MonkeyPatch):
    """The launch as it is, up to the GPU: keys, starts and sizes of any width, one compilation."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    stand_in = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_stream=lambda device: 0,
    )
    monkeypatch.setattr(driver, "_active", stand_in)
    module, made = load("launched_kernels"), []

    class Draw:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *arguments, **options: made.append(
                module.draw.run(*arguments, grid=grid, warmup=True, **options).hash
            )

    for of in (Key(0, 1), KEY, FULL):
        for rows in ((0, 16, 1, 0), (2**32, 4, 1, 0), (2**64 - 4096, 4096, 1, 0)):
            memory = torch.empty(rows[1])
            cuda._launch(SimpleNamespace(draw=Draw()), memory, of, rows, NORMAL)
    assert len(made) == 9
    assert len(set(made)) == 1


# ── on a GPU ─────────────────────────────────────────────────────────────────────────────────


@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 3, 2**34 - 50_000])
def test_a_gpu_draws_what_the_cpu_draws(dtype: torch.dtype, start: int):
    def all_of(device: str) -> Iterator[torch.Tensor]:
        def empty() -> torch.Tensor:
            return torch.empty(100_003, dtype=dtype, device=device)

        yield draw.normal_(empty(), KEY, 0.02, start=start)
        yield draw.normal_(empty(), KEY, 1.0, 0.3, start=start)
        yield draw.normal_(empty(), KEY, 0.0, start=start)
        yield draw.uniform_(empty(), KEY, 0.1, start=start)
        yield draw.trunc_normal_(empty(), KEY, 0.02, start=start)

    assert cuda.available(torch.empty(1, dtype=dtype, device="cuda"))
    for there, here in zip(all_of("cuda"), all_of("cpu"), strict=True):
        assert bits(there) == bits(here)
