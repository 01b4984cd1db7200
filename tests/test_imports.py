"""The order of imports, and the public names, proven from the source."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fanin

ROOT = Path(fanin.__file__).parent

#: Each imports only what stands before it.  "" is `fanin` itself.
ORDER = (
    "errors",
    "version",
    "wording",
    "plain",
    "files",
    "moments",
    "assignment",
    "window",
    "region",
    "catalogue",
    "recipe",
    "draw",
    "activations",
    "fill",
    "fused",
    "memory",
    "placement",
    "kinds",
    "operations",
    "axes",
    "nested",
    "mapped",
    "opened",
    "process",
    "scripted",
    "guard",
    "unsharded",
    "calls",
    "provenance",
    "terms",
    "criteria",
    "trace",
    "architecture",
    "towers",
    "sides",
    "attention",
    "branches",
    "written",
    "neighbours",
    "stretches",
    "tables",
    "reparametrized",
    "layouts",
    "outputs",
    "roles",
    "adapters",
    "priors",
    "shut",
    "clones",
    "reading",
    "started",
    "apply",
    "measuring",
    "tried",
    "policies",
    "sparse",
    "summary",
    "planning",
    "starts",
    "calibration",
    "checkpoint",
    "streaming",
    "verifying",
    "sketch",
    "slopes",
    "focus",
    "gates",
    "guesses",
    "probe",
    "passes",
    "layers",
    "prediction",
    "symmetry",
    "numbers",
    "construction",
    "findings",
    "offsets",
    "report",
    "checking",
    "repair",
    "comparing",
    "",
    "targets",
    "demo",
    "lab",
    "cli",
    "__main__",
)

MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def top(module: str) -> str:
    """`fanin.report.text` belongs to `report`."""
    return [*module.split("."), ""][1]


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> tuple[tuple[str, str | None], ...]:
    """(module, name or None) for each import anywhere in the source, lazy ones included."""
    return tuple(read(module))


def read(module: str) -> Iterator[tuple[str, str | None]]:
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (str(node.module), alias.name)


def own_imports(module: str) -> Iterator[tuple[str, str | None]]:
    return ((name, what) for name, what in imports(module) if name.split(".")[0] == "fanin")


def public(module: str) -> list[str]:
    """`__all__`, as it stands in the source."""
    for node in parsed(module).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return list(ast.literal_eval(node.value))
    pytest.fail(f"{module} has no __all__")


WITH_NAMES = [module for module in MODULES if not module.endswith("__main__")]


def test_every_module_has_its_place_in_the_order():
    assert {top(module) for module in MODULES} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_earlier_ones(module: str):
    place = ORDER.index(top(module))
    for imported, _ in own_imports(module):
        if module == "fanin":
            assert ORDER.index(top(imported)) < ORDER.index(""), f"{module} imports {imported}"
        elif top(imported) != top(module):
            assert ORDER.index(top(imported)) < place, f"{module} imports {imported}"


def test_no_two_modules_import_one_another():
    """Also within a package: no cycle in the graph of all modules."""
    graph = {
        module: {name for name, _ in own_imports(module) if name != module} for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_errors_import_nothing_else():
    assert {name.split(".")[0] for name, _ in imports("fanin.errors")} <= {"__future__", "typing"}


PURE = ("errors", "wording", "plain", "moments", "assignment", "region", "catalogue", "recipe")


@pytest.mark.parametrize("module", [module for module in MODULES if top(module) in PURE])
def test_pure_mathematics_imports_no_torch(module: str):
    assert "torch" not in {name.split(".")[0] for name, _ in imports(module)}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_names_that_are_public_where_they_live(module: str):
    for imported, name in own_imports(module):
        if name is not None and name != "__version__":
            assert name in public(imported), f"{module} imports {name} from {imported}"


@pytest.mark.parametrize("module", WITH_NAMES)
def test_public_names_exist_and_stand_once(module: str):
    names = public(module)
    assert len(set(names)) == len(names)
    if module == "fanin.draw.cuda_kernel":
        pytest.importorskip("triton", reason="no Triton: pip install triton")
    loaded = importlib.import_module(module)
    assert all(hasattr(loaded, name) for name in names)
    assert all(not name.startswith("_") for name in names if name != "__version__")


def test_the_package_offers_what_it_imports_and_nothing_else():
    assert {"check", "Report", "Finding", "FaninError", "__version__"} <= set(fanin.__all__)
    tree = ast.parse(MODULES["fanin"].read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    brought = {alias.asname or alias.name for node in imported for alias in node.names}
    assert brought | {"__version__"} == set(fanin.__all__)


_FRESH = """
import sys, torch, fanin
from fanin.draw import cuda
print(*sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:])))
fanin.fill_(torch.empty(3), "normal")
from fanin.cli import main
optional = set(sys.argv[1:]) - {"click"}
sys.argv = ["fanin", "--version"]
try:
    main()
except SystemExit as end:
    assert not end.code
    assert not torch.cuda.is_initialized()
    print(*sorted({name.split(".")[0] for name in sys.modules} & optional))
"""


def test_nothing_optional_is_imported_before_it_is_needed():
    """In a fresh process: neither by the package, which needs no click, nor by a draw or the CLI.

    Nor is CUDA initialized: Triton and the context of a GPU take seconds.
    """
    optional = "transformers timm torchvision torchaudio sklearn scipy pandas matplotlib click "
    optional += "hypothesis pytest huggingface_hub triton"
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, *optional.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("", "")
