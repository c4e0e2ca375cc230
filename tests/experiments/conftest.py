"""One small run that is finished, a folder of photographs, and what a refusal looks like."""

import io
import pathlib
import re
from contextlib import redirect_stderr

import jax
import pytest
from PIL import Image

from experiments import launch
from jaxface.data import RenderedSource

COMPILED: list[str] = []


@jax.monitoring.register_event_duration_secs_listener
def _note(event: str, _: float, **details) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(str(details.get("fun_name")))


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a run of seconds."""
    text = """--data rendered --data.identities 8 --data.per-identity 4 --data.held-out-identities 6
        --data.held-out-per-identity 4 --image-size 16 --backbone mlp --embedding 16 --batch-size 16 --steps 5
        --cadence.log-every 1 --quiet"""
    return text.split()


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> pathlib.Path:
    """Work directory of a run that is done; nobody may write to it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    launch.main(["sface", *tiny, "--workdir", str(workdir)])
    return workdir


def write_people(root: pathlib.Path, suffixes: list[str], people: int = 6, each: int = 4) -> pathlib.Path:
    """Renders people into `root/<person>/<image>`."""
    source = RenderedSource(people, each, 16, seed=5)
    for i in range(len(source)):
        path = root / f"s{source.labels[i]}" / f"{i % each}.{suffixes[i % len(suffixes)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(source[i]["image"])
        (image.convert("L") if path.suffix == ".pgm" else image).save(path)
    return root


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> pathlib.Path:
    """Six people with four images each, gray PGM and color PNG."""
    return write_people(tmp_path_factory.mktemp("photographs"), ["pgm", "png"])


@pytest.fixture
def refusal():
    """`refusal(main, arguments)`: the single line with which a program refuses, after compiling nothing."""

    COMPILED.clear()
    jax.jit(lambda: 1.0)()
    assert COMPILED  # else nothing would be noticed

    def refuse(main, arguments) -> str:
        COMPILED.clear()
        said = io.StringIO()
        with redirect_stderr(said), pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        text = said.getvalue()
        assert caught.value.code == 2, text
        assert re.fullmatch(r"error: [^\n]+\n", text), text
        assert not COMPILED, text
        return text[len("error: ") : -1]

    return refuse
