import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.programs import cloak_images
from jaxface import attacks, data, inference, training

QUICK = ["--steps", "3", "--accumulate", "2", "--eps", "8"]


def run(finished, faces, out, *more):
    arguments = ["--run", finished, "--faces", faces, "--out", out, *QUICK, *more]
    cloak_images.main([str(argument) for argument in arguments])


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def cloaked(finished, photographs, tmp_path_factory):
    """The photographs with masks on, and what they were before."""
    before = contents(photographs)
    out = tmp_path_factory.mktemp("cloaked") / "out"
    run(finished, photographs, out)
    assert contents(photographs) == before
    return out


def test_every_photo_comes_back_with_the_mask_of_its_person(cloaked, finished, photographs):
    originals = sorted(path for path in photographs.rglob("*") if path.is_file())
    names = {path.relative_to(cloaked) for path in cloaked.rglob("*.png")}
    assert names == {path.relative_to(photographs).with_suffix(".png") for path in originals}
    masks = {}
    for path in originals:
        person = path.parent.name
        mask = np.load(cloaked / f"{person}.npy")
        masks[person] = mask
        assert mask.shape == (16, 16, 3) and 1 <= np.abs(mask).max() <= 8
        expected = np.floor(np.clip(pixels(path) + mask, 0, 255))
        np.testing.assert_array_equal(pixels(cloaked / person / f"{path.stem}.png"), expected)
    assert len(masks) == 6
    assert (masks["s0"] != masks["s1"]).any()


def test_masks_move_photos_away_from_themselves(cloaked, finished, photographs):
    bundle = inference.open_recognizer(finished)
    clean, hidden = (
        bundle.embed_source(data.FolderSource(root, image_size=16), flip=False)
        for root in (photographs, cloaked)
    )
    noisy = np.stack([data.FolderSource(photographs, image_size=16)[i]["image"] for i in range(24)])
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), noisy.shape) * 3
    noisy = np.asarray(attacks.apply_cloak(noisy, signs))
    source = data.ArraySource(noisy, np.zeros(24, np.int32), ["all"])
    noisy = bundle.embed_source(source, flip=False)

    def cosine(a, b):
        return np.mean(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    assert 1 - cosine(clean, hidden) > 4 * (1 - cosine(clean, noisy)) > 0


def test_the_same_command_goes_on_and_repeats_nothing(
    cloaked, finished, photographs, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    shutil.copytree(cloaked, out)
    (out / "s2.npy").unlink()
    (out / "s2" / "1.png").unlink()
    (out / "s3" / "0.png").unlink()
    made = []
    make = cloak_images._mask
    monkeypatch.setattr(cloak_images, "_mask", lambda *a: made.append(1) or make(*a))
    run(finished, photographs, out)
    assert len(made) == 1
    assert contents(out) == contents(cloaked)
    said = capsys.readouterr().out
    assert "s2: 4 photos, cosine to the originals" in said and "6 people" in said


def test_a_full_disk_is_one_line_and_what_was_written_stays(
    cloaked, finished, photographs, tmp_path, monkeypatch, capsys
):
    out, write = tmp_path / "out", training.write_atomically

    def full(path, content):
        if path.parent.name == "s1":
            raise OSError(28, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_atomically", full)
        with pytest.raises(SystemExit) as caught:
            run(finished, photographs, out)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: out: cannot write {out}/s1/0.png: No space left on device\n"
    kept = contents(out)
    assert len(kept) == 1 + 2 + 4 and not any(path.name.startswith(".") for path in kept)
    run(finished, photographs, out)
    assert contents(out) == contents(cloaked)


def test_photos_of_other_sizes_need_a_fit(finished, photographs, tmp_path, refusal):
    faces = tmp_path / "faces"
    shutil.copytree(photographs / "s0", faces / "ann")
    Image.new("RGB", (40, 30), (90, 120, 60)).save(faces / "ann" / "9.jpg")
    arguments = ["--run", finished, "--faces", faces, "--out", tmp_path / "out"]
    assert "9.jpg is 40x30, the network takes aligned faces of 16x16; align them, or give --fit" in refusal(
        cloak_images.main, arguments
    )
    assert not (tmp_path / "out").exists()
    run(finished, faces, tmp_path / "out", "--fit", "crop")  # one person alone is enough
    assert pixels(tmp_path / "out" / "ann" / "9.png").shape == (16, 16, 3)


def test_photos_that_share_a_name_keep_their_suffix(finished, photographs, tmp_path):
    faces = tmp_path / "faces" / "ann"
    faces.mkdir(parents=True)
    for k, suffix in enumerate(("png", "bmp")):
        image = Image.open(sorted((photographs / "s1").iterdir())[k]).convert("RGB")
        image.save(faces / f"me.{suffix}")
    run(finished, tmp_path / "faces", tmp_path / "out")
    assert {p.name for p in (tmp_path / "out" / "ann").iterdir()} == {"me.png.png", "me.bmp.png"}


def test_settings_are_kept_and_other_ones_refused(cloaked, finished, photographs, refusal):
    written = json.loads((cloaked / "config.json").read_text())
    assert written["tool"] == "cloak_images" and written["cloak"]["epsilon"] == 8
    arguments = ["--run", finished, "--faces", photographs, "--out", cloaked, *QUICK, "--seed", 3]
    assert "seed is 0 there and 3 here" in refusal(cloak_images.main, arguments)


def broken(tmp_path, people):
    faces = tmp_path / "broken"
    shutil.copytree(people, faces)
    (faces / "s4" / "2.png").write_bytes(b"no image")
    return faces


def lonely(tmp_path, people):
    faces = tmp_path / "lonely"
    (faces / "ann").mkdir(parents=True)
    shutil.copy(people / "s0" / "1.png", faces / "ann")
    return faces


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "required: --run, --faces, --out"),
        ("--run {tmp} --faces {people} --out {tmp}/out", "holds no bundle.json, and no run"),
        ("--run {run} --faces {tmp}/nowhere --out {tmp}/out", "nowhere: No such file or directory"),
        ("--run {run} --faces {tmp} --out {tmp}/out", "faces: no image in"),
        ("--run {run} --faces {people} --out {people}", "out: needs a folder apart from the originals"),
        ("--run {run} --faces {people} --out {people}/out", "out: needs a folder apart from the originals"),
        ("--run {run} --faces {people} --out {run}", "config"),
        (
            "--run {run} --faces {people} --out {tmp}/out --eps 0",
            "epsilon: needs a number above 0 and up to 255",
        ),
        ("--run {run} --faces {people} --out {tmp}/out --photos 1", "photos: needs at least 2, got 1"),
        ("--run {run} --faces {people} --out {tmp}/out --seed -1", "seed: needs a number from 0"),
        (
            "--run {run} --faces {people} --out {tmp}/out --hull reduced --hull-high 0.2",
            "4 coefficients in [0, 0.2] cannot sum to 1",
        ),
        ("--run {run} --faces {broken} --out {tmp}/out", "2.png cannot be read"),
        ("--run {run} --faces {lonely} --out {tmp}/out", "needs at least 2 photos of a person"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(
    refusal, tmp_path, finished, photographs, arguments, words
):
    places = dict(tmp=tmp_path, run=finished, people=photographs)
    if "{broken}" in arguments:
        places["broken"] = broken(tmp_path, photographs)
    if "{lonely}" in arguments:
        places["lonely"] = lonely(tmp_path, photographs)
    before = contents(photographs)
    assert words in refusal(cloak_images.main, [word.format(**places) for word in arguments.split()])
    assert contents(photographs) == before and not (tmp_path / "out").exists()


def faces_of(photographs, folder, names=("1.png", "3.png")):
    """A person with some of s1's photos."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.open(photographs / "s1" / f"{2 * (number % 2) + 1}.png").save(folder / name)
    return folder.parent


def test_a_photo_that_was_replaced_gets_a_picture_of_its_own(finished, photographs, tmp_path, capsys):
    faces, out = faces_of(photographs, tmp_path / "faces" / "ann"), tmp_path / "out"
    run(finished, faces, out)
    mask = np.load(out / "ann.npy")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    shutil.copy(photographs / "s2" / "1.png", faces / "ann" / "1.png")
    (faces / "ann" / "3.png").rename(faces / "ann" / "4.png")
    run(finished, faces, out)
    expected = np.floor(np.clip(pixels(faces / "ann" / "1.png") + mask, 0, 255))
    np.testing.assert_array_equal(pixels(out / "ann" / "1.png"), expected)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"1.png"}
    assert "1 cloaked photos of earlier have no original now, such as 3.png" in capsys.readouterr().out


def test_no_two_photos_go_to_one_file(finished, photographs, tmp_path):
    names = ("a.png", "a.bmp", "a.png.webp", "b.png")
    run(finished, faces_of(photographs, tmp_path / "faces" / "ann", names), tmp_path / "out")
    written = {path.name for path in (tmp_path / "out" / "ann").iterdir()}
    assert written == {"a.png.png", "a.bmp.png", "a.png.webp.png", "b.png"}


@pytest.mark.parametrize("name", ["config.json", "ann.npy", "x" * 241])
def test_a_folder_whose_name_is_needed_is_refused(finished, photographs, tmp_path, refusal, name):
    faces = faces_of(photographs, tmp_path / "faces" / "ann")
    faces_of(photographs, faces / name)
    said = refusal(cloak_images.main, ["--run", finished, "--faces", faces, "--out", tmp_path / "out"])
    assert said.startswith("faces: ") and name in said and not (tmp_path / "out").exists()


def test_names_that_are_no_utf8(finished, photographs, tmp_path, capsys):
    person = os.fsdecode(b"Andr\xe9")
    faces = faces_of(photographs, tmp_path / "faces" / person, (os.fsdecode(b"\xb01.png"), "2.png"))
    run(finished, faces, tmp_path / "out")
    assert (tmp_path / "out" / person / os.fsdecode(b"\xb01.png")).is_file()
    assert r"Andr\xe9: 2 photos" in capsys.readouterr().out


def test_masks_of_another_network_are_not_mixed_with_these(
    finished, photographs, tmp_path, monkeypatch, refusal
):
    faces, out = faces_of(photographs, tmp_path / "faces" / "ann"), tmp_path / "out"
    run(finished, faces, out)
    load = inference.open_recognizer

    def retrained(*arguments, **options):
        bundle = load(*arguments, **options)
        variables = jax.tree.map(lambda leaf: leaf * 1.01, dict(bundle.variables))
        return dataclasses.replace(bundle, variables=variables)

    monkeypatch.setattr(inference, "open_recognizer", retrained)
    arguments = ["--run", finished, "--faces", faces, "--out", out, *QUICK]
    assert "network is " in refusal(cloak_images.main, arguments)


def test_a_person_who_may_not_be_read_is_refused(finished, photographs, tmp_path, refusal):
    faces = faces_of(photographs, tmp_path / "faces" / "ann")
    (faces / "bob").symlink_to("bob")
    said = refusal(cloak_images.main, ["--run", finished, "--faces", faces, "--out", tmp_path / "out"])
    assert "bob: Too many levels of symbolic links" in said
