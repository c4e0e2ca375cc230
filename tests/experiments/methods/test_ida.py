import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs, launch
from experiments.configs import load_network
from experiments.methods import ida
from experiments.recipes.gan import GanSpec
from experiments.studies import ida as studies
from jaxface import data, training
from jaxface.errors import UserError
from jaxface.models.generative.gan import Discriminator, Generator

CROWD = data.Crowd(identities=40, per_identity=4, held_out_identities=30, held_out_per_identity=4, size=16)
OFF = dict(gan=GanSpec(steps=0), estimator=ida.EstimatorSpec(steps=0))
SMALL = dataclasses.replace(ida.Config.crowded(), crowd=CROWD, candidates=200, neighbors=10, **OFF)
GAN = GanSpec(steps=2, batch_size=16, latent=4, channels=2)
ESTIMATOR = ida.EstimatorSpec(steps=3, batch_size=32)
FACES = dataclasses.replace(
    ida.Config(),
    data=data.Procedural(identities=12, per_identity=4, held_out_identities=8, groups=3),
    augment=data.Augment(flip=0.0),
    backbone="mlp_8",
    embedding=8,
    batch_size=16,
    steps=2,
    candidates=40,
    neighbors=5,
    gan=GAN,
    estimator=ESTIMATOR,
)


def run(config, **arguments):
    first = training.make_parallel(devices=jax.devices()[:1])
    return training.run(ida.build(config, **arguments), seed=config.seed, parallel=first, progress=False)


def test_every_stage_of_a_run_and_what_it_leaves(tiny, tmp_path):
    flags = """--gan.steps 2 --gan.batch-size 8 --gan.channels 2 --estimator.steps 3 --estimator.hidden 4 --candidates 40
        --neighbors 6 --duplicates-above 1"""
    launch.main(["ida", *tiny, *flags.split(), "--workdir", str(tmp_path)])
    report = json.loads((tmp_path / "results.json").read_text())["metrics"]
    for score in ("cosine", "gallery", "generated", "simulated", "learned", "oracle", "snorm"):
        assert 0 <= report[f"alignment/{score}/tar@1e-2"] <= 1
        assert report[f"alignment/{score}/spread@1e-2"] >= 0  # rendered people have skin tones
    assert report["alignment/verification/tar@1e-2"] == report["alignment/generated/tar@1e-2"]
    assert report["alignment/generated/kept"] == 1
    assert 0 < report["recognition/verification/accuracy"] <= 1
    assert (tmp_path / "roc.png").exists() or list(tmp_path.glob("**/roc.png"))
    # The network of the run is that of its last stage, and can be evaluated, taught from and used again.
    model, backbone, extra, config = load_network(tmp_path)
    again = dataclasses.replace(
        config, run=str(tmp_path), gan=dataclasses.replace(config.gan, steps=0), score="simulated"
    )
    stages = ida.build(again)
    assert [stage.name for stage in stages] == ["recognition", "estimator", "alignment"]
    assert stages[0].steps == 0
    outcome = run(again)
    jax.tree.map(np.testing.assert_array_equal, outcome.state.params["backbone"], backbone)
    for score in ("cosine", "simulated", "oracle"):
        name = f"alignment/{score}/tar@1e-2"
        np.testing.assert_allclose(outcome.metrics[name], report[name], atol=0.03)


def test_the_generator_leaves_the_network_alone():
    """The network of the first stage is in every state that follows, whatever else is trained."""
    outcomes = {}

    def watched():
        for stage in ida.build(FACES):
            outcome = yield stage
            outcomes[stage.name] = outcome.state

    training.run(watched(), progress=False, parallel=training.make_parallel(devices=jax.devices()[:1]))
    assert list(outcomes) == ["recognition", "gan", "estimator", "alignment"]
    backbone = outcomes["recognition"].params["backbone"]
    for state in (outcomes["gan"].extra["teacher"]["params"], outcomes["alignment"].params["backbone"]):
        jax.tree.map(np.testing.assert_array_equal, state, backbone)
    jax.tree.map(
        np.testing.assert_array_equal,
        outcomes["alignment"].params["generator"],
        outcomes["gan"].ema["generator"],
    )


def test_crowds_gain_and_one_group_does_not():
    crowd = dataclasses.replace(CROWD, held_out_identities=120, size=64)
    config = dataclasses.replace(SMALL, crowd=crowd, candidates=1000, neighbors=30)
    crowded = run(config).metrics
    alone = run(dataclasses.replace(config, crowd=dataclasses.replace(crowd, groups=1))).metrics
    gain, none = (
        m["alignment/simulated/tar@1e-3"] - m["alignment/cosine/tar@1e-3"] for m in (crowded, alone)
    )
    assert gain > 0.1 > 0.03 > abs(none)
    assert crowded["alignment/simulated/spread@1e-2"] < crowded["alignment/cosine/spread@1e-2"] - 1
    mismatched = run(
        dataclasses.replace(config, crowd=dataclasses.replace(crowd, candidates_crowding=0.0))
    ).metrics
    assert mismatched["alignment/simulated/tar@1e-3"] < crowded["alignment/simulated/tar@1e-3"] - 0.05
    assert mismatched["alignment/simulated/deviation"] < 0.5 * crowded["alignment/simulated/deviation"]


def test_the_estimator_learns_the_discrepancy():
    crowd = dataclasses.replace(CROWD, identities=200, held_out_identities=90, size=64)
    config = dataclasses.replace(
        SMALL, crowd=crowd, neighbors=30, estimator=ida.EstimatorSpec(steps=200, batch_size=128)
    )
    report = run(config).metrics
    assert report["alignment/learned/correlation"] > 0.7
    assert report["alignment/learned/tar@1e-3"] > report["alignment/cosine/tar@1e-3"] + 0.05


@pytest.mark.parametrize("neighbors", ["images", "centers"])
def test_an_untrained_estimator_is_the_mean_of_its_targets(neighbors):
    config = dataclasses.replace(SMALL, estimator=ida.EstimatorSpec(steps=0, neighbors=neighbors))
    state = run(config).state
    gallery = data.crowded_embeddings(40, 4, seed=0, size=16)
    cosines = gallery.embeddings @ gallery.embeddings.T
    if neighbors == "centers":
        centers = gallery.embeddings.reshape(40, 4, 16).mean(1)
        cosines = gallery.embeddings @ (centers / np.linalg.norm(centers, axis=1, keepdims=True)).T
    other = gallery.labels[:, None] != (np.arange(40) if neighbors == "centers" else gallery.labels)[None]
    target = -np.sort(-np.where(other, cosines, -9), axis=1)[:, :10].mean()
    np.testing.assert_allclose(state.params["estimator"]["head_dense"]["bias"], [target], atol=1e-5)


@pytest.mark.slow
def test_devices_share_the_batch():
    """One device, a mesh of 8 and 8 replicas train the same estimator; one device and a mesh the same generator."""
    config = dataclasses.replace(SMALL, gan=GAN, estimator=ESTIMATOR)
    states = []
    for parallel in (
        training.make_parallel(devices=jax.devices()[:1]),
        training.make_parallel("jit", model_shards=2),
        training.make_parallel("pmap"),
    ):
        outcome = training.run(ida.build(config), parallel=parallel, progress=False)
        states.append(jax.tree.map(np.asarray, outcome.state.params))
    one, mesh, replicas = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, mesh)
    # Replicas draw latents of their own.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        one["estimator"],
        replicas["estimator"],
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(replicas))


def test_a_generator_and_a_detector_can_be_plugged_in():
    """A generator that copies the gallery is a gallery; a detector drops what it does not take for a face."""
    people = data.crowded_embeddings(40, 4, seed=0, size=16).embeddings.reshape(-1, 1, 16, 1)
    asked = []

    def copies(latents):
        assert latents.shape[1] == SMALL.gan.latent
        start = 256 * len(asked)
        asked.append(np.asarray(latents))
        return people[np.arange(start, start + len(latents)) % len(people)]

    config = dataclasses.replace(SMALL, candidates=320, score="generated")
    outcome = run(config, generator=copies)
    assert [stage.name for stage in ida.build(config, generator=copies)] == ["estimator", "alignment"]
    assert len(asked) == 2 and (asked[0] != asked[1]).all()
    # Twice the same people, so that there are twice the neighbors.
    twice = run(dataclasses.replace(config, neighbors=5, score="gallery")).metrics
    assert outcome.metrics["alignment/verification/tar@1e-2"] == twice["alignment/gallery/tar@1e-2"]
    asked.clear()
    half = run(config, generator=copies, detector=lambda faces: np.arange(len(faces)) % 2 == 0)
    assert half.metrics["alignment/generated/kept"] == 0.5
    asked.clear()
    once = run(dataclasses.replace(config, duplicates_above=0.9999), generator=copies)
    assert once.metrics["alignment/generated/kept"] == 0.5
    with pytest.raises(UserError, match=r"^generator: all of its 320 faces were dropped"):
        run(config, generator=copies, detector=lambda faces: np.zeros(len(faces)))
    with pytest.raises(UserError, match=r"^generator: needs faces of shape \(1, 16, 1\), got \(1, 8, 1\)"):
        run(config, generator=lambda latents: people[: len(latents), :, :8])


def test_a_face_that_may_be_the_same_person_counts_for_nobody():
    config = dataclasses.replace(SMALL, same_above=0.2)
    stages = ida.build(config)
    outcome = run(config)
    rows = data.crowded_embeddings(30, 4, seed=0, first_identity=1 << 20, size=16).embeddings
    support = stages[-1].evaluate.support(outcome.state, rows)
    assert np.asarray(support.simulated.mean).max() <= 0.2 < np.asarray(support.gallery.mean).max()
    with pytest.raises(
        UserError, match=r"^same_above: leaves 120 of 120 images without a simulated neighbor"
    ):
        run(dataclasses.replace(SMALL, same_above=-1.0))


def test_a_cap_takes_as_many_as_are_inside():
    config = dataclasses.replace(SMALL, cap=0.5, fewest=3, neighbors=40)
    rows = data.crowded_embeddings(30, 4, seed=0, first_identity=1 << 20, size=16).embeddings
    support = ida.build(config)[-1].evaluate.support(run(config).state, rows)
    count = np.asarray(support.simulated.count)
    virtual = data.crowded_embeddings(200, 1, seed=0, first_identity=3 << 19, size=16).embeddings
    np.testing.assert_array_equal(count, np.clip((rows @ virtual.T >= 0.5).sum(1), 3, 40))
    assert len(np.unique(count)) > 5


@pytest.mark.slow
def test_an_estimator_on_a_feature_map(tiny):
    flags = "--gan.steps 0 --score learned --backbone iresnet_pico --estimator.layer stage3_block1 --estimator.steps 2"
    config, _ = configs.parse("ida", [*tiny, *flags.split(), "--estimator.batch-size", "16"])
    outcome = run(dataclasses.replace(config, neighbors=6, candidates=40, steps=1))
    assert outcome.metrics["alignment/learned/deviation"] > 0
    assert "batch_stats" in outcome.state.extra["estimator"]
    with pytest.raises(
        UserError, match=r"^estimator.layer: needs one of .*stage3_block1.*, got 'head_dense'"
    ):
        ida.build(
            dataclasses.replace(config, estimator=dataclasses.replace(config.estimator, layer="head_dense"))
        )


def test_embeddings_of_a_file(tmp_path):
    people, gallery, virtual = (
        data.crowded_embeddings(count, each, seed=0, first_identity=first, size=8)
        for count, each, first in ((12, 3, 1 << 20), (12, 3, 0), (50, 1, 99))
    )
    arrays = dict(embeddings=people.embeddings, labels=people.labels, groups=people.groups)
    arrays |= dict(gallery=gallery.embeddings, gallery_labels=gallery.labels)
    path = tmp_path / "a.npz"
    np.savez(path, virtual=virtual.embeddings, **arrays)
    config = dataclasses.replace(SMALL, crowd=None, neighbors=5, embeddings=str(path))
    report = run(config).metrics
    assert {"alignment/simulated/spread@1e-2", "alignment/oracle/tar@1e-2"} <= set(report)
    # A generator of embeddings stands in where the file has no candidates.
    np.savez(path, **arrays)
    config = dataclasses.replace(config, score="generated", gan=dataclasses.replace(GAN, batch_size=8))
    report = run(config).metrics
    assert "alignment/simulated/tar@1e-2" not in report
    assert 0 <= report["alignment/verification/tar@1e-2"] <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--neighbors 0", "neighbors: needs an integer from 1, got 0"),
        ("--cap 1.5", "cap: needs a number from -1 to 1, got 1.5"),
        ("--cap 0.5 --fewest 60", "fewest: needs at most the 50 neighbors, got 60"),
        ("--same-above 2", "same_above: needs a number from -1 to 1, got 2"),
        ("--weight -1", "weight: needs a finite number from 0, got -1"),
        ("--candidates 0", "candidates: needs an integer from 1, got 0"),
        ("--gan.penalty -1", "gan.penalty: needs a finite number from 0, got -1"),
        ("--gan.batch-size 12", "gan.batch_size: needs a multiple of the 8 devices, got 12"),
        ("--gan.steps -1", "gan.steps: needs an integer from 0, got -1"),
        ("--gan.steps 0", "score: generated faces need a generator, gan.steps is 0"),
        ("--data digits", "data: needs people to verify who are not trained on, got digits"),
        ("--estimator.steps -1", "estimator.steps: needs an integer from 0, got -1"),
        ("--embeddings nowhere.npz", "embeddings: cannot read nowhere.npz"),
        ("--embeddings a.npz --run b", "run: needs to be the only source of embeddings"),
        ("--embeddings a.npz --estimator.layer x", "estimator.layer: needs a network, embeddings has none"),
        (
            "--image-size 20 --backbone mlp",
            "image_size: the generator needs squares of a multiple of 8, got 20x20",
        ),
    ],
)
def test_refusals(refusal, tmp_path, flags, message):
    small = "--data.identities 8 --data.per-identity 8" if "--data" not in flags else ""
    said = refusal(launch.main, ["ida", *small.split(), *flags.split(), "--workdir", tmp_path / "run"])
    assert said.startswith(message)


def test_scores_that_cannot_be_had(photographs):
    folder = dataclasses.replace(
        FACES,
        data=data.Folder(str(photographs), held_out=0.5),
        image_size=16,
        batch_size=8,
        score="simulated",
    )
    with pytest.raises(UserError, match=r"^score: simulated faces need a renderer, folder"):
        ida.build(folder)
    with pytest.raises(UserError, match=r"^score: snorm needs virtual faces, gan.steps is 0"):
        ida.build(dataclasses.replace(folder, score="snorm", gan=GanSpec(steps=0)))


def test_the_configuration_of_the_paper_and_presets():
    for config in (ida.Config(), ida.Config.paper(), ida.Config.crowded()):
        method, again, _ = configs.from_dict(
            json.loads(json.dumps(configs.to_dict("ida", config, configs.Run())))
        )
        assert method == "ida" and again == config
    paper = ida.Config.paper()
    assert (paper.candidates, paper.neighbors, paper.same_above) == (10_000, 50, 0.6)
    shape = (112, 112, 3)
    latents, images = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, paper.gan.latent), (2, *shape)))
    made, _ = jax.eval_shape(
        Generator(shape, paper.gan.channels).init_with_output, jax.random.key(0), latents
    )
    logits, _ = jax.eval_shape(
        Discriminator(shape, paper.gan.channels).init_with_output, jax.random.key(0), images
    )
    assert made.shape == (2, 112, 112, 3) and logits.shape == (2,)


def test_studies_change_fields_that_exist():
    for study in studies.STUDIES.values():
        assert study.method in study.arms
        for changes in study.conditions.values():
            for overrides in study.arms.values():
                ida._check(dataclasses.replace(study.base, **changes, **overrides))
