"""What the site adds to the pages of docs/: reference, studies, commands, notebooks, navigation, links that leave the folder.

Everything is found, nothing is listed: pages and public names by their files, the order of the guides by docs/index.md.
"""

import functools
import html
import json
import pathlib
import posixpath
import re
import xml.etree.ElementTree as etree

import inventory
from docstrings import to_markdown, usage
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.structure.files import File

ROOT = inventory.ROOT
DOCS = ROOT / "docs"
_TEXT = {
    ".py": "python",
    ".sh": "bash",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".toml": "toml",
    ".json": "json",
    ".cff": "yaml",
}
_PICTURES = (".png", ".jpg", ".svg")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_ASSETS = {"stylesheets/site.css": "site.css", "assets/favicon.svg": "favicon.svg"}
_HEADING = re.compile(r"^# +(.+?) *$", re.MULTILINE)


# Names that become links -------------------------------------------------------------------------------------------------------


@functools.cache
def _targets() -> dict[str, str]:
    """What code in the text may name -> the anchor that describes it.

    Whole paths always; the last parts of a path where they name one thing alone and look like a name of code.
    """
    targets: dict[str, str | None] = {}
    for package in inventory.packages():
        targets[package] = package
    for name in inventory.names():
        parts = name.path.split(".")
        targets[f"{name.module}.{parts[-1]}"] = name.path
        for start in range(len(parts) - 1):
            targets[".".join(parts[start:])] = name.path
        last = parts[-1]
        if "_" in last or re.fullmatch(r"[A-Z]\w{3,}", last):
            targets[last] = None if last in targets else name.path
        targets[name.module.replace(".", "/") + ".py"] = name.module
    for method in _methods():
        targets[f"experiments/methods/{method}.py"] = f"experiments.methods.{method}"
    return {code: target for code, target in targets.items() if target}


class _LinkNames(Treeprocessor):
    def run(self, root: etree.Element) -> None:
        self._visit(root)

    def _visit(self, element: etree.Element) -> None:
        for index, child in enumerate(list(element)):
            if child.tag == "code" and child.text and not len(child):
                target = _targets().get(html.unescape(child.text))
                if target:
                    link = etree.Element("autoref", {"identifier": target, "optional": "", "hover": ""})
                    link.tail, child.tail = child.tail, None
                    element.remove(child)
                    link.append(child)
                    element.insert(index, link)
            elif child.tag not in ("a", "autoref", "pre", "h1", "h2", "h3", "h4", "h5", "h6"):
                self._visit(child)


class LinkNames(Extension):
    """Code spans that name something public link to its description."""

    def extendMarkdown(self, md):
        md.treeprocessors.register(_LinkNames(md), "jaxface_names", 1)


# Pages -------------------------------------------------------------------------------------------------------------------------


def _methods() -> list[str]:
    return sorted(page.stem for page in (DOCS / "methods").glob("*.md"))


def _title(page: pathlib.Path) -> str:
    found = _HEADING.search(page.read_text("utf-8"))
    return found[1] if found else page.stem


def _first_sentence(markdown: str) -> str:
    paragraph = " ".join(markdown.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s", paragraph, maxsplit=1)[0]


def _reference() -> dict[str, str]:
    """Address of each page of the reference -> its text."""
    pages = {}
    overview = ["# Reference", "", "Everything public, from the docstrings. The search finds every name.", ""]
    overview += ["| package | what |", "|---|---|"]
    for package, names in sorted(inventory.packages().items()):
        folder = "reference/" + package
        modules: dict[str, list[inventory.PublicName]] = {}
        for name in names:
            modules.setdefault(name.module, []).append(name)
        doc = inventory.module_doc(package)
        whole = len(modules) == 1
        paths = {name.path.rpartition(".")[2]: name.path for name in names}
        index = [
            f"# {package} {{ #{package} }}",
            "",
            _module_text(doc, paths, "../" if whole else "../../"),
            "",
        ]
        for module, members in modules.items():
            label = module.removeprefix(package).lstrip(".") or module.rpartition(".")[2]
            if whole:
                index += [f"::: {name.path}\n" for name in members]
                continue
            page = f"{folder}/{label.replace('.', '-')}.md"
            index += [f"## [{label}]({posixpath.basename(page)})", "", "| name | |", "|---|---|"]
            index += [f"| [`{n.path.rpartition('.')[2]}`][{n.path}] | {_cell(n.summary)} |" for n in members]
            index.append("")
            text = [
                f"# {package.rpartition('.')[2]}.{label} {{ #{module} }}",
                "",
                _module_text(inventory.module_doc(module), paths),
                "",
            ]
            pages[page] = "\n".join(text + [f"::: {name.path}\n" for name in members])
        pages[f"{folder}/index.md" if not whole else f"{folder}.md"] = "\n".join(index)
        overview.append(f"| [`{package}`][{package}] | {_cell(_first_sentence(doc))} |")
    pages["reference/index.md"] = "\n".join([*overview, ""])
    return pages


def _module_text(doc: str, paths: dict[str, str], root: str = "../../") -> str:
    """The docstring of a module, whose names and methods are links."""
    doc, _, methods = doc.rstrip().partition("\nMethods: ")
    text = to_markdown(doc)
    text = re.sub(r"(?<!\[)`(\w+)`", lambda m: f"[{m[0]}][{paths[m[1]]}]" if m[1] in paths else m[0], text)
    if methods:
        linked = (f"[{method}]({root}methods/{method}.md)" for method in methods.rstrip(".").split(", "))
        text += f"\nMethods: {', '.join(linked)}\n"
    return text


def _cell(text: str) -> str:
    """A line for a table: bars would end a cell, brackets would be links."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"[\[\]]", r"\\\g<0>", part).replace("|", "\\|") for part in parts[::2]]
    return "".join(parts)


def _commands() -> str:
    text = [
        "# Commands",
        "",
        "What each command says of itself; `--help` adds its flags.",
        "",
    ]
    modules = {
        f"jaxface {file.stem}": file for file in sorted((ROOT / "jaxface/cli/commands").glob("[!_]*.py"))
    }
    modules |= {
        f"python -m experiments.{file.stem}": file
        for file in sorted((ROOT / "experiments").glob("[!_]*.py"))
        if "__main__" in file.read_text("utf-8")
    }
    modules |= {
        f"python -m experiments.programs.{file.stem}": file
        for file in sorted((ROOT / "experiments/programs").glob("[!_]*.py"))
        if "__main__" in file.read_text("utf-8")
    }
    for command, file in modules.items():
        text += [f"## {command}", "", usage(file.read_text("utf-8")), ""]
    return "\n".join(text)


def _method_index() -> str:
    text = [
        "# Methods",
        "",
        "[Which one for which problem?](../guides/choosing.md)",
        "",
        "| method | idea |",
        "|---|---|",
    ]
    for method in _methods():
        page = DOCS / "methods" / f"{method}.md"
        title, _, idea = _title(page).partition(": ")
        text.append(f"| [{title}]({method}.md) | {_cell(idea)} |")
    return "\n".join([*text, ""])


def _study_index() -> str:
    text = ["# Studies", "", "What `python -m experiments.reproduce` measured, every arm of it.", ""]
    for folder in sorted(path for path in (DOCS / "studies").iterdir() if path.is_dir()):
        text += [f"## {folder.name}", "", f"[The method](../methods/{folder.name}.md)", ""]
        for page in sorted(folder.glob("*.md")):
            text.append(
                f"- [{page.stem}]({folder.name}/{page.name}): {_cell(page.read_text('utf-8').partition(chr(10))[0])}"
            )
        text.append("")
    return "\n".join(text)


def _notebook(path: pathlib.Path) -> str:
    """A notebook as a page: its text and its code, without what running it shows."""
    text = [f"[Download this notebook]({path.name}){{ download }}", ""]
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            text += [source, ""]
        elif cell["cell_type"] == "code" and source:
            text += ["```python", source, "```", ""]
    body = "\n".join(text)
    return body if _HEADING.search(body) else f"# {path.stem}\n\n{body}"


def _method_source(method: str) -> str:
    file = ROOT / "experiments" / "methods" / f"{method}.py"
    code = file.read_text("utf-8").rstrip()
    head = f"# experiments/methods/{method}.py {{ #experiments.methods.{method} }}"
    return f"{head}\n\nThe experiment of [{method}](../methods/{method}.md).\n\n````python\n{code}\n````\n"


def _outside(files) -> dict[str, pathlib.Path]:
    """Files of the repository, outside of docs/, that pages link to: address on the site -> file."""
    found = {}
    sources = [DOCS / file.src_uri for file in files.documentation_pages() if (DOCS / file.src_uri).is_file()]
    sources += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "README.md"]
    for page in sources:
        for match in _LINK.finditer(page.read_text("utf-8")):
            target = match[2].partition("#")[0]
            if target and "://" not in target:
                path = (page.parent / target).resolve()
                if path.exists() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS):
                    found[_address(path)] = path
    return found


def _address(path: pathlib.Path) -> str:
    """The address on the site of a file of the repository."""
    inside = path.relative_to(DOCS) if path.is_relative_to(DOCS) else None
    if inside is not None:
        return (inside / "index.md" if path.is_dir() else inside).as_posix()
    name = path.relative_to(ROOT).as_posix()
    if name in ("notebooks", "README.md"):
        return "notebooks/index.md" if name == "notebooks" else "index.md"
    if path.suffix in _PICTURES:
        return f"repository/{name}"
    if path.suffix in (".md", ".ipynb"):
        return (
            f"{name.removesuffix(path.suffix).lower()}.md"
            if "/" not in name
            else f"{name.removesuffix(path.suffix)}.md"
        )
    return f"repository/{name}.md"


def _as_page(path: pathlib.Path) -> str:
    if path.is_dir():
        names = sorted(f"- `{entry.name}`" for entry in path.iterdir() if entry.name[0] not in "._")
        return "\n".join([f"# {path.relative_to(ROOT)}/", "", *names, ""])
    if path.suffix == ".md":
        return path.read_text("utf-8")
    return f"# {path.relative_to(ROOT)}\n\n````{_TEXT.get(path.suffix, 'text')}\n{path.read_text('utf-8').rstrip()}\n````\n"


# Hooks -------------------------------------------------------------------------------------------------------------------------

_origins: dict[str, pathlib.Path] = {}
"""Pages made of files outside of docs/, whose links are relative to those files."""


def on_config(config):
    config.markdown_extensions.append(LinkNames())
    return config


def on_files(files, config):
    made = {
        **_reference(),
        "reference/commands.md": _commands(),
        "methods/index.md": _method_index(),
        "studies/index.md": _study_index(),
        **{f"source/{method}.md": _method_source(method) for method in _methods()},
    }
    _origins.clear()
    for address, path in _outside(files).items():
        if path.suffix in _PICTURES:
            files.append(File.generated(config, address, abs_src_path=str(path)))
        elif address not in ("index.md", "notebooks/index.md") and path.suffix != ".ipynb":
            made[address] = _as_page(path)
            _origins[address] = path
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        made[_address(ROOT / name)] = _as_page(ROOT / name)
        _origins[_address(ROOT / name)] = ROOT / name
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        made[_address(path)] = _notebook(path)
        _origins[_address(path)] = path
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    if notebooks:
        listed = [f"- [{_HEADING.search(made[_address(path)])[1]}]({path.stem}.md)" for path in notebooks]
        made["notebooks/index.md"] = "\n".join(
            ["# Notebooks", "", "The tests execute them.", "", *listed, ""]
        )
    for address, text in made.items():
        files.append(File.generated(config, address, content=text))
    for address, name in _ASSETS.items():
        files.append(File.generated(config, address, abs_src_path=str(DOCS / "site" / name)))
    config.nav = _navigation(files, made)
    return files


def _navigation(files, made: dict[str, str]) -> list:
    guides = [file.src_uri for file in files.documentation_pages() if file.src_uri.startswith("guides/")]
    front = (DOCS / "index.md").read_text("utf-8")
    guides.sort(key=lambda address: (front.find(f"({address}") < 0, front.find(f"({address}"), address))
    studies = []
    for folder in sorted(path for path in (DOCS / "studies").iterdir() if path.is_dir()):
        pages = [{page.stem: f"studies/{folder.name}/{page.name}"} for page in sorted(folder.glob("*.md"))]
        studies.append({folder.name: pages})
    reference: list = ["reference/index.md", {"Commands": "reference/commands.md"}]
    for package in sorted(inventory.packages()):
        whole = f"reference/{package}.md"
        if whole in made:
            reference.append({package: whole})
            continue
        inside = sorted(
            a for a in made if a.startswith(f"reference/{package}/") and not a.endswith("index.md")
        )
        pages = [{posixpath.basename(a).removesuffix(".md").replace("-", "."): a} for a in inside]
        reference.append({package: [f"reference/{package}/index.md", *pages]})
    methods = [{m: f"methods/{m}.md"} for m in _methods()]
    navigation = [
        {"Home": "index.md"},
        {"Guides": guides},
        {"Methods": ["methods/index.md", *methods, {"Studies": ["studies/index.md", *studies]}]},
    ]
    if "notebooks/index.md" in made:
        pages = sorted(a for a in made if a.startswith("notebooks/") and not a.endswith("index.md"))
        navigation.append({"Notebooks": ["notebooks/index.md", *pages]})
    others = sorted(a for a in made if a.startswith("repository/"))
    navigation += [
        {"Reference": reference},
        {
            "Project": [
                {"Changes": "changelog.md"},
                {"Contributing": "contributing.md"},
                {"Experiments, as written": [{m: f"source/{m}.md"} for m in _methods()]},
                *(
                    [{"Files": [{a.removeprefix("repository/").removesuffix(".md"): a} for a in others]}]
                    if others
                    else []
                ),
            ]
        },
    ]
    return navigation


def on_page_markdown(markdown, page, config, files):
    address = page.file.src_uri
    if address == "index.md":
        page.meta["hide"] = ["navigation"]
    if address.startswith(("source/", "repository/", "studies/")):
        page.meta["search"] = {"exclude": True}  # code and tables of numbers would bury what is explained
    study = re.fullmatch(r"studies/(\w+)/([\w-]+)\.md", address)
    if study:
        markdown = _study(markdown, *study.groups())
    origin = _origins.get(address) or (DOCS / address)
    if not origin.is_file():
        return markdown
    return _rewrite(markdown, origin, address)


def _study(markdown: str, method: str, study: str) -> str:
    head, _, rest = markdown.partition("\n")
    figure = f"\n\n![{study}]({study}.png)" if (DOCS / "studies" / method / f"{study}.png").is_file() else ""
    return f"# {method}: {study}\n\n{head}. [What it means](../../methods/{method}.md).\n{rest.rstrip()}{figure}\n"


def _rewrite(markdown: str, origin: pathlib.Path, address: str) -> str:
    """Links to other files of the repository lead to their pages; links to folders to the pages that list them."""

    def replaced(match: re.Match) -> str:
        target, sharp, anchor = match[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (origin.parent / target).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            return match[0]
        goal = _address(path)
        if goal == "index.md":
            sharp = anchor = ""
        return (
            f"{match[1]}{posixpath.relpath(goal, posixpath.dirname(address) or '.')}{sharp}{anchor}{match[3]}"
        )

    blocks = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    blocks[::2] = [_LINK.sub(replaced, _together(block)) for block in blocks[::2]]
    return "".join(blocks)


def _together(text: str) -> str:
    """Numbers of a table do not break before their deviation, or inside their interval."""
    return re.sub(
        r"^\|.*$",
        lambda row: re.sub(r" ([±…]) (?=[+-]?\d)", "\u00a0\\1\u00a0", row[0]),
        text,
        flags=re.MULTILINE,
    )
