"""One file per published method: its `Config` and its `build(config) -> stages`. A file here is a method; there is no list."""

import ast
import functools
import pathlib


@functools.cache
def _first_line(path: pathlib.Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def descriptions() -> dict[str, str]:
    """Every method and the first line of its description, without importing any."""
    files = sorted(path for folder in __path__ for path in pathlib.Path(folder).glob("[!_]*.py"))
    return {path.stem: _first_line(path) for path in files}
