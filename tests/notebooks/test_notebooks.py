"""Every notebook equals its script, starts by installing, runs from top to bottom, and shows at least one figure."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
EACH = pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])


def test_every_notebook_has_a_script():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in SCRIPTS} != set()


@EACH
def test_the_pair_is_one(script):
    """`jupytext --to ipynb notebooks/*.py` makes the notebooks; what a reader sees in Colab is what the tests run."""
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    written = jupytext.read(script)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in written.cells
    ]
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # they are made by whoever runs it


@EACH
def test_it_opens_in_colab_and_installs_first(script):
    first, second = jupytext.read(script).cells[:2]
    assert first.cell_type == "code" and "pip" in first.source and "jaxface[" in first.source
    assert (
        f"colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/{script.stem}.ipynb"
        in second.source
    )


@pytest.mark.slow
@EACH
def test_it_runs(script, monkeypatch):
    """As a reader runs it: without the flags and the figures' backend of the tests."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("XLA_FLAGS", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
