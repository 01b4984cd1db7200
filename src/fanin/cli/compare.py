"""``fanin compare TARGET``: train a model from several starts and set them side by side."""

from __future__ import annotations

import contextlib
import sys

import click
import torch
from torch import nn

from fanin.cli.options import (
    Integer,
    Number,
    device_option,
    html_option,
    input_option,
    json_option,
)
from fanin.cli.output import deliver, require_writable
from fanin.cli.program import debug_option
from fanin.cli.progress import ShareBar
from fanin.comparing import compare as compare_starts
from fanin.targets import Target, load

__all__ = ["compare"]


def _names(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Read names separated by commas."""
    names = tuple(word.strip() for value in values for word in value.split(",") if word.strip())
    if not names:
        raise click.BadParameter("it names no start")
    return names


def _seeds(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas."""
    try:
        seeds = tuple(int(word) for word in value.split(","))
    except ValueError:
        seeds = ()
    if not seeds or not all(0 <= seed < 2**64 for seed in seeds):
        allowed = "whole numbers from 0 to 2**64 - 1, such as 0,1,2"
        raise click.BadParameter(f"{value!r} is not a list of {allowed}")
    return seeds


@click.command("compare", short_help="Train the model of TARGET from several starts.")
@click.argument("target")
@click.option(
    "--schemes",
    multiple=True,
    metavar="NAMES",
    default=("default,auto,he_normal,xavier_normal",),
    show_default=True,
    callback=_names,
    help="The starts: names of schemes, or default for the model as it is built; repeatable.",
)
@click.option(
    "--steps",
    type=Integer(1),
    metavar="N",
    default=200,
    show_default=True,
    help="Updates in each training.",
)
@click.option(
    "--rate",
    "rates",
    type=Number(),
    multiple=True,
    metavar="R",
    help="Learning rate; repeatable, the best is shown.  Default: 0.1 for sgd, 0.001 for adam.",
)
@click.option(
    "--seeds",
    metavar="N,N",
    default="0",
    show_default=True,
    callback=_seeds,
    help="Seeds of weights and training; the first one also makes the inputs.",
)
@click.option(
    "--optimizer",
    type=click.Choice(("sgd", "adam")),
    default="sgd",
    show_default=True,
    help="What trains the model.",
)
@input_option
@device_option
@json_option("the result")
@html_option("the result")
@click.option("--quiet", is_flag=True, help="Show nothing.")
@debug_option
def compare(
    target: str,
    schemes: tuple[str, ...],
    steps: int,
    rates: tuple[float, ...],
    seeds: tuple[int, ...],
    optimizer: str,
    inputs: tuple[str, ...],
    device: str | None,
    json_to: str | None,
    html_to: str | None,
    quiet: bool,
) -> int:
    """Train the model of TARGET from each start on its batch, and show the curves side by side.

    TARGET is what fanin check takes.  Its factory may also return a list of batches in the place
    of the batch, and with a loss of output and target, pairs of a batch and its target.

    \b
    fanin compare train.py:build --schemes default,auto --steps 500
    fanin compare hf:gpt2 --optimizer adam --rate 1e-4 --rate 1e-3 --seeds 0,1

    Exit status: 0 it ran, 2 it could not, 130 interrupted.
    """
    require_writable("--json", json_to)
    require_writable("--html", html_to)

    def target_at(seed: int) -> Target:
        return load(target, inputs=inputs, seed=seed, device=device)

    with contextlib.redirect_stdout(sys.stderr), ShareBar(quiet=quiet) as bar:
        bar(f"building {target}", 0.0)
        first = target_at(seeds[0])
        factories = {seeds[0]: first.factory}

        def build() -> nn.Module:
            # A target seeds what it builds by itself, so there is one for the seed of each run.
            seed = torch.initial_seed()
            if seed not in factories:
                factories[seed] = target_at(seed).factory
            return factories[seed]()

        comparison = compare_starts(
            build,
            first.batch,
            first.loss,
            schemes=schemes,
            steps=steps,
            rates=rates or None,
            seeds=seeds,
            optimizer=optimizer,
            progress=bar,
        )
    deliver(comparison, comparison, json_to, html_to, quiet=quiet)
    return 0
