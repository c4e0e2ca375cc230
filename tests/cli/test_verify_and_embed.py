"""`jaxface verify` and `jaxface embed`: photographs in, a decision or embeddings out."""

import io
import json

import jax
import numpy as np
import pytest
import red_square
from PIL import Image

from jaxface import data, inference, models
from jaxface.cli import main as cli

SIDE = 16
NONE, ONE = (0, 0, 0, 0), (20, 8, 60, 48)


def photograph(light):
    """A red square, of another tint for another person."""
    image = red_square.photograph(96, 64, ONE)
    red = image[..., 0] == 255
    image[red, 1], image[red, 2] = light, 48 - light
    return image


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Photographs, a detector of red squares and a recognizer of few pixels, as bundles."""
    root = tmp_path_factory.mktemp("verify")
    module = models.create("mlp_8", embedding=4)
    variables = module.init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32), train=False)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), variables)
    fields = dict(module=module, variables=variables, image_shape=(SIDE, SIDE, 3))
    threshold = inference.Threshold(0.99, 1e-3, "some people")
    inference.save_bundle(root / "r", inference.RecognizerBundle(**fields, threshold=threshold))
    inference.save_bundle(root / "plain", inference.RecognizerBundle(**fields, alignment=None))
    inference.save_bundle(root / "d", red_square.bundle(spread=1.0))
    Image.fromarray(photograph(0)).save(root / "a.png")
    Image.fromarray(photograph(48)).save(root / "b.png")
    Image.fromarray(red_square.photograph(96, 64, NONE)).save(root / "none.png")
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    Image.fromarray(np.rot90(photograph(0))).save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    (root / "lying.jpg").write_bytes(buffer.getvalue())
    (root / "text.png").write_text("no image")
    points = (data.template(112) / 112 * 40 + (8, 20)).tolist()
    (root / "points.json").write_text(
        json.dumps({"a.png": points, "b.png": [points, points], "none.png": []})
    )
    line = ",".join(f"{x}" for point in points for x in point)
    (root / "points.csv").write_text(f"photo,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n{root / 'a.png'},{line}\n")
    return root


def run(places, command, *arguments, networks="--bundle {r} --detector {d}"):
    words = f"{command} {' '.join(arguments)} {networks}".format(
        **{p.name.replace(".", "_"): p for p in places.iterdir()}, root=places
    )
    status = 0
    try:
        cli.main(words.split())
    except SystemExit as ended:
        status = ended.code
    return status


def test_one_person_and_two(places, capsys, tmp_path):
    assert run(places, "verify", "{a_png}", "{lying_jpg}", "--out", str(tmp_path / "drawn.png")) == 0
    said = capsys.readouterr()
    assert said.out.startswith("one person: similarity 0.99") or said.out.startswith(
        "one person: similarity 1.0"
    )
    assert said.out.endswith("threshold 0.9900 (FAR 0.001 on some people)\n") and "enlarged" not in said.err
    drawn = data.decode_image(tmp_path / "drawn.png")
    assert drawn.shape[0] == 96 and drawn.shape[1] >= 2 * 64
    assert run(places, "verify", "{a_png}", "{b_png}") == 1
    assert capsys.readouterr().out.startswith("two people: similarity ")
    assert run(places, "verify", "{a_png}", "{b_png}", "--threshold", "-1") == 0


def test_json_is_all_that_is_printed(places, capsys):
    assert run(places, "verify", "{a_png}", "{b_png}", "--json") == 1
    written = json.loads(capsys.readouterr().out)
    assert written["same"] is False and written["similarity"] < 0.99
    assert written["threshold"] == {"value": 0.99, "far": 1e-3, "set": "some people"}
    assert written["network"] == inference.open_recognizer(places / "r").identity
    face = written["photographs"][0]["face"]
    np.testing.assert_allclose(list(face["box"].values()), [8, 20, 48, 60], atol=1)
    assert next(iter(face["points"])) == "left_eye"


@pytest.mark.parametrize(
    ("arguments", "networks", "words"),
    [
        ("{a_png} {none_png}", None, "none.png shows no face"),
        ("{a_png} {text_png}", None, "text.png cannot be read: it is no JPEG"),
        ("{a_png} {root}/gone.png", None, "gone.png cannot be read: no such file"),
        ("{a_png} {a_png}", "--bundle {r}", "detector: needs --detector DETECTOR, --landmarks FILE"),
        ("{a_png} {a_png}", "--bundle {d} --aligned", "bundle: needs a recognizer"),
        ("{a_png} {a_png}", "--bundle {r} --detector {r}", "bundle: needs a detector"),
        ("{a_png} {a_png}", "--bundle {plain} --aligned", "the bundle recommends none; needs --threshold"),
        ("{a_png} {a_png} --threshold 2", None, "threshold: needs a number from -1 to 1"),
        ("{a_png} {b_png}", "--bundle {r} --landmarks {points_json}", "b.png shows 2 faces, one is needed"),
        ("{a_png} {b_png}", "--bundle {r} --landmarks {points_csv}", "has none of "),
        ("{a_png} {b_png}", "--bundle {r} --landmarks {text_png}", "cannot be read as JSON"),
        ("{a_png} {b_png} --out {root}/x/y.png --threshold 1", None, "out: cannot write"),
    ],
)
def test_mistakes_are_one_line(places, capsys, arguments, networks, words):
    given = {} if networks is None else {"networks": networks}
    assert run(places, "verify", arguments, **given) == 2
    said = capsys.readouterr()
    assert said.out == "" and words in said.err.splitlines()[-1] and said.err.count("error: ") == 1


@pytest.mark.parametrize("file", ["{points_json}", "{points_csv}"])
def test_landmarks_from_a_file_give_what_the_detector_does(places, capsys, file):
    threshold = ["--threshold", "-1", "--json"]
    assert (
        run(places, "verify", "{a_png}", "{a_png}", *threshold, networks=f"--bundle {{r}} --landmarks {file}")
        == 0
    )
    ours = json.loads(capsys.readouterr().out)["photographs"][0]["face"]["points"]
    assert run(places, "verify", "{a_png}", "{a_png}", *threshold) == 0
    theirs = json.loads(capsys.readouterr().out)["photographs"][0]["face"]["points"]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1)


def test_the_largest_of_several(places, capsys):
    networks = "--bundle {r} --landmarks {points_json}"
    assert run(places, "verify", "{b_png}", "{b_png}", "--largest", networks=networks) == 0
    assert capsys.readouterr().out.startswith("one person: similarity 1.0000")


def test_what_costs_accuracy_is_a_line(places, capsys):
    assert run(places, "verify", "{a_png}", "{a_png}", networks="--bundle {r} --aligned") == 0
    assert capsys.readouterr().err.count("are no aligned face of 16 x 16: accuracy suffers\n") == 2
    networks = "--bundle {plain} --detector {d} --threshold 0"
    assert run(places, "verify", "{a_png}", "{a_png}", networks=networks) == 0
    assert capsys.readouterr().err.count("arcface is assumed") == 2


def test_embeddings_of_every_face(places, capsys, tmp_path):
    out = tmp_path / "faces.npz"
    photos = ["{a_png}", "{b_png}", "{none_png}", "{text_png}"]
    assert run(places, "embed", *photos, "--out", str(out), "--drawings", str(tmp_path / "drawn")) == 0
    said = capsys.readouterr()
    assert said.out == f"2 faces in 3 photographs, 1 skipped: {out}\n"
    assert said.err == f"skipped {places / 'text.png'}: it is no JPEG, PNG, PPM, BMP or WebP image\n"
    with np.load(out) as arrays:
        assert arrays["photo"].tolist() == [str(places / name) for name in ("a.png", "b.png")]
        assert arrays["embedding"].shape == (2, 4) and arrays["face"].tolist() == [0, 0]
        np.testing.assert_allclose(np.linalg.norm(arrays["embedding"], axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(arrays["box"], [[20, 8, 60, 48]] * 2, atol=1)
        assert str(arrays["network"]) == inference.open_recognizer(places / "r").identity
        npz = arrays["embedding"]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["a.png", "b.png", "none.png"]
    assert run(places, "embed", *photos[:3], "--json") == 0
    rows = json.loads(capsys.readouterr().out)["photographs"]
    np.testing.assert_allclose([face["embedding"] for row in rows for face in row["faces"]], npz, atol=1e-6)
    assert not list(places.glob("embeddings*"))


def test_photographs_without_a_face_give_empty_arrays(places, tmp_path):
    assert run(places, "embed", "{none_png}", "--out", str(tmp_path / "x.npz")) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["embedding"].shape == (0, 4) and arrays["points"].shape == (0, 5, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{a_png} --out {root}/x.txt", "out: needs a file that ends in .npz or .json"),
        ("{a_png} --out {root}/x/y.npz", "out: needs a folder that exists"),
        ("{text_png} --out {root}/x.npz", "photo: none of 1 can be read"),
    ],
)
def test_embed_refuses_in_a_line_and_writes_nothing(places, capsys, arguments, words):
    assert run(places, "embed", arguments) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(places.glob("x*"))


def test_people_of_a_gallery_are_named(places, capsys, tmp_path):
    gallery = str(tmp_path / "people.gallery")
    for name in ("a.png", "b.png", "none.png"):
        path = tmp_path / "people" / name.removesuffix(".png") / "1.png"
        path.parent.mkdir(parents=True)
        path.write_bytes((places / name).read_bytes())
    assert run(places, "enroll", str(tmp_path / "people"), "--gallery", gallery) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"2 people, 2 templates: {gallery}"
    assert inference.Gallery.load(gallery).identity == inference.open_recognizer(places / "r").identity
    photographs = ["{b_png}", "{lying_jpg}", "{none_png}"]
    assert run(places, "identify", *photographs, "--gallery", gallery, "--json") == 0
    written = json.loads(capsys.readouterr().out)["photographs"]
    assert [[face["identity"] for face in row["faces"]] for row in written] == [["b"], ["a"], []]
    (face,) = written[0]["faces"]
    np.testing.assert_allclose(list(face["box"].values()), [8, 20, 48, 60], atol=1)
    assert face["matches"][0]["similarity"] == pytest.approx(1, abs=1e-3)
