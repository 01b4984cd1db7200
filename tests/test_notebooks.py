"""Every notebook of the guide runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SECONDS = 600  # a cell's limit
# Of the article's 15,000 steps, which tests/test_demo.py and `make demo` take.
SHORT = "demo(iterations=50)"
LATER = 'assert result.comparison.best.scheme == "He"'  # so from 5,000 on


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["article", "transformer"]


@every_notebook
def test_a_notebook_is_valid_and_holds_no_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("demo()", SHORT).replace(LATER, "")
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=where).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.output_type == "error"]
    # A warning would be read by whoever opens the notebook.  tqdm's is of the reader's own machine.
    said = [output.text for output in shown if output.get("name") == "stderr"]
    assert not [text for text in said if "IProgress not found" not in text]
