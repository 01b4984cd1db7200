"""The draw for ARM: cross-compiled, run by an emulator, and bit for bit that of this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fanin.draw import native
from fanin.draw.gaussian import COLUMNS, fixed_point
from fanin.draw.truncation import interval

ROOT = Path(__file__).parents[1]
COMPILED = native.LIBRARY.parent
EMULATOR = shutil.which("qemu-aarch64")
COMPILERS = {
    "gcc": ("aarch64-linux-gnu-gcc",),
    "clang": ("clang", "--target=aarch64-linux-gnu"),
}
SIZES = {"integer": 4, "float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
SCALES = (2.0**-28, 0.02 * 2.0**-28, 2.0**-98 * 2.0**-28)  # the smallest gives subnormal float16
STARTS = (0, 3, 2**34 - 7, 2**64 - 6000)  # of a block or not; with a carry; at the end

pytestmark = [
    pytest.mark.skipif(
        EMULATOR is None or not shutil.which("aarch64-linux-gnu-gcc"),
        reason="no ARM here: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user",
    ),
    pytest.mark.skipif(not native.present(), reason="no compiled draw here to compare with"),
]


def options() -> list[str]:
    """What the build hook compiles with, without making a library."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [option for option in module.OPTIONS if option not in ("-shared", "-fPIC")]


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = COMPILERS[request.param]
    if not shutil.which(compiler[0]):
        pytest.skip(f"no {compiler[0]} here")
    made = tmp_path_factory.mktemp("arm") / "draw_cases"
    source = Path(__file__).with_name("draw_cases.c")
    command = [*compiler, *options(), "-Wall", "-Werror", "-static", f"-I{COMPILED}"]
    subprocess.run([*command, "-o", str(made), str(source), "-lm"], check=True)
    return made


def cases() -> Iterator[tuple[native._Job, native._Rows, str]]:
    """Every kind in every form, whole runs and rows of a part."""
    bounds = interval(-1.0, 2.0)
    for kind, number in native.KINDS.items():
        for form in SIZES if kind != "words" else ("integer",):
            for start in STARTS:
                for scale in SCALES:
                    shift = 0.3 if scale == SCALES[1] else 0.0
                    job = native._Job(
                        0x0123456789ABCDEF, 2**64 - 1, bounds.first, bounds.width, scale, shift,
                        int(shift != 0.0), number, native.FORMS[form],
                    )  # fmt: skip
                    yield job, native._Rows(start, 3001, 1, 0, 0), form
            yield job, native._Rows(5, 33, 41, 100, 33), form


def answers(program: Path, given: bytes) -> bytes:
    assert EMULATOR is not None
    table = np.ascontiguousarray(COLUMNS, dtype=np.uint32).tobytes()
    command = [EMULATOR, str(program), str(native.SETS["neon"])]
    return subprocess.run(command, input=table + given, capture_output=True, check=True).stdout


def asked(job: native._Job, rows: native._Rows, size: int) -> bytes:
    return bytes(job) + bytes(rows) + size.to_bytes(8, "little")


def test_what_is_drawn_on_arm_is_what_is_drawn_here(program: Path):
    library = native._library()
    assert library is not None
    given, expected = b"", []
    for job, rows, form in cases():
        size = rows.count * rows.repeats * SIZES[form]
        room = ctypes.create_string_buffer(size)
        task = native._Task(job, rows, ctypes.addressof(room))
        library.fanin_write(task, 1, 1, native.SETS["scalar"])
        given += asked(job, rows, size)
        expected.append(room.raw)
    got, at = answers(program, given), 0
    for (job, rows, form), wanted in zip(cases(), expected, strict=True):
        assert got[at : at + len(wanted)] == wanted, (job.kind, form, rows.start, rows.count)
        at += len(wanted)
    assert at == len(got)
    assert len(set(expected)) > len(expected) / 2  # the cases are not all one


def test_the_map_of_all_rows_and_of_a_sample(program: Path):
    rows = [(16 + f) << s for s in range(27) for f in range(16)]
    ends = [2**k for k in range(32)] + rows
    near = {w + d for w in ends for d in (-1, 0, 1) if 0 <= w + d < 2**31}
    sample = np.arange(0, 2**32, 4099, dtype=np.uint64)
    words = np.concatenate([np.array(sorted(near), np.uint64), sample]).astype(np.uint32)
    words = np.concatenate([words, ~words])
    words = words[: len(words) // 16 * 16]
    job = native._Job(0, 0, 0, 0, 0.0, 0.0, 0, native.KINDS["normal"], native.FORMS["integer"])
    got = answers(program, asked(job, native._Rows(0, 0, 0, 0, 0), words.nbytes) + words.tobytes())
    assert np.array_equal(np.frombuffer(got, np.int32), fixed_point(words))
    assert math.isclose(float(np.frombuffer(got, np.int32).mean()), 0.0, abs_tol=2.0**18)
