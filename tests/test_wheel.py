"""The wheel in an environment with the five core dependencies alone."""

import email.parser
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
CORE = ("jax", "flax", "optax", "chex", "numpy")
PARTS = (
    "jaxface",
    "pallas_kernels",
    "experiments",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "NOTICE",
)

DETECT = ("detect", ".", "--detector", "detector")

WORK = """
import importlib.util, sys
import jax, jax.numpy as jnp
from jaxface import boxes, layers, losses, metrics, models, optimizers
import jaxface, pallas_kernels
from pallas_kernels import binary_conv, dilated_conv, margin_softmax, quantized_attention

assert 'site-packages' in jaxface.__file__ and importlib.util.find_spec('experiments') is None
loss = losses.sface_loss(jnp.array([[0.54, 0.45, 0.27]]), jnp.array([0]))
assert loss.shape == (1,)
network = models.create('convnet', embedding=8)
image = jnp.zeros((1, 16, 16, 3))
assert jax.jit(lambda key: network.init_with_output(key, image)[0])(jax.random.key(0)).shape == (1, 8)
rows = jnp.eye(4)
loss, terms = jax.jit(lambda x: margin_softmax.margin_softmax(x, x, jnp.arange(4), margin_softmax.arcface()))(rows)
assert loss.shape == () and jnp.isfinite(loss)
assert boxes.nms and layers.DepthwiseConv and metrics.auc and optimizers
assert binary_conv and dilated_conv and quantized_attention
for package, extra in (('data', 'data'), ('training', 'train'), ('inference', 'inference')):
    try:
        importlib.import_module(f'jaxface.{package}')
    except ImportError as error:
        assert str(error).startswith(f'jaxface[{extra}] is needed: the package '), error
    else:
        raise AssertionError(f'jaxface.{package} came without its extra')
"""


def core_closure() -> set[str]:
    """The core dependencies and all that they need, by name."""
    names, waiting = set(), list(CORE)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in names:
            continue
        names.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The built wheel."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run(
        [*build, "--wheel-dir", folder, source], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> pathlib.Path:
    """The folder of the programs of an environment that holds the wheel and the core dependencies, nothing else.

    The dependencies are links to those of the environment that runs the tests, so that nothing is downloaded.
    """
    root = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True, timeout=120)
    (packages,) = root.glob("[Ll]ib/**/site-packages")
    for name in core_closure():
        distribution = importlib.metadata.distribution(name)
        for part in {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            place = pathlib.Path(distribution.locate_file(part))
            if not (packages / part).exists() and place.exists():
                (packages / part).symlink_to(place)
    (program,) = root.glob("*/python")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        program,
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    done = subprocess.run([*install, wheel], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return program.parent


def run(program: pathlib.Path, *arguments: str, cwd: pathlib.Path) -> str:
    done = subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_the_wheel_holds_and_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = email.parser.Parser().parsestr(archive.read(about).decode())
    info = about.removesuffix("METADATA")
    assert {name.split("/")[0] for name in names} == {"jaxface", "pallas_kernels", info.rstrip("/")}
    wanted = {"jaxface/py.typed", "pallas_kernels/py.typed", "jaxface/cli/commands/where.py"}
    assert wanted | {f"{info}licenses/LICENSE", f"{info}licenses/NOTICE"} <= names
    assert (
        "Apache-2.0" in (metadata["License-Expression"], metadata["License"])
        and metadata["Requires-Python"] == ">=3.12"
    )
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {Requirement(line).name for line in always} == set(CORE)
    assert {"data", "train", "sets", "interop", "inference", "detection", "cuda", "tpu", "all"} <= set(
        metadata.get_all("Provides-Extra")
    )
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    links = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert {"Documentation", "Source", "Changelog", "Issues"} <= links.keys()
    assert all(link.startswith("https://") for link in links.values())


@pytest.mark.slow
def test_losses_models_and_kernels_need_the_core_alone(environment, tmp_path):
    run(environment / "python", "-I", "-c", WORK, cwd=tmp_path)


@pytest.mark.slow
def test_the_console_script_of_an_installation(environment, tmp_path):
    script = environment / "jaxface"
    assert run(script, "--help", cwd=tmp_path).startswith("usage: jaxface COMMAND")
    assert run(script, "--version", cwd=tmp_path) == "jaxface 0.1.0\n"
    where = run(script, "where", "ida", cwd=tmp_path).splitlines()
    assert "jaxface/losses/ida.py" in where and not any(line.startswith("experiments") for line in where)
    refused = subprocess.run([script, *DETECT], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and refused.stderr.startswith("error: jaxface[")
    assert refused.stderr.count("\n") == 1
