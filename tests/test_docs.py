"""The generated pages of docs/ say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fanin
from fanin.catalogue import ALIASES
from fanin.policies import decisions

DOCS = Path(__file__).parent.parent / "docs"

AUTO = """\
# The automatic choice

`fanin.plan(model, batch)` watches the model run once and reads, for each parameter, what it does:
the operation, its fans, the activation before and after, norms, the residual branch it stands in
and how many there are, its part in an attention, gates, tables, the output layer, experts, low-rank
pairs. From that the first row that fits in this table decides; `fanin explain auto` prints it, and
`plan["layer.weight"].because` says which reason held. *Keeps the scale* is what the rows from
"behind relu" on say.

{table}
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
- tanh, sin, hardtanh and sigmoid are odd about a point, and a pair would stay a pair for ever. Here
  the weights are orthogonal, rows sum to zero where the activation has a mean, and the size of the
  pre-activation is chosen so that near inputs part by no more than e² over the whole stretch
  (χ^depth = e²): the idea of deep kernel shaping (arXiv:2110.01765) without touching the
  activation.

In convolutions both stand at the centre of the kernel (delta-orthogonal, arXiv:1806.05393).
"""


def schemes() -> str:
    """All schemes in one table."""
    rows = []
    for scheme in fanin.schemes.values():
        also = [alias for alias, name in ALIASES.items() if name == scheme.name]
        names = ", ".join(f"`{name}`" for name in (scheme.name, *also))
        cells = (names, scheme.summary, scheme.formula, scheme.when, scheme.source)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = [
        "# Schemes",
        "",
        "`fanin explain NAME` prints one of them with its arguments and an example. `fanin.fill_` "
        'fills one tensor; those marked in `fanin.schemes` with `scope == "model"` need a whole '
        "model (`fanin.plan`, `fanin.init_`).",
        "",
        "| name | what it is | formula | when | source |",
        "|-|-|-|-|-|",
    ]
    return "\n".join([*head, *rows]) + "\n"


PAGES = {
    "auto.md": AUTO.format(table=decisions().partition("decides.\n\n")[2]),
    "schemes.md": schemes(),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name: str, request: pytest.FixtureRequest):
    """After a wanted change: ``pytest tests/test_docs.py --update-golden``."""
    path = DOCS / name
    if request.config.getoption("--update-golden"):
        path.write_text(PAGES[name], encoding="utf-8", newline="\n")
    assert path.read_text(encoding="utf-8") == PAGES[name]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
