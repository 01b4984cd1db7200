"""How names are written out, wherever they are shown, and which known one was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["did_you_mean", "layer_named", "listed", "visible"]

_BETWEEN_WORDS = re.compile(r"[-_.]")
_NUMBERS = re.compile(r"[\d.]+")


def visible(text: str) -> str:
    r"""Return ``text`` with every control character written out, so that it fills one line.

    Escape sequences, newlines, direction marks and lone surrogates can be part of a module's name;
    none of them may reach a terminal or a page.

    >>> print(visible("block\n\x1b[31m"))
    block\n\x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def layer_named(name: str) -> str:
    """A layer's name within a sentence: one of numbers alone says that it is a layer.

    >>> layer_named("encoder.0"), layer_named("0"), layer_named("0.3"), layer_named("")
    ('encoder.0', 'layer 0', 'layer 0.3', 'the model itself')
    """
    if _NUMBERS.fullmatch(name):
        return f"layer {name}"
    return name or "the model itself"


def listed(items: Iterable[str], most: int = 3, *, apart: str = ", ", what: str = "") -> str:
    """The first few, and how many more there are.

    Args:
        items: names, or longer pieces of text.
        most: how many of them are written.
        apart: what stands between them.
        what: what one of them is, for the rest.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    >>> listed(["a: 1", "b: 2", "c: 2"], 2, apart="; ", what="layer")
    'a: 1; b: 2; and 1 more layer'
    """
    every = list(items)
    left = len(every) - most
    shown = apart.join(every[:most])
    if left <= 0:
        return shown
    before = " " if apart == ", " else apart
    kind = f" {what}{'s' if left > 1 else ''}" if what else ""
    return f"{shown}{before}and {left} more{kind}"


def did_you_mean(name: str, known: Iterable[str], most: int = 3, *, alike: float = 0.6) -> str:
    """Return "; did you mean …?" with the nearest known names, or nothing where none is near.

    A name is as near as its first word is: "he" means "he_normal".

    Args:
        name: what was given; upper and lower case are the same.
        known: every name there is.
        most: how many are offered.
        alike: share of the letters that has to agree, as `difflib` counts it.

    >>> did_you_mean("gtp2", ["gpt2", "bert"])
    '; did you mean gpt2?'
    >>> did_you_mean("xaiver", ["he_normal", "xavier_normal", "xavier_uniform"])
    '; did you mean xavier_normal or xavier_uniform?'
    """
    matcher = difflib.SequenceMatcher(b=name.lower())

    def likeness(written: str) -> float:
        matcher.set_seq1(written)
        return matcher.ratio()

    found = []
    for other in set(known):
        whole = other.lower()
        best = max(likeness(whole), likeness(_BETWEEN_WORDS.split(whole, maxsplit=1)[0]))
        if best >= alike:
            found.append((-best, -likeness(whole), other))
    near = [other for _, _, other in sorted(found)[:most]]
    return f"; did you mean {' or '.join(map(visible, near))}?" if near else ""
