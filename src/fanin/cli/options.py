"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fanin import draw
from fanin.cli.output import STDOUT, destination
from fanin.findings import RULES
from fanin.wording import did_you_mean

__all__ = [
    "DTYPES",
    "Integer",
    "Number",
    "device_option",
    "dtype_option",
    "html_option",
    "ignore_option",
    "input_option",
    "json_option",
    "seed_option",
    "select_option",
]

#: What can be drawn and trained, by name.
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in draw.DTYPES}


class Integer(click.IntRange):
    """An integer of a range, refused in the words of the library."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the integer; anything else is a click.BadParameter."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            most = "2**64 - 1" if self.max == 2**64 - 1 else self.max
            allowed = f"of at least {self.min}" if most is None else f"from {self.min} to {most}"
            self.fail(f"{value!r}; an integer {allowed} is needed", param, ctx)


class Number(click.types.FloatParamType):
    """A number, refused in the words of the library."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; anything else is a click.BadParameter."""
        try:
            return float(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"{value!r}; a number is needed", param, ctx)


def _codes(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Read codes, prefixes of codes or names of rules, separated by commas."""
    by_name = {rule.name.upper(): rule.code for rule in RULES.values()}
    words = [word.strip().upper() for value in values for word in value.split(",")]
    codes = tuple(by_name.get(word, word) for word in words if word)
    for code in codes:
        if not any(known.startswith(code) for known in RULES):
            hint = did_you_mean(code, [*RULES, *(r.name for r in RULES.values())], alike=0.5)
            raise click.BadParameter(f"there is no rule {code}{hint}")
    if values and not codes:
        raise click.BadParameter("it names no rule")
    return codes or None


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
    type=Integer(0, 2**64 - 1),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the weights, the inputs and everything else that is random.",
)
device_option = click.option(
    "--device",
    metavar="DEVICE",
    help="Where to run, e.g. cuda; default: where the factory builds the model.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="The dtype that training will use: values beyond its range are reported.",
)
select_option = click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    callback=_codes,
    help="Only these rules: codes, their first letters, or names, e.g. S,P201; repeatable.",
)
ignore_option = click.option(
    "--ignore",
    multiple=True,
    metavar="CODES",
    callback=_codes,
    help="Without these rules; given as for --select; repeatable.",
)


def json_option(what: str) -> Callable[[Any], Any]:
    """Add ``--json``, which says where `what` is written as JSON."""
    return click.option(
        "--json",
        "json_to",
        type=destination,
        metavar="FILE",
        help=f"Write {what} as JSON; - is stdout.",
    )


def html_option(what: str) -> Callable[[Any], Any]:
    """Add ``--html``, which says where `what` is written as a page."""

    def no_stdout(
        _ctx: click.Context, _parameter: click.Parameter, place: str | None
    ) -> str | None:
        if place == STDOUT:
            raise click.BadParameter("a page needs a file")
        return place

    return click.option(
        "--html",
        "html_to",
        type=destination,
        metavar="FILE",
        callback=no_stdout,
        help=f"Write {what} as one HTML page.",
    )
