"""What each torch function does with its weights: units, fans, and the rows that belong to a unit.

One entry for each function that mixes a signal with parameters.  Fans come from the call (theory:
the truth table of fans), never from a shape alone: a transposed convolution's fan_in is divided by
its stride, a grouped one's by its groups, ``x @ W`` has its axes the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "ADDING",
    "LEARNED_INPUT",
    "NORMS",
    "PASSIVE",
    "RECURRENT",
    "Weighted",
    "describe",
    "recurrent",
]

Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weighted:
    """One call that uses a weight (tensors inside: lives only while the call is watched).

    Attributes:
        op: canonical name of the operation.
        weights: (role, tensor) of each parameter-derived operand, the main weight first.
        inputs: the signal operands.
        unit_dims: dimensions of the output that count its units; () for elementwise operations.
        rows: maps the main weight (or its gradient) to [units, entries of one unit].
        fan_in: inputs summed into one output.
        fan_out: outputs that one input reaches.
    """

    op: str
    weights: tuple[tuple[str, Tensor], ...]
    inputs: tuple[Tensor, ...]
    unit_dims: tuple[int, ...] = ()
    rows: Rows | None = None
    fan_in: int | None = None
    fan_out: int | None = None


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def _last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 0).reshape(tensor.shape[-1], -1)


def _operands(*pairs: tuple[str, Any]) -> tuple[tuple[str, Tensor], ...]:
    return tuple((role, t) for role, t in pairs if isinstance(t, Tensor))


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),) * length


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x, weight, bias = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
    fan_out = weight.shape[0] if weight.dim() > 1 else 1
    return Weighted(
        "linear",
        _operands(("weight", weight), ("bias", bias)),
        (x,),
        unit_dims=(-1,) if weight.dim() > 1 else (),
        rows=_flat if weight.dim() > 1 else None,
        fan_in=weight.shape[-1],
        fan_out=fan_out,
    )


def _convolution(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x, weight, bias = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
    groups = _argument(args, kwargs, 6, "groups") or 1
    kernel = math.prod(weight.shape[2:])
    return Weighted(
        name,
        _operands(("weight", weight), ("bias", bias)),
        (x,),
        unit_dims=(1 - weight.dim(),),
        rows=_flat,
        fan_in=weight.shape[1] * kernel,
        fan_out=weight.shape[0] // groups * kernel,
    )


def _transposed(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x, weight, bias = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias")))
    stride = _tuple(_argument(args, kwargs, 3, "stride") or 1, weight.dim() - 2)
    groups = _argument(args, kwargs, 6, "groups") or 1
    kernel = math.prod(weight.shape[2:])

    def rows(w: Tensor) -> Tensor:
        grouped = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
        return grouped.permute(0, 2, 1, 3).reshape(groups * w.shape[1], -1)

    fan_in = weight.shape[0] // groups * kernel / math.prod(stride)
    return Weighted(
        name,
        _operands(("weight", weight), ("bias", bias)),
        (x,),
        unit_dims=(1 - weight.dim(),),
        rows=rows,
        fan_in=max(1, round(fan_in)),
        fan_out=weight.shape[1] * kernel,
    )


def _embedding(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    index, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    if isinstance(index, Tensor) and index.is_floating_point():  # torch.embedding(weight, index)
        index, weight = weight, index
    return Weighted(
        "embedding",
        _operands(("weight", weight)),
        (index,),
        unit_dims=(-1,),
        rows=_last,
        fan_in=1,
        fan_out=weight.shape[1],
    )


def _bilinear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x1, x2, weight, bias = (
        _argument(args, kwargs, i, n) for i, n in enumerate(("input1", "input2", "weight", "bias"))
    )
    return Weighted(
        "bilinear",
        _operands(("weight", weight), ("bias", bias)),
        (x1, x2),
        unit_dims=(-1,),
        rows=_flat,
        fan_in=weight.shape[1] * weight.shape[2],
        fan_out=weight.shape[0],
    )


def _norm(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted | None:
    place = {"layer_norm": 2, "group_norm": 2, "rms_norm": 2, "batch_norm": 3, "instance_norm": 3}[name]
    weight = _argument(args, kwargs, place, "weight")
    bias = _argument(args, kwargs, place + 1, "bias") if name != "rms_norm" else None
    operands = _operands(("weight", weight), ("bias", bias))
    return Weighted(name, operands, (args[0] if args else kwargs["input"],)) if operands else None


def _product(
    name: str, left: Tensor, right: Tensor, bias: Any, weight_is_right: bool
) -> Weighted | None:
    """matmul-like: the batch dimensions of the weight (experts, heads) count as units too."""
    weight, x = (right, left) if weight_is_right else (left, right)
    if weight.dim() < 2:
        return Weighted(name, _operands(("weight", weight), ("bias", bias)), (x,), fan_in=weight.shape[0], fan_out=1)
    inner, outer = (-2, -1) if weight_is_right else (-1, -2)
    batch = tuple(d - weight.dim() for d in range(weight.dim() - 2) if weight.shape[d] > 1)
    unit = -1 if weight_is_right or x.dim() < 2 else -2
    if not weight_is_right and x.dim() < 2:
        batch = tuple(d + 1 for d in batch)

    def rows(w: Tensor) -> Tensor:
        lead = w.movedim(inner, -1)
        return lead.reshape(-1, lead.shape[-1])

    return Weighted(
        name,
        _operands(("weight", weight), ("bias", bias)),
        (x,),
        unit_dims=(*batch, unit),
        rows=rows,
        fan_in=weight.shape[inner],
        fan_out=weight.shape[outer],
    )


def _einsum(args: Sequence[Any], learned: Callable[[Any], bool]) -> Weighted | None:
    """Letters of the weight that reach the output count units; the others are summed (fan_in)."""
    equation, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    main = next((i for i, t in enumerate(operands) if learned(t)), None)
    signals = tuple(t for t in operands if not learned(t))
    if main is None or not signals or not isinstance(equation, str):
        return None
    left, _, out = equation.replace(" ", "").partition("->")
    terms, letters = left.split(","), left.split(",")[main]
    if "->" not in equation:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    others = [t for i, t in enumerate(operands) if i != main and learned(t)]
    named = _operands(
        ("weight", operands[main]), *((f"weight{i}", t) for i, t in enumerate(others, 1))
    )
    tail = out.rpartition("...")[2]
    units = sorted((c for c in letters if c in out), key=out.index)
    if "." in letters or any(c not in tail for c in units) or len(terms) != len(operands):
        return Weighted("einsum", named, signals)
    axes = [letters.index(c) for c in units]
    sizes = dict(zip(letters, operands[main].shape, strict=True))

    def rows(w: Tensor) -> Tensor:
        moved = w.movedim(axes, list(range(len(axes))))
        return moved.reshape(math.prod(moved.shape[: len(axes)]), -1)

    return Weighted(
        "einsum",
        named,
        signals,
        unit_dims=tuple(tail.index(c) - len(tail) for c in units),
        rows=rows if units else None,
        fan_in=math.prod(sizes[c] for c in letters if c not in out),
        fan_out=math.prod(sizes[c] for c in units if c not in "".join(terms[:main] + terms[main + 1 :])),
    )


def _recurrent_cell(name: str, args: Sequence[Any]) -> Weighted:
    x, hidden, *parameters = args
    roles = ("weight", "recurrent", "bias", "recurrent_bias")
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(name, 1)
    weight = parameters[0]
    return Weighted(
        name,
        _operands(*zip(roles, parameters, strict=False)),
        (x, *(hidden if isinstance(hidden, (tuple, list)) else (hidden,))),
        unit_dims=(-1,),
        rows=gate_rows(gates),
        fan_in=weight.shape[1],
        fan_out=weight.shape[0] // gates,
    )


def gate_rows(gates: int) -> Rows:
    """Rows of a stacked gate matrix [gates·hidden, n], all gates of one hidden unit together."""

    def rows(w: Tensor) -> Tensor:
        return w.reshape(gates, w.shape[0] // gates, -1).transpose(0, 1).flatten(1)

    return rows


def recurrent(
    name: str, x: Tensor, hidden: Sequence[Tensor], parameters: Sequence[Tensor], directions: int, biases: bool
) -> Weighted:
    """One layer of a fused recurrent call, both directions together."""
    gates = {"lstm": 4, "gru": 3}.get(name, 1)
    roles = ["weight", "recurrent", *(["bias", "recurrent_bias"] if biases else [])]
    per = len(parameters) // directions
    roles += ["projection"] * (per - len(roles))
    projected = "projection" in roles
    named = [
        (role if d == 0 else f"{role}_reverse", parameters[d * per + i])
        for d in range(directions)
        for i, role in enumerate(roles)
    ]
    weight = parameters[0]
    simple = directions == 1 and not projected
    return Weighted(
        name,
        tuple(named),
        (x, *hidden),
        unit_dims=(-1,),
        rows=gate_rows(gates) if simple else None,
        fan_in=weight.shape[1],
        fan_out=weight.shape[0] // gates,
    )


RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
NORMS = frozenset({"layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm"})
_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
_ELEMENTWISE = {
    "mul": "scale", "div": "scale", "true_divide": "scale", "multiply": "scale", "divide": "scale",
    "rsub": "shift", "rdiv": "scale", "rtruediv": "scale", "rmul": "scale", "radd": "shift", "add": "shift", "sub": "shift", "subtract": "shift", "addcmul": "scale", "lerp": "scale", "pow": "scale",
    "prelu": "prelu", "_prelu_kernel": "prelu", "addcdiv": "scale",
    "where": "select", "cat": "token", "concat": "token", "concatenate": "token", "stack": "token",
    "maximum": "clamp", "minimum": "clamp", "clamp": "clamp", "masked_fill": "select",
    "cosine_similarity": "similarity", "cdist": "similarity", "logaddexp": "shift",
    "scaled_dot_product_attention": "attention", "index_put": "select", "copy": "token",
    "index_add": "shift", "scatter": "select", "__setitem__": "token", "setitem": "token",
}  # fmt: skip
ADDING = frozenset({"shift", "token", "select", "clamp"})  # operations that add or place a parameter
_PICKS = frozenset({"__getitem__", "index_select", "gather", "take_along_dim"})  # with a signal index
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "mv", "rmatmul", "dot", "inner", "linalg_matmul"})
_BIASED = frozenset({"addmm", "baddbmm", "addmv"})

# Functions that are a layer even on an input that does not depend on the batch (position
# embeddings, learned queries).
LEARNED_INPUT = _CONVOLUTIONS | _TRANSPOSED | RECURRENT | _CELLS | {"linear", "embedding", "embedding_bag", "bilinear"}

# Functions that hand values on unchanged, reshaped or picked: no layer, no activation.
PASSIVE = frozenset({
    "view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "contiguous", "expand", "expand_as",
    "squeeze", "unsqueeze", "chunk", "split", "unbind", "select", "narrow", "__getitem__", "clone", "to", "type",
    "float", "double", "half", "bfloat16", "detach", "alias", "view_as", "movedim", "swapaxes", "repeat", "__get__",
    "type_as", "repeat_interleave", "roll", "flip", "index_select", "gather", "dropout", "alpha_dropout", "identity",
    "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout", "_pack_padded_sequence",
    "_pad_packed_sequence", "pad", "pixel_shuffle", "tensor_split", "requires_grad", "cpu", "cuda", "unfold", "rename",
    "split_with_sizes", "broadcast_to", "tile", "mT", "T", "swapdims", "hsplit", "vsplit", "take_along_dim", "checkpoint",
})  # fmt: skip

# Elementwise nonlinearities; the value is the interval of the input outside of which the slope is
# (nearly) zero: left end, right end.  `dead` regions have slope exactly zero on one side.
ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
    "sigmoid", "tanh", "hardtanh", "hardsigmoid", "hardswish", "softsign", "logsigmoid", "tanhshrink", "softshrink",
    "hardshrink", "threshold", "sin", "cos", "exp", "erf", "square", "abs", "sinc", "log_sigmoid", "clamp", "clamp_min",
    "clip", "softmax", "log_softmax", "glu", "sqrt", "pow", "atan", "arctan", "expm1",
})  # fmt: skip

_HANDLERS: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Weighted | None]] = {
    "linear": _linear,
    "embedding": _embedding,
    "embedding_bag": _embedding,
    "bilinear": _bilinear,
}


def describe(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], learned: Callable[[Any], bool]
) -> Weighted | None:
    """How the call `name(*args, **kwargs)` uses parameters; None when it is not a known layer.

    `learned` tells whether a value is a parameter or computed from parameters alone.
    """
    if name in _HANDLERS:
        return _HANDLERS[name](args, kwargs)
    if name in _CONVOLUTIONS:
        return _convolution(name, args, kwargs)
    if name in _TRANSPOSED:
        return _transposed(name, args, kwargs)
    if name in NORMS:
        return _norm(name, args, kwargs)
    if name in _CELLS:
        return _recurrent_cell(name, args)
    if name == "einsum":
        return _einsum(args, learned)
    if name in _BIASED:
        bias, left, right = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "mat1", "mat2")))
        if learned(left) or learned(right):
            return _product("linear" if name == "addmm" else name, left, right, bias if learned(bias) else None, learned(right))
        name = "add"
    if name.endswith("grouped_mm") and len(args) > 1 and learned(args[1]):
        weight = args[1]  # [experts, in, out]; each row of the input meets one expert
        return Weighted("grouped_mm", _operands(("weight", weight)), (args[0],), (-1,), _last, weight.shape[-2], weight.shape[-1])
    if name in _PRODUCTS:
        left, right = (args[0], args[1]) if len(args) > 1 else (args[0], kwargs.get("other", kwargs.get("mat2")))
        return _product(name.strip("_"), left, right, None, learned(right))
    if name in _PICKS and args and learned(args[0]):
        return Weighted("embedding", _operands(("weight", args[0])), (), (-1,), _last, 1, args[0].shape[-1])
    return _elementwise(name, args, kwargs, learned)


def _elementwise(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], learned: Callable[[Any], bool]
) -> Weighted | None:
    if name not in _ELEMENTWISE:
        return None
    values = [t for a in (*args, *kwargs.values()) for t in (a if isinstance(a, (list, tuple)) else (a,))]
    tensors = [t for t in values if isinstance(t, Tensor)]
    weights = [t for t in tensors if learned(t)]
    roles = ["weight", *(f"weight{i}" for i in range(1, len(weights)))]
    signals = tuple(t for t in tensors if not learned(t))
    return Weighted(_ELEMENTWISE[name], tuple(zip(roles, weights, strict=True)), signals)
