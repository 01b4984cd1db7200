"""``fanin verify``: is a checkpoint still exactly at its start?"""

from __future__ import annotations

import contextlib
import re
import sys

import click

from fanin.cli.init import read_recipe
from fanin.cli.options import Integer, json_option
from fanin.cli.output import STDOUT, require_writable, show, write_json
from fanin.cli.program import debug_option
from fanin.cli.progress import ShareBar
from fanin.verifying import render
from fanin.verifying import verify as verify_checkpoint

__all__ = ["verify"]


def _pairs(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Read OLD=NEW pairs."""
    found = {}
    for value in values:
        old, equals, new = value.partition("=")
        if not (old and equals and new):
            raise click.BadParameter(f"{value!r} is not OLD=NEW, two names")
        found[old] = new
    return found


_ROWS = re.compile(r"(.+)\[(\d+):(\d+)\]")


def _fused(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[str | tuple[str, int, int]]]:
    """Read TENSOR=PART,PART pairs; NAME[a:b] is some rows of a part."""
    found: dict[str, list[str | tuple[str, int, int]]] = {}
    for value in values:
        tensor, equals, parts = value.partition("=")
        names = parts.split(",")
        if not (tensor and equals and all(names)):
            raise click.BadParameter(f"{value!r} is not TENSOR=PART,PART, all names or patterns")
        if tensor in found:
            raise click.BadParameter(f"{tensor!r} is given twice")
        rows = ((name, _ROWS.fullmatch(name)) for name in names)
        found[tensor] = [(m[1], int(m[2]), int(m[3])) if m else name for name, m in rows]
    return found


@click.command("verify", short_help="Say which tensors of CHECKPOINT are still at their start.")
@click.argument("checkpoint")
@click.option(
    "--recipe", metavar="FILE", help="The recipe that was applied; default: the one in CHECKPOINT."
)
@click.option(
    "--seed",
    type=Integer(0, 2**64 - 1),
    metavar="N",
    help="The seed that was used; default: the one in CHECKPOINT.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="OLD=NEW",
    callback=_pairs,
    help="OLD of the recipe is called NEW in CHECKPOINT; repeatable.",
)
@click.option(
    "--fused",
    multiple=True,
    metavar="TENSOR=PART,PART",
    callback=_fused,
    help="TENSOR of CHECKPOINT is made of PARTs of the recipe, or the reverse; * is one part of a "
    "path; repeatable.",
)
@click.option(
    "--jobs",
    type=Integer(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Tensors compared at the same time.",
)
@json_option("the result")
@click.option("--full", is_flag=True, help="Show every tensor.")
@click.option("--quiet", is_flag=True, help="Show nothing; the exit status tells.")
@debug_option
def verify(
    checkpoint: str,
    recipe: str | None,
    seed: int | None,
    aliases: dict[str, str],
    fused: dict[str, list[str | tuple[str, int, int]]],
    jobs: int,
    json_to: str | None,
    full: bool,
    quiet: bool,
) -> int:
    """Compute the start of every tensor of CHECKPOINT again, and compare it to the bit.

    CHECKPOINT is a safetensors file, an index of several, or a folder with one of them.  The model
    is not needed.

    \b
    fanin verify start.safetensors
    fanin verify folder --recipe recipe.toml --seed 1
    fanin verify folder --fused "layers.*.qkv=layers.*.q,layers.*.k,layers.*.v"

    Exit status: 0 all at their start, 1 some are not, 2 could not run.
    """
    require_writable("--json", json_to)
    given = None if recipe is None else read_recipe(recipe)
    with contextlib.redirect_stdout(sys.stderr), ShareBar(quiet=quiet) as bar:
        bar(f"reading {checkpoint}", 0.0)
        found = verify_checkpoint(
            checkpoint, given, seed, aliases=aliases, fused=fused, jobs=jobs, progress=bar
        )
    if json_to is not None:
        write_json(found.to_json(), json_to)
    if not quiet and json_to != STDOUT:
        show(render(found, full=full))
    return 0 if found.ok else 1
