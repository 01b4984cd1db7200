"""Reads a page as a browser without scripts would: its tags, its text, and what it may run."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "input", "br", "hr"}
# What a page could load something with, or run something by.
LOADING = {"src", "srcset", "data", "action", "formaction", "background", "poster", "srcdoc"}


class Page(HTMLParser):
    """Tags and attributes of a page, its text, its scripts, and whether the tags match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.text = ""  # what shows without scripts
        self.scripts: list[str] = []  # those that run
        self.held: list[str] = []  # those that are data
        self.open: list[str] = []
        self._sink = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            runs = dict(attrs).get("type") is None
            (self.scripts if runs else self.held).append("")
            self._sink = "run" if runs else "held"
        elif tag == "style":
            self._sink = "style"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._sink = ""

    def handle_data(self, data: str) -> None:
        if self._sink == "run":
            self.scripts[-1] += data
        elif self._sink == "held":
            self.held[-1] += data
        elif not self._sink:
            self.text += data

    def values(self, name: str) -> list[str]:
        """The values of an attribute, in the order of the page."""
        return [value for _, key, value in self.attributes if key == name]

    def rows(self, caption: str) -> int:
        """Rows in the body of the table whose caption starts so."""
        (table,) = [
            part.split("</table>")[0]
            for part in self.source.split("<table")
            if re.search(rf"<caption>{re.escape(caption)}", part)
        ]
        return table.count("<tr") - 1

    def assert_sound(self) -> None:
        """Every tag is closed, nothing is loaded, and nothing runs but what the policy names."""
        assert not self.open
        assert not {"img", "iframe", "object", "embed", "base", "form", "video"} & set(self.tags)
        names = {name for _, name, _ in self.attributes}
        assert not LOADING & names
        assert not {name for name in names if name.startswith("on")}
        for tag, _, value in [each for each in self.attributes if each[1] == "href"]:
            assert (
                value.startswith("#")
                or (tag, value) == ("link", "data:,")
                or (
                    tag == "a" and value.startswith("https://")  # a source that a rule names
                )
            ), value
        styles = re.findall(r"<style>(.*?)</style>", self.source, re.DOTALL)
        assert not re.search(r"url\(|@import|://", "".join(styles))
        (policy,) = [value for value in self.values("content") if "default-src" in value]
        hashes = [hashlib.sha256(script.encode()).digest() for script in self.scripts]
        named = re.findall(r"'sha256-([^']*)'", policy)
        assert [base64.b64encode(each).decode() for each in hashes] == named
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert not re.search(r"unsafe-eval|https?:|\*|script-src[^;]*unsafe", policy)
        ids = self.values("id")
        assert len(set(ids)) == len(ids)
        levels = [int(tag[1]) for tag in self.tags if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels)), levels
