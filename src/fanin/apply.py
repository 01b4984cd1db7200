"""Write a recipe into a model: all of it or nothing.  The one place where a model is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fanin.architecture import Parameter, parameters_of
from fanin.assignment import KEPT, OF_TENSOR, Assignment, Recipe
from fanin.catalogue.scheme import is_number
from fanin.errors import ArgumentError, ModelError, RecipeError
from fanin.fill import realize_
from fanin.reading import bare
from fanin.recipe import check
from fanin.region import check_region, groups_of, mask

__all__ = ["Trial", "apply_", "copied", "kept", "lent", "trial"]

_NAMED = 3  # mismatches named in one error


def apply_(
    recipe: Recipe,
    model: nn.Module,
    *,
    seed: int = 0,
    frozen: bool = False,
    device: torch.device | str | None = None,
) -> tuple[str, ...]:
    """Draw every parameter that the recipe assigns, in place.

    A parameter on the meta device is made on `device` (default: CPU).  Tied parameters are drawn
    once, under their first path.  Gradients, buffers, hooks, mode and random states stay as they
    are.

    Args:
        recipe: what each parameter starts as.
        model: to be changed.
        seed: of every draw.
        frozen: whether parameters that require no gradient are drawn too.
        device: where parameters on the meta device are made.

    Returns:
        the paths of the parameters that were drawn, in the recipe's order.

    Raises:
        RecipeError: the recipe is for another model: what is missing, extra or of another shape.
        ModelError: a parameter or buffer on the meta device would be left without a value.
        ArgumentError: the seed, or an assignment, is not possible.
        Whatever is raised, an interrupt included, the model is as it was.

    >>> model = nn.Linear(3, 2)
    >>> plan = Assignment("weight", "he_normal", 1.0, (2 / 3) ** 0.5, 3.0, "", (2, 3), "oi")
    >>> recipe = Recipe((plan,), {"bias": "as it is"})
    >>> apply_(recipe, model)
    ('weight',)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: {type(model).__name__} is not a torch.nn.Module")
    model = bare(model)
    parameters = {alias: p for p in parameters_of(model) for alias in p.aliases}
    _fit(recipe, parameters)
    chosen = [a for a in recipe.assignments if frozen or parameters[a.parameter].trainable]
    _require_values(recipe, model, {parameters[a.parameter].name for a in chosen})
    tensors = dict(model.named_parameters())
    with kept(model) as keep:
        for assignment in chosen:
            name = parameters[assignment.parameter].name
            tensor = keep(tensors[name], device)
            _draw(tensor, assignment, seed, name)
        keep.statistics(device)
    return tuple(parameters[a.parameter].name for a in chosen)


@contextmanager
def kept(model: nn.Module) -> Iterator[_Keeper]:
    """Put back what was given to the keeper when the block ends with an exception."""
    keeper = _Keeper(model)
    try:
        yield keeper
    except BaseException:
        keeper.restore()
        raise


@contextmanager
def lent(
    recipe: Recipe, model: nn.Module, *, seed: int = 0, frozen: bool = False
) -> Iterator[None]:
    """Lend the parameters the values of a recipe for the length of a block.

    The values are drawn into memory of their own, so that the parameters' own is not touched and a
    graph that autograd keeps of an earlier forward can still be walked.

    Raises:
        As `apply_`.
    """
    tensors = dict(model.named_parameters())
    own: dict[str, Tensor] = {}
    try:
        for assignment in recipe.assignments:
            parameter = tensors[assignment.parameter]
            if frozen or parameter.requires_grad:
                with torch.inference_mode(False):  # what is made in that mode stays in it
                    drawn = torch.empty_like(parameter.data)
                    _draw(drawn, assignment, seed, assignment.parameter)
                own[assignment.parameter] = parameter.data
                parameter.data = drawn
        yield
    finally:
        for name, data in own.items():
            tensors[name].data = data


@contextmanager
def copied(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Lend some parameters copies of their values for the length of a block."""
    tensors = dict(model.named_parameters())
    own = {name: tensors[name].data for name in names}
    try:
        for name, data in own.items():
            with torch.inference_mode(False):
                tensors[name].data = data.clone()
        yield
    finally:
        for name, data in own.items():
            tensors[name].data = data


class Trial:
    """Tries one set of assignments after another, each from the values that the model had."""

    def __init__(self, model: nn.Module, keeper: _Keeper) -> None:
        self._tensors, self._keeper = dict(model.named_parameters()), keeper
        self._seen: set[str] = set()

    def use(self, assignments: Iterable[Assignment], seed: int) -> None:
        """Put the model back, then write these."""
        self._keeper.restore()
        for assignment in assignments:
            name = assignment.parameter
            if name not in self._seen:
                self._keeper(self._tensors[name])
                self._seen.add(name)
            _draw(self._tensors[name], assignment, seed, name)

    def originals(self) -> dict[str, Tensor]:
        """The values that the parameters had, of all that were written so far."""
        by_id = {id(tensor): copy for tensor, copy in self._keeper.copies}
        return {
            name: by_id[id(self._tensors[name])] for name in self._tensors if name in self._seen
        }


@contextmanager
def trial(model: nn.Module) -> Iterator[Trial]:
    """A trial of a model; it is put back when the block ends with an exception."""
    with kept(model) as keeper:
        yield Trial(model, keeper)


class _Keeper:
    """Remembers parameters before they are written."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.copies: list[tuple[Tensor, Tensor]] = []
        self._replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []

    def __call__(self, tensor: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Keep a parameter; the tensor to write into: itself, or one with memory."""
        if not tensor.is_meta:
            self.copies.append((tensor, tensor.detach().clone()))
            return tensor
        made = nn.Parameter(
            torch.empty_like(tensor, device=device or "cpu"), requires_grad=tensor.requires_grad
        )
        for module in self._model.modules():
            for key, value in module._parameters.items():
                if value is tensor:
                    self._replaced.append((module, key, value))
                    module._parameters[key] = made
        return made

    def statistics(self, device: torch.device | str | None = None) -> None:
        """Make the running statistics of norms that are on the meta device: they start fresh."""
        for module in self._model.modules():
            meta = [k for k, b in module._buffers.items() if b is not None and b.is_meta]
            if isinstance(module, _NormBase) and meta:
                for key in meta:
                    buffer = module._buffers[key]
                    assert buffer is not None
                    self._buffers.append((module, key, buffer))
                    module._buffers[key] = torch.empty_like(buffer, device=device or "cpu")
                module.reset_running_stats()

    def restore(self) -> None:
        """Put everything back."""
        for owner, key, buffer in self._buffers:
            owner._buffers[key] = buffer
        with torch.no_grad():
            for tensor, copy in self.copies:
                tensor.detach().copy_(copy)
        for module, key, value in self._replaced:
            module._parameters[key] = value


def _draw(tensor: Tensor, assignment: Assignment, seed: int, name: str) -> None:
    """Draw one parameter; then what belongs to its tensor: rows of their own scale, padding."""
    padding, rows = (assignment.arguments.get(n) for n in ("padding", "rows"))
    _check_extra(assignment, padding, rows, tensor.shape)
    _write(tensor, assignment, seed, name)
    with torch.no_grad():
        values = tensor.detach()
        if rows is not None:
            at = assignment.layout.index("o")
            shape = [1] * values.dim()
            shape[at] = -1
            values.mul_(torch.tensor(rows, dtype=values.dtype, device=values.device).view(shape))
        if padding is not None:
            values[int(padding)] = 0


def _write(tensor: Tensor, assignment: Assignment, seed: int, name: str) -> None:
    """Draw a tensor, or the part of it that is named; what is kept is multiplied at most."""
    given, shape = assignment.arguments, tuple(tensor.shape)
    check_region(assignment.scheme, given, shape, assignment.layout)
    if assignment.scheme == KEPT:
        with torch.no_grad():
            tensor.detach().mul_(assignment.gain)
        return
    extra = {k: v for k, v in given.items() if k not in OF_TENSOR or k == "groups"}
    whole = replace(assignment, arguments=extra)
    part, groups = mask(shape, assignment.layout, given), given.get("split")
    if part is None and groups is None:
        realize_(tensor, whole, seed, name)
        return
    drawn = torch.empty_like(tensor.detach())
    realize_(drawn, whole, seed, name)
    with torch.no_grad():
        values = tensor.detach()
        if groups is not None:
            at = assignment.layout.index(given.get("along", "i"))
            _split(values, drawn, groups_of(given), at)
            return
        chosen, kept = torch.from_numpy(part).to(values.device), given.get("kept")
        rest = values if kept is None else values * kept
        values.copy_(torch.where(chosen, drawn, rest))


def _split(values: Tensor, drawn: Tensor, groups: Sequence[Sequence[int]], at: int) -> None:
    """Add what was drawn, less its mean over each group along a dimension; the rest stays."""
    for group in groups:
        index = torch.tensor(group, device=values.device)
        noise = drawn.index_select(at, index)
        noise -= noise.mean(at, keepdim=True)
        values.index_copy_(at, index, values.index_select(at, index) + noise)


def _check_extra(assignment: Assignment, padding: Any, rows: Any, shape: Sequence[int]) -> None:
    """Raise ArgumentError for a padding row or factors that the tensor does not have."""
    name, table = assignment.parameter, shape[0] if shape else 0
    if padding is not None and not (isinstance(padding, int) and 0 <= padding < table):
        raise ArgumentError(f"padding: {padding!r} of {name}; one of the {table} rows is needed")
    if rows is not None:
        outputs = shape[assignment.layout.index("o")] if "o" in assignment.layout else 0
        numbers = isinstance(rows, (list, tuple)) and all(map(is_number, rows))
        if not numbers or len(rows) != outputs:
            raise ArgumentError(
                f"rows: {type(rows).__name__} of {name}; one number for each of the {outputs} "
                "outputs is needed"
            )


def _fit(recipe: Recipe, parameters: Mapping[str, Parameter]) -> None:
    shapes = {p.name: p.shape for p in parameters.values()}
    aliased = {a: p.name for a, p in parameters.items() if a != p.name}
    renamed = Recipe(
        tuple(
            replace(a, parameter=aliased.get(a.parameter, a.parameter)) for a in recipe.assignments
        ),
        {aliased.get(name, name): told for name, told in recipe.untouched.items()},
        recipe.scheme,
    )
    wrong = check(renamed, shapes)
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        told = "; ".join(str(w) for w in wrong[:_NAMED])
        raise RecipeError(f"recipe: it is for another model: {told}{more}")


def _require_values(recipe: Recipe, model: nn.Module, drawn: set[str]) -> None:
    """Raise where something on the meta device would be left without a value."""
    empty = [n for n, p in model.named_parameters() if p.is_meta and n not in drawn]
    if empty:
        reason = recipe.untouched.get(empty[0], "it is frozen")
        raise ModelError(
            f"model: the parameter {empty[0]!r} is on the meta device and the recipe leaves it as "
            f"it is ({reason}); give it memory and a value first"
        )
    made = any(p.is_meta for p in model.parameters())
    fresh = {f"{n}." for n, m in model.named_modules() if n and isinstance(m, _NormBase)}
    buffers = [n for n, b in model.named_buffers() if b.is_meta]
    buffers = [n for n in buffers if f"{n.rpartition('.')[0]}." not in fresh]
    if buffers and made:
        more = f" (and {len(buffers) - 1} more)" if len(buffers) > 1 else ""
        raise ModelError(
            f"model: the buffer {buffers[0]!r}{more} is on the meta device, and no recipe knows "
            "its value; build the model with its buffers on a real device (only parameters on meta)"
        )
