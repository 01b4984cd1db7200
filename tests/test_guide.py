"""Every code block of the guide runs, and prints what the guide shows.

How a page of docs/ is read:

- ``python`` blocks run in order, in one namespace and one empty folder for each page.  A block that
  begins with a comment naming a file (``# model.py``) is also written to that file.
- ``console`` blocks hold commands after ``$``: fanin, pytest and ``echo $?``.  What stands below a
  command is its output.  A status other than 0 has to be shown by ``echo $?``.
- A ``text`` block that follows a ``python`` block is what the block prints.
- ``...`` stands for any text; differences in white space do not count.
- ``toml`` blocks are recipes, ``yaml`` blocks are YAML.
- A block below ``<!-- not run: reason -->`` is shown only.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from click.testing import CliRunner

import fanin
from fanin import errors
from fanin.cli import cli
from fanin.findings import RULES
from fanin.lab import making
from fanin.report.figures import KINDS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md"))
SHOWN_ONLY = 1  # an installation
FENCE = re.compile(
    r"(?:<!-- (?P<note>[^>]+) -->\n\n?)?^```(?P<language>\S*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Sphinx, but for the 152 checks of the lab's page and the index of words, which no test of the
# built guide looks at.  The tree of all pages, which takes longest and leads to the same pages from
# each, stands on the first alone.
BUILD = """
import sys
import furo
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.cmd.build import main
from fanin.lab import making
making._verdicts = lambda _: ([], {})
StandaloneHTMLBuilder.search = False
tree = furo._compute_navigation_tree
furo._compute_navigation_tree = lambda on: tree(on) if on["pagename"] == "index" else ""
sys.exit(main(sys.argv[1:]))
"""


class Block(NamedTuple):
    language: str
    code: str
    note: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["code"],
            found["note"] or "",
            text.count("\n", 0, found.start("language")) + 1,
        )
        for found in FENCE.finditer(text)
    ]


def same(wanted: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(wanted, got, FLAGS)


class Reader:
    """Someone who types what a page shows."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.scope: dict[str, Any] = {"__name__": "guide"}
        self.printed: str | None = None
        self.status = 0

    def read(self, block: Block) -> None:
        if block.note.startswith("not run"):
            self.printed = None
        elif block.language == "python":
            self.printed = self.python(block)
        elif block.language == "text":
            if self.printed is not None:
                assert same(block.code, self.printed), f"{self.at(block)}\n{self.printed}"
            self.printed = None
        elif block.language == "console":
            self.console(block)
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "yaml":
            assert yaml.safe_load(block.code), self.at(block)
        else:
            assert block.language.startswith("{"), f"{self.at(block)}: what is {block.language!r}?"

    def at(self, block: Block) -> str:
        return f"{self.page.name}:{block.line}"

    def python(self, block: Block) -> str:
        named = re.match(r"# ([\w/]+\.py)\n", block.code)
        if named:
            Path(named[1]).write_text(block.code, encoding="utf-8")
        code = "\n" * block.line + block.code
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, str(self.page), "exec"), self.scope)
        return out.getvalue()

    def console(self, block: Block) -> None:
        commands = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
        assert not commands[0].strip(), f"{self.at(block)}: a command begins with $"
        for command, *wanted in (shown.split("\n", 1) for shown in commands[1:]):
            if command != "echo $?":
                assert self.status == 0, f"{self.at(block)}: a command failed: show its status"
            got = self.run(command)
            if wanted[0].strip():
                assert same(wanted[0], got), f"{self.at(block)}: {command}\n{got}"

    def run(self, command: str) -> str:
        program, *arguments = shlex.split(command)
        if program == "echo":
            assert arguments == ["$?"]
            status, self.status = self.status, 0
            return f"{status}\n"
        if program == "fanin":
            done = CliRunner().invoke(cli, arguments, prog_name="fanin")
            assert done.exception is None or isinstance(done.exception, SystemExit), done.output
            self.status = done.exit_code
            return done.output
        assert program == "pytest", f"{program} cannot be run here"
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        self.status = ran.returncode
        return ran.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_does_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name == "scale.md" and torch.__version__ < (2, 7):
        pytest.skip("FSDP2 of torch 2.6 runs on a GPU only")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)  # of another page
    monkeypatch.setattr(making, "_verdicts", lambda _: ([], {}))  # 152 checks, which no page shows
    reader = Reader(page)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks(page):
            reader.read(block)
    assert reader.status == 0, f"{page.name}: the last command failed: show its status"


def test_every_kind_of_figure_is_listed() -> None:
    page = (DOCS / "notebook.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) == list(KINDS)


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    (tree,) = (block.code for block in blocks(DOCS / "api.md") if block.language == "text")
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in tree.splitlines():
        name = re.search(r"\w+", line)
        assert name is not None
        del path[name.start() // 4 :]
        if path:
            parents[name[0]] = path[-1]
        path.append(name[0])
    real = {name: getattr(errors, name).__base__.__name__ for name in errors.__all__}
    assert parents | {"FaninError": "Exception"} == real


def test_few_blocks_are_shown_only() -> None:
    notes = [block.note for page in PAGES for block in blocks(page) if block.note]
    assert all(re.match(r"not run: \w+", note) for note in notes if note.startswith("not run"))
    assert sum(note.startswith("not run") for note in notes) <= SHOWN_ONLY


def test_the_reader_notices_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = (
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nraise RuntimeError\n```\n",
        "```console\n$ fanin explain S101\n# S102\n```\n",
        "```console\n$ fanin explain nothing\n```\n",
        "```sh\nfanin check\n```\n",
    )
    for number, text in enumerate(wrong):
        page = tmp_path / f"{number}.md"
        page.write_text(text, encoding="utf-8")
        with pytest.raises((AssertionError, RuntimeError)):
            test_a_page_does_what_it_shows(page, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guide, built in a copy of its folder; notebooks are run by their own test."""
    pytest.importorskip("furo")
    folder = tmp_path_factory.mktemp("guide")
    made = shutil.ignore_patterns("_build", "made", "findings", "schemes", "jupyter_execute")
    shutil.copytree(DOCS, folder / "docs", ignore=made)
    options = ["-W", "--keep-going", "-q", "-b", "html", "-D", "nb_execution_mode=off"]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *options, "docs", "site"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
def test_every_rule_and_every_scheme_has_its_page(site: Path) -> None:
    for code, rule in RULES.items():
        assert rule.name in (site / "findings" / f"{code}.html").read_text(encoding="utf-8")
        assert f'href="findings/{code}.html"' in (site / "findings.html").read_text("utf-8")
    for name in fanin.schemes:
        assert name in (site / "schemes" / f"{name}.html").read_text(encoding="utf-8")
        assert f'href="schemes/{name}.html"' in (site / "schemes.html").read_text("utf-8")


@pytest.mark.slow
def test_every_command_and_every_public_name_is_documented(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert [name for name in cli.commands if f'id="fanin-{name}"' not in commands] == []
    names = (site / "api.html").read_text(encoding="utf-8")
    public = [f"fanin.{name}" for name in fanin.__all__ if not name.startswith("_")]
    assert [name for name in public if f'id="{name}"' not in names] == ["fanin.FaninError"]
    assert 'id="fanin.errors.FaninError"' in names


@pytest.mark.slow
def test_no_link_of_the_built_guide_is_broken(site: Path) -> None:
    links = [
        (page, target)
        for page in site.rglob("*.html")
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:|//", target)
    ]
    assert len(links) > len(RULES)
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []


@pytest.mark.slow
def test_the_built_guide_asks_no_other_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//[^"]+', text)
