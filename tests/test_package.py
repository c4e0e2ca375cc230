"""The layout: what may import what, and what importing costs."""

import ast
import functools
import graphlib
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import jaxface
from jaxface import extras
from jaxface.cli.commands.where import methods_line, slugs

ROOT = pathlib.Path(jaxface.__file__).parents[1]
PACKAGES = ("jaxface", "experiments", "pallas_kernels")
# Imports go down only; packages of one layer may use each other.
LAYERS = [
    {"errors", "axes", "extras", "registry"},
    {"boxes", "search", "checks", "paths", "safe_pickle"},
    {"layers", "optimizers", "metrics", "hardware"},
    {"data", "models", "losses"},
    {"training", "attacks", "interop"},
    {"inference"},
    {"cli"},
]
LAYER = {package: level for level, packages in enumerate(LAYERS) for package in packages}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Name -> file of every module of ours."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(name: str, *, top_level: bool) -> frozenset[str]:
    """Our modules that a module imports: anywhere in it, or only where its own import runs them."""
    found = set()
    path = modules()[name]
    tree = ast.parse(path.read_text())
    inner = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if top_level and node in inner:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], base]
                ).strip(".")
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                found.add(inside if inside in modules() else base)
    return frozenset(other for other in found if other in modules())


def package_of(name: str) -> str:
    """`data` of jaxface.data.sources.folder, `methods` of experiments.methods.sface."""
    return name.split(".")[1] if "." in name else ""


def test_the_scan_sees_what_is_there():
    assert {"jaxface.losses.sface", "experiments.launch", "jaxface.training"} <= modules().keys()
    assert "jaxface.training.loop" in imports("jaxface.training", top_level=True)
    assert {"jaxface.axes", "jaxface.search"} <= imports("jaxface.training.class_banks", top_level=True)
    assert "jaxface.losses" in imports("experiments.methods.sface", top_level=True)


def test_every_package_has_a_layer():
    assert {package_of(name) for name in modules() if name.startswith("jaxface.")} <= LAYER.keys()


def test_imports_go_down_only():
    for name in modules():
        for other in imports(name, top_level=False):
            allowed = {
                "experiments": ("experiments", "jaxface", "pallas_kernels"),
                "jaxface": ("jaxface", "pallas_kernels"),
                "pallas_kernels": ("pallas_kernels",),
            }[name.split(".")[0]]
            assert other.split(".")[0] in allowed, f"{name} imports {other}"
            if name.startswith("jaxface.") and other.startswith("jaxface."):
                assert LAYER[package_of(other)] <= LAYER[package_of(name)], f"{name} imports {other}"


def test_inside_the_experiments_imports_go_down_too():
    order = {"configs": 0, "study": 0, "recipes": 1, "methods": 2, "studies": 3, "programs": 5}  # commands: 4
    for name in modules():
        if name.startswith("experiments."):
            for other in imports(name, top_level=False):
                if (
                    other.startswith("experiments.") and other != "experiments.methods"
                ):  # which lists, imports none
                    lower, higher = package_of(other), package_of(name)
                    assert order.get(lower, 4) <= order.get(higher, 4), f"{name} imports {other}"


def test_no_method_imports_another():
    methods = {name for name in modules() if name.startswith("experiments.methods.")}
    assert len(methods) >= 9
    for name in methods:
        assert not (imports(name, top_level=False) & methods), name


# Where a module that serves some methods, and not most of them, ends its docstring with their line.
SHARED_IDEAS = (
    "jaxface.attacks.",
    "jaxface.data.synthetic.",
    "jaxface.hardware.",
    "jaxface.layers.",
    "jaxface.losses.",
    "jaxface.metrics.analysis.",
    "jaxface.models.generative.",
    "jaxface.optimizers.",
    "jaxface.training.evaluations.",
    "experiments.recipes.",
)


@functools.cache
def definitions(package: str) -> dict[str, str]:
    """Public name -> module that defines it, of what a package's `__init__` imports."""
    tree = ast.parse(modules()[package].read_text())
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in modules()
        for alias in node.names
    }


def uses(name: str) -> set[str]:
    """Modules that a module imports, or reaches as an attribute of a package: `losses.sface_loss`."""
    tree, reached = ast.parse(modules()[name].read_text()), set(imports(name, top_level=False))
    packages = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if f"{node.module}.{alias.name}" in modules()
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            package = packages[node.value.id]
            if modules()[package].stem == "__init__" and node.attr in definitions(package):
                reached.add(definitions(package)[node.attr])
    return reached


def test_shared_modules_name_the_methods_they_serve():
    known = set(slugs())
    served = {
        slug: {
            used
            for name in modules()
            if name.rpartition(".")[2] == slug
            for used in uses(name)
            if used.rpartition(".")[2] != slug
        }
        for slug in known
    }
    missing = []
    for name, path in modules().items():
        line = methods_line(path)
        users = {slug for slug, used in served.items() if name in used}
        if line is not None:
            assert set(line) <= known, f"{name}: no method {', '.join(sorted(set(line) - known))}"
            assert len(set(line)) == len(line)
        shared_idea = name.startswith(SHARED_IDEAS) and name.rpartition(".")[2] not in known
        if (line is not None or (shared_idea and len(users) <= len(known) / 2)) and users - set(line or ()):
            missing.append(f"{name}: Methods: {', '.join(sorted(users | set(line or ())))}")
    assert not missing, "\n".join(missing)


def test_no_circles():
    graph = {name: imports(name, top_level=True) - {name} for name in modules()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("jaxface.errors") < order.index("experiments.launch")


def everything():
    return [
        info.name
        for package in PACKAGES
        if (ROOT / package).is_dir()
        for info in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
    ]


@pytest.mark.parametrize("name", ["jaxface", *everything()])
def test_every_module_imports_and_every_public_name_is_there(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(set(public)) == len(public)
    missing = [item for item in public if not hasattr(module, item)]
    assert not missing


def test_packages_are_attributes_of_jaxface():
    assert set(jaxface.__all__) <= set(dir(jaxface))
    packages = {path.stem for path in (ROOT / "jaxface").iterdir() if path.suffix in ("", ".py")} - {
        "__init__"
    }
    assert packages - {"__pycache__"} <= set(jaxface.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'attic'"):
        _ = jaxface.attic


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_cheap():
    loaded = python("import sys, jaxface; print(*sys.modules)").split()
    assert "jaxface" in loaded
    assert not {"jax", "flax", "grain", "tensorflow", "tyro", "matplotlib", "cv2", "sklearn"} & set(loaded)


# Every package of an extra, by the name that is imported.
EXTRAS = (
    "absl", "array_record", "cattrs", "cv2", "etils", "faiss", "flatbuffers", "grain", "jax2onnx", "matplotlib", "mlflow", "onnx",
    "onnxruntime", "orbax", "PIL", "pycocotools", "rich", "safetensors", "scipy", "skimage", "sklearn", "tensorboardX",
    "tensorflow", "tensorflow_datasets", "tyro", "usearch", "wandb", "experiments",
)  # fmt: skip
PURE = ("boxes", "hardware", "interop", "layers", "losses", "metrics", "models", "optimizers", "search")
# `jax` and `flax` import some of them where they can: these stay until both are loaded.
WITHOUT_EXTRAS = f"""
import importlib, sys
import flax.linen, jax, jax.export, jax.numpy, optax, chex
for name in {EXTRAS}:
    for loaded in [module for module in sys.modules if module.partition('.')[0] == name]:
        del sys.modules[loaded]
    sys.modules[name] = None
"""


@functools.cache
def without_extras() -> list[str]:
    """What a process with the core dependencies alone says: of the pure packages, of every module, and of a command."""
    library = [name for name in modules() if not name.startswith("experiments")]
    return python(
        f"{WITHOUT_EXTRAS}\n"
        f"for name in {PURE}: importlib.import_module(f'jaxface.{{name}}')\n"
        "from jaxface import axes, cli, losses, metrics, models\n"
        "import jaxface.cli.main, pallas_kernels.margin_softmax\n"
        "assert losses.sface_loss and models.create('mlp') and metrics.verify\n"
        "assert not jax._src.xla_bridge.backends_are_initialized(), 'an import touched a device'\n"
        "print('pure')\n"
        f"for name in {library}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: print(name, type(error).__name__, error)\n"
        "sys.stderr = sys.stdout\n"
        "try: jaxface.cli.main.main('detect . --detector d'.split())\n"
        "except SystemExit as end: print('status', end.code)\n"
    ).splitlines()


def test_the_pure_packages_need_neither_pipelines_nor_programs():
    assert without_extras()[0] == "pure"


def test_every_module_that_needs_an_extra_names_it():
    """One line for whoever imports it, and one for whoever runs a command."""
    *imported, command, status = without_extras()[1:]
    refused = {}
    for line in imported:
        name, kind, words = line.split(" ", 2)
        assert kind == "MissingExtra" and re.match(r"jaxface\[(\w+)\] is needed: the package", words), line
        refused[name] = re.match(r"jaxface\[(\w+)\]", words)[1]
    assert refused["jaxface.data"] == "data" and refused["jaxface.training.loop"] == "train"
    assert refused["jaxface.inference"] == "inference"
    assert not {f"jaxface.{name}" for name in PURE} & refused.keys()
    extras = set(re.findall(r"^        \"(\w+)\": ", (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert {"data", "train", "all"} <= extras and set(refused.values()) <= extras
    assert status == "status 2" and re.fullmatch(r"error: jaxface\[\w+\] is needed: .*", command)


def test_a_broken_package_of_an_extra_speaks_for_itself(tmp_path, monkeypatch):
    (tmp_path / "broken_extra.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="a_module_that_nobody_has"):
        extras.optional("broken_extra", "data")
    with pytest.raises(extras.MissingExtra, match=r"jaxface\[data\] is needed: the package absent_package"):
        extras.optional("absent_package.part", "data")
    with pytest.raises(extras.MissingExtra, match="absent_package"):
        extras.need("data", "json", "absent_package.part")


def test_an_import_leaves_the_logs_alone():
    python(
        "import logging, jaxface.training.checkpoints\n"
        "assert not any(logging.getLogger(name).filters for name in ('absl', 'asyncio'))"
    )
