"""MegaFace in the layout in which InsightFace hands it out."""

import logging

import numpy as np
import pytest

from jaxface import data, metrics
from jaxface.data.sources.images import encode_image
from jaxface.errors import UserError

PEOPLE = ["Ann_Lee", "Ann_Lee", "Ann_Lee", "Bo_Ek", "Bo_Ek"]
DISTRACTORS = [f"{i % 3}/{i}@N0{i % 2}/{i}.jpg" for i in range(40)]


def write(root, **changes):
    """Five probes of two people, the third of Ann's wrong; forty distractors, of which number 2 and 5 are wrong."""
    probes = [f"{person}/{person}_{i}.png" for i, person in enumerate(PEOPLE)]
    files = {
        "facescrub_lst": "\n".join(probes) + "\n",
        "megaface_lst": "\n".join(DISTRACTORS) + "\n",
        "facescrub_noises.txt": "# a remark\nAnn_Lee_2.png\nSomebody_Else_7.png\n",
        "megaface_noises.txt": f"# a remark\n7\t{DISTRACTORS[2]}\n{DISTRACTORS[5]}\n",
    }
    for name, text in {**files, **changes}.items():
        if text is not None:
            (root / name).write_text(text)
    rng = np.random.default_rng(0)
    names = [f"facescrub_images/{n}" for n in probes] + [f"megaface_images/{n}" for n in DISTRACTORS]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (root / name).write_bytes(encode_image(pixels))
    return names


def test_records_and_lists(tmp_path):
    names = write(tmp_path)
    source = data.MegaFaceSource(tmp_path, image_size=8)
    assert len(source) == 45 and source.num_probes == 5 and source.record_names == names
    assert source.class_names == ["Ann_Lee", "Bo_Ek", "distractor"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1] + [2] * 40
    assert np.flatnonzero(source.noisy).tolist() == [2, 7, 10]
    assert not data.MegaFaceSource(tmp_path, refined=False).noisy.any()
    for i in (0, 44):
        record = source[i]
        np.testing.assert_array_equal(record["image"], data.decode_image(tmp_path / names[i]))
        assert record["weight"] == 1 and record["label"] == source.labels[i]


@pytest.mark.parametrize("refined", [True, False])
def test_numbers_by_loops(tmp_path, refined):
    write(tmp_path)
    source = data.MegaFaceSource(tmp_path, refined=refined)
    rng = np.random.default_rng(1)
    features = rng.normal(size=(45, 3))
    features[:3] += (2, 0, 0)
    weights = np.ones(45)
    weights[[20, 44]] = 0
    found = source.report(features.astype(np.float32), weights)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    probes = unit[:5].copy()
    if refined:
        probes[2] = (unit[0] + unit[1]) / np.linalg.norm(unit[0] + unit[1])
    out = [20, 44] + ([7, 10] if refined else [])
    distractors = unit[[i for i in range(5, 45) if i not in out]]
    order = np.random.default_rng(0).permutation(len(distractors))
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j and PEOPLE[i] == PEOPLE[j]]
    hits = [probes[i] @ probes[j] > (distractors[order[:10]] @ probes[i]).max() for i, j in pairs]
    assert found["identification/distractor_rank1@10"] == pytest.approx(np.mean(hits))
    genuine = [probes[i] @ probes[j] for i, j in pairs if i < j]
    impostor = (probes @ distractors.T).ravel()
    for name, far in (("1e-1", 0.1), ("1e-2", 0.01)):
        threshold = np.sort(impostor)[::-1][int(far * impostor.size)]
        assert found[f"verification/tar@{name}"] == pytest.approx(np.mean(np.array(genuine) > threshold))
    assert "verification/tar@1e-3" not in found and found["data/left_out"] == 2.0


def test_a_wrong_probe_is_what_is_known_of_its_person():
    features = np.array([[3.0, 0], [0, 2.0], [-1.0, 0], [0, 1.0]])
    refined = metrics.refined_probes(features, [0, 0, 0, 1], [False, False, True, False])
    np.testing.assert_allclose(refined, [[1, 0], [0, 1], [0.70711, 0.70711], [0, 1]], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(refined, axis=1), 1, atol=1e-6)
    with pytest.raises(UserError, match=r"^noisy: every person needs a clean image, number 1 has none$"):
        metrics.refined_probes(features, [0, 0, 0, 1], [False, False, False, True])


def test_what_cannot_be_read_is_left_out_and_named_once(tmp_path, caplog):
    names = write(tmp_path)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[9]).write_bytes(b"rubbish")
    source = data.MegaFaceSource(tmp_path, image_size=8)
    with caplog.at_level(logging.WARNING, logger="jaxface.data"):
        weights = [float(source[i]["weight"]) for i in range(len(source))]
    assert [i for i, w in enumerate(weights) if not w] == [0, 9] == sorted(source.corrupt)
    assert len(caplog.records) == 1 and names[0] in caplog.text and not source[0]["image"].any()
    with pytest.raises(UserError, match=r"^data: none of the 45 images of MegaFace can be read$"):
        source.report(np.ones((45, 2)), np.zeros(45))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facescrub_lst": None}, "cannot read .*facescrub_lst: No such file"),
        ({"megaface_noises.txt": None}, "cannot read .*megaface_noises.txt: No such file"),
        ({"facescrub_lst": "a.png\n"}, "facescrub_lst needs lines of 2 parts, such as a/b.png"),
        ({"megaface_lst": ""}, "megaface_lst needs lines of 3 parts"),
        ({"facescrub_lst": "../b.png\n../c.png\n"}, "names an image outside of its folder"),
        ({"facescrub_lst": "a/b.png\nc/d.png\n"}, "needs a person with two images"),
        ({"megaface_lst": "a/b/c.png\n"}, "needs at least 10 distractors, .* has 1"),
        ({"facescrub_noises.txt": "Bo_Ek_3.png\nBo_Ek_4.png\n"}, "lists every image of Bo_Ek"),
    ],
)
def test_refusals(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(UserError, match=f"^root: .*{message}") as caught:
        data.MegaFaceSource(tmp_path)
    assert "\n" not in str(caught.value)
    if message.startswith("lists"):
        assert len(data.MegaFaceSource(tmp_path, refined=False)) == 45


def test_an_object_store(tmp_path, same_elsewhere):
    write(tmp_path)
    far = same_elsewhere(lambda root: data.MegaFaceSource(root, image_size=8), tmp_path)
    assert far.noisy.sum() == 3
