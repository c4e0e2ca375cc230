"""The public names of the packages, read from their sources: nothing is imported, and no list is kept by hand.

Public is what the `__all__` of a package names, and what a module that lies directly in `jaxface` defines without an underscore.
"""

import ast
import dataclasses
import functools
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("jaxface", "pallas_kernels")


@dataclasses.dataclass(frozen=True)
class PublicName:
    """A name that people may import.

    Attributes:
      path: what to import, such as "jaxface.losses.sface_loss".
      module: where it is defined, such as "jaxface.losses.sface".
      kind: "class", "function" or "value".
      doc: its docstring; of a value, the string below its definition.
      undocumented: methods and properties of a class that say nothing, not even in a class of ours that it derives from.
    """

    path: str
    module: str
    kind: str
    doc: str
    undocumented: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return self.doc.strip().partition("\n")[0]


def _file(module: str) -> pathlib.Path | None:
    path = ROOT.joinpath(*module.split("."))
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module or package of the repository."""
    return ast.parse(_file(module).read_text("utf-8"))


def module_doc(module: str) -> str:
    return ast.get_docstring(tree(module)) or ""


def _assigned(node: ast.stmt) -> str | None:
    """The name that a statement at the top of a module gives a value to."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.TypeAlias):
        return node.name.id
    return None


@functools.cache
def _exports(module: str) -> tuple[str, ...] | None:
    for node in tree(module).body:
        if _assigned(node) == "__all__" and isinstance(node.value, ast.List):
            return tuple(ast.literal_eval(node.value))
    return None


@functools.cache
def find(module: str, name: str) -> tuple[str, ast.stmt, str] | None:
    """Where `module.name` is defined: (module, statement, docstring); None where that is outside of the repository."""
    if _file(module) is None:
        return None
    body = tree(module).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return module, node, ast.get_docstring(node) or ""
        if _assigned(node) == name:
            text = (
                following.value.value if isinstance(getattr(following, "value", None), ast.Constant) else ""
            )
            return module, node, text if isinstance(text, str) and isinstance(following, ast.Expr) else ""
        if isinstance(node, ast.ImportFrom):
            for imported in node.names:
                if (imported.asname or imported.name) == name:
                    return find(node.module, imported.name)
    return None


def _members(module: str, node: ast.ClassDef) -> dict[str, bool]:
    """Methods and properties of a class and of those of ours that it derives from, and whether each is documented."""
    members: dict[str, bool] = {}
    for base in reversed(node.bases):
        if (
            isinstance(base, ast.Name)
            and (found := find(module, base.id))
            and isinstance(found[1], ast.ClassDef)
        ):
            members |= _members(found[0], found[1])
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and method.name != "setup":
            members[method.name] = bool(ast.get_docstring(method)) or members.get(method.name, False)
    return members


def _public(path: str, module: str, name: str) -> PublicName:
    found = find(module, name)
    if found is None:
        raise ValueError(f"{module}.{name}: is exported and not defined in the repository")
    home, node, doc = found
    if isinstance(node, ast.ClassDef):
        silent = tuple(f"{name}.{m}" for m, documented in _members(home, node).items() if not documented)
        return PublicName(path, home, "class", doc, silent)
    return PublicName(path, home, "function" if isinstance(node, ast.FunctionDef) else "value", doc)


@functools.cache
def packages() -> dict[str, tuple[PublicName, ...]]:
    """Package or module of the reference -> its public names, the names of each in the order of their modules.

    A name that several packages export belongs to the outermost of them.
    """
    inventory: dict[str, tuple[PublicName, ...]] = {}
    seen: set[tuple[str, str]] = set()
    modules = []
    for top in PACKAGES:
        files = sorted((ROOT / top).rglob("__init__.py"), key=lambda file: (len(file.parts), file))
        modules += [
            ".".join(file.parent.relative_to(ROOT).parts) for file in files if file.parent.name != top
        ]
    modules += [f"jaxface.{file.stem}" for file in sorted((ROOT / "jaxface").glob("[!_]*.py"))]
    for module in modules:
        exported = _exports(module)
        if exported is None and _file(module).name != "__init__.py":
            exported = tuple(
                node.name
                for node in tree(module).body
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            )
        names = []
        for name in exported or ():
            if _file(f"{module}.{name}") is not None and find(module, name) is None:
                continue  # a module of the package
            public = _public(f"{module}.{name}", module, name)
            if (public.module, name) not in seen:
                seen.add((public.module, name))
                names.append(public)
        if names:
            inventory[module] = tuple(sorted(names, key=lambda public: (public.module, public.path.lower())))
    return inventory


def names() -> list[PublicName]:
    return [name for public in packages().values() for name in public]
