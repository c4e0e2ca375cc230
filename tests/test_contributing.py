"""The worked examples of CONTRIBUTING: written out beside the library, and their own tests run."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Packages of the library look in the copies' folders too; every test of a copied test file is called.
RUN = """
import importlib, importlib.util, pathlib, sys
root = pathlib.Path(sys.argv[1])
for package in ('jaxface.losses', 'jaxface.data.specs', 'experiments.methods', 'pallas_kernels'):
    importlib.import_module(package).__path__.append(str(root / package.replace('.', '/')))
for path in sorted(root.rglob('test_*.py')):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in [name for name in vars(module) if name.startswith('test_')]:
        getattr(module, name)()
        print('passed', path.stem, name)
import doctest
failed, run = doctest.testmod(importlib.import_module('jaxface.losses.spread'))
assert run and not failed
"""


def examples() -> dict[str, str]:
    """Path -> text of every worked example."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return {
        named[1]: block
        for block in blocks
        if (named := re.match(r"# ((?:jaxface|experiments|pallas_kernels|tests)/[\w/]+\.py)\n", block))
    }


@pytest.mark.slow
def test_the_worked_examples_run(tmp_path):
    files = examples()
    folders = {path.split("/")[0] for path in files}
    assert len(files) == 11 and folders == {"jaxface", "experiments", "pallas_kernels", "tests"}
    for path, text in files.items():
        assert not (ROOT / path).exists(), f"{path}: the example would hide a file of the library"
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 6
    # Where the copies lie the order of imports from the library is another one.
    options = ["--quiet", "--ignore", "I001", "--config", str(ROOT / "pyproject.toml")]
    lint = [sys.executable, "-m", "ruff", "check", *options, str(tmp_path)]
    done = subprocess.run(lint, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
