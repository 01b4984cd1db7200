"""How a name of a model is written out, wherever one is shown."""

from __future__ import annotations

__all__ = ["visible"]


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
