"""The house: what may import what, and what importing costs."""

import ast
import functools
import graphlib
import importlib
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import jaxface

ROOT = pathlib.Path(jaxface.__file__).parents[1]
PACKAGES = ("jaxface", "experiments", "pallas_kernels")
# Imports go down only; rooms on one floor may use each other.
FLOORS = {
    "errors": 0,
    "axes": 0,
    "losses": 1,
    "layers": 1,
    "optimizers": 1,
    "metrics": 1,
    "hardware": 1,
    "models": 2,
    "data": 2,
    "attacks": 2,
    "interop": 2,
    "training": 2,
}


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    """Name -> file of every module of ours."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, *, top_level: bool) -> set[str]:
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
    return {other for other in found if other in modules()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_the_scan_sees_what_is_there():
    assert {"jaxface.losses.sface", "experiments.launch", "jaxface.training"} <= modules().keys()
    assert "jaxface.training.loop" in imports("jaxface.training", top_level=True)
    assert {"jaxface.axes", "jaxface.metrics"} <= imports("jaxface.training.recognition", top_level=True)
    assert "jaxface.losses" in imports("experiments.sface", top_level=True)


def test_every_room_has_a_floor():
    assert {room(name) for name in modules() if name.startswith("jaxface.")} <= FLOORS.keys()


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
                assert FLOORS[room(other)] <= FLOORS[room(name)], f"{name} imports {other}"
                assert room(name) == "training" or room(other) != "training", f"{name} imports {other}"


def test_no_method_imports_another():
    tools = {
        "cloak_images",
        "configs",
        "evaluate",
        "launch",
        "real_faces",
        "recipe",
        "reproduce",
        "studies",
        "weights",
        "convert",
        "__init__",
    }
    methods = {name for name in modules() if name.startswith("experiments.") and room(name) not in tools}
    assert methods
    for name in methods:
        assert not (imports(name, top_level=False) & methods), name


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


def test_rooms_are_attributes_of_the_package():
    assert set(jaxface.__all__) <= set(dir(jaxface))
    rooms = {path.stem for path in (ROOT / "jaxface").iterdir() if path.stem.isidentifier()} - {"__init__"}
    assert rooms - {"__pycache__"} <= set(jaxface.__all__)
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


def test_the_pure_rooms_need_neither_pipelines_nor_programs():
    absent = (
        "grain", "tensorflow", "tensorflow_datasets", "tyro", "matplotlib", "cv2", "PIL",
        "tensorboardX", "sklearn", "skimage", "experiments",
    )  # fmt: skip
    python(
        f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"
        "from jaxface import axes, layers, losses, metrics, models\n"
        "assert losses.sface_loss and models.create('mlp') and metrics.verify\n"
        "import jax\nassert not jax._src.xla_bridge.backends_are_initialized(), 'an import touched a device'"
    )
