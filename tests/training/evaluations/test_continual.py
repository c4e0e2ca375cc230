"""Accuracy by task and session, of a network whose answers are written down."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import data, training
from jaxface.errors import UserError
from jaxface.training import figures


class Told(nn.Module):
    """Says for every class what stands in the image's pixels."""

    embedding: int = 6

    @nn.compact
    def __call__(self, image, *, train=False):
        shift = self.param("shift", nn.initializers.zeros, (self.embedding,))
        return image.reshape(len(image), -1)[:, : self.embedding] + shift


NETWORK = training.TaskNetwork(Told(), 3, 2)
LABELS = np.repeat(np.arange(6), 4)


def source(answers):
    """Records of six classes whose images say `answers`."""
    images = np.full((24, 1, 6, 1), 100, np.uint8)
    images[np.arange(24), 0, answers] = 200
    return data.TaskOrdered(
        data.ArraySource(images, LABELS, list("abcdef")), data.TaskSpec(count=3).classes(6)
    )


def state(shift=0.0):
    params = {"backbone": {"shift": jnp.full(6, shift)}}
    return training.create_state(jnp.zeros(2, jnp.uint32), params, extra={})


def wrong(*rows):
    """Right answers but for some rows, which get the other class of their task."""
    answers = LABELS.copy()
    answers[list(rows)] ^= 1
    return answers


def test_the_matrix_grows_with_the_sessions():
    evaluations, reports = [], []
    for session, answers in enumerate((wrong(0), wrong(0, 1, 8), wrong(0, 1, 2, 3, 8, 9))):
        evaluations.append(training.ContinualAccuracy(NETWORK, source(answers), session, reports, chunk=2))
        reports.append(evaluations[-1](state()))
    expected = np.array([[7 / 8, 1, 1], [6 / 8, 7 / 8, 1], [4 / 8, 6 / 8, 1]])
    np.testing.assert_allclose(evaluations[-1].matrices["task"], expected)
    lower = expected * np.tri(3)  # of classes that have not come nothing is right
    for scenario in ("class", "chunk"):
        np.testing.assert_allclose(evaluations[-1].matrices[scenario], lower)
    last = reports[-1]
    assert last["class/average"] == pytest.approx(expected[-1].mean())
    assert last["class/forgetting"] == pytest.approx((3 / 8 + 1 / 8) / 2)
    assert last["class/learning"] == pytest.approx((7 / 8 + 7 / 8 + 1) / 3)
    assert reports[1]["class/accuracy"] == pytest.approx(13 / 16)
    assert "class/average" not in reports[0]
    assert list(evaluations[-1].figures(state())) == ["accuracy_task", "accuracy_class", "accuracy_chunk"]


def test_a_chunk_outvotes_an_image_of_another_task():
    answers = LABELS.copy()
    answers[3] = 5  # looks like a class of the last task
    report = training.ContinualAccuracy(NETWORK, source(answers), 2, [], chunk=8)(state())
    assert report["class/task_0"] == 7 / 8 and report["chunk/task_0"] >= 7 / 8
    alone = training.ContinualAccuracy(NETWORK, source(answers), 2, [], chunk=1)(state())
    assert alone["chunk/task_0"] == 7 / 8


def test_forward_transfer_is_against_the_network_before_its_first_step():
    start = training.ContinualAccuracy(NETWORK, source(wrong(8, 9, 10, 11)), -1)(state())
    assert start["task/task_1"] == 0.5 and "class/task_0" not in start
    reports = [start]
    for session in range(3):
        reports.append(training.ContinualAccuracy(NETWORK, source(LABELS), session, reports)(state()))
    assert reports[-1]["task/forward_transfer"] == pytest.approx((0.5 + 0.0) / 2)


def test_adaptation_is_to_the_exemplars_of_its_task():
    train = source(LABELS)
    adaptation = training.Adaptation(NETWORK, train, 12, learning_rate=0.1, batch_size=4)
    before = state()
    after = adaptation.adapted(before.params, before.extra, 2, 1)["backbone"]["shift"]
    moved = np.asarray(after - before.params["backbone"]["shift"])
    assert moved[2:4].all() and not moved[[0, 1, 4, 5]].any()
    assert adaptation.capacity == 2  # 12 of four classes are 6 of a task: two batches of 4
    report = training.ContinualAccuracy(NETWORK, train, 2, [], adaptation=adaptation)(before)
    assert report["adapted/accuracy"] == 1.0


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="data: needs test records of every task, there are none of task 2"):
        few = data.TaskOrdered(
            data.ArraySource(np.zeros((4, 1, 6, 1), np.uint8), np.arange(4), list("abcd")),
            data.TaskSpec(count=2).classes(4),
        )
        training.ContinualAccuracy(NETWORK, few, 0)
    with pytest.raises(UserError, match=r"accuracy: needs values in \[0, 1\]"):
        figures.save_accuracy_matrix(np.array([[1.5]]), tmp_path / "a.png")
    with pytest.raises(ValueError, match="one row and one column"):
        figures.save_accuracy_matrix(np.array([[0.5, 0.5]]), tmp_path / "a.png")
