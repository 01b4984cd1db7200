"""Factories in the user's own files and modules."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

from fanin.errors import TargetError
from fanin.targets.source import Source, first_line, kind
from fanin.wording import did_you_mean, listed

__all__ = ["from_file", "from_module"]

_serial = itertools.count()


def from_file(target: str, path: Path, name: str) -> Source:
    """Find the factory ``name`` in a Python file, which is run as a module of its own.

    Raises:
        TargetError: there is no such file or factory, or running the file raised.
    """
    return _source(target, _import_file(path), path.resolve().parent, name)


def from_module(target: str, module: str, name: str) -> Source:
    """Find the factory ``name`` in a module that can be imported from the current folder.

    Raises:
        TargetError: there is no such module or factory, or importing it raised.
    """
    return _source(target, _import_module(module), Path.cwd(), name)


def _import_file(path: Path) -> ModuleType:
    """Run a Python file as a module of a name of its own."""
    if not path.is_file():
        hint = did_you_mean(path.name, (file.name for file in path.parent.glob("*.py")))
        raise TargetError(f"there is no file {path}{hint}")
    name = f"fanin_target_{next(_serial)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None:
        raise TargetError(f"{path} is not a Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _first_on_path(path.resolve().parent):
            # Compiled here and not by the loader: no __pycache__ is left beside the user's file.
            code = compile(path.read_bytes(), str(path.resolve()), "exec")
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TargetError(f"{path} cannot be imported: {_cause(error, path)}") from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    """Import a module by name, looking in the current folder too, as ``python -m`` does."""
    try:
        with _first_on_path(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(f"{name} cannot be imported: {first_line(error)}") from error
        hint = did_you_mean(name, (file.stem for file in Path.cwd().glob("*.py")))
        raise TargetError(f"there is no module {error.name}{hint}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name} cannot be imported: {first_line(error)}") from error


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on sys.path for the duration."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _source(target: str, module: ModuleType, folder: Path, name: str) -> Source:
    """Return the factory ``name`` of a user's module, checked to take no arguments."""
    path = Path(module.__file__) if module.__file__ else Path(module.__name__)
    factory = getattr(module, name, None)
    if factory is None:
        there = _callables(module)
        defined = listed(there, 8) or "no function"
        hint = did_you_mean(name, there)
        raise TargetError(f"{target}: there is no {name}; it defines {defined}{hint}")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TargetError(
            f"{target}: {name} is {kind(factory)}; it must be a function "
            "without arguments that returns the model"
        )
    _takes_nothing(factory, target)

    def construct() -> object:
        try:
            with _first_on_path(folder):
                return factory()
        except (Exception, SystemExit) as error:
            raise TargetError(f"{target} raised {_cause(error, path)}") from error

    return Source(target, construct)


def _takes_nothing(factory: Callable[..., object], target: str) -> None:
    """Raise when ``factory`` cannot be called without arguments."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        raise TargetError(
            f"{target}: a factory is called without arguments, but this one is {error}"
        ) from error


def _callables(module: ModuleType) -> list[str]:
    """Return the public callables that the module itself defines, in its order."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]


def _cause(error: BaseException, path: Path) -> str:
    """Say what went wrong, and in which line of the user's file."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        elsewhere = error.filename is not None and Path(error.filename) != path.resolve()
        place = f"line {error.lineno}" + (f" of {error.filename}" if elsewhere else "")
        return f"{type(error).__name__}: {error.msg} ({place})"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
    return f"{first_line(error)} (line {lines[-1]})" if lines else first_line(error)
