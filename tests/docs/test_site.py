"""What the site makes of docstrings and links."""

import json
import pathlib
import sys

import pytest

pytest.importorskip("griffe")
pytest.importorskip("mkdocs")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "docs" / "site"))

import docstrings
import hooks

DOCSTRING = """A loss of [B, C] cosines.

        L_i = -cos θ_iy

    Some text.

    Args:
      cosines: [B, C] float,
        in [-1, 1].
      labels, weights: both [B].

    Returns:
      [B] float32.

    Example:
      >>> 1 + 1
      2
    """


def test_sections_become_definitions_and_blocks():
    made = docstrings.to_markdown(DOCSTRING)
    assert made.startswith("A loss of \\[B, C\\] cosines.\n")
    assert "```{ .text .equation }\nL_i = -cos θ_iy\n```" in made
    assert "`cosines`\n\n:   \\[B, C\\] float,\n    in \\[-1, 1\\].\n" in made
    assert "`labels`, `weights`\n\n:   both \\[B\\].\n" in made
    assert '<p class="doc-section">Returns</p>\n\n\\[B\\] float32.\n' in made
    assert made.endswith("```pycon\n>>> 1 + 1\n2\n```\n")


def test_code_and_links_keep_their_brackets():
    assert docstrings.escape("`x[0]` of [a](b.md) and [C]") == "`x[0]` of [a](b.md) and \\[C\\]"


@pytest.mark.parametrize(
    ("page", "link", "target"),
    [
        ("guides/data.md", "../methods/sface.md#idea", "../methods/sface.md#idea"),
        ("methods/sface.md", "../../CHANGELOG.md", "../changelog.md"),
        ("methods/sface.md", "../../setup.py", "../repository/setup.py.md"),
        ("index.md", "studies", "studies/index.md"),
        ("index.md", "../README.md#methods", "index.md"),
        ("guides/clusters.md", "slurm.sh", "slurm.sh"),
        ("index.md", "https://arxiv.org/abs/2205.12010", "https://arxiv.org/abs/2205.12010"),
    ],
)
def test_links_of_the_repository_are_links_of_the_site(page, link, target):
    made = hooks._rewrite(f"see [it]({link}).", hooks.DOCS / page, page)
    assert made == f"see [it]({target})."


def test_code_blocks_are_left_alone():
    code = "```text\n[a](../README.md)\n```\n"
    assert hooks._rewrite(code, hooks.DOCS / "index.md", "index.md") == code


def test_code_spans_find_what_they_name():
    targets = hooks._targets()
    assert targets["losses.sface_loss"] == targets["sface_loss"] == "jaxface.losses.sface_loss"
    assert targets["jaxface/losses/sface.py"] == "jaxface.losses.sface"
    assert "run" not in targets  # a word, not a name


def test_notebooks_fetch_no_badge(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["# Install\n", "1 + 1"]},
        {"cell_type": "markdown", "source": ["# Title\n", "[![Open](https://a.b/c.svg)](https://a.b/open)"]},
    ]
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"cells": cells}), "utf-8")
    page = hooks._notebook(path)
    assert page.startswith("# Title\n") and "\n[Open](https://a.b/open)\n" in page
    assert "```python\n# Install\n1 + 1\n```" in page
