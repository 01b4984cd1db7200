"""``fanin repair``: change as little as clears what a check finds."""

from __future__ import annotations

import contextlib
import sys

import click

from fanin.checkpoint import save
from fanin.cli.options import (
    device_option,
    dtype_option,
    html_option,
    ignore_option,
    input_option,
    json_option,
    seed_option,
    select_option,
)
from fanin.cli.output import (
    STDOUT,
    deliver,
    destination,
    replacing,
    require_writable,
    show,
    write_text,
)
from fanin.cli.program import debug_option
from fanin.cli.progress import Progress
from fanin.construction import recorded
from fanin.repair import Repair, repair_
from fanin.targets import load

__all__ = ["repair"]


@click.command("repair", short_help="Mend the model of TARGET, and prove it.")
@click.argument("target")
@input_option
@seed_option
@device_option
@dtype_option
@select_option
@ignore_option
@click.option("--warnings", is_flag=True, help="Mend warnings too, not only errors.")
@click.option(
    "--preserve",
    is_flag=True,
    help="Keep the model's output on the batch; copies are separated within it.",
)
@click.option("--all-or-nothing", is_flag=True, help="Write nothing where an error remains.")
@click.option(
    "--frozen", is_flag=True, help="Allow frozen parameters (without requires_grad) to be changed."
)
@click.option("--dry-run", is_flag=True, help="Say what would be changed; write no file.")
@click.option(
    "-o", "--output", metavar="FILE", help="Write the mended model, as a safetensors file."
)
@click.option(
    "--recipe",
    type=destination,
    metavar="FILE",
    help="Write the changes alone, as a recipe; - is stdout.",
)
@json_option("the repair")
@html_option("the repair")
@click.option("--quiet", is_flag=True, help="Show nothing; the exit status tells.")
@debug_option
def repair(
    target: str,
    inputs: tuple[str, ...],
    seed: int,
    device: str | None,
    dtype: str | None,
    select: tuple[str, ...] | None,
    ignore: tuple[str, ...] | None,
    warnings: bool,
    preserve: bool,
    all_or_nothing: bool,
    frozen: bool,
    dry_run: bool,
    output: str | None,
    recipe: str | None,
    json_to: str | None,
    html_to: str | None,
    quiet: bool,
) -> int:
    """Build the model of TARGET, check it, change as little as clears the errors, check again.

    TARGET is what fanin check takes.  Every entry that is not listed stays bit for bit.

    \b
    fanin repair train.py:build --dry-run
    fanin repair train.py:build -o mended.safetensors
    fanin repair train.py:build --recipe mend.toml

    Exit status: 0 no error left, 1 errors left, 2 could not run.
    """
    if dry_run and (output is not None or recipe is not None):
        raise click.UsageError("--dry-run writes no file: leave out --output and --recipe")
    _require_places(output, recipe, json_to, html_to)
    with contextlib.redirect_stdout(sys.stderr), Progress(quiet=quiet) as progress:
        progress(f"building {target}")
        loaded, record = recorded(lambda: load(target, inputs=inputs, seed=seed, device=device))
        done = repair_(
            loaded.model,
            loaded.batch,
            loaded.loss,
            seed=seed,
            warnings=warnings,
            preserve=preserve,
            all_or_nothing=all_or_nothing,
            frozen=frozen,
            dtype=dtype,
            select=select,
            ignore=ignore,
            progress=progress,
            record=record,
        )
        if output is not None and not done.undone:
            progress(f"writing {output}")
            with replacing("--output", output) as path:
                save(loaded.model, path, done.plan, seed)
    if recipe is not None and not done.undone:
        write_text("--recipe", done.plan.to_toml(), recipe)
    quiet = quiet or STDOUT in (recipe, json_to)
    deliver(done, done, json_to, html_to, quiet=quiet)
    if not quiet:
        _tell(done, output, recipe, html_to, dry_run=dry_run)
    return 0 if done.ok else 1


def _require_places(
    output: str | None, recipe: str | None, json_to: str | None, html_to: str | None
) -> None:
    """Find out before the work whether everything has a place to go.

    Raises:
        UsageError: two results cannot share stdout, or one cannot go there.
        ArgumentError: a file cannot be written.
    """
    if recipe == json_to == STDOUT:
        raise click.UsageError("--recipe and --json cannot both go to stdout")
    if output == STDOUT:
        raise click.BadParameter("a checkpoint needs a file", param_hint="'--output'")
    places = {"--output": output, "--recipe": recipe, "--json": json_to, "--html": html_to}
    for option, place in places.items():
        require_writable(option, place, file=option == "--output")


def _tell(
    done: Repair, output: str | None, recipe: str | None, html_to: str | None, *, dry_run: bool
) -> None:
    """Say on stderr what stands in the files that were written."""
    if not done.undone:
        model = "the mended model" if done.changes else "the model as it was"
        for place, what in ((output, model), (recipe, "what was changed, as a recipe")):
            if place is not None:
                click.echo(f"{place}: {what}", err=True)
    if html_to is not None:
        click.echo(f"{html_to}: open it in a browser", err=True)
    if done.changes and not dry_run and output is None and recipe is None:
        show("nothing written: --output takes the mended model, --recipe the changes")
