"""Which tensors a checkpoint holds, and where the values of each come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fanin.apply import by_path, fitted
from fanin.architecture import Parameter
from fanin.assignment import Assignment, Recipe
from fanin.errors import ModelError
from fanin.reading import plain
from fanin.started import started

__all__ = ["CODES", "Entry", "entries"]

#: How a safetensors file names the dtypes.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, eq=False)
class Entry:
    """One tensor of a checkpoint.

    Attributes:
        name: in the file.
        shape: of the tensor.
        dtype: in the file.
        parameter: under which it is drawn; "" where it is not.
        assignment: how it is drawn; None where it is not.
        given: its values, where they are known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: str = ""
    assignment: Assignment | None = None
    given: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def entries(
    model: nn.Module, recipe: Recipe, *, frozen: bool = False, dtype: torch.dtype | None = None
) -> tuple[Entry, ...]:
    """The tensors of a model's state, each once, with the source of its values.

    Args:
        model: on the meta device or not.
        recipe: what its parameters are drawn from.
        frozen: whether parameters that require no gradient are drawn too.
        dtype: of the floating-point tensors of the file; by default each keeps its own.

    Raises:
        RecipeError: the recipe is for another model.
        ModelError: a parameter or a persistent buffer would have no value.

    >>> with torch.device("meta"):
    ...     model = nn.BatchNorm1d(4, affine=False)
    >>> [entry.name for entry in entries(model, Recipe(()))]
    ['running_mean', 'running_var', 'num_batches_tracked']
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"model: {name!r} is lazy and has no shape; run the model once first")
    paths, tensors = by_path(model), dict(model.named_parameters())
    parameters = {id(tensors[p.name]): p for p in paths.values()}
    assigned = {a.parameter: a for a in fitted(recipe, paths).assignments}
    drawn = {p.name for p in parameters.values() if p.name in assigned and (frozen or p.trainable)}
    fresh = started(model, {key for key, p in parameters.items() if p.name not in drawn})
    # Of transformers: what stays in the model's own dtype whatever the rest is in.
    own = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    found = []
    for name, tensor in _state(model):
        _require_file(name, tensor)
        cast = dtype if own.isdisjoint(name.split(".")) and tensor.is_floating_point() else None
        given = fresh.get(id(tensor)) if tensor.is_meta else tensor
        entry = Entry(name, tuple(tensor.shape), cast or tensor.dtype, given=given)
        parameter = parameters.get(id(tensor))
        if parameter is not None and parameter.name in drawn:
            assignment = assigned[parameter.name]
            entry = replace(entry, parameter=plain(parameter.name), assignment=assignment)
        _require_value(entry, parameter, recipe)
        found.append(entry)
    return tuple(found)


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state once, under the name that the model's library looks for.

    Of tied parameters transformers lists the names that it leaves out of a checkpoint; so too what
    it never saves.
    """
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name in left_out:
            continue
        if not isinstance(value, Tensor):
            raise ModelError(
                f"model: {name!r} of its state is no tensor but a {type(value).__name__}; "
                "a safetensors file holds tensors alone"
            )
        names.setdefault(id(value), []).append(name)
        tensors[id(value)] = value
    for key, aliases in names.items():
        yield next((name for name in aliases if name not in tied), aliases[0]), tensors[key]


def _require_file(name: str, tensor: Tensor) -> None:
    """Raise where a file cannot hold the tensor."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in CODES:
        form = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise ModelError(
            f"model: {name!r} is of {form}; a checkpoint holds dense tensors of "
            f"{', '.join(str(d).removeprefix('torch.') for d in CODES)}"
        )


def _require_value(entry: Entry, parameter: Parameter | None, recipe: Recipe) -> None:
    """Raise where a tensor on the meta device would have no value."""
    if entry.given is not None or not math.prod(entry.shape):
        return
    if parameter is None:
        raise ModelError(
            f"model: the buffer {entry.name!r} is on the meta device, and nothing says its "
            "value; build the model with its buffers on a real device, or write one file (-o FILE) "
            "from memory"
        )
    if entry.assignment is None:
        reason = recipe.untouched.get(parameter.name, "it is frozen")
        raise ModelError(
            f"model: the parameter {parameter.name!r} is on the meta device and the recipe leaves "
            f"it as it is ({reason}); give it memory and a value first, or write one file (-o "
            "FILE) from memory"
        )
    if entry.assignment.keeps_values:
        raise ModelError(
            f"model: the parameter {parameter.name!r} is on the meta device and the recipe keeps "
            "values of it; give it memory and a value first"
        )
