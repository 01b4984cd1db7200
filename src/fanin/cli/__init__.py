"""The command line: ``fanin check``, ``plan``, ``init``, ``verify``, ``repair``, ``explain``, …

Exit status: 0 the start is sound, 1 there are error findings, 2 the command line is wrong or the
check could not run (one line on stderr, the traceback with ``--debug``), 130 interrupted.
stdout holds the result and nothing else: what the user's own code prints goes to stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shlex
import sys
from collections.abc import Sequence

import click
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from fanin.catalogue import ALIASES, SCHEMES
from fanin.catalogue import document as scheme_document
from fanin.checking import check as check_model
from fanin.cli.compare import compare
from fanin.cli.init import init, plan
from fanin.cli.lab import lab
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
from fanin.cli.output import STDOUT, deliver, require_writable, show, write_json
from fanin.cli.program import Program, debug_option, version_option
from fanin.cli.progress import Progress
from fanin.cli.repair import repair
from fanin.cli.verify import verify
from fanin.construction import recorded
from fanin.demo import demo as run_demo
from fanin.errors import ArgumentError
from fanin.findings import RULES, document
from fanin.policies import decisions
from fanin.report import Report, text
from fanin.targets import load
from fanin.wording import did_you_mean, visible

__all__ = ["cli", "main"]


@click.group("fanin", cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
@debug_option
def cli() -> None:
    """Get the starting weights of a PyTorch model right, and prove it."""
    # A target may build its model with transformers, which warns of what is not asked here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@cli.command(short_help="Check how the model of TARGET starts.")
@click.argument("target")
@input_option
@seed_option
@device_option
@dtype_option
@select_option
@ignore_option
@json_option("the report")
@html_option("the report")
@click.option("--full", is_flag=True, help="Show every layer.")
@click.option("--quiet", is_flag=True, help="Show nothing; the exit status tells.")
@debug_option
def check(
    target: str,
    inputs: tuple[str, ...],
    seed: int,
    device: str | None,
    dtype: str | None,
    select: tuple[str, ...] | None,
    ignore: tuple[str, ...] | None,
    json_to: str | None,
    html_to: str | None,
    full: bool,
    quiet: bool,
) -> int:
    """Build the model of TARGET, run it once and say what is wrong with how it starts.

    TARGET is path/to/file.py:factory, package.module:factory, timm:NAME, torchvision:NAME or
    hf:NAME-or-config-path.  A factory takes no arguments and returns a model, (model, batch) or
    (model, batch, loss).

    \b
    fanin check train.py:build --input 8x3x32x32
    fanin check hf:gpt2 --json report.json

    Exit status: 0 sound, 1 error findings, 2 could not run, 130 interrupted.
    """
    require_writable("--json", json_to)
    require_writable("--html", html_to)
    with contextlib.redirect_stdout(sys.stderr), Progress(quiet=quiet) as progress:
        progress(f"building {target}")
        loaded, record = recorded(lambda: load(target, inputs=inputs, seed=seed, device=device))
        report = check_model(
            loaded.model,
            loaded.batch,
            loaded.loss,
            seed=seed,
            dtype=dtype,
            select=select,
            ignore=ignore,
            progress=progress,
            record=record,
        )
    deliver(report, text.render(report, full=full), json_to, html_to, quiet=quiet)
    if not quiet and json_to != STDOUT:
        given = [part for spec in inputs for part in ("--input", spec)]
        given += ["--seed", str(seed)] if seed else []
        where = [("--device", device), ("--dtype", dtype)]
        watched = [part for option, value in where if value for part in (option, value)]
        _show_what_next(report, target, given, watched)
    return 0 if report.ok else 1


def _show_what_next(
    report: Report, target: str, given: Sequence[str], watched: Sequence[str]
) -> None:
    """Name the commands that say more of what was found, that mend it, and that start anew.

    Args:
        report: what was found.
        target: the model.
        given: options of the check that a plan heeds too.
        watched: those that a repair alone heeds besides.
    """
    found = [f for f in report.findings if f.severity != "info"]
    if not found:
        return
    also = ["--warnings"] if report.ok else []
    mend = shlex.join(["fanin", "repair", target, *given, *watched, *also, "--dry-run"])
    anew = shlex.join(["fanin", "plan", target, *given])
    steps = {
        f"fanin explain {found[0].code}": "what it means, and what it does not",
        visible(mend): "what would mend these weights",
        visible(anew): "how fanin would start every parameter",
    }
    width = max(map(len, steps))
    lines = [f"  {command:{width}}  {what}" for command, what in steps.items()]
    show(Text("\n".join(("", "What now?", *lines)), overflow="fold"))


@cli.command(short_help="Explain a rule or a scheme, or list them all.")
@click.argument("name", metavar="[CODE-or-SCHEME]", required=False)
@debug_option
def explain(name: str | None) -> int:
    """Explain the rule of a code (or of its name) or a scheme; without a name, list them all."""
    if name is not None:
        show(Markdown(_explained(name)))
        return 0
    rules = Table("code", "name", "severity", "what it finds", box=None, pad_edge=False)
    for rule in RULES.values():
        rules.add_row(rule.code, rule.name, ", ".join(rule.severities), rule.summary)
    show(rules)
    listed = Table("scheme", "what it is", box=None, pad_edge=False)
    for scheme in SCHEMES.values():
        listed.add_row(scheme.name, scheme.summary)
    show("")
    show(listed)
    return 0


def _explained(name: str) -> str:
    """The document of a rule or of a scheme; an unknown name is answered with the nearest."""
    codes = {rule.code for rule in RULES.values()} | {rule.name for rule in RULES.values()}
    if name.upper() in codes or name.lower() in codes:
        return document(name)
    try:
        text = scheme_document(name)
    except ArgumentError:
        known = [*RULES, *(rule.name for rule in RULES.values()), *SCHEMES, *ALIASES]
        hint = did_you_mean(name, known, alike=0.5)
        raise ArgumentError(f"there is no rule or scheme {name!r}{hint}") from None
    return f"{text}\n{decisions()}" if name.lower() == "auto" else text


for command in (plan, init, verify, repair, compare, lab):
    cli.add_command(command)


@cli.command(short_help="Check and train one small network from six starts.")
@json_option("the table")
@debug_option
def demo(json_to: str | None) -> int:
    """Check one small network at six starts, train each, and set verdict beside result."""
    require_writable("--json", json_to)
    with Progress() as progress:
        result = run_demo(progress=progress)
    if json_to is not None:
        write_json(result.to_json(), json_to)
    if json_to != STDOUT:
        show(result)
    return 0


def main() -> None:
    """Run the program; the entry point of the ``fanin`` command."""
    atexit.register(_freeze)
    cli(prog_name="fanin")


def _freeze() -> None:
    """Save the half second that it takes to look through all that torch made, before the end.

    Not where training has imported Triton: its bindings would list on stderr what is still there.
    """
    if "triton" not in sys.modules:
        gc.freeze()
