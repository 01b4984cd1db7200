"""Leave no trace: whatever happens inside, model, batch and random state come out as they went in.

Parameters are copied only when something is about to write into them (`Guard.protect`), so a
well-behaved model pays for its buffers alone.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fanin.errors import ForwardError, ModelError
from fanin.kinds import name_of
from fanin.nested import map_batch, tensors_in
from fanin.process import Lasting

__all__ = [
    "Guard",
    "finite_again",
    "private",
    "random_state",
    "reseed",
    "uncached",
    "untouched",
    "watching",
]

_T = TypeVar("_T")
_CONTAINERS = (list, dict, set)


class Guard:
    """What it takes to put a model back: buffers, attributes, any parameter that is written to.

    Attributes:
        written: paths of the parameters that the forward tried to change, in order.
    """

    def __init__(self, model: nn.Module) -> None:
        self.written: list[str] = []
        self._parameters = list(model.named_parameters(remove_duplicate=True))
        self._versions = [_version(p) for _, p in self._parameters]
        self._requires_grad = [p.requires_grad for _, p in self._parameters]
        self._data = [p.data for _, p in self._parameters]
        self._grads = [p.grad for _, p in self._parameters]
        self._by_storage: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in self._parameters:
            key = _storage(parameter)
            if key is not None:
                self._by_storage.setdefault(key, []).append((name, parameter))
        self._copies: dict[str, Tensor] = {}
        self._sources: dict[int, tuple[Tensor, Tensor | None, Tensor | None]] = {}
        self._modules = [(m, _attributes(m)) for m in model.modules()]
        self._buffers = [(b, b.data, b.detach().clone()) for b in model.buffers()]

    def protect(self, target: Tensor) -> None:
        """Keep a copy of every parameter that shares memory with `target`, about to be written."""
        for name, parameter in self._by_storage.get(_storage(target) or -1, ()):
            if name not in self._copies:
                self._copies[name] = parameter.detach().clone()
                self.written.append(name)

    def keep_gradients(self, batch: Any) -> None:
        """Put back, too, the gradients of what the tensors of a batch were computed from.

        A loss may run backward through the batch by itself.
        """
        for leaf in _leaves(*tensors_in(batch)):
            grad = leaf.grad
            values = None if grad is None else grad.detach().clone()
            self._sources.setdefault(id(leaf), (leaf, grad, values))

    def reject_changed(self, what: str) -> None:
        """Raise ModelError where the forward changed a parameter that trains.

        Frozen ones are its own business, as those of a teacher that follows by an average.

        Args:
            what: is done to the model, as "a check".
        """
        named = zip(self._parameters, self._requires_grad, strict=True)
        training = {name for (name, _), trains in named if trains}
        moved = [n for n in self.changed() if n in training or self._is_lost(n)]
        if moved:
            raise ModelError(
                f"model: its forward changes the parameter {moved[0]!r} in place; {what} needs a "
                "forward that leaves trainable parameters alone: if it sets its own start at its "
                "first call, run it once before (the model was put back)"
            )

    def changed(self) -> list[str]:
        """Paths of parameters whose values are no longer what they were, or may not be."""
        named = zip(self._parameters, self._versions, strict=True)
        moved = [name for (name, p), version in named if _version(p) != version]
        for (name, parameter), data in zip(self._parameters, self._data, strict=True):
            if parameter.data_ptr() != data.data_ptr() and name not in moved:
                moved.append(name)
            saved = self._copies.get(name)
            if saved is not None and name not in moved and not _same_bits(saved, parameter):
                moved.append(name)
        return moved

    def _is_lost(self, name: str) -> bool:
        """Whether a parameter was written in place past the watch, so that there is no copy."""
        at = [n for n, _ in self._parameters].index(name)
        parameter, data = self._parameters[at][1], self._data[at]
        return name not in self._copies and parameter.data_ptr() == data.data_ptr()

    def restore(self) -> None:
        """Put everything back."""
        for module, saved in self._modules:
            _restore_attributes(module, saved)
        for (_, parameter), data in zip(self._parameters, self._data, strict=True):
            if parameter.data_ptr() != data.data_ptr() or parameter.shape != data.shape:
                parameter.data = data
        with torch.no_grad():
            for buffer, data, value in self._buffers:
                if buffer.data_ptr() != data.data_ptr() or buffer.shape != value.shape:
                    buffer.data = data if data.shape == value.shape else value
                if not _same_bits(value, buffer):
                    buffer.copy_(value)
            for name, parameter in self._parameters:
                if name in self._copies:
                    parameter.data.copy_(self._copies[name])
            for leaf, grad, values in self._sources.values():
                leaf.grad = grad
                if grad is not None and values is not None and not _same_bits(values, grad):
                    grad.copy_(values)
        rest = zip(self._parameters, self._requires_grad, self._grads, strict=True)
        for (_, parameter), requires_grad, grad in rest:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


@contextmanager
def untouched(model: nn.Module) -> Iterator[Guard]:
    """Run a block and put `model` and all random states back afterwards, also on an exception.

    No watch tells of what is written, so where there are frozen parameters, which a forward may
    write, the block runs eager, and writes are looked for.
    """
    with ExitStack() as stack:
        guard = stack.enter_context(_restored(model))
        if not all(p.requires_grad for p in model.parameters()):
            stack.enter_context(_eager())
            stack.enter_context(_Writes(guard))
        yield guard


@contextmanager
def watching(model: nn.Module) -> Iterator[Guard]:
    """As `untouched`, for a block that runs the model under a watch: eager, and with gradients.

    A forward may take gradients itself, so they are there even where nothing else needs them.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _eager(),
        _untold(model),
        _restored(model) as guard,
    ):
        yield guard


@contextmanager
def _untold(model: nn.Module) -> Iterator[None]:
    """Keep torch from telling of the watch's own hooks, as it does for each compiled module."""
    if not any(hasattr(module, "_orig_mod") for module in model.modules()):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)
        yield


@contextmanager
def _restored(model: nn.Module) -> Iterator[Guard]:
    guard = Guard(model)
    with random_state(model), uncached():
        try:
            yield guard
        finally:
            guard.restore()


@contextmanager
def uncached() -> Iterator[None]:
    """Convert weights anew at every call under autocast, as long as the block lasts and after it.

    What autocast keeps of them until it ends would be their values before a change.
    """
    keeps = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(keeps)
        torch.clear_autocast_cache()


class _Writes(TorchFunctionMode):
    """Tells a guard what is about to be written in place."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if name_of(func)[1] or kwargs.keys() & _INTO:
            for tensor in tensors_in((args, kwargs)):
                self._guard.protect(tensor)
        return func(*args, **kwargs)


_INTO = frozenset({"out", "inplace"})  # arguments by which a call writes into a tensor


@contextmanager
def random_state(model: nn.Module | None = None) -> Iterator[None]:
    """Keep the random states of torch (CPU and the model's devices), numpy and Python."""
    devices = set() if model is None else {p.device for p in model.parameters()}
    indices = [d.index or 0 for d in devices if d.type == "cuda"]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=indices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def reseed(seed: int) -> None:
    """Seed every generator that a forward may draw from: torch, numpy and Python."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # torch.manual_seed takes a millisecond to note the stack for devices yet to come
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


_compiles = torch.compile
_stances: list[ExitStack] = []  # at most one, for all blocks


def _begin() -> None:
    global _compiles
    _compiles, torch.compile = torch.compile, _later


def _end() -> None:
    torch.compile = _compiles
    while _stances:
        _stances.pop().close()


_LASTING = Lasting(_begin, _end)


@contextmanager
def _eager() -> Iterator[None]:
    """Run what torch.compile wraps as the Python it is made from, so that it can be watched.

    Also what is wrapped in the block, as torch.cond and its like do at every call.
    """
    with _LASTING.block():
        if "torch._dynamo" in sys.modules:
            _force()
        yield


def _force() -> None:
    with _LASTING.lock:
        if _LASTING.blocks and not _stances:
            _stances.append(ExitStack())
            _stances[-1].enter_context(torch.compiler.set_stance("force_eager"))


def _later(*args: Any, **kwargs: Any) -> Any:
    """torch.compile, which a forward may keep.

    To load what compiles takes seconds, so a block does not before somebody asks for it.
    """
    _force()
    return _compiles(*args, **kwargs)


def private(batch: Any, attached: bool = False) -> Any:
    """A copy of the batch, so that a forward that writes into its inputs leaves the original.

    Args:
        batch: to be copied.
        attached: whether what was computed stays in its graph, for a loss that takes derivatives by
            what it was computed from.  Where that is parameters, a backward pass would run through
            the graph and use it up; it is left.
    """

    def copied(tensor: Tensor) -> Tensor:
        sources = _leaves(tensor) if attached else []
        if sources and not any(isinstance(leaf, nn.Parameter) for leaf in sources):
            return tensor.clone()
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    return map_batch(copied, batch)


def _leaves(*tensors: Tensor) -> list[Tensor]:
    """What tensors were computed from, of all that takes a gradient; a leaf from nothing."""
    found, seen, queue = [], set(), [tensor.grad_fn for tensor in tensors]
    while queue:
        node: Any = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            queue += [following for following, _ in node.next_functions]
    return found


_REGISTERED = ("_parameters", "_buffers", "_modules")  # dicts whose members are kept elsewhere


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute with what is needed to put its content back."""
    return {
        key: (value, _content(value, deep=key not in _REGISTERED))
        for key, value in module.__dict__.items()
    }


def _content(value: Any, deep: bool = True) -> Any:
    """Members of a plain container (and theirs), a copy of a tensor or array, else None."""
    if type(value) in _PLAIN:
        return None
    for kind in _CONTAINERS:
        if isinstance(value, kind):
            members = value.values() if isinstance(value, dict) else value
            inner = [(m, c) for m in members if (c := _content(m)) is not None] if deep else []
            return kind(value), inner
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, _GENERATORS) and not isinstance(value, random.SystemRandom):
        return _state(value)
    plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    return value.detach().clone() if plain else None


_PLAIN = frozenset({type(None), bool, int, float, str, tuple})  # most attributes, told at once
_GENERATORS = (torch.Generator, np.random.RandomState, np.random.Generator, random.Random)


def _state(generator: Any) -> Any:
    """The state of a random generator that a model holds."""
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _restore_attributes(module: nn.Module, saved: dict[str, tuple[Any, Any]]) -> None:
    here = module.__dict__
    for key in [k for k in here if k not in saved]:
        del here[key]
    for key, (value, content) in saved.items():
        if key not in here or here[key] is not value:
            here[key] = value
        if content is not None:
            _restore_content(value, content)


def _restore_content(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if not _same_bits(content, value):
            value.data.copy_(content)
    elif isinstance(value, np.ndarray):
        if not np.array_equal(value, content):
            value[...] = content
    elif isinstance(value, _CONTAINERS):
        members, inner = content
        if not _same_members(value, members):
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(members)
        for member, kept in inner:
            _restore_content(member, kept)
    else:
        _set_state(value, content)


def _same_members(now: Any, before: Any) -> bool:
    if len(now) != len(before) or not before:
        return len(now) == len(before)
    if isinstance(now, dict):
        return all(a is b and now[a] is before[b] for a, b in zip(now, before, strict=True))
    if isinstance(now, set):
        return bool(now == before)
    return all(a is b for a, b in zip(now, before, strict=True))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and other storage-less tensors
        return None


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, NaN included; tensors without values (meta) are equal."""
    a, b = a.detach(), b.detach()
    if a.is_meta and b.is_meta:
        return a.shape == b.shape and a.dtype == b.dtype
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.is_floating_point or a.dtype.is_complex:
        return bool(torch.equal(torch.isnan(a), torch.isnan(b))) and bool(
            torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        )
    return bool(torch.equal(a, b))


def finite_again(model: nn.Module, run: Callable[[], _T]) -> tuple[_T, str]:
    """The result of a run; of another one if the model refuses that parameters are not finite.

    `torch.distributions` and some losses raise for NaN.  In the second run zeros stand in the place
    of every entry that is not finite; a third shows that it was not for anything else.

    Returns:
        the result, and the name of what the first run raised ("" if nothing).

    Raises:
        ForwardError: that of the first run, where all parameters are finite, or zeros do not help,
            or the third run does not raise.
    """
    try:
        return run(), ""
    except ForwardError as error:
        first = error
    with _zeros_for_nan(model) as spoiled:
        if not spoiled:
            raise first from first.__cause__
        try:
            found = run()
        except ForwardError:
            raise first from first.__cause__
    try:
        run()
    except ForwardError:
        return found, type(first.__cause__ or first).__name__
    raise first from first.__cause__


@contextmanager
def _zeros_for_nan(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Lend the parameters zeros for what is not finite, for the length of a block; which ones."""
    spoiled = [p for p in model.parameters() if _is_spoiled(p)]
    own = [p.data for p in spoiled]
    try:
        for parameter in spoiled:
            parameter.data = parameter.data.nan_to_num(0.0, 0.0, 0.0)
        yield spoiled
    finally:
        for parameter, data in zip(spoiled, own, strict=True):
            parameter.data = data


def _is_spoiled(parameter: nn.Parameter) -> bool:
    if parameter.is_meta or parameter.layout != torch.strided or parameter.is_quantized:
        return False
    try:
        return not bool(parameter.detach().isfinite().all())
    except (RuntimeError, NotImplementedError):  # a dtype of which torch does not know it, float8
        return False
