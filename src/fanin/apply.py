"""Write a recipe into a model: all of it or nothing.  The one place where a recipe is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from fanin.architecture import Parameter, parameters_of
from fanin.assignment import Assignment, Recipe
from fanin.draw import Queue
from fanin.errors import ArgumentError, ModelError, RecipeError
from fanin.fill import assign_, factored
from fanin.fused import Fused, Part, parts_of
from fanin.memory import empty_like
from fanin.placement import Draw, Holders, Share, exchange_, held, is_spread, made, prepared, share
from fanin.reading import bare, plain
from fanin.recipe import check
from fanin.started import started
from fanin.window import Window
from fanin.wording import listed

__all__ = [
    "Trial",
    "apply_",
    "by_path",
    "copied",
    "fitted",
    "kept",
    "lent",
    "require_memory",
    "trial",
]

_NAMED = 3  # mismatches named in one error


def apply_(
    recipe: Recipe,
    model: nn.Module,
    *,
    seed: int = 0,
    frozen: bool = False,
    device: torch.device | str | None = None,
    fused: Fused | None = None,
) -> tuple[str, ...]:
    """Draw every parameter that the recipe assigns, in place.

    A parameter on the meta device is made on `device` (default: CPU).  Tied parameters are drawn
    once, under their first path.  Of a parameter that is spread over processes (DTensor) the local
    shard is drawn, without communication but for schemes that need linear algebra.  Gradients,
    buffers, hooks, mode and random states stay as they are.

    Args:
        recipe: what each parameter starts as.
        model: to be changed.
        seed: of every draw.
        frozen: whether parameters that require no gradient are drawn too.
        device: where parameters on the meta device are made.
        fused: pattern of a parameter that the recipe knows by several names → those names, in
            order; see `Plan.apply_`.

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
    _check_device(device)
    model = bare(model)
    prepared(model)
    parameters = by_path(model)
    parts = _parts(fused, recipe, parameters)
    recipe = fitted(recipe, parameters, parts)
    places = _places(recipe, parameters, parts)
    chosen = [place for place in places if frozen or parameters[place.parameter].trainable]
    drawn = list(dict.fromkeys(place.parameter for place in chosen))
    buffers = started(model, unsaved=True)
    _require_values(recipe, model, set(drawn), buffers)
    tensors = dict(model.named_parameters())
    require_memory({name: tensors[name] for name in drawn})
    with kept(model) as keep:
        shares = {name: share(name, keep(tensors[name], device)) for name in drawn}
        pieces = [_piece(place, shares[place.parameter]) for place in chosen]
        apart = [p for p in pieces if p.share.spread and factored(p.assignment)]
        exchange_(apart, seed)  # first: who fails by itself below leaves nobody waiting
        with _together() as assign:
            for piece in pieces:
                held = piece.share
                if held.spread and (factored(piece.assignment) or not held.window.count):
                    continue  # exchanged, or another's
                assign(held.tensor, piece.assignment, seed, piece.name, held.window)
        devices = (whole.tensor.device for whole in shares.values())
        keep.buffers(buffers, device or next(devices, torch.device("cpu")))
    _compute_again_(model, set(drawn))
    torch.clear_autocast_cache()  # which may hold the values from before
    return tuple(drawn)


def _compute_again_(model: nn.Module, drawn: Set[str]) -> None:
    """Let weights under the old `weight_norm` show what was drawn, as they will after a forward."""
    found: list[tuple[nn.Module, str, Tensor]] = []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for hook in module._forward_pre_hooks.values():
            if not isinstance(hook, WeightNorm) or f"{prefix}{hook.name}_v" not in drawn:
                continue
            shown = getattr(module, hook.name)
            parts = [getattr(module, f"{hook.name}_{own}") for own in "gv"]
            if not any(p.is_meta or is_spread(p) for p in parts):
                with torch.set_grad_enabled(shown.requires_grad):
                    found.append((module, hook.name, hook.compute_weight(module)))
    for module, name, weight in found:
        setattr(module, name, weight)


@contextmanager
def _together() -> Iterator[Callable[..., None]]:
    """`assign_`, whose values are all there when the block ends: most are drawn together then."""
    queue = Queue()
    waiting: set[int] = set()  # memory that is still to be written

    def assign(
        tensor: Tensor,
        assignment: Assignment,
        seed: int,
        name: str,
        window: Window | None = None,
    ) -> None:
        # Several assignments may be for one memory, and the last one counts: of a parameter that a
        # recipe has under two names, or of two that are views of one tensor.
        memory = _memory(tensor)
        if memory in waiting:
            queue.run()
            waiting.clear()
        waiting.add(memory)
        assign_(tensor, assignment, seed, name, window, queue)

    yield assign
    queue.run()


def _memory(tensor: Tensor) -> int:
    """The address of the memory that a tensor is in, or is a part of."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # of a kind that has none, and cannot be drawn
        return id(tensor)


@dataclass(frozen=True)
class _Place:
    """Where an assignment is written: a parameter of the model, or a part of a fused one."""

    parameter: str
    assignment: Assignment
    name: str
    part: Part | None = None


def _places(
    recipe: Recipe,
    parameters: Mapping[str, Parameter],
    parts: Mapping[str, tuple[Part, ...]],
) -> list[_Place]:
    """Every assignment with the places it is written to, in the recipe's order."""
    inside: dict[str, list[tuple[str, Part]]] = {}
    for name, several in parts.items():
        for part in several:
            inside.setdefault(part.name, []).append((name, part))
    found = []
    for assignment in recipe.assignments:
        own = parameters.get(assignment.parameter)
        if own is not None and own.name not in parts:
            found.append(_Place(own.name, assignment, plain(own.name)))
        for name, part in inside.get(assignment.parameter, ()):
            found.append(_Place(name, assignment, plain(assignment.parameter), part))
    return found


def _piece(place: _Place, whole: Share) -> Draw:
    """What this process draws at a place."""
    if place.part is None:
        return Draw(place.assignment, place.name, whole)
    part = place.part
    window, at = part.window(whole.window)

    def everyone() -> Holders:
        return tuple((rank, part.window(held)[0]) for rank, held in whole.holders)

    tensor = whole.tensor.detach()[at]
    return Draw(place.assignment, place.name, Share(tensor, window, whole.spread, everyone))


def _parts(
    fused: Fused | None, recipe: Recipe, parameters: Mapping[str, Parameter]
) -> dict[str, tuple[Part, ...]]:
    if fused is None:
        return {}
    paths = {plain(path): p for path, p in parameters.items()}
    shapes = {path: p.shape for path, p in paths.items()}
    found = parts_of(fused, shapes, {a.parameter: tuple(a.shape) for a in recipe.assignments})
    return {paths[path].name: parts for path, parts in found.items()}


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
        with _together() as assign:
            for assignment in recipe.assignments:
                parameter = tensors[assignment.parameter]
                if frozen or parameter.requires_grad:
                    with torch.inference_mode(False):  # what is made in that mode stays in it
                        drawn = empty_like(parameter.data)
                        assign(drawn, assignment, seed, plain(assignment.parameter))
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
        with _together() as assign:
            for assignment in assignments:
                name = assignment.parameter
                if name not in self._seen:
                    self._keeper(self._tensors[name])
                    self._seen.add(name)
                assign(self._tensors[name], assignment, seed, plain(name))

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
        self._held: dict[int, list[tuple[nn.Module, str]]] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []

    def __call__(self, tensor: nn.Parameter, device: torch.device | str | None = None) -> Tensor:
        """Keep a parameter; the tensor to write into: itself, or one with memory."""
        if not tensor.is_meta:
            values = held(tensor)  # copy_ of a DTensor works out its placements first
            self.copies.append((tensor, empty_like(values).copy_(values)))
            return tensor
        new = made(tensor, device)
        for module, key in self._holders()[id(tensor)]:
            self._replaced.append((module, key, tensor))
            module._parameters[key] = new
        return new

    def _holders(self) -> dict[int, list[tuple[nn.Module, str]]]:
        """Which modules hold each parameter, under which names; read once."""
        if not self._held:
            for module in self._model.modules():
                for key, value in module._parameters.items():
                    self._held.setdefault(id(value), []).append((module, key))
        return self._held

    def buffers(self, values: Mapping[int, Tensor], device: torch.device | str) -> None:
        """Put buffers with these values, by the id of the buffer, in the place of those on meta."""
        made: dict[int, Tensor] = {}
        for module in self._model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and id(buffer) in values:
                    self._buffers.append((module, key, buffer))
                    module._buffers[key] = made.setdefault(
                        id(buffer), values[id(buffer)].to(device)
                    )

    def restore(self) -> None:
        """Put everything back."""
        for owner, key, buffer in self._buffers:
            owner._buffers[key] = buffer
        with torch.no_grad():
            for tensor, copy in self.copies:
                held(tensor).copy_(copy)
        for module, key, value in self._replaced:
            module._parameters[key] = value


def by_path(model: nn.Module) -> dict[str, Parameter]:
    """Every parameter of a model under each of its paths, with and without wrappers in them."""
    every = parameters_of(model)
    found = {plain(alias): p for p in every for alias in p.aliases}
    return found | {alias: p for p in every for alias in p.aliases}


def fitted(
    recipe: Recipe,
    parameters: Mapping[str, Parameter],
    parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({}),
) -> Recipe:
    """The recipe with the names that the model's parameters have.

    Args:
        recipe: with any of their paths.
        parameters: of the model, by path.
        parts: of which fused parameters are made, which the recipe knows instead of them.

    Raises:
        RecipeError: it is for another model: what is missing, extra or of another shape.
    """
    shapes = {p.name: p.shape for p in parameters.values() if p.name not in parts}
    shapes |= {part.name: part.shape for several in parts.values() for part in several}

    def canonical(name: str) -> str:
        found = parameters.get(name) or parameters.get(plain(name))
        return name if found is None or found.name in parts else found.name

    renamed = Recipe(
        tuple(replace(a, parameter=canonical(a.parameter)) for a in recipe.assignments),
        {canonical(name): told for name, told in recipe.untouched.items()},
        recipe.scheme,
    )
    wrong = check(renamed, shapes)
    if wrong:
        told = listed(map(str, wrong), _NAMED, apart="; ")
        raise RecipeError(f"recipe: it is for another model: {told}")
    return renamed


def require_memory(tensors: Mapping[str, Tensor]) -> None:
    """Raise for a parameter of which several entries are one place in memory."""
    for name, tensor in tensors.items():
        steps = tensor.stride() if tensor.layout == torch.strided else ()
        if any(step == 0 and n > 1 for step, n in zip(steps, tensor.shape, strict=False)):
            raise ModelError(
                f"model: the parameter {name!r} is expanded: several of its entries share their "
                "memory; give it memory of its own (parameter.data = parameter.data.clone())"
            )


def _check_device(device: torch.device | str | None) -> None:
    """Raise for what is no device of this machine, or has no memory."""
    if device is None:
        return
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:  # the last: without that backend
        told = str(error).partition("\n")[0]
        raise ArgumentError(f"device: {device!r} cannot be used: {told}") from error
    if found.type == "meta":
        raise ArgumentError("device: 'meta' has no memory; values need a real device")


def _require_values(
    recipe: Recipe, model: nn.Module, drawn: set[str], buffers: Mapping[int, Tensor]
) -> None:
    """Raise where something on the meta device would be left without a value."""
    empty = [n for n, p in model.named_parameters() if p.is_meta and n not in drawn]
    if empty:
        reason = recipe.untouched.get(empty[0], "it is frozen")
        raise ModelError(
            f"model: the parameter {empty[0]!r} is on the meta device and the recipe leaves it as "
            f"it is ({reason}); give it memory and a value first"
        )
    made = any(p.is_meta for p in model.parameters())
    left = [n for n, b in model.named_buffers() if b.is_meta and id(b) not in buffers]
    if left and made:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise ModelError(
            f"model: the buffer {left[0]!r}{more} is on the meta device, and neither a recipe nor "
            "the model's own initialization knows its value; build the model with its buffers on a "
            "real device (only parameters on meta)"
        )
