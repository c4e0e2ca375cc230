"""The documentation: links resolve, every method has its page, commands name modules that exist."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
SECTIONS = [
    "Idea",
    "Run it",
    "What we measured",
    "What did not show",
    "Choices of ours",
    "Cost beside its baseline",
    "Where it lives",
    "Cite",
]


def name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(text: str, title: str) -> str:
    return re.split(r"^## ", text.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    text = page.read_text("utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    for target in targets:
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), f"{name(page)}: no file {target}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{name(page)}: no heading {target}"


def test_every_page_is_linked():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    }
    guides = {*(ROOT / "docs" / "guides").iterdir(), *METHOD_PAGES}
    assert guides and guides <= linked


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_every_method_has_a_page():
    methods = {path.stem for path in (ROOT / "experiments" / "methods").glob("[!_]*.py")}
    assert methods == {page.stem for page in METHOD_PAGES}


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_a_method_page_has_its_sections(page):
    text = page.read_text("utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert all(section(text, title).strip() for title in SECTIONS)
    assert f"experiments.launch {page.stem}" in section(text, "Run it")
    assert "@" in section(text, "Cite")


@functools.cache
def carried() -> dict[str, set[str]]:
    """Each Python file, and the methods that its name or the last line of its docstring says it is of."""
    files = {}
    for package in ("jaxface", "pallas_kernels", "experiments", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            files[name(path)] = {path.stem, path.stem.removeprefix("test_")}
            text = path.read_text("utf-8")
            if package != "tests" and "\nMethods: " in text:
                last = (ast.get_docstring(ast.parse(text)) or "").rstrip().rpartition("\n\n")[2]
                if last.startswith("Methods: "):
                    files[name(path)] |= set(re.split(r",\s", last.removeprefix("Methods: ").rstrip(".")))
    return files


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_where_a_method_lives(page):
    """The paths exist; the files that carry the slug, and the shared modules that name it, are among them."""
    slug = page.stem
    listed = set(
        re.findall(r"^- `([^`]+)`", section(page.read_text("utf-8"), "Where it lives"), re.MULTILINE)
    )
    assert not [path for path in listed if not (ROOT / path).exists()]
    carriers = {name(path) for path in (ROOT / "docs" / "studies").glob(slug)}
    carriers = {f"{path}/" for path in carriers} | {name(page)}
    carriers |= {path for path, methods in carried().items() if slug in methods}
    assert sorted(carriers - listed) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_modules(page):
    modules = set(
        re.findall(r"python -m ((?:jaxface|experiments|benchmarks)(?:\.\w+)+)", page.read_text("utf-8"))
    )
    paths = {m: ROOT / m.replace(".", "/") for m in modules}
    missing = [
        m
        for m, path in paths.items()
        if not any(map(pathlib.Path.is_file, (path.with_suffix(".py"), path / "__main__.py")))
    ]
    assert not missing, f"{name(page)}: no module {', '.join(missing)}"


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_studies_are_those_of_the_page(page):
    """Every file of results is whole, and the page links a table of its own method alone."""
    folder = ROOT / "docs" / "studies" / page.stem
    tables = {path.stem for path in folder.glob("*.md")}
    assert tables
    assert all((folder / f"{study}{suffix}").is_file() for study in tables for suffix in (".json", ".png"))
    linked = re.findall(r"\.\./studies/(\w+)/([\w-]+)\.md", page.read_text("utf-8"))
    assert {slug for slug, _ in linked} == {page.stem} and {study for _, study in linked} == tables


def snippets(page: pathlib.Path) -> list[str]:
    """The Python of a page, but for what needs a run, weights or photographs that a reader has."""
    code = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [
        text
        for text in code
        if not re.search(r"runs/|\.(?:jpg|png|pth|npz|safetensors|onnx)\b|\bdefine\b", text)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CONTRIBUTING.md" and snippets(page)], ids=name
)
def test_snippets_run(page):
    """Each on its own, as somebody who copies it would run it; tests/test_contributing.py has those that need one another."""
    for code in snippets(page):
        exec(compile(code, name(page), "exec"), {"__name__": "snippet"})
