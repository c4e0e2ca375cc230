"""Where a method lives: the files that carry its slug and the shared ones that say they serve it.

A module that serves several methods ends its docstring with a line such as `Methods: ida, acw`. A file carries a slug in its name
or, like the studies' results, in its folder's.
"""

import ast
import functools
import pathlib
import sys

import jaxface
from jaxface.cli.console import Arguments
from jaxface.errors import UserError
from jaxface.registry import nearest

_PACKAGES = ("jaxface", "pallas_kernels", "experiments")


@functools.cache
def root() -> pathlib.Path:
    """The folder that holds the packages: a checkout, or where they are installed."""
    return pathlib.Path(jaxface.__file__).parents[1]


@functools.cache
def methods_line(path: pathlib.Path) -> tuple[str, ...] | None:
    """The slugs of the paragraph `Methods: …`, a line as a rule, that ends a module's docstring; None where it has none."""
    text = path.read_text("utf-8")
    if "Methods: " not in text:
        return None
    docstring = ast.get_docstring(ast.parse(text)) or ""
    last = " ".join(docstring.rstrip().rpartition("\n\n")[2].split("\n"))
    if not last.startswith("Methods: "):
        return None
    return tuple(slug.strip() for slug in last.removeprefix("Methods: ").rstrip(".").split(","))


def slugs() -> tuple[str, ...]:
    """Every method, by its file in `experiments/methods`, or by what modules say where that folder is not installed."""
    files = (root() / "experiments" / "methods").glob("[!_]*.py")
    return tuple(sorted(path.stem for path in files)) or tuple(
        sorted({slug for path in _modules() for slug in methods_line(path) or ()})
    )


def descriptions() -> dict[str, str]:
    """Every method and the first line of what its files say, that of the experiment first, without importing any."""
    lines = {}
    for slug in slugs():
        files = [path for path in _modules() if path.stem == slug]
        files.sort(key=lambda path: path.parent != root() / "experiments" / "methods")
        docstrings = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "" for path in files[:1])
        lines[slug] = next(docstrings, "").partition("\n")[0]
    return lines


@functools.cache
def _modules() -> list[pathlib.Path]:
    return sorted(path for package in _PACKAGES for path in (root() / package).rglob("*.py"))


def where(slug: str) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """(files of the method alone, shared modules that serve it), relative to `root()`.

    Raises:
      UserError: no such method; names the nearest.
    """
    slug = slug.replace("-", "_")
    if slug not in slugs():
        raise UserError(f"slug: needs one of {', '.join(slugs())}, got {slug!r}{nearest(slug, slugs())}")
    alone = [path for path in _modules() if path.stem == slug]
    alone += sorted((root() / "benchmarks").rglob(f"{slug}.py"))
    tests = root() / "tests"
    alone += sorted([*tests.rglob(f"test_{slug}*.py"), *tests.rglob(f"{slug}.py")])
    alone += sorted((root() / "docs" / "methods").glob(f"{slug}.md"))
    alone += sorted((root() / "docs" / "studies" / slug).glob("*"))
    shared = [path for path in _modules() if slug in (methods_line(path) or ())]
    return tuple([path.relative_to(root()) for path in paths] for paths in (alone, shared))


def main(arguments: list[str]) -> None:
    """Prints both lists."""
    parser = Arguments(prog="jaxface where", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("slug", help=f"one of {', '.join(slugs())}")
    alone, shared = where(parser.parse_args(arguments).slug)
    lines = [*map(str, alone), *(["", "shared:"] if shared else []), *map(str, shared)]
    sys.stdout.write("\n".join(lines) + "\n")
