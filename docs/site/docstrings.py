"""Docstrings as Markdown: sections are definition lists, equations and examples blocks; fields come from the sources."""

import ast
import inspect
import re
import textwrap

import griffe

_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_TITLES = {"Args": "Arguments", "Attributes": "Fields"}
_ITEMS = ("Args", "Attributes", "Raises")
_FENCE = re.compile(r"^\s*(```|~~~)")
_LIST = re.compile(r"^\s*([-*]|\d+\.) ")


def escape(line: str) -> str:
    """A line of prose whose brackets are brackets, as in [B, C]; code spans and links stay."""
    parts = re.split(r"(`+[^`]*`+|!?\[[^\]]*\]\([^)\s]+\))", line)
    parts[::2] = [
        re.sub(r"<(?=[A-Za-z/])", "&lt;", re.sub(r"[\[\]]", r"\\\g<0>", part)) for part in parts[::2]
    ]
    return "".join(parts)


def _prose(lines: list[str]) -> list[str]:
    """Paragraphs, lists, tables, equations (blocks indented by four) and doctests."""
    made: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        blank_before = not made or not made[-1].strip()
        if _FENCE.match(line):
            end = next((i for i in range(number + 1, len(lines)) if _FENCE.match(lines[i])), len(lines) - 1)
            made += lines[number : end + 1]
        elif line.startswith(">>>") or (line.startswith("    ") and blank_before):
            example = line.startswith(">>>")
            end = number
            while end + 1 < len(lines) and (lines[end + 1].strip() if example else _goes_on(lines, end)):
                end += 1
            block = textwrap.dedent("\n".join(lines[number : end + 1])).splitlines()
            made += [
                *([] if blank_before else [""]),
                "```pycon" if example else "```{ .text .equation }",
                *block,
                "```",
                "",
            ]
        else:
            if _LIST.match(line) and not blank_before and not any(map(_LIST.match, made[-8:])):
                made.append("")
            made.append(line if line.startswith("|") else escape(line))
            end = number
        number = end + 1
    return made


def _goes_on(lines: list[str], end: int) -> bool:
    """Whether an indented block goes on after line `end`, across empty lines too."""
    following = next((line for line in lines[end + 1 :] if line.strip()), "")
    return following.startswith("    ")


def _item(text: list[str], section: str) -> list[str]:
    """One argument, field or exception as a definition."""
    name, colon, description = text[0].partition(":")
    if not colon or not re.fullmatch(r"[\w*., ]+", name):
        return ["", *_prose(textwrap.dedent("\n".join(text)).splitlines())]
    rest = textwrap.dedent("\n".join(text[1:])).splitlines()
    names = ", ".join(f"`{part.strip()}`" for part in name.split(",")) if section != "Raises" else f"`{name}`"
    body = textwrap.indent("\n".join(_prose([description.strip(), *rest])), "    ").lstrip()
    return ["", names, "", f":   {body}"]


def _section(title: str, block: list[str]) -> list[str]:
    made = ["", f'<p class="doc-section">{_TITLES.get(title, title)}</p>']
    if title not in _ITEMS:
        return [*made, "", *_prose(block), ""]
    item: list[str] = []
    for line in [*block, ""]:
        if line and not line.startswith(" ") and item:
            made += _item(item, title)
            item = []
        item.append(line)
    return [*made, *_item(item, title), ""]


def to_markdown(docstring: str) -> str:
    """A docstring of ours as Markdown."""
    lines = inspect.cleandoc(docstring).splitlines()
    made: list[str] = []
    number = 0
    while number < len(lines):
        header = re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises|Example):", lines[number])
        end = number + 1
        if header:
            while end < len(lines) and (lines[end].startswith(" ") or not lines[end].strip()):
                end += 1
            block = textwrap.dedent("\n".join(lines[number + 1 : end])).strip("\n").splitlines()
            made += _section(header[1], block)
        else:
            while end < len(lines) and not re.fullmatch(
                r"(" + "|".join((*_SECTIONS, "Example")) + r"):", lines[end]
            ):
                end += 1
            made += _prose(lines[number:end])
        number = end
    return re.sub(r"\n{3,}", "\n\n", "\n".join(made)).strip() + "\n"


class Docstrings(griffe.Extension):
    """Turns the docstrings of a package into Markdown, and gives classes of fields a signature and a list of their fields."""

    def on_class_instance(self, *, cls: griffe.Class, **_) -> None:
        """A tuple or module of fields is called with them, as a data class is."""
        bases = {str(base).rpartition(".")[2].partition("[")[0] for base in cls.bases}
        if "__init__" in cls.members or not bases & {"NamedTuple", "Module"}:
            return
        fields = [
            m for m in cls.members.values() if isinstance(m, griffe.Attribute) and m.annotation is not None
        ]
        if not fields:
            return
        kind = griffe.ParameterKind.positional_or_keyword
        parameters = [griffe.Parameter("self", kind=kind)]
        parameters += [
            griffe.Parameter(f.name, annotation=f.annotation, kind=kind, default=f.value) for f in fields
        ]
        cls.set_member(
            "__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls)
        )

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        self._walk(pkg)

    def _walk(self, parent: griffe.Object) -> None:
        for member in parent.members.values():
            if member.is_alias:
                continue
            if isinstance(member, (griffe.Module, griffe.Class)):
                self._walk(member)
            if isinstance(member, griffe.Class):
                self._add_fields(member)
            if member.docstring:
                member.docstring.value = to_markdown(member.docstring.value)

    def _add_fields(self, cls: griffe.Class) -> None:
        """Appends the fields that have a comment or a string of their own, where the docstring has no list of them."""
        text = cls.docstring.value if cls.docstring else ""
        attributes = [
            m for m in cls.members.values() if isinstance(m, griffe.Attribute) and m.annotation is not None
        ]
        if re.search(r"^(Attributes|Args):$", inspect.cleandoc(text), re.MULTILINE) or not attributes:
            return
        fields = []
        for attribute in attributes:
            if attribute.name.startswith("_"):
                continue
            if attribute.docstring:
                said = " ".join(attribute.docstring.value.split())
            else:
                said = (re.search(r"  # (.+)$", attribute.source.rstrip()) or ["", ""])[1]
            if said:
                fields.append(f"  {attribute.name}: {said}")
        if fields:
            joined = inspect.cleandoc(text) + "\n\nAttributes:\n" + "\n".join(fields) + "\n"
            if cls.docstring:
                cls.docstring.value = joined
            else:
                cls.docstring = griffe.Docstring(joined, parent=cls)


def usage(source: str) -> str:
    """The docstring of a command as Markdown: its examples stay as they are typed."""
    return to_markdown(ast.get_docstring(ast.parse(source)) or "").replace(".equation }", ".usage }")
