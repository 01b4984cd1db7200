"""The architecture as an outline: modules, residual branches and layers, repeated blocks folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from fanin.branches import ResidualBranch
from fanin.findings import Finding
from fanin.layers import LayerStats
from fanin.report.record import Record
from fanin.report.rows import guilty, indices
from fanin.wording import visible

__all__ = ["Line", "outline"]

DEPTH = 12  # components of a path that become levels; deeper ones stay one name
LINES = 400  # of an outline: more is no outline, and the table has every layer


@dataclass(frozen=True)
class Line:
    """A line of the outline, with the lines below it.

    Attributes:
        kind: "module", "branch", "layer", or "more" for what is left out.
        name: of the module or layer below the line above it: ``h.{0..11}``.
        times: modules or layers that the line stands for.
        told: what a layer does, or how a branch joins its stream.
        codes: of the errors and warnings that name the layer.
        severity: the gravest of these, or of the lines below; None where there is none.
        numbers: places along their stream of the branches that the line stands for, from 1.
        inner: the lines below.
    """

    kind: str
    name: str = ""
    times: int = 1
    told: str = ""
    codes: tuple[str, ...] = ()
    severity: str | None = None
    numbers: tuple[int, ...] = ()
    inner: tuple[Line, ...] = ()

    @property
    def key(self) -> object:
        """What must be the same for two lines to fold: all but name and place along the stream."""
        inner = tuple((line.name, line.key) for line in self.inner)
        return self.kind, self.times, self.told, self.codes, inner

    @property
    def branches(self) -> str:
        """The branches that a line stands for: ``branch 3 of 24``."""
        noun = "branch" if len(self.numbers) == 1 else "branches"
        return f"{noun} {indices(self.numbers)}"


@dataclass
class _Node:
    """A module: what stands below it, and the layers that have its very name."""

    children: dict[str, _Node] = field(default_factory=dict)
    layers: list[LayerStats] = field(default_factory=list)

    def leaves(self) -> Iterator[LayerStats]:
        yield from self.layers
        for child in self.children.values():
            yield from child.leaves()


def outline(record: Record, limit: int = LINES) -> tuple[Line, ...]:
    """Return the lines of the outline, in order of execution; at most about ``limit`` in all.

    Modules that differ in their index alone, and in the places of their branches, are one line.
    """
    root = _Node()
    for layer in record.layers:
        parts = layer.name.split(".", DEPTH - 1)
        node = root
        for part in parts:
            node = node.children.setdefault(part, _Node())
        node.layers.append(layer)
    lines = _Reader(record).lines(list(root.children.items()), 0)
    return _cut(lines, limit)


class _Reader:
    """Turns modules into lines."""

    def __init__(self, record: Record) -> None:
        self._branches = record.branches
        self._blame: Mapping[str, tuple[Finding, ...]] = guilty(record)
        chains = _chains(record.branches)
        self._around = {
            layer.name: () if layer.branch is None else chains[layer.branch]
            for layer in record.layers
        }

    def lines(self, children: Sequence[tuple[str, _Node]], level: int) -> list[Line]:
        """The lines of some modules that stand in ``level`` branches already."""
        found: list[Line] = []
        plain: list[tuple[str, _Node]] = []
        for branch, group in groupby(children, lambda child: self._common(child[1], level)):
            run = list(group)
            # A single module that is a branch as a whole shows it inside of itself.
            if branch is None or (len(run) == 1 and run[0][1].children):
                plain += run
                continue
            found += self._folded(plain, level)
            plain = []
            found.append(self._branch(branch, self.lines(run, level + 1)))
        return found + self._folded(plain, level)

    def _common(self, node: _Node, level: int) -> int | None:
        """The branch at a level that all layers of a module stand in."""
        around = {self._around[layer.name][level : level + 1] for layer in node.leaves()}
        only = around.pop()
        return only[0] if only and not around else None

    def _branch(self, index: int, inner: Sequence[Line]) -> Line:
        branch = self._branches[index]
        told = f"of {branch.of}, " + ("no norm" if branch.norm == "none" else f"norm {branch.norm}")
        return Line(
            "branch",
            told=told,
            severity=_worst(inner),
            numbers=(branch.number + 1,),
            inner=tuple(inner),
        )

    def _folded(self, children: Iterable[tuple[str, _Node]], level: int) -> list[Line]:
        """One line a module; neighbours that differ in their index alone share one."""
        made = [(name, self._module(name, node, level)) for name, node in children]
        found: list[Line] = []
        for _, group in groupby(made, lambda pair: (pair[0].isdecimal(), pair[1].key)):
            names, lines = zip(*group, strict=True)
            if len(names) > 1 and all(map(_is_index, names)):
                merged = _merged(lines)
                times, name = len(lines) * merged.times, indices(map(int, names))
                found.append(_joined(replace(merged, times=times, name=name)))
            else:
                found += map(_joined, lines)
        return found

    def _module(self, name: str, node: _Node, level: int) -> Line:
        if not node.children and len(node.layers) == 1:
            return self._layer(name, node.layers[0])
        own = [self._layer("(itself)", layer) for layer in node.layers]
        inner = own + self.lines(list(node.children.items()), level)
        return Line("module", visible(name), severity=_worst(inner), inner=tuple(inner))

    def _layer(self, name: str, layer: LayerStats) -> Line:
        found = self._blame.get(layer.name, ())
        severities = {finding.severity for finding in found}
        told = [layer.op]
        if layer.fan_in is not None and layer.fan_out is not None:
            told.append(f"{layer.fan_in}→{layer.fan_out}")
        told += [f"→ {layer.activation}"] if layer.activation else []
        told += [f"· runs {layer.calls} times"] if layer.calls > 1 else []
        told += [] if layer.trainable else ["· frozen"]
        return Line(
            "layer",
            visible(name) or "(the whole model)",
            told=visible(" ".join(told)),
            codes=tuple(dict.fromkeys(finding.code for finding in found)),
            severity=next((s for s in ("error", "warning") if s in severities), None),
        )


def _chains(branches: Sequence[ResidualBranch]) -> list[tuple[int, ...]]:
    """For each branch those that it stands in, the outermost first, and itself."""
    layers = [frozenset(branch.layers) for branch in branches]
    found = []
    for index, own in enumerate(layers):
        outer = [at for at, other in enumerate(layers) if own and own < other]
        found.append((*sorted(outer, key=lambda at: -len(layers[at])), index))
    return found


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 9


def _worst(lines: Iterable[Line]) -> str | None:
    severities = {line.severity for line in lines}
    return next((s for s in ("error", "warning") if s in severities), None)


def _merged(lines: Sequence[Line]) -> Line:
    """One line for several of the same key: their branches stand beside one another."""
    first = lines[0]
    inner = (_merged(each) for each in zip(*(line.inner for line in lines), strict=True))
    numbers = tuple(dict.fromkeys(number for line in lines for number in line.numbers))
    return replace(first, numbers=numbers, inner=tuple(inner))


def _joined(line: Line) -> Line:
    """A module that holds a single module or layer is one line with it: ``h.{0..11}``."""
    if line.kind != "module" or len(line.inner) != 1 or line.inner[0].kind == "branch":
        return line
    only = line.inner[0]
    return replace(only, name=f"{line.name}.{only.name}", times=line.times * only.times)


def _cut(lines: Sequence[Line], limit: int) -> tuple[Line, ...]:
    """Leave out what comes after ``limit`` lines."""
    left = limit

    def kept(line: Line) -> Iterator[Line]:
        nonlocal left
        left -= 1
        if left >= 0:
            yield replace(line, inner=tuple(k for each in line.inner for k in kept(each)))

    shown = tuple(k for line in lines for k in kept(line))
    return shown if left >= 0 else (*shown, Line("more", times=-left))
