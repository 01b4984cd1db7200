"""Reports made by hand: what the golden files of `test_report.py` show."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

from fanin.branches import ResidualBranch
from fanin.findings import RULES, Finding
from fanin.layers import Depth, LayerStats
from fanin.report import Report
from fanin.starts import Start
from fanin.symmetry import Deadlock, Identity, Symmetry, UnitClass

HOSTILE = (
    '<script>alert("1")</script>',
    "two\nlines\tand \x1b[31mcolour\x1b[0m",
    "[bold red]markup[/bold red] :boom:",
    "层.слой.🔥.é.'quotes'",
    "\u202eright-to-left\u200b\ud800",
    "long." + "x" * 295,
)


def finding(code: str, severity: str, *layers: str, **texts: str) -> Finding:
    words = {
        "measured": "something measured",
        "expected": "something expected",
        "message": "A sentence that says what was found.",
        "why": "A sentence that says why it hurts.",
        "fix": "A sentence that says what to change.",
    }
    return Finding(
        code, RULES[code].name, severity, layers[0], layers, **{**words, **texts}
    )  # fmt: skip


def layer(
    name: str, op: str, fan_in: int | None, fan_out: int | None, **figures: object
) -> LayerStats:
    values: dict[str, object] = {
        "parameters": (f"{name}.weight", f"{name}.bias"),
        "fan_in": fan_in,
        "fan_out": fan_out,
        "units": fan_out,
        "distinct_units": fan_out,
        "rms": 0.5,
        "mean": 0.01,
        "max_abs": 2.5,
        "variation": 0.91,
        "correlation": 0.15,
        "cotangent_rms": 0.004,
        "gradient_rms": 0.02,
    }
    return LayerStats(name, op, **{**values, **figures})  # type: ignore[arg-type]


def report(layers: list[LayerStats], **fields: object) -> Report:
    values: dict[str, object] = {
        "model": "Net",
        "parameters": 1_234_567,
        "trainable": 1_234_567,
        "tensors": 2 * len(layers),
        "dtype": "float32",
        "device": "cpu",
        "loss": None,
        "chance": None,
        "seed": 0,
        "samples": 32,
        "mode": "train",
        "layers": tuple(layers),
        "depth": Depth(),
        "symmetry": Symmetry(),
        "findings": (),
        "unnamed": (),
        "seconds": 0.25,
        "versions": (("fanin", "0.1.0"), ("torch", "2.13.0")),
    }
    return Report(**{**values, **fields})  # type: ignore[arg-type]


def start(parameter: str, size: float, planned: float | None, **fields: object) -> Start:
    """A matrix of normal draws, and what would be drawn instead."""
    values: dict[str, object] = {
        "shape": (64, 64),
        "trainable": True,
        "mean": 0.0,
        "std": size,
        "low": -3 * size,
        "high": 3 * size,
        "counts": (1, 4, 9, 16, 20, 16, 9, 4, 1) if size else (),
        "scheme": None if planned is None else "lecun_normal",
        "planned_std": planned,
        "fan": None if planned is None else 64.0,
        "because": "its input is normalized",
    }
    return Start(parameter, **{**values, **fields})  # type: ignore[arg-type]


def gpt2() -> Report:
    """A healthy GPT-2: twelve blocks whose figures drift a little."""
    norm = {"units": None, "distinct_units": None, "rms": 1.0}
    layers = [
        layer("transformer.wte", "embedding", 1, 768, rms=0.02),
        layer("transformer.wpe", "embedding", 1, 768, rms=0.0199),
    ]
    for block in range(12):
        path = f"transformer.h.{block}"
        grown = {"cotangent_rms": 4e-5 * 1.03**block, "gradient_rms": 2e-4 * 1.1**block}
        tokens = {"token_variation": 0.9 - 0.005 * block, "branch": 2 * block, **grown}
        second = {**tokens, "branch": 2 * block + 1}
        layers += [
            layer(f"{path}.ln_1", "layer_norm", None, None, **{**tokens, **norm}),
            layer(f"{path}.attn.c_attn", "matmul", 768, 2304, rms=0.55 - 0.004 * block, **tokens),
            layer(f"{path}.attn.c_proj", "matmul", 768, 768, rms=0.014 + 0.001 * block, **tokens),
            layer(f"{path}.ln_2", "layer_norm", None, None, **{**second, **norm}),
            layer(
                f"{path}.mlp.c_fc", "matmul", 768, 3072, activation="gelu", rms=0.554, dead=0.0,
                saturated=0.0006, predicted_rms=0.55, predicted_correlation=0.2, **second,
            ),
            layer(f"{path}.mlp.c_proj", "matmul", 3072, 768, rms=0.0377, **second),
        ]  # fmt: skip
    layers += [
        layer("transformer.ln_f", "layer_norm", None, None, **norm),
        layer("lm_head", "linear", 768, 50257, rms=0.553),
    ]
    return report(
        layers,
        model="GPT2LMHeadModel",
        parameters=124_439_808,
        trainable=124_439_808,
        loss=10.9772,
        chance=10.8249,
        samples=2,
        depth=Depth(1.021, 0.994, None, None),
        branches=tuple(
            ResidualBranch(2 * block + half, 24, "before", names, names[-1:])
            for block in range(12)
            for half, names in enumerate(_branches(f"transformer.h.{block}"))
        ),
        starts=tuple(start(f"{each.name}.weight", 0.02, 0.036) for each in layers),
        batch=("int64 [2, 64]",),
        compute_dtype="float32",
    )


def _branches(path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (
        (f"{path}.attn.c_attn", f"{path}.attn.c_proj"),
        (f"{path}.mlp.c_fc", f"{path}.mlp.c_proj"),
    )


def zero_mlp() -> Report:
    """An all-zero ReLU network: one unit a layer, nothing but the last bias ever moves."""
    still = {"rms": 0.0, "mean": 0.0, "max_abs": 0.0, "variation": None, "cotangent_rms": 0.0}
    stuck = {**still, "gradient_rms": 0.0, "distinct_units": 1, "activation": "relu"}
    zero = tuple(Identity(step, 0.0, 0.0, 0.0, 0.0) for step in range(6))
    names = ("0", "2")
    return report(
        [
            layer("0", "linear", 784, 32, dead=1.0, saturated=0.0, **stuck),
            layer("2", "linear", 32, 32, dead=1.0, saturated=0.0, **stuck),
            layer("4", "linear", 32, 10, **{**still, "cotangent_rms": 0.0937, "gradient_rms": 0.0}),
        ],
        parameters=26_506,
        trainable=26_506,
        loss=2.302585,
        chance=2.302585,
        symmetry=Symmetry(
            steps=5,
            dtype="float64",
            classes=tuple(UnitClass(name, tuple(range(32)), "locked", 5, zero) for name in names),
            deadlocks=(
                Deadlock("0.weight", "0", "two zero factors", ("2.weight", "4.weight")),
                Deadlock("0.bias", "0", "two zero factors", ("2.weight", "4.weight")),
                Deadlock("2.weight", "2", "two zero factors", ("0.weight", "4.weight")),
                Deadlock("2.bias", "2", "two zero factors", ("0.weight", "4.weight")),
                Deadlock("4.weight", "4", "two zero factors", ("2.weight", "2.bias")),
            ),
        ),
        findings=(
            finding(
                "S101", "error", "0", "2",
                measured="1 distinct unit of 32 in 2 layers", expected="32 distinct units",
                message="All units of these layers start as copies and stay copies.",
                why="Copies get the same gradient, so they compute one function for ever: "
                "the layers are one unit wide.",
                fix="Draw the weights at random, as torch.nn.init.kaiming_normal_(weight) does.",
            ),
            finding(
                "S102", "error", "0.weight", "0.bias", "2.weight", "2.bias", "4.weight",
                measured="5 of 6 parameters never move", expected="every parameter moves",
                message="No gradient reaches these parameters in any virtual step.",
                why="Every path to the loss holds two factors that are zero.",
                fix="Leave at most one factor of each path at zero.",
            ),
            finding("S103", "info", "4", measured="10 units separate after 1 step"),
        ),
    )  # fmt: skip


def hostile() -> Report:
    """Names and figures that break careless renderers."""
    names = HOSTILE
    odd = {"rms": nan, "mean": -inf, "max_abs": inf, "nonfinite": 7, "gradient_rms": 1e-300}
    return report(
        [layer(name, "linear", 3, 4, **(odd if at == 1 else {})) for at, name in enumerate(names)],
        model="<b>Net</b>\n[red]",
        loss=nan,
        chance=inf,
        depth=Depth(inf, nan, names[1], names[5]),
        symmetry=Symmetry(
            steps=1,
            dtype="float64",
            classes=(UnitClass(names[0], (0, 3), "locked", 1, (Identity(0, 0.0, nan, inf, 0.0),)),),
            deadlocks=(Deadlock(names[5], names[4], "unused", names[:2]),),
            clones=((names[2], names[3]),),
        ),
        findings=(
            finding("N403", "error", *names, measured="7 values of\nnan", message=names[0]),
            finding("S104", "warning", names[3], why=names[2], fix=names[5]),
            finding("S103", "info", names[5], measured=names[1]),
        ),
        unnamed=((names[0], names[1]), (names[4], "unused")),
        branches=(ResidualBranch(0, 1, "none", names, names[:1]),),
        starts=(
            *(start(name, 1e-3, 1.0, because=name) for name in names),
            start("nothing finite", 0.0, None, mean=None, std=None, low=None, high=None),
        ),
        batch=("float32 [32, 3]",),
    )


def hundred() -> Report:
    """A hundred layers under a hundred different names, one of them guilty."""
    words = [
        a + b for a in "bdfgklmnpr" for b in ("a", "e", "i", "o", "u", "y", "ai", "ea", "oo", "ou")
    ]
    layers = [
        layer(f"stage.{word}" if at % 2 else word, "conv2d", 9 * (at + 1), at + 2, dead=0.0)
        for at, word in enumerate(words)
    ]
    layers[57] = replace(layers[57], rms=812.5, distinct_units=3)
    return report(
        layers,
        findings=(finding("P202", "warning", layers[57].name, measured="rms 812", expected="1"),),
        depth=Depth(1.4, 1.0, layers[57].name, None),
    )


def repeated() -> Report:
    """A hundred healthy layers in repeated blocks, but for one member and one pair."""
    layers = []
    for block in range(50):
        layers.append(layer(f"blocks.{block}.up", "linear", 64, 256, rms=1 + block / 100))
        layers.append(layer(f"blocks.{block}.down", "linear", 256, 64, rms=0.1))
    stuck = [layer.name for layer in layers[::2]]
    return report(
        layers,
        findings=(
            finding("P205", "error", "blocks.7.up"),
            finding("P205", "error", "blocks.31.down.weight"),
            finding("S104", "warning", *stuck, measured="50 layers are one"),
        ),
    )


SAMPLES = {
    "gpt2": gpt2,
    "zero_mlp": zero_mlp,
    "hostile": hostile,
    "hundred": hundred,
    "repeated": repeated,
}
