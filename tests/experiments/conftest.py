"""One small run that is finished, a folder of photographs, and what a refusal looks like."""

import io
import pathlib
import re
from contextlib import redirect_stderr
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import launch
from jaxface.data import RenderedSource, encode_image, write_bin
from jaxface.data.transforms.alignment import template

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


def write_pack(path: pathlib.Path, *, seed: int, pairs: int = 20) -> None:
    """Pairs of rendered people, every second one of one person."""
    source = RenderedSource(8, 4, 16, seed=seed, first_identity=7000)
    encoded = [encode_image(source[i]["image"]) for i in range(len(source))]
    images = []
    for pair in range(pairs):
        first = 4 * (pair % 8)
        images += [encoded[first], encoded[first + 1 + pair % 3 if pair % 2 == 0 else (first + 4) % 32]]
    write_bin(path, images, [pair % 2 == 0 for pair in range(pairs)])


@pytest.fixture(scope="session")
def packs(tmp_path_factory) -> pathlib.Path:
    """A folder with two verification packs, `first.bin` and `second.bin`, and files of no concern."""
    folder = tmp_path_factory.mktemp("packs")
    for number, name in enumerate(("first", "second")):
        write_pack(folder / f"{name}.bin", seed=number)
    (folder / "property").write_text("8,16,16")
    (folder / "train.rec").write_bytes(b"of no concern")
    return folder


class TemplateSet(NamedTuple):
    """A set in the layout of IJB-C: [N] templates, media and scores of the images; [P, 2] pairs, as numbers of templates from 0,
    and [P] whether they are of one person."""

    root: pathlib.Path
    templates: np.ndarray
    media: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray
    same: np.ndarray


@pytest.fixture
def template_set(tmp_path) -> TemplateSet:
    """Six rendered people with two templates each, ids from 10 in steps of 5: one photograph and a video of two frames."""
    root, people = tmp_path / "IJBC", 6
    source = RenderedSource(people, 6, 16, seed=7, first_identity=5000)
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    numbers = np.arange(len(source))
    templates, media = 10 + 5 * (numbers // 3), np.where(numbers % 3 == 0, 1, 2)
    scores = np.round(0.5 + 0.5 * np.random.default_rng(0).random(len(source)), 6)
    # The crops are aligned: the five points are where they belong on an image of 112 pixels.
    points = " ".join(f"{x:.4f}" for x in template(112).ravel())
    for i in numbers:
        Image.fromarray(source[i]["image"]).resize((112, 112)).save(root / "loose_crop" / f"{i + 1}.png")
    pairs = np.stack(np.triu_indices(2 * people, k=1), axis=1)
    same = pairs[:, 0] // 2 == pairs[:, 1] // 2
    lines = {
        "face_tid_mid": [f"{i + 1}.png {templates[i]} {media[i]}" for i in numbers],
        "name_5pts_score": [f"{i + 1}.png {points} {scores[i]:.6f}" for i in numbers],
        "template_pair_label": [
            f"{10 + 5 * a} {10 + 5 * b} {int(one)}" for (a, b), one in zip(pairs, same, strict=True)
        ],
    }
    for name, rows in lines.items():
        (root / "meta" / f"ijbc_{name}.txt").write_text("\n".join(rows) + "\n")
    return TemplateSet(root, templates, media, scores, pairs, same)


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
