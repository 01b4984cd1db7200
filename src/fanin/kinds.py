"""Torch functions by what they do to a signal, under one name each.

The name of an operation that uses a parameter is its own: `operations.describe` gives it.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "ACTIVATIONS",
    "ADDING",
    "BENDING",
    "BILINEAR",
    "FUSED",
    "JOINS",
    "NORMS",
    "PARTIAL",
    "PASSIVE",
    "PRODUCTS",
    "QUOTIENTS",
    "RECURRENT",
    "RECURRENT_CELLS",
    "RECURRENT_LAYERS",
    "SPLITS",
    "SUMS",
    "derived",
    "name_of",
    "takes_shape",
]

# Functions that hand values on unchanged, reshaped or picked: no layer, no activation.
PASSIVE = frozenset({
    "view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous",
    "alias", "transpose", "permute", "t", "T", "mT", "movedim", "swapaxes", "swapdims", "roll",
    "flip", "expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "pad",
    "unfold", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "unbind",
    "select", "narrow", "__getitem__", "__get__", "index_select", "gather", "take_along_dim",
    "clone", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu",
    "cuda", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "identity", "requires_grad", "rename", "checkpoint", "pixel_shuffle",
    "_pack_padded_sequence", "_pad_packed_sequence", "fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant",
})  # fmt: skip

# Nonlinearities.
ACTIVATIONS = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "glu", "softplus", "sigmoid", "logsigmoid", "tanh", "tanhshrink", "hardtanh",
    "hardsigmoid", "hardswish", "hardshrink", "softshrink", "softsign", "softmax", "log_softmax",
    "threshold", "clamp", "clamp_min", "clip", "abs", "square", "sqrt", "pow", "exp", "expm1",
    "erf", "sin", "cos", "sinc", "atan",
})  # fmt: skip
# Those that stand between layers; the others only keep a signal in bounds, or are parts of norms.
BENDING = ACTIVATIONS - {
    "pow", "sqrt", "exp", "expm1", "square", "clamp", "clip", "clamp_min",
}  # fmt: skip

NORMS = frozenset({"layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm"})

# Recurrent networks over a whole sequence, and one step of them.
RECURRENT_LAYERS = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
RECURRENT_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})
RECURRENT = RECURRENT_LAYERS | RECURRENT_CELLS

# Attention in one call.  The second is one whose query, key, value or mask is learned.
FUSED = frozenset({"scaled_dot_product_attention", "attention"})

# Functions that are not defined for every number, or matrix.
PARTIAL = frozenset({
    "log", "log2", "log10", "log1p", "logit", "logdet", "slogdet", "linalg_slogdet", "sqrt",
    "rsqrt", "float_power", "acos", "arccos", "asin", "arcsin", "acosh", "arccosh", "atanh",
    "arctanh", "erfinv", "lgamma", "mvlgamma", "digamma", "xlogy", "cholesky", "linalg_cholesky",
    "cholesky_ex", "linalg_cholesky_ex",
})  # fmt: skip

# Arithmetic of signals.
SUMS = frozenset({"add", "sub", "radd", "rsub"})
PRODUCTS = frozenset({"mul", "rmul", "multiply"})
# The same, and those that sum up products of two signals.
BILINEAR = PRODUCTS | {"matmul", "mm", "bmm", "einsum"}
QUOTIENTS = frozenset({"div", "divide", "true_divide"})
JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
# Functions that take the shape of a tensor, and none of its values; or sizes, which may be numbers
# of a tensor, as those of the sequences that are packed.
_SHAPED = frozenset({
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
    "zeros", "ones", "empty", "rand", "randn",
})  # fmt: skip
# Functions that give several parts of a tensor at once.
SPLITS = frozenset({
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "unsafe_chunk", "unsafe_split",
})  # fmt: skip
# Uses of a parameter that add or place it, and multiply with nothing.
ADDING = frozenset({"shift", "token", "select", "clamp"})

# The names between the underscores of the operators that write in place: __iadd__, ...
_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv", "imatmul", "ipow"})
# Products of torch.sparse, which are those of other matrices.
_SPARSE = {"_sparse_mm": "mm", "smm": "mm", "_sparse_addmm": "addmm"}


def name_of(func: Any) -> tuple[str, bool]:
    """Canonical name of a torch function, and whether it writes into its first argument."""
    name = getattr(func, "__name__", None) or str(func)
    if getattr(func, "namespace", None) == "aten":  # as an exported program calls torch
        name = name.partition(".")[0]
    if name in _SPARSE:
        return _SPARSE[name], False
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name)), False
    if name in ("__getitem__", "__setitem__"):
        return name, name == "__setitem__"
    if name.startswith("__") and name.endswith("__"):
        bare = name.strip("_")
        in_place = bare in _IN_PLACE
        return (bare[1:] if in_place else bare), in_place
    in_place = name.endswith("_")
    return (name.rstrip("_") if in_place else name), in_place


def derived(node: Any) -> str:
    """The function that a node of autograd's graph is the derivative of, as its users call it.

    Torch numbers the forms of its own functions; those that somebody wrote have no number.

    >>> import torch
    >>> node = (torch.ones(2, requires_grad=True) + 1).grad_fn
    >>> type(node).__name__, derived(node)
    ('AddBackward0', 'add')
    """
    name = type(node).__name__
    function, _, form = name.rpartition("Backward")
    if not form.isdigit():
        return f"{function or name} (a function of its own)"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", function).lower()


def takes_shape(name: str) -> bool:
    """Whether a function takes a shape or sizes, and no values."""
    return name in _SHAPED or name.startswith("new_")
