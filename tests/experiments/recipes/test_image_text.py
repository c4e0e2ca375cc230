"""Up-A: a stage that is killed goes on as it was, and no tokenizer or network of another run is taken for its own."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.recipes import image_text
from experiments.recipes.image_text import TextTowerSpec, UpA, up_a_stage
from jaxface import data, models, training
from jaxface.data.transforms.text import Tokenizer, caption_bytes
from jaxface.errors import UserError

pytest.importorskip("tokenizers")

COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "white": (220, 220, 220)}


class Squares:
    """Squares of four colors to the left or to the right, and what they are called."""

    def __init__(self, count: int, seed: int = 0, words: str = "a {} square to the {}"):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 8, count).astype(np.int32)
        self.class_names = [f"{color} {side}" for color in COLORS for side in ("left", "right")]
        self.image_shape = (16, 16, 3)
        self.captions = [words.format(*self.class_names[k].split()) for k in self.labels]
        self.record_names = self.captions
        self._images = rng.integers(0, 60, (count, 16, 16, 3)).astype(np.uint8)
        for image, label in zip(self._images, self.labels, strict=True):
            left = 1 if label % 2 == 0 else 9
            image[4:12, left : left + 6] = list(COLORS.values())[label // 2]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {
            "image": self._images[index],
            "label": self.labels[index],
            "caption": caption_bytes(self.captions[index]),
        }


SPLIT = data.Split(Squares(64), Squares(16, seed=1), "squares", "classification")
SPEC = UpA(
    steps=4,
    batch_size=8,
    features=8,
    text=TextTowerSpec(dim=8, depth=1, heads=2, length=12, vocabulary=280),
    projected=8,
    predicted=4,
    local_level=0,
)


def backbone():
    return models.create("plain_stages", embedding=None, channels=(4, 8), steps=(2, 2), norm=True)


def stage(spec=SPEC, split=SPLIT):
    return up_a_stage(spec, backbone(), split)[0]


def test_what_the_paper_has():
    spec = UpA.paper()
    weights = dataclasses.asdict(spec.weights)
    assert weights == {"clip": 0.4, "neighbors": 0.2, "views": 0.2, "words": 0.2}
    assert (spec.batch_size, spec.steps, spec.optimizer.learning_rate) == (4096, 128_000, 1e-3)
    assert (spec.text.vocabulary, spec.text.length, spec.bank_size()) == (49_408, 77, 65_536)
    assert spec.optimizer.warmup * spec.steps == pytest.approx(2500) and spec.clamp == (3.0, 6.0)
    assert spec.optimizer.weight_decay == 0.1
    assert dataclasses.replace(spec, steps=40, batch_size=256).bank_size() == 40 * 64


def test_the_scale_of_the_logits_starts_at_one_over_0_07_and_ends_at_100():
    nets = image_text.networks(SPEC, backbone(), Tokenizer.train(SPLIT.train.captions, vocabulary=280))

    def scale(theta):
        return float(nets.heads.apply({"params": {"logit_scale": np.float32(theta)}}, method="logit_scale"))

    assert scale(nets.heads.start) == pytest.approx(1 / 0.07, rel=1e-5)
    assert scale(3.0) == pytest.approx(20.0855, rel=1e-4) and scale(6.0) == 100


def test_images_without_captions_are_refused():
    plain = data.Split(data.digits(), data.digits(), "digits", "classification")
    with pytest.raises(
        UserError, match="data: needs images with captions, such as captioned_faces; got digits"
    ):
        up_a_stage(SPEC, backbone(), plain)
    with pytest.raises(UserError, match=r"up_a\.local_level: needs one of the 2 levels, got 2"):
        stage(dataclasses.replace(SPEC, local_level=2))
    with pytest.raises(UserError, match="batch_size: needs at most the 64 records"):
        stage(dataclasses.replace(SPEC, batch_size=65))


class Stop(Exception):
    """A kill."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("up_a")
    return folder, training.run([stage()], cadence=CADENCE, workdir=folder, progress=False)


CADENCE = training.Cadence(log_every=1, evaluate_every=0, checkpoint_every=2)


@pytest.mark.slow
def test_a_killed_run_ends_where_the_whole_one_does(whole, tmp_path):
    folder, outcome = whole
    made = stage()

    def crash(state):
        batches = made.batches(state)
        following = type(batches).__next__

        class Crashing(type(batches)):
            taken = 0

            def __next__(self):
                Crashing.taken += 1
                if Crashing.taken > 3:
                    raise Stop
                return following(self)

        batches.__class__ = Crashing
        return batches

    with pytest.raises(Stop):
        training.run(
            [dataclasses.replace(made, batches=crash)], cadence=CADENCE, workdir=tmp_path, progress=False
        )
    resumed = training.run([stage()], cadence=CADENCE, workdir=tmp_path, progress=False)
    for a, b in zip(
        jax.tree.leaves(resumed.state.params), jax.tree.leaves(outcome.state.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    bank, known = resumed.state.extra["bank"], outcome.state.extra["bank"]
    np.testing.assert_array_equal(bank.rows, known.rows)
    assert int(bank.written) == SPEC.bank_size() == 8

    # θ starts below its range and is put into it; what it is of is said beside it.
    assert float(outcome.state.params["heads"]["logit_scale"]) >= 3.0
    assert 0 <= outcome.metrics["retrieval/image_to_text"] <= 1


@pytest.mark.slow
def test_another_tokenizer_is_refused(whole, tmp_path):
    folder, _ = whole
    tokenizer, params, extra = image_text.trained_networks(folder)
    np.testing.assert_array_equal(tokenizer.encode(SPLIT.train.captions), stage_tokens())
    assert params.keys() == {"backbone", "text", "heads"} and "batch_stats" in extra

    # To start from the run: its tokenizer is taken, another one is not.
    started = up_a_stage(dataclasses.replace(SPEC, init_from=str(folder)), backbone(), SPLIT)[1]
    assert started.tokenizer.digest == tokenizer.digest
    other = Tokenizer.train(["something else"], vocabulary=tokenizer.vocabulary, length=12)
    other.save(tmp_path / "tokenizer.json")
    given = dataclasses.replace(SPEC, init_from=str(folder), tokenizer=str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="tokenizer: does not match the checkpoint") as caught:
        stage(given)
    assert "\n" not in str(caught.value)
    # Of the same captions, to resume: refused as well.
    with pytest.raises(UserError, match="tokenizer: does not match the checkpoint"):
        alone = dataclasses.replace(SPEC, tokenizer=str(tmp_path / "tokenizer.json"))
        training.run([stage(alone)], cadence=CADENCE, workdir=folder, progress=False)
    # A wider network than the run's.
    wide = dataclasses.replace(SPEC, init_from=str(folder), features=16)
    with pytest.raises(
        UserError, match=r"up_a\.init_from: has other networks, heads/image_projection/kernel"
    ):
        stage(wide)
    # A file beside the checkpoint that is not of it.
    file = next((folder / "checkpoints").glob("*up_a.json"))
    described = json.loads(file.read_text())
    described["tokenizer"]["text"] = other.text
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match="run: does not match the checkpoint"):
        image_text.run_tokenizer(str(folder))


def stage_tokens():
    return Tokenizer.train(SPLIT.train.captions, vocabulary=280, length=12).encode(SPLIT.train.captions)
