"""Turn the TARGET of the command line into a model, a batch and a loss.

============================  ============================================================
TARGET                        what is built
============================  ============================================================
``path/to/file.py:factory``   what ``factory()`` of that file returns
``package.module:factory``    the same for an importable module
``hf:gpt2``                   the default configuration of a transformers model type
``hf:path/to/config.json``    the model that a transformers configuration describes
``timm:resnet18``             a timm model without its trained weights
``torchvision:resnet18``      a torchvision model without its trained weights
============================  ============================================================

A factory takes no arguments and returns a model, or ``(model, batch)``, or
``(model, batch, loss)``.  Nothing here uses the network, and none of the three libraries is
imported before a TARGET asks for it.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fanin.errors import TargetError
from fanin.nested import map_batch
from fanin.targets import files, hf, vision
from fanin.targets import inputs as specs
from fanin.targets.small import small_values
from fanin.targets.source import Loss, Source, first_line, kind

__all__ = ["Target", "load"]

LIBRARIES: Mapping[str, Callable[[str], Source]] = {
    "hf": hf.source,
    "timm": vision.timm,
    "torchvision": vision.torchvision,
}


@dataclass(frozen=True)
class Target:
    """A model with what is needed to run it.

    ``batch`` is a tensor (one positional argument), a tuple (positional arguments) or a dict
    (keyword arguments).  ``loss`` maps the output to a scalar, or is None.  ``factory`` builds
    the same model once more, from the same seed; ``small`` gives the values of its small tensors,
    as its constructor makes them.
    """

    model: nn.Module
    batch: Any
    loss: Loss | None
    name: str
    factory: Callable[[], nn.Module]
    small: Callable[[], Mapping[str, Tensor]]


def load(
    target: str,
    *,
    inputs: Sequence[str] = (),
    seed: int = 0,
    device: str | None = None,
    meta: bool = False,
    build: Callable[[Callable[[], object]], object] = lambda construct: construct(),
) -> Target:
    """Build the model that ``target`` names, with a batch and, where one is known, a loss.

    ``inputs`` are ``--input`` specifications: ``8x3x32x32`` draws floats from N(0, 1),
    ``tokens:4x128@32000`` integers below 32000, and ``name=SPEC`` gives a keyword argument.
    They replace the batch of the target.  Everything random comes from ``seed``; the random
    state of the process is left as it was.  ``build`` receives the function that constructs
    the target and returns its result, so that a caller can watch the construction.  With ``meta``
    the model is built on the meta device, without memory for its values.

    Raises:
        TargetError: the target, an input or the device cannot be used; the message says why.
        MissingPackageError: the target needs a package that is not installed.

    Example:
        >>> target = load("torch.nn:Identity", inputs=["2x3"])
        >>> target.batch.shape
        torch.Size([2, 3])
    """
    given = [specs.parse(text) for text in inputs]
    _need_device(device)
    with _seeded(seed):
        source = _find(target)
    if not meta:
        source.fits()
    with _seeded(seed), torch.device("meta") if meta else contextlib.nullcontext():
        model, batch, loss = _unpack(build(source.construct), source.name)
    generator = torch.Generator().manual_seed(seed)
    own = None if meta else _device_of(model)  # the factory may have chosen one
    if given:
        batch = _move(specs.draw(given, _float_dtype(model), generator), own)
    elif source.infer is not None:
        batch, loss = source.infer(model, generator)
        batch = _move(batch, own)
    if batch is None:
        raise TargetError(
            f"{target} comes without a batch: return (model, batch) from the factory, or add "
            "--input SHAPE, for example --input 8x3x224x224 or --input tokens:4x128@32000"
        )

    def construct() -> nn.Module:
        return _unpack(source.construct(), source.name)[0]

    def rebuild() -> nn.Module:
        with _seeded(seed):
            again = construct()
        return _place(again, device, target)

    def small() -> Mapping[str, Tensor]:
        with _seeded(seed):
            return small_values(construct)

    placed = _place(model, device, target)
    return Target(placed, _move(batch, device), loss, target, rebuild, small)


def _find(target: str) -> Source:
    """Find what ``target`` names, importing what that needs."""
    library, colon, name = target.partition(":")
    if colon and name and library in LIBRARIES:
        return LIBRARIES[library](name)
    if target.endswith(".py"):
        raise TargetError(f"{target}: name the factory too, as in {target}:build")
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise TargetError(
            f"{target!r} is not a TARGET; allowed is path/to/file.py:factory, "
            "package.module:factory, hf:NAME, timm:NAME or torchvision:NAME"
        )
    if place.endswith(".py") or "/" in place or os.sep in place:
        return files.from_file(target, Path(place), name)
    return files.from_module(target, place, name)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random inside, and give them back their states afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _unpack(made: object, name: str) -> tuple[nn.Module, Any, Loss | None]:
    """Read model, batch and loss from what a factory returned."""
    parts = made if isinstance(made, tuple) else (made,)
    allowed = "a model, (model, batch) or (model, batch, loss)"
    if not 1 <= len(parts) <= 3:
        raise TargetError(f"{name} returned a tuple of {len(parts)}; allowed is {allowed}")
    model, batch, loss = (*parts, None, None)[:3]
    if not isinstance(model, nn.Module):
        raise TargetError(f"{name} returned {kind(model)} as the model; allowed is {allowed}")
    if loss is not None and not callable(loss):
        raise TargetError(f"{name} returned {kind(loss)} as the loss; it must be callable")
    return model, batch, loss


def _float_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating parameter, which float inputs must match."""
    dtypes = (parameter.dtype for parameter in model.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.get_default_dtype())


def _device_of(model: nn.Module) -> str | None:
    """Where the first parameter is; None without one."""
    return next((str(parameter.device) for parameter in model.parameters()), None)


def _need_device(device: str | None) -> None:
    """Raise when tensors cannot be made on ``device``."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TargetError(f"device {device!r} cannot be used: {first_line(error)}") from error


def _place(model: nn.Module, device: str | None, name: str) -> nn.Module:
    """Move the model to ``device``."""
    if device is None:
        return model
    try:
        return model.to(device)
    except Exception as error:
        raise TargetError(f"{name} cannot be moved to {device}: {first_line(error)}") from error


def _move(batch: Any, device: str | None) -> Any:
    """Move every tensor of a nested batch to ``device``."""
    return batch if device is None else map_batch(lambda tensor: tensor.to(device), batch)
