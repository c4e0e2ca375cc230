"""`jaxface enroll` and `jaxface identify`: people in, names out."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from jaxface import data, inference
from jaxface.cli import main as cli
from jaxface.cli.commands import enroll, identify

RED, GREEN, BLUE, WHITE = (250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 250)
SIDE = 32


class FakePipeline:
    """Takes every square of a photograph that is not black for a face, whose embedding is its mean color."""

    def __init__(self, identity="a" * 32, threshold=0.9):
        self.recognizer = SimpleNamespace(
            identity=identity,
            dim=3,
            source="runs/fake",
            threshold=None if threshold is None else inference.Threshold(threshold, 1e-3, "pairs"),
        )

    def __call__(self, images):
        return [self._faces(image) for image in images]

    def notes(self, image, faces):
        return []

    def _faces(self, image):
        starts = range(0, image.shape[1], SIDE)
        means = np.array([image[:, x : x + SIDE].mean((0, 1)) for x in starts])
        seen = [i for i, mean in enumerate(means) if mean.max() > 100]
        boxes = [(4, i * SIDE + 4, SIDE - 4, (i + 1) * SIDE - 4) for i in seen]
        embeddings = means[seen] / np.maximum(np.linalg.norm(means[seen], axis=1, keepdims=True), 1e-9)
        return inference.Faces(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.full(len(seen), 0.9, np.float32),
            landmarks=None,
            embeddings=embeddings.astype(np.float32).reshape(-1, 3),
            crops=np.zeros((len(seen), 8, 8, 3), np.uint8),
            scales=np.ones(len(seen), np.float32),
        )


def photograph(*colors, seed=0):
    image = np.concatenate([np.full((SIDE, SIDE, 3), color) for color in colors], axis=1)
    noise = np.random.default_rng(seed).integers(0, 9, image.shape)
    return np.clip(image - noise, 0, 255).astype(np.uint8)


def write(path, *colors, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode_image(photograph(*colors, seed=seed)))


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for the networks; `pipeline(FakePipeline(…))` takes another."""

    def use(fake):
        for command in (enroll, identify):
            monkeypatch.setattr(command, "open_pipeline", lambda options: fake)

    use(FakePipeline())
    return use


@pytest.fixture
def folder(tmp_path, monkeypatch, pipeline):
    """Ada is red (of three photographs one shows Bob too), Bob green, Cy has no face in any; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        write(tmp_path / "people" / "Ada" / f"{number}.png", RED, seed=number)
    write(tmp_path / "people" / "Ada" / "3.png", RED, GREEN)
    write(tmp_path / "people" / "Bob.png", GREEN)
    write(tmp_path / "people" / "Cy" / "1.png", (9, 9, 9))
    (tmp_path / "people" / "Cy" / "2.png").write_text("no image")
    return tmp_path


def run(capsys, *arguments, expect=0):
    """(what was printed, what was complained of) of a command."""
    try:
        cli.main([*arguments, "--bundle", "none", "--aligned"])
        status = 0
    except SystemExit as asked:
        status = asked.code
    said = capsys.readouterr()
    assert status == expect, said.err
    return said.out, said.err


def enrolled(capsys, *more):
    run(capsys, "enroll", "people", "--gallery", "g", *more)
    return inference.Gallery.load("g")


def test_people_are_enrolled_and_what_cannot_be_used_is_told(folder, capsys):
    said, complaints = run(capsys, "enroll", "people", "--gallery", "new/g")
    assert said.splitlines() == [
        "2 people of 3 photographs, 3 left out",
        "not enrolled: Cy, no photograph of whom can be used",
        "2 people, 2 templates: new/g",
    ]
    assert complaints.splitlines() == [
        "skipped people/Ada/3.png: 2 faces in it, one is meant",
        "skipped people/Cy/1.png: no face in it",
        "skipped people/Cy/2.png: it is no JPEG, PNG, PPM, BMP or WebP image",
    ]
    gallery = inference.Gallery.load("new/g")
    assert gallery.people == {"Ada": 1, "Bob": 1} and gallery.identity == "a" * 32
    assert gallery.source == "runs/fake"
    faces = FakePipeline()([photograph(RED, seed=seed) for seed in (1, 2)])
    mean = np.mean([face.embeddings[0] for face in faces], axis=0)
    matches = gallery.search(mean[None])
    assert matches.names == [["Ada"]] and matches.scores[0, 0] == pytest.approx(1, abs=1e-6)


def test_the_largest_face_counts_when_asked_for(folder, capsys):
    said, _ = run(capsys, "enroll", "people", "--gallery", "g", "--templates", "all", "--largest")
    assert said.startswith("2 people of 4 photographs, 2 left out\n")
    gallery = inference.Gallery.load("g")
    assert gallery.people == {"Ada": 3, "Bob": 1}  # both squares are of one size, and the first is taken
    assert gallery.search(np.eye(3)[:1]).names == [["Ada"]]


def test_all_templates_stay_when_asked_for(folder, capsys):
    assert enrolled(capsys, "--templates", "all").people == {"Ada": 2, "Bob": 1}


def test_the_same_command_twice_makes_the_same_gallery(folder, capsys):
    enrolled(capsys)
    once = (folder / "g").read_bytes()
    assert enrolled(capsys).people == {"Ada": 1, "Bob": 1} and (folder / "g").read_bytes() == once
    write(folder / "more" / "Dee.png", BLUE)
    write(folder / "more" / "Ada.png", RED, seed=5)
    said, _ = run(capsys, "enroll", "more", "--gallery", "g", "--keep", "--json")
    document = json.loads(said)
    assert document["enrolled"] == [
        {"name": "Ada", "photographs": 1, "templates": 2},
        {"name": "Dee", "photographs": 1, "templates": 1},
    ]
    assert document["people"] == 3 and document["templates"] == 4 and document["replaced"] == []
    said, _ = run(capsys, "enroll", "more", "--gallery", "g")
    assert said.startswith("2 people of 2 photographs, 2 replaced\n")
    assert inference.Gallery.load("g").people == {"Bob": 1, "Ada": 1, "Dee": 1}


def test_who_it_is_in_photographs(folder, capsys):
    enrolled(capsys)
    write(folder / "photos" / "a.png", GREEN, (0, 0, 9), RED, WHITE)
    write(folder / "photos" / "b.png", (0, 0, 9))
    (folder / "photos" / "c.png").write_text("no image")
    said, complaints = run(capsys, "identify", "photos", "--gallery", "g", "--drawings", "drawn", "--k", "2")
    lines = said.splitlines()
    assert len(lines) == 4 and complaints.startswith("skipped photos/c.png: ")
    assert lines[0].startswith("photos/a.png: Bob 1.00 (then Ada 0.")
    assert lines[1].startswith("photos/a.png: Ada 1.00 (then Bob 0.")
    assert lines[2].startswith("photos/a.png: unknown (nearest ")
    assert lines[3] == "photos/b.png: no face"
    assert sorted(path.name for path in (folder / "drawn").iterdir()) == ["a.png", "b.png"]
    drawn, original = (data.decode_image(folder / name / "a.png") for name in ("drawn", "photos"))
    changed = (drawn != original).any(axis=(0, 2)).reshape(4, SIDE).any(axis=1)
    assert drawn.shape == original.shape and changed[[0, 2, 3]].all()


def test_json_is_all_that_is_printed(folder, capsys):
    enrolled(capsys)
    write(folder / "a.png", GREEN, WHITE)
    said, complaints = run(capsys, "identify", "a.png", "--gallery", "g", "--json")
    document = json.loads(said)
    assert complaints == "" and not (folder / "drawn").exists()
    assert (document["people"], document["network"], document["bundle"]) == (2, "a" * 32, "runs/fake")
    assert document["threshold"] == {"value": 0.9, "far": 1e-3, "set": "pairs"}
    (photo,) = document["photographs"]
    assert (photo["photo"], photo["width"], photo["height"]) == ("a.png", 64, 32)
    first, second = photo["faces"]
    assert first["identity"] == "Bob" and first["box"] == {"left": 4, "top": 4, "right": 28, "bottom": 28}
    assert [match["name"] for match in first["matches"]] == ["Bob", "Ada"]
    assert second["identity"] is None and second["matches"][0]["similarity"] < 0.9


def test_the_threshold_can_be_said(folder, capsys, pipeline):
    enrolled(capsys)
    write(folder / "a.png", WHITE)
    pipeline(FakePipeline(threshold=None))
    _, complaints = run(capsys, "identify", "a.png", "--gallery", "g", expect=2)
    assert (
        complaints
        == "error: threshold: the bundle recommends none; needs --threshold, a cosine from -1 to 1\n"
    )
    said, _ = run(capsys, "identify", "a.png", "--gallery", "g", "--threshold", "0.3", "--json")
    assert json.loads(said)["photographs"][0]["faces"][0]["identity"] in ("Ada", "Bob")


class FakeCamera:
    """Nobody, Ada in two frames, then Ada and somebody unknown."""

    scenes = [(0, 0, 9), (0, 0, 9)], [RED, (0, 0, 9)], [(0, 0, 9), RED], [RED, WHITE]
    opened, released = True, 0

    def __init__(self, number):
        assert number in (0, 2)
        self.left = list(self.scenes)

    def isOpened(self):
        return self.opened

    def read(self):
        if not self.left:
            return False, None
        return True, photograph(*self.left.pop(0))[..., ::-1]

    def release(self):
        FakeCamera.released += 1


def test_who_is_before_a_camera(folder, capsys, monkeypatch):
    enrolled(capsys)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    monkeypatch.setattr(FakeCamera, "released", 0)
    said, _ = run(capsys, "identify", "--camera", "--gallery", "g", "--drawings", "frames")
    lines = [line.partition(" s: ")[2] for line in said.splitlines()]
    assert lines == ["nobody", "Ada 1.00", "Ada 1.00, unknown"] and FakeCamera.released == 1
    assert sorted(path.name for path in (folder / "frames").iterdir()) == [
        f"frame-{number:06d}.png" for number in (0, 1, 3)
    ]
    said, _ = run(capsys, "identify", "--camera", "2", "--frames", "2", "--gallery", "g", "--json")
    changes = json.loads(said)["changes"]
    assert [(row["frame"], len(row["faces"])) for row in changes] == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("opened", False, "camera: no camera 0 that OpenCV can open; --camera N takes another"),
        ("scenes", (), "camera: camera 0 gives no picture"),
    ],
)
def test_a_camera_that_is_not_there(folder, capsys, monkeypatch, attribute, value, words):
    enrolled(capsys)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    monkeypatch.setattr(FakeCamera, attribute, value)
    said, complaints = run(capsys, "identify", "--camera", "--gallery", "g", expect=2)
    assert said == "" and complaints == f"error: {words}\n"


def test_a_window_shows_names_until_q(folder, capsys, monkeypatch):
    enrolled(capsys)
    shown, keys = [], [255, ord("q")]
    for name, function in {
        "VideoCapture": FakeCamera,
        "namedWindow": lambda name: None,
        "imshow": lambda name, image: shown.append(image),
        "waitKey": lambda milliseconds: keys.pop(0),
        "destroyAllWindows": lambda: shown.append("closed"),
    }.items():
        monkeypatch.setattr(cv2, name, function)
    run(capsys, "identify", "--camera", "--gallery", "g")
    assert len(shown) == 3 and shown[-1] == "closed"
    assert (shown[1][8, :8, 2] > 200).any()  # red, the last of OpenCV's channels


def test_ctrl_c_ends_with_what_was_seen(folder, capsys, monkeypatch):
    def interrupted(self):
        if len(self.left) < 3:
            raise KeyboardInterrupt
        return True, photograph(*self.left.pop(0))[..., ::-1]

    enrolled(capsys)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    monkeypatch.setattr(FakeCamera, "read", interrupted)
    said, _ = run(capsys, "identify", "--camera", "--gallery", "g", "--json")
    assert len(json.loads(said)["changes"]) == 2


def test_a_gallery_of_another_network(folder, capsys, pipeline):
    enrolled(capsys)
    before = (folder / "g").read_bytes()
    pipeline(FakePipeline(identity="b" * 32))
    write(folder / "a.png", RED)
    for arguments in (["enroll", "people"], ["identify", "a.png"]):
        _, complaints = run(capsys, *arguments, "--gallery", "g", expect=2)
        assert complaints == (
            "error: gallery: its embeddings are of the network aaaaaaaaaaaa (runs/fake), this one is bbbbbbbbbbbb; "
            "open that network, or enroll the photographs again with this one\n"
        )
    assert (folder / "g").read_bytes() == before


def test_an_empty_gallery(folder, capsys):
    inference.Gallery("a" * 32, 3).save("g")
    _, complaints = run(capsys, "identify", "people/Bob.png", "--gallery", "g", expect=2)
    assert complaints == "error: gallery: nobody is in g; jaxface enroll puts people into it\n"
    assert enrolled(capsys).people == {"Ada": 1, "Bob": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["enroll", "people/Cy", "--gallery", "g"], "photos: none of 2 can be used, g stays as it was"),
        (["enroll", "nowhere", "--gallery", "g"], "photos: needs a folder of people, nowhere: No such file"),
        (["enroll", "empty", "--gallery", "g"], "photos: no image in empty or its sub-folders"),
        (["enroll", "people", "--gallery", "empty"], "gallery: needs a file, got the folder empty"),
        (["enroll", "people", "--gallery", "people/Bob.png"], "gallery: people/Bob.png is no gallery"),
        (["identify", "people", "--gallery", "g"], "gallery: no file g; jaxface enroll makes one"),
        (["identify", "--gallery", "g"], "photo: needs photographs or --camera"),
        (["identify", "a.png", "--camera", "--gallery", "g"], "photo: needs photographs or --camera"),
        (["identify", "people", "--frames", "3", "--gallery", "g"], "frames: needs --camera"),
        (["identify", "people", "--k", "0", "--gallery", "g"], "k: needs an integer from 1"),
        (
            ["identify", "people", "--threshold", "2", "--gallery", "g"],
            "threshold: needs a number from -1 to 1",
        ),
        (["identify", "empty", "--gallery", "g"], "photo: no image in the folder empty"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(folder, capsys, arguments, words):
    (folder / "empty").mkdir()
    said, complaints = run(capsys, *arguments, expect=2)
    (line,) = (line for line in complaints.splitlines() if not line.startswith("skipped"))
    assert said == "" and line.startswith(f"error: {words}")
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "people"]


def test_none_of_the_photographs_can_be_read(folder, capsys):
    enrolled(capsys)
    _, complaints = run(capsys, "identify", "people/Cy/2.png", "missing.png", "--gallery", "g", expect=2)
    assert complaints.splitlines()[1:] == [
        "skipped missing.png: no such file",
        "error: photo: none of 2 can be read",
    ]


def test_landmarks_of_a_file_are_not_a_camera_s(folder, capsys):
    with pytest.raises(SystemExit):
        cli.main(["identify", "--camera", "--gallery", "g", "--bundle", "none", "--landmarks", "x.csv"])
    assert capsys.readouterr().err.startswith("error: landmarks: needs photographs, of which they are")


def test_without_a_detector_it_must_be_said_that_faces_are_aligned(folder, capsys, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        cli.main(["enroll", "people", "--gallery", "g", "--bundle", "none"])
    assert capsys.readouterr().err.startswith(
        "error: detector: needs --detector DETECTOR, --landmarks FILE, or --aligned"
    )
