"""Independent weights whose std follows from a fan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fanin.catalogue.basic import BOUNDS, CENTRED
from fanin.catalogue.scheme import MODES, Argument, Scheme, among, flag, is_number, number
from fanin.moments import critical

__all__ = ["SCALED"]

_Arguments = Mapping[str, Any]

_DRAWN = {
    "normal": ("normal weights", (CENTRED,)),
    "uniform": ("uniform weights", ()),
    "trunc_normal": ("normal weights without tails", BOUNDS),
}


def _family(
    stem: str,
    formula: str,
    when: str,
    source: str,
    spread: Callable[[float, _Arguments], float],
    fan: str,
    summary: str,
    example: str,
    arguments: tuple[Argument, ...] = (),
) -> tuple[Scheme, ...]:
    """The scheme in its three distributions, all with the same std."""
    bound = "; w ~ U(−√3·std, √3·std)"
    cut = "; a normal cut at low and high (in its own σ), with this std after the cut"
    tail = {"normal": "; w ~ N(0, std²)", "uniform": bound, "trunc_normal": cut}
    return tuple(
        Scheme(
            f"{stem}_{form}",
            f"{drawn}, {summary}",
            formula + tail[form],
            when,
            source,
            form,
            spread,
            fan,
            arguments=(*arguments, *more),
            example=example.replace("NAME", f"{stem}_{form}"),
        )
        for form, (drawn, more) in _DRAWN.items()
    )


def _critical(fan: float, arguments: _Arguments) -> float:
    weight_variance, _ = critical(arguments["activation"], arguments["bias_std"] ** 2)
    return math.sqrt(weight_variance / fan)


def _siren(fan: float, arguments: _Arguments) -> float:
    bound = 1 / fan if arguments["first"] else math.sqrt(6 / fan) / arguments["omega"]
    return bound / math.sqrt(3)


SCALED = (
    Scheme(
        "variance_scaling",
        "std from any fan, with any of three distributions",
        "std = gain·√(scale / fan); fan_avg = (fan_in + fan_out)/2, fan_geo = √(fan_in·fan_out)",
        "To write down a scheme of another library: Keras and JAX build theirs from it. A "
        "truncated normal is cut at ±2σ and has this std after the cut.",
        "He, Zhang, Ren, Sun (2015), Delving Deep into Rectifiers, section 2.2: arXiv:1502.01852",
        "normal",
        lambda fan, arguments: math.sqrt(arguments["scale"] / fan),
        "fan_in",
        arguments=(
            number("scale", 1.0, "a positive number", 0.0),
            among("mode", "fan_in", MODES),
            among("distribution", "normal", ("normal", "uniform", "trunc_normal")),
            CENTRED,
        ),
        example="""\
weight = torch.empty(200, 50)  # [out, in]
fanin.fill_(weight, "variance_scaling", scale=2.0, mode="fan_out", distribution="uniform")
assert abs(weight.std() / (2 / 200) ** 0.5 - 1) < 0.03
""",
    ),
    *_family(
        "lecun",
        "std = gain·√(1 / fan_in)",
        "Layers without an activation before them, or with one that keeps the scale (selu); with "
        "gain=fanin.gain(activation) for any other.",
        "LeCun, Bottou, Orr, Müller (1998), Efficient BackProp, section 4.6, eq. 16; with selu: "
        "Klambauer et al. (2017), Self-Normalizing Neural Networks: arXiv:1706.02515",
        lambda fan, arguments: math.sqrt(1 / fan),
        "fan_in",
        "variance 1 / fan_in",
        """\
weight = torch.empty(200, 100)  # [out, in]
fanin.fill_(weight, "NAME", seed=0, name="layer.weight")
assert abs(weight.std() / 0.1 - 1) < 0.03
""",
    ),
    *_family(
        "xavier",
        "std = gain·√(2 / (fan_in + fan_out))",
        "Layers with tanh, sigmoid or no activation where the gradient matters as much as the "
        "signal; attention projections.",
        "Glorot, Bengio (2010), Understanding the Difficulty of Training Deep Feedforward Neural "
        "Networks, eq. 12 and 16: https://proceedings.mlr.press/v9/glorot10a.html",
        lambda fan, arguments: math.sqrt(1 / fan),
        "fan_avg",
        "a compromise of forward and backward scale",
        """\
weight = torch.empty(150, 50)  # [out, in]
fanin.fill_(weight, "NAME", seed=0, name="layer.weight")
assert abs(weight.std() / 0.1 - 1) < 0.03
""",
    ),
    *_family(
        "xavier_in",
        "std = gain·√(1 / fan_in)",
        "As the courses teach Xavier: the variance of the signal alone, with tanh. The same "
        "numbers as lecun.",
        "deeplearning.ai, Improving Deep Neural Networks, week 1; Caffe's XavierFiller",
        lambda fan, arguments: math.sqrt(1 / fan),
        "fan_in",
        "variance 1 / fan_in, as the courses teach Xavier",
        """\
weight = torch.empty(200, 100)  # [out, in]
fanin.fill_(weight, "NAME", seed=0, name="layer.weight")
assert abs(weight.std() / 0.1 - 1) < 0.03
""",
    ),
    *_family(
        "he",
        "std = gain·√(2 / ((1 + negative_slope²)·fan))",
        "Layers behind ReLU or leaky ReLU. fan_in keeps the scale of the signal, fan_out that of "
        "the gradient; either one is enough.",
        "He, Zhang, Ren, Sun (2015), Delving Deep into Rectifiers, eq. 10, 14 and 15: "
        "arXiv:1502.01852",
        lambda fan, arguments: math.sqrt(2 / ((1 + arguments["negative_slope"] ** 2) * fan)),
        "fan_in",
        "scaled for ReLU",
        """\
weight = torch.empty(100, 200)  # [out, in]
fanin.fill_(weight, "NAME", seed=0, name="layer.weight")
assert abs(weight.std() / 0.1 - 1) < 0.03
""",
        (
            among("mode", "fan_in", ("fan_in", "fan_out")),
            number("negative_slope", 0.0, "a finite number: the slope of the leaky ReLU"),
        ),
    ),
    Scheme(
        "critical",
        "normal weights at the edge of chaos",
        "std = gain·√(σw² / fan_in), where σw² E[φ'(√q z)²] = 1 at the fixed point "
        "q = σw² E[φ(√q z)²] + σb²",
        "Deep plain networks of a smooth activation with random biases of std σb = bias_std: "
        "neither do two inputs become one, nor do near ones part.",
        "Schoenholz, Gilmer, Ganguli, Sohl-Dickstein (2017), Deep Information Propagation, "
        "eq. 3 to 5: arXiv:1611.01232",
        "normal",
        _critical,
        "fan_in",
        arguments=(
            Argument(
                "activation",
                "tanh",
                "the name of an activation or a function of one",
                lambda v: isinstance(v, str) or callable(v),
            ),
            Argument(
                "bias_std",
                0.0,
                "a number, 0 or more",
                lambda v: is_number(v) and v >= 0,
            ),
            CENTRED,
        ),
        example="""\
weight = torch.empty(300, 300)  # [out, in]
fanin.fill_(weight, "critical", activation="tanh", bias_std=0.05**0.5)
assert abs(300 * weight.var() / 1.76095 - 1) < 0.03
""",
    ),
    Scheme(
        "siren",
        "uniform weights for sine layers",
        "w ~ U(−√(6 / fan_in)/omega, √(6 / fan_in)/omega), first layer U(−1/fan_in, 1/fan_in); "
        "std = gain·√(2 / fan_in)/omega, first layer gain / (√3·fan_in)",
        "Networks of sin(omega·(W x + b)) that represent images, sound or fields; first=True for "
        "the layer that gets the coordinates. What the later sines get is close to "
        "N(0, 1): its variance goes from 1 to the solution of q = 1 − e^(−2q), 0.797.",
        "Sitzmann, Martel, Bergman, Lindell, Wetzstein (2020), Implicit Neural Representations "
        "with Periodic Activation Functions, section 3.2: arXiv:2006.09661",
        "uniform",
        _siren,
        "fan_in",
        arguments=(number("omega", 30.0, "a positive number", 0.0), flag("first")),
        example="""\
weight = torch.empty(256, 256)  # [out, in]
fanin.fill_(weight, "siren", omega=30)
assert weight.abs().max() <= (6 / 256) ** 0.5 / 30
""",
    ),
)
