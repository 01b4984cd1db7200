"""Torch activations as functions of `fanin.moments`: modules, torch functions and any callable."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanin import moments
from fanin.errors import ArgumentError

__all__ = ["as_function", "gain"]

# Torch functions of the same name and meaning as in `fanin.moments`; these two need arguments.
_WITHOUT_DEFAULTS = {"threshold", "prelu"}
_FUNCTIONS: dict[Any, str] = {
    getattr(place, name): name
    for place in (torch.special, torch, F)
    for name in moments.NAMES
    if name not in _WITHOUT_DEFAULTS and hasattr(place, name)
} | {torch.special.expit: "sigmoid", torch.arctan: "atan", torch.absolute: "abs"}

# Exact types only: a subclass may compute anything.
_MODULES: dict[type[nn.Module], Callable[[Any], str | None]] = {
    nn.Identity: lambda _: "identity",
    nn.ReLU: lambda _: "relu",
    nn.LeakyReLU: lambda m: _call("leaky_relu", m.negative_slope),
    nn.PReLU: lambda m: _call("prelu", _common_slope(m.weight)),
    nn.RReLU: lambda m: None if m.training else _call("rrelu", m.lower, m.upper),
    nn.ReLU6: lambda _: "relu6",
    nn.Threshold: lambda m: _call("threshold", m.threshold, m.value),
    nn.ELU: lambda m: _call("elu", m.alpha),
    nn.SELU: lambda _: "selu",
    nn.CELU: lambda m: _call("celu", m.alpha) if m.alpha > 0 else None,
    nn.GELU: lambda m: "gelu" if m.approximate == "none" else "gelu_tanh",
    nn.SiLU: lambda _: "silu",
    nn.Mish: lambda _: "mish",
    nn.Softplus: lambda m: _call("softplus", m.beta) if m.threshold == _SOFTPLUS_THRESHOLD else None,
    nn.Tanh: lambda _: "tanh",
    nn.Sigmoid: lambda _: "sigmoid",
    nn.LogSigmoid: lambda _: "logsigmoid",
    nn.Softsign: lambda _: "softsign",
    nn.Hardtanh: lambda m: _call("hardtanh", m.min_val, m.max_val),
    nn.Hardsigmoid: lambda _: "hardsigmoid",
    nn.Hardswish: lambda _: "hardswish",
    nn.Tanhshrink: lambda _: "tanhshrink",
    nn.Softshrink: lambda m: _call("softshrink", m.lambd),
    nn.Hardshrink: lambda m: _call("hardshrink", m.lambd),
}
# From there on torch's softplus is the identity, 2e-9 below the function; any other is no softplus.
_SOFTPLUS_THRESHOLD = 20.0
_PRELU_START = 0.25  # torch's own first value, for a parameter that has none yet (meta)

# Points for the tests of an unknown callable: irregular, on both sides of zero, far and near.
_POINTS = torch.tensor(
    [0.31, -0.17, 1.72, -2.44, 0.05, 3.6, -0.93, -5.2, 0.77, -1.38, 7.1, 2.15], dtype=torch.float64
)
# A callable that computes in float32 gives this much else for the same value elsewhere.
_SAME = 1e-5


def gain(activation: str | nn.Module | Callable[[Any], Any]) -> float:
    """Gain of an activation: E[φ(z)²]^(−1/2) for z ~ N(0, 1), so that signals keep their scale.

    The std of a weight is gain / √fan_in: then the pre-activations of the next layer have the
    second moment of these, if these are N(0, 1).

        relu 1.4142    tanh 1.5925    sigmoid 1.8462    gelu 1.5335    silu 1.6765
        elu  1.2452    selu 1.0000    softplus 1.0419   mish 1.4868    sin  1.5209

    ``torch.nn.init.calculate_gain`` has other values for tanh (5/3), selu (3/4) and sigmoid (1),
    and none for most others.

    Args:
        activation: a name (`fanin.moments.NAMES`, as in ``"leaky_relu(0.2)"``), a module, or a
            function of a tensor.  Modules and functions are evaluated elementwise in float64 and
            left as they are.

    Raises:
        ArgumentError: the name is unknown; the module or function raises, is random (dropout in
            training mode), is not elementwise (softmax, glu), or gives values that are not finite;
            or all its values are zero.

    Source: He et al. 2015, section 2.2, for relu; Klambauer et al. 2017 for selu.

    >>> round(gain("relu"), 4), round(gain(nn.GELU(approximate="tanh")), 4)
    (1.4142, 1.5336)
    >>> round(gain(lambda x: x * torch.sigmoid(x)), 4)
    1.6765
    """
    return moments.gain(as_function(activation))


def as_function(
    activation: str | nn.Module | Callable[[Any], Any],
) -> str | Callable[[np.ndarray], np.ndarray]:
    """An activation as `fanin.moments` takes it: a name where it is known, else a numpy function.

    Parameters are read now: later changes of the module do not reach the function.

    Args:
        activation: a name, a module, or a function of a tensor.

    Returns:
        A name with its arguments, or a function from a float64 array to one of the same shape.

    Raises:
        ArgumentError: see `gain`.

    >>> as_function(nn.LeakyReLU(0.2)), as_function(torch.tanh)
    ('leaky_relu(0.2)', 'tanh')
    """
    if isinstance(activation, (str, moments.Activation)):
        moments.function(activation)
        return activation
    if isinstance(activation, type) or not callable(activation):
        hint = "; pass an instance" if isinstance(activation, type) else ""
        raise ArgumentError(
            f"activation must be a name, a module or a function, not {activation!r}{hint}"
        )
    name = _known(activation)
    if name is not None:
        return name
    evaluate = _evaluator(activation)
    _check_elementwise(evaluate, _described(activation))

    def function(z: np.ndarray) -> np.ndarray:
        return evaluate(torch.from_numpy(np.ascontiguousarray(z))).numpy()

    function.__qualname__ = _described(activation)
    return function


def _known(activation: Callable[[Any], Any]) -> str | None:
    """The name of a module or function that `fanin.moments` has in closed form."""
    if isinstance(activation, nn.Module):
        named = _MODULES.get(type(activation))
        hooked = activation._forward_hooks or activation._forward_pre_hooks
        return None if named is None or hooked else named(activation)
    try:
        return _FUNCTIONS.get(activation)
    except TypeError:  # not hashable
        return None


def _call(name: str, *arguments: float) -> str:
    return f"{name}({', '.join(repr(float(a)) for a in arguments)})"


def _common_slope(weight: Tensor) -> float:
    """Of several channels the slope with their common second moment."""
    if weight.is_meta:
        return _PRELU_START
    return float(weight.detach().double().square().mean().sqrt())


def _described(activation: Callable[[Any], Any]) -> str:
    name = None if isinstance(activation, nn.Module) else getattr(activation, "__qualname__", None)
    return name or type(activation).__qualname__


# ── evaluation that leaves no trace ──────────────────────────────────────────────────────────


def _evaluator(activation: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """The activation as a function of float64 vectors; of a module, a float64 copy."""
    name = _described(activation)
    called = _double(activation, name) if isinstance(activation, nn.Module) else activation

    def evaluate(x: Tensor) -> Tensor:
        with _quiet():
            try:
                result = called(x.clone())  # a private input: it may work in place
            except Exception as error:
                cause = " ".join(f"{type(error).__name__}: {error}".split())
                raise ArgumentError(
                    f"activation {name!r} must take a float64 vector, but raised {cause}"
                ) from error
        if not isinstance(result, Tensor) or result.shape != x.shape or result.is_complex():
            given = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ArgumentError(
                f"activation {name!r} must be elementwise: a real vector of {len(x)} values gives "
                f"as many, not {given}"
            )
        return result.detach().to(torch.float64)

    return evaluate


def _double(module: nn.Module, name: str) -> nn.Module:
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise ArgumentError(f"activation {name!r} has parameters without values (meta)")
    try:
        return copy.deepcopy(module).to(device="cpu", dtype=torch.float64)
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ArgumentError(
            f"activation {name!r} must be copied to be evaluated, which raised {cause}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No gradients, on the CPU whatever the default device, and every random state as before."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _check_elementwise(evaluate: Callable[[Tensor], Tensor], name: str) -> None:
    """An ArgumentError unless each value depends on its own input alone, and always in one way."""
    whole = evaluate(_POINTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.getrandbits(62))
        again = evaluate(_POINTS)
    if not torch.equal(whole, again):
        raise ArgumentError(
            f"activation {name!r} must not be random; call its eval() first if it is a module in "
            "training mode"
        )
