import logging

import numpy as np
import object_store
import pytest
from PIL import Image

from jaxface.data import TemplateSource
from jaxface.data.transforms.alignment import template
from jaxface.errors import UserError

POINTS = " ".join(f"{x + 20:.4f}" for x in template(112).ravel())
FILES = {
    "face_tid_mid": "1.png 7 4\n2.png 7 9\n3.png 30 4\n",
    "name_5pts_score": f"1.png {POINTS} 0.9\n2.png {POINTS} 0.25\n3.png {POINTS} 1\n",
    "template_pair_label": "7 30 0\n30 7 0\n7 7 1\n",
}


def write(root, **changes):
    """Three images of 160 x 152 pixels, the face 20 pixels from the top left corner of each."""
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 152, 160, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / "loose_crop" / f"{i + 1}.png")
    for name, text in {**FILES, **changes}.items():
        if text is not None:
            (root / "meta" / f"set_{name}.txt").write_text(text)
    return images


def test_records_are_aligned_images_with_their_score(tmp_path):
    images = write(tmp_path)
    source = TemplateSource(tmp_path)
    assert (len(source), source.class_names, source.image_shape) == (3, ["7", "30"], (112, 112, 3))
    np.testing.assert_array_equal(source.template_ids, [7, 7, 30])
    np.testing.assert_array_equal(source.media_ids, [4, 9, 4])
    np.testing.assert_array_equal(source.labels, [0, 0, 1])
    np.testing.assert_array_equal(source.pairs.indices, [[0, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(source.pairs.same, [False, False, True])
    for i, score in enumerate((0.9, 0.25, 1.0)):
        record = source[i]
        # The landmarks are the template's, moved: the crop is a window.
        np.testing.assert_allclose(record["image"].astype(int), images[i, 20:132, 20:132], atol=1)
        assert record["weight"] == np.float32(score) and record["label"] == source.labels[i]
    small = TemplateSource(tmp_path, image_size=56)[0]["image"]
    blocks = images[0, 20:132, 20:132].reshape(56, 2, 56, 2, 3).mean((1, 3))
    np.testing.assert_allclose(small, blocks, atol=2)


def test_an_image_that_cannot_be_read_has_no_weight(tmp_path, caplog):
    write(tmp_path)
    (tmp_path / "loose_crop" / "1.png").unlink()
    (tmp_path / "loose_crop" / "3.png").write_bytes(b"rubbish")
    source = TemplateSource(tmp_path)
    with caplog.at_level(logging.WARNING, logger="jaxface.data"):
        records = [source[i] for i in range(3)]
    assert [float(record["weight"]) for record in records] == [0, 0.25, 0]
    assert not records[0]["image"].any() and source.corrupt == {0, 2}
    assert len(caplog.records) == 1 and "1.png" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face_tid_mid": None}, "needs one meta/<set>_face_tid_mid.txt, .* has 0"),
        (
            {"face_tid_mid": "1.png 7\n"},
            "cannot read .*set_face_tid_mid.txt: needs a name and 2 numbers per line",
        ),
        ({"face_tid_mid": "../1.png 7 4\n"}, ".*set_face_tid_mid.txt names an image outside of its folder"),
        ({"name_5pts_score": None}, "cannot read .*set_name_5pts_score.txt: No such file"),
        (
            {"name_5pts_score": f"1.png {POINTS} 0.9\n"},
            "both lists of images in .* need the same names in one order",
        ),
        (
            {"name_5pts_score": FILES["name_5pts_score"].replace("0.25", "-1")},
            "landmarks and scores in .* need to be finite, scores ≥ 0",
        ),
        (
            {"template_pair_label": "7 31 0\n"},
            "template 31 of the pairs has no image in .*set_face_tid_mid.txt",
        ),
        ({"template_pair_label": "7 30 2\n"}, "the labels of pairs in .* need to be 0 or 1"),
        (
            {"template_pair_label": "7 30\n"},
            "cannot read .*set_template_pair_label.txt: needs 3 numbers per line",
        ),
    ],
)
def test_refusals(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=f"^templates: {message}") as caught:
        TemplateSource(tmp_path)
    assert "\n" not in str(caught.value)


GALLERIES = {"G1": [(7, 1), (30, 2)], "G2": [(41, 3)]}
PROBES = [(50, 1), (51, 2), (52, 3), (53, 9)]


def write_search(root, *, galleries=GALLERIES, probes=PROBES):
    """Seven templates of one image each, in the layout of IJB-C: a line of a list for each image, further columns behind."""
    templates = [template for rows in [*GALLERIES.values(), PROBES] for template, _ in rows]
    count = range(len(templates))
    write(
        root,
        face_tid_mid="".join(f"{i}.png {templates[i]} {i}\n" for i in count),
        name_5pts_score="".join(f"{i}.png {POINTS} 1\n" for i in count),
        template_pair_label="7 50 1\n7 51 0\n30 51 1\n41 50 0\n",
    )
    lists = {f"gallery_{name}": rows for name, rows in galleries.items()} | {"probe_mixed": probes}
    for name, rows in lists.items():
        lines = ["TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X"]
        lines += [f"{template},{person},img/{i}.jpg,{i},3.5" for template, person in rows for i in (0, 1)]
        if rows is not None and len(rows):
            (root / "meta" / f"set_1N_{name}.csv").write_text("\n".join(lines) + "\n")
    return templates


def test_pairs_and_both_galleries(tmp_path):
    """Oracle: the protocols counted by hand, in float64."""
    templates = write_search(tmp_path)
    source = TemplateSource(tmp_path)
    assert source.search.probes.tolist() == [3, 4, 5, 6] and source.search.probe_people.tolist() == [
        1,
        2,
        3,
        9,
    ]
    angles = np.radians([0, 90, 200, 10, 50, 40, 15])  # of the templates in the order of their ids
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)[np.argsort(np.argsort(templates))]
    lengths = np.array([1, 2, 3, 4, 5, 6, 7.0])
    report = source.report((rows * lengths[:, None]).astype(np.float32), np.ones(7))
    # Cosines with 7, 30 | 41:  50: .98, .17 | -.98   51: .64, .77 | -.87   52: .77, .64 | -.94   53: .97, .26 | -.996
    assert report["verification/auc"] == 1.0 and report["verification/eer"] == 0.0
    assert report["identification/rank1"] == 1.0
    # In G1 50 and 51 are mated, 52 and 53 strangers with .77 and .97 at most: an FPIR of 1e-1 allows neither.
    assert not [name for name in report if "tpir" in name]
    # Both galleries as one: 52's own template is the last of the three, its rank is 3.
    assert report["one_gallery/rank1"] == pytest.approx(2 / 3) and report["one_gallery/rank5"] == 1.0
    # t is the largest cosine with another: .766 of 52 with 7; above it are .98 of 50 and, by a hair not, .766 of 51.
    assert report["one_gallery/mates_above@1e-1"] == pytest.approx(1 / 3)
    assert report["data/left_out"] == 0.0


def test_open_set_over_both_galleries(tmp_path):
    """FNIR at FPIR is the mean over galleries in which the others are strangers; oracle: sorted scores."""
    rng = np.random.default_rng(5)
    people = np.arange(20)
    galleries = {"S1": [(100 + p, p) for p in people[:10]], "S2": [(100 + p, p) for p in people[10:]]}
    probes = [(200 + i, i % 24) for i in range(48)]
    (tmp_path / "meta").mkdir()
    ids = [t for rows in [*galleries.values(), probes] for t, _ in rows]
    (tmp_path / "meta/ijbb_face_tid_mid.txt").write_text("".join(f"{t}.png {t} {t}\n" for t in ids))
    (tmp_path / "meta/ijbb_name_5pts_score.txt").write_text("".join(f"{t}.png {POINTS} 1\n" for t in ids))
    (tmp_path / "meta/ijbb_template_pair_label.txt").write_text("100 200 1\n100 201 0\n")
    for name, rows in {
        "gallery_S1": galleries["S1"],
        "gallery_S2": galleries["S2"],
        "probe_mixed": probes,
    }.items():
        text = "".join(f"{t},{p}\n" for t, p in rows)
        (tmp_path / f"meta/ijbb_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n" + text)
    means = rng.normal(size=(24, 8))
    rows = np.stack([means[p] + rng.normal(size=8) for p in [*people, *(p for _, p in probes)]])
    report = TemplateSource(tmp_path).report(rows.astype(np.float32), np.ones(len(rows)))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    whose, misses, hits = np.array([p for _, p in probes]), [], []
    for half in (people[:10], people[10:]):
        scores = unit[20:] @ unit[half].T
        inside = np.isin(whose, half)
        threshold = np.sort(scores[~inside].max(axis=1))[::-1][int(0.1 * (~inside).sum())]
        best = half[scores.argmax(axis=1)]
        right = (best == whose) & (scores.max(axis=1) > threshold)
        misses.append(1 - right[inside].mean())
        hits.append((best == whose)[inside].mean())
    assert 0 < np.mean(misses) < 1
    assert report["identification/fnir@1e-1"] == pytest.approx(np.mean(misses))
    assert report["identification/tpir@1e-1"] == pytest.approx(1 - np.mean(misses))
    assert report["identification/rank1"] == pytest.approx(np.mean(hits))
    assert "identification/fnir@1e-2" not in report  # 28 strangers cannot tell


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"galleries": {"G1": GALLERIES["G1"]}}, r"1:N needs two set_1N_gallery_\*.csv and .* has 1 and one"),
        ({"probes": []}, "1:N needs two .* has 2 and none"),
        (
            {"galleries": {"G1": [(7, 1), (30, 1)], "G2": [(41, 3)]}},
            "G1.csv needs one template of each person",
        ),
        ({"galleries": {"G1": [(7, 1)], "G2": [(41, 1)]}}, "person 1 is in both galleries"),
        ({"probes": [(50, 1), (50, 2)]}, "probe_mixed.csv needs templates of one person each"),
        ({"probes": [(99, 1)]}, "template 99 of .*probe_mixed.csv has no image"),
        ({"probes": [("x", 1)]}, "probe_mixed.csv needs a template and a person in line 2"),
    ],
)
def test_lists_of_the_search_that_do_not_fit(tmp_path, changes, message):
    write_search(tmp_path, **changes)
    with pytest.raises(UserError, match=f"^templates: .*{message}") as caught:
        TemplateSource(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_object_store(tmp_path, same_elsewhere, monkeypatch):
    write_search(tmp_path)
    for number in range(7):
        (tmp_path / "loose_crop" / f"{number}.png").write_bytes((tmp_path / "loose_crop/1.png").read_bytes())
    far = same_elsewhere(TemplateSource, tmp_path)
    assert len(far.search.galleries) == 2 and not far.corrupt

    def fail(*_, **__):
        raise RuntimeError("503 slow down")

    monkeypatch.setattr(object_store.ObjectPath, "open", fail)
    with pytest.raises(UserError, match=r"1\.png cannot be reached: 503 slow down"):
        far[1]
    assert not far.corrupt
