"""``fanin plan`` and ``fanin init``: decide how a model starts, and write it down."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fanin.checkpoint import save
from fanin.cli.options import input_option, seed_option
from fanin.cli.output import STDOUT, replacing, require_writable, show, write_json, write_text
from fanin.cli.program import debug_option
from fanin.cli.progress import Progress
from fanin.errors import ArgumentError, RecipeError
from fanin.planning import Plan
from fanin.planning import plan as plan_model
from fanin.targets import Target, load

__all__ = ["init", "plan"]


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
        help="Of the catalogue (fanin explain lists it); default: auto.",
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
        type=float,
        default=1.0,
        show_default=True,
        help="Multiplies what the scheme draws (not auto).",
    ),
    input_option,
    seed_option,
    click.option("--frozen", is_flag=True, help="Also parameters that require no gradient."),
)


def _shared(command: Any) -> Any:
    for option in reversed(_SHARED):
        command = option(command)
    return command


@click.command("plan", short_help="Say how every parameter of TARGET should start, and why.")
@click.argument("target", required=False)
@_shared
@click.option("--diff", nargs=2, metavar="A B", help="Compare two recipes instead.")
@click.option("--meta", is_flag=True, help="Build without memory: models of any size.")
@click.option("-o", "--output", metavar="FILE", help="Write the recipe; - is stdout.")
@click.option("--json", "json_to", metavar="FILE", help="Write the plan as JSON; - is stdout.")
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
        if target is not None:
            raise click.UsageError("--diff takes two recipes and no TARGET")
        return _compare(*diff, quiet=quiet)
    if target is None:
        raise click.UsageError("give a TARGET, or --diff with two recipes")
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
        write_json(json.dumps(found.to_dict(), indent=2), json_to)
    if not quiet and STDOUT not in (output, json_to):
        show(found)
    return 0


@click.command("init", short_help="Write the model of TARGET as it should start.")
@click.argument("target")
@_shared
@click.option("--recipe", metavar="FILE", help="A recipe in the place of a scheme.")
@click.option("-o", "--output", metavar="FILE", required=True, help="The safetensors file.")
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
    output: str,
    quiet: bool,
) -> int:
    """Build the model of TARGET, draw its parameters, and write them to a safetensors file.

    The file holds the recipe and the seed too.  It appears whole or not at all.

    \b
    fanin init train.py:build -o start.safetensors
    fanin init train.py:build --recipe recipe.toml --seed 1 -o start.safetensors

    Exit status: 0 written, 2 could not run.
    """
    if recipe is not None and (scheme is not None or arguments or gain != 1.0):
        raise click.UsageError("give --recipe, or --scheme with its arguments, not both")
    if output == STDOUT:
        raise click.BadParameter("a checkpoint needs a file", param_hint="'--output'")
    require_writable("--output", output)
    given = None if recipe is None else read_recipe(recipe)
    with contextlib.redirect_stdout(sys.stderr), Progress(quiet=quiet) as progress:
        loaded = _build(target, inputs, seed, progress)
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
        progress("drawing")
        given.apply_(loaded.model, seed, frozen=frozen)
        progress(f"writing {output}")
        with replacing("--output", output) as path:
            save(loaded.model, path, given, seed)
    if not quiet:
        show(f"{output}: {len(given)} parameters drawn with seed {seed}")
    return 0


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


def _compare(before: str, after: str, *, quiet: bool) -> int:
    difference = read_recipe(before).diff(read_recipe(after))
    if not quiet:
        show(str(difference) if difference else "no difference")
    return 1 if difference else 0


def _build(
    target: str, inputs: tuple[str, ...], seed: int, progress: Progress, *, meta: bool = False
) -> Target:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    progress(f"building {target}")
    return load(target, inputs=inputs, seed=seed, meta=meta)
