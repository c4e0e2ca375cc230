"""Labels of several sources under one system, sources mixed by their sizes, test images kept out."""

import numpy as np
import pytest

from jaxface import data
from jaxface.data.pipeline.mixed_sources import mix_sources
from jaxface.data.sources.label_graph import DataSource, LabelGraph, label_graph, unify_labels
from jaxface.data.sources.near_duplicates import NearDuplicates, check_apart
from jaxface.errors import UserError


def pictures(count, names, seed=0, size=4):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return data.ArraySource(pixels, np.arange(count) % len(names), list(names))


PETS = DataSource(
    "pets",
    pictures(16, ["Cat", "Dog"]),
    "classification",
    label_map={"Cat": "cat", "Dog": "dog"},
    parents={"cat": ("mammal",), "dog": ("mammal",), "mammal": ("animal",), "bird": ("animal",)},
)
CARS = DataSource("cars", pictures(4, ["van", "cat"]), "classification", parents={"van": ("vehicle",)})


def test_a_class_says_its_ancestors_and_siblings_and_nothing_of_the_rest():
    graph = label_graph([PETS, CARS])
    assert graph.concepts == ("animal", "bird", "cat", "dog", "mammal", "van", "vehicle")
    target, mask = unify_labels(graph, PETS, np.array([0, 1, 0]))
    named = {name: (target[0, i], mask[0, i]) for i, name in enumerate(graph.concepts)}
    assert [named[name] for name in ("cat", "mammal", "animal")] == [(1, 1)] * 3
    assert named["dog"] == (0, 1)
    assert [named[name] for name in ("bird", "van", "vehicle")] == [(0, 0)] * 3
    assert np.array_equal(target[0], target[2]) and target[1, graph.index("dog")] == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"animal": ("cat",)}, "graphs of pets, other contradict each other; .* is its own ancestor"),
        (
            {"chimera": ("cat", "dog")},
            "graphs of pets, other contradict each other; .*'chimera' is under 'cat' and 'dog', which exclude",
        ),
    ],
)
def test_contradicting_graphs_are_refused(other, words):
    source = DataSource("other", pictures(2, list(other)), "classification", parents=other)
    LabelGraph(source.graph)  # alone it is none
    with pytest.raises(UserError, match=words):
        label_graph([PETS, source])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: label_graph([PETS, PETS]), "sources: needs another name for each"),
        (
            lambda: DataSource("x", pictures(2, ["a"]), "poses"),
            "task_type: needs one of classification, .*, got 'poses'",
        ),
        (lambda: DataSource("x", pictures(2, ["a"]), "depth", weight=0.0), "weight: needs a"),
        (
            lambda: DataSource("x", pictures(2, ["a"]), "depth", label_map={"b": "c"}),
            "label_map: x has no class 'b'",
        ),
        (lambda: LabelGraph({"a": ()}).index("b"), "label_map: 'b' is no concept"),
        (lambda: mix_sources([]), "sources: needs at least one"),
        (lambda: mix_sources([PETS], 1.5), "power: needs"),
        (
            lambda: mix_sources([PETS, DataSource("d", pictures(2, ["cat"]), "depth")]),
            "sources: needs one task type to mix, got classification and depth",
        ),
        (
            lambda: mix_sources([PETS, DataSource("d", pictures(2, ["x"], size=8), "classification")]),
            "sources: needs images of one shape",
        ),
        (lambda: check_apart(["a", "b"], ["b"]), "train: needs other records than the test, 'b'"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_source_comes_by_the_root_of_its_size():
    mix = mix_sources([PETS, CARS])  # 16 and 4 records: 4 : 2
    np.testing.assert_allclose(mix.probabilities, [2 / 3, 1 / 3])
    rows = np.concatenate([mix.order(step, batch_size=50, seed=1) for step in range(60)])
    assert rows.min() == 0 and rows.max() == 19
    assert abs((rows < 16).mean() - 2 / 3) < 0.03
    assert np.array_equal(mix.order(3, batch_size=8, seed=1), mix.order(3, batch_size=8, seed=1))
    # The class "cat" of both is one concept.
    cats = mix.source.labels == mix.source.class_names.index("cat")
    assert set(mix.source.origin[cats]) == {0, 1}
    batch = next(data.batches(mix.source, batch_size=8, seed=0, order=mix.order))
    assert set(batch) == {"image", "label", "origin"}


def test_test_images_are_taken_out_of_the_training_set():
    train, test = pictures(6, "ab", seed=1, size=32), pictures(3, "ab", seed=2, size=32)
    # Record 4 of the training set is a test image, a little brighter.
    copies = [train[i]["image"] for i in range(6)]
    copies[4] = np.clip(test[1]["image"].astype(int) + 3, 0, 255).astype(np.uint8)
    train = data.ArraySource(np.stack(copies), train.labels, ["a", "b"])
    left, gone = NearDuplicates().removed(train, [test])
    assert gone.tolist() == [4] and len(left) == 5
    with pytest.raises(UserError, match="train: every image is in a test set"):
        NearDuplicates().removed(test, [test])
