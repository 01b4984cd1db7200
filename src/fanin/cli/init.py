"""``fanin plan`` and ``fanin init``: decide how a model starts, and write it down."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from torch import Tensor, nn

from fanin.apply import by_path
from fanin.checkpoint import save
from fanin.cli.folder import FolderOptions, folder_options, own_dtype, write_folder
from fanin.cli.options import Number, input_option, json_option, seed_option
from fanin.cli.output import (
    STDOUT,
    destination,
    replacing,
    require_writable,
    show,
    write_json,
    write_text,
)
from fanin.cli.program import debug_option
from fanin.cli.progress import Progress
from fanin.errors import ArgumentError, RecipeError
from fanin.planning import Plan
from fanin.planning import plan as plan_model
from fanin.started import give_own_
from fanin.streaming import ranks_of
from fanin.targets import Target, load
from fanin.wording import listed, visible

__all__ = ["init", "plan", "read_recipe"]

COMMANDLINE = ParameterSource.COMMANDLINE
BESIDE_DIFF = ("diff", "quiet", "debug")  # what fanin plan --diff heeds


def _arguments(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value is a Python literal, or else a word."""
    found: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{value!r} is not NAME=VALUE, as in omega=30")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


_SHARED = (
    click.option(
        "--scheme",
        metavar="NAME",
        help="A scheme by its name (fanin explain lists them); default: auto.",
    ),
    click.option(
        "--set",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_arguments,
        help="An argument of the scheme, such as omega=30; repeatable.",
    ),
    click.option(
        "--gain",
        type=Number(),
        default=1.0,
        show_default=True,
        help="A factor on what the scheme draws (not with auto).",
    ),
    input_option,
    seed_option,
    click.option(
        "--frozen", is_flag=True, help="Draw frozen parameters too (those without requires_grad)."
    ),
)


def _shared(command: Any) -> Any:
    for option in reversed(_SHARED):
        command = option(command)
    return command


@click.command("plan", short_help="Say how every parameter of TARGET should start, and why.")
@click.argument("target", required=False)
@_shared
@click.option("--diff", nargs=2, metavar="A B", help="Compare two recipes instead.")
@click.option(
    "--meta",
    is_flag=True,
    help="Build on the meta device, without memory for weights: models of any size.",
)
@click.option(
    "-o", "--output", type=destination, metavar="FILE", help="Write the recipe; - is stdout."
)
@json_option("the plan")
@click.option("--quiet", is_flag=True, help="Show nothing.")
@debug_option
def plan(
    target: str | None,
    scheme: str | None,
    arguments: Mapping[str, Any],
    gain: float,
    inputs: tuple[str, ...],
    seed: int,
    frozen: bool,
    diff: tuple[str, str] | None,
    meta: bool,
    output: str | None,
    json_to: str | None,
    quiet: bool,
) -> int:
    """Decide how every parameter of the model of TARGET starts; nothing is changed.

    TARGET is what fanin check takes.

    \b
    fanin plan train.py:build -o recipe.toml
    fanin plan hf:config.json --meta --scheme residual_scaling
    fanin plan --diff before.toml after.toml

    Exit status: 0 planned (or no difference), 1 the two recipes differ, 2 could not run.
    """
    if diff is not None:
        _check_alone(click.get_current_context())
        return _compare(*diff, quiet=quiet)
    if target is None:
        raise click.UsageError("give a TARGET, or --diff with two recipes")
    if output == json_to == STDOUT:
        raise click.UsageError("--output and --json cannot both go to stdout")
    require_writable("--output", output)
    require_writable("--json", json_to)
    with contextlib.redirect_stdout(sys.stderr), Progress(quiet=quiet) as progress:
        loaded = _build(target, inputs, seed, progress, meta=meta)
        progress("planning")
        found = plan_model(
            loaded.model,
            loaded.batch,
            scheme or "auto",
            seed=seed,
            gain=gain,
            frozen=frozen,
            **arguments,
        )
    if output is not None:
        write_text("--output", found.to_toml(), output)
    if json_to is not None:
        write_json(found.to_json(), json_to)
    if not quiet and STDOUT not in (output, json_to):
        show(found)
    return 0


@click.command("init", short_help="Write the model of TARGET as it should start.")
@click.argument("target")
@_shared
@click.option("--recipe", metavar="FILE", help="A recipe in the place of a scheme.")
@click.option("-o", "--output", metavar="FILE", help="The safetensors file; replaced if there.")
@click.option("--out", "folder", metavar="DIR", help="A checkpoint of any size, in a folder.")
@folder_options
@click.option("--quiet", is_flag=True, help="Show nothing.")
@debug_option
def init(
    target: str,
    scheme: str | None,
    arguments: Mapping[str, Any],
    gain: float,
    inputs: tuple[str, ...],
    seed: int,
    frozen: bool,
    recipe: str | None,
    output: str | None,
    folder: str | None,
    quiet: bool,
    **extra: Any,
) -> int:
    """Build the model of TARGET, draw its parameters, and write them to a file or a folder.

    With -o, the model is built in memory, planned on its batch, drawn and written to one
    safetensors file, which holds the recipe and the seed too.  It appears whole or not at all.

    With --out, the model is built without memory and planned from closed forms (or by the recipe),
    and its values are drawn straight into the files of a checkpoint, whatever its size.  What was
    interrupted is continued by the same command.  Under torchrun the processes share the files.

    \b
    fanin init train.py:build -o start.safetensors
    fanin init train.py:build --recipe recipe.toml --seed 1 -o start.safetensors
    fanin init hf:config.json --out start --dtype bfloat16

    Exit status: 0 written, 2 could not run.
    """
    options = FolderOptions(**extra)
    if recipe is not None and (scheme is not None or arguments or gain != 1.0):
        raise click.UsageError("give --recipe, or --scheme with its arguments, not both")
    _check_places(output, folder, options)
    if folder is not None:
        quiet = quiet or ranks_of(os.environ).rank > 0  # under torchrun, one speaks for all
    given = None if recipe is None else read_recipe(recipe)
    with contextlib.redirect_stdout(sys.stderr), Progress(quiet=quiet) as progress:
        loaded = _build(target, inputs, seed, progress, meta=folder is not None)
        if given is None:
            progress("planning")
            given = plan_model(
                loaded.model,
                loaded.batch,
                scheme or "auto",
                seed=seed,
                gain=gain,
                frozen=frozen,
                **arguments,
            )
        if output is not None:
            _write_file(loaded.model, given, output, progress, seed=seed, frozen=frozen)
    told = f"{output}: {len(given)} parameters drawn with seed {seed}"
    if folder is not None:
        own = _own_starts(loaded, given, seed, frozen=frozen)
        with contextlib.redirect_stdout(sys.stderr):
            written = write_folder(
                loaded.model, given, folder, options, seed=seed, frozen=frozen, quiet=quiet
            )
        told = "\n".join((f"{folder}: {written}; seed {seed}", *own))
    if not quiet:
        show(told)
    return 0


def _write_file(
    model: nn.Module, plan: Plan, output: str, progress: Progress, *, seed: int, frozen: bool
) -> None:
    """Draw a model in memory, and write it to one file."""
    progress("drawing")
    dtype = own_dtype(model)
    if dtype is not None:
        model.to(dtype)
    plan.apply_(model, seed, frozen=frozen)
    progress(f"writing {output}")
    with replacing("--output", output) as path:
        save(model, path, plan, seed)


def _own_starts(loaded: Target, plan: Plan, seed: int, *, frozen: bool) -> list[str]:
    """Give what the plan leaves alone the values of the model's own code; what is told of it."""
    model, paths = loaded.model, by_path(loaded.model)
    parts = {paths[a.parameter] for a in plan if a.parameter in paths}
    drawn = {p.name for p in parts if frozen or p.trainable}
    if not any(t.is_meta for n, t in _state(model) if n not in drawn):
        return []
    own = give_own_(model, drawn, seed, loaded.small())
    told = f"{listed(own)}: left alone by the plan, started by the model's own code"
    return [visible(told)] if own else []


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _check_places(output: str | None, folder: str | None, options: FolderOptions) -> None:
    """Raise where not exactly one place is given, or it cannot be written."""
    if output is None and folder is None:
        raise click.UsageError("Missing option: -o FILE for one file, or --out DIR for a folder")
    if output is not None and folder is not None:
        raise click.UsageError("give -o for one file, or --out for a folder, not both")
    if output is not None and ranks_of(os.environ).world > 1:
        raise click.UsageError("-o writes one file from one process; take --out DIR for several")
    if folder is None and options.given:
        raise click.UsageError(f"{options.given} goes with --out")
    if folder == "":  # a path of no name is the folder that one is in
        raise click.BadParameter("'' names no folder", param_hint="'--out'")
    if output == STDOUT or folder == STDOUT:
        hint = "'--output'" if folder is None else "'--out'"
        raise click.BadParameter("a checkpoint needs a file", param_hint=hint)
    require_writable("--output", output, file=True)


def read_recipe(place: str) -> Plan:
    """Read a recipe from a file.

    Raises:
        ArgumentError: the file cannot be read.
        RecipeError: it holds no recipe.
    """
    try:
        text = Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ArgumentError(f"{place}: cannot be read: {told}") from error
    try:
        return Plan.from_toml(text)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from error


def _check_alone(context: click.Context) -> None:
    """Raise where something was given that --diff would leave unread."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in BESIDE_DIFF or context.get_parameter_source(name) is not COMMANDLINE:
            continue
        other = "TARGET" if name == "target" else max(parameter.opts, key=len)
        raise click.UsageError(f"--diff takes two recipes and no {other}")


def _compare(before: str, after: str, *, quiet: bool) -> int:
    difference = read_recipe(before).diff(read_recipe(after))
    if not quiet:
        show(str(difference) if difference else "no difference")
    return 1 if difference else 0


def _build(
    target: str, inputs: tuple[str, ...], seed: int, progress: Progress, *, meta: bool = False
) -> Target:
    progress(f"building {target}")
    return load(target, inputs=inputs, seed=seed, meta=meta)
