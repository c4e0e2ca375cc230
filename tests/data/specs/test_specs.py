import dataclasses
import functools
import operator
import re

import numpy as np
import pytest
import tyro

from jaxface import data
from jaxface.data.faces_builder import build_faces
from jaxface.data.sources import bundled
from jaxface.data.specs import rendered_people
from jaxface.errors import UserError

TINY = data.RenderedFaces(identities=3, per_identity=2, held_out_identities=2, held_out_per_identity=2)


def pictures(source):
    return [source[i]["image"].tobytes() for i in range(len(source))]


def test_folder_is_split_by_person(faces_folder):
    spec = data.Folder(str(faces_folder), held_out=0.5)
    split = data.load(spec, image_size=16, seed=1)
    assert split.protocol == "verification" and split.name == "folder photos"
    assert len(split.train) == len(split.held_out) == 15
    assert not set(split.train.class_names) & set(split.held_out.class_names)
    assert (
        sorted(set(split.train.labels.tolist())) == [0, 1, 2] == sorted(set(split.held_out.labels.tolist()))
    )
    assert not set(pictures(split.train)) & set(pictures(split.held_out))
    same = data.load(spec, image_size=16, seed=1)
    assert same.train.class_names == split.train.class_names
    swapped = data.load(dataclasses.replace(spec, swap=True), image_size=16, seed=1)
    assert swapped.train.class_names == split.held_out.class_names
    assert swapped.held_out.class_names == split.train.class_names
    assert any(
        data.load(spec, image_size=16, seed=k).train.class_names != split.train.class_names
        for k in range(2, 6)
    )
    whole = data.load_all(spec, image_size=16)
    assert len(whole) == 30 and whole[0]["image"].shape == (16, 16, 3)
    with pytest.raises(UserError, match="held_out"):
        data.load(dataclasses.replace(spec, held_out=0.0), image_size=16)


def test_options_of_a_folder_reach_it(faces_folder):
    crop = data.load_all(data.Folder(str(faces_folder), fit="crop"), image_size=16)
    assert (
        crop[0]["image"] != data.load_all(data.Folder(str(faces_folder)), image_size=16)[0]["image"]
    ).any()
    (faces_folder / "s1" / "2.png").write_text("text")
    assert len(data.load_all(data.Folder(str(faces_folder)), image_size=16)) == 30
    with pytest.raises(UserError, match="root"):
        data.load_all(data.Folder(str(faces_folder), strict=True), image_size=16)


def test_rendered_people_are_never_in_both_parts():
    split = data.load(TINY, image_size=16, seed=3)
    assert split.protocol == "verification" and split.name == "rendered 3x2"
    assert len(split.train) == 6 and len(split.held_out) == 4
    np.testing.assert_array_equal(split.held_out.labels, [0, 0, 1, 1])
    assert not set(split.train.class_names) & set(split.held_out.class_names)
    held_out = pictures(split.held_out)
    assert not set(pictures(split.train)) & set(held_out)
    # The people to evaluate on stay the same when more are trained on, and under load_all; not under another seed.
    more = dataclasses.replace(TINY, identities=5)
    assert pictures(data.load(more, image_size=16, seed=3).held_out) == held_out
    assert pictures(data.load_all(TINY, image_size=16, seed=3)) == held_out
    assert pictures(data.load_all(TINY, image_size=16, seed=4)) != held_out


def test_arguments_reach_the_renderer(monkeypatch):
    made = []
    monkeypatch.setattr(
        rendered_people, "_rendered", lambda *arguments, **options: made.append((arguments, options))
    )
    spec = dataclasses.replace(TINY, variation=data.Variation.hard())
    data.load(spec, image_size=64, seed=9)
    (train, _), (held_out, options) = made
    assert train == (3, 2, 64, 9, data.Variation.hard()) and held_out == (2, 2, 64, 9, data.Variation.hard())
    assert options["first_identity"] >= max(spec.identities, 1_000_000)


def test_digits_are_split_by_sample():
    split = data.load(data.Digits(), seed=5)
    assert (len(split.train), len(split.held_out)) == (1000, 797)
    assert split.protocol == "classification" and split.train.class_names == split.held_out.class_names
    assert split.train[0]["image"].shape == split.train.image_shape == (8, 8, 1)
    counted = sorted(pictures(split.train) + pictures(split.held_out))
    assert counted == sorted(pictures(bundled.digits()))
    for part in split[:2]:
        assert np.bincount(part.labels, minlength=10).min() > 40
        assert part[7]["label"] == part.labels[7]
    assert (data.load(data.Digits(), seed=6).train.labels != split.train.labels).any()


def test_lfw_patches_are_split_evenly():
    split = data.load(data.LfwPatches(held_out=0.2), image_size=32)
    assert split.protocol == "classification" and split.train.class_names == ["background", "face"]
    assert np.bincount(split.train.labels).tolist() == [80, 80]
    assert np.bincount(split.held_out.labels).tolist() == [20, 20]
    trained = {split.train[i]["image"].tobytes() for i in range(160)}
    assert not any(split.held_out[i]["image"].tobytes() in trained for i in range(40))


def test_lfw_subset_is_split_by_sample():
    split = data.load(data.LfwSubset(), image_size=32)
    assert (len(split.train), len(split.held_out), split.protocol) == (140, 60, "classification")
    assert split.train[0]["image"].shape == split.train.image_shape == (32, 32, 3)
    assert 0.3 < split.held_out.labels.mean() < 0.7


def test_tfds(faces_folder, tmp_path):
    folder = data.FolderSource(faces_folder, image_size=16)
    build_faces(folder, tmp_path / "tfds")
    spec = data.Tfds(name="faces", data_dir=str(tmp_path / "tfds"), held_out=0.34)
    split = data.load(spec, image_size=16)
    assert (len(split.train), len(split.held_out), split.name) == (20, 10, "tfds faces")
    assert not set(split.train.class_names) & set(split.held_out.class_names)
    assert pictures(data.load_all(spec, image_size=16)) == pictures(folder)
    tested = dataclasses.replace(spec, split="train[:20]", test="train[20:]")
    split = data.load(tested, image_size=16)
    assert (len(split.train), len(split.held_out), split.protocol) == (20, 10, "classification")
    assert split.train.class_names == split.held_out.class_names == folder.class_names
    assert pictures(split.train) + pictures(split.held_out) == pictures(folder)


@pytest.mark.parametrize(
    "spec, people", [(data.Olivetti(held_out=0.25), "olivetti"), (data.Lfw(), "lfw_people")]
)
def test_downloads_are_split_by_person(monkeypatch, spec, people):
    images = np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    monkeypatch.setattr(
        bundled,
        people,
        lambda **_: bundled.ArraySource(images, np.arange(16) // 2, [str(k) for k in range(8)]),
    )
    split = data.load(spec, image_size=8)
    assert (len(split.train), len(split.held_out), split.protocol) == (12, 4, "verification")
    assert not set(split.train.class_names) & set(split.held_out.class_names)


def test_user_mistakes_are_one_line(faces_folder):
    for says, spec, options in [
        ("^root", data.Folder("/no/such/folder"), {}),
        ("^image_size", TINY, {"image_size": 4}),
        ("^identities", dataclasses.replace(TINY, identities=1), {}),
        ("^held_out_identities", dataclasses.replace(TINY, held_out_identities=1), {}),
        ("^held_out_per_identity", dataclasses.replace(TINY, held_out_per_identity=1), {}),
        ("^held_out", data.Folder(str(faces_folder), held_out=1.5), {}),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            data.load(spec, **options)
        assert "\n" not in str(caught.value)


def test_every_spec_and_field_is_documented_on_the_command_line(capsys):
    kinds = functools.reduce(operator.or_, (data.KINDS[name] for name in data.KINDS.names()))

    @dataclasses.dataclass(frozen=True)
    class Config:
        data: kinds = dataclasses.field(default_factory=data.RenderedFaces)

    assert tyro.cli(Config, args=[]).data == data.RenderedFaces()
    chosen = tyro.cli(Config, args=["data:folder", "--data.root", "photos", "--data.held-out", "0.5"]).data
    assert chosen == data.Folder("photos", held_out=0.5)
    chosen = tyro.cli(
        Config, args=["data:rendered-faces", "--data.identities", "7", "--data.variation.yaw", "5"]
    ).data
    assert chosen.identities == 7 and chosen.variation.yaw == 5
    for kind in kinds.__args__:
        assert kind.__doc__ and not kind.__doc__.startswith(kind.__name__ + "(")
        command = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()
        with pytest.raises(SystemExit):
            tyro.cli(Config, args=[f"data:{command}", "--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for field in dataclasses.fields(kind):
            if field.name != "variation":
                assert f"--data.{field.name.replace('_', '-')}" in shown
    assert "Fraction of the people to evaluate on" in _help(Config, "data:folder", capsys)


def _help(config, command, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(config, args=[command, "--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())
