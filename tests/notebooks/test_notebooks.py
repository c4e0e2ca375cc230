"""Every notebook equals its script, starts by installing, runs from top to bottom, and shows at least one figure."""

import importlib.util
import pathlib
import sys

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


FEW = "identities=12, per_identity=8, held_out_identities=6, held_out_per_identity=4"
SHORTER = {
    "small_files": [("STEPS, CLIP_STEPS = 600, 150", "STEPS, CLIP_STEPS = 8, 4")],
    "detection": [("(600, 300)", "(6, 4)"), ("(700, 200)", "(4, 2)")],
    "distillation": [("steps=250", "steps=20")],
    "face_detector": [("STEPS = 200", "STEPS = 8")],
    "imperfect_data": [("steps=600", "steps=20"), ("steps=700", "steps=4"), ("steps=72", "steps=2")],
    "photographs": [
        ("identities=40, held_out_identities=12", FEW),
        ("steps=80", "steps=2"),
        ("steps=40", "steps=2"),
    ],
    "quality_and_liveness": [("steps=500, quality_steps=400", "steps=10, quality_steps=4"), ("steps=600", "steps=6")],
    "rendered_people": [("identities=64, held_out_identities=30", FEW), ("steps=120", "steps=8")],
    "search_and_transfer": [("phase_steps=30", "phase_steps=2"), ("steps=400", "steps=8")],
}  # what a reader waits for; all cells run on what little was learned


@EACH
def test_its_name_hides_no_module(script):
    """A kernel imports from the notebooks' folder first; `compression` is of the standard library from Python 3.14 on."""
    assert script.stem not in {"compression", *sys.stdlib_module_names}
    assert importlib.util.find_spec(script.stem) is None


@pytest.mark.slow
@EACH
def test_it_runs(script, monkeypatch):
    """As a reader runs it, but for fewer steps and people: without the flags and the figures' backend of the tests."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("XLA_FLAGS", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    for long, short in SHORTER.get(script.stem, []):
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and long in cell.source)
        cell.source = cell.source.replace(long, short)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
