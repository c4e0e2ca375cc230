"""Galleries: who it is, exactly and through binary codes, and what becomes of files from outside."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from jaxface import inference
from jaxface.errors import UserError
from jaxface.inference import gallery_rows

DIM = 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def random_rows(count, dim=DIM, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, dim)))


def near(rows, cosine, seed=1):
    """Unit vectors at an exact cosine from `rows`."""
    others = np.random.default_rng(seed).standard_normal(rows.shape)
    others = unit(others - (others * rows).sum(-1, keepdims=True) * rows)
    return unit(cosine * rows + np.sqrt(1 - cosine**2) * others)


def filled(rows, names=None, **options):
    gallery = inference.Gallery("net", rows.shape[1], **options)
    gallery.add(names or [f"p{i}" for i in range(len(rows))], rows)
    return gallery


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 rows, so that a gallery has several."""
    monkeypatch.setattr(inference.gallery, "BLOCK", 64)
    monkeypatch.setattr(gallery_rows, "_SMALLEST", 16)


@pytest.mark.parametrize("backend", ["jax", "faiss"])
def test_the_nearest_people_are_those_of_the_sorted_matrix(small_blocks, backend):
    rows, queries = random_rows(150), random_rows(5, seed=2)
    gallery = inference.Gallery("net", DIM, backend=backend, shortlist=150)
    for start in range(0, 150, 40):  # over the borders of blocks
        gallery.add([f"p{i}" for i in range(start, min(start + 40, 150))], 3 * rows[start : start + 40])
    matches = gallery.search(queries, 7)
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1)[:, :7]
    assert matches.names == [[f"p{i}" for i in row] for row in order.tolist()]
    np.testing.assert_allclose(matches.scores, np.take_along_axis(scores, order, 1), atol=1e-6)
    assert matches.identities == [row[0] for row in matches.names] and matches.scores.dtype == np.float32
    assert len(gallery.search(queries, 1000).names[0]) == 150


def test_somebody_unknown_is_an_answer():
    rows = random_rows(4, 64)
    gallery = filled(rows, ["a", "b", "c", "d"])
    queries = np.concatenate([near(rows[1:2], 0.9), near(rows[2:3], 0.3)])
    matches = gallery.search(queries, 2, 0.5)
    assert matches.identities == ["b", None]
    assert matches.names[1][0] == "c" and matches.scores[1, 0] == pytest.approx(0.3, abs=1e-5)
    at_the_score = gallery.search(queries, 2, float(matches.scores[0, 0]))
    assert at_the_score.identities == [None, None]  # above the threshold, not from it on


@pytest.mark.parametrize("backend", ["jax", "faiss"])
def test_a_person_counts_once_with_the_best_template(small_blocks, backend):
    person, others = random_rows(1)[0], random_rows(3, seed=5)
    templates = near(np.repeat(person[None], 90, 0), 0.95)
    gallery = filled(
        np.concatenate([templates, others]), ["many"] * 90 + ["x", "y", "z"], backend=backend, shortlist=93
    )
    assert gallery.people == {"many": 90, "x": 1, "y": 1, "z": 1} and len(gallery) == 93
    matches = gallery.search(person[None], 4)
    assert matches.names[0][0] == "many" and sorted(matches.names[0]) == ["many", "x", "y", "z"]
    assert matches.scores[0, 0] == pytest.approx((templates @ person).max(), abs=1e-6)
    assert (np.diff(matches.scores[0]) <= 0).all()


@pytest.mark.parametrize("backend", ["jax", "faiss"])
def test_people_leave_and_come(small_blocks, backend):
    rows = random_rows(150)
    gallery = filled(rows, backend=backend, shortlist=150)
    gallery.remove([f"p{i}" for i in range(0, 150, 2)])
    assert len(gallery) == 75 and "p0" not in gallery and "p1" in gallery
    assert gallery.search(rows[[3, 149]]).names == [["p3"], ["p149"]]
    gallery.add(["new"], rows[:1])
    assert gallery.search(rows[:1]).identities == ["new"]
    with pytest.raises(UserError, match=r"^names: 'p0' is not in the gallery"):
        gallery.remove(["p1", "p0"])
    gallery.remove(gallery.people)
    assert not gallery.people
    with pytest.raises(UserError, match=r"^gallery: nobody is in it"):
        gallery.search(rows[:1])


def test_codes_find_everybody_who_is_alike():
    rows = random_rows(8000, 128)
    ids = np.arange(0, 8000, 160)
    queries = near(rows[ids], 0.6)
    scores = queries @ rows.T
    best = np.argsort(-scores, axis=1)[:, :10]
    names = [[f"p{i}" for i in row] for row in best.tolist()]
    gallery = filled(rows, backend="faiss", shortlist=100)
    coded = gallery.search(queries, 10)
    assert coded.identities == [row[0] for row in names] == [f"p{i}" for i in ids]
    np.testing.assert_allclose(coded.scores[:, 0], 0.6, atol=1e-6)

    def recall():
        matches = gallery.search(queries, 10)
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(names, matches.names, strict=True)])

    # The other nine are at random angles, which codes order only roughly.
    assert 0.3 < recall() < 0.95
    gallery._rows._shortlist = 2000
    assert recall() > 0.97


@pytest.mark.parametrize("dim", [16, 100])
def test_the_bits_of_codes_differ_in_proportion_to_the_angle(dim):
    """Charikar, STOC 2002: P(bit differs) = θ / π."""
    rows = gallery_rows.CodedRows(dim)
    one = random_rows(400, dim)
    for cosine in (0.9, 0.5, 0.0):
        codes = np.unpackbits(rows._coded(one) ^ rows._coded(near(one, cosine)), axis=1)
        assert codes.shape[1] == 512
        assert codes.mean() == pytest.approx(np.arccos(cosine) / np.pi, abs=0.01)


@pytest.mark.parametrize("backend", ["jax", "faiss"])
def test_files_give_back_what_was_saved(small_blocks, tmp_path, backend):
    rows = random_rows(100)
    names = [f"p{i}" for i in range(98)] + ["Zoë\n", "\udce9"]
    filled(rows, names, source="runs/a").save(tmp_path / "new" / "people.gallery")
    gallery = inference.Gallery.load(tmp_path / "new" / "people.gallery", backend=backend)
    assert list(gallery.people) == names and gallery.identity == "net" and gallery.source == "runs/a"
    assert gallery.search(rows[[5, 98, 99]]).identities == ["p5", "Zoë\n", "\udce9"]
    gallery.add(["more"], -rows[:1])
    gallery.remove(["p5"])
    gallery.save(tmp_path / "new" / "people.gallery")
    again = inference.Gallery.load(tmp_path / "new" / "people.gallery")
    assert list(again.people) == [*names[:5], *names[6:], "more"]
    assert again.search(-rows[:1]).identities == ["more"]
    tensors = safetensors.numpy.load_file(tmp_path / "new" / "people.gallery")
    np.testing.assert_allclose(tensors["embeddings"][:5], rows[:5], atol=1e-6)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["people.gallery"]


def test_an_empty_gallery_is_a_file_too(tmp_path):
    inference.Gallery("net", 3).save(tmp_path / "g")
    assert len(inference.Gallery.load(tmp_path / "g")) == 0


def write(path, rows, names, description):
    tensors = {"embeddings": rows, "names": np.frombuffer(names, np.uint8)}
    safetensors.numpy.save_file(tensors, path, {"jaxface_gallery": description})


GOOD = json.dumps({"format": 1, "identity": "net", "dim": DIM})
NAMES = b'["a", "b"]'


@pytest.mark.parametrize(
    ("rows", "names", "description", "words"),
    [
        (random_rows(2), NAMES, "{}", "is no gallery; jaxface enroll makes one"),
        (random_rows(2), NAMES, "[" * 10_000, "is no gallery; jaxface enroll makes one"),
        (random_rows(2), NAMES, GOOD.replace("1", "2", 1), "is of format 2, this library reads up to 1"),
        (random_rows(2), NAMES, '{"format": 1, "dim": "x"}', "does not say which network"),
        (random_rows(2, 8), NAMES, GOOD, "needs float32 embeddings of 16 numbers each"),
        (random_rows(2).astype(np.float64), NAMES, GOOD, "needs float32 embeddings"),
        (2 * random_rows(2), NAMES, GOOD, "holds embeddings whose length is not 1"),
        (np.full((2, DIM), np.nan, np.float32), NAMES, GOOD, "holds embeddings whose length is not 1"),
        (random_rows(2), b'["a"]', GOOD, "has 1 names for 2 embeddings"),
        (random_rows(2), b'["a", ""]', GOOD, "needs its names as a JSON list of texts"),
        (random_rows(2), b"\xff\xfe", GOOD, "needs its names as a JSON list of texts"),
    ],
)
@pytest.mark.parametrize("backend", ["jax", "faiss"])
def test_a_file_from_outside_is_not_trusted(tmp_path, rows, names, description, words, backend):
    write(tmp_path / "g", rows, names, description)
    with pytest.raises(UserError, match=words) as caught:
        inference.Gallery.load(tmp_path / "g", backend=backend)
    assert str(caught.value).startswith("gallery: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no file"),
        (b"", "is no gallery"),
        (b"hello, this is a text", "is no gallery"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is no gallery"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, words):
    if content is not None:
        (tmp_path / "g").write_bytes(content)
    with pytest.raises(UserError, match=words):
        inference.Gallery.load(tmp_path / "g")


def test_a_file_cut_short(tmp_path):
    filled(random_rows(9)).save(tmp_path / "g")
    whole = (tmp_path / "g").read_bytes()
    for length in (7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "g").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"^gallery: .* is no gallery"):
            inference.Gallery.load(tmp_path / "g")


def test_a_gallery_of_another_network():
    gallery = inference.Gallery("aaaa" * 8, 3, source="runs/a")
    gallery.check_network("aaaa" * 8)
    with pytest.raises(UserError, match=r"^gallery: .* network aaaaaaaaaaaa \(runs/a\), this one is bbbb"):
        gallery.check_network("bbbb" * 8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda g: g.add(["a"], np.ones((2, DIM))), ValueError, r"embeddings: needs shape \(1, 16\)"),
        (lambda g: g.add(["a"], np.zeros((1, DIM))), UserError, "embeddings: row 0 is zero"),
        (lambda g: g.add(["a"], np.full((1, DIM), np.nan)), UserError, "embeddings: needs finite"),
        (lambda g: g.add([" "], np.ones((1, DIM))), UserError, "names: each needs a text"),
        (lambda g: g.search(np.ones((1, 3))), ValueError, r"embeddings: needs shape \[Q, 16\]"),
        (lambda g: g.search(np.ones((1, DIM)), 0), UserError, "k: needs an integer from 1"),
        (lambda g: g.search(np.ones((1, DIM)), 1, 2.0), UserError, "threshold: needs a number from -1 to 1"),
        (lambda g: inference.Gallery("net", 3, backend="x"), UserError, "backend: needs jax or faiss"),
        (lambda g: inference.Gallery("net", 0), UserError, "dim: needs"),
    ],
)
def test_refusals(call, error, words):
    gallery = filled(random_rows(3))
    with pytest.raises(error, match=words):
        call(gallery)
    assert len(gallery) == 3


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(gallery_rows.importlib.sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"^backend: 'faiss' needs the package faiss; pip install"):
        inference.Gallery("net", 3, backend="faiss")


def test_lengths_that_overflow_when_squared():
    rows = random_rows(2)
    gallery = filled(np.float64(1e30) * rows)
    assert gallery.search(np.float32(1e-30) * rows).identities == ["p0", "p1"]
