"""``fanin lab``: the symmetry lab as one page."""

from __future__ import annotations

import click
from rich.text import Text

from fanin import lab as pages
from fanin.cli.output import STDOUT, replacing, require_writable, show
from fanin.cli.program import debug_option
from fanin.cli.progress import Progress

__all__ = ["lab"]


@click.command(short_help="Write the symmetry lab: one page to play with starts.")
@click.option(
    "-o",
    "--output",
    default="lab.html",
    show_default=True,
    metavar="FILE",
    help="Where to write the page; what is there is replaced.",
)
@debug_option
def lab(output: str) -> int:
    """Write one page on which a small network trains, start beside start.

    Choose a start and an activation, move through 15,000 steps, and see which units are copies of
    one another and stay so.  The page is one file and needs no network.

    \b
    fanin lab
    fanin lab -o symmetry.html
    """
    if output == STDOUT:
        raise click.BadParameter("a page needs a file", param_hint="'--output'")
    require_writable("--output", output)
    with Progress() as progress:
        page = pages.page(progress)
    with replacing("--output", output) as path:
        path.write_text(page, encoding="utf-8", newline="\n")
    show(Text(f"{output}: open it in a browser"))
    return 0
