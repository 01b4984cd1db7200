"""Options that several commands share."""

from __future__ import annotations

import click

__all__ = ["device_option", "input_option", "seed_option"]

input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SPEC",
    help="One input in place of the batch of TARGET: 8x3x224x224, tokens:4x128@32000 or "
    "mask=4x128; repeatable.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    metavar="N",
    default=0,
    show_default=True,
    help="Of the weights, the inputs and everything else that is random.",
)
device_option = click.option(
    "--device", metavar="DEVICE", help="Where to run, e.g. cuda; default: as built."
)
