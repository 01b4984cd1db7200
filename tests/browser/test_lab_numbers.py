"""The lab's page computes what fanin computes in Python: every start, every activation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from browsing import Made, Visit
from playwright.sync_api import Page

from fanin import lab

STEPS = (0, 1, 10, 50)
MANY = (0, 1, 10, 250)
NEAR = 1e-9  # in float64, absolute
#: The page's tanh is the browser's; everything else is the same operations in the same order.
EXACT = [name for name in lab.ACTIVATIONS if name != "tanh"]
# Each change once over the whole way, where it shows something: copies that stay, units that part,
# and a training that amplifies any difference in the last bit.
FAR = [
    ("constant", "tanh", "break 1"),
    ("zeros", "sigmoid", "break 2"),
    ("constant", "relu", "break 3"),
    ("He", "tanh", "zero 1"),
    ("small", "sigmoid", "zero 2"),
    ("large", "relu", "zero 3"),
]


@pytest.fixture(scope="module")
def page(stay: Visit, made: Made) -> Page:
    """The lab, opened once: each test asks for trainings of its own."""
    return stay(made("lab"))


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What Python's states hold; the page's hold more."""
    return asdict(lab.run("zeros", steps=(0,))[0])


Case = tuple[str, str, str]  # start, activation, change


# What Python does not know stays in the page: it is more than half of the numbers.
RUN = """([chosen, steps, names]) => {
    const pick = (given, wanted) => Object.fromEntries(wanted.map(name => [name, given[name]]))
    return lab.run(...chosen, steps).map(state => ({
        ...pick(state, Object.keys(names)),
        layers: state.layers.map(layer => pick(layer, Object.keys(names.layers[0]))),
    }))
}"""


def states(page: Page, names: dict[str, Any], case: Case, steps: tuple[int, ...]) -> Any:
    """What the page computes, in the form of Python's states."""
    return page.evaluate(RUN, [case, steps, names])


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every pair of numbers: where it stands, and how far it is apart."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            yield from differences(ours[name], theirs[name], f"{path}.{name}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for at, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{path}[{at}]")
    else:
        yield path, 0.0 if ours == theirs else abs(ours - theirs)


def compare(page: Page, names: dict[str, Any], case: Case, steps: tuple[int, ...]) -> None:
    python = [asdict(state) for state in lab.run(*case, steps)]
    found = list(differences(python, states(page, names, case, steps)))
    # Step, cost, two accuracies; 91 parameters; for each layer distinct units, four identities.
    assert len(found) == len(steps) * (4 + 91 + 3 * 5)
    limit = 0.0 if case[1] in EXACT else NEAR
    # The cost alone is a sum of logarithms, and each library has its own.
    far = [(w, d) for w, d in found if not d <= (NEAR if w.endswith(".cost") else limit)]
    assert far == [], case
    counts = [(w, d) for w, d in found if w.endswith((".distinct", ".train", ".test", ".step"))]
    assert all(difference == 0.0 for _, difference in counts), case


# Every start and every activation; all pairs of the two starts that most is said of.
PAIRS = [
    (start, activation)
    for row, start in enumerate(lab.STARTS)
    for column, activation in enumerate(lab.ACTIVATIONS)
    if (row + column) % 2 == 0 or start in ("zeros", "He")
]


@pytest.mark.parametrize(("start", "activation"), PAIRS)
def test_every_number_of_every_start_is_pythons(
    page: Page, names: Any, start: str, activation: str
):
    compare(page, names, (start, activation, "none"), STEPS)


@pytest.mark.parametrize("change", lab.CHANGES[1:])
@pytest.mark.parametrize("start", lab.STARTS)
def test_a_changed_start_is_pythons(page: Page, names: Any, start: str, change: str):
    """Every start and every change, each with every activation."""
    turn = list(lab.STARTS).index(start) + lab.CHANGES.index(change)
    activation = list(lab.ACTIVATIONS)[turn % len(lab.ACTIVATIONS)]
    compare(page, names, (start, activation, change), (0, 1, 10))


@pytest.mark.parametrize("case", FAR, ids="-".join)
def test_a_changed_start_is_pythons_after_many_steps(page: Page, names: Any, case: Case):
    compare(page, names, case, MANY)


@pytest.mark.parametrize(
    ("start", "cost", "near"),
    [
        ("zeros", 0.6931471805599453, 0.0),
        ("He", 0.07357895962677366, 1e-13),
        ("large", 0.38278, 1e-3),  # chaotic: the article's order of operations is not known
    ],
)
def test_the_articles_costs_come_back(page: Page, start: str, cost: float, near: float):
    (state,) = page.evaluate("start => lab.run(start, 'relu', 'none', [14000])", start)
    assert state["cost"] == pytest.approx(cost, rel=0, abs=near)


@pytest.mark.parametrize(
    ("start", "activation"), [("zeros", "sigmoid"), ("constant", "relu"), ("constant", "tanh")]
)
def test_copies_are_equal_in_every_bit_to_the_end(page: Page, start: str, activation: str):
    (state,) = page.evaluate("([s, a]) => lab.run(s, a, 'none', [14000])", [start, activation])
    for layer in state["layers"][:2]:
        assert layer["distinct"] == 1
        assert len({tuple(row) for row in layer["weights"]}) == 1
        assert [layer[name] for name in ("inputs", "outputs", "gradients", "updates")] == [0.0] * 4


def test_an_infinite_cost_is_infinite_in_the_page_too(page: Page, names: Any):
    """Else the comparison above would rest on nothing for the large start."""
    assert states(page, names, ("large", "relu", "none"), (0,))[0]["cost"] == math.inf
