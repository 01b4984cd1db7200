"""What the guide takes from the code: pages of rules, schemes and commands.

`committed` are pages that also stand in the repository, where they are read as they are; a test
keeps them true.  All else is made when the guide is built (`write`).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

import fanin
from fanin.catalogue import ALIASES
from fanin.catalogue import document as scheme_document
from fanin.cli import cli
from fanin.findings import RULES
from fanin.findings import document as rule_document
from fanin.lab import write as write_lab
from fanin.policies import decisions

__all__ = ["adapted", "committed", "write", "written"]

#: Where a rule's document stands in the repository, as a page of docs/ links it.
DOCUMENTS = "../src/fanin/findings/documents/"
#: The built lab, beside the pages; lab.html is the page about it.
LAB = "lab-page.html"
WIDTH = 80  # of a command's help, as click wraps it for a terminal

FINDINGS = """\
# Findings

What `fanin.check` can say. How to read a report, and what to do then, is told in
[Read a report](report.md). An **error** says that the model will not train as it should because of
how it starts; a **warning** that something is odd: slower, wasteful or fragile; an **info** only
tells. Where two severities stand, the measured size of the fault decides.

Each code has a page: what it finds, why it hurts, what it does *not* mean, a small model that shows
it, the fix, the sources. `fanin explain S101` prints the same page in a terminal. `select=` and
`ignore=` (on the command line `--select` and `--ignore`) take codes or their first letters.

{table}
The letter says where to look: **S** symmetry between units, **P** propagation along depth, **O**
the objective at the start, **N** numbers, **W** wiring. A code keeps its meaning for ever.
"""

SCHEMES = """\
# Schemes

`fanin explain NAME` prints one of them with its arguments and an example. `fanin.fill_` fills one \
tensor; those marked in `fanin.schemes` with `scope == "model"` need a whole model (`fanin.plan`, \
`fanin.init_`).

{table}"""

AUTO = """\
# The automatic choice

What `fanin.init_` does where no scheme is named. You need not know any of it to use it: the plan
gives the reason for each parameter (`plan["layer.weight"].because`). This page is for those who
want to know why.

`fanin.plan(model, batch)` watches the model run once and reads, for each parameter, what it does:
the operation, its fans, the activation before and after, norms, the residual branch it stands in
and how many there are, its part in an attention, gates, tables, the output layer, experts, low-rank
pairs. From that the first row that fits in this table decides (`fanin explain auto` prints it).

*Keeps the scale* is what the rows from "behind relu" on say. φ is the activation, E[φ²] the mean of
its square on a signal of unit size, L the number of residual branches and m that of the layers in
one. χ is how much a small difference grows in a layer ([Moments and maps](theory.md)). A *stretch*
is a row of layers without norms or residual connections between them.

{table}
Weight norm and spectral norm divide by the size of what is drawn, so zeros are never drawn under
them: under weight norm the magnitude is what is zero, and under spectral norm such a weight is
drawn like any other.

Where the model multiplies a weight with constants before it uses it, the start is that of what
comes of it: the std is divided by a factor (an equalized learning rate), and the fans count only
the inputs that a mask leaves (MADE, PixelCNN, pruned layers). On the meta device the values of a
mask are not known, and such a weight is left alone.

Where the input of a layer has a size that no closed form knows (raw data, sums of branches without
norms, pooling), the planned values are run on the batch once, and a weight whose output is off its
planned size by more than a quarter is scaled; the reason then ends with "measured on the batch".
Models on the meta device, and models with norms everywhere, are planned from closed forms alone.

## Why deep stretches are special

`he_normal` and its kin keep the *scale* of the signal, in the mean over many layers. They do not
keep *inputs apart*: the correlation of two inputs goes to 1 behind relu, gelu or sigmoid, and the
gradient then says nothing about either ([theory.md](theory.md)). From 9 layers in a row on (5 with
sigmoid or softplus, 8 with sine or hardtanh; shallower ones train alike from either start):

- Behind relu, gelu, silu, softplus and their kin, units come in pairs with opposite weights. Since
  φ(x) − φ(−x) = x (exactly for relu, gelu, silu, softplus, hardswish; nearly for elu, selu, mish),
  the next layer sees x itself: the network starts linear and orthogonal at any depth, and every
  unit is free to leave its partner from the first step on (looks-linear, arXiv:1702.08591). The
  biases of the first layer are random, in opposite pairs: the linear start carries these offsets
  through all layers, so that not all kinks meet in the origin. Measured on plain networks of width
  64 and depth 50: training loss 0.001 and less, where the best of He and orthogonal weights with
  the exact gain stays at 0.4 to 1.6.
- tanh, sin and hardtanh are odd, and a pair would stay a pair for ever. Here the weights are
  orthogonal, and the size of the pre-activation is chosen so that near inputs part by no more than
  e² over the whole stretch (χ^depth = e²): the idea of deep kernel shaping (arXiv:2110.01765)
  without touching the activation.
- sigmoid is odd about 0, but not about a bias b. Where every layer of the stretch has a bias, units
  come in pairs about the b at which sigmoid bends least. Elsewhere they are as those of tanh, with
  rows that sum to zero, since the activation has a mean.

In convolutions all of this stands at the centre of the kernel (delta-orthogonal, arXiv:1806.05393),
but for a first layer of fewer channels than it has units, or pairs of them: its centre tap sees one
direction for each channel, so it starts orthogonal over all its taps.
"""


def committed() -> dict[str, str]:
    """Pages that stand in the repository too."""
    return {
        "auto.md": AUTO.format(table=decisions().partition("decides.\n\n")[2]),
        "findings.md": FINDINGS.format(table=_rules()),
        "schemes.md": SCHEMES.format(table=_schemes()),
    }


def written() -> dict[str, str]:
    """Pages that are made for the build alone."""
    return {
        **{f"findings/{code}.md": rule_document(code) for code in RULES},
        **{f"schemes/{name}.md": scheme_document(name) for name in fanin.schemes},
        "made/commands.md": _commands(),
    }


def write(folder: Path) -> None:
    """Make the pages and the lab in `folder`, the one that holds conf.py."""
    for place in ("findings", "schemes", "made"):
        shutil.rmtree(folder / place, ignore_errors=True)
    for name, text in written().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    extra = folder / "made" / "extra"
    extra.mkdir(parents=True)
    write_lab(extra / LAB)


def adapted(page: str, text: str) -> str:
    """A page as the guide shows it: what only the guide has is linked."""
    text = text.replace(DOCUMENTS, "findings/")
    if page == "schemes":
        text = re.sub(r"^\|.*\|$", _narrowed, text, flags=re.MULTILINE)
    inner = {"findings": RULES, "schemes": fanin.schemes}.get(page, {})
    if inner:
        pages = "\n".join(f"{page}/{name}" for name in inner)
        text += f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    if page == "lab":
        link = f'<a href="{LAB}">Open the lab</a>: the same page, built with this guide.'
        text = re.sub(r"\A(# .*\n)", rf"\1\n{link}\n", text)
    return text


def _narrowed(row: re.Match[str]) -> str:
    """A row of the table of schemes, linked, and without formula and source.

    Five columns are too many for a page of the guide; the scheme's own page has all of it.
    """
    name, what, _formula, when, *_source = re.split(r"(?<!\\)\|", row[0].strip("|"))
    linked = re.sub(r"`(\w+)`", r"[`\1`](schemes/\1.md)", name, count=1)
    return f"|{linked}|{what}|{when}|"


def _rules() -> str:
    rows = "".join(
        f"| [{rule.code}]({DOCUMENTS}{rule.code}.md) | {rule.name} "
        f"| {' or '.join(rule.severities)} | {rule.summary} |\n"
        for rule in RULES.values()
    )
    return f"| code | name | severity | what it finds |\n|-|-|-|-|\n{rows}"


def _schemes() -> str:
    rows = ["| name | what it is | formula | when | source |", "|-|-|-|-|-|"]
    for scheme in fanin.schemes.values():
        also = [alias for alias, name in ALIASES.items() if name == scheme.name]
        names = ", ".join(f"`{name}`" for name in (scheme.name, *also))
        cells = (names, scheme.summary, scheme.formula, scheme.when, scheme.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _commands() -> str:
    """The help of every command."""
    parts = []
    with click.Context(cli, info_name="fanin", terminal_width=WIDTH) as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            inner = click.Context(command, context, f"fanin {name}", terminal_width=WIDTH)
            parts.append(f"## fanin {name}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)
