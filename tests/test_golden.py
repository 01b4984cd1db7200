"""Values stay what they are: hashes of the map from words to normals, and of every scheme.

Weights of users depend on these values.  A hash changes only together with the `version` of its
scheme: ``pytest tests/test_golden.py --update-golden`` then writes it, and it refuses to write
other values under an old version.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fanin import draw
from fanin.catalogue import SCHEMES
from fanin.draw import native
from fanin.draw.gaussian import fixed_point
from fanin.draw.truncation import interval
from fanin.fill import fill_

FILE = Path(__file__).parent / "golden" / "hashes.json"
SEED, NAME = 7, "layer.weight"
#: Those of a linear algebra library are the same to rounding only: a few sums are kept of them.
ROUNDED = ("orthogonal", "delta_orthogonal", "looks_linear", "mimetic")
CLOSE = 1e-9  # of float64 sums of some hundred entries of size one
SUMS = 6

MATRIX = (24, 16)
KERNEL = (8, 8, 3, 3)
#: The tensor of a scheme where it is no matrix, and what its arguments do.
SHAPES: dict[str, tuple[int, ...]] = {
    "dirac": KERNEL,
    "delta_orthogonal": KERNEL,
    "icnr": KERNEL,
    "bilinear_upsampling": (8, 8, 4, 4),
    "irnn": (16, 16),
    "hadamard": (24, 24),
    "mimetic": (16, 16),
    "forget_gate_bias": (32,),
    "chrono_bias": (32,),
    "mirrored_bias": (33,),
    "prior_bias": (4,),
    "focal_bias": (16,),
}
NEEDED: dict[str, dict[str, Any]] = {"prior_bias": {"priors": (0.4, 0.3, 0.2, 0.1)}}
CENTRED = ("normal", "lecun_normal", "xavier_normal", "he_normal", "variance_scaling", "orthogonal")
FURTHER: dict[str, dict[str, dict[str, Any]]] = {
    "trunc_normal": {"one-sided": {"low": -math.inf, "high": 0.5}},
    "variance_scaling": {
        "uniform": {"distribution": "uniform", "mode": "fan_avg"},
        "trunc_normal": {"distribution": "trunc_normal", "mode": "fan_out"},
    },
    "he_normal": {"leaky, fan_out": {"negative_slope": 0.1, "mode": "fan_out"}},
    "siren": {"first": {"first": True}},
    "sparse": {"half": {"sparsity": 0.5}},
    "orthogonal": {
        "variance": {"scale": "variance"},
        "blocks": {"blocks": 3, "layout": "oi"},
        "kernel": {"shape": KERNEL, "layout": "oikk"},
    },
    "delta_orthogonal": {"groups": {"shape": (8, 4, 3, 3), "groups": 2, "layout": "oikk"}},
    "looks_linear": {
        "first": {"first": True},
        "last": {"last": True},
        "odd": {"shape": (15, 16)},
        "patch": {"shape": KERNEL, "layout": "oikk", "first": True, "patch": True},
    },
    "hadamard": {
        "sizes 2^k": {"shape": (16, 32)},
        "sizes 20·2^k": {"shape": (40, 5)},
        "experts": {"shape": (3, 16, 8), "layout": "boi"},
    },
    "zero_hadamard": {"narrow": {"shape": (16, 24)}},
    "normal": {"transposed": {"layout": "io"}, "a vector": {"shape": (1001,)}},
    "mimetic": {
        "k": {"part": "k", "partner": "layer.q", "heads": 2},
        "o": {"part": "o", "partner": "layer.v"},
    },
}
TENSOR = [scheme for scheme in SCHEMES.values() if scheme.scope == "tensor"]


def cases(scheme: str) -> dict[str, dict[str, Any]]:
    """How a scheme is called: plainly, and with its arguments."""
    found: dict[str, dict[str, Any]] = {"plain": {}, **FURTHER.get(scheme, {})}
    if scheme in CENTRED:
        found["centred"] = {"centred": True}
    found["gain 0.3, another name"] = {"gain": 0.3, "name": "größe", "seed": 2**64 - 1}
    return found


def drawn(scheme: str, dtype: torch.dtype, options: dict[str, Any]) -> Tensor:
    given = {"seed": SEED, "name": NAME, **NEEDED.get(scheme, {}), **options}
    shape = given.pop("shape", SHAPES.get(scheme, MATRIX))
    return fill_(torch.empty(shape, dtype=dtype), scheme, **given)


def digest(tensor: Tensor) -> str:
    """SHA-256 of the bytes of float32 values, little endian."""
    values = np.ascontiguousarray(tensor.numpy(), dtype="<f4")
    return hashlib.sha256(values.tobytes()).hexdigest()


def sums(tensor: Tensor) -> list[float]:
    """A few sums in which every entry counts, by another weight in each."""
    flat = tensor.double().numpy().reshape(-1)
    place = np.arange(1, flat.size + 1)
    return [float(np.cos(place * k) @ flat) for k in range(1, SUMS + 1)]


def values(scheme: str) -> dict[str, Any]:
    """What is kept of a scheme: its version, and a hash or sums for each case."""
    kept: dict[str, Any] = {"version": SCHEMES[scheme].version}
    for case, options in cases(scheme).items():
        if scheme in ROUNDED:
            kept[case] = sums(drawn(scheme, torch.float64, options))
        else:
            kept[case] = digest(drawn(scheme, torch.float32, options))
    return kept


def same(one: Any, two: Any) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return one == pytest.approx(two, rel=CLOSE, abs=CLOSE)
    return bool(one == two)


def changed(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is wrong with new values; "" where nothing is."""
    if before["version"] != now["version"]:
        return (
            f"{name}: version {now['version']} is new, the file has {before['version']}: "
            "write its values with pytest tests/test_golden.py --update-golden"
        )
    cases = [c for c in before if c in now and not same(before[c], now[c])]
    if not cases:
        return ""
    return (
        f"{name}: other values than before under version {now['version']} ({', '.join(cases)}). "
        "Weights that users drew can no longer be drawn. If that is meant, raise the `version` of "
        "the scheme in src/fanin/catalogue and run pytest tests/test_golden.py --update-golden; "
        "if not, find what changed"
    )


def written(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What --update-golden writes: new versions and new cases, never other values of an old one."""
    for name, kept in now.items():
        old = before.get(name)
        if old is not None and old["version"] == kept["version"]:
            problem = changed(name, old, kept)
            assert not problem, problem
    return now


# ── the map from words to numbers ────────────────────────────────────────────────────────────


def sample() -> NDArray[np.uint32]:
    """Every 65,537-th word, and the words around the ends of all rows of the table."""
    rows = [0, *((16 + f) << s for s in range(27) for f in range(16)), *range(32), 2**31]
    near = {r + d for r in rows for d in range(-2, 3) if 0 <= r + d < 2**31}
    ends = sorted(near | {2**32 - 1 - r for r in near})
    words = np.concatenate([np.arange(0, 2**32, 65_537, dtype=np.uint64), np.array(ends, "u8")])
    return words[: len(words) // 16 * 16].astype(np.uint32)  # whole vectors


def by_reference(words: NDArray[np.uint32], kind: str) -> NDArray[np.int32]:
    if kind == "uniform":
        return (2 * (words >> 8).astype(np.int64) + 1 - 2**24).astype(np.int32)
    if kind == "between":
        cut = interval(-2.0, 2.0)
        words = ((words.astype(np.uint64) * cut.width >> 32) + cut.first).astype(np.uint32)
    return fixed_point(words)


def by_compiled(words: NDArray[np.uint32], kind: str) -> NDArray[np.int32]:
    cut = interval(-2.0, 2.0)
    mapped = words.copy()
    native.mapped(mapped, kind, cut.first, cut.width)
    return mapped.view(np.int32)


def of_map(backend: str) -> dict[str, Any]:
    words, kinds = sample(), ("normal", "uniform", "between")
    mapped = by_reference if backend == native.REFERENCE else by_compiled
    numbers = {kind: mapped(words, kind).astype("<i4").tobytes() for kind in kinds}
    return {"version": 1} | {k: hashlib.sha256(n).hexdigest() for k, n in numbers.items()}


MAP = "words to numbers"


@pytest.mark.parametrize("backend", sorted([native.REFERENCE, *native.present()]))
def test_the_map_of_a_sample_of_all_words(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.CHOICE, backend)
    problem = changed(MAP, kept()[MAP], of_map(backend))
    assert not problem, problem


def test_the_sample_notices_one_wrong_number(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = by_reference(sample(), "normal")
    wrong[40_000] += 1
    monkeypatch.setitem(globals(), "by_reference", lambda words, kind: wrong)
    assert "other values than before" in changed(MAP, kept()[MAP], of_map(native.REFERENCE))


# ── schemes ──────────────────────────────────────────────────────────────────────────────────


def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def test_every_scheme_draws_what_it_drew(request: pytest.FixtureRequest) -> None:
    now = {MAP: of_map(native.REFERENCE), **{s.name: values(s.name) for s in TENSOR}}
    if request.config.getoption("--update-golden"):
        before = kept() if FILE.is_file() else {}
        text = json.dumps(written(now, before), indent=1, ensure_ascii=False) + "\n"
        FILE.write_text(text, encoding="utf-8", newline="\n")
    before = kept()
    problems = [changed(name, before[name], now[name]) for name in now if name in before]
    assert [p for p in problems if p] == []
    assert {n: list(v) for n, v in now.items()} == {n: list(v) for n, v in before.items()}, (
        "schemes or cases are new or gone: run pytest tests/test_golden.py --update-golden"
    )


@pytest.mark.parametrize("scheme", ["he_normal", "uniform", "orthogonal"])
def test_other_values_under_an_old_version_are_refused(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by --update-golden: only a new version is written."""
    spoil(monkeypatch)
    now = values(scheme)
    problem = changed(scheme, kept()[scheme], now)
    assert f"{scheme}: other values than before under version 1 (plain, " in problem
    assert "raise the `version`" in problem
    with pytest.raises(AssertionError, match="other values than before"):
        written({scheme: now}, kept())
    raised(scheme, monkeypatch)
    anew = values(scheme)
    assert "version 2 is new" in changed(scheme, kept()[scheme], anew)
    assert written({scheme: anew}, kept()) == {scheme: anew}


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys are those of the next seed, as after a careless change."""
    real = draw.key
    monkeypatch.setattr(draw, "key", lambda seed, *rest: real((seed + 1) % 2**64, *rest))


def raised(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme has version 2."""
    found = SCHEMES[scheme]
    monkeypatch.setitem(found.__dict__, "version", 2)  # a frozen dataclass


@pytest.mark.parametrize("scheme", ["he_normal", "uniform", "hadamard", "sparse"])
def test_a_new_version_draws_other_values(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = values(scheme)
    raised(scheme, monkeypatch)
    now = values(scheme)
    assert [case for case in now if now[case] == before[case]] == []


def test_rounding_is_no_change_and_a_millionth_is_one() -> None:
    before = {"version": 1, "plain": [1.0, -20.0]}
    assert changed("x", before, {"version": 1, "plain": [1.0 + 1e-12, -20.0]}) == ""
    assert "other values" in changed("x", before, {"version": 1, "plain": [1.0 + 1e-6, -20.0]})
