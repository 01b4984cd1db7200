"""What each torch function does with its weights: units, fans, and the rows that belong to a unit.

One entry for each function that mixes a signal with parameters.  Fans come from the call (theory:
the truth table of fans), never from a shape alone: a transposed convolution's fan_in is divided by
its stride, a grouped one's by its groups, ``x @ W`` has its axes the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fanin.kinds import NORMS, RECURRENT, RECURRENT_CELLS

__all__ = [
    "ATTENDED",
    "ELEMENTWISE",
    "LEARNED_INPUT",
    "MULTIPLYING",
    "Weighted",
    "as_rows",
    "describe",
    "recurrent",
]

Rows = Callable[[Tensor], Tensor]
Learned = Callable[[Any], bool]  # whether a value is a parameter or computed from parameters alone


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
        layout: what each dimension of the main weight is: o output, i input, k kernel tap,
            b independent matrix (expert, head), v row of a table; "" where it is no matrix.
        blocks: equal parts of the weight that are matrices of their own (groups, gates).
        mean_fan_in: `fan_in` where outputs differ in it (a strided transposed convolution).
        padding: row of a table that stands for padding.
        memory: last cell states of an LSTM, units last: where nothing else of it is read, their
            gradient is that of the units.
    """

    op: str
    weights: tuple[tuple[str, Tensor], ...]
    inputs: tuple[Tensor, ...]
    unit_dims: tuple[int, ...] = ()
    rows: Rows | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    layout: str = ""
    blocks: int = 1
    mean_fan_in: float | None = None
    padding: int | None = None
    memory: Tensor | None = None


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def _last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 0).reshape(tensor.shape[-1], -1)


def as_rows(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """A weight, a signal, or the gradient of either, as [rows, entries]; `dims` count its rows."""
    dims = tuple(d % tensor.dim() for d in dims)  # −2 is the only one of W @ v
    moved = tensor.movedim(dims, tuple(range(len(dims))))
    return moved.reshape(math.prod(moved.shape[: len(dims)]), -1)


def _operands(*pairs: tuple[str, Any]) -> tuple[tuple[str, Tensor], ...]:
    return tuple((role, t) for role, t in pairs if isinstance(t, Tensor))


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),) * length


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x, weight, bias = (
        _argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias"))
    )
    fan_out = weight.shape[0] if weight.dim() > 1 else 1
    return Weighted(
        "linear",
        _operands(("weight", weight), ("bias", bias)),
        (x,),
        unit_dims=(-1,) if weight.dim() > 1 else (),
        rows=_flat if weight.dim() > 1 else None,
        fan_in=weight.shape[-1],
        fan_out=fan_out,
        layout="oi" if weight.dim() > 1 else "i",
    )


def _convolution(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x, weight, bias = (
        _argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias"))
    )
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
        layout="oi" + "k" * (weight.dim() - 2),
        blocks=groups,
    )


def _transposed(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    x, weight, bias = (
        _argument(args, kwargs, i, n) for i, n in enumerate(("input", "weight", "bias"))
    )
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
        layout="io" + "k" * (weight.dim() - 2),
        blocks=groups,
        mean_fan_in=fan_in,
    )


def _embedding(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted:
    index, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    padding = _argument(args, kwargs, 2, "padding_idx")
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
        layout="vo",
        padding=padding if isinstance(padding, int) and padding >= 0 else None,
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
        layout="oii",
    )


def _norm(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Weighted | None:
    place = 2
    if name in ("batch_norm", "instance_norm"):  # torch's own, of nine arguments, has weights first
        place = 1 if len(args) + len(kwargs) == 9 else 3
    weight = _argument(args, kwargs, place, "weight")
    bias = _argument(args, kwargs, place + 1, "bias") if name != "rms_norm" else None
    operands = _operands(("weight", weight), ("bias", bias))
    return Weighted(name, operands, (args[0] if args else kwargs["input"],)) if operands else None


def _product(name: str, left: Tensor, right: Tensor, bias: Any, weight_is_right: bool) -> Weighted:
    """Like matmul: the batch dimensions of the weight (experts, heads) count as units too."""
    weight, x = (right, left) if weight_is_right else (left, right)
    if weight.dim() < 2:
        return Weighted(
            name,
            _operands(("weight", weight), ("bias", bias)),
            (x,),
            fan_in=weight.shape[0],
            fan_out=1,
            layout="i",
        )
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
        layout="b" * (weight.dim() - 2) + ("io" if weight_is_right else "oi"),
    )


def _plain_product(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], learned: Learned
) -> Weighted:
    left = _argument(args, kwargs, 0, "input")
    names = ("other", "mat2", "vec", "tensor")  # as matmul, mm and bmm, mv, and dot call it
    given = (kwargs[n] for n in names if n in kwargs)
    right: Any = args[1] if len(args) > 1 else next(given, None)
    return _product(name.strip("_"), left, right, None, learned(right))


def _biased_product(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], learned: Learned
) -> Weighted | None:
    bias, left, right = (
        _argument(args, kwargs, i, n) for i, n in enumerate(("input", "mat1", "mat2"))
    )
    if not learned(left) and not learned(right):
        return _elementwise("add", args, kwargs, learned)
    kind = "linear" if name == "addmm" else name
    return _product(kind, left, right, bias if learned(bias) else None, learned(right))


def _grouped_product(
    args: Sequence[Any], _: Mapping[str, Any], learned: Learned
) -> Weighted | None:
    """Each row of the input meets one expert of the weight [experts, in, out]."""
    if len(args) < 2 or not learned(args[1]):
        return None
    x, weight = args[:2]
    return Weighted(
        "grouped_mm",
        _operands(("weight", weight)),
        (x,),
        unit_dims=(-1,),
        rows=_last,
        fan_in=weight.shape[-2],
        fan_out=weight.shape[-1],
        layout="b" * (weight.dim() - 2) + "io",
    )


def _pick(args: Sequence[Any], _: Mapping[str, Any], learned: Learned) -> Weighted | None:
    """Rows of a table that an index picks: an embedding written by hand; or single numbers."""
    if not args or not learned(args[0]):
        return None
    weight = args[0]
    if weight.dim() < 2:
        return Weighted("embedding", _operands(("weight", weight)), (), fan_in=1, layout="v")
    return Weighted(
        "embedding",
        _operands(("weight", weight)),
        (),
        unit_dims=(-1,),
        rows=_last,
        fan_in=1,
        fan_out=weight.shape[-1],
        layout="v" * (weight.dim() - 1) + "o",
    )


def _einsum(args: Sequence[Any], _: Mapping[str, Any], learned: Learned) -> Weighted | None:
    """Letters of the weight that reach the output count units; the others are summed (fan_in)."""
    equation, operands = args[0], args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    main = next((i for i, t in enumerate(operands) if learned(t)), None)
    signals = tuple(t for t in operands if not learned(t))
    if main is None or not signals or not isinstance(equation, str):
        return None
    terms, out = _equation(equation)
    letters = terms[main]
    others = [t for i, t in enumerate(operands) if i != main and learned(t)]
    named = _operands(
        ("weight", operands[main]), *((f"weight{i}", t) for i, t in enumerate(others, 1))
    )
    units = sorted((c for c in letters if c in out), key=out.index)
    tail = out.rpartition("...")[2]  # its dimensions have a place, counted from the end
    if "." in letters or any(c not in tail for c in units) or len(terms) != len(operands):
        return Weighted("einsum", named, signals)
    if len(units) == len(letters):  # nothing is summed: copies of the signal, each scaled
        return Weighted("scale", named, signals)
    axes = [letters.index(c) for c in units]
    sizes = dict(zip(letters, operands[main].shape, strict=True))
    elsewhere = "".join(terms[:main] + terms[main + 1 :])
    return Weighted(
        "einsum",
        named,
        signals,
        unit_dims=tuple(tail.index(c) - len(tail) for c in units),
        rows=partial(as_rows, dims=axes) if units else None,
        fan_in=math.prod(sizes[c] for c in letters if c not in out),
        fan_out=math.prod(sizes[c] for c in units if c not in elsewhere),
        layout="".join(_axis(c, out, elsewhere) for c in letters),
    )


def _equation(equation: str) -> tuple[list[str], str]:
    """The letters of each operand, and of the output: where it is left out, those that stand once.

    >>> _equation("bi, io"), _equation("...i, oi -> ...o")
    ((['bi', 'io'], 'bo'), (['...i', 'oi'], '...o'))
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    return left.split(","), out


def _axis(letter: str, out: str, elsewhere: str) -> str:
    """What a letter of the weight is: summed over, shared with the signal, or a new output."""
    if letter not in out:
        return "i"
    return "b" if letter in elsewhere else "o"


def _recurrent_cell(name: str, args: Sequence[Any], _: Mapping[str, Any]) -> Weighted:
    x, hidden, *parameters = args
    roles = ("weight", "recurrent", "bias", "recurrent_bias")
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(name, 1)
    weight = parameters[0]
    return Weighted(
        name,
        _operands(*zip(roles, parameters, strict=False)),
        (x, *(hidden if isinstance(hidden, (tuple, list)) else (hidden,))),
        unit_dims=(-1,),
        rows=_gate_rows(gates),
        fan_in=weight.shape[1],
        fan_out=weight.shape[0] // gates,
        layout="oi",
        blocks=gates,
    )


def _gate_rows(gates: int) -> Rows:
    """Rows of a stacked gate matrix [gates·hidden, n], all gates of one hidden unit together."""

    def rows(w: Tensor) -> Tensor:
        return w.reshape(gates, w.shape[0] // gates, -1).transpose(0, 1).flatten(1)

    return rows


def recurrent(
    name: str,
    x: Tensor,
    hidden: Sequence[Tensor],
    parameters: Sequence[Tensor],
    directions: int,
    biases: bool,
) -> Weighted:
    """One layer of a fused recurrent call, both directions together.

    Args:
        name: a member of `RECURRENT_LAYERS`.
        x: input of the layer.
        hidden: its initial states.
        parameters: its weights in torch's order, those of the reverse direction last.
        directions: 1, or 2 for a bidirectional layer.
        biases: whether the layer has them.
    """
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
        rows=_gate_rows(gates) if simple else None,
        fan_in=weight.shape[1],
        fan_out=weight.shape[0] // gates,
        layout="oi",
        blocks=gates,
    )


_ELEMENTWISE = {
    "mul": "scale", "multiply": "scale", "rmul": "scale", "addcmul": "scale", "addcdiv": "scale",
    "div": "scale", "divide": "scale", "true_divide": "scale", "rdiv": "scale", "rtruediv": "scale",
    "lerp": "scale", "pow": "scale", "prelu": "prelu", "_prelu_kernel": "prelu",
    "add": "shift", "radd": "shift", "sub": "shift", "rsub": "shift", "subtract": "shift",
    "where": "select", "cat": "token", "concat": "token", "concatenate": "token", "stack": "token",
    "maximum": "clamp", "minimum": "clamp", "clamp": "clamp", "masked_fill": "select",
    "cosine_similarity": "similarity", "cdist": "similarity", "logaddexp": "shift",
    "index_put": "select", "copy": "token",
    "index_add": "shift", "scatter": "select", "__setitem__": "token", "setitem": "token",
}  # fmt: skip
#: The names here of elementwise uses of a parameter, most of which torch does not know.
ELEMENTWISE = frozenset(_ELEMENTWISE.values())
# The tensors of fused attention, in order.
ATTENDED = ("query", "key", "value", "attn_mask")
# Functions that look a parameter up, where the index is a signal.
_PICKS = frozenset({"__getitem__", "index_select", "gather", "take_along_dim"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_MATRIX_PRODUCTS = frozenset(
    {"matmul", "mm", "bmm", "mv", "rmatmul", "dot", "inner", "linalg_matmul"}
)
_BIASED = frozenset({"addmm", "baddbmm", "addmv"})
# The last one is that of transformers, for a torch or a GPU that has none.
_GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"})

# Functions whose last two arguments are multiplied: with zeros, the first state of a cell, a
# parameter is a layer too.
MULTIPLYING = _MATRIX_PRODUCTS | _BIASED | {"einsum"}
# Functions that are a layer even on an input that does not depend on the batch (position
# embeddings, learned queries).
LEARNED_INPUT = (
    _CONVOLUTIONS | _TRANSPOSED | RECURRENT | {"linear", "embedding", "embedding_bag", "bilinear"}
)


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any], learned: Learned) -> Weighted:
    """Queries, keys, values or a mask that are learned keep their names as roles."""
    named = {**dict(zip(ATTENDED, args, strict=False)), **kwargs}
    tensors = [(k, named[k]) for k in ATTENDED if isinstance(named.get(k), Tensor)]
    weights = tuple((k, t) for k, t in tensors if learned(t))
    return Weighted("attention", weights, tuple(t for _, t in tensors if not learned(t)))


def _elementwise(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], learned: Learned
) -> Weighted | None:
    given = (*args, *kwargs.values())
    values = (t for a in given for t in (a if isinstance(a, (list, tuple)) else (a,)))
    tensors = [t for t in values if isinstance(t, Tensor)]
    weights = [t for t in tensors if learned(t)]
    roles = ["weight", *(f"weight{i}" for i in range(1, len(weights)))]
    signals = tuple(t for t in tensors if not learned(t))
    return Weighted(_ELEMENTWISE[name], tuple(zip(roles, weights, strict=True)), signals)


# Layers, whatever their operands are computed from.
_LAYERS: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], Weighted | None]] = {
    "linear": _linear,
    "embedding": _embedding,
    "embedding_bag": _embedding,
    "bilinear": _bilinear,
    **{name: partial(_convolution, name) for name in _CONVOLUTIONS},
    **{name: partial(_transposed, name) for name in _TRANSPOSED},
    **{name: partial(_norm, name) for name in NORMS},
    **{name: partial(_recurrent_cell, name) for name in RECURRENT_CELLS},
}
# Functions that are layers where one of their operands is learned.
_USES: dict[str, Callable[[Sequence[Any], Mapping[str, Any], Learned], Weighted | None]] = {
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **{name: partial(_plain_product, name) for name in _MATRIX_PRODUCTS},
    **{name: partial(_biased_product, name) for name in _BIASED},
    **dict.fromkeys(_GROUPED, _grouped_product),
    **dict.fromkeys(_PICKS, _pick),
    **{name: partial(_elementwise, name) for name in _ELEMENTWISE},
}


def describe(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], learned: Learned
) -> Weighted | None:
    """How the call `name(*args, **kwargs)` uses parameters; None when it is not a known layer.

    `learned` tells whether a value is a parameter or computed from parameters alone.
    """
    if name in _LAYERS:
        return _LAYERS[name](args, kwargs)
    if name in _USES:
        return _USES[name](args, kwargs, learned)
    return None
